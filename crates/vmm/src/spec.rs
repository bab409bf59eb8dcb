//! What a machine shall be, checked and complete: no options left, every number in its range.
//!
//! [`VmSpec`] is made from the wire type `api::worker::config::VmConfig` without opening a file or asking
//! anything of the host but random numbers.

use crate::Error;
use api::worker::config::{
    BootKind, BootMethod, CdromBus, CdromConfig, CharDevice, DiskBus, DiskConfig, Display, EngineChoice,
    FORMAT_AUTO, FirmwareImage, JitConfig, NetConfig, OnReset, RateLimits, STOP_TIMEOUT_DEFAULT,
    STOP_TIMEOUT_MAX, ShareConfig, SwitchNetConfig, UserNetConfig, VmConfig,
};
use device::limit::{Limits, Rate};
use net::switch::PortKey;
use net::{MacAddress, NatConfig};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Highest number of vCPUs: their APIC IDs fit into the 8 bits that I/O APIC messages have.
pub const CPUS_MAX: u32 = 255;
/// Less memory than this holds no kernel.
pub const MEMORY_MIN: u64 = 2 << 20;
/// More memory than this does not leave room for PCI devices below the 46 bits of physical addresses.
pub const MEMORY_MAX: u64 = 1 << 45;
/// Slots of PCI bus 0 that are left beside the root.
pub const PCI_DEVICES_MAX: usize = 31;
/// Ports of the AHCI controller.
const SATA_DEVICES_MAX: usize = scsi::ahci::spec::PORTS_MAX;
/// What virtio and guests keep of a disk's serial number.
const DISK_SERIAL_LEN_MAX: usize = 20;
/// Longest path that fits into a Unix socket's address, without the NUL.
const SOCKET_PATH_LEN_MAX: usize = 107;
/// The serial number that SMBIOS has room for.
const NAME_LEN_MAX: usize = 64;

/// A machine, checked.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// A name for people.
    pub name: Option<String>,
    /// The machine's identity.
    pub uuid: Uuid,
    /// The VM Generation ID; `None` for a new one.
    pub generation_id: Option<Uuid>,
    /// What the machine starts with.
    pub boot: BootSpec,
    /// Number of vCPUs, 1 to [`CPUS_MAX`].
    pub cpus: u32,
    /// CPU model; `None` for the newest that the engine gives.
    pub cpu_model: Option<String>,
    /// Guest memory in bytes, a multiple of 4 KiB.
    pub memory: u64,
    /// What executes guest code.
    pub engine: EngineChoice,
    /// How the software engine works.
    pub jit: JitConfig,
    /// Whether it is used even where it was found to be of no use.
    pub force_engine: bool,
    /// Whether the guest may use hardware virtualization itself.
    pub nested: bool,
    /// Frequency of the guest's time-stamp counter in Hz, if not the host's.
    pub tsc_hz: Option<u64>,
    /// Disks.
    pub disks: Vec<DiskSpec>,
    /// Network cards.
    pub nets: Vec<NetSpec>,
    /// CD-ROM drives.
    pub cdroms: Vec<CdromConfig>,
    /// What firmware tries to boot: each kind once.
    pub boot_order: Vec<BootKind>,
    /// Whether there is a display adapter, with a keyboard.
    pub display: bool,
    /// Whether there is a memory balloon.
    pub balloon: bool,
    /// Sockets between host and guest.
    pub vsock: Option<VsockSpec>,
    /// Socket that leads to the serial port of QEMU's guest agent.
    pub qemu_agent: Option<PathBuf>,
    /// Folders of the host that the guest sees; `None` where there is no device for them.
    pub shares: Option<Vec<ShareConfig>>,
    /// Where COM1 leads.
    pub serial: CharDevice,
    /// Where the virtio console leads; there is none when nowhere.
    pub console: CharDevice,
    /// Whether there is a virtio console, though it may lead nowhere.
    pub has_console: bool,
    /// The control socket.
    pub control: Option<PathBuf>,
    /// The folder for snapshots.
    pub snapshots: Option<PathBuf>,
    /// The folder for overlays of disks.
    pub disk_folder: Option<PathBuf>,
    /// Where the machine's end is reported.
    pub report: Option<PathBuf>,
    /// What a reset does.
    pub on_reset: OnReset,
    /// How long the guest has to power off after a signal.
    pub stop_timeout: Duration,
    /// Whether there is a debug exit port.
    pub debug_exit: bool,
    /// Whether rights are given up before guest code runs.
    pub sandbox: bool,
    /// What it was made from: a snapshot tells it.
    pub config: VmConfig,
}

