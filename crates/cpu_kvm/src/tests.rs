//! The engine as a whole, where there is a `/dev/kvm`: also one that is too slow for anything but this.

use crate::{KvmEngine, Options};
use clock::{Clock, Timers};
use cpu::{CpuIo, Engine, Vcpu, VmConfig, VmExit};
use memory::{Bytes, GuestAddress, Ram};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use x86::reg::{cr0, cr4, efer, rflags};
use x86::segment::Segment;
use x86::state::{CpuState, MpState, TableRegister, gpr, seg};

const MIB: u64 = 1 << 20;
const CODE: u64 = 0x1000;
const STACK: u64 = 0x9000;
const IDT: u64 = 0x5000;
const GDT: u64 = 0x6000;
const TABLES: u64 = 0x10000;

struct Machine {
    ram: Arc<Ram>,
    clock: Arc<Clock>,
    vm: Arc<dyn cpu::Vm>,
    vcpu: Box<dyn Vcpu>,
}

/// A machine with one vCPU; `None` where there is no KVM.
fn machine() -> Option<Machine> {
    let engine = KvmEngine::new(Options::default());
    let Ok(Some(offered)) = engine.offered_cpuid() else {
        eprintln!("SKIPPED: /dev/kvm does not open here");
        return None;
    };
    let ram = Arc::new(Ram::new(2 * MIB).unwrap());
    let clock = Arc::new(Clock::new());
    let timers = Timers::new(clock.clone()).unwrap();
    let host = x86::cpuid::HostCpuid::read();
    let cpuid = x86::cpuid::build_within(&offered, &host, "host", 1, clock.tsc_hz()).unwrap();
    let config = VmConfig { ram: ram.clone(), clock: clock.clone(), timers, vcpus: 1, cpuid };
    let vm = engine.create_vm(config).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    assert!(vm.create_vcpu(0).is_err() && vm.create_vcpu(1).is_err());
    Some(Machine { ram, clock, vm, vcpu })
}

impl Machine {
    /// Puts code into memory and the vCPU before it, in kernel mode of 64-bit mode.
    fn load(&mut self, code: &[u8]) -> CpuState {
        let ram = self.ram.guest();
        ram.write_slice(code, GuestAddress(CODE)).unwrap();
        for (at, value) in [(0, TABLES + 0x1003), (0x1000, TABLES + 0x2003), (0x2000, 0x83u64)] {
            ram.write_obj(value, GuestAddress(TABLES + at)).unwrap();
        }
        let gdt = [0u64, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
        for (at, descriptor) in (GDT..).step_by(8).zip(gdt) {
            ram.write_obj(descriptor, GuestAddress(at)).unwrap();
        }
        let mut state = self.vcpu.state().unwrap();
        state.segments = [Segment::from_descriptor(16, gdt[2]); 6];
        state.segments[seg::CS] = Segment::from_descriptor(8, gdt[1]);
        state.tr = Segment::from_descriptor(0, 0x0000_8b00_0000_0067);
        state.gdtr = TableRegister { base: GDT, limit: 23 };
        state.idtr = TableRegister { base: IDT, limit: 0xfff };
        (state.cr0, state.cr3, state.cr4) = (cr0::PE | cr0::ET | cr0::PG | cr0::NE, TABLES, cr4::PAE);
        state.efer = efer::LME | efer::LMA;
        (state.rip, state.rflags) = (CODE, rflags::FIXED);
        state.gpr[gpr::RSP] = STACK;
        state.mp_state = MpState::Runnable;
        self.vcpu.set_state(&state).unwrap();
        state
    }

    /// A gate for a vector that leads to `handler`.
    fn gate(&self, vector: u8, handler: u64) {
        let low = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler & 0xffff_0000) << 32;
        let at = IDT + 16 * u64::from(vector);
        self.ram.guest().write_obj([low, handler >> 32], GuestAddress(at)).unwrap();
    }
}

/// Ends the run when the guest writes to port 0x80.
#[derive(Default)]
struct Io {
    log: Mutex<Vec<(u16, Vec<u8>)>>,
    mmio: Mutex<Vec<(u64, Vec<u8>)>>,
    acknowledged: AtomicU32,
    kick: Mutex<Option<Arc<dyn cpu::Kicker>>>,
}

