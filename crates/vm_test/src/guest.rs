//! A machine to be: what it boots and what it has, and how each program is told of it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::program::{self, Program};
use crate::{Artifacts, Vm};

/// What the busybox guest does when its tests are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Turns the machine off.
    Poweroff,
    /// Resets it.
    Reboot,
    /// Gives a shell on the console.
    Shell,
    /// Does nothing, for ever.
    Idle,
}

/// A machine to be. Every method returns it, so that a test reads as a list.
#[derive(Clone, Debug)]
pub struct Guest {
    boot: Boot,
    append: Vec<String>,
    disks: Vec<Disk>,
    network: Option<Network>,
    vsock: Option<PathBuf>,
    snapshots: Option<PathBuf>,
    disk_folder: Option<PathBuf>,
    scsi: bool,
    cpus: u32,
    memory_mib: u32,
    reset: OnReset,
    worker_options: Vec<OsString>,
}

/// What a machine starts with.
#[derive(Clone, Debug)]
enum Boot {
    Kernel { kernel: PathBuf, initrd: PathBuf },
    Firmware(Firmware),
}

/// Firmware as Debian's packages have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
}

/// What a reset does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnReset {
    /// The program ends: a guest that panics is not to begin again.
    End,
    /// The machine starts again.
    Reboot,
}

#[derive(Clone, Debug)]
struct Disk {
    path: PathBuf,
    read_only: bool,
}

#[derive(Clone, Debug, Default)]
struct Network {
    /// Host port and guest port, TCP.
    forwards: Vec<(u16, u16)>,
}

/// The guest's context identifier on the virtio socket.
const VSOCK_CID: u32 = 3;

impl Guest {
    /// The busybox initramfs, with one CPU and 512 MiB.
    pub fn busybox(artifacts: &Artifacts) -> Self {
        let (kernel, initrd) = (&artifacts.kernel.image, &artifacts.busybox.initramfs);
        Self::new(kernel, initrd, "console=ttyS0 panic=-1")
    }

    /// Debian from this copy of its disk, with one CPU and 1 GiB.
    pub fn debian(artifacts: &Artifacts, disk: &Path) -> Self {
        let (kernel, initrd) = (&artifacts.debian.kernel, &artifacts.debian.initrd);
        Self::new(kernel, initrd, "root=/dev/vda rw console=ttyS0 panic=-1").memory_mib(1024).disk(disk)
    }

    /// The system with software for tests, with one CPU and 1.5 GiB: runs these tests of the archive and turns itself off.
    pub fn software(artifacts: &Artifacts, archive: &Path, names: &[&str]) -> Self {
        let (kernel, initrd) = (&artifacts.debian.kernel, &artifacts.debian.initrd);
        Self::new(kernel, initrd, "root=/dev/vda ro console=ttyS0 panic=-1 init=/sbin/arnia-init")
            .append(format!("arnia.software={}", names.join(",")))
            .memory_mib(1536)
            .read_only_disk(&artifacts.software.disk)
            .read_only_disk(archive)
    }

    /// Debian from this copy of its bootable disk, started by firmware, with one CPU and 1 GiB.
    pub fn firmware(firmware: Firmware, disk: &Path) -> Self {
        Self::with(Boot::Firmware(firmware), Vec::new()).memory_mib(1024).disk(disk)
    }

    /// Firmware and no disk, with one CPU and 512 MiB.
    pub fn without_disk(firmware: Firmware) -> Self {
        Self::with(Boot::Firmware(firmware), Vec::new())
    }

    /// Another system's kernel and initrd, with this command line, one CPU and 512 MiB.
    pub fn new(kernel: &Path, initrd: &Path, append: &str) -> Self {
        let boot = Boot::Kernel { kernel: kernel.to_owned(), initrd: initrd.to_owned() };
        Self::with(boot, vec![append.to_owned()])
    }

    fn with(boot: Boot, append: Vec<String>) -> Self {
        Self {
            boot,
            append,
            disks: Vec::new(),
            network: None,
            vsock: None,
            snapshots: None,
            disk_folder: None,
            scsi: false,
            cpus: 1,
            memory_mib: 512,
            reset: OnReset::End,
            worker_options: Vec::new(),
        }
    }

