//! vCPU threads.
//!
//! ```text
//!            Run                      Finish
//! Paused ─────────────> Running ───────────────> Finished
//!    ^                     │                        ^
//!    └── Pause, Shutdown, ─┘                        │
//!        engine failure                             │
//!    └────────────────── Finish ────────────────────┘
//! ```
//!
//! Each state is a method that returns the next. Commands come over a channel and are made noticed by a
//! kick, so a vCPU that executes guest code sees them within microseconds. A thread begins paused.

use cpu::{CpuIo, Kicker, Vcpu, VmExit};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a vCPU thread tells by itself.
#[derive(Debug)]
pub enum VcpuEvent {
    /// The guest ran into a triple fault; the vCPU is paused. The text says how it came.
    Shutdown(u32, String),
    /// The engine failed; the vCPU is paused.
    Failed(u32, cpu::Error),
}

/// What can be asked of a vCPU between runs.
type Work = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

enum Command {
    Run,
    /// Stand still, then drop the sender.
    Pause(Sender<()>),
    /// Do something with the vCPU; comes only when it is paused.
    With(Work),
    Finish,
}

/// Keeps vCPUs from executing guest code after the guest has asked for the machine's end, without waiting
/// for whoever carries that out.
#[derive(Default)]
pub struct Gate {
    closed: AtomicBool,
    resting: Mutex<Option<Instant>>,
    kickers: OnceLock<Vec<Arc<dyn Kicker>>>,
}

