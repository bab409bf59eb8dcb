//! A machine for one instruction.

use cpu_bt::testing::{Machine, Mode, Outcome, Page, UserState};
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use std::arch::x86_64::__cpuid_count;
use x86::cpuid::Leaf;

pub(crate) const CODE: u64 = 0x8000;
/// The last page that 16-bit addresses reach.
pub(crate) const DATA: u64 = 0xf000;

pub(crate) const UD: u8 = 6;
pub(crate) const NM: u8 = 7;
pub(crate) const GP: u8 = 13;
pub(crate) const MF: u8 = 16;
pub(crate) const XM: u8 = 19;

/// The host's CPUID, but for `without`: bits to clear, as function, register (EAX to EDX) and bit.
pub(crate) fn cpuid(without: &[(u32, usize, u32)]) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    for (function, index) in [(0, 0), (1, 0), (7, 0), (7, 1), (0xd, 0), (0xd, 1), (0x8000_0001, 0)] {
        let host = __cpuid_count(function, index);
        let mut values = [host.eax, host.ebx, host.ecx, host.edx];
        for (_, register, bit) in without.iter().filter(|(of, ..)| *of == function) {
            values[*register] &= !(1 << bit);
        }
        let [eax, ebx, ecx, edx] = values;
        leaves.push(Leaf { function, index: Some(index), eax, ebx, ecx, edx });
    }
    leaves
}

/// Whether the host has an instruction set; where it has not, there is nothing to test.
pub(crate) fn host_has_avx2() -> bool {
    let has = std::is_x86_feature_detected!("avx2");
    if !has {
        println!("skipped: the host has no AVX2");
    }
    has
}

/// Assembles instructions for a mode.
pub(crate) fn assemble(mode: Mode, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let bits = match mode {
        Mode::Long64 => 64,
        Mode::Compat32 => 32,
        Mode::Compat16 | Mode::Real16 => 16,
    };
    let mut assembler = CodeAssembler::new(bits).expect("a valid mode");
    f(&mut assembler).expect("valid operands");
    assembler.assemble(CODE).expect("an encodable instruction")
}

/// A machine with code and data pages and all registers set to something.
pub(crate) fn machine(mode: Mode, cpuid: Vec<Leaf>, code: &[u8]) -> Machine {
    let page = |linear| Page { linear, writable: true };
    let mut machine = Machine::new(mode, cpuid, &[page(CODE), page(DATA)]);
    machine.write(CODE, code);
    let mut x87 = [0; 160];
    x87[..2].copy_from_slice(&0x037fu16.to_le_bytes());
    machine.set_state(&UserState {
        gpr: [DATA; 16],
        rip: CODE,
        rflags: 0x202,
        mxcsr: 0x1f80,
        ymm: [[0x3ff0_0000_0000_0000; 4]; 16],
        x87,
    });
    machine
}

/// The vector of the exception that the next instruction raises; `None` if it completes.
pub(crate) fn step(machine: &mut Machine) -> Option<u8> {
    match machine.step() {
        Outcome::Completed => None,
        Outcome::Exception { vector, .. } => Some(vector),
        Outcome::Left(why) => panic!("the engine left guest execution: {why}"),
    }
}
