//! `arnia rm`.

use super::Run;
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
            for name in &self.names {
                client.vm_delete(name, self.force).await?;
                context.output.say(&format!("{name} is removed"))?;
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}
