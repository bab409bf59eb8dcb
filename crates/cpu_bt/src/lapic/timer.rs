//! The APIC timer (SDM vol. 3A, §11.5.4): counts down once or periodically, or fires at a TSC value.
//!
//! While the vCPU executes, an alarm of the timer thread rings at or before the deadline. Moving the
//! deadline to a later time, which operating systems do all the time, leaves the alarm where it is: it
//! rings, finds nothing due, and moves itself. While the vCPU sleeps it watches the deadline itself, and
//! the alarm moves to a little after it: by then an idle system sleeps again, until the next one. When deadlines follow each other at equal distances, the alarm sets itself for
//! the one that is to be expected, so that the vCPU finds it set.

use super::*;
use clock::Nanos;
use std::sync::MutexGuard;

#[derive(Default)]
pub(super) struct TimerState {
    /// When the timer fires next, in guest time.
    pub(super) deadline: Option<Nanos>,
    /// IA32_TSC_DEADLINE: in what the vCPU sees as its TSC.
    pub(super) tsc_deadline: u64,
    /// What the vCPU's TSC is ahead of the machine's.
    pub(super) tsc_adjust: u64,
    /// When the initial count was last written.
    pub(super) start: Nanos,
    /// For when the alarm is set; `None` when it is not.
    alarm: Option<Nanos>,
    /// The vCPU sleeps and looks after the deadline itself.
    sleeping: bool,
    /// The last deadline at which the timer fired, and how far it was from the one before.
    fired: Nanos,
    distance: Nanos,
}

/// Distances between deadlines that are taken for a tick: shorter ones are hardly regular, and for longer
/// ones setting the alarm costs nothing that matters.
const TICK: std::ops::RangeInclusive<Nanos> = 200_000..=20_000_000;
/// How long after the deadline of a vCPU that sleeps the alarm rings: an idle system is done with its tick by then.
const AFTER_SLEEP: Nanos = 1_000_000;
/// How much two distances may differ and still be called equal: more than rounding a TSC value does.
const TICK_JITTER: Nanos = 1_000;

