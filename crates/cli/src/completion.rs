//! Completing names: of machines, images, networks and whatever else there is, by asking the daemon when the tabulator
//! key is pressed.
//!
//! The shell calls this program with the variable [`VARIABLE`] and the words of its line; what `arnia completions` prints has
//! it do so. No daemon is started for it, and whatever fails completes nothing.

use crate::Context;
use crate::args::Named;
use crate::contexts::{Contexts, LOCAL};
use crate::output::{Format, Output};
use clap::Command;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter};
use client::Client;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

/// By this the shell says that it wants completions, and in which shell's form.
pub(crate) const VARIABLE: &str = "ARNIA_COMPLETE";
/// Nobody waits longer for a key.
const PATIENCE: Duration = Duration::from_secs(2);

/// What has names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Vm,
    /// A machine or, behind an @, one of its snapshots.
    VmOrSnapshot,
    /// A machine with a colon behind it, or a path here.
    VmPlace,
    /// Snapshots of the machine that the line names.
    Snapshot,
    Image,
    Network,
    Volume,
    Pool,
    Project,
    User,
    Token,
    Operation,
    Context,
}

/// Positional arguments: the command, which one, and what it names.
const POSITIONAL: &[(&str, usize, Kind)] = &[
    ("run", 1, Kind::Image),
    ("create", 1, Kind::Image),
    ("info", 1, Kind::Vm),
    ("start", 1, Kind::Vm),
    ("stop", 1, Kind::Vm),
    ("restart", 1, Kind::Vm),
    ("pause", 1, Kind::Vm),
    ("resume", 1, Kind::Vm),
    ("suspend", 1, Kind::Vm),
    ("snapshot create", 1, Kind::Vm),
    ("snapshot ls", 1, Kind::Vm),
    ("snapshot rm", 1, Kind::Vm),
    ("snapshot rm", 2, Kind::Snapshot),
    ("snapshot restore", 1, Kind::Vm),
    ("snapshot restore", 2, Kind::Snapshot),
    ("snapshots", 1, Kind::Vm),
    ("restore", 1, Kind::VmOrSnapshot),
    ("clone", 1, Kind::VmOrSnapshot),
    ("rm", 1, Kind::Vm),
    ("rename", 1, Kind::Vm),
    ("set", 1, Kind::Vm),
    ("resize", 1, Kind::Vm),
    ("exec", 1, Kind::Vm),
    ("shell", 1, Kind::Vm),
    ("cp", 1, Kind::VmPlace),
    ("cp", 2, Kind::VmPlace),
    ("mount", 2, Kind::VmPlace),
    ("mount ls", 1, Kind::Vm),
    ("umount", 1, Kind::VmPlace),
    ("screenshot", 1, Kind::Vm),
    ("key", 1, Kind::Vm),
    ("port add", 1, Kind::Vm),
    ("port ls", 1, Kind::Vm),
    ("port rm", 1, Kind::Vm),
    ("network info", 1, Kind::Network),
    ("network set", 1, Kind::Network),
    ("network rm", 1, Kind::Network),
    ("console", 1, Kind::Vm),
    ("logs", 1, Kind::Vm),
    ("volume rm", 1, Kind::Volume),
    ("image export", 1, Kind::Image),
    ("image info", 1, Kind::Image),
    ("image rm", 1, Kind::Image),
    ("image push", 1, Kind::Image),
    ("image publish", 1, Kind::Vm),
    ("image sign", 1, Kind::Image),
    ("image verify", 1, Kind::Image),
    ("export", 1, Kind::Vm),
    ("operation wait", 1, Kind::Operation),
    ("operation cancel", 1, Kind::Operation),
    ("pool rm", 1, Kind::Pool),
    ("project set", 1, Kind::Project),
    ("project rm", 1, Kind::Project),
    ("user set", 1, Kind::User),
    ("user rm", 1, Kind::User),
    ("token create", 1, Kind::User),
    ("token rm", 1, Kind::Token),
    ("context use", 1, Kind::Context),
    ("context rm", 1, Kind::Context),
];

