//! The MC146818 as registers. Time is an argument of every access: nothing ticks in here.
//!
//! The clock is the wall clock plus an offset, which changes when the guest sets the time. Flags in
//! register C are found when somebody looks: from what passed since the last look.

use super::calendar::{date_from_days, days_from_date, days_in_month, weekday};
use super::spec::*;
use device::state::{RestoreError, SaveRestore};
use serde::{Deserialize, Serialize};

const NS_PER_SECOND: i128 = 1_000_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
/// The divider chain's input.
const BASE_HZ: i128 = 32_768;

/// The time registers as numbers: not BCD, 24 hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct TimeFields {
    pub seconds: u8,
    pub minutes: u8,
    pub hours: u8,
    /// 1 is Sunday.
    pub weekday: u8,
    pub day: u8,
    pub month: u8,
    pub year: u8,
    pub century: u8,
}

/// The state of the clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RtcSaved {
    index: u8,
    a: u8,
    b: u8,
    /// PF, AF, UF as set so far.
    flags: u8,
    /// Alarm registers as written: seconds, minutes, hours.
    alarm: [u8; 3],
    /// What the guest's clock is ahead of the wall clock: whole seconds (rounded down)...
    offset_s: i64,
    /// ...and the nanoseconds on top.
    offset_ns: u32,
    /// What the guest's day of the week is ahead of the calendar's.
    weekday_skew: u8,
    /// The time registers while the clock stands.
    stopped: Option<TimeFields>,
    /// Memory behind the registers.
    nvram: Vec<u8>,
}

/// The real-time clock and its memory.
#[derive(Clone, Debug)]
pub struct Rtc {
    regs: RtcSaved,
    /// The clock's own time up to which flags are known, in nanoseconds since 1970.
    seen: i128,
}

impl Rtc {
    /// A clock that shows `wall_ns`, nanoseconds since 1970, with a good battery and empty memory.
    pub fn new(wall_ns: u64) -> Rtc {
        Rtc {
            regs: RtcSaved {
                index: 0,
                a: A_DEFAULT,
                b: B_24_HOURS,
                flags: 0,
                alarm: [0; 3],
                offset_s: 0,
                offset_ns: 0,
                weekday_skew: 0,
                stopped: None,
                nvram: vec![0; NVRAM_SIZE],
            },
            seen: wall_ns.into(),
        }
    }

    /// Resets what a machine reset resets (data sheet, "RESET"): interrupt enables and flags.
    pub fn reset(&mut self) {
        self.regs.b &= !(B_PIE | B_AIE | B_UIE);
        self.regs.flags = 0;
        self.regs.index = 0;
    }

    /// The level of the interrupt output, as of the last access or [`Rtc::advance`].
    pub fn interrupt(&self) -> bool {
        // The enable bits of B stand where the flags of C do.
        self.regs.flags & self.regs.b & (C_PF | C_AF | C_UF) != 0
    }

    /// Notes what happened up to `wall_ns`.
    pub fn advance(&mut self, wall_ns: u64) {
        let now = self.own_time(wall_ns);
        let from = std::mem::replace(&mut self.seen, now);
        // The wall clock may step back when it is set anew after a pause: nothing happened then.
        if self.divider_stopped() || now <= from {
            return;
        }
        if let Some(period) = self.period() {
            let edges = |at: i128| (at * BASE_HZ).div_euclid(NS_PER_SECOND * period);
            if edges(now) > edges(from) {
                self.regs.flags |= C_PF;
            }
        }
        let (from_s, now_s) = (from.div_euclid(NS_PER_SECOND), now.div_euclid(NS_PER_SECOND));
        if now_s > from_s && self.regs.stopped.is_none() {
            self.regs.flags |= C_UF;
            if self.next_alarm(from_s as i64).is_some_and(|at| at as i128 <= now_s) {
                self.regs.flags |= C_AF;
            }
        }
    }

