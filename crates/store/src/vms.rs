//! Virtual machines.

use crate::{Error, ErrorKind, Records};
use api::ByteSize;
use api::image::Digest;
use api::v1::Time;
use api::v1::vm::{InstanceParams, VmConfig};
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a machine shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Desired {
    /// Not run.
    Stopped,
    /// Run.
    Running,
}

/// What a machine is made of, if it comes from an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The image.
    pub image: Digest,
    /// How it is made of it.
    pub params: InstanceParams,
}

/// A snapshot that a machine's next start goes on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The snapshot's folder.
    pub snapshot: PathBuf,
    /// Whether the machine then is another one than the snapshot's, and has to be told who it is.
    pub other: bool,
}

/// How large a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Guest memory.
    pub memory: ByteSize,
}

impl Sizes {
    /// Those that a configuration asks for.
    pub fn of(config: &VmConfig) -> Sizes {
        Sizes { cpus: config.cpus, memory: config.memory }
    }
}

/// A machine.
#[derive(Clone, Debug, PartialEq)]
pub struct VmRecord {
    /// Its identity, a UUID.
    pub id: String,
    /// The project that it belongs to.
    pub project: String,
    /// Its name, unique in the project.
    pub name: String,
    /// What it shall be.
    pub config: VmConfig,
    /// When it was created.
    pub created: Time,
    /// Counts the changes of its configuration and name.
    pub revision: i64,
    /// What it shall do.
    pub desired: Desired,
    /// It does not run because of a fault.
    pub failed: bool,
    /// Why it is in its state.
    pub reason: Option<String>,
    /// When it was last started.
    pub started: Option<Time>,
    /// The revision with which it runs, or is to go on.
    pub running_revision: Option<i64>,
    /// The sizes with which it runs, or is to go on. Another configuration changes them with the next boot only.
    pub running_sizes: Option<Sizes>,
    /// What it is made of, if it comes from an image.
    pub origin: Option<Origin>,
    /// What its next start goes on from; it boots if there is nothing.
    pub resume: Option<Resume>,
}

impl VmRecord {
    /// How large it is for its project's quota: as it runs, or as it is to be with the next boot, whichever is more.
    pub fn counted(&self) -> Sizes {
        let wanted = Sizes::of(&self.config);
        let has = self.running_sizes.unwrap_or(wanted);
        Sizes { cpus: wanted.cpus.max(has.cpus), memory: wanted.memory.max(has.memory) }
    }

    /// A machine that has not been started yet.
    pub fn new(id: String, project: &str, name: String, config: VmConfig, created: Time) -> VmRecord {
        VmRecord {
            id,
            project: project.into(),
            name,
            config,
            created,
            revision: 1,
            desired: Desired::Stopped,
            failed: false,
            reason: None,
            started: None,
            running_revision: None,
            running_sizes: None,
            origin: None,
            resume: None,
        }
    }
}

const COLUMNS: &str = "id, project, name, config, created, revision, desired, failed, reason, started, \
                       running_revision, origin, resume, running_sizes";

fn record(row: &Row<'_>) -> rusqlite::Result<VmRecord> {
    Ok(VmRecord {
        id: row.get(0)?,
        project: row.get(1)?,
        name: row.get(2)?,
        config: crate::json(row, 3)?,
        created: row.get(4)?,
        revision: row.get(5)?,
        desired: if row.get_ref(6)?.as_str()? == "running" { Desired::Running } else { Desired::Stopped },
        failed: row.get(7)?,
        reason: row.get(8)?,
        started: row.get(9)?,
        running_revision: row.get(10)?,
        origin: crate::json_or_null(row, 11)?,
        resume: crate::json_or_null(row, 12)?,
        running_sizes: crate::json_or_null(row, 13)?,
    })
}

impl Desired {
    fn text(self) -> &'static str {
        match self {
            Desired::Stopped => "stopped",
            Desired::Running => "running",
        }
    }
}

