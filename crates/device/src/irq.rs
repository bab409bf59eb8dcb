//! Interrupt lines and message-signalled interrupts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Takes the level of numbered interrupt lines: an interrupt controller, or a set of them.
pub trait IrqSink: Send + Sync {
    /// Sets the level of line `irq`. Called only when the level of the device's own line changes.
    fn set_irq(&self, irq: u32, level: bool);
}

/// A wire from one device to an interrupt controller. Level-triggered as PCI and most of the PC are;
/// an edge-triggered controller input sees the rising edge of [`IrqLine::assert`].
#[derive(Clone)]
pub struct IrqLine {
    wire: Arc<Wire>,
}

struct Wire {
    sink: Arc<dyn IrqSink>,
    irq: u32,
    level: AtomicBool,
}

impl IrqLine {
    /// Connects a wire to input `irq` of `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, irq: u32) -> IrqLine {
        IrqLine { wire: Arc::new(Wire { sink, irq, level: AtomicBool::new(false) }) }
    }

    /// A wire that leads nowhere, for tests and devices without an interrupt.
    pub fn unconnected() -> IrqLine {
        struct Nowhere;
        impl IrqSink for Nowhere {
            fn set_irq(&self, _irq: u32, _level: bool) {}
        }
        IrqLine::new(Arc::new(Nowhere), 0)
    }

    /// Sets the level; tells the controller only of changes.
    pub fn set(&self, level: bool) {
        if self.wire.level.swap(level, Ordering::AcqRel) != level {
            self.wire.sink.set_irq(self.wire.irq, level);
        }
    }

    /// Raises the line.
    pub fn assert(&self) {
        self.set(true);
    }

    /// Lowers the line.
    pub fn deassert(&self) {
        self.set(false);
    }

    /// Raises and lowers the line at once: one edge, whatever the level was.
    pub fn pulse(&self) {
        self.set(false);
        self.set(true);
        self.set(false);
    }

    /// The number of the controller's input.
    pub fn irq(&self) -> u32 {
        self.wire.irq
    }

    /// The present level.
    pub fn level(&self) -> bool {
        self.wire.level.load(Ordering::Acquire)
    }
}

/// A message-signalled interrupt: a write of `data` to `address` (Intel SDM vol. 3A, §11.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msi {
    /// Where to write: 0xFEEx_xxxx with the destination.
    pub address: u64,
    /// What to write: vector, delivery mode, trigger mode.
    pub data: u32,
}

/// Takes message-signalled interrupts: the processors' local APICs.
pub trait MsiSink: Send + Sync {
    /// Delivers a message. Callable from any thread; never waits for a vCPU.
    fn send_msi(&self, msi: Msi);

    /// A way of its own for a message that is sent again and again, if there is one that is better than
    /// [`MsiSink::send_msi`].
    fn open_route(&self) -> Option<Box<dyn MsiRoute>> {
        None
    }
}

/// A prepared way for one message-signalled interrupt.
pub trait MsiRoute: Send + Sync {
    /// Sets the message. False when it cannot go this way: then nothing has changed.
    fn set(&self, msi: Msi) -> bool;

    /// Sends the message that was set. Callable from any thread; never waits for a vCPU.
    fn send(&self);
}
