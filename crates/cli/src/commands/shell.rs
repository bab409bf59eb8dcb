//! `arnia shell`.

use super::Run;
use super::exec::{self, Options};
use crate::{Context, Error};
use std::io::IsTerminal;
use std::process::ExitCode;

/// Opens a shell in a virtual machine, by the agent in the guest. Its exit status is the shell's.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  arnia shell web\n  arnia shell web --user ann\n  echo 'uname -r' | arnia shell web"
)]
pub struct Shell {
    /// The virtual machine
    name: String,
    #[command(flatten)]
    options: Options,
}

impl Run for Shell {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        // No program: the user's shell, as at login.
        exec::run(context, &self.name, Vec::new(), &self.options, true, std::io::stdin().is_terminal())
    }
}
