//! Control and debug registers, flags, CPUID and the time-stamp counter.

use super::machine::*;
use crate::cpu::Paging;
use crate::fault::Fault;
use crate::regs::{RAX, RBX, RCX, RDX, RIP, RSP};
use x86::Vector;
use x86::reg::{cr0, cr3, cr4, dr6, dr7, efer, rflags, xcr0};
use x86::state::seg;

/// MOV CRn, RAX (EAX outside 64-bit mode).
fn to_cr(number: u8) -> [u8; 3] {
    [0x0f, 0x22, 0xc0 | number << 3]
}

/// MOV RAX, CRn.
fn from_cr(number: u8) -> [u8; 3] {
    [0x0f, 0x20, 0xc0 | number << 3]
}

#[test]
fn cr0_refuses_impossible_combinations() {
    let long = Start::Long { cpl: 0 };
    let base = cr0::PE | cr0::PG | cr0::WP | cr0::NE;
    for (start, value, expected) in [
        (long, base, None),
        (long, base | cr0::TS, None),
        (long, base | 1 << 32, Some(Fault::GP0)),
        (long, base & !cr0::PE, Some(Fault::GP0)),
        (long, base | cr0::NW, Some(Fault::GP0)),
        (long, base | cr0::NW | cr0::CD, None),
        // Paging cannot be switched off in 64-bit code.
        (long, cr0::PE, Some(Fault::GP0)),
        (Start::Compat { cpl: 0 }, cr0::PE, None),
        (Start::Long { cpl: 3 }, base, Some(Fault::GP0)),
        (Start::Real, cr0::PE, None),
        (Start::Real, cr0::PG, Some(Fault::GP0)),
    ] {
        let mut machine = Machine::new(start);
        machine.cpu.regs.r[RAX] = value;
        match expected {
            Some(fault) => assert_eq!(machine.faults(&to_cr(0)), fault, "{start:?} {value:#x}"),
            None => {
                assert_eq!(machine.run(&to_cr(0)), Ok(()), "{start:?} {value:#x}");
                assert_eq!(machine.cpu.sys.cr0, value | cr0::ET);
            }
        }
    }
    // CR1 does not exist, for nobody.
    assert_eq!(Machine::new(long).faults(&to_cr(1)), Fault::UNDEFINED);
    assert_eq!(Machine::new(Start::Long { cpl: 3 }).faults(&from_cr(5)), Fault::UNDEFINED);
}

#[test]
fn long_mode_is_entered_and_left() {
    let mut machine = Machine::new(Start::Protected { cpl: 0 });
    machine.cpu.sys.efer = efer::LME;
    machine.cpu.sys.cr3 = 0x8_0000;
    machine.cpu.regs.r[RAX] = cr0::PE | cr0::PG;
    assert_eq!(machine.faults(&to_cr(0)), Fault::GP0, "without PAE");
    machine.cpu.sys.cr4 = cr4::PAE;
    machine.run(&to_cr(0)).unwrap();
    assert_eq!(machine.cpu.sys.efer, efer::LME | efer::LMA);
    assert_eq!((machine.cpu.mode.paging, machine.cpu.mode.code_bits), (Paging::Long, 32));
    // PAE and LME cannot change now.
    machine.cpu.regs.r[RAX] = 0;
    assert_eq!(machine.faults(&to_cr(4)), Fault::GP0);
    machine.cpu.regs.r[RAX] = cr0::PE;
    machine.run(&to_cr(0)).unwrap();
    assert_eq!(machine.cpu.sys.efer, efer::LME);
    assert_eq!(machine.cpu.mode.paging, Paging::None);
}

#[test]
fn pae_paging_loads_its_pointers() {
    let mut machine = Machine::new(Start::Protected { cpl: 0 });
    machine.cpu.sys.cr4 = cr4::PAE;
    machine.cpu.sys.cr3 = 0x20;
    for (index, entry) in [0x8_2001u64, 0, 0x5001, 0].into_iter().enumerate() {
        machine.store(0x20 + 8 * index as u64, entry);
    }
    machine.cpu.regs.r[RAX] = cr0::PE | cr0::PG;
    machine.run(&to_cr(0)).unwrap();
    assert_eq!((machine.cpu.mode.paging, machine.cpu.sys.pdpte), (Paging::Pae, [0x8_2001, 0, 0x5001, 0]));
    // A reserved bit in a present entry refuses the move to CR3.
    machine.store(0x40, 0x5003u64);
    machine.cpu.regs.r[RAX] = 0x40;
    assert_eq!(machine.faults(&to_cr(3)), Fault::GP0);
    machine.store(0x40, 0x5002u64);
    machine.run(&to_cr(3)).unwrap();
    assert_eq!(machine.cpu.sys.pdpte[0], 0x5002);
}

