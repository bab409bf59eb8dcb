//! The local APIC, and its timer across pauses.

use crate::{kvm_refused, refused};
use clock::{Clock, Nanos};
use cpu::Error;
use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::{VcpuFd, VmFd};
use std::os::fd::{BorrowedFd, IntoRawFd};
use std::sync::Mutex;
use x86::apic::{base, reg};
use x86::state::{CpuState, LapicState};
use x86::{apic, msr};

/// How many registers a saved state has: offsets 0x000 to 0x3f0.
const REGISTERS: usize = 64;
/// Version 0x14 with six local vectors. The kernel says in bit 24, too, that ends of interrupt can be kept
/// from the I/O APIC, which not every engine has; it puts in what it has itself.
const VERSION: u32 = 5 << 16 | 0x14;
/// Bits of the timer's local vector (SDM vol. 3A, figure 11-8, table 11-2).
const TIMER_MODE: u32 = 3 << 17;
const TIMER_PERIODIC: u32 = 1 << 17;
const TIMER_TSC_DEADLINE: u32 = 2 << 17;

/// What the timer has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Timer {
    /// The current count.
    count: u32,
    /// IA32_TSC_DEADLINE.
    deadline: u64,
}

/// A vCPU's APIC timer, which stands still while guest time does.
pub(crate) struct FrozenTimer {
    /// The vCPU once more, for the thread that pauses the machine; it uses it only while no vCPU runs.
    vcpu: Mutex<VcpuFd>,
    frozen: Mutex<Option<Timer>>,
}

impl FrozenTimer {
    pub(crate) fn new(vm: &VmFd, vcpu: BorrowedFd<'_>) -> Result<FrozenTimer, Error> {
        let copy = rustix::io::fcntl_dupfd_cloexec(vcpu, 0)
            .map_err(|e| refused("a vCPU's descriptor cannot be copied", e))?;
        // SAFETY: the descriptor is one of a vCPU of this machine, and belongs to nobody else.
        let vcpu = unsafe { vm.create_vcpu_from_rawfd(copy.into_raw_fd()) }
            .map_err(kvm_refused("a vCPU's page cannot be mapped"))?;
        Ok(FrozenTimer { vcpu: Mutex::new(vcpu), frozen: Mutex::new(None) })
    }

    fn frozen(&self) -> std::sync::MutexGuard<'_, Option<Timer>> {
        self.frozen.lock().expect("no code panics while it holds the timer")
    }

    /// Guest time has stopped: notes what is left. Nothing happens when it is known already.
    pub(crate) fn freeze(&self, clock: &Clock) {
        let mut frozen = self.frozen();
        if frozen.is_some() || clock.is_running() {
            return;
        }
        let vcpu = self.vcpu.lock().expect("no code panics while it holds the vCPU");
        match read_timer(&vcpu) {
            Ok(timer) => *frozen = Some(timer),
            Err(e) => log::error!("the local APIC's timer is not known: {e}"),
        }
    }

    /// Guest time goes on: starts the timer with what was left. Returns whether it had been stopped. The
    /// vCPU's TSC is right already.
    pub(crate) fn thaw(&self, vcpu: &VcpuFd) -> Result<bool, Error> {
        let Some(timer) = self.frozen().take() else { return Ok(false) };
        // Messages may have come meanwhile, so all but the timer is as the kernel has it now.
        let mut state = read(vcpu)?;
        set(&mut state, reg::TIMER_CURRENT, timer.count);
        write(vcpu, &state, timer.deadline)?;
        Ok(true)
    }

    /// The state of the local APIC. Between runs.
    pub(super) fn save(&self, vcpu: &VcpuFd, clock: &Clock, base: u64) -> Result<LapicState, Error> {
        let state = read(vcpu)?;
        let timer = match *self.frozen() {
            Some(timer) => timer,
            None => read_timer(vcpu)?,
        };
        let mut registers: Vec<u32> = (0..REGISTERS as u32).map(|index| get(&state, index << 4)).collect();
        let mut put = |register: u32, value| registers[(register >> 4) as usize] = value;
        put(reg::VERSION, VERSION);
        put(reg::TIMER_CURRENT, timer.count);
        let passed =
            u64::from(get(&state, reg::TIMER_INITIAL) - timer.count.min(get(&state, reg::TIMER_INITIAL)));
        Ok(LapicState {
            base,
            tsc_deadline: timer.deadline,
            timer_start_ns: clock.now().saturating_sub(passed * nanos_per_count(&registers)),
            registers,
        })
    }

    /// Replaces the state. Between runs; if guest time runs, the vCPU's TSC is right already.
    pub(super) fn load(&self, vcpu: &VcpuFd, clock: &Clock, state: &CpuState) -> Result<(), Error> {
        let lapic = &state.lapic;
        let mut image = kvm_lapic_state::default();
        for (index, value) in (0..).zip(&lapic.registers) {
            set(&mut image, index << 4, *value);
        }
        let timer = Timer { count: count_left(lapic, clock.now()), deadline: lapic.tsc_deadline };
        set(&mut image, reg::TIMER_CURRENT, timer.count);
        write(vcpu, &image, timer.deadline)?;
        *self.frozen() = (!clock.is_running()).then_some(timer);
        Ok(())
    }
}

