//! A snapshot that a machine goes on from: read, checked, and merged with what the user wants otherwise.

use super::chain::{self, Link, refused};
use super::manifest::STATE_SIZE_MAX;
use super::outside::{self, Allowed};
use super::{MachineSaved, checksum};
use crate::Error;
use crate::spec::VmSpec;
use api::worker::config::{CharDevice, RestoreConfig, VmConfig};
use api::worker::snapshot::{CpuidLeaf, FileEntry, Layers, Manifest, SavedDisk};
use clock::ClockSaved;
use disk::{Access, Format, OpenOptions};
use memory::{FileSegment, Ram};
use std::io::Read;
use std::path::{Path, PathBuf};
use x86::cpuid::Leaf;

/// A snapshot, opened and checked, before anything of the machine exists.
pub struct Snapshot {
    links: Vec<Link>,
    state: MachineSaved,
    segments: Vec<FileSegment>,
    disks: Vec<RestoredDisk>,
    paused: bool,
}

/// What becomes of a disk of the snapshot.
#[derive(Clone, Debug)]
pub enum RestoredDisk {
    /// It is opened as the specification says.
    Existing {
        /// Its size in the snapshot, which it must still have.
        size: u64,
    },
    /// A copy of this file is made at the specification's path, then opened.
    Copied {
        /// The snapshot's image.
        from: SavedImage,
        /// The disk's size.
        size: u64,
    },
    /// Changes to this file are kept in a temporary one.
    Scratch {
        /// The snapshot's image.
        base: SavedImage,
    },
}

/// An image of a disk in a snapshot.
#[derive(Clone, Debug)]
pub struct SavedImage {
    /// The file.
    pub path: PathBuf,
    /// How it is opened.
    pub options: OpenOptions,
    /// Folders and files that it may stand on, beside those of the snapshot.
    pub allow: Vec<PathBuf>,
}

impl SavedImage {
    fn new(path: PathBuf, format: Format, allow: &[PathBuf]) -> SavedImage {
        let mut options = OpenOptions { format: Some(format), ..OpenOptions::new(Access::ReadOnly) };
        options.policy = allow.iter().fold(options.policy, |policy, path| policy.and(path));
        SavedImage { path, options, allow: allow.to_owned() }
    }
}

/// What of a snapshot a machine is built with.
pub struct Restored {
    /// CPUID of vCPU 0.
    pub cpuid: Vec<Leaf>,
    /// Name of the CPU model.
    pub cpu_model: String,
    /// The clock.
    pub clock: ClockSaved,
    /// Whether the machine stands still at first.
    pub paused: bool,
    /// Where the snapshot lies, and its identity: what the next one can build on.
    pub origin: (PathBuf, String),
    /// Processors and devices.
    pub state: MachineSaved,
}

impl Snapshot {
    /// Reads and checks a snapshot. Returns it with the machine that is to go on.
    ///
    /// # Errors
    /// When it cannot be used, and why; nothing was changed.
    pub fn open(config: RestoreConfig) -> Result<(Snapshot, VmSpec), Error> {
        let links = chain::read(&config.snapshot)?;
        let (dir, manifest) = (links[0].dir.clone(), links[0].manifest.clone());
        // What takes no time first.
        check_processor(&dir, &manifest)?;
        let state = read_state(&links[0])?;
        if state.vcpus.len() as u64 != u64::from(manifest.machine.cpus) {
            return Err(refused(&dir, "its state has another number of processors than its machine"));
        }
        let allowed = Allowed::new(&links, &config);
        allowed.check(&outside::named(&manifest, &config))?;
        let (verify, paused) = (config.verify, config.paused);
        let (mut machine, disks, has_console) = merge(&dir, &manifest, config, &allowed)?;
        // Machines of before had none, though one is made by default.
        machine.balloon = state.functions.iter().any(|function| function.name == "balloon");
        let mut spec = VmSpec::try_from(machine)?;
        spec.has_console = has_console;
        for (index, disk) in manifest.disks.iter().enumerate() {
            // One that is not used need not be whole.
            if let (SavedDisk::Copy(entry), false) =
                (disk, matches!(disks[index], RestoredDisk::Existing { .. }))
            {
                links[0].open(entry, verify)?;
            }
        }
        let segments = chain::memory(&links, verify)?;
        Ok((Snapshot { links, state, segments, disks, paused }, spec))
    }

