//! The controller: one loop over everything that can happen to a machine.
//!
//! ```text
//! guest (S5, reset, debug exit) ─┐
//! vCPU threads (triple fault) ───┤
//! signals, escape key ───────────┼──> Event ──> Controller::run ──> Ended
//! control socket ────────────────┘
//! ```
//!
//! It alone changes the machine's state; nobody else pauses, resets or ends anything.

mod disc;
mod disks;
mod ports;
mod saving;
mod screen;
mod shares;

use crate::Error;
use crate::control::ReplyTo;
use crate::machine::{GuestEvents, IoCounters, Machine};
use crate::signals::Signal;
use crate::snapshot::restore::Restored;
use crate::snapshot::saver::SaverEvent;
use crate::spec::VmSpec;
use crate::state::{VmState, valid_transition};
use crate::terminal::Command;
use crate::throttle::Throttle;
use crate::vcpu::{Gate, VcpuContext, VcpuEvent, VcpuHandle};
use api::worker::config::{CdromConfig, OnReset};
use api::worker::control::{ControlError, ControlErrorKind, Counters, Reply, Request, Status, VERSION};
use api::worker::exit;
use cpu::Vcpu;
use net::NatHandle;
use platform::PlatformEvent;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use x86::CpuState;

/// Something that happens to a machine.
#[derive(Debug)]
pub enum Event {
    /// The guest asks for something.
    Guest(PlatformEvent),
    /// A vCPU stopped by itself.
    Vcpu(VcpuEvent),
    /// A signal asks the program to end.
    Signal(Signal),
    /// A person typed a command.
    Typed(Command),
    /// Another program asks for something.
    Control(Request, ReplyTo),
    /// The snapshot of this number needs something, or is done.
    Saver(u64, SaverEvent),
    /// What was being done to this disk has ended.
    DiskJob(u32, Result<(), disk::Error>),
}

/// Why a machine ended.
#[derive(Debug)]
pub enum Ended {
    /// The guest powered off.
    PoweredOff,
    /// The guest asked for a reset, and the machine does not start again.
    Reset,
    /// The guest ran into a triple fault, and the machine does not start again.
    Crashed(String),
    /// Somebody outside ended it.
    Stopped(&'static str),
    /// A signal asked the guest to power off, and it has not done so within this time.
    NotPoweredOff(Duration),
    /// The guest wrote this to the debug exit port.
    DebugExit(u8),
    /// The host or the program failed.
    Failed(Error),
}

impl Ended {
    /// The program's exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            Ended::PoweredOff => exit::POWERED_OFF,
            Ended::Reset => exit::RESET,
            Ended::Crashed(_) => exit::CRASHED,
            Ended::Stopped(_) | Ended::NotPoweredOff(_) => exit::STOPPED,
            Ended::DebugExit(value) => exit::debug_exit(*value),
            Ended::Failed(_) => exit::FAILED,
        }
    }

    /// What to tell the person who started the machine, if it is worth telling.
    pub fn message(&self) -> Option<String> {
        match self {
            Ended::PoweredOff | Ended::DebugExit(_) => None,
            Ended::Reset => Some("the guest asked for a reset; ended because of --no-reboot".into()),
            Ended::Crashed(why) => Some(format!("the guest crashed: {why}")),
            Ended::Stopped(by) => Some(format!("the machine was ended by {by}")),
            Ended::NotPoweredOff(limit) => Some(format!(
                "the guest has not powered off within {} s of a signal, and the machine was ended; --stop-timeout gives it \
                 longer",
                limit.as_secs()
            )),
            Ended::Failed(error) => Some(error.report()),
        }
    }
}

/// A second signal sooner than this after the first is taken for an echo of it: shells and supervisors
/// often send one to a whole group and to the process itself.
const SECOND_SIGNAL_AFTER: Duration = Duration::from_secs(1);

