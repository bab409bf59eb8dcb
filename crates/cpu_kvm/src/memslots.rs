//! Memory slots: guest memory as KVM knows it, and its log of written pages.

use crate::kvm_refused;
use cpu::{Error, ErrorKind};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use memory::{PAGE_SIZE, Ram};
use std::sync::Mutex;

/// Tells KVM of all memory, or of a change: whether it is to log which pages are written. No vCPU runs.
/// Writes to read-only memory come out of KVM_RUN like those to devices.
pub(crate) fn install(vm: &VmFd, ram: &Ram, log_dirty: bool) -> Result<(), Error> {
    let for_ram = if log_dirty { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
    let slots = ram.guest_ranges().into_iter().map(|range| (range, for_ram));
    let slots = slots.chain(ram.rom_ranges().map(|range| (range, KVM_MEM_READONLY)));
    for (slot, (range, flags)) in (0..).zip(slots) {
        let hva = ram.host_address(range).ok_or_else(|| {
            Error::new(ErrorKind::Internal, "a range of guest memory has no address in this process")
        })?;
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: range.start,
            memory_size: range.len,
            userspace_addr: hva as u64,
        };
        // SAFETY: the mapping lives as long as `ram`, which the machine's `KvmVm` holds beside the VM.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(kvm_refused(format!("KVM refuses {} bytes of guest memory", range.len)))?;
    }
    Ok(())
}

/// The slot of video memory, after all others: three ranges of RAM at most, and two of firmware.
const VIDEO_SLOT: u32 = 16;

/// Where KVM has video memory.
#[derive(Default)]
pub(crate) struct VideoSlot(Mutex<Option<u64>>);

impl VideoSlot {
    /// Follows video memory to its present place. vCPUs may run.
    pub(crate) fn follow(&self, vm: &VmFd, ram: &Ram) -> Result<(), Error> {
        let Some(video) = ram.video() else { return Ok(()) };
        let mut placed = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let wanted = video.place().map(|range| range.start);
        if *placed == wanted {
            return Ok(());
        }
        let set = |start: u64, len: u64| {
            let region = kvm_userspace_memory_region {
                slot: VIDEO_SLOT,
                flags: 0,
                guest_phys_addr: start,
                memory_size: len,
                userspace_addr: video.host_address() as u64,
            };
            // SAFETY: the mapping lives as long as `ram`, which the machine's `KvmVm` holds beside the VM.
            unsafe { vm.set_user_memory_region(region) }
                .map_err(kvm_refused("KVM does not move video memory"))
        };
        if let Some(start) = placed.take() {
            set(start, 0)?;
        }
        if let Some(start) = wanted {
            set(start, video.size())?;
            *placed = Some(start);
        }
        Ok(())
    }
}

/// Puts KVM's log of RAM pages written since the last time into the machine's.
pub(crate) fn collect_dirty(vm: &VmFd, ram: &Ram) -> Result<(), Error> {
    for (slot, range) in (0..).zip(ram.guest_ranges()) {
        let log = vm
            .get_dirty_log(slot, range.len as usize)
            .map_err(kvm_refused("KVM does not give its log of written pages"))?;
        let words = (0..).zip(log).filter(|(_, word)| *word != 0);
        let pages = words.flat_map(|(index, word)| {
            (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| index * 64 + bit)
        });
        for page in pages.filter(|page: &u64| page * PAGE_SIZE < range.len) {
            ram.report_write(range.start + page * PAGE_SIZE, PAGE_SIZE);
        }
    }
    Ok(())
}
