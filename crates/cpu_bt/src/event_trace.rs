//! Tells what the engine decodes, translates and leaves, for people who debug it: one line an event,
//! indented lines for code.
//!
//! ```text
//! 0 block 0xffffffff81000110 (0x1000110) kernel: 3 instructions
//! 0 trace 0xffffffff81000110 (0x1000110) kernel simd avx: 12 instructions, 391 bytes of code
//! 0 exit 0xffffffff81000110 to 0xffffffff81000140: unlinked
//! ```
//!
//! The first number is the vCPU; addresses are linear, those in parentheses physical.

use crate::cpu::Cpu;
use crate::jit::cache::Key;
use crate::mmu::tlb::MmuIndex;
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};
use std::fmt;
use std::io::Write;
use std::ops::RangeInclusive;
use std::sync::Mutex;

/// Which events are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceFilter {
    /// Blocks decoded for the interpreter.
    pub blocks: bool,
    /// Traces translated, with the guest's instructions.
    pub traces: bool,
    /// The host's instructions of each trace, too.
    pub host: bool,
    /// Every return from translated code, with the reason.
    pub exits: bool,
    /// Only code at these linear addresses.
    pub at: RangeInclusive<u64>,
    /// Only this vCPU.
    pub vcpu: Option<u32>,
}

impl Default for TraceFilter {
    fn default() -> TraceFilter {
        TraceFilter { blocks: false, traces: true, host: false, exits: true, at: 0..=u64::MAX, vcpu: None }
    }
}

/// Where events are told, and which.
pub struct Trace {
    filter: TraceFilter,
    out: Mutex<Box<dyn Write + Send>>,
}

impl Trace {
    /// Creates a trace that writes to `out`. A failed write loses the event and nothing else.
    pub fn new(out: Box<dyn Write + Send>, filter: TraceFilter) -> Trace {
        Trace { filter, out: Mutex::new(out) }
    }

    fn wants(&self, vcpu: u32, linear: u64) -> bool {
        self.filter.at.contains(&linear) && self.filter.vcpu.is_none_or(|wanted| wanted == vcpu)
    }

    fn write(&self, text: &str) {
        let mut out = self.out.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = out.write_all(text.as_bytes());
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("filter", &self.filter).finish_non_exhaustive()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.mmu() {
            MmuIndex::Kernel => "kernel",
            MmuIndex::User => "user",
            MmuIndex::KernelAc => "kernel-ac",
            MmuIndex::UserAligned => "user-aligned",
        })?;
        f.write_str(if self.simd() { " simd" } else { "" })?;
        f.write_str(if self.avx() { " avx" } else { "" })
    }
}

impl Cpu {
    /// Tells of a block that was decoded.
    #[cold]
    pub(crate) fn trace_block(&self, trace: &Trace, linear: u64, gpa: u64, instructions: usize) {
        if trace.filter.blocks && trace.wants(self.id, linear) {
            let mode = match self.mode.is_user() {
                true => format!("user, {} bits", self.mode.code_bits),
                false => format!("kernel, {} bits", self.mode.code_bits),
            };
            trace.write(&format!(
                "{} block {linear:#x} ({gpa:#x}) {mode}: {instructions} instructions\n",
                self.id
            ));
        }
    }

    /// Tells of a trace that was translated; `host` is its code, `at` the address of that.
    #[cold]
    pub(crate) fn trace_translation(
        &self,
        trace: &Trace,
        (linear, gpa, key): (u64, u64, Key),
        instructions: &mut dyn Iterator<Item = Instruction>,
        (at, host): (u64, &[u8]),
    ) {
        if !(trace.filter.traces && trace.wants(self.id, linear)) {
            return;
        }
        let listed = guest_listing(linear & !0xfff, instructions);
        let mut text = format!(
            "{} trace {linear:#x} ({gpa:#x}) {key}: {} instructions, {} bytes of code\n{listed}",
            self.id,
            listed.lines().count(),
            host.len()
        );
        if trace.filter.host {
            text.push_str("    host:\n");
            text.push_str(&host_listing(at, host));
        }
        trace.write(&text);
    }

    /// Tells of an access that translated code does not find in the software TLB.
    #[cold]
    pub(crate) fn trace_slow_access(&self, trace: &Trace, at: u64, linear: u64) {
        if trace.filter.exits && trace.wants(self.id, at) {
            trace.write(&format!("{} slow access at {at:#x} to {linear:#x}\n", self.id));
        }
    }

    /// Tells of an instruction that translated code leaves to its handler.
    #[cold]
    pub(crate) fn trace_callout(&self, trace: &Trace, at: u64) {
        if trace.filter.exits && trace.wants(self.id, at) {
            trace.write(&format!("{} callout at {at:#x}\n", self.id));
        }
    }

    /// Tells of a return from translated code that was entered at `from`.
    #[cold]
    pub(crate) fn trace_exit(&self, trace: &Trace, from: u64, why: &str) {
        let to = self.regs.r[crate::regs::RIP];
        if trace.filter.exits && trace.wants(self.id, from) {
            trace.write(&format!("{} exit {from:#x} to {to:#x}: {why}\n", self.id));
        }
    }
}

/// Instructions that were decoded as if their page stood at 0, one a line.
pub(crate) fn guest_listing(page: u64, instructions: &mut dyn Iterator<Item = Instruction>) -> String {
    let mut text = String::new();
    for insn in instructions {
        text.push_str(&format!("    {:#x}  {}\n", page.wrapping_add(insn.ip()), show(&insn)));
    }
    text
}

/// Host code at `at`, one instruction a line.
pub(crate) fn host_listing(at: u64, code: &[u8]) -> String {
    let mut text = String::new();
    for insn in Decoder::with_ip(64, code, at, DecoderOptions::NONE) {
        text.push_str(&format!("      {:#x}  {}\n", insn.ip(), show(&insn)));
    }
    text
}

/// An instruction in Intel's notation.
pub(crate) fn show(insn: &Instruction) -> String {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_space_after_operand_separator(true);
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_rip_relative_addresses(true);
    let mut text = String::new();
    formatter.format(insn, &mut text);
    text
}
