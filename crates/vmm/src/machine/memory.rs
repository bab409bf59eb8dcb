//! Clearing memory when a machine is reset.

use crate::Error;
use memory::Ram;
use rustix::fs::{FallocateFlags, fallocate};

/// Makes all memory zero by giving it back to the host. No vCPU runs and no device works; whoever holds
/// something derived from memory is told afterwards.
pub(super) fn clear(ram: &Ram) -> Result<(), Error> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(ram.file(), flags, 0, ram.size()).map_err(|e| {
        Error::host("the host does not clear the guest's memory").with_source(std::io::Error::from(e))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleared_memory_is_zero_and_still_there() {
        let ram = Ram::new(1 << 20).unwrap();
        ram.store(0x1000, 7u64).unwrap();
        ram.store(0xf_f000, 7u64).unwrap();
        clear(&ram).unwrap();
        assert_eq!((ram.load::<u64>(0x1000), ram.load::<u64>(0xf_f000)), (Some(0), Some(0)));
        ram.store(0x1000, 8u64).unwrap();
        assert_eq!(ram.load::<u64>(0x1000), Some(8));
    }
}
