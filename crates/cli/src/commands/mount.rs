//! `arnia mount`, `arnia umount`: folders of the host in guests.

use super::Run;
use super::machine::absolute;
use crate::output::{Format, Row};
use crate::{Context, Error};
use api::v1::mount::{MountConfig, MountState};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Shows a folder of the host in a virtual machine: at once if it runs, and whenever it runs from now on. The guest's
/// agent mounts it.
#[derive(Debug, clap::Args)]
#[command(
    subcommand_negates_reqs = true,
    override_usage = "arnia mount [OPTIONS] <FOLDER> <NAME:/PATH>\n       arnia mount [OPTIONS] <COMMAND>",
    after_help = "Examples:
  arnia mount ./src web:/mnt/src
  arnia mount ./site web:/srv/site --read-only
  arnia mount ~/project dev:/home/dev/project --owner 1000
  arnia mount ls web
  arnia umount web:/mnt/src
In the guest the files belong to root, or to --owner. A guest without our agent mounts by hand:
  mount -t virtiofs arnia /mnt
A folder that is called `ls` or `rm` is written ./ls."
)]
pub struct Mount {
    #[command(subcommand)]
    command: Option<MountCommand>,
    /// The folder here; with a daemon of another host, an absolute path there
    #[arg(required = true)]
    folder: Option<PathBuf>,
    /// Where the guest has it: NAME:/PATH
    #[arg(required = true, value_name = "NAME:/PATH")]
    target: Option<String>,
    /// The guest may only read
    #[arg(long)]
    read_only: bool,
    /// Who owns, in the guest, what belongs to the daemon's user here [default: root]
    #[arg(long, value_name = "UID[:GID]")]
    owner: Option<String>,
    /// What it is called among the guest's shares [default: made of the path]
    #[arg(long)]
    name: Option<String>,
}

/// What is done to mounts.
#[derive(Debug, clap::Subcommand)]
enum MountCommand {
    /// List the folders that a virtual machine is shown
    #[command(alias = "list")]
    Ls(Ls),
    /// Show folders no more; the same as `arnia umount`
    #[command(alias = "remove")]
    Rm(Umount),
}