#[test]
fn cr3_checks_its_address_and_takes_process_identifiers() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    for value in [1u64 << 63, 1 << 46, 1 << 52] {
        machine.cpu.regs.r[RAX] = 0x8_0000 | value;
        assert_eq!(machine.faults(&to_cr(3)), Fault::GP0, "{value:#x}");
    }
    machine.cpu.regs.r[RAX] = machine.cpu.sys.cr4 | cr4::PCIDE;
    machine.run(&to_cr(4)).unwrap();
    machine.cpu.regs.r[RAX] = 0x8_0005 | cr3::NO_FLUSH;
    machine.run(&to_cr(3)).unwrap();
    assert_eq!(machine.cpu.sys.cr3, 0x8_0005);
    // PCIDs cannot be enabled while another than 0 is in use, nor paging switched off with them.
    machine.cpu.regs.r[RAX] = machine.cpu.sys.cr4 & !cr4::PCIDE;
    machine.run(&to_cr(4)).unwrap();
    machine.cpu.regs.r[RAX] |= cr4::PCIDE;
    assert_eq!(machine.faults(&to_cr(4)), Fault::GP0);
}

#[test]
fn cr4_knows_what_the_processor_has() {
    for (bit, allowed) in
        [(cr4::SMEP, true), (cr4::UMIP, true), (cr4::VMXE, false), (cr4::LA57, false), (1 << 40, false)]
    {
        let mut machine = Machine::new(Start::Long { cpl: 0 });
        machine.cpu.regs.r[RAX] = cr4::PAE | bit;
        assert_eq!(machine.run(&to_cr(4)).is_ok(), allowed, "{bit:#x}");
    }
}

#[test]
fn a_move_to_cr3_forgets_translations() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.store(DATA, 1u32);
    machine.store(DATA + 0x20_0000, 2u32);
    assert_eq!(machine.cpu.read::<u32>(DATA), Ok(1));
    // The first 2 MiB now lead to the second, but the TLB still knows better.
    machine.store(0x8_2000, 0x20_0087u64);
    assert_eq!(machine.cpu.read::<u32>(DATA), Ok(1));
    machine.cpu.sys.cr3 = 0x8_0000;
    let cr3 = machine.cpu.sys.cr3;
    machine.cpu.switch_page_tables(cr3, false).unwrap();
    assert_eq!(machine.cpu.read::<u32>(DATA), Ok(2));
}

#[test]
fn invlpg_forgets_one_page() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.store(DATA + 0x20_0000, 1u32);
    machine.store(DATA + 0x18_0000, 2u32);
    let linear = DATA + 0x20_0000;
    assert_eq!(machine.cpu.read::<u32>(linear), Ok(1));
    machine.store(0x8_2008, 0x87u64);
    machine.cpu.regs.r[RAX] = linear;
    // INVLPG [RAX].
    machine.run(&[0x0f, 0x01, 0x38]).unwrap();
    assert_eq!(machine.cpu.read::<u32>(linear), Ok(machine.load(DATA)));
    assert_eq!(Machine::new(Start::Long { cpl: 3 }).faults(&[0x0f, 0x01, 0x38]), Fault::GP0);
}

#[test]
fn invpcid_checks_its_descriptor() {
    // INVPCID RAX, [RBX].
    let invpcid = [0x66, 0x0f, 0x38, 0x82, 0x03];
    for (kind, pcid, address, allowed) in [
        (0u64, 0u64, DATA, true),
        (0, 0, 0x8000_0000_0000, false),
        (0, 5, DATA, false),
        (1, 0, 0x8000_0000_0000, true),
        (1, 0x1000, 0, false),
        (2, 5, 0, true),
        (3, 0, 0, true),
        (4, 0, 0, false),
    ] {
        let mut machine = Machine::new(Start::Long { cpl: 0 });
        machine.store(DATA, pcid);
        machine.store(DATA + 8, address);
        machine.cpu.regs.r[RAX] = kind;
        machine.cpu.regs.r[RBX] = DATA;
        let expected = if allowed { Ok(()) } else { Err(Fault::GP0) };
        assert_eq!(machine.run(&invpcid), expected, "{kind} {pcid:#x} {address:#x}");
    }
}

