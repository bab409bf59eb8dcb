//! ACPI fixed hardware as registers.

use super::spec::*;
use clock::Nanos;
use device::state::{RestoreError, SaveRestore};
use serde::{Deserialize, Serialize};

/// The state of the power management hardware.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AcpiPmSaved {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u64,
    gpe_enable: u64,
    /// The timer as counted without end.
    timer: u64,
}

/// What a register access asks of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiPmEffect {
    /// The machine goes to S5: power off.
    PowerOff,
}

/// The power management hardware. Set the time with [`AcpiPmModel::set_time`] before each access.
#[derive(Clone, Debug)]
pub struct AcpiPmModel {
    regs: AcpiPmSaved,
    /// What the timer is ahead of the machine's time.
    ahead: u64,
}

/// When the timer's highest bit changes, PM1_TIMER is set (§4.8.2.1).
const CARRY: u64 = 1 << (PM_TIMER_BITS - 1);

impl Default for AcpiPmModel {
    fn default() -> AcpiPmModel {
        AcpiPmModel::new()
    }
}

impl AcpiPmModel {
    /// Everything disabled, in ACPI mode.
    pub fn new() -> AcpiPmModel {
        let regs = AcpiPmSaved {
            status: 0,
            enable: 0,
            control: CONTROL_SCI_EN,
            gpe_status: 0,
            gpe_enable: 0,
            timer: 0,
        };
        AcpiPmModel { regs, ahead: 0 }
    }

    /// Puts the registers in their state after power-on; the timer goes on.
    pub fn reset(&mut self) {
        let timer = self.regs.timer;
        self.regs = AcpiPmSaved { timer, ..AcpiPmModel::new().regs };
    }

    /// Says what time it is.
    pub fn set_time(&mut self, now: Nanos) {
        let timer = ticks(now).wrapping_add(self.ahead).max(self.regs.timer);
        if timer / CARRY != self.regs.timer / CARRY {
            self.regs.status |= PM1_TIMER;
        }
        self.regs.timer = timer;
    }

    /// When the timer carries next, if that is to interrupt and has not yet.
    pub fn next_carry(&self) -> Option<Nanos> {
        let waits = self.regs.enable & !self.regs.status & PM1_TIMER != 0;
        let at = (self.regs.timer / CARRY + 1) * CARRY;
        waits.then(|| nanos(at.wrapping_sub(self.ahead)))
    }

    /// The level of SCI.
    pub fn interrupt(&self) -> bool {
        self.regs.status & self.regs.enable & PM1_ENABLE_MASK != 0
            || self.regs.gpe_status & self.regs.gpe_enable != 0
    }

    /// Sets status bits of PM1: a button, the RTC.
    pub fn raise(&mut self, bits: u16) {
        self.regs.status |= bits & PM1_STATUS_MASK;
    }

    /// Sets a general-purpose event's status; numbers beyond the last are ignored.
    pub fn raise_gpe(&mut self, event: u32) {
        if event < GPE0_COUNT {
            self.regs.gpe_status |= 1 << event;
        }
    }

