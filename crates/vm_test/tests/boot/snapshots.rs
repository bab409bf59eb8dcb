//! Snapshots: made of machines that run, and machines that go on from them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use api::worker::control::Request;
use vm_test::{
    After, Case, Exit, Guest, Patience, Shell, Suite, Vm, copy_sparse, debian, free_port, worker_path,
};

pub(crate) fn add(suite: &mut Suite) {
    suite.worker_test("snapshots::bad_ones_are_refused_before_anything_runs", refusals);
    suite.worker_test("snapshots::a_full_disk_leaves_the_machine_running", full_disk);
    suite.worker_test("snapshots::a_kill_leaves_no_half_snapshot", killed);
    suite.worker_matrix("snapshots::busybox_goes_on", &[1, 2], busybox);
    suite.worker_test("snapshots::debian_goes_on", debian_goes_on);
}

const MEMORY_MIB: u32 = 256;

/// A busybox guest with a shell, a disk and a network card, of which snapshots can be made in `folder`.
fn start(case: &Case, disk: &Path, folder: &Path) -> Result<Vm> {
    fs::create_dir_all(folder)?;
    let guest = Guest::busybox(&case.artifacts).cpus(case.cpus).memory_mib(MEMORY_MIB).disk(disk).network();
    let guest = guest.after(After::Shell).snapshots(folder);
    let mut vm = guest.start(&case.program, &case.path("first"))?;
    vm.console().expect("# ", Patience::Boot)?;
    Ok(vm)
}

fn option(name: &str, value: impl AsRef<Path>) -> [OsString; 2] {
    [name.into(), value.as_ref().as_os_str().to_owned()]
}

/// A shell on the console of a machine that goes on: the one of [`Shell::take_over`] is there already.
fn shell(vm: &mut Vm) -> Shell<'_> {
    Shell::resumed(vm.console())
}

/// Everything in the guest goes on: processes, timers, disks and network; several times from one snapshot.
fn busybox(case: &Case) -> Result<()> {
    let folder = case.path("snapshots");
    let disk = case.empty_disk("disk.img", 32 << 20)?;
    let mut vm = start(case, &disk, &folder)?;
    let mut sh = Shell::take_over(vm.console())?;
    sh.check("ifconfig eth0 10.0.2.15 up && route add default gw 10.0.2.2 && ping -c 1 10.0.2.2")?;
    sh.check(
        "dd if=/dev/urandom of=/dev/vda bs=1M count=4 2>/dev/null; sync; sha256sum /dev/vda > /tmp/sum",
    )?;
    // A computation with a result that is known, and a counter that a timer drives.
    sh.check(
        "(i=0; s=0; while [ $i -lt 20000 ]; do i=$((i+1)); s=$((s+i)); done; echo $s > /tmp/result) & true",
    )?;
    sh.check("(n=0; while true; do n=$((n+1)); echo $n > /tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.05; done) & true")?;
    let one = vm.control().snapshot("one", None)?;
    let mut sh = shell(&mut vm);
    sh.check("echo later > /tmp/later; dd if=/dev/urandom of=/dev/vda bs=64k count=3 seek=5 2>/dev/null; sync; sha256sum /dev/vda > /tmp/sum")?;
    let two = vm.control().snapshot("two", Some("one"))?;
    ensure!(two.bytes < one.bytes / 2, "an incremental snapshot is small: {two:?} after {one:?}");
    let copy = case.path("copy.img");
    let port = free_port()?;
    let forward = format!("user,forward={port}:4000");
    let runs: [(&str, &str, Vec<OsString>); 4] = [
        ("one", "1", Vec::new()),
        ("one", "2", option("--disk", &copy).into()),
        ("two", "3", ["--net".into(), forward.into()].into()),
        ("two", "4", option("--snapshots", &folder).into()),
    ];
    let mut copies = Vec::new();
    for (name, number, options) in runs {
        let mut copy = Vm::restore(&case.program, &folder.join(name), &options, &case.path(number))?;
        let mut sh = shell(&mut copy);
        ensure!(sh.check("sha256sum -c /tmp/sum")?.contains("OK"), "{number}: the disk is another");
        ensure!(
            (sh.run("cat /tmp/later")?.status == 0) == (name == "two"),
            "{number}: memory of another time"
        );
        let before: u64 = sh.check("cat /tmp/count")?.trim().parse()?;
        sh.check("sleep 1")?;
        let after: u64 = sh.check("cat /tmp/count")?.trim().parse()?;
        ensure!(after > before && after < before + 100, "{number}: timers: {before} became {after}");
        sh.check("ping -c 1 10.0.2.2")?;
        ensure!(
            sh.check("cat /sys/firmware/acpi/interrupts/gpe00")?.trim().starts_with("1 "),
            "{number}: event"
        );
        let rtc: u64 = sh.check("cat /sys/class/rtc/rtc0/since_epoch")?.trim().parse()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        ensure!(rtc.abs_diff(now) <= 3, "{number}: the real-time clock says {rtc}, it is {now}");
        sh.check("dd if=/dev/zero of=/dev/vda bs=1M count=1 2>/dev/null; sync")?;
        if number == "3" {
            sh.check("(echo through | nc -l -p 4000) & sleep 1")?;
            let mut text = String::new();
            TcpStream::connect((Ipv4Addr::LOCALHOST, port))?.read_to_string(&mut text)?;
            ensure!(text == "through\n", "{number}: the network gave {text:?}");
        }
        copies.push(copy);
    }
    // A copy can be saved in turn, on top of what it came from; and all of them still compute rightly.
    copies[3].control().snapshot("three", Some("two"))?;
    copies.push(Vm::restore(&case.program, &folder.join("three"), &[], &case.path("5"))?);
    for vm in copies.iter_mut().chain([&mut vm]) {
        let result = shell(vm).check("while [ ! -e /tmp/result ]; do sleep 0.1; done; cat /tmp/result")?;
        ensure!(result.trim() == "200010000", "the computation came to {result}");
    }
    // The snapshots are as they were, whatever copies did.
    let mut again = Vm::restore(&case.program, &folder.join("one"), &["--verify".into()], &case.path("6"))?;
    ensure!(shell(&mut again).check("sha256sum -c /tmp/sum")?.contains("OK"), "the snapshot has changed");
    again.control().stop()?;
    again.wait(Patience::Shutdown)?.expect_code(3)
}

