//! What a worker is started with: all of a virtual machine.
//!
//! The same content can be given on the command line of `arnia-vmm`. A file looks like this:
//!
//! ```json
//! {
//!   "kernel": "vmlinuz", "initrd": "initrd.img", "append": "console=ttyS0 root=/dev/vda1",
//!   "cpus": 2, "memory": "1G",
//!   "disks": [{"path": "debian.img"}],
//!   "nets": [{"user": {"forward": ["2222:22"]}}],
//!   "control": "vm.sock"
//! }
//! ```

use crate::ByteSize;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A virtual machine as its user describes it. Only the kernel or the firmware is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// A name for people. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The machine's UUID, as text. Default: a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The VM Generation ID, a UUID. Default: a new one at each start. Whoever knows that a machine goes on
    /// as the only one of its kind names the same again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation_id: Option<String>,
    /// Kernel: a bzImage or an ELF executable. Either this or firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Firmware, which finds something to boot on the machine's disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<FirmwareImage>,
    /// File in which UEFI firmware keeps its variables: a copy of the firmware's template, made if it is
    /// not there. Default: none, and variables last as long as the worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_variables: Option<PathBuf>,
    /// How to enter the kernel.
    #[serde(default)]
    pub boot: BootMethod,
    /// Initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default)]
    pub append: String,
    /// Number of vCPUs.
    #[serde(default = "default_cpus")]
    pub cpus: u32,
    /// What the processors can do: `x86-64-v2`, `x86-64-v3`, `host`. Default: the newest that the engine
    /// gives here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// Guest memory.
    #[serde(default = "default_memory")]
    pub memory: ByteSize,
    /// What executes guest code.
    #[serde(default)]
    pub engine: EngineChoice,
    /// How the software engine works; nothing to an engine that has hardware.
    #[serde(default, skip_serializing_if = "JitConfig::is_default")]
    pub jit: JitConfig,
    /// Whether the named engine is used even where it was found to be of no use.
    #[serde(default)]
    pub force_engine: bool,
    /// Whether the guest may use hardware virtualization itself, where engine and host let it.
    #[serde(default)]
    pub nested: bool,
    /// Frequency of the guest's time-stamp counter in Hz. Default: the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tsc_hz: Option<u64>,
    /// Disks, in the order in which the guest sees them.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network cards.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// CD-ROM drives, at an AHCI controller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cdroms: Vec<CdromConfig>,
    /// What firmware tries to boot, in this order; what is not named comes after. Default: disks, then discs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub boot_order: Vec<BootKind>,
    /// The display adapter, and a keyboard with it. Default: one in a machine with firmware, none with a kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display: Option<Display>,
    /// Whether the machine has a memory balloon, which also gives free pages back to the host.
    #[serde(default = "default_balloon")]
    pub balloon: bool,
    /// Sockets between host and guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// Unix socket that leads to the serial port of QEMU's guest agent; there is no such port by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_agent: Option<PathBuf>,
    /// Folders of the host that the guest sees. With a list, also an empty one, there is a device for them; there is none
    /// by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<Vec<ShareConfig>>,
    /// Where the first serial port leads. Default: the terminal.
    #[serde(default = "default_serial")]
    pub serial: CharDevice,
    /// Where the virtio console leads; there is none by default.
    #[serde(default = "default_console")]
    pub console: CharDevice,
    /// Path of the control socket; there is none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
    /// Folder for snapshots, which the control socket is asked for; without it there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<PathBuf>,
    /// Folder in which the control socket can ask for overlays of disks, and for images to stand on; without it
    /// there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_folder: Option<PathBuf>,
    /// A file into which the worker writes one line of JSON, [`crate::worker::exit::Report`], when the machine
    /// has ended; there is none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<PathBuf>,
    /// What a reset does.
    #[serde(default)]
    pub on_reset: OnReset,
    /// Seconds that the guest has to power off after a signal has asked for it, 0 to 86400; then the machine is ended. Default:
    /// [`STOP_TIMEOUT_DEFAULT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<u32>,
    /// Whether there is a port (0xf4) by which the guest ends the worker with a status of its choice.
    #[serde(default)]
    pub debug_exit: bool,
    /// Whether the worker gives up its rights before guest code runs.
    #[serde(default = "default_sandbox")]
    pub sandbox: bool,
}

