//! What the daemon of one host remembers, in one SQLite file.
//!
//! [`Store`] is opened once. [`Store::read`] and [`Store::write`] give a [`Records`] each: a transaction in
//! which everything can be read and, in the second, changed. What `write` has returned from is on the disk and
//! outlives a crash of the program or of the host; [`Store::write_soon`] leaves the latter to the next `write`.
//!
//! One connection reads and one writes, so that no reader waits for a disk to be flushed. Records are rows with
//! the searched-for parts in columns and the rest as JSON of the types in `api`; what is read back is checked.

mod audit;
mod error;
mod networks;
mod operations;
mod projects;
mod schema;
mod snapshots;
mod storage;
mod users;
mod vms;

pub use error::{Error, ErrorKind};
pub use networks::NetworkRecord;
pub use operations::OperationRecord;
pub use projects::ProjectRecord;
pub use snapshots::SnapshotRecord;
pub use storage::{PoolRecord, VolumeRecord};
pub use users::TokenRecord;
pub use vms::{Desired, Origin, Resume, Sizes, VmRecord};

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The records, in a file.
#[derive(Debug)]
pub struct Store {
    reader: Mutex<Connection>,
    writer: Mutex<Connection>,
}

/// All records, within one transaction.
#[derive(Debug)]
pub struct Records<'a> {
    db: Transaction<'a>,
}

impl Store {
    /// Opens the file, makes it if it is not there, and brings it up to date.
    ///
    /// # Errors
    /// When it cannot be used, or was written by a later version of this program.
    pub fn open(path: &Path) -> Result<Store, Error> {
        let mut writer = connect(path)?;
        schema::migrate(&mut writer)?;
        Ok(Store { reader: Mutex::new(connect(path)?), writer: Mutex::new(writer) })
    }

    /// Reads. What is seen is of one moment.
    ///
    /// # Errors
    /// When the file cannot be read, and what `work` returns.
    pub fn read<T, E: From<Error>>(&self, work: impl FnOnce(&Records<'_>) -> Result<T, E>) -> Result<T, E> {
        let mut reader = lock(&self.reader);
        let db = reader.transaction().map_err(Error::from)?;
        work(&Records { db })
    }

    /// Changes records: all of what `work` does, or, when it returns an error, nothing.
    ///
    /// # Errors
    /// When the file cannot be written, and what `work` returns.
    pub fn write<T, E: From<Error>>(&self, work: impl FnOnce(&Records<'_>) -> Result<T, E>) -> Result<T, E> {
        transact(&mut lock(&self.writer), work)
    }

    /// The same as [`Store::write`] for what a loss of the host's power in the next moments may take away: nobody waits
    /// for the disk. A crash of the program takes nothing away.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn write_soon<T, E: From<Error>>(
        &self,
        work: impl FnOnce(&Records<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut writer = lock(&self.writer);
        writer.pragma_update(None, "synchronous", "NORMAL").map_err(Error::from)?;
        let result = transact(&mut writer, work);
        writer.pragma_update(None, "synchronous", "FULL").map_err(Error::from)?;
        result
    }
}

fn transact<T, E: From<Error>>(
    writer: &mut Connection,
    work: impl FnOnce(&Records<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let db = writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(Error::from)?;
    let records = Records { db };
    let result = work(&records)?;
    records.db.commit().map_err(Error::from)?;
    Ok(result)
}

fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(path: &Path) -> Result<Connection, Error> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let cannot = |e: rusqlite::Error| Error::database(format!("the records {path:?} cannot be opened"), e);
    let db = Connection::open_with_flags(path, flags).map_err(cannot)?;
    // A commit waits for the disk: what was acknowledged must survive.
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
         PRAGMA busy_timeout = 10000; PRAGMA trusted_schema = OFF;",
    )
    .map_err(cannot)?;
    db.set_prepared_statement_cache_capacity(64);
    Ok(db)
}

/// Reads a column of JSON.
fn json<T: serde::de::DeserializeOwned>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    serde_json::from_str(text).map_err(|e| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(e))
    })
}

/// Reads a column of JSON that may be empty.
fn json_or_null<T: serde::de::DeserializeOwned>(
    row: &rusqlite::Row<'_>,
    column: usize,
) -> rusqlite::Result<Option<T>> {
    match row.get_ref(column)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => json(row, column).map(Some),
    }
}

/// Writes a column of JSON.
fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("types of the API are JSON")
}

/// A store for a test, and its file, which goes when this is dropped.
#[cfg(test)]
pub(crate) fn test_store(name: &str) -> (Store, TestFile) {
    let file = TestFile(std::env::temp_dir().join(format!("arnia-store-{}-{name}.db", std::process::id())));
    file.remove();
    (Store::open(&file).unwrap(), file)
}

#[cfg(test)]
pub(crate) struct TestFile(std::path::PathBuf);

#[cfg(test)]
impl TestFile {
    fn remove(&self) {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", self.0.display()));
        }
    }
}

#[cfg(test)]
impl std::ops::Deref for TestFile {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
impl Drop for TestFile {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_changes_nothing() {
        let (store, _file) = test_store("rollback");
        let result: Result<(), Error> = store.write(|records| {
            records.project_insert(&ProjectRecord::new("a", 5))?;
            records.project_insert(&ProjectRecord::new("a", 5))
        });
        assert_eq!(result.unwrap_err().kind(), ErrorKind::AlreadyExists);
        let projects = store.read(|records| records.projects()).unwrap();
        assert_eq!(projects.len(), 1, "only the default one: {projects:?}");
    }

    #[test]
    fn what_was_written_is_there_after_opening_again() {
        let (store, path) = test_store("again");
        store.write(|records| records.project_insert(&ProjectRecord::new("a", 5))).unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.read(|records| records.project("a")).unwrap().created, 5);
    }
}