impl CpuIo for Io {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        assert!(data.iter().all(|byte| *byte == 0xff));
        data.fill(port as u8);
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        self.log.lock().unwrap().push((port, data.to_vec()));
        if port == 0x80
            && let Some(kick) = &*self.kick.lock().unwrap()
        {
            kick.kick();
        }
    }
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        data.copy_from_slice(&gpa.to_le_bytes()[..data.len()]);
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.mmio.lock().unwrap().push((gpa, data.to_vec()));
    }
    fn end_of_interrupt(&self, vector: u8) {
        self.log.lock().unwrap().push((0xffff, vec![vector]));
    }
    fn pic_acknowledge(&self) -> u8 {
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
        0x30
    }
}

impl Io {
    fn of(machine: &Machine) -> Io {
        Io { kick: Mutex::new(Some(machine.vcpu.kicker())), ..Io::default() }
    }
}

#[test]
fn accesses_are_finished_before_a_kick_ends_the_run() {
    let Some(mut machine) = machine() else { return };
    // in al, 0x42; mov bl, al; out 0x80, al; hlt
    machine.load(&[0xe4, 0x42, 0x88, 0xc3, 0xe6, 0x80, 0xf4]);
    let io = Io::of(&machine);
    assert_eq!(machine.vcpu.run(&io).unwrap(), VmExit::Kicked);
    let state = machine.vcpu.state().unwrap();
    assert_eq!((state.rip, state.gpr[gpr::RBX] as u8), (CODE + 6, 0x42));
    assert_eq!(*io.log.lock().unwrap(), [(0x80, vec![0x42])]);
}

#[test]
fn a_kick_before_the_run_and_one_from_another_thread_end_it() {
    let Some(mut machine) = machine() else { return };
    // jmp $
    machine.load(&[0xeb, 0xfe]);
    let (io, kick) = (Io::default(), machine.vcpu.kicker());
    kick.kick();
    assert_eq!(machine.vcpu.run(&io).unwrap(), VmExit::Kicked);
    let other = std::thread::spawn(move || {
        for _ in 0..50 {
            kick.kick();
            std::thread::yield_now();
        }
    });
    assert_eq!(machine.vcpu.run(&io).unwrap(), VmExit::Kicked);
    other.join().unwrap();
    // hlt, with interrupts off: sleeps in the kernel until the kick.
    machine.load(&[0xf4]);
    let kick = machine.vcpu.kicker();
    let other = std::thread::spawn(move || kick.kick());
    assert_eq!(machine.vcpu.run(&io).unwrap(), VmExit::Kicked);
    other.join().unwrap();
}

#[test]
fn interrupts_of_the_legacy_controller_come_in_when_the_guest_takes_them() {
    let Some(mut machine) = machine() else { return };
    machine.gate(0x30, CODE + 0x100);
    // sti; hlt; out 0x80, al; hlt
    machine.load(&[0xfb, 0xf4, 0xe6, 0x80, 0xf4]);
    // inc ebx; iretq
    machine.ram.guest().write_slice(&[0xff, 0xc3, 0x48, 0xcf], GuestAddress(CODE + 0x100)).unwrap();
    struct Once(Io, Arc<dyn cpu::Vm>);
    impl CpuIo for Once {
        fn pio_read(&self, port: u16, data: &mut [u8]) {
            self.0.pio_read(port, data);
        }
        fn pio_write(&self, port: u16, data: &[u8]) {
            self.0.pio_write(port, data);
        }
        fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
            self.0.mmio_read(gpa, data);
        }
        fn mmio_write(&self, gpa: u64, data: &[u8]) {
            self.0.mmio_write(gpa, data);
        }
        fn end_of_interrupt(&self, vector: u8) {
            self.0.end_of_interrupt(vector);
        }
        fn pic_acknowledge(&self) -> u8 {
            self.1.set_pic_line(false);
            self.0.pic_acknowledge()
        }
    }
    let io = Once(Io::of(&machine), machine.vm.clone());
    machine.vm.set_pic_line(true);
    assert_eq!(machine.vcpu.run(&io).unwrap(), VmExit::Kicked);
    assert_eq!(io.0.acknowledged.load(Ordering::SeqCst), 1);
    let state = machine.vcpu.state().unwrap();
    assert_eq!(state.gpr[gpr::RBX] as u32, 1);
    assert_eq!(state.rip, CODE + 4);
}