/// vCPUs when none are named.
pub const CPUS_DEFAULT: u32 = 1;
/// Guest memory when none is named: enough for a Debian guest.
pub const MEMORY_DEFAULT: ByteSize = ByteSize(1 << 30);

/// Seconds that a guest has to power off after a signal when none are named.
pub const STOP_TIMEOUT_DEFAULT: u32 = 60;
/// Most of them: a day.
pub const STOP_TIMEOUT_MAX: u32 = 86400;

fn default_cpus() -> u32 {
    CPUS_DEFAULT
}
fn default_memory() -> ByteSize {
    MEMORY_DEFAULT
}
fn default_serial() -> CharDevice {
    CharDevice::Stdio
}
fn default_console() -> CharDevice {
    CharDevice::None
}
fn default_sandbox() -> bool {
    true
}
fn default_balloon() -> bool {
    true
}

impl VmConfig {
    /// A machine with this kernel and defaults for all else.
    pub fn new(kernel: impl Into<PathBuf>) -> VmConfig {
        VmConfig {
            name: None,
            uuid: None,
            generation_id: None,
            kernel: Some(kernel.into()),
            firmware: None,
            firmware_variables: None,
            boot: BootMethod::default(),
            initrd: None,
            append: String::new(),
            cpus: default_cpus(),
            cpu_model: None,
            memory: default_memory(),
            engine: EngineChoice::default(),
            jit: JitConfig::default(),
            force_engine: false,
            nested: false,
            tsc_hz: None,
            disks: Vec::new(),
            nets: Vec::new(),
            cdroms: Vec::new(),
            boot_order: Vec::new(),
            display: None,
            balloon: default_balloon(),
            vsock: None,
            qemu_agent: None,
            shares: None,
            serial: default_serial(),
            console: default_console(),
            control: None,
            snapshots: None,
            disk_folder: None,
            report: None,
            on_reset: OnReset::default(),
            stop_timeout: None,
            debug_exit: false,
            sandbox: default_sandbox(),
        }
    }
}

