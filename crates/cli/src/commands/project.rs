//! `arnia project`.

use super::{Run, remove_each};
use crate::output::Row;
use crate::{Context, Error};
use api::ByteSize;
use api::v1::project::{Project as View, ProjectParams, ProjectUpdate, Quota};
use std::process::ExitCode;

/// What a project may have.
#[derive(Debug, Clone, clap::Args)]
pub struct QuotaArgs {
    /// Most virtual machines
    #[arg(long, value_name = "N")]
    vms: Option<u32>,
    /// Most vCPUs of all of them
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Most memory of all of them
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Most storage of all volumes
    #[arg(long, value_name = "SIZE")]
    storage: Option<ByteSize>,
}

impl QuotaArgs {
    fn quota(&self) -> Quota {
        Quota { vms: self.vms, cpus: self.cpus, memory: self.memory, storage: self.storage }
    }
}

/// Commands for projects.
#[derive(Debug, clap::Subcommand)]
pub enum Project {
    /// Create a project
    #[command(after_help = "Example:\n  arnia project create lab --vms 10 --memory 16G")]
    Create {
        /// Its name
        name: String,
        #[command(flatten)]
        quota: QuotaArgs,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
    },
    /// List projects
    #[command(alias = "list", after_help = "Example:\n  arnia project ls")]
    Ls {},
    /// Change what a project may have; what it has already it keeps
    #[command(
        after_help = "Examples:\n  arnia project set lab --vms 20 --memory 32G\n  arnia project set lab --no-quota"
    )]
    Set {
        /// The project
        name: String,
        #[command(flatten)]
        quota: QuotaArgs,
        /// Take all limits away that are not named
        #[arg(long)]
        no_quota: bool,
        /// For people
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// Remove empty projects
    #[command(after_help = "Example:\n  arnia project rm lab")]
    Rm {
        /// The projects
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

impl Run for Project {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            match self {
                Project::Create { name, quota, description } => {
                    let quota = quota.quota();
                    let (name, description) = (name.clone(), description.clone());
                    let project = client.project_create(&ProjectParams { name, description, quota }).await?;
                    context.output.item(&project, &[("Project", project.name.clone())])?;
                }
                Project::Set { name, quota, no_quota, description } => {
                    let given = quota.quota();
                    let changes = *no_quota || given != Quota::default();
                    if !changes && description.is_none() {
                        return Err(Error::bad_input("there is nothing to change")
                            .with_remedy("name a limit, --no-quota or a --description: see --help"));
                    }
                    let all = client.projects().await?;
                    let now = all.into_iter().find(|project| project.name == *name).map(|it| it.quota);
                    let kept = if *no_quota { Quota::default() } else { now.unwrap_or_default() };
                    let quota = Quota {
                        vms: given.vms.or(kept.vms),
                        cpus: given.cpus.or(kept.cpus),
                        memory: given.memory.or(kept.memory),
                        storage: given.storage.or(kept.storage),
                    };
                    let update =
                        ProjectUpdate { description: description.clone(), quota: changes.then_some(quota) };
                    let project = client.project_update(name, &update).await?;
                    context.output.item(&project, &[("Project", project.name.clone())])?;
                }
                Project::Ls {} => context.output.list(&client.projects().await?)?,
                Project::Rm { names } => {
                    remove_each(context, names, async |name| client.project_delete(name).await).await?;
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Row for View {
    const HEADS: &'static [&'static str] = &["name", "machines", "cpus", "memory", "storage", "description"];

    fn cells(&self) -> Vec<String> {
        let (usage, quota) = (&self.usage, &self.quota);
        let of = |used: String, limit: Option<String>| match limit {
            Some(limit) => format!("{used} of {limit}"),
            None => used,
        };
        vec![
            self.name.clone(),
            of(usage.vms.to_string(), quota.vms.map(|limit| limit.to_string())),
            of(usage.cpus.to_string(), quota.cpus.map(|limit| limit.to_string())),
            of(super::bytes(usage.memory_bytes), quota.memory.map(|limit| limit.to_string())),
            of(super::bytes(usage.storage_bytes), quota.storage.map(|limit| limit.to_string())),
            self.description.clone(),
        ]
    }
}
