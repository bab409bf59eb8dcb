//! Snapshots of machines.

use crate::{Error, Records};
use api::v1::Time;
use api::v1::vm::VmConfig;
use rusqlite::{OptionalExtension, Row, params};

/// A snapshot. It goes with its machine.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotRecord {
    /// Its identity, by which its folder is named.
    pub id: String,
    /// The machine's identity.
    pub vm: String,
    /// Its name, unique for its machine.
    pub name: String,
    /// For people.
    pub description: String,
    /// What the machine was at that time.
    pub config: VmConfig,
    /// Bytes that it takes on the host.
    pub bytes: u64,
    /// When it was made.
    pub created: Time,
}

const COLUMNS: &str = "id, vm, name, description, config, bytes, created";

fn record(row: &Row<'_>) -> rusqlite::Result<SnapshotRecord> {
    Ok(SnapshotRecord {
        id: row.get(0)?,
        vm: row.get(1)?,
        name: row.get(2)?,
        description: row.get(3)?,
        config: crate::json(row, 4)?,
        bytes: row.get::<_, i64>(5)? as u64,
        created: row.get(6)?,
    })
}

impl Records<'_> {
    /// Adds a snapshot.
    ///
    /// # Errors
    /// When the machine has one of this name.
    pub fn snapshot_insert(&self, snapshot: &SnapshotRecord) -> Result<(), Error> {
        let sql = format!("INSERT INTO snapshots ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)");
        self.db
            .prepare_cached(&sql)?
            .execute(params![
                snapshot.id,
                snapshot.vm,
                snapshot.name,
                snapshot.description,
                crate::to_json(&snapshot.config),
                snapshot.bytes as i64,
                snapshot.created
            ])
            .map_err(|e| Error::or_exists(e, "snapshot", &snapshot.name))?;
        Ok(())
    }

    /// The snapshot of this name of a machine.
    ///
    /// # Errors
    /// When there is none.
    pub fn snapshot(&self, vm: &str, name: &str) -> Result<SnapshotRecord, Error> {
        let sql = format!("SELECT {COLUMNS} FROM snapshots WHERE vm = ?1 AND (name = ?2 OR id = ?2)");
        let found = self.db.prepare_cached(&sql)?.query_row([vm, name], record).optional()?;
        found.ok_or_else(|| Error::not_found("snapshot", name))
    }

    /// The snapshots of a machine, the oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn snapshots(&self, vm: &str) -> Result<Vec<SnapshotRecord>, Error> {
        let sql = format!("SELECT {COLUMNS} FROM snapshots WHERE vm = ?1 ORDER BY created, name");
        let mut statement = self.db.prepare_cached(&sql)?;
        let rows = statement.query_map([vm], record)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The identities of all snapshots.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn snapshot_ids(&self) -> Result<Vec<String>, Error> {
        let mut statement = self.db.prepare_cached("SELECT id FROM snapshots")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Removes a snapshot. One that is not there is no error.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn snapshot_delete(&self, id: &str) -> Result<(), Error> {
        self.db.prepare_cached("DELETE FROM snapshots WHERE id = ?1")?.execute([id])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, VmRecord};

    #[test]
    fn snapshots_go_with_their_machine() {
        let (store, _file) = crate::test_store("snapshots");
        let snapshot = |name: &str, created| SnapshotRecord {
            id: format!("s-{name}"),
            vm: "v".into(),
            name: name.into(),
            description: String::new(),
            config: VmConfig::of_image("debian"),
            bytes: 5,
            created,
        };
        store
            .write(|records| {
                let config = VmConfig::of_image("debian");
                records.vm_insert(&VmRecord::new("v".into(), "default", "web".into(), config, 1))?;
                records.snapshot_insert(&snapshot("b", 1))?;
                records.snapshot_insert(&snapshot("a", 2))
            })
            .unwrap();
        let again = store.write(|records| records.snapshot_insert(&snapshot("a", 3)));
        assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
        let names = |records: &Records<'_>| {
            records.snapshots("v").map(|all| all.into_iter().map(|one| one.name).collect::<Vec<_>>())
        };
        assert_eq!(store.read(|records| names(records)).unwrap(), ["b", "a"]);
        assert_eq!(store.read(|records| records.snapshot("v", "a")).unwrap(), snapshot("a", 2));
        store.write(|records| records.snapshot_delete("s-a")).unwrap();
        assert_eq!(store.read(|records| records.snapshot("v", "a")).unwrap_err().kind(), ErrorKind::NotFound);
        store.write(|records| records.vm_delete("v")).unwrap();
        assert!(store.read(|records| records.snapshot_ids()).unwrap().is_empty());
    }
}
