//! `arnia apply`, `diff` and `export`: a lab as one file.
//!
//! ```text
//! file ─ file::Lab ──┐
//!                    ├─ plan::plan ─ steps ─ shown ─ apply::carry_out
//! daemon ─ Lab::of ──┘
//! ```

mod carry_out;
mod file;
mod plan;
mod step;

use super::Run;
use crate::{Context, Error};
use client::Client;
use file::{Cards, Lab, Present};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use step::Step;

const FILE_HELP: &str = "The file, in YAML or JSON:

  name: lab                  # with a name, --prune removes what is no more in the file
  networks:
    back: {mode: internal}   # with `subnet: 10.20.0.0/24` if it shall be that
  volumes:
    data: {size: 10G}
  vms:
    web:
      running: true          # the default; false stops it
      boot: {kernel: vmlinuz, initrd: initrd.img, append: console=ttyS0}
      cpus: 2
      memory: 1G
      disks: [{volume: data}]
      nics: [{ports: ['8080:80']}, {network: back}]

Fields of a machine are those of `arnia info NAME -o yaml` below `config`; what is absent has its default. Paths of boot and
disks are relative to the file. `arnia export` writes such a file.";

/// The file that describes a lab.
#[derive(Debug, clap::Args)]
struct Source {
    /// The file; - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Also remove machines that were made from a file of the same name and are no more in it
    #[arg(long)]
    prune: bool,
}

impl Source {
    async fn plan(&self, context: &Context, client: &Client) -> Result<Vec<Step>, Error> {
        let lab = Lab::read(context, &self.file)?;
        if self.prune && lab.name.is_none() {
            return Err(Error::bad_input(
                "the file has no name, so that nothing is known to have come from it",
            )
            .with_remedy("give it a `name:`, apply it once without --prune, then with it"));
        }
        let present = Present::ask(client).await?;
        plan::plan(&lab, &present, self.prune)
    }
}

/// Makes the machines, networks and volumes of a project what a file says. What is so already is left alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia apply -f lab.yaml
  arnia apply -f lab.yaml --yes --restart
  arnia export --copy web | arnia apply --project copy -f -", after_long_help = format!("Examples:
  arnia apply -f lab.yaml
  arnia apply -f lab.yaml --yes --restart
  arnia export --copy web | arnia apply --project copy -f -

{FILE_HELP}"))]
pub struct Apply {
    #[command(flatten)]
    source: Source,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Restart machines that run if a change asks for it, now or one that was made earlier
    #[arg(long)]
    restart: bool,
}

impl Run for Apply {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            let steps = self.source.plan(context, &client).await?;
            show(context, &steps)?;
            let to_do = |step: &Step| self.restart || !matches!(step, Step::RestartVm { .. });
            if steps.iter().any(|step| !to_do(step)) {
                context.output.hint("Give --restart to restart what runs with an older configuration.");
            }
            if !steps.iter().any(to_do) || !self.yes && !agreed(&steps)? {
                return Ok(ExitCode::SUCCESS);
            }
            carry_out::carry_out(context, &client, &steps, self.restart).await?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// Asks the person. Where nobody is asked, only what loses nothing is done.
fn agreed(steps: &[Step]) -> Result<bool, Error> {
    let loses = steps.iter().any(Step::loses);
    if !std::io::stdin().is_terminal() {
        return match loses {
            false => Ok(true),
            true => Err(Error::bad_input("the plan stops or removes machines, and nobody can be asked")
                .with_remedy("give --yes if it shall be done")),
        };
    }
    crate::stderr::err!("Shall this be done? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|e| Error::failed("the answer cannot be read").with_source(e))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn show(context: &Context, steps: &[Step]) -> Result<(), Error> {
    match context.output.format() {
        crate::output::Format::Table if steps.is_empty() => context.output.say("all is as the file says"),
        crate::output::Format::Table => {
            steps.iter().try_for_each(|step| context.output.say(&step.to_string()))
        }
        _ => context.output.data(steps),
    }
}

/// Shows what `arnia apply` would do.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia diff -f lab.yaml
  arnia diff -f lab.yaml --exit-code || echo changed
With --exit-code the exit status is 1 if there is a difference. `arnia apply --help` describes the file.")]
pub struct Diff {
    #[command(flatten)]
    source: Source,
    /// Exit with status 1 if there is a difference
    #[arg(long)]
    exit_code: bool,
}

impl Run for Diff {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let steps = context.with_daemon(async |client| self.source.plan(context, &client).await)?;
        show(context, &steps)?;
        Ok(if self.exit_code && !steps.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// Writes machines with their networks and volumes as a file for `arnia apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia export > lab.yaml
  arnia export web database > two.yaml
  arnia export --copy web | arnia apply --project copy -f -
Addresses of network cards are left out, so that a copy gets its own; --exact keeps them. Ports of
the host are kept; --copy leaves them out, as `arnia clone` does, for only one machine that runs can
have them. What is on disks and volumes is not in the file, nor is the size that --disk gave the
disk of an image: `arnia resize NAME --disk SIZE` gives it to a copy that was started once.")]
pub struct Export {
    /// The machines; all of the project when absent
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// With the addresses of network cards
    #[arg(long)]
    exact: bool,
    /// Without ports of the host, for machines that shall run beside these
    #[arg(long, conflicts_with = "exact")]
    copy: bool,
}

impl Run for Export {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let lab = context.with_daemon(async |client| {
            let present = Present::ask(&client).await?;
            let cards = match (self.exact, self.copy) {
                (true, _) => Cards::Exact,
                (_, true) => Cards::OfCopies,
                _ => Cards::WithoutAddresses,
            };
            Lab::of(present, &self.names, cards)
        })?;
        context.output.data(&lab)?;
        Ok(ExitCode::SUCCESS)
    }
}
