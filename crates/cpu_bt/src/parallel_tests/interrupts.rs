//! Interrupts at every instruction boundary of a loop: what the handler sees is what the interpreter
//! would show it.

use super::smp::*;
use crate::options::Options;
use crate::regs::{RBX, RCX, RDX, RIP, RSI};
use crate::signals::signal;
use iced_x86::code_asm::*;
use std::collections::HashMap;
use x86::reg::rflags;

const LOG: u64 = DATA + 0x1_0000;
/// Where the next entry of the log goes.
const NEXT: u64 = DATA;
const ENTRY: u64 = 64;
const TURNS: u32 = 400;
const BOUNDARIES: usize = 6;

/// RIP, RFLAGS (status), RBX, RCX, RDX, RSI, a word of memory.
type Seen = [u64; 7];

fn program(smp: &mut Smp, boundary: usize) {
    smp.program(0, |a| {
        let mut head = a.create_label();
        a.mov(ecx, TURNS)?;
        a.mov(rsi, DATA + 0x400)?;
        a.set_label(&mut head)?;
        for step in 0..BOUNDARIES {
            if step == boundary {
                // A trace begins here, so an interrupt can be taken here.
                let mut next = a.create_label();
                a.lea(r11, ptr(next))?;
                a.jmp(r11)?;
                a.set_label(&mut next)?;
            }
            match step {
                0 => a.add(rbx, rcx)?,
                1 => a.imul_3(rdx, rbx, 0x11)?,
                2 => a.xor(qword_ptr(rsi), rdx)?,
                3 => a.mov(rdx, qword_ptr(rsi))?,
                4 => a.sub(rbx, rdx)?,
                _ => a.test(rbx, rdx)?,
            }
        }
        a.dec(ecx)?;
        a.jne(head)
    });
}

/// The states at every instruction of the interpreted program, by RIP and the loop's counter.
fn expected(boundary: usize) -> HashMap<(u64, u64), Seen> {
    let mut smp = Smp::new(1, &Options::default());
    program(&mut smp, boundary);
    let mut states = HashMap::new();
    let end = CODE + 0x2000;
    let cpu = &mut smp.cpus[0];
    loop {
        let regs = &cpu.regs;
        let word = cpu.ram.load::<u64>(DATA + 0x400).unwrap();
        let rip = regs.r[RIP];
        let status = regs.rflags & rflags::STATUS;
        let seen = [rip, status, regs.r[RBX], regs.r[RCX], regs.r[RDX], regs.r[RSI], word];
        states.insert((rip, regs.r[RCX]), seen);
        // The OUT at the end.
        if rip >= end || cpu.ram.load::<u8>(rip) == Some(0xe6) {
            return states;
        }
        let block = cpu.find_block(rip).expect("code");
        let op = &block.ops()[0];
        cpu.regs.r[RIP] = rip + op.len as u64;
        assert!((op.run)(cpu, op).is_ok());
    }
}

#[test]
fn interrupts_at_every_boundary_see_the_interpreters_state() {
    let mut taken = 0;
    for boundary in 0..BOUNDARIES {
        let expected = expected(boundary);
        for options in all_options() {
            let options = Options { exact_flags: true, ..options };
            let mut smp = Smp::new(1, &options);
            program(&mut smp, boundary);
            // The handler of the NMI writes what it sees to the log.
            smp.put(HANDLERS + 16 * 2, |a| a.jmp(HANDLERS + 0x2000));
            smp.put(HANDLERS + 0x2000, |a| {
                a.push(rax)?;
                a.push(rdi)?;
                a.mov(rdi, qword_ptr(NEXT))?;
                a.mov(rax, qword_ptr(rsp + 16))?;
                a.mov(qword_ptr(rdi), rax)?;
                a.mov(rax, qword_ptr(rsp + 32))?;
                a.mov(qword_ptr(rdi + 8), rax)?;
                a.mov(qword_ptr(rdi + 16), rbx)?;
                a.mov(qword_ptr(rdi + 24), rcx)?;
                a.mov(qword_ptr(rdi + 32), rdx)?;
                a.mov(qword_ptr(rdi + 40), rsi)?;
                a.mov(rax, qword_ptr(DATA + 0x400))?;
                a.mov(qword_ptr(rdi + 48), rax)?;
                a.add(qword_ptr(NEXT), ENTRY as i32)?;
                a.pop(rdi)?;
                a.pop(rax)?;
                a.iretq()
            });
            smp.store(NEXT, LOG);
            let signals = smp.vm.signals[0].clone();
            let done = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        signals.raise(signal::NMI);
                        std::thread::yield_now();
                    }
                });
                smp.run(|_| {});
                done.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            let end = smp.load(NEXT);
            for at in (LOG..end).step_by(ENTRY as usize) {
                let mut seen: Seen = std::array::from_fn(|word| smp.load(at + 8 * word as u64));
                seen[1] &= rflags::STATUS;
                let Some(right) = expected.get(&(seen[0], seen[3])) else {
                    panic!("the interpreter is never at {:#x} with {}", seen[0], seen[3])
                };
                // IMUL leaves all but carry and overflow undefined.
                let mask = rflags::CF | rflags::OF;
                let (got, want) = ([seen[1] & mask], [right[1] & mask]);
                assert_eq!((got, &seen[2..]), (want, &right[2..]), "at {:#x}", seen[0]);
                taken += 1;
            }
        }
    }
    assert!(taken > 20, "{taken} interrupts were taken");
}
