//! A guest that computes with integers, vectors and x87 while its APIC timer ticks, and looks whether time ever
//! goes back. Its results do not depend on when the ticks come.

use iced_x86::code_asm::*;
use memory::{Bytes, GuestAddress, Ram};
use x86::apic;
use x86::apic::reg;
use x86::reg::{cr0, cr4, efer, rflags};
use x86::segment::Segment;
use x86::state::{CpuState, MpState, TableRegister, gpr, seg};

pub(crate) const MEMORY: u64 = 2 << 20;
pub(crate) const PORT_TICK: u16 = 0x80;
pub(crate) const PORT_DONE: u16 = 0x81;
/// Ticks that are waited for.
pub(crate) const TICKS: u32 = 40;

const CODE: u64 = 0x1000;
const GDT: u64 = 0x3000;
const IDT: u64 = 0x4000;
const VARIABLES: u64 = 0x6000;
const TABLE: u64 = 0x8000;
const STACK: u64 = 0xa000;
const PAGE_TABLES: u64 = 0x10000;

const TICK_COUNT: u64 = VARIABLES;
const LAST_TIME: u64 = VARIABLES + 8;
const BACKWARDS: u64 = VARIABLES + 16;
const SUM: u64 = VARIABLES + 24;
const X87: u64 = VARIABLES + 32;

const TURNS: u32 = 4000;
const FACTOR: i32 = 0x5851_f42d;
const SEED: u64 = 0x1234_5678_9abc_def0;
const VECTOR: u8 = 0x51;
/// Nanoseconds between ticks: the bus clock is 1 GHz, divided by 1.
const PERIOD: u32 = 1_000_000;

fn x2apic(register: u32) -> u32 {
    x86::msr::X2APIC_FIRST + (register >> 4)
}

/// The program, and where its interrupt handler is.
fn assemble() -> (Vec<u8>, u64) {
    let mut a = CodeAssembler::new(64).unwrap();
    let assembled = (|| -> Result<CodeLabel, IcedError> {
        let (mut turn, mut wait, mut forward, mut handler) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        let write_msr = |a: &mut CodeAssembler, number: u32, value: u32| -> Result<(), IcedError> {
            a.mov(ecx, number)?;
            a.mov(eax, value)?;
            a.xor(edx, edx)?;
            a.wrmsr()
        };
        write_msr(&mut a, x2apic(reg::SVR), 0x1ff)?;
        write_msr(&mut a, x2apic(reg::LVT_TIMER), 1 << 17 | u32::from(VECTOR))?;
        write_msr(&mut a, x2apic(reg::TIMER_DIVIDE), 0xb)?;
        write_msr(&mut a, x2apic(reg::TIMER_INITIAL), PERIOD)?;
        a.fninit()?;
        a.fldz()?;
        a.pxor(xmm1, xmm1)?;
        a.mov(r8, SEED)?;
        a.mov(r9d, TURNS)?;
        a.sti()?;

        a.set_label(&mut turn)?;
        a.imul_3(r8, r8, FACTOR)?;
        a.add(r8, r9)?;
        a.movq(xmm0, r8)?;
        a.paddq(xmm1, xmm0)?;
        a.mov(eax, r8d)?;
        a.and(eax, 0xff)?;
        a.mov(qword_ptr(rax * 8 + TABLE as i32), r8)?;
        // x87: the sum of the low 16 bits, which is exact.
        a.movzx(eax, r8w)?;
        a.mov(qword_ptr(SUM as i32), rax)?;
        a.fild(qword_ptr(SUM as i32))?;
        a.faddp(st1, st0)?;
        // Time.
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.cmp(rax, qword_ptr(LAST_TIME as i32))?;
        a.jae(forward)?;
        a.inc(qword_ptr(BACKWARDS as i32))?;
        a.set_label(&mut forward)?;
        a.mov(qword_ptr(LAST_TIME as i32), rax)?;
        a.dec(r9)?;
        a.jnz(turn)?;

        a.set_label(&mut wait)?;
        a.hlt()?;
        a.cmp(dword_ptr(TICK_COUNT as i32), TICKS as i32)?;
        a.jb(wait)?;
        a.cli()?;
        a.movq(qword_ptr(SUM as i32), xmm1)?;
        a.fistp(qword_ptr(X87 as i32))?;
        a.out(i32::from(PORT_DONE), al)?;
        a.hlt()?;

        a.set_label(&mut handler)?;
        a.push(rax)?;
        a.push(rcx)?;
        a.push(rdx)?;
        a.inc(dword_ptr(TICK_COUNT as i32))?;
        a.out(i32::from(PORT_TICK), al)?;
        write_msr(&mut a, x2apic(reg::EOI), 0)?;
        a.pop(rdx)?;
        a.pop(rcx)?;
        a.pop(rax)?;
        a.iretq()?;
        Ok(handler)
    })();
    let handler = assembled.unwrap();
    let code =
        a.assemble_options(CODE, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS).unwrap();
    let at = code.label_ip(&handler).unwrap();
    (code.inner.code_buffer, at)
}

