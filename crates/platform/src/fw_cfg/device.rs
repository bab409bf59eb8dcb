//! The fw_cfg device in the machine: ports, and DMA to guest memory.

use super::model::{DmaOperation, FwCfgError, FwCfgModel, FwCfgSaved};
use super::spec::*;
use crate::sync::lock;
use device::state::{RestoreError, SaveRestore};
use device::{Bus, BusDevice, Overlap};
use memory::{Bytes, GuestAddress, GuestMemory};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Beyond the end of an item a DMA read gives zeros, up to this many: more is refused, so that no
/// request takes long.
const ZEROS_MAX: u32 = 1 << 20;

/// The firmware configuration device.
pub struct FwCfg {
    model: Mutex<FwCfgModel>,
    memory: GuestMemory,
    /// Files that are made anew when they are selected.
    made: Mutex<BTreeMap<u16, Make>>,
}

/// Makes the contents of a file.
type Make = Box<dyn Fn() -> Option<Vec<u8>> + Send + Sync>;

impl FwCfg {
    /// Creates a device without files that reads and writes DMA requests in `memory`.
    pub fn new(memory: GuestMemory) -> Arc<FwCfg> {
        let (model, made) = (Mutex::new(FwCfgModel::new()), Mutex::default());
        Arc::new(FwCfg { model, memory, made })
    }

    /// Places the device at its ports.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn attach(self: &Arc<Self>, pio: &Bus) -> Result<(), Overlap> {
        pio.insert(PORT_SELECTOR.into(), PORT_COUNT.into(), self.clone())
    }

    /// Adds a file. Call it before the machine starts.
    ///
    /// # Errors
    /// When the name is taken or cannot be one, or the data is too long.
    pub fn add_file(&self, name: &str, data: Vec<u8>) -> Result<(), FwCfgError> {
        lock(&self.model).add_file(name, data)
    }

    /// Adds a file that `make` makes anew whenever the guest selects it: what describes the machine changes
    /// while firmware sets it up. `data` is its first content, whose length stays; when `make` gives
    /// none, the last content stays too. Call it before the machine starts.
    ///
    /// # Errors
    /// As [`FwCfg::add_file`].
    pub fn add_made_file(
        &self,
        name: &str,
        data: Vec<u8>,
        make: impl Fn() -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Result<(), FwCfgError> {
        let mut model = lock(&self.model);
        model.add_file(name, data)?;
        if let Some(key) = model.key(name) {
            lock(&self.made).insert(key, Box::new(make));
        }
        Ok(())
    }

    /// Adds a file of `len` zeros, into which firmware writes what the machine is to know. After a reset it is zero
    /// again. Call it before the machine starts.
    ///
    /// # Errors
    /// As [`FwCfg::add_file`].
    pub fn add_writable_file(&self, name: &str, len: usize) -> Result<(), FwCfgError> {
        lock(&self.model).add_writable_file(name, len)
    }

    /// The present contents of a file.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        lock(&self.model).contents(name).map(<[u8]>::to_vec)
    }

    /// Makes the file that `selector` means, if it is one that is made. Called without the model's lock.
    fn make(&self, selector: u16) {
        let key = FwCfgModel::selected_key(selector);
        let made = lock(&self.made).get(&key).and_then(|make| make());
        if let Some(data) = made {
            lock(&self.model).replace(key, data);
        }
    }

    /// Sets an item that has a fixed key. Call it before the machine starts.
    pub fn set_item(&self, key: u16, data: Vec<u8>) {
        lock(&self.model).set_item(key, data);
    }

    /// Puts the registers in their state after power-on; items stay.
    pub fn reset(&self) {
        lock(&self.model).reset();
    }

    /// The saved form. No vCPU runs.
    pub fn save(&self) -> FwCfgSaved {
        lock(&self.model).save()
    }

    /// Takes over a saved state. The items must have been added already.
    ///
    /// # Errors
    /// When the state is one that the device can never have.
    pub fn restore(&self, saved: FwCfgSaved) -> Result<(), RestoreError> {
        lock(&self.model).restore(saved)
    }

    /// Carries out the request at `address`: control, length and address in big-endian, of which control
    /// is written back (0 or [`DMA_ERROR`]) when all is done.
    fn dma(&self, address: u64) {
        let mut request = [0; 16];
        if self.memory.read_slice(&mut request, GuestAddress(address)).is_err() {
            // There is nowhere to put an error.
            return;
        }
        let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| request[at + byte]));
        let (control, len) = (word(0), word(4));
        let target = (word(8) as u64) << 32 | word(12) as u64;
        if control & DMA_SELECT != 0 {
            self.make((control >> 16) as u16);
        }
        let mut model = lock(&self.model);
        let done = match model.begin_dma(control, len) {
            DmaOperation::None => true,
            DmaOperation::Refused => false,
            DmaOperation::Read => self.dma_read(&mut model, target, len),
            DmaOperation::Write => self.dma_write(&mut model, target, len),
        };
        let result = if done { 0 } else { DMA_ERROR };
        // The request was readable, so that it is writable too.
        let _ = self.memory.write_slice(&result.to_be_bytes(), GuestAddress(address));
    }

    fn dma_write(&self, model: &mut FwCfgModel, source: u64, len: u32) -> bool {
        // No more than the item is long.
        let mut data = vec![0; len as usize];
        let is_read = self.memory.read_slice(&mut data, GuestAddress(source)).is_ok();
        if is_read {
            model.write_data(&data);
        }
        is_read
    }

    fn dma_read(&self, model: &mut FwCfgModel, target: u64, len: u32) -> bool {
        let rest = model.rest();
        let from_item = (len as usize).min(rest.len());
        let zeros = len - from_item as u32;
        if zeros > ZEROS_MAX || target.checked_add(len.into()).is_none() {
            return false;
        }
        let data = &rest[..from_item];
        let copied = self.memory.write_slice(data, GuestAddress(target)).is_ok();
        let end = GuestAddress(target + from_item as u64);
        let filled = zeros == 0 || self.memory.write_slice(&vec![0; zeros as usize], end).is_ok();
        model.advance(from_item as u32);
        copied && filled
    }
}