/// What a machine starts with, checked.
#[derive(Clone, Debug)]
pub enum BootSpec {
    /// A kernel file.
    Kernel(KernelSpec),
    /// Firmware.
    Firmware(FirmwareSpec),
}

/// A kernel to start with.
#[derive(Clone, Debug)]
pub struct KernelSpec {
    /// Kernel file.
    pub kernel: PathBuf,
    /// How to enter it.
    pub method: boot::Method,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: String,
}

/// Firmware to start with.
#[derive(Clone, Debug)]
pub struct FirmwareSpec {
    /// Which one.
    pub image: FirmwareImage,
    /// Where its variables are kept.
    pub variables: Option<PathBuf>,
}

impl VmSpec {
    /// Makes the paths in [`VmSpec::config`] independent of the present folder: a snapshot is restored from
    /// elsewhere. The folder cannot be asked for any more when rights have been given up.
    pub fn fix_paths(&mut self) {
        let absolute = |path: &mut PathBuf| {
            if let Ok(whole) = std::path::absolute(&*path) {
                *path = whole;
            }
        };
        self.config.kernel.iter_mut().for_each(absolute);
        self.config.initrd.iter_mut().for_each(absolute);
        self.config.disks.iter_mut().for_each(|disk| absolute(&mut disk.path));
        self.config.cdroms.iter_mut().for_each(|drive| {
            drive.path.iter_mut().chain(&mut drive.media).for_each(absolute);
        });
        self.disk_folder.iter_mut().for_each(absolute);
    }
}

/// A disk, checked.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// File or block device.
    pub path: PathBuf,
    /// How it is opened.
    pub options: disk::OpenOptions,
    /// Serial number, at most 20 bytes; may be empty.
    pub serial: String,
    /// How the guest reaches it.
    pub bus: DiskBus,
    /// How fast it may be used.
    pub limits: Limits,
}

/// A network card, checked.
#[derive(Clone, Debug)]
pub struct NetSpec {
    /// Its address.
    pub mac: MacAddress,
    /// The network it is plugged into.
    pub network: NetworkSpec,
    /// How fast frames go in each direction.
    pub limits: Limits,
}

/// What a network card is plugged into, checked.
#[derive(Clone, Debug)]
pub enum NetworkSpec {
    /// A network of its own.
    User(Box<NatConfig>),
    /// The switch of a network of several machines.
    Switch {
        /// Its socket.
        socket: PathBuf,
        /// By which it lets the card in.
        key: PortKey,
        /// Largest IP packet, in bytes.
        mtu: u16,
    },
}

impl NetworkSpec {
    /// Whether names are looked up for the guest here.
    pub fn asks_name_servers(&self) -> bool {
        matches!(self, NetworkSpec::User(_))
    }
}

/// Sockets between host and guest, checked.
#[derive(Clone, Debug)]
pub struct VsockSpec {
    /// The guest's context ID.
    pub cid: u64,
    /// The socket that stands for the guest on the host.
    pub socket: PathBuf,
}

