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
            Ok(records.project_delete(name)?)
        })
    }
}
