//! From what users write to what a worker is started with.

use super::Folder;
use api::image::ImageFirmware;
use api::v1::network::NicConfig;
use api::v1::vm::DiskConfig;
use api::worker::config as worker;
use image::Instance;
use std::path::PathBuf;
use store::{Resume, VmRecord};

/// The guest's context ID: each worker has its own socket, so that all guests can have the same.
const VSOCK_CID: u64 = 3;

/// What a worker is started with.
#[derive(Debug)]
pub(crate) enum Start {
    /// It boots a machine.
    Boot(Box<worker::VmConfig>),
    /// It goes on from a snapshot.
    Restore(Box<worker::RestoreConfig>),
}

impl Start {
    /// As the worker reads it.
    pub(super) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        match self {
            Start::Boot(config) => serde_json::to_vec_pretty(config),
            Start::Restore(config) => serde_json::to_vec_pretty(config),
        }
    }
}

/// The same machine as `config` says, but going on from a snapshot: it stands still at first.
pub(crate) fn restore_config(config: worker::VmConfig, resume: &Resume) -> worker::RestoreConfig {
    // What it boots by, and what its disks stand on, is known here. The snapshot was written by a process of a guest, and
    // is believed in nothing of that.
    let discs = config.cdroms.iter().flat_map(|cdrom| cdrom.path.iter().chain(&cdrom.media));
    let allow = config.kernel.iter().chain(&config.initrd).chain(discs).cloned().collect();
    worker::RestoreConfig {
        allow,
        paused: true,
        name: config.name,
        uuid: config.uuid,
        generation_id: config.generation_id.filter(|_| resume.other),
        engine: config.engine,
        disks: config.disks,
        nets: config.nets,
        vsock: config.vsock,
        qemu_agent: config.qemu_agent,
        shares: config.shares,
        serial: config.serial,
        control: config.control,
        snapshots: config.snapshots,
        report: config.report,
        firmware_variables: config.firmware_variables,
        disk_folder: config.disk_folder,
        on_reset: Some(config.on_reset),
        ..worker::RestoreConfig::new(&resume.snapshot)
    }
}

/// What the machine's worker is started with. `disk_path` says where a volume is, `card` what a card is plugged into if
/// not into a network of its own.
pub(crate) fn worker_config(
    vm: &VmRecord,
    instance: Option<&Instance>,
    folder: &Folder,
    console_log: PathBuf,
    mut disk_path: impl FnMut(&DiskConfig) -> PathBuf,
    mut card: impl FnMut(&NicConfig) -> Option<worker::NetConfig>,
) -> worker::VmConfig {
    let config = &vm.config;
    let disks = config.disks.iter().map(|disk| worker::DiskConfig {
        // Never found out: a guest could make its disk look like an image that stands on a file of the host.
        format: "raw".into(),
        read_only: disk.read_only,
        serial: disk.serial.clone(),
        ..worker::DiskConfig::new(disk_path(disk))
    });
    let user = |nic: &NicConfig| {
        worker::NetConfig::User(worker::UserNetConfig {
            mac: nic.mac.clone(),
            forward: nic.ports.clone(),
            restrict: nic.restrict,
            hostname: Some(vm.name.clone()),
            limits: nic.limits.clone(),
            ..worker::UserNetConfig::default()
        })
    };
    let nets = config.nics.iter().map(|nic| card(nic).unwrap_or_else(|| user(nic)));
    let base = match instance {
        Some(instance) => instance.vm_config(),
        None => {
            let firmware = config.boot.firmware.map(|firmware| match firmware {
                ImageFirmware::Bios => worker::FirmwareImage::Bios,
                ImageFirmware::Uefi => worker::FirmwareImage::Uefi,
            });
            let kernel = config.boot.kernel.clone().map(PathBuf::from);
            let initrd = config.boot.initrd.clone().map(PathBuf::from);
            worker::VmConfig { kernel, firmware, initrd, ..worker::VmConfig::new("") }
        }
    };
    let uefi = base.firmware == Some(worker::FirmwareImage::Uefi);
    worker::VmConfig {
        name: Some(vm.name.clone()),
        uuid: Some(vm.id.clone()),
        boot: config.boot.method,
        append: [base.append.as_str(), &config.boot.append].join(" ").trim().to_owned(),
        cpus: config.cpus,
        cpu_model: config.cpu_model.clone(),
        memory: config.memory,
        engine: config.engine,
        // Snapshots keep an instance's disks where they are, as layers.
        disk_folder: instance.and_then(Instance::disk_folder),
        disks: base.disks.into_iter().chain(disks).collect(),
        nets: nets.collect(),
        qemu_agent: Some(folder.file("qemu-agent")),
        // Every machine has the device: there is no way to give it one while it runs.
        shares: Some(Vec::new()),
        vsock: Some(worker::VsockConfig { cid: VSOCK_CID, socket: folder.file("vsock") }),
        serial: worker::CharDevice::Socket(worker::LineSocketConfig {
            path: folder.file("console"),
            log: Some(console_log.clone()),
        }),
        control: Some(folder.file("control")),
        report: Some(folder.file("report")),
        on_reset: config.on_reset,
        firmware_variables: uefi.then(|| console_log.with_file_name("uefi-variables")),
        kernel: base.kernel,
        initrd: base.initrd,
        firmware: base.firmware,
        ..worker::VmConfig::new("")
    }
}
