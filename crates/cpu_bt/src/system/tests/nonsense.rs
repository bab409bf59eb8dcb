//! Random code, tables and saved states: whatever a guest does, the engine neither panics nor hangs.

use super::machine::*;
use crate::regs::RIP;
use crate::signals::signal;
use x86::state::CpuState;

/// Xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A number of the kind that finds mistakes.
    fn number(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => self.below(0x100),
            3 => DATA + self.below(0x100),
            4 => self.next() >> self.below(64),
            5 => 1 << self.below(64),
            6 => 0x7fff_ffff_ffff + self.below(3),
            _ => self.next(),
        }
    }

    fn start(&mut self) -> Start {
        let cpl = if self.below(2) == 0 { 0 } else { 3 };
        match self.below(4) {
            0 => Start::Real,
            1 => Start::Protected { cpl },
            2 => Start::Compat { cpl },
            _ => Start::Long { cpl },
        }
    }

    /// An instruction, mostly one of this module's.
    fn code(&mut self) -> Vec<u8> {
        const OPCODES: [&[u8]; 40] = [
            &[0x0f, 0x00],
            &[0x0f, 0x01],
            &[0x0f, 0x02],
            &[0x0f, 0x03],
            &[0x0f, 0x05],
            &[0x0f, 0x06],
            &[0x0f, 0x07],
            &[0x0f, 0x20],
            &[0x0f, 0x21],
            &[0x0f, 0x22],
            &[0x0f, 0x23],
            &[0x0f, 0x30],
            &[0x0f, 0x32],
            &[0x0f, 0x34],
            &[0x0f, 0x35],
            &[0x0f, 0xa1],
            &[0x0f, 0xa2],
            &[0x0f, 0xae],
            &[0x0f, 0xb2],
            &[0x0f, 0xb4],
            &[0x0f, 0x38, 0x82],
            &[0x17],
            &[0x1f],
            &[0x62],
            &[0x63],
            &[0x6c],
            &[0x6f],
            &[0x8c],
            &[0x8e],
            &[0x9a],
            &[0x9c],
            &[0x9d],
            &[0xca],
            &[0xcb],
            &[0xcd],
            &[0xcf],
            &[0xe4],
            &[0xea],
            &[0xef],
            &[0xff],
        ];
        const PREFIXES: [u8; 8] = [0x66, 0x67, 0xf2, 0xf3, 0x48, 0x64, 0x2e, 0xf0];
        let mut code = Vec::new();
        for _ in 0..self.below(3) {
            code.push(PREFIXES[self.below(8) as usize]);
        }
        if self.below(8) > 0 {
            code.extend(OPCODES[self.below(40) as usize]);
        }
        while code.len() < 15 {
            code.push(self.next() as u8);
        }
        code
    }
}

fn scramble(machine: &mut Machine, random: &mut Random) {
    for register in 0..16 {
        machine.cpu.regs.r[register] = random.number();
    }
    if random.below(2) == 0 {
        machine.cpu.regs.r[crate::regs::RSP] = STACK - random.below(64);
    }
    if !machine.cpu.mode.is_64() {
        machine.cpu.regs.r[..16].iter_mut().for_each(|register| *register &= 0xffff_ffff);
    }
    for slot in 0..8 {
        let value = match random.below(3) {
            0 => random.below(0x100),
            1 => random.number(),
            _ => CODE,
        };
        machine.store(STACK + 8 * slot, value);
    }
    for _ in 0..random.below(6) {
        let value = random.next();
        machine.store(GDT + 8 * random.below(32), value);
    }
    for _ in 0..random.below(4) {
        let value = random.next();
        machine.store(IDT + 8 * random.below(64), value);
    }
    if random.below(3) == 0 {
        machine.cpu.sys.cr4 |= random.next() & machine.cpu.cr4_known() & !0x20;
    }
    if random.below(4) == 0 {
        machine.cpu.sys.tr.limit = random.below(0x100) as u32;
    }
    machine.cpu.regs.rflags |= random.next() & 0x7f_7000;
    if machine.cpu.mode.long {
        machine.cpu.regs.rflags &= !x86::reg::rflags::VM;
    }
    machine.cpu.update_mode();
}

#[test]
fn random_system_code_does_no_harm() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..400 {
        let vendor = if random.below(2) == 0 { Vendor::Intel } else { Vendor::Amd };
        let start = random.start();
        let mut machine = Machine::of(start, vendor);
        for _ in 0..40 {
            scramble(&mut machine, &mut random);
            let code = random.code();
            machine.cpu.shadow = false;
            // So that what repeats stops after one element.
            machine.cpu.signals.raise(signal::KICK);
            if let Err(fault) = machine.run(&code) {
                machine.raise(fault);
            }
            if let Some((fault, address)) = machine.cpu.pending_exception.take() {
                machine.cpu.fault_address = address;
                machine.raise(fault);
            }
            if machine.cpu.exit.is_some() {
                break;
            }
            // Where it went does not matter: the next instruction stands at the same place again.
            machine.cpu.regs.r[RIP] = match machine.cpu.mode.is_64() {
                true => CODE,
                false => CODE.wrapping_sub(machine.cpu.regs.seg[x86::state::seg::CS].base) & 0xffff_ffff,
            };
            machine.cpu.sys.cr3 = 0x8_0000;
            machine.cpu.flush_tlb_all();
        }
    }
}

#[test]
fn random_states_are_refused_or_execute() {
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut accepted = 0;
    for _ in 0..600 {
        let start = random.start();
        let mut machine = Machine::new(start);
        let mut state = machine.cpu.save();
        for _ in 0..=random.below(3) {
            spoil(&mut state, &mut random);
        }
        if machine.cpu.restore(&state).is_ok() {
            accepted += 1;
            machine.cpu.signals.raise(signal::KICK);
            for _ in 0..4 {
                if let Err(fault) = machine.step() {
                    machine.raise(fault);
                }
            }
            machine.cpu.save();
        }
    }
    assert!(accepted > 100 && accepted < 600, "{accepted} of 600 were accepted");
}

fn spoil(state: &mut CpuState, random: &mut Random) {
    let value = random.number();
    match random.below(22) {
        0 => state.gpr[random.below(16) as usize] = value,
        1 => state.rip = value,
        2 => state.rflags = value,
        3 => state.segments[random.below(6) as usize].base = value,
        4 => state.segments[random.below(6) as usize].limit = value as u32,
        5 => state.segments[random.below(6) as usize].access = value as u16,
        6 => state.tr.access = value as u16,
        7 => state.ldtr.limit = value as u32,
        8 => state.gdtr.base = value,
        9 => state.cr0 = value,
        10 => state.cr0 ^= 1 << random.below(32),
        11 => state.cr3 = value,
        12 => state.cr4 ^= 1 << random.below(24),
        13 => state.efer ^= 1 << random.below(24),
        14 => state.dr7 = value,
        15 => state.xcr0 = value,
        16 => state.msrs.push((value as u32, random.number())),
        17 => {
            let len = state.xsave.len() as u64;
            if len > 0 {
                state.xsave[random.below(len) as usize] = value as u8;
            }
        }
        18 => state.xsave.truncate(random.below(900) as usize),
        19 => state.lapic.base = value,
        20 => state.pending.exception = Some((value as u8, Some(value as u32), value)),
        _ => {
            let at = random.below(64) as usize;
            state.lapic.registers[at] = value as u32;
        }
    }
}
