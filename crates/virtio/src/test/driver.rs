//! A guest's driver of one function, through PCI as a real one.

use super::{DriverRing, Interrupts};
use crate::device::VirtioDevice;
use crate::spec::pci::{self as spec, common};
use crate::spec::{feature, status};
use crate::transport::VirtioPci;
use device::IrqLine;
use device::pci::{PciFunction, reg};
use memory::Ram;
use std::sync::Arc;

/// Where a structure is: base address register and offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    bar: usize,
    offset: u64,
}

/// A driver with its machine: memory, interrupts and one function.
pub struct Driver {
    /// The guest's memory.
    pub ram: Arc<Ram>,
    /// The function.
    pub function: Arc<VirtioPci>,
    /// What interrupts came.
    pub interrupts: Arc<Interrupts>,
    /// The queues, once set up.
    pub rings: Vec<DriverRing>,
    common: Place,
    notify: Place,
    notify_multiplier: u32,
    isr: Place,
    device: Place,
    msix: Option<(u16, Place)>,
}

impl Driver {
    /// Makes a machine around `device` and finds the function's structures.
    pub fn new(device: Box<dyn VirtioDevice>) -> Driver {
        let ram = Arc::new(Ram::new(16 << 20).expect("memory for a test"));
        Driver::with_ram(device, ram)
    }

    /// Likewise, with memory that is there already.
    pub fn with_ram(device: Box<dyn VirtioDevice>, ram: Arc<Ram>) -> Driver {
        let interrupts = Arc::new(Interrupts::default());
        let line = IrqLine::new(interrupts.clone(), 10);
        let function =
            VirtioPci::new("test", device, ram.clone(), interrupts.clone(), line).expect("a function");
        let nowhere = Place { bar: 9, offset: 0 };
        let mut driver = Driver {
            ram,
            function,
            interrupts,
            rings: Vec::new(),
            common: nowhere,
            notify: nowhere,
            notify_multiplier: 0,
            isr: nowhere,
            device: nowhere,
            msix: None,
        };
        driver.find_structures();
        driver
    }

    /// Saves the function, which is paused, and has this driver go on with another one that takes over its
    /// state, as text, and runs: what a snapshot does.
    pub fn moved(mut self, device: Box<dyn VirtioDevice>) -> Driver {
        let text = serde_json::to_string(&self.function.save()).expect("plain data");
        let mut other = Driver::with_ram(device, self.ram.clone());
        other.function.pause();
        let saved = serde_json::from_str(&text).expect("as written");
        other.function.restore(saved).expect("a reachable state can be restored");
        std::mem::swap(&mut other.rings, &mut self.rings);
        other.function.resume();
        other
    }

    /// Walks the capability list (§4.1.4), as a driver does.
    fn find_structures(&mut self) {
        let byte = |at: u16| (self.function.config_read(at / 4) >> (at % 4 * 8)) as u8;
        let word = |at: u16| self.function.config_read(at / 4);
        let (mut common, mut notify, mut isr, mut device) = (None, None, None, None);
        let mut at = byte(reg::CAPABILITIES) as u16;
        while at != 0 {
            match byte(at) {
                spec::CAP_ID_VENDOR => {
                    let place = Place { bar: byte(at + 4) as usize, offset: word(at + 8) as u64 };
                    match byte(at + 3) {
                        spec::CAP_COMMON_CFG => common = Some(place),
                        spec::CAP_NOTIFY_CFG => notify = Some((place, word(at + 16))),
                        spec::CAP_ISR_CFG => isr = Some(place),
                        spec::CAP_DEVICE_CFG => device = Some(place),
                        _ => {}
                    }
                }
                0x11 => {
                    let table = word(at + 4);
                    let place = Place { bar: (table & 7) as usize, offset: (table & !7) as u64 };
                    self.msix = Some((at, place));
                }
                _ => {}
            }
            at = byte(at + 1) as u16;
        }
        self.common = common.expect("a common configuration");
        (self.notify, self.notify_multiplier) = notify.expect("a notification structure");
        self.isr = isr.expect("an interrupt status");
        self.device = device.expect("a device configuration");
    }

    fn read_at(&self, place: Place, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        self.function.bar_read(place.bar, place.offset + offset, data);
    }

    /// Reads a field of the common configuration.
    pub fn common_read(&self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.read_at(self.common, offset, &mut data[..len]);
        data[len..].fill(0);
        u64::from_le_bytes(data)
    }

    /// Writes a field of the common configuration.
    pub fn common_write(&self, offset: u64, len: usize, value: u64) {
        self.function.bar_write(self.common.bar, self.common.offset + offset, &value.to_le_bytes()[..len]);
    }

    /// Reads device configuration.
    pub fn config(&self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.read_at(self.device, offset, &mut data[..len]);
        data[len..].fill(0);
        u64::from_le_bytes(data)
    }

