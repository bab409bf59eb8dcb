//! `arnia pool`.

use super::machine::absolute;
use super::{Run, bytes, remove_each};
use crate::output::Row;
use crate::{Context, Error};
use api::v1::storage::{Pool as View, PoolDriver, PoolParams};
use std::path::PathBuf;
use std::process::ExitCode;

/// Commands for pools.
#[derive(Debug, clap::Subcommand)]
pub enum Pool {
    /// Make a folder of the daemon's host a pool
    #[command(after_help = "Example:\n  arnia pool create fast /srv/nvme/arnia\n  \
                      arnia volume create data 100G --pool fast")]
    Create {
        /// Its name
        name: String,
        /// A new or empty folder
        #[arg(value_name = "FOLDER", value_hint = clap::ValueHint::DirPath)]
        path: PathBuf,
    },
    /// List pools
    #[command(alias = "list", after_help = "Example:\n  arnia pool ls")]
    Ls {},
    /// Remove pools without volumes; their folders stay
    #[command(after_help = "Example:\n  arnia pool rm fast")]
    Rm {
        /// The pools
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

impl Run for Pool {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            match self {
                Pool::Create { name, path } => {
                    let path = absolute(context, path)?;
                    let params = PoolParams { name: name.clone(), driver: PoolDriver::Directory, path };
                    let pool = client.pool_create(&params).await?;
                    context
                        .output
                        .item(&pool, &[("Pool", pool.name.clone()), ("Folder", pool.path.clone())])?;
                }
                Pool::Ls {} => context.output.list(&client.pools().await?)?,
                Pool::Rm { names } => {
                    remove_each(context, names, async |name| client.pool_delete(name).await).await?;
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Row for View {
    const HEADS: &'static [&'static str] = &["name", "folder", "free", "size", "volumes"];

    fn cells(&self) -> Vec<String> {
        let (free, size) = (bytes(self.available_bytes), bytes(self.size_bytes));
        vec![self.name.clone(), self.path.clone(), free, size, self.volumes.to_string()]
    }
}
