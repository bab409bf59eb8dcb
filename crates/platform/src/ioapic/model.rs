//! The I/O APIC as registers.

use super::spec::*;
use device::Msi;
use device::state::{RestoreError, SaveRestore};
use serde::{Deserialize, Serialize};

/// The state of the I/O APIC.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IoApicSaved {
    id: u8,
    select: u8,
    /// Levels of the inputs, bit n for input n.
    lines: u32,
    entries: [u64; PINS],
}

/// The I/O APIC. What it has to send is returned by the operation that caused it.
///
/// Polarity is not looked at: a line's level means "asserted", however it is wired.
#[derive(Clone, Debug)]
pub struct IoApicModel {
    regs: IoApicSaved,
}

impl Default for IoApicModel {
    fn default() -> IoApicModel {
        IoApicModel::new()
    }
}

impl IoApicModel {
    /// The state after power-on: everything masked.
    pub fn new() -> IoApicModel {
        IoApicModel { regs: IoApicSaved { id: 0, select: 0, lines: 0, entries: [ENTRY_MASKED; PINS] } }
    }

    /// Puts the registers in their state after power-on; the inputs stay as devices drive them.
    pub fn reset(&mut self) {
        let lines = self.regs.lines;
        *self = IoApicModel::new();
        self.regs.lines = lines;
    }

    /// Sets the level of an input; numbers beyond the last are ignored.
    pub fn set_irq(&mut self, pin: u32, level: bool) -> Option<Msi> {
        let pin = pin as usize;
        if pin >= PINS {
            return None;
        }
        let rises = level && self.regs.lines & 1 << pin == 0;
        self.regs.lines = self.regs.lines & !(1 << pin) | (level as u32) << pin;
        if self.regs.entries[pin] & ENTRY_LEVEL != 0 {
            return self.send_level(pin);
        }
        // "Edge-sensitive interrupts signaled on a masked interrupt pin are ignored" (data sheet, §3.2.4).
        (rises && self.regs.entries[pin] & ENTRY_MASKED == 0).then(|| message(self.regs.entries[pin]))
    }

    /// A processor ended the interrupt of `vector`: level-triggered inputs with that vector may send again,
    /// and do so when they are still asserted.
    pub fn eoi(&mut self, vector: u8) -> Vec<Msi> {
        let mut messages = Vec::new();
        for pin in 0..PINS {
            let waits = ENTRY_LEVEL | ENTRY_REMOTE_IRR;
            let entry = &mut self.regs.entries[pin];
            if *entry & ENTRY_VECTOR == vector as u64 && *entry & waits == waits {
                *entry &= !ENTRY_REMOTE_IRR;
                messages.extend(self.send_level(pin));
            }
        }
        messages
    }

    /// Whether an interrupt of this vector would have an input to tell of its end: a level-triggered entry
    /// names it. Engines that can pass over the ends of other vectors ask this.
    pub fn wants_eoi(&self, vector: u8) -> bool {
        let named = |entry: &&u64| **entry & ENTRY_VECTOR == vector as u64 && **entry & ENTRY_LEVEL != 0;
        self.regs.entries.iter().any(|entry| named(&entry))
    }

