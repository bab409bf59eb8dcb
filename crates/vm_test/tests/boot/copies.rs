//! Copies of a machine: what is a copy's own, and what it shares with the one that it came from.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command as HostCommand;
use std::time::Instant;

use agent_client::Command;
use anyhow::{Context, Result, bail, ensure};
use api::worker::control::{Reply, Request};
use vm_test::agent::{AgentFiles, VsockPath};
use vm_test::{After, Case, Firmware, Guest, Patience, Shell, Suite, Unavailable, Vm, copy_sparse, debian};

pub(crate) fn add(suite: &mut Suite) {
    suite.worker_test("copies::identity_and_end", identity_and_end);
    suite.worker_test("copies::another_tsc_frequency", another_tsc_frequency);
    suite.worker_test("copies::connections_are_reset", connections);
    suite.worker_test("copies::streams_to_the_host_are_reset", streams);
    suite.worker_test("copies::qcow2_disks", qcow2_disks);
    suite.worker_test("copies::layers", layers);
    suite.worker_test("copies::disks_share_blocks_where_the_file_system_can", reflinks);
    suite.worker_test("copies::firmware_keeps_its_variables", firmware_variables);
    suite.worker_test("copies::bios_places_the_generation_id", |case| {
        firmware_generation(case, Firmware::Bios)
    });
    suite.worker_test("copies::uefi_places_the_generation_id", |case| {
        firmware_generation(case, Firmware::Uefi)
    });
}

/// Options of the worker, from words.
fn options<const N: usize>(words: [&dyn AsRef<std::ffi::OsStr>; N]) -> Vec<OsString> {
    words.iter().map(|word| word.as_ref().to_owned()).collect()
}

/// A guest with a shell, with snapshots in the test's folder.
fn start(case: &Case, guest: Guest) -> Result<Vm> {
    fs::create_dir_all(case.path("snapshots"))?;
    let guest = guest.memory_mib(192).after(After::Shell).snapshots(&case.path("snapshots"));
    let mut vm = guest.start(&case.program, &case.path("first"))?;
    vm.console().expect("# ", Patience::Boot)?;
    Shell::take_over(vm.console())?;
    Ok(vm)
}

fn restore(case: &Case, number: &str, options: &[OsString]) -> Result<Vm> {
    Vm::restore(&case.program, &case.path("snapshots/one"), options, &case.path(number))
}

/// How often the guest was told of another generation ID.
fn told(sh: &mut Shell<'_>) -> Result<u64> {
    let counted = sh.check("cat /sys/firmware/acpi/interrupts/gpe00")?;
    Ok(counted.split_whitespace().next().context("a number")?.parse()?)
}

/// The generation ID in the memory of a snapshot that is made of the machine now.
fn generation(case: &Case, vm: &Vm, name: &str) -> Result<[u8; 16]> {
    const AT: u64 = 0x9_fc40;
    vm.control().snapshot(name, None)?;
    let mut id = [0; 16];
    File::open(case.path("snapshots").join(name).join("memory"))?.read_exact_at(&mut id, AT)?;
    Ok(id)
}

/// A guest whose TSC does not run at the host's frequency, as one that comes from another host: its time is right, it
/// finds nothing wrong with its TSC, and a copy goes on without a jump.
fn another_tsc_frequency(case: &Case) -> Result<()> {
    if case.program.to_string() != "bt" {
        return Err(Unavailable("only the software engine gives a TSC of another frequency".into()).into());
    }
    let guest = Guest::busybox(&case.artifacts).cpus(2).worker_option("--tsc-hz", "1234567000");
    let mut vm = start(case, guest)?;
    let said = Shell::resumed(vm.console()).check("dmesg | grep -i tsc")?;
    ensure!(said.contains("1234.567 MHz") && !said.contains("nstable"), "{said}");
    right_rate(&mut vm)?;
    let before = uptime(&mut vm)?;
    vm.control().snapshot("one", None)?;
    drop(vm);
    let mut copy = restore(case, "copy", &[])?;
    let after = uptime(&mut copy)?;
    ensure!(after >= before && after - before < 30.0, "its clock went from {before} to {after} s");
    right_rate(&mut copy)?;
    let said = Shell::resumed(copy.console()).check("dmesg | grep -ic unstable || true")?;
    ensure!(said.trim() == "0", "{said}");
    Ok(())
}

