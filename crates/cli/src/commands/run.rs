//! `arnia run`.

use super::machine::{Machine, key};
use super::{Run, console, exec};
use crate::progress::{self, Wait};
use crate::{Context, Error};
use api::agent::ExecParams;
use api::v1::guest::WAIT_SECONDS_MAX;
use api::v1::vm::VmParams;
use client::{Client, Created};
use std::io::IsTerminal;
use std::process::ExitCode;

/// Seconds that a guest has to boot until its agent answers.
const GUEST_PATIENCE: u32 = WAIT_SECONDS_MAX;

/// Creates a virtual machine of an image and starts it; runs a command in it if one is given. An image that comes
/// along, such as debian, is built when it is used for the first time.
#[derive(Debug, clap::Args)]
#[command(about = "Create a virtual machine and start it")]
#[command(after_help = "Examples:
  arnia run debian
  arnia run debian -- uname -a
  arnia run --rm busybox -- cat /proc/cpuinfo
  arnia run debian --name web --cpus 2 --memory 2G --disk 20G --port 8080:80
  arnia run --kernel vmlinuz --initrd initrd.img --console demo

The exit status is that of the command, if one is given.")]
pub struct RunVm {
    #[command(flatten)]
    machine: Machine,
    /// Connect to its console
    #[arg(long, conflicts_with = "command")]
    console: bool,
    /// Remove it when the command has ended
    #[arg(long, requires = "command")]
    rm: bool,
    /// A command to run in it, and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    wait: Wait,
}

impl Run for RunVm {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            let params = VmParams { start: true, ..self.machine.params(context, &client).await? };
            let name = &params.name;
            let Created::Starting(operation) = client.vm_create(&params, &key()).await? else {
                return Err(Error::failed("the daemon has created the machine and not started it"));
            };
            let doing = format!("starting {name}");
            if self.console {
                progress::watched(&client, *operation, &doing).await?;
                return console::attach(&client, name, console::Until::MachineEnds).await;
            }
            if self.command.is_empty() {
                let enter = match params.config.image {
                    Some(_) => format!("{name} runs; `arnia shell {name}` opens a shell in it"),
                    None => format!("{name} runs; `arnia console {name}` connects to its console"),
                };
                self.wait.finish(context, &client, *operation, &doing, &enter).await?;
                return Ok(ExitCode::SUCCESS);
            }
            progress::watched(&client, *operation, &doing).await?;
            let program = ExecParams { command: self.command.clone(), ..ExecParams::default() };
            // What somebody types is for the shell that this was typed into.
            let input = !std::io::stdin().is_terminal();
            let result = exec::attach(&client, name, &program, input, GUEST_PATIENCE).await;
            self.clean_up(&client, name).await?;
            result
        })
    }
}

impl RunVm {
    async fn clean_up(&self, client: &Client, name: &str) -> Result<(), Error> {
        if self.rm {
            client.vm_delete(name, true).await?;
        }
        Ok(())
    }
}
