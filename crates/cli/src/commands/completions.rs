//! `arnia completions`.

use super::Run;
use crate::{Context, Error, output};
use clap_complete::Shell;
use std::process::ExitCode;

/// Writes what a shell needs to complete commands and options with the tabulator key.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia completions bash > /etc/bash_completion.d/arnia\n  \
                  arnia completions zsh > ~/.zfunc/_arnia\n  arnia completions fish > \
                  ~/.config/fish/completions/arnia.fish")]
pub struct Completions {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

impl Run for Completions {
    fn run(&self, _: &Context) -> Result<ExitCode, Error> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::command(), "arnia", &mut script);
        output::print(&String::from_utf8_lossy(&script))?;
        Ok(ExitCode::SUCCESS)
    }
}
