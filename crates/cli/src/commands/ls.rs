//! `arnia ls`.

use super::{Run, duration, since};
use crate::output::Row;
use crate::{Context, Error};
use api::v1::vm::Vm;
use std::process::ExitCode;

/// Lists the virtual machines of a project.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia ls\n  arnia ls -o json\n  arnia ls --project lab")]
pub struct Ls {}

impl Row for Vm {
    const HEADS: &'static [&'static str] =
        &["name", "state", "cpus", "memory", "up", "address", "ports", "why"];

    fn cells(&self) -> Vec<String> {
        let up = self.started.filter(|_| self.worker.is_some()).map(|time| duration(since(time)));
        let ports = self.config.nics.iter().flat_map(|nic| nic.ports.clone()).collect::<Vec<_>>();
        let addresses = self.guest.as_ref().map(|guest| guest.addresses()).unwrap_or_default();
        vec![
            self.name.clone(),
            self.state.to_string(),
            self.config.cpus.to_string(),
            self.config.memory.to_string(),
            up.unwrap_or_else(|| "-".into()),
            addresses.first().cloned().unwrap_or_else(|| "-".into()),
            if ports.is_empty() { "-".into() } else { ports.join(" ") },
            self.reason.clone().unwrap_or_default(),
        ]
    }
}

impl Run for Ls {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let vms = context.with_daemon(async |client| Ok(client.vms().await?))?;
        if vms.is_empty() {
            context.output.hint("there are no virtual machines; `arnia run --help` shows how to make one");
        }
        context.output.list(&vms)?;
        Ok(ExitCode::SUCCESS)
    }
}
