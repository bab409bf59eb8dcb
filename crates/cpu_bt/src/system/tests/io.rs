//! Port input and output.

use super::machine::*;
use crate::fault::Fault;
use crate::regs::{RAX, RCX, RDI, RDX, RIP, RSI};
use crate::signals::signal;
use x86::reg::rflags;

#[test]
fn ports_are_read_and_written_by_size() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.cpu.regs.r[RAX] = 0x1122_3344_5566_7788;
    machine.cpu.regs.r[RDX] = 0xffff_03f8;
    // IN AL, 0x60; IN AX, DX; IN EAX, DX.
    machine.run(&[0xe4, 0x60]).unwrap();
    assert_eq!(machine.cpu.regs.r[RAX], 0x1122_3344_5566_7760);
    machine.run(&[0x66, 0xed]).unwrap();
    assert_eq!(machine.cpu.regs.r[RAX], 0x1122_3344_5566_f9f8);
    machine.run(&[0xed]).unwrap();
    assert_eq!(machine.cpu.regs.r[RAX], 0xfbfa_f9f8);
    // OUT 0x80, AL; OUT DX, AX; OUT DX, EAX.
    machine.run(&[0xe6, 0x80]).unwrap();
    machine.run(&[0x66, 0xef]).unwrap();
    machine.run(&[0xef]).unwrap();
    let expected = [(0x80, vec![0xf8]), (0x3f8, vec![0xf8, 0xf9]), (0x3f8, vec![0xf8, 0xf9, 0xfa, 0xfb])];
    assert_eq!(*machine.bus.writes.lock().unwrap(), expected);
}

#[test]
fn users_need_iopl_or_the_permission_map() {
    for (iopl, allowed_ports, port, len, expected) in [
        (0u64, &[][..], 0x60u64, 1, false),
        (3, &[], 0x60, 1, true),
        (0, &[0x60], 0x60, 1, true),
        (0, &[0x60], 0x60, 2, false),
        (0, &[0x60, 0x61], 0x60, 2, true),
        // Across a byte of the map.
        (0, &[0x66, 0x67, 0x68, 0x69], 0x66, 4, true),
        (0, &[0x66, 0x67, 0x69], 0x66, 4, false),
        // The map ends with the segment.
        (0, &[], 0xfff0, 1, false),
    ] {
        let mut machine = Machine::new(Start::Long { cpl: 3 });
        machine.cpu.regs.rflags |= iopl << 12;
        for &port in allowed_ports {
            let at = TSS_BASE + IO_MAP + port / 8;
            let byte = machine.load::<u8>(at);
            machine.store(at, byte & !(1 << (port % 8)));
        }
        machine.cpu.regs.r[RDX] = port;
        let code = match len {
            1 => &[0xecu8][..],
            2 => &[0x66, 0xed],
            _ => &[0xed],
        };
        let expected = if expected { Ok(()) } else { Err(Fault::GP0) };
        assert_eq!(machine.run(code), expected, "{iopl} {allowed_ports:x?} {port:#x} {len}");
    }
    // Without a map in the segment nothing is allowed.
    let mut machine = Machine::new(Start::Long { cpl: 3 });
    machine.cpu.sys.tr.limit = 0x67;
    assert_eq!(machine.faults(&[0xec]), Fault::GP0);
}

#[test]
fn strings_repeat_in_both_directions() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.store(DATA, 0x0807_0605_0403_0201u64);
    machine.cpu.regs.r[RSI] = DATA;
    machine.cpu.regs.r[RCX] = 3;
    machine.cpu.regs.r[RDX] = 0x402;
    // REP OUTSB.
    machine.run(&[0xf3, 0x6e]).unwrap();
    let written: Vec<u8> = machine.bus.writes.lock().unwrap().iter().map(|(_, bytes)| bytes[0]).collect();
    assert_eq!(written, [1, 2, 3]);
    assert_eq!((machine.cpu.regs.r[RSI], machine.cpu.regs.r[RCX]), (DATA + 3, 0));
    // REP INSW downwards.
    machine.cpu.regs.rflags |= rflags::DF;
    machine.cpu.regs.r[RDI] = DATA + 6;
    machine.cpu.regs.r[RCX] = 2;
    machine.run(&[0xf3, 0x66, 0x6d]).unwrap();
    assert_eq!(machine.load::<u64>(DATA), 0x0302_0302_0403_0201);
    assert_eq!(machine.cpu.regs.r[RDI], DATA + 2);
}

#[test]
fn a_string_is_interrupted_between_elements() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.cpu.regs.r[RSI] = DATA;
    machine.cpu.regs.r[RCX] = 3;
    machine.cpu.signals.raise(signal::KICK);
    machine.run(&[0xf3, 0x6e]).unwrap();
    assert_eq!((machine.cpu.regs.r[RCX], machine.cpu.regs.r[RIP]), (2, CODE));
    machine.step().unwrap();
    machine.step().unwrap();
    assert_eq!((machine.cpu.regs.r[RCX], machine.cpu.regs.r[RIP]), (0, CODE + 2));
    assert_eq!(machine.bus.writes.lock().unwrap().len(), 3);
}

#[test]
fn a_fault_in_a_string_keeps_what_was_done() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    // The last bytes of the gigabyte that is mapped, with no memory behind them; then nothing.
    machine.cpu.regs.r[RDI] = 0x4000_0000 - 2;
    machine.cpu.regs.r[RCX] = 5;
    let fault = machine.run(&[0xf3, 0x6c]).unwrap_err();
    assert_eq!((fault.vector(), machine.cpu.fault_address), (14, 0x4000_0000));
    assert_eq!(
        (machine.cpu.regs.r[RCX], machine.cpu.regs.r[RDI], machine.cpu.regs.r[RIP]),
        (3, 0x4000_0000, CODE)
    );
}

#[test]
fn sixteen_bit_addresses_wrap() {
    let mut machine = Machine::new(Start::Real);
    machine.cpu.regs.r[RDI] = 0xabcd_ffff;
    machine.cpu.regs.r[RCX] = 0x5555_0001;
    machine.run(&[0xf3, 0x6c]).unwrap();
    assert_eq!((machine.cpu.regs.r[RDI], machine.cpu.regs.r[RCX]), (0xabcd_0000, 0x5555_0000));
}
