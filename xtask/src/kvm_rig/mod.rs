//! A machine with a real `/dev/kvm` on any host: Debian's QEMU emulates a processor with AMD's virtualization
//! and nested paging in software, Debian's kernel runs on it and loads KVM, and our programs run there.
//!
//! ```text
//!   this host ── QEMU (software) ── Debian kernel with kvm_amd ── arnia-vmm --engine kvm ── guest
//! ```
//!
//! Slow, and true. Its limits: there is no VT-x; time in it says nothing; QEMU 7.2 aborts when a guest of the
//! guest writes CR8 while a virtual interrupt is pending.
//!
//! In its short form it lives in an initramfs. In its long form it goes on from a disk (`guests::kvm_rig`) with the programs that the boot
//! tests call and the guests that they boot.
//!
//! It has one processor ([`PROCESSORS`]), whatever its guests have. With several, QEMU 7.2 delivers interrupts to guests twice: VMRUN
//! with an event to inject (AMD64 APM vol. 2, 15.20) leaves the event's number behind as a pending exception of the processor, and if
//! QEMU is made to look around before the next #VMEXIT - because it is another processor's turn, or has an interrupt - it
//! raises that, though the guest has interrupts disabled. A timer interrupt within a timer interrupt waits for ever for a lock that the outer
//! one holds. With one processor, whatever makes QEMU look around is itself a reason for a #VMEXIT.

mod programs;
mod watch;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::guests::cpio::Archive;
use crate::guests::{self, Guests};
use crate::host;
use crate::steps::Tally;
use crate::workspace::Workspace;
use programs::Programs;
use watch::watch;

/// Where things lie inside.
const FOLDER: &str = "rig";
/// Ticks come whatever was missed: now and then an interrupt of the timer stays in the emulated APIC until there is
/// another one, and a kernel that waits for its only timer would wait for ever.
const KERNEL: &str = "console=ttyS0 quiet panic=-1 mitigations=off nowatchdog tsc=reliable no_timer_check nohz=off highres=off";
/// What is emulated: a processor with SVM and nested paging. QEMU's warnings about what it lacks are left out.
const CPU: &str = "EPYC,+svm,+npt";
/// See above for why there is one.
const PROCESSORS: &str = "1";
/// How much slower than the host it is, for time limits of tests.
const PATIENCE: u32 = 10;

/// How much is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// The engine's own tests, and those of processors that change engines.
    Short,
    /// These, and the boot tests.
    Full,
}

impl Depth {
    /// After so long the machine is ended, should its programs not end each other.
    fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Depth::Short => 900,
            Depth::Full => 4 * 3600,
        })
    }

    /// After so many seconds a program in it is ended, and says before where its threads stand.
    fn limit_inside(self) -> u32 {
        match self {
            Depth::Short => 180,
            Depth::Full => 3 * 3600,
        }
    }

    fn memory_mib(self) -> u32 {
        match self {
            Depth::Short => 2048,
            Depth::Full => 4096,
        }
    }
}

/// What the boot tests leave out, by parts of their names.
const LEFT_OUT: &[&str] = &[
    // Real programs compute as they should by the processor that computes for the software engine's tests as well, and take hours here.
    "software::",
    // UEFI firmware writes CR8, and QEMU 7.2 aborts.
    "uefi",
    "copies::firmware_keeps_its_variables",
];