    /// In how many nanoseconds after `wall_ns` an enabled interrupt may rise; `None` when nothing is
    /// enabled, or what is enabled has risen already and waits to be acknowledged.
    pub fn next_interrupt(&self, wall_ns: u64) -> Option<u64> {
        if self.divider_stopped() {
            return None;
        }
        let waited_for = self.regs.b & !self.regs.flags;
        let now = self.own_time(wall_ns);
        let second = now.div_euclid(NS_PER_SECOND);
        let mut next: Option<i128> = None;
        let mut consider = |at: i128| next = Some(next.map_or(at, |other| other.min(at)));
        if waited_for & B_PIE != 0
            && let Some(period) = self.period()
        {
            let edge = (now * BASE_HZ).div_euclid(NS_PER_SECOND * period) + 1;
            // Rounded up: at that nanosecond the edge is past.
            consider((edge * period * NS_PER_SECOND + BASE_HZ - 1).div_euclid(BASE_HZ));
        }
        if self.regs.stopped.is_none() {
            if waited_for & B_UIE != 0 {
                consider((second + 1) * NS_PER_SECOND);
            }
            if waited_for & B_AIE != 0
                && let Some(at) = self.next_alarm(second as i64)
            {
                consider(at as i128 * NS_PER_SECOND);
            }
        }
        next.map(|at| u64::try_from(at - now).unwrap_or(0))
    }

    /// Writes the index port.
    pub fn write_index(&mut self, value: u8) {
        self.regs.index = value & 0x7f;
    }

    /// Reads the data port.
    pub fn read_data(&mut self, wall_ns: u64) -> u8 {
        self.advance(wall_ns);
        let register = self.regs.index;
        match register {
            REG_SECONDS | REG_MINUTES | REG_HOURS | REG_WEEKDAY..=REG_YEAR | REG_CENTURY => {
                self.read_time(register, wall_ns)
            }
            REG_ALARM_SECONDS | REG_ALARM_MINUTES | REG_ALARM_HOURS => self.regs.alarm[register as usize / 2],
            REG_A => self.regs.a | if self.update_in_progress(wall_ns) { A_UIP } else { 0 },
            REG_B => self.regs.b,
            REG_C => {
                let irqf = if self.interrupt() { C_IRQF } else { 0 };
                std::mem::take(&mut self.regs.flags) | irqf
            }
            REG_D => D_VALID,
            _ => self.nvram(register),
        }
    }

    /// Writes the data port.
    pub fn write_data(&mut self, value: u8, wall_ns: u64) {
        self.advance(wall_ns);
        let register = self.regs.index;
        match register {
            REG_SECONDS | REG_MINUTES | REG_HOURS | REG_WEEKDAY..=REG_YEAR | REG_CENTURY => {
                self.write_time(register, value, wall_ns);
            }
            REG_ALARM_SECONDS | REG_ALARM_MINUTES | REG_ALARM_HOURS => {
                self.regs.alarm[register as usize / 2] = value;
            }
            REG_A => {
                let was_reset = self.divider_stopped();
                self.regs.a = value & !A_UIP;
                self.start_or_stop(was_reset, wall_ns);
            }
            REG_B => {
                self.regs.b = value;
                // Setting SET clears UIE (data sheet, register B).
                if value & B_SET != 0 {
                    self.regs.b &= !B_UIE;
                }
                self.start_or_stop(self.divider_stopped(), wall_ns);
            }
            // Read-only.
            REG_C | REG_D => {}
            _ => self.set_nvram(register, value),
        }
    }

    /// A byte of the memory; registers read as zero.
    pub fn nvram(&self, register: u8) -> u8 {
        self.regs.nvram.get(register as usize).copied().unwrap_or(0)
    }

    /// Sets a byte of the memory, as firmware would; registers stay as they are.
    pub fn set_nvram(&mut self, register: u8, value: u8) {
        if (REG_D + 1..NVRAM_SIZE as u8).contains(&register) && register != REG_CENTURY {
            self.regs.nvram[register as usize] = value;
        }
    }

