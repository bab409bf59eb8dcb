//! Instructions that execute as themselves, with registers renamed and their memory operand replaced.

use super::Translator;
use super::lookup::Free;
use super::registers::host_register;
use crate::block::decode::gpr_number;
use crate::jit::emit::{Emit, Operand};
use crate::jit::groups::Form;
use crate::jit::mapping::{Loc, S0, S1, slot};
use crate::jit::reencode::{Registers, reencode};
use crate::jit::state::Site;
use crate::jit::trace::Step;
use crate::native::classify::{Class, Memory, Plan};
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

impl Translator {
    pub(super) fn native(&mut self, step: &Step) {
        let insn = &step.insn;
        if insn.mnemonic() == M::Lea {
            return self.lea(step);
        }
        if matches!(insn.mnemonic(), M::Div | M::Idiv) {
            return self.divide(step);
        }
        let plan = step.plan.as_ref().expect("native instructions have a plan");
        let memory = plan.memory != Memory::None;
        // Registers that live in memory, other than those of the address.
        let mut absent: Vec<u8> = Vec::new();
        for n in 0..insn.op_count() {
            if insn.op_kind(n) == OpKind::Register
                && let Some(number) = gpr_number(insn.op_register(n))
                && self.mapping.loc(number & 0xf) == Loc::Memory
                && !absent.contains(&(number & 0xf))
            {
                absent.push(number & 0xf);
            }
        }
        let scratch: &[u8] = if memory { &[S1] } else { &[S0, S1] };
        if absent.len() > scratch.len() {
            return self.callout(step);
        }
        // Where its registers are for the host.
        let mut names = [0; 16];
        for n in 0..insn.op_count() {
            if insn.op_kind(n) == OpKind::Register
                && let Some(number) = gpr_number(insn.op_register(n))
            {
                let guest = number & 0xf;
                names[guest as usize] = match self.mapping.loc(guest) {
                    Loc::Host(to) => to,
                    Loc::Memory => scratch[absent.iter().position(|&a| a == guest).expect("listed")],
                };
            }
        }
        let mut replaced_operand = None;
        let after = self.e.label();
        if memory {
            let aligned = plan.align as usize >= plan.size as usize && plan.align > 1;
            let site = Site::new(
                step.offset,
                self.mapping,
                plan.size as usize,
                plan.memory != Memory::Read,
                aligned,
            );
            let keep = step.needs_flags();
            let free = if absent.is_empty() { Free::Nothing } else { Free::S1 };
            let displacement = insn.memory_displacement64() as i32;
            let operand = self.operand((Form::of(insn), displacement), 0, free, (site, keep, after));
            replaced_operand = Some(operand);
        }
        if self.encode_step(step, plan, names, replaced_operand) {
            let replaced = replaced_register(insn);
            for (&guest, &register) in absent.iter().zip(scratch) {
                if replaced == Some(guest) {
                    if register == S1 {
                        self.held = None;
                    }
                } else {
                    self.load_register(register, guest);
                }
            }
            let encoded = std::mem::take(&mut self.encoded);
            self.e.bytes(&encoded);
            self.encoded = encoded;
            for (&guest, &register) in absent.iter().zip(scratch) {
                if plan.gprs_written & 1 << guest != 0 {
                    self.e.gs_store(slot(guest), register);
                }
            }
        } else {
            // What cannot be encoded so, its handler does.
            self.callout(step);
        }
        self.e.bind(after);
    }

    pub(super) fn lea(&mut self, step: &Step) {
        let insn = &step.insn;
        let guest = gpr_number(insn.op0_register()).expect("LEA has a register");
        let size = insn.op0_register().size();
        // A segment prefix means nothing to LEA.
        let form = Form { segment: Register::None, ..Form::of(insn) };
        let displacement = insn.memory_displacement64() as i32;
        if let Loc::Host(to) = self.mapping.loc(guest)
            && size >= 4
            && self.lea_directly(to, size == 8, form, displacement)
        {
            return;
        }
        self.address(form, displacement);
        self.put_register(guest, size);
    }

    /// Writes S0 to a guest register of `size` bytes, at least two. Uses S1.
    pub(super) fn put_register(&mut self, guest: u8, size: usize) {
        match (self.mapping.loc(guest), size) {
            (Loc::Host(to), 8) => self.e.mov(to, S0),
            (Loc::Host(to), 4) => self.e.mov32(to, S0),
            (Loc::Memory, 8) => self.e.gs_store(slot(guest), S0),
            (Loc::Memory, 4) => {
                self.e.mov32(S0, S0);
                self.e.gs_store(slot(guest), S0);
            }
            (loc, _) => {
                // 16 bits: the rest of the register stays.
                let to = match loc {
                    Loc::Host(to) => to,
                    Loc::Memory => {
                        self.load_register(S1, guest);
                        S1
                    }
                };
                // mov to16, r14w
                self.e.bytes(&[0x66, 0x44 | to >> 3, 0x89, 0xc0 | (S0 & 7) << 3 | to & 7]);
                if loc == Loc::Memory {
                    self.e.gs_store(slot(guest), S1);
                }
            }
        }
    }