/// What a controller is made of.
pub struct Parts {
    /// The machine.
    pub machine: Machine,
    /// Its vCPUs, in their state after reset.
    pub vcpus: Vec<Box<dyn Vcpu>>,
    /// Holds the vCPUs back when the guest has asked for an end.
    pub gate: Arc<Gate>,
    /// Where the guest's requests come from.
    pub guest_events: Arc<GuestEvents>,
    /// Where all events come from.
    pub events: Receiver<Event>,
    /// Where vCPUs report to.
    pub reports: Sender<Event>,
    /// The engine's name.
    pub engine: &'static str,
    /// When the program started.
    pub started: Instant,
    /// What the machine goes on from, instead of booting.
    pub restored: Option<Restored>,
    /// The networks behind its cards, in their order.
    pub networks: Vec<Option<NatHandle>>,
}

/// A machine with its vCPU threads, and what happens to it.
pub struct Controller {
    machine: Machine,
    networks: Vec<Option<NatHandle>>,
    vcpus: Vec<VcpuHandle>,
    /// The state of each vCPU after reset.
    after_reset: Vec<CpuState>,
    guest_events: Arc<GuestEvents>,
    events: Receiver<Event>,
    /// Events that were taken from the channel too early.
    backlog: VecDeque<Event>,
    state: VmState,
    on_reset: OnReset,
    drives: Vec<CdromConfig>,
    status: Status,
    io_counters: Vec<Arc<IoCounters>>,
    first_instruction: Arc<OnceLock<Duration>>,
    first_signal: Option<Instant>,
    /// How long after it the guest has to power off.
    stop_timeout: Duration,
    throttle: Throttle,
    /// How snapshots come about.
    saving: saving::Saving,
    /// What is done to disks.
    disk_jobs: disks::DiskJobs,
    /// Where overlays of disks may be made.
    disk_folder: Option<PathBuf>,
    /// The machine goes on from a snapshot, and whether it stands still first.
    restored_paused: Option<bool>,
}

impl Controller {
    /// Starts the vCPU threads, paused, with the kernel loaded or a saved state in place.
    ///
    /// # Errors
    /// When the host refuses threads, the files cannot be read any more, or the engine refuses the state.
    pub fn new(spec: &VmSpec, parts: Parts) -> Result<Controller, Error> {
        let Parts {
            machine,
            vcpus,
            gate,
            guest_events,
            events,
            reports,
            engine,
            started,
            restored,
            networks,
        } = parts;
        let first_instruction: Arc<OnceLock<Duration>> = Arc::default();
        let (mut handles, mut io_counters) = (Vec::new(), Vec::new());
        for vcpu in vcpus {
            let io = machine.vcpu_io();
            io_counters.push(io.counters());
            let (reports, first) = (reports.clone(), first_instruction.clone());
            let context = VcpuContext {
                io: Box::new(io),
                gate: gate.clone(),
                on_event: Box::new(move |event| drop(reports.send(Event::Vcpu(event)))),
                on_first_run: Box::new(move || {
                    let _ = first.set(started.elapsed());
                }),
            };
            let handle = VcpuHandle::start(vcpu, context);
            handles
                .push(handle.map_err(|e| Error::host("a vCPU's thread cannot be started").with_source(e))?);
        }
        gate.guard(&handles);
        let after_reset = handles
            .iter()
            .map(|vcpu| vcpu.with(|vcpu| vcpu.state()).ok_or_else(vcpu_gone)?.map_err(engine_failed))
            .collect::<Result<Vec<_>, _>>()?;
        let status = Status {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            name: spec.name.clone(),
            uuid: spec.uuid.to_string(),
            state: VmState::Starting,
            engine: engine.into(),
            cpu_model: machine.cpu_model().into(),
            cpus: spec.cpus,
            memory_bytes: machine.memory_bytes(),
            guest_time_ms: 0,
            resets: 0,
            snapshot: None,
            snapshot_base: None,
        };
        let mut controller = Controller {
            machine,
            networks,
            vcpus: handles,
            after_reset,
            guest_events,
            events,
            backlog: VecDeque::new(),
            state: VmState::Starting,
            on_reset: spec.on_reset,
            drives: spec.config.cdroms.clone(),
            status,
            io_counters,
            first_instruction,
            first_signal: None,
            stop_timeout: spec.stop_timeout,
            throttle: Throttle::new(gate),
            saving: saving::Saving::new(spec, reports.clone()),
            disk_jobs: disks::DiskJobs::new(reports),
            disk_folder: spec.disk_folder.clone(),
            restored_paused: restored.as_ref().map(|restored| restored.paused),
        };
        match restored {
            None => controller.load()?,
            Some(restored) => controller.adopt(restored)?,
        }
        Ok(controller)
    }