/// A machine as it goes on from a snapshot, as its user describes it: what the snapshot says, but for this.
/// What is not given here and concerns the host alone (where lines lead, sockets) is not taken from the
/// snapshot: several machines may be made of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreConfig {
    /// The snapshot's folder.
    pub snapshot: PathBuf,
    /// Files, and folders of files, that the snapshot may name beside those in its own folder: a kernel, discs, images that
    /// its disks stand on. What a disk of `disks` may stand on is allowed, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<PathBuf>,
    /// Whether all files are read and checked, also those that are known to be as they were written.
    #[serde(default)]
    pub verify: bool,
    /// Whether the machine stands still until it is told to resume.
    #[serde(default)]
    pub paused: bool,
    /// The name. Default: as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The UUID in status. Default: as before. What the guest's firmware tables say stays until it starts
    /// anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The VM Generation ID, a UUID. Default: a new one. A machine that goes on as the only one of its kind
    /// may keep the one that it had: then its guest is not told of a change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation_id: Option<String>,
    /// What executes guest code.
    #[serde(default)]
    pub engine: EngineChoice,
    /// How the software engine works.
    #[serde(default)]
    pub jit: JitConfig,
    /// Disks, one for each of the machine's, or none. A path that does not exist gets a copy of the
    /// snapshot's disk; one that exists is used as it is. Without, what the guest writes to a disk is kept
    /// in a temporary file and lost at the end.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Networks, one for each of the machine's cards, or none: then as before. A card without `mac` keeps
    /// its address.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// Sockets between host and guest; needed if the machine has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// Unix socket that leads to the serial port of QEMU's guest agent; needed if the machine has one, and nothing if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_agent: Option<PathBuf>,
    /// Folders of the host that the guest sees, if the machine has a device for them. None of the snapshot's are taken over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<Vec<ShareConfig>>,
    /// Where the first serial port leads. Default: the terminal.
    #[serde(default = "default_serial")]
    pub serial: CharDevice,
    /// Where the virtio console leads, if the machine has one. Default: nowhere.
    #[serde(default = "default_console")]
    pub console: CharDevice,
    /// Path of the control socket; there is none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
    /// Folder for snapshots of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<PathBuf>,
    /// A file into which the worker writes one line of JSON, [`crate::worker::exit::Report`], when the machine
    /// has ended; there is none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<PathBuf>,
    /// Where UEFI firmware keeps its variables from now on. What they were in the snapshot is written there,
    /// over what may be in it. Default: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_variables: Option<PathBuf>,
    /// Folder for overlays of this machine's disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_folder: Option<PathBuf>,
    /// What a reset does. Default: as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_reset: Option<OnReset>,
    /// Seconds that the guest has to power off after a signal. Default: as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<u32>,
    /// Whether the worker gives up its rights before guest code runs.
    #[serde(default = "default_sandbox")]
    pub sandbox: bool,
}

impl RestoreConfig {
    /// The machine of this snapshot, with defaults for all else.
    pub fn new(snapshot: impl Into<PathBuf>) -> RestoreConfig {
        RestoreConfig {
            snapshot: snapshot.into(),
            allow: Vec::new(),
            verify: false,
            paused: false,
            name: None,
            uuid: None,
            generation_id: None,
            jit: JitConfig::default(),
            engine: EngineChoice::default(),
            disks: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            qemu_agent: None,
            shares: None,
            serial: default_serial(),
            console: default_console(),
            control: None,
            snapshots: None,
            report: None,
            firmware_variables: None,
            disk_folder: None,
            on_reset: None,
            stop_timeout: None,
            sandbox: default_sandbox(),
        }
    }
}

/// A folder of the host that the guest sees: a file server of its own shows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// What it is called among the guest's shares.
    pub name: String,
    /// Where the guest's agent is to put it, as an absolute path.
    pub target: String,
    /// Whether the agent lets nobody write there. Whether anybody can is the server's to say.
    #[serde(default)]
    pub read_only: bool,
    /// Its number, from 1 to 2^24 - 1: the same whenever this machine has this share, and another's at no time.
    pub id: u32,
    /// The server's socket.
    pub socket: PathBuf,
    /// The secret by which the server knows the machine, as 64 hexadecimal digits.
    pub key: String,
}

impl std::fmt::Debug for ShareConfig {
    /// Without the key: it is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ShareConfig { name, target, read_only, id, socket, key: _ } = self;
        f.debug_struct("ShareConfig")
            .field("name", name)
            .field("target", target)
            .field("read_only", read_only)
            .field("id", id)
            .field("socket", socket)
            .finish_non_exhaustive()
    }
}

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum BootMethod {
    /// What suits the file.
    #[default]
    Auto,
    /// Decompressed on the host, entered by the 64-bit Linux protocol.
    Direct,
    /// The bzImage decompresses itself: slower, but keeps the randomisation of the kernel's address.
    SelfDecompressing,
    /// By the PVH entry point.
    Pvh,
}

/// Firmware: `bios` or `uefi` as the host's packages have it, or a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum FirmwareImage {
    /// BIOS.
    Bios,
    /// UEFI.
    Uefi,
    /// This file.
    File(PathBuf),
}

