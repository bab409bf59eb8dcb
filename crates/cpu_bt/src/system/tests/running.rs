//! System instructions in running code: shadows, single steps, breakpoints of the loop, interrupts.

use super::machine::*;
use crate::cpu::Cpu;
use crate::options::{Jit, Options};
use crate::regs::{RAX, RBX, RCX, RDI, RDX, RSI, RSP};
use crate::signals::signal;
use ::cpu::{CpuIo, VmExit};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::reg::{cr0, efer, rflags};
use x86::state::seg;

/// A bus whose port 0xf4 ends the run.
struct StopPort<'a>(&'a crate::signals::Signals);

impl CpuIo for StopPort<'_> {
    fn pio_read(&self, _port: u16, _data: &mut [u8]) {}
    fn pio_write(&self, port: u16, _data: &[u8]) {
        if port == 0xf4 {
            self.0.raise(signal::KICK);
        }
    }
    fn mmio_read(&self, _gpa: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn end_of_interrupt(&self, _vector: u8) {}
    fn pic_acknowledge(&self) -> u8 {
        0x20
    }
}

fn put(machine: &mut Machine, at: u64, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler).unwrap();
    for (gpa, byte) in (at..).zip(assembler.assemble(at).unwrap()) {
        machine.store(gpa, byte);
    }
}

/// Puts a program at the start and runs it until it writes to port 0xf4.
fn run(machine: &mut Machine, program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> VmExit {
    put(machine, CODE, |a| {
        program(a)?;
        a.out(0xf4, al)
    });
    machine.cpu.signals.take(u32::MAX);
    let signals = machine.cpu.signals.clone();
    machine.cpu.with_io(&StopPort(&signals), |cpu| cpu.execute())
}

/// A handler that counts in memory at `DATA + 8 * vector`.
fn counting_handler(machine: &mut Machine, vector: u64) {
    put(machine, HANDLERS + 16 * vector, |a| {
        a.inc(qword_ptr(DATA + 8 * vector))?;
        a.iretq()
    });
}

fn count(machine: &Machine, vector: u64) -> u64 {
    machine.load(DATA + 8 * vector)
}

/// Lets SYSCALL lead to [`GATE`], as kernels have it: with interrupts off.
fn enable_system_calls(cpu: &mut Cpu) {
    cpu.sys.star = (0x23u64 << 48) | (selector::CODE64 as u64) << 32;
    cpu.sys.lstar = GATE;
    cpu.sys.sfmask = rflags::STATUS | rflags::IF | rflags::TF | rflags::AC;
    cpu.sys.efer |= efer::SCE;
}

#[test]
fn each_instruction_traps_while_tf_is_set() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    counting_handler(&mut machine, 1);
    counting_handler(&mut machine, 0x80);
    let exit = run(&mut machine, |a| {
        a.pushfq()?;
        a.or(dword_ptr(rsp), rflags::TF as i32)?;
        // No trap after the instruction that sets the flag.
        a.popfq()?;
        a.nop()?;
        a.nop()?;
        // INT enters its handler without a trap; the trap comes after the return's next instruction.
        a.int(0x80)?;
        a.nop()?;
        a.pushfq()?;
        a.and(dword_ptr(rsp), !(rflags::TF as i32))?;
        // The instruction that clears it still traps.
        a.popfq()
    });
    assert_eq!(exit, VmExit::Kicked);
    assert_eq!((count(&machine, 0x80), count(&machine, 1)), (1, 2 + 1 + 3));
}

#[test]
fn loading_ss_holds_the_trap_off_for_one_instruction() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    counting_handler(&mut machine, 1);
    let exit = run(&mut machine, |a| {
        a.mov(eax, ss)?;
        a.pushfq()?;
        a.or(dword_ptr(rsp), rflags::TF as i32)?;
        a.popfq()?;
        a.mov(ss, eax)?;
        a.nop()?;
        a.pushfq()?;
        a.and(dword_ptr(rsp), !(rflags::TF as i32))?;
        a.popfq()
    });
    assert_eq!(exit, VmExit::Kicked);
    assert_eq!(count(&machine, 1), 4);
}

