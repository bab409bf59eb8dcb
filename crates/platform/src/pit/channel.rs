//! One counter of the 8254, as a function of time in ticks of its input clock.

use super::spec::*;
use device::state::RestoreError;
use serde::{Deserialize, Serialize};

/// Time in input clocks. Signed, because a square wave's period may have begun before time did.
pub(super) type Tick = i64;

/// The state of one counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelSaved {
    /// Counting mode, 0 to 5.
    mode: u8,
    bcd: bool,
    /// Read/write field of the control word: 1 low byte, 2 high byte, 3 both.
    access: u8,
    gate: bool,
    /// The count register in clocks: what the counter is loaded with next.
    reload: i64,
    /// The count that runs, in clocks.
    period: i64,
    run: Run,
    /// When `reload` replaces `period` (modes 2 and 3).
    next_load: Option<Tick>,
    /// A count was written since the control word.
    loaded: bool,
    /// The count register has not been carried to the counter yet.
    null_count: bool,
    /// Low byte of a two-byte write.
    write_low: Option<u8>,
    /// The next read of a two-byte counter gives the high byte.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

/// What a counter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Run {
    /// No count or no trigger yet: OUT is at its level of rest.
    Idle,
    /// Counting from a tick on; until then the count is being loaded.
    Since(Tick),
    /// Stopped by the gate after so many clocks.
    Held(Tick),
}

impl ChannelSaved {
    /// A counter that no control word has been written to.
    pub(super) fn new(gate: bool) -> ChannelSaved {
        ChannelSaved {
            mode: 3,
            bcd: false,
            access: 3,
            gate,
            reload: 0x1_0000,
            period: 0x1_0000,
            run: Run::Idle,
            next_load: None,
            loaded: false,
            null_count: true,
            write_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// Writes a control word with an access field of 1 to 3.
    pub(super) fn set_mode(&mut self, control: u8) {
        let mode = control >> 1 & 7;
        *self = ChannelSaved {
            // Bit 2 of the mode is not decoded for modes 2 and 3.
            mode: if mode > 5 { mode - 4 } else { mode },
            bcd: control & 1 != 0,
            access: control >> 4 & 3,
            ..ChannelSaved::new(self.gate)
        };
        (self.reload, self.period) = (self.modulus(), self.modulus());
    }

    /// Latches the count, unless one is latched already.
    pub(super) fn latch_count(&mut self, now: Tick) {
        self.settle(now);
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count(now));
        }
    }

    /// Latches the status byte, unless one is latched already.
    pub(super) fn latch_status(&mut self, now: Tick) {
        self.settle(now);
        if self.latched_status.is_none() {
            let out = if self.out(now) { STATUS_OUT } else { 0 };
            let loading = matches!(self.run, Run::Since(start) if now < start);
            let null = if self.null_count || loading { STATUS_NULL_COUNT } else { 0 };
            self.latched_status = Some(out | null | self.access << 4 | self.mode << 1 | self.bcd as u8);
        }
    }

