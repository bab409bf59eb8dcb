//! Disks that change under a running guest, limits that it feels, memory that it gives back, and a host whose
//! disk is full.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use api::ByteSize;
use api::worker::config::RateLimits;
use api::worker::control::{Disk, Memory, Reply, Request};
use vm_test::workloads::Workloads;
use vm_test::{After, Case, Guest, Patience, Shell, Suite, Vm};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

pub(crate) fn add(suite: &mut Suite) {
    suite.worker_test("disks::jobs", jobs);
    suite.worker_test("disks::limits", limits);
    suite.worker_test("disks::limits_of_scsi_disks", scsi_limits);
    suite.worker_test("disks::a_scsi_disk_is_reset_in_the_middle", scsi_reset);
    suite.worker_test("disks::memory", memory);
    suite.worker_test("disks::full_host", full_host);
}

/// A guest with a shell and the program that moves data.
fn start(case: &Case, guest: impl FnOnce(Guest) -> Guest) -> Result<Vm> {
    let workloads = Workloads::from_env()?;
    let base = Guest::busybox(&case.artifacts).initrd(workloads.initramfs()).cpus(case.cpus).memory_mib(512);
    let mut vm = guest(base.after(After::Shell)).start(&case.program, &case.folder)?;
    vm.console().expect("ARNIA-SHELL", Patience::Boot)?;
    Shell::take_over(vm.console())?;
    Ok(vm)
}

fn run(vm: &mut Vm, command: &str) -> Result<String> {
    Shell::resumed(vm.console()).check(command)
}

fn order(vm: &Vm, request: Request) -> Result<()> {
    match vm.control().ask(request)? {
        Reply::Done => Ok(()),
        other => bail!("an order was answered by {other:?}"),
    }
}

fn disk(vm: &Vm) -> Result<Disk> {
    match vm.control().ask(Request::Disks {})? {
        Reply::Disks(disks) => disks.disks.into_iter().next().context("no disk"),
        other => bail!("a request for disks was answered by {other:?}"),
    }
}

fn qemu_img(arguments: &[&str], path: &Path, good: &[i32]) -> Result<()> {
    let output = Command::new("qemu-img").args(arguments).arg(path).output()?;
    let code = output.status.code().unwrap_or(-1);
    ensure!(good.contains(&code), "qemu-img {arguments:?} ended with {code}: {output:?}");
    Ok(())
}