#[test]
fn an_nmi_waits_for_iret_and_no_instruction_is_lost() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    counting_handler(&mut machine, 2);
    machine.cpu.nmi_blocked = true;
    put(&mut machine, CODE, |a| {
        // IRETQ to the next instruction lets the NMI in.
        a.mov(rbx, rsp)?;
        a.push(0x10)?;
        a.push(rbx)?;
        a.pushfq()?;
        a.push(0x18)?;
        a.lea(rax, qword_ptr(CODE + 0x100))?;
        a.push(rax)?;
        a.mov(rcx, qword_ptr(DATA + 16))?;
        a.iretq()
    });
    put(&mut machine, CODE + 0x100, |a| a.out(0xf4, al));
    machine.cpu.signals.take(u32::MAX);
    machine.cpu.signals.raise(signal::NMI);
    let signals = machine.cpu.signals.clone();
    let exit = machine.cpu.with_io(&StopPort(&signals), |cpu| cpu.execute());
    assert_eq!(exit, VmExit::Kicked);
    assert_eq!((count(&machine, 2), machine.cpu.regs.r[1]), (1, 0));
}

#[test]
fn a_program_without_handlers_shuts_the_machine_down() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.cpu.sys.idtr.limit = 0;
    let exit = run(&mut machine, |a| a.ud2());
    assert!(matches!(&exit, VmExit::Shutdown(text) if text.contains("triple fault")), "{exit:?}");
}

#[test]
fn a_system_call_runs_and_returns() {
    let mut machine = Machine::new(Start::Long { cpl: 3 });
    machine.cpu.sys.star = (0x23u64 << 48) | 0x18 << 32;
    machine.cpu.sys.lstar = GATE;
    machine.cpu.sys.sfmask = rflags::TF | rflags::IF;
    put(&mut machine, GATE, |a| {
        a.swapgs()?;
        a.inc(rbx)?;
        a.swapgs()?;
        a.sysretq()
    });
    // Stop from the kernel: INT 0x80 is for users.
    put(&mut machine, HANDLERS + 0x800, |a| a.out(0xf4, al));
    counting_handler(&mut machine, 1);
    let exit = run(&mut machine, |a| {
        a.syscall()?;
        a.pushfq()?;
        a.or(dword_ptr(rsp), rflags::TF as i32)?;
        a.popfq()?;
        // Masked in the kernel, so there is no trap there; after the return there is again.
        a.syscall()?;
        a.nop()?;
        a.int(0x80)
    });
    assert_eq!(exit, VmExit::Kicked);
    assert_eq!(machine.cpu.regs.r[RBX], 2);
    assert_eq!(count(&machine, 1), 1);
}

/// Where the two differ, the interpreter goes on beyond the trace in search of its end: SWAPGS, done there, could not be
/// undone, and the next try (or, after a race, the guest) would have the wrong base.
#[test]
fn lockstep_does_no_system_instruction_in_search_of_a_traces_end() {
    let options = Options { jit: Jit::Lockstep, ..Options::default() };
    let mut machine = Machine::with_options(Start::Long { cpl: 0 }, &options);
    put(&mut machine, CODE, |a| {
        a.mov(eax, 1)?;
        a.mov(qword_ptr(DATA), rax)?;
        a.swapgs()?;
        a.nop()?;
        a.hlt()
    });
    machine.cpu.sys.kernel_gs_base = 0x1234_5000;
    let cpu = &mut machine.cpu;
    crate::jit::runtime::use_vcpu(&raw mut **cpu).unwrap();
    let key = crate::jit::key_of(cpu);
    assert!(matches!(cpu.translate_trace(CODE, None, key), crate::jit::translator::Made::Code(_)));
    // Behind the engine's back, so that the translated trace is wrong.
    let page = cpu.ram.host_page(CODE).unwrap();
    // SAFETY: a byte of that page.
    unsafe { page.ptr.add((CODE & 0xfff) as usize + 1).write(3) };
    let vm = cpu.vm.clone();
    let turn = vm.turns.take(cpu);
    assert_eq!(machine.cpu.compare_trace(), Ok(true));
    drop(turn);
    let report = machine.cpu.failure.take().expect("a difference");
    assert!(report.contains("the ends differ"), "{report}");
    assert_eq!((machine.cpu.regs.seg[seg::GS].base, machine.cpu.sys.kernel_gs_base), (0, 0x1234_5000));
}

