//! Waiting for operations, visibly.

use crate::output::Format;
use crate::stderr::{err, errln};
use crate::{Context, Error, bar};
use api::v1::operation::{Operation, OperationState};
use client::Client;
use indicatif::ProgressBar;
use std::io::IsTerminal;
use std::time::Duration;

/// Whether to wait for the end of an operation.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Wait {
    /// Return at once and print the operation; `arnia operation wait` waits for it later
    #[arg(long)]
    no_wait: bool,
}

/// Work that takes longer than this is shown.
const SILENT: Duration = Duration::from_secs(1);
/// How often a bar is drawn anew.
const REDRAWN: Duration = Duration::from_millis(200);

/// Waits for the end of an operation and shows what it does meanwhile: a bar at a terminal, a line for each step
/// elsewhere. Ctrl-C leaves it to the daemon.
pub(crate) async fn watched(client: &Client, operation: Operation, doing: &str) -> Result<Operation, Error> {
    // Most are done before anybody could read a word.
    let mut operation = match tokio::time::timeout(SILENT, client.wait(operation.clone())).await {
        Ok(result) => return Ok(result?),
        Err(_) => client.operation(&operation.id, 0).await?,
    };
    let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
    let mut step = String::new();
    while operation.state == OperationState::Running {
        let progress = operation.progress.take();
        let message = progress.as_ref().map_or(doing, |progress| progress.message.as_str());
        if step != message {
            step = message.to_owned();
            match &bar {
                Some(bar) => {
                    let what = if step == doing { step.clone() } else { format!("{doing}: {step}") };
                    bar::begin(bar, what, progress.as_ref().and_then(|progress| progress.total));
                }
                None => errln!("{step}"),
            }
        }
        if let (Some(bar), Some(done)) = (&bar, progress.and_then(|progress| progress.done)) {
            bar.set_position(done);
        }
        tokio::time::sleep(REDRAWN).await;
        operation = client.operation(&operation.id, 0).await?;
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(client::ended(operation)?)
}

impl Wait {
    /// Waits for the operation, unless asked not to; `done` is then said.
    pub(crate) async fn finish(
        self,
        context: &Context,
        client: &Client,
        operation: Operation,
        doing: &str,
        done: &str,
    ) -> Result<(), Error> {
        let operation = self.one(context, client, operation, doing, done).await?;
        match context.output.format() {
            Format::Table => Ok(()),
            _ => context.output.data(&operation),
        }
    }

    /// The same for one of several operations, which [`all`] tells to programs in the end.
    pub(crate) async fn one(
        self,
        context: &Context,
        client: &Client,
        operation: Operation,
        doing: &str,
        done: &str,
    ) -> Result<Operation, Error> {
        let people = context.output.format() == Format::Table;
        if self.no_wait {
            if people {
                context.output.item(&operation, &[("Operation", operation.id.clone())])?;
            }
            return Ok(operation);
        }
        let operation = watched(client, operation, doing).await?;
        context.output.say(done)?;
        Ok(operation)
    }
}

/// Writes the operations of a command that has any number of them: one list for programs, whatever came of the others.
/// People have read of each when it was done.
pub(crate) fn all<T>(
    context: &Context,
    operations: &[Operation],
    result: Result<T, Error>,
) -> Result<T, Error> {
    let written = match context.output.format() {
        Format::Table => Ok(()),
        _ => context.output.data(operations),
    };
    let value = result?;
    written.map(|()| value)
}

/// Waits, and says on a terminal how long it has taken once that is more than a second.
pub(crate) async fn shown<T>(
    doing: &str,
    work: impl Future<Output = Result<T, client::Error>>,
) -> Result<T, Error> {
    tokio::pin!(work);
    let terminal = std::io::stderr().is_terminal();
    let started = tokio::time::Instant::now();
    let mut written = false;
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            () = tokio::time::sleep(SILENT), if terminal => {
                err!("\r{doing} … {} s\x1b[K", started.elapsed().as_secs());
                written = true;
            }
        }
    };
    if written {
        err!("\r\x1b[K");
    }
    Ok(result?)
}
