//! Arbitrary bytes as guest code: the engine must neither panic nor hang, whatever they are, and
//! translator and interpreter must agree.

use crate::case::{CODE, DATA, PAGE};
use crate::guest::host_cpuid;
use cpu_bt::testing::{Machine, Mode, Outcome, Page, UserState};
use cpu_bt::{Jit, Options};
use std::cell::RefCell;

/// Instructions executed of one input at most.
const STEPS_MAX: usize = 200;

/// End of what real mode addresses reach.
const REAL_MODE_END: u64 = 0x11_0000;

thread_local! {
    /// A machine for each mode, made when it is first needed.
    static MACHINES: RefCell<[Option<Machine>; 4]> = const { RefCell::new([const { None }; 4]) };
}

/// Executes `data` as code: its first byte chooses the mode and seeds the registers, the rest is placed
/// at the end of a page and goes on in the next.
pub fn execute_bytes(data: &[u8]) {
    let [selector, code @ ..] = data else { return };
    let index = *selector as usize % 4;
    let mode = [Mode::Long64, Mode::Compat32, Mode::Compat16, Mode::Real16][index];
    // Code of 16 bits reaches the first 64 KiB only.
    let code_at = if matches!(mode, Mode::Real16 | Mode::Compat16) { 0x8000 } else { CODE };
    MACHINES.with_borrow_mut(|machines| {
        let machine = machines[index].get_or_insert_with(|| new_machine(mode, code_at));
        machine.reset();
        run(machine, mode, code_at, *selector, &code[..code.len().min(64)]);
    });
}

thread_local! {
    /// A machine for each mode that executes in lock-step.
    static TWINS: RefCell<[Option<Machine>; 4]> = const { RefCell::new([const { None }; 4]) };
}

/// Executes `data` as code, translated and interpreted on the same state: the first byte chooses the mode,
/// the second seeds registers and chooses between the bytes themselves and instructions made from them.
///
/// # Panics
/// When the two do not agree.
pub fn compare_bytes(data: &[u8]) {
    let [selector, seed, code @ ..] = data else { return };
    // Code of 16 bits is not translated: few inputs are that.
    let index = match *selector {
        0..0x80 => 0,
        0x80..0xf0 => 1,
        _ => *selector as usize % 4,
    };
    let mode = [Mode::Long64, Mode::Compat32, Mode::Compat16, Mode::Real16][index];
    let code_at = if matches!(mode, Mode::Real16 | Mode::Compat16) { 0x8000 } else { CODE };
    let mut code = code[..code.len().min(256)].to_vec();
    if index == 0 && seed & 1 != 0 {
        let hash = code.iter().fold(*seed as u64 | 1, |sum, byte| {
            sum.rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ *byte as u64
        });
        code = crate::sequences::mixed(&mut crate::random::Random::new(hash));
    }
    TWINS.with_borrow_mut(|machines| {
        let machine = machines[index].get_or_insert_with(|| new_twin(mode, code_at));
        machine.reset();
        set_up(machine, mode, code_at, *selector, &code);
        for _ in 0..SKIPS_MAX {
            match machine.run_lockstep(u64::MAX, PIECES_MAX) {
                Err(report) => panic!("{report}"),
                Ok(Outcome::Exception { .. }) => {
                    let mut state = machine.state();
                    state.rip = state.rip.wrapping_add(1);
                    machine.set_state(&state);
                }
                Ok(_) => break,
            }
        }
    });
}

/// Exceptions after which one input goes on.
const SKIPS_MAX: usize = 20;
/// Traces and interpreted instructions between two exceptions.
const PIECES_MAX: usize = 40;

fn new_twin(mode: Mode, code_at: u64) -> Machine {
    let options = Options { jit: Jit::Lockstep, ..Options::default() };
    Machine::with_options(mode, host_cpuid(), &pages(code_at), &options)
}

fn new_machine(mode: Mode, code_at: u64) -> Machine {
    Machine::new(mode, host_cpuid(), &pages(code_at))
}

fn pages(code_at: u64) -> [Page; 5] {
    let page = |linear, writable| Page { linear, writable };
    let second = PAGE as u64;
    [
        page(code_at, true),
        page(code_at + second, true),
        page(DATA, true),
        page(DATA + second, false),
        page(0, true),
    ]
}

fn set_up(machine: &mut Machine, mode: Mode, code_at: u64, selector: u8, code: &[u8]) {
    let pages: Vec<u64> = match mode {
        Mode::Real16 => (0..REAL_MODE_END).step_by(PAGE).collect(),
        _ => vec![code_at, code_at + PAGE as u64, DATA, DATA + PAGE as u64, 0],
    };
    for page in pages {
        machine.write(page, &[0; PAGE]);
    }
    let start = code_at + PAGE as u64 - code.len().min(20) as u64;
    for (at, byte) in (start..).zip(code) {
        machine.write(at, &[*byte]);
    }
    let pointer = if code_at == CODE { DATA } else { 0 };
    let seed = code.iter().fold(selector as u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(*byte as u64));
    let unmasked = if selector & 0x80 != 0 { seed as u32 & 0x1f80 } else { 0 };
    machine.set_state(&UserState {
        gpr: std::array::from_fn(|index| pointer + (seed >> index & 0xfff)),
        rip: start,
        rflags: 0x202,
        mxcsr: 0x1f80 & !unmasked,
        ymm: [[seed; 4]; 16],
        x87: initial_x87(),
    });
}

fn run(machine: &mut Machine, mode: Mode, code_at: u64, selector: u8, code: &[u8]) {
    machine.prefer_native(selector & 4 != 0);
    set_up(machine, mode, code_at, selector, code);
    for _ in 0..STEPS_MAX {
        match machine.step() {
            Outcome::Completed => {}
            Outcome::Exception { .. } => {
                // As if a handler skipped a byte.
                let mut state = machine.state();
                state.rip = state.rip.wrapping_add(1);
                machine.set_state(&state);
            }
            Outcome::Left(_) => break,
        }
    }
}

fn initial_x87() -> [u8; 160] {
    let mut image = [0; 160];
    image[..2].copy_from_slice(&0x037fu16.to_le_bytes());
    image
}
