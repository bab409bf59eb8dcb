//! Saving and restoring.

use super::machine::{selector::*, *};
use crate::fault::Fault;
use crate::regs::{RAX, RIP};
use crate::signals::signal;
use x86::reg::{cr0, cr4, efer, rflags};
use x86::segment::access;
use x86::state::{CpuState, MpState, seg};
use x86::{Vector, msr};

/// A vCPU with something in every part of its state.
fn busy_machine() -> Machine {
    let mut machine = Machine::new(Start::Long { cpl: 3 });
    let cpu = &mut machine.cpu;
    for (index, register) in cpu.regs.r[..16].iter_mut().enumerate() {
        *register = 0x1111 * index as u64;
    }
    for (index, ymm) in cpu.regs.ymm.iter_mut().enumerate() {
        *ymm = [index as u64, 2, 3, 4];
    }
    cpu.regs.mxcsr = 0x1fa0;
    cpu.regs.fx[0..2].copy_from_slice(&0x027fu16.to_le_bytes());
    cpu.regs.rflags |= rflags::IF | rflags::CF;
    cpu.sys.cr2 = 0x1234;
    cpu.sys.cr4 |= cr4::OSXSAVE | cr4::FSGSBASE;
    cpu.sys.xcr0 = 7;
    cpu.sys.dr = [1, 2, 3, 4];
    cpu.sys.dr7 |= 3;
    cpu.sys.lstar = 0xffff_8000_0000_0000;
    cpu.sys.kernel_gs_base = 0x7000;
    cpu.sys.tsc_adjust = 12345;
    cpu.sys.tsc_aux = 7;
    cpu.regs.seg[seg::FS].base = 0x7f12_3456_7000;
    cpu.write_msr(msr::MTRR_DEF_TYPE, 0xc06).unwrap();
    cpu.write_msr(msr::SPEC_CTRL, 1).unwrap();
    cpu.tsc_adjust_changed();
    cpu.shadow = true;
    cpu.nmi_blocked = true;
    cpu.halted = true;
    cpu.pending_exception = Some((Fault::with_code(Vector::PageFault, 6), 0xdead_b000));
    cpu.signals.raise(signal::NMI);
    cpu.update_mode();
    machine
}

#[test]
fn a_saved_state_comes_back_whole() {
    let mut machine = busy_machine();
    machine.cpu.vm.clock.pause();
    let state = machine.cpu.save();
    assert_eq!(state.mp_state, MpState::Halted);
    assert!(state.pending.nmi && state.pending.nmi_blocked && state.pending.interrupt_shadow);
    assert_eq!(state.pending.exception, Some((14, Some(6), 0xdead_b000)));

    let mut other = Machine::new(Start::Real);
    other.cpu.vm.clock.pause();
    other.cpu.restore(&state).unwrap();
    let again = other.cpu.save();
    assert_eq!(again, state);
    let (a, b) = (&machine.cpu, &other.cpu);
    assert_eq!((a.regs.r, a.regs.ymm, a.regs.seg), (b.regs.r, b.regs.ymm, b.regs.seg));
    assert_eq!((b.mode.cpl, b.mode.code_bits), (3, 64));
    assert_eq!((b.sys.tsc_adjust, b.sys.tsc_aux, b.sys.lstar), (12345, 7, 0xffff_8000_0000_0000));
    assert_eq!(b.sys.other_msrs, a.sys.other_msrs);
    assert_ne!(b.signals.pending() & signal::NMI, 0);
}

#[test]
fn every_mode_comes_back() {
    for start in [
        Start::Real,
        Start::Protected { cpl: 0 },
        Start::Protected { cpl: 3 },
        Start::Compat { cpl: 0 },
        Start::Compat { cpl: 3 },
        Start::Long { cpl: 0 },
    ] {
        let mut machine = Machine::new(start);
        let state = machine.cpu.save();
        let mut other = Machine::new(Start::Long { cpl: 3 });
        other.cpu.restore(&state).unwrap_or_else(|error| panic!("{start:?}: {error}"));
        assert_eq!(format!("{:?}", other.cpu.mode), format!("{:?}", machine.cpu.mode));
        // The kernel's null stack segment too.
        if start == (Start::Long { cpl: 0 }) {
            machine.cpu.load_segment(seg::SS, 0).unwrap();
            let state = machine.cpu.save();
            other.cpu.restore(&state).unwrap();
            assert_eq!(other.cpu.mode.cpl, 0);
        }
    }
}

#[test]
fn impossible_states_are_refused_and_change_nothing() {
    type Spoil = fn(&mut CpuState);
    let spoilers: [(&str, Spoil); 26] = [
        ("version", |state| state.version = 99),
        ("cr0 upper half", |state| state.cr0 |= 1 << 40),
        ("paging without protection", |state| state.cr0 &= !cr0::PE),
        ("not write-through without cache disable", |state| state.cr0 |= cr0::NW),
        ("cr3 beyond memory", |state| state.cr3 |= 1 << 50),
        ("unknown cr4 bit", |state| state.cr4 |= cr4::VMXE),
        ("long mode without PAE", |state| state.cr4 &= !cr4::PAE),
        ("unknown efer bit", |state| state.efer |= efer::SVME),
        ("active without enabled", |state| state.efer &= !efer::LME),
        ("enabled without active", |state| state.efer &= !efer::LMA),
        ("unknown flag", |state| state.rflags |= 1 << 40),
        ("virtual 8086 in long mode", |state| state.rflags |= rflags::VM),
        ("xcr0", |state| state.xcr0 = 4),
        ("debug control", |state| state.dr7 |= 1 << 33),
        ("rip", |state| state.rip = 0x8000_0000_0000),
        ("fs base", |state| state.segments[seg::FS].base = 0x8000_0000_0000),
        ("gdt base", |state| state.gdtr.base = 1 << 62),
        ("no code segment", |state| state.segments[seg::CS].access = 0),
        ("code of two sizes", |state| state.segments[seg::CS].access |= access::DEFAULT_BIG),
        ("no stack segment", |state| state.segments[seg::SS].access |= access::CODE),
        ("lstar", |state| state.msrs.push((msr::LSTAR, 0x8000_0000_0000))),
        ("unknown register", |state| state.msrs.push((0x1234_5678, 1))),
        ("short xsave", |state| state.xsave.truncate(100)),
        ("mxcsr", |state| state.xsave[26] = 1),
        ("apic", |state| state.lapic.registers.truncate(3)),
        ("exception", |state| state.pending.exception = Some((200, None, 0))),
    ];
    let good = busy_machine().cpu.save();
    for (what, spoil) in spoilers {
        let mut machine = Machine::new(Start::Protected { cpl: 0 });
        machine.cpu.vm.clock.pause();
        machine.cpu.regs.r[RAX] = 0x77;
        machine.cpu.write_msr(msr::LSTAR, 0x5000).unwrap();
        let before = machine.cpu.save();
        let mut state = good.clone();
        spoil(&mut state);
        let error = machine.cpu.restore(&state).expect_err(what);
        assert_eq!(error.kind(), ::cpu::ErrorKind::BadState, "{what}");
        assert_eq!(machine.cpu.save(), before, "{what}");
    }
}

#[test]
fn a_restored_processor_executes() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    let mut state = machine.cpu.save();
    state.rip = CODE + 0x40;
    state.segments[seg::CS].selector = CODE64;
    machine.cpu.restore(&state).unwrap();
    // HLT.
    machine.run(&[0xf4]).unwrap();
    assert!(machine.cpu.halted);
    assert_eq!(machine.cpu.regs.r[RIP], CODE + 0x41);
}
