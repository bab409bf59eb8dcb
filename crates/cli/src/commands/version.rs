//! `arnia version`.

use super::Run;
use crate::{Context, Error};
use serde::Serialize;
use std::process::ExitCode;

/// Tells the version of this program.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia version\n  arnia version -o json")]
pub struct Version {}

#[derive(Serialize)]
struct View {
    client: &'static str,
}

impl Run for Version {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let view = View { client: env!("CARGO_PKG_VERSION") };
        context.output.item(&view, &[("Client", view.client.to_owned())])?;
        Ok(ExitCode::SUCCESS)
    }
}
