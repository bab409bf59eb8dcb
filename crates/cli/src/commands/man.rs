//! `arnia man`.

use super::Run;
use crate::{Context, Error};
use std::path::PathBuf;
use std::process::ExitCode;

/// Writes the manual pages, one for each command, into a folder.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  arnia man ~/.local/share/man/man1\n  arnia man /usr/share/man/man1 && man arnia-run"
)]
pub struct Man {
    /// The folder; it is made if it is not there
    folder: PathBuf,
}

impl Run for Man {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let failed = |e: std::io::Error| {
            Error::failed(format!("the manual pages cannot be written into {:?}", self.folder)).with_source(e)
        };
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        clap_mangen::generate_to(crate::command(), &self.folder).map_err(failed)?;
        context.output.say(&format!("the manual pages are in {}", self.folder.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
