//! Messages: interprocessor interrupts and message-signalled interrupts, and to whom they go (SDM vol.
//! 3A, §11.6, §11.11, §11.12.10).

use super::*;
use crate::vm::VmShared;
use x86::apic::delivery;

/// An interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(super) to: Destination,
    /// One of [`delivery`].
    pub(super) delivery: u32,
    pub(super) vector: u8,
    pub(super) level: bool,
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    Everyone,
    EveryoneBut(u32),
    Physical(u32),
    Logical(u32),
}

impl Message {
    /// Decodes a write to the interrupt address range (§11.11); `None` when it means nothing. The
    /// trigger's level bit is ignored: senders of level-triggered messages send only assertions.
    pub(super) fn from_msi(address: u64, data: u32) -> Option<Message> {
        if address >> 20 != 0xfee {
            return None;
        }
        let id = (address >> 12) as u32 & 0xff;
        let to = match (id, address & 1 << 2 != 0) {
            (0xff, _) => Destination::Everyone,
            (_, false) => Destination::Physical(id),
            (_, true) => Destination::Logical(id),
        };
        let mut delivery = data >> 8 & 7;
        if delivery == delivery::FIXED && address & 1 << 3 != 0 {
            // Redirection hint: to the one with the lowest priority.
            delivery = delivery::LOWEST_PRIORITY;
        }
        let known = matches!(
            delivery,
            delivery::FIXED | delivery::LOWEST_PRIORITY | delivery::NMI | delivery::INIT | delivery::EXTINT
        );
        known.then_some(Message { to, delivery, vector: data as u8, level: data & LEVEL_TRIGGERED != 0 })
    }

    /// Decodes an interrupt command of the APIC with this ID (§11.6.1, §11.12.9); `id` is the destination
    /// field, `broadcast` its value for all. `None` when it does nothing.
    pub(super) fn from_icr(sender: u32, low: u32, id: u32, broadcast: u32) -> Option<Message> {
        let to = match (low & ICR_SHORTHAND) >> 18 {
            1 => Destination::Physical(sender),
            2 => Destination::Everyone,
            3 => Destination::EveryoneBut(sender),
            _ if id == broadcast => Destination::Everyone,
            _ if low & ICR_LOGICAL != 0 => Destination::Logical(id),
            _ => Destination::Physical(id),
        };
        let delivery = low >> 8 & 7;
        let level = low & LEVEL_TRIGGERED != 0;
        if delivery == delivery::INIT && level && low & ICR_ASSERT == 0 {
            // The deassertion that follows an INIT means nothing since the Pentium 4.
            return None;
        }
        // Only INIT knows a level; other commands are edge-triggered whatever they say (§11.6.1).
        Some(Message { to, delivery, vector: low as u8, level: false })
    }

    /// Whether the message has a vector that is forbidden.
    pub(super) fn has_illegal_vector(&self) -> bool {
        self.vector < 16 && matches!(self.delivery, delivery::FIXED | delivery::LOWEST_PRIORITY)
    }
}

impl Lapic {
    /// Whether this APIC is meant (§11.6.2). A disabled one hears nothing.
    fn is_addressed(&self, to: Destination) -> bool {
        let mode = self.mode();
        if mode == ApicMode::Disabled {
            return false;
        }
        match to {
            Destination::Everyone => true,
            Destination::EveryoneBut(id) => id != self.id,
            Destination::Physical(id) => id == self.id,
            Destination::Logical(wanted) => {
                let own = self.get(reg::LDR);
                if mode == ApicMode::X2Apic {
                    return wanted >> 16 == own >> 16 && wanted & own & 0xffff != 0;
                }
                let (wanted, own) = (wanted & 0xff, own >> 24);
                match self.get(reg::DFR) >> 28 {
                    // Flat: one bit each.
                    0xf => wanted & own != 0,
                    // Clusters of four; 15 is all clusters.
                    0 => (wanted >> 4 == own >> 4 || wanted >> 4 == 15) && wanted & own & 15 != 0,
                    _ => false,
                }
            }
        }
    }

