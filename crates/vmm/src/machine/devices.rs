//! The devices on the PCI bus beside the platform's own, and their places.

use super::Shares;
use crate::Error;
use crate::inputs::Devices;
use api::worker::config::{BootKind, CdromBus, DiskBus};
use boot::firmware::BootDevice;
use device::MsiSink;
use device::limit::{Limiter, Limits};
use device::pci::Bdf;
use memory::Ram;
use platform::Platform;
use scsi::ahci::{Ahci, DriveConfig};
use std::sync::Arc;
use virtio::balloon::{Balloon, BalloonControl};
use virtio::blk::{Blk, BlkConfig};
use virtio::net::Net;
use virtio::rng::Rng;
use virtio::scsi::{Scsi, ScsiControl, TargetConfig};
use virtio::{VirtioDevice, VirtioPci};

/// More queues than this do not make a disk faster.
pub const DISK_QUEUES_MAX: u32 = 8;

/// Where the AHCI controller is: beside display and ISA bridge, so that it moves no other device.
const AHCI_DEVICE: u8 = 29;
/// Where the SCSI host is: beside that.
const SCSI_DEVICE: u8 = 28;

/// The devices, and those of them that firmware can boot from, in order.
pub(super) struct Populated {
    pub(super) functions: Vec<Arc<VirtioPci>>,
    pub(super) ahci: Option<Arc<Ahci>>,
    pub(super) boot_order: Vec<BootDevice>,
    pub(super) handles: Handles,
}

/// What can be changed of devices while the machine runs.
#[derive(Default)]
pub(super) struct Handles {
    /// Each disk; `None` for one at the AHCI controller.
    pub(super) disks: Vec<Option<DiskHandle>>,
    /// What keeps the rates of disks at the AHCI controller.
    pub(super) at_ahci: Vec<(usize, Arc<Limiter>)>,
    /// Each network card: frames from the guest, and to it.
    pub(super) nets: Vec<Handle<2>>,
    /// CD-ROM drives, in their order.
    pub(super) discs: Vec<DiscPlace>,
    /// The SCSI host.
    pub(super) scsi: Option<ScsiControl>,
    /// The balloon.
    pub(super) balloon: Option<(Arc<VirtioPci>, BalloonControl)>,
    /// The folders of the host that the guest sees.
    pub(super) shares: Option<(Arc<VirtioPci>, Shares)>,
}

/// Where a CD-ROM drive is.
#[derive(Clone, Copy, Debug)]
pub(super) enum DiscPlace {
    /// At a port of the AHCI controller.
    Port(usize),
    /// At a target of the SCSI host.
    Target(usize),
}

/// The device that a disk is at.
pub(super) struct DiskHandle {
    pub(super) function: Arc<VirtioPci>,
    pub(super) place: DiskPlace,
}

/// Where at its device a disk is.
pub(super) enum DiskPlace {
    /// It has the device for itself, whose rate is kept.
    Own(Arc<Limiter>),
    /// At a target of the SCSI host, which keeps the rate of each by itself.
    Target(u8, Arc<Limiter>),
}

/// A device and what keeps its rate.
pub(super) struct Handle<const N: usize> {
    pub(super) function: Arc<VirtioPci>,
    pub(super) limiters: [Arc<Limiter>; N],
}

impl<const N: usize> Handle<N> {
    /// Changes the limits, also for what waits already.
    pub(super) fn limit(&self, limits: Limits) {
        self.limiters.iter().for_each(|limiter| limiter.set(limits));
        self.function.wake();
    }
}

/// What a device on the bus is connected to.
pub(super) struct PciBus<'a> {
    pub(super) platform: &'a Platform,
    pub(super) ram: &'a Arc<Ram>,
    pub(super) msi: &'a Arc<dyn MsiSink>,
}