/// Stock Debian goes on: services, file system, network, and shuts down in order.
fn debian_goes_on(case: &Case) -> Result<()> {
    let folder = case.path("snapshots");
    fs::create_dir_all(&folder)?;
    let disk = case.path("disk.img");
    copy_sparse(&case.artifacts.debian.disk, &disk)?;
    let guest = Guest::debian(&case.artifacts, &disk).cpus(2).network().snapshots(&folder);
    let mut vm = guest.start(&case.program, &case.path("first"))?;
    let mut sh = debian::log_in(&mut vm, &case.artifacts)?;
    sh.check("dd if=/dev/urandom of=/root/data bs=1M count=8 2>/dev/null; sha256sum /root/data > /root/sum")?;
    sh.check("(while true; do date >> /root/log; sleep 0.1; done) & true")?;
    vm.control().snapshot("login", None)?;
    for number in ["1", "2"] {
        let copy = case.path(&format!("copy{number}.img"));
        let options = option("--disk", &copy);
        let mut vm = Vm::restore(&case.program, &folder.join("login"), &options, &case.path(number))?;
        let mut sh = shell(&mut vm);
        ensure!(
            sh.check("echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /root/sum")?.contains("OK"),
            "the disk"
        );
        ensure!(sh.run("systemctl --failed --no-legend")?.text.trim().is_empty(), "services failed");
        sh.check("a=$(wc -l < /root/log); sleep 1; test $(wc -l < /root/log) -gt $a")?;
        // The guest has no ping: it is made to ask for the router's address anew, which the router answers.
        sh.check("ip neigh flush all; echo | socat -u - UDP:10.0.2.2:9")?;
        sh.check("for i in 1 2 3 4 5; do ip neigh show 10.0.2.2 | grep -q lladdr && break; sleep 1; done; ip neigh show 10.0.2.2 | grep lladdr")?;
        sh.send("systemctl poweroff")?;
        vm.wait(Patience::Shutdown)?.expect_code(0)?;
    }
    Ok(())
}

/// Runs a restore that must fail, and returns what it says.
fn refused(case: &Case, snapshot: &Path, what: &str) -> Result<String> {
    let started = Instant::now();
    let mut vm = Vm::restore(&case.program, snapshot, &[], &case.path("refused"))?;
    let Exit { code, stderr, .. } = vm.wait(Patience::Host)?;
    ensure!(code == Some(2), "{what}: status {code:?} after {:?}:\n{stderr}", started.elapsed());
    ensure!(vm.console().transcript().is_empty(), "{what}: the guest has run");
    Ok(stderr)
}

