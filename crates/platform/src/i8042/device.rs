//! The keyboard controller in the machine.

use super::keyboard::{KeyboardModel, KeyboardSaved};
use super::keys::{KeyError, Stroke};
use super::model::{I8042Effect, I8042Model, I8042Saved};
use super::spec;
use crate::ports::{self, PortDevice};
use crate::sync::lock;
use clock::{Clock, Timer, Timers};
use device::state::{RestoreError, SaveRestore};
use device::{Bus, IrqLine, Overlap};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};

/// The most strokes that wait to be typed.
const STROKES_MAX: usize = 4096;
/// How long keys are held, and how long it takes until the next ones: firmware keeps no more than 15 keys, so it
/// gets the time to fetch them.
const HELD_NS: u64 = 15_000_000;
const BETWEEN_NS: u64 = 15_000_000;

/// The keyboard controller, and the keyboard if there is one. Interrupt lines are set under its lock; the way from
/// there never comes back.
pub struct I8042 {
    inner: Mutex<Inner>,
    /// Types what waits to be typed.
    typist: OnceLock<(Timer, Arc<Clock>)>,
    keyboard_irq: IrqLine,
    aux_irq: IrqLine,
    on_reset: Box<dyn Fn() + Send + Sync>,
}

struct Inner {
    model: I8042Model,
    keyboard: Option<KeyboardModel>,
    strokes: VecDeque<Stroke>,
}

impl I8042 {
    /// Creates a controller with empty ports. `on_reset` is called on the vCPU's thread that asked for a
    /// reset, with no lock held.
    pub fn new(
        keyboard_irq: IrqLine,
        aux_irq: IrqLine,
        on_reset: impl Fn() + Send + Sync + 'static,
    ) -> Arc<I8042> {
        let inner = Inner { model: I8042Model::new(false, false), keyboard: None, strokes: VecDeque::new() };
        let (inner, typist) = (Mutex::new(inner), OnceLock::new());
        Arc::new(I8042 { inner, typist, keyboard_irq, aux_irq, on_reset: Box::new(on_reset) })
    }