/// Options, whatever the command: the long name, and what its value names.
const OPTIONS: &[(&str, Kind)] = &[
    ("project", Kind::Project),
    ("context", Kind::Context),
    ("network", Kind::Network),
    ("volume", Kind::Volume),
    ("pool", Kind::Pool),
];

/// The command line with everything that names something told what there is.
pub(crate) fn with_names(command: Command) -> Command {
    below(command, "")
}

fn below(command: Command, path: &str) -> Command {
    let mut position = 0;
    let command = command.mut_args(|argument| {
        let kind = match argument.get_long() {
            Some(long) => OPTIONS.iter().find(|(name, _)| *name == long).map(|(_, kind)| *kind),
            None if argument.get_short().is_none() => {
                position += 1;
                let found =
                    POSITIONAL.iter().find(|(place, number, _)| *place == path && *number == position);
                found.map(|(_, _, kind)| *kind)
            }
            None => None,
        };
        match kind {
            Some(kind) => argument.add(ArgValueCompleter::new(Names(kind))),
            None => argument,
        }
    });
    command.mut_subcommands(|sub| {
        let path = format!("{path} {}", sub.get_name());
        below(sub, path.trim_start())
    })
}

/// Completes names of one kind.
struct Names(Kind);

impl ValueCompleter for Names {
    fn complete(&self, current: &OsStr) -> Vec<CompletionCandidate> {
        let Some(text) = current.to_str() else { return Vec::new() };
        let line = Line::of_this_program();
        let names = self.0.names(&line, text);
        let here = match self.0 {
            Kind::VmPlace => PathCompleter::any().complete(current),
            _ => Vec::new(),
        };
        let fitting = names.into_iter().filter(|name| name.starts_with(text));
        fitting.map(CompletionCandidate::new).chain(here).collect()
    }
}

impl Kind {
    fn names(self, line: &Line, current: &str) -> Vec<String> {
        if self == Kind::Context {
            let known = Contexts::read().map(|contexts| contexts.contexts.into_keys().collect());
            return [known.unwrap_or_else(|_| Vec::new()), vec![LOCAL.to_owned()]].concat();
        }
        let asked = line.client().map(|client| {
            crate::connect::block_on(async {
                let asked = self.ask(&client, line, current);
                Ok(tokio::time::timeout(PATIENCE, asked).await.ok().and_then(Result::ok).unwrap_or_default())
            })
        });
        asked.and_then(Result::ok).unwrap_or_default()
    }

    async fn ask(self, client: &Client, line: &Line, current: &str) -> Result<Vec<String>, client::Error> {
        let vms = async || Ok::<_, client::Error>(client.vms().await?.into_iter().map(|vm| vm.name));
        Ok(match self {
            Kind::Vm => vms().await?.collect(),
            Kind::VmOrSnapshot => match current.split_once('@') {
                None => vms().await?.collect(),
                Some((vm, _)) => {
                    let snapshots = client.snapshots(vm).await?.into_iter();
                    snapshots.map(|snapshot| format!("{vm}@{}", snapshot.name)).collect()
                }
            },
            // What follows is a path in the guest.
            Kind::VmPlace => vms().await?.map(|name| format!("{name}:")).collect(),
            Kind::Snapshot => {
                let vm = vms().await?.find(|name| line.words.contains(name));
                match vm {
                    Some(vm) => {
                        client.snapshots(&vm).await?.into_iter().map(|snapshot| snapshot.name).collect()
                    }
                    None => Vec::new(),
                }
            }
            Kind::Image => {
                let images = client.images().await?.into_iter();
                images.flat_map(|image| image.names).map(|name| name.to_string()).collect()
            }
            Kind::Network => client.networks().await?.into_iter().map(|network| network.name).collect(),
            Kind::Volume => client.volumes().await?.into_iter().map(|volume| volume.name).collect(),
            Kind::Pool => client.pools().await?.into_iter().map(|pool| pool.name).collect(),
            Kind::Project => client.projects().await?.into_iter().map(|project| project.name).collect(),
            Kind::User => client.users().await?.into_iter().map(|user| user.name).collect(),
            Kind::Token => client.tokens().await?.into_iter().map(|token| token.id).collect(),
            Kind::Operation => {
                let operations = client.operations().await?.into_iter();
                operations.map(|operation| operation.id).collect()
            }
            Kind::Context => Vec::new(),
        })
    }
}