    /// Reads 32 bits at an offset into the window.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => self.regs.select.into(),
            WINDOW => self.read_register(self.regs.select),
            _ => 0,
        }
    }

    /// Writes 32 bits at an offset into the window.
    pub fn write(&mut self, offset: u64, value: u32) -> Vec<Msi> {
        match offset {
            SELECT => self.regs.select = value as u8,
            WINDOW => return self.write_register(self.regs.select, value).into_iter().collect(),
            EOI => return self.eoi(value as u8),
            _ => {}
        }
        Vec::new()
    }

    fn read_register(&self, register: u8) -> u32 {
        match register {
            REG_ID | REG_ARBITRATION => (self.regs.id as u32) << 24,
            REG_VERSION => VERSION,
            _ => match entry_half(register) {
                Some((pin, high)) => (self.regs.entries[pin] >> if high { 32 } else { 0 }) as u32,
                None => 0,
            },
        }
    }

    fn write_register(&mut self, register: u8, value: u32) -> Option<Msi> {
        if register == REG_ID {
            self.regs.id = (value >> 24) as u8 & 0xf;
            return None;
        }
        let (pin, high) = entry_half(register)?;
        let old = self.regs.entries[pin];
        let written = match high {
            true => old & 0xffff_ffff | (value as u64) << 32,
            false => old & !0xffff_ffff | value as u64,
        };
        let mut entry = written & ENTRY_WRITABLE | old & !ENTRY_WRITABLE;
        // An edge-triggered entry has no remote IRR. Systems end interrupts of old I/O APICs in this way:
        // they make the entry edge-triggered for a moment.
        if entry & ENTRY_LEVEL == 0 {
            entry &= !ENTRY_REMOTE_IRR;
        }
        self.regs.entries[pin] = entry;
        self.send_level(pin)
    }

    /// Sends for a level-triggered input if it is asserted, not masked, and not waiting for its end.
    fn send_level(&mut self, pin: usize) -> Option<Msi> {
        let entry = &mut self.regs.entries[pin];
        let asserted = self.regs.lines & 1 << pin != 0;
        if !asserted || *entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR) != 0 || *entry & ENTRY_LEVEL == 0 {
            return None;
        }
        // Only these are ended by the processor; SMI, NMI, INIT and ExtINT have no trigger mode to keep.
        if matches!(*entry >> ENTRY_DELIVERY_SHIFT & 7, DELIVERY_FIXED | DELIVERY_LOWEST) {
            *entry |= ENTRY_REMOTE_IRR;
        }
        Some(message(*entry))
    }
}

/// Which entry, and whether its high half, a register is.
fn entry_half(register: u8) -> Option<(usize, bool)> {
    let index = register.checked_sub(REG_REDIRECTION)? as usize;
    (index < 2 * PINS).then_some((index / 2, index % 2 == 1))
}

/// The message of an entry (Intel SDM vol. 3A, §11.11).
fn message(entry: u64) -> Msi {
    let destination = entry >> ENTRY_DESTINATION_SHIFT;
    let logical = (entry & ENTRY_LOGICAL != 0) as u64;
    Msi {
        address: MSI_ADDRESS | destination << MSI_DESTINATION_SHIFT | logical << MSI_LOGICAL_SHIFT,
        // Vector, delivery mode and trigger mode stand in a message where they stand in an entry.
        data: (entry & (ENTRY_VECTOR | 7 << ENTRY_DELIVERY_SHIFT | ENTRY_LEVEL)) as u32,
    }
}

impl SaveRestore for IoApicModel {
    type Saved = IoApicSaved;

    fn save(&self) -> IoApicSaved {
        self.regs.clone()
    }

