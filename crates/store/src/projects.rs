//! Projects.

use crate::{Error, ErrorKind, Records};
use api::v1::Time;
use api::v1::project::{Quota, Usage};
use rusqlite::{OptionalExtension, Row, params};

/// A project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectRecord {
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
    /// What it may use.
    pub quota: Quota,
    /// When it was created.
    pub created: Time,
    /// Counts its changes.
    pub revision: i64,
}

impl ProjectRecord {
    /// A project without description or quota.
    pub fn new(name: impl Into<String>, created: Time) -> ProjectRecord {
        let (name, description, quota) = (name.into(), String::new(), Quota::default());
        ProjectRecord { name, description, quota, created, revision: 1 }
    }
}

const COLUMNS: &str = "name, description, quota, created, revision";

fn record(row: &Row<'_>) -> rusqlite::Result<ProjectRecord> {
    Ok(ProjectRecord {
        name: row.get(0)?,
        description: row.get(1)?,
        quota: crate::json(row, 2)?,
        created: row.get(3)?,
        revision: row.get(4)?,
    })
}

impl Records<'_> {
    /// Adds a project.
    ///
    /// # Errors
    /// When its name is taken.
    pub fn project_insert(&self, project: &ProjectRecord) -> Result<(), Error> {
        let quota = crate::to_json(&project.quota);
        self.db
            .prepare_cached("INSERT INTO projects VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![project.name, project.description, quota, project.created, project.revision])
            .map_err(|e| Error::or_exists(e, "project", &project.name))?;
        Ok(())
    }

    /// The project of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn project(&self, name: &str) -> Result<ProjectRecord, Error> {
        let sql = format!("SELECT {COLUMNS} FROM projects WHERE name = ?1");
        let found = self.db.prepare_cached(&sql)?.query_row([name], record).optional()?;
        found.ok_or_else(|| Error::not_found("project", name))
    }

    /// All projects, by name.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn projects(&self) -> Result<Vec<ProjectRecord>, Error> {
        let mut statement =
            self.db.prepare_cached(&format!("SELECT {COLUMNS} FROM projects ORDER BY name"))?;
        let rows = statement.query_map([], record)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Changes a project, if it is still of the revision given, and returns it.
    ///
    /// # Errors
    /// When there is none, or it was changed.
    pub fn project_update(&self, project: &ProjectRecord) -> Result<ProjectRecord, Error> {
        let changed = self
            .db
            .prepare_cached(
                "UPDATE projects SET description = ?3, quota = ?4, revision = revision + 1
                 WHERE name = ?1 AND revision = ?2",
            )?
            .execute(params![
                project.name,
                project.revision,
                project.description,
                crate::to_json(&project.quota)
            ])?;
        let now = self.project(&project.name)?;
        match changed {
            0 => Err(Error::new(
                ErrorKind::Changed,
                format!("the project {:?} was changed meanwhile", now.name),
            )),
            _ => Ok(now),
        }
    }

    /// Removes a project that holds nothing.
    ///
    /// # Errors
    /// When there is none. What it still holds has to be looked at before.
    pub fn project_delete(&self, name: &str) -> Result<(), Error> {
        match self.db.prepare_cached("DELETE FROM projects WHERE name = ?1")?.execute([name])? {
            0 => Err(Error::not_found("project", name)),
            _ => Ok(()),
        }
    }

    /// What the machines and volumes of a project use.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn usage(&self, project: &str) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        for vm in self.vms(project, "", u32::MAX)? {
            usage.vms += 1;
            usage.cpus += u64::from(vm.config.cpus);
            usage.memory_bytes = usage.memory_bytes.saturating_add(vm.config.memory.0);
        }
        for volume in self.volumes(project, "", u32::MAX)? {
            usage.storage_bytes = usage.storage_bytes.saturating_add(volume.size);
        }
        Ok(usage)
    }
}
