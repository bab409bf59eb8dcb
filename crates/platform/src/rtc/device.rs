//! The real-time clock in the machine: ports, wall clock, timer, interrupt line.

use super::model::{Rtc, RtcSaved};
use super::spec;
use crate::ports::{self, PortDevice};
use crate::sync::lock;
use clock::{Clock, Timer, Timers};
use device::state::{RestoreError, SaveRestore};
use device::{Bus, IrqLine, Overlap};
use std::sync::{Arc, Mutex, Weak};

/// The real-time clock. A timer is armed only while the guest waits for an interrupt.
pub struct RtcDevice {
    rtc: Mutex<Rtc>,
    clock: Arc<Clock>,
    irq: IrqLine,
    timer: Timer,
}

impl RtcDevice {
    /// Creates a clock that shows the machine's wall-clock time (UTC).
    pub fn new(timers: &Timers, irq: IrqLine) -> Arc<RtcDevice> {
        let clock = timers.clock().clone();
        Arc::new_cyclic(|this: &Weak<RtcDevice>| {
            let this = this.clone();
            let timer = timers.timer(move || {
                if let Some(device) = this.upgrade() {
                    device.change(|_, _| {});
                }
            });
            RtcDevice { rtc: Mutex::new(Rtc::new(wall_ns(&clock))), clock, irq, timer }
        })
    }

    /// Places the clock at its ports.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn attach(self: &Arc<Self>, pio: &Bus) -> Result<(), Overlap> {
        ports::attach(self, pio, &[(spec::PORT_INDEX, 2)])
    }

    /// Tells firmware the memory size: `low` bytes below 4 GiB, `high` bytes above.
    pub fn set_memory_size(&self, low: u64, high: u64) {
        lock(&self.rtc).set_memory_size(low, high);
    }

    /// Sets a byte of the memory behind the registers.
    pub fn set_nvram(&self, register: u8, value: u8) {
        lock(&self.rtc).set_nvram(register, value);
    }

    /// A byte of the memory behind the registers.
    pub fn nvram(&self, register: u8) -> u8 {
        lock(&self.rtc).nvram(register)
    }

    /// Does what the reset line does: interrupts are off; time and memory go on.
    pub fn reset(&self) {
        self.change(|rtc, _| rtc.reset());
    }

    /// Raises the interrupt that is due, if one is.
    pub fn settle(&self) {
        self.change(|_, _| {});
    }

    /// The saved form. No vCPU runs and the machine's clock is paused.
    pub fn save(&self) -> RtcSaved {
        lock(&self.rtc).save()
    }

    /// Takes over a saved state, drives the interrupt line and arms the timer accordingly.
    ///
    /// # Errors
    /// When the state is one that the clock can never have.
    pub fn restore(&self, saved: RtcSaved) -> Result<(), RestoreError> {
        self.change(|rtc, now| {
            rtc.restore(saved)?;
            rtc.resume_at(now);
            Ok(())
        })
    }

    /// Changes the registers, then sets line and timer to what follows. Always under the lock, so that
    /// neither can be overtaken.
    fn change<T>(&self, change: impl FnOnce(&mut Rtc, u64) -> T) -> T {
        let mut rtc = lock(&self.rtc);
        let now = wall_ns(&self.clock);
        rtc.advance(now);
        let result = change(&mut rtc, now);
        self.irq.set(rtc.interrupt());
        match rtc.next_interrupt(now) {
            Some(wait) => self.timer.arm(self.clock.now().saturating_add(wait)),
            None => self.timer.disarm(),
        }
        result
    }
}

fn wall_ns(clock: &Clock) -> u64 {
    clock.wall().as_nanos() as u64
}

impl PortDevice for RtcDevice {
    fn port_read(&self, port: u16) -> u8 {
        match port {
            spec::PORT_DATA => self.change(|rtc, now| rtc.read_data(now)),
            // The index cannot be read back.
            _ => 0xff,
        }
    }

    fn port_write(&self, port: u16, value: u8) {
        match port {
            spec::PORT_DATA => self.change(|rtc, now| rtc.write_data(value, now)),
            _ => lock(&self.rtc).write_index(value),
        }
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

    #[test]
    fn periodic_interrupts_arrive_and_stop() {
        let (bus, (tx, rx)) = (Bus::new(), mpsc::channel());
        let timers = Timers::new(Arc::new(Clock::new())).unwrap();
        let line = IrqLine::new(Arc::new(Rises(Mutex::new(tx))), spec::IRQ);
        let rtc = RtcDevice::new(&timers, line);
        rtc.attach(&bus).unwrap();
        bus.write(0x70, &[spec::REG_B, spec::B_PIE | spec::B_24_HOURS]);
        for _ in 0..3 {
            assert_eq!(rx.recv_timeout(Duration::from_secs(5)), Ok(8));
            let mut c = [0];
            bus.write(0x70, &[spec::REG_C]);
            bus.read(0x71, &mut c);
            assert_eq!(c[0] & 0xc0, 0xc0);
        }
        bus.write(0x70, &[spec::REG_B, spec::B_24_HOURS]);
        assert_eq!(rtc.timer.deadline(), None);
    }
}
