//! The console on a real terminal: keys go to the guest one by one, and the escape key leaves.

use std::fs::File;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use api::worker::exit;
use vm_test::{After, Case, Console, Guest, KillOnDrop, Patience, Suite, worker_path};

/// Ctrl-] and x: end the machine.
const ESCAPE: &str = "\x1dx";

pub(crate) fn add(suite: &mut Suite) {
    suite.engineless_test("terminal::raw_mode_and_escape_key", raw_mode_and_escape_key);
}

fn raw_mode_and_escape_key(case: &Case) -> Result<()> {
    let guest = Guest::busybox(&case.artifacts).after(After::Shell);
    let words = std::iter::once(worker_path()?.into_os_string()).chain(guest.worker_arguments());
    let quoted = words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''")));
    // Afterwards the terminal must be as it was before.
    let line = format!(
        "stty -a > before; {} --engine bt --serial stdio; echo AFTERWARDS $?; stty -a > after",
        quoted.collect::<Vec<_>>().join(" ")
    );
    // `script` gives what it runs a terminal of its own.
    let child = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .current_dir(&case.folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run script(1)")?;
    let mut child = KillOnDrop(child);
    let (input, output) = (child.0.stdin.take(), child.0.stdout.take());
    let log = File::create(case.path("console.log"))?;
    let mut console = Console::new(input.context("piped")?, output.context("piped")?, log);

    console.expect("ARNIA-SHELL", Patience::Boot)?;
    console.expect("# ", Patience::Command)?;
    // Ctrl-C must reach the guest and end nothing but what runs there.
    console.send("sleep 1000\n")?;
    console.expect("\n", Patience::Command)?;
    thread::sleep(Duration::from_secs(1));
    console.send("\x03")?;
    console.expect("# ", Patience::Command)?;
    console.send("echo still'-'here\n")?;
    console.expect("still-here", Patience::Command)?;

    console.send(ESCAPE)?;
    console.expect(&format!("AFTERWARDS {}", exit::STOPPED), Patience::Host)?;
    child.0.wait()?;
    let [before, after] = ["before", "after"].map(|name| std::fs::read_to_string(case.path(name)));
    ensure!(before? == after?, "the terminal's settings were not restored");
    Ok(())
}
