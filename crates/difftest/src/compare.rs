//! Finds differences between two endings of a case, and prints them for people.

use crate::case::{Case, DATA, Ending, State, Trap};
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};
use std::fmt::Write;

/// Status flags and DF: what instructions change.
const FLAGS: u64 = 0xcd5;
/// MXCSR: overflow and underflow; loss of precision.
const OUT_OF_RANGE: u32 = 0x18;
const PRECISION: u32 = 0x20;
const RSI: usize = 6;
const RDI: usize = 7;
const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
/// The x87 part of the FXSAVE image that is compared; then the registers.
const X87_WORDS: [(&str, std::ops::Range<usize>); 6] =
    [("fcw", 0..2), ("fsw", 2..4), ("ftw", 4..5), ("fop", 6..8), ("fip", 8..16), ("fdp", 16..24)];

/// What may differ.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tolerance {
    /// Flags that the manual leaves undefined.
    pub(crate) flags: u64,
    /// Where in its page an access faulted.
    pub(crate) fault_offset: bool,
    /// Vectors of faults of different accesses and checks: which of them comes first is the processor's choice.
    pub(crate) fault_order: &'static [u32],
    /// Which of two operands, at RSI and RDI, is told if both fault.
    pub(crate) either_operand: bool,
    /// Memory, if there was a fault: part of it may have been written.
    pub(crate) memory_after_fault: bool,
    /// Ranges of the data.
    pub(crate) data: &'static [(usize, usize)],
    /// Bits of MXCSR, if there was a fault.
    pub(crate) mxcsr_after_fault: u32,
}

/// The differences as text, one line each; empty if there are none.
pub(crate) fn differences(case: &Case, host: &Ending, guest: &Ending, tolerance: Tolerance) -> String {
    let mut text = String::new();
    let trap = |ending: &Ending| {
        let address = |address: u64| if tolerance.fault_offset { address & !0xfff } else { address };
        // The host's kernel has pages in its half; the guest has none.
        let code = |trap: Trap| trap.code & !((trap.address >> 63) as u32);
        ending.trap().map(|trap| Trap { code: code(trap), address: address(trap.address), ..trap })
    };
    let trapped = host.trapped && guest.trapped;
    // Outside 64-bit mode the upper halves are out of reach, and undefined afterwards.
    let mask = u64::MAX >> (64 - case.bits as u32);
    let (host_state, guest_state) = (&host.state, &guest.state);
    let open = match (host.trap(), guest.trap()) {
        (Some(host), Some(guest)) => {
            let order = |trap: Trap| tolerance.fault_order.contains(&trap.vector);
            let operands = |trap: Trap, state: &State| {
                [RSI, RDI].iter().any(|&register| trap.address.wrapping_sub(state.gpr[register]) & mask < 8)
            };
            let both = tolerance.either_operand
                && (host.vector, host.code) == (guest.vector, guest.code)
                && operands(host, host_state)
                && operands(guest, guest_state);
            host.vector != guest.vector && order(host) && order(guest) || both
        }
        _ => false,
    };
    if trap(host) != trap(guest) && !open {
        _ = writeln!(text, "  trap: host {:x?}, engine {:x?}", host.trap(), guest.trap());
    }
    let (h, g) = (&host.state, &guest.state);
    if h.rip != g.rip {
        _ = writeln!(text, "  rip: host {:#x}, engine {:#x}", h.rip, g.rip);
    }
    let registers = case.bits.registers();
    for (index, name) in GPR.iter().enumerate().take(registers) {
        if (h.gpr[index] ^ g.gpr[index]) & mask != 0 {
            _ = writeln!(text, "  {name}: host {:#x}, engine {:#x}", h.gpr[index], g.gpr[index]);
        }
    }
    let flags = FLAGS & !tolerance.flags;
    if (h.rflags ^ g.rflags) & flags != 0 {
        let (host, engine) = (h.rflags & flags, g.rflags & flags);
        _ = writeln!(text, "  rflags: host {host:#x}, engine {engine:#x}: {}", flag_names(host ^ engine));
    }
    let mut mxcsr = if trapped { tolerance.mxcsr_after_fault } else { 0 };
    if trapped && host.trap.vector == 19 && h.mxcsr & OUT_OF_RANGE != 0 {
        // Unmasked, these report a loss of precision only if the result is inexact with an unbounded
        // exponent too. The engine, which executes with everything masked, cannot see the difference.
        mxcsr |= PRECISION;
    }
    if (h.mxcsr ^ g.mxcsr) & !mxcsr != 0 {
        _ = writeln!(text, "  mxcsr: host {:#x}, engine {:#x}", h.mxcsr, g.mxcsr);
    }
    for index in 0..registers {
        if h.ymm[index] != g.ymm[index] {
            _ = writeln!(text, "  ymm{index}: host {:x?}, engine {:x?}", h.ymm[index], g.ymm[index]);
        }
    }
    x87_differences(h, g, &mut text);
    let ignored = |at: usize| tolerance.data.iter().any(|(start, end)| (*start..*end).contains(&at));
    let bytes = host.data.iter().zip(&guest.data).enumerate();
    let changed = bytes.filter(|(at, (h, g))| h != g && !ignored(*at));
    let reported = if trapped && tolerance.memory_after_fault { 0 } else { 16 };
    for (at, (host, engine)) in changed.take(reported) {
        _ = writeln!(text, "  [{:#x}]: host {host:#04x}, engine {engine:#04x}", DATA + at as u64);
    }
    text
}