impl From<String> for FirmwareImage {
    fn from(text: String) -> FirmwareImage {
        match text.as_str() {
            "bios" => FirmwareImage::Bios,
            "uefi" => FirmwareImage::Uefi,
            _ => FirmwareImage::File(text.into()),
        }
    }
}

impl From<FirmwareImage> for String {
    fn from(image: FirmwareImage) -> String {
        match image {
            FirmwareImage::Bios => "bios".into(),
            FirmwareImage::Uefi => "uefi".into(),
            FirmwareImage::File(path) => path.to_string_lossy().into_owned(),
        }
    }
}

/// What executes guest code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EngineChoice {
    /// The fastest that works on this host.
    #[default]
    Auto,
    /// Hardware virtualization by KVM.
    Kvm,
    /// Binary translation.
    Bt,
}

/// How the software engine works.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JitConfig {
    /// Whether hot code is translated.
    #[serde(default)]
    pub mode: JitMode,
    /// Most memory for translated code. Default: the engine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<ByteSize>,
    /// How often code is interpreted before it is translated. Default: the engine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hot: Option<u32>,
    /// Whether status flags are right even where only the frame of a fault or an interrupt shows them.
    #[serde(default)]
    pub exact_flags: bool,
    /// Forced modes, for tests of the engine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stress: Vec<JitStress>,
    /// Where the engine tells what it does. Default: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceConfig>,
}

impl JitConfig {
    /// Whether everything is as by default.
    pub fn is_default(&self) -> bool {
        *self == JitConfig::default()
    }
}

/// Whether hot code is translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JitMode {
    /// Yes.
    #[default]
    On,
    /// Everything is interpreted.
    Off,
    /// Translated and interpreted on the same state; the first difference ends the worker.
    Lockstep,
}

/// A forced mode: what happens seldom happens all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JitStress {
    /// The software TLB keeps one page.
    Tlb,
    /// Each switch of page tables forgets all addresses.
    Flush,
}

/// What the engine tells, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceConfig {
    /// The file; what it held is lost.
    pub file: PathBuf,
    /// Which events. Default: traces and exits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<TraceEvents>,
    /// Only code at linear addresses from the first to the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<(u64, u64)>,
    /// Only this vCPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
}

/// Events of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TraceEvents {
    /// Blocks decoded for the interpreter.
    Blocks,
    /// Traces translated, with their instructions.
    Traces,
    /// The host's instructions of each trace, too.
    Host,
    /// Returns from translated code, with the reason.
    Exits,
}

/// A display adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Display {
    /// None, and no keyboard.
    None,
    /// A VGA with a linear frame buffer.
    Vga,
}

/// What a reset of the machine does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OnReset {
    /// The machine starts again.
    #[default]
    Reboot,
    /// The worker ends.
    Exit,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// An image file or a block device.
    pub path: PathBuf,
    /// Its format: `raw`, `qcow2` and so on, or `auto` to find out. Who knows the format should name it: a
    /// disk whose format was found out to be raw refuses what would make it look like another one.
    #[serde(default = "default_format")]
    pub format: String,
    /// Whether the guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// Folders whose files the image may stand on, beside its own folder; or such files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<PathBuf>,
    /// The internal snapshot of a qcow2 image to use, to be read only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// What the guest sees as the disk's serial number: at most 20 printable characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// How the guest reaches it.
    #[serde(default, skip_serializing_if = "DiskBus::is_default")]
    pub bus: DiskBus,
    /// How fast the guest may use it, reading and writing together. Default: as fast as it can.
    #[serde(default, skip_serializing_if = "RateLimits::is_none")]
    pub limits: RateLimits,
}

/// How the guest reaches a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskBus {
    /// A virtio block device: the fastest.
    #[default]
    Virtio,
    /// A SATA disk at an AHCI controller, for guests without virtio drivers.
    Ahci,
    /// A SCSI disk at a virtio SCSI host: many of them take one place on the PCI bus.
    Scsi,
}

