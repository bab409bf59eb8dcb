//! The engine contract: [`Engine`], [`Vm`] and [`Vcpu`], the exits they make and the interrupts they
//! take.
//!
//! An engine executes guest code; it knows nothing of devices. A device raises interrupts; it knows
//! nothing of engines. They meet in the `vmm`, which hands each running vCPU a [`CpuIo`] (where port and
//! memory accesses go) and passes interrupts to [`Vm`] (message-signalled, and the output line of the
//! legacy interrupt controller). The local APIC belongs to the engine, as under KVM's split interrupt
//! chip; the I/O APIC and the 8259 pair belong to the platform.
//!
//! Threads: one host thread per vCPU calls [`Vcpu::run`] in a loop. Everything else ([`Vm`] methods,
//! [`Kicker`]) may be called from any thread. A vCPU that halts sleeps inside `run`.

mod engine;
mod error;
mod support;

pub use engine::{CpuIo, Engine, Kicker, MsiEvent, Vcpu, Vm, VmConfig, VmExit};
pub use error::{Error, ErrorKind};
pub use support::{Speed, Support};
