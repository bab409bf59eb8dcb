//! The traits of an engine.

use crate::{Error, Support};
use clock::{Clock, Timers};
use memory::Ram;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use x86::CpuState;
use x86::cpuid::Leaf;

/// A way to execute guest code: hardware virtualization or binary translation.
pub trait Engine: Send + Sync {
    /// The name by which users choose it: `kvm`, `bt`.
    fn name(&self) -> &'static str;

    /// Finds out by trying what the engine can do on this host. Takes at most a fraction of a second.
    fn probe(&self) -> Support;

    /// What the result of [`Engine::probe`] hangs on, as text, where probing takes long enough that a result
    /// is worth remembering: while it is the same, so is the result, most likely.
    fn circumstances(&self) -> Option<String> {
        None
    }

    /// The CPUID features that guests can have with this engine here; `None` when that is all that a CPU
    /// model of this host has. A model is cut down to it ([`x86::cpuid::build_within`]).
    ///
    /// # Errors
    /// When the engine does not work here.
    fn offered_cpuid(&self) -> Result<Option<Vec<Leaf>>, Error> {
        Ok(None)
    }

    /// Whether guests can have a TSC of another frequency than the host's.
    fn scales_tsc(&self) -> bool {
        false
    }

    /// Creates a machine without processors. Its clock is scaled only if the engine [`Engine::scales_tsc`].
    ///
    /// # Errors
    /// When the host refuses a resource or the configuration asks for what the engine cannot give.
    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>, Error>;
}

/// What an engine needs to know of a machine.
#[derive(Clone)]
pub struct VmConfig {
    /// Guest memory.
    pub ram: Arc<Ram>,
    /// Guest time.
    pub clock: Arc<Clock>,
    /// The machine's timer thread.
    pub timers: Timers,
    /// How many vCPUs there will be, 1 to 255; their APIC IDs are 0 to `vcpus - 1`.
    pub vcpus: u32,
    /// CPUID of vCPU 0; an engine adapts the leaves that name the processor (APIC ID) for the others.
    pub cpuid: Vec<Leaf>,
}

/// One machine as its engine sees it.
pub trait Vm: Send + Sync {
    /// Creates the vCPU with this APIC ID, in its state after reset: vCPU 0 runnable, the others
    /// waiting for a start-up message. Each at most once.
    ///
    /// # Errors
    /// When the ID is out of range or taken, or the host refuses.
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, Error>;

    /// Delivers a message-signalled interrupt to the local APICs: a write of `data` to `address`
    /// (SDM vol. 3A, §11.11). Never waits for a vCPU.
    fn signal_msi(&self, address: u64, data: u32);

    /// Sets the level of the legacy interrupt controller's output, connected to LINT0 of vCPU 0. When a
    /// vCPU takes such an interrupt it calls [`CpuIo::pic_acknowledge`] for the vector.
    fn set_pic_line(&self, level: bool);

    /// Raises a non-maskable interrupt on a vCPU.
    fn signal_nmi(&self, vcpu: u32);

    /// Tells the engine that guest time was paused or resumed, or that the dirty log was switched or taken,
    /// while all vCPUs were stopped: it drops what it derived from them.
    fn resynchronise(&self);

    /// Tells the engine that the contents of memory were replaced without reports, while all vCPUs were
    /// stopped: it drops all that it has made from code in memory.
    fn memory_replaced(&self);

    /// Tells the engine that video memory ([`Ram::video`]) has another place now, or none. Vcpus may run; they
    /// may use the old place for a moment more.
    fn video_moved(&self) {}