#[test]
fn the_machine_status_word_enters_but_does_not_leave_protected_mode() {
    let mut machine = Machine::new(Start::Protected { cpl: 0 });
    machine.cpu.regs.r[RAX] = cr0::TS | cr0::MP;
    // LMSW AX; SMSW EBX; CLTS.
    machine.run(&[0x0f, 0x01, 0xf0]).unwrap();
    let expected = cr0::PE | cr0::TS | cr0::MP | cr0::ET | cr0::NE;
    assert_eq!(machine.cpu.sys.cr0, expected);
    machine.run(&[0x0f, 0x01, 0xe3]).unwrap();
    assert_eq!(machine.cpu.regs.r[RBX], expected);
    machine.run(&[0x0f, 0x06]).unwrap();
    assert_eq!(machine.cpu.sys.cr0, expected & !cr0::TS);
}

#[test]
fn cr8_is_the_task_priority() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    // MOV CR8, RAX; MOV RAX, CR8.
    let (write, read) = ([0x44, 0x0f, 0x22, 0xc0], [0x44, 0x0f, 0x20, 0xc0]);
    machine.cpu.regs.r[RAX] = 16;
    assert_eq!(machine.faults(&write), Fault::GP0);
    machine.cpu.regs.r[RAX] = 9;
    machine.run(&write).unwrap();
    machine.cpu.regs.r[RAX] = 0;
    machine.run(&read).unwrap();
    assert_eq!(machine.cpu.regs.r[RAX], 9);
}

#[test]
fn debug_registers_alias_and_detect() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    // MOV DRn, RAX and MOV RBX, DRn.
    let write = |number: u8| [0x0f, 0x23, 0xc0 | number << 3];
    let read = |number: u8| [0x0f, 0x21, 0xc3 | number << 3];
    machine.cpu.regs.r[RAX] = 0xffff_ffff;
    machine.run(&write(6)).unwrap();
    machine.run(&read(4)).unwrap();
    assert_eq!(machine.cpu.regs.r[RBX], 0xffff_eff0 | 0xf);
    machine.cpu.regs.r[RAX] = 0xffff_dfff;
    machine.run(&write(7)).unwrap();
    machine.run(&read(7)).unwrap();
    assert_eq!(machine.cpu.regs.r[RBX], 0xffff_07ff);
    machine.cpu.regs.r[RAX] = 1 << 32;
    assert_eq!(machine.faults(&write(7)), Fault::GP0);
    machine.cpu.sys.cr4 |= cr4::DE;
    assert_eq!(machine.faults(&read(5)), Fault::UNDEFINED);
    machine.cpu.sys.dr7 |= dr7::GD;
    assert_eq!(machine.run(&read(0)), Err(Fault::new(Vector::Debug)));
    assert_ne!(machine.cpu.sys.dr6 & dr6::BD, 0);
}

#[test]
fn instruction_breakpoints_hit_once() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    assert!(!machine.cpu.has_breakpoints());
    machine.cpu.sys.dr[2] = CODE;
    // Ports are not watched.
    machine.cpu.sys.dr7 = dr7::FIXED | 1 << 4 | 2 << 24;
    assert!(!machine.cpu.has_breakpoints());
    machine.cpu.sys.dr7 = dr7::FIXED | 1 << 4;
    assert!(machine.cpu.has_breakpoints());
    assert_eq!(machine.cpu.check_breakpoints(CODE + 1), Ok(()));
    assert_eq!(machine.cpu.check_breakpoints(CODE), Err(Fault::new(Vector::Debug)));
    assert_eq!(machine.cpu.sys.dr6, dr6::FIXED | 4);
    machine.cpu.regs.rflags |= rflags::RF;
    assert_eq!(machine.cpu.check_breakpoints(CODE), Ok(()));
    assert!(!machine.cpu.regs.flag(rflags::RF));
}