impl PciBus<'_> {
    /// Places all devices. Network cards come first: guests name them by their place, which so does not
    /// change when a disk is added.
    pub(super) fn populate(&self, devices: Devices, cpus: u32) -> Result<Populated, Error> {
        let (mut functions, mut handles) = (Vec::new(), Handles::default());
        let (mut from_net, mut from_disk, mut from_disc) = (Vec::new(), Vec::new(), Vec::new());
        let (mut drives, mut targets, mut at_targets) = (Vec::new(), Vec::new(), Vec::new());
        for (index, card) in devices.nets.into_iter().enumerate() {
            from_net.push(BootDevice::Net(self.slot()?));
            let net = Net::new(card.mac.0, card.backend);
            let limiters = net.limiters();
            limiters.iter().for_each(|limiter| limiter.set(card.limits));
            let function = self.add(format!("net{index}"), Box::new(net))?;
            functions.push(function.clone());
            handles.nets.push(Handle { function, limiters });
        }
        for (index, disk) in devices.disks.into_iter().enumerate() {
            if disk.bus == DiskBus::Ahci {
                from_disk.push(BootDevice::Sata(AHCI_DEVICE, drives.len() as u8));
                let limiter = Arc::new(Limiter::new(disk.limits));
                handles.at_ahci.push((index, limiter.clone()));
                drives.push(DriveConfig::Disk { disk: disk.disk, serial: disk.serial, limiter });
                handles.disks.push(None);
                continue;
            }
            if disk.bus == DiskBus::Scsi {
                from_disk.push(BootDevice::Scsi(SCSI_DEVICE, targets.len() as u8));
                let limiter = Arc::new(Limiter::new(disk.limits));
                at_targets.push((index, targets.len() as u8, limiter.clone()));
                targets.push(TargetConfig::Disk { disk: disk.disk, serial: disk.serial, limiter });
                handles.disks.push(None);
                continue;
            }
            let queues = cpus.min(DISK_QUEUES_MAX) as u16;
            from_disk.push(BootDevice::VirtioDisk(self.slot()?));
            let limiter = Arc::new(Limiter::new(disk.limits));
            let config =
                BlkConfig { serial: disk.serial, queues, limiter: limiter.clone(), ..BlkConfig::default() };
            let function = self.add(format!("disk{index}"), Box::new(Blk::new(disk.disk, config)))?;
            functions.push(function.clone());
            handles.disks.push(Some(DiskHandle { function, place: DiskPlace::Own(limiter) }));
        }
        if let Some(vsock) = devices.vsock {
            functions.push(self.add("vsock".into(), Box::new(vsock))?);
        }
        if let Some(console) = devices.console {
            functions.push(self.add("console".into(), Box::new(console))?);
        }
        functions.push(self.add("rng".into(), Box::new(Rng::new()))?);
        for (bus, disc) in devices.discs {
            match bus {
                CdromBus::Ahci => {
                    from_disc.push(BootDevice::Sata(AHCI_DEVICE, drives.len() as u8));
                    handles.discs.push(DiscPlace::Port(drives.len()));
                    drives.push(DriveConfig::Cd(disc));
                }
                CdromBus::Scsi => {
                    from_disc.push(BootDevice::Scsi(SCSI_DEVICE, targets.len() as u8));
                    handles.discs.push(DiscPlace::Target(targets.len()));
                    targets.push(TargetConfig::Cd(disc));
                }
            }
        }
        if !targets.is_empty() {
            let queues = cpus.min(DISK_QUEUES_MAX) as u16;
            let scsi = Scsi::new(targets, queues);
            handles.scsi = Some(scsi.control());
            let function = self.add_at(SCSI_DEVICE, "scsi".into(), Box::new(scsi))?;
            functions.push(function.clone());
            for (index, target, limiter) in at_targets {
                let place = DiskPlace::Target(target, limiter);
                handles.disks[index] = Some(DiskHandle { function: function.clone(), place });
            }
        }
        let ahci = if drives.is_empty() { None } else { Some(self.add_ahci(drives)?) };
        let mut boot_order = Vec::new();
        for kind in devices.boot_order {
            boot_order.append(match kind {
                BootKind::Disk => &mut from_disk,
                BootKind::Cdrom => &mut from_disc,
                BootKind::Net => &mut from_net,
            });
        }
        if devices.balloon {
            let balloon = Balloon::new();
            let control = balloon.control();
            let function = self.add("balloon".into(), Box::new(balloon))?;
            functions.push(function.clone());
            handles.balloon = Some((function, control));
        }
        // Last: machines of before had none, and their other devices stay where they were.
        if let Some(port) = devices.qemu_agent {
            functions.push(self.add("serial".into(), Box::new(port))?);
        }
        if let Some((device, shares)) = devices.shares {
            let function = self.add("fs".into(), Box::new(device))?;
            functions.push(function.clone());
            handles.shares = Some((function, shares));
        }
        Ok(Populated { functions, ahci, boot_order, handles })
    }

    fn add_ahci(&self, drives: Vec<DriveConfig>) -> Result<Arc<Ahci>, Error> {
        let refused = || Error::host("the AHCI controller cannot be made");
        let line = self.platform.irqs.pci_line(AHCI_DEVICE);
        let ahci = Ahci::new(drives, self.ram.clone(), line).map_err(|e| refused().with_source(e))?;
        self.platform
            .pci
            .add(Bdf::on_bus_0(AHCI_DEVICE, 0), ahci.clone())
            .map_err(|e| refused().with_source(e))?;
        Ok(ahci)
    }

    /// Where the next device goes.
    fn slot(&self) -> Result<u8, Error> {
        self.platform
            .pci
            .free_device()
            .map_err(|e| Error::host("the devices do not fit on the PCI bus").with_source(e))
    }

    fn add(&self, name: String, device: Box<dyn VirtioDevice>) -> Result<Arc<VirtioPci>, Error> {
        self.add_at(self.slot()?, name, device)
    }

    fn add_at(&self, slot: u8, name: String, device: Box<dyn VirtioDevice>) -> Result<Arc<VirtioPci>, Error> {
        let refused = |name: &str| Error::host(format!("the device {name} cannot be made"));
        let line = self.platform.irqs.pci_line(slot);
        let function = VirtioPci::new(name.clone(), device, self.ram.clone(), self.msi.clone(), line)
            .map_err(|e| refused(&name).with_source(e))?;
        self.platform
            .pci
            .add(Bdf::on_bus_0(slot, 0), function.clone())
            .map_err(|e| refused(&name).with_source(e))?;
        Ok(function)
    }
}