#[test]
fn sti_lets_interrupts_in_after_the_next_instruction() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    // The handler notes the address that it was called from.
    put(&mut machine, HANDLERS + 0x40 * 16, |a| {
        a.pop(qword_ptr(DATA))?;
        a.out(0xf4, al)
    });
    put(&mut machine, CODE, |a| {
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.nop()?;
        a.out(0xf4, al)
    });
    machine.cpu.signals.take(u32::MAX);
    // Enable the APIC and send the vCPU its own interrupt.
    machine.cpu.lapic_mmio_write(x86::apic::reg::SVR, &0x1ffu32.to_le_bytes());
    machine.cpu.vm.deliver_message(x86::apic::DEFAULT_BASE, 0x40);
    let signals = machine.cpu.signals.clone();
    let exit = machine.cpu.with_io(&StopPort(&signals), |cpu| cpu.execute());
    assert_eq!(exit, VmExit::Kicked);
    assert_eq!(machine.load::<u64>(DATA), CODE + 2);
}

/// Interrupts that the legacy controller raises at each write to port 0xf5; port 0xf4 ends the run, others do nothing.
struct Line<'a>(&'a crate::signals::Signals, &'a crate::vm::VmShared);

impl CpuIo for Line<'_> {
    fn pio_read(&self, _port: u16, _data: &mut [u8]) {}
    fn pio_write(&self, port: u16, _data: &[u8]) {
        match port {
            0xf4 => self.0.raise(signal::KICK),
            0xf5 => {
                self.1.pic_line.store(true, std::sync::atomic::Ordering::SeqCst);
                self.0.raise(signal::INTERRUPT);
            }
            _ => {}
        }
    }
    fn mmio_read(&self, _gpa: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn end_of_interrupt(&self, _vector: u8) {}
    fn pic_acknowledge(&self) -> u8 {
        self.1.pic_line.store(false, std::sync::atomic::Ordering::SeqCst);
        0x20
    }
}

#[test]
fn interrupts_come_in_wherever_they_are_enabled_however_short_that_is() {
    /// As many turns have no interrupts, so that traces are linked, as have one.
    const TURNS: u64 = 100;
    type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let enable: [(&str, Write); 2] = [
        ("STI", |a| {
            a.sti()?;
            a.nop()
        }),
        ("POPF", |a| {
            a.push(r9)?;
            a.popfq()
        }),
    ];
    for (what, enable) in enable {
        let mut machine = Machine::new(Start::Long { cpl: 0 });
        counting_handler(&mut machine, 0x20);
        put(&mut machine, CODE, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.cli()?;
            a.out(dx, al)?;
            enable(a)?;
            a.cli()?;
            a.add(r8, qword_ptr(DATA + 8 * 0x20))?;
            a.dec(rcx)?;
            a.cmp(rcx, TURNS as i32)?;
            a.cmove(edx, esi)?;
            a.test(rcx, rcx)?;
            a.jne(again)?;
            a.out(0xf4, al)
        });
        (machine.cpu.regs.r[RCX], machine.cpu.regs.r[9]) = (2 * TURNS, rflags::IF | rflags::FIXED);
        (machine.cpu.regs.r[RDX], machine.cpu.regs.r[RSI]) = (0xf6, 0xf5);
        machine.cpu.signals.take(u32::MAX);
        // The loop is translated.
        crate::jit::runtime::use_vcpu(&raw mut *machine.cpu).unwrap();
        let (signals, vm) = (machine.cpu.signals.clone(), machine.cpu.vm.clone());
        let exit = machine.cpu.with_io(&Line(&signals, &vm), |cpu| cpu.execute());
        assert_eq!(exit, VmExit::Kicked, "{what}");
        // Turn n has seen n of them.
        assert_eq!(machine.cpu.regs.r[8], TURNS * (TURNS + 1) / 2, "{what}");
    }
}

