//! The program `arnia` as an administrator uses it: a daemon of its own, a real guest, kill -9 in between.

use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use vm_test::{Case, Patience, Suite};

pub(crate) fn add(suite: &mut Suite) {
    suite.engineless_test("daemon::a_guest_outlives_its_daemon", outlives);
}

/// Commands of `arnia` for one daemon, whose things are in a folder of their own.
pub(crate) struct Arnia {
    program: std::ffi::OsString,
    pub(crate) home: std::path::PathBuf,
}

impl Arnia {
    pub(crate) fn new() -> Result<Arnia> {
        let program = std::env::var_os("ARNIA_PROGRAM")
            .context("ARNIA_PROGRAM is not set; run it by `cargo xtask test`")?;
        // Not in the test's own folder: paths of sockets must be short.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let home = std::env::temp_dir().join(format!("arnia-boot-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&home)?;
        Ok(Arnia { program, home })
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("ARNIA_HOME", &self.home).stdin(Stdio::null());
        command
    }

    /// The program's path.
    pub(crate) fn program(&self) -> std::borrow::Cow<'_, str> {
        self.program.to_string_lossy()
    }

    pub(crate) fn try_run(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.command(arguments).output()?)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.try_run(arguments)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "arnia {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.run(&[arguments, &["-o", "json"]].concat())?)?)
    }

    /// Waits until the guest has written this.
    pub(crate) fn expect(&self, name: &str, text: &str, patience: Patience) -> Result<()> {
        let started = Instant::now();
        while !self.run(&["logs", name])?.contains(text) {
            if started.elapsed() > patience.limit() {
                bail!("{text:?} has not come; the log is:\n{}", self.run(&["logs", name])?);
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        Ok(())
    }

    pub(crate) fn kill_daemon(&self) -> Result<()> {
        let pid = self.json(&["info"])?["pid"].as_i64().context("a process")?;
        let pid = rustix::process::Pid::from_raw(pid as i32).context("a process")?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        Ok(())
    }
}

impl Drop for Arnia {
    fn drop(&mut self) {
        let vms = self.json(&["ls"]).unwrap_or_default();
        for vm in vms.as_array().into_iter().flatten() {
            let _ = self.try_run(&["rm", "--force", vm["name"].as_str().unwrap_or_default()]);
        }
        let _ = self.kill_daemon();
        let _ = std::fs::remove_dir_all(&self.home);
    }
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
