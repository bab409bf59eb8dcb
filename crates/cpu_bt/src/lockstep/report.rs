//! What is told of a difference.

use super::{Difference, End};
use crate::cpu::Cpu;
use crate::event_trace::{host_listing, show};
use crate::jit::cache::Key;
use crate::regs::{RIP, Regs};
use std::fmt::Write;
use x86::reg::rflags;

const NAMES: [&str; 17] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15", "rip",
];
/// Most bytes of memory listed.
const BYTES_MAX: usize = 64;

impl Cpu {
    /// A page of text: where, the code in bytes and words, the state before, what differs after, and
    /// the host code.
    pub(super) fn report_difference(
        &mut self,
        start: &Regs,
        translated: &End,
        difference: &Difference,
        key: Key,
    ) -> String {
        let linear = start.r[RIP];
        let gpa = self.fetch_address(linear).unwrap_or(u64::MAX);
        let mut text = String::new();
        let _ = writeln!(
            text,
            "lock-step: vCPU {} differs after {} traces in the trace at {linear:#x} ({gpa:#x}), {key}: {}",
            self.id,
            self.counts.lockstep_traces.get(),
            difference.why
        );
        let _ = writeln!(text, "interpreted, the last {} instructions:", difference.instructions.len());
        for (at, insn) in &difference.instructions {
            let bytes: String = match self.fetch_address(*at) {
                Ok(gpa) => {
                    let mut bytes = [0u8; 15];
                    self.copy_ram(gpa, &mut bytes[..insn.len()]);
                    bytes[..insn.len()].iter().map(|byte| format!("{byte:02x} ")).collect()
                }
                Err(_) => String::new(),
            };
            let _ = writeln!(text, "  {at:#x}  {bytes:<33}{}", show(insn));
        }
        text.push_str("state before:\n");
        registers(&mut text, start);
        text.push_str("what differs:      interpreted         translated\n");
        compare(&mut text, &difference.end, translated, difference.flags);
        if let Some(code) = self.vm.code.cache().code_of(gpa, key) {
            let _ = writeln!(text, "host code, {} bytes:", code.1.len());
            text.push_str(&host_listing(code.0, &code.1));
        }
        text
    }
}

fn registers(text: &mut String, regs: &Regs) {
    for (number, names) in NAMES.chunks(4).enumerate() {
        for (offset, name) in names.iter().enumerate() {
            let _ = write!(text, "  {name:<3} {:#018x}", regs.r[number * 4 + offset]);
        }
        text.push('\n');
    }
    let _ = writeln!(text, "  rflags {:#x}  mxcsr {:#x}", regs.rflags, regs.mxcsr);
}

fn compare(text: &mut String, interpreted: &End, translated: &End, flags: u64) {
    let (a, b) = (&interpreted.regs, &translated.regs);
    for (number, name) in NAMES.iter().enumerate().filter(|(number, _)| a.r[*number] != b.r[*number]) {
        let _ = writeln!(text, "  {name:<15} {:#018x}  {:#018x}", a.r[number], b.r[number]);
    }
    let mask = !rflags::STATUS | flags;
    if (a.rflags ^ b.rflags) & mask != 0 {
        let note = format!("(of which {:#x} count)", mask as u32);
        let _ = writeln!(text, "  {:<15} {:#018x}  {:#018x}  {note}", "rflags", a.rflags, b.rflags);
    }
    if a.mxcsr != b.mxcsr {
        let _ = writeln!(text, "  {:<15} {:#018x}  {:#018x}", "mxcsr", a.mxcsr, b.mxcsr);
    }
    for number in (0..16).filter(|&number| a.ymm[number] != b.ymm[number]) {
        let _ = writeln!(text, "  ymm{number:<12} {:016x?}  {:016x?}", a.ymm[number], b.ymm[number]);
    }
    for at in (0..160).step_by(8).filter(|&at| at != 24 && a.fx[at..at + 8] != b.fx[at..at + 8]) {
        let name = format!("x87 image +{at}");
        let _ = writeln!(text, "  {name:<15} {:02x?}  {:02x?}", &a.fx[at..at + 8], &b.fx[at..at + 8]);
    }
    let fault = |end: &End| match end.fault {
        None => "none".to_owned(),
        Some((fault, address)) => {
            format!("vector {} code {:x?} address {address:#x}", fault.vector(), fault.code())
        }
    };
    if interpreted.fault.map(|(fault, _)| fault) != translated.fault.map(|(fault, _)| fault) {
        let _ = writeln!(text, "  {:<15} {}  |  {}", "fault", fault(interpreted), fault(translated));
    }
    let mut addresses: Vec<u64> =
        interpreted.written.keys().chain(translated.written.keys()).copied().collect();
    addresses.sort_unstable();
    addresses.dedup();
    let value = |end: &End, other: &End, at: u64| match (end.written.get(&at), other.written.get(&at)) {
        (Some((_, new)), _) => *new,
        (None, Some((old, _))) => *old,
        (None, None) => 0,
    };
    let differing = addresses.iter().filter_map(|&at| {
        let (a, b) = (value(interpreted, translated, at), value(translated, interpreted, at));
        (a != b).then_some((at, a, b))
    });
    for (at, a, b) in differing.take(BYTES_MAX) {
        let _ = writeln!(text, "  memory {at:#x}: {a:#04x}  {b:#04x}  (physical address)");
    }
}