#[test]
fn data_breakpoints_trap_after_the_access() {
    // Watched: eight bytes for writes, two bytes for both.
    let arm = |machine: &mut Machine| {
        machine.cpu.sys.dr = [DATA + 0x100, DATA + 0x200, 0, 0];
        machine.cpu.sys.dr7 |= 1 | 1 << 2 | 0b1001 << 16 | 0b0111 << 20;
    };
    // What the handler finds: DR6 and the address that the trap returns to.
    let handler = |machine: &mut Machine| {
        put(machine, HANDLERS + 16, |a| {
            a.mov(r15, qword_ptr(rsp))?;
            a.mov(r14, dr6)?;
            a.out(0xf4, al)
        });
    };
    type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let cases: [(&str, Write, Option<u64>); 11] = [
        ("write", |a| a.mov(dword_ptr(DATA + 0x104), eax), Some(1)),
        ("last byte", |a| a.mov(byte_ptr(DATA + 0x107), al), Some(1)),
        ("past it", |a| a.mov(byte_ptr(DATA + 0x108), al), None),
        ("overlap from below", |a| a.mov(qword_ptr(DATA + 0xf9), rax), Some(1)),
        ("read of what waits for writes", |a| a.mov(rax, qword_ptr(DATA + 0x100)), None),
        ("read", |a| a.mov(ax, word_ptr(DATA + 0x200)), Some(2)),
        ("read-modify-write", |a| a.inc(dword_ptr(DATA + 0x1fe)), Some(2)),
        ("string", |a| a.rep().stosb(), Some(1)),
        ("push", |a| a.push(rax), Some(2)),
        ("by registers", |a| a.mov(word_ptr(rbx + rcx * 8 + 0xf8), ax), Some(1)),
        ("address only", |a| a.lea(rax, qword_ptr(DATA + 0x200)), None),
    ];
    for (what, instruction, expected) in cases {
        let mut machine = Machine::new(Start::Long { cpl: 0 });
        arm(&mut machine);
        handler(&mut machine);
        let r = &mut machine.cpu.regs.r;
        (r[RAX], r[RBX], r[RCX], r[RDI], r[RSP]) = (0, DATA, 1, DATA + 0x100, DATA + 0x208);
        assert_eq!(run(&mut machine, instruction), VmExit::Kicked, "{what}");
        let r = &machine.cpu.regs.r;
        match expected {
            None => assert_eq!(r[14], 0, "{what}"),
            Some(bits) => {
                assert_eq!(r[14], x86::reg::dr6::FIXED | bits, "{what}");
                assert!(r[15] > CODE && r[15] < CODE + 16, "{what}: trap at {:#x}", r[15]);
            }
        }
    }
}

#[test]
fn an_instruction_breakpoint_stops_before_and_lets_go_on() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    // The handler counts, sets RF in the frame and returns.
    put(&mut machine, HANDLERS + 16, |a| {
        a.inc(rbx)?;
        a.or(dword_ptr(rsp + 16), rflags::RF as i32)?;
        a.iretq()
    });
    machine.cpu.sys.dr[3] = CODE + 1;
    machine.cpu.sys.dr7 |= 1 << 6;
    machine.cpu.regs.r[RCX] = 3;
    let exit = run(&mut machine, |a| {
        let mut again = a.create_label();
        a.nop()?;
        a.set_label(&mut again)?;
        a.nop()?;
        a.dec(rcx)?;
        a.jne(again)
    });
    assert_eq!(exit, VmExit::Kicked);
    assert_eq!((machine.cpu.regs.r[RBX], machine.cpu.regs.r[RCX]), (3, 0));
    assert!(!machine.cpu.regs.flag(rflags::RF));
}

