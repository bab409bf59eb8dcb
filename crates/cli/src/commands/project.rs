//! `arnia project`.

use super::Run;
use crate::output::Row;
use crate::{Context, Error};
use api::ByteSize;
use api::v1::project::{Project as View, ProjectParams, Quota};
use std::process::ExitCode;

/// Commands for projects.
#[derive(Debug, clap::Subcommand)]
pub enum Project {
    /// Create a project
    #[command(after_help = "Example:\n  arnia project create lab --vms 10 --memory 16G")]
    Create {
        /// Its name
        name: String,
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
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
    },
    /// List projects
    #[command(alias = "list", after_help = "Example:\n  arnia project ls")]
    Ls {},
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
                Project::Create { name, vms, cpus, memory, storage, description } => {
                    let quota = Quota { vms: *vms, cpus: *cpus, memory: *memory, storage: *storage };
                    let (name, description) = (name.clone(), description.clone());
                    let project = client.project_create(&ProjectParams { name, description, quota }).await?;
                    context.output.item(&project, &[("Project", project.name.clone())])?;
                }
                Project::Ls {} => context.output.list(&client.projects().await?)?,
                Project::Rm { names } => {
                    for name in names {
                        client.project_delete(name).await?;
                        context.output.say(&format!("{name} is removed"))?;
                    }
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