/// A UUID, in the byte order of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// Makes a random one (RFC 9562, version 4).
    ///
    /// # Errors
    /// When the host gives no random numbers.
    pub fn random() -> Result<Uuid, Error> {
        let mut bytes = random_bytes::<16>()?;
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Uuid(bytes))
    }

    fn from_text(text: &str) -> Result<Uuid, Error> {
        Uuid::parse(text).ok_or_else(|| {
            Error::bad_input(format!("{text:?} is not a UUID"))
                .with_advice("write it like 123e4567-e89b-42d3-a456-426614174000")
        })
    }

    /// As Windows keeps a GUID in memory: the first three groups little-endian.
    pub fn to_guid_bytes(self) -> [u8; 16] {
        let mut bytes = self.0;
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        bytes
    }

    fn parse(text: &str) -> Option<Uuid> {
        let groups: Vec<&str> = text.split('-').collect();
        if groups.iter().map(|group| group.len()).ne([8, 4, 4, 4, 12]) {
            return None;
        }
        let digits = groups.concat();
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        Some(Uuid(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes()))
    }
}

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = format!("{:032x}", u128::from_be_bytes(self.0));
        let (a, b, c, d, e) = (&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]);
        write!(f, "{a}-{b}-{c}-{d}-{e}")
    }
}

/// Random bytes from the host.
///
/// # Errors
/// When the host gives none.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => {
                let error = std::io::Error::from(e);
                return Err(Error::host("the host gives no random numbers").with_source(error));
            }
        }
    }
    Ok(bytes)
}

impl TryFrom<VmConfig> for VmSpec {
    type Error = Error;

