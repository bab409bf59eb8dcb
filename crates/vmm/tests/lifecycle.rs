//! The life of a machine, with an engine whose vCPUs are small programs in Rust: they use ports and memory
//! as a guest does, so everything but instruction execution is real.

use api::worker::config::{CharDevice, OnReset, VmConfig};
use api::worker::control::{Reply, Request, VmState};
use cpu::{CpuIo, Engine, Error, ErrorKind, Kicker, Support, Vcpu, Vm, VmExit};
use memory::Ram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;
use vmm::control::ReplyTo;
use vmm::controller::{Controller, Ended, Event, Parts};
use vmm::machine::{GuestEvents, Machine};
use vmm::signals::Signal;
use vmm::spec::VmSpec;
use vmm::terminal::Command;
use vmm::vcpu::Gate;
use x86::state::{LapicState, MpState, PendingEvents, TableRegister};
use x86::{CpuState, Segment};

const PM1_STATUS: u16 = 0x600;
const PM1_CONTROL: u16 = 0x604;
const POWER_OFF: [u8; 2] = (5u16 << 10 | 1 << 13).to_le_bytes();
const KERNEL_START: u64 = 0x10_0000;

/// What a vCPU does when it runs.
type Program = Arc<dyn Fn(&Guest<'_>) -> Result<VmExit, Error> + Send + Sync>;

/// What a program sees.
struct Guest<'a> {
    vcpu: u32,
    /// How many times the machine was started, this one included.
    start: u32,
    io: &'a dyn CpuIo,
    ram: &'a Ram,
    state: &'a CpuState,
    kick: &'a Kick,
}

impl Guest<'_> {
    fn write(&self, port: u16, data: &[u8]) {
        self.io.pio_write(port, data);
    }

    fn power_button_pressed(&self) -> bool {
        let mut status = [0; 2];
        self.io.pio_read(PM1_STATUS, &mut status);
        status[1] & 1 != 0
    }

    /// Executes nothing until kicked, as a halted processor.
    fn halt(&self) -> Result<VmExit, Error> {
        self.kick.wait();
        Ok(VmExit::Kicked)
    }

    fn power_off(&self) -> Result<VmExit, Error> {
        self.write(PM1_CONTROL, &POWER_OFF);
        self.halt()
    }
}

#[derive(Default)]
struct Kick {
    kicked: Mutex<bool>,
    changed: Condvar,
}

impl Kick {
    fn wait(&self) {
        let mut kicked = self.changed.wait_while(self.kicked.lock().unwrap(), |kicked| !*kicked).unwrap();
        *kicked = false;
    }
}

