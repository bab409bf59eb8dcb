//! Images from what others made: disks in any format, appliances (OVF, OVA), archives of a root file system.
//!
//! ```text
//!  disk ───────────────────────── convert ──┐
//!  .ova, .ovf ── descriptor, disks ─ convert ┼──> blobs, manifest, name
//!  .tar[.gz…] ── unpack ── mke2fs ───────────┘
//! ```
//!
//! A file that names others is an offer to read them: a disk that stands on another image is refused, and the
//! disks of an appliance are those in its archive, or beside its descriptor.

mod appliance;
mod boot_sector;
mod root;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use api::image::{
    Blob, Digest, ImageBoot, ImageDisk, ImageFirmware, ImageName, MANIFEST_VERSION, Manifest, Minimum,
    PersonalitySource,
};
use disk::{Access, BackingPolicy, Format, Image, OpenOptions, TargetOptions};

use crate::disk_work::{refused, with_progress};
use crate::error::AboutFile;
use crate::files::RemoveUnlessKept;
use crate::progress::Progress;
use crate::{Error, Result, Session, Store};

/// What boots a disk.
#[derive(Clone, Debug)]
pub enum Boot {
    /// Its own loader.
    Firmware(ImageFirmware),
    /// A kernel of the host's.
    Kernel {
        /// The bzImage or ELF file.
        kernel: PathBuf,
        /// Its initrd.
        initrd: Option<PathBuf>,
        /// Its command line.
        append: String,
    },
}

/// What the file does not say about itself.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// What boots it; `None` to find out.
    pub boot: Option<Boot>,
    /// The format of a disk; `None` to find out.
    pub format: Option<Format>,
    /// Size of the disk that is made for the root file system in an archive, in bytes.
    pub disk_size: Option<u64>,
    /// What gives instances their identity.
    pub personality: PersonalitySource,
    /// A sentence about it.
    pub description: String,
}

/// Makes an image of a file, which stays as it is.
///
/// # Errors
/// If a file cannot be read, is damaged or stands on others; if nothing is known that boots it. Nothing has
/// a name then.
pub fn import(
    store: &Store,
    path: &Path,
    name: &ImageName,
    options: &ImportOptions,
    progress: &mut dyn Progress,
) -> Result<Digest> {
    let session = store.session()?;
    let found = match Kind::of(path, options.format)? {
        Kind::Disk => one_disk(&session, path, options, progress)?,
        Kind::Descriptor => appliance::from_descriptor(&session, path, progress)?,
        Kind::Appliance => appliance::from_archive(&session, path, progress)?,
        Kind::RootArchive => root::from_archive(&session, path, options, progress)?,
    };
    let boot = match &options.boot {
        Some(boot) => take_boot(&session, boot, progress)?,
        None => found.boot.ok_or_else(|| {
            Error::bad_input(format!("nothing in {} tells what boots it", path.display()))
                .with_remedy("say it: firmware (bios or uefi), or a kernel")
        })?,
    };
    let description =
        if options.description.is_empty() { found.description } else { options.description.clone() };
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        architecture: "x86_64".into(),
        description,
        created_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        boot,
        disks: found.disks,
        minimum: found.minimum,
        default_user: None,
        ports: Vec::new(),
        volumes: Vec::new(),
        personality: options.personality,
        labels: BTreeMap::new(),
    };
    let digest = session.add_manifest(&manifest)?;
    session.set_name(name, digest)?;
    Ok(digest)
}

/// What a file turned out to hold, its disks being in the store.
struct Found {
    disks: Vec<ImageDisk>,
    boot: Option<ImageBoot>,
    minimum: Minimum,
    description: String,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Disk,
    /// An OVF descriptor.
    Descriptor,
    /// A tar archive that begins with one.
    Appliance,
    /// Any other archive.
    RootArchive,
}

impl Kind {
    fn of(path: &Path, format: Option<Format>) -> Result<Kind> {
        let mut head = Vec::new();
        File::open(path).about("open", path)?.take(512).read_to_end(&mut head).about("read", path)?;
        let has_ending =
            |ending: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending));
        // POSIX.1-2017 pax, "ustar Interchange Format": the magic's place.
        let is_tar = head.get(257..262) == Some(b"ustar");
        let is_packed = [&b"\x1f\x8b"[..], b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"BZh"];
        let is_packed = is_packed.iter().any(|magic| head.starts_with(magic));
        Ok(match () {
            () if format.is_some() => Kind::Disk,
            () if has_ending("ovf") => Kind::Descriptor,
            () if is_tar && first_name(&head).to_lowercase().ends_with(".ovf") => Kind::Appliance,
            () if is_tar || is_packed => Kind::RootArchive,
            () => Kind::Disk,
        })
    }
}

