//! `cargo xtask ci`: what a change must pass, on a machine that has only Rust and apt.

use std::process::ExitCode;
use std::thread;

use anyhow::Result;

use crate::guests::{self, Freshness};
use crate::kvm_rig::Depth;
use crate::steps::Steps;
use crate::workspace::Workspace;
use crate::{apt, task_check, task_test};

#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    let mut steps = Steps::default();
    // Without the tools nothing below can work, so this one failure ends it.
    let needs = [apt::BUILD, apt::GUESTS, apt::QEMU, apt::QEMU_TOOLS, apt::FIRMWARE, apt::DISCS];
    if !steps.step("host packages", || apt::ensure(&needs)) {
        return Ok(steps.finish());
    }
    // A bare machine takes minutes to build the guests, one package after the other; the compiler has use for the other
    // processors meanwhile. What fails here fails again in the step that needs it, which says so.
    let guests = thread::spawn(|| guests::ensure(&Workspace::locate()?, Freshness::Cached).map(drop));
    task_check::check(&mut steps, &workspace);
    task_test::unit_tests(&mut steps, false);
    let _ = guests.join();
    task_test::boot_tests(&mut steps, &workspace, None, false);
    task_test::kvm_tests(&mut steps, &workspace, Depth::Short, None);
    Ok(steps.finish())
}
