//! One machine under two engines: it runs under one, its state is saved as text, read back and set under the
//! other, which goes on from there, again and again. The guest checks itself, and what it computes is known.
//!
//! Both engines' machines have one clock; memory is copied with the state of the processor.
//! Where KVM does not serve, the software engine takes over from itself.

mod bound;
mod guest;

use bound::Bound;
use clock::{Clock, Timers};
use cpu::{CpuIo, Engine, Kicker, Vcpu, VmConfig, VmExit};
use memory::{Bytes, GuestAddress, Ram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use x86::CpuState;
use x86::cpuid::{HostCpuid, Leaf};

struct Machine {
    name: &'static str,
    ram: Arc<Ram>,
    vm: Arc<dyn cpu::Vm>,
    vcpu: Box<dyn Vcpu>,
}

/// What both machines are over.
struct Common {
    clock: Arc<Clock>,
    timers: Timers,
    cpuid: Vec<Leaf>,
    bound: Bound,
}

/// KVM, where it serves.
fn kvm() -> Option<cpu_kvm::KvmEngine> {
    let engine = cpu_kvm::KvmEngine::new(cpu_kvm::Options::default());
    let support = engine.probe();
    let needed = std::env::var_os("ARNIA_KVM_NEEDED").is_some();
    assert!(support.usable || !needed, "KVM has to work here: {support:?}");
    support.usable.then_some(engine)
}

impl Common {
    fn new() -> Common {
        let clock = Arc::new(Clock::new());
        let timers = Timers::new(clock.clone()).unwrap();
        let host = HostCpuid::read();
        let cpuid = match kvm().map(|kvm| kvm.offered_cpuid().unwrap()) {
            Some(Some(offered)) => x86::cpuid::build_within(&offered, &host, "default", 1, clock.tsc_hz()),
            _ => x86::cpuid::build_for(&host, "default", 1, clock.tsc_hz()),
        };
        Common { clock, timers, cpuid: cpuid.unwrap(), bound: Bound::new() }
    }

    fn machine(&self, engine: &dyn Engine) -> Machine {
        let ram = Arc::new(Ram::new(guest::MEMORY).unwrap());
        let config = VmConfig {
            ram: ram.clone(),
            clock: self.clock.clone(),
            timers: self.timers.clone(),
            vcpus: 1,
            cpuid: self.cpuid.clone(),
        };
        let vm = engine.create_vm(config).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        Machine { name: engine.name(), ram, vm, vcpu }
    }

    fn bt(&self) -> Machine {
        self.machine(&cpu_bt::BtEngine::new(cpu_bt::Options::default()))
    }

    /// KVM's, or where there is none the software engine's again.
    fn kvm(&self) -> Machine {
        match kvm() {
            Some(engine) => self.machine(&engine),
            None => {
                eprintln!("KVM does not serve here: the software engine takes over from itself");
                self.bt()
            }
        }
    }
}

/// Kicks the vCPU at every so many ticks of its timer, and when the guest is done.
struct Io {
    kick: Arc<dyn Kicker>,
    every: u32,
    ticks: AtomicU32,
    done: AtomicBool,
}

impl Io {
    fn new(machine: &Machine, every: u32) -> Io {
        Io { kick: machine.vcpu.kicker(), every, ticks: AtomicU32::new(0), done: AtomicBool::new(false) }
    }
}

impl CpuIo for Io {
    fn pio_read(&self, _: u16, _: &mut [u8]) {}
    fn pio_write(&self, port: u16, _: &[u8]) {
        match port {
            guest::PORT_TICK => {
                if (self.ticks.fetch_add(1, SeqCst) + 1).is_multiple_of(self.every) {
                    self.kick.kick();
                }
            }
            guest::PORT_DONE => {
                self.done.store(true, SeqCst);
                self.kick.kick();
            }
            _ => panic!("the guest wrote to port {port:#x}"),
        }
    }
    fn mmio_read(&self, gpa: u64, _: &mut [u8]) {
        panic!("the guest read {gpa:#x}");
    }
    fn mmio_write(&self, gpa: u64, _: &[u8]) {
        panic!("the guest wrote {gpa:#x}");
    }
    fn end_of_interrupt(&self, _: u8) {}
    fn pic_acknowledge(&self) -> u8 {
        panic!("there is no legacy controller")
    }
}

/// Runs until a kick; returns whether the guest is done.
fn run(common: &Common, machine: &mut Machine, every: u32) -> bool {
    let io = Io::new(machine, every);
    common.bound.begin(io.kick.clone());
    let exit = machine.vcpu.run(&io).unwrap_or_else(|e| panic!("{}: {e}", machine.name));
    assert_eq!(exit, VmExit::Kicked, "{}", machine.name);
    if common.bound.end() {
        let (name, ticks) = (machine.name, io.ticks.load(SeqCst));
        let state = machine.vcpu.state().unwrap();
        panic!(
            "{name}: the guest does not go on: {ticks} ticks in this run, counters {:?}, {state:x?}",
            machine.vm.counters()
        );
    }
    io.done.load(SeqCst)
}

/// Moves the state from one to the other, by way of text, as a saved machine would.
fn hand_over(from: &mut Machine, to: &mut Machine) {
    let text = serde_json::to_string(&from.vcpu.state().unwrap()).unwrap();
    let state: CpuState = serde_json::from_str(&text).unwrap();
    let mut memory = vec![0; guest::MEMORY as usize];
    from.ram.guest().read_slice(&mut memory, GuestAddress(0)).unwrap();
    to.ram.guest().write_slice(&memory, GuestAddress(0)).unwrap();
    to.vm.memory_replaced();
    to.vcpu.set_state(&state).unwrap_or_else(|e| panic!("from {} to {}: {e}", from.name, to.name));
}

/// Runs the guest to its end, changing engines at every tick or, with pauses, standing still in between.
fn relay(first: fn(&Common) -> Machine, second: fn(&Common) -> Machine, pauses: bool) {
    let common = Common::new();
    let (mut here, mut there) = (first(&common), second(&common));
    let state = guest::load(&here.ram.clone(), here.vcpu.state().unwrap());
    here.vcpu.set_state(&state).unwrap();
    let mut moves = 0;
    while !run(&common, &mut here, 1) {
        if pauses {
            common.clock.pause();
            for machine in [&here, &there] {
                machine.vm.resynchronise();
            }
        }
        hand_over(&mut here, &mut there);
        if pauses {
            common.clock.resume();
            common.timers.clock_changed();
            for machine in [&here, &there] {
                machine.vm.resynchronise();
            }
        }
        std::mem::swap(&mut here, &mut there);
        moves += 1;
        assert!(moves < 10_000, "the guest does not come to its end");
    }
    guest::check(&here.vcpu.state().unwrap(), &here.ram);
    assert!(moves >= guest::TICKS / 2, "only {moves} moves");
}

#[test]
fn a_guest_goes_on_under_the_other_engine() {
    relay(Common::bt, Common::kvm, false);
    relay(Common::kvm, Common::bt, false);
}

#[test]
fn a_guest_goes_on_after_pauses() {
    relay(Common::bt, Common::kvm, true);
}

#[test]
fn a_guest_runs_to_its_end_under_each_engine() {
    for engine in [Common::bt, Common::kvm] {
        let common = Common::new();
        let mut machine = engine(&common);
        let state = guest::load(&machine.ram.clone(), machine.vcpu.state().unwrap());
        machine.vcpu.set_state(&state).unwrap();
        assert!(run(&common, &mut machine, u32::MAX));
        guest::check(&machine.vcpu.state().unwrap(), &machine.ram);
    }
}

#[test]
fn a_model_that_is_too_new_is_told_by_name() {
    let common = Common::new();
    let mut newer = common.cpuid.clone();
    for leaf in newer.iter_mut().filter(|leaf| leaf.function == 7 && leaf.index == Some(0)) {
        // AVX-512: no engine of this project gives it.
        leaf.ebx |= 1 << 16;
    }
    let missing = x86::cpuid::missing(&newer, &common.cpuid);
    assert_eq!(missing, ["CPUID 0x7.0 ebx bit 16"]);
    assert!(x86::cpuid::missing(&common.cpuid, &newer).is_empty());
}
