//! The interval timer in the machine: ports, clock, timer, interrupt line.

use super::model::{PitModel, PitSaved};
use super::spec;
use crate::ports::{self, PortDevice};
use crate::sync::lock;
use clock::{Clock, Nanos, Timer, Timers};
use device::state::{RestoreError, SaveRestore};
use device::{Bus, IrqLine, Overlap};
use std::sync::{Arc, Mutex, Weak};

/// Interrupts never come closer together than this: a guest that asks for more than the timer thread can
/// give gets fewer.
const RISE_DISTANCE_MIN_NS: Nanos = 20_000;

/// The interval timer. Counter 0 drives the interrupt line: what matters there is that OUT rises, so the
/// timer is armed for the next rise only, and rises that the host slept over count as one.
pub struct Pit {
    inner: Mutex<Inner>,
    clock: Arc<Clock>,
    irq: IrqLine,
    timer: Timer,
}

struct Inner {
    pit: PitModel,
    /// The rise that the timer is armed for.
    rise: Option<Nanos>,
    /// No interrupt before this.
    quiet_until: Nanos,
}

impl Pit {
    /// Creates the timer.
    pub fn new(timers: &Timers, irq: IrqLine) -> Arc<Pit> {
        Arc::new_cyclic(|this: &Weak<Pit>| {
            let this = this.clone();
            let timer = timers.timer(move || {
                if let Some(pit) = this.upgrade() {
                    pit.change(|_| {});
                }
            });
            let inner = Mutex::new(Inner { pit: PitModel::new(), rise: None, quiet_until: 0 });
            Pit { inner, clock: timers.clock().clone(), irq, timer }
        })
    }

    /// Places the timer and port 0x61.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn attach(self: &Arc<Self>, pio: &Bus) -> Result<(), Overlap> {
        ports::attach(self, pio, &[(spec::PORT_COUNTER_0, 4), (spec::PORT_SYSTEM, 1)])
    }

    /// Puts the timer in its state after power-on.
    pub fn reset(&self) {
        self.change(PitModel::reset);
    }

    /// Raises the interrupt that is due, if one is.
    pub fn settle(&self) {
        self.change(|_| {});
    }

    /// The saved form. No vCPU runs and the machine's clock is paused; the timer was settled since.
    pub fn save(&self) -> PitSaved {
        let mut pit = lock(&self.inner).pit.clone();
        pit.set_time(self.clock.now());
        pit.save()
    }

    /// Lets the interrupt line fall, until the next access or restore.
    pub(crate) fn release_line(&self) {
        let _inner = lock(&self.inner);
        self.irq.deassert();
    }

    /// Takes over a saved state: it goes on from where it was, at this machine's present time.
    ///
    /// # Errors
    /// When the state is one that the timer can never have.
    pub fn restore(&self, saved: PitSaved) -> Result<(), RestoreError> {
        let mut inner = lock(&self.inner);
        let now = self.clock.now();
        inner.pit.restore(saved)?;
        inner.pit.resume_at(now);
        inner.quiet_until = 0;
        // The line's level was saved by the controllers: driving the same again makes no edge.
        self.irq.set(inner.pit.out0());
        self.arm(&mut inner);
        Ok(())
    }

    /// Changes the registers, then sets line and timer to what follows.
    fn change<T>(&self, change: impl FnOnce(&mut PitModel) -> T) -> T {
        let mut inner = lock(&self.inner);
        let now = self.clock.now();
        inner.pit.set_time(now);
        if inner.rise.is_some_and(|rise| rise.max(inner.quiet_until) <= now) {
            inner.quiet_until = now.saturating_add(RISE_DISTANCE_MIN_NS);
            // One edge, also when the fall before it was not worth a timer.
            self.irq.deassert();
            self.irq.assert();
        }
        let result = change(&mut inner.pit);
        self.irq.set(inner.pit.out0());
        self.arm(&mut inner);
        result
    }

    fn arm(&self, inner: &mut Inner) {
        inner.rise = inner.pit.next_rise0();
        match inner.rise {
            Some(rise) => self.timer.arm(rise.max(inner.quiet_until)),
            None => self.timer.disarm(),
        }
    }
}

impl PortDevice for Pit {
    fn port_read(&self, port: u16) -> u8 {
        self.change(|pit| pit.read(port))
    }

    fn port_write(&self, port: u16, value: u8) {
        self.change(|pit| pit.write(port, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::IrqSink;
    use std::sync::mpsc;
    use std::time::Duration;

    struct Rises(Mutex<mpsc::Sender<u32>>);
    impl IrqSink for Rises {
        fn set_irq(&self, irq: u32, level: bool) {
            if level {
                let _ = lock(&self.0).send(irq);
            }
        }
    }

    fn setup() -> (Bus, Arc<Pit>, mpsc::Receiver<u32>, Timers) {
        let (bus, (tx, rx)) = (Bus::new(), mpsc::channel());
        let timers = Timers::new(Arc::new(Clock::new())).unwrap();
        let pit = Pit::new(&timers, IrqLine::new(Arc::new(Rises(Mutex::new(tx))), spec::IRQ));
        pit.attach(&bus).unwrap();
        (bus, pit, rx, timers)
    }

    const PATIENCE: Duration = Duration::from_secs(5);

    fn program(bus: &Bus, control: u8, count: u16) {
        bus.write(0x43, &[control]);
        for byte in count.to_le_bytes() {
            bus.write(0x40, &[byte]);
        }
    }

    #[test]
    fn periodic_modes_interrupt_again_and_again() {
        for control in [0x34, 0x36] {
            let (bus, pit, rx, _timers) = setup();
            program(&bus, control, 2000);
            for _ in 0..5 {
                assert_eq!(rx.recv_timeout(PATIENCE), Ok(0));
            }
            bus.write(0x43, &[0x30]);
            assert_eq!(pit.timer.deadline(), None);
        }
    }

    #[test]
    fn one_shots_interrupt_once() {
        for control in [0x30, 0x38] {
            let (bus, pit, rx, _timers) = setup();
            program(&bus, control, 1000);
            // The line may have risen before, when a control word set OUT high.
            let armed = || pit.timer.deadline().is_some() || lock(&pit.inner).rise.is_some();
            while armed() {
                rx.recv_timeout(PATIENCE).unwrap();
            }
            assert!(pit.irq.level());
        }
    }

    #[test]
    fn a_storm_is_slowed_down() {
        let (bus, pit, rx, _timers) = setup();
        program(&bus, 0x34, 2);
        for _ in 0..3 {
            rx.recv_timeout(PATIENCE).unwrap();
        }
        let inner = lock(&pit.inner);
        assert!(pit.timer.deadline().is_none_or(|deadline| deadline >= inner.quiet_until));
    }
}