impl Run for Mount {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        if let Some(command) = &self.command {
            self.refuse_own_arguments()?;
            return match command {
                MountCommand::Ls(command) => command.run(context),
                MountCommand::Rm(command) => command.run(context),
            };
        }
        let (Some(folder), Some(target)) = (&self.folder, &self.target) else {
            return Err(Error::bad_input("a folder and a place in a guest are needed")
                .with_remedy("write `arnia mount FOLDER NAME:/PATH`"));
        };
        let (vm, target) = place(target)?;
        let mount = MountConfig {
            folder: here(context, folder)?,
            target: target.to_owned(),
            read_only: self.read_only,
            owner: self.owner.clone(),
            name: self.name.clone(),
        };
        let mount = context.with_daemon(async |client| Ok(client.mount_create(vm, &mount).await?))?;
        match context.output.format() {
            Format::Table => {
                let (from, to) = (&mount.config.folder, &mount.config.target);
                context.output.say(&match (mount.state, &mount.reason) {
                    (MountState::Mounted, _) => format!("{from} is at {to} in {vm}"),
                    (MountState::Off, _) => format!("{from} will be at {to} when {vm} runs"),
                    (_, reason) => {
                        let why = reason.as_ref().map_or(String::new(), |why| format!(": {why}"));
                        format!("{from} is shown to {vm}, and not mounted yet{why}")
                    }
                })?;
            }
            _ => context.output.data(&mount)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Mount {
    /// Refuses arguments of a mount in front of another command. The parser would refuse the options of every command
    /// (`-o`, `--project`) with them.
    fn refuse_own_arguments(&self) -> Result<(), Error> {
        let options = self.read_only || self.owner.is_some() || self.name.is_some();
        if options || self.folder.is_some() || self.target.is_some() {
            return Err(Error::bad_input(
                "a folder is to be mounted and another command carried out at once",
            )
            .with_remedy("write a folder that is called `ls` or `rm` with its path, like ./ls"));
        }
        Ok(())
    }
}

/// A folder as the daemon is to know it.
fn here(context: &Context, folder: &Path) -> Result<String, Error> {
    match folder.canonicalize() {
        // Without links, which may change.
        Ok(path) if !context.is_remote()? => absolute(context, &path),
        _ => absolute(context, folder),
    }
}

/// Takes `NAME:/PATH` apart.
fn place(text: &str) -> Result<(&str, &str), Error> {
    match text.split_once(':') {
        Some((vm, path)) if !vm.is_empty() && path.starts_with('/') => {
            Ok((vm, path.strip_suffix('/').filter(|rest| !rest.is_empty()).unwrap_or(path)))
        }
        _ => Err(Error::bad_input(format!("{text:?} is no place in a guest"))
            .with_remedy("write NAME:/PATH, like web:/mnt/src")),
    }
}

impl Row for api::v1::mount::Mount {
    const HEADS: &'static [&'static str] = &["target", "folder", "access", "owner", "state", "name", "why"];

    fn cells(&self) -> Vec<String> {
        let config = &self.config;
        vec![
            config.target.clone(),
            config.folder.clone(),
            if config.read_only { "read" } else { "write" }.into(),
            config.owner.clone().unwrap_or_else(|| "root".into()),
            self.state.to_string(),
            config.name.clone().unwrap_or_default(),
            self.reason.clone().unwrap_or_default(),
        ]
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia mount ls web\n  arnia mount ls web -o json")]
struct Ls {
    /// The virtual machine
    vm: String,
}

impl Run for Ls {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let mounts = context.with_daemon(async |client| Ok(client.mounts(&self.vm).await?))?;
        context.output.list(&mounts)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Shows folders in a virtual machine no more. What is in them stays on the host.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia umount web:/mnt/src\n  arnia umount --force web:/mnt/src")]
pub struct Umount {
    /// Where the guest has it: NAME:/PATH
    #[arg(required = true, value_name = "NAME:/PATH")]
    targets: Vec<String>,
    /// Although somebody in the guest uses it
    #[arg(long, short)]
    force: bool,
}

impl Run for Umount {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let places = self.targets.iter().map(|target| place(target)).collect::<Result<Vec<_>, _>>()?;
        context.with_daemon(async |client| {
            for (vm, target) in places {
                client.mount_delete(vm, target, self.force).await?;
                context.output.say(&format!("{target} is in {vm} no more"))?;
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cli;
    use clap::Parser;

    fn mount(words: &[&str]) -> Mount {
        let line = Cli::try_parse_from([&["arnia"], words].concat()).unwrap_or_else(|e| panic!("{e}"));
        match line.command {
            crate::commands::Command::Mount(mount) => mount,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_of_every_command_may_stand_before_the_second_word() {
        for words in [
            &["mount", "ls", "web"][..],
            &["mount", "-o", "json", "ls", "web"],
            &["mount", "--project", "p", "ls", "web"],
            &["-o", "json", "mount", "list", "--project", "p", "web"],
        ] {
            let mount = mount(words);
            assert!(matches!(&mount.command, Some(MountCommand::Ls(ls)) if ls.vm == "web"), "{words:?}");
            mount.refuse_own_arguments().unwrap();
        }
        let line = ["mount", "-o", "json", "./ls", "web:/mnt", "--read-only"];
        assert!(mount(&line).command.is_none());
        assert!(mount(&["mount", "--read-only", "ls", "web"]).refuse_own_arguments().is_err());
        for missing in [&["mount"][..], &["mount", "./src"], &["mount", "-o", "json"]] {
            assert!(Cli::try_parse_from([&["arnia"], missing].concat()).is_err(), "{missing:?}");
        }
    }

    #[test]
    fn places_are_taken_apart() {
        assert_eq!(place("web:/mnt/src/").unwrap(), ("web", "/mnt/src"));
        assert_eq!(place("web:/").unwrap(), ("web", "/"));
        for text in ["web", ":/mnt", "web:mnt", "/mnt"] {
            assert!(place(text).is_err(), "{text}");
        }
    }
}
