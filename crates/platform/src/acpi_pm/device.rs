//! The power management hardware in the machine.

use super::model::{AcpiPmEffect, AcpiPmModel, AcpiPmSaved};
use super::spec;
use crate::sync::lock;
use clock::{Clock, Timer, Timers};
use device::state::{RestoreError, SaveRestore};
use device::{Bus, BusDevice, IrqLine, Overlap};
use std::sync::{Arc, Mutex, Weak};

/// ACPI fixed hardware. SCI is set under its lock; the way from there never comes back.
pub struct AcpiPm {
    model: Mutex<AcpiPmModel>,
    clock: Arc<Clock>,
    sci: IrqLine,
    timer: Timer,
    on_power_off: Box<dyn Fn() + Send + Sync>,
}

impl AcpiPm {
    /// Creates the hardware. `on_power_off` is called on the thread of the vCPU that entered S5, with no
    /// lock held.
    pub fn new(
        timers: &Timers,
        sci: IrqLine,
        on_power_off: impl Fn() + Send + Sync + 'static,
    ) -> Arc<AcpiPm> {
        Arc::new_cyclic(|this: &Weak<AcpiPm>| {
            let this = this.clone();
            let timer = timers.timer(move || {
                if let Some(pm) = this.upgrade() {
                    pm.change(|_| {});
                }
            });
            AcpiPm {
                model: Mutex::new(AcpiPmModel::new()),
                clock: timers.clock().clone(),
                sci,
                timer,
                on_power_off: Box::new(on_power_off),
            }
        })
    }

    /// Places the registers at [`spec::PORT_BASE`].
    ///
    /// # Errors
    /// When a port is taken.
    pub fn attach(self: &Arc<Self>, pio: &Bus) -> Result<(), Overlap> {
        pio.insert(spec::PORT_BASE.into(), spec::PORT_COUNT.into(), self.clone())
    }

    /// Someone presses the power button: the guest is asked to shut down. Callable from any thread.
    pub fn press_power_button(&self) {
        self.change(|model| model.raise(spec::PM1_POWER_BUTTON));
    }

    /// Someone presses the sleep button. Callable from any thread.
    pub fn press_sleep_button(&self) {
        self.change(|model| model.raise(spec::PM1_SLEEP_BUTTON));
    }

    /// A general-purpose event happens (0 to 63). Callable from any thread.
    pub fn raise_gpe(&self, event: u32) {
        self.change(|model| model.raise_gpe(event));
    }

    /// Puts the registers in their state after power-on.
    pub fn reset(&self) {
        self.change(AcpiPmModel::reset);
    }

    /// Raises the interrupt that is due, if one is.
    pub fn settle(&self) {
        self.change(|_| {});
    }

    /// The saved form. No vCPU runs and the machine's clock is paused; the timer was settled since.
    pub fn save(&self) -> AcpiPmSaved {
        let mut model = lock(&self.model).clone();
        model.set_time(self.clock.now());
        model.save()
    }

    /// Takes over a saved state, drives SCI and arms the timer accordingly.
    ///
    /// # Errors
    /// When the state is one that the hardware can never have.
    pub fn restore(&self, saved: AcpiPmSaved) -> Result<(), RestoreError> {
        let mut model = lock(&self.model);
        model.restore(saved)?;
        model.resume_at(self.clock.now());
        self.sync(&model);
        Ok(())
    }

    fn change<T>(&self, change: impl FnOnce(&mut AcpiPmModel) -> T) -> T {
        let mut model = lock(&self.model);
        model.set_time(self.clock.now());
        let result = change(&mut model);
        self.sync(&model);
        result
    }

    fn sync(&self, model: &AcpiPmModel) {
        self.sci.set(model.interrupt());
        match model.next_carry() {
            Some(at) => self.timer.arm(at),
            None => self.timer.disarm(),
        }
    }
}

impl BusDevice for AcpiPm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.change(|model| model.read(spec::PORT_BASE.wrapping_add(offset as u16), data));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let effect = self.change(|model| model.write(spec::PORT_BASE.wrapping_add(offset as u16), data));
        if effect == Some(AcpiPmEffect::PowerOff) {
            (self.on_power_off)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn the_power_button_leads_to_s5() {
        let (bus, offs) = (Bus::new(), Arc::new(AtomicU32::new(0)));
        let timers = Timers::new(Arc::new(Clock::new())).unwrap();
        let (sci, count) = (IrqLine::unconnected(), offs.clone());
        let pm = AcpiPm::new(&timers, sci.clone(), move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        pm.attach(&bus).unwrap();
        bus.write(0x602, &spec::PM1_POWER_BUTTON.to_le_bytes());
        pm.press_sleep_button();
        assert!(!sci.level());
        pm.press_power_button();
        assert!(sci.level());
        let saved = pm.save();
        bus.write(0x600, &[0, 3]);
        assert!(!sci.level());
        pm.restore(saved).unwrap();
        assert!(sci.level());
        bus.write(0x604, &0x3400u16.to_le_bytes());
        assert_eq!(offs.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_timer_reads_guest_time() {
        let bus = Bus::new();
        let clock = Arc::new(Clock::new());
        let timers = Timers::new(clock.clone()).unwrap();
        let pm = AcpiPm::new(&timers, IrqLine::unconnected(), || {});
        pm.attach(&bus).unwrap();
        clock.pause();
        let mut data = [0; 4];
        bus.read(0x608, &mut data);
        let expected = (clock.now() as u128 * 3_579_545 / 1_000_000_000) as u32 & 0xff_ffff;
        assert_eq!(u32::from_le_bytes(data), expected);
    }
}
