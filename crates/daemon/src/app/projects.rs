//! Projects and their quotas.

use super::App;
use super::people::check_description;
use crate::{Error, util};
use api::v1::error::ErrorCode;
use api::v1::project::{Project, ProjectParams, ProjectUpdate, Usage};
use api::v1::{DEFAULT_PROJECT, name};
use store::{ProjectRecord, Records};

/// A project with what it uses.
pub(crate) fn view(records: &Records<'_>, record: ProjectRecord) -> Result<Project, Error> {
    Ok(Project {
        usage: records.usage(&record.name)?,
        name: record.name,
        description: record.description,
        quota: record.quota,
        created: record.created,
        revision: record.revision,
    })
}

/// Refuses what goes beyond a project's quota. To be called within the transaction that has added it. What was
/// `before` is never refused, however much it was.
pub(super) fn check_quota(records: &Records<'_>, project: &str, before: Usage) -> Result<(), Error> {
    check_usage(records, project, &before, &records.usage(project)?)
}

/// Refuses the same before it is added: with it the project would use so much as `now` says.
pub(super) fn check_usage(
    records: &Records<'_>,
    project: &str,
    before: &Usage,
    now: &Usage,
) -> Result<(), Error> {
    let quota = records.project(project)?.quota;
    let rows = [
        ("virtual machines", now.vms, before.vms, quota.vms.map(u64::from)),
        ("vCPUs", now.cpus, before.cpus, quota.cpus.map(u64::from)),
        ("bytes of memory", now.memory_bytes, before.memory_bytes, quota.memory.map(|size| size.0)),
        ("bytes of storage", now.storage_bytes, before.storage_bytes, quota.storage.map(|size| size.0)),
    ];
    for (what, used, before, limit) in rows {
        if let Some(limit) = limit
            && used > limit
            && used > before
        {
            let message = format!("the project {project:?} may have {limit} {what} and would have {used}");
            return Err(Error::new(ErrorCode::QuotaExceeded, message)
                .with_remedy("remove something, or have an admin raise the quota"));
        }
    }
    Ok(())
}

impl App {
    pub(crate) fn project_create(&self, params: ProjectParams) -> Result<Project, Error> {
        name::check("project", &params.name)?;
        check_description(&params.description)?;
        let mut record = ProjectRecord::new(params.name, util::now());
        record.description = params.description;
        record.quota = params.quota;
        self.write(|records| {
            records.project_insert(&record)?;
            view(records, record)
        })
    }

    pub(crate) fn project_update(
        &self,
        name: &str,
        update: ProjectUpdate,
        expected: Option<i64>,
    ) -> Result<Project, Error> {
        self.write(|records| {
            let mut project = records.project(name)?;
            project.revision = expected.unwrap_or(project.revision);
            if let Some(description) = update.description {
                check_description(&description)?;
                project.description = description;
            }
            project.quota = update.quota.unwrap_or(project.quota);
            let project = records.project_update(&project)?;
            view(records, project)
        })
    }

    /// Removes a project that holds nothing, and all that was said of it but the audit log.
    pub(crate) fn project_delete(&self, name: &str) -> Result<(), Error> {
        if name == DEFAULT_PROJECT {
            return Err(Error::new(ErrorCode::InUse, "the default project cannot be removed"));
        }
        self.write_rights(|records| {
            records.project(name)?;
            let usage = records.usage(name)?;
            let is_empty = usage.vms == 0
                && records.volumes(name, "", 1)?.is_empty()
                && records.networks(name, "", 1)?.is_empty();
            if !is_empty {
                return Err(Error::new(ErrorCode::InUse, format!("the project {name:?} is not empty"))
                    .with_remedy("remove its virtual machines, volumes and networks first"));
            }
            if self.is_busy(records, name)? {
                let message = format!("operations of the project {name:?} are under way");
                return Err(Error::new(ErrorCode::InUse, message)
                    .with_remedy("wait until they have ended, or cancel them: see `arnia operation ls`"));
            }
            Ok(records.project_delete(name)?)
        })?;
        self.forget_events(name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{Caller, Request, testing};
    use api::v1::access::{Grant, Role, UserParams};
    use api::v1::event::EventKind;
    use api::v1::operation::{OperationState, Target};

    #[test]
    fn a_project_of_an_old_name_is_a_new_one() {
        let (app, _folder) = testing::app("projects");
        let lab =
            || ProjectParams { name: "lab".into(), description: String::new(), quota: Default::default() };
        app.project_create(lab()).expect("a project");
        let grants = vec![Grant { project: Some("lab".into()), role: Role::Operator }];
        app.user_create(UserParams { name: "ann".into(), description: String::new(), grants })
            .expect("a user");
        let tell = |project: &str| {
            app.tell(project, EventKind::VmDeleted { vm: "v".into(), name: "web".into() });
        };
        let told = |after| app.listen(Some(after)).0.into_iter().map(|event| (event.id, event.project));
        tell("default");
        tell("lab");
        let target = Target { kind: "image".into(), id: "debian".into(), name: "debian".into() };
        let plan =
            |records: &Records<'_>| app.plan(records, &Caller::owner(), "lab", target, &Request::VmStart {});
        let mut operation = app.write(plan).expect("an operation");
        // What is under way would tell of itself later.
        assert_eq!(app.project_delete("lab").expect_err("a refusal").code(), ErrorCode::InUse);
        operation.view.state = OperationState::Succeeded;
        app.write(|records| Ok(records.operation_update(&operation)?)).expect("its end");
        app.project_delete("lab").expect("it goes");
        app.project_create(lab()).expect("another one");
        let (ann, operations) = app
            .read(|records| Ok((records.user("ann")?, records.operations("lab", "", 10)?)))
            .expect("records");
        assert!(ann.grants.is_empty() && operations.is_empty(), "{ann:?} {operations:?}");
        assert_eq!(told(0).collect::<Vec<_>>(), [(1, "default".to_owned())]);
        // Whoever has seen the event 2 misses none after it.
        tell("lab");
        assert_eq!(told(2).collect::<Vec<_>>(), [(3, "lab".to_owned())]);
    }
}
