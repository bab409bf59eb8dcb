//! Changing discs.

use crate::inputs::open_disc;
use crate::machine::Machine;
use api::worker::config::CdromConfig;
use api::worker::control::{ControlError, ControlErrorKind, Reply};
use scsi::DiscError;
use std::ffi::OsStr;
use std::path::Path;

fn refuse(message: impl Into<String>) -> ControlError {
    ControlError { kind: ControlErrorKind::BadRequest, message: message.into() }
}

/// Puts the image of this name, from the drive's folder, into a drive; without a name the drive is empty.
pub(super) fn change(
    machine: &Machine,
    drives: &[CdromConfig],
    drive: u32,
    name: Option<&str>,
    force: bool,
) -> Result<Reply, ControlError> {
    let no_drive = || refuse(format!("the machine has no CD-ROM drive {drive}: start it with --cdrom"));
    let config = drives.get(drive as usize).ok_or_else(no_drive)?;
    let disc = match name {
        None => None,
        Some(name) => {
            let folder = config.media.as_deref().ok_or_else(|| {
                refuse("the drive has no folder for discs: start it with --cdrom FILE,media=DIR")
            })?;
            // A name in the folder, and no way out of it.
            let name = Path::new(name);
            let inside = match name.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                None => true,
                Some(parent) => parent == folder,
            };
            let file = name.file_name().filter(|file| *file != OsStr::new("..") && inside);
            let file = file.ok_or_else(|| refuse(format!("{name:?} is no file of the folder {folder:?}")))?;
            Some(open_disc(&folder.join(file)).map_err(|e| refuse(e.report()))?)
        }
    };
    machine.change_disc(drive as usize, disc, force).map(|()| Reply::Done).map_err(|e| ControlError {
        kind: if e == DiscError::Held { ControlErrorKind::Busy } else { ControlErrorKind::BadRequest },
        message: match e {
            DiscError::Held => format!("{e}; ask again, or with force"),
            DiscError::NoSuchDrive => e.to_string(),
        },
    })
}
