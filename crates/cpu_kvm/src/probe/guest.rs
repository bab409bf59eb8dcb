//! A tiny guest: kernel mode of 64-bit mode, a loop of some thousand instructions with loads and stores, whose
//! result is known.

use crate::kick;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use memory::Ram;
use std::time::{Duration, Instant};

const MEMORY: u64 = 2 << 20;
const CODE: u64 = 0x1000;
const TABLES: u64 = 0x10000;
const DATA: u64 = 0x8000;
/// Instructions of one turn of the loop.
const PER_TURN: f64 = 6.0;
/// Turns of a short round, by which an interpreter is known soon.
const SHORT: u32 = 80;
/// So many of them at most: a processor shows itself in one that nothing comes in between.
const SHORT_ROUNDS: usize = 8;
/// Turns of a long round: some thousand instructions.
const LONG: u32 = 1000;
/// All of it takes no longer.
const LIMIT: Duration = Duration::from_millis(300);

/// ```text
/// 1:  imul rax, rax, 33
///     add rax, rcx
///     mov [rdi], rax
///     mov rax, [rdi]
///     dec ecx
///     jnz 1b
///     out 0xe9, al
/// ```
/// RAX is 0 at first, and RCX the number of turns.
const PROGRAM: [u8; 19] = [
    0x48, 0x6b, 0xc0, 33, 0x48, 0x01, 0xc8, 0x48, 0x89, 0x07, 0x48, 0x8b, 0x07, 0xff, 0xc9, 0x75, 0xef, 0xe6,
    0xe9,
];

/// What the program computes.
fn expected(turns: u32) -> u64 {
    (1..=u64::from(turns)).rev().fold(0, |sum: u64, turn| sum.wrapping_mul(33).wrapping_add(turn))
}

/// Runs the guest; returns how many nanoseconds an instruction takes. It gives up early when they are more than
/// `slowest`.
///
/// # Errors
/// Why it does not run.
pub(super) fn run(kvm: &Kvm, slowest: f64) -> Result<f64, String> {
    kick::install_handler();
    let ram = Ram::new(MEMORY).map_err(|e| e.to_string())?;
    load(&ram);
    let refused = |what: &'static str| move |e: kvm_ioctls::Error| format!("KVM does not {what}: {e}");
    let vm = kvm.create_vm().map_err(refused("make a machine"))?;
    let range = ram.ranges().next().ok_or("no memory")?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: range.start,
        memory_size: range.len,
        userspace_addr: ram.host_address(range).map_or(0, |hva| hva as u64),
    };
    // SAFETY: the memory lives until the end of this function, the machine as long at most.
    unsafe { vm.set_user_memory_region(slot) }.map_err(refused("take memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(refused("make a vCPU"))?;
    let _alarm = Alarm::set(LIMIT).map_err(|e| format!("no timer can be had: {e}"))?;
    let deadline = Instant::now() + LIMIT;
    judge(|turns| round(&mut vcpu, turns, deadline), slowest)
}

/// How many nanoseconds an instruction takes, by what rounds of so many turns take. Gives up early when they are more
/// than `slowest`.
///
/// The best of several counts, since the host may have other things to do meanwhile.
fn judge(mut round: impl FnMut(u32) -> Result<Duration, String>, slowest: f64) -> Result<f64, String> {
    let per_instruction = |took: Duration, turns: u32| took.as_nanos() as f64 / (PER_TURN * f64::from(turns));
    let (mut empty, mut short, mut long) = (Duration::MAX, Duration::MAX, Duration::MAX);
    for _ in 0..SHORT_ROUNDS {
        // What more turns take: entering and leaving a guest takes long where virtualization is itself emulated.
        // Where entering was held up this says too little, so it proves only that code is slow.
        empty = empty.min(round(1)?);
        short = short.min(round(SHORT)?);
        if per_instruction(short.saturating_sub(empty), SHORT - 1) > slowest {
            continue;
        }
        // A long round proves that it is fast, with all that comes in between.
        long = long.min(round(LONG)?);
        if per_instruction(long, LONG) <= slowest {
            break;
        }
    }
    Ok(match long {
        Duration::MAX => per_instruction(short.saturating_sub(empty), SHORT - 1),
        long => per_instruction(long, LONG),
    })
}

/// Runs the program once.
fn round(vcpu: &mut VcpuFd, turns: u32, deadline: Instant) -> Result<Duration, String> {
    let refused = |e: kvm_ioctls::Error| format!("KVM does not take registers: {e}");
    let mut sregs = vcpu.get_sregs().map_err(refused)?;
    let code = kvm_segment {
        limit: u32::MAX,
        selector: 8,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: 16, type_: 3, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // Protected mode with paging, physical address extension, long mode.
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0011, TABLES, 0x20, 0x500);
    vcpu.set_sregs(&sregs).map_err(refused)?;
    let regs =
        kvm_regs { rip: CODE, rflags: 2, rsp: DATA, rdi: DATA, rcx: turns.into(), ..Default::default() };
    vcpu.set_regs(&regs).map_err(refused)?;
    let started = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(0xe9, _)) => break,
            Ok(exit) => return Err(format!("it ended with {exit:?}")),
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(format!("KVM does not run it: {e}")),
        }
        if Instant::now() > deadline {
            return Err(format!("{} instructions take more than {LIMIT:?}", PER_TURN * f64::from(turns)));
        }
    }
    let took = started.elapsed();
    match vcpu.get_regs().map_err(refused)?.rax {
        sum if sum == expected(turns) => Ok(took),
        sum => Err(format!("it computed {sum:#x} instead of {:#x}", expected(turns))),
    }
}

