//! The common configuration structure (virtio 1.2, §4.1.4.3): a pure register model.

use crate::queue::Layout;
use crate::spec::pci::{NO_VECTOR, common};
use crate::spec::{feature, status};
use device::state::RestoreError;
use serde::{Deserialize, Serialize};

/// What a write asks of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The driver resets the device; the registers are reset already.
    Reset,
    /// The driver is ready: the device goes to work.
    DriverOk,
    /// The vector of a queue, or with `None` that of the configuration, has changed.
    Vector(Option<u16>),
}

/// What the registers show but do not hold: it changes without the driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct Live {
    /// Counts changes of the device configuration.
    pub config_generation: u8,
    /// `DEVICE_NEEDS_RESET`.
    pub needs_reset: bool,
}

/// The registers of one device.
#[derive(Clone, Debug)]
pub struct Registers {
    offered: u64,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    status: u8,
    vectors: u16,
    config_vector: u16,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

#[derive(Clone, Debug)]
struct QueueRegisters {
    size_max: u16,
    layout: Layout,
    vector: u16,
    enabled: bool,
}

/// Saved form of [`Registers`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistersSaved {
    /// The negotiated features.
    pub accepted: u64,
    /// `device_feature_select`.
    pub device_feature_select: u32,
    /// `driver_feature_select`.
    pub driver_feature_select: u32,
    /// The device status.
    pub status: u8,
    /// `config_msix_vector`.
    pub config_vector: u16,
    /// `queue_select`.
    pub queue_select: u16,
    /// Each queue's registers.
    pub queues: Vec<QueueRegistersSaved>,
}

/// Saved form of one queue's registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegistersSaved {
    /// Size and addresses.
    pub layout: Layout,
    /// `queue_msix_vector`.
    pub vector: u16,
    /// `queue_enable`.
    pub enabled: bool,
}

impl Registers {
    /// The registers after a reset. `offered` are all features, `vectors` the number of MSI-X vectors.
    pub fn new(offered: u64, queue_sizes: &[u16], vectors: u16) -> Registers {
        let queues = queue_sizes.iter().map(|size_max| QueueRegisters::new(*size_max)).collect();
        Registers {
            offered,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            status: 0,
            vectors,
            config_vector: NO_VECTOR,
            queue_select: 0,
            queues,
        }
    }

