//! How translated code finds pages: across their edges, and by guesses that are right or wrong.

use super::smp::*;
use crate::jit::guessing::Guessing;
use crate::options::{Jit, Options};
use crate::regs::{RBX, RDI, RSI};
use iced_x86::code_asm::*;

const TURNS: u32 = 3000;

/// Each turn writes on both sides of the edge of a page and reads across it.
fn across(smp: &mut Smp) {
    const EDGE: i32 = DATA as i32 + 0x1000;
    smp.program(0, |a| {
        let mut head = a.create_label();
        a.xor(ebx, ebx)?;
        a.mov(ecx, TURNS)?;
        a.set_label(&mut head)?;
        a.mov(dword_ptr(EDGE - 4), ecx)?;
        a.mov(dword_ptr(EDGE), 1)?;
        a.add(rbx, qword_ptr(EDGE - 4))?;
        a.movups(xmm0, xmmword_ptr(EDGE - 5))?;
        a.psrldq(xmm0, 1)?;
        a.movq(rax, xmm0)?;
        a.add(rbx, rax)?;
        a.dec(ecx)?;
        a.jne(head)
    });
}

#[test]
fn reads_across_two_known_pages_are_put_together() {
    let one = |turn: u64| turn | 1 << 32;
    let expected = (1..=TURNS as u64).map(|turn| 2 * one(turn)).sum::<u64>();
    for options in all_options().into_iter().chain([Options::default()]) {
        let mut smp = Smp::new(1, &options);
        across(&mut smp);
        smp.run(|_| {});
        let (cpu, what) = (&smp.cpus[0], format!("{options:?}"));
        assert_eq!(cpu.regs.r[RBX], expected, "{what}");
        if options.jit == Jit::On && !options.stress.one_tlb_entry {
            let interpreted = cpu.counts.slow_instructions.get();
            assert!(interpreted < TURNS as u64 / 10, "{interpreted} {what}");
        }
    }
}

/// A loop that reads what RSI + RDX points to; RDX changes by a page in each turn in which the counter has none of
/// `bits`.
fn pages(smp: &mut Smp, turns: u32, bits: i32) {
    smp.cpus[0].regs.r[RSI] = DATA;
    smp.cpus[0].regs.r[RDI] = turns as u64;
    smp.program(0, |a| {
        let mut head = a.create_label();
        a.xor(edx, edx)?;
        a.set_label(&mut head)?;
        a.add(rbx, qword_ptr(rsi + rdx))?;
        a.xor(eax, eax)?;
        a.test(edi, bits)?;
        a.sete(al)?;
        // Two pages further, or back.
        a.shl(eax, 13)?;
        a.xor(edx, eax)?;
        a.dec(edi)?;
        a.jne(head)
    });
}

#[test]
fn guesses_are_given_up_where_they_are_often_wrong_and_kept_where_not() {
    // In every turn, in every eighth, in every 64th.
    let cases = [(0, Guessing::Never), (7, Guessing::Never), (63, Guessing::Trusted(1))];
    for (bits, expected) in cases {
        let mut smp = Smp::new(1, &Options { hot: 0, ..Options::default() });
        smp.store(DATA, 3);
        smp.store(DATA + 0x2000, 3);
        let turns = 200_000;
        pages(&mut smp, turns, bits);
        smp.run(|_| {});
        assert_eq!(smp.cpus[0].regs.r[RBX], 3 * turns as u64);
        let learned: Vec<_> = smp.vm.code.cache().learned().collect();
        let same = |found: Guessing| std::mem::discriminant(&found) == std::mem::discriminant(&expected);
        assert!(learned.len() == 1 && same(learned[0]), "{bits:#x}: {learned:?}");
    }
}
