//! IRET to where it was called from: what kernels serialise with while they patch themselves.

use super::smp::*;
use crate::options::{Jit, Options};
use crate::regs::{RBX, RDX, RSP};
use iced_x86::code_asm::*;
use x86::reg::rflags;

const TURNS: u32 = 3000;

/// Each turn returns to the next instruction, with other flags every time.
fn program(smp: &mut Smp) {
    smp.program(0, |a| {
        let (mut head, mut next) = (a.create_label(), a.create_label());
        a.xor(edx, edx)?;
        a.mov(ecx, TURNS)?;
        a.set_label(&mut head)?;
        a.mov(rsi, rsp)?;
        a.push(16)?;
        a.push(rsi)?;
        a.mov(eax, ecx)?;
        // CF, and whether RFLAGS.DF is set.
        a.and(eax, 0x401)?;
        a.or(eax, rflags::FIXED as i32)?;
        a.push(rax)?;
        a.push(8)?;
        a.lea(rax, ptr(next))?;
        a.push(rax)?;
        a.iretq()?;
        a.set_label(&mut next)?;
        a.adc(rbx, 2)?;
        a.pushfq()?;
        a.pop(rax)?;
        a.and(eax, rflags::DF as i32)?;
        a.add(rdx, rax)?;
        a.cld()?;
        a.dec(ecx)?;
        a.jne(head)
    });
}

#[test]
fn returns_to_the_same_privilege_do_not_leave_translated_code() {
    let expected = |bit: u32| (1..=TURNS).filter(|turn| turn & bit != 0).count() as u64;
    for options in all_options().into_iter().chain([Options::default()]) {
        let mut smp = Smp::new(1, &options);
        program(&mut smp);
        let stack = smp.cpus[0].regs.r[RSP];
        smp.run(|_| {});
        let (cpu, what) = (&smp.cpus[0], format!("{options:?}"));
        assert_eq!(cpu.regs.r[RBX], 2 * TURNS as u64 + expected(1), "{what}");
        assert_eq!(cpu.regs.r[RDX], rflags::DF * expected(rflags::DF as u32), "{what}");
        assert_eq!(cpu.regs.r[RSP], stack, "{what}");
        if options.jit == Jit::On {
            let exits = cpu.counts.exits_handler.get();
            assert!(exits < TURNS as u64 / 10, "{exits} {what}");
        }
    }
}

/// Returns that lead elsewhere than behind the last call: with nothing on the return stack, and with calls whose
/// returns never come.
fn elsewhere(smp: &mut Smp) {
    smp.program(0, |a| {
        let (mut head, mut next, mut callee, mut other) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.xor(ebx, ebx)?;
        a.mov(ecx, RETURNS)?;
        a.set_label(&mut head)?;
        a.lea(rax, ptr(next))?;
        a.push(rax)?;
        a.stc()?;
        a.ret()?;
        a.set_label(&mut callee)?;
        // Instead of where it was called from.
        a.add(rsp, 8)?;
        a.lea(rax, ptr(other))?;
        a.push(rax)?;
        a.test(ecx, 1)?;
        a.ret()?;
        a.set_label(&mut next)?;
        a.adc(rbx, 0)?;
        a.call(callee)?;
        a.ud2()?;
        a.set_label(&mut other)?;
        a.setne(al)?;
        a.movzx(eax, al)?;
        a.add(rbx, rax)?;
        a.dec(ecx)?;
        a.jne(head)
    });
}

const RETURNS: u32 = 30_000;

#[test]
fn thousands_of_returns_elsewhere_keep_the_stacks_in_order() {
    for options in all_options().into_iter().chain([Options::default()]) {
        let mut smp = Smp::new(1, &options);
        elsewhere(&mut smp);
        let stack = smp.cpus[0].regs.r[RSP];
        smp.run(|_| {});
        let (cpu, what) = (&smp.cpus[0], format!("{options:?}"));
        assert_eq!(cpu.regs.r[RBX], RETURNS as u64 + RETURNS as u64 / 2, "{what}");
        assert_eq!(cpu.regs.r[RSP], stack, "{what}");
    }
}