    /// Places the controller at its ports, with system control port A.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn attach(self: &Arc<Self>, pio: &Bus) -> Result<(), Overlap> {
        ports::attach(self, pio, &[(spec::PORT_DATA, 1), (spec::PORT_COMMAND, 1), (spec::PORT_SYSTEM_A, 1)])
    }

    /// Plugs a keyboard in. Once, before the machine starts.
    pub fn plug_keyboard(self: &Arc<Self>, timers: &Timers) {
        let this = Arc::downgrade(self);
        let timer = timers.timer(move || {
            if let Some(controller) = this.upgrade() {
                controller.type_next();
            }
        });
        let _ = self.typist.set((timer, timers.clock().clone()));
        let mut inner = lock(&self.inner);
        inner.keyboard = Some(KeyboardModel::new());
        inner.model.set_devices(true, false);
    }

    /// Presses keys, one stroke after the other, in guest time. Callable from any thread; it does not wait for the
    /// guest to read them.
    ///
    /// # Errors
    /// When there is no keyboard, or so much waits already that this does not fit; then nothing is typed.
    pub fn press(&self, strokes: Vec<Stroke>) -> Result<(), KeyError> {
        let Some((timer, clock)) = self.typist.get() else { return Err(KeyError::NoKeyboard) };
        let mut inner = lock(&self.inner);
        if inner.strokes.len() + strokes.len() > STROKES_MAX {
            return Err(KeyError::Busy);
        }
        inner.strokes.extend(strokes);
        if timer.deadline().is_none() {
            timer.arm(clock.now());
        }
        Ok(())
    }

    /// Releases the keys that are down, or presses those of the next stroke.
    fn type_next(&self) {
        let Some((timer, clock)) = self.typist.get() else { return };
        self.change(|inner| {
            let Some(keyboard) = &mut inner.keyboard else { return };
            let held = keyboard.held();
            let next = if held.is_empty() { inner.strokes.pop_front() } else { None };
            held.iter().rev().for_each(|key| keyboard.key(*key, false));
            next.iter().flat_map(|stroke| stroke.keys()).for_each(|key| keyboard.key(*key, true));
            if next.is_some() {
                timer.arm(clock.now() + HELD_NS);
            } else if !inner.strokes.is_empty() {
                timer.arm(clock.now() + BETWEEN_NS);
            }
        });
    }

    /// Puts the controller in its state after power-on.
    pub fn reset(&self) {
        self.change(|inner| {
            inner.model.reset();
            inner.strokes.clear();
            if let Some(keyboard) = &mut inner.keyboard {
                *keyboard = KeyboardModel::new();
            }
        });
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
        self.change(|inner| inner.model.restore(saved))
    }

    /// The saved form of the keyboard, if there is one. What waits to be typed is not part of it.
    pub fn save_keyboard(&self) -> Option<KeyboardSaved> {
        lock(&self.inner).keyboard.as_ref().map(|keyboard| keyboard.save())
    }

    /// Takes over the keyboard's saved state, before the controller's. Keys that were down are let go when the
    /// machine goes on: nobody has their fingers on them.
    ///
    /// # Errors
    /// When the state is one that the keyboard can never have, or only one of the machines has a keyboard.
    pub fn restore_keyboard(&self, saved: Option<KeyboardSaved>) -> Result<(), RestoreError> {
        let mut inner = lock(&self.inner);
        let are_held = match (&mut inner.keyboard, saved) {
            (None, None) => false,
            (Some(keyboard), Some(saved)) => {
                keyboard.restore(saved)?;
                !keyboard.held().is_empty()
            }
            _ => return Err(RestoreError::new("keyboard", "only one of the machines has it")),
        };
        if let (true, Some((timer, clock))) = (are_held, self.typist.get()) {
            timer.arm(clock.now() + HELD_NS);
        }
        Ok(())
    }

    /// Changes something, lets the keyboard send what fits, and drives the lines.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = lock(&self.inner);
        let result = change(&mut inner);
        let Inner { model, keyboard, .. } = &mut *inner;
        if let Some(keyboard) = keyboard {
            while model.takes_from_keyboard()
                && let Some(byte) = keyboard.take()
            {
                model.from_keyboard(byte);
            }
        }
        self.sync(model);
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
        self.change(|inner| {
            let value = inner.model.read(port);
            if port == spec::PORT_DATA {
                // What follows is a new interrupt: its edge needs the line to fall first.
                self.keyboard_irq.deassert();
                self.aux_irq.deassert();
            }
            value
        })
    }

    fn port_write(&self, port: u16, value: u8) {
        let resets = self.change(|inner| match (inner.model.write(port, value), &mut inner.keyboard) {
            (Some(I8042Effect::Reset), _) => true,
            (Some(I8042Effect::ToKeyboard(byte)), Some(keyboard)) => {
                keyboard.receive(byte);
                false
            }
            // There is no mouse.
            _ => false,
        });
        if resets {
            (self.on_reset)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn keys_arrive_one_after_the_other_with_an_edge_for_each_byte() {
        #[derive(Default)]
        struct Rises(AtomicU32);
        impl device::IrqSink for Rises {
            fn set_irq(&self, _irq: u32, level: bool) {
                self.0.fetch_add(level as u32, Ordering::Relaxed);
            }
        }
        let (bus, rises) = (Bus::new(), Arc::new(Rises::default()));
        let timers = Timers::new(Arc::new(Clock::new())).unwrap();
        let controller = I8042::new(IrqLine::new(rises.clone(), 1), IrqLine::unconnected(), || {});
        controller.attach(&bus).unwrap();
        assert_eq!(controller.press(vec![]), Err(KeyError::NoKeyboard));
        controller.plug_keyboard(&timers);
        bus.write(0x60, &[0xee]);
        let mut echo = [0];
        bus.read(0x60, &mut echo);
        assert_eq!(echo, [0xee]);
        let strokes = Stroke::typing("A").unwrap();
        assert_eq!(controller.press(vec![strokes[0].clone(); STROKES_MAX + 1]), Err(KeyError::Busy));
        controller.press(strokes).unwrap();
        // Translated to set 1: shift down, a down; then up.
        let mut codes = Vec::new();
        while codes.len() < 4 {
            let mut status = [0];
            bus.read(0x64, &mut status);
            if status[0] & spec::STATUS_OUTPUT_FULL != 0 {
                let mut code = [0];
                bus.read(0x60, &mut code);
                codes.push(code[0]);
            } else {
                std::thread::yield_now();
            }
        }
        assert_eq!(codes, [0x2a, 0x1e, 0x9e, 0xaa]);
        assert_eq!(rises.0.load(Ordering::Relaxed), 5);
        let saved = controller.save_keyboard();
        assert!(controller.restore_keyboard(saved).is_ok() && controller.restore_keyboard(None).is_err());
    }
}