    /// Another initramfs or initrd, if it is not firmware that boots.
    pub fn initrd(mut self, path: &Path) -> Self {
        if let Boot::Kernel { initrd, .. } = &mut self.boot {
            *initrd = path.to_owned();
        }
        self
    }

    /// The number of CPUs.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// The size of its memory.
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Lets the machine start again when it is reset. Otherwise the program ends then.
    pub fn reboots(mut self) -> Self {
        self.reset = OnReset::Reboot;
        self
    }

    /// Another word for the kernel command line.
    pub fn append(mut self, word: impl Into<String>) -> Self {
        self.append.push(word.into());
        self
    }

    /// Busybox only: a test to run, or several with commas between (`guests/busybox/tests`).
    pub fn test(self, names: &str) -> Self {
        self.append(format!("arnia.test={names}"))
    }

    /// Busybox only: a variable for the tests.
    pub fn variable(self, name: &str, value: impl std::fmt::Display) -> Self {
        self.append(format!("arnia.{name}={value}"))
    }

    /// Busybox only: what follows the tests.
    pub fn after(self, after: After) -> Self {
        let word = match after {
            After::Poweroff => "poweroff",
            After::Reboot => "reboot",
            After::Shell => "shell",
            After::Idle => "idle",
        };
        self.append(format!("arnia.end={word}"))
    }

    /// Another disk: raw, or qcow2 if its name ends so.
    pub fn disk(mut self, path: &Path) -> Self {
        self.disks.push(Disk { path: path.to_owned(), read_only: false });
        self
    }

    /// Another disk, raw, that the guest may not write.
    pub fn read_only_disk(mut self, path: &Path) -> Self {
        self.disks.push(Disk { path: path.to_owned(), read_only: true });
        self
    }

    /// A network card behind NAT.
    pub fn network(mut self) -> Self {
        self.network.get_or_insert_default();
        self
    }

    /// A port of the host's loopback that leads to a TCP port of the guest.
    pub fn forward(mut self, host_port: u16, guest_port: u16) -> Self {
        self.network.get_or_insert_default().forwards.push((host_port, guest_port));
        self
    }

    /// A virtio socket, whose host side is this Unix socket. Not under QEMU.
    pub fn vsock(mut self, socket: &Path) -> Self {
        self.vsock = Some(socket.to_owned());
        self
    }

    /// Snapshots can be made in this folder. Not under QEMU.
    pub fn snapshots(mut self, folder: &Path) -> Self {
        self.snapshots = Some(folder.to_owned());
        self
    }

    /// Another option of the worker, with its value. Not under QEMU.
    pub fn worker_option(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.worker_options.extend([name.into(), value.into()]);
        self
    }

    /// Disks are SCSI disks. Not under QEMU.
    pub fn scsi(mut self) -> Self {
        self.scsi = true;
        self
    }

    /// Overlays of disks can be made in this folder. Not under QEMU.
    pub fn disk_folder(mut self, folder: &Path) -> Self {
        self.disk_folder = Some(folder.to_owned());
        self
    }

    /// The same machine on another copy of its first disk, to run beside it: without what only one
    /// machine can have, such as ports of the host.
    pub(crate) fn beside(&self, disk: &Path) -> Self {
        let mut other = self.clone();
        if let Some(first) = other.disks.first_mut() {
            first.path = disk.to_owned();
        }
        if let Some(network) = &mut other.network {
            network.forwards.clear();
        }
        other.vsock = None;
        other
    }

    /// Starts the machine. `folder` gets its console, messages and sockets.
    ///
    /// # Errors
    /// If the program cannot be started. What it thinks of its options comes out of [`Vm::wait`].
    pub fn start(&self, program: &Program, folder: &Path) -> Result<Vm> {
        Vm::start(self, program, folder)
    }

    /// The whole command.
    pub(crate) fn command(&self, program: &Program, control: &Path) -> Result<Command> {
        Ok(match program {
            Program::Worker(engine) => {
                let mut command = Command::new(program::worker_path()?);
                command.args(self.worker_arguments()).args(["--serial", "stdio"]);
                command.arg("--engine").arg(engine.to_string()).arg("--control").arg(control);
                command
            }
            Program::Qemu => {
                let mut command = Command::new("qemu-system-x86_64");
                command.args(self.qemu_arguments()).args(["-serial", "stdio"]);
                command.arg("-qmp").arg(joined("unix:", control, ",server=on,wait=off"));
                command
            }
        })
    }

