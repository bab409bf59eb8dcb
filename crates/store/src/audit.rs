//! The audit log.

use crate::{Error, Records};
use api::v1::access::AuditEntry;
use rusqlite::params;

/// Entries of users that are kept.
const KEPT: u32 = 100_000;
/// Entries of those who were not logged in that are kept: whoever reaches the daemon can make any number of them,
/// and must not be able to push out the others.
const STRANGERS_KEPT: u32 = 10_000;
/// After so many entries the oldest are looked for: that reads all of them.
const TIDY_EVERY: i64 = 256;

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
        if self.db.last_insert_rowid() % TIDY_EVERY == 0 {
            self.audit_tidy(KEPT, STRANGERS_KEPT)?;
        }
        Ok(())
    }

    /// Forgets all but the newest entries, of users and of strangers apart.
    fn audit_tidy(&self, kept: u32, strangers_kept: u32) -> Result<(), Error> {
        for (who, kept) in [("user IS NOT NULL", kept), ("user IS NULL", strangers_kept)] {
            let oldest = format!("SELECT id FROM audit WHERE {who} ORDER BY id DESC LIMIT 1 OFFSET ?1");
            self.db
                .prepare_cached(&format!("DELETE FROM audit WHERE {who} AND id <= ({oldest})"))?
                .execute([kept])?;
        }
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

#[cfg(test)]
mod tests {
    use api::v1::access::AuditEntry;

    #[test]
    fn strangers_push_out_their_own_entries_only() {
        let (store, _file) = crate::test_store("audit");
        let entry = |user: Option<&str>, status| AuditEntry {
            id: 0,
            time: 1,
            user: user.map(str::to_owned),
            action: "vm_list".into(),
            project: None,
            path: "/v1/vms".into(),
            status,
        };
        let left: Result<_, crate::Error> = store.write(|records| {
            for status in 0..5 {
                records.audit_insert(&entry(Some("ann"), 200 + status))?;
            }
            for status in 0..300 {
                records.audit_insert(&entry(None, 400 + status))?;
            }
            records.audit_tidy(4, 3)?;
            records.audit(i64::MAX, 1000)
        });
        let left: Vec<_> = left.unwrap().into_iter().map(|entry| (entry.user, entry.status)).collect();
        let ann = |status| (Some("ann".to_owned()), status);
        assert_eq!(left, [(None, 699), (None, 698), (None, 697), ann(204), ann(203), ann(202), ann(201)]);
    }
}
