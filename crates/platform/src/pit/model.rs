//! Three counters, the control word, and port 0x61.

use super::channel::{ChannelSaved, Tick};
use super::spec::*;
use clock::Nanos;
use device::state::{RestoreError, SaveRestore};
use serde::{Deserialize, Serialize};

/// The state of the timer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PitSaved {
    channels: [ChannelSaved; 3],
    /// Port 0x61 as written.
    system: u8,
    /// When this was saved, in input clocks.
    now: Tick,
}

/// The timer. Set the time with [`PitModel::set_time`] before each access.
#[derive(Clone, Debug)]
pub struct PitModel {
    regs: PitSaved,
}

impl Default for PitModel {
    fn default() -> PitModel {
        PitModel::new()
    }
}

impl PitModel {
    /// A timer that no control word has been written to. The gate of counter 2 is off.
    pub fn new() -> PitModel {
        let channels = [true, true, false].map(ChannelSaved::new);
        PitModel { regs: PitSaved { channels, system: 0, now: 0 } }
    }

    /// Puts the timer in its state after power-on; time goes on.
    pub fn reset(&mut self) {
        let PitSaved { now, .. } = self.regs;
        self.regs = PitSaved { now, ..PitModel::new().regs };
    }

    /// Says what time it is. Time never goes back.
    pub fn set_time(&mut self, now: Nanos) {
        self.regs.now = self.regs.now.max(ticks(now));
        let now = self.regs.now;
        self.regs.channels.iter_mut().for_each(|channel| channel.settle(now));
    }

    /// The level of counter 0's OUT.
    pub fn out0(&self) -> bool {
        self.regs.channels[0].out(self.regs.now)
    }

    /// When counter 0's OUT next rises by itself, in the machine's time; later than now.
    pub fn next_rise0(&self) -> Option<Nanos> {
        self.regs.channels[0].next_rise(self.regs.now).map(nanos)
    }

    /// Reads a port.
    pub fn read(&mut self, port: u16) -> u8 {
        let now = self.regs.now;
        match port {
            0x40..=0x42 => self.regs.channels[(port - PORT_COUNTER_0) as usize].read(now),
            PORT_SYSTEM => {
                let out = if self.regs.channels[2].out(now) { SYSTEM_OUT_2 } else { 0 };
                let odd_refresh = (now / REFRESH_PERIOD as Tick) & 1 != 0;
                self.regs.system | out | if odd_refresh { SYSTEM_REFRESH } else { 0 }
            }
            // The control word cannot be read.
            _ => 0xff,
        }
    }

    /// Writes a port.
    pub fn write(&mut self, port: u16, value: u8) {
        let now = self.regs.now;
        match port {
            0x40..=0x42 => self.regs.channels[(port - PORT_COUNTER_0) as usize].write(value, now),
            PORT_CONTROL => self.write_control(value),
            PORT_SYSTEM => {
                self.regs.system = value & SYSTEM_WRITABLE;
                self.regs.channels[2].set_gate(value & SYSTEM_GATE_2 != 0, now);
            }
            _ => {}
        }
    }

    fn write_control(&mut self, value: u8) {
        let now = self.regs.now;
        let select = value >> 6;
        if select == SELECT_READ_BACK {
            for (index, channel) in self.regs.channels.iter_mut().enumerate() {
                if value & 2 << index != 0 {
                    if value & READ_BACK_NO_COUNT == 0 {
                        channel.latch_count(now);
                    }
                    if value & READ_BACK_NO_STATUS == 0 {
                        channel.latch_status(now);
                    }
                }
            }
        } else if value >> 4 & 3 == 0 {
            self.regs.channels[select as usize].latch_count(now);
        } else {
            self.regs.channels[select as usize].set_mode(value);
        }
    }

    /// Goes on at `now` of this machine's time from where the restored timer was saved.
    pub fn resume_at(&mut self, now: Nanos) {
        let shift = ticks(now) - self.regs.now;
        self.regs.now += shift;
        self.regs.channels.iter_mut().for_each(|channel| channel.shift(shift));
    }
}

/// The machine's time in input clocks, rounded down.
fn ticks(now: Nanos) -> Tick {
    (now as u128 * FREQUENCY_HZ as u128 / 1_000_000_000) as Tick
}

/// The first nanosecond of a tick.
fn nanos(tick: Tick) -> Nanos {
    let ns = (tick.max(0) as u128 * 1_000_000_000).div_ceil(FREQUENCY_HZ as u128);
    Nanos::try_from(ns).unwrap_or(Nanos::MAX)
}

impl SaveRestore for PitModel {
    type Saved = PitSaved;

    fn save(&self) -> PitSaved {
        self.regs.clone()
    }

