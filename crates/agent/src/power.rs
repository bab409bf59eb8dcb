//! Shutting the guest down.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use api::agent::ShutdownMode;
use nix::sys::reboot::{RebootMode, reboot};

/// Asks whatever rules this system to shut it down; with `force`, or where nothing does, the kernel.
pub(crate) fn shutdown(mode: ShutdownMode, force: bool) -> io::Result<()> {
    if !force && let Some(mut command) = polite(mode) {
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
        match status {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => eprintln!("arnia-agent: {command:?} ended with {status}"),
            Err(error) => eprintln!("arnia-agent: cannot run {command:?}: {error}"),
        }
    }
    nix::unistd::sync();
    let mode = match mode {
        ShutdownMode::Poweroff => RebootMode::RB_POWER_OFF,
        ShutdownMode::Reboot => RebootMode::RB_AUTOBOOT,
        ShutdownMode::Halt => RebootMode::RB_HALT_SYSTEM,
    };
    match reboot(mode) {
        Err(error) => Err(error.into()),
        Ok(never) => match never {},
    }
}

fn polite(mode: ShutdownMode) -> Option<Command> {
    if Path::new("/run/systemd/system").is_dir() {
        let mut command = Command::new("systemctl");
        command.arg("--no-block").arg(match mode {
            ShutdownMode::Poweroff => "poweroff",
            ShutdownMode::Reboot => "reboot",
            ShutdownMode::Halt => "halt",
        });
        return Some(command);
    }
    // That of sysvinit. Busybox has none, and its init need not be process 1.
    let program =
        ["/sbin/shutdown", "/usr/sbin/shutdown"].into_iter().find(|path| Path::new(path).exists())?;
    let mut command = Command::new(program);
    command.arg(match mode {
        ShutdownMode::Poweroff => "-P",
        ShutdownMode::Reboot => "-r",
        ShutdownMode::Halt => "-H",
    });
    command.arg("now");
    Some(command)
}
