//! `cargo xtask check`: formatting, lints, layers and documentation.

use std::process::ExitCode;

use anyhow::Result;

use crate::steps::Steps;
use crate::workspace::Workspace;
use crate::{apt, host, layers};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also build the documentation and refuse broken links in it
    #[arg(long)]
    docs: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    apt::ensure(&[apt::BUILD])?;
    let mut steps = Steps::default();
    check(&mut steps, &Workspace::locate()?);
    if args.docs {
        steps.step("documentation", || {
            let mut doc = host::cargo();
            doc.args(["doc", "--workspace", "--no-deps", "--document-private-items"]);
            host::run(doc.env("RUSTDOCFLAGS", "--deny warnings"))
        });
    }
    Ok(steps.finish())
}

/// The checks, as steps of whatever task wants them.
pub(crate) fn check(steps: &mut Steps, workspace: &Workspace) {
    steps.step("format", || {
        host::run(host::cargo().args(["fmt", "--all", "--check"]).current_dir(workspace.root()))
    });
    steps.step("layers", layers::check);
    steps.step("lints", || {
        host::run(host::cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--keep-going",
            "--",
            "--deny",
            "warnings",
        ]))
    });
}
