//! The I/O APIC in the machine.

use super::model::{IoApicModel, IoApicSaved};
use super::spec;
use crate::sync::lock;
use device::state::{RestoreError, SaveRestore};
use device::{Bus, BusDevice, IrqSink, Msi, MsiSink, Overlap};
use std::sync::{Arc, Mutex};

/// The I/O APIC. Messages are sent after its lock is released, so the sink may call back.
pub struct IoApic {
    model: Mutex<IoApicModel>,
    sink: Arc<dyn MsiSink>,
}

impl IoApic {
    /// Creates an I/O APIC that sends to `sink`.
    pub fn new(sink: Arc<dyn MsiSink>) -> Arc<IoApic> {
        Arc::new(IoApic { model: Mutex::new(IoApicModel::new()), sink })
    }

    /// Places the registers at [`spec::BASE`].
    ///
    /// # Errors
    /// When the range is taken.
    pub fn attach(self: &Arc<Self>, mmio: &Bus) -> Result<(), Overlap> {
        mmio.insert(spec::BASE, spec::LEN, self.clone())
    }

    /// A local APIC broadcast the end of a level-triggered interrupt. Call it for every one.
    pub fn eoi(&self, vector: u8) {
        let messages = lock(&self.model).eoi(vector);
        self.send(messages);
    }

    /// Whether the end of this vector's interrupts has to be told with [`IoApic::eoi`] now.
    pub fn wants_eoi(&self, vector: u8) -> bool {
        lock(&self.model).wants_eoi(vector)
    }

    /// Puts the registers in their state after power-on.
    pub fn reset(&self) {
        lock(&self.model).reset();
    }

    /// The saved form. No vCPU runs.
    pub fn save(&self) -> IoApicSaved {
        lock(&self.model).save()
    }

    /// Takes over a saved state. Nothing is sent again: what was sent is in the local APICs' state.
    ///
    /// # Errors
    /// When the state is one that the I/O APIC can never have.
    pub fn restore(&self, saved: IoApicSaved) -> Result<(), RestoreError> {
        lock(&self.model).restore(saved)
    }

    fn send(&self, messages: impl IntoIterator<Item = Msi>) {
        for message in messages {
            self.sink.send_msi(message);
        }
    }
}

impl IrqSink for IoApic {
    /// Sets the level of an input, 0 to 23.
    fn set_irq(&self, irq: u32, level: bool) {
        let message = lock(&self.model).set_irq(irq, level);
        self.send(message);
    }
}

impl BusDevice for IoApic {
    /// Registers are 32 bits wide at multiples of 16; a narrower access gets a part, a wider one zeros.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = lock(&self.model).read(offset & !3);
        let bytes = (value as u64 >> (8 * (offset & 3))).to_le_bytes();
        for (byte, value) in data.iter_mut().zip(bytes) {
            *byte = value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // The data sheet wants 32-bit accesses; a narrower one writes zeros above, as chipsets do.
        if !offset.is_multiple_of(4) {
            return;
        }
        let value = data.iter().take(4).rev().fold(0, |value, byte| value << 8 | *byte as u32);
        let messages = lock(&self.model).write(offset, value);
        self.send(messages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Sent(Mutex<Vec<Msi>>);
    impl MsiSink for Sent {
        fn send_msi(&self, msi: Msi) {
            lock(&self.0).push(msi);
        }
    }

    #[test]
    fn messages_leave_for_lines_ends_and_register_writes() {
        let (bus, sent) = (Bus::new(), Arc::new(Sent::default()));
        let apic = IoApic::new(sent.clone());
        apic.attach(&bus).unwrap();
        let write = |offset: u64, value: u32| assert!(bus.write(spec::BASE + offset, &value.to_le_bytes()));
        write(0, 0x10);
        write(0x10, 0x8030);
        apic.set_irq(0, true);
        apic.eoi(0x30);
        write(0x40, 0x30);
        assert_eq!(lock(&sent.0).len(), 3);
        let mut data = [0; 4];
        bus.read(spec::BASE + 0x10, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0xc030);
        let mut high = [0; 1];
        bus.read(spec::BASE + 0x11, &mut high);
        assert_eq!(high, [0xc0]);
    }
}