/// Runs the tests in the machine, and counts them.
pub(crate) fn run(workspace: &Workspace, guests: &Guests, depth: Depth, name: Option<&str>) -> Result<Tally> {
    let programs = Programs::build(workspace)?;
    let folder = workspace.target().join("kvm-rig");
    fs::create_dir_all(&folder)?;
    let initrd = folder.join("initramfs.cpio");
    let boots = depth == Depth::Full || name.is_some();
    let places = if boots { places(guests) } else { Vec::new() };
    let mut archive = initramfs(workspace, guests, &programs, &script(depth, name, places))?;
    if boots {
        add_guests(&mut archive, workspace, guests)?;
    }
    // The kernel unpacks archives that stand one behind the other, each over what is there already.
    let busybox = read(&guests.manifest.busybox.initramfs)?;
    guests::write_whole(&initrd, &[busybox, archive.finish()].concat())?;
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .args([
            "-machine",
            "q35",
            "-accel",
            "tcg",
            "-cpu",
            CPU,
            "-smp",
            PROCESSORS,
            "-m",
            &depth.memory_mib().to_string(),
        ])
        .arg("-kernel")
        .arg(&guests.manifest.kernel.image)
        .arg("-initrd")
        .arg(&initrd)
        .args(["-append", KERNEL]);
    if boots {
        let disk = guests::kvm_rig::build(workspace, guests)?;
        // Nothing that is written outlives the machine.
        let drive = format!("file={},format=raw,if=none,id=disk,snapshot=on,cache=unsafe", disk.display());
        qemu.args(["-drive", &drive, "-device", "nvme,drive=disk,serial=rig"]).env("TMPDIR", &folder);
    }
    let log = File::create(folder.join("qemu.log"))?;
    qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let child = qemu.spawn().with_context(|| format!("cannot start `{}`", host::show(&qemu)))?;
    let ended = watch(child, depth.limit(), &folder.join("console.log"))?;
    match ended.status {
        Some(0) => Ok(ended.tally),
        Some(_) if ended.tally.failed > 0 => Ok(ended.tally),
        Some(status) => bail!("a program in the machine ended with status {status}"),
        None => {
            bail!("the machine ended or was ended before its tests were over; look at {}", folder.display())
        }
    }
}

/// What is run inside. Every program has its chance; the status is that of the first that failed.
fn script(depth: Depth, name: Option<&str>, places: Vec<String>) -> String {
    let mut lines = vec![
        format!("export ARNIA_TEST_PROGRAMS=kvm ARNIA_TEST_PATIENCE={PATIENCE} ARNIA_KVM_NEEDED=1"),
        "export ARNIA_VMM=/rig/arnia-vmm ARNIA_TEST_OUTPUT=/tmp/out".to_owned(),
        "export ARNIA_WORKLOADS=/rig/workloads ARNIA_AGENT=/rig/agent".to_owned(),
        "status=0".to_owned(),
        "did() { [ $1 = 0 ] || [ $status != 0 ] || status=$1; }".to_owned(),
    ];
    lines.extend(places);
    let limit = depth.limit_inside();
    let mut run = |command: String| lines.push(format!("./bounded {limit} {command}; did $?"));
    run("./arnia-vmm --probe".to_owned());
    match name {
        Some(name) => run(format!("./boot --test-threads 1 {name}")),
        None => {
            run("./engine --test-threads 1".to_owned());
            run("./switch --test-threads 1".to_owned());
            if depth == Depth::Full {
                let skips: Vec<_> = LEFT_OUT.iter().map(|part| format!(" --skip {part}")).collect();
                run(format!("./boot --test-threads 1{}", skips.concat()));
            }
        }
    }
    lines.push(
        "[ $status = 0 ] || tail -n 40 /tmp/out/*/stderr.log /tmp/out/*/console.log 2> /dev/null".to_owned(),
    );
    lines.push("exit $status".to_owned());
    lines.join("\n") + "\n"
}

