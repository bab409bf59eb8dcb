//! Accesses of a trace that one check serves: their addresses differ by constants.
//!
//! The address registers of a trace are followed as *values*: a value gets a new number where a register
//! is set to something unknown, and keeps it, with another offset, where a constant is added or it is copied. Accesses with
//! the same values, close to each other, form a group. The group is checked once, for the whole range,
//! where no flags matter if there is such a place; if that fails, the careful translation
//! goes on, which checks each access. See [`crate::mmu::guess`].

use super::guessing::Guessing;
use super::trace::Step;
use super::way::Way;
use crate::block::decode::gpr_number;
use crate::native::classify::{Memory, Plan};
use crate::regs::{RBP, RSP};
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

/// Longest range of a group in bytes: the longer, the more often it crosses a page.
const SPAN_MAX: i64 = 256;
/// The same for what lies on the stack.
const STACK_SPAN_MAX: i64 = 1024;
/// How many groups back an access looks for its own.
const BACK_MAX: usize = 12;
/// Offsets beyond this are not followed.
const OFFSET_MAX: i64 = 1 << 20;
/// Nor are accesses with displacements beyond this grouped: sums have to fit.
const DISPLACEMENT_MAX: i64 = 1 << 30;

/// The registers of an address, without what is added to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    /// `None`, RIP, or a general register.
    pub(super) base: Register,
    pub(super) index: Register,
    pub(super) scale: u8,
    /// FS, GS, or none.
    pub(super) segment: Register,
    /// The sum is cut to 32 bits.
    pub(super) narrow: bool,
}

impl Form {
    /// A register and nothing else.
    pub(super) fn register(base: Register) -> Form {
        Form { base, index: Register::None, scale: 0, segment: Register::None, narrow: base.size() == 4 }
    }

    /// The form of an instruction's memory operand.
    pub(super) fn of(insn: &Instruction) -> Form {
        let segment = match insn.memory_segment() {
            segment @ (Register::FS | Register::GS) => segment,
            _ => Register::None,
        };
        let scale = insn.memory_index_scale().trailing_zeros() as u8;
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let narrow = match (base, index) {
            (Register::None, Register::None) => insn.memory_displ_size() == 4,
            _ => base.size() == 4 || index.size() == 4,
        };
        Form { base, index, scale, segment, narrow }
    }

    /// Whether the sum is 64 bits wide.
    pub(super) fn is_wide(&self) -> bool {
        !self.narrow
    }
}

/// Accesses that are checked together.
pub(crate) struct Group {
    key: [u64; 3],
    /// Lowest and highest offset from the values of the key.
    low: i64,
    high: i64,
    pub(super) write: bool,
    /// What the lowest address has to be a multiple of.
    pub(super) align: u8,
    /// The step before which it is checked.
    pub(super) check_at: usize,
    pub(super) form: Form,
    /// The displacement from the registers of `form` there to offset 0.
    displacement: i64,
    /// Offset in the page of the first instruction, by which the group is known to be often wrong.
    pub(super) first: u16,
    /// The last step that it serves.
    pub(super) last: usize,
    /// It has one access.
    pub(super) single: bool,
    /// Whether its page is to be guessed, as far as experience tells.
    pub(super) guessing: Option<Guessing>,
}

impl Group {
    /// Whether its page is not to be guessed but looked up.
    pub(super) fn looked_up(&self) -> bool {
        self.guessing == Some(Guessing::Never)
    }

    /// Length of the range in bytes.
    pub(super) fn span(&self) -> i32 {
        (self.high - self.low) as i32
    }

    /// Displacement of the lowest address where it is checked.
    pub(super) fn low_displacement(&self) -> i32 {
        (self.displacement + self.low) as i32
    }