fn get(state: &kvm_lapic_state, register: u32) -> u32 {
    let at = register as usize;
    u32::from_le_bytes(std::array::from_fn(|byte| state.regs[at + byte] as u8))
}

fn set(state: &mut kvm_lapic_state, register: u32, value: u32) {
    let at = register as usize;
    for (place, byte) in state.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
        *place = byte as _;
    }
}

fn read(vcpu: &VcpuFd) -> Result<kvm_lapic_state, Error> {
    vcpu.get_lapic().map_err(kvm_refused("KVM does not give the local APIC"))
}

fn read_timer(vcpu: &VcpuFd) -> Result<Timer, Error> {
    let deadline = super::msrs::read(vcpu, msr::TSC_DEADLINE)?.unwrap_or(0);
    Ok(Timer { count: get(&read(vcpu)?, reg::TIMER_CURRENT), deadline })
}

/// Writes the registers, which starts the timer at its current count, and the deadline.
fn write(vcpu: &VcpuFd, state: &kvm_lapic_state, deadline: u64) -> Result<(), Error> {
    vcpu.set_lapic(state).map_err(|e| {
        super::bad_state("KVM refuses the local APIC")
            .with_source(std::io::Error::from_raw_os_error(e.errno()))
    })?;
    if get(state, reg::LVT_TIMER) & TIMER_MODE == TIMER_TSC_DEADLINE {
        super::msrs::write(vcpu, msr::TSC_DEADLINE, deadline)?;
    }
    Ok(())
}

/// Nanoseconds per count, of a bus clock of 1 GHz (SDM vol. 3A, figure 11-10).
fn nanos_per_count(registers: &[u32]) -> u64 {
    let divide = registers[(reg::TIMER_DIVIDE >> 4) as usize];
    1 << (((divide & 3 | divide >> 1 & 4) + 1) & 7)
}

/// The current count at this guest time.
fn count_left(lapic: &LapicState, now: Nanos) -> u32 {
    let value = |register: u32| lapic.registers[(register >> 4) as usize];
    let initial = u64::from(value(reg::TIMER_INITIAL));
    let passed = now.saturating_sub(lapic.timer_start_ns) / nanos_per_count(&lapic.registers);
    let left = match value(reg::LVT_TIMER) & TIMER_MODE {
        _ if initial == 0 => 0,
        TIMER_TSC_DEADLINE => 0,
        TIMER_PERIODIC => initial - passed % initial,
        // Expired once and for all.
        _ if value(reg::TIMER_CURRENT) == 0 => 0,
        // It is due: the least that the kernel starts a timer with.
        _ => initial.saturating_sub(passed).max(1),
    };
    left as u32
}

