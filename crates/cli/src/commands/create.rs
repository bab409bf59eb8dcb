//! `arnia create`.

use super::Run;
use super::machine::{Machine, key};
use crate::{Context, Error};
use client::Created;
use std::process::ExitCode;

/// Creates a virtual machine and leaves it off.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia create debian --name web --port 8080:80
  arnia create --kernel vmlinuz --initrd initrd.img --memory 512M demo
  arnia create --firmware uefi --disk windows.img --memory 4G desktop
  arnia start web")]
pub struct Create {
    #[command(flatten)]
    machine: Machine,
}

impl Run for Create {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            let params = self.machine.params(context, &client).await?;
            match client.vm_create(&params, &key()).await? {
                Created::Vm(vm) => {
                    let done = format!("{} is there; `arnia start {}` starts it", vm.name, vm.name);
                    match context.output.format() {
                        crate::output::Format::Table => context.output.say(&done)?,
                        _ => context.output.data(&vm)?,
                    }
                    Ok(ExitCode::SUCCESS)
                }
                Created::Starting(_) => Err(Error::failed("the daemon starts the machine unasked")),
            }
        })
    }
}