    fn takes(&self, key: [u64; 3], access: &Access) -> bool {
        let (low, high) = self.with(access);
        let span_max = if self.form.base == Register::RSP { STACK_SPAN_MAX } else { SPAN_MAX };
        let congruent = access.align <= 1
            || self.align <= 1
            || (access.offset - self.low) % self.align.min(access.align) as i64 == 0;
        self.key == key && high - low <= span_max && congruent
    }

    /// The range with one access more.
    fn with(&self, access: &Access) -> (i64, i64) {
        let low = self.low.min(access.offset);
        let align = self.align.max(access.align).max(1) as i64;
        let aligned = if access.align > self.align { access.offset } else { self.low };
        // The lowest address is one that has to be aligned.
        let low = if align > 1 { aligned - (aligned - low + align - 1) / align * align } else { low };
        (low, self.high.max(access.offset + access.len))
    }
}

struct Access {
    form: Form,
    displacement: i64,
    /// From the values of the key.
    offset: i64,
    len: i64,
    write: bool,
    align: u8,
    /// Shares its group with no other: its address is cut to 32 bits, or its displacement is large.
    alone: bool,
}

/// What a register holds: a numbered value and what has been added to it.
#[derive(Clone, Copy)]
struct Value {
    number: u32,
    offset: i64,
    /// The step before which the register first held this number.
    since: u32,
    /// It came from the stack pointer.
    stack: bool,
}

/// The groups of a trace.
#[derive(Default)]
pub(crate) struct Groups {
    pub(crate) list: Vec<Group>,
    /// For each step the group of its memory operand, and that of its stack access.
    pub(super) of_step: Vec<[Option<u16>; 2]>,
    /// Offsets of all values before each step.
    history: Vec<[i32; 16]>,
}

impl Groups {
    /// Forgets them, but keeps the memory.
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.of_step.clear();
        self.history.clear();
    }
}

struct Analysis {
    values: [Value; 16],
    next: u32,
    /// Offsets of all values before each step.
    history: Vec<[i32; 16]>,
    /// The first step that a check may stand before: after the last callout.
    barrier: usize,
    /// The same for anything that is not on the stack: after the last branch out.
    branch: usize,
    /// The same for what is on the stack: after the last branch back to the head.
    loop_branch: usize,
    /// Where the head is.
    head: u64,
    /// Only what is relative to the stack pointer is grouped.
    stack_only: bool,
}

/// Finds the groups; with `stack_only` those of accesses relative to the stack pointer only.
pub(super) fn find(groups: &mut Groups, steps: &[Step], stack_only: bool) {
    groups.clear();
    let value = Value { number: 0, offset: 0, since: 0, stack: false };
    let history = std::mem::take(&mut groups.history);
    let head = steps[0].offset as u64;
    let mut analysis = Analysis {
        values: [value; 16],
        next: 1,
        history,
        barrier: 0,
        branch: 0,
        loop_branch: 0,
        head,
        stack_only,
    };
    analysis.forget_all(0);
    for (index, step) in steps.iter().enumerate() {
        analysis.history.push(analysis.values.map(|value| value.offset as i32));
        let mut found = [None; 2];
        for (slot, access) in [explicit(step), stack(step)].into_iter().enumerate() {
            if let Some(mut access) = access {
                found[slot] = analysis.place(&mut groups.list, steps, index, &mut access);
            }
        }
        groups.of_step.push(found);
        analysis.follow(index, step);
    }
    groups.history = analysis.history;
}

impl Analysis {
    fn forget(&mut self, register: usize, since: usize) {
        self.values[register] =
            Value { number: self.next, offset: 0, since: since as u32, stack: register == RSP };
        self.next += 1;
    }

    fn forget_all(&mut self, since: usize) {
        (0..16).for_each(|register| self.forget(register, since));
        self.barrier = since;
    }

    fn value(&self, register: Register) -> Option<Value> {
        gpr_number(register).map(|number| self.values[number as usize & 0xf])
    }

