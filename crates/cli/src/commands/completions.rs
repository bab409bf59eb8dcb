//! `arnia completions`.

use super::Run;
use crate::{Context, Error, completion, output};
use clap_complete::Shell;
use clap_complete::env::Shells;
use std::process::ExitCode;

/// Writes what a shell needs to complete commands, options, and names of machines, images, networks, snapshots and the like
/// with the tabulator key. Names are asked for when the key is pressed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia completions bash > /etc/bash_completion.d/arnia\n  \
                  arnia completions zsh > ~/.zfunc/_arnia\n  arnia completions fish > \
                  ~/.config/fish/completions/arnia.fish")]
pub struct Completions {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

/// That of the library hands words on as bash splits them, which is within names of ours.
const BASH: &str = include_str!("completions.bash");

impl Run for Completions {
    fn run(&self, _: &Context) -> Result<ExitCode, Error> {
        if self.shell == Shell::Bash {
            output::print(BASH)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut script = Vec::new();
        let failed = |e| Error::failed("the completions cannot be written").with_source(e);
        let shells = Shells::builtins();
        let shell = shells.completer(&self.shell.to_string());
        let shell =
            shell.ok_or_else(|| Error::bad_input(format!("there are no completions for {}", self.shell)))?;
        // By the name under which it is found, so that it may be updated or moved.
        shell
            .write_registration(completion::VARIABLE, "arnia", "arnia", "arnia", &mut script)
            .map_err(failed)?;
        output::print(&String::from_utf8_lossy(&script))?;
        Ok(ExitCode::SUCCESS)
    }
}