impl Kicker for Kick {
    fn kick(&self) {
        *self.kicked.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

struct TestEngine(Program);
struct TestVm(Program, Arc<Ram>);
struct TestVcpu {
    id: u32,
    program: Program,
    ram: Arc<Ram>,
    state: CpuState,
    starts: u32,
    kick: Arc<Kick>,
}

impl Engine for TestEngine {
    fn name(&self) -> &'static str {
        "test"
    }
    fn probe(&self) -> Support {
        Support { usable: true, speed: cpu::Speed::Interpreted, findings: vec![], remedies: vec![] }
    }
    fn create_vm(&self, config: cpu::VmConfig) -> Result<Arc<dyn Vm>, Error> {
        Ok(Arc::new(TestVm(self.0.clone(), config.ram)))
    }
}

impl Vm for TestVm {
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, Error> {
        let (program, ram, kick) = (self.0.clone(), self.1.clone(), Arc::default());
        Ok(Box::new(TestVcpu { id, program, ram, state: reset_state(id), starts: 0, kick }))
    }
    fn signal_msi(&self, _: u64, _: u32) {}
    fn set_pic_line(&self, _: bool) {}
    fn signal_nmi(&self, _: u32) {}
    fn resynchronise(&self) {}
    fn memory_replaced(&self) {}
    fn counters(&self) -> Vec<(String, u64)> {
        vec![("tests".into(), 1)]
    }
}

impl Vcpu for TestVcpu {
    fn id(&self) -> u32 {
        self.id
    }
    fn run(&mut self, io: &dyn CpuIo) -> Result<VmExit, Error> {
        let guest = Guest {
            vcpu: self.id,
            start: self.starts,
            io,
            ram: &self.ram,
            state: &self.state,
            kick: &self.kick,
        };
        (self.program)(&guest)
    }
    fn state(&mut self) -> Result<CpuState, Error> {
        Ok(self.state.clone())
    }
    fn set_state(&mut self, state: &CpuState) -> Result<(), Error> {
        self.state = state.clone();
        self.starts += 1;
        Ok(())
    }
    fn kicker(&self) -> Arc<dyn Kicker> {
        self.kick.clone()
    }
}

fn reset_state(id: u32) -> CpuState {
    CpuState {
        version: x86::state::VERSION,
        gpr: [0; 16],
        rip: 0xfff0,
        rflags: 2,
        segments: [Segment::real_mode(0); 6],
        ldtr: Segment::default(),
        tr: Segment::default(),
        gdtr: TableRegister::default(),
        idtr: TableRegister::default(),
        cr0: 0x10,
        cr2: 0,
        cr3: 0,
        cr4: 0,
        dr: [0; 4],
        dr6: 0xffff_0ff0,
        dr7: 0x400,
        efer: 0,
        xcr0: 1,
        msrs: vec![],
        xsave: vec![0; 576],
        lapic: LapicState { base: 0xfee0_0800, registers: vec![0; 64], tsc_deadline: 0, timer_start_ns: 0 },
        pending: PendingEvents::default(),
        mp_state: if id == 0 { MpState::Runnable } else { MpState::WaitForSipi },
    }
}

/// An ELF kernel of one segment at 1 MiB: seven bytes and zeroes.
fn kernel() -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    let mut put = |at: usize, value: &[u8]| file[at..at + value.len()].copy_from_slice(value);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(24, &KERNEL_START.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(64, &1u32.to_le_bytes());
    for (index, field) in [0x1000, KERNEL_START, KERNEL_START, 7, 0x1000, 0x1000u64].iter().enumerate() {
        put(72 + 8 * index, &field.to_le_bytes());
    }
    file.extend_from_slice(b"kernel!");
    file
}

/// A folder of its own for each test, gone at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("arnia-lifecycle-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("kernel"), kernel()).unwrap();
        Folder(path)
    }

    fn config(&self) -> VmConfig {
        let mut config = VmConfig::new(self.0.join("kernel"));
        config.memory = api::ByteSize(16 << 20);
        config.serial = CharDevice::None;
        config
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A machine that is about to start, and the way to send it events.
struct Prepared {
    controller: Controller,
    events: Sender<Event>,
    lines: vmm::inputs::Lines,
    _folder: Folder,
}

fn prepare(
    change: impl FnOnce(&mut VmConfig, &Folder),
    program: impl Fn(&Guest<'_>) -> Result<VmExit, Error> + Send + Sync + 'static,
) -> Prepared {
    let folder = Folder::new();
    let mut config = folder.config();
    change(&mut config, &folder);
    let spec = VmSpec::try_from(config).unwrap();
    let (inputs, mut lines) = vmm::inputs::open(&spec, None).unwrap();
    lines.start().unwrap();
    let (sender, events) = channel();
    let gate = Arc::new(Gate::default());
    let to_controller = sender.clone();
    let guest_events = Arc::new(GuestEvents::new(gate.clone(), move |event| {
        to_controller.send(Event::Guest(event)).unwrap();
    }));
    let for_devices = guest_events.clone();
    let on_event = Arc::new(move |event| for_devices.event(event));
    let (machine, vcpus) =
        Machine::build(&spec, &TestEngine(Arc::new(program)), inputs, None, on_event).unwrap();
    let parts = Parts {
        networks: Vec::new(),
        machine,
        vcpus,
        gate,
        guest_events,
        events,
        reports: sender.clone(),
        engine: "test",
        started: Instant::now(),
        restored: None,
    };
    let controller = Controller::new(&spec, parts).unwrap();
    Prepared { controller, events: sender, lines, _folder: folder }
}

fn run(
    change: impl FnOnce(&mut VmConfig),
    program: impl Fn(&Guest<'_>) -> Result<VmExit, Error> + Send + Sync + 'static,
) -> Ended {
    prepare(|config, _| change(config), program).controller.run()
}

fn ask(events: &Sender<Event>, request: Request) -> Reply {
    let (reply, answer) = ReplyTo::channel();
    events.send(Event::Control(request, reply)).unwrap();
    answer.recv().unwrap().unwrap()
}

fn state(events: &Sender<Event>) -> VmState {
    match ask(events, Request::Status {}) {
        Reply::Status(status) => status.state,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_boots_where_its_kernel_says_and_powers_off() {
    let ended = run(
        |config| config.cpus = 4,
        |guest| {
            if guest.vcpu > 0 {
                assert_eq!(guest.state.mp_state, MpState::WaitForSipi);
                return guest.halt();
            }
            assert_eq!(guest.state.rip, KERNEL_START);
            assert_eq!(guest.ram.load::<u64>(KERNEL_START), Some(u64::from_le_bytes(*b"kernel!\0")));
            guest.power_off()
        },
    );
    assert!(matches!(ended, Ended::PoweredOff), "{ended:?}");
    assert_eq!((ended.exit_status(), ended.message()), (0, None));
}

#[test]
fn all_processors_have_the_same_memory_types() {
    let mtrr = (x86::msr::MTRR_DEF_TYPE, 0x806);
    let ended = run(
        |config| config.cpus = 2,
        move |guest| {
            assert!(guest.state.msrs.contains(&mtrr), "vCPU {}", guest.vcpu);
            if guest.vcpu == 0 { guest.power_off() } else { guest.halt() }
        },
    );
    assert!(matches!(ended, Ended::PoweredOff), "{ended:?}");
}

#[test]
fn a_reset_starts_the_machine_from_the_beginning() {
    for port_write in [(0xcf9u16, 6u8), (0x64, 0xfe)] {
        let ended = run(
            |config| config.cpus = 2,
            move |guest| {
                if guest.vcpu > 0 {
                    return guest.halt();
                }
                assert_eq!(guest.state.rip, KERNEL_START);
                assert_eq!(guest.ram.load::<u64>(0x80_0000), Some(0), "memory is empty");
                assert_eq!(guest.ram.load::<u8>(KERNEL_START), Some(b'k'), "the kernel is whole");
                if guest.start > 2 {
                    return guest.power_off();
                }
                guest.ram.store(0x80_0000, 7u64).unwrap();
                guest.ram.store(KERNEL_START, 0u8).unwrap();
                // More than once, as kernels do: the machine is reset once all the same.
                for _ in 0..100 {
                    guest.write(port_write.0, &[0]);
                    guest.write(port_write.0, &[port_write.1]);
                }
                guest.halt()
            },
        );
        assert!(matches!(ended, Ended::PoweredOff), "{ended:?}");
    }
}

#[test]
fn a_machine_that_does_not_reboot_tells_why_it_ended() {
    let exit = |config: &mut VmConfig| config.on_reset = OnReset::Exit;
    let reset = run(exit, |guest| {
        guest.write(0xcf9, &[6]);
        guest.halt()
    });
    assert!(matches!(reset, Ended::Reset), "{reset:?}");
    let crash = run(exit, |_| Ok(VmExit::Shutdown("page fault in double fault".into())));
    assert!(crash.message().unwrap().contains("page fault in double fault"), "{crash:?}");
    assert_eq!((reset.exit_status(), crash.exit_status()), (6, 4));
}

#[test]
fn a_triple_fault_resets_a_machine_that_reboots() {
    let ended = run(
        |config| config.cpus = 3,
        |guest| match (guest.start, guest.vcpu) {
            // All of them fault; there is one reset.
            (1, _) => Ok(VmExit::Shutdown("test".into())),
            (2, 0) => guest.power_off(),
            (2, _) => guest.halt(),
            _ => panic!("the machine was reset more than once"),
        },
    );
    assert!(matches!(ended, Ended::PoweredOff), "{ended:?}");
}

#[test]
fn the_debug_exit_port_gives_the_status() {
    let guest = |guest: &Guest<'_>| {
        guest.write(0xf4, &[21]);
        guest.power_off()
    };
    let ended = run(|config| config.debug_exit = true, guest);
    assert_eq!(ended.exit_status(), 43);
    assert!(matches!(run(|_| {}, guest), Ended::PoweredOff), "without the option there is no port");
}

#[test]
fn an_engine_that_fails_ends_the_machine() {
    let ended = run(|_| {}, |_| Err(Error::new(ErrorKind::Internal, "the engine is lost")));
    assert!(ended.message().unwrap().contains("the engine is lost"), "{ended:?}");
    assert_eq!(ended.exit_status(), 1);
}

#[test]
fn a_paused_machine_stands_still_until_it_is_resumed() {
    let turns = Arc::new(AtomicU32::new(0));
    let counted = turns.clone();
    let Prepared { controller, events, _folder, .. } = prepare(
        |config, _| config.cpus = 2,
        move |guest| {
            counted.fetch_add(1, Ordering::SeqCst);
            if guest.vcpu == 0 && guest.power_button_pressed() {
                return guest.power_off();
            }
            // Busy: a turn ends by itself, as if something had kicked it.
            std::thread::yield_now();
            Ok(VmExit::Kicked)
        },
    );
    let machine = std::thread::spawn(move || controller.run());
    let time = |events: &Sender<Event>| match ask(events, Request::Status {}) {
        Reply::Status(status) => status.guest_time_ms,
        other => panic!("{other:?}"),
    };
    for _ in 0..3 {
        assert_eq!(ask(&events, Request::Pause {}), Reply::Done);
        assert_eq!(ask(&events, Request::Pause {}), Reply::Done);
        assert_eq!(state(&events), VmState::Paused);
        let (then, at) = (turns.load(Ordering::SeqCst), time(&events));
        std::thread::yield_now();
        assert_eq!((turns.load(Ordering::SeqCst), time(&events)), (then, at));
        assert_eq!(ask(&events, Request::Resume {}), Reply::Done);
        assert_eq!(ask(&events, Request::Resume {}), Reply::Done);
        assert_eq!(state(&events), VmState::Running);
    }
    ask(&events, Request::Power {});
    assert!(matches!(machine.join().unwrap(), Ended::PoweredOff));
}

#[test]
fn a_paused_machine_can_be_reset_and_stays_paused() {
    let Prepared { controller, events, _folder, .. } =
        prepare(|_, _| {}, |guest| if guest.start == 1 { guest.halt() } else { guest.power_off() });
    let machine = std::thread::spawn(move || controller.run());
    ask(&events, Request::Pause {});
    ask(&events, Request::Reset {});
    match ask(&events, Request::Status {}) {
        Reply::Status(status) => assert_eq!((status.state, status.resets), (VmState::Paused, 1)),
        other => panic!("{other:?}"),
    }
    ask(&events, Request::Resume {});
    assert!(matches!(machine.join().unwrap(), Ended::PoweredOff));
}

#[test]
fn signals_and_keys_press_the_power_button_or_end_the_machine() {
    let button = |guest: &Guest<'_>| {
        if guest.power_button_pressed() { guest.power_off() } else { Ok(VmExit::Kicked) }
    };
    let deaf = |guest: &Guest<'_>| guest.halt();
    let end_with = |first: Vec<Event>, deaf_guest: bool| {
        let Prepared { controller, events, _folder, .. } =
            if deaf_guest { prepare(|_, _| {}, deaf) } else { prepare(|_, _| {}, button) };
        for event in first {
            events.send(event).unwrap();
        }
        controller.run()
    };
    assert!(matches!(end_with(vec![Event::Signal(Signal::Terminate)], false), Ended::PoweredOff));
    assert!(matches!(end_with(vec![Event::Typed(Command::Power)], false), Ended::PoweredOff));
    let quit =
        vec![Event::Signal(Signal::Terminate), Event::Typed(Command::Help), Event::Signal(Signal::Quit)];
    assert!(matches!(end_with(quit, true), Ended::Stopped("a signal")));
    assert!(matches!(end_with(vec![Event::Typed(Command::Stop)], true), Ended::Stopped(_)));
    let (reply, answer) = ReplyTo::channel();
    let stopped = end_with(vec![Event::Control(Request::Stop {}, reply)], true);
    assert_eq!(stopped.exit_status(), 3);
    assert_eq!(answer.recv().unwrap(), Ok(Reply::Done));
}

/// One that has crashed listens to nothing; one that starts again and again makes events without end.
#[test]
fn a_guest_that_does_not_power_off_is_ended_after_its_time() {
    for seconds in [0, 1] {
        let restless = |guest: &Guest<'_>| {
            guest.write(0xcf9, &[6]);
            guest.halt()
        };
        let deaf = |guest: &Guest<'_>| guest.halt();
        let change = move |config: &mut VmConfig, _: &Folder| {
            config.stop_timeout = Some(seconds);
            config.on_reset = OnReset::Reboot;
        };
        for Prepared { controller, events, _folder, .. } in [prepare(change, deaf), prepare(change, restless)]
        {
            events.send(Event::Signal(Signal::Terminate)).unwrap();
            let ended = controller.run();
            assert!(matches!(ended, Ended::NotPoweredOff(_)), "{ended:?}");
            assert_eq!(ended.exit_status(), 3);
            let message = ended.message().unwrap();
            assert!(
                message.contains(&format!("within {seconds} s")) && message.contains("--stop-timeout"),
                "{message}"
            );
        }
    }
}

#[test]
fn a_signal_wakes_a_paused_machine_so_that_it_can_power_off() {
    let Prepared { controller, events, _folder, .. } = prepare(
        |_, _| {},
        |guest| if guest.power_button_pressed() { guest.power_off() } else { Ok(VmExit::Kicked) },
    );
    let machine = std::thread::spawn(move || controller.run());
    ask(&events, Request::Pause {});
    events.send(Event::Signal(Signal::Terminate)).unwrap();
    assert!(matches!(machine.join().unwrap(), Ended::PoweredOff));
}

#[test]
fn the_serial_port_reaches_its_file_and_counters_count() {
    let (ran, has_run) = channel();
    let Prepared { controller, events, mut lines, _folder } = prepare(
        |config, folder| config.serial = CharDevice::File(folder.0.join("log")),
        move |guest| {
            for byte in b"hello" {
                guest.write(0x3f8, &[*byte]);
            }
            guest.io.mmio_read(0xd000_0000, &mut [0; 4]);
            ran.send(()).unwrap();
            guest.halt()
        },
    );
    lines.keep_files();
    let machine = std::thread::spawn(move || controller.run());
    has_run.recv().unwrap();
    match ask(&events, Request::Counters {}) {
        Reply::Counters(counters) => {
            assert!(counters.io["pio_writes"] >= 5 && counters.io["mmio_reads"] >= 1);
            assert!(counters.start_to_first_instruction_us.is_some());
            assert_eq!(counters.engine["tests"], 1);
        }
        other => panic!("{other:?}"),
    }
    ask(&events, Request::Stop {});
    machine.join().unwrap();
    lines.finish();
    assert!(std::fs::read(_folder.0.join("log")).unwrap().starts_with(b"hello"));
}

#[test]
fn refused_inputs_leave_nothing_behind() {
    let folder = Folder::new();
    std::fs::write(folder.0.join("text"), "#!/bin/sh").unwrap();
    std::fs::write(folder.0.join("disk"), vec![0; 4096]).unwrap();
    std::fs::write(folder.0.join("large"), vec![0; 2 << 20]).unwrap();
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = occupied.local_addr().unwrap().port();
    type Change = Box<dyn Fn(&mut VmConfig)>;
    let path = folder.0.clone();
    let at = move |name: &str| path.join(name);
    let cases: Vec<(&str, Change)> = vec![
        ("cannot be opened", {
            let p = at("absent");
            Box::new(move |c| c.kernel = Some(p.clone()))
        }),
        ("not a kernel", {
            let p = at("text");
            Box::new(move |c| c.kernel = Some(p.clone()))
        }),
        ("too little memory", {
            let p = at("large");
            Box::new(move |c| {
                c.initrd = Some(p.clone());
                c.memory = api::ByteSize(2 << 20);
            })
        }),
        ("cannot be opened", {
            let p = at("absent");
            Box::new(move |c| c.initrd = Some(p.clone()))
        }),
        ("command line", Box::new(|c| c.append = "x".repeat(5000))),
        ("no such file", {
            let p = at("absent");
            Box::new(move |c| c.disks[0].path = p.clone())
        }),
        ("network", {
            Box::new(move |c| {
                let user = api::worker::config::UserNetConfig {
                    forward: vec![format!("127.0.0.1:{port}:22")],
                    ..Default::default()
                };
                c.nets = vec![api::worker::config::NetConfig::User(user)];
            })
        }),
        ("cannot be written", {
            let p = at("absent/file");
            Box::new(move |c| c.console = CharDevice::File(p.clone()))
        }),
    ];
    for (word, change) in cases {
        let mut config = folder.config();
        config.serial = CharDevice::File(folder.0.join("serial.log"));
        config.disks = vec![api::worker::config::DiskConfig::new(folder.0.join("disk"))];
        change(&mut config);
        let error =
            VmSpec::try_from(config).and_then(|spec| vmm::inputs::open(&spec, None).map(drop)).unwrap_err();
        assert!(error.report().contains(word), "{word}: {}", error.report());
        assert_eq!(error.kind(), vmm::ErrorKind::BadInput);
        assert!(!folder.0.join("serial.log").exists(), "{word}");
    }
}

#[test]
fn a_disk_that_another_machine_has_is_refused() {
    let folder = Folder::new();
    std::fs::write(folder.0.join("disk"), vec![0; 4096]).unwrap();
    let mut config = folder.config();
    config.disks = vec![api::worker::config::DiskConfig::new(folder.0.join("disk"))];
    let spec = VmSpec::try_from(config).unwrap();
    let first = vmm::inputs::open(&spec, None).unwrap();
    let error = vmm::inputs::open(&spec, None).map(drop).unwrap_err();
    assert!(error.report().contains("another"), "{}", error.report());
    drop(first);
    assert!(vmm::inputs::open(&spec, None).is_ok());
}
