//! What can be changed of a machine's devices while it runs: disks, limits, memory.

use super::devices::{DiscPlace, DiskHandle, DiskPlace};
use super::{Machine, Shares};
use device::limit::{Limiter, Limits};
use disk::{Disk, Live};
use scsi::DiscError;
use std::sync::Arc;
use virtio::balloon::BalloonStatus;

impl Machine {
    fn disk_handle(&self, index: usize) -> Option<&DiskHandle> {
        self.handles.disks.get(index)?.as_ref()
    }

    /// What keeps the rate of a disk.
    fn disk_limiter(&self, index: usize) -> Option<&Arc<Limiter>> {
        match self.disk_handle(index).map(|handle| &handle.place) {
            Some(DiskPlace::Own(limiter) | DiskPlace::Target(_, limiter)) => Some(limiter),
            None => self.handles.at_ahci.iter().find(|(at, _)| *at == index).map(|(_, limiter)| limiter),
        }
    }

    /// The number of disks.
    pub fn disk_count(&self) -> usize {
        self.disks.len()
    }

    /// A disk as the guest has it.
    pub fn disk(&self, index: usize) -> Option<&Arc<dyn Disk>> {
        self.disks.get(index)
    }

    /// The images of a disk; `None` for one whose images cannot change, or that is at an AHCI controller.
    pub fn live_disk(&self, index: usize) -> Option<&Arc<Live>> {
        self.disk_handle(index)?;
        self.live.get(index)?.as_ref()
    }

    /// The images of a disk, wherever it is; they change only while the whole machine stands still.
    pub fn images(&self, index: usize) -> Option<&Arc<Live>> {
        self.live.get(index)?.as_ref()
    }

    /// Takes note that a disk goes on with another image.
    pub fn disk_moved(&self, index: usize) {
        if let Some(disk) = self.snapshots.as_ref().and_then(|(_, disks)| disks.get(index)) {
            disk.forget_file();
        }
    }

    /// Lets no request be in flight at a disk, and at those that share its controller, while `work` is done, and makes its queues anew. `is_paused` says
    /// whether the machine stands still anyway.
    pub fn quiesce_disk<T>(&self, index: usize, is_paused: bool, work: impl FnOnce() -> T) -> T {
        let function = self.disk_handle(index).map(|handle| &handle.function);
        if let Some(function) = function {
            function.pause();
        }
        let result = work();
        if let (Some(function), false) = (function, is_paused) {
            function.resume();
        }
        result
    }

    /// Tells the guest that a disk has another size.
    pub fn disk_resized(&self, index: usize) {
        if let Some(disk) = self.snapshots.as_ref().and_then(|(_, disks)| disks.get(index)) {
            disk.resized();
        }
        let Some(DiskHandle { function, place }) = self.disk_handle(index) else { return };
        match (place, &self.handles.scsi) {
            (DiskPlace::Own(_), _) => function.config_changed(),
            (DiskPlace::Target(target, _), Some(scsi)) => {
                scsi.resized(*target);
                function.wake();
            }
            (DiskPlace::Target(..), None) => {}
        }
    }

    /// The limits of a disk.
    pub fn disk_limits(&self, index: usize) -> Limits {
        self.disk_limiter(index).map(|limiter| limiter.limits()).unwrap_or_default()
    }

    /// Limits a disk; whether there is one.
    pub fn limit_disk(&self, index: usize, limits: Limits) -> bool {
        let Some(limiter) = self.disk_limiter(index) else { return false };
        limiter.set(limits);
        // Also for what waits already.
        match (self.disk_handle(index), &self.ahci) {
            (Some(handle), _) => handle.function.wake(),
            (None, Some(ahci)) => ahci.wake(),
            (None, None) => {}
        }
        true
    }

    /// Limits a network card; whether there is one.
    pub fn limit_net(&self, index: usize, limits: Limits) -> bool {
        self.handles.nets.get(index).map(|handle| handle.limit(limits)).is_some()
    }

    /// Puts another disc into a CD-ROM drive, or takes it out; `force` although the guest holds it.
    ///
    /// # Errors
    /// When there is no such drive, or the guest holds the disc.
    pub fn change_disc(
        &self,
        drive: usize,
        disc: Option<Arc<dyn Disk>>,
        force: bool,
    ) -> Result<(), DiscError> {
        let nowhere = DiscError::NoSuchDrive;
        match self.handles.discs.get(drive).ok_or(nowhere)? {
            DiscPlace::Port(port) => self.ahci.as_ref().ok_or(nowhere)?.change_disc(*port, disc, force),
            DiscPlace::Target(target) => {
                self.handles.scsi.as_ref().ok_or(nowhere)?.change_disc(*target, disc, force)
            }
        }
    }

    /// What disks and network cards were asked to do so far, all of a kind together.
    pub fn device_counters(&self) -> [(&'static str, u64); 6] {
        let sum = |limiters: &mut dyn Iterator<Item = &Arc<Limiter>>| {
            limiters.fold((0, 0), |sum: (u64, u64), limiter| {
                let (operations, bytes) = limiter.counted();
                (sum.0 + operations, sum.1 + bytes)
            })
        };
        let disks = sum(&mut (0..self.disk_count()).filter_map(|disk| self.disk_limiter(disk)));
        let sent = sum(&mut self.handles.nets.iter().map(|net| &net.limiters[0]));
        let received = sum(&mut self.handles.nets.iter().map(|net| &net.limiters[1]));
        [
            ("disk_requests", disks.0),
            ("disk_bytes", disks.1),
            ("net_sent_frames", sent.0),
            ("net_sent_bytes", sent.1),
            ("net_received_frames", received.0),
            ("net_received_bytes", received.1),
        ]
    }

    /// The folders of the host that the guest sees; `None` without a device for them.
    pub fn shares(&self) -> Option<&Shares> {
        self.handles.shares.as_ref().map(|(_, shares)| shares)
    }

    /// Takes such a folder away; whether there was one of this name.
    pub fn remove_share(&self, name: &str) -> bool {
        self.handles.shares.as_ref().is_some_and(|(function, shares)| {
            let removed = shares.remove(name);
            function.wake();
            removed
        })
    }

    /// What is known of the guest's memory; `None` without a balloon.
    pub fn balloon_status(&self) -> Option<BalloonStatus> {
        let (function, control) = self.handles.balloon.as_ref()?;
        let status = control.status();
        function.wake();
        Some(status)
    }

    /// Asks the guest to give away so much; whether there is a balloon.
    pub fn set_balloon(&self, bytes: u64) -> bool {
        self.handles.balloon.as_ref().map(|(_, control)| control.set_target(bytes)).is_some()
    }
}