fn uptime(vm: &mut Vm) -> Result<f64> {
    let text = Shell::resumed(vm.console()).check("cat /proc/uptime")?;
    Ok(text.split_whitespace().next().context("a number")?.parse()?)
}

/// The guest's time passes as the host's does.
fn right_rate(vm: &mut Vm) -> Result<()> {
    let (began, first) = (Instant::now(), uptime(vm)?);
    Shell::resumed(vm.console()).check("sleep 3")?;
    let (guest, host) = (uptime(vm)? - first, began.elapsed().as_secs_f64());
    // What the host's measurement contains more than the guest's are two answers.
    ensure!(guest >= 3.0 && guest <= host && host - guest < 2.0, "the guest {guest} s, the host {host} s");
    Ok(())
}

/// The generation ID is another one, unless it was named; the end is reported.
fn identity_and_end(case: &Case) -> Result<()> {
    const ID: &str = "00112233-4455-6677-8899-aabbccddeeff";
    let guest = Guest::busybox(&case.artifacts).worker_option("--generation-id", ID);
    let mut vm = start(case, guest)?;
    ensure!(told(&mut Shell::resumed(vm.console()))? == 0, "told of another ID at first");
    let first = generation(case, &vm, "one")?;
    // As a GUID lies in memory: its first three groups are little-endian.
    ensure!(first[..10] == [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99], "the ID is {first:x?}");
    let report = case.path("report");
    let runs = [
        (options([&"--generation-id", &ID, &"--report", &report]), true),
        (options([]), false),
        (options([&"--generation-id", &"99112233-4455-6677-8899-aabbccddeeff"]), false),
    ];
    let mut seen = vec![first];
    for (index, (mut options, is_same)) in runs.into_iter().enumerate() {
        let name = format!("copy{index}");
        options.extend(["--snapshots".into(), case.path("snapshots").into()]);
        let mut copy = restore(case, &name, &options)?;
        let told = told(&mut Shell::resumed(copy.console()))?;
        ensure!(told == u64::from(!is_same), "{index}: the guest was told {told} times");
        let id = generation(case, &copy, &name)?;
        ensure!((id == first) == is_same, "{index}: the ID is {id:x?}");
        ensure!(is_same || !seen.contains(&id), "{index}: {id:x?} is not new");
        seen.push(id);
        copy.control().stop()?;
        copy.wait(Patience::Shutdown)?.expect_code(3)?;
    }
    let text = fs::read_to_string(&report)?;
    ensure!(text.contains("\"status\":3"), "the report says {text:?}");
    Ok(())
}

/// A TCP connection goes on in the machine that was saved; in a copy the guest is told that it is gone.
fn connections(case: &Case) -> Result<()> {
    let mut vm = start(case, Guest::busybox(&case.artifacts).network())?;
    let mut sh = Shell::resumed(vm.console());
    sh.check("ifconfig eth0 10.0.2.15 up && route add default gw 10.0.2.2")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    sh.check("mkfifo /tmp/in; exec 3<>/tmp/in")?;
    sh.check(&format!("(nc 10.0.2.2 {port} </tmp/in >/tmp/out; echo $? >/tmp/end) & true"))?;
    let (mut stream, _) = listener.accept()?;
    stream.write_all(b"before\n")?;
    sh.check("while ! grep -q before /tmp/out; do sleep 0.1; done")?;
    vm.control().snapshot("one", None)?;
    for number in ["copy1", "copy2"] {
        let mut copy = restore(case, number, &[])?;
        let mut sh = Shell::resumed(copy.console());
        sh.check("test ! -e /tmp/end; echo lost >&3; while [ ! -e /tmp/end ]; do sleep 0.1; done")?;
        // New connections are made as ever.
        sh.check(&format!("(echo again | nc 10.0.2.2 {port} >/dev/null) & true"))?;
        let mut text = String::new();
        BufReader::new(listener.accept()?.0).read_line(&mut text)?;
        ensure!(text == "again\n", "{number}: a new connection gave {text:?}");
    }
    Shell::resumed(vm.console()).check("test ! -e /tmp/end; echo after >&3")?;
    let mut text = String::new();
    BufReader::new(stream).read_line(&mut text)?;
    ensure!(text == "after\n", "the first machine's connection gave {text:?}");
    Ok(())
}

