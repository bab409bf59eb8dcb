//! Waiting for operations, visibly.

use crate::{Context, Error};
use api::v1::operation::Operation;
use client::Client;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Whether to wait for the end of an operation.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Wait {
    /// Return at once and print the operation; `arnia operation wait` waits for it later
    #[arg(long)]
    no_wait: bool,
}

/// Work that takes longer than this is shown.
const SILENT: Duration = Duration::from_secs(1);

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
        if self.no_wait {
            return context.output.item(&operation, &[("Operation", operation.id.clone())]);
        }
        let operation = shown(doing, client.wait(operation)).await?;
        match context.output.format() {
            crate::output::Format::Table => context.output.say(done),
            _ => context.output.data(&operation),
        }
    }
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
                eprint!("\r{doing} … {} s\x1b[K", started.elapsed().as_secs());
                let _ = std::io::stderr().flush();
                written = true;
            }
        }
    };
    if written {
        eprint!("\r\x1b[K");
    }
    Ok(result?)
}
