//! Networks.

use crate::{Error, ErrorKind, Records};
use api::v1::Time;
use api::v1::network::NetworkConfig;
use rusqlite::{OptionalExtension, Row, params};

/// A network.
#[derive(Clone, PartialEq, Eq)]
pub struct NetworkRecord {
    /// Its identity, a UUID.
    pub id: String,
    /// The project that it belongs to.
    pub project: String,
    /// Its name, unique in the project.
    pub name: String,
    /// What it is.
    pub config: NetworkConfig,
    /// From it come the keys by which its cards are let in.
    pub secret: [u8; 32],
    /// When it was created.
    pub created: Time,
    /// Counts the changes of its configuration.
    pub revision: i64,
}

impl std::fmt::Debug for NetworkRecord {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetworkRecord")
            .field("id", &self.id)
            .field("project", &self.project)
            .field("name", &self.name)
            .field("config", &self.config)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

const COLUMNS: &str = "id, project, name, config, secret, created, revision";

fn record(row: &Row<'_>) -> rusqlite::Result<NetworkRecord> {
    Ok(NetworkRecord {
        id: row.get(0)?,
        project: row.get(1)?,
        name: row.get(2)?,
        config: crate::json(row, 3)?,
        secret: row.get(4)?,
        created: row.get(5)?,
        revision: row.get(6)?,
    })
}

impl Records<'_> {
    /// Adds a network.
    ///
    /// # Errors
    /// When its name is taken.
    pub fn network_insert(&self, network: &NetworkRecord) -> Result<(), Error> {
        self.db
            .prepare_cached(&format!("INSERT INTO networks ({COLUMNS}) VALUES (?1,?2,?3,?4,?5,?6,?7)"))?
            .execute(params![
                network.id,
                network.project,
                network.name,
                crate::to_json(&network.config),
                network.secret,
                network.created,
                network.revision
            ])
            .map_err(|e| Error::or_exists(e, "network", &network.name))?;
        Ok(())
    }

    /// The network of this name.
    ///
    /// # Errors
    /// When there is none in the project.
    pub fn network(&self, project: &str, name: &str) -> Result<NetworkRecord, Error> {
        let sql = format!("SELECT {COLUMNS} FROM networks WHERE project = ?1 AND name = ?2");
        let found = self.db.prepare_cached(&sql)?.query_row(params![project, name], record).optional()?;
        found.ok_or_else(|| Error::not_found("network", name))
    }

    /// Networks of a project by name, after the one named.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn networks(&self, project: &str, after: &str, limit: u32) -> Result<Vec<NetworkRecord>, Error> {
        let sql =
            format!("SELECT {COLUMNS} FROM networks WHERE project = ?1 AND name > ?2 ORDER BY name LIMIT ?3");
        let mut statement = self.db.prepare_cached(&sql)?;
        let rows = statement.query_map(params![project, after, limit], record)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// All networks.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn all_networks(&self) -> Result<Vec<NetworkRecord>, Error> {
        let mut statement = self.db.prepare_cached(&format!("SELECT {COLUMNS} FROM networks ORDER BY id"))?;
        let rows = statement.query_map([], record)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Changes a network, if it is still of the revision given, and returns it.
    ///
    /// # Errors
    /// When there is none, or it was changed.
    pub fn network_update(&self, network: &NetworkRecord) -> Result<NetworkRecord, Error> {
        let changed = self
            .db
            .prepare_cached(
                "UPDATE networks SET config = ?3, revision = revision + 1 WHERE id = ?1 AND revision = ?2",
            )?
            .execute(params![network.id, network.revision, crate::to_json(&network.config)])?;
        let now = self.network(&network.project, &network.name)?;
        match changed {
            0 => Err(Error::new(
                ErrorKind::Changed,
                format!("the network {:?} was changed meanwhile", now.name),
            )),
            _ => Ok(now),
        }
    }

    /// Removes a network. One that is not there is no error.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn network_delete(&self, id: &str) -> Result<(), Error> {
        self.db.prepare_cached("DELETE FROM networks WHERE id = ?1")?.execute([id])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::v1::network::NetworkMode;

    #[test]
    fn networks_are_kept_found_changed_and_removed() {
        let (store, _file) = crate::test_store("networks");
        let network = |name: &str| NetworkRecord {
            id: format!("id-{name}"),
            project: "default".into(),
            name: name.into(),
            config: NetworkConfig::new(NetworkMode::Internal),
            secret: [7; 32],
            created: 1,
            revision: 1,
        };
        store
            .write(|records| ["b", "a"].iter().try_for_each(|name| records.network_insert(&network(name))))
            .unwrap();
        let again = store
            .write(|records| records.network_insert(&NetworkRecord { id: "other".into(), ..network("a") }));
        assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
        store
            .read(|records| {
                assert_eq!(records.network("default", "a")?, network("a"));
                assert_eq!(records.network("other", "a").unwrap_err().kind(), ErrorKind::NotFound);
                assert_eq!(records.networks("default", "a", 9)?, [network("b")]);
                Ok::<_, Error>(())
            })
            .unwrap();
        let mut changed = network("a");
        changed.config.description = "changed".into();
        assert_eq!(store.write(|records| records.network_update(&changed)).unwrap().revision, 2);
        let error = store.write(|records| records.network_update(&changed)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed);
        store.write(|records| records.network_delete("id-a")).unwrap();
        assert_eq!(store.read(|records| records.all_networks()).unwrap(), [network("b")]);
        assert!(!format!("{:?}", network("a")).contains('7'), "secrets are not shown");
    }
}
