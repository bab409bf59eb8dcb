//! Which registers a trace keeps in host registers.

use super::Translator;
use crate::block::decode::gpr_number;
use crate::jit::mapping::{Loc, Mapping, S1, slot};
use crate::jit::strings;
use crate::jit::trace::Trace;
use crate::jit::way::Way;
use iced_x86::{Mnemonic as M, OpKind, Register};

impl Translator {
    pub(super) fn choose_mapping(&mut self, trace: &Trace) -> Mapping {
        let (mut uses, mut fixed) = ([0u32; 16], 0u16);
        for step in &trace.steps {
            if matches!(step.way, Way::Nothing | Way::Callout) {
                continue;
            }
            let (mut explicit, mut high) = (0u16, false);
            for n in 0..step.insn.op_count() {
                if step.insn.op_kind(n) == OpKind::Register
                    && let Some(number) = gpr_number(step.insn.op_register(n))
                {
                    uses[number as usize & 0xf] += 1;
                    explicit |= 1 << (number & 0xf);
                    high |= number >= crate::regs::HIGH;
                }
            }
            if high {
                // Nothing beside AH to BH may move to where it needs a REX prefix.
                fixed |= explicit;
            }
            for register in [step.insn.memory_base(), step.insn.memory_index()] {
                if let Some(number) = gpr_number(register) {
                    uses[number as usize & 0xf] += 1;
                    explicit |= 1 << (number & 0xf);
                }
            }
            if let Some(plan) = &step.plan {
                fixed |= plan.gprs & !explicit | step.fixed;
            }
            match step.insn.mnemonic() {
                M::Leave => fixed |= 1 << crate::regs::RBP,
                M::Rdtsc | M::Rdtscp => fixed |= 1 << crate::regs::RCX | 1 << crate::regs::RDX,
                _ if strings::Single::of(&step.insn).is_some() => {
                    fixed |= 1 << crate::regs::RAX | 1 << crate::regs::RSI | 1 << crate::regs::RDI;
                }
                _ if strings::Kind::of(&step.insn).is_some() => {
                    fixed |= 1 << crate::regs::RCX | 1 << crate::regs::RSI | 1 << crate::regs::RDI;
                }
                _ => {}
            }
        }
        // A loop pays for the change once, anything else at every execution.
        let gain_min = if trace.loops { 1 } else { 4 };
        // RAX holds flags where they have to be kept.
        fixed |= 1;
        Mapping::choose(&uses, fixed, gain_min)
    }

    /// Loads a guest register that is in memory into a scratch register.
    pub(super) fn load_register(&mut self, scratch: u8, guest: u8) {
        if scratch == S1 {
            self.held = None;
        }
        self.e.gs_load(scratch, slot(guest));
    }

    /// The host register that holds a guest register, loading it into `scratch` if it is in memory.
    pub(super) fn read_register(&mut self, guest: u8, scratch: u8) -> u8 {
        match self.mapping.loc(guest) {
            Loc::Host(number) => number,
            Loc::Memory => {
                self.load_register(scratch, guest);
                scratch
            }
        }
    }
}

/// The general register of `size` bytes with this number; for bytes the low one.
pub(in crate::jit) fn host_register(size: usize, number: u8) -> Register {
    let first = match size {
        8 => Register::RAX,
        4 => Register::EAX,
        2 => Register::AX,
        // AL to BL, then AH to BH stand in between.
        _ if number >= 4 => return Register::SPL + (number as u32 - 4),
        _ => Register::AL,
    };
    first + number as u32
}
