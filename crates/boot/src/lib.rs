//! Boot without firmware: loads a kernel, describes the machine to it, and says how the first processor
//! enters it.
//!
//! ```text
//! file ──Kernel::read──> Kernel ──Plan::new──> Plan ──Plan::load──> RAM + Entry ──Entry::apply──> CpuState
//!                        (what it is)          (where everything goes;
//!                                               nothing is written yet)
//! ```
//!
//! - [`Kernel`] tells what a file is: a Linux bzImage or an ELF executable. A bzImage's payload is
//!   decompressed here, on the host, so that the guest does not spend its first seconds on it.
//! - [`Plan`] decides where kernel, initial RAM disk and command line go, and refuses what cannot work
//!   (too little memory, a command line too long) before anything is touched.
//! - [`Plan::load`] writes them into guest memory with the boot protocol's own structures, the ACPI
//!   tables ([`acpi`]) and the SMBIOS tables ([`smbios`]) that describe a [`Machine`].
//! - [`Entry`] holds what the boot protocol demands of the first processor's registers.
//!
//! Three ways in, by [`Method`]: the 64-bit Linux boot protocol into the decompressed kernel (which then
//! runs at the address that it was linked for: address randomisation of the kernel's base happens in the
//! decompressor and is absent), the same protocol into the bzImage's own decompressor (slower, keeps the
//! randomisation), and PVH for ELF kernels that carry its note.
//!
//! Every byte of a kernel file is untrusted: nothing in it can make this crate panic, loop, or allocate
//! more than the guest's memory.
//!
//! References: "boot protocol" is Documentation/arch/x86/boot.rst of Linux, "zero page" is
//! Documentation/arch/x86/zero-page.rst, "PVH" is docs/misc/pvh.pandoc and
//! xen/include/public/arch-x86/hvm/start_info.h of Xen.

pub mod acpi;
mod entry;
mod error;
pub mod firmware;
pub mod fuzzing;
mod image;
pub mod layout;
mod linux;
mod machine;
mod parallel;
mod plan;
mod pvh;
pub mod smbios;

pub use entry::{Entry, firmware_setup};
pub use error::{Error, ErrorKind};
pub use image::Kernel;
pub use machine::{
    AddressRange, GenerationId, GenerationPlace, Machine, PciInterrupt, PowerManagement, Rtc, SerialPort,
};
pub use plan::{Inputs, Method, Plan};
