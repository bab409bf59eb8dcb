//! `cargo xtask docs`: writes the reference of the command line.

use std::process::ExitCode;

use anyhow::Result;

use crate::host;

#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    // The test that compares the committed pages writes them instead when this variable is set.
    let mut test = host::cargo();
    test.args(["test", "--quiet", "--package", "cli", "--lib", "committed_reference"])
        .env("ARNIA_BLESS", "1");
    host::run(&mut test)?;
    Ok(ExitCode::SUCCESS)
}