fn x87_differences(h: &State, g: &State, text: &mut String) {
    // AMD's processors save these only while an exception is pending.
    let pointers = h.fx[2] & 0x80 != 0;
    for (name, range) in X87_WORDS.into_iter().filter(|(_, range)| pointers || range.start < 6) {
        let (host, engine) = (&h.fx[range.clone()], &g.fx[range]);
        if host != engine {
            _ = writeln!(text, "  {name}: host {host:02x?}, engine {engine:02x?}");
        }
    }
    for index in 0..8 {
        let range = 32 + 16 * index..42 + 16 * index;
        let (host, engine) = (&h.fx[range.clone()], &g.fx[range]);
        if host != engine {
            _ = writeln!(text, "  st{index}: host {host:02x?}, engine {engine:02x?}");
        }
    }
}

fn flag_names(bits: u64) -> String {
    let names =
        [(1, "cf"), (4, "pf"), (0x10, "af"), (0x40, "zf"), (0x80, "sf"), (0x400, "df"), (0x800, "of")];
    let names: Vec<_> = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
    names.join(" ")
}

/// The instructions of a case.
pub(crate) fn instructions(case: &Case) -> Vec<Instruction> {
    let code = &case.code[..case.code_len as usize];
    Decoder::with_ip(case.bits as u32, code, case.state.rip, DecoderOptions::NONE).into_iter().collect()
}

/// The case as text: assembly and the inputs that matter.
pub(crate) fn describe(case: &Case) -> String {
    let mut text = String::new();
    let mut formatter = IntelFormatter::new();
    let insns = instructions(case);
    for insn in &insns {
        let at = (insn.ip() - case.state.rip) as usize;
        let mut line = String::new();
        formatter.format(insn, &mut line);
        let bytes = &case.code[at..at + insn.len()];
        _ = writeln!(text, "{line}   ; {:?} {bytes:02x?}", insn.code());
    }
    let state = &case.state;
    for (index, name) in GPR.iter().enumerate() {
        _ = write!(text, "{}{name}={:#x}", if index % 4 == 0 { "  " } else { " " }, state.gpr[index]);
        if index % 4 == 3 {
            text.push('\n');
        }
    }
    _ = writeln!(text, "  rflags={:#x} mxcsr={:#x} fx={:02x?}", state.rflags, state.mxcsr, &state.fx[..5]);
    let vectors = |insn: &Instruction| {
        let registers = (0..insn.op_count()).map(|op| insn.op_register(op)).chain([insn.memory_index()]);
        registers.filter(|register| register.is_vector_register()).map(|r| r.number()).collect::<Vec<_>>()
    };
    let mut used: Vec<usize> = insns.iter().flat_map(vectors).collect();
    used.sort_unstable();
    used.dedup();
    for number in used {
        _ = writeln!(text, "  ymm{number}={:x?}", state.ymm[number]);
    }
    if state.fx[..5] != [0; 5] && insns.iter().any(|insn| format!("{:?}", insn.code()).starts_with('F')) {
        for index in 0..8 {
            _ = writeln!(text, "  st{index}={:02x?}", &state.fx[32 + 16 * index..42 + 16 * index]);
        }
    }
    _ = writeln!(text, "  window at {:#x}: {:02x?}", DATA + case.window_at as u64, &case.window[..]);
    text
}