impl DiskBus {
    /// Whether it is the default.
    pub fn is_default(&self) -> bool {
        *self == DiskBus::default()
    }
}

/// A CD-ROM drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CdromConfig {
    /// The disc, an ISO image. Default: none, an empty drive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A folder from whose images other discs can be put in while the machine runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<PathBuf>,
    /// Where it is.
    #[serde(default, skip_serializing_if = "CdromBus::is_default")]
    pub bus: CdromBus,
}

/// How the guest reaches a CD-ROM drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CdromBus {
    /// At an AHCI controller: every guest has a driver for it.
    #[default]
    Ahci,
    /// At a virtio SCSI host.
    Scsi,
}

impl CdromBus {
    /// Whether it is the default.
    pub fn is_default(&self) -> bool {
        *self == CdromBus::default()
    }
}

/// A kind of device to boot from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootKind {
    /// Disks, in their order.
    Disk,
    /// CD-ROM drives, in their order.
    Cdrom,
    /// Network cards, in their order.
    Net,
}

/// Limits of rate. Over time the rate is kept; after a rest a burst goes through at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RateLimits {
    /// Bytes of data in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<ByteSize>,
    /// Bytes that may go through at once after a rest. Default: those of a tenth of a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_bytes: Option<ByteSize>,
    /// Requests to a disk, or frames of a card, in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<u64>,
    /// As many may go through at once after a rest. Default: those of a tenth of a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_operations: Option<u64>,
}

impl RateLimits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == RateLimits::default()
    }

    /// Why these limits cannot be, if so: a sentence.
    pub fn fault(&self) -> Option<&'static str> {
        if self.bytes.is_some_and(|bytes| bytes.0 == 0) || self.operations == Some(0) {
            return Some("a rate of 0 would stop it for ever; leave the limit out to have none");
        }
        let bursts = (self.burst_bytes.is_some() && self.bytes.is_none())
            || (self.burst_operations.is_some() && self.operations.is_none());
        bursts.then_some("a burst is given without its rate")
    }
}

/// Finds out what an image is.
pub const FORMAT_AUTO: &str = "auto";

fn default_format() -> String {
    FORMAT_AUTO.into()
}

impl DiskConfig {
    /// A disk that the guest may write, with defaults for all else.
    pub fn new(path: impl Into<PathBuf>) -> DiskConfig {
        DiskConfig {
            path: path.into(),
            format: default_format(),
            read_only: false,
            allow: Vec::new(),
            snapshot: None,
            serial: None,
            bus: DiskBus::default(),
            limits: RateLimits::default(),
        }
    }
}

/// A network card and what it is plugged into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetConfig {
    /// The worker's own network with DHCP, DNS and address translation; needs no rights.
    User(UserNetConfig),
    /// A network of several machines, which a process of its own is the switch of.
    Switch(SwitchNetConfig),
}

impl NetConfig {
    /// The card's MAC address, if one is given.
    pub fn mac(&self) -> Option<&str> {
        match self {
            NetConfig::User(user) => user.mac.as_deref(),
            NetConfig::Switch(switch) => switch.mac.as_deref(),
        }
    }

    /// How fast its frames go.
    pub fn limits(&self) -> &RateLimits {
        match self {
            NetConfig::User(user) => &user.limits,
            NetConfig::Switch(switch) => &switch.limits,
        }
    }

    /// Gives the card an address if it has none.
    pub fn default_mac(&mut self, mac: &str) {
        let own = match self {
            NetConfig::User(user) => &mut user.mac,
            NetConfig::Switch(switch) => &mut switch.mac,
        };
        own.get_or_insert_with(|| mac.to_owned());
    }
}