/// Copies a snapshot, so that it can be spoiled.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy_sparse(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Changes a manifest's text, with a check sum that fits.
fn change_manifest(dir: &Path, from: &str, to: &str) -> Result<()> {
    let path = dir.join("manifest.json");
    let text = fs::read_to_string(&path)?;
    let at = text.find("\"manifest\":").context("a manifest")? + "\"manifest\":".len();
    let inner = &text[at..text.rfind('}').context("its end")?];
    ensure!(inner.contains(from), "{from} is not in {inner}");
    let inner = inner.replacen(from, to, 1);
    let hash = blake3::hash(inner.as_bytes()).to_hex();
    fs::write(path, format!("{{\"arnia_snapshot\":1,\"blake3\":\"{hash}\",\"manifest\":{inner}}}"))?;
    Ok(())
}

type Spoil = fn(&Path) -> Result<()>;

fn flip(path: &Path, at: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x10], at)?;
    Ok(())
}

/// Truncated, corrupted, foreign, newer, or for another processor: refused with the reason.
fn refusals(case: &Case) -> Result<()> {
    let folder = case.path("snapshots");
    let disk = case.empty_disk("disk.img", 4 << 20)?;
    File::options().write(true).open(&disk)?.write_all(&[7; 8192])?;
    let vm = start(case, &disk, &folder)?;
    vm.control().snapshot("base", None)?;
    vm.control().snapshot("next", Some("base"))?;
    drop(vm);
    let (bad, base) = (folder.join("bad"), folder.join("base"));
    let cases: [(&str, &str, Spoil); 13] = [
        ("no manifest", "no manifest.json in it", |dir| Ok(fs::remove_file(dir.join("manifest.json"))?)),
        ("a foreign file", "not one of a snapshot", |dir| {
            Ok(fs::write(dir.join("manifest.json"), "{\"machine\": \"qemu\"}")?)
        }),
        ("a cut manifest", "manifest is damaged", |dir| {
            let path = dir.join("manifest.json");
            Ok(fs::write(&path, &fs::read(&path)?[..1000])?)
        }),
        ("a changed manifest", "check sum", |dir| {
            let path = dir.join("manifest.json");
            Ok(fs::write(&path, fs::read_to_string(&path)?.replace("ttyS0", "ttyS1"))?)
        }),
        ("a newer format", "format 3 of arnia-vmm", |dir| {
            let path = dir.join("manifest.json");
            let text = fs::read_to_string(&path)?;
            Ok(fs::write(&path, text.replace("\"arnia_snapshot\":1", "\"arnia_snapshot\":3"))?)
        }),
        ("cut memory", "memory has", |dir| {
            Ok(File::options().write(true).open(dir.join("memory"))?.set_len(1 << 20)?)
        }),
        ("changed memory", "memory is damaged", |dir| flip(&dir.join("memory"), 0x100_0100)),
        ("missing memory", "memory cannot be opened", |dir| Ok(fs::remove_file(dir.join("memory"))?)),
        ("a changed disk", "disk0.img is damaged", |dir| flip(&dir.join("disk0.img"), 100)),
        ("a changed state", "state.json is damaged", |dir| flip(&dir.join("state.json"), 300)),
        ("a cut state", "state.json has", |dir| {
            Ok(File::options().write(true).open(dir.join("state.json"))?.set_len(1000)?)
        }),
        ("a processor that cannot be", "no time-stamp counter", |dir| {
            change_manifest(dir, "\"tsc_hz\":", "\"tsc_hz\":9999999")
        }),
        // Leaf 7 without what every host lacks: bit 31 of EBX is AVX512VL, which no model has.
        ("a newer processor", "lacks: ", |dir| {
            change_manifest(
                dir,
                "{\"function\":7,\"index\":0,\"registers\":[",
                "{\"function\":7,\"index\":0,\"registers\":[0,4294967295,0,0]},{\"function\":99,\"registers\":[",
            )
        }),
    ];
    for (what, word, spoil) in cases {
        copy(&base, &bad)?;
        spoil(&bad).with_context(|| what.to_owned())?;
        let message = refused(case, &bad, what)?;
        ensure!(message.contains(word), "{what}: {word:?} is not in: {message}");
        ensure!(message.contains("; "), "{what}: no advice in: {message}");
    }
    outside(case, &base)?;
    copy(&folder.join("next"), &bad)?;
    fs::rename(&base, folder.join("gone"))?;
    let message = refused(case, &bad, "a missing parent")?;
    ensure!(message.contains("builds on \"base\", which is missing"), "{message}");
    copy(&folder.join("next"), &base)?;
    let message = refused(case, &bad, "another parent")?;
    ensure!(message.contains("another snapshot"), "{message}");
    let message = refused(case, &case.path("absent"), "no folder")?;
    ensure!(message.contains("--restore"), "{message}");
    Ok(())
}