/// Overlay, commit, flatten and resize, with a guest that writes all the while and reads it all back.
fn jobs(case: &Case) -> Result<()> {
    let base = case.empty_disk("base.img", SIZE)?;
    let folder = case.path("disks");
    std::fs::create_dir(&folder)?;
    let mut vm = start(case, |guest| guest.disk(&base).disk_folder(&folder))?;
    let write = |random: &str| {
        format!("workloads --disk /dev/vda write {random} block=16384 threads=2 requests=2048 span=33554432")
    };
    let read = "workloads --disk /dev/vda block=65536 requests=512 span=33554432";
    run(&mut vm, &write(""))?;
    order(&vm, Request::DiskOverlay { disk: 0, path: "one.qcow2".into() })?;
    let before = std::fs::read(&base)?;
    run(&mut vm, &write("random"))?;
    ensure!(std::fs::read(&base)? == before, "the base changed under its overlay");
    let now = disk(&vm)?;
    ensure!(now.chain == [base.clone()] && now.format.as_deref() == Some("qcow2"), "{now:?}");

    // The guest writes in the background until the job is done.
    let noise = "(while [ ! -e /tmp/stop ]; do workloads --disk /dev/vda write random block=16384 threads=2 \
                 requests=256 span=33554432 || exit; done; touch /tmp/stopped) > /tmp/noise 2>&1 &";
    run(&mut vm, noise)?;
    order(&vm, Request::DiskCommit { disk: 0 })?;
    let now = disk(&vm)?;
    ensure!(now.path.as_deref() == Some(&*base) && now.chain.is_empty() && now.job.is_none(), "{now:?}");
    ensure!(!folder.join("one.qcow2").exists(), "the overlay that was committed is still there");
    order(&vm, Request::DiskOverlay { disk: 0, path: folder.join("two.qcow2") })?;
    order(&vm, Request::DiskRebase { disk: 0, backing: None })?;
    run(&mut vm, "touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done; cat /tmp/noise")?;
    run(&mut vm, read)?;

    // Online resize: the guest sees it.
    order(&vm, Request::DiskResize { disk: 0, size: 2 * SIZE })?;
    let sectors = 2 * SIZE / 512;
    run(&mut vm, &format!("while [ $(cat /sys/block/vda/size) != {sectors} ]; do sleep 0.1; done"))?;
    run(&mut vm, "dd if=/dev/zero of=/dev/vda bs=1M seek=100 count=4 oflag=direct 2>/dev/null")?;

    // What cannot be is refused, and nothing changes.
    for refused in [
        Request::DiskResize { disk: 0, size: SIZE },
        Request::DiskResize { disk: 7, size: 4 * SIZE },
        Request::DiskOverlay { disk: 0, path: "two.qcow2".into() },
        Request::DiskOverlay { disk: 0, path: "/etc/three.qcow2".into() },
        Request::DiskOverlay { disk: 0, path: "../three.qcow2".into() },
        Request::DiskCommit { disk: 0 },
        Request::DiskRebase { disk: 0, backing: Some("missing".into()) },
        Request::DiskCancel { disk: 0 },
    ] {
        ensure!(vm.control().ask(refused.clone()).is_err(), "{refused:?} was carried out");
    }
    run(&mut vm, read)?;
    run(&mut vm, "sync; poweroff -f & sleep 1").ok();
    vm.wait(Patience::Shutdown)?.expect_code(0)?;
    qemu_img(&["check", "-q"], &folder.join("two.qcow2"), &[0])?;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

/// How long the guest needs to write so many bytes in requests of 64 KiB.
fn time_to_write(vm: &mut Vm, disk: &str, bytes: u64) -> Result<Duration> {
    let text =
        run(vm, &format!("workloads --disk {disk} write block=65536 requests={} span={SIZE}", bytes >> 16))?;
    let ns = text.split_whitespace().nth(3).and_then(|word| word.parse().ok());
    Ok(Duration::from_nanos(ns.with_context(|| format!("no time in {text:?}"))?))
}

/// A limit is kept, by bytes and by operations, and is gone when it is lifted. `name` is what the guest calls the first disk, on
/// which somebody waits for a limit in the end.
fn keeps_limits(vm: &mut Vm, name: &str) -> Result<()> {
    let free = time_to_write(vm, name, 16 * MIB)?;
    for limits in [
        // Two seconds for 16 MiB, but for the burst; and the same by requests.
        RateLimits { bytes: Some(ByteSize(8 * MIB)), burst_bytes: Some(ByteSize(MIB)), ..Default::default() },
        RateLimits { operations: Some(128), burst_operations: Some(16), ..Default::default() },
    ] {
        order(vm, Request::DiskLimits { disk: 0, limits: limits.clone() })?;
        ensure!(disk(vm)?.limits == limits, "the limits are not told as they were set");
        let limited = time_to_write(vm, name, 16 * MIB)?;
        // It can take longer, never less: (16 - 1) / 8 seconds.
        ensure!(limited >= Duration::from_millis(1800), "{limits:?}: 16 MiB took {limited:?}, free {free:?}");
    }
    // Not for ever: so slow that the test would not end.
    order(vm, Request::DiskLimits { disk: 0, limits: very_slow() })?;
    run(
        vm,
        &format!("(dd if=/dev/zero of={name} bs=64k count=4096 oflag=direct 2>/dev/null; touch /tmp/done) &"),
    )?;
    Ok(())
}

fn very_slow() -> RateLimits {
    RateLimits { operations: Some(1), burst_operations: Some(1), ..Default::default() }
}

/// The limit is lifted, and what has waited for it goes on.
fn lifted(vm: &mut Vm) -> Result<()> {
    order(vm, Request::DiskLimits { disk: 0, limits: RateLimits::default() })?;
    run(vm, "while [ ! -e /tmp/done ]; do sleep 0.1; done").map(drop)
}

/// A guest with two SCSI disks, which it has found.
fn start_with_scsi(case: &Case) -> Result<Vm> {
    let (path, other) = (case.empty_disk("disk.img", SIZE)?, case.empty_disk("other.img", SIZE)?);
    let mut vm = start(case, |guest| guest.disk(&path).disk(&other).scsi())?;
    run(
        &mut vm,
        "modprobe -a virtio_scsi sd_mod; while [ ! -b /dev/sda ] || [ ! -b /dev/sdb ]; do sleep 0.1; done",
    )?;
    Ok(vm)
}

/// Disks of one SCSI host have limits of their own. What waits for one holds up no other, and outlives a pause.
fn scsi_limits(case: &Case) -> Result<()> {
    let mut vm = start_with_scsi(case)?;
    keeps_limits(&mut vm, "/dev/sda")?;
    // Thousands of seconds, if it had to wait behind the other one.
    time_to_write(&mut vm, "/dev/sdb", 16 * MIB)?;
    order(&vm, Request::Pause {})?;
    order(&vm, Request::Resume {})?;
    ensure!(run(&mut vm, "[ -e /tmp/done ] || echo waits")?.trim() == "waits", "the limit is not kept");
    lifted(&mut vm)?;
    let complaints = "dmesg | grep -E '(scsi|sd|virtio)' | grep -iE 'error|abort|reset|fail|timeout' || true";
    let errors = run(&mut vm, complaints)?;
    ensure!(errors.trim().is_empty(), "the guest complains:\n{errors}");
    Ok(())
}

/// Linux resets a disk (SAM-5, LOGICAL UNIT RESET) that has requests in flight, which are held up by a limit. They are
/// answered at once as what they are, the guest asks again, and all of it is on the disk in the end. What is for the other
/// disk goes on.
///
/// By ioctl(2), because Linux' driver never gives up a request to a virtio disk by itself: it waits for as long as it takes.
fn scsi_reset(case: &Case) -> Result<()> {
    const RESETS: u32 = 5;
    let mut vm = start_with_scsi(case)?;
    order(&vm, Request::DiskLimits { disk: 0, limits: very_slow() })?;
    let job =
        |disk: &str| format!("workloads --disk {disk} write block=65536 threads=8 requests=256 span={SIZE}");
    run(
        &mut vm,
        &format!(
            "({} > /tmp/told 2>&1; echo $? > /tmp/done) & ({} > /dev/null; echo $? > /tmp/other) &",
            job("/dev/sda"),
            job("/dev/sdb")
        ),
    )?;
    // The second figure is that of writes. Those that are answered by the reset count as failed, and are asked for again.
    let one = "until [ $(awk '{print $2}' /sys/block/sda/inflight) -ge 4 ]; do sleep 0.1; done
        before=$(($(cat /sys/block/sda/device/ioerr_cnt)))
        workloads --reset /dev/sda && echo $(($(cat /sys/block/sda/device/ioerr_cnt) - before))";
    for reset in 0..RESETS {
        let ended = run(&mut vm, &one.replace('\n', ";")).with_context(|| format!("reset {reset}"))?;
        ensure!(ended.trim().parse::<u32>().is_ok_and(|ended| ended >= 4), "reset {reset} ended {ended:?}");
    }
    let left =
        run(&mut vm, "while [ ! -e /tmp/other ]; do sleep 0.1; done; cat /tmp/other; ls /tmp/done || true")?;
    ensure!(left.lines().next() == Some("0") && !left.contains("/tmp/done\n"), "{left}");
    order(&vm, Request::DiskLimits { disk: 0, limits: RateLimits::default() })?;
    let told = run(&mut vm, "while [ ! -e /tmp/done ]; do sleep 0.1; done; cat /tmp/done /tmp/told")?;
    ensure!(told.starts_with("0\ndisk 256 "), "{told}");
    for disk in ["/dev/sda", "/dev/sdb"] {
        run(&mut vm, &format!("workloads --disk {disk} block=65536 requests=256 span=16777216"))?;
    }
    Ok(())
}

fn limits(case: &Case) -> Result<()> {
    let path = case.empty_disk("disk.img", SIZE)?;
    let mut vm = start(case, |guest| guest.disk(&path))?;
    keeps_limits(&mut vm, "/dev/vda")?;
    lifted(&mut vm)?;
    for bad in [
        RateLimits { operations: Some(0), ..Default::default() },
        RateLimits { burst_bytes: Some(ByteSize(1)), ..Default::default() },
    ] {
        ensure!(vm.control().ask(Request::DiskLimits { disk: 0, limits: bad }).is_err());
    }
    ensure!(
        vm.control().ask(Request::NetLimits { net: 0, limits: RateLimits::default() }).is_err(),
        "no card"
    );
    Ok(())
}

fn memory_of(vm: &Vm) -> Result<Memory> {
    match vm.control().ask(Request::Memory {})? {
        Reply::Memory(memory) => Ok(memory),
        other => bail!("a request for memory was answered by {other:?}"),
    }
}

/// Waits until the guest's memory is as `done` wants it.
fn until(vm: &Vm, what: &str, done: impl Fn(&Memory) -> bool) -> Result<Memory> {
    let deadline = Instant::now() + Patience::Command.limit();
    loop {
        let memory = memory_of(vm)?;
        if done(&memory) {
            return Ok(memory);
        }
        ensure!(Instant::now() < deadline, "{what} does not come: {memory:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What the guest says is free, once it is as `done` wants it: pages that it is just reporting count as used.
fn settled(vm: &mut Vm, what: &str, done: impl Fn(u64) -> bool) -> Result<u64> {
    let deadline = Instant::now() + Patience::Command.limit();
    loop {
        let free = run(vm, "awk '/MemFree/ {print $2}' /proc/meminfo")?.trim().parse::<u64>()? * 1024;
        if done(free) {
            return Ok(free);
        }
        ensure!(Instant::now() < deadline, "{what} does not come: {free}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Bytes of the worker that lie in the host's memory, shared ones too.
fn resident(vm: &Vm) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", vm.pid()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// The balloon takes memory and gives it back; free pages go back to the host by themselves.
fn memory(case: &Case) -> Result<()> {
    let mut vm = start(case, |guest| guest)?;
    let total = until(&vm, "the driver", |memory| memory.balloon_active)?.total_bytes;
    ensure!(total == 512 * MIB, "{total}");

    // Memory that was used and is free again. What the guest never used it may have reported before.
    run(&mut vm, "dd if=/dev/zero of=/tmp/large bs=1M count=200 2>/dev/null")?;
    let (used, before) = (resident(&vm)?, memory_of(&vm)?.reported_bytes);
    run(&mut vm, "rm /tmp/large")?;
    until(&vm, "the report of free pages", |memory| memory.reported_bytes >= before + 150 * MIB)?;
    let freed = resident(&vm)?;
    ensure!(freed + 120 * MIB < used, "the host got nothing back: {used} bytes before, {freed} after");

    // The guest is made smaller, and larger again.
    // Held against what the machine has, since a guest that is just reporting pages has fewer that are free.
    settled(&mut vm, "all that is free", |free| free > total - 200 * MIB)?;
    order(&vm, Request::MemoryTarget { bytes: 256 * MIB })?;
    until(&vm, "the balloon", |memory| {
        memory.current_bytes == 256 * MIB && memory.target_bytes == 256 * MIB
    })?;
    settled(&mut vm, "less that is free", |free| free < total - 256 * MIB)?;
    order(&vm, Request::MemoryTarget { bytes: u64::MAX })?;
    until(&vm, "all memory", |memory| memory.current_bytes == total)?;
    settled(&mut vm, "more that is free", |free| free > total - 200 * MIB)?;
    // What the guest says of itself.
    let memory = until(&vm, "figures", |memory| memory.guest.contains_key("available_bytes"))?;
    ensure!(memory.guest.get("total_bytes").is_some_and(|bytes| *bytes < total), "{memory:?}");
    Ok(())
}

/// A file system of the host that is full: the guest's write fails, what was there stays, the image is sound.
fn full_host(case: &Case) -> Result<()> {
    for name in ["disk.raw", "disk.qcow2"] {
        // One for each: a removed file takes room until the last worker is quite gone.
        let small = case.path(&format!("small-{name}"));
        std::fs::create_dir(&small)?;
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=12m", "none"]).arg(&small).output()?;
        if !mounted.status.success() {
            return Err(vm_test::Unavailable("no file system can be mounted here".into()).into());
        }
        let _unmount = Unmount(&small);
        let disk = small.join(name);
        let format = name.trim_start_matches("disk.");
        qemu_img(&["create", "-q", "-f", format, "-o", "size=64M"], &disk, &[0])?;
        let mut vm = start(case, |guest| guest.disk(&disk))?;
        run(&mut vm, "workloads --disk /dev/vda write flush block=65536 requests=64 span=4194304")?;
        let refused = Shell::resumed(vm.console())
            .run("dd if=/dev/zero of=/dev/vda bs=1M seek=8 count=40 oflag=direct")?;
        ensure!(refused.status != 0 && refused.text.contains("rror"), "{name}: {refused:?}");
        // The guest goes on; what was written before is there.
        let read = "workloads --disk /dev/vda block=65536 requests=64 span=4194304";
        run(&mut vm, read)?;
        drop(vm);
        if format == "qcow2" {
            qemu_img(&["check", "-q"], &disk, &[0, 3])?;
        }
        let mut again = start(case, |guest| guest.disk(&disk))?;
        run(&mut again, read)?;
        drop(again);
    }
    Ok(())
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        // Lazily: a ring of a worker that has ended holds its file a moment longer.
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}