/// Whether a bit of one of the three 256-bit registers is set.
fn bit(lapic: &LapicState, register: u32, vector: u8) -> (usize, u32) {
    let index = (register >> 4) as usize + usize::from(vector / 32);
    (index, lapic.registers[index] & 1 << (vector % 32))
}

/// Makes an interrupt in service, whose delivery had only begun, a requested one again. False when it is not
/// the local APIC's.
pub(super) fn take_back(lapic: &mut LapicState, vector: u8) -> bool {
    let (in_service, mask) = bit(lapic, reg::ISR, vector);
    if mask == 0 {
        return false;
    }
    lapic.registers[in_service] &= !mask;
    let (requested, _) = bit(lapic, reg::IRR, vector);
    lapic.registers[requested] |= mask;
    true
}

/// The level-triggered vectors that are requested or in service.
pub(super) fn level_triggered(lapic: &LapicState) -> Vec<u8> {
    let is_set = |register: u32, vector: u8| bit(lapic, register, vector).1 != 0;
    let waits = |vector: &u8| is_set(reg::IRR, *vector) || is_set(reg::ISR, *vector);
    (16..=255).filter(|vector| is_set(reg::TMR, *vector) && waits(vector)).collect()
}

pub(super) fn check(lapic: &LapicState) -> Result<(), String> {
    if lapic.registers.len() != REGISTERS {
        return Err(format!("{} local APIC registers instead of {REGISTERS}", lapic.registers.len()));
    }
    let x2apic = lapic.base & (base::ENABLE | base::X2APIC);
    if x2apic == base::X2APIC {
        return Err("the local APIC is in x2APIC mode and off".into());
    }
    if lapic.base & base::ADDRESS != apic::DEFAULT_BASE {
        return Err(format!("the local APIC is at {:#x}, where KVM has none", lapic.base & base::ADDRESS));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lapic(mode: u32, initial: u32, current: u32, start: Nanos) -> LapicState {
        let mut registers = vec![0; REGISTERS];
        registers[(reg::LVT_TIMER >> 4) as usize] = mode;
        registers[(reg::TIMER_INITIAL >> 4) as usize] = initial;
        registers[(reg::TIMER_CURRENT >> 4) as usize] = current;
        // Divide by 16.
        registers[(reg::TIMER_DIVIDE >> 4) as usize] = 3;
        LapicState {
            base: apic::DEFAULT_BASE | base::ENABLE,
            registers,
            tsc_deadline: 0,
            timer_start_ns: start,
        }
    }

    #[test]
    fn a_timer_has_as_much_left_as_guest_time_says() {
        for (lapic, now, left) in [
            (lapic(0, 1000, 500, 0), 16 * 400, 600),
            (lapic(0, 1000, 500, 0), 16 * 4000, 1),
            (lapic(0, 1000, 0, 0), 16 * 10, 0),
            (lapic(TIMER_PERIODIC, 1000, 500, 160), 160 + 16 * 2300, 700),
            (lapic(TIMER_PERIODIC, 0, 0, 0), 16, 0),
            (lapic(TIMER_TSC_DEADLINE, 1000, 500, 0), 16, 0),
        ] {
            assert_eq!(count_left(&lapic, now), left, "{lapic:?} at {now}");
        }
    }

    #[test]
    fn an_interrupt_that_was_not_delivered_is_requested_again() {
        let mut lapic = lapic(0, 0, 0, 0);
        lapic.registers[(reg::ISR >> 4) as usize + 1] = 1 << 5;
        lapic.registers[(reg::TMR >> 4) as usize + 1] = 1 << 5;
        assert!(!take_back(&mut lapic, 0x26));
        assert!(take_back(&mut lapic, 0x25));
        assert_eq!(lapic.registers[(reg::ISR >> 4) as usize + 1], 0);
        assert_eq!(lapic.registers[(reg::IRR >> 4) as usize + 1], 1 << 5);
        assert_eq!(level_triggered(&lapic), [0x25]);
    }
}
