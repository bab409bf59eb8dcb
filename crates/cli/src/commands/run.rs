//! `arnia run`.

use super::exec::Signals;
use super::machine::{Machine, key};
use super::{Run, console, exec};
use crate::progress::{self, Wait};
use crate::{Context, Error, ErrorKind};
use api::agent::ExecParams;
use api::v1::guest::WAIT_SECONDS_MAX;
use api::v1::operation::Operation;
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
    /// Remove it when the command has ended, or did not come to run: the start failed, or Ctrl-C
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
            // From here on a signal must not leave behind what is to be removed.
            let signals = self.rm.then(Signals::take).transpose()?;
            let created = client.vm_create(&params, &key()).await?;
            if self.command.is_empty() {
                self.start(context, &client, &params, created).await?;
                return match self.console {
                    true => console::attach(&client, name, console::Until::MachineEnds).await,
                    false => Ok(ExitCode::SUCCESS),
                };
            }
            let result = self.run_command(&client, name, created, signals).await;
            if self.rm {
                remove(&client, name).await;
            }
            result
        })
    }
}

impl RunVm {
    /// Waits until the machine runs.
    async fn start(
        &self,
        context: &Context,
        client: &Client,
        params: &VmParams,
        created: Created,
    ) -> Result<(), Error> {
        let name = &params.name;
        let (operation, doing) = (starting(created)?, format!("starting {name}"));
        if self.console {
            return progress::watched(client, operation, &doing).await.map(drop);
        }
        let enter = match params.config.image {
            Some(_) => format!("{name} runs; `arnia shell {name}` opens a shell in it"),
            None => format!("{name} runs; `arnia console {name}` connects to its console"),
        };
        self.wait.finish(context, client, operation, &doing, &enter).await
    }

    /// Waits until the machine runs and its guest has booted, and runs the command there. `signals` that are taken end the
    /// wait; from then on they are for the command.
    async fn run_command(
        &self,
        client: &Client,
        name: &str,
        created: Created,
        signals: Option<Signals>,
    ) -> Result<ExitCode, Error> {
        let program = ExecParams { command: self.command.clone(), ..ExecParams::default() };
        let begun = async {
            progress::watched(client, starting(created)?, &format!("starting {name}")).await?;
            exec::begin(client, name, &program, GUEST_PATIENCE).await
        };
        let (exec, signals) = match signals {
            None => (begun.await?, Signals::take()?),
            Some(mut signals) => tokio::select! {
                exec = begun => (exec?, signals),
                signal = signals.end() => {
                    let error = Error::failed("a signal came before the command ran");
                    return Err(error.with_status(128 + signal));
                }
            },
        };
        // What somebody types is for the shell that this was typed into.
        let input = !std::io::stdin().is_terminal();
        exec::relay(exec, signals, input, false).await
    }
}

/// The operation that starts the machine.
fn starting(created: Created) -> Result<Operation, Error> {
    match created {
        Created::Starting(operation) => Ok(*operation),
        Created::Vm(_) => Err(Error::failed("the daemon has created the machine and not started it")),
    }
}

/// Removes the machine, whatever it does: one that is being started, when that is done. A failure is told, and the exit
/// status stays that of the command.
async fn remove(client: &Client, name: &str) {
    match progress::shown(&format!("removing {name}"), client.vm_delete(name, true)).await {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            crate::stderr::errln!("arnia: {}", error.about(&format!("{name} is not removed")).report());
        }
        _ => {}
    }
}