impl BusDevice for FwCfg {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match PORT_SELECTOR + offset as u16 {
            PORT_DATA if data.len() == 1 => data[0] = lock(&self.model).read_data(),
            port if port >= PORT_DMA => {
                let signature = DMA_SIGNATURE.to_be_bytes();
                let first = (port - PORT_DMA) as usize;
                for (byte, value) in data.iter_mut().zip(&signature[first..]) {
                    *byte = *value;
                }
            }
            // The selector cannot be read.
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (PORT_SELECTOR + offset as u16, data) {
            (PORT_SELECTOR, &[low, high]) => {
                let selector = u16::from_le_bytes([low, high]);
                self.make(selector);
                lock(&self.model).select(selector);
            }
            (PORT_DMA, &[a, b, c, d]) => lock(&self.model).set_dma_high(u32::from_be_bytes([a, b, c, d])),
            (PORT_DMA_LOW, &[a, b, c, d]) => {
                let address = lock(&self.model).take_dma_address(u32::from_be_bytes([a, b, c, d]));
                self.dma(address);
            }
            // Items are read-only.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::Ram;

    fn setup() -> (Bus, Ram, Arc<FwCfg>) {
        let (bus, ram) = (Bus::new(), Ram::new(1 << 20).unwrap());
        let fw_cfg = FwCfg::new(ram.guest().clone());
        fw_cfg.attach(&bus).unwrap();
        fw_cfg.add_file("etc/second", b"second file".to_vec()).unwrap();
        fw_cfg.add_file("etc/first", b"first".to_vec()).unwrap();
        (bus, ram, fw_cfg)
    }

    fn read_item(bus: &Bus, key: u16, len: usize) -> Vec<u8> {
        bus.write(0x510, &key.to_le_bytes());
        let mut byte = [0];
        (0..len)
            .map(|_| {
                bus.read(0x511, &mut byte);
                byte[0]
            })
            .collect()
    }

    #[test]
    fn firmware_finds_files_by_name() {
        let (bus, _ram, fw_cfg) = setup();
        assert_eq!(read_item(&bus, KEY_SIGNATURE, 5), b"QEMU\0");
        assert_eq!(read_item(&bus, KEY_ID, 4), [3, 0, 0, 0]);
        let directory = read_item(&bus, KEY_DIRECTORY, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        let entry = &directory[4..68];
        assert_eq!(entry[..8], [0, 0, 0, 5, 0, 0x21, 0, 0]);
        assert_eq!(&entry[8..18], b"etc/first\0");
        assert_eq!(read_item(&bus, 0x21, 6), b"first\0");
        assert_eq!(read_item(&bus, 0x20, 11), b"second file");
        assert_eq!(read_item(&bus, 0x777, 2), [0; 2]);
        assert_eq!(fw_cfg.add_file("etc/first", vec![]), Err(FwCfgError::Exists("etc/first".into())));
        for name in ["", "a\0b", &"x".repeat(56)] {
            assert_eq!(fw_cfg.add_file(name, vec![]), Err(FwCfgError::BadName(name.into())));
        }
    }

    /// Runs a DMA request and returns the control word that it leaves.
    fn dma(bus: &Bus, ram: &Ram, control: u32, len: u32, target: u64) -> u32 {
        let mut request = Vec::new();
        request.extend(control.to_be_bytes());
        request.extend(len.to_be_bytes());
        request.extend(target.to_be_bytes());
        ram.guest().write_slice(&request, GuestAddress(0x1000)).unwrap();
        bus.write(0x514, &0u32.to_be_bytes());
        bus.write(0x518, &0x1000u32.to_be_bytes());
        let mut result = [0; 4];
        ram.guest().read_slice(&mut result, GuestAddress(0x1000)).unwrap();
        u32::from_be_bytes(result)
    }

    #[test]
    fn dma_reads_select_skip_and_fill() {
        let (bus, ram, _fw_cfg) = setup();
        let mut signature = [0; 8];
        bus.read(0x514, &mut signature[..4]);
        bus.read(0x518, &mut signature[4..]);
        assert_eq!(&signature, b"QEMU CFG");
        ram.guest().write_slice(&[0xaa; 32], GuestAddress(0x2000)).unwrap();
        let select = |key: u32| key << 16 | DMA_SELECT;
        assert_eq!(dma(&bus, &ram, select(0x20) | DMA_SKIP, 7, 0), 0);
        assert_eq!(dma(&bus, &ram, DMA_READ, 8, 0x2000), 0);
        let mut read = [0; 12];
        ram.guest().read_slice(&mut read, GuestAddress(0x2000)).unwrap();
        assert_eq!(&read, b"file\0\0\0\0\xaa\xaa\xaa\xaa");
        assert_eq!(dma(&bus, &ram, select(0x21) | DMA_READ, 5, 0x2000), 0);
    }

    #[test]
    fn a_made_file_is_new_at_each_selection_and_keeps_its_length() {
        use std::sync::atomic::{AtomicU8, Ordering};
        let (bus, ram, fw_cfg) = setup();
        let count = Arc::new(AtomicU8::new(0));
        let made = count.clone();
        let make = move || match made.fetch_add(1, Ordering::Relaxed) {
            2 => None,
            n => Some(vec![n + 1; 9]),
        };
        fw_cfg.add_made_file("etc/made", vec![0; 3], make).unwrap();
        assert_eq!(read_item(&bus, 0x22, 4), [1, 1, 1, 0]);
        let select = 0x22 << 16 | DMA_SELECT;
        assert_eq!(dma(&bus, &ram, select | DMA_READ, 3, 0x2000), 0);
        let mut read = [0; 3];
        ram.guest().read_slice(&mut read, GuestAddress(0x2000)).unwrap();
        assert_eq!(read, [2, 2, 2]);
        assert_eq!(read_item(&bus, 0x22, 3), [2, 2, 2], "nothing was made");
        assert_eq!(count.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn bad_dma_requests_end_with_an_error() {
        let (bus, ram, _fw_cfg) = setup();
        let select = |key: u32| key << 16 | DMA_SELECT;
        for (control, len, target) in [
            (select(0x20) | DMA_WRITE, 4, 0x2000),
            (select(0x20) | DMA_READ, 4, 0x10_0000),
            (select(0x20) | DMA_READ, 64, 0xf_ffff),
            (select(0x20) | DMA_READ, u32::MAX, 0x2000),
            (select(0x20) | DMA_READ, 4, u64::MAX),
        ] {
            assert_eq!(dma(&bus, &ram, control, len, target), DMA_ERROR, "{control:#x} {len} {target:#x}");
        }
        // A request outside memory is ignored.
        bus.write(0x514, &u32::MAX.to_be_bytes());
        bus.write(0x518, &u32::MAX.to_be_bytes());
    }

    #[test]
    fn what_firmware_writes_is_kept_until_a_reset_and_saved() {
        let (bus, ram, fw_cfg) = setup();
        fw_cfg.add_writable_file("etc/place", 8).unwrap();
        let place = || fw_cfg.contents("etc/place").unwrap();
        let select = 0x22 << 16 | DMA_SELECT;
        ram.guest().write_slice(&[1, 2, 3, 4], GuestAddress(0x2000)).unwrap();
        // Behind the first two bytes.
        assert_eq!(dma(&bus, &ram, select | DMA_SKIP, 2, 0), 0);
        assert_eq!(dma(&bus, &ram, DMA_WRITE, 4, 0x2000), 0);
        assert_eq!(place(), [0, 0, 1, 2, 3, 4, 0, 0]);
        for (control, len, source) in [
            (DMA_WRITE, 3, 0x2000),
            (select | DMA_WRITE, 9, 0x2000),
            (select | DMA_WRITE, u32::MAX, 0x2000),
            (select | DMA_WRITE, 8, u64::MAX),
        ] {
            assert_eq!(dma(&bus, &ram, control, len, source), DMA_ERROR, "{control:#x} {len} {source:#x}");
        }
        assert_eq!(place(), [0, 0, 1, 2, 3, 4, 0, 0]);
        let saved = fw_cfg.save();
        fw_cfg.reset();
        assert_eq!(place(), [0; 8]);
        fw_cfg.restore(saved.clone()).unwrap();
        assert_eq!(place(), [0, 0, 1, 2, 3, 4, 0, 0]);
        let (_bus, _ram, other) = setup();
        assert!(other.restore(saved).is_err(), "it has no such file");
    }

    #[test]
    fn save_and_restore() {
        let (bus, _ram, fw_cfg) = setup();
        read_item(&bus, 0x20, 7);
        let saved = fw_cfg.save();
        fw_cfg.reset();
        fw_cfg.restore(saved.clone()).unwrap();
        let mut byte = [0];
        bus.read(0x511, &mut byte);
        assert_eq!(byte, [b'f']);
        let mut json = serde_json::to_value(saved).unwrap();
        json["offset"] = 12.into();
        assert!(fw_cfg.restore(serde_json::from_value(json).unwrap()).is_err());
    }
}
