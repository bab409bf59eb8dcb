//! `arnia snapshot` and `arnia clone`.

use super::{Run, bytes, duration, since};
use crate::output::Row;
use crate::progress::Wait;
use crate::{Context, Error};
use api::v1::snapshot::{CloneParams, Snapshot as View, SnapshotParams};
use std::process::ExitCode;

/// Commands for snapshots.
#[derive(Debug, clap::Subcommand)]
pub enum Snapshot {
    /// Make a snapshot of a virtual machine, which goes on meanwhile
    #[command(after_help = "Examples:\n  arnia snapshot create web before-upgrade\n  \
                      arnia snapshot create web monday --description \"before the move\"\n  \
                      arnia snapshot create db nightly --freeze")]
    Create {
        /// The virtual machine
        vm: String,
        /// The snapshot's name: a to z, 0 to 9 and hyphens
        name: String,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
        /// Have the guest's agent freeze its file systems for the moment of the snapshot, so that its disks are whole
        /// without its memory, too
        #[arg(long)]
        freeze: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// List the snapshots of a virtual machine, the oldest first
    #[command(alias = "list", after_help = "Example:\n  arnia snapshot ls web")]
    Ls {
        /// The virtual machine
        vm: String,
    },
    /// Remove snapshots; machines that were made of them go on
    #[command(after_help = "Example:\n  arnia snapshot rm web before-upgrade")]
    Rm {
        /// The virtual machine
        vm: String,
        /// The snapshots
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Let a virtual machine go on from a snapshot; what it is now is lost
    #[command(after_help = "Example:\n  arnia snapshot restore web before-upgrade")]
    Restore {
        /// The virtual machine
        vm: String,
        /// The snapshot
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
}

impl Run for Snapshot {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            match self {
                Snapshot::Create { vm, name, description, freeze, wait } => {
                    let (name, description) = (name.clone(), description.clone());
                    let params = SnapshotParams { name: name.clone(), description, freeze: *freeze };
                    let operation = client.snapshot_create(vm, &params).await?;
                    let (doing, done) = (format!("saving {vm}"), format!("{vm}@{name} is made"));
                    wait.finish(context, &client, operation, &doing, &done).await?;
                }
                Snapshot::Ls { vm } => context.output.list(&client.snapshots(vm).await?)?,
                Snapshot::Rm { vm, names } => {
                    for name in names {
                        client.snapshot_delete(vm, name).await?;
                        context.output.say(&format!("{vm}@{name} is removed"))?;
                    }
                }
                Snapshot::Restore { vm, name, wait } => {
                    let operation = client.snapshot_restore(vm, name).await?;
                    let (doing, done) = (format!("restoring {vm}"), format!("{vm} goes on from {name}"));
                    wait.finish(context, &client, operation, &doing, &done).await?;
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Row for View {
    const HEADS: &'static [&'static str] = &["name", "size", "age", "description"];

    fn cells(&self) -> Vec<String> {
        let age = duration(since(self.created));
        vec![self.name.clone(), bytes(self.bytes), age, self.description.clone()]
    }
}

/// Lets a virtual machine go on from a snapshot; what it is now is lost.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  arnia restore web@before-upgrade")]
pub struct Restore {
    /// The virtual machine and the snapshot
    #[arg(value_name = "VM@SNAPSHOT")]
    source: String,
    #[command(flatten)]
    wait: Wait,
}

impl Run for Restore {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let Some((vm, name)) = self.source.split_once('@') else {
            return Err(Error::bad_input(format!("{:?} names no snapshot", self.source))
                .with_remedy(format!("write VM@SNAPSHOT; `arnia snapshots {}` lists them", self.source)));
        };
        let (vm, name, wait) = (vm.to_owned(), name.to_owned(), self.wait);
        Snapshot::Restore { vm, name, wait }.run(context)
    }
}

/// Lists the snapshots of a virtual machine, the oldest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  arnia snapshots web")]
pub struct Snapshots {
    /// The virtual machine
    vm: String,
}

impl Run for Snapshots {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        Snapshot::Ls { vm: self.vm.clone() }.run(context)
    }
}

/// Makes copies of a virtual machine, each another one: with its own name, addresses and keys. Copies of one that
/// runs, or of a snapshot, run at once; they share memory and disks until they change them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia clone web web-2
  arnia clone web worker-1 worker-2 worker-3
  arnia clone web@before-upgrade old-web

A copy has none of the host's ports.")]
pub struct Clone {
    /// The virtual machine, or VM@SNAPSHOT
    #[arg(value_name = "VM[@SNAPSHOT]")]
    source: String,
    /// Names of the copies
    #[arg(required = true, value_name = "NEW")]
    names: Vec<String>,
    #[command(flatten)]
    wait: Wait,
}

impl Run for Clone {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let (vm, snapshot) = match self.source.split_once('@') {
            Some((vm, snapshot)) => (vm, Some(snapshot.to_owned())),
            None => (self.source.as_str(), None),
        };
        context.with_daemon(async |client| {
            let params = CloneParams { names: self.names.clone(), snapshot };
            let operation = client.vm_clone(vm, &params).await?;
            let names = self.names.join(", ");
            let is = if self.names.len() == 1 { "is a copy" } else { "are copies" };
            let (doing, done) = (format!("cloning {vm}"), format!("{names} {is} of {}", self.source));
            self.wait.finish(context, &client, operation, &doing, &done).await?;
            Ok(ExitCode::SUCCESS)
        })
    }
}
