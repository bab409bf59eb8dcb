//! The keyboard controller in the machine.

use super::model::{I8042Effect, I8042Model, I8042Saved};
use super::spec;
use crate::ports::{self, PortDevice};
use crate::sync::lock;
use device::state::{RestoreError, SaveRestore};
use device::{Bus, IrqLine, Overlap};
use std::sync::{Arc, Mutex};

/// A keyboard or mouse in one of the controller's ports.
pub trait Ps2Device: Send + Sync {
    /// Takes a byte from the controller. It answers by [`I8042::send`], at once or later, from any thread;
    /// no lock is held.
    fn receive(&self, byte: u8);
}

/// One of the controller's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ps2Port {
    /// The keyboard's.
    Keyboard,
    /// The mouse's.
    Aux,
}

/// The keyboard controller. Interrupt lines are set under its lock; the way from there never comes back.
pub struct I8042 {
    inner: Mutex<Inner>,
    keyboard_irq: IrqLine,
    aux_irq: IrqLine,
    on_reset: Box<dyn Fn() + Send + Sync>,
}

struct Inner {
    model: I8042Model,
    keyboard: Option<Arc<dyn Ps2Device>>,
    aux: Option<Arc<dyn Ps2Device>>,
}

impl I8042 {
    /// Creates a controller with empty ports. `on_reset` is called on the vCPU's thread that asked for a
    /// reset, with no lock held.
    pub fn new(
        keyboard_irq: IrqLine,
        aux_irq: IrqLine,
        on_reset: impl Fn() + Send + Sync + 'static,
    ) -> Arc<I8042> {
        let inner = Mutex::new(Inner { model: I8042Model::new(false, false), keyboard: None, aux: None });
        Arc::new(I8042 { inner, keyboard_irq, aux_irq, on_reset: Box::new(on_reset) })
    }

    /// Places the controller at its ports, with system control port A.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn attach(self: &Arc<Self>, pio: &Bus) -> Result<(), Overlap> {
        ports::attach(self, pio, &[(spec::PORT_DATA, 1), (spec::PORT_COMMAND, 1), (spec::PORT_SYSTEM_A, 1)])
    }

    /// Plugs a device in. Call it before the machine starts.
    pub fn plug(&self, port: Ps2Port, device: Arc<dyn Ps2Device>) {
        let mut inner = lock(&self.inner);
        match port {
            Ps2Port::Keyboard => inner.keyboard = Some(device),
            Ps2Port::Aux => inner.aux = Some(device),
        }
        let (keyboard, aux) = (inner.keyboard.is_some(), inner.aux.is_some());
        inner.model.set_devices(keyboard, aux);
    }

    /// A device sends a byte to the controller.
    pub fn send(&self, port: Ps2Port, byte: u8) {
        self.change(|model| match port {
            Ps2Port::Keyboard => model.from_keyboard(byte),
            Ps2Port::Aux => model.from_aux(byte),
        });
    }

    /// Puts the controller in its state after power-on.
    pub fn reset(&self) {
        self.change(I8042Model::reset);
    }

    /// The saved form. No vCPU runs.
    pub fn save(&self) -> I8042Saved {
        lock(&self.inner).model.save()
    }

    /// Takes over a saved state and drives the interrupt lines accordingly.
    ///
    /// # Errors
    /// When the state is one that the controller can never have.
    pub fn restore(&self, saved: I8042Saved) -> Result<(), RestoreError> {
        self.change(|model| model.restore(saved))
    }

    fn change<T>(&self, change: impl FnOnce(&mut I8042Model) -> T) -> T {
        let mut inner = lock(&self.inner);
        let result = change(&mut inner.model);
        self.sync(&inner.model);
        result
    }

    fn sync(&self, model: &I8042Model) {
        let (keyboard, aux) = model.interrupts();
        self.keyboard_irq.set(keyboard);
        self.aux_irq.set(aux);
    }
}

impl PortDevice for I8042 {
    fn port_read(&self, port: u16) -> u8 {
        self.change(|model| {
            let value = model.read(port);
            if port == spec::PORT_DATA {
                // What follows is a new interrupt: its edge needs the line to fall first.
                self.keyboard_irq.deassert();
                self.aux_irq.deassert();
            }
            value
        })
    }

    fn port_write(&self, port: u16, value: u8) {
        let effect = self.change(|model| model.write(port, value));
        let device = |pick: fn(&Inner) -> Option<Arc<dyn Ps2Device>>| pick(&lock(&self.inner));
        match effect {
            None => {}
            Some(I8042Effect::Reset) => (self.on_reset)(),
            Some(I8042Effect::ToKeyboard(byte)) => {
                if let Some(keyboard) = device(|inner| inner.keyboard.clone()) {
                    keyboard.receive(byte);
                }
            }
            Some(I8042Effect::ToAux(byte)) => {
                if let Some(aux) = device(|inner| inner.aux.clone()) {
                    aux.receive(byte);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Weak;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_reset_command_is_heard() {
        let (bus, resets) = (Bus::new(), Arc::new(AtomicU32::new(0)));
        let count = resets.clone();
        let controller = I8042::new(IrqLine::unconnected(), IrqLine::unconnected(), move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        controller.attach(&bus).unwrap();
        bus.write(0x64, &[0xfe]);
        bus.write(0x92, &[1]);
        assert_eq!(resets.load(Ordering::Relaxed), 2);
    }

    struct Echo(Mutex<Weak<I8042>>);
    impl Ps2Device for Echo {
        fn receive(&self, byte: u8) {
            if let Some(controller) = lock(&self.0).upgrade() {
                controller.send(Ps2Port::Keyboard, 0xfa);
                controller.send(Ps2Port::Keyboard, byte);
            }
        }
    }

    #[test]
    fn a_plugged_keyboard_answers_with_an_edge_for_each_byte() {
        #[derive(Default)]
        struct Rises(AtomicU32);
        impl device::IrqSink for Rises {
            fn set_irq(&self, _irq: u32, level: bool) {
                self.0.fetch_add(level as u32, Ordering::Relaxed);
            }
        }
        let (bus, rises) = (Bus::new(), Arc::new(Rises::default()));
        let line = IrqLine::new(rises.clone(), 1);
        let controller = I8042::new(line, IrqLine::unconnected(), || {});
        controller.attach(&bus).unwrap();
        let keyboard = Arc::new(Echo(Mutex::new(Arc::downgrade(&controller))));
        controller.plug(Ps2Port::Keyboard, keyboard);
        bus.write(0x60, &[0xee]);
        let mut read = [0; 2];
        let (first, second) = read.split_at_mut(1);
        bus.read(0x60, first);
        bus.read(0x60, second);
        assert_eq!(read, [0xfa, 0xee]);
        assert_eq!(rises.0.load(Ordering::Relaxed), 2);
    }
}
