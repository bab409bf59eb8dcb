//! MSI-X (PCI Local Bus Specification 3.0, §6.8.2).

use super::ConfigSpace;
use crate::state::RestoreError;
use crate::{Msi, MsiRoute, MsiSink};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const CAPABILITY_ID: u8 = 0x11;
const ENTRY_SIZE: usize = 16;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const VECTOR_MASKED: u32 = 1;

/// The MSI-X table and pending-bit array of one function.
pub struct Msix {
    table: Vec<Entry>,
    pending: Vec<bool>,
    enabled: bool,
    function_masked: bool,
    capability: u16,
    sink: Arc<dyn MsiSink>,
    /// By vector.
    ways: Vec<Way>,
}

/// How the messages of a vector go.
enum Way {
    /// None was sent yet.
    Untried,
    /// One by one.
    Plain,
    /// By a way of their own, on which this message is set.
    Prepared { route: Box<dyn MsiRoute>, message: Msi },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

/// Saved form of [`Msix`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MsixSaved {
    table: Vec<Entry>,
    pending: Vec<bool>,
}

impl Msix {
    /// Adds the capability to `config`, with table and pending bits in BAR `bar` at the given offsets.
    ///
    /// # Panics
    /// When `vectors` is not between 1 and 2048: the device's own mistake.
    pub fn new(
        config: &mut ConfigSpace,
        vectors: u16,
        bar: u8,
        table_offset: u32,
        pending_offset: u32,
        sink: Arc<dyn MsiSink>,
    ) -> Msix {
        assert!((1..=2048).contains(&vectors));
        assert!(table_offset.is_multiple_of(8) && pending_offset.is_multiple_of(8));
        let mut body = [0; 10];
        body[0..2].copy_from_slice(&(vectors - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table_offset | bar as u32).to_le_bytes());
        body[6..10].copy_from_slice(&(pending_offset | bar as u32).to_le_bytes());
        let mut writable = [0; 10];
        writable[1] = 0xc0;
        let capability = config.add_capability(CAPABILITY_ID, &body, &writable);
        let entry = Entry { address: 0, data: 0, control: VECTOR_MASKED };
        Msix {
            table: vec![entry; vectors as usize],
            pending: vec![false; vectors as usize],
            enabled: false,
            function_masked: false,
            capability,
            sink,
            ways: (0..vectors).map(|_| Way::Untried).collect(),
        }
    }

    /// Takes note of a write to configuration space: call it after every one.
    pub fn config_written(&mut self, config: &ConfigSpace) {
        let control = config.u16(self.capability + 2);
        self.enabled = control & CONTROL_ENABLE != 0;
        self.function_masked = control & CONTROL_FUNCTION_MASK != 0;
        self.send_unmasked();
    }

    /// Whether the guest uses MSI-X on this function.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// The number of vectors.
    pub fn vectors(&self) -> u16 {
        self.table.len() as u16
    }

    /// Size of the table in bytes.
    pub fn table_len(&self) -> u64 {
        (self.table.len() * ENTRY_SIZE) as u64
    }

    /// Size of the pending-bit array in bytes.
    pub fn pending_len(&self) -> u64 {
        self.table.len().div_ceil(64) as u64 * 8
    }

    /// Sends vector `vector`, or keeps it pending while it is masked. Unknown vectors and disabled MSI-X
    /// send nothing.
    pub fn trigger(&mut self, vector: u16) {
        let Some(entry) = self.table.get(vector as usize) else { return };
        if !self.enabled {
            return;
        }
        if self.function_masked || entry.control & VECTOR_MASKED != 0 {
            self.pending[vector as usize] = true;
        } else {
            let message = Msi { address: entry.address, data: entry.data };
            self.ways[vector as usize].send(&*self.sink, message);
        }
    }

    fn send_unmasked(&mut self) {
        if !self.enabled || self.function_masked {
            return;
        }
        for ((entry, pending), way) in self.table.iter().zip(&mut self.pending).zip(&mut self.ways) {
            if *pending && entry.control & VECTOR_MASKED == 0 {
                *pending = false;
                way.send(&*self.sink, Msi { address: entry.address, data: entry.data });
            }
        }
    }