/// The line that is completed.
struct Line {
    words: Vec<String>,
}

impl Line {
    /// What the shell has given behind `--`.
    fn of_this_program() -> Line {
        let words = std::env::args_os().skip_while(|word| word != "--").skip(1);
        Line { words: words.filter_map(|word| word.into_string().ok()).collect() }
    }

    /// What an option says on it.
    fn option(&self, name: &str) -> Option<String> {
        let long = format!("--{name}");
        let mut words = self.words.iter();
        while let Some(word) = words.next() {
            match word.strip_prefix(&long) {
                Some("") => return words.next().cloned(),
                Some(rest) if rest.starts_with('=') => return Some(rest[1..].to_owned()),
                _ => {}
            }
        }
        None
    }

    /// A client of the daemon that the line means, if that one runs.
    fn client(&self) -> Option<Client> {
        let typed = Named {
            project: self.option("project"),
            socket: self.option("socket").map(PathBuf::from),
            context: self.option("context"),
        };
        let context = Context::of(Output::new(Format::default()), typed, |name| std::env::var_os(name));
        context.running_client().ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each place of the tables is there; and whatever is called as those of the table are, is in it.
    #[test]
    fn the_tables_are_those_of_the_command_line() {
        fn arguments(command: &Command, path: &str, found: &mut Vec<(String, usize, String)>) {
            for (index, argument) in command.get_positionals().enumerate() {
                let name =
                    argument.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
                found.push((path.to_owned(), index + 1, name.unwrap_or_default()));
            }
            for sub in command.get_subcommands() {
                arguments(sub, format!("{path} {}", sub.get_name()).trim_start(), found);
            }
        }
        let mut found = Vec::new();
        arguments(&crate::command(), "", &mut found);
        for (path, number, kind) in POSITIONAL {
            assert!(
                found.iter().any(|(place, at, _)| place == path && at == number),
                "{path} {number} {kind:?}"
            );
        }
        // New ones, which have no name yet, and files.
        let free = ["create", "rename", "add", "new", "publish", "build", "import", "keygen"];
        for (path, number, name) in &found {
            let listed = POSITIONAL.iter().any(|(place, at, _)| place == path && at == number);
            let last = path.rsplit(' ').next().unwrap_or_default();
            let names_something = ["NAME", "VM", "IMAGE"].contains(&name.as_str());
            let is_free = free.contains(&last) || path.starts_with("disk ");
            assert!(listed || !names_something || is_free, "{path} {number} {name} completes nothing");
        }
        let mut command = with_names(crate::command());
        command.build();
        let start = command.find_subcommand("start").expect("a command");
        let names = start.get_positionals().next().expect("an argument");
        assert!(names.get::<ArgValueCompleter>().is_some());
    }

    #[test]
    fn options_are_found_on_a_line() {
        let line = |words: &[&str]| Line { words: words.iter().map(ToString::to_string).collect() };
        assert_eq!(line(&["arnia", "--project", "lab", "ls"]).option("project").as_deref(), Some("lab"));
        assert_eq!(line(&["arnia", "ls", "--project=lab"]).option("project").as_deref(), Some("lab"));
        assert_eq!(line(&["arnia", "ls", "--projects=lab"]).option("project"), None);
        assert_eq!(line(&["arnia", "ls", "--project"]).option("project"), None);
    }
}
