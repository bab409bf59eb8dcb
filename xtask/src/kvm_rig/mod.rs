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
const MEMORY_MIB: u32 = 2048;
/// See above for why there is one.
const PROCESSORS: &str = "1";
/// How much slower than the host it is, for time limits of tests.
const PATIENCE: u32 = 10;

/// How much is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// The engine's own tests, and those of processors that change engines.
    Short,
    /// These, the boot tests with the busybox guest, and a machine that changes engines.
    Full,
}

impl Depth {
    /// After so long the machine is ended, should its programs not end each other.
    fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Depth::Short => 900,
            Depth::Full => 9000,
        })
    }

    /// After so many seconds a program in it is ended, and says before where its threads stand.
    fn limit_inside(self) -> u32 {
        match self {
            Depth::Short => 180,
            Depth::Full => 3600,
        }
    }

    /// Which boot tests: parts of names.
    fn boot_tests(self) -> &'static [&'static str] {
        match self {
            Depth::Short => &[],
            Depth::Full => &["busybox::", "engines::"],
        }
    }
}

/// Runs the tests in the machine, and counts them.
pub(crate) fn run(workspace: &Workspace, guests: &Guests, depth: Depth, name: Option<&str>) -> Result<Tally> {
    let programs = Programs::build(workspace)?;
    let folder = workspace.target().join("kvm-rig");
    fs::create_dir_all(&folder)?;
    let initrd = folder.join("initramfs.cpio");
    guests::write_whole(&initrd, &initramfs(workspace, guests, &programs, &script(depth, name))?)?;
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
            &MEMORY_MIB.to_string(),
        ])
        .arg("-kernel")
        .arg(&guests.manifest.kernel.image)
        .arg("-initrd")
        .arg(&initrd)
        .args(["-append", KERNEL]);
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
fn script(depth: Depth, name: Option<&str>) -> String {
    let mut lines = vec![
        "export ARNIA_GUESTS=/rig/manifest.json ARNIA_VMM=/rig/arnia-vmm ARNIA_TEST_OUTPUT=/tmp/out"
            .to_owned(),
        "export ARNIA_AGENT=/rig/agent".to_owned(),
        format!("export ARNIA_TEST_PROGRAMS=kvm ARNIA_TEST_PATIENCE={PATIENCE} ARNIA_KVM_NEEDED=1"),
        "status=0".to_owned(),
        "did() { [ $1 = 0 ] || [ $status != 0 ] || status=$1; }".to_owned(),
    ];
    let limit = depth.limit_inside();
    let mut run = |command: String| lines.push(format!("./bounded {limit} {command}; did $?"));
    run("./arnia-vmm --probe".to_owned());
    match name {
        Some(name) => run(format!("./boot --test-threads 1 {name}")),
        None => {
            run("./engine --test-threads 1".to_owned());
            run("./switch --test-threads 1".to_owned());
            for name in depth.boot_tests() {
                run(format!("./boot --test-threads 1 {name}"));
            }
        }
    }
    lines.push(
        "[ $status = 0 ] || tail -n 40 /tmp/out/*/stderr.log /tmp/out/*/console.log 2> /dev/null".to_owned(),
    );
    lines.push("exit $status".to_owned());
    lines.join("\n") + "\n"
}

/// The busybox guest's initramfs, and over it what the machine is for.
fn initramfs(workspace: &Workspace, guests: &Guests, programs: &Programs, script: &str) -> Result<Vec<u8>> {
    let manifest = &guests.manifest;
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let busybox = read(&manifest.busybox.initramfs)?;
    let mut archive = Archive::default();
    for folder in ["rig", "rig/modules"] {
        archive.directory(folder);
    }
    archive.file("init", 0o755, &read(&workspace.root().join("guests/kvm-rig/init"))?);
    let modules = manifest.kernel.tree.join("lib/modules").join(&manifest.kernel.release).join("kernel");
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
    archive.file(&format!("{FOLDER}/vmlinuz"), 0o644, &read(&manifest.kernel.image)?);
    archive.file(&format!("{FOLDER}/initramfs.cpio"), 0o644, &busybox);
    let agent = guests::agent::build(workspace, guests)?;
    archive.directory(&format!("{FOLDER}/agent"));
    archive.file(&format!("{FOLDER}/agent/initramfs.cpio"), 0o644, &read(&agent.join("initramfs.cpio"))?);
    archive.file(&format!("{FOLDER}/manifest.json"), 0o644, description(guests)?.as_bytes());
    archive.file(&format!("{FOLDER}/run"), 0o755, script.as_bytes());
    archive.file(
        &format!("{FOLDER}/bounded"),
        0o755,
        &read(&workspace.root().join("guests/kvm-rig/bounded"))?,
    );
    // The kernel unpacks archives that stand one behind the other, each over what is there already.
    Ok([busybox, archive.finish()].concat())
}

/// The guests as the tests find them inside: the busybox one only. The disks of the others would take hours.
fn description(guests: &Guests) -> Result<String> {
    let mut manifest = serde_json::to_value(&guests.manifest)?;
    manifest["kernel"]["image"] = "/rig/vmlinuz".into();
    manifest["busybox"]["program"] = "/bin/busybox".into();
    manifest["busybox"]["initramfs"] = "/rig/initramfs.cpio".into();
    Ok(manifest.to_string())
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
        let text = script(Depth::Full, None);
        assert!(text.contains("./bounded 3600 ./engine --test-threads 1; did $?\n"));
        assert!(text.contains("./bounded 3600 ./boot --test-threads 1 busybox::; did $?\n"));
        let text = script(Depth::Short, Some("x"));
        assert!(text.contains("./bounded 180 ./boot --test-threads 1 x; did $?\n"));
    }
}