    fn try_from(config: VmConfig) -> Result<VmSpec, Error> {
        let as_given = config.clone();
        let memory = config.memory.0;
        if !(1..=CPUS_MAX).contains(&config.cpus) {
            return Err(Error::bad_input(format!("{} vCPUs cannot be had", config.cpus))
                .with_advice(format!("choose 1 to {CPUS_MAX}")));
        }
        let stop_timeout = config.stop_timeout.unwrap_or(STOP_TIMEOUT_DEFAULT);
        if stop_timeout > STOP_TIMEOUT_MAX {
            return Err(Error::bad_input(format!("{stop_timeout} seconds to power off are more than a day"))
                .with_advice(format!("choose 0 to {STOP_TIMEOUT_MAX}")));
        }
        let stop_timeout = Duration::from_secs(stop_timeout.into());
        if memory < MEMORY_MIN {
            return Err(Error::bad_input(format!(
                "{} of memory are too little for any kernel",
                config.memory
            ))
            .with_advice("give at least 64M"));
        }
        if memory > MEMORY_MAX || !memory.is_multiple_of(memory::PAGE_SIZE) {
            return Err(Error::bad_input(format!("{} of memory cannot be had", config.memory))
                .with_advice("give a multiple of 4K, at most 32T"));
        }
        if config.name.as_deref().is_some_and(|name| name.is_empty() || !is_printable(name, NAME_LEN_MAX)) {
            return Err(Error::bad_input("the machine's name is unsuitable")
                .with_advice(format!("use 1 to {NAME_LEN_MAX} printable ASCII characters")));
        }
        let uuid = match &config.uuid {
            None => Uuid::random()?,
            Some(text) => Uuid::from_text(text)?,
        };
        let generation_id = config.generation_id.as_deref().map(Uuid::from_text).transpose()?;
        if config.serial == CharDevice::Stdio && config.console == CharDevice::Stdio {
            return Err(Error::bad_input("serial port and console both want the terminal")
                .with_advice("add --serial none or --console none"));
        }
        if config.firmware.is_none() && config.firmware_variables.is_some() {
            return Err(Error::bad_input("a file for the firmware's variables is named, but no firmware")
                .with_advice("add --firmware uefi, or leave out --firmware-variables"));
        }
        let boot = boot_spec(
            config.kernel,
            config.firmware.map(|image| FirmwareSpec { image, variables: config.firmware_variables }),
            config.boot,
            config.initrd,
            config.append,
        )?;
        let disks = config.disks.into_iter().map(disk_spec).collect::<Result<Vec<_>, _>>()?;
        let nets = config.nets.into_iter().map(net_spec).collect::<Result<Vec<_>, _>>()?;
        let vsock = match config.vsock {
            None => None,
            Some(vsock) => {
                check_socket_path(&vsock.socket, "--vsock")?;
                // Virtio 1.2, §5.10.4: 0 to 2 and the 32-bit all-ones are reserved, upper bits are zero.
                if !(3..u64::from(u32::MAX)).contains(&vsock.cid) {
                    return Err(Error::bad_input(format!("the vsock context ID {} is reserved", vsock.cid))
                        .with_advice("choose one from 3 to 4294967294"));
                }
                Some(VsockSpec { cid: vsock.cid, socket: vsock.socket })
            }
        };
        if let Some(path) = &config.control {
            check_socket_path(path, "--control")?;
        }
        for (line, option) in [(&config.serial, "--serial"), (&config.console, "--console")] {
            if let CharDevice::Socket(socket) = line {
                check_socket_path(&socket.path, option)?;
            }
        }
        let cdroms = config.cdroms;
        let at_bus = |disk_bus: DiskBus, cdrom_bus: CdromBus| {
            let disks = disks.iter().filter(|disk| disk.bus == disk_bus).count();
            (disks, disks + cdroms.iter().filter(|drive| drive.bus == cdrom_bus).count())
        };
        let (sata_disks, sata) = at_bus(DiskBus::Ahci, CdromBus::Ahci);
        let (scsi_disks, scsi) = at_bus(DiskBus::Scsi, CdromBus::Scsi);
        if scsi > virtio::scsi::TARGETS_MAX {
            return Err(Error::bad_input(format!("{scsi} SCSI drives and disks are too many"))
                .with_advice(format!("use at most {}", virtio::scsi::TARGETS_MAX)));
        }
        if sata > SATA_DEVICES_MAX {
            return Err(Error::bad_input(format!("{sata} CD-ROM drives and SATA disks are too many"))
                .with_advice(format!("use at most {SATA_DEVICES_MAX}, and bus=virtio for the other disks")));
        }
        if matches!(boot, BootSpec::Kernel(_)) && !config.boot_order.is_empty() {
            return Err(Error::bad_input("a boot order is for firmware, and a kernel is named")
                .with_advice("leave out --boot-order or --kernel"));
        }
        let mut boot_order = config.boot_order;
        boot_order.extend([BootKind::Disk, BootKind::Cdrom]);
        let mut seen = Vec::new();
        boot_order.retain(|kind| {
            !seen.contains(kind) && {
                seen.push(*kind);
                true
            }
        });
        let display = match config.display {
            Some(display) => display == Display::Vga,
            None => matches!(boot, BootSpec::Firmware(_)),
        };
        // Entropy device and console take a slot each.
        if let Some(path) = &config.qemu_agent {
            check_socket_path(path, "--qemu-agent")?;
        }
        for share in config.shares.iter().flatten() {
            check_socket_path(&share.socket, "a share")?;
        }
        let optional = [
            vsock.is_some(),
            display,
            sata > 0,
            scsi > 0,
            config.balloon,
            config.qemu_agent.is_some(),
            config.shares.is_some(),
        ];
        let devices = disks.len() - sata_disks - scsi_disks
            + nets.len()
            + 2
            + optional.into_iter().filter(|has| *has).count();
        if devices > PCI_DEVICES_MAX {
            return Err(Error::bad_input(format!("{devices} devices do not fit on the PCI bus"))
                .with_advice(format!(
                    "use fewer disks and network cards: there are {PCI_DEVICES_MAX} slots"
                )));
        }
        Ok(VmSpec {
            name: config.name,
            uuid,
            generation_id,
            boot,
            cpus: config.cpus,
            cpu_model: config.cpu_model,
            memory,
            engine: config.engine,
            jit: config.jit,
            force_engine: config.force_engine,
            nested: config.nested,
            tsc_hz: config.tsc_hz.map(tsc_hz).transpose()?,
            disks,
            nets,
            cdroms,
            boot_order,
            display,
            balloon: config.balloon,
            vsock,
            qemu_agent: config.qemu_agent.clone(),
            shares: config.shares,
            serial: config.serial,
            console: config.console,
            has_console: as_given.console != CharDevice::None,
            control: config.control,
            snapshots: config.snapshots,
            disk_folder: config.disk_folder,
            report: config.report,
            on_reset: config.on_reset,
            stop_timeout,
            debug_exit: config.debug_exit,
            sandbox: config.sandbox,
            config: as_given,
        })
    }
}