/// The worker's own network: what QEMU calls user networking. The default is 10.0.2.0/24 with the gateway
/// at .2, the name server at .3 and the guest at .15.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserNetConfig {
    /// The card's MAC address, as text. Default: a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Ports of the host that lead into the guest, each `[ADDRESS:]PORT:[GUEST:]PORT[/tcp|/udp]`. Without
    /// an address the host listens on 127.0.0.1 only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forward: Vec<String>,
    /// Whether the guest is kept from opening connections. Forwarded ports still lead in.
    #[serde(default)]
    pub restrict: bool,
    /// The guest's network, like `10.0.2.0/24`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// The name that DHCP gives the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// How fast frames go, in each direction. Default: as fast as they can.
    #[serde(default, skip_serializing_if = "RateLimits::is_none")]
    pub limits: RateLimits,
}

/// A card in a network of several machines.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchNetConfig {
    /// The card's MAC address, as text: the one that the switch knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The socket of the network's process.
    pub socket: PathBuf,
    /// The secret by which the card is let in: 64 hexadecimal digits.
    pub key: String,
    /// Largest IP packet of the network, in bytes.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// How fast frames go, in each direction. Default: as fast as they can.
    #[serde(default, skip_serializing_if = "RateLimits::is_none")]
    pub limits: RateLimits,
}

fn default_mtu() -> u16 {
    crate::v1::network::MTU_DEFAULT
}

impl std::fmt::Debug for SwitchNetConfig {
    /// Without the key: it is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let SwitchNetConfig { mac, socket, key: _, mtu, limits } = self;
        f.debug_struct("SwitchNetConfig")
            .field("mac", mac)
            .field("socket", socket)
            .field("mtu", mtu)
            .field("limits", limits)
            .finish_non_exhaustive()
    }
}

/// Sockets between host and guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context ID, 3 or more.
    pub cid: u64,
    /// Path of the Unix socket that stands for the guest on the host. The host connects to it and sends
    /// `CONNECT <port>`; connections from the guest to port N go to the socket at this path with `_N`
    /// appended.
    pub socket: PathBuf,
}

/// Where a serial line leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CharDevice {
    /// Standard input and output.
    Stdio,
    /// Output is appended to a file; there is no input.
    File(PathBuf),
    /// A Unix socket: several may connect, see what was written last, and type.
    Socket(LineSocketConfig),
    /// Nowhere.
    None,
}

/// A serial line on a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LineSocketConfig {
    /// Path of the socket, for this user alone.
    pub path: PathBuf,
    /// A file that keeps the last mebibyte or two of what the guest wrote; there is none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_all_that_is_needed() {
        let config: VmConfig = serde_json::from_str(r#"{"kernel": "vmlinuz"}"#).unwrap();
        assert_eq!(config, VmConfig::new("vmlinuz"));
    }

    #[test]
    fn the_example_of_the_documentation_is_read() {
        let config: VmConfig = serde_json::from_str(
            r#"{"kernel": "vmlinuz", "initrd": "initrd.img", "append": "console=ttyS0 root=/dev/vda1",
                "cpus": 2, "memory": "1G", "disks": [{"path": "debian.img"}],
                "nets": [{"user": {"forward": ["2222:22"]}}],
                "control": "vm.sock"}"#,
        )
        .unwrap();
        assert_eq!(config.memory, ByteSize(1 << 30));
        let NetConfig::User(user) = &config.nets[0] else { panic!("the machine's own network") };
        assert_eq!(user.forward, ["2222:22"]);
        let again: VmConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn unknown_fields_are_refused_everywhere() {
        for text in [
            r#"{"kernel": "k", "cpu": 2}"#,
            r#"{"kernel": "k", "disks": [{"path": "d", "readonly": true}]}"#,
            r#"{"kernel": "k", "nets": [{"user": {"mtu": 1}}]}"#,
            r#"{"kernel": "k", "nets": [{"tap": {}}]}"#,
            r#"{"kernel": "k", "vsock": {"cid": 3, "socket": "s", "x": 1}}"#,
        ] {
            assert!(serde_json::from_str::<VmConfig>(text).is_err(), "{text}");
        }
    }
}