    /// COM1, for whoever feeds it.
    pub fn serial_port(&self) -> Arc<platform::serial::SerialPort> {
        self.machine.serial_port()
    }

    /// Runs the machine to its end.
    pub fn run(mut self) -> Ended {
        match self.restored_paused {
            None => {
                self.enter(VmState::Running);
                self.run_vcpus();
            }
            Some(stays) => {
                self.enter(VmState::Paused);
                if !stays {
                    self.resume();
                }
            }
        }
        let ended = loop {
            let event = match self.backlog.pop_front() {
                Some(event) => event,
                None => match self.next_event() {
                    Some(event) => event,
                    None => break Ended::NotPoweredOff(self.stop_timeout),
                },
            };
            if let Some(ended) = self.handle(event) {
                break ended;
            }
        };
        self.finish(ended)
    }

    /// Waits for what happens next; nothing if the time is over that the guest had to power off.
    fn next_event(&self) -> Option<Event> {
        let Some(first) = self.first_signal else {
            // The vCPU threads hold senders as long as the machine lives.
            return Some(self.events.recv().expect("the vCPUs can report"));
        };
        // However much happens: a guest that resets itself for ever must not hold it off.
        let left = self.stop_timeout.checked_sub(first.elapsed()).filter(|left| !left.is_zero())?;
        self.events.recv_timeout(left).ok()
    }

    fn finish(mut self, ended: Ended) -> Ended {
        self.give_up_snapshot("the machine has ended");
        self.give_up_disk_jobs();
        self.enter(VmState::Stopped);
        self.stand_still();
        // Ends the threads, so that nothing of the machine moves while devices are taken down.
        self.vcpus.clear();
        match self.machine.finish() {
            Ok(()) => ended,
            // The first failure is the one to tell.
            Err(error) => match ended {
                Ended::Failed(first) => {
                    log::error!("{}", error.report());
                    Ended::Failed(first)
                }
                _ => Ended::Failed(error),
            },
        }
    }

    fn handle(&mut self, event: Event) -> Option<Ended> {
        match event {
            Event::Guest(PlatformEvent::PowerOff) => Some(Ended::PoweredOff),
            Event::Guest(PlatformEvent::DebugExit(value)) => Some(Ended::DebugExit(value)),
            Event::Guest(PlatformEvent::Reset) => match self.on_reset {
                OnReset::Exit => Some(Ended::Reset),
                OnReset::Reboot => {
                    log::info!("the guest resets the machine");
                    self.reset().err().map(Ended::Failed)
                }
            },
            Event::Vcpu(VcpuEvent::Shutdown(vcpu, why)) => match self.on_reset {
                OnReset::Exit => Some(Ended::Crashed(format!("triple fault on vCPU {vcpu}: {why}"))),
                OnReset::Reboot => {
                    log::warn!("triple fault on vCPU {vcpu}: {why}; the machine is reset");
                    self.reset().err().map(Ended::Failed)
                }
            },
            Event::Vcpu(VcpuEvent::Failed(vcpu, error)) => {
                let error = Error::host(format!("vCPU {vcpu} cannot go on")).with_source(error);
                Some(Ended::Failed(error))
            }
            Event::Signal(signal) => self.signal(signal),
            Event::Typed(Command::Stop) => Some(Ended::Stopped("the escape key")),
            Event::Typed(Command::Power) => {
                self.machine.press_power_button();
                None
            }
            Event::Typed(Command::Help) => {
                eprintln!(
                    "\narnia-vmm: Ctrl-] x ends the machine, Ctrl-] p presses its power button, \
                     Ctrl-] Ctrl-] sends a Ctrl-]"
                );
                None
            }
            Event::Control(request, reply) => self.control(request, reply),
            Event::Saver(number, event) => {
                self.saver(number, event);
                None
            }
            Event::DiskJob(disk, result) => {
                self.disk_job_done(disk, result);
                None
            }
        }
    }