    /// Takes a message that is meant for this APIC. Any thread.
    fn receive(&self, message: &Message) {
        match message.delivery {
            delivery::FIXED | delivery::LOWEST_PRIORITY => self.accept(message.vector, message.level),
            delivery::NMI => self.signals.raise(signal::NMI),
            delivery::INIT => self.init_received(),
            delivery::STARTUP => {
                self.startup_vector.store(message.vector, SeqCst);
                self.signals.raise(signal::SIPI);
            }
            delivery::EXTINT => {
                self.external.store(true, SeqCst);
                self.signals.raise(signal::INTERRUPT);
            }
            // System management interrupts and the reserved mode.
            _ => {}
        }
    }
}

impl VmShared {
    /// Delivers a message-signalled interrupt. Any thread; never waits for a vCPU.
    pub(crate) fn deliver_message(&self, address: u64, data: u32) {
        if let Some(message) = Message::from_msi(address, data) {
            self.route(&message);
        }
    }

    /// Delivers a message to everyone who is addressed, or to one of them for lowest priority.
    pub(super) fn route(&self, message: &Message) -> u32 {
        if message.delivery == delivery::LOWEST_PRIORITY {
            return self.lowest_priority(message).map(|lapic| lapic.receive(message)).is_some() as u32;
        }
        if let Destination::Physical(id) = message.to {
            return match self.lapics.get(id as usize) {
                Some(lapic) if lapic.is_enabled() => {
                    lapic.receive(message);
                    1
                }
                _ => 0,
            };
        }
        let mut count = 0;
        for lapic in self.lapics.iter().filter(|lapic| lapic.is_addressed(message.to)) {
            lapic.receive(message);
            count += 1;
        }
        count
    }

    /// Among those addressed that take interrupts at all, one of the lowest task priority; equals take
    /// turns by vector, so that each interrupt stays with its processor and its caches.
    fn lowest_priority(&self, message: &Message) -> Option<&Arc<Lapic>> {
        let candidates = || {
            self.lapics.iter().filter(|lapic| lapic.is_software_enabled() && lapic.is_addressed(message.to))
        };
        let priority = |lapic: &Arc<Lapic>| lapic.get(reg::TPR) >> 4;
        let lowest = candidates().map(priority).min()?;
        let equals = || candidates().filter(|lapic| priority(lapic) == lowest);
        let count = equals().count().max(1);
        equals().nth(message.vector as usize % count)
    }

    /// Ends the halt of a vCPU that waits for a lock (KVM_HC_KICK_CPU). Unknown IDs are ignored.
    pub(crate) fn kick_vcpu(&self, apic_id: u32) {
        if let Some(lapic) = self.lapics.get(apic_id as usize) {
            lapic.unhalt();
        }
    }

    /// Sends one interrupt to the vCPUs of a bitmap (KVM_HC_SEND_IPI): bit n of `low` is APIC ID
    /// `first + n`, `high` goes on `width` bits later; `width` is 64 for a caller in 64-bit mode and 32
    /// otherwise. `icr` is an interrupt command without destination. Returns how many got it, or a
    /// negative error number.
    pub(crate) fn send_ipi_mask(&self, low: u64, high: u64, first: u32, icr: u64, width: u32) -> i64 {
        const KVM_EINVAL: i64 = 22;
        let icr = icr as u32;
        if icr & (ICR_SHORTHAND | ICR_LOGICAL) != 0 {
            return -KVM_EINVAL;
        }
        let mut count = 0;
        for (bitmap, offset) in [(low, 0), (high, width)] {
            let mut bits = if width == 32 { bitmap & 0xffff_ffff } else { bitmap };
            while bits != 0 {
                let id = first as u64 + offset as u64 + bits.trailing_zeros() as u64;
                bits &= bits - 1;
                let Ok(id) = u32::try_from(id) else { continue };
                if let Some(message) = Message::from_icr(0, icr, id, u32::MAX)
                    && matches!(message.to, Destination::Physical(_))
                {
                    count += self.route(&message) as i64;
                }
            }
        }
        count
    }
}
