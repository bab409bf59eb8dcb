//! `arnia start`, `stop`, `restart`, `pause`, `suspend`, `resume`.

use super::Run;
use crate::progress::{self, Wait, watched};
use crate::stderr::errln;
use crate::{Context, Error};
use api::v1::operation::Operation;
use api::v1::vm::{StopParams, VmState};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Machines, by name.
#[derive(Debug, clap::Args)]
struct Names {
    /// The virtual machines
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// How to stop.
#[derive(Debug, clap::Args)]
struct How {
    /// End it at once, whatever the guest does; what the guest has not flushed is lost
    #[arg(short, long)]
    force: bool,
    /// Seconds that the guest has to power off
    #[arg(long, value_name = "SECONDS", conflicts_with = "force")]
    timeout: Option<u32>,
}

impl How {
    fn params(&self) -> StopParams {
        StopParams { force: self.force, timeout: self.timeout }
    }
}

/// Does the same to each; the first failure ends it.
fn each(
    context: &Context,
    names: &Names,
    work: impl AsyncFn(&client::Client, &str) -> Result<(), Error>,
) -> Result<ExitCode, Error> {
    context.with_daemon(async |client| {
        for name in &names.names {
            work(&client, name).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The same where each is an operation, which is waited for.
fn each_operation(
    context: &Context,
    names: &[String],
    work: impl AsyncFn(&client::Client, &str) -> Result<Operation, Error>,
) -> Result<ExitCode, Error> {
    context.with_daemon(async |client| {
        let mut operations = Vec::new();
        let mut result = Ok(ExitCode::SUCCESS);
        for name in names {
            match work(&client, name).await {
                Ok(operation) => operations.push(operation),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        progress::all(context, &operations, result)
    })
}

/// Starts virtual machines.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia start web\n  arnia start web database --no-wait")]
pub struct Start {
    #[command(flatten)]
    names: Names,
    #[command(flatten)]
    wait: Wait,
}

impl Run for Start {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        each_operation(context, &self.names.names, async |client, name| {
            let operation = client.vm_start(name).await?;
            let (doing, done) = (format!("starting {name}"), format!("{name} runs"));
            self.wait.one(context, client, operation, &doing, &done).await
        })
    }
}

/// Stops virtual machines: presses their power button and waits until they are off.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia stop web
  arnia stop --timeout 300 database
  arnia stop --force web
  arnia stop --all")]
pub struct Stop {
    /// The virtual machines
    #[arg(required_unless_present_any = ["all", "all_projects"], value_name = "NAME")]
    names: Vec<String>,
    /// All of the project that run: the last of the autostart order first, those with the same order at the same time
    #[arg(long, conflicts_with_all = ["names", "all_projects"])]
    all: bool,
    /// All that run, of all projects, likewise: for the shutdown of the host. They share the --timeout
    #[arg(long, conflicts_with = "names")]
    all_projects: bool,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    wait: Wait,
}

impl Run for Stop {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        if !self.names.is_empty() {
            return each_operation(context, &self.names, async |client, name| {
                let operation = client.vm_stop(name, self.how.params()).await?;
                self.finish(context, client, operation, name).await
            });
        }
        context.with_daemon(async |client| {
            let projects = match self.all_projects {
                true => client.projects().await?.into_iter().map(|project| project.name).collect(),
                false => vec![client.project().to_owned()],
            };
            let mut groups: BTreeMap<i32, Vec<(client::Client, String)>> = BTreeMap::new();
            for project in projects {
                let client = client.in_project(&project);
                for vm in client.vms().await?.into_iter().filter(|vm| vm.state.is_active()) {
                    groups.entry(vm.config.autostart.order).or_default().push((client.clone(), vm.name));
                }
            }
            // One that does not end keeps no other from being stopped and waited for.
            let mut failed = None;
            let mut fail = |name: &str, error: Error| {
                errln!("arnia: {name}: {error}");
                failed = Some(error);
            };
            let mut stopped = Vec::new();
            let (begun, mut left) = (Instant::now(), groups.len());
            for machines in groups.into_values().rev() {
                let timeout = self.how.timeout.map(|all| share(all, begun.elapsed(), left));
                left -= 1;
                let params = StopParams { timeout, ..self.how.params() };
                let mut stopping = Vec::new();
                for (client, name) in machines {
                    match client.vm_stop(&name, params).await {
                        Ok(operation) => stopping.push((client, operation, name)),
                        Err(error) => fail(&name, error.into()),
                    }
                }
                for (client, operation, name) in stopping {
                    match self.finish(context, &client, operation, &name).await {
                        Ok(operation) => stopped.push(operation),
                        Err(error) => fail(&name, error),
                    }
                }
            }
            progress::all(context, &stopped, failed.map_or(Ok(ExitCode::SUCCESS), Err))
        })
    }
}

/// What the next of `groups` gets of the seconds that all have: its part of what is left, and no less than one.
fn share(all: u32, elapsed: Duration, groups: usize) -> u32 {
    let left = u64::from(all).saturating_sub(elapsed.as_secs());
    u32::try_from(left / groups.max(1) as u64).unwrap_or(u32::MAX).max(1)
}

impl Stop {
    async fn finish(
        &self,
        context: &Context,
        client: &client::Client,
        operation: Operation,
        name: &str,
    ) -> Result<Operation, Error> {
        let (doing, done) = (format!("stopping {name}"), format!("{name} is off"));
        self.wait.one(context, client, operation, &doing, &done).await
    }
}

/// Stops virtual machines and starts them again, with their newest configuration.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia restart web\n  arnia restart --force web")]
pub struct Restart {
    #[command(flatten)]
    names: Names,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    wait: Wait,
}

impl Run for Restart {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        each_operation(context, &self.names.names, async |client, name| {
            let operation = client.vm_restart(name, self.how.params()).await?;
            let done = format!("{name} runs again");
            self.wait.one(context, client, operation, &format!("restarting {name}"), &done).await
        })
    }
}

/// Makes virtual machines stand still; their time stands still, too.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  arnia pause web")]
pub struct Pause {
    #[command(flatten)]
    names: Names,
}

impl Run for Pause {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        each(context, &self.names, async |client, name| {
            client.vm_pause(name).await?;
            context.output.say(&format!("{name} is paused"))
        })
    }
}

/// Saves the memory of virtual machines on the host's disk and ends their processes. `arnia resume` or `arnia start`
/// lets them go on; `arnia stop --force` gives up what was saved.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  arnia suspend web")]
pub struct Suspend {
    #[command(flatten)]
    names: Names,
    #[command(flatten)]
    wait: Wait,
}

impl Run for Suspend {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        each_operation(context, &self.names.names, async |client, name| {
            let operation = client.vm_suspend(name).await?;
            let done = format!("{name} is suspended; `arnia resume {name}` lets it go on");
            self.wait.one(context, client, operation, &format!("suspending {name}"), &done).await
        })
    }
}

/// Lets paused or suspended virtual machines go on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  arnia resume web")]
pub struct Resume {
    #[command(flatten)]
    names: Names,
}

impl Run for Resume {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        each(context, &self.names, async |client, name| {
            if client.vm(name).await?.state == VmState::Suspended {
                watched(client, client.vm_start(name).await?, &format!("resuming {name}")).await?;
            } else {
                client.vm_resume(name).await?;
            }
            context.output.say(&format!("{name} goes on"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_stop_one_after_the_other_share_the_time() {
        let seconds = Duration::from_secs;
        assert_eq!(share(80, seconds(0), 1), 80);
        assert_eq!(share(80, seconds(0), 2), 40);
        // The first one took less, or all that it had.
        assert_eq!(share(80, seconds(10), 1), 70);
        assert_eq!(share(80, seconds(40), 1), 40);
        // Nothing is left: there is still a moment for each.
        assert_eq!(share(80, seconds(100), 3), 1);
        assert_eq!(share(1, seconds(0), 2), 1);
    }
}