    fn signal(&mut self, signal: Signal) -> Option<Ended> {
        match (signal, self.first_signal) {
            (Signal::Quit, _) => Some(Ended::Stopped("a signal")),
            (Signal::Terminate, None) => {
                self.first_signal = Some(Instant::now());
                // A guest that stands still cannot power off.
                self.resume();
                self.machine.press_power_button();
                let seconds = self.stop_timeout.as_secs();
                log::warn!(
                    "pressed the power button; if the guest is not off within {seconds} s, or by another signal, the machine is \
                     ended"
                );
                None
            }
            (Signal::Terminate, Some(first)) => {
                (first.elapsed() >= SECOND_SIGNAL_AFTER).then_some(Ended::Stopped("repeated signals"))
            }
        }
    }

    fn control(&mut self, request: Request, reply: ReplyTo) -> Option<Ended> {
        match request {
            Request::Status {} => reply.send(Ok(Reply::Status(self.status()))),
            Request::Counters {} => reply.send(Ok(Reply::Counters(self.counters()))),
            Request::Pause {} => {
                self.pause();
                reply.send(Ok(Reply::Done));
            }
            Request::Resume {} => {
                self.resume();
                reply.send(Ok(Reply::Done));
            }
            Request::Power {} => {
                self.machine.press_power_button();
                reply.send(Ok(Reply::Done));
            }
            Request::Reset {} => match self.reset() {
                Ok(()) => reply.send(Ok(Reply::Done)),
                Err(error) => {
                    reply.refuse(ControlErrorKind::Failed, error.report());
                    return Some(Ended::Failed(error));
                }
            },
            Request::Stop {} => {
                reply.send(Ok(Reply::Done));
                return Some(Ended::Stopped("a stop request"));
            }
            Request::Disc { drive, path, force } => reply.send(self.change_disc(drive, path, force)),
            Request::Screenshot {} => reply.send(self.screen().and_then(|vga| screen::shot(&vga))),
            Request::ScreenText {} => reply.send(self.screen().map(|vga| screen::text(&vga))),
            Request::Keys { keys, text } => reply.send(screen::press(&self.machine, &keys, &text)),
            Request::Snapshot { name, parent, disks } => self.snapshot(name, parent, disks, reply),
            Request::CancelSnapshot {} => self.cancel_snapshot(reply),
            Request::CpuLimit { percent: Some(0) } => {
                let message = "a limit of 0 would stop the machine for ever; leave it out to have none";
                reply.refuse(ControlErrorKind::BadRequest, message);
            }
            Request::CpuLimit { percent } => match self.throttle.set(percent) {
                Ok(()) => reply.send(Ok(Reply::Done)),
                Err(e) => reply.refuse(ControlErrorKind::Failed, format!("no thread for the limit: {e}")),
            },
            Request::Ports {} => reply.send(Ok(ports::list(&self.networks))),
            Request::PortAdd { card, rule } => reply.send(ports::add(&self.networks, card, &rule)),
            Request::PortRemove { card, rule } => reply.send(ports::remove(&self.networks, card, &rule)),
            Request::ShareAdd { share } => reply.send(shares::add(&self.machine, &share)),
            Request::ShareRemove { name } => reply.send(shares::remove(&self.machine, &name)),
            other => self.device_request(other, reply),
        }
        None
    }

    fn change_disc(&self, drive: u32, path: Option<String>, force: bool) -> Result<Reply, ControlError> {
        disc::change(&self.machine, &self.drives, drive, path.as_deref(), force)
    }