#[test]
fn interrupt_flag_instructions_follow_iopl() {
    for (start, iopl, code, expected) in [
        (Start::Long { cpl: 0 }, 0, 0xfb, Some(true)),
        (Start::Long { cpl: 3 }, 0, 0xfb, None),
        (Start::Long { cpl: 3 }, 0, 0xfa, None),
        (Start::Long { cpl: 3 }, 3, 0xfb, Some(true)),
        (Start::Protected { cpl: 3 }, 3, 0xfa, Some(false)),
        (Start::Real, 0, 0xfb, Some(true)),
    ] {
        let mut machine = Machine::new(start);
        machine.cpu.regs.rflags |= iopl << 12 | if code == 0xfa { rflags::IF } else { 0 };
        match expected {
            None => assert_eq!(machine.faults(&[code]), Fault::GP0),
            Some(enabled) => {
                machine.run(&[code]).unwrap();
                assert_eq!(machine.cpu.regs.flag(rflags::IF), enabled);
                // Only STI that changes the flag holds interrupts off.
                assert_eq!(machine.cpu.shadow, enabled);
                machine.cpu.shadow = false;
                machine.run(&[code]).unwrap();
                assert!(!machine.cpu.shadow);
            }
        }
    }
    // Virtual interrupts of protected mode.
    let mut machine = Machine::new(Start::Protected { cpl: 3 });
    machine.cpu.sys.cr4 |= cr4::PVI;
    machine.run(&[0xfb]).unwrap();
    assert!(machine.cpu.regs.flag(rflags::VIF) && !machine.cpu.regs.flag(rflags::IF));
    machine.cpu.regs.rflags |= rflags::VIP;
    machine.run(&[0xfa]).unwrap();
    assert_eq!(machine.faults(&[0xfb]), Fault::GP0);
}

#[test]
fn popf_changes_what_the_level_may() {
    let all = 0x7f_7fd7u64 & !rflags::VM;
    let user = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
    for (start, code, size, iopl, expected) in [
        (Start::Long { cpl: 0 }, &[0x9du8][..], 8, 0, user | rflags::IF | rflags::IOPL),
        (Start::Long { cpl: 3 }, &[0x9d], 8, 0, user),
        (Start::Long { cpl: 3 }, &[0x9d], 8, 3, user | rflags::IF | rflags::IOPL),
        (Start::Long { cpl: 0 }, &[0x66, 0x9d], 2, 0, all & 0xffff),
        (Start::Protected { cpl: 0 }, &[0x9d], 4, 0, user | rflags::IF | rflags::IOPL),
        (Start::Real, &[0x66, 0x9d], 4, 0, user | rflags::IF | rflags::IOPL),
    ] {
        let mut machine = Machine::new(start);
        machine.cpu.regs.rflags |= iopl << 12;
        machine.store(STACK, all);
        machine.run(code).unwrap();
        assert_eq!(machine.cpu.regs.rflags, expected | rflags::FIXED, "{start:?} {code:02x?}");
        assert_eq!(machine.cpu.regs.r[RSP], STACK + size);
    }
    // PUSHF never shows RF and VM.
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.cpu.regs.rflags |= rflags::RF | rflags::CF;
    machine.run(&[0x9c]).unwrap();
    assert_eq!(machine.stack::<u64, 1>(), [rflags::FIXED | rflags::CF]);
}

#[test]
fn access_to_user_pages_follows_ac() {
    use crate::mmu::tlb::MmuIndex;
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.cpu.regs.r[RAX] = cr4::PAE | cr4::SMAP;
    // Code must not stand on a user page for SMAP's sake only: SMEP is off.
    machine.run(&to_cr(4)).unwrap();
    assert_eq!(machine.cpu.mode.data, MmuIndex::Kernel);
    // STAC; CLAC.
    machine.run(&[0x0f, 0x01, 0xcb]).unwrap();
    assert_eq!(machine.cpu.mode.data, MmuIndex::KernelAc);
    machine.run(&[0x0f, 0x01, 0xca]).unwrap();
    assert_eq!(machine.cpu.mode.data, MmuIndex::Kernel);
    assert_eq!(Machine::new(Start::Long { cpl: 3 }).faults(&[0x0f, 0x01, 0xcb]), Fault::UNDEFINED);
}

#[test]
fn hlt_waits() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.run(&[0xf4]).unwrap();
    assert!(machine.cpu.halted);
    assert_eq!(machine.cpu.regs.r[RIP], CODE + 1);
    assert_eq!(Machine::new(Start::Long { cpl: 3 }).faults(&[0xf4]), Fault::GP0);
}