    /// Takes over a state. The caller then calls [`PitModel::resume_at`].
    fn restore(&mut self, saved: PitSaved) -> Result<(), RestoreError> {
        // Ticks of all nanoseconds that a machine can count fit here.
        if !(0..1 << 56).contains(&saved.now) {
            return Err(RestoreError::new("interval timer", "its time is out of range"));
        }
        if saved.system & !SYSTEM_WRITABLE != 0 {
            return Err(RestoreError::new("interval timer", "port 0x61 has bits that do not exist"));
        }
        saved.channels.iter().try_for_each(|channel| channel.check(saved.now))?;
        self.regs = saved;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    #[test]
    fn ticks_and_nanoseconds_agree() {
        for tick in [0, 1, 2, 17, 1_193_181, 1_193_182, 987_654_321_012] {
            assert_eq!(ticks(nanos(tick)), tick);
            assert!(tick == 0 || ticks(nanos(tick) - 1) == tick - 1);
        }
        assert_eq!(ticks(SECOND), 1_193_182);
    }

    /// Linux's pit_calibrate_tsc: counter 2 in mode 0, OUT seen in port 0x61.
    #[test]
    fn counter_2_measures_fifty_milliseconds() {
        let mut pit = PitModel::new();
        let start = 123_456_789;
        pit.set_time(start);
        let value = pit.read(0x61) & !2 | 1;
        pit.write(0x61, value);
        pit.write(0x43, 0xb0);
        let latch = (FREQUENCY_HZ / 20) as u16;
        pit.write(0x42, latch as u8);
        pit.write(0x42, (latch >> 8) as u8);
        let length = (latch as u64 + 1) * SECOND / FREQUENCY_HZ;
        pit.set_time(start + length - 1000);
        assert_eq!(pit.read(0x61) & SYSTEM_OUT_2, 0);
        pit.set_time(start + length + 1000);
        assert_eq!(pit.read(0x61) & (SYSTEM_OUT_2 | SYSTEM_GATE_2), SYSTEM_OUT_2 | SYSTEM_GATE_2);
    }

    /// Linux's quick_pit_calibrate: the high byte falls once in 256 clocks.
    #[test]
    fn the_high_byte_falls_every_256_clocks() {
        let mut pit = PitModel::new();
        pit.write(0x61, 1);
        pit.write(0x43, 0xb0);
        pit.write(0x42, 0xff);
        pit.write(0x42, 0xff);
        for high in (1..=0xff_u8).rev() {
            let first = (0xff - high as i64) * 256 + 1;
            for tick in [first.max(2), first + 255] {
                pit.set_time(nanos(tick));
                pit.read(0x42);
                assert_eq!(pit.read(0x42), high, "at tick {tick}");
            }
        }
    }

    #[test]
    fn counter_0_announces_a_steady_rhythm() {
        let mut pit = PitModel::new();
        pit.write(0x43, 0x34);
        // 1000 Hz, nearly.
        pit.write(0x40, 0xa9);
        pit.write(0x40, 0x04);
        let mut rises = Vec::new();
        while rises.len() < 1000 {
            let at = pit.next_rise0().unwrap();
            pit.set_time(at - 1);
            assert!(!pit.out0());
            pit.set_time(at);
            assert!(pit.out0());
            rises.push(at);
        }
        let expected = nanos(1 + 1000 * 0x4a9);
        assert_eq!(rises[999], expected, "no rounding adds up");
    }

    #[test]
    fn read_back_latches_several_counters() {
        let mut pit = PitModel::new();
        for control in [0x34, 0x74, 0xb4] {
            pit.write(0x43, control);
        }
        for port in [0x40, 0x40, 0x41, 0x41] {
            pit.write(port, 0x10);
        }
        pit.set_time(nanos(0x11));
        pit.write(0x43, 0xc0 | 0x0e);
        pit.set_time(SECOND);
        for (port, status) in [(0x40, 0xb4), (0x41, 0xb4), (0x42, 0xf4)] {
            assert_eq!(pit.read(port), status);
        }
        assert_eq!([pit.read(0x40), pit.read(0x40)], [0x00, 0x10]);
        assert_eq!(pit.read(0x43), 0xff);
    }

    #[test]
    fn the_refresh_bit_toggles() {
        let mut pit = PitModel::new();
        let mut toggles = 0;
        let mut last = pit.read(0x61) & SYSTEM_REFRESH;
        for tick in 0..180 {
            pit.set_time(nanos(tick));
            let bit = pit.read(0x61) & SYSTEM_REFRESH;
            toggles += (bit != last) as u32;
            last = bit;
        }
        assert_eq!(toggles, 9);
    }

    #[test]
    fn a_saved_timer_goes_on_at_another_time_and_an_impossible_one_is_refused() {
        let mut pit = PitModel::new();
        pit.set_time(SECOND);
        pit.write(0x43, 0x34);
        pit.write(0x40, 0x00);
        pit.write(0x40, 0x10);
        pit.set_time(SECOND + nanos(100));
        let wait = pit.next_rise0().unwrap() - (SECOND + nanos(100));
        let saved = pit.save();
        let mut other = PitModel::new();
        other.set_time(77);
        other.restore(saved.clone()).unwrap();
        other.resume_at(9 * SECOND);
        let other_wait = other.next_rise0().unwrap() - 9 * SECOND;
        assert!(wait.abs_diff(other_wait) < 1000, "{wait} and {other_wait}");
        let json = serde_json::to_value(&saved).unwrap();
        for (pointer, value) in [
            ("/now", -1i64),
            ("/now", i64::MAX),
            ("/system", 0xff),
            ("/channels/0/mode", 6),
            ("/channels/1/access", 0),
            ("/channels/0/period", 0),
            ("/channels/2/reload", 0x1_0001),
            ("/channels/0/run/Since", i64::MIN),
        ] {
            let mut json = json.clone();
            *json.pointer_mut(pointer).unwrap() = value.into();
            assert!(other.restore(serde_json::from_value(json).unwrap()).is_err(), "{pointer}");
        }
    }
}