/// The name in a tar header.
fn first_name(header: &[u8]) -> String {
    let name = header.get(..100).unwrap_or_default();
    String::from_utf8_lossy(name.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

fn one_disk(
    session: &Session<'_>,
    path: &Path,
    options: &ImportOptions,
    progress: &mut dyn Progress,
) -> Result<Found> {
    let blob = take_disk(session, path, options.format, progress)?;
    let boot = match options.boot {
        Some(_) => None,
        None => boot_sector::firmware(&session.store().blob_path(&blob)?)?,
    };
    Ok(Found {
        disks: vec![ImageDisk { name: "root".into(), blob }],
        boot: boot.map(|firmware| ImageBoot::Firmware { firmware }),
        minimum: Minimum::default(),
        description: String::new(),
    })
}

/// Takes a disk in any format into the store, as the raw disk that the guest sees.
fn take_disk(
    session: &Session<'_>,
    path: &Path,
    format: Option<Format>,
    progress: &mut dyn Progress,
) -> Result<Blob> {
    let about = |error| {
        refused(error).with_remedy(
        "check it with `arnia disk check`; what stands on another image is flattened first with `arnia disk flatten`",
    )
    };
    let open = OpenOptions { format, policy: BackingPolicy::none(), ..OpenOptions::new(Access::ReadOnly) };
    let image = Image::open(path, &open).map_err(about)?;
    let len = image.disk.info().size;
    if len == 0 || !len.is_multiple_of(disk::SECTOR_SIZE) {
        let text = format!("{} has {len} bytes, which is no number of sectors", path.display());
        return Err(Error::bad_input(text).with_remedy("give a disk, or an archive"));
    }
    if image.format == Format::Raw {
        drop(image);
        return take_copy(session, path, progress);
    }
    let partial = session.partial("disk");
    let undo = RemoveUnlessKept::new(&partial);
    let what = format!("converting {}", path.display());
    with_progress(&what, progress, |work| {
        disk::convert(&image.disk, &partial, &TargetOptions::new(Format::Raw), work)
    })
    .map_err(about)?;
    progress.begin("taking the disk", Some(len));
    let blob = session.take_file(&partial, progress)?;
    undo.keep();
    Ok(blob)
}

fn take_copy(session: &Session<'_>, path: &Path, progress: &mut dyn Progress) -> Result<Blob> {
    let len = path.metadata().about("read", path)?.len();
    progress.begin(&format!("copying {}", path.display()), Some(2 * len));
    session.copy_file(path, progress)
}

fn take_boot(session: &Session<'_>, boot: &Boot, progress: &mut dyn Progress) -> Result<ImageBoot> {
    Ok(match boot {
        Boot::Firmware(firmware) => ImageBoot::Firmware { firmware: *firmware },
        Boot::Kernel { kernel, initrd, append } => ImageBoot::Kernel {
            kernel: take_copy(session, kernel, progress)?,
            initrd: initrd.as_ref().map(|initrd| take_copy(session, initrd, progress)).transpose()?,
            append: append.clone(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::files::tests::Folder;
    use crate::progress::Silent;

    #[test]
    fn raw_disks_become_images_and_odd_files_are_refused() {
        let folder = Folder::new("import");
        let store = Store::open(folder.0.join("store")).unwrap();
        let path = folder.0.join("disk.raw");
        let name: ImageName = "old:1".parse().unwrap();
        let import_with = |bytes: &[u8], boot: Option<Boot>| {
            std::fs::write(&path, bytes).unwrap();
            let options = ImportOptions { boot, ..ImportOptions::default() };
            import(&store, &path, &name, &options, &mut Silent)
        };
        let bios = || Some(Boot::Firmware(ImageFirmware::Bios));
        let digest = import_with(&[7; 1024], bios()).unwrap();
        store.check(digest, &mut Silent).unwrap();
        assert!(path.exists(), "the file stays");
        let mut qcow2 = vec![0; 1024];
        qcow2[..4].copy_from_slice(b"QFI\xfb");
        for bytes in [&[][..], &[7; 100], &qcow2] {
            assert_eq!(import_with(bytes, bios()).unwrap_err().kind(), ErrorKind::BadInput);
        }
        // Nothing that boots it, and nobody said what.
        let error = import_with(&[7; 1024], None).unwrap_err();
        assert!(error.kind() == ErrorKind::BadInput && error.remedy().is_some(), "{error}");
        assert_eq!(store.by_name(&name).unwrap(), digest);
    }
}