/// Streams of the virtio socket: a copy has its own socket on the host, and its guest takes new streams there.
fn streams(case: &Case) -> Result<()> {
    let (files, vsock, other) = (AgentFiles::from_env()?, VsockPath::unique(), VsockPath::unique());
    fs::create_dir_all(case.path("snapshots"))?;
    let guest = Guest::busybox(&case.artifacts).initrd(&files.initramfs()).vsock(vsock.path());
    let guest = guest.memory_mib(192).snapshots(&case.path("snapshots")).test("agent").after(After::Idle);
    let vm = guest.start(&case.program, &case.path("first"))?;
    let agent = vsock.agent()?;
    agent.run(&Command::shell("echo here > /tmp/x"))?;
    // A stream with a program at its end is open while the snapshot is made.
    let session = agent.exec(&Command::new(["cat"]).params)?;
    vm.control().snapshot("one", None)?;
    let socket = format!("cid=9,socket={}", other.path().display());
    let _copy = restore(case, "copy", &options([&"--vsock", &socket]))?;
    let agent_of_copy = other.agent()?;
    ensure!(agent_of_copy.run(&Command::shell("cat /tmp/x"))?.text() == "here", "the copy is another");
    // The program at the end of the stream was told that nobody is there any more.
    agent_of_copy.run(&Command::shell("while pidof cat; do sleep 0.1; done"))?;
    ensure!(agent.run(&Command::new(["pidof", "cat"]))?.text() != "", "the first machine's stream was cut");
    drop(session);
    ensure!(agent.run(&Command::shell("cat /tmp/x"))?.text() == "here", "the first machine's agent is lost");
    Ok(())
}

