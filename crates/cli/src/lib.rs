//! The program `arnia`.
//!
//! ```text
//! command line ─ args ─> Cli ─> commands::Command ─ run(&Context) ─> output (table, JSON, YAML) | Error
//! ```
//!
//! Parsing is pure: no file is opened and nobody is asked before [`commands`] run. Each command is one file
//! there. What a command found goes out through [`output`], so that every command knows all formats; what
//! went wrong is an [`Error`] with a cause, a remedy and an exit status.
//!
//! **To add a command**: a file in `commands/` with a struct that derives `clap::Args` and implements
//! [`commands::Run`], and a variant in `commands::Command`.

#![warn(clippy::print_stderr, reason = "it panics when standard error is full: use `stderr::errln!`")]

mod args;
mod bar;
pub mod commands;
mod completion;
pub mod connect;
mod contexts;
mod ending;
mod error;
mod log;
pub mod output;
pub mod programs;
mod progress;
#[cfg(test)]
mod reference;
mod registry;
mod sandbox;
mod stderr;
mod terminal;

pub use args::{Cli, Context};
pub use error::{Error, ErrorKind};

use clap::{CommandFactory, Parser};
use clap_complete::CompleteEnv;
use std::process::ExitCode;

/// Runs the program.
pub fn main() -> ExitCode {
    // Ends by itself when a shell wants completions.
    CompleteEnv::with_factory(|| completion::with_names(command())).var(completion::VARIABLE).complete();
    // Ends by itself, with status 2, when the command line is wrong.
    let cli = Cli::parse();
    let context = Context::new(&cli);
    match cli.command.run(&context) {
        Ok(status) => status,
        Err(error) => {
            stderr::errln!("arnia: {}", error.report());
            error.exit_code()
        }
    }
}

/// The whole command line, as data: for completions, manual pages and the reference.
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_well_formed() {
        super::command().debug_assert();
    }

    /// Whoever reads `--help` shall find an example, and a sentence for every option.
    #[test]
    fn every_command_is_explained() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no description");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path}: {} has no description", argument.get_id());
            }
            let leaf = command.get_subcommands().next().is_none();
            if leaf && !command.is_hide_set() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "{path} has no examples");
            }
            command.get_subcommands().for_each(|sub| check(sub, &path));
        }
        check(&super::command(), "");
    }
}
