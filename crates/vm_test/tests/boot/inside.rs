//! Inside guests by the program `arnia`: programs with their streams and exit status, files, shutdown.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vm_test::agent::AgentFiles;
use vm_test::{Arnia, Case, HttpServer, Patience, Suite, check_ext4, sha256_hex, system_tool};

pub(crate) fn add(suite: &mut Suite) {
    suite.engineless_test("daemon::programs_and_files_in_a_guest", inside);
    suite.engineless_test("daemon::a_guest_with_qemus_agent", qemus_agent);
    suite.engineless_test("daemon::frozen_for_a_snapshot", frozen_by_ours);
    suite.engineless_test("daemon::frozen_by_qemus_agent_for_a_snapshot", frozen_by_qemus);
}

/// Starts a guest with an agent.
pub(crate) fn start(case: &Case, arnia: &Arnia, name: &str, more: &[&str]) -> Result<()> {
    start_with(case, arnia, name, more, "agent", &AgentFiles::from_env()?.initramfs())
}

/// Starts one that has Debian's package of QEMU's agent and not ours.
fn start_with_qemus(case: &Case, arnia: &Arnia, name: &str, more: &[&str]) -> Result<()> {
    start_with(case, arnia, name, more, "qemu_agent", &AgentFiles::from_env()?.initramfs_with_qemus())
}

fn start_with(
    case: &Case,
    arnia: &Arnia,
    name: &str,
    more: &[&str],
    test: &str,
    initrd: &Path,
) -> Result<()> {
    let kernel = case.artifacts.kernel.image.to_string_lossy().into_owned();
    let initrd = initrd.to_string_lossy();
    let append = format!("console=ttyS0 panic=-1 arnia.test={test} arnia.end=idle");
    let common = ["run", "--kernel", &kernel, "--initrd", &initrd, "--append", &append, "--memory", "256M"];
    arnia.run(&[&common[..], more, &[name]].concat())?;
    Ok(())
}

