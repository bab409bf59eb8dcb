//! The program `arnia` as an administrator uses it: a daemon of its own, a real guest, kill -9 in between.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vm_test::{Arnia, Case, Patience, Suite};

pub(crate) fn add(suite: &mut Suite) {
    suite.engineless_test("daemon::a_guest_outlives_its_daemon", outlives);
}

/// A guest boots under the daemon, does not notice that the daemon is killed, can be talked to by the next one,
/// and powers off when its button is pressed.
fn outlives(case: &Case) -> Result<()> {
    let arnia = Arnia::new()?;
    let (kernel, initrd) = (&case.artifacts.kernel.image, &case.artifacts.busybox.initramfs);
    let (kernel, initrd) = (kernel.to_string_lossy(), initrd.to_string_lossy());
    let append = "console=ttyS0 panic=-1 arnia.end=shell";
    arnia.run(&[
        "run", "--kernel", &kernel, "--initrd", &initrd, "--append", append, "--memory", "512M", "demo",
    ])?;
    arnia.expect("demo", "ARNIA-SHELL", Patience::Boot)?;
    let before = arnia.json(&["info", "demo"])?["worker"]["pid"].clone();
    ensure!(before.is_u64(), "it has a process");
    for _ in 0..3 {
        arnia.kill_daemon()?;
        ensure!(arnia.json(&["info", "demo"])?["id"].is_string(), "its record is there");
    }
    // The next daemon takes it over beside answering.
    let started = Instant::now();
    while arnia.json(&["info", "demo"])?["worker"]["pid"] != before {
        ensure!(started.elapsed() < Patience::Host.limit(), "the machine is not found again");
    }
    let mut console =
        arnia.command(&["console", "demo"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let mut keyboard = console.stdin.take().context("a keyboard")?;
    std::io::Write::write_all(&mut keyboard, b"echo answer-$((6 * 7))\n")?;
    arnia.expect("demo", "answer-42", Patience::Command)?;
    arnia.run(&["pause", "demo"])?;
    ensure!(arnia.run(&["ls"])?.contains("paused"), "it is paused");
    arnia.run(&["resume", "demo"])?;
    arnia.run(&["stop", "--timeout", &Patience::Shutdown.limit().as_secs().to_string(), "demo"])?;
    drop(keyboard);
    ensure!(console.wait()?.success(), "the console ends with the machine");
    let vm = arnia.json(&["info", "demo"])?;
    ensure!(vm["state"] == "stopped" && vm["reason"] == "the guest powered off", "{vm}");
    let again = arnia.try_run(&["console", "demo"])?;
    ensure!(again.status.code() == Some(4), "the console of a machine that is off: {again:?}");
    ensure!(String::from_utf8_lossy(&again.stderr).contains("arnia start demo"), "{again:?}");
    arnia.run(&["rm", "demo"])?;
    ensure!(arnia.try_run(&["info", "demo"])?.status.code() == Some(3), "it is gone");
    Ok(())
}