impl Lapic {
    fn lock_timer(&self) -> MutexGuard<'_, TimerState> {
        self.timer.lock().expect("no code panics while it holds the timer")
    }

    fn timer_mode(&self) -> u32 {
        self.get(reg::LVT_TIMER) & TIMER_MODE
    }

    /// Nanoseconds per count (figure 11-10).
    fn nanos_per_count(&self) -> u64 {
        let divide = self.get(reg::TIMER_DIVIDE);
        let shift = ((divide & 3 | divide >> 1 & 4) + 1) & 7;
        NANOS_PER_TICK << shift
    }

    /// The period of the periodic mode.
    fn period(&self) -> Nanos {
        (self.get(reg::TIMER_INITIAL) as u64 * self.nanos_per_count()).max(PERIOD_MIN_NS)
    }

    // ---- registers ----

    /// The current-count register.
    pub(super) fn current_count(&self) -> u32 {
        let state = self.lock_timer();
        self.count_left(&state)
    }

    fn count_left(&self, state: &TimerState) -> u32 {
        match state.deadline {
            Some(deadline) if self.timer_mode() != TIMER_TSC_DEADLINE => {
                let left = deadline.saturating_sub(self.clock.now()).div_ceil(self.nanos_per_count());
                left.min(self.get(reg::TIMER_INITIAL) as u64) as u32
            }
            _ => 0,
        }
    }

    /// Writes the initial count and starts counting; zero stops.
    pub(super) fn write_initial_count(&self, count: u32) {
        if self.timer_mode() == TIMER_TSC_DEADLINE {
            return;
        }
        self.set(reg::TIMER_INITIAL, count);
        let mut state = self.lock_timer();
        state.start = self.clock.now();
        let deadline = match (count, self.timer_mode()) {
            (0, _) => None,
            (_, TIMER_PERIODIC) => Some(state.start + self.period()),
            (_, _) => Some(state.start + count as u64 * self.nanos_per_count()),
        };
        self.set_deadline(state, deadline);
    }

    /// Writes the divide configuration; counting goes on from where it is.
    pub(super) fn write_divide(&self, value: u32) {
        let mut state = self.lock_timer();
        let left = self.count_left(&state) as u64;
        self.set(reg::TIMER_DIVIDE, value);
        if left == 0 {
            return;
        }
        let now = self.clock.now();
        let deadline = now + left * self.nanos_per_count();
        // As if counting had begun when it would have to have, to be here now.
        let initial = self.get(reg::TIMER_INITIAL) as u64 * self.nanos_per_count();
        state.start = deadline.saturating_sub(initial);
        self.set_deadline(state, Some(deadline));
    }

    /// Writes the timer's local vector; changing to or from TSC-deadline mode disarms (§11.5.4.1).
    pub(super) fn write_timer_vector(&self, value: u32) {
        let mut state = self.lock_timer();
        let before = self.timer_mode();
        self.set(reg::LVT_TIMER, value);
        let after = value & TIMER_MODE;
        if before != after && (before | after) & TIMER_TSC_DEADLINE != 0 {
            self.set(reg::TIMER_INITIAL, 0);
            state.tsc_deadline = 0;
            self.set_deadline(state, None);
        }
    }

    /// IA32_TSC_DEADLINE.
    pub(super) fn tsc_deadline(&self) -> u64 {
        let state = self.lock_timer();
        if self.timer_mode() == TIMER_TSC_DEADLINE { state.tsc_deadline } else { 0 }
    }

    /// Writes IA32_TSC_DEADLINE, which arms or disarms; ignored in the other modes.
    pub(super) fn write_tsc_deadline(&self, value: u64) {
        if self.timer_mode() == TIMER_TSC_DEADLINE {
            let mut state = self.lock_timer();
            state.tsc_deadline = value;
            let deadline = self.tsc_deadline_ns(&state);
            self.set_deadline(state, deadline);
        }
    }

    /// Tells how far the vCPU's TSC is ahead of the machine's, which moves an armed TSC deadline.
    pub(crate) fn set_tsc_adjust(&self, adjust: u64) {
        let mut state = self.lock_timer();
        if state.tsc_adjust != adjust {
            state.tsc_adjust = adjust;
            if self.timer_mode() == TIMER_TSC_DEADLINE {
                let deadline = self.tsc_deadline_ns(&state);
                self.set_deadline(state, deadline);
            }
        }
    }

    /// The guest time of the TSC deadline, not before it.
    pub(super) fn tsc_deadline_ns(&self, state: &TimerState) -> Option<Nanos> {
        if state.tsc_deadline == 0 {
            return None;
        }
        let machine = self.clock.tsc();
        let ahead = state.tsc_deadline.wrapping_sub(state.tsc_adjust).wrapping_sub(machine);
        let behind = state.tsc_deadline < machine.wrapping_add(state.tsc_adjust);
        Some(match behind {
            true => 0,
            // Decades away: beyond what the conversion can do.
            false if ahead >> 60 != 0 || machine >> 60 != 0 => Nanos::MAX,
            false => self.clock.tsc_to_ns(machine + ahead).saturating_add(1),
        })
    }

    /// The timer's part of a reset.
    pub(super) fn stop_timer(&self) {
        let mut state = self.lock_timer();
        state.tsc_deadline = 0;
        state.start = 0;
        self.set_deadline(state, None);
    }

    // ---- running ----

    /// Moves the deadline; one that is past fires at once.
    pub(super) fn set_deadline(&self, mut state: MutexGuard<'_, TimerState>, deadline: Option<Nanos>) {
        state.deadline = deadline;
        if let Some(deadline) = deadline
            && self.clock.is_running()
            && deadline <= self.clock.now()
        {
            return self.fire(state);
        }
        self.set_alarm(&mut state);
    }

    /// Makes sure that the alarm rings at the deadline or before.
    fn set_alarm(&self, state: &mut TimerState) {
        if let Some(deadline) = state.deadline
            && !state.sleeping
            && state.alarm.is_none_or(|alarm| alarm > deadline)
        {
            state.alarm = Some(deadline);
            self.alarm.arm(deadline);
        }
    }

    /// The deadline has come: interrupts, and starts the next period (§11.5.4).
    fn fire(&self, mut state: MutexGuard<'_, TimerState>) {
        let Some(deadline) = state.deadline.take() else { return };
        if self.timer_mode() == TIMER_PERIODIC && self.get(reg::TIMER_INITIAL) != 0 {
            // Periods that passed unnoticed are lost, as they are while the interrupt is pending.
            let period = self.period();
            let passed = self.clock.now().saturating_sub(deadline) / period;
            state.deadline = Some(deadline.saturating_add((passed + 1).saturating_mul(period)));
        }
        state.tsc_deadline = 0;
        let distance = deadline.saturating_sub(state.fired);
        let regular = TICK.contains(&distance) && distance.abs_diff(state.distance) <= TICK_JITTER;
        (state.fired, state.distance) = (deadline, distance);
        let expected = deadline + distance;
        if state.deadline.is_none() && regular && !state.sleeping && state.alarm.is_none_or(|a| a > expected)
        {
            state.alarm = Some(expected);
            self.alarm.arm(expected);
        }
        self.set_alarm(&mut state);
        drop(state);
        self.local_interrupt(reg::LVT_TIMER);
    }

    /// Fires if it is time to, and sets the alarm otherwise.
    fn look(&self, mut state: MutexGuard<'_, TimerState>) {
        match state.deadline {
            Some(deadline) if self.clock.is_running() && deadline <= self.clock.now() => self.fire(state),
            _ => self.set_alarm(&mut state),
        }
    }

    /// The alarm rings. The timer thread.
    pub(super) fn alarm_rang(&self) {
        let mut state = self.lock_timer();
        state.alarm = None;
        if !state.sleeping {
            self.look(state);
        } else if let Some(deadline) = state.deadline
            && deadline > self.clock.now()
        {
            let after = deadline.saturating_add(AFTER_SLEEP);
            state.alarm = Some(after);
            self.alarm.arm(after);
        }
    }

    /// The vCPU goes to sleep: returns how long at most (nanoseconds), and takes over from the alarm.
    pub(crate) fn sleep_begins(&self) -> Option<u64> {
        let mut state = self.lock_timer();
        state.sleeping = true;
        // A masked timer changes nothing that a vCPU which sleeps could notice.
        let masked = self.get(reg::LVT_TIMER) & LVT_MASKED != 0;
        let deadline = state.deadline.filter(|_| self.clock.is_running() && !masked)?;
        Some(deadline.saturating_sub(self.clock.now()))
    }

    /// The vCPU has slept: fires the timer if it is due, gives it back to the alarm otherwise.
    pub(crate) fn sleep_ends(&self) {
        let mut state = self.lock_timer();
        state.sleeping = false;
        self.look(state);
    }

    /// Guest time was paused or resumed.
    pub(crate) fn clock_changed(&self) {
        let mut state = self.lock_timer();
        // The timer thread may have lost its place: begin anew.
        state.alarm = None;
        if !state.sleeping {
            self.look(state);
        }
    }
}

/// What the timer needs to go on from a saved state.
impl Lapic {
    /// Starts the timer as a saved state has it. The registers are restored already.
    pub(super) fn restore_timer(&self, saved: &x86::state::LapicState) {
        let mut state = self.lock_timer();
        state.start = saved.timer_start_ns;
        let initial = self.get(reg::TIMER_INITIAL) as u64;
        let left = saved.registers[(reg::TIMER_CURRENT >> 4) as usize];
        let deadline = match self.timer_mode() {
            TIMER_TSC_DEADLINE => {
                state.tsc_deadline = saved.tsc_deadline;
                self.tsc_deadline_ns(&state)
            }
            _ if initial == 0 => None,
            TIMER_PERIODIC => {
                let (period, now) = (self.period(), self.clock.now());
                let passed = now.saturating_sub(state.start) / period;
                Some(state.start.saturating_add((passed + 1).saturating_mul(period)))
            }
            // Expired once and for all.
            _ if left == 0 => None,
            _ => Some(state.start.saturating_add(initial * self.nanos_per_count())),
        };
        self.set_deadline(state, deadline);
    }
}
