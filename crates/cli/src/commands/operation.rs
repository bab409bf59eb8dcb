//! `arnia operation`.

use super::Run;
use super::{duration, since};
use crate::output::Row;
use crate::progress::shown;
use crate::{Context, Error};
use api::v1::operation::{Operation as View, OperationState};
use std::process::ExitCode;

/// Commands for operations.
#[derive(Debug, clap::Subcommand)]
pub enum Operation {
    /// List operations, the newest first
    #[command(alias = "list", after_help = "Example:\n  arnia operation ls")]
    Ls {},
    /// Wait for the end of an operation
    #[command(after_help = "Example:\n  arnia operation wait 0b7c9f6e-…")]
    Wait {
        /// The operation
        id: String,
    },
    /// Cancel an operation that waits for a guest
    #[command(after_help = "Example:\n  arnia operation cancel 0b7c9f6e-…")]
    Cancel {
        /// The operation
        id: String,
    },
}

impl Run for Operation {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            match self {
                Operation::Ls {} => context.output.list(&client.operations().await?)?,
                Operation::Wait { id } => {
                    let operation = client.operation(id, 0).await?;
                    let operation = shown("waiting", client.wait(operation)).await?;
                    context.output.list(&[operation])?;
                }
                Operation::Cancel { id } => client.operation_cancel(id).await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Row for View {
    const HEADS: &'static [&'static str] = &["id", "what", "on", "state", "began", "why"];

    fn cells(&self) -> Vec<String> {
        let state = match self.state {
            OperationState::Running => "running",
            OperationState::Succeeded => "succeeded",
            OperationState::Failed => "failed",
            OperationState::Cancelled => "cancelled",
        };
        vec![
            self.id.clone(),
            self.kind.clone(),
            self.target.name.clone(),
            state.into(),
            format!("{} ago", duration(since(self.created))),
            self.error.as_ref().map(ToString::to_string).unwrap_or_default(),
        ]
    }
}