    /// Maps its memory, copy-on-write.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn map_memory(&self) -> Result<Ram, Error> {
        Ram::from_files(self.links[0].manifest.memory.file.size, self.segments.clone())
            .map_err(|e| Error::host("the snapshot's memory cannot be mapped").with_source(e))
    }

    /// The frequency of the guest's time-stamp counter in Hz.
    pub fn tsc_hz(&self) -> u64 {
        self.links[0].manifest.tsc_hz
    }

    /// What becomes of its disks.
    pub fn disks(&self) -> &[RestoredDisk] {
        &self.disks
    }

    /// What the machine is built with.
    pub fn into_restored(self) -> Restored {
        let Link { dir, manifest, .. } = self.links.into_iter().next().expect("itself");
        Restored {
            cpuid: manifest.cpuid.iter().map(to_leaf).collect(),
            cpu_model: manifest.cpu_model,
            clock: ClockSaved { tsc_hz: manifest.tsc_hz, ..self.state.clock },
            paused: self.paused,
            origin: (dir, manifest.id),
            state: self.state,
        }
    }
}

fn to_leaf(leaf: &CpuidLeaf) -> Leaf {
    let [eax, ebx, ecx, edx] = leaf.registers;
    Leaf { function: leaf.function, index: leaf.index, eax, ebx, ecx, edx }
}

/// A leaf as a manifest has it.
pub fn from_leaf(leaf: &Leaf) -> CpuidLeaf {
    let registers = [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx];
    CpuidLeaf { function: leaf.function, index: leaf.index, registers }
}

/// Whether this host's processor can be the guest's.
fn check_processor(dir: &Path, manifest: &Manifest) -> Result<(), Error> {
    let refused = |why: String| {
        Error::bad_input(format!("the snapshot {dir:?} cannot go on here: {why}"))
            .with_advice("restore it on a host like the one that it was made on, or start the machine anew")
    };
    let needed: Vec<Leaf> = manifest.cpuid.iter().map(to_leaf).collect();
    let offered = x86::cpuid::build("host", manifest.machine.cpus, manifest.tsc_hz)
        .map_err(|e| refused(e.to_string()))?;
    let missing = x86::cpuid::missing(&needed, &offered);
    if !missing.is_empty() {
        let model = &manifest.cpu_model;
        return Err(refused(format!(
            "its CPU model {model} needs what this host's processor lacks: {}",
            missing.join(", ")
        )));
    }
    if !clock::TSC_HZ.contains(&manifest.tsc_hz) {
        return Err(refused(format!("no time-stamp counter runs at {} Hz", manifest.tsc_hz)));
    }
    Ok(())
}

fn read_state(link: &Link) -> Result<MachineSaved, Error> {
    let entry = &link.manifest.state;
    let cannot = |why: String| refused(&link.dir, why);
    let file = chain::open_file(&link.dir.join(&entry.file))
        .map_err(|e| cannot(format!("its file {} cannot be opened: {e}", entry.file)))?;
    let mut bytes = Vec::new();
    file.take(STATE_SIZE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| cannot(format!("its file {} cannot be read: {e}", entry.file)))?;
    if bytes.len() as u64 != entry.size {
        let (is, should) = (bytes.len(), entry.size);
        return Err(cannot(format!("its file {} has {is} bytes instead of {should}", entry.file)));
    }
    if checksum::of_bytes(&bytes) != entry.blake3 {
        return Err(cannot(format!("its file {} is damaged: the check sum is wrong", entry.file)));
    }
    MachineSaved::decode(&bytes).map_err(cannot)
}

fn from_image(image: SavedImage, size: u64, is_kept: bool) -> RestoredDisk {
    match is_kept {
        true => RestoredDisk::Copied { from: image, size },
        false => RestoredDisk::Scratch { base: image },
    }
}

