//! Code of 32 bits, translated: that it is, and that it does what its handlers do.

use crate::testing::{Machine, Mode, Outcome, Page, UserState};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub(super) const CODE: u64 = 0x40_0000;
pub(super) const DATA: u64 = 0x80_0000;
pub(super) const STACK: u64 = 0xc0_0000;

pub(super) fn machine(mode: Mode, code: &[u8]) -> Machine {
    let page = |linear, writable| Page { linear, writable };
    let pages = [page(CODE, false), page(DATA, true), page(STACK, true)];
    let cpuid = x86::cpuid::build("x86-64-v3", 1, 1_000_000_000).unwrap();
    let mut machine = Machine::new(mode, cpuid, &pages);
    machine.write(CODE, code);
    // HLT ends the trace.
    machine.write(CODE + code.len() as u64, &[0xf4]);
    machine
}

pub(super) fn start() -> UserState {
    let mut gpr = [0; 16];
    gpr[4] = STACK + 0x800;
    UserState { gpr, rip: CODE, rflags: 0x202, mxcsr: 0x1f80, ymm: [[0; 4]; 16], x87: [0; 160] }
}

/// Executes code, interpreted and translated; what it leaves in registers and data must be the same.
fn both(code: &[u8]) -> (Machine, UserState) {
    let end = CODE + code.len() as u64;
    let mut interpreted = machine(Mode::Compat32, code);
    interpreted.set_state(&start());
    while interpreted.state().rip != end {
        assert_eq!(interpreted.step(), Outcome::Completed);
    }
    let mut translated = machine(Mode::Compat32, code);
    translated.set_state(&start());
    while translated.state().rip != end {
        assert_eq!(translated.run_translated(end), Outcome::Completed);
    }
    let (expected, state) = (interpreted.state(), translated.state());
    assert_eq!(expected, state);
    let (mut before, mut after) = ([0; 4096], [0; 4096]);
    for page in [DATA, STACK] {
        interpreted.read(page, &mut before);
        translated.read(page, &mut after);
        assert_eq!(before, after);
    }
    (translated, state)
}

fn assemble(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(32).unwrap();
    write(&mut a).unwrap();
    a.assemble(CODE).unwrap()
}

#[test]
fn a_program_with_calls_loops_and_moves_is_translated() {
    let data = DATA as u32;
    let code = assemble(|a| {
        let (mut turn, mut function, mut end) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(ecx, 500)?;
        a.xor(eax, eax)?;
        a.set_label(&mut turn)?;
        a.push(ecx)?;
        a.push(7)?;
        a.call(function)?;
        a.add(esp, 4)?;
        a.pop(ecx)?;
        a.mov(dword_ptr(data + 8), eax)?;
        a.mov(ebx, dword_ptr(data + 8))?;
        // Sums that wrap around.
        a.mov(edx, -1i32)?;
        a.mov(dword_ptr(edx + (data as i32 + 1)), ecx)?;
        a.lea(esi, ptr(eax + edx * 8 + 0x7000_0000))?;
        a.inc(bx)?;
        a.mov(bh, al)?;
        a.dec(ecx)?;
        a.jne(turn)?;
        a.jmp(end)?;
        a.set_label(&mut function)?;
        a.push(ebp)?;
        a.mov(ebp, esp)?;
        a.add(eax, dword_ptr(ebp + 8))?;
        a.imul_3(eax, eax, 3)?;
        a.leave()?;
        a.ret()?;
        a.set_label(&mut end)?;
        a.nop()
    });
    let (machine, state) = both(&code);
    assert_eq!(state.gpr[1], 0, "the loop ends");
    assert!(machine.counter("translations") >= 2, "it is translated");
    // Neither stack nor memory takes a handler; the data of the first access to each page does.
    assert!(machine.counter("callouts") < 20, "{}", machine.counter("callouts"));
}

#[test]
fn single_moves_and_stores_are_translated_and_go_either_way() {
    let (from, to) = (DATA as i32, DATA as i32 + 0x400);
    let code = assemble(|a| {
        let (mut fill, mut copy, mut back) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(edi, from)?;
        a.mov(ecx, 300)?;
        a.set_label(&mut fill)?;
        a.lea(eax, ptr(ecx + ecx * 4))?;
        a.stosb()?;
        a.dec(ecx)?;
        a.jne(fill)?;
        a.mov(esi, from)?;
        a.mov(edi, to)?;
        a.set_label(&mut copy)?;
        a.movsb()?;
        a.movsw()?;
        a.cmp(esi, from + 300)?;
        a.jb(copy)?;
        a.lodsd()?;
        // Downwards their handlers do them.
        a.std()?;
        a.mov(ecx, 20)?;
        a.set_label(&mut back)?;
        a.movsd()?;
        a.dec(ecx)?;
        a.jne(back)?;
        a.cld()?;
        a.nop()
    });
    let (machine, _) = both(&code);
    assert!(machine.counter("callouts") < 100, "{}", machine.counter("callouts"));
}

#[test]
fn addresses_of_sixteen_bits_and_other_segments_are_left_to_handlers() {
    let code = assemble(|a| {
        a.mov(eax, cs)?;
        a.push(ds)?;
        a.pop(edx)?;
        a.mov(ecx, dword_ptr(CODE as u32).cs())?;
        a.pusha()?;
        a.popa()?;
        // LEA CX, [BX + SI + 5]
        a.mov(ebx, 0x1_fff0)?;
        a.mov(esi, 0x2_0030)?;
        a.db(&[0x67, 0x66, 0x8d, 0x48, 0x05])?;
        a.nop()
    });
    let (_, state) = both(&code);
    assert_eq!(state.gpr[1] as u16, 0x25);
}