fn is_printable(text: &str, len_max: usize) -> bool {
    text.len() <= len_max && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

fn boot_spec(
    kernel: Option<PathBuf>,
    firmware: Option<FirmwareSpec>,
    method: BootMethod,
    initrd: Option<PathBuf>,
    command_line: String,
) -> Result<BootSpec, Error> {
    match (kernel, firmware) {
        (None, None) => Err(Error::bad_input("neither a kernel nor firmware is named")
            .with_advice("add --kernel FILE, or --firmware bios or uefi and a --disk to boot from")),
        (Some(_), Some(_)) => Err(Error::bad_input("a kernel is named, and firmware too")
            .with_advice("leave out --kernel or --firmware")),
        (None, Some(_)) if initrd.is_some() || !command_line.is_empty() => {
            Err(Error::bad_input("firmware takes no initial RAM disk and no command line")
                .with_advice("leave out --initrd and --append: what is on the disk says how it boots"))
        }
        (None, Some(firmware)) => Ok(BootSpec::Firmware(firmware)),
        (Some(kernel), None) => {
            let method = match method {
                BootMethod::Auto => boot::Method::Auto,
                BootMethod::Direct => boot::Method::Direct,
                BootMethod::SelfDecompressing => boot::Method::SelfDecompressing,
                BootMethod::Pvh => boot::Method::Pvh,
            };
            Ok(BootSpec::Kernel(KernelSpec { kernel, method, initrd, command_line }))
        }
    }
}

fn tsc_hz(hz: u64) -> Result<u64, Error> {
    let (least, most) = (clock::TSC_HZ.start(), clock::TSC_HZ.end());
    match clock::TSC_HZ.contains(&hz) {
        true => Ok(hz),
        false => Err(Error::bad_input(format!("a time-stamp counter cannot run at {hz} Hz"))
            .with_advice(format!("choose --tsc-hz from {least} to {most}"))),
    }
}

fn disk_spec(config: DiskConfig) -> Result<DiskSpec, Error> {
    let serial = config.serial.unwrap_or_default();
    if !is_printable(&serial, DISK_SERIAL_LEN_MAX) {
        return Err(Error::bad_input(format!("the serial number of disk {:?} is unsuitable", config.path))
            .with_advice(format!("use at most {DISK_SERIAL_LEN_MAX} printable ASCII characters")));
    }
    let format = match config.format.as_str() {
        FORMAT_AUTO => None,
        name => Some(name.parse::<disk::Format>().map_err(|why| {
            Error::bad_input(format!("the format of disk {:?} is unsuitable: {why}", config.path))
                .with_advice("name another with --disk FILE,format=..., or leave it out")
        })?),
    };
    let access = if config.read_only { disk::Access::ReadOnly } else { disk::Access::ReadWrite };
    let policy =
        config.allow.into_iter().fold(disk::BackingPolicy::beside_image(), |policy, path| policy.and(path));
    let options =
        disk::OpenOptions { format, policy, snapshot: config.snapshot, ..disk::OpenOptions::new(access) };
    let limits = limits(&config.limits).map_err(|why| {
        Error::bad_input(format!("the limits of disk {:?} are unsuitable", config.path)).with_advice(why)
    })?;
    Ok(DiskSpec { path: config.path, options, serial, bus: config.bus, limits })
}

/// Checks limits and completes them.
///
/// # Errors
/// A sentence about what cannot be.
pub fn limits(config: &RateLimits) -> Result<Limits, &'static str> {
    /// After a rest, as much as in this part of a second goes through at once.
    const BURST_PART: u64 = 10;
    if let Some(fault) = config.fault() {
        return Err(fault);
    }
    let rate = |per_second: Option<u64>, burst: Option<u64>| {
        per_second.map(|per_second| Rate { per_second, burst: burst.unwrap_or(per_second / BURST_PART) })
    };
    Ok(Limits {
        bytes: rate(config.bytes.map(|bytes| bytes.0), config.burst_bytes.map(|bytes| bytes.0)),
        operations: rate(config.operations, config.burst_operations),
    })
}