    /// Brings the machine's dirty log ([`Ram::take_dirty`]) up to date with what vCPUs have written, for
    /// engines whose vCPUs do not report their writes themselves. All vCPUs are stopped. Called before the
    /// log is taken, and [`Vm::resynchronise`] after.
    ///
    /// # Errors
    /// When the host refuses: what the log lacks is not known then.
    fn collect_dirty(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Counters by name, for observation: blocks, misses, exits and so on.
    fn counters(&self) -> Vec<(String, u64)>;

    /// A prepared way for one message-signalled interrupt; `None` when this engine has none or the host gives
    /// no more of them: then there is [`Vm::signal_msi`].
    fn msi_event(&self) -> Option<Box<dyn MsiEvent>> {
        None
    }

    /// Makes the guest's writes of `len` bytes (0: of any length) at `gpa`, of whatever value, add 1 to an
    /// eventfd instead of calling [`CpuIo::mmio_write`], or no longer. False when this engine cannot or the host
    /// refuses: then the calls go on. Vcpus may run.
    fn set_doorbell(&self, gpa: u64, len: u32, event: BorrowedFd<'_>, on: bool) -> bool {
        let _ = (gpa, len, event, on);
        false
    }
}

/// A message-signalled interrupt that is sent again and again, on a way that the engine has prepared.
pub trait MsiEvent: Send + Sync {
    /// Sets the message. False when it cannot go this way: then nothing has changed. Vcpus may run.
    fn set_message(&self, address: u64, data: u32) -> bool;

    /// Sends the message; before one is set, does nothing.
    fn trigger(&self);
}

/// One virtual processor. Owned by the thread that runs it.
pub trait Vcpu: Send {
    /// The APIC ID.
    fn id(&self) -> u32;

    /// Executes guest code until something ends it. Port and memory-mapped accesses, interrupt
    /// acknowledgement and end-of-interrupt go to `io` from inside; halting sleeps inside.
    ///
    /// # Errors
    /// Only when the host or the engine itself fails; whatever the guest does is no error.
    fn run(&mut self, io: &dyn CpuIo) -> Result<VmExit, Error>;

    /// The processor's state. Only between runs.
    ///
    /// # Errors
    /// When the host refuses.
    fn state(&mut self) -> Result<CpuState, Error>;

    /// Replaces the processor's state, checked as untrusted input. Only between runs.
    ///
    /// # Errors
    /// When the state is not one that this processor can have; it is then unchanged.
    fn set_state(&mut self, state: &CpuState) -> Result<(), Error>;

    /// A handle that ends [`Vcpu::run`] from another thread.
    fn kicker(&self) -> Arc<dyn Kicker>;
}

/// Ends the run of a vCPU from another thread.
pub trait Kicker: Send + Sync {
    /// Makes the present or else the next [`Vcpu::run`] return [`VmExit::Kicked`] soon (microseconds).
    fn kick(&self);
}

/// Why a vCPU stopped executing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmExit {
    /// [`Kicker::kick`] was called.
    Kicked,
    /// A triple fault or shutdown: on a PC the machine resets. The text says which exceptions led to it.
    Shutdown(String),
}

/// Where a running vCPU's accesses go. Implemented by the `vmm` over its buses. Called on the vCPU's
/// thread, from several vCPUs at once.
pub trait CpuIo: Sync {
    /// Reads 1, 2 or 4 bytes from a port. `data` comes filled with ones.
    fn pio_read(&self, port: u16, data: &mut [u8]);
    /// Writes 1, 2 or 4 bytes to a port.
    fn pio_write(&self, port: u16, data: &[u8]);
    /// Reads 1 to 8 bytes from physical memory that is not RAM. `data` comes filled with ones.
    fn mmio_read(&self, gpa: u64, data: &mut [u8]);
    /// Writes 1 to 8 bytes to physical memory that is not RAM.
    fn mmio_write(&self, gpa: u64, data: &[u8]);
    /// The guest ended a level-triggered interrupt: the I/O APIC wants to know (split interrupt chip).
    fn end_of_interrupt(&self, vector: u8);
    /// Acknowledges the legacy interrupt controller's request and returns its vector.
    fn pic_acknowledge(&self) -> u8;
}
