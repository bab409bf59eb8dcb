//! Memory slots: guest memory as KVM knows it, and its log of written pages.

use crate::kvm_refused;
use cpu::{Error, ErrorKind};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use memory::{PAGE_SIZE, Ram};

/// Tells KVM of all memory, or of a change: whether it is to log which pages are written. No vCPU runs.
/// Writes to read-only memory come out of KVM_RUN like those to devices.
pub(crate) fn install(vm: &VmFd, ram: &Ram, log_dirty: bool) -> Result<(), Error> {
    let for_ram = if log_dirty { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
    let slots = ram.ranges().map(|range| (range, for_ram));
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

/// Puts KVM's log of RAM pages written since the last time into the machine's.
pub(crate) fn collect_dirty(vm: &VmFd, ram: &Ram) -> Result<(), Error> {
    for (slot, range) in (0..).zip(ram.ranges()) {
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