/// Puts the program into memory; returns the processor's state before it, made from that after reset.
pub(crate) fn load(ram: &Ram, mut state: CpuState) -> CpuState {
    let (code, handler) = assemble();
    let guest = ram.guest();
    guest.write_slice(&code, GuestAddress(CODE)).unwrap();
    for (at, value) in [(0, PAGE_TABLES + 0x1003), (0x1000, PAGE_TABLES + 0x2003), (0x2000, 0x83u64)] {
        guest.write_obj(value, GuestAddress(PAGE_TABLES + at)).unwrap();
    }
    let gdt = [0u64, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    for (at, descriptor) in (GDT..).step_by(8).zip(gdt) {
        guest.write_obj(descriptor, GuestAddress(at)).unwrap();
    }
    let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler & 0xffff_0000) << 32;
    guest.write_obj([gate, handler >> 32], GuestAddress(IDT + 16 * u64::from(VECTOR))).unwrap();

    state.segments = [Segment::from_descriptor(16, gdt[2]); 6];
    state.segments[seg::CS] = Segment::from_descriptor(8, gdt[1]);
    state.tr = Segment::from_descriptor(0, 0x0000_8b00_0000_0067);
    state.gdtr = TableRegister { base: GDT, limit: 23 };
    state.idtr = TableRegister { base: IDT, limit: 0xfff };
    state.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::PG;
    state.cr3 = PAGE_TABLES;
    state.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    state.efer = efer::LME | efer::LMA;
    (state.rip, state.rflags) = (CODE, rflags::FIXED);
    state.gpr = [0; 16];
    state.gpr[gpr::RSP] = STACK;
    state.lapic.base |= apic::base::ENABLE | apic::base::X2APIC;
    state.lapic.registers[(reg::ID >> 4) as usize] = 0;
    state.lapic.registers[(reg::LDR >> 4) as usize] = 1;
    state.mp_state = MpState::Runnable;
    state
}

/// Looks at the results.
pub(crate) fn check(state: &CpuState, ram: &Ram) {
    let (mut value, mut vector, mut x87) = (SEED, 0u64, 0u64);
    let mut table = [0u64; 256];
    for turn in (1..=u64::from(TURNS)).rev() {
        value = value.wrapping_mul(FACTOR as u64).wrapping_add(turn);
        vector = vector.wrapping_add(value);
        table[(value & 0xff) as usize] = value;
        x87 += value & 0xffff;
    }
    let word = |at: u64| ram.load::<u64>(at).unwrap();
    assert_eq!(state.gpr[8], value, "integers");
    assert_eq!(word(SUM), vector, "vectors");
    assert_eq!(word(X87), x87, "x87");
    for (entry, at) in table.iter().zip((TABLE..).step_by(8)) {
        assert_eq!(word(at), *entry, "memory at {at:#x}");
    }
    assert_eq!(word(BACKWARDS), 0, "time went back");
    assert!(ram.load::<u32>(TICK_COUNT).unwrap() >= TICKS);
}
