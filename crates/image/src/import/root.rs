//! Archives of a root file system: what `tar` of a running system, a container's export or `debootstrap` give.

use std::fs;
use std::path::Path;

use api::image::{ImageBoot, ImageDisk, Minimum};

use super::{Found, ImportOptions};
use crate::error::AboutFile;
use crate::files::RemoveUnlessKept;
use crate::progress::Progress;
use crate::root_disk::{self, APPEND};
use crate::{Error, Result, Session, tools};

/// Size of the disk if nothing is said, in bytes. It takes only what is in it.
const DISK_LEN: u64 = 8 << 30;

pub(super) fn from_archive(
    session: &Session<'_>,
    path: &Path,
    options: &ImportOptions,
    progress: &mut dyn Progress,
) -> Result<Found> {
    tools::require_for_disks()?;
    let archive = path.canonicalize().about("find", path)?;
    let folder = session.partial("root");
    let _undo = RemoveUnlessKept::new(&folder);
    fs::create_dir(&folder).about("create", &folder)?;
    progress.begin(&format!("making a disk of {}", path.display()), None);
    let size = options.disk_size.unwrap_or(DISK_LEN);
    root_disk::make(&archive, &folder, size, progress).map_err(|error| {
        error.with_remedy(
            "see that the file is a tar archive of a root file system, and the disk large enough for it",
        )
    })?;
    let mut take = |name: &str| {
        let path = folder.join(name);
        progress.begin(&format!("taking {name}"), Some(path.metadata().about("read", &path)?.len()));
        session.take_file(&path, progress)
    };
    let disk = ImageDisk { name: "root".into(), blob: take(root_disk::DISK)? };
    let has = |name: &str| folder.join(name).exists();
    let boot = match &options.boot {
        Some(_) => None,
        None if !has(root_disk::KERNEL) => {
            let text = format!("the system in {} has no kernel in its /boot", path.display());
            return Err(Error::bad_input(text).with_remedy("name one of the host's, with its initrd"));
        }
        None => Some(ImageBoot::Kernel {
            kernel: take(root_disk::KERNEL)?,
            initrd: if has(root_disk::INITRD) { Some(take(root_disk::INITRD)?) } else { None },
            append: APPEND.to_owned(),
        }),
    };
    Ok(Found { disks: vec![disk], boot, minimum: Minimum::default(), description: String::new() })
}
