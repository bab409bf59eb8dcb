//! `kill -9` of the program while its guest writes to a disk, raw or qcow2: the image stays sound, the guest's
//! file system too, and what the guest had synced is there.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vm_test::{After, Case, Guest, Patience, Shell, Suite};

/// Bytes of each file that the guest writes and syncs.
const FILE_LEN: usize = 300_000;
const DISK: &str = "192M";

pub(crate) fn add(suite: &mut Suite) {
    suite.test("crash::killed_while_writing", |case| killed_while_writing(case, Format::Qcow2));
    suite.test("crash::killed_while_writing_raw", |case| killed_while_writing(case, Format::Raw));
}

/// `ARNIA_CRASH_ROUNDS` asks for more rounds than the few of every day.
fn rounds() -> u64 {
    std::env::var("ARNIA_CRASH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

fn run(program: &str, arguments: &[&str]) -> Result<(i32, String)> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("cannot run {program}; cargo xtask installs it"))?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Ok((output.status.code().unwrap_or(-1), text))
}

fn check(program: &str, arguments: &[&str], good: &[i32]) -> Result<String> {
    let (code, text) = run(program, arguments)?;
    ensure!(good.contains(&code), "{program} {arguments:?} ended with {code}:\n{text}");
    Ok(text)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is text")
}

/// What the disk lies in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Raw,
    Qcow2,
}

fn killed_while_writing(case: &Case, format: Format) -> Result<()> {
    let raw = case.path("disk.raw");
    let image = if format == Format::Raw { raw.clone() } else { case.path("disk.qcow2") };
    let (raw, image) = (text(&raw)?, text(&image)?);
    check("qemu-img", &["create", "-q", "-f", "raw", raw, DISK], &[0])?;
    check("mke2fs", &["-q", "-t", "ext4", raw], &[0])?;
    if format == Format::Qcow2 {
        check("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", raw, image], &[0])?;
    }
    let mut before = 0;
    for round in 0..rounds() {
        // Round by round at other moments, spread evenly.
        let synced = before + 1 + round.wrapping_mul(0x9E37_79B9) % 5;
        write_and_kill(case, Path::new(image), before, synced)?;
        if format == Format::Qcow2 {
            // 3: nothing but leaked clusters.
            check("qemu-img", &["check", "-q", "-f", "qcow2", image], &[0, 3])?;
            check("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", image, raw], &[0])?;
        }
        // 1: the journal was replayed, as after a power failure.
        check("e2fsck", &["-f", "-p", raw], &[0, 1])?;
        for number in 1..=synced {
            let file = run("debugfs", &["-R", &format!("cat /f{number}"), raw])?.1;
            let line = format!("{number}\n");
            let lines = file.matches(&line).count() * line.len();
            ensure!(
                lines >= FILE_LEN - line.len(),
                "round {round}: file {number} of {synced} lost what was synced"
            );
        }
        before = synced;
    }
    Ok(())
}

/// Files up to `before` are there; writes more, and kills the program when `synced` is said to be safe.
fn write_and_kill(case: &Case, image: &Path, before: u64, synced: u64) -> Result<()> {
    let guest = Guest::busybox(&case.artifacts).cpus(1).memory_mib(256).disk(image).after(After::Shell);
    let mut vm = guest.start(&case.program, &case.folder)?;
    let console = vm.console();
    console.expect("ARNIA-SHELL", Patience::Boot)?;
    let mut shell = Shell::take_over(console)?;
    shell.check("mount -t ext4 /dev/vda /mnt")?;
    shell.send(&format!(
        "i={before}; while true; do i=$((i + 1)); yes $i | head -c {FILE_LEN} > /mnt/f$i; sync; echo SYNCED $i.; done"
    ))?;
    vm.console().expect(&format!("SYNCED {synced}."), Patience::Command)?;
    // Ends the program by SIGKILL.
    drop(vm);
    Ok(())
}