fn qemu_img(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Result<()> {
    let done = HostCommand::new("qemu-img").args(arguments).output().context("qemu-img is needed")?;
    ensure!(done.status.success(), "qemu-img: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// A machine on a qcow2 image that stands on another: saved, and copied in each way.
fn qcow2_disks(case: &Case) -> Result<()> {
    let (base, top) = (case.path("base.img"), case.path("top.img"));
    let pattern: Vec<u8> = (0..8u32 << 20).map(|i| (i / 4096 * 31 + i) as u8).collect();
    fs::write(&base, &pattern)?;
    let size = (pattern.len() + (4 << 20)).to_string();
    qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &"-F", &"raw", &"-b", &base, &top, &size])?;
    let mut vm = start(case, Guest::busybox(&case.artifacts).disk(&top))?;
    let mut sh = Shell::resumed(vm.console());
    sh.check("dd if=/dev/urandom of=/dev/vda bs=64k count=3 seek=9 2>/dev/null; sync")?;
    sh.check("sha256sum /dev/vda > /tmp/sum")?;
    vm.control().snapshot("one", None)?;
    let (raw, over) = (case.path("raw.img"), case.path("over.img"));
    let disk = |path: &Path, more: &str| OsString::from(format!("path={}{more}", path.display()));
    let runs = [
        ("scratch", options([])),
        ("raw", options([&"--disk", &disk(&raw, "")])),
        (
            "over",
            options([&"--disk", &disk(&over, ",format=qcow2"), &"--snapshots", &case.path("snapshots")]),
        ),
    ];
    for (name, options) in runs {
        let mut copy = restore(case, name, &options)?;
        let mut sh = Shell::resumed(copy.console());
        let sum = "echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /tmp/sum";
        ensure!(sh.check(sum)?.contains("OK"), "{name}: the disk is another");
        sh.check("dd if=/dev/urandom of=/dev/vda bs=64k count=2 seek=100 2>/dev/null; sync")?;
        if name == "over" {
            sh.check("sha256sum /dev/vda > /tmp/sum")?;
            copy.control().snapshot("two", None)?;
        }
        copy.control().stop()?;
        copy.wait(Patience::Shutdown)?.expect_code(3)?;
    }
    qemu_img(&[&"check", &"-q", &over])?;
    ensure!(fs::metadata(&raw)?.len().to_string() == size, "the copy is no raw disk of that size");
    // A snapshot of a copy that stands on a snapshot stands alone.
    let mut vm = Vm::restore(&case.program, &case.path("snapshots/two"), &[], &case.path("again"))?;
    ensure!(Shell::resumed(vm.console()).check("sha256sum -c /tmp/sum")?.contains("OK"), "two");
    ensure!(fs::read(&base)? == pattern, "the image below was changed");
    let mut refused =
        restore(case, "refused", &options([&"--disk", &disk(&case.path("x.img"), ",format=vdi")]))?;
    let exit = refused.wait(Patience::Host)?;
    ensure!(exit.code == Some(2) && exit.stderr.contains("format=raw"), "{}", exit.stderr);
    Ok(())
}

/// A machine whose disk is kept as layers: no byte of it is copied, whoever stands on it, and not too many pile up.
fn layers(case: &Case) -> Result<()> {
    let folder = case.path("disks");
    fs::create_dir_all(&folder)?;
    let (base, top) = (folder.join("base.img"), folder.join("top.qcow2"));
    let pattern: Vec<u8> = (0..16u32 << 20).map(|i| (i / 4096 * 31 + i) as u8).collect();
    fs::write(&base, &pattern)?;
    // By its name alone: it has to be found from elsewhere, too.
    qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &"-F", &"raw", &"-b", &"base.img", &top])?;
    let mut vm = start(case, Guest::busybox(&case.artifacts).disk(&top).disk_folder(&folder))?;
    let write = |vm: &mut Vm, seek: u32| {
        let mut sh = Shell::resumed(vm.console());
        sh.check(&format!("dd if=/dev/urandom of=/dev/vda bs=64k count=3 seek={seek} 2>/dev/null; sync"))?;
        sh.check("sha256sum /dev/vda > /tmp/sum").map(drop)
    };
    let is_same = |vm: &mut Vm, name: &str| -> Result<()> {
        let told = Shell::resumed(vm.console())
            .check("echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /tmp/sum")
            .with_context(|| format!("{name}: the disk is another"))?;
        ensure!(told.contains("OK"), "{name}: {told}");
        Ok(())
    };
    let layers_in = |folder: &Path| -> Result<usize> {
        let entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
        Ok(entries.iter().filter(|entry| entry.path().extension().is_some_and(|end| end == "layer")).count())
    };
    write(&mut vm, 9)?;
    vm.control().snapshot("one", None)?;
    let one = case.path("snapshots/one");
    ensure!(layers_in(&one)? == 1 && !one.join("disk0.img").exists(), "the disk was copied");
    // The machine goes on, and its copies are as it was.
    write(&mut vm, 20)?;
    let (raw, over) = (case.path("raw.img"), case.path("over.img"));
    let disk = |path: &Path, more: &str| OsString::from(format!("path={}{more}", path.display()));
    let runs = [
        ("scratch", options([])),
        ("raw", options([&"--disk", &disk(&raw, "")])),
        ("over", options([&"--disk", &disk(&over, ",format=qcow2")])),
    ];
    for (name, options) in runs {
        let mut copy = restore(case, name, &options)?;
        is_same(&mut copy, name)?;
        Shell::resumed(copy.console())
            .check("dd if=/dev/zero of=/dev/vda bs=64k count=9 2>/dev/null; sync")?;
        copy.control().stop()?;
        copy.wait(Patience::Shutdown)?.expect_code(3)?;
    }
    is_same(&mut vm, "the first")?;
    // When there are many, the disk takes them in while the guest goes on.
    for number in 2..=8 {
        write(&mut vm, 30 + number)?;
        vm.control().snapshot(&format!("s{number}"), None)?;
    }
    let begun = Instant::now();
    loop {
        let Reply::Disks(told) = vm.control().ask(Request::Disks {})? else { bail!("no disks") };
        if told.disks[0].chain.len() == 1 && told.disks[0].job.is_none() {
            break;
        }
        ensure!(begun.elapsed() < Patience::Command.limit(), "layers stay: {told:?}");
    }
    ensure!(layers_in(&folder)? == 0, "files of layers stay");
    is_same(&mut vm, "the first, with all in one image")?;
    vm.control().stop()?;
    vm.wait(Patience::Shutdown)?.expect_code(3)?;
    qemu_img(&[&"check", &"-q", &top])?;
    ensure!(layers_in(&case.path("snapshots/s8"))? == 8, "the last snapshot has not all its layers");
    let mut copy = Vm::restore(&case.program, &case.path("snapshots/s8"), &[], &case.path("eight"))?;
    is_same(&mut copy, "the last snapshot")?;
    ensure!(fs::read(&base)? == pattern, "the image below was changed");
    Ok(())
}

