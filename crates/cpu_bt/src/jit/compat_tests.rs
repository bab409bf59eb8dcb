//! Code of 32 bits, translated: that it is, that it does what its handlers do, and that it never meets code of another
//! kind at its addresses.

use crate::testing::{Machine, Mode, Outcome, Page, UserState};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x80_0000;
const STACK: u64 = 0xc0_0000;

fn machine(mode: Mode, code: &[u8]) -> Machine {
    let page = |linear, writable| Page { linear, writable };
    let pages = [page(CODE, false), page(DATA, true), page(STACK, true)];
    let cpuid = x86::cpuid::build("x86-64-v3", 1, 1_000_000_000).unwrap();
    let mut machine = Machine::new(mode, cpuid, &pages);
    machine.write(CODE, code);
    // HLT ends the trace.
    machine.write(CODE + code.len() as u64, &[0xf4]);
    machine
}

fn start() -> UserState {
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

/// What is remembered of an instruction depends on its segment, too.
#[test]
fn strings_of_another_segment_are_not_taken_for_usual_ones() {
    let mut a = CodeAssembler::new(64).unwrap();
    for segment in [false, true] {
        a.mov(esi, DATA as u32).unwrap();
        a.mov(edi, DATA as u32 + 0x100).unwrap();
        a.mov(ecx, 8).unwrap();
        match segment {
            false => a.rep().movsb().unwrap(),
            // REP MOVSB with FS
            true => a.db(&[0x64, 0xf3, 0xa4]).unwrap(),
        }
        a.cmp(ecx, 1).unwrap();
    }
    a.nop().unwrap();
    let code = a.assemble(CODE).unwrap();
    let mut machine = machine(Mode::Long64, &code);
    machine.set_state(&start());
    let end = CODE + code.len() as u64;
    while machine.state().rip != end {
        assert_eq!(machine.run_translated(end), Outcome::Completed);
    }
    assert_eq!(machine.state().gpr[6], DATA + 8);
}

/// Functions in two pages of one program, of which one is called with vector exceptions unmasked: the translation
/// made for masked ones must not be found, since it would raise them on the host.
#[test]
fn unmasked_vector_exceptions_are_the_guests() {
    let far = DATA;
    let mut a = CodeAssembler::new(64).unwrap();
    let mut turn = a.create_label();
    a.mov(ecx, 200).unwrap();
    a.set_label(&mut turn).unwrap();
    a.mov(rax, far).unwrap();
    a.call(rax).unwrap();
    a.dec(ecx).unwrap();
    a.jne(turn).unwrap();
    // Division by zero is unmasked, and done.
    a.mov(dword_ptr(STACK as u32), 0x1d80).unwrap();
    a.ldmxcsr(dword_ptr(STACK as u32)).unwrap();
    a.mov(ecx, 50).unwrap();
    a.mov(rax, far).unwrap();
    a.xorps(xmm1, xmm1).unwrap();
    a.call(rax).unwrap();
    a.nop().unwrap();
    let code = a.assemble(CODE).unwrap();
    let mut machine = machine(Mode::Long64, &code);
    let mut function = CodeAssembler::new(64).unwrap();
    function.divsd(xmm0, xmm1).unwrap();
    function.ret().unwrap();
    machine.write(far, &function.assemble(far).unwrap());
    let mut state = start();
    state.ymm[0][0] = 1.0f64.to_bits();
    state.ymm[1][0] = 1.0f64.to_bits();
    machine.set_state(&state);
    let end = CODE + code.len() as u64;
    let outcome = loop {
        match machine.run_translated(end) {
            Outcome::Completed if machine.state().rip != end => {}
            outcome => break outcome,
        }
    };
    let Outcome::Exception { vector: 19, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(machine.state().rip, far);
}

/// Indirect jumps find code by the low 16 bits of where they lead. What stands there may be other code, which does not
/// need the flags that the right one needs.
#[test]
fn flags_live_through_a_jump_that_meets_other_code_first() {
    let (near, far) = (CODE + 0x100, CODE + 0x1_0100);
    let page = |linear, writable| Page { linear, writable };
    let pages = [page(CODE, false), page(CODE + 0x1_0000, false), page(DATA, true), page(STACK, true)];
    let cpuid = x86::cpuid::build("x86-64-v3", 1, 1_000_000_000).unwrap();
    let mut machine = Machine::new(Mode::Long64, cpuid, &pages);
    let mut a = CodeAssembler::new(64).unwrap();
    a.cmp(r8d, 0).unwrap();
    a.jmp(rbx).unwrap();
    machine.write(CODE, &a.assemble(CODE).unwrap());
    // Needs no flags, for it sets them all.
    let mut a = CodeAssembler::new(64).unwrap();
    a.xor(eax, eax).unwrap();
    a.hlt().unwrap();
    machine.write(near, &a.assemble(near).unwrap());
    // Needs them.
    let mut a = CodeAssembler::new(64).unwrap();
    a.setg(cl).unwrap();
    a.seto(dl).unwrap();
    a.mov(eax, 2).unwrap();
    a.hlt().unwrap();
    let code = a.assemble(far).unwrap();
    machine.write(far, &code);
    let mut go = |target: u64, end: u64, value: u64| {
        let mut state = start();
        (state.gpr[3], state.gpr[8]) = (target, value);
        machine.set_state(&state);
        while machine.state().rip != end {
            assert_eq!(machine.run_translated(end), Outcome::Completed);
        }
        machine.state().gpr
    };
    // The one that was found last stands in the table.
    go(far, far + code.len() as u64 - 1, 1);
    for value in [0, 1, u32::MAX as u64, 5] {
        go(near, near + 2, 1);
        let gpr = go(far, far + code.len() as u64 - 1, value);
        assert_eq!((gpr[0], gpr[1], gpr[2]), (2, (value as i32 > 0) as u64, 0), "{value:#x}");
    }
}
