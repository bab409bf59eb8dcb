//! `cargo xtask openapi`: writes the description of the REST API.

use std::process::ExitCode;

use anyhow::Result;

use crate::host;

#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    // The test that compares the committed document writes it instead when this variable is set.
    let mut test = host::cargo();
    test.args(["test", "--quiet", "--package", "daemon", "--lib", "committed_document"])
        .env("ARNIA_BLESS", "1");
    host::run(&mut test)?;
    Ok(ExitCode::SUCCESS)
}