    /// Sets the bytes by which a PC's firmware tells memory sizes: `low` bytes end below 4 GiB, `high`
    /// bytes stand from 4 GiB on.
    pub fn set_memory_size(&mut self, low: u64, high: u64) {
        let base = (low / 1024).min(640);
        let extended = (low.saturating_sub(1 << 20) / 1024).min(63 * 1024);
        let above_16m = (low.saturating_sub(16 << 20) / 65_536).min(0xffff);
        let above_4g = (high / 65_536).min(0xff_ffff);
        let mut put = |register: u8, value: u64, bytes: u8| {
            (0..bytes).for_each(|at| self.set_nvram(register + at, (value >> (8 * at)) as u8));
        };
        put(CMOS_BASE_MEMORY, base, 2);
        put(CMOS_EXTENDED_MEMORY, extended, 2);
        put(CMOS_EXTENDED_MEMORY_COPY, extended, 2);
        put(CMOS_MEMORY_ABOVE_16M, above_16m, 2);
        put(CMOS_MEMORY_ABOVE_4G, above_4g, 3);
    }

    /// The clock's own time in nanoseconds since 1970.
    fn own_time(&self, wall_ns: u64) -> i128 {
        wall_ns as i128 + self.regs.offset_s as i128 * NS_PER_SECOND + self.regs.offset_ns as i128
    }

    fn divider_stopped(&self) -> bool {
        self.regs.a & A_DIVIDER_RESET == A_DIVIDER_RESET
    }

    /// The period of PF in cycles of the time base (data sheet, table 5).
    fn period(&self) -> Option<i128> {
        match self.regs.a & A_RATE {
            0 => None,
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn update_in_progress(&self, wall_ns: u64) -> bool {
        let to_update = NS_PER_SECOND - self.own_time(wall_ns).rem_euclid(NS_PER_SECOND);
        self.regs.stopped.is_none() && to_update <= UPDATE_WARNING_NS as i128
    }

    /// Stops the time registers, or lets them go on, after A or B has changed.
    fn start_or_stop(&mut self, divider_was_stopped: bool, wall_ns: u64) {
        let stop = self.regs.b & B_SET != 0 || self.divider_stopped();
        if stop {
            if self.regs.stopped.is_none() {
                self.regs.stopped = Some(self.fields(wall_ns));
            }
            return;
        }
        if let Some(fields) = self.regs.stopped.take() {
            // The divider starts in the middle of a second (data sheet, "Divider control").
            let phase = match divider_was_stopped {
                true => NS_PER_SECOND / 2,
                false => self.own_time(wall_ns).rem_euclid(NS_PER_SECOND),
            };
            self.set_time(fields, phase, wall_ns);
        }
    }

    /// Makes the clock show `fields` and `phase` nanoseconds.
    fn set_time(&mut self, fields: TimeFields, phase: i128, wall_ns: u64) {
        // Values that no date has become the nearest one that has.
        let year = fields.century.min(99) as i64 * 100 + fields.year.min(99) as i64;
        let month = fields.month.clamp(1, 12).into();
        let day = (fields.day as u32).clamp(1, days_in_month(year, month));
        let days = days_from_date(year, month, day);
        let (hours, minutes) = (fields.hours.min(23) as i64, fields.minutes.min(59) as i64);
        let seconds = days * SECONDS_PER_DAY + hours * 3600 + minutes * 60 + fields.seconds.min(59) as i64;
        let offset = seconds as i128 * NS_PER_SECOND + phase - wall_ns as i128;
        self.regs.offset_s = offset.div_euclid(NS_PER_SECOND) as i64;
        self.regs.offset_ns = offset.rem_euclid(NS_PER_SECOND) as u32;
        let written = fields.weekday.clamp(1, 7) - 1;
        self.regs.weekday_skew = (7 + written - weekday(days) as u8) % 7;
        self.seen = self.own_time(wall_ns);
    }

    /// The time now as numbers.
    fn fields(&self, wall_ns: u64) -> TimeFields {
        if let Some(fields) = self.regs.stopped {
            return fields;
        }
        let seconds = self.own_time(wall_ns).div_euclid(NS_PER_SECOND) as i64;
        let (days, of_day) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
        let (year, month, day) = date_from_days(days);
        TimeFields {
            seconds: (of_day % 60) as u8,
            minutes: (of_day / 60 % 60) as u8,
            hours: (of_day / 3600) as u8,
            weekday: (weekday(days) as u8 + self.regs.weekday_skew) % 7 + 1,
            day: day as u8,
            month: month as u8,
            year: year.rem_euclid(100) as u8,
            century: year.div_euclid(100).rem_euclid(100) as u8,
        }
    }

    fn read_time(&self, register: u8, wall_ns: u64) -> u8 {
        let fields = self.fields(wall_ns);
        let number = match register {
            REG_SECONDS => fields.seconds,
            REG_MINUTES => fields.minutes,
            REG_HOURS => return self.encode_hours(fields.hours),
            REG_WEEKDAY => fields.weekday,
            REG_DAY => fields.day,
            REG_MONTH => fields.month,
            REG_YEAR => fields.year,
            _ => fields.century,
        };
        self.encode(number)
    }

    fn write_time(&mut self, register: u8, value: u8, wall_ns: u64) {
        let mut fields = self.fields(wall_ns);
        let number = self.decode(value);
        match register {
            REG_SECONDS => fields.seconds = number,
            REG_MINUTES => fields.minutes = number,
            REG_HOURS => fields.hours = self.decode_hours(value),
            REG_WEEKDAY => fields.weekday = number,
            REG_DAY => fields.day = number,
            REG_MONTH => fields.month = number,
            REG_YEAR => fields.year = number,
            _ => fields.century = number,
        }
        if self.regs.stopped.is_some() {
            self.regs.stopped = Some(fields);
        } else {
            let phase = self.own_time(wall_ns).rem_euclid(NS_PER_SECOND);
            self.set_time(fields, phase, wall_ns);
        }
    }

    fn encode(&self, number: u8) -> u8 {
        if self.regs.b & B_BINARY != 0 { number } else { ((number / 10 % 10) << 4) + number % 10 }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.regs.b & B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) }
    }