    /// The group of an access, made if there is none; `None` for an access that is checked by itself.
    fn place(
        &mut self,
        list: &mut Vec<Group>,
        steps: &[Step],
        index: usize,
        access: &mut Access,
    ) -> Option<u16> {
        let Form { base, index: index_register, scale, segment, .. } = access.form;
        let (base_value, index_value) = (self.value(base), self.value(index_register));
        let on_stack = base_value.is_some_and(|value| value.stack)
            && index_value.is_none()
            && segment == Register::None
            && !access.alone;
        if self.stack_only && !on_stack {
            return None;
        }
        access.offset = access.displacement
            + base_value.map_or(0, |value| value.offset)
            + index_value.map_or(0, |value| value.offset << scale);
        let first = match base_value {
            Some(value) => 1 << 32 | value.number as u64,
            None => base as u64,
        };
        let second = index_value.map_or(0, |value| 1 << 32 | (value.number as u64) << 2 | scale as u64);
        let mut key = [first, second, segment as u64];
        if access.alone {
            key[2] = 1 << 32 | self.next as u64;
            self.next += 1;
        }
        let open = list.len().saturating_sub(BACK_MAX);
        // After a callout nothing that was checked before holds.
        let found = (open..list.len())
            .rev()
            .find(|&at| list[at].check_at >= self.barrier && list[at].takes(key, access));
        if let Some(at) = found {
            let group = &mut list[at];
            (group.low, group.high) = group.with(access);
            group.write |= access.write;
            group.align = group.align.max(access.align);
            group.last = index;
            group.single = false;
            return Some(at as u16);
        }
        let since = [base_value, index_value].into_iter().flatten().map(|value| value.since as usize).max();
        let mut earliest = since.unwrap_or(0).max(self.barrier);
        earliest = earliest.max(if base == Register::RSP { self.loop_branch } else { self.branch });
        if access.alone {
            earliest = index;
        }
        let dead = |&at: &usize| !steps[at].needs_flags();
        let check_at = (earliest..=index).rev().find(dead).unwrap_or(index);
        let then = |register: Register| match gpr_number(register) {
            Some(number) => self.history[check_at][number as usize & 0xf] as i64,
            None => 0,
        };
        let mut group = Group {
            key,
            low: access.offset,
            high: access.offset + access.len,
            write: access.write,
            align: access.align,
            check_at,
            form: access.form,
            displacement: -then(base) - (then(index_register) << scale),
            first: steps[index].offset,
            last: index,
            single: true,
            guessing: None,
        };
        if access.alone {
            (group.low, group.high) = (access.displacement, access.displacement + access.len);
            group.displacement = 0;
        }
        list.push(group);
        Some(list.len() as u16 - 1)
    }

    /// What the registers hold after a step.
    fn follow(&mut self, index: usize, step: &Step) {
        let insn = &step.insn;
        match step.way {
            Way::Nothing | Way::Depart => {}
            Way::Native => self.follow_native(index, insn, step.plan.as_ref()),
            Way::Special => match insn.mnemonic() {
                M::Push | M::Pushfq => self.add(RSP, -8, index),
                M::Pop => {
                    self.add(RSP, 8, index);
                    if let Some(number) = gpr_number(insn.op0_register()) {
                        self.forget(number as usize & 0xf, index + 1);
                    }
                }
                M::Leave => {
                    self.copy(RSP, RBP, 8, index);
                    self.forget(RBP, index + 1);
                }
                _ if insn.is_jcc_short_or_near() => {
                    self.branch = index + 1;
                    if insn.near_branch_target() == self.head {
                        self.loop_branch = index + 1;
                    }
                }
                M::Jmp | M::Call | M::Ret | M::Cli | M::Sti | M::Vzeroupper => {}
                M::Bt | M::Bts | M::Btr | M::Btc | M::Wrfsbase | M::Wrgsbase => {}
                M::Mov | M::Rdfsbase | M::Rdgsbase => {
                    if let Some(number) = gpr_number(insn.op0_register()) {
                        self.forget(number as usize & 0xf, index + 1);
                    }
                }
                _ => self.forget_all(index + 1),
            },
            _ => self.forget_all(index + 1),
        }
    }