fn net_spec(config: NetConfig) -> Result<NetSpec, Error> {
    let bad = |e: net::NetError| Error::bad_input("the network is not as it should be").with_source(e);
    let mac = match config.mac() {
        None => {
            MacAddress::random().map_err(|e| Error::host("a MAC address is not to be had").with_source(e))?
        }
        Some(text) => text.parse::<MacAddress>().map_err(bad)?,
    };
    if !mac.is_station() {
        return Err(Error::bad_input(format!("{mac} is no address for a network card"))
            .with_advice("choose one whose first byte is even, like a6:41:72:00:00:01"));
    }
    let limits = limits(config.limits())
        .map_err(|why| Error::bad_input("the limits of a network card are unsuitable").with_advice(why))?;
    let network = match config {
        NetConfig::User(user) => user_network(user).map_err(bad)?,
        NetConfig::Switch(SwitchNetConfig { mac: _, socket, key, mtu, limits: _ }) => {
            check_socket_path(&socket, "--net")?;
            if !(NatConfig::MTU_MIN..=NatConfig::MTU_MAX).contains(&mtu) {
                return Err(Error::bad_input(format!("a network card cannot have an MTU of {mtu}"))
                    .with_advice(format!("choose {} to {}", NatConfig::MTU_MIN, NatConfig::MTU_MAX)));
            }
            NetworkSpec::Switch { socket, key: key.parse().map_err(bad)?, mtu }
        }
    };
    Ok(NetSpec { mac, network, limits })
}

fn user_network(config: UserNetConfig) -> Result<NetworkSpec, net::NetError> {
    let UserNetConfig { mac: _, forward, restrict, subnet, hostname, limits: _ } = config;
    let mut network = NatConfig { hostname, ..NatConfig::default() };
    if let Some(subnet) = subnet {
        network.subnet = subnet.parse()?;
    }
    if restrict {
        network.outside = net::Outside::Restricted;
    }
    for rule in forward {
        network.forwards.push(rule.parse()?);
    }
    Ok(NetworkSpec::User(Box::new(network)))
}