    fn encode_hours(&self, hours: u8) -> u8 {
        if self.regs.b & B_24_HOURS != 0 {
            return self.encode(hours);
        }
        let pm = if hours >= 12 { HOURS_PM } else { 0 };
        let hours = if hours.is_multiple_of(12) { 12 } else { hours % 12 };
        self.encode(hours) | pm
    }

    fn decode_hours(&self, value: u8) -> u8 {
        if self.regs.b & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let hours = self.decode(value & !HOURS_PM) % 12;
        if value & HOURS_PM != 0 { hours + 12 } else { hours }
    }

    /// The first second after `after` (seconds since 1970 on this clock) that the alarm registers match.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let [seconds, minutes, hours] = self.regs.alarm;
        let field = |value: u8, number: u8| (value < ALARM_ANY).then_some(number as i64);
        let wanted_second = field(seconds, self.decode(seconds));
        let wanted_minute = field(minutes, self.decode(minutes));
        let wanted_hour = field(hours, self.decode_hours(hours));
        if wanted_second.is_some_and(|s| s > 59) || wanted_minute.is_some_and(|m| m > 59) {
            return None;
        }
        let first = after + 1;
        // Minute by minute: of the minutes that match, the first or the second has a second left.
        let mut minute = first.div_euclid(60);
        let last = minute + 2 * 24 * 60;
        while minute <= last {
            let (hour_of_day, minute_of_hour) = (minute.div_euclid(60).rem_euclid(24), minute.rem_euclid(60));
            if wanted_hour.is_some_and(|hour| hour != hour_of_day) {
                minute = (minute.div_euclid(60) + 1) * 60;
                continue;
            }
            if wanted_minute.is_none_or(|wanted| wanted == minute_of_hour) {
                let earliest = first.max(minute * 60);
                let at = wanted_second.map_or(earliest, |second| minute * 60 + second);
                if at >= earliest && at < (minute + 1) * 60 {
                    return Some(at);
                }
            }
            minute += 1;
        }
        None
    }
}

