//! Writing an image for other programs: its disk in their formats, or an appliance.

mod root;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use api::image::{Digest, ImageBoot, Manifest};
use disk::{Access, BackingPolicy, Format, Image, OpenOptions, TargetOptions};

use crate::disk_work::{refused, with_progress};
use crate::error::AboutFile;
use crate::files::{self, RemoveUnlessKept};
use crate::ovf::{self, Checksums, DiskFile};
use crate::progress::Progress;
use crate::transfer::archive;
use crate::{Error, Result, Store};

pub use root::root;

/// As what an image is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// An archive that [`archive::import`] reads: everything, with signatures.
    Archive,
    /// Its only disk.
    Disk(Format),
    /// An appliance (OVA) for other virtualization programs.
    Ova,
}

impl ExportFormat {
    /// What a file's name suggests: an archive for endings that suggest nothing.
    pub fn of_name(path: &Path) -> ExportFormat {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            Some("ova") => ExportFormat::Ova,
            Some("raw" | "img") => ExportFormat::Disk(Format::Raw),
            _ => match Format::of_name(path) {
                Format::Raw => ExportFormat::Archive,
                format => ExportFormat::Disk(format),
            },
        }
    }
}

/// Writes an image into a file, which must not exist. `name` is what an appliance is called.
///
/// # Errors
/// If the image is not there, the format has no place for what it has, or the file cannot be written; nothing
/// is left then.
pub fn export(
    store: &Store,
    image: Digest,
    name: &str,
    to: &Path,
    format: ExportFormat,
    progress: &mut dyn Progress,
) -> Result<()> {
    let manifest = store.manifest(image)?;
    // At once, not after all the work.
    if to.symlink_metadata().is_ok() {
        return Err(Error::bad_input(format!("{} is there already", to.display()))
            .with_remedy("choose another name, or remove it first"));
    }
    match format {
        ExportFormat::Archive => archive::export(store, image, to, progress),
        ExportFormat::Disk(format) => {
            let [disk] = manifest.disks.as_slice() else {
                let text =
                    format!("the image has {} disks, and {format} has a place for one", manifest.disks.len());
                return Err(Error::bad_input(text).with_remedy("export it as an archive (.tar)"));
            };
            let what = format!("writing {}", to.display());
            write_disk(&store.blob_path(&disk.blob)?, to, &TargetOptions::new(format), &what, progress)
        }
        ExportFormat::Ova => appliance(store, &manifest, name, to, progress),
    }
}

/// `what` is done is told by the progress.
fn write_disk(
    from: &Path,
    to: &Path,
    target: &TargetOptions,
    what: &str,
    progress: &mut dyn Progress,
) -> Result<()> {
    // Raw, whatever a guest has written into it.
    let open = OpenOptions {
        format: Some(Format::Raw),
        policy: BackingPolicy::none(),
        ..OpenOptions::new(Access::ReadOnly)
    };
    let image = Image::open(from, &open).map_err(refused)?;
    with_progress(what, progress, |work| disk::convert(&image.disk, to, target, work)).map_err(refused)
}

fn appliance(
    store: &Store,
    manifest: &Manifest,
    name: &str,
    to: &Path,
    progress: &mut dyn Progress,
) -> Result<()> {
    let ImageBoot::Firmware { firmware } = manifest.boot else {
        let text = "the image boots by a kernel that the host loads; an appliance has a loader on its disk";
        return Err(
            Error::bad_input(text).with_remedy("export it as an archive (.tar), or its disk alone (.qcow2)")
        );
    };
    // First, so that nobody else takes the name meanwhile.
    let archive = File::options().write(true).create_new(true).open(to).about("create", to)?;
    let archive_undo = RemoveUnlessKept::new(to);
    let session = store.session()?;
    let folder = session.partial("appliance");
    let _undo = RemoveUnlessKept::new(&folder);
    fs::create_dir(&folder).about("create", &folder)?;
    let stem = to.file_stem().map_or_else(|| "appliance".into(), |stem| stem.to_string_lossy().into_owned());
    let mut disks = Vec::new();
    for disk in &manifest.disks {
        let file = format!("{stem}-{}.vmdk", disk.name);
        let path = folder.join(&file);
        let target = TargetOptions { compress: true, ..TargetOptions::new(Format::Vmdk) };
        let what = format!("compressing {} of {}", disk.name, to.display());
        write_disk(&store.blob_path(&disk.blob)?, &path, &target, &what, progress)?;
        let len = path.metadata().about("read", &path)?.len();
        disks.push(DiskFile { name: file, len, capacity: disk.blob.size });
    }
    let descriptor = format!("{stem}.ovf");
    let path = folder.join(&descriptor);
    fs::write(&path, ovf::descriptor(name, manifest, firmware, &disks)).about("write", &path)?;
    let mut sums = Checksums::default();
    for file in std::iter::once(&descriptor).chain(disks.iter().map(|disk| &disk.name)) {
        sums.add(file, &folder.join(file), progress)?;
    }
    let list = format!("{stem}.mf");
    let path = folder.join(&list);
    fs::write(&path, sums.to_text()).about("write", &path)?;
    // DSP0243, section 6.4: the descriptor first, then the checksums, then the files in their order.
    let files = [descriptor, list].into_iter().chain(disks.into_iter().map(|disk| disk.name));
    pack(files.map(|file| (folder.join(&file), file)), archive, to)?;
    archive_undo.keep();
    files::sync_folder(to)
}

/// Writes files, with their names, into the archive `archive`, which is at `to`.
fn pack(files: impl Iterator<Item = (PathBuf, String)>, archive: File, to: &Path) -> Result<()> {
    let mut tar = tar::Builder::new(BufWriter::new(archive));
    for (path, name) in files {
        let file = File::open(&path).about("open", &path)?;
        let mut header = archive::header(file.metadata().about("read", &path)?.len());
        tar.append_data(&mut header, name, file).about("write", to)?;
    }
    let mut writer = tar.into_inner().about("write", to)?;
    writer.flush().and_then(|()| writer.get_ref().sync_all()).about("write", to)
}