#[test]
fn messages_interrupt_and_level_triggered_ones_tell_of_their_end() {
    if !serves() {
        return;
    }
    let Some(mut machine) = machine() else { return };
    machine.gate(0x40, CODE + 0x100);
    let mut state = machine.load(&[0xfb, 0xf4, 0xe6, 0x80, 0xf4]);
    // x2APIC mode, enabled; end of interrupt by its register.
    state.lapic.base |= x86::apic::base::ENABLE | x86::apic::base::X2APIC;
    state.lapic.registers[(x86::apic::reg::SVR >> 4) as usize] = 0x1ff;
    machine.vcpu.set_state(&state).unwrap();
    machine.ram.guest().write_slice(&HANDLER, GuestAddress(CODE + 0x100)).unwrap();
    machine.vm.signal_msi(x86::apic::DEFAULT_BASE, 0x8040);
    let io = Io::of(&machine);
    assert_eq!(machine.vcpu.run(&io).unwrap(), VmExit::Kicked);
    assert_eq!(machine.vcpu.state().unwrap().gpr[gpr::RBX] as u32, 1);
    assert_eq!(io.log.lock().unwrap()[0], (0xffff, vec![0x40]));
}

/// Whether KVM serves here; one that interprets kernel mode was seen to deliver nothing.
fn serves() -> bool {
    let serves = KvmEngine::new(Options::default()).probe().usable;
    if !serves {
        eprintln!("SKIPPED: KVM does not serve here");
    }
    serves
}

#[test]
fn an_event_descriptor_interrupts_and_loses_nothing_at_a_pause() {
    if !serves() {
        return;
    }
    let Some(mut machine) = machine() else { return };
    let event = machine.vm.msi_event().expect("event descriptors for interrupts");
    event.trigger();
    assert!(!event.set_message(x86::apic::DEFAULT_BASE, 0x8040), "level-triggered");
    for vector in [0x40, 0x41] {
        machine.gate(vector, CODE + 0x100);
    }
    // 1: sti; hlt; cli; out 0x80, al; jmp 1b. What is pending interrupts the halt, not what comes before it.
    let mut state = machine.load(&[0xfb, 0xf4, 0xfa, 0xe6, 0x80, 0xeb, 0xf9]);
    state.lapic.base |= x86::apic::base::ENABLE | x86::apic::base::X2APIC;
    state.lapic.registers[(x86::apic::reg::SVR >> 4) as usize] = 0x1ff;
    machine.vcpu.set_state(&state).unwrap();
    machine.ram.guest().write_slice(&HANDLER, GuestAddress(CODE + 0x100)).unwrap();
    let io = Io::of(&machine);
    let counter = |machine: &Machine, name: &str| {
        machine.vm.counters().into_iter().find(|(known, _)| known == name).map(|(_, count)| count)
    };
    let taken = |machine: &mut Machine| {
        assert_eq!(machine.vcpu.run(&io).unwrap(), VmExit::Kicked);
        machine.vcpu.state().unwrap().gpr[gpr::RBX] as u32
    };
    assert!(event.set_message(x86::apic::DEFAULT_BASE, 0x40));
    event.trigger();
    assert_eq!(taken(&mut machine), 1);
    // Another vector for the same event.
    assert!(event.set_message(x86::apic::DEFAULT_BASE, 0x41));
    event.trigger();
    assert_eq!(taken(&mut machine), 2);
    assert_eq!(counter(&machine, "messages_by_event"), Some(2));
    // What is sent before a pause is in the saved state, and so is what is sent during it.
    event.trigger();
    machine.clock.pause();
    machine.vm.resynchronise();
    let in_request = |machine: &mut Machine| {
        let word = machine.vcpu.state().unwrap().lapic.registers[(x86::apic::reg::IRR >> 4) as usize + 2];
        word >> 1 & 1
    };
    assert_eq!(in_request(&mut machine), 1);
    assert!(event.set_message(x86::apic::DEFAULT_BASE, 0x42));
    event.trigger();
    assert_eq!(counter(&machine, "messages"), Some(1), "the other way");
    machine.gate(0x42, CODE + 0x100);
    machine.clock.resume();
    machine.vm.resynchronise();
    // Both, and then each other way again.
    let mut count = taken(&mut machine);
    while count < 4 {
        count = taken(&mut machine);
    }
    event.trigger();
    assert_eq!(taken(&mut machine), 5);
    assert_eq!(counter(&machine, "messages_by_event"), Some(4));
}

