//! What a machine starts with: a kernel file, or firmware.

mod firmware;
mod kernel;
mod variables;

pub use firmware::FirmwareSource;
pub use kernel::KernelSource;

use crate::Error;
use crate::spec::{BootSpec, random_bytes};
use memory::Ram;
use platform::FirmwareDevices;
use std::fs::File;
use std::io;
use std::path::Path;
use x86::CpuState;

/// What a machine starts with.
pub enum BootSource {
    /// A kernel file.
    Kernel(Box<KernelSource>),
    /// Firmware.
    Firmware(FirmwareSource),
}

impl BootSource {
    /// Opens what `spec` names and makes sure that `ram` suits it. Firmware is mapped.
    ///
    /// # Errors
    /// When it cannot be booted.
    pub fn open(spec: &BootSpec, ram: &mut Ram) -> Result<BootSource, Error> {
        Ok(match spec {
            BootSpec::Kernel(spec) => BootSource::Kernel(Box::new(KernelSource::open(spec, ram)?)),
            BootSpec::Firmware(spec) => BootSource::Firmware(FirmwareSource::open(spec, ram)?),
        })
    }

    /// Opens what a machine needs that goes on from a snapshot, in `ram`: firmware, and a kernel as far as
    /// its files are still there, since they are looked at only when the machine is reset.
    ///
    /// # Errors
    /// When the firmware cannot be used.
    pub fn for_a_reset(spec: &BootSpec, ram: &mut Ram) -> Result<BootSource, Error> {
        match spec {
            BootSpec::Kernel(spec) => Ok(BootSource::Kernel(Box::new(KernelSource::for_a_reset(spec)))),
            BootSpec::Firmware(_) => BootSource::open(spec, ram),
        }
    }

    /// Puts into `ram`, which is all zero, what the machine starts with, and makes the vCPUs' states at
    /// the first instruction from those after reset.
    ///
    /// # Errors
    /// When a file is no longer what it was.
    pub fn load(
        &mut self,
        ram: &Ram,
        machine: &boot::Machine,
        after_reset: &[CpuState],
    ) -> Result<Vec<CpuState>, Error> {
        let mut states = after_reset.to_vec();
        match self {
            BootSource::Kernel(source) => {
                let entry = source.load(ram, machine, random_bytes()?)?;
                states.iter_mut().for_each(boot::firmware_setup);
                entry.apply(&mut states[0]);
            }
            BootSource::Firmware(source) => source.load(ram)?,
        }
        Ok(states)
    }

    /// What firmware needs of devices, if there is firmware.
    pub fn firmware_devices(&self) -> Option<FirmwareDevices> {
        match self {
            BootSource::Kernel(_) => None,
            BootSource::Firmware(source) => Some(source.devices()),
        }
    }

    /// Whether firmware sets the machine up, and not we.
    pub fn is_firmware(&self) -> bool {
        matches!(self, BootSource::Firmware(_))
    }
}

/// Opens a regular file to be read. `what` it is and the `option` that names it are for the error.
///
/// # Errors
/// When there is none.
pub(crate) fn open_file(path: &Path, what: &str, option: &str) -> Result<File, Error> {
    let cannot = |e: io::Error| {
        Error::bad_input(format!("the {what} {path:?} cannot be opened"))
            .with_source(e)
            .with_advice(format!("check {option}"))
    };
    // A FIFO would otherwise make the program wait for a writer.
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(cannot)?;
    if !file.metadata().map_err(cannot)?.is_file() {
        return Err(Error::bad_input(format!("the {what} {path:?} is not a regular file"))
            .with_advice(format!("check {option}")));
    }
    Ok(file)
}