    fn follow_native(&mut self, index: usize, insn: &Instruction, plan: Option<&Plan>) {
        let target = insn.op0_register();
        let number = gpr_number(target).map(|number| number as usize & 0xf);
        let wide = insn.op0_kind() == OpKind::Register && target.is_gpr64();
        if let Some(number) = number.filter(|_| wide) {
            let immediate = || insn.immediate(1) as i64;
            let constant =
                insn.op_count() == 2 && !matches!(insn.op1_kind(), OpKind::Register | OpKind::Memory);
            match insn.mnemonic() {
                M::Mov if insn.op1_kind() == OpKind::Register && insn.op1_register().is_gpr64() => {
                    let from = gpr_number(insn.op1_register()).expect("a general register");
                    return self.copy(number, from as usize, 0, index);
                }
                M::Lea if insn.memory_index() == Register::None && insn.memory_base().is_gpr64() => {
                    let from = gpr_number(insn.memory_base()).expect("a general register");
                    let displacement = insn.memory_displacement64() as i64;
                    return self.copy(number, from as usize, displacement, index);
                }
                M::Add if constant => return self.add(number, immediate(), index),
                M::Sub if constant => return self.add(number, immediate().wrapping_neg(), index),
                M::Inc => return self.add(number, 1, index),
                M::Dec => return self.add(number, -1, index),
                _ => {}
            }
        }
        match plan {
            Some(plan) => {
                for register in (0..16).filter(|register| plan.gprs_written & 1 << register != 0) {
                    self.forget(register, index + 1);
                }
            }
            // LEA has no plan.
            None => number.into_iter().for_each(|number| self.forget(number, index + 1)),
        }
    }

    fn add(&mut self, register: usize, amount: i64, index: usize) {
        let offset = self.values[register].offset.saturating_add(amount);
        match offset.abs() < OFFSET_MAX {
            true => self.values[register].offset = offset,
            false => self.forget(register, index + 1),
        }
    }

    fn copy(&mut self, to: usize, from: usize, amount: i64, index: usize) {
        let since = if to == from { self.values[from].since } else { index as u32 + 1 };
        self.values[to] = Value { since, ..self.values[from] };
        self.add(to, amount, index);
    }
}

/// The memory operand of a step, if translated code accesses it.
fn explicit(step: &Step) -> Option<Access> {
    let insn = &step.insn;
    let (len, write, align) = match (step.way, &step.plan) {
        (Way::Native, Some(plan)) if plan.memory != Memory::None => {
            let aligned = plan.align as usize >= plan.size as usize && plan.align > 1;
            (plan.size as i64, plan.memory != Memory::Read, if aligned { plan.size as u8 } else { 1 })
        }
        (Way::Special, _)
            if matches!(insn.mnemonic(), M::Jmp | M::Call | M::Push) && insn.op0_kind() == OpKind::Memory =>
        {
            (8, false, 1)
        }
        _ => return None,
    };
    let form = Form::of(insn);
    let displacement = insn.memory_displacement64() as i64;
    let alone = !form.is_wide() || displacement.abs() > DISPLACEMENT_MAX;
    Some(Access { form, displacement, offset: 0, len, write, align, alone })
}

/// The access of a step to the stack.
fn stack(step: &Step) -> Option<Access> {
    if step.way != Way::Special {
        return None;
    }
    let (base, displacement, write) = match step.insn.mnemonic() {
        M::Push | M::Pushfq | M::Call => (Register::RSP, -8, true),
        M::Pop | M::Ret => (Register::RSP, 0, false),
        M::Leave => (Register::RBP, 0, false),
        _ => return None,
    };
    Some(Access {
        form: Form::register(base),
        displacement,
        offset: 0,
        len: 8,
        write,
        align: 1,
        alone: false,
    })
}
