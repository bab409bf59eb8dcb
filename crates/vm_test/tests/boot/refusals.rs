//! What the worker does not take: each refusal is exit status 2 and a sentence that names the cause,
//! and changes nothing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vm_test::{After, Case, Exit, Guest, Patience, Shell, Suite, sha256_hex, worker_path};

pub(crate) fn add(suite: &mut Suite) {
    suite.engineless_test("refusals::bad_input", bad_input);
    suite.engineless_test("refusals::disk_of_another_vm", disk_of_another_vm);
}

/// One bad command line.
struct Bad {
    what: &'static str,
    arguments: Vec<OsString>,
    /// Words of which the message must have at least one, whatever the case.
    names: &'static [&'static str],
}

fn bad_input(case: &Case) -> Result<()> {
    let kernel = &case.artifacts.kernel.image;
    let initrd = &case.artifacts.busybox.initramfs;
    let disk = case.empty_disk("disk.img", 1 << 20)?;
    let text = case.path("text");
    fs::write(&text, "This is a text and no kernel, however long one reads on.\n".repeat(200))?;
    let short = case.path("short");
    fs::write(&short, &fs::read(kernel)?[..4096])?;
    let empty = case.path("empty");
    fs::write(&empty, "")?;
    let (absent, folder) = (case.path("absent"), case.folder.clone());

    let bad = |what, names, arguments: &[&dyn AsRef<Path>]| Bad {
        what,
        names,
        arguments: arguments.iter().map(|argument| argument.as_ref().as_os_str().to_owned()).collect(),
    };
    let with = |name: &str, path: &Path| {
        let mut argument = OsString::from(name);
        argument.push(path);
        argument
    };
    let cases = [
        bad("no kernel named", &["--kernel"], &[]),
        bad("a kernel that is not there", &["absent"], &[&"--kernel", &absent]),
        bad("a kernel that is a text", &["text"], &[&"--kernel", &text]),
        bad("a kernel cut short", &["short"], &[&"--kernel", &short]),
        bad("an empty kernel", &["empty"], &[&"--kernel", &empty]),
        bad("a kernel that is a folder", &["directory", "folder", "file"], &[&"--kernel", &folder]),
        bad("an initrd that is not there", &["absent"], &[&"--kernel", kernel, &"--initrd", &absent]),
        bad(
            "too little memory for the kernel",
            &["memory"],
            &[&"--kernel", kernel, &"--initrd", initrd, &"--memory", &"16M"],
        ),
        bad("no memory", &["memory"], &[&"--kernel", kernel, &"--memory", &"0"]),
        bad("memory that is no size", &["memory"], &[&"--kernel", kernel, &"--memory", &"lots"]),
        bad(
            "more memory than there are addresses",
            &["memory"],
            &[&"--kernel", kernel, &"--memory", &"99999999999G"],
        ),
        bad("no CPUs", &["cpus"], &[&"--kernel", kernel, &"--cpus", &"0"]),
        bad("a number of CPUs that is none", &["cpus"], &[&"--kernel", kernel, &"--cpus", &"two"]),
        bad("far too many CPUs", &["cpus"], &[&"--kernel", kernel, &"--cpus", &"100000"]),
        bad("an unknown engine", &["engine"], &[&"--kernel", kernel, &"--engine", &"steam"]),
        bad(
            "a disk that is not there",
            &["absent"],
            &[&"--kernel", kernel, &"--disk", &with("path=", &absent)],
        ),
        bad(
            "a disk that is a folder",
            &["directory", "folder", "file"],
            &[&"--kernel", kernel, &"--disk", &folder],
        ),
        bad("a disk without path", &["missing"], &[&"--kernel", kernel, &"--disk", &"serial=S"]),
        bad(
            "a disk with an unknown option",
            &["colour"],
            &[&"--kernel", kernel, &"--disk", &with("colour=red,path=", &disk)],
        ),
        bad("an unknown network", &["net"], &[&"--kernel", kernel, &"--net", &"pigeon"]),
        bad("a forward that is none", &["forward"], &[&"--kernel", kernel, &"--net", &"user,forward=x:y"]),
        bad(
            "a port beyond the last",
            &["forward"],
            &[&"--kernel", kernel, &"--net", &"user,forward=99999:22"],
        ),
        bad("a MAC address that is none", &["mac"], &[&"--kernel", kernel, &"--net", &"user,mac=hello"]),
        bad("a vsock without socket", &["vsock"], &[&"--kernel", kernel, &"--vsock", &"cid=3"]),
        bad(
            "a control socket in no folder",
            &["control", "absent"],
            &[&"--kernel", kernel, &"--control", &absent.join("x")],
        ),
        bad("an unknown option", &["--frobnicate"], &[&"--kernel", kernel, &"--frobnicate"]),
        bad("a word too many", &["surplus"], &[&"--kernel", kernel, &"surplus"]),
    ];

    let before = contents(&case.folder)?;
    let mut faults = Vec::new();
    for bad in &cases {
        let exit = run_worker(&bad.arguments)?;
        if let Err(error) = check_refusal(bad, &exit) {
            faults.push(format!(
                "{}: {error}\n    it said: {}",
                bad.what,
                exit.stderr.trim().replace('\n', "\n    ")
            ));
        }
    }
    ensure!(
        faults.is_empty(),
        "{} of {} refusals are wrong:\n  {}",
        faults.len(),
        cases.len(),
        faults.join("\n  ")
    );
    ensure!(contents(&case.folder)? == before, "a refusal changed files");
    Ok(())
}