    fn restore(&mut self, saved: IoApicSaved) -> Result<(), RestoreError> {
        let impossible = |entry: &u64| {
            entry & !(ENTRY_WRITABLE | ENTRY_REMOTE_IRR) != 0
                || entry & (ENTRY_LEVEL | ENTRY_REMOTE_IRR) == ENTRY_REMOTE_IRR
        };
        if saved.id > 0xf || saved.lines >> PINS != 0 || saved.entries.iter().any(impossible) {
            return Err(RestoreError::new("I/O APIC", "a register has impossible bits"));
        }
        self.regs = saved;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_entry(apic: &mut IoApicModel, pin: u8, entry: u64) -> Vec<Msi> {
        let mut sent = Vec::new();
        // High half first, as systems do, so that an unmasking write comes last.
        for (register, value) in [(0x11 + 2 * pin, (entry >> 32) as u32), (0x10 + 2 * pin, entry as u32)] {
            apic.write(SELECT, register.into());
            sent.extend(apic.write(WINDOW, value));
        }
        sent
    }

    fn entry(apic: &mut IoApicModel, pin: u8) -> u64 {
        let mut half = |register: u8| {
            apic.write(SELECT, register.into());
            apic.read(WINDOW) as u64
        };
        half(0x10 + 2 * pin) | half(0x11 + 2 * pin) << 32
    }

    #[test]
    fn identification_and_read_only_bits() {
        let mut apic = IoApicModel::new();
        apic.write(SELECT, 1);
        assert_eq!((apic.read(SELECT), apic.read(WINDOW)), (1, 0x0017_0020));
        apic.write(SELECT, 0);
        apic.write(WINDOW, 0xff00_0000);
        assert_eq!(apic.read(WINDOW), 0x0f00_0000);
        set_entry(&mut apic, 23, u64::MAX);
        assert_eq!(entry(&mut apic, 23), ENTRY_WRITABLE);
        apic.write(SELECT, 0x40);
        assert!(apic.write(WINDOW, 0).is_empty());
        assert_eq!((apic.read(WINDOW), apic.read(0x20)), (0, 0));
    }

    #[test]
    fn an_edge_sends_once_and_is_lost_while_masked() {
        let mut apic = IoApicModel::new();
        assert_eq!(apic.set_irq(4, true), None);
        assert!(set_entry(&mut apic, 4, 2 << 56 | 0x34).is_empty());
        assert_eq!(apic.set_irq(4, true), None, "no new edge");
        apic.set_irq(4, false);
        assert_eq!(apic.set_irq(4, true), Some(Msi { address: 0xfee0_2000, data: 0x34 }));
        assert!(apic.eoi(0x34).is_empty());
        assert_eq!(apic.set_irq(24, true), None);
        assert_eq!(apic.set_irq(u32::MAX, true), None);
    }

    #[test]
    fn a_level_sends_again_only_after_its_end() {
        let mut apic = IoApicModel::new();
        set_entry(&mut apic, 9, 1 << 56 | ENTRY_LEVEL | ENTRY_LOGICAL | 1 << 8 | 0x41);
        let message = Msi { address: 0xfee0_1004, data: 0x8141 };
        assert_eq!(apic.set_irq(9, true), Some(message));
        assert_eq!(entry(&mut apic, 9) & ENTRY_REMOTE_IRR, ENTRY_REMOTE_IRR);
        apic.set_irq(9, false);
        assert_eq!(apic.set_irq(9, true), None, "not ended yet");
        assert!(apic.wants_eoi(0x41) && !apic.wants_eoi(0x42));
        assert_eq!(apic.eoi(0x42), []);
        assert_eq!(apic.write(EOI, 0x41), [message]);
        apic.set_irq(9, false);
        assert_eq!(apic.eoi(0x41), []);
        assert_eq!(entry(&mut apic, 9) & ENTRY_REMOTE_IRR, 0);
    }

    #[test]
    fn unmasking_an_asserted_level_sends_and_masking_and_edge_ends() {
        let mut apic = IoApicModel::new();
        let level = ENTRY_LEVEL | 0x50;
        set_entry(&mut apic, 17, level | ENTRY_MASKED);
        assert_eq!(apic.set_irq(17, true), None);
        assert_eq!(set_entry(&mut apic, 17, level).len(), 1);
        // Linux's way to end an interrupt without the EOI register.
        assert!(set_entry(&mut apic, 17, 0x50 | ENTRY_MASKED).is_empty());
        assert_eq!(set_entry(&mut apic, 17, level).len(), 1);
    }

    #[test]
    fn other_delivery_modes_pass_through_and_wait_for_no_end() {
        let mut apic = IoApicModel::new();
        set_entry(&mut apic, 0, DELIVERY_EXTINT << 8);
        assert_eq!(apic.set_irq(0, true), Some(Msi { address: 0xfee0_0000, data: 0x700 }));
        set_entry(&mut apic, 1, ENTRY_LEVEL | 4 << 8);
        assert_eq!(apic.set_irq(1, true).map(|msi| msi.data), Some(0x8400));
        assert_eq!(entry(&mut apic, 1) & ENTRY_REMOTE_IRR, 0);
    }

    #[test]
    fn a_saved_apic_goes_on_and_an_impossible_one_is_refused() {
        let mut apic = IoApicModel::new();
        set_entry(&mut apic, 3, ENTRY_LEVEL | 0x60);
        apic.set_irq(3, true);
        let saved = apic.save();
        let mut other = IoApicModel::new();
        other.restore(saved.clone()).unwrap();
        assert_eq!(other.eoi(0x60).len(), 1);
        let mut bad = [saved.clone(), saved.clone(), saved.clone(), saved];
        bad[0].entries[0] = ENTRY_PENDING;
        bad[1].entries[0] = ENTRY_REMOTE_IRR;
        bad[2].lines = 1 << 24;
        bad[3].id = 0x10;
        for saved in bad {
            assert!(other.restore(saved).is_err());
        }
    }
}