#[test]
fn extended_control_registers_are_checked() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    // XSETBV; XGETBV.
    let (write, read) = ([0x0f, 0x01, 0xd1], [0x0f, 0x01, 0xd0]);
    machine.cpu.regs.r[RAX] = 7;
    assert_eq!(machine.faults(&write), Fault::UNDEFINED);
    machine.cpu.sys.cr4 |= cr4::OSXSAVE;
    for (value, index, allowed) in [
        (7, 0, true),
        (3, 0, true),
        (1, 0, true),
        (6, 0, false),
        (5, 0, false),
        (0xf, 0, false),
        (7, 1, false),
    ] {
        machine.cpu.regs.r[RAX] = value;
        machine.cpu.regs.r[RDX] = 0;
        machine.cpu.regs.r[RCX] = index;
        assert_eq!(machine.run(&write).is_ok(), allowed, "{value:#x}");
    }
    machine.cpu.sys.xcr0 = xcr0::X87 | xcr0::SSE;
    machine.cpu.regs.r[RCX] = 0;
    machine.run(&read).unwrap();
    assert_eq!((machine.cpu.regs.r[RAX], machine.cpu.regs.r[RDX]), (3, 0));
    machine.cpu.regs.r[RCX] = 2;
    assert_eq!(machine.faults(&read), Fault::GP0);
}

#[test]
fn cpuid_speaks_of_this_vcpu() {
    for (vendor, beyond) in [(Vendor::Intel, 0x1f), (Vendor::Amd, 0)] {
        let mut machine = Machine::of(Start::Long { cpl: 3 }, vendor);
        machine.cpu.id = 1;
        let mut ask = |function: u64, index: u64| {
            machine.cpu.regs.r[RAX] = function;
            machine.cpu.regs.r[RCX] = index;
            machine.run(&[0x0f, 0xa2]).unwrap();
            let r = &machine.cpu.regs.r;
            [r[RAX], r[RBX], r[RCX], r[RDX]].map(|value| value as u32)
        };
        assert_eq!(ask(1, 0)[1], 0x0100_0800);
        assert_eq!(ask(1, 0)[2] >> 27 & 1, 0);
        assert_eq!(ask(0xb, 0), [0, 1, 0x100, 1]);
        assert_eq!(ask(0xb, 5), [0, 0, 5, 1]);
        assert_eq!(ask(0xd, 0)[1], 576);
        assert_eq!(ask(0x8000_001e, 0)[..2], [1, 0x100]);
        // Beyond the last leaf.
        let highest = ask(0x1f, 0);
        assert_eq!(ask(0x2000, 0), if beyond == 0 { [0; 4] } else { highest });
        assert_eq!(ask(0x8000_0100, 0), if beyond == 0 { [0; 4] } else { highest });
        machine.cpu.sys.cr4 |= cr4::OSXSAVE;
        machine.cpu.sys.xcr0 = 7;
        assert_eq!(machine.cpu.cpuid(1, 0).ecx >> 27 & 1, 1);
        assert_eq!(machine.cpu.cpuid(0xd, 0).ebx, 832);
    }
}

#[test]
fn the_time_stamp_counter_can_be_kept_from_users() {
    // RDTSC, RDTSCP, RDPMC.
    let (rdtsc, rdtscp, rdpmc) = ([0x0f, 0x31], [0x0f, 0x01, 0xf9], [0x0f, 0x33]);
    let mut machine = Machine::new(Start::Long { cpl: 3 });
    machine.cpu.sys.tsc_aux = 0x1234;
    machine.run(&rdtscp).unwrap();
    assert_eq!(machine.cpu.regs.r[RCX], 0x1234);
    let first = machine.cpu.regs.r[RDX] << 32 | machine.cpu.regs.r[RAX];
    machine.run(&rdtsc).unwrap();
    assert!(machine.cpu.regs.r[RDX] << 32 | machine.cpu.regs.r[RAX] >= first);
    machine.cpu.sys.cr4 |= cr4::TSD;
    assert_eq!(machine.faults(&rdtsc), Fault::GP0);
    assert_eq!(machine.faults(&rdtscp), Fault::GP0);
    assert_eq!(machine.faults(&rdpmc), Fault::GP0);
    // RDPID RBX.
    machine.run(&[0xf3, 0x0f, 0xc7, 0xfb]).unwrap();
    assert_eq!(machine.cpu.regs.r[RBX], 0x1234);
}