/// What lets the tests find the guests of the disk by the names that they have on the host, and the kernel its modules.
fn places(guests: &Guests) -> Vec<String> {
    let manifest = &guests.manifest_path;
    let folder = manifest.parent().unwrap_or(manifest);
    let cache = folder.parent().unwrap_or(folder);
    let above = cache.parent().unwrap_or(cache);
    let modules = guests.manifest.kernel.tree.join("lib/modules").join(&guests.manifest.kernel.release);
    vec![
        format!("mkdir -p {} /lib/modules", quoted(above)),
        format!("ln -s /{} {}", guests::kvm_rig::CACHE, quoted(cache)),
        format!("cp manifest.json {}", quoted(manifest)),
        // For a file system in a file; nothing loads these when they are needed.
        format!("ln -s {} /lib/modules/ && depmod && modprobe -a loop btrfs", quoted(&modules)),
        format!("export ARNIA_GUESTS={}", quoted(manifest)),
    ]
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// What the machine is for, over the busybox guest's initramfs.
fn initramfs(workspace: &Workspace, guests: &Guests, programs: &Programs, script: &str) -> Result<Archive> {
    let kernel = &guests.manifest.kernel;
    let mut archive = Archive::default();
    for folder in ["rig", "rig/modules"] {
        archive.directory(folder);
    }
    let recipe = workspace.root().join("guests/kvm-rig");
    archive.file("init", 0o755, &read(&recipe.join("init"))?);
    for name in ["tests", "bounded"] {
        archive.file(&format!("{FOLDER}/{name}"), 0o755, &read(&recipe.join(name))?);
    }
    archive.file(&format!("{FOLDER}/run"), 0o755, script.as_bytes());
    let modules = kernel.tree.join("lib/modules").join(&kernel.release).join("kernel");
    for module in ["virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-amd.ko"] {
        let name = Path::new(module).file_name().context("a module has a name")?.to_string_lossy();
        archive.file(&format!("{FOLDER}/modules/{name}"), 0o644, &read(&modules.join(module))?);
    }
    for (name, path) in programs.all() {
        archive.file(&format!("{FOLDER}/{name}"), 0o755, &stripped(path)?);
    }
    let libraries = programs.libraries()?;
    let mut folders: BTreeSet<&Path> = libraries.iter().flat_map(|path| path.ancestors().skip(1)).collect();
    folders.remove(Path::new("/"));
    for folder in folders {
        archive.directory(inside(folder));
    }
    for library in &libraries {
        archive.file(inside(library), 0o755, &read(library)?);
    }
    Ok(archive)
}

/// What boot tests need besides what is on the disk: all that is made anew more often than that.
fn add_guests(archive: &mut Archive, workspace: &Workspace, guests: &Guests) -> Result<()> {
    archive.file(&format!("{FOLDER}/manifest.json"), 0o644, &read(&guests.manifest_path)?);
    archive.file(&format!("{FOLDER}/busybox"), 0o755, &read(&guests.manifest.busybox.program)?);
    for (name, from) in [
        ("agent", guests::agent::build(workspace, guests)?),
        ("workloads", guests::workloads::build(workspace, guests)?),
    ] {
        archive.directory(&format!("{FOLDER}/{name}"));
        for path in fs::read_dir(from)?.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            archive.file(&format!("{FOLDER}/{name}/{file}"), 0o755, &read(&path)?);
        }
    }
    Ok(())
}

/// A path of the host as archives have it.
fn inside(path: &Path) -> &str {
    path.to_str().unwrap_or_default().trim_start_matches('/')
}

/// A program without its debugging information, most of its size.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let copy = program.with_extension("stripped");
    host::run(host::command(["strip", "-o"]).arg(&copy).arg(program))?;
    fs::read(&copy).with_context(|| format!("cannot read {}", copy.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_runs_even_when_one_fails() {
        let text = script(Depth::Full, None, vec!["first".to_owned()]);
        assert!(text.find("first\n") < text.find("./bounded"));
        assert!(text.contains("./bounded 10800 ./engine --test-threads 1; did $?\n"));
        assert!(text.contains("./bounded 10800 ./boot --test-threads 1 --skip software:: --skip uefi "));
        let text = script(Depth::Short, Some("x"), Vec::new());
        assert!(text.contains("./bounded 180 ./boot --test-threads 1 x; did $?\n"));
    }
}
