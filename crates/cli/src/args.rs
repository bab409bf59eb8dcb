//! The command line as it is typed.

use crate::commands::Command;
use crate::output::{Format, Output};
use clap::Parser;

/// Virtual machines: run, watch and change them.
#[derive(Debug, Parser)]
#[command(name = "arnia", version, about, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Examples:\n  arnia version -o json\n  arnia completions bash > arnia.bash")]
pub struct Cli {
    /// How results are written
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What every command is given beside its own options.
#[derive(Debug)]
pub struct Context {
    /// Where results go.
    pub output: Output,
}

impl Context {
    /// Takes what the global options say.
    pub fn new(cli: &Cli) -> Context {
        Context { output: Output::new(cli.output) }
    }
}
