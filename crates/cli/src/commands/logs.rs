//! `arnia logs`.

use super::Run;
use crate::{Context, Error, output};
use std::process::ExitCode;

/// Shows what a virtual machine wrote to its serial console, over all its starts.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia logs web\n  arnia logs web --lines 20\n  arnia logs web --worker")]
pub struct Logs {
    /// The virtual machine
    name: String,
    /// Only the last lines, so many
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<u32>,
    /// What the machine's process says, instead of the guest
    #[arg(long)]
    worker: bool,
}

impl Run for Logs {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let kind = if self.worker { "worker" } else { "console" };
        let log =
            context.with_daemon(async |client| Ok(client.vm_log(&self.name, kind, self.lines).await?))?;
        if log.is_empty() {
            context.output.hint(&format!("there is nothing yet in the {kind}'s log of {}", self.name));
        }
        output::print_bytes(&log)?;
        Ok(ExitCode::SUCCESS)
    }
}
