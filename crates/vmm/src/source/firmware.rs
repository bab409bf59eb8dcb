//! Booting by firmware.

use super::{open_file, variables};
use crate::Error;
use crate::spec::FirmwareSpec;
use api::worker::config::FirmwareImage;
use boot::firmware::Firmware;
use memory::Ram;
use platform::{FirmwareDevices, FlashConfig};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where distributions put BIOS firmware; Debian's package `seabios` first.
const BIOS_PATHS: [&str; 3] =
    ["/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin", "/usr/share/seabios/bios.bin"];
/// Where distributions put UEFI firmware; Debian's package `ovmf` first. Of its two the smaller one comes
/// first: the other decompresses itself in 32-bit code, which the software engine only interprets.
const UEFI_PATHS: [&str; 4] = [
    "/usr/share/OVMF/OVMF_CODE.fd",
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/edk2/ovmf/OVMF_CODE.fd",
    "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
];

/// Flash memory does not reach below this: there is the interrupt message area of the local APICs.
const FLASH_MIN: u64 = 0xff00_0000;

/// Firmware, mapped into the guest.
pub struct FirmwareSource {
    firmware: Firmware,
    variables: Option<Variables>,
}

/// What is in the flash memory below the firmware.
pub(super) struct Variables {
    pub(super) data: Vec<u8>,
    /// Where they are kept.
    pub(super) file: Option<Arc<File>>,
}

impl FirmwareSource {
    /// Finds, checks and maps the firmware that `spec` names.
    ///
    /// # Errors
    /// When it is not there or is none.
    pub(super) fn open(spec: &FirmwareSpec, ram: &mut Ram) -> Result<FirmwareSource, Error> {
        let path = match &spec.image {
            FirmwareImage::Bios => find(&BIOS_PATHS, "BIOS", "seabios")?,
            FirmwareImage::Uefi => find(&UEFI_PATHS, "UEFI", "ovmf")?,
            FirmwareImage::File(path) => path.clone(),
        };
        let mut file = open_file(&path, "firmware", "--firmware")?;
        let firmware = Firmware::read(&mut file).map_err(|e| {
            Error::bad_input(format!("{path:?} cannot be used as firmware"))
                .with_source(e)
                .with_advice("name an image like bios-256k.bin or OVMF_CODE.fd with --firmware")
        })?;
        let variables = variables::open(&path, spec.variables.as_deref())?;
        if let Some(variables) = &variables
            && firmware.start() < FLASH_MIN + variables.data.len() as u64
        {
            return Err(Error::bad_input(format!("the variables of {path:?} are too large"))
                .with_advice("name a copy of the firmware's own template with --firmware-variables"));
        }
        firmware.map(ram).map_err(|e| Error::host("the firmware cannot be mapped").with_source(e))?;
        log::info!("firmware {path:?} at {:#x}", firmware.start());
        Ok(FirmwareSource { firmware, variables })
    }

    /// The devices that the firmware needs.
    pub fn devices(&self) -> FirmwareDevices {
        let flash = self.variables.as_ref().map(|Variables { data, file }| FlashConfig {
            start: self.firmware.start() - data.len() as u64,
            data: data.clone(),
            keep: file.clone().map(variables::keep),
        });
        FirmwareDevices { flash }
    }

    /// Puts into `ram` what firmware finds there at its start.
    ///
    /// # Errors
    /// When memory is too small for it.
    pub(super) fn load(&self, ram: &Ram) -> Result<(), Error> {
        self.firmware
            .write_shadow(ram)
            .map_err(|e| Error::host("the firmware cannot be loaded").with_source(e))
    }
}

fn find(paths: &[&str], kind: &str, package: &str) -> Result<PathBuf, Error> {
    paths.iter().map(Path::new).find(|path| path.exists()).map(Path::to_owned).ok_or_else(|| {
        Error::bad_input(format!("no {kind} firmware is installed here")).with_advice(format!(
            "install it (Debian: apt-get install {package}), or name a file with --firmware"
        ))
    })
}