#[test]
fn instructions_of_absent_extensions_are_undefined() {
    for code in [
        &[0x0fu8, 0x01, 0xc8][..],
        &[0x0f, 0x01, 0xc9],
        &[0x0f, 0x01, 0xc2],
        &[0x0f, 0x01, 0xd8],
        &[0x0f, 0x01, 0xda],
        &[0x0f, 0x01, 0xdd],
        &[0x0f, 0xaa],
        &[0x0f, 0x37],
        &[0x0f, 0x0b],
        &[0x0f, 0xff, 0xc0],
        &[0x0f, 0xb9, 0xc0],
        &[0x0f, 0x01, 0xee],
        &[0xf3, 0x0f, 0xc7, 0x30],
    ] {
        for cpl in [0, 3] {
            assert_eq!(Machine::new(Start::Long { cpl }).faults(code), Fault::UNDEFINED, "{code:02x?}");
        }
    }
}

#[test]
fn instructions_follow_cpuid() {
    // RDTSCP, RDPID, INVPCID, STAC, CLWB.
    let codes = [
        &[0x0fu8, 0x01, 0xf9][..],
        &[0xf3, 0x0f, 0xc7, 0xf8],
        &[0x66, 0x0f, 0x38, 0x82, 0x03],
        &[0x0f, 0x01, 0xcb],
        &[0x66, 0x0f, 0xae, 0x30],
    ];
    for code in codes {
        let mut machine = Machine::new(Start::Long { cpl: 0 });
        machine.cpu.regs.r[RBX] = DATA;
        machine.cpu.regs.r[RAX] = 0;
        machine.run(code).unwrap();
        let mut machine = Machine::without_features(Start::Long { cpl: 0 });
        assert_eq!(machine.faults(code), Fault::UNDEFINED, "{code:02x?}");
    }
}

#[test]
fn hypercalls_are_for_the_kernel_and_unknown_ones_fail() {
    for code in [[0x0f, 0x01, 0xc1], [0x0f, 0x01, 0xd9]] {
        for (cpl, number, expected) in [(0, 999u64, -1000i64), (3, 1, -1), (0, 1, 0), (0, 11, 0)] {
            let mut machine = Machine::new(Start::Long { cpl });
            machine.cpu.regs.r[RAX] = number;
            machine.run(&code).unwrap();
            assert_eq!(machine.cpu.regs.r[RAX] as i64, expected, "{number} at {cpl}");
        }
    }
}

#[test]
fn cache_lines_are_flushed_where_they_can_be_read() {
    let mut machine = Machine::new(Start::Long { cpl: 3 });
    machine.cpu.regs.r[RAX] = DATA;
    // CLFLUSH [RAX]; WBINVD.
    let clflush = [0x0f, 0xae, 0x38];
    machine.run(&clflush).unwrap();
    machine.cpu.regs.r[RAX] = 0x7f00_0000_0000;
    assert_eq!(machine.faults(&clflush).vector(), Vector::PageFault as u8);
    machine.cpu.regs.r[RAX] = 0x8000_0000_0000;
    assert_eq!(machine.faults(&clflush), Fault::GP0);
    assert_eq!(machine.faults(&[0x0f, 0x09]), Fault::GP0);
    Machine::new(Start::Long { cpl: 0 }).run(&[0x0f, 0x09]).unwrap();
}

#[test]
fn init_and_start_up_make_a_real_mode_processor() {
    let mut machine = Machine::new(Start::Long { cpl: 3 });
    machine.cpu.id = 1;
    machine.cpu.sys.xcr0 = 7;
    machine.cpu.regs.ymm[0] = [1, 2, 3, 4];
    machine.cpu.init_message();
    let cpu = &machine.cpu;
    assert!(cpu.wait_for_sipi && !cpu.mode.protected);
    assert_eq!((cpu.regs.seg[seg::CS].base, cpu.regs.r[RIP]), (0xffff_0000, 0xfff0));
    assert_eq!((cpu.regs.r[RDX], cpu.sys.xcr0, cpu.regs.ymm[0]), (0x000a_20f2, 7, [1, 2, 3, 4]));
    assert_eq!((cpu.sys.efer, cpu.sys.cr4), (0, 0));
    machine.cpu.startup_message();
    assert!(!machine.cpu.wait_for_sipi);
    let code = machine.cpu.regs.seg[seg::CS];
    assert_eq!((code.selector, code.base, machine.cpu.regs.r[RIP]), (0, 0, 0));
}
