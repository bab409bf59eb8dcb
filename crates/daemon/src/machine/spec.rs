//! From what users write to what a worker is started with.

use super::Folder;
use api::v1::vm::DiskConfig;
use api::worker::config as worker;
use std::path::PathBuf;
use store::VmRecord;

/// The guest's context ID: each worker has its own socket, so that all guests can have the same.
const VSOCK_CID: u64 = 3;

/// What the machine's worker is started with. `disk_path` says where a volume is.
pub(crate) fn worker_config(
    vm: &VmRecord,
    folder: &Folder,
    console_log: PathBuf,
    mut disk_path: impl FnMut(&DiskConfig) -> PathBuf,
) -> worker::VmConfig {
    let config = &vm.config;
    let disks = config.disks.iter().map(|disk| worker::DiskConfig {
        // Never found out: a guest could make its disk look like an image that stands on a file of the host.
        format: "raw".into(),
        read_only: disk.read_only,
        serial: disk.serial.clone(),
        ..worker::DiskConfig::new(disk_path(disk))
    });
    let nets = config.nics.iter().map(|nic| {
        worker::NetConfig::User(worker::UserNetConfig {
            mac: nic.mac.clone(),
            forward: nic.ports.clone(),
            restrict: nic.restrict,
            subnet: None,
            hostname: Some(vm.name.clone()),
        })
    });
    worker::VmConfig {
        name: Some(vm.name.clone()),
        uuid: Some(vm.id.clone()),
        boot: config.boot.method,
        initrd: config.boot.initrd.clone().map(PathBuf::from),
        append: config.boot.append.clone(),
        cpus: config.cpus,
        cpu_model: config.cpu_model.clone(),
        memory: config.memory,
        engine: config.engine,
        disks: disks.collect(),
        nets: nets.collect(),
        vsock: Some(worker::VsockConfig { cid: VSOCK_CID, socket: folder.file("vsock") }),
        serial: worker::CharDevice::Socket(worker::LineSocketConfig {
            path: folder.file("console"),
            log: Some(console_log),
        }),
        control: Some(folder.file("control")),
        report: Some(folder.file("report")),
        on_reset: config.on_reset,
        ..worker::VmConfig::new(&config.boot.kernel)
    }
}
