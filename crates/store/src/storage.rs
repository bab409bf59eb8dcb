//! Pools and volumes.

use crate::{Error, Records};
use api::v1::Time;
use rusqlite::{OptionalExtension, Row, params};

/// A pool: a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolRecord {
    /// Its name.
    pub name: String,
    /// The folder.
    pub path: String,
    /// When it was created.
    pub created: Time,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// The project that it belongs to.
    pub project: String,
    /// Its name.
    pub name: String,
    /// Its identity, by which its file is named.
    pub id: String,
    /// The pool that it lies in.
    pub pool: String,
    /// What the guest sees, in bytes.
    pub size: u64,
    /// When it was created.
    pub created: Time,
}

fn pool(row: &Row<'_>) -> rusqlite::Result<PoolRecord> {
    Ok(PoolRecord { name: row.get(0)?, path: row.get(1)?, created: row.get(2)? })
}

fn volume(row: &Row<'_>) -> rusqlite::Result<VolumeRecord> {
    Ok(VolumeRecord {
        project: row.get(0)?,
        name: row.get(1)?,
        id: row.get(2)?,
        pool: row.get(3)?,
        size: row.get::<_, i64>(4)? as u64,
        created: row.get(5)?,
    })
}

impl Records<'_> {
    /// Adds a pool.
    ///
    /// # Errors
    /// When name or folder are taken.
    pub fn pool_insert(&self, pool: &PoolRecord) -> Result<(), Error> {
        self.db
            .prepare_cached("INSERT INTO pools VALUES (?1, ?2, ?3)")?
            .execute(params![pool.name, pool.path, pool.created])
            .map_err(|e| Error::or_exists(e, "pool with this name or folder,", &pool.name))?;
        Ok(())
    }

    /// The pool of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn pool(&self, name: &str) -> Result<PoolRecord, Error> {
        let found = self
            .db
            .prepare_cached("SELECT * FROM pools WHERE name = ?1")?
            .query_row([name], pool)
            .optional()?;
        found.ok_or_else(|| Error::not_found("pool", name))
    }

    /// All pools, by name, with the number of volumes in each.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn pools(&self) -> Result<Vec<(PoolRecord, u64)>, Error> {
        let mut statement = self.db.prepare_cached(
            "SELECT *, (SELECT count(*) FROM volumes WHERE pool = pools.name) FROM pools ORDER BY name",
        )?;
        let rows = statement.query_map([], |row| Ok((pool(row)?, row.get::<_, i64>(3)? as u64)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Removes a pool without volumes.
    ///
    /// # Errors
    /// When there is none. Volumes in it have to be looked for before.
    pub fn pool_delete(&self, name: &str) -> Result<(), Error> {
        match self.db.prepare_cached("DELETE FROM pools WHERE name = ?1")?.execute([name])? {
            0 => Err(Error::not_found("pool", name)),
            _ => Ok(()),
        }
    }

    /// Adds a volume.
    ///
    /// # Errors
    /// When its name is taken.
    pub fn volume_insert(&self, volume: &VolumeRecord) -> Result<(), Error> {
        self.db
            .prepare_cached("INSERT INTO volumes VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![
                volume.project,
                volume.name,
                volume.id,
                volume.pool,
                volume.size as i64,
                volume.created
            ])
            .map_err(|e| Error::or_exists(e, "volume", &volume.name))?;
        Ok(())
    }

    /// The volume of this name.
    ///
    /// # Errors
    /// When there is none in the project.
    pub fn volume(&self, project: &str, name: &str) -> Result<VolumeRecord, Error> {
        let found = self
            .db
            .prepare_cached("SELECT * FROM volumes WHERE project = ?1 AND name = ?2")?
            .query_row([project, name], volume)
            .optional()?;
        found.ok_or_else(|| Error::not_found("volume", name))
    }

    /// Volumes of a project by name, after the one named.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn volumes(&self, project: &str, after: &str, limit: u32) -> Result<Vec<VolumeRecord>, Error> {
        let mut statement = self.db.prepare_cached(
            "SELECT * FROM volumes WHERE project = ?1 AND name > ?2 ORDER BY name LIMIT ?3",
        )?;
        let rows = statement.query_map(params![project, after, limit], volume)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Removes a volume. One that is not there is no error.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn volume_delete(&self, id: &str) -> Result<(), Error> {
        self.db.prepare_cached("DELETE FROM volumes WHERE id = ?1")?.execute([id])?;
        Ok(())
    }
}
