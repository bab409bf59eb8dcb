//! The commands, one file each.

mod completions;
mod disk;
mod doctor;
mod image;
mod version;

use crate::{Context, Error};
use std::process::ExitCode;

/// What a command does.
pub trait Run {
    /// Carries it out. The exit status is the guest's where one is run in a guest, else success.
    ///
    /// # Errors
    /// When it could not be done.
    fn run(&self, context: &Context) -> Result<ExitCode, Error>;
}

/// All commands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Write the completions for a shell
    Completions(completions::Completions),
    /// Work with disk images
    Disk(disk::Disk),
    /// Build, import, move and keep images: what virtual machines come from
    Image(image::Image),
    /// Look at this host: what works, how fast, what to do about what does not
    Doctor(doctor::Doctor),
    /// Tell the version
    Version(version::Version),
}

impl Command {
    /// Carries out the command.
    ///
    /// # Errors
    /// When it could not be done.
    pub fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let command: &dyn Run = match self {
            Command::Completions(command) => command,
            Command::Disk(command) => command,
            Command::Image(command) => command,
            Command::Doctor(command) => command,
            Command::Version(command) => command,
        };
        command.run(context)
    }
}
