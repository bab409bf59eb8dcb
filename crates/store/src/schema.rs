//! The tables, and how an older file is brought up to date.
//!
//! A migration never changes once it has been released; a change is a new one at the end.

use crate::{Error, ErrorKind};
use rusqlite::Connection;

const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE projects (
        name TEXT PRIMARY KEY, description TEXT NOT NULL, quota TEXT NOT NULL,
        created INTEGER NOT NULL, revision INTEGER NOT NULL
    ) STRICT;
    INSERT INTO projects VALUES ('default', 'For all that belongs to no other project', '{}', 0, 1);
    CREATE TABLE vms (
        id TEXT PRIMARY KEY, project TEXT NOT NULL REFERENCES projects(name), name TEXT NOT NULL,
        config TEXT NOT NULL, created INTEGER NOT NULL, revision INTEGER NOT NULL,
        desired TEXT NOT NULL, failed INTEGER NOT NULL, reason TEXT,
        started INTEGER, running_revision INTEGER, UNIQUE (project, name)
    ) STRICT;
    CREATE TABLE operations (
        id TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, project TEXT NOT NULL, state TEXT NOT NULL,
        view TEXT NOT NULL, request TEXT NOT NULL
    ) STRICT;
    CREATE INDEX operations_by_state ON operations (state);
    CREATE TABLE users (
        name TEXT PRIMARY KEY, description TEXT NOT NULL, grants TEXT NOT NULL,
        created INTEGER NOT NULL, revision INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE tokens (
        id TEXT PRIMARY KEY, user TEXT NOT NULL REFERENCES users(name) ON DELETE CASCADE,
        description TEXT NOT NULL, hash BLOB NOT NULL, created INTEGER NOT NULL, expires INTEGER
    ) STRICT;
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, user TEXT, action TEXT NOT NULL,
        project TEXT, path TEXT NOT NULL, status INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE pools (
        name TEXT PRIMARY KEY, path TEXT NOT NULL UNIQUE, created INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE volumes (
        project TEXT NOT NULL REFERENCES projects(name), name TEXT NOT NULL, id TEXT NOT NULL UNIQUE,
        pool TEXT NOT NULL REFERENCES pools(name), size INTEGER NOT NULL, created INTEGER NOT NULL,
        PRIMARY KEY (project, name)
    ) STRICT;
    CREATE TABLE creation_keys (
        user TEXT NOT NULL, key TEXT NOT NULL, fingerprint TEXT NOT NULL, answer TEXT NOT NULL,
        created INTEGER NOT NULL, PRIMARY KEY (user, key)
    ) STRICT;
",
    "
    ALTER TABLE vms ADD COLUMN origin TEXT;
    ALTER TABLE vms ADD COLUMN resume TEXT;
    CREATE TABLE snapshots (
        id TEXT PRIMARY KEY, vm TEXT NOT NULL REFERENCES vms(id) ON DELETE CASCADE, name TEXT NOT NULL,
        description TEXT NOT NULL, config TEXT NOT NULL, bytes INTEGER NOT NULL, created INTEGER NOT NULL,
        UNIQUE (vm, name)
    ) STRICT;
",
    // Networks; and network cards have names from now on, where the daemon would choose the same.
    "
    CREATE TABLE networks (
        id TEXT PRIMARY KEY, project TEXT NOT NULL REFERENCES projects(name), name TEXT NOT NULL,
        config TEXT NOT NULL, secret BLOB NOT NULL, created INTEGER NOT NULL, revision INTEGER NOT NULL,
        UNIQUE (project, name)
    ) STRICT;
    UPDATE vms SET config = json_set(config, '$.nics', json('[{}]')) WHERE json_type(config, '$.nics') IS NULL;
    UPDATE vms SET config = json_set(config, '$.nics', (
        SELECT json_group_array(json_set(value, '$.name', 'net' || key)) FROM json_each(config, '$.nics')
    )) WHERE json_array_length(config, '$.nics') > 0;
    UPDATE snapshots SET config = json_set(config, '$.nics', (
        SELECT json_group_array(json_set(value, '$.name', 'net' || key)) FROM json_each(config, '$.nics')
    )) WHERE json_array_length(config, '$.nics') > 0;
",
    // With what a machine runs that was changed meanwhile. Of those that run now it is asked.
    "
    ALTER TABLE vms ADD COLUMN running_sizes TEXT;
",
];

/// Brings the file up to date, in one transaction for each step.
pub(crate) fn migrate(db: &mut Connection) -> Result<(), Error> {
    let version: usize = db.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))? as usize;
    if version > MIGRATIONS.len() {
        return Err(Error::new(
            ErrorKind::Database,
            format!(
                "the records are of version {version}, this program knows up to {}: install the newer program \
                 again, or restore the records from a backup",
                MIGRATIONS.len()
            ),
        ));
    }
    for (done, migration) in MIGRATIONS.iter().enumerate().skip(version) {
        let step = db.transaction()?;
        step.execute_batch(migration)?;
        step.pragma_update(None, "user_version", done as i64 + 1)?;
        step.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an older program has written is read by this one.
    #[test]
    fn an_older_file_is_brought_up_to_date() {
        let (store, path) = crate::test_store("older");
        drop(store);
        std::fs::remove_file(&*path).unwrap();
        let db = Connection::open(&*path).unwrap();
        db.execute_batch(MIGRATIONS[0]).unwrap();
        db.execute_batch(
            r#"INSERT INTO vms VALUES ('id', 'default', 'web', '{"boot": {"kernel": "/k"}}', 1, 1, 'stopped',
               0, NULL, NULL, NULL);
               INSERT INTO vms VALUES ('two', 'default', 'two', '{"boot": {"kernel": "/k"},
               "nics": [{"mac": "02:00:00:00:00:01", "ports": ["1:2"]}, {"network": "user"}]}', 1, 1,
               'stopped', 0, NULL, NULL, NULL);
               INSERT INTO vms VALUES ('none', 'default', 'none', '{"boot": {"kernel": "/k"}, "nics": []}', 1, 1,
               'stopped', 0, NULL, NULL, NULL)"#,
        )
        .unwrap();
        db.pragma_update(None, "user_version", 1).unwrap();
        drop(db);
        let store = crate::Store::open(&path).unwrap();
        let vm = store.read(|records| records.vm("default", "web")).unwrap();
        let mut config = api::v1::vm::VmConfig::new("/k");
        config.nics[0].name = Some("net0".into());
        assert_eq!(vm.config, config);
        let two = store.read(|records| records.vm("default", "two")).unwrap().config.nics;
        let names: Vec<_> = two.iter().map(|nic| nic.name.as_deref()).collect();
        assert_eq!(names, [Some("net0"), Some("net1")]);
        assert_eq!((two[0].mac.as_deref(), two[0].ports.len()), (Some("02:00:00:00:00:01"), 1));
        let none = store.read(|records| records.vm("default", "none")).unwrap().config.nics;
        assert!(none.is_empty(), "a machine without cards stays so");
        assert!(vm.origin.is_none() && vm.resume.is_none());
    }

    #[test]
    fn a_file_of_the_future_is_refused() {
        let (store, path) = crate::test_store("future");
        drop(store);
        Connection::open(&*path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let error = crate::Store::open(&path).unwrap_err();
        assert!(error.to_string().contains("version 99"), "{error}");
    }
}