/// As above, enabled by SYSRET.
#[test]
fn interrupts_come_in_behind_sysret() {
    const TURNS: u64 = 100;
    let mut machine = Machine::new(Start::Long { cpl: 3 });
    let cpu = &mut machine.cpu;
    enable_system_calls(cpu);
    cpu.regs.rflags |= rflags::IF;
    cpu.update_mode();
    put(&mut machine, GATE, |a| {
        a.out(dx, al)?;
        a.sysretq()
    });
    counting_handler(&mut machine, 0x20);
    // Stop from the kernel: INT 0x80 is for users.
    put(&mut machine, HANDLERS + 0x800, |a| a.out(0xf4, al));
    put(&mut machine, CODE, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.syscall()?;
        a.add(r8, qword_ptr(DATA + 8 * 0x20))?;
        a.dec(rbx)?;
        a.cmp(rbx, TURNS as i32)?;
        a.cmove(edx, esi)?;
        a.test(rbx, rbx)?;
        a.jne(again)?;
        a.int(0x80)
    });
    let registers = &mut machine.cpu.regs.r;
    (registers[RBX], registers[RDX], registers[RSI]) = (2 * TURNS, 0xf6, 0xf5);
    machine.cpu.signals.take(u32::MAX);
    crate::jit::runtime::use_vcpu(&raw mut *machine.cpu).expect("the GS base of this thread");
    let (signals, vm) = (machine.cpu.signals.clone(), machine.cpu.vm.clone());
    let exit = machine.cpu.with_io(&Line(&signals, &vm), |cpu| cpu.execute());
    assert_eq!(exit, VmExit::Kicked);
    assert_eq!(machine.cpu.regs.r[8], TURNS * (TURNS + 1) / 2);
}

/// Hot code on both sides of SYSCALL and SYSRET; the last SYSRET returns with RFLAGS.AC.
#[test]
fn sysret_turns_the_alignment_check_on() {
    const CALLS: u32 = 300;
    let mut machine = Machine::new(Start::Long { cpl: 3 });
    let cpu = &mut machine.cpu;
    enable_system_calls(cpu);
    cpu.sys.cr0 |= cr0::AM;
    cpu.regs.rflags |= rflags::IF;
    cpu.update_mode();
    put(&mut machine, GATE, |a| {
        let mut back = a.create_label();
        a.cmp(ebx, 1)?;
        a.jne(back)?;
        a.or(r11, rflags::AC as i32)?;
        a.set_label(&mut back)?;
        a.sysretq()
    });
    for vector in [13, 17] {
        put(&mut machine, HANDLERS + 16 * vector, |a| {
            a.inc(qword_ptr(DATA + 8 * vector))?;
            a.out(0xf4, al)
        });
    }
    crate::jit::runtime::use_vcpu(&raw mut *machine.cpu).expect("the GS base of this thread");
    let exit = run(&mut machine, |a| {
        let mut head = a.create_label();
        a.mov(ebx, CALLS)?;
        a.set_label(&mut head)?;
        // Not aligned, and not checked yet.
        a.mov(rdx, qword_ptr(DATA + 1))?;
        a.syscall()?;
        a.dec(ebx)?;
        a.jne(head)?;
        a.mov(rax, qword_ptr(DATA + 0x100))?;
        a.mov(rax, qword_ptr(DATA + 0x101))
    });
    assert_eq!(exit, VmExit::Kicked);
    assert_eq!((count(&machine, 17), count(&machine, 13)), (1, 0), "#AC, and not the #GP of OUT behind it");
}
