//! `arnia volume`.

use super::{Run, bytes, remove_each};
use crate::output::Row;
use crate::{Context, Error};
use api::ByteSize;
use api::v1::storage::{Volume as View, VolumeParams};
use std::process::ExitCode;

/// Commands for volumes.
#[derive(Debug, clap::Subcommand)]
pub enum Volume {
    /// Create an empty volume
    #[command(after_help = "Example:\n  arnia volume create data 10G")]
    Create {
        /// Its name
        name: String,
        /// Its size, with a unit: K, M, G, T
        size: ByteSize,
        /// The pool [default: default]
        #[arg(long)]
        pool: Option<String>,
    },
    /// List volumes
    #[command(alias = "list", after_help = "Example:\n  arnia volume ls")]
    Ls {},
    /// Remove volumes with all that is on them
    #[command(after_help = "Example:\n  arnia volume rm data")]
    Rm {
        /// The volumes
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

impl Run for Volume {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            match self {
                Volume::Create { name, size, pool } => {
                    let params = VolumeParams { name: name.clone(), pool: pool.clone(), size: *size };
                    let volume = client.volume_create(&params).await?;
                    context.output.item(&volume, &[("Volume", volume.name.clone())])?;
                }
                Volume::Ls {} => context.output.list(&client.volumes().await?)?,
                Volume::Rm { names } => {
                    remove_each(context, names, async |name| client.volume_delete(name).await).await?;
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Row for View {
    const HEADS: &'static [&'static str] = &["name", "pool", "size", "used", "machines"];

    fn cells(&self) -> Vec<String> {
        let machines = if self.vms.is_empty() { "-".into() } else { self.vms.join(" ") };
        vec![self.name.clone(), self.pool.clone(), self.size.to_string(), bytes(self.used_bytes), machines]
    }
}