/// What a snapshot names outside its folder is opened only if it is allowed.
fn outside(case: &Case, snapshot: &Path) -> Result<()> {
    let (kernel, initrd) = (&case.artifacts.kernel.image, &case.artifacts.busybox.initramfs);
    let (kernel, initrd) = (kernel.canonicalize()?, initrd.canonicalize()?);
    let names = |message: &str, path: &Path| message.contains(&format!("--allow {}", path.display()));
    let restore = |allow: &[&Path]| -> Result<String> {
        let mut worker = Command::new(worker_path()?);
        worker.arg("--restore").arg(snapshot).args(["--serial", "none"]);
        for path in allow {
            worker.arg("--allow").arg(path);
        }
        let output = worker.stdin(Stdio::null()).output()?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(2) && message.contains("outside its folder"), "{output:?}");
        Ok(message)
    };
    let message = restore(&[])?;
    ensure!(names(&message, &kernel) && names(&message, &initrd), "{message}");
    let message = restore(&[&kernel])?;
    ensure!(!names(&message, &kernel) && names(&message, &initrd), "{message}");
    Ok(())
}

/// A disk that is full in the middle: the machine runs on, nothing is left, and there is room again.
fn full_disk(case: &Case) -> Result<()> {
    let folder = case.path("small");
    fs::create_dir_all(&folder)?;
    let mount = Mount::tmpfs(&folder, "16m")?;
    let disk = case.empty_disk("disk.img", 4 << 20)?;
    let mut vm = start(case, &disk, &folder)?;
    Shell::take_over(vm.console())?.check("echo alive > /tmp/x")?;
    let error = vm.control().snapshot("one", None).expect_err("there is no room").to_string();
    let error = format!("{error:#}");
    ensure!(error.contains("space") && error.contains("make room"), "{error}");
    ensure!(shell(&mut vm).check("cat /tmp/x")? == "alive", "the machine does not run on");
    ensure!(fs::read_dir(&folder)?.next().is_none(), "something is left of the snapshot");
    vm.control().stop()?;
    vm.wait(Patience::Shutdown)?.expect_code(3)?;
    drop(mount);
    Ok(())
}

/// A file system that goes with it.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(folder: &Path, size: &str) -> Result<Self> {
        let options = format!("size={size}");
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder).status()?;
        ensure!(done.success(), "a small file system cannot be mounted; this test needs root");
        Ok(Self(folder.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A worker that is killed while it makes a snapshot: the older one is whole, the newer one is not there,
/// and the next worker clears up.
fn killed(case: &Case) -> Result<()> {
    let folder = case.path("snapshots");
    let disk = case.empty_disk("disk.img", 256 << 20)?;
    let mut vm = start(case, &disk, &folder)?;
    let mut sh = Shell::take_over(vm.console())?;
    sh.check("dd if=/dev/urandom of=/dev/vda bs=1M count=200 2>/dev/null; sync; echo kept > /tmp/x")?;
    vm.control().snapshot("one", None)?;
    let control = vm.control().clone();
    let request = thread::spawn(move || {
        control.ask(Request::Snapshot { name: "two".into(), parent: None, disks: true })
    });
    let partial = folder.join(".partial-two");
    let deadline = Instant::now() + Patience::Host.limit();
    // In the middle: some of the disk is there.
    while fs::metadata(partial.join("disk0.img")).map_or(0, |data| {
        use std::os::unix::fs::MetadataExt;
        data.blocks()
    }) == 0
    {
        ensure!(Instant::now() < deadline, "the snapshot does not begin");
        thread::sleep(Duration::from_micros(200));
    }
    drop(vm);
    ensure!(request.join().is_ok_and(|answer| answer.is_err()), "it was killed too late to show anything");
    ensure!(partial.exists() && !folder.join("two").exists(), "a half-written snapshot has got its name");

    let mut vm = Vm::restore(
        &case.program,
        &folder.join("one"),
        &[option("--snapshots", &folder).as_slice(), &["--verify".into()]].concat(),
        &case.path("second"),
    )?;
    ensure!(shell(&mut vm).check("cat /tmp/x")? == "kept", "the old snapshot is not as it was");
    ensure!(!partial.exists(), "what the dead worker left is still there");
    vm.control().snapshot("two", Some("one"))?;
    Ok(())
}
