//! A guest program that uses its APIC: timer, halt, start of a second processor, interrupts to it.

use super::*;
use crate::{BtEngine, Options};
use ::cpu::{Engine, Vcpu, VmExit};
use iced_x86::code_asm::*;
use std::sync::mpsc::{Sender, channel};
use x86::state::{gpr, seg};

/// Passes on what is written to any port.
struct Ports(Sender<u8>);

impl CpuIo for Ports {
    fn pio_read(&self, _port: u16, _data: &mut [u8]) {}
    fn pio_write(&self, _port: u16, data: &[u8]) {
        let _ = self.0.send(data[0]);
    }
    fn mmio_read(&self, _gpa: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn end_of_interrupt(&self, _vector: u8) {}
    fn pic_acknowledge(&self) -> u8 {
        0
    }
}

fn wrmsr(asm: &mut CodeAssembler, number: u32, value: u64) -> Result<(), IcedError> {
    asm.mov(ecx, number)?;
    asm.mov(eax, value as u32)?;
    asm.mov(edx, (value >> 32) as u32)?;
    asm.wrmsr()
}

fn out(asm: &mut CodeAssembler, value: u32) -> Result<(), IcedError> {
    asm.mov(al, value)?;
    asm.out(0x80, al)
}

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Puts 16-bit code at an address below 64 KiB.
fn load(ram: &Ram, at: u64, program: Program) {
    let mut asm = CodeAssembler::new(16).unwrap();
    program(&mut asm).unwrap();
    for (offset, byte) in asm.assemble(at).unwrap().into_iter().enumerate() {
        ram.store(at + offset as u64, byte).unwrap();
    }
}

/// x2APIC mode, enabled by software.
fn enable(asm: &mut CodeAssembler, bsp: u64) -> Result<(), IcedError> {
    wrmsr(asm, msr::APIC_BASE, 0xfee0_0c00 | bsp)?;
    wrmsr(asm, 0x80f, 0x1ff)
}

/// Sets a timer of 2 ms and halts until it has come; then starts the other processor, waits for its
/// interrupt, and sends it one.
fn first(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    enable(asm, base::BSP)?;
    wrmsr(asm, 0x832, 0x40)?;
    wrmsr(asm, 0x83e, DIVIDE_BY_1 as u64)?;
    wrmsr(asm, 0x838, 2_000_000)?;
    asm.sti()?;
    asm.hlt()?;
    out(asm, 2)?;
    // Not before it halts, or it would wait for another one.
    asm.cli()?;
    wrmsr(asm, 0x830, 1 << 32 | 0x4500)?;
    wrmsr(asm, 0x830, 1 << 32 | 0x4603)?;
    asm.sti()?;
    asm.hlt()?;
    out(asm, 5)?;
    wrmsr(asm, 0x830, 1 << 32 | 0x43)?;
    let mut forever = asm.create_label();
    asm.set_label(&mut forever)?;
    asm.hlt()?;
    asm.jmp(forever)
}

/// Says hello by interrupt; then waits for one.
fn second(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.xor(ax, ax)?;
    asm.mov(ss, eax)?;
    asm.mov(sp, 0x7000u32)?;
    enable(asm, 0)?;
    out(asm, 3)?;
    wrmsr(asm, 0x830, 0x42)?;
    asm.sti()?;
    asm.hlt()?;
    out(asm, 7)?;
    asm.cli()?;
    asm.hlt()
}

/// Handlers of three vectors: say which, end, return.
fn handler(asm: &mut CodeAssembler, number: u32) -> Result<(), IcedError> {
    out(asm, number)?;
    wrmsr(asm, 0x80b, 0)?;
    asm.iret()
}

#[test]
fn a_guest_uses_its_apic() {
    let clock = Arc::new(Clock::new());
    let timers = Timers::new(clock.clone()).unwrap();
    let ram = Arc::new(Ram::new(2 << 20).unwrap());
    load(&ram, 0x1000, first);
    load(&ram, 0x3000, second);
    let handlers: [(u64, u64, Program); 3] = [
        (0x40, 0x4000, |asm| handler(asm, 1)),
        (0x42, 0x4200, |asm| handler(asm, 4)),
        (0x43, 0x4300, |asm| handler(asm, 6)),
    ];
    for (vector, at, program) in handlers {
        load(&ram, at, program);
        ram.store(vector * 4, at as u32).unwrap();
    }
    let config =
        VmConfig { ram, clock, timers, vcpus: 2, cpuid: x86::cpuid::build("default", 2, 1).unwrap() };
    let vm = BtEngine::new(Options::default()).create_vm(config).unwrap();
    let mut vcpus: Vec<Box<dyn Vcpu>> = (0..2).map(|id| vm.create_vcpu(id).unwrap()).collect();
    let mut state = vcpus[0].state().unwrap();
    (state.segments[seg::CS].base, state.segments[seg::CS].selector, state.rip) = (0, 0, 0x1000);
    state.gpr[gpr::RSP] = 0x6000;
    vcpus[0].set_state(&state).unwrap();
    let kickers: Vec<_> = vcpus.iter().map(|vcpu| vcpu.kicker()).collect();
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        let threads: Vec<_> = vcpus
            .into_iter()
            .map(|mut vcpu| {
                let sender = sender.clone();
                scope.spawn(move || vcpu.run(&Ports(sender)).unwrap())
            })
            .collect();
        let mut said = Vec::new();
        while said.last() != Some(&7)
            && let Ok(next) = receiver.recv_timeout(PATIENCE)
        {
            said.push(next);
        }
        kickers.iter().for_each(|kicker| kicker.kick());
        for thread in threads {
            assert_eq!(thread.join().unwrap(), VmExit::Kicked, "after {said:?}");
        }
        assert_eq!(said, [1, 2, 3, 4, 5, 6, 7]);
    });
}
