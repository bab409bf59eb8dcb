//! The KVM engine: guests run on hardware virtualization, by the host kernel's `/dev/kvm`.
//!
//! ```text
//!   KvmEngine ── probe: opens, asks, runs kernel-mode code against a time bound
//!       │ create_vm
//!     KvmVm ──── memory slots, messages, routes for ends of interrupt, dirty log, kvmclock
//!       │ create_vcpu
//!    KvmVcpu ─── run: KVM_RUN until a kick; accesses become calls of CpuIo
//!       └─ state: CpuState to and from KVM's registers
//! ```
//!
//! The interrupt chip is split (`KVM_CAP_SPLIT_IRQCHIP`): the local APICs are in the kernel, the legacy
//! controllers, the I/O APIC and the timers are the platform's, so that a machine's devices are the same
//! under every engine. How interrupts of the legacy controller get in stands in [`vcpu`], how the I/O APIC
//! hears of ends of interrupts in [`routes`], how guest time agrees with the machine's clock in [`time`].
//!
//! Facts about KVM are from Linux, Documentation/virt/kvm/api.rst, unless something else is named.

mod cpuid;
mod engine;
mod events;
mod kick;
mod memslots;
mod probe;
mod raw;
mod routes;
mod state;
mod time;
mod vcpu;
mod vm;

#[cfg(test)]
mod tests;

pub use engine::{KvmEngine, Options};
pub use raw::IOCTLS;

use cpu::{Error, ErrorKind};

/// An error of the host's, with what was being done.
fn refused(context: impl Into<String>, error: impl Into<std::io::Error>) -> Error {
    Error::new(ErrorKind::HostRefused, context).with_source(error.into())
}

/// [`refused`] for errors as `kvm_ioctls` has them.
fn kvm_refused(context: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    let context = context.into();
    move |error| refused(context, std::io::Error::from_raw_os_error(error.errno()))
}