    /// Reads the table: aligned accesses of 4 or 8 bytes, others leave ones.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        let Some(entry) = self.table.get(offset as usize / ENTRY_SIZE) else { return };
        let mut bytes = [0; ENTRY_SIZE];
        bytes[0..8].copy_from_slice(&entry.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&entry.data.to_le_bytes());
        bytes[12..16].copy_from_slice(&entry.control.to_le_bytes());
        let at = offset as usize % ENTRY_SIZE;
        if matches!(data.len(), 4 | 8) && at.is_multiple_of(data.len()) {
            data.copy_from_slice(&bytes[at..at + data.len()]);
        }
    }

    /// Writes the table: aligned accesses of 4 or 8 bytes, others are ignored.
    pub fn table_write(&mut self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        for (at, word) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
            let word = u32::from_le_bytes(word.try_into().expect("four bytes"));
            let Some(entry) = self.table.get_mut(at as usize / ENTRY_SIZE) else { return };
            match at as usize % ENTRY_SIZE {
                0 => entry.address = entry.address & !0xffff_ffff | (word & !3) as u64,
                4 => entry.address = entry.address & 0xffff_ffff | (word as u64) << 32,
                8 => entry.data = word,
                _ => entry.control = word & VECTOR_MASKED,
            }
        }
        self.send_unmasked();
    }

    /// Reads the pending-bit array: aligned accesses of 4 or 8 bytes, others leave ones.
    pub fn pending_read(&self, offset: u64, data: &mut [u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        for (byte, at) in data.iter_mut().zip(offset..) {
            let first = at as usize * 8;
            *byte = (0..8)
                .fold(0, |bits, bit| bits | (*self.pending.get(first + bit).unwrap_or(&false) as u8) << bit);
        }
    }

    /// The saved form; enable and mask bits are in the configuration space.
    pub fn save(&self) -> MsixSaved {
        MsixSaved { table: self.table.clone(), pending: self.pending.clone() }
    }

    /// Takes over a saved table. Restore the configuration space first.
    ///
    /// # Errors
    /// When the number of vectors differs.
    pub fn restore(&mut self, saved: MsixSaved, config: &ConfigSpace) -> Result<(), RestoreError> {
        if saved.table.len() != self.table.len() || saved.pending.len() != self.table.len() {
            return Err(RestoreError::new("MSI-X table", "the number of vectors differs"));
        }
        self.table = saved.table;
        for entry in &mut self.table {
            entry.control &= VECTOR_MASKED;
            entry.address &= !3;
        }
        self.pending = saved.pending;
        let control = config.u16(self.capability + 2);
        self.enabled = control & CONTROL_ENABLE != 0;
        self.function_masked = control & CONTROL_FUNCTION_MASK != 0;
        Ok(())
    }
}

