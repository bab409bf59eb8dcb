//! What is remembered of code is never taken for other code: of another segment, of another mode, at another address.

use super::compat_tests::{CODE, DATA, STACK, machine, start};
use crate::testing::{Machine, Mode, Outcome, Page};
use iced_x86::code_asm::*;

/// Executes translated code until it comes to `end`.
fn run_to(machine: &mut Machine, end: u64) {
    while machine.state().rip != end {
        assert_eq!(machine.run_translated(end), Outcome::Completed);
    }
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
    run_to(&mut machine, end);
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
        run_to(&mut machine, end);
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

/// An instruction begins in a page that two addresses lead to, and ends in different pages behind them, where it is not as
/// long.
#[test]
fn an_instruction_across_pages_goes_on_behind_itself() {
    let (first, second) = (CODE, CODE + 0x10_0000);
    let page = |linear, writable| Page { linear, writable };
    let pages = [
        page(first, false),
        page(first + 0x1000, false),
        page(second, false),
        page(second + 0x1000, false),
        page(DATA, false),
        page(STACK, true),
    ];
    let cpuid = x86::cpuid::build("x86-64-v3", 1, 1_000_000_000).unwrap();
    let mut machine = Machine::new(Mode::Long64, cpuid, &pages);
    machine.alias(second, first);
    // LEA RAX, [RAX + 5] with a displacement of one byte, and of four.
    machine.write(first + 0xffe, &[0x48, 0x8d]);
    // MOV ECX, 1; XOR EDX, EDX; HLT: no flags matter. MOV ECX, 2; SETB DL; HLT: they do.
    machine.write(first + 0x1000, &[0x40, 5, 0xb9, 1, 0, 0, 0, 0x31, 0xd2, 0xf4]);
    machine.write(second + 0x1000, &[0x80, 5, 0, 0, 0, 0xb9, 2, 0, 0, 0, 0x0f, 0x92, 0xc2, 0xf4]);
    // CMP R8D, 7; JMP RBX
    machine.write(DATA, &[0x41, 0x83, 0xf8, 7, 0xff, 0xe3]);
    let ends = [first + 0x1000 + 9, second + 0x1000 + 13];
    for turn in 0..400u64 {
        let which = (turn / 50) as usize % 2;
        let mut state = start();
        (state.rip, state.gpr[3], state.gpr[8]) = (DATA, [first, second][which] + 0xffe, turn % 13);
        machine.set_state(&state);
        run_to(&mut machine, ends[which]);
        let gpr = machine.state().gpr;
        let below = (which == 1 && turn % 13 < 7) as u64;
        assert_eq!((gpr[0], gpr[1], gpr[2]), (5, which as u64 + 1, below), "turn {turn}");
    }
}

/// A function returns to another place than it was called from. There flags matter, and behind the call they do not.
#[test]
fn flags_live_through_a_return_that_leads_elsewhere() {
    let elsewhere = CODE + 0x100;
    let mut a = CodeAssembler::new(64).unwrap();
    let mut function = a.create_label();
    a.call(function).unwrap();
    a.xor(eax, eax).unwrap();
    a.add(ecx, 1).unwrap();
    a.hlt().unwrap();
    a.set_label(&mut function).unwrap();
    a.mov(qword_ptr(rsp), rbx).unwrap();
    a.cmp(r8d, 0).unwrap();
    a.ret().unwrap();
    let code = a.assemble(CODE).unwrap();
    let mut machine = machine(Mode::Long64, &code);
    let mut a = CodeAssembler::new(64).unwrap();
    a.setg(cl).unwrap();
    a.seto(dl).unwrap();
    a.mov(eax, 2).unwrap();
    a.hlt().unwrap();
    let code = a.assemble(elsewhere).unwrap();
    machine.write(elsewhere, &code);
    let end = elsewhere + code.len() as u64 - 1;
    for turn in 0..200u64 {
        let value = [0, 1, u32::MAX as u64, 5][turn as usize % 4];
        let mut state = start();
        (state.gpr[1], state.gpr[3], state.gpr[8]) = (0x1234_5600, elsewhere, value);
        machine.set_state(&state);
        run_to(&mut machine, end);
        let gpr = machine.state().gpr;
        let greater = (value as i32 > 0) as u64;
        assert_eq!((gpr[0], gpr[1], gpr[2]), (2, 0x1234_5600 + greater, 0), "turn {turn}");
    }
}

/// A call whose target needs no flags leaves them where they are when the page of an access is looked up before it. When
/// other code is put there, that needs them, the caller is void too, though none of its own bytes were written.
#[test]
fn code_that_is_called_may_come_to_need_the_flags() {
    let callee = CODE + 0x200;
    let mut a = CodeAssembler::new(64).unwrap();
    a.mov(eax, -1).unwrap();
    a.mov(ecx, 1).unwrap();
    // Zero; and only now it is known where the access is.
    a.add(eax, ecx).unwrap();
    a.mov(rdi, qword_ptr(rsi + rax * 1)).unwrap();
    a.call(callee).unwrap();
    a.nop().unwrap();
    let code = a.assemble(CODE).unwrap();
    let mut machine = machine(Mode::Long64, &code);
    let mut go = |needs: bool| {
        let mut a = CodeAssembler::new(64).unwrap();
        match needs {
            false => a.xor(edx, edx).unwrap(),
            true => a.sete(dl).unwrap(),
        }
        a.ret().unwrap();
        machine.write(callee, &a.assemble(callee).unwrap());
        for _ in 0..4 {
            let mut state = start();
            (state.gpr[2], state.gpr[6]) = (9, DATA);
            machine.set_state(&state);
            run_to(&mut machine, CODE + code.len() as u64);
            assert_eq!(machine.state().gpr[2], needs as u64);
        }
    };
    go(false);
    go(true);
    go(false);
    go(true);
}