    /// Everything as after creation.
    pub fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.size_max).collect();
        *self = Registers::new(self.offered, &sizes, self.vectors);
    }

    /// The negotiated features; final once [`Registers::is_driver_ok`].
    pub fn features(&self) -> u64 {
        self.accepted
    }

    /// Whether the driver is ready.
    pub fn is_driver_ok(&self) -> bool {
        self.status & status::DRIVER_OK != 0
    }

    /// The number of queues.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Where the driver has put a queue; `None` when it has not enabled it.
    pub fn queue(&self, index: usize) -> Option<Layout> {
        self.queues.get(index).filter(|queue| queue.enabled).map(|queue| queue.layout)
    }

    /// The MSI-X vector of a queue, or with `None` of configuration changes.
    pub fn vector(&self, queue: Option<u16>) -> u16 {
        match queue {
            None => self.config_vector,
            Some(index) => self.queues.get(index as usize).map_or(NO_VECTOR, |queue| queue.vector),
        }
    }

    /// Reads any part of the structure; what is beyond it is left as it is.
    pub fn read(&self, live: Live, offset: u64, data: &mut [u8]) {
        let mut bytes = [0u8; common::LEN as usize];
        let mut put = |at: u64, value: &[u8]| bytes[at as usize..][..value.len()].copy_from_slice(value);
        let half = |value: u64, select: u32| match select {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        put(common::DEVICE_FEATURE_SELECT, &self.device_feature_select.to_le_bytes());
        put(common::DEVICE_FEATURE, &half(self.offered, self.device_feature_select).to_le_bytes());
        put(common::DRIVER_FEATURE_SELECT, &self.driver_feature_select.to_le_bytes());
        put(common::DRIVER_FEATURE, &half(self.accepted, self.driver_feature_select).to_le_bytes());
        put(common::CONFIG_MSIX_VECTOR, &self.config_vector.to_le_bytes());
        put(common::NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        let needs_reset = if live.needs_reset { status::DEVICE_NEEDS_RESET } else { 0 };
        put(common::DEVICE_STATUS, &[self.status | needs_reset]);
        put(common::CONFIG_GENERATION, &[live.config_generation]);
        put(common::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0 (§4.1.4.3.2).
        if let Some(queue) = self.queues.get(self.queue_select as usize) {
            put(common::QUEUE_SIZE, &queue.layout.size.to_le_bytes());
            put(common::QUEUE_MSIX_VECTOR, &queue.vector.to_le_bytes());
            put(common::QUEUE_ENABLE, &(queue.enabled as u16).to_le_bytes());
            put(common::QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(common::QUEUE_DESC, &queue.layout.descriptors.to_le_bytes());
            put(common::QUEUE_DRIVER, &queue.layout.available.to_le_bytes());
            put(common::QUEUE_DEVICE, &queue.layout.used.to_le_bytes());
        } else {
            put(common::QUEUE_MSIX_VECTOR, &NO_VECTOR.to_le_bytes());
        }
        for (byte, at) in data.iter_mut().zip(offset..) {
            if at < common::LEN {
                *byte = bytes[at as usize];
            }
        }
    }

    /// Writes a field at its natural width, or half of a 64-bit one (§4.1.3.1); all else is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let mut bytes = [0; 8];
        if data.len() > 8 {
            return Effect::None;
        }
        bytes[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        match (offset, data.len()) {
            (common::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = value as u32,
            (common::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = value as u32,
            (common::DRIVER_FEATURE, 4) => self.write_driver_feature(value as u32),
            (common::CONFIG_MSIX_VECTOR, 2) => {
                self.config_vector = self.known_vector(value as u16);
                return Effect::Vector(None);
            }
            (common::DEVICE_STATUS, 1) => return self.write_status(value as u8),
            (common::QUEUE_SELECT, 2) => self.queue_select = value as u16,
            (common::QUEUE_MSIX_VECTOR, 2) => {
                let vector = self.known_vector(value as u16);
                if let Some(queue) = self.queues.get_mut(self.queue_select as usize) {
                    queue.vector = vector;
                    return Effect::Vector(Some(self.queue_select));
                }
            }
            _ => self.write_queue(offset, data.len(), value),
        }
        Effect::None
    }

    /// A vector that the device has not reads back as none (§4.1.5.1.2.1).
    fn known_vector(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    fn write_driver_feature(&mut self, half: u32) {
        // Once the features are agreed upon they stay (§2.2.1).
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        let half = half as u64;
        match self.driver_feature_select {
            0 => self.accepted = self.accepted & !0xffff_ffff | half,
            1 => self.accepted = self.accepted & 0xffff_ffff | half << 32,
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            self.reset();
            return Effect::Reset;
        }
        // The driver only ever adds bits (§2.1.1).
        let known =
            status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK | status::FAILED;
        let mut added = value & known & !self.status;
        // It has to accept VERSION_1 and nothing that was not offered, or FEATURES_OK stays clear (§2.2.1,
        // §6.1).
        let agreed = self.accepted & !self.offered == 0 && self.accepted & feature::VERSION_1 != 0;
        if !agreed {
            added &= !status::FEATURES_OK;
        }
        if (self.status | added) & status::FEATURES_OK == 0 {
            added &= !status::DRIVER_OK;
        }
        self.status |= added;
        if added & status::DRIVER_OK != 0 { Effect::DriverOk } else { Effect::None }
    }

    fn write_queue(&mut self, offset: u64, len: usize, value: u64) {
        let is_driver_ok = self.is_driver_ok();
        let Some(queue) = self.queues.get_mut(self.queue_select as usize) else { return };
        // A queue in use cannot be changed without a reset (§4.1.4.3.2).
        if queue.enabled || is_driver_ok {
            return;
        }
        let address = |at: u64, old: u64| match (offset - at, len) {
            (0, 8) => value,
            (0, 4) => old & !0xffff_ffff | value,
            (4, 4) => old & 0xffff_ffff | value << 32,
            _ => old,
        };
        let layout = &mut queue.layout;
        match offset {
            common::QUEUE_SIZE if len == 2 => {
                let size = value as u16;
                if size.is_power_of_two() && size <= queue.size_max {
                    layout.size = size;
                }
            }
            common::QUEUE_ENABLE if len == 2 => queue.enabled = value == 1,
            common::QUEUE_DESC..common::QUEUE_DRIVER => {
                layout.descriptors = address(common::QUEUE_DESC, layout.descriptors);
            }
            common::QUEUE_DRIVER..common::QUEUE_DEVICE => {
                layout.available = address(common::QUEUE_DRIVER, layout.available);
            }
            common::QUEUE_DEVICE..common::LEN => {
                layout.used = address(common::QUEUE_DEVICE, layout.used);
            }
            _ => {}
        }
    }

    /// The saved form.
    pub fn save(&self) -> RegistersSaved {
        let queues = self.queues.iter().map(|queue| QueueRegistersSaved {
            layout: queue.layout,
            vector: queue.vector,
            enabled: queue.enabled,
        });
        RegistersSaved {
            accepted: self.accepted,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            status: self.status,
            config_vector: self.config_vector,
            queue_select: self.queue_select,
            queues: queues.collect(),
        }
    }

    /// These registers with saved values.
    ///
    /// # Errors
    /// When a value is one that the driver could not have brought about.
    pub fn restored(&self, saved: RegistersSaved) -> Result<Registers, RestoreError> {
        let bad = |reason: String| RestoreError::new("virtio transport", reason);
        let mut new = self.clone();
        new.reset();
        let known =
            status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK | status::FAILED;
        if saved.status & !known != 0 {
            return Err(bad(format!("status {:#x} does not exist", saved.status)));
        }
        if saved.status & status::DRIVER_OK != 0 && saved.status & status::FEATURES_OK == 0 {
            return Err(bad("the driver is ready before features are agreed upon".into()));
        }
        if saved.status & status::FEATURES_OK != 0
            && (saved.accepted & !self.offered != 0 || saved.accepted & feature::VERSION_1 == 0)
        {
            return Err(bad(format!("features {:#x} are not what this device offers", saved.accepted)));
        }
        if saved.queues.len() != self.queues.len() {
            return Err(bad(format!("it has {} queues, not {}", saved.queues.len(), self.queues.len())));
        }
        for (index, (queue, saved)) in new.queues.iter_mut().zip(saved.queues).enumerate() {
            if !saved.layout.size.is_power_of_two() || saved.layout.size > queue.size_max {
                return Err(bad(format!("queue {index} has {} entries", saved.layout.size)));
            }
            if saved.vector != NO_VECTOR && saved.vector >= new.vectors {
                return Err(bad(format!("queue {index} has vector {}", saved.vector)));
            }
            queue.layout = saved.layout;
            queue.vector = saved.vector;
            queue.enabled = saved.enabled;
        }
        if saved.config_vector != NO_VECTOR && saved.config_vector >= new.vectors {
            return Err(bad(format!("the configuration has vector {}", saved.config_vector)));
        }
        new.accepted = saved.accepted;
        new.device_feature_select = saved.device_feature_select;
        new.driver_feature_select = saved.driver_feature_select;
        new.status = saved.status;
        new.config_vector = saved.config_vector;
        new.queue_select = saved.queue_select;
        Ok(new)
    }
}

impl QueueRegisters {
    fn new(size_max: u16) -> QueueRegisters {
        assert!(size_max.is_power_of_two() && size_max <= 1024, "a size that the transport offers");
        let layout = Layout { size: size_max, ..Layout::default() };
        QueueRegisters { size_max, layout, vector: NO_VECTOR, enabled: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: u64 = feature::VERSION_1 | 0x30;

    fn registers() -> Registers {
        Registers::new(OFFERED, &[256, 64], 3)
    }

    fn read(registers: &Registers, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        registers.read(Live::default(), offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn accept(registers: &mut Registers, features: u64) {
        for (select, half) in [(0u32, features as u32), (1, (features >> 32) as u32)] {
            registers.write(common::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            registers.write(common::DRIVER_FEATURE, &half.to_le_bytes());
        }
    }

    #[test]
    fn features_are_agreed_upon_only_if_offered_and_modern() {
        for (features, agreed) in [
            (OFFERED, true),
            (feature::VERSION_1, true),
            (0x30, false),
            (OFFERED | 0x100, false),
            (OFFERED | 1 << 63, false),
        ] {
            let mut registers = registers();
            registers.write(common::DEVICE_STATUS, &[3]);
            accept(&mut registers, features);
            registers.write(common::DEVICE_STATUS, &[0xb]);
            assert_eq!(read(&registers, common::DEVICE_STATUS, 1) & 8 != 0, agreed, "{features:#x}");
            let effect = registers.write(common::DEVICE_STATUS, &[0xf]);
            assert_eq!(effect, if agreed { Effect::DriverOk } else { Effect::None });
            assert_eq!(registers.write(common::DEVICE_STATUS, &[0xf]), Effect::None, "only once");
            if agreed {
                accept(&mut registers, 0);
                assert_eq!(registers.features(), features, "what is agreed stays");
            }
        }
    }

    #[test]
    fn status_bits_stay_until_a_reset() {
        let mut registers = registers();
        registers.write(common::DEVICE_STATUS, &[3]);
        registers.write(common::DEVICE_STATUS, &[0x81]);
        assert_eq!(read(&registers, common::DEVICE_STATUS, 1), 0x83);
        assert_eq!(registers.write(common::DEVICE_STATUS, &[0]), Effect::Reset);
        assert_eq!(read(&registers, common::DEVICE_STATUS, 1), 0);
        let mut byte = [0];
        registers.read(Live { config_generation: 9, needs_reset: true }, 0x14, &mut byte);
        assert_eq!(byte, [0x40]);
    }

    #[test]
    fn a_queue_is_set_up_in_halves_and_frozen_when_enabled() {
        let mut registers = registers();
        registers.write(common::QUEUE_SELECT, &1u16.to_le_bytes());
        assert_eq!(read(&registers, common::QUEUE_SIZE, 2), 64);
        for (size, now) in [(32u16, 32), (33, 32), (128, 32), (0, 32)] {
            registers.write(common::QUEUE_SIZE, &size.to_le_bytes());
            assert_eq!(read(&registers, common::QUEUE_SIZE, 2), now);
        }
        registers.write(common::QUEUE_DESC, &0x1000u32.to_le_bytes());
        registers.write(common::QUEUE_DESC + 4, &7u32.to_le_bytes());
        registers.write(common::QUEUE_DRIVER, &0x5_0000_2000u64.to_le_bytes());
        registers.write(common::QUEUE_DEVICE + 2, &0xffffu16.to_le_bytes());
        assert_eq!(registers.queue(1), None);
        registers.write(common::QUEUE_ENABLE, &1u16.to_le_bytes());
        registers.write(common::QUEUE_DESC, &0u64.to_le_bytes());
        let layout = Layout { size: 32, descriptors: 0x7_0000_1000, available: 0x5_0000_2000, used: 0 };
        assert_eq!(registers.queue(1), Some(layout));
        assert_eq!(read(&registers, common::QUEUE_DESC, 8), 0x7_0000_1000);
        assert_eq!(read(&registers, common::QUEUE_NOTIFY_OFF, 2), 1);
        registers.write(common::QUEUE_SELECT, &2u16.to_le_bytes());
        assert_eq!(read(&registers, common::QUEUE_SIZE, 2), 0);
        registers.write(common::QUEUE_ENABLE, &1u16.to_le_bytes());
        assert_eq!(registers.queue(2), None);
    }

    #[test]
    fn vectors_that_do_not_exist_read_back_as_none() {
        let mut registers = registers();
        let write = |registers: &mut Registers, at, vector: u16| registers.write(at, &vector.to_le_bytes());
        assert_eq!(write(&mut registers, common::CONFIG_MSIX_VECTOR, 2), Effect::Vector(None));
        assert_eq!(read(&registers, common::CONFIG_MSIX_VECTOR, 2), 2);
        assert_eq!(write(&mut registers, common::QUEUE_MSIX_VECTOR, 3), Effect::Vector(Some(0)));
        assert_eq!(read(&registers, common::QUEUE_MSIX_VECTOR, 2), 0xffff);
    }

    #[test]
    fn saved_registers_are_checked() {
        let mut registers = registers();
        accept(&mut registers, OFFERED);
        registers.write(common::DEVICE_STATUS, &[0xf]);
        let good = registers.save();
        let fresh = self::registers();
        assert_eq!(fresh.restored(good.clone()).unwrap().save(), good);
        let spoil: &[fn(&mut RegistersSaved)] = &[
            |saved| saved.status = 0x40,
            |saved| saved.status = 4,
            |saved| saved.accepted |= 2,
            |saved| saved.accepted = 0x30,
            |saved| saved.queues.truncate(1),
            |saved| saved.queues[1].layout.size = 128,
            |saved| saved.queues[0].layout.size = 0,
            |saved| saved.queues[0].vector = 3,
            |saved| saved.config_vector = 100,
        ];
        for (index, spoil) in spoil.iter().enumerate() {
            let mut bad = good.clone();
            spoil(&mut bad);
            assert!(fresh.restored(bad).is_err(), "{index}");
        }
    }
}