fn check_socket_path(path: &Path, option: &str) -> Result<(), Error> {
    let len = path.as_os_str().len();
    if len == 0 || len > SOCKET_PATH_LEN_MAX {
        return Err(Error::bad_input(format!("the socket path of {option} is {len} bytes long"))
            .with_advice(format!("use a path of at most {SOCKET_PATH_LEN_MAX} bytes")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::ByteSize;
    use api::worker::config::{RateLimits, VsockConfig};

    fn refused(change: impl FnOnce(&mut VmConfig)) -> String {
        let mut config = VmConfig::new("vmlinuz");
        change(&mut config);
        let error = VmSpec::try_from(config).expect_err("a bad configuration");
        assert_eq!(error.kind(), crate::ErrorKind::BadInput);
        error.report()
    }

    #[test]
    fn defaults_make_a_machine_with_an_identity_of_its_own() {
        let spec = |_| VmSpec::try_from(VmConfig::new("vmlinuz")).unwrap();
        let (a, b) = (spec(1), spec(2));
        assert_ne!(a.uuid, b.uuid);
        assert_eq!((a.cpus, a.memory), (1, 1 << 30));
        assert_eq!(a.uuid.0[6] >> 4, 4);
        assert_eq!(Uuid::parse(&a.uuid.to_string()), Some(a.uuid));
        let guid = Uuid::parse("00112233-4455-6677-8899-aabbccddeeff").unwrap().to_guid_bytes();
        assert_eq!(guid[..10], [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99]);
    }

    fn switched(key: &str, socket: &str, mtu: u16) -> NetConfig {
        NetConfig::Switch(SwitchNetConfig {
            mac: None,
            socket: socket.into(),
            key: key.into(),
            mtu,
            limits: RateLimits::default(),
        })
    }

    #[test]
    fn bad_values_are_refused_with_advice() {
        let disk = |serial: &str| DiskConfig { serial: Some(serial.into()), ..DiskConfig::new("d") };
        let net = |user: UserNetConfig| vec![NetConfig::User(user)];
        for text in [
            refused(|c| c.kernel = None),
            refused(|c| c.firmware = Some(FirmwareImage::Bios)),
            refused(|c| (c.kernel, c.firmware, c.append) = (None, Some(FirmwareImage::Bios), "x".into())),
            refused(|c| c.cpus = 0),
            refused(|c| c.cpus = 256),
            refused(|c| c.memory = ByteSize(0)),
            refused(|c| c.memory = ByteSize((64 << 20) + 1)),
            refused(|c| c.memory = ByteSize(u64::MAX - 4095)),
            refused(|c| c.uuid = Some("123".into())),
            refused(|c| c.generation_id = Some("123".into())),
            refused(|c| c.uuid = Some("123e4567-e89b-42d3-a456-42661417400g".into())),
            refused(|c| c.name = Some(String::new())),
            refused(|c| c.console = CharDevice::Stdio),
            refused(|c| c.disks = vec![disk("123456789012345678901")]),
            refused(|c| c.disks = vec![disk("ä")]),
            refused(|c| c.disks = vec![disk("x"); 30]),
            refused(|c| {
                c.nets = net(UserNetConfig { mac: Some("01:00:00:00:00:00".into()), ..Default::default() })
            }),
            refused(|c| c.nets = net(UserNetConfig { mac: Some("a6".into()), ..Default::default() })),
            refused(|c| c.nets = net(UserNetConfig { forward: vec!["22".into()], ..Default::default() })),
            refused(|c| {
                c.nets = net(UserNetConfig { subnet: Some("10.0.2.1/24".into()), ..Default::default() })
            }),
            refused(|c| c.nets = vec![switched("00", "s", 1500)]),
            refused(|c| c.nets = vec![switched(&"0".repeat(64), "", 1500)]),
            refused(|c| c.nets = vec![switched(&"0".repeat(64), "s", 60)]),
            refused(|c| c.vsock = Some(VsockConfig { cid: 2, socket: "s".into() })),
            refused(|c| c.vsock = Some(VsockConfig { cid: u64::MAX, socket: "s".into() })),
            refused(|c| c.control = Some("x".repeat(108).into())),
            refused(|c| c.control = Some("".into())),
            refused(|c| {
                let path = "x".repeat(108).into();
                c.serial = CharDevice::Socket(api::worker::config::LineSocketConfig { path, log: None });
            }),
        ] {
            assert!(text.contains("; ") || text.contains("write "), "no advice: {text}");
        }
    }

    #[test]
    fn networks_are_read() {
        let mut config = VmConfig::new("vmlinuz");
        config.nets = vec![NetConfig::User(UserNetConfig {
            mac: Some("a6:41:72:01:02:03".into()),
            forward: vec!["2222:22".into(), "0.0.0.0:53:53/udp".into()],
            restrict: true,
            subnet: Some("192.168.9.0/24".into()),
            hostname: Some("box".into()),
            limits: RateLimits { bytes: Some(ByteSize(1000)), ..RateLimits::default() },
        })];
        let spec = VmSpec::try_from(config).unwrap();
        let net = &spec.nets[0];
        assert_eq!(net.mac, MacAddress([0xa6, 0x41, 0x72, 1, 2, 3]));
        let NetworkSpec::User(network) = &net.network else { panic!("a network of its own") };
        assert_eq!((network.forwards.len(), network.outside), (2, net::Outside::Restricted));
        assert_eq!(network.subnet.to_string(), "192.168.9.0/24");
    }
}
