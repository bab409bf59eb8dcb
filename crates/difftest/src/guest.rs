//! Executes cases in the engine.

use crate::case::{
    Bits, CODE, CODE_LEN_MAX, Case, DATA, DATA_LEN, Ending, GS_BASE, PAGE, READ_ONLY, State, Trap, Until,
    background,
};
use crate::suite::Way;
use cpu_bt::Options;
use cpu_bt::testing::{Machine, Mode, Outcome, Page, UserState};
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;
use x86::cpuid::Leaf;

const HLT: u8 = 0xf4;
/// Most steps of one case: instructions, and iterations of repeated ones.
const STEPS_MAX: usize = 20_000;

/// The engine, set up as the host's child process is.
pub(crate) struct Guest {
    machine: Machine,
    way: Way,
    background: Vec<u8>,
}

impl Guest {
    pub(crate) fn new(bits: Bits, way: Way) -> Guest {
        let page = |linear, writable| Page { linear, writable };
        let pages =
            [page(CODE, true), page(DATA, true), page(DATA + PAGE as u64, true), page(READ_ONLY, false)];
        let mode = if bits == Bits::B64 { Mode::Long64 } else { Mode::Compat32 };
        // Faults are compared with their flags.
        let options = Options { exact_flags: true, ..Options::default() };
        let mut machine = Machine::with_options(mode, host_cpuid(), &pages, &options);
        machine.prefer_native(way == Way::Natively);
        let background = background();
        machine.write(READ_ONLY, &background[DATA_LEN..]);
        Guest { machine, way, background }
    }

    /// Executes a case. An error says why the engine could not.
    pub(crate) fn run(&mut self, case: &Case) -> Result<Box<Ending>, String> {
        let machine = &mut self.machine;
        let mut data = self.background[..DATA_LEN].to_vec();
        let window = case.window_at as usize;
        data[window..window + case.window.len()].copy_from_slice(&case.window);
        machine.write(DATA, &data[..PAGE]);
        machine.write(DATA + PAGE as u64, &data[PAGE..]);
        // A trace ends before HLT; other instructions behind the end would be executed with it.
        let mut code = [HLT; CODE_LEN_MAX + 16];
        code[..CODE_LEN_MAX].copy_from_slice(&case.code);
        code[case.code_len as usize..].fill(HLT);
        machine.write(case.state.rip, &code);
        if case.bits == Bits::B64 {
            machine.set_gs_base(GS_BASE);
        }
        machine.set_state(&to_user(&case.state));
        let mut trap = None;
        let mut steps = 0;
        while machine.state().rip != case.end() && !(case.until == Until::Branched && steps > 0) {
            let translated = self.way == Way::Translated && case.until == Until::End;
            let outcome = if translated { machine.run_translated(case.end()) } else { machine.step() };
            match outcome {
                Outcome::Completed => {}
                Outcome::Exception { vector, code, address } => {
                    let address = if vector == 14 { address } else { 0 };
                    trap = Some(Trap { vector: vector as u32, code: code.unwrap_or(0) as u32, address });
                    break;
                }
                Outcome::Left(why) => return Err(why),
            }
            steps += 1;
            if steps > STEPS_MAX {
                return Err(format!("no end after {STEPS_MAX} steps"));
            }
        }
        let mut ending = Box::new(Ending {
            state: from_user(&machine.state()),
            trapped: trap.is_some(),
            trap: trap.unwrap_or(Trap { vector: 0, code: 0, address: 0 }),
            data: [0; DATA_LEN],
        });
        machine.read(DATA, &mut ending.data[..PAGE]);
        machine.read(DATA + PAGE as u64, &mut ending.data[PAGE..]);
        Ok(ending)
    }
}

fn to_user(state: &State) -> UserState {
    UserState {
        gpr: state.gpr,
        rip: state.rip,
        rflags: state.rflags,
        mxcsr: state.mxcsr,
        ymm: state.ymm,
        x87: state.fx[..160].try_into().expect("160 bytes"),
    }
}

fn from_user(user: &UserState) -> State {
    let mut state = State {
        ymm: user.ymm,
        fx: [0; 512],
        gpr: user.gpr,
        rip: user.rip,
        rflags: user.rflags,
        mxcsr: user.mxcsr,
    };
    state.fx[..160].copy_from_slice(&user.x87);
    state
}

/// The CPUID of the host, so that the guest has what the host has.
pub(crate) fn host_cpuid() -> Vec<Leaf> {
    // Read once: CPUID is slow in virtual machines.
    static LEAVES: OnceLock<Vec<Leaf>> = OnceLock::new();
    LEAVES.get_or_init(read_cpuid).clone()
}

fn read_cpuid() -> Vec<Leaf> {
    let mut leaves = Vec::new();
    for base in [0u32, 0x8000_0000] {
        let last = __cpuid_count(base, 0).eax;
        for function in base..=last.min(base + 0x20) {
            let indices = match function {
                4 | 7 | 0xb | 0xd | 0x8000_001d => 0..3,
                _ => 0..1,
            };
            for index in indices.clone() {
                let result = __cpuid_count(function, index);
                let index = (indices.len() > 1).then_some(index);
                let (eax, ebx, ecx, edx) = (result.eax, result.ebx, result.ecx, result.edx);
                leaves.push(Leaf { function, index, eax, ebx, ecx, edx });
            }
        }
    }
    leaves
}