/// A guest that has Debian's package of QEMU's agent and not ours.
fn qemus_agent(case: &Case) -> Result<()> {
    let arnia = Arnia::new()?;
    start_with_qemus(case, &arnia, "demo", &[])?;
    let patience = Patience::Boot.seconds_to_wait().to_string();
    let first = arnia.run(&["exec", "--wait", &patience, "demo", "--", "hostname"])?;
    ensure!(first == "arnia\n", "the guest calls itself {first:?}");
    let both = arnia.try_run(&["exec", "demo", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure!(both.status.code() == Some(7), "the status is {:?}", both.status);
    ensure!(both.stdout == b"out\n" && both.stderr == b"err\n", "{both:?}");
    let missing = arnia.try_run(&["exec", "demo", "--", "no-such-program"])?;
    ensure!(missing.status.code() == Some(127), "{missing:?}");
    let placed =
        arnia.run(&["exec", "-e", "A=b c", "-w", "/tmp", "demo", "--", "sh", "-c", "echo $A; pwd"])?;
    ensure!(placed == "b c\n/tmp\n", "{placed:?}");
    let mut child = arnia
        .command(&["exec", "-i", "demo", "--", "sha256sum"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let bytes = HttpServer::bytes(300_000);
    child.stdin.take().context("piped")?.write_all(&bytes)?;
    let output = child.wait_with_output()?;
    ensure!(output.stdout.starts_with(sha256_hex(&bytes).as_bytes()), "the guest read something else");
    arnia.run(&[
        "exec",
        "demo",
        "--",
        "sh",
        "-c",
        "ip link set eth0 up; ip address add 10.0.2.15/24 dev eth0",
    ])?;
    let started = Instant::now();
    loop {
        let vm = arnia.json(&["info", "demo"])?;
        let guest = &vm["guest"];
        if guest["agent"].as_str().is_some_and(|agent| agent.starts_with("qemu "))
            && guest["interfaces"].to_string().contains("10.0.2.15/24")
        {
            ensure!(guest["hostname"] == "arnia", "{guest}");
            break;
        }
        ensure!(started.elapsed() < Patience::Boot.limit(), "what it tells of itself: {vm}");
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    let terminal = arnia.try_run(&["exec", "-t", "demo", "--", "sh"])?;
    ensure!(!terminal.status.success(), "a terminal: {terminal:?}");
    files(case, &arnia)?;
    a_long_program_leaves_the_agent_to_others(&arnia)
}

/// While one program runs, others do; a signal of the client reaches it, and so does its end.
fn a_long_program_leaves_the_agent_to_others(arnia: &Arnia) -> Result<()> {
    let script = "trap 'echo caught; exit 5' TERM; touch /tmp/up; while :; do sleep 0.1; done";
    let long = arnia.command(&["exec", "demo", "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn()?;
    let up = "until [ -e /tmp/up ]; do sleep 0.1; done; echo up";
    ensure!(arnia.run(&["exec", "demo", "--", "sh", "-c", up])? == "up\n", "others wait");
    let pid = rustix::process::Pid::from_raw(long.id() as i32).context("a process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let output = long.wait_with_output()?;
    ensure!(output.status.code() == Some(5) && output.stdout == b"caught\n", "{output:?}");
    Ok(())
}

fn frozen_by_ours(case: &Case) -> Result<()> {
    frozen(case, start)
}

fn frozen_by_qemus(case: &Case) -> Result<()> {
    frozen(case, start_with_qemus)
}

/// What the disk of a snapshot holds is whole without the memory if the guest was frozen for it. The guest goes on, both
/// after the snapshot and from it.
fn frozen(case: &Case, start: fn(&Case, &Arnia, &str, &[&str]) -> Result<()>) -> Result<()> {
    let arnia = Arnia::new()?;
    arnia.run(&["volume", "create", "data", "64M"])?;
    start(case, &arnia, "demo", &["--volume", "data"])?;
    let patience = Patience::Boot.seconds_to_wait().to_string();
    let shell = |line: &str| arnia.run(&["exec", "--wait", &patience, "demo", "--", "sh", "-c", line]);
    // Busybox makes ext2; the journal that tells whether a file system is whole is the host's to make.
    shell("hostname")?;
    arnia.run(&["stop", "--force", "demo"])?;
    let volume = file_of(&arnia.home().join("data/pools"), "")?;
    let made = system_tool("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&volume).status()?;
    ensure!(made.success(), "mke2fs failed");
    arnia.run(&["start", "demo"])?;
    shell("mkdir /data && mount -t ext4 /dev/vda /data && seq 1 100000 > /data/one")?;
    arnia.run(&["snapshot", "create", "demo", "whole", "--freeze"])?;
    let disk = disk_of_snapshot(&arnia)?;
    check_ext4(&disk)?;
    let shown = system_tool("debugfs").args(["-R", "cat /one"]).arg(&disk).output()?;
    ensure!(shown.stdout.ends_with(b"\n100000\n"), "what was written before is not on the disk");
    ensure!(shell("echo x > /data/two && sync && ls /data | wc -l")? == "3\n", "it did not thaw");

    arnia.run(&["snapshot", "restore", "demo", "whole"])?;
    // Frozen when it was saved: whoever asks for something waits until it has thawed.
    let restored = shell("echo x > /data/three && sync && ls /data | wc -l")?;
    ensure!(restored == "3\n", "restored, it did not thaw");
    arnia.run(&["snapshot", "rm", "demo", "whole"])?;
    // The same without, so that what is looked at above can be otherwise.
    arnia.run(&["snapshot", "create", "demo", "as-it-is"])?;
    ensure!(
        check_ext4(&disk_of_snapshot(&arnia)?).is_err(),
        "this one needs its memory, and looks as if it did not"
    );

    // Without an agent there is no such snapshot, and nothing of one.
    shell("umount /data; killall arnia-agent qemu-ga; true").ok();
    let refused = arnia.try_run(&["snapshot", "create", "demo", "none", "--freeze"])?;
    ensure!(!refused.status.success(), "{refused:?}");
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("agent"), "{refused:?}");
    let left = arnia.json(&["snapshot", "ls", "demo"])?;
    ensure!(left.as_array().map(Vec::len) == Some(1), "{left}");
    Ok(())
}

/// The only file below a folder whose name begins so.
fn file_of(folder: &Path, name: &str) -> Result<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else if path.file_name().is_some_and(|found| found.to_string_lossy().starts_with(name)) {
                return Ok(path);
            }
        }
    }
    anyhow::bail!("there is no {name} below {}", folder.display())
}

fn disk_of_snapshot(arnia: &Arnia) -> Result<PathBuf> {
    file_of(arnia.home(), "disk0.img")
}

fn inside(case: &Case) -> Result<()> {
    let arnia = Arnia::new()?;
    start(case, &arnia, "demo", &[])?;
    let patience = Patience::Boot.seconds_to_wait().to_string();
    // The guest is still starting: the command waits for it.
    let first = arnia.run(&["exec", "--wait", &patience, "demo", "--", "hostname"])?;
    ensure!(first == "arnia\n", "the guest calls itself {first:?}");
    streams_and_status(&arnia)?;
    a_terminal(case, &arnia)?;
    files(case, &arnia)?;
    what_it_is(&arnia)?;
    // Busybox' guest does not listen to its power button; by its agent it shuts down.
    arnia.run(&["stop", "--timeout", &Patience::Shutdown.limit().as_secs().to_string(), "demo"])?;
    let vm = arnia.json(&["info", "demo"])?;
    ensure!(vm["reason"] == "the guest powered off" && vm["guest"].is_null(), "{vm}");
    let off = arnia.try_run(&["exec", "demo", "--", "true"])?;
    ensure!(off.status.code() == Some(125), "a machine that is off: {off:?}");
    ensure!(String::from_utf8_lossy(&off.stderr).contains("arnia start demo"), "{off:?}");
    Ok(())
}

fn streams_and_status(arnia: &Arnia) -> Result<()> {
    let both = arnia.try_run(&["exec", "demo", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure!(both.status.code() == Some(7), "the status is {:?}", both.status);
    ensure!(both.stdout == b"out\n" && both.stderr == b"err\n", "{both:?}");
    let killed = arnia.try_run(&["exec", "demo", "--", "sh", "-c", "kill -9 $$"])?;
    ensure!(killed.status.code() == Some(128 + 9), "the status is {:?}", killed.status);
    let missing = arnia.try_run(&["exec", "demo", "--", "no-such-program"])?;
    ensure!(missing.status.code() == Some(127), "{missing:?}");
    let variable =
        arnia.run(&["exec", "-e", "A=b c", "-w", "/tmp", "demo", "--", "sh", "-c", "echo $A; pwd"])?;
    ensure!(variable == "b c\n/tmp\n", "{variable:?}");

    // More than all windows and buffers on the way.
    let bytes = HttpServer::bytes(3_000_000);
    let mut child = arnia
        .command(&["exec", "-i", "demo", "--", "sh", "-c", "sleep 1; sha256sum"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("piped")?;
    let writer = std::thread::spawn({
        let bytes = bytes.clone();
        move || input.write_all(&bytes)
    });
    let output = child.wait_with_output()?;
    writer.join().map_err(|_| anyhow::anyhow!("the writer failed"))??;
    ensure!(output.stdout.starts_with(sha256_hex(&bytes).as_bytes()), "the guest read something else");
    let long = arnia.run(&["exec", "demo", "--", "seq", "1", "200000"])?;
    ensure!(
        long == (1..=200_000).map(|n| format!("{n}\n")).collect::<String>(),
        "the host read something else"
    );

    // A signal reaches a program that does not read its input, whatever lies before it.
    let mut child = arnia
        .command(&[
            "exec",
            "-i",
            "demo",
            "--",
            "sh",
            "-c",
            "trap 'echo caught; exit 5' TERM; echo up; sleep 9999 & wait",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("piped")?;
    let mut output = std::io::BufReader::new(child.stdout.take().context("piped")?);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut output, &mut line)?;
    // As much as is taken from us without anybody reading it.
    let writer = std::thread::spawn(move || input.write_all(&vec![b'x'; 1 << 20]));
    let pid = rustix::process::Pid::from_raw(child.id() as i32).context("a process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    std::io::BufRead::read_line(&mut output, &mut line)?;
    ensure!(line == "up\ncaught\n", "{line:?}");
    ensure!(child.wait()?.code() == Some(5), "its status");
    drop(writer.join());

    let piped = {
        let mut shell = arnia.command(&["shell", "demo"]);
        let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        child.stdin.take().context("piped")?.write_all(b"echo $((6 * 7))\nexit 3\n")?;
        child.wait_with_output()?
    };
    ensure!(piped.stdout == b"42\n" && piped.status.code() == Some(3), "{piped:?}");
    Ok(())
}

/// `script` gives what it runs a terminal of its own.
fn a_terminal(case: &Case, arnia: &Arnia) -> Result<()> {
    let line = format!(
        "stty rows 33 cols 99; '{}' exec -it demo -- sh -c 'tty > /dev/null && stty size; read x; echo got-$x; exit 4'; echo AFTER $?",
        arnia.program()
    );
    let mut script = std::process::Command::new("script");
    script.args(["--quiet", "--command", &line, "/dev/null"]).current_dir(&case.folder);
    let mut child = script
        .env("ARNIA_HOME", arnia.home())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run script(1)")?;
    let mut input = child.stdin.take().context("piped")?;
    let mut output = std::io::BufReader::new(child.stdout.take().context("piped")?);
    let mut text = String::new();
    // Typed only when the program reads: what comes before would be echoed by the host's terminal.
    while !text.contains("33 99") && std::io::BufRead::read_line(&mut output, &mut text)? > 0 {}
    input.write_all(b"hello\r")?;
    while !text.contains("AFTER") && std::io::BufRead::read_line(&mut output, &mut text)? > 0 {}
    ensure!(text.contains("got-hello") && text.contains("AFTER 4"), "the terminal showed {text:?}");
    drop(input);
    child.wait()?;
    Ok(())
}

fn files(case: &Case, arnia: &Arnia) -> Result<()> {
    let (from, to) = (case.path("from"), case.path("to"));
    std::fs::create_dir_all(from.join("deep/er"))?;
    std::fs::write(from.join("deep/er/one"), "1")?;
    std::fs::write(from.join("deep/empty"), "")?;
    std::fs::write(from.join("x".repeat(200)), HttpServer::bytes(1_500_000))?;
    std::os::unix::fs::symlink("deep/er/one", from.join("link"))?;
    std::fs::set_permissions(from.join("deep/er/one"), std::os::unix::fs::PermissionsExt::from_mode(0o640))?;
    let (source, target) = (from.to_string_lossy(), to.to_string_lossy());
    arnia.run(&["cp", &source, "demo:/tmp/tree"])?;
    let listed = arnia.run(&[
        "exec",
        "-w",
        "/tmp/tree",
        "demo",
        "--",
        "sh",
        "-c",
        "stat -c '%a %N' link deep/er/one",
    ])?;
    ensure!(listed == "777 'link' -> 'deep/er/one'\n640 deep/er/one\n", "the guest has {listed:?}");
    arnia.run(&["cp", "demo:/tmp/tree", &target])?;
    let same =
        std::process::Command::new("diff").args(["-r", "--no-dereference"]).args([&from, &to]).status()?;
    ensure!(same.success(), "what came back differs");
    // Into a folder that is there; a single file; and what does not exist.
    let file = from.join("deep/er/one");
    arnia.run(&["cp", &file.to_string_lossy(), "demo:/tmp/"])?;
    ensure!(arnia.run(&["exec", "demo", "--", "cat", "/tmp/one"])? == "1", "the file did not come");
    arnia.run(&["cp", "demo:/tmp/one", &to.join("deep").to_string_lossy()])?;
    ensure!(std::fs::read(to.join("deep/one"))? == b"1", "the file did not come back");
    let missing = arnia.try_run(&["cp", "demo:/nothing", &target])?;
    ensure!(missing.status.code() == Some(3), "{missing:?}");
    let refused = arnia.try_run(&["cp", &source, "demo:/proc/x"])?;
    ensure!(!refused.status.success(), "/proc takes no files: {refused:?}");
    // A guest's link that leads out is copied, and nothing is written through it.
    let trap = "mkdir /tmp/trap; ln -s /tmp/arnia-must-not-exist /tmp/trap/a; ln -s a /tmp/trap/b; echo x > /tmp/trap/c";
    arnia.run(&["exec", "demo", "--", "sh", "-c", trap])?;
    arnia.run(&["cp", "demo:/tmp/trap", &target])?;
    ensure!(to.join("trap/a").is_symlink() && std::fs::read(to.join("trap/c"))? == b"x\n", "the copy");
    ensure!(!std::path::Path::new("/tmp/arnia-must-not-exist").exists(), "it was written through a link");
    Ok(())
}

fn what_it_is(arnia: &Arnia) -> Result<()> {
    let started = Instant::now();
    loop {
        let vm = arnia.json(&["info", "demo"])?;
        if vm["guest"]["hostname"] == "arnia" {
            ensure!(vm["guest"]["agent"].as_str().is_some_and(|agent| agent.starts_with("arnia ")), "{vm}");
            break;
        }
        ensure!(started.elapsed() < Patience::Command.limit(), "the daemon does not see the agent: {vm}");
    }
    Ok(())
}