/// The machine of the snapshot with what the user wants otherwise; what becomes of its disks; whether it
/// has a console.
fn merge(
    dir: &Path,
    manifest: &Manifest,
    config: RestoreConfig,
    allowed: &Allowed,
) -> Result<(VmConfig, Vec<RestoredDisk>, bool), Error> {
    let mut machine = manifest.machine.clone();
    let bad = |what: String, advice: &str| Err(Error::bad_input(what).with_advice(advice));
    let has_console = machine.console != CharDevice::None;
    if !has_console && config.console != CharDevice::None {
        return bad("the machine of the snapshot has no virtio console".into(), "leave out --console");
    }
    machine.vsock = match (&machine.vsock, config.vsock) {
        (Some(_), None) => {
            let what = "the machine of the snapshot has a vsock device, whose socket another may use".into();
            return bad(what, "add --vsock cid=N,socket=PATH");
        }
        (None, Some(_)) => {
            return bad("the machine of the snapshot has no vsock device".into(), "leave out --vsock");
        }
        (_, vsock) => vsock,
    };
    machine.qemu_agent = match (&machine.qemu_agent, config.qemu_agent) {
        (Some(_), None) => {
            let what = "the machine of the snapshot has a port for QEMU's guest agent".into();
            return bad(what, "add --qemu-agent PATH");
        }
        (None, _) => None,
        (Some(_), agent) => agent,
    };
    machine.shares = match (&machine.shares, config.shares) {
        (None, Some(shares)) if !shares.is_empty() => {
            let what = "the machine of the snapshot has no device for shared folders".into();
            return bad(what, "leave out `shares`, or start the machine anew");
        }
        (None, _) => None,
        (Some(_), shares) => Some(shares.unwrap_or_default()),
    };
    let count = |what: &str, has: usize, given: usize, option: &str| match given == 0 || given == has {
        true => Ok(()),
        false => Err(Error::bad_input(format!(
            "the machine of the snapshot has {has} {what}, and {given} were given"
        ))
        .with_advice(format!("give {option} for each of them, or none"))),
    };
    count("disks", machine.disks.len(), config.disks.len(), "--disk")?;
    count("network cards", machine.nets.len(), config.nets.len(), "--net")?;

    let mut disks = Vec::new();
    for (index, saved) in manifest.disks.iter().enumerate() {
        let disk = &mut machine.disks[index];
        let given = config.disks.get(index);
        // What it was allowed to stand on then, as far as it is now.
        let mut allow = disk.allow.clone();
        allow.retain(|path| allowed.has(path));
        if let Some(given) = given {
            // What the guest knows of the disk stays.
            let (serial, read_only) = (disk.serial.clone(), disk.read_only);
            *disk = given.clone();
            (disk.serial, disk.read_only) = (serial, read_only);
        }
        disks.push(match saved {
            SavedDisk::Outside(outside) => RestoredDisk::Existing { size: outside.size },
            SavedDisk::Copy(FileEntry { size, .. }) | SavedDisk::Layers(Layers { size, .. })
                if given.is_some() && disk.path.exists() =>
            {
                RestoredDisk::Existing { size: *size }
            }
            SavedDisk::Copy(entry) => {
                let image = SavedImage::new(dir.join(&entry.file), Format::Raw, &[]);
                from_image(image, entry.size, given.is_some())
            }
            SavedDisk::Layers(layers) => {
                let allow = [&layers.below[..], &allow].concat();
                let image = SavedImage::new(dir.join(&layers.files[0]), Format::Qcow2, &allow);
                from_image(image, layers.size, given.is_some())
            }
        });
    }
    if !config.nets.is_empty() {
        machine.nets = config.nets;
    }
    for (net, mac) in machine.nets.iter_mut().zip(&manifest.macs) {
        net.default_mac(mac);
    }
    if config.firmware_variables.is_some() && machine.firmware.is_none() {
        return bad("the machine of the snapshot has no firmware".into(), "leave out --firmware-variables");
    }
    // Firmware's variables are in the saved state; the file of before may be another machine's.
    machine.firmware_variables = config.firmware_variables;
    machine.generation_id = config.generation_id;
    machine.uuid = Some(config.uuid.unwrap_or_else(|| manifest.uuid.clone()));
    machine.name = config.name.or(machine.name);
    machine.engine = config.engine;
    machine.jit = config.jit;
    machine.serial = config.serial;
    machine.console = config.console;
    machine.control = config.control;
    machine.snapshots = config.snapshots;
    machine.report = config.report;
    machine.disk_folder = config.disk_folder;
    machine.on_reset = config.on_reset.unwrap_or(machine.on_reset);
    machine.stop_timeout = config.stop_timeout.or(machine.stop_timeout);
    machine.sandbox = config.sandbox;
    Ok((machine, disks, has_console))
}
