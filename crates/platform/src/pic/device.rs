//! The interrupt controllers in the machine.

use super::model::{PicPair, PicSaved};
use super::spec;
use crate::ports::{self, PortDevice};
use crate::sync::{Publisher, lock};
use device::state::{RestoreError, SaveRestore};
use device::{Bus, IrqSink, Overlap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The pair of 8259A.
///
/// INTR is told to a callback whenever it changes, on the thread that caused it, with no lock held and
/// in order. When several threads change it at once, one of them tells for all, so the callback may run
/// shortly after the access that caused it has returned. It may call [`Pic::acknowledge`].
pub struct Pic {
    pair: Mutex<PicPair>,
    intr: Box<dyn Fn(bool) + Send + Sync>,
    publisher: Publisher,
    told: AtomicBool,
}

impl Pic {
    /// Creates the pair; `intr` takes the level of INTR, which is low at first.
    pub fn new(intr: impl Fn(bool) + Send + Sync + 'static) -> Arc<Pic> {
        Arc::new(Pic {
            pair: Mutex::new(PicPair::new()),
            intr: Box::new(intr),
            publisher: Publisher::default(),
            told: AtomicBool::new(false),
        })
    }

    /// Places both controllers and ELCR at their ports.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn attach(self: &Arc<Self>, pio: &Bus) -> Result<(), Overlap> {
        ports::attach(self, pio, &[(spec::PORT_MASTER, 2), (spec::PORT_SLAVE, 2), (spec::PORT_ELCR, 2)])
    }

    /// The level of INTR now.
    pub fn intr(&self) -> bool {
        lock(&self.pair).interrupt()
    }

    /// The processor's interrupt acknowledge cycle: returns the vector, and takes the interrupt in
    /// service. When the request has gone since INTR was seen, this is a spurious interrupt.
    pub fn acknowledge(&self) -> u8 {
        self.change(PicPair::acknowledge)
    }

    /// As [`Pic::acknowledge`], but `None` instead of a spurious interrupt. For engines that look at INTR
    /// and take the vector in one step, as no real processor can.
    pub fn try_acknowledge(&self) -> Option<u8> {
        self.change(|pair| pair.interrupt().then(|| pair.acknowledge()))
    }

    /// Sets which inputs are level-triggered, as firmware would: bit n for input n.
    pub fn set_elcr(&self, inputs: u16) {
        self.change(|pair| pair.set_elcr(inputs));
    }

    /// Puts both in their state after power-on.
    pub fn reset(&self) {
        self.change(PicPair::reset);
    }

    /// The saved form. No vCPU runs.
    pub fn save(&self) -> PicSaved {
        lock(&self.pair).save()
    }

    /// Takes over a saved state and tells the level of INTR.
    ///
    /// # Errors
    /// When the state is one that the controllers can never have.
    pub fn restore(&self, saved: PicSaved) -> Result<(), RestoreError> {
        self.change(|pair| pair.restore(saved))
    }

    fn change<T>(&self, change: impl FnOnce(&mut PicPair) -> T) -> T {
        let mut pair = lock(&self.pair);
        let result = change(&mut pair);
        drop(pair);
        self.publisher.publish(|| {
            let level = self.intr();
            if self.told.swap(level, Ordering::AcqRel) != level {
                (self.intr)(level);
            }
        });
        result
    }
}

impl PortDevice for Pic {
    fn port_read(&self, port: u16) -> u8 {
        self.change(|pair| pair.read(port))
    }

    fn port_write(&self, port: u16, value: u8) {
        self.change(|pair| pair.write(port, value));
    }
}

impl IrqSink for Pic {
    /// Sets the level of an ISA interrupt, 0 to 15.
    fn set_irq(&self, irq: u32, level: bool) {
        self.change(|pair| pair.set_irq(irq, level));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intr_is_told_when_it_changes_and_the_callback_may_acknowledge() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = told.clone();
        let pic = Arc::new_cyclic(|this: &std::sync::Weak<Pic>| {
            let this = this.clone();
            Pic {
                pair: Mutex::new(PicPair::new()),
                intr: Box::new(move |level| {
                    lock(&log).push(level);
                    if level {
                        assert_eq!(this.upgrade().map(|pic| pic.acknowledge()), Some(0x21));
                    }
                }),
                publisher: Publisher::default(),
                told: AtomicBool::new(false),
            }
        });
        let bus = Bus::new();
        pic.attach(&bus).unwrap();
        for (port, value) in [(0x20, 0x13), (0x21, 0x20), (0x21, 1)] {
            bus.write(port, &[value]);
        }
        pic.set_irq(1, true);
        assert_eq!(*lock(&told), [true, false]);
        assert_eq!(pic.try_acknowledge(), None);
        assert_eq!(pic.acknowledge(), 0x27);
    }

    #[test]
    fn the_last_level_told_is_the_level() {
        let level = Arc::new(AtomicBool::new(false));
        let told = level.clone();
        let pic = Pic::new(move |level| told.store(level, Ordering::SeqCst));
        for (port, value) in
            [(0x20, 0x11), (0x21, 0), (0x21, 0), (0x21, 1), (0xa0, 0x11), (0xa1, 0), (0xa1, 0), (0xa1, 1)]
        {
            pic.port_write(port, value);
        }
        pic.set_elcr(0x0e20);
        std::thread::scope(|scope| {
            for irq in [5, 9, 10, 11] {
                let pic = &pic;
                scope.spawn(move || {
                    for turn in 0..2000 {
                        pic.set_irq(irq, turn % 2 == 0);
                    }
                    pic.set_irq(irq, irq == 9);
                });
            }
        });
        assert!(level.load(Ordering::SeqCst) && pic.intr());
    }
}
