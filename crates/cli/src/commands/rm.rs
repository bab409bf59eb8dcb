//! `arnia rm`.

use super::{Run, remove_each};
use crate::{Context, Error};
use std::process::ExitCode;

/// Removes virtual machines. Volumes and files that were their disks stay.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia rm web\n  arnia rm --force web")]
pub struct Rm {
    /// The virtual machines
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// End them first if they run
    #[arg(short, long)]
    force: bool,
}

impl Run for Rm {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            remove_each(context, &self.names, async |name| client.vm_delete(name, self.force).await).await?;
            Ok(ExitCode::SUCCESS)
        })
    }
}
