//! The Debian guest: to its login prompt, work, and shutdown from inside and outside.

use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};

use anyhow::{Context, Result, ensure};
use vm_test::{Case, Guest, Patience, Program, Suite, copy_sparse, debian, free_port, kernel_log};

pub(crate) fn add(suite: &mut Suite) {
    suite.matrix("debian::work_and_poweroff", &[2], work_and_poweroff);
    suite.matrix("debian::power_button", &[1], power_button);
}

/// A session as a user would have it, ended by `poweroff`.
fn work_and_poweroff(case: &Case) -> Result<()> {
    let disk = case.path("disk.img");
    copy_sparse(&case.artifacts.debian.disk, &disk)?;
    let ssh_port = free_port()?;
    let guest = Guest::debian(&case.artifacts, &disk).cpus(case.cpus).forward(ssh_port, 22);
    let mut vm = guest.start(&case.program, &case.folder)?;
    let mut shell = debian::log_in(&mut vm, &case.artifacts)?;
    let mut ignore = |_: &str| {};
    debian::try_commands(&mut shell, &case.artifacts, case.cpus, &mut ignore)?;
    debian::try_download(&mut shell, &mut ignore)?;

    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, ssh_port)).context("the forwarded port")?;
    stream.set_read_timeout(Some(Patience::Command.limit()))?;
    let mut greeting = [0; 8];
    stream.read_exact(&mut greeting).context("the guest's SSH server does not answer")?;
    ensure!(&greeting == b"SSH-2.0-", "the guest's SSH server answers {greeting:?}");

    if case.program != Program::Qemu {
        kernel_log::compare_with_qemu(&mut shell, &guest, &case.artifacts)?;
    }
    shell.send("poweroff")?;
    vm.wait(Patience::Shutdown)?.expect_code(0)?;
    ensure!(
        vm.console().transcript().contains("reboot: Power down"),
        "the guest did not say that it was off"
    );
    Ok(())
}

/// The power button makes systemd shut the system down in order.
fn power_button(case: &Case) -> Result<()> {
    let disk = case.path("disk.img");
    copy_sparse(&case.artifacts.debian.disk, &disk)?;
    let mut vm = Guest::debian(&case.artifacts, &disk).cpus(case.cpus).start(&case.program, &case.folder)?;
    vm.console().expect("arnia login: ", Patience::Login)?;
    vm.control().power()?;
    vm.console().expect("Reached target", Patience::Shutdown)?;
    vm.wait(Patience::Shutdown)?.expect_code(0)?;
    ensure!(
        vm.console().transcript().contains("reboot: Power down"),
        "the guest did not say that it was off"
    );
    Ok(())
}