    /// Writes device configuration.
    pub fn config_write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(self.device.bar, self.device.offset + offset, data);
    }

    /// Reads, and so clears, the interrupt status.
    pub fn isr(&self) -> u8 {
        let mut data = [0];
        self.read_at(self.isr, 0, &mut data);
        data[0]
    }

    /// The device status.
    pub fn status(&self) -> u8 {
        self.common_read(common::DEVICE_STATUS, 1) as u8
    }

    /// Adds bits to the device status.
    pub fn add_status(&self, bits: u8) {
        let value = self.status() & !status::DEVICE_NEEDS_RESET | bits;
        self.common_write(common::DEVICE_STATUS, 1, value as u64);
    }

    /// Resets the device and waits until it says so.
    pub fn reset(&mut self) {
        self.common_write(common::DEVICE_STATUS, 1, 0);
        assert_eq!(self.status(), 0);
        self.rings.clear();
    }

    /// Sets the PCI command register.
    pub fn set_command(&self, command: u16) {
        self.function.config_write(reg::COMMAND, &command.to_le_bytes());
    }

    /// Switches MSI-X on, with vector n sending message n to address 0xfee00000, all unmasked.
    pub fn enable_msix(&self) {
        let (capability, table) = self.msix.expect("an MSI-X capability");
        let vectors = (self.function.config_read(capability / 4) >> 16 & 0x7ff) + 1;
        self.function.config_write(capability + 2, &0x8000u16.to_le_bytes());
        for vector in 0..vectors as u64 {
            let entry = table.offset + vector * 16;
            self.function.bar_write(table.bar, entry, &0xfee0_0000u64.to_le_bytes());
            self.function.bar_write(table.bar, entry + 8, &(vector as u32).to_le_bytes());
            self.function.bar_write(table.bar, entry + 12, &0u32.to_le_bytes());
        }
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        [0u64, 1].iter().fold(0, |features, select| {
            self.common_write(common::DEVICE_FEATURE_SELECT, 4, *select);
            features | self.common_read(common::DEVICE_FEATURE, 4) << (32 * select)
        })
    }

    /// Acknowledges the device and accepts `features`; whether it agreed.
    pub fn negotiate(&self, features: u64) -> bool {
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        for select in [0, 1] {
            self.common_write(common::DRIVER_FEATURE_SELECT, 4, select);
            self.common_write(common::DRIVER_FEATURE, 4, features >> (32 * select) & 0xffff_ffff);
        }
        self.add_status(status::FEATURES_OK);
        self.status() & status::FEATURES_OK != 0
    }

    /// Sets up all queues with up to `size` descriptors, queue n with vector n + 1.
    pub fn setup_queues(&mut self, size: u16, features: u64) {
        let count = self.common_read(common::NUM_QUEUES, 2) as u16;
        self.rings.clear();
        for index in 0..count {
            self.common_write(common::QUEUE_SELECT, 2, index as u64);
            let size = size.min(self.common_read(common::QUEUE_SIZE, 2) as u16);
            let base = 0x1_0000 + index as u64 * 0x1_0000;
            let event_idx = features & feature::RING_EVENT_IDX != 0;
            let ring = DriverRing::new(self.ram.clone(), index, size, base, event_idx);
            let layout = ring.layout();
            self.common_write(common::QUEUE_SIZE, 2, size as u64);
            self.common_write(common::QUEUE_MSIX_VECTOR, 2, index as u64 + 1);
            self.common_write(common::QUEUE_DESC, 4, layout.descriptors & 0xffff_ffff);
            self.common_write(common::QUEUE_DESC + 4, 4, layout.descriptors >> 32);
            self.common_write(common::QUEUE_DRIVER, 8, layout.available);
            self.common_write(common::QUEUE_DEVICE, 8, layout.used);
            self.common_write(common::QUEUE_ENABLE, 2, 1);
            self.rings.push(ring);
        }
        self.common_write(common::CONFIG_MSIX_VECTOR, 2, 0);
    }

    /// All of it: bus mastering, MSI-X, `features` (as far as offered) and VERSION_1, queues of up to
    /// `size` descriptors, DRIVER_OK. Returns the negotiated features.
    pub fn start(&mut self, size: u16, features: u64) -> u64 {
        self.set_command(reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER);
        self.enable_msix();
        let features = (features | feature::VERSION_1) & self.offered();
        assert!(self.negotiate(features));
        self.setup_queues(size, features);
        self.add_status(status::DRIVER_OK);
        features
    }

    /// Notifies the device of queue `index`, whether it wants to know or not.
    pub fn notify(&self, index: usize) {
        let offset = self.notify.offset + index as u64 * self.notify_multiplier as u64;
        self.function.bar_write(self.notify.bar, offset, &(index as u16).to_le_bytes());
    }

    /// Notifies the device of what was added to queue `index` since its available index was `before`,
    /// if it wants to know.
    pub fn notify_since(&self, index: usize, before: u16) {
        if self.rings[index].wants_notification(before) {
            self.notify(index);
        }
    }

    /// Waits until the device has used a chain of queue `index`.
    pub fn wait_used(&mut self, index: usize) -> (u16, u32) {
        let ring = &mut self.rings[index];
        self.interrupts.wait(|| {
            ring.take_used().or_else(|| {
                ring.enable_interrupts(true);
                ring.take_used()
            })
        })
    }
}