impl Way {
    fn send(&mut self, sink: &dyn MsiSink, message: Msi) {
        let is_set = match self {
            Way::Plain => false,
            Way::Untried => sink.open_route().is_some_and(|route| {
                let is_set = route.set(message);
                *self = Way::Prepared { route, message };
                is_set
            }),
            Way::Prepared { message: set, .. } if *set == message => true,
            Way::Prepared { route, message: set } => {
                let is_set = route.set(message);
                if is_set {
                    *set = message;
                }
                is_set
            }
        };
        match self {
            Way::Prepared { route, .. } if is_set => route.send(),
            _ => {
                *self = Way::Plain;
                sink.send_msi(message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::{BarKind, Identity};
    use std::sync::Mutex;

    #[derive(Default)]
    struct Sent(Mutex<Vec<Msi>>);
    impl MsiSink for Sent {
        fn send_msi(&self, msi: Msi) {
            self.0.lock().unwrap().push(msi);
        }
    }

    fn setup() -> (ConfigSpace, Msix, Arc<Sent>) {
        let mut config = ConfigSpace::new(Identity {
            vendor: 1,
            device: 2,
            subsystem_vendor: 0,
            subsystem: 0,
            revision: 0,
            class: 0,
        });
        config.add_bar(0, BarKind::Memory32, 0x1000);
        let sent = Arc::new(Sent::default());
        let msix = Msix::new(&mut config, 3, 0, 0, 0x800, sent.clone());
        (config, msix, sent)
    }

    #[test]
    fn a_masked_vector_stays_pending_until_it_is_unmasked() {
        let (mut config, mut msix, sent) = setup();
        msix.trigger(1);
        config.write(0x42, &0x8000u16.to_le_bytes());
        msix.config_written(&config);
        assert!(msix.is_enabled());
        msix.table_write(16, &0xfee0_1000u64.to_le_bytes());
        msix.table_write(24, &0x41u32.to_le_bytes());
        msix.trigger(1);
        let mut bits = [0; 8];
        msix.pending_read(0, &mut bits);
        assert_eq!(u64::from_le_bytes(bits), 2);
        assert!(sent.0.lock().unwrap().is_empty());
        msix.table_write(28, &0u32.to_le_bytes());
        assert_eq!(*sent.0.lock().unwrap(), [Msi { address: 0xfee0_1000, data: 0x41 }]);
        config.write(0x42, &0xc000u16.to_le_bytes());
        msix.config_written(&config);
        msix.trigger(1);
        assert_eq!(sent.0.lock().unwrap().len(), 1);
        config.write(0x42, &0x8000u16.to_le_bytes());
        msix.config_written(&config);
        assert_eq!(sent.0.lock().unwrap().len(), 2);
    }

    /// Ways that take messages to one address only, and say what goes over them.
    #[derive(Default)]
    struct Ways(Arc<Mutex<Vec<String>>>);
    struct Noted(Arc<Mutex<Vec<String>>>, Mutex<u32>);
    impl MsiSink for Ways {
        fn send_msi(&self, msi: Msi) {
            self.0.lock().unwrap().push(format!("plain {:x}", msi.data));
        }
        fn open_route(&self) -> Option<Box<dyn MsiRoute>> {
            self.0.lock().unwrap().push("open".into());
            Some(Box::new(Noted(self.0.clone(), Mutex::default())))
        }
    }
    impl MsiRoute for Noted {
        fn set(&self, msi: Msi) -> bool {
            *self.1.lock().unwrap() = msi.data;
            self.0.lock().unwrap().push(format!("set {:x}", msi.data));
            msi.data < 0x80
        }
        fn send(&self) {
            self.0.lock().unwrap().push(format!("send {:x}", *self.1.lock().unwrap()));
        }
    }

    #[test]
    fn messages_go_by_a_prepared_way_as_long_as_it_takes_them() {
        let (mut config, _, _) = setup();
        let ways = Ways::default();
        let log = ways.0.clone();
        let mut msix = Msix::new(&mut config, 1, 0, 0, 0x800, Arc::new(ways));
        config.write(msix.capability + 2, &0x8000u16.to_le_bytes());
        msix.config_written(&config);
        msix.table_write(0, &0xfee0_0000u64.to_le_bytes());
        for data in [0x41u32, 0x41, 0x42, 0x81, 0x41] {
            msix.table_write(12, &1u32.to_le_bytes());
            msix.table_write(8, &data.to_le_bytes());
            msix.trigger(0);
            msix.table_write(12, &0u32.to_le_bytes());
        }
        let expected =
            ["open", "set 41", "send 41", "send 41", "set 42", "send 42", "set 81", "plain 81", "plain 41"];
        assert_eq!(*log.lock().unwrap(), expected);
    }

    #[test]
    fn nonsense_accesses_change_nothing() {
        let (_, mut msix, _) = setup();
        msix.table_write(1, &[0; 4]);
        msix.table_write(u64::MAX - 7, &[0; 8]);
        msix.table_write(0, &[0; 3]);
        msix.trigger(500);
        let mut data = [0xff; 4];
        msix.table_read(12, &mut data);
        assert_eq!(data, 1u32.to_le_bytes());
        let mut data = [0xff; 2];
        msix.table_read(0x10000, &mut data);
        assert_eq!(data, [0xff; 2]);
    }
}
