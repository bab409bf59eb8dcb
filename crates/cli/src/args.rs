//! The command line as it is typed.

use crate::commands::Command;
use crate::output::{Format, Output};
use clap::Parser;
use std::ffi::OsString;
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
6 the daemon cannot be reached. Commands that need the daemon start one for this user if none runs.

The variables ARNIA_PROJECT, ARNIA_SOCKET and ARNIA_CONTEXT stand for --project, --socket and
--context where those are not given; with ARNIA_SOCKET, ARNIA_CONTEXT is not looked at.")]
pub struct Cli {
    /// How results are written
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// The project [default: default]
    #[arg(long, global = true, value_name = "NAME")]
    pub project: Option<String>,
    /// The daemon's socket [default: that of this user's daemon, which is started if none runs]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The context: a daemon of another host, or `local` [default: that of `arnia context use`]
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "socket")]
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
    /// Takes what the global options say, and the variables where they say nothing.
    pub fn new(cli: &Cli) -> Context {
        let named =
            Named { project: cli.project.clone(), socket: cli.socket.clone(), context: cli.context.clone() };
        Context::of(Output::new(cli.output), named, |name| std::env::var_os(name))
    }

    /// The same of what was typed. A variable that is empty is none: scripts clear variables so.
    pub(crate) fn of(output: Output, typed: Named, variable: impl Fn(&str) -> Option<OsString>) -> Context {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        let text = |name| variable(name).map(|value| value.to_string_lossy().into_owned());
        let project = typed.project.or_else(|| text("ARNIA_PROJECT"));
        // Both name a daemon: the variable of the one must not stand against the other that was typed.
        let (socket, context) = match (typed.socket, typed.context) {
            (None, None) => (variable("ARNIA_SOCKET").map(PathBuf::from), text("ARNIA_CONTEXT")),
            typed => typed,
        };
        let project = project.unwrap_or_else(|| api::v1::DEFAULT_PROJECT.into());
        Context { output, project, socket, context }
    }
}

/// What the options that every command has name, where they are given.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// The project.
    pub(crate) project: Option<String>,
    /// The daemon's socket.
    pub(crate) socket: Option<PathBuf>,
    /// The context.
    pub(crate) context: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_counts_more_than_variables() {
        let meant = |line: &[&str], variables: &[(&str, &str)]| {
            let cli = Cli::try_parse_from(line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
            let typed = Named { project: cli.project, socket: cli.socket, context: cli.context };
            let variable = |name: &str| variables.iter().find(|(known, _)| *known == name);
            let context =
                Context::of(Output::new(cli.output), typed, |name| variable(name).map(|it| it.1.into()));
            let socket = context.socket.unwrap_or_default();
            format!("{} {} {}", context.project, socket.display(), context.context.unwrap_or_default())
        };
        let variables = [("ARNIA_PROJECT", "p"), ("ARNIA_SOCKET", "/v"), ("ARNIA_CONTEXT", "v")];
        let empty = [("ARNIA_PROJECT", ""), ("ARNIA_SOCKET", ""), ("ARNIA_CONTEXT", "")];
        assert_eq!(meant(&["arnia", "ls"], &[]), "default  ");
        assert_eq!(meant(&["arnia", "ls"], &empty), "default  ");
        assert_eq!(meant(&["arnia", "ls"], &variables), "p /v v");
        assert_eq!(meant(&["arnia", "--socket", "/t", "ls"], &variables), "p /t ");
        assert_eq!(meant(&["arnia", "ls", "--context", "t"], &variables), "p  t");
        assert_eq!(meant(&["arnia", "ls", "--project", "t"], &variables[2..]), "t  v");
        assert!(Cli::try_parse_from(["arnia", "ls", "--context", "t", "--socket", "/t"]).is_err());
    }
}
