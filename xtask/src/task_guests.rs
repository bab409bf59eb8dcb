//! `cargo xtask guests`: builds what the tests and the demo boot.

use std::process::ExitCode;

use anyhow::Result;

use crate::guests::{self, Freshness};
use crate::workspace::Workspace;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Ask the mirror for newer packages, and build again what has changed
    #[arg(long)]
    refresh: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    let freshness = if args.refresh { Freshness::Newest } else { Freshness::Cached };
    let guests = guests::ensure(&workspace, freshness)?;
    println!("the guests are described in {}", guests.manifest_path.display());
    Ok(ExitCode::SUCCESS)
}