impl Records<'_> {
    /// Adds a machine.
    ///
    /// # Errors
    /// When its name is taken.
    pub fn vm_insert(&self, vm: &VmRecord) -> Result<(), Error> {
        let sql =
            format!("INSERT INTO vms ({COLUMNS}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14)");
        self.db
            .prepare_cached(&sql)?
            .execute(params![
                vm.id,
                vm.project,
                vm.name,
                crate::to_json(&vm.config),
                vm.created,
                vm.revision,
                vm.desired.text(),
                vm.failed,
                vm.reason,
                vm.started,
                vm.running_revision,
                vm.origin.as_ref().map(crate::to_json),
                vm.resume.as_ref().map(crate::to_json),
                vm.running_sizes.as_ref().map(crate::to_json)
            ])
            .map_err(|e| Error::or_exists(e, "virtual machine", &vm.name))?;
        Ok(())
    }

    /// The machine of this name or identity.
    ///
    /// # Errors
    /// When there is none in the project.
    pub fn vm(&self, project: &str, name: &str) -> Result<VmRecord, Error> {
        let sql = format!(
            "SELECT {COLUMNS} FROM vms WHERE project = ?1 AND (name = ?2 OR id = ?2) ORDER BY name = ?2 DESC"
        );
        let found = self.db.prepare_cached(&sql)?.query_row(params![project, name], record).optional()?;
        found.ok_or_else(|| Error::not_found("virtual machine", name))
    }

    /// The machine of this identity, wherever it is.
    ///
    /// # Errors
    /// When there is none.
    pub fn vm_by_id(&self, id: &str) -> Result<VmRecord, Error> {
        let sql = format!("SELECT {COLUMNS} FROM vms WHERE id = ?1");
        let found = self.db.prepare_cached(&sql)?.query_row([id], record).optional()?;
        found.ok_or_else(|| Error::not_found("virtual machine", id))
    }

    /// Machines of a project by name, after the one named.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn vms(&self, project: &str, after: &str, limit: u32) -> Result<Vec<VmRecord>, Error> {
        let sql =
            format!("SELECT {COLUMNS} FROM vms WHERE project = ?1 AND name > ?2 ORDER BY name LIMIT ?3");
        let mut statement = self.db.prepare_cached(&sql)?;
        let rows = statement.query_map(params![project, after, limit], record)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// All machines.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn all_vms(&self) -> Result<Vec<VmRecord>, Error> {
        let mut statement = self.db.prepare_cached(&format!("SELECT {COLUMNS} FROM vms ORDER BY id"))?;
        let rows = statement.query_map([], record)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Changes name and configuration, if they are still of revision `expected`, and returns the machine.
    ///
    /// # Errors
    /// When there is no such machine, it was changed, or the name is taken.
    pub fn vm_update(
        &self,
        id: &str,
        expected: i64,
        name: &str,
        config: &VmConfig,
    ) -> Result<VmRecord, Error> {
        let changed = self
            .db
            .prepare_cached(
                "UPDATE vms SET name = ?3, config = ?4, revision = revision + 1 WHERE id = ?1 AND revision = ?2",
            )?
            .execute(params![id, expected, name, crate::to_json(config)])
            .map_err(|e| Error::or_exists(e, "virtual machine", name))?;
        let vm = self.vm_by_id(id)?;
        match changed {
            0 => Err(Error::new(
                ErrorKind::Changed,
                format!("the virtual machine {:?} was changed meanwhile", vm.name),
            )),
            _ => Ok(vm),
        }
    }

    /// Says what a machine shall do and why it is in its state. With what it ran is forgotten of one that shall not run,
    /// unless it is to go on from there.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn vm_set_state(
        &self,
        id: &str,
        desired: Desired,
        failed: bool,
        reason: Option<&str>,
    ) -> Result<(), Error> {
        let changed = self
            .db
            .prepare_cached("UPDATE vms SET desired = ?2, failed = ?3, reason = ?4 WHERE id = ?1")?
            .execute(params![id, desired.text(), failed, reason])?;
        if desired == Desired::Stopped {
            self.db
                .prepare_cached(
                    "UPDATE vms SET running_revision = NULL, running_sizes = NULL
                     WHERE id = ?1 AND resume IS NULL",
                )?
                .execute([id])?;
        }
        found(changed, id)
    }

    /// Remembers with which configuration a machine was started, and when.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn vm_started(&self, id: &str, time: Time, revision: i64, sizes: Sizes) -> Result<(), Error> {
        let changed = self
            .db
            .prepare_cached(
                "UPDATE vms SET started = ?2, running_revision = ?3, running_sizes = ?4 WHERE id = ?1",
            )?
            .execute(params![id, time, revision, crate::to_json(&sizes)])?;
        found(changed, id)
    }

    /// Says how large a machine is that runs.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn vm_has_sizes(&self, id: &str, sizes: Sizes) -> Result<(), Error> {
        let changed = self
            .db
            .prepare_cached("UPDATE vms SET running_sizes = ?2 WHERE id = ?1")?
            .execute(params![id, crate::to_json(&sizes)])?;
        found(changed, id)
    }

    /// Says that a machine runs with this configuration although it was not started with it.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn vm_runs_with(&self, id: &str, revision: i64) -> Result<(), Error> {
        let changed = self
            .db
            .prepare_cached("UPDATE vms SET running_revision = ?2 WHERE id = ?1")?
            .execute(params![id, revision])?;
        found(changed, id)
    }

    /// Says what the next start of a machine goes on from.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn vm_set_resume(&self, id: &str, resume: Option<&Resume>) -> Result<(), Error> {
        let changed = self
            .db
            .prepare_cached("UPDATE vms SET resume = ?2 WHERE id = ?1")?
            .execute(params![id, resume.map(crate::to_json)])?;
        found(changed, id)
    }

    /// Removes a machine. One that is not there is no error.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn vm_delete(&self, id: &str) -> Result<(), Error> {
        self.db.prepare_cached("DELETE FROM vms WHERE id = ?1")?.execute([id])?;
        Ok(())
    }
}