/// A UEFI machine's variables are part of the snapshot; a copy keeps them in a file of its own.
fn firmware_variables(case: &Case) -> Result<()> {
    let disk = case.path("disk.img");
    copy_sparse(&case.artifacts.bootable.disk, &disk)?;
    fs::create_dir_all(case.path("snapshots"))?;
    let (first, second) = (case.path("first.vars.img"), case.path("second.vars.img"));
    let guest = Guest::firmware(Firmware::Uefi, &disk).snapshots(&case.path("snapshots"));
    let guest = guest.worker_option("--firmware-variables", &first);
    let mut vm = guest.start(&case.program, &case.path("first"))?;
    let mut sh = debian::log_in(&mut vm, &case.artifacts)?;
    // Attributes (non-volatile, for boot and run time), then the value.
    let set = |name: &str, value: &str| {
        let file = format!("/sys/firmware/efi/efivars/{name}-12345678-1234-1234-1234-123456789abc");
        format!("printf '\\007\\000\\000\\000{value}' > {file} && cat {file} | tail -c +5")
    };
    sh.check(
        "mountpoint -q /sys/firmware/efi/efivars || mount -t efivarfs efivarfs /sys/firmware/efi/efivars",
    )?;
    ensure!(
        sh.check(&set("Before", "kept-by-firmware"))?.contains("kept-by-firmware"),
        "no variable was set"
    );
    vm.control().snapshot("one", None)?;
    let disk_of_copy = case.path("copy.img");
    let given = options([&"--disk", &disk_of_copy, &"--firmware-variables", &second]);
    let mut copy = restore(case, "copy", &given)?;
    let mut sh = Shell::resumed(copy.console());
    ensure!(
        sh.check(&set("After", "set-in-the-copy"))?.contains("set-in-the-copy"),
        "no variable in the copy"
    );
    let (first, second) = (fs::read(&first)?, fs::read(&second)?);
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    ensure!(has(&first, "kept-by-firmware") && !has(&first, "set-in-the-copy"), "the first machine's file");
    ensure!(has(&second, "kept-by-firmware") && has(&second, "set-in-the-copy"), "the copy's file");
    sh.send("systemctl poweroff")?;
    copy.wait(Patience::Shutdown)?.expect_code(0)
}

/// Firmware puts the generation ID into memory, tells its system where, and tells the machine, which so can change it
/// in a copy and say so.
fn firmware_generation(case: &Case, firmware: Firmware) -> Result<()> {
    const ID: &str = "00112233-4455-6677-8899-aabbccddeeff";
    let disk = case.path("disk.img");
    copy_sparse(&case.artifacts.bootable.disk, &disk)?;
    fs::create_dir_all(case.path("snapshots"))?;
    let guest = Guest::firmware(firmware, &disk).snapshots(&case.path("snapshots"));
    let mut vm = guest.worker_option("--generation-id", ID).start(&case.program, &case.path("first"))?;
    let mut sh = debian::log_in(&mut vm, &case.artifacts)?;
    ensure!(told(&mut sh)? == 0, "told of another ID at first");
    let device = sh.check("cat /sys/bus/acpi/devices/ARNA0001:00/hid")?;
    ensure!(device == "ARNA0001", "the guest's system has found {device:?}");
    let first = placed_generation(case, &vm, "one")?;
    ensure!(first[..10] == [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99], "the ID is {first:x?}");
    for (name, given, is_same) in
        [("same", vec![OsString::from("--generation-id"), ID.into()], true), ("copy", vec![], false)]
    {
        let mut options = given;
        options.extend(["--snapshots".into(), case.path("snapshots").into()]);
        let mut copy = restore(case, name, &options)?;
        let told = told(&mut Shell::resumed(copy.console()))?;
        ensure!(told == u64::from(!is_same), "{name}: the guest was told {told} times");
        let id = placed_generation(case, &copy, name)?;
        ensure!((id == first) == is_same, "{name}: the ID is {id:x?}");
        copy.control().stop()?;
        copy.wait(Patience::Shutdown)?.expect_code(3)?;
    }
    Ok(())
}

