//! The audit log.

use crate::{Error, Records};
use api::v1::access::AuditEntry;
use rusqlite::params;

/// Entries that are kept.
const KEPT: i64 = 100_000;

impl Records<'_> {
    /// Adds an entry, whose number is ignored, and forgets the oldest when there are very many.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn audit_insert(&self, entry: &AuditEntry) -> Result<(), Error> {
        self.db
            .prepare_cached(
                "INSERT INTO audit (time, user, action, project, path, status) VALUES (?1,?2,?3,?4,?5,?6)",
            )?
            .execute(params![
                entry.time,
                entry.user,
                entry.action,
                entry.project,
                entry.path,
                entry.status
            ])?;
        self.db
            .prepare_cached("DELETE FROM audit WHERE id <= ?1")?
            .execute([self.db.last_insert_rowid() - KEPT])?;
        Ok(())
    }

    /// Entries, the newest first, older than `before`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn audit(&self, before: i64, limit: u32) -> Result<Vec<AuditEntry>, Error> {
        let mut statement = self.db.prepare_cached(
            "SELECT id, time, user, action, project, path, status FROM audit WHERE id < ?1
             ORDER BY id DESC LIMIT ?2",
        )?;
        let rows = statement.query_map(params![before, limit], |row| {
            Ok(AuditEntry {
                id: row.get(0)?,
                time: row.get(1)?,
                user: row.get(2)?,
                action: row.get(3)?,
                project: row.get(4)?,
                path: row.get(5)?,
                status: row.get(6)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