    /// BT and its kin with a memory operand and a bit number in a register, which reaches beyond the operand.
    pub(super) fn bit_string(&mut self, step: &Step) {
        let insn = &step.insn;
        let guest = gpr_number(insn.op1_register()).expect("a general register");
        let size = insn.op1_register().size();
        let Loc::Host(number) = self.mapping.loc(guest) else { return self.callout(step) };
        let mut new = *insn;
        set_operand(&mut new, Operand::at(S0));
        new.set_op_register(1, host_register(size, number));
        if !self.encode(&new) {
            return self.callout(step);
        }
        let bits = size.trailing_zeros() as u8 + 3;
        let index = |e: &mut Emit| {
            // S1 is the number of the element, signed.
            e.mov_imm(S1, bits as u64);
            e.sarx(size == 8, S1, number, S1);
            if size == 4 {
                e.movsxd(S1, S1);
            }
        };
        self.address(Form::of(insn), insn.memory_displacement64() as i32);
        self.held = None;
        index(&mut self.e);
        self.e.lea(true, S0, Some(S0), Some((S1, bits - 3)), 0);
        let writes = insn.mnemonic() != M::Bt;
        let site = Site::new(step.offset, self.mapping, size, writes, false);
        let after = self.e.label();
        self.look_up(site, step.needs_flags(), after);
        // The host's instruction adds the distance again.
        index(&mut self.e);
        self.e.not(S1);
        self.e.lea(true, S0, Some(S0), Some((S1, bits - 3)), size as i32);
        let encoded = std::mem::take(&mut self.encoded);
        self.e.bytes(&encoded);
        self.encoded = encoded;
        self.e.bind(after);
    }

    /// LEA whose registers are all in host registers.
    fn lea_directly(&mut self, to: u8, wide: bool, form: Form, displacement: i32) -> bool {
        let register = |register: Register| match gpr_number(register) {
            Some(guest) => match self.mapping.loc(guest) {
                Loc::Host(number) => Some(Some(number)),
                Loc::Memory => None,
            },
            None => Some(None),
        };
        let (Some(base), Some(index)) = (register(form.base), register(form.index)) else { return false };
        // Cut to 32 bits and then extended is the same as cut once.
        if form.base == Register::RIP || (base, index) == (None, None) {
            return false;
        }
        self.e.lea(wide && form.is_wide(), to, base, index.map(|index| (index, form.scale)), displacement);
        true
    }

    /// Puts a native instruction into `encoded`, with its registers where `names` says and its memory operand replaced;
    /// false if it cannot be encoded.
    fn encode_step(&mut self, step: &Step, plan: &Plan, names: [u8; 16], operand: Option<Operand>) -> bool {
        let insn = &step.insn;
        let registers = || {
            let operands = (0..insn.op_count()).filter(|n| insn.op_kind(*n) == OpKind::Register);
            operands.map(|n| insn.op_register(n))
        };
        if !self.key.compat() {
            let numbers = || registers().filter_map(gpr_number);
            let kept = numbers().all(|number| names[number as usize & 0xf] == number & 0xf);
            let high = numbers().any(|number| number >= crate::regs::HIGH);
            let registers_of = match kept {
                true => Some(Registers::Kept),
                false if plan.class == Class::Plain && !high => Some(Registers::Renamed(names)),
                false => None,
            };
            let is_byte = registers().any(Register::is_gpr8);
            self.encoded.clear();
            let source = &step.bytes[..insn.len()];
            if let Some(registers) = registers_of
                && reencode(&mut self.encoded, source, registers, operand, is_byte)
            {
                return true;
            }
        }
        let mut new = *insn;
        for (n, register) in (0..insn.op_count()).map(|n| (n, insn.op_register(n))) {
            if insn.op_kind(n) == OpKind::Register
                && let Some(number) = gpr_number(register).filter(|number| *number < crate::regs::HIGH)
            {
                new.set_op_register(n, host_register(register.size(), names[number as usize]));
            }
        }
        if let Some(operand) = operand {
            set_operand(&mut new, operand);
        }
        self.encode(&new)
    }

    /// Puts the bytes of an instruction, which do not depend on its place, into `encoded`; false if it cannot be
    /// encoded.
    fn encode(&mut self, insn: &Instruction) -> bool {
        let mut buffer = std::mem::take(&mut self.encoded);
        buffer.clear();
        self.encoder.set_buffer(buffer);
        let result = self.encoder.encode(insn, 0);
        self.encoded = self.encoder.take_buffer();
        result.is_ok()
    }
}

/// The general register that an instruction sets without regard to what it held, if that is known.
fn replaced_register(insn: &Instruction) -> Option<u8> {
    let moves = matches!(insn.mnemonic(), M::Mov | M::Movzx | M::Movsx | M::Movsxd);
    let target = insn.op0_register();
    let whole = insn.op0_kind() == OpKind::Register && target.size() >= 4;
    // Moved to itself it counts as read.
    let other =
        insn.op1_kind() != OpKind::Register || insn.op1_register().full_register() != target.full_register();
    if moves && whole && other { gpr_number(target) } else { None }
}

/// Replaces the memory operand.
pub(in crate::jit) fn set_operand(insn: &mut Instruction, operand: Operand) {
    insn.set_memory_base(host_register(8, operand.base));
    insn.set_memory_index(operand.index.map_or(Register::None, |index| host_register(8, index)));
    insn.set_memory_index_scale(1);
    insn.set_memory_displacement64(operand.displacement as i64 as u64);
    let size = match operand.displacement {
        0 => 0,
        small if small as i8 as i32 == small => 1,
        _ => 8,
    };
    insn.set_memory_displ_size(size);
    insn.set_segment_prefix(Register::None);
}