/// The generation ID where the guest's firmware has put it, in a snapshot that is made of the machine now.
fn placed_generation(case: &Case, vm: &Vm, name: &str) -> Result<[u8; 16]> {
    vm.control().snapshot(name, None)?;
    let folder = case.path("snapshots").join(name);
    let state: serde_json::Value = serde_json::from_reader(File::open(folder.join("state.json"))?)?;
    let at = state["generation_id"].as_u64().context("firmware has not said where the ID is")?;
    ensure!(at % 4096 == 40, "it is not in a page of its own: {at:#x}");
    let mut id = [0; 16];
    File::open(folder.join("memory"))?.read_exact_at(&mut id, at)?;
    Ok(id)
}

/// A btrfs in a file, unmounted when dropped.
struct Btrfs(PathBuf);

impl Btrfs {
    fn make(image: &Path, at: &Path) -> Result<Self> {
        File::create(image)?.set_len(512 << 20)?;
        fs::create_dir_all(at)?;
        let made = HostCommand::new("/usr/sbin/mkfs.btrfs").arg("-q").arg(image).output()?;
        ensure!(made.status.success(), "mkfs.btrfs: {}", String::from_utf8_lossy(&made.stderr));
        let mounted = HostCommand::new("mount").args(["-o", "loop"]).arg(image).arg(at).status()?;
        if !mounted.success() {
            bail!(Unavailable("a btrfs in a file cannot be mounted here; it takes root".into()));
        }
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        let _ = HostCommand::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// How many of a file's extents there are, and how many of them it shares with other files.
fn extents(path: &Path) -> Result<(usize, usize)> {
    let output = HostCommand::new("/usr/sbin/filefrag").arg("-v").arg(path).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> =
        text.lines().filter(|line| line.contains("..") && !line.contains("physical")).collect();
    ensure!(!lines.is_empty(), "no extents: {text}");
    Ok((lines.len(), lines.iter().filter(|line| line.contains("shared")).count()))
}

/// Where files can share blocks, a snapshot's disk and a copy's take none of their own, and are what they were.
fn reflinks(case: &Case) -> Result<()> {
    let at = case.path("btrfs");
    let mount = Btrfs::make(&case.path("btrfs.img"), &at)?;
    let (disk, folder, copy) = (at.join("disk.img"), at.join("snapshots"), at.join("copy.img"));
    fs::create_dir_all(&folder)?;
    File::create(&disk)?.set_len(32 << 20)?;
    let guest =
        Guest::busybox(&case.artifacts).disk(&disk).memory_mib(192).after(After::Shell).snapshots(&folder);
    let mut vm = guest.start(&case.program, &case.path("first"))?;
    vm.console().expect("# ", Patience::Boot)?;
    let mut sh = Shell::take_over(vm.console())?;
    sh.check(
        "dd if=/dev/urandom of=/dev/vda bs=1M count=24 2>/dev/null; sync; sha256sum /dev/vda > /tmp/sum",
    )?;
    vm.control().snapshot("one", None)?;
    let (all, shared) = extents(&folder.join("one/disk0.img"))?;
    ensure!(shared == all, "{shared} of {all} extents of the snapshot's disk are shared");
    // The machine goes on writing to its own.
    Shell::resumed(vm.console()).check("dd if=/dev/zero of=/dev/vda bs=1M count=8 2>/dev/null; sync")?;
    let given = options([&"--disk", &copy]);
    let mut vm = Vm::restore(&case.program, &folder.join("one"), &given, &case.path("copy"))?;
    let sum = "echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /tmp/sum";
    ensure!(Shell::resumed(vm.console()).check(sum)?.contains("OK"), "the copy's disk is another");
    let (all, shared) = extents(&copy)?;
    ensure!(shared == all, "{shared} of {all} extents of the copy's disk are shared");
    vm.control().stop()?;
    vm.wait(Patience::Shutdown)?.expect_code(3)?;
    drop(mount);
    Ok(())
}
