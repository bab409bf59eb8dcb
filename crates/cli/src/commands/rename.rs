//! `arnia rename`.

use super::Run;
use crate::{Context, Error};
use std::process::ExitCode;

/// Gives a virtual machine another name.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  arnia rename web old-web")]
pub struct Rename {
    /// The virtual machine
    name: String,
    /// Its new name
    new: String,
}

impl Run for Rename {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            let vm = client.vm_rename(&self.name, &self.new).await?;
            context.output.say(&format!("{} is now {}", self.name, vm.name))?;
            Ok(ExitCode::SUCCESS)
        })
    }
}