fn check_refusal(bad: &Bad, exit: &Exit) -> Result<()> {
    ensure!(
        exit.code == Some(2),
        "ended with {:?}, signal {:?}, instead of status 2",
        exit.code,
        exit.signal
    );
    let message = exit.stderr.to_lowercase();
    ensure!(!message.contains("panicked"), "it panicked");
    let named = bad.names.iter().any(|name| message.contains(&name.to_lowercase()));
    ensure!(named, "the message has none of {:?}", bad.names);
    ensure!(exit.stderr.lines().count() <= 8, "the message is more than a sentence and a hint");
    Ok(())
}

/// A disk belongs to one machine at a time; the second is refused and the first does not notice.
fn disk_of_another_vm(case: &Case) -> Result<()> {
    let disk = case.empty_disk("disk.img", 1 << 20)?;
    let guest = Guest::busybox(&case.artifacts).disk(&disk).after(After::Shell);
    let mut first = guest.start(&case.program, &case.path("first"))?;
    first.console().expect("ARNIA-SHELL", Patience::Boot)?;
    let mut shell = Shell::take_over(first.console())?;
    shell.check("printf mine | dd of=/dev/vda conv=fsync 2> /dev/null")?;

    let refused = guest.start(&case.program, &case.path("second"))?.wait(Patience::Host)?;
    refused.expect_code(2)?;
    let message = refused.stderr.to_lowercase();
    let told =
        message.contains("disk.img") && ["lock", "use", "another"].iter().any(|word| message.contains(word));
    ensure!(told, "the refusal does not say why: {message}");

    ensure!(
        shell.check("dd if=/dev/vda bs=4 count=1 2> /dev/null")? == "mine",
        "the first machine's disk changed"
    );
    shell.send("poweroff -f")?;
    first.wait(Patience::Shutdown)?.expect_code(0)?;

    // Free again.
    let mut third = guest.start(&case.program, &case.path("third"))?;
    third.console().expect("ARNIA-SHELL", Patience::Boot)?;
    Ok(())
}

/// Runs the worker with just these arguments.
fn run_worker(arguments: &[OsString]) -> Result<Exit> {
    let mut command = Command::new(worker_path()?);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start the worker")?;
    let deadline = Instant::now() + Patience::Host.limit();
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("it did not refuse {arguments:?}, but ran on");
        }
        thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(Exit {
        code: output.status.code(),
        signal: std::os::unix::process::ExitStatusExt::signal(&output.status),
        stderr,
    })
}

fn contents(folder: &Path) -> Result<BTreeMap<OsString, String>> {
    let mut contents = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let sum =
            if entry.file_type()?.is_file() { sha256_hex(&fs::read(entry.path())?) } else { String::new() };
        contents.insert(entry.file_name(), sum);
    }
    Ok(contents)
}