impl SaveRestore for Rtc {
    type Saved = RtcSaved;

    fn save(&self) -> RtcSaved {
        self.regs.clone()
    }

    /// Takes over a state. The caller then calls [`Rtc::resume_at`], so that the time away is not taken
    /// for missed interrupts.
    fn restore(&mut self, saved: RtcSaved) -> Result<(), RestoreError> {
        let refuse = |reason| Err(RestoreError::new("real-time clock", reason));
        if saved.nvram.len() != NVRAM_SIZE || saved.index as usize >= NVRAM_SIZE {
            return refuse("its memory is not 128 bytes");
        }
        if saved.offset_ns as i128 >= NS_PER_SECOND || saved.offset_s.unsigned_abs() > MAX_OFFSET_S {
            return refuse("its time is out of range");
        }
        if saved.weekday_skew > 6 || saved.flags & !(C_PF | C_AF | C_UF) != 0 || saved.a & A_UIP != 0 {
            return refuse("a register has bits that do not exist");
        }
        let stopped = saved.b & B_SET != 0 || saved.a & A_DIVIDER_RESET == A_DIVIDER_RESET;
        if stopped != saved.stopped.is_some() {
            return refuse("it stands and runs at once");
        }
        self.regs = saved;
        Ok(())
    }
}

impl Rtc {
    /// Goes on from `wall_ns` after [`SaveRestore::restore`], without events for the time between.
    pub fn resume_at(&mut self, wall_ns: u64) {
        self.seen = self.own_time(wall_ns);
    }
}