    /// Reads the counter's port.
    pub(super) fn read(&mut self, now: Tick) -> u8 {
        self.settle(now);
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.count(now)).to_le_bytes();
        let low_of_two = self.access == 3 && !self.read_high;
        self.read_high = low_of_two;
        if !low_of_two {
            self.latched_count = None;
        }
        if self.access == 1 || low_of_two { low } else { high }
    }

    /// Writes the counter's port.
    pub(super) fn write(&mut self, value: u8, now: Tick) {
        self.settle(now);
        match (self.access, self.write_low.take()) {
            (1, _) => self.load([value, 0], now),
            (2, _) => self.load([0, value], now),
            (_, Some(low)) => self.load([low, value], now),
            (_, None) => {
                self.write_low = Some(value);
                // In mode 0 the first of two bytes stops the counter and sets OUT low.
                if self.mode == 0 {
                    self.run = Run::Idle;
                }
            }
        }
    }

    /// Sets the gate input (data sheet, "Gate pin operations summary").
    pub(super) fn set_gate(&mut self, gate: bool, now: Tick) {
        self.settle(now);
        let (rises, falls) = (gate && !self.gate, !gate && self.gate);
        self.gate = gate;
        if !self.loaded {
            return;
        }
        match (self.mode, self.run) {
            (0 | 4, Run::Since(start)) if falls => self.run = Run::Held((now - start).max(0)),
            (0 | 4, Run::Held(elapsed)) if rises => self.run = Run::Since(now - elapsed),
            (2 | 3, _) if falls => {
                self.next_load = None;
                self.run = Run::Held(0);
            }
            (1 | 2 | 3 | 5, _) if rises => self.start(now),
            _ => {}
        }
    }

    /// The level of OUT. Call [`ChannelSaved::settle`] first.
    pub(super) fn out(&self, now: Tick) -> bool {
        let Some(elapsed) = self.elapsed(now) else { return self.mode != 0 };
        match self.mode {
            0 | 1 => elapsed >= self.period,
            // A count of 1 is not allowed; OUT stands still then.
            2 => elapsed % self.period != self.period - 1 || self.period == 1 || self.is_held(),
            3 => elapsed % self.period < self.high_half(),
            _ => elapsed != self.period,
        }
    }

    /// The first tick after `now` at which OUT rises by itself. Call [`ChannelSaved::settle`] first.
    pub(super) fn next_rise(&self, now: Tick) -> Option<Tick> {
        let Run::Since(start) = self.run else { return None };
        if let Some(at) = self.next_load {
            let mut then = self.clone();
            then.settle(at);
            // Either a whole period ends there, or the high half of a square wave.
            let rises = then.run == Run::Since(at) && self.period > 1;
            return if rises { Some(at) } else { then.next_rise(at) };
        }
        let rise = match self.mode {
            // A period of one clock has no second half: OUT stands still.
            2 | 3 if self.period == 1 => return None,
            2 | 3 => start + ((now - start).max(0) / self.period + 1) * self.period,
            0 | 1 => start + self.period,
            // The strobe is low for one clock.
            _ => start + self.period + 1,
        };
        (rise > now).then_some(rise)
    }

    /// Brings a count that waited for the end of a period or half-period into effect, when that is past.
    pub(super) fn settle(&mut self, now: Tick) {
        let (Some(at), Run::Since(start)) = (self.next_load, self.run) else { return };
        if now < at {
            return;
        }
        let whole = (at - start) % self.period == 0;
        (self.period, self.next_load, self.null_count) = (self.reload, None, false);
        self.run = Run::Since(if whole { at } else { at - self.high_half() });
    }

    /// Moves everything that is bound to a time by `ticks`.
    pub(super) fn shift(&mut self, ticks: Tick) {
        if let Run::Since(start) = &mut self.run {
            *start += ticks;
        }
        if let Some(at) = &mut self.next_load {
            *at += ticks;
        }
    }

    /// Checks a saved counter, whose time must be near `now`.
    pub(super) fn check(&self, now: Tick) -> Result<(), RestoreError> {
        let count = |count| (1..=self.modulus()).contains(&count);
        // Far from overflow, wherever the time is moved to.
        let near = |at: Tick| at.checked_sub(now).is_some_and(|away| away.unsigned_abs() < 1 << 60);
        let times = match self.run {
            Run::Idle => true,
            Run::Since(start) => near(start),
            Run::Held(elapsed) => (0..1 << 60).contains(&elapsed),
        };
        let load = self.next_load.is_none_or(|at| {
            near(at) && matches!(self.mode, 2 | 3) && matches!(self.run, Run::Since(start) if start < at)
        });
        if self.mode > 5
            || !(1..=3).contains(&self.access)
            || !count(self.reload)
            || !count(self.period)
            || !times
            || !load
        {
            return Err(RestoreError::new("interval timer", "a counter is in an impossible state"));
        }
        Ok(())
    }

    fn modulus(&self) -> i64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// Clocks for which a square wave is high: the odd one goes to the high half.
    fn high_half(&self) -> i64 {
        (self.period + 1) / 2
    }

    fn is_held(&self) -> bool {
        matches!(self.run, Run::Held(_))
    }

    fn elapsed(&self, now: Tick) -> Option<Tick> {
        match self.run {
            Run::Since(start) if now >= start => Some(now - start),
            Run::Held(elapsed) => Some(elapsed),
            _ => None,
        }
    }

    /// Takes a new count.
    fn load(&mut self, count: [u8; 2], now: Tick) {
        let count = u16::from_le_bytes(count);
        let number = match self.bcd {
            true => [12, 8, 4, 0].iter().fold(0, |sum, shift| sum * 10 + (count >> shift & 0xf) as i64),
            false => count as i64,
        };
        let modulus = self.modulus();
        self.reload = match number % modulus {
            0 => modulus,
            number => number,
        };
        (self.loaded, self.null_count) = (true, true);
        match (self.mode, self.run) {
            (0 | 4, _) => {
                self.start(now);
                if !self.gate {
                    self.run = Run::Held(0);
                }
            }
            // The one-shots wait for a trigger; what runs goes on.
            (1 | 5, _) => {}
            (_, Run::Since(start)) if now >= start => {
                let of_period = (now - start) % self.period;
                let half_ends = self.mode == 3 && of_period < self.high_half() && self.period > 1;
                let length = if half_ends { self.high_half() } else { self.period };
                self.next_load = Some(now - of_period + length);
            }
            (_, _) if self.gate => self.start(now),
            (_, _) => self.run = Run::Held(0),
        }
    }

    /// Loads the counter with the next clock.
    fn start(&mut self, now: Tick) {
        (self.period, self.next_load, self.null_count) = (self.reload, None, false);
        self.run = Run::Since(now + 1);
    }

    /// What the counter's output latch shows.
    fn count(&self, now: Tick) -> u16 {
        let (modulus, period) = (self.modulus(), self.period);
        let elapsed = self.elapsed(now).unwrap_or(0);
        let number = match self.mode {
            2 => period - elapsed % period,
            3 => {
                // Counts by two from an even number; an odd period's high half ends with one clock at 0.
                let of_period = elapsed % period;
                let of_half =
                    if of_period < self.high_half() { of_period } else { of_period - self.high_half() };
                (period & !1) - 2 * of_half
            }
            // The others wrap around and go on.
            _ => (period - elapsed).rem_euclid(modulus),
        } % modulus;
        if !self.bcd {
            return number as u16;
        }
        [1000, 100, 10, 1].iter().fold(0, |bcd, digit| bcd << 4 | (number / digit % 10) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(control: u8, count: u16, now: Tick) -> ChannelSaved {
        let mut channel = ChannelSaved::new(true);
        channel.set_mode(control);
        let [low, high] = count.to_le_bytes();
        channel.write(low, now);
        channel.write(high, now);
        channel
    }

    /// Reads two bytes.
    fn count(channel: &mut ChannelSaved, now: Tick) -> u16 {
        u16::from_le_bytes([channel.read(now), channel.read(now)])
    }

    /// OUT at each tick from 0 on as a drawing: `_` low, `-` high.
    fn wave(channel: &mut ChannelSaved, ticks: std::ops::Range<Tick>) -> String {
        ticks
            .map(|now| {
                channel.settle(now);
                if channel.out(now) { '-' } else { '_' }
            })
            .collect()
    }

    #[test]
    fn each_mode_has_its_wave() {
        // The count is loaded with the clock after the write, so everything begins at tick 1.
        for (control, count, expected) in [
            (0x30, 3, "____------------"),
            (0x34, 4, "----_---_---_---"),
            (0x34, 2, "--_-_-_-_-_-_-_-"),
            (0x36, 4, "---__--__--__--_"),
            (0x36, 5, "----__---__---__"),
            (0x38, 3, "----_-----------"),
            (0x3c, 4, "----_---_---_---"),
            (0x3e, 4, "---__--__--__--_"),
        ] {
            let mut channel = started(control, count, 0);
            assert_eq!(wave(&mut channel, 0..16), expected, "control {control:#x} count {count}");
            // The announced rises are the drawing's.
            let mut now = 0;
            let mut rises = Vec::new();
            while let Some(at) = channel.next_rise(now).filter(|at| *at < 16) {
                rises.push(at as usize);
                now = at;
            }
            let drawn: Vec<_> = expected.match_indices("_-").map(|(at, _)| at + 1).collect();
            assert_eq!(rises, drawn, "control {control:#x} count {count}");
        }
    }

    #[test]
    fn one_shots_wait_for_the_gate() {
        for (control, expected) in [(0x32, "------___-------"), (0x3a, "---------_------")] {
            let mut channel = ChannelSaved::new(false);
            channel.set_mode(control);
            channel.write(3, 0);
            channel.write(0, 0);
            assert_eq!(wave(&mut channel, 0..5), "-----");
            channel.set_gate(true, 5);
            assert_eq!(channel.next_rise(5), Some(if control == 0x32 { 9 } else { 10 }));
            let drawn = format!("-----{}", wave(&mut channel, 5..16));
            assert_eq!(drawn, expected, "control {control:#x}");
            // A trigger while it runs starts it anew.
            channel.set_gate(false, 20);
            channel.set_gate(true, 20);
            channel.set_gate(false, 22);
            channel.set_gate(true, 22);
            assert_eq!(count(&mut channel, 24), 2);
        }
    }

    #[test]
    fn counts_are_exact_functions_of_time() {
        for (control, start, at, expected) in [
            (0x30, 0xffff, 1000, 0xffff - 999),
            (0x30, 10, 12, 0xffff),
            (0x34, 100, 1, 100),
            (0x34, 100, 100, 1),
            (0x34, 100, 101, 100),
            (0x34, 0, 1, 0),
            (0x34, 0, 2, 0xffff),
            (0x36, 100, 2, 98),
            (0x36, 100, 50, 2),
            (0x36, 100, 51, 100),
            (0x36, 5, 3, 0),
            (0x36, 5, 4, 4),
            (0x35, 0x1000, 2, 0x0999),
            (0x31, 0x0005, 7, 0x9999),
            (0x31, 0, 1, 0),
        ] {
            let mut channel = started(control, start, 0);
            assert_eq!(count(&mut channel, at), expected, "{control:#x} from {start:#x} at {at}");
        }
    }

    #[test]
    fn the_gate_holds_the_count() {
        let mut channel = started(0x30, 10, 0);
        channel.set_gate(false, 5);
        assert_eq!(count(&mut channel, 100), 6);
        assert_eq!(channel.next_rise(100), None);
        channel.set_gate(true, 100);
        assert_eq!(count(&mut channel, 103), 3);
        assert_eq!(channel.next_rise(100), Some(106));
        let mut channel = started(0x34, 10, 0);
        channel.set_gate(false, 5);
        assert!(channel.out(9) && channel.out(10) && channel.out(11));
        channel.set_gate(true, 50);
        assert_eq!(count(&mut channel, 51), 10);
    }

    #[test]
    fn a_new_count_waits_for_the_end_of_the_period_or_half() {
        let mut channel = started(0x34, 4, 0);
        channel.write(6, 2);
        channel.write(0, 2);
        assert_eq!(channel.next_rise(2), Some(5));
        assert_eq!(wave(&mut channel, 2..14), "--_-----_---".to_string());
        let mut channel = started(0x36, 8, 0);
        channel.write(4, 2);
        channel.write(0, 2);
        channel.latch_status(2);
        assert_eq!(channel.read(2) & STATUS_NULL_COUNT, STATUS_NULL_COUNT);
        assert_eq!(channel.next_rise(2), Some(7));
        assert_eq!(wave(&mut channel, 1..12), "----__--__-");
        channel.latch_status(12);
        assert_eq!(channel.read(12) & STATUS_NULL_COUNT, 0);
    }

    #[test]
    fn latches_hold_until_read() {
        let mut channel = started(0x34, 1000, 0);
        channel.latch_count(101);
        channel.latch_count(500);
        channel.latch_status(101);
        assert_eq!(channel.read(600), STATUS_OUT | 0x34);
        assert_eq!(count(&mut channel, 600), 900);
        assert_eq!(count(&mut channel, 601), 400);
        channel.set_mode(0x14);
        channel.write(50, 0);
        assert_eq!((channel.read(1), channel.read(2)), (50, 49));
        channel.set_mode(0x24);
        channel.write(2, 0);
        assert_eq!((channel.read(1), channel.read(2)), (2, 1));
    }

    #[test]
    fn the_first_byte_of_a_mode_0_count_stops_it() {
        let mut channel = started(0x30, 5, 0);
        assert!(channel.out(6));
        channel.write(5, 7);
        assert!(!channel.out(8));
        assert_eq!(channel.next_rise(8), None);
        channel.write(0, 9);
        assert_eq!(channel.next_rise(9), Some(15));
    }
}
