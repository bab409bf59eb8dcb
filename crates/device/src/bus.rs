//! An address space of devices: port I/O or memory-mapped I/O.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, RwLock};

/// Something that answers reads and writes at a range of addresses.
///
/// Methods take `&self` because several vCPUs may access the device at once: the wiring around the pure
/// model holds the lock.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes (1, 2, 4 or 8) at `offset` from the start of the range. `data` comes
    /// filled with ones, what an empty bus reads as; leave it for registers that do not exist.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data.len()` bytes (1, 2, 4 or 8) at `offset` from the start of the range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two devices wanted the same address.
#[derive(Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Start of the refused range.
    pub start: u64,
    /// Its length.
    pub len: u64,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "addresses {:#x}..{:#x} are already taken by another device",
            self.start,
            self.start + self.len
        )
    }
}

impl std::error::Error for Overlap {}

/// A map from addresses to devices. Accesses take a read lock only, so vCPUs do not wait for each other.
#[derive(Default)]
pub struct Bus {
    /// Length and device by start address.
    ranges: RwLock<BTreeMap<u64, Placed>>,
}

type Placed = (u64, Arc<dyn BusDevice>);

impl Bus {
    /// Creates an empty bus.
    pub fn new() -> Bus {
        Bus::default()
    }

    /// Places a device at `[start, start + len)`.
    ///
    /// # Errors
    /// When part of the range is taken, or it is empty or wraps.
    pub fn insert(&self, start: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), Overlap> {
        let mut ranges = self.ranges.write().unwrap();
        let end = start.checked_add(len).filter(|_| len > 0).ok_or(Overlap { start, len })?;
        if let Some((&other, (other_len, _))) = ranges.range(..end).next_back()
            && other + other_len > start
        {
            return Err(Overlap { start, len });
        }
        ranges.insert(start, (len, device));
        Ok(())
    }

    /// Removes the device placed at `start`.
    pub fn remove(&self, start: u64) -> Option<Arc<dyn BusDevice>> {
        self.ranges.write().unwrap().remove(&start).map(|(_, device)| device)
    }

    fn find(&self, address: u64, len: u64) -> Option<(u64, Arc<dyn BusDevice>)> {
        let ranges = self.ranges.read().unwrap();
        let (&start, (range_len, device)) = ranges.range(..=address).next_back()?;
        let offset = address - start;
        (offset.checked_add(len)? <= *range_len).then(|| (offset, device.clone()))
    }

    /// Reads; returns false, leaving ones in `data`, when no device is there. An access that begins in
    /// a device but does not end in it finds no device either.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let found = self.find(address, data.len() as u64);
        if let Some((offset, device)) = &found {
            device.read(*offset, data);
        }
        found.is_some()
    }

    /// Writes; returns false when no device is there.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let found = self.find(address, data.len() as u64);
        if let Some((offset, device)) = &found {
            device.write(*offset, data);
        }
        found.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);
    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn accesses_reach_the_device_at_their_offset() {
        let (bus, device) = (Bus::new(), Arc::new(Recorder::default()));
        bus.insert(0x3f8, 8, device.clone()).unwrap();
        let mut data = [0; 1];
        assert!(bus.read(0x3fd, &mut data));
        assert_eq!(data, [5]);
        assert!(bus.write(0x3f8, &[1, 2]));
        assert_eq!(*device.0.lock().unwrap(), [(0, vec![1, 2])]);
    }

    #[test]
    fn an_empty_bus_floats_high() {
        let bus = Bus::new();
        bus.insert(0x60, 4, Arc::new(Recorder::default())).unwrap();
        let mut data = [0; 4];
        assert!(!bus.read(0x64, &mut data));
        assert_eq!(data, [0xff; 4]);
        assert!(!bus.read(0x62, &mut data), "begins inside, ends outside");
        assert!(!bus.write(u64::MAX, &[0; 4]));
    }

    #[test]
    fn overlapping_ranges_are_refused() {
        let bus = Bus::new();
        let device = || Arc::new(Recorder::default());
        bus.insert(0x100, 0x10, device()).unwrap();
        for (start, len) in [(0x100, 1), (0xff, 2), (0x10f, 1), (0x80, 0x200), (0x200, 0), (u64::MAX, 2)] {
            assert_eq!(bus.insert(start, len, device()), Err(Overlap { start, len }));
        }
        bus.insert(0x110, 0x10, device()).unwrap();
        bus.insert(0xf0, 0x10, device()).unwrap();
    }
}