/// More than ten thousand years: no guest can set its clock further from any wall clock.
const MAX_OFFSET_S: u64 = 12_000 * 366 * SECONDS_PER_DAY as u64;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    /// 2024-02-29 23:59:58, a Thursday.
    const LEAP_EVENING: u64 = 1_709_251_198 * SECOND;

    fn read(rtc: &mut Rtc, register: u8, wall: u64) -> u8 {
        rtc.write_index(register);
        rtc.read_data(wall)
    }

    fn write(rtc: &mut Rtc, register: u8, value: u8, wall: u64) {
        rtc.write_index(register);
        rtc.write_data(value, wall);
    }

    fn read_all(rtc: &mut Rtc, wall: u64) -> [u8; 8] {
        [REG_CENTURY, REG_YEAR, REG_MONTH, REG_DAY, REG_WEEKDAY, REG_HOURS, REG_MINUTES, REG_SECONDS]
            .map(|register| read(rtc, register, wall))
    }

    #[test]
    fn the_time_is_the_wall_clocks_in_every_format() {
        let mut rtc = Rtc::new(LEAP_EVENING);
        for (b, expected) in [
            (B_24_HOURS, [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58]),
            (B_24_HOURS | B_BINARY, [20, 24, 2, 29, 5, 23, 59, 58]),
            (0, [0x20, 0x24, 0x02, 0x29, 5, 0x91, 0x59, 0x58]),
            (B_BINARY, [20, 24, 2, 29, 5, 0x8b, 59, 58]),
        ] {
            write(&mut rtc, REG_B, b, LEAP_EVENING);
            assert_eq!(read_all(&mut rtc, LEAP_EVENING), expected);
        }
        write(&mut rtc, REG_B, 0, LEAP_EVENING);
        let midnight = LEAP_EVENING + 2 * SECOND;
        assert_eq!(read_all(&mut rtc, midnight), [0x20, 0x24, 0x03, 0x01, 6, 0x12, 0, 0]);
        assert_eq!(read(&mut rtc, REG_HOURS, midnight + 12 * 3600 * SECOND), 0x92);
    }

    #[test]
    fn a_time_that_the_guest_sets_goes_on_from_there() {
        let mut rtc = Rtc::new(LEAP_EVENING);
        let now = LEAP_EVENING + 300_000_000;
        // The order of Linux's mc146818_set_time.
        write(&mut rtc, REG_B, B_24_HOURS | B_SET, now);
        write(&mut rtc, REG_A, A_DEFAULT | 0x70, now);
        for (register, value) in [
            (REG_CENTURY, 0x19),
            (REG_YEAR, 0x99),
            (REG_MONTH, 0x12),
            (REG_DAY, 0x31),
            (REG_HOURS, 0x23),
            (REG_MINUTES, 0x59),
            (REG_SECONDS, 0x59),
            (REG_WEEKDAY, 6),
        ] {
            write(&mut rtc, register, value, now);
        }
        let later = now + 5 * SECOND;
        write(&mut rtc, REG_B, B_24_HOURS, later);
        assert_eq!(read(&mut rtc, REG_SECONDS, later), 0x59, "stands until the divider runs");
        write(&mut rtc, REG_A, A_DEFAULT, later);
        let shown = read_all(&mut rtc, later + SECOND / 2 - 1);
        assert_eq!(shown, [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59]);
        let shown = read_all(&mut rtc, later + SECOND / 2);
        assert_eq!(shown, [0x20, 0, 1, 1, 7, 0, 0, 0], "the first second is half a second");
        // And one register alone, without stopping.
        write(&mut rtc, REG_YEAR, 0x38, later + SECOND);
        assert_eq!(read_all(&mut rtc, later + SECOND)[..3], [0x20, 0x38, 1]);
    }

    #[test]
    fn nonsense_dates_become_dates() {
        let mut rtc = Rtc::new(LEAP_EVENING);
        for register in [REG_CENTURY, REG_YEAR, REG_MONTH, REG_DAY, REG_WEEKDAY, REG_HOURS, REG_SECONDS] {
            for value in [0, 0xff, 0x31, 0x80] {
                write(&mut rtc, register, value, LEAP_EVENING);
                let shown = read_all(&mut rtc, LEAP_EVENING);
                assert!((1..=0x12).contains(&shown[2]) && (1..=0x31).contains(&shown[3]), "{shown:x?}");
            }
        }
    }

    #[test]
    fn an_update_is_announced_and_reported() {
        let mut rtc = Rtc::new(LEAP_EVENING);
        let uip = |rtc: &mut Rtc, at| read(rtc, REG_A, LEAP_EVENING + at) & A_UIP != 0;
        assert!(!uip(&mut rtc, SECOND - 244_001));
        assert!(uip(&mut rtc, SECOND - 244_000));
        assert!(!uip(&mut rtc, SECOND));
        assert_eq!(read(&mut rtc, REG_C, LEAP_EVENING + SECOND) & C_UF, C_UF);
        assert_eq!(read(&mut rtc, REG_C, LEAP_EVENING + SECOND + 1) & C_UF, 0);
        write(&mut rtc, REG_B, B_SET | B_UIE, LEAP_EVENING + SECOND + 1);
        assert_eq!(read(&mut rtc, REG_B, LEAP_EVENING + SECOND + 1) & B_UIE, 0);
        assert!(!uip(&mut rtc, 2 * SECOND - 1), "no update while SET");
        assert_eq!(read(&mut rtc, REG_C, LEAP_EVENING + 9 * SECOND) & C_UF, 0);
    }

    #[test]
    fn each_interrupt_comes_when_announced_and_waits_for_register_c() {
        for (b, a, expected) in [
            (B_UIE, A_DEFAULT, SECOND),
            (B_PIE, 0x26, 976_563),
            (B_PIE, 0x2f, 500_000_000),
            (B_PIE, 0x21, 3_906_250),
            (B_AIE, A_DEFAULT, 7 * SECOND),
        ] {
            let mut rtc = Rtc::new(LEAP_EVENING);
            for (register, value) in [
                (REG_ALARM_SECONDS, 5),
                (REG_ALARM_MINUTES, 0),
                (REG_ALARM_HOURS, 0xff),
                (REG_A, a),
                (REG_B, b | B_24_HOURS),
            ] {
                write(&mut rtc, register, value, LEAP_EVENING);
            }
            let wait = rtc.next_interrupt(LEAP_EVENING).unwrap();
            assert_eq!(wait, expected, "B {b:#x}");
            rtc.advance(LEAP_EVENING + wait - 1);
            assert!(!rtc.interrupt(), "B {b:#x} came early");
            rtc.advance(LEAP_EVENING + wait);
            assert!(rtc.interrupt(), "B {b:#x} did not come");
            assert_eq!(rtc.next_interrupt(LEAP_EVENING + wait), None);
            let c = read(&mut rtc, REG_C, LEAP_EVENING + wait);
            assert_eq!(c & (C_IRQF | b), C_IRQF | b);
            assert!(!rtc.interrupt());
            assert!(rtc.next_interrupt(LEAP_EVENING + wait).is_some());
        }
    }

    #[test]
    fn alarms_match_at_the_next_fitting_second() {
        let mut rtc = Rtc::new(0);
        // Seconds of day; alarm as seconds, minutes, hours; expected seconds until it rings.
        for (now, alarm, expected) in [
            (0, [0xff, 0xff, 0xff], Some(1)),
            (59, [0x00, 0xff, 0xff], Some(1)),
            (60, [0x00, 0xff, 0xff], Some(60)),
            (10, [0x10, 0x00, 0x00], Some(86_400)),
            (9, [0x10, 0x00, 0x00], Some(1)),
            (0, [0x00, 0x30, 0x13], Some(13 * 3600 + 30 * 60)),
            (0, [0x60, 0xff, 0xff], None),
            (0, [0xff, 0x99, 0xff], None),
            (0, [0x00, 0x00, 0x24], None),
            (3599, [0xc0, 0xc0, 0x02], Some(3601)),
        ] {
            rtc.regs.alarm = alarm;
            assert_eq!(rtc.next_alarm(now).map(|at| at - now), expected, "{alarm:x?} after {now}");
        }
    }

    #[test]
    fn memory_keeps_its_bytes_and_tells_sizes() {
        let mut rtc = Rtc::new(0);
        write(&mut rtc, 0x80 | 0x40, 0x5a, 0);
        assert_eq!(read(&mut rtc, 0x40, 0), 0x5a);
        rtc.set_memory_size(3 << 30, 5 << 30);
        let mut word = |at| u16::from_le_bytes([read(&mut rtc, at, 0), read(&mut rtc, at + 1, 0)]);
        assert_eq!((word(0x15), word(0x17), word(0x30)), (640, 63 * 1024, 63 * 1024));
        assert_eq!((word(0x34), word(0x5b)), ((((3u64 << 30) - (16 << 20)) >> 16) as u16, 0x4000));
        assert_eq!(read(&mut rtc, REG_D, 0), D_VALID);
    }

    #[test]
    fn a_saved_clock_goes_on_and_an_impossible_one_is_refused() {
        let mut rtc = Rtc::new(LEAP_EVENING);
        write(&mut rtc, REG_YEAR, 0x50, LEAP_EVENING);
        let saved = rtc.save();
        let mut other = Rtc::new(0);
        other.restore(saved.clone()).unwrap();
        other.resume_at(LEAP_EVENING + 100 * SECOND);
        assert!(!other.interrupt());
        assert_eq!(read(&mut other, REG_YEAR, LEAP_EVENING), 0x50);
        for bad in [
            RtcSaved { nvram: vec![], ..saved.clone() },
            RtcSaved { offset_s: i64::MIN, ..saved.clone() },
            RtcSaved { offset_ns: u32::MAX, ..saved.clone() },
            RtcSaved { b: B_SET, ..saved.clone() },
            RtcSaved { weekday_skew: 7, ..saved },
        ] {
            assert!(other.restore(bad).is_err());
        }
    }
}