fn found(changed: usize, id: &str) -> Result<(), Error> {
    if changed == 0 { Err(Error::not_found("virtual machine", id)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str) -> VmRecord {
        VmRecord::new(format!("id-{name}"), "default", name.into(), VmConfig::new("/k"), 7)
    }

    fn resume() -> Resume {
        Resume { snapshot: "/s".into(), other: true }
    }

    const SIZES: Sizes = Sizes { cpus: 3, memory: ByteSize(5 << 20) };

    #[test]
    fn with_what_a_machine_ran_is_known_until_it_boots_anew() {
        let (store, _file) = crate::test_store("ran");
        let runs_with = |work: &dyn Fn(&Records<'_>) -> Result<(), Error>| {
            store.write(work).unwrap();
            let vm = store.read(|records| records.vm_by_id("id-a")).unwrap();
            (vm.running_revision, vm.running_sizes)
        };
        let stop = |records: &Records<'_>| records.vm_set_state("id-a", Desired::Stopped, false, None);
        let begun = runs_with(&|records| {
            records.vm_insert(&vm("a"))?;
            records.vm_set_state("id-a", Desired::Running, false, None)?;
            records.vm_started("id-a", 9, 1, SIZES)
        });
        assert_eq!(begun, (Some(1), Some(SIZES)));
        let suspended = runs_with(&|records| {
            records.vm_set_resume("id-a", Some(&resume()))?;
            stop(records)
        });
        assert_eq!(suspended, begun);
        let given_up = runs_with(&|records| {
            records.vm_set_resume("id-a", None)?;
            stop(records)
        });
        assert_eq!(given_up, (None, None));
    }

    #[test]
    fn machines_are_kept_found_changed_and_removed() {
        let (store, _file) = crate::test_store("vms");
        store
            .write(|records| {
                ["b", "a", "c"].iter().try_for_each(|name| records.vm_insert(&vm(name)))?;
                records.vm_set_state("id-b", Desired::Running, true, Some("why"))?;
                records.vm_set_resume("id-b", Some(&resume()))?;
                records.vm_started("id-b", 9, 1, SIZES)
            })
            .unwrap();
        store
            .read(|records| {
                let b = VmRecord {
                    desired: Desired::Running,
                    failed: true,
                    reason: Some("why".into()),
                    started: Some(9),
                    running_revision: Some(1),
                    running_sizes: Some(SIZES),
                    resume: Some(resume()),
                    ..vm("b")
                };
                assert_eq!(records.vm("default", "b")?, b);
                assert_eq!(records.vm("default", "id-b")?, b);
                assert_eq!(records.vm("other", "id-b").unwrap_err().kind(), ErrorKind::NotFound);
                let names = |vms: Vec<VmRecord>| vms.into_iter().map(|vm| vm.name).collect::<Vec<_>>();
                assert_eq!(names(records.vms("default", "", 2)?), ["a", "b"]);
                assert_eq!(names(records.vms("default", "b", 2)?), ["c"]);
                Ok::<_, Error>(())
            })
            .unwrap();
        let update = |expected, name: &str| {
            store.write(|records| records.vm_update("id-a", expected, name, &VmConfig::new("/other")))
        };
        assert_eq!(update(1, "z").unwrap().revision, 2);
        assert_eq!(update(1, "y").unwrap_err().kind(), ErrorKind::Changed);
        assert_eq!(update(2, "b").unwrap_err().kind(), ErrorKind::AlreadyExists);
        store.write(|records| records.vm_delete("id-a")).unwrap();
        assert_eq!(update(2, "z").unwrap_err().kind(), ErrorKind::NotFound);
    }
}