    /// What distinguishes what is on the kernel command line, the CPUs and the memory.
    pub(crate) fn fingerprint(&self) -> String {
        format!("{:?} {:?} {} {}", self.boot, self.append, self.cpus, self.memory_mib)
    }

    /// The worker's options for this machine, without engine, console and control.
    pub fn worker_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: OsString| arguments.extend([OsString::from(name), value]);
        match &self.boot {
            Boot::Kernel { kernel, initrd } => {
                option("--kernel", kernel.into());
                option("--initrd", initrd.into());
                option("--append", self.append.join(" ").into());
            }
            Boot::Firmware(Firmware::Bios) => option("--firmware", "bios".into()),
            Boot::Firmware(Firmware::Uefi) => option("--firmware", "uefi".into()),
        }
        option("--cpus", self.cpus.to_string().into());
        option("--memory", format!("{}M", self.memory_mib).into());
        for disk in &self.disks {
            let bus = if self.scsi { ",bus=scsi" } else { "" };
            let access = if disk.read_only { ",ro" } else { "" };
            option("--disk", joined("path=", &disk.path, &format!("{access}{bus}")));
        }
        if let Some(network) = &self.network {
            let forwards = network.forwards.iter().map(|(host, guest)| format!(",forward={host}:{guest}"));
            option("--net", format!("user{}", forwards.collect::<String>()).into());
        }
        if let Some(socket) = &self.vsock {
            option("--vsock", joined(&format!("cid={VSOCK_CID},socket="), socket, ""));
        }
        if let Some(folder) = &self.snapshots {
            option("--snapshots", folder.clone().into());
        }
        if let Some(folder) = &self.disk_folder {
            option("--disk-folder", folder.clone().into());
        }
        if self.reset == OnReset::End {
            arguments.push("--no-reboot".into());
        }
        arguments.extend(self.worker_options.iter().cloned());
        arguments
    }

    fn qemu_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            ["-nodefaults", "-no-user-config", "-display", "none"].map(OsString::from).to_vec();
        let mut option = |name: &str, value: OsString| arguments.extend([OsString::from(name), value]);
        option("-machine", "q35,memory-backend=ram".into());
        option("-object", format!("memory-backend-memfd,id=ram,size={}M", self.memory_mib).into());
        option("-accel", "tcg,thread=multi,tb-size=512".into());
        // All that its translator offers, but for what no engine of ours has either: page tables of
        // five levels, and hardware virtualization inside the guest.
        option("-cpu", "max,-la57,-svm".into());
        option("-smp", self.cpus.to_string().into());
        option("-m", format!("{}M", self.memory_mib).into());
        match &self.boot {
            Boot::Kernel { kernel, initrd } => {
                option("-kernel", kernel.into());
                option("-initrd", initrd.into());
                option("-append", self.append.join(" ").into());
            }
            // The one that it starts with by itself.
            Boot::Firmware(Firmware::Bios) => {}
            Boot::Firmware(Firmware::Uefi) => option("-bios", "/usr/share/ovmf/OVMF.fd".into()),
        }
        option("-device", "virtio-rng-pci".into());
        for (index, disk) in self.disks.iter().enumerate() {
            let read_only = if disk.read_only { ",readonly=on" } else { "" };
            // The worker looks for itself.
            let is_qcow2 = disk.path.extension().is_some_and(|ending| ending == "qcow2");
            let format = if is_qcow2 { "qcow2" } else { "raw" };
            let rest = format!(",format={format},if=none,discard=unmap,id=disk{index}{read_only}");
            option("-drive", joined("file=", &disk.path, &rest));
            option("-device", format!("virtio-blk-pci,drive=disk{index}").into());
        }
        if let Some(network) = &self.network {
            let forwards = network.forwards.iter();
            let forwards = forwards.map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
            option("-netdev", format!("user,id=net{}", forwards.collect::<String>()).into());
            option("-device", "virtio-net-pci,netdev=net".into());
        }
        if self.reset == OnReset::End {
            arguments.push("-no-reboot".into());
        }
        arguments
    }
}

/// An option with a path in it. Both programs take two commas for one that belongs to the path.
fn joined(before: &str, path: &Path, after: &str) -> OsString {
    let path = path.to_string_lossy().replace(',', ",,");
    format!("{before}{path}{after}").into()
}