    fn screen(&self) -> Result<Arc<platform::vga::Vga>, ControlError> {
        self.machine.display().ok_or_else(|| ControlError {
            kind: ControlErrorKind::BadRequest,
            message: "the machine has no display: those that firmware starts have one, and others with --display vga of arnia-vmm"
                .into(),
        })
    }

    fn status(&self) -> Status {
        let guest_time_ms = self.machine.guest_time_ns() / 1_000_000;
        let (snapshot, snapshot_base) = (self.saving.progress(), self.saving.base());
        Status { state: self.state, guest_time_ms, snapshot, snapshot_base, ..self.status.clone() }
    }

    fn counters(&self) -> Counters {
        let mut io = BTreeMap::new();
        for counters in &self.io_counters {
            for (name, value) in counters.read() {
                *io.entry(name.to_owned()).or_insert(0) += value;
            }
        }
        Counters {
            start_to_first_instruction_us: self.first_instruction.get().map(|time| time.as_micros() as u64),
            engine: self.machine.engine_counters().into_iter().collect(),
            io,
            devices: self.machine.device_counters().map(|(name, value)| (name.to_owned(), value)).into(),
        }
    }

    /// Pauses the machine; nothing happens when it is paused already.
    fn pause(&mut self) {
        if self.state == VmState::Running {
            self.stand_still();
            self.machine.pause();
            self.enter(VmState::Paused);
        }
    }

    /// Lets a paused machine go on; nothing happens when it runs.
    fn resume(&mut self) {
        if self.state == VmState::Paused {
            self.enter(VmState::Running);
            self.machine.resume();
            self.run_vcpus();
        }
    }

    /// Starts the machine from the beginning. A paused one stays paused.
    fn reset(&mut self) -> Result<(), Error> {
        let before = self.state;
        // Memory is cleared without a note in the log.
        self.give_up_snapshot("the machine was reset");
        self.enter(VmState::Resetting);
        self.stand_still();
        self.forget_base();
        self.forget_guest_events();
        self.machine.reset()?;
        self.load()?;
        self.status.resets += 1;
        self.guest_events.rearm();
        self.enter(before);
        if before == VmState::Running {
            self.run_vcpus();
        }
        Ok(())
    }

    /// Puts the kernel into the empty memory and the vCPUs before it.
    fn load(&mut self) -> Result<(), Error> {
        let states = self.machine.boot(&self.after_reset)?;
        for (vcpu, state) in self.vcpus.iter().zip(states) {
            vcpu.with(move |vcpu| vcpu.set_state(&state)).ok_or_else(vcpu_gone)?.map_err(engine_failed)?;
        }
        Ok(())
    }

    /// Drops what the guest did before a reset and nobody has looked at: it is of the past. No vCPU runs,
    /// so nothing new comes.
    fn forget_guest_events(&mut self) {
        let is_past = |event: &Event| matches!(event, Event::Guest(_) | Event::Vcpu(VcpuEvent::Shutdown(..)));
        self.backlog.retain(|event| !is_past(event));
        while let Ok(event) = self.events.try_recv() {
            if !is_past(&event) {
                self.backlog.push_back(event);
            }
        }
    }

    fn run_vcpus(&self) {
        self.vcpus.iter().for_each(VcpuHandle::run);
    }

    /// Makes all vCPUs stand still.
    fn stand_still(&self) {
        let pausing: Vec<_> = self.vcpus.iter().map(VcpuHandle::pause).collect();
        pausing.into_iter().for_each(|vcpu| vcpu.wait());
    }

    fn enter(&mut self, state: VmState) {
        assert!(valid_transition(self.state, state), "from {:?} to {state:?}", self.state);
        self.state = state;
    }
}

fn vcpu_gone() -> Error {
    Error::new(crate::ErrorKind::Internal, "a vCPU's thread has ended unexpectedly")
}

fn engine_failed(e: cpu::Error) -> Error {
    Error::host("the engine does not take the initial state").with_source(e)
}
