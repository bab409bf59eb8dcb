//! The harness that boots real guests under the real programs and talks to them from outside, as
//! a user would: over the serial console, the control socket and the network.
//!
//! ```no_run
//! # use vm_test::{Artifacts, Engine, Guest, Patience, Program};
//! # fn main() -> anyhow::Result<()> {
//! # let (artifacts, program) = (Artifacts::from_env()?, Program::Worker(Engine::Bt));
//! let guest = Guest::busybox(&artifacts).cpus(2).memory_mib(512).test("smp");
//! let mut vm = guest.start(&program, "target/vm-test/example".as_ref())?;
//! vm.console().expect("ARNIA-DONE", Patience::Boot)?;
//! assert_eq!(vm.wait(Patience::Shutdown)?.code, Some(0));
//! # Ok(())
//! # }
//! ```
//!
//! - [`Artifacts`]: kernels and disks, as `cargo xtask guests` left them.
//! - [`Program`]: what runs the guest: the worker with one of its engines, or QEMU, which stands
//!   beside it for comparison and as a check of the harness itself.
//! - [`Guest`]: a machine to be; [`Vm`]: the running one. Dropping a [`Vm`] ends it.
//! - [`Console`] and [`Shell`]: waiting for what the guest prints, and having it run commands.
//! - [`Arnia`]: the command line, and a daemon of its own.
//! - [`workloads::Workloads`]: a program that does the same on the host and in guests.
//! - [`software::Software`]: Debian's own programs, on the host and in guests.
//! - [`Suite`]: tests over engines and numbers of CPUs, with skips that are seen.
//!
//! Nothing waits without a bound ([`Patience`]), and whatever a run printed is kept in its folder.
//! The binary of this crate holds what needs the same machinery but is no test: the scripted demo
//! and the benchmarks.

pub mod agent;
pub mod arnia;
mod artifacts;
pub mod bench;
mod console;
mod control;
pub mod debian;
mod ext4;
mod guest;
mod http;
pub mod kernel_log;
mod patience;
pub mod places;
mod program;
mod relay;
mod shell;
pub mod soak;
pub mod software;
mod suite;
mod vm;
pub mod workloads;

pub use arnia::Arnia;
pub use artifacts::{Artifacts, copy_sparse};
pub use console::Console;
pub use control::{Control, RunState};
pub use ext4::{check_ext4, install_files, system_tool};
pub use guest::{After, Firmware, Guest};
pub use http::{HttpServer, sha256_hex};
pub use patience::Patience;
pub use program::{Engine, Program, worker_path};
pub use relay::Relay;
pub use shell::{Output, Shell};
pub use suite::{Case, Suite, Unavailable};
pub use vm::{Exit, KillOnDrop, Vm, free_port};
