//! The command line as it is typed.

use crate::commands::Command;
use crate::output::{Format, Output};
use clap::Parser;
use std::path::PathBuf;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "arnia", version, propagate_version = true, arg_required_else_help = true)]
#[command(about = "Virtual machines: make them from images, run, watch, copy and change them")]
#[command(after_help = "Examples:
  arnia run debian --name web -p 8080:80     a machine from an image, with a port of this host
  arnia shell web                            a terminal in it
  arnia clone web web-2                      a copy of it, while it runs
  arnia ls
  arnia rm --force web web-2

Exit status: 0 done; 1 failed; 2 bad input; 3 not found; 4 the state does not allow it; 5 not permitted;
6 the daemon cannot be reached. Commands that need the daemon start one for this user if none runs.")]
pub struct Cli {
    /// How results are written
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// The project [default: default]
    #[arg(long, global = true, env = "ARNIA_PROJECT", value_name = "NAME", hide_env = true)]
    pub project: Option<String>,
    /// The daemon's socket [default: that of this user's daemon, which is started if none runs]
    #[arg(long, global = true, env = "ARNIA_SOCKET", value_name = "PATH", hide_env = true)]
    pub socket: Option<PathBuf>,
    /// The context: a daemon of another host, or `local` [default: that of `arnia context use`]
    #[arg(
        long,
        global = true,
        env = "ARNIA_CONTEXT",
        value_name = "NAME",
        hide_env = true,
        conflicts_with = "socket"
    )]
    pub context: Option<String>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What every command is given beside its own options.
#[derive(Debug)]
pub struct Context {
    /// Where results go.
    pub output: Output,
    /// The project.
    pub project: String,
    /// The daemon's socket, if one is named.
    pub socket: Option<PathBuf>,
    /// The context, if one is named.
    pub context: Option<String>,
}

impl Context {
    /// Takes what the global options say.
    pub fn new(cli: &Cli) -> Context {
        Context {
            output: Output::new(cli.output),
            project: cli.project.clone().unwrap_or_else(|| api::v1::DEFAULT_PROJECT.into()),
            socket: cli.socket.clone(),
            context: cli.context.clone(),
        }
    }
}
