//! `arnia resize`.

use super::Run;
use crate::{Context, Error};
use api::ByteSize;
use api::v1::limits::ResizeParams;
use std::process::ExitCode;

/// Gives a virtual machine other sizes. Its first disk is larger at once, also while it runs; the guest then enlarges
/// its partitions and file systems. Processors and memory are there from the next start on.
#[derive(Debug, clap::Args)]
#[command(about = "Give a virtual machine other sizes")]
#[command(after_help = "Examples:
  arnia resize web --disk 40G
  arnia resize web --cpus 4 --memory 8G && arnia restart web

How much of its memory a guest that runs may keep: `arnia set web --memory-limit 2G`.")]
pub struct Resize {
    /// The virtual machine
    name: String,
    /// Number of vCPUs
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Guest memory
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Size of the first disk, which can only become larger
    #[arg(long, value_name = "SIZE")]
    disk: Option<ByteSize>,
}

impl Run for Resize {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let params = ResizeParams { cpus: self.cpus, memory: self.memory, disk: self.disk };
        if params == ResizeParams::default() {
            return Err(
                Error::bad_input("there is no new size").with_remedy("add --cpus, --memory or --disk")
            );
        }
        context.with_daemon(async |client| {
            let vm = client.vm_resize(&self.name, &params).await?;
            let note = if vm.restart_needed { "; `arnia restart` makes all of it so" } else { "" };
            context.output.say(&format!("{} is resized{note}", vm.name))?;
            Ok(ExitCode::SUCCESS)
        })
    }
}