/// inc ebx; mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr; iretq: counts, and ends the interrupt.
const HANDLER: [u8; 15] =
    [0xff, 0xc3, 0xb9, 0x0b, 0x08, 0, 0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30, 0x48, 0xcf];

#[test]
fn a_state_is_the_same_there_and_back() {
    let Some(mut machine) = machine() else { return };
    machine.clock.pause();
    machine.vm.resynchronise();
    let mut state = machine.load(&[0xf4]);
    state.gpr = std::array::from_fn(|index| 0x1111_2222_3333_4444u64.rotate_left(index as u32));
    state.dr = [1, 2, 3, 4];
    (state.cr2, state.dr7) = (0xdead_beef, 0x400 | 1);
    state.xsave[160..176].fill(0xa5);
    state.xsave[512] = 3;
    for (number, value) in [(x86::msr::LSTAR, 0xffff_8000_0000_1234), (x86::msr::TSC_AUX, 77)] {
        assert!(state.msrs.iter().all(|(own, _)| *own != number), "zero after power-up");
        state.msrs.push((number, value));
    }
    state.msrs.sort_unstable();
    state.pending.nmi_blocked = true;
    state.mp_state = MpState::Halted;
    machine.vcpu.set_state(&state).unwrap();
    let back = machine.vcpu.state().unwrap();
    let normal = |state: &CpuState| {
        let mut state = state.clone();
        // Follow from the clock.
        state.lapic.timer_start_ns = 0;
        state
    };
    assert_eq!(normal(&back), normal(&state));
}

#[test]
fn an_impossible_state_is_refused_and_changes_nothing() {
    let Some(mut machine) = machine() else { return };
    let good = machine.load(&[0xf4]);
    type Change = fn(&mut CpuState);
    let changes: [(&str, Change); 9] = [
        ("version", |state| state.version = 99),
        ("CR0", |state| state.cr0 = cr0::PG),
        ("EFER", |state| state.efer = efer::LMA),
        ("XSAVE", |state| state.xsave.truncate(100)),
        ("LAPIC", |state| state.lapic.registers.truncate(3)),
        ("LAPIC base", |state| state.lapic.base = 0x1234_5000),
        ("exception", |state| state.pending.exception = Some((77, None, 0))),
        ("MSR", |state| state.msrs.push((0x1234_5678, 1))),
        ("non-canonical LSTAR", |state| {
            state.msrs.retain(|(number, _)| *number != x86::msr::LSTAR);
            state.msrs.push((x86::msr::LSTAR, 1 << 62));
        }),
    ];
    for (what, change) in changes {
        let mut bad = good.clone();
        bad.gpr[gpr::RAX] = 0x77;
        change(&mut bad);
        let error = machine.vcpu.set_state(&bad).expect_err(what);
        assert_eq!(error.kind(), cpu::ErrorKind::BadState, "{what}: {error}");
        assert_eq!(machine.vcpu.state().unwrap().gpr[gpr::RAX], good.gpr[gpr::RAX], "{what}");
    }
}

#[test]
fn written_pages_are_in_the_dirty_log() {
    let Some(mut machine) = machine() else { return };
    // mov [rdi], eax; out 0x80, al
    machine.load(&[0x89, 0x07, 0xe6, 0x80]);
    let mut state = machine.vcpu.state().unwrap();
    state.gpr[gpr::RDI] = 0x8_0000;
    machine.vcpu.set_state(&state).unwrap();
    machine.ram.set_dirty_logging(true);
    machine.vm.resynchronise();
    let io = Io::of(&machine);
    assert_eq!(machine.vcpu.run(&io).unwrap(), VmExit::Kicked);
    machine.vm.collect_dirty().unwrap();
    let log = machine.ram.take_dirty();
    assert!(log.contains(0x80) && !log.contains(0x81));
    machine.vm.collect_dirty().unwrap();
    assert!(machine.ram.take_dirty().is_empty());
}
