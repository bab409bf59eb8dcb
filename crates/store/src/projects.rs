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

    /// Removes a project that holds nothing, with its operations and what users may do in it: a later project of this
    /// name is another one.
    ///
    /// # Errors
    /// When there is none. What it still holds has to be looked at before.
    pub fn project_delete(&self, name: &str) -> Result<(), Error> {
        if self.db.prepare_cached("DELETE FROM projects WHERE name = ?1")?.execute([name])? == 0 {
            return Err(Error::not_found("project", name));
        }
        self.db.prepare_cached("DELETE FROM operations WHERE project = ?1")?.execute([name])?;
        for mut user in self.users()? {
            let before = user.grants.len();
            user.grants.retain(|grant| grant.project.as_deref() != Some(name));
            if user.grants.len() != before {
                self.user_update(&user)?;
            }
        }
        Ok(())
    }

    /// What the machines and volumes of a project use. A machine that was changed counts with what it runs with, or is to
    /// go on with, as long as that is more.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn usage(&self, project: &str) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        for vm in self.vms(project, "", u32::MAX)? {
            usage.vms += 1;
            let sizes = vm.counted();
            usage.cpus += u64::from(sizes.cpus);
            usage.memory_bytes = usage.memory_bytes.saturating_add(sizes.memory.0);
        }
        for volume in self.volumes(project, "", u32::MAX)? {
            usage.storage_bytes = usage.storage_bytes.saturating_add(volume.size);
        }
        Ok(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Desired, OperationRecord, Sizes, VmRecord};
    use api::ByteSize;
    use api::v1::access::{Grant, Role, User};
    use api::v1::operation::{Operation, OperationState, Target};
    use api::v1::vm::VmConfig;

    #[test]
    fn a_machine_counts_with_what_it_has_until_it_boots_with_less() {
        let (store, _file) = crate::test_store("usage");
        let config = |cpus, memory| VmConfig { cpus, memory: ByteSize(memory), ..VmConfig::new("/k") };
        let usage = |work: &dyn Fn(&Records<'_>) -> Result<(), Error>| {
            store.write(work).unwrap();
            let usage = store.read(|records| records.usage("default")).unwrap();
            (usage.cpus, usage.memory_bytes)
        };
        let runs = usage(&|records| {
            records.vm_insert(&VmRecord::new("v".into(), "default", "v".into(), config(4, 8192), 1))?;
            records.vm_set_state("v", Desired::Running, false, None)?;
            records.vm_started("v", 1, 1, Sizes::of(&config(4, 8192)))
        });
        assert_eq!(runs, (4, 8192));
        let update = |records: &Records<'_>, expected, config: VmConfig| {
            records.vm_update("v", expected, "v", &config).map(drop)
        };
        assert_eq!(usage(&|records| update(records, 1, config(1, 4096))), (4, 8192));
        assert_eq!(usage(&|records| update(records, 2, config(2, 16384))), (4, 16384));
        let off = usage(&|records| records.vm_set_state("v", Desired::Stopped, false, None));
        assert_eq!(off, (2, 16384));
    }

    #[test]
    fn nothing_of_a_removed_project_is_left_for_a_later_one_of_its_name() {
        let (store, _file) = crate::test_store("projects");
        let grant =
            |project: Option<&str>| Grant { project: project.map(str::to_owned), role: Role::Operator };
        let user = |name: &str, grants: &[Grant]| User {
            name: name.into(),
            description: String::new(),
            grants: grants.to_vec(),
            created: 1,
            revision: 1,
        };
        let operation = |id: &str, project: &str| OperationRecord {
            view: Operation {
                id: id.into(),
                kind: "vm_start".into(),
                project: project.into(),
                target: Target { kind: "vm".into(), id: "v".into(), name: "web".into() },
                state: OperationState::Succeeded,
                progress: None,
                error: None,
                user: "ann".into(),
                created: 1,
                finished: Some(2),
            },
            request: serde_json::Value::Null,
        };
        let (lab, all, other) = (grant(Some("lab")), grant(None), grant(Some("default")));
        let made = |records: &Records<'_>| {
            records.project_insert(&ProjectRecord::new("lab", 1))?;
            records.user_insert(&user("ann", &[lab.clone(), other.clone()]))?;
            records.user_insert(&user("bob", std::slice::from_ref(&all)))?;
            records.operation_insert(&operation("here", "lab"))?;
            records.operation_insert(&operation("there", "default"))?;
            records.project_delete("lab")?;
            records.project_insert(&ProjectRecord::new("lab", 2))
        };
        store.write(made).unwrap();
        let (ann, bob) =
            store.read(|records| Ok::<_, Error>((records.user("ann")?, records.user("bob")?))).unwrap();
        assert_eq!((ann.grants, ann.revision), (vec![other], 2));
        assert_eq!((bob.grants, bob.revision), (vec![all], 1), "nothing of this user's has changed");
        assert!(store.read(|records| records.operations("lab", "", 10)).unwrap().is_empty());
        assert_eq!(store.read(|records| records.operations("default", "", 10)).unwrap().len(), 1);
    }
}
