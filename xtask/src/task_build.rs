//! `cargo xtask build`: the programs as users get them, each where the others look for it.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::guests::static_program;
use crate::host;
use crate::workspace::{self, Workspace};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the guest agent, for the programs that are there already
    #[arg(long)]
    agent_only: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    let release = workspace.target().join("release");
    if args.agent_only {
        place_agent(&workspace)?
    } else {
        build_all(&workspace)?
    }
    println!("arnia, arnia-vmm and guest/arnia-agent are in {}", release.display());
    println!("  try: {}/arnia run debian", release.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds all programs.
pub(crate) fn build_all(workspace: &Workspace) -> Result<()> {
    // One by one: together, cargo would build what both use with the features of both, and all of it anew when one
    // is built alone.
    for package in ["vmm", "cli"] {
        host::run(host::cargo().args(["build", "--release", "--package", package]))?;
    }
    place_agent(workspace)
}

/// Builds the guest agent and puts it where the others look for it.
fn place_agent(workspace: &Workspace) -> Result<()> {
    // Static, in a folder of its own: beside arnia, `cargo build` puts one that needs the host's libraries.
    let agent = static_program::build(workspace, "agent", workspace::AGENT)?;
    for profile in ["release", "debug"] {
        let folder = workspace.target().join(profile).join("guest");
        fs::create_dir_all(&folder)?;
        let place = folder.join(workspace::AGENT);
        let draft = folder.join(".draft");
        fs::copy(&agent, &draft)
            .and_then(|_| fs::rename(&draft, &place))
            .with_context(|| format!("cannot write {}", place.display()))?;
    }
    Ok(())
}
