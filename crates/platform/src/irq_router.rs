//! Which interrupt line leads where.
//!
//! ```text
//! ISA 0..15 ──┬──> PIC input n (2 is the cascade)
//!             └──> I/O APIC pin n, but ISA 0 to pin 2 (say so in the MADT)
//! PCI INTx ──────> I/O APIC pins 16..23, several functions on one pin
//! ```

use crate::ioapic::{IoApic, spec::PINS};
use crate::pic::Pic;
use crate::sync::{Publisher, lock};
use device::{IrqLine, IrqSink};
use std::sync::{Arc, Mutex};

/// Number of ISA interrupts.
pub const ISA_IRQS: u32 = 16;
/// First global system interrupt of PCI INTx pins.
pub const PCI_GSI_BASE: u32 = 16;
/// Global system interrupts that PCI INTx pins share.
pub const PCI_GSIS: u32 = 8;
/// The I/O APIC pin of ISA interrupt 0: an interrupt source override for the MADT.
pub const TIMER_GSI: u32 = 2;

/// Leads interrupt lines to the controllers.
pub struct IrqRouter {
    inputs: Vec<Arc<Input>>,
}

/// An interrupt with any number of wires: high while one of them is.
struct Input {
    irq: u32,
    pic: Arc<Pic>,
    ioapic: Arc<IoApic>,
    /// How many wires are high.
    asserted: Mutex<u32>,
    publisher: Publisher,
}

impl Input {
    /// Tells the controllers the level. ISA interrupt 2 does not exist: the PIC's second half is wired
    /// there.
    fn drive(&self, level: bool) {
        match self.irq {
            TIMER_GSI => {}
            0..ISA_IRQS => {
                self.pic.set_irq(self.irq, level);
                self.ioapic.set_irq(if self.irq == 0 { TIMER_GSI } else { self.irq }, level);
            }
            _ => self.ioapic.set_irq(self.irq, level),
        }
    }
}

impl IrqSink for Input {
    fn set_irq(&self, _irq: u32, level: bool) {
        {
            let mut asserted = lock(&self.asserted);
            // Each wire tells only of changes, so this is the number of those that are high.
            *asserted = if level { asserted.saturating_add(1) } else { asserted.saturating_sub(1) };
        }
        self.publisher.publish(|| {
            let level = *lock(&self.asserted) > 0;
            self.drive(level);
        });
    }
}

impl IrqRouter {
    /// Creates a router to both controllers.
    pub fn new(pic: Arc<Pic>, ioapic: Arc<IoApic>) -> Arc<IrqRouter> {
        let input = |irq| {
            let (pic, ioapic, asserted) = (pic.clone(), ioapic.clone(), Mutex::new(0));
            Arc::new(Input { irq, pic, ioapic, asserted, publisher: Publisher::default() })
        };
        Arc::new(IrqRouter { inputs: (0..PINS as u32).map(input).collect() })
    }

    /// A new wire to an interrupt: ISA interrupts 0 to 15, pins of the I/O APIC alone from 16 to 23. It is
    /// low; several wires to one interrupt are as in a wired OR.
    ///
    /// # Panics
    /// When there is no such interrupt: a mistake in building the machine.
    pub fn line(&self, irq: u32) -> IrqLine {
        IrqLine::new(self.inputs[irq as usize].clone(), irq)
    }

    /// The global system interrupt of the INTx pins of a PCI device (slot) on bus 0.
    pub const fn pci_gsi(device: u8) -> u32 {
        PCI_GSI_BASE + device as u32 % PCI_GSIS
    }

    /// A new wire to the INTx interrupt of a PCI device on bus 0.
    pub fn pci_line(&self, device: u8) -> IrqLine {
        self.line(IrqRouter::pci_gsi(device))
    }
}

impl IrqSink for IrqRouter {
    /// Changes the level of one more wire to interrupt `irq`: to be called in pairs, high and low. For
    /// senders without an [`IrqLine`]; unknown interrupts are ignored.
    fn set_irq(&self, irq: u32, level: bool) {
        if let Some(input) = self.inputs.get(irq as usize) {
            input.set_irq(irq, level);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::{BusDevice, Msi, MsiSink};

    #[derive(Default)]
    struct Sent(Mutex<Vec<u8>>);
    impl MsiSink for Sent {
        fn send_msi(&self, msi: Msi) {
            lock(&self.0).push(msi.data as u8);
        }
    }

    struct Rig {
        router: Arc<IrqRouter>,
        pic: Arc<Pic>,
        ioapic: Arc<IoApic>,
        sent: Arc<Sent>,
    }

    /// All pins send vector 0x40 + pin; those of PCI are level-triggered.
    fn rig() -> Rig {
        let sent = Arc::new(Sent::default());
        let (pic, ioapic) = (Pic::new(|_| {}), IoApic::new(sent.clone()));
        for pin in 0..24u8 {
            let trigger: u32 = if pin < 16 { 0 } else { 0x8000 };
            ioapic.write(0, &[0x10 + 2 * pin, 0, 0, 0]);
            ioapic.write(0x10, &(trigger | (0x40 + pin as u32)).to_le_bytes());
        }
        Rig { router: IrqRouter::new(pic.clone(), ioapic.clone()), pic, ioapic, sent }
    }

    #[test]
    fn isa_interrupts_reach_both_controllers() {
        let rig = rig();
        for irq in 0..16 {
            rig.router.line(irq).pulse();
        }
        let expected: Vec<u8> = [2, 1].into_iter().chain(3..16).map(|pin| 0x40 + pin).collect();
        assert_eq!(*lock(&rig.sent.0), expected);
        let saved = serde_json::to_value(rig.pic.save()).unwrap();
        let edges = |chip: usize| saved["chips"][chip]["edges"].as_u64();
        assert_eq!((edges(0), edges(1)), (Some(0xfb), Some(0xff)), "input 2 is the cascade");
    }

    #[test]
    fn a_shared_interrupt_is_high_while_any_wire_is() {
        let rig = rig();
        let (a, b) = (rig.router.pci_line(3), rig.router.pci_line(11));
        assert_eq!((a.irq(), b.irq()), (19, 19));
        a.assert();
        b.assert();
        a.deassert();
        assert_eq!(*lock(&rig.sent.0), [0x53]);
        rig.ioapic.eoi(0x53);
        assert_eq!(*lock(&rig.sent.0), [0x53, 0x53], "b still asserts");
        b.deassert();
        rig.ioapic.eoi(0x53);
        assert_eq!(lock(&rig.sent.0).len(), 2);
        rig.router.set_irq(99, true);
    }
}