fn load(ram: &Ram) {
    let store = |at: u64, value: u64| ram.store(at, value).expect("inside the memory");
    // One page of 2 MiB, mapped to itself.
    store(TABLES, (TABLES + 0x1000) | 3);
    store(TABLES + 0x1000, (TABLES + 0x2000) | 3);
    store(TABLES + 0x2000, 0x83);
    for (at, byte) in (CODE..).zip(PROGRAM) {
        ram.store(at, byte).expect("inside the memory");
    }
}

/// Sends the calling thread the signal that ends KVM_RUN, again and again from some time on.
struct Alarm(libc::timer_t);

impl Alarm {
    fn set(after: Duration) -> std::io::Result<Alarm> {
        // SAFETY: zero is a valid value of all fields; the kernel reads the event and writes the timer.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = kick::kick_signal();
            event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_nonzero().get();
            let mut timer: libc::timer_t = std::mem::zeroed();
            if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            let alarm = Alarm(timer);
            let time = |duration: Duration| libc::timespec {
                tv_sec: duration.as_secs() as _,
                tv_nsec: duration.subsec_nanos().into(),
            };
            // Again, should the first come in between two runs.
            let times =
                libc::itimerspec { it_value: time(after), it_interval: time(Duration::from_millis(20)) };
            if libc::timer_settime(alarm.0, 0, &times, std::ptr::null_mut()) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(alarm)
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `set` and is deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that enters a guest in `entry` and executes an instruction in `instruction`, both in nanoseconds, and
    /// has other things to do for `away` during the rounds that `held_up` names.
    fn judged(entry: u64, instruction: f64, away: Duration, held_up: impl Fn(usize) -> bool) -> f64 {
        let mut rounds = 0..;
        let round = |turns: u32| {
            let own = entry + (PER_TURN * f64::from(turns) * instruction) as u64;
            let away = if held_up(rounds.next().unwrap_or(0)) { away } else { Duration::ZERO };
            Ok(Duration::from_nanos(own) + away)
        };
        judge(round, 200.0).unwrap()
    }

    #[test]
    fn an_interpreter_is_known_whatever_the_host_does_meanwhile() {
        let away = Duration::from_millis(5);
        for held in 0..40 {
            let ns = judged(30_000, 700.0, away, |round| round == held);
            assert!((690.0..800.0).contains(&ns), "{held}: {ns}");
        }
        // The empty rounds are held up, all of them: an instruction seems to take no time.
        assert!(judged(30_000, 700.0, away, |round| round.is_multiple_of(3)) > 690.0);
        assert!(judged(30_000, 700.0, away, |_| true) > 690.0);
    }

    #[test]
    fn a_processor_is_known_as_well() {
        for (entry, instruction) in [(2_000, 0.3), (150_000, 0.5), (600_000, 2.0)] {
            let quiet = judged(entry, instruction, Duration::ZERO, |_| false);
            let busy = judged(entry, instruction, Duration::from_millis(5), |round| (round * 7 + 3) % 5 < 3);
            assert!(quiet <= 200.0 && busy <= 200.0, "{entry} {quiet} {busy}");
        }
    }
}