    /// Reads bytes at a port.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        // One value for the whole access, so that a 32-bit read of the timer is of one moment.
        let timer = (self.regs.timer as u32 & ((1 << PM_TIMER_BITS) - 1)).to_le_bytes();
        for (port, byte) in (port..).zip(data) {
            let part = |bytes: &[u8], first| bytes[(port - first) as usize];
            *byte = match port {
                0x600..0x602 => part(&self.regs.status.to_le_bytes(), 0x600),
                0x602..0x604 => part(&self.regs.enable.to_le_bytes(), 0x602),
                0x604..0x606 => part(&self.regs.control.to_le_bytes(), 0x604),
                0x608..0x60c => part(&timer, 0x608),
                0x620..0x628 => part(&self.regs.gpe_status.to_le_bytes(), 0x620),
                0x628..0x630 => part(&self.regs.gpe_enable.to_le_bytes(), 0x628),
                _ => 0,
            };
        }
    }

    /// Writes bytes at a port.
    pub fn write(&mut self, port: u16, data: &[u8]) -> Option<AcpiPmEffect> {
        let mut effect = None;
        for (port, byte) in (port..).zip(data) {
            effect = self.write_byte(port, *byte).or(effect);
        }
        effect
    }

    fn write_byte(&mut self, port: u16, byte: u8) -> Option<AcpiPmEffect> {
        let at = |first: u16| 8 * (port - first) as u32;
        let half = |first: u16, old: u16| old & !(0xff << at(first)) | (byte as u16) << at(first);
        match port {
            // Status bits are cleared by writing ones.
            0x600..0x602 => self.regs.status &= !((byte as u16) << at(0x600)),
            0x602..0x604 => self.regs.enable = half(0x602, self.regs.enable) & PM1_ENABLE_MASK,
            0x604..0x606 => return self.write_control(half(0x604, self.regs.control)),
            0x620..0x628 => self.regs.gpe_status &= !((byte as u64) << at(0x620)),
            0x628..0x630 => {
                let old = self.regs.gpe_enable & !(0xff << at(0x628));
                self.regs.gpe_enable = old | (byte as u64) << at(0x628);
            }
            _ => {}
        }
        None
    }

    fn write_control(&mut self, value: u16) -> Option<AcpiPmEffect> {
        self.regs.control = value & (CONTROL_BM_RLD | CONTROL_SLP_TYP) | CONTROL_SCI_EN;
        if value & CONTROL_SLP_EN == 0 {
            return None;
        }
        if (value & CONTROL_SLP_TYP) >> CONTROL_SLP_TYP_SHIFT == SLP_TYP_S5 as u16 {
            return Some(AcpiPmEffect::PowerOff);
        }
        // No other sleep is offered; whoever enters one wakes at once.
        self.raise(PM1_WAKE);
        None
    }

    /// Goes on at `now` of this machine's time from where the restored timer was saved.
    pub fn resume_at(&mut self, now: Nanos) {
        self.ahead = self.regs.timer.wrapping_sub(ticks(now));
    }
}

fn ticks(now: Nanos) -> u64 {
    (now as u128 * PM_TIMER_HZ as u128 / 1_000_000_000) as u64
}

/// The first nanosecond of a tick.
fn nanos(tick: u64) -> Nanos {
    let ns = (tick as u128 * 1_000_000_000).div_ceil(PM_TIMER_HZ as u128);
    Nanos::try_from(ns).unwrap_or(Nanos::MAX)
}

impl SaveRestore for AcpiPmModel {
    type Saved = AcpiPmSaved;

    fn save(&self) -> AcpiPmSaved {
        self.regs.clone()
    }