impl Gate {
    /// Stops all vCPUs soon, until the gate is opened and they are told to run again.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.kick();
    }

    /// Keeps all vCPUs from executing guest code for so long from now. They still do what they are told.
    pub fn rest(&self, time: Duration) {
        *self.resting.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + time);
        self.kick();
    }

    fn kick(&self) {
        for kicker in self.kickers.get().into_iter().flatten() {
            kicker.kick();
        }
    }

    /// How long vCPUs still have to rest.
    fn resting(&self) -> Option<Duration> {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = resting.map(|until| until.saturating_duration_since(Instant::now()));
        if rest.is_some_and(|rest| rest.is_zero()) {
            *resting = None;
            return None;
        }
        rest
    }

    /// Lets vCPUs run again; they wait for [`VcpuHandle::run`].
    pub fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    /// Sets the vCPUs that [`Gate::close`] stops. Once, before any of them runs.
    pub fn guard(&self, vcpus: &[VcpuHandle]) {
        let _ = self.kickers.set(vcpus.iter().map(|vcpu| vcpu.kicker.clone()).collect());
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

/// A vCPU thread as its owner sees it. Dropping it ends the thread.
pub struct VcpuHandle {
    commands: Sender<Command>,
    kicker: Arc<dyn Kicker>,
    thread: Option<JoinHandle<()>>,
}

/// What a vCPU thread needs beside the vCPU.
pub struct VcpuContext {
    /// Where its accesses go.
    pub io: Box<dyn CpuIo + Send>,
    /// Whether it may run.
    pub gate: Arc<Gate>,
    /// Called on its thread when something happens to it.
    pub on_event: Box<dyn Fn(VcpuEvent) + Send>,
    /// Called on its thread before it executes its first guest instruction.
    pub on_first_run: Box<dyn FnOnce() + Send>,
}

impl VcpuHandle {
    /// Starts a thread for a vCPU, paused.
    ///
    /// # Errors
    /// When the host refuses another thread.
    pub fn start(vcpu: Box<dyn Vcpu>, context: VcpuContext) -> io::Result<VcpuHandle> {
        let (commands, receiver) = channel();
        let kicker = vcpu.kicker();
        let name = format!("vcpu{}", vcpu.id());
        let thread = Thread {
            vcpu,
            commands: receiver,
            io: context.io,
            gate: context.gate,
            on_event: context.on_event,
            on_first_run: Some(context.on_first_run),
        };
        let thread = std::thread::Builder::new().name(name).spawn(move || thread.main())?;
        Ok(VcpuHandle { commands, kicker, thread: Some(thread) })
    }

    /// Lets the vCPU execute guest code.
    pub fn run(&self) {
        self.send(Command::Run);
    }

    /// Asks the vCPU to stand still; wait on the result with [`Pausing::wait`]. Ask all vCPUs first and
    /// wait afterwards, so that they stop together.
    pub fn pause(&self) -> Pausing {
        let (done, pausing) = channel();
        self.send(Command::Pause(done));
        Pausing(pausing)
    }

    /// Does something with the paused vCPU, on its thread, and returns the result; `None` when the thread
    /// is gone.
    pub fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static,
    ) -> Option<T> {
        let (result, answer) = channel();
        self.send(Command::With(Box::new(move |vcpu| {
            let _ = result.send(work(vcpu));
        })));
        answer.recv().ok()
    }

    fn send(&self, command: Command) {
        // A thread that is gone needs no commands.
        if self.commands.send(command).is_ok() {
            self.kicker.kick();
        }
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        self.send(Command::Finish);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A vCPU on its way to standing still.
#[must_use]
pub struct Pausing(Receiver<()>);

impl Pausing {
    /// Waits until it stands still.
    pub fn wait(self) {
        // The sender is dropped, without a message, once the vCPU is paused or its thread is gone.
        let _ = self.0.recv();
    }
}

struct Thread {
    vcpu: Box<dyn Vcpu>,
    commands: Receiver<Command>,
    io: Box<dyn CpuIo + Send>,
    gate: Arc<Gate>,
    on_event: Box<dyn Fn(VcpuEvent) + Send>,
    on_first_run: Option<Box<dyn FnOnce() + Send>>,
}

/// Nobody can command the vCPU any more.
struct Gone;

#[derive(Clone, Copy)]
enum State {
    Paused,
    Running,
    Finished,
}

impl Thread {
    fn main(mut self) {
        let mut state = State::Paused;
        loop {
            state = match state {
                State::Paused => self.paused(),
                State::Running => self.running(),
                State::Finished => return,
            }
        }
    }

    fn paused(&mut self) -> State {
        match self.commands.recv() {
            Ok(Command::Run) => State::Running,
            Ok(Command::Pause(done)) => {
                drop(done);
                State::Paused
            }
            Ok(Command::With(work)) => {
                work(&mut *self.vcpu);
                State::Paused
            }
            Ok(Command::Finish) | Err(_) => State::Finished,
        }
    }

    /// The next command, if there is one or one comes within this time.
    fn command(&self, rest: Option<Duration>) -> Result<Option<Command>, Gone> {
        match rest {
            None => match self.commands.try_recv() {
                Err(TryRecvError::Disconnected) => Err(Gone),
                result => Ok(result.ok()),
            },
            Some(rest) => match self.commands.recv_timeout(rest) {
                Err(RecvTimeoutError::Disconnected) => Err(Gone),
                result => Ok(result.ok()),
            },
        }
    }

    fn running(&mut self) -> State {
        if let Some(callback) = self.on_first_run.take() {
            callback();
        }
        loop {
            let rest = self.gate.resting();
            match self.command(rest) {
                Ok(Some(Command::Pause(done))) => {
                    drop(done);
                    return State::Paused;
                }
                Ok(Some(Command::Finish)) | Err(Gone) => return State::Finished,
                Ok(Some(Command::With(work))) => work(&mut *self.vcpu),
                Ok(Some(Command::Run) | None) => {}
            }
            if self.gate.is_closed() {
                return State::Paused;
            }
            if rest.is_some() {
                continue;
            }
            match self.vcpu.run(&*self.io) {
                Ok(VmExit::Kicked) => {}
                Ok(VmExit::Shutdown(why)) => {
                    (self.on_event)(VcpuEvent::Shutdown(self.vcpu.id(), why));
                    return State::Paused;
                }
                Err(error) => {
                    (self.on_event)(VcpuEvent::Failed(self.vcpu.id(), error));
                    return State::Paused;
                }
            }
        }
    }
}