    /// Takes over a state. The caller then calls [`AcpiPmModel::resume_at`].
    fn restore(&mut self, saved: AcpiPmSaved) -> Result<(), RestoreError> {
        let control = CONTROL_SCI_EN | CONTROL_BM_RLD | CONTROL_SLP_TYP;
        if saved.status & !PM1_STATUS_MASK != 0
            || saved.enable & !PM1_ENABLE_MASK != 0
            || saved.control & !control != 0
            || saved.control & CONTROL_SCI_EN == 0
        {
            return Err(RestoreError::new("ACPI power management", "a register has impossible bits"));
        }
        // Ticks of all nanoseconds that a machine can count fit here, with room for two machines' lives.
        if saved.timer >= 1 << 60 {
            return Err(RestoreError::new("ACPI power management", "its timer is out of range"));
        }
        self.regs = saved;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn word(pm: &AcpiPmModel, port: u16) -> u16 {
        let mut data = [0; 2];
        pm.read(port, &mut data);
        u16::from_le_bytes(data)
    }

    fn timer(pm: &AcpiPmModel) -> u32 {
        let mut data = [0; 4];
        pm.read(PM_TIMER, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn buttons_interrupt_when_enabled_until_cleared() {
        let mut pm = AcpiPmModel::new();
        pm.raise(PM1_POWER_BUTTON);
        assert!(!pm.interrupt());
        pm.write(PM1A_EVENT + 2, &PM1_POWER_BUTTON.to_le_bytes());
        assert!(pm.interrupt());
        assert_eq!(word(&pm, PM1A_EVENT), PM1_POWER_BUTTON);
        pm.write(PM1A_EVENT, &[0xff, 0]);
        assert!(pm.interrupt(), "another byte's bits");
        pm.write(PM1A_EVENT, &PM1_POWER_BUTTON.to_le_bytes());
        assert!(!pm.interrupt());
        pm.write(PM1A_EVENT + 2, &[0xff; 2]);
        assert_eq!(word(&pm, PM1A_EVENT + 2), PM1_ENABLE_MASK);
    }

    #[test]
    fn only_s5_powers_off() {
        let mut pm = AcpiPmModel::new();
        for slp_typ in 0..8u16 {
            let value = slp_typ << 10;
            assert_eq!(pm.write(PM1A_CONTROL, &value.to_le_bytes()), None);
            let effect = pm.write(PM1A_CONTROL, &(value | CONTROL_SLP_EN).to_le_bytes());
            assert_eq!(effect, (slp_typ == 5).then_some(AcpiPmEffect::PowerOff), "{slp_typ}");
            assert_eq!(word(&pm, PM1A_CONTROL), value | CONTROL_SCI_EN);
        }
        assert_eq!(word(&pm, PM1A_EVENT), PM1_WAKE);
        assert_eq!(pm.write(PM1A_CONTROL + 1, &[0x34]), Some(AcpiPmEffect::PowerOff));
    }

    #[test]
    fn the_timer_counts_at_its_frequency_and_carries() {
        let mut pm = AcpiPmModel::new();
        pm.set_time(SECOND);
        assert_eq!(timer(&pm), 3_579_545);
        pm.set_time(10 * SECOND);
        assert_eq!(timer(&pm), 35_795_450 & 0xff_ffff);
        assert_eq!(word(&pm, PM1A_EVENT), PM1_TIMER);
        pm.write(PM1A_EVENT + 2, &PM1_TIMER.to_le_bytes());
        assert!(pm.interrupt() && pm.next_carry().is_none());
        pm.write(PM1A_EVENT, &PM1_TIMER.to_le_bytes());
        let carry = pm.next_carry().unwrap();
        pm.set_time(carry - 1);
        assert!(!pm.interrupt());
        pm.set_time(carry);
        assert!(pm.interrupt());
        assert_eq!(timer(&pm) & 0x7f_ffff, 0);
    }

    #[test]
    fn general_purpose_events() {
        let mut pm = AcpiPmModel::new();
        pm.raise_gpe(10);
        pm.raise_gpe(64);
        pm.write(GPE0 + 8, &[0; 8]);
        assert!(!pm.interrupt());
        pm.write(GPE0 + 9, &[4]);
        assert!(pm.interrupt());
        let mut data = [0; 8];
        pm.read(GPE0, &mut data);
        assert_eq!(u64::from_le_bytes(data), 1 << 10);
        pm.write(GPE0 + 1, &[4]);
        assert!(!pm.interrupt());
    }

    #[test]
    fn holes_read_as_zero_and_take_nothing() {
        let mut pm = AcpiPmModel::new();
        for port in (0x606..0x608).chain(0x60c..0x620).chain(0x630..0x700) {
            assert_eq!(pm.write(port, &[0xff; 1]), None);
            let mut data = [0xff];
            pm.read(port, &mut data);
            assert_eq!(data, [0], "{port:#x}");
        }
    }

    #[test]
    fn a_saved_timer_goes_on_without_a_jump_and_an_impossible_state_is_refused() {
        let mut pm = AcpiPmModel::new();
        pm.set_time(100 * SECOND);
        pm.write(PM1A_EVENT, &PM1_TIMER.to_le_bytes());
        let (saved, before) = (pm.save(), timer(&pm));
        for now in [5 * SECOND, 5000 * SECOND] {
            let mut other = AcpiPmModel::new();
            other.restore(saved.clone()).unwrap();
            other.resume_at(now);
            other.set_time(now);
            assert_eq!(timer(&other), before);
            assert_eq!(word(&other, PM1A_EVENT), 0);
            other.set_time(now + SECOND);
            assert!((timer(&other) - before).abs_diff(3_579_545) <= 1);
        }
        for bad in [
            AcpiPmSaved { status: 2, ..saved.clone() },
            AcpiPmSaved { enable: 0x8000, ..saved.clone() },
            AcpiPmSaved { control: 0, ..saved.clone() },
            AcpiPmSaved { timer: u64::MAX, ..saved },
        ] {
            assert!(pm.restore(bad).is_err());
        }
    }
}
