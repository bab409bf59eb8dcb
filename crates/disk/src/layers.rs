//! Images that stand on others: making them, and moving data between the layers.
//!
//! Each of these can be cut short at any moment (`kill -9`, [`Progress::cancel`]) and begun again: data is
//! safe where it goes before it disappears where it was.

use crate::convert::Draft;
use crate::file::HostFile;
use crate::open::open_at;
use crate::qcow2::{Backing, CheckReport, CreateOptions, Qcow2, Repair, extent_clamped, read_clamped};
use crate::raw::Raw;
use crate::{
    Access, Buffers, Content, Disk, Durability, Error, ErrorKind, Format, Image, ImageInfo, OpenOptions,
    Operation, Progress, Unmap,
};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Data is moved in pieces of so many bytes.
const PIECE: u64 = 1 << 20;

/// Makes an image that stands on another: as large as that one unless `options` has a size, empty, and
/// made in constant time. The other must not be changed from then on.
///
/// # Errors
/// As the other image, or as [`create`](crate::create); [`ErrorKind::Unsupported`] when it would replace an image that
/// it is to stand on.
pub fn create_overlay(
    target: &Path,
    backing: &Path,
    backing_format: Option<Format>,
    options: &CreateOptions,
    replace: bool,
) -> Result<(), Error> {
    let open = OpenOptions { format: backing_format, ..OpenOptions::new(Access::ReadOnly) };
    create_overlay_over(target, backing, &open, options, replace)
}

/// The same, where `open` says how the other image is opened: its format, and which files it may name.
///
/// # Errors
/// As [`create_overlay`].
pub fn create_overlay_over(
    target: &Path,
    backing: &Path,
    open: &OpenOptions,
    options: &CreateOptions,
    replace: bool,
) -> Result<(), Error> {
    overlay(target, backing, open, options, replace, |_| {})
}

/// The same, but the image is not safe from a crash of the host until the caller has synchronised its file.
///
/// # Errors
/// As [`create_overlay`].
pub fn draft_overlay_over(
    target: &Path,
    backing: &Path,
    open: &OpenOptions,
    options: &CreateOptions,
) -> Result<(), Error> {
    overlay(target, backing, open, options, false, Qcow2::leave_out_syncs)
}

fn overlay(
    target: &Path,
    backing: &Path,
    open: &OpenOptions,
    options: &CreateOptions,
    replace: bool,
    prepare: impl FnOnce(&Qcow2),
) -> Result<(), Error> {
    let below = Image::open(backing, open)?;
    let size = if options.size == 0 { below.disk.info().size } else { options.size };
    let name = name_for(target, backing)?;
    let below_path = backing;
    let backing = Backing { name, format: Some(below.format.name().into()) };
    let options = CreateOptions { size, backing: Some(backing), ..options.clone() };
    let draft = Draft::new(target, replace, Operation::Create)?;
    check_not_itself(target, below_path, &below, Operation::Create)?;
    let image = Qcow2::create(&draft.path, &options, Some(below.disk))?;
    prepare(&image);
    image.close()?;
    draft.publish_no_less_safe()
}

/// How an image names another: by its name alone if both lie in one folder, so that they can be moved
/// together; else by the whole path.
pub(crate) fn name_for(image: &Path, backing: &Path) -> Result<String, Error> {
    let failed = |error| Error::from_io(Operation::Open, error).with_path(backing);
    let real = backing.canonicalize().map_err(failed)?;
    let folder = |path: &Path| match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let is_beside = folder(image).canonicalize().ok().as_deref() == real.parent();
    let name = if is_beside { real.file_name().map(Path::new).unwrap_or(&real) } else { &real };
    match name.to_str() {
        Some(name) => Ok(name.to_owned()),
        None => Err(Error::new(ErrorKind::Unsupported, Operation::Create)
            .with_path(backing)
            .with_detail("its name is no text, and images cannot name it")),
    }
}

/// Checks an image, and repairs it as far as `repair` says; `None` for formats that have nothing to check.
///
/// # Errors
/// As the file, or [`ErrorKind::BadFormat`] when it is too damaged to be judged.
pub fn check(path: &Path, format: Option<Format>, repair: Repair) -> Result<Option<CheckReport>, Error> {
    let access = if repair == Repair::No { Access::ReadOnly } else { Access::ReadWrite };
    let file = HostFile::open(path, access)?;
    let format = match format {
        Some(format) => format,
        None => Format::probe(&file)?,
    };
    match format {
        Format::Qcow2 => Qcow2::check_file(&file, repair).map(Some),
        _ => Ok(None),
    }
}

fn only_qcow2(image: Image, operation: Operation) -> Result<Arc<Qcow2>, Error> {
    let Image { qcow2, path, format, .. } = image;
    qcow2.ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, operation)
            .with_path(path)
            .with_detail(format!("it is {format}; only qcow2 images stand on others"))
    })
}

/// Calls `f` with what the image itself stores, piece by piece: offset, length, content.
fn each_own(
    image: &Qcow2,
    progress: &Progress,
    operation: Operation,
    mut f: impl FnMut(u64, u64, Content) -> Result<(), Error>,
) -> Result<(), Error> {
    let size = image.info().size;
    progress.begin(size);
    let mut at = 0;
    while at < size {
        progress.check(operation)?;
        let extent = image.extent(at, size - at)?;
        let is_own = extent.depth == 0 && extent.present;
        let len = match extent.content {
            Content::Data if is_own => extent.len.min(PIECE),
            _ => extent.len,
        };
        if is_own {
            f(at, len, extent.content)?;
        }
        progress.advance(len);
        at += len;
    }
    Ok(())
}

/// Refuses a lower image that somebody has made read-only, as the disks of a store of images are: the superuser could write to
/// it all the same, and whoever stands on it would be spoilt.
fn refuse_kept(path: &Path) -> Result<(), Error> {
    let failed = |error| Error::from_io(Operation::Commit, error).with_path(path);
    if path.metadata().map_err(failed)?.permissions().readonly() {
        return Err(Error::new(ErrorKind::Forbidden, Operation::Commit).with_path(path).with_detail(
            "it is read-only, so others may stand on it; to have all in one image, use `arnia disk flatten`",
        ));
    }
    Ok(())
}

/// Moves what an image stores into the one that it stands on, which is then as the image was; the image
/// is empty afterwards and still stands on it. Other images that stand on the lower one are spoilt.
///
/// # Errors
/// As the files. What was moved until then is in both.
pub fn commit(path: &Path, options: &OpenOptions, progress: &Progress) -> Result<(), Error> {
    let operation = Operation::Commit;
    let file = HostFile::open(path, Access::ReadWrite)?;
    let Some(backing) = ImageInfo::read(path, options.format)?.qcow2.and_then(|info| info.backing) else {
        return Err(Error::new(ErrorKind::Unsupported, operation)
            .with_path(path)
            .with_detail("it stands on no other image"));
    };
    let below = open_at(path, &backing, &OpenOptions { access: Access::ReadWrite, ..options.clone() })?;
    refuse_kept(&below.path)?;
    let image = Qcow2::open(file, Some(below.disk.clone()), None)?;
    let size = image.info().size;
    if below.disk.info().size < size {
        below.disk.resize(size)?;
    }
    let mut bytes = vec![0; PIECE as usize];
    each_own(&image, progress, operation, |at, len, content| match content {
        Content::Zeroes => below.disk.write_zeroes(at, len, Unmap::Allowed, Durability::AtFlush),
        Content::Data => {
            let bytes = &mut bytes[..len as usize];
            image.read(at, &mut Buffers::from_mut(bytes))?;
            below.disk.write(at, &Buffers::from_slice(bytes), Durability::AtFlush)
        }
    })?;
    below.disk.flush()?;
    image.empty()?;
    image.close()
}

/// Makes an image stand alone: copies into it what shows through from below, then forgets the lower
/// images. Guests may use the disk meanwhile.
///
/// # Errors
/// As the files. What was copied until then stays.
pub fn flatten(image: &Qcow2, progress: &Progress) -> Result<(), Error> {
    let Some(below) = image.backing() else { return Ok(()) };
    let size = image.info().size;
    progress.begin(size);
    let mut at = 0;
    while at < size {
        progress.check(Operation::Rebase)?;
        let extent = image.extent(at, (size - at).min(PIECE))?;
        if extent.depth > 0 && extent.content == Content::Data && at < below.info().size {
            image.copy_up(at, extent.len)?;
        }
        progress.advance(extent.len);
        at += extent.len;
    }
    image.set_backing(None, None)
}

/// Makes an image stand on another one (or on none), and reads as before. With `unsafely` only the name
/// is changed: right when the same image has got another place.
///
/// # Errors
/// As the files. What was copied until then stays, and the image stands on what it stood on.
pub fn rebase(
    path: &Path,
    options: &OpenOptions,
    new: Option<(&Path, Option<Format>)>,
    unsafely: bool,
    progress: &Progress,
) -> Result<(), Error> {
    let operation = Operation::Rebase;
    let open = OpenOptions { access: Access::ReadWrite, with_backing: !unsafely, ..options.clone() };
    let image = only_qcow2(Image::open(path, &open)?, operation)?;
    let Some((new_path, new_format)) = new else {
        return if unsafely { image.set_backing(None, None) } else { flatten(&image, progress) };
    };
    let below =
        Image::open(new_path, &OpenOptions { format: new_format, ..OpenOptions::new(Access::ReadOnly) })?;
    if unsafely {
        check_not_itself(path, new_path, &below, operation)?;
        let backing = Backing { name: name_for(path, new_path)?, format: Some(below.format.name().into()) };
        return image.set_backing(Some(backing), Some(below.disk));
    }
    rebase_open(&image, path, new_path, &below, progress)
}

/// Makes an open image at `path` stand on `below` at `new_path`. Guests may use the disk meanwhile.
pub(crate) fn rebase_open(
    image: &Qcow2,
    path: &Path,
    new_path: &Path,
    below: &Image,
    progress: &Progress,
) -> Result<(), Error> {
    check_not_itself(path, new_path, below, Operation::Rebase)?;
    copy_differences(image, &*below.disk, progress)?;
    let backing = Backing { name: name_for(path, new_path)?, format: Some(below.format.name().into()) };
    image.set_backing(Some(backing), Some(below.disk.clone()))
}

/// Refuses an image at `path` that is to stand on `below` at `new_path` when it is that image, or one further down.
fn check_not_itself(path: &Path, new_path: &Path, below: &Image, operation: Operation) -> Result<(), Error> {
    let is_itself = |other: &Path| same_file(path, other);
    if is_itself(new_path) || below.chain.iter().any(|other| is_itself(other)) {
        return Err(Error::new(ErrorKind::Unsupported, operation)
            .with_path(path)
            .with_detail("it would stand on itself"));
    }
    Ok(())
}

/// Whether two names lead to one file, by whatever links.
fn same_file(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|there| (there.dev(), there.ino()));
    matches!((identity(a), identity(b)), (Ok(a), Ok(b)) if a == b)
}

/// Copies into an image what it shows from below and `new` does not have alike.
fn copy_differences(image: &Qcow2, new: &dyn Disk, progress: &Progress) -> Result<(), Error> {
    let step = image.image_info().cluster_size.max(64 << 10);
    let size = image.info().size;
    progress.begin(size);
    let (mut old_bytes, mut new_bytes) = (vec![0; step as usize], vec![0; step as usize]);
    let mut at = 0;
    while at < size {
        progress.check(Operation::Rebase)?;
        let len = (step - at % step).min(size - at);
        let extent = image.extent(at, len)?;
        let len = extent.len;
        let shows_below = extent.depth > 0 || !extent.present;
        let both_zero = extent.content == Content::Zeroes && {
            let new = extent_clamped(new, at, len)?;
            new.content == Content::Zeroes && new.len >= len
        };
        if shows_below && !both_zero {
            let (old_bytes, new_bytes) = (&mut old_bytes[..len as usize], &mut new_bytes[..len as usize]);
            image.read(at, &mut Buffers::from_mut(old_bytes))?;
            read_clamped(new, at, &mut Buffers::from_mut(new_bytes))?;
            if old_bytes != new_bytes {
                image.copy_up(at, len)?;
            }
        }
        progress.advance(len);
        at += len;
    }
    image.flush()
}

/// Frees what a disk does not need: zeroes of a raw disk in place; a qcow2 image is written anew beside
/// itself and replaced. What it stands on stays.
///
/// # Errors
/// As the files; the image is then as it was.
pub fn compact(path: &Path, options: &OpenOptions, progress: &Progress) -> Result<(), Error> {
    let operation = Operation::Convert;
    let format = match options.format {
        Some(format) => format,
        None => ImageInfo::read(path, None)?.format,
    };
    if format == Format::Raw {
        return Raw::open(path, Access::ReadWrite)?.free_zeroes(progress);
    }
    // To write, so that nobody else does.
    let image = only_qcow2(
        Image::open(path, &OpenOptions { access: Access::ReadWrite, ..options.clone() })?,
        operation,
    )?;
    let info = image.image_info();
    if !info.snapshots.is_empty() {
        return Err(Error::new(ErrorKind::Unsupported, operation).with_path(path).with_detail(
            "it has internal snapshots, which would be lost; convert it to another image instead",
        ));
    }
    let layout = CreateOptions {
        size: image.info().size,
        version: info.version,
        cluster_size: info.cluster_size,
        compression: info.compression,
        lazy_refcounts: info.lazy_refcounts,
        backing: info.backing,
    };
    let failed = |error| Error::from_io(operation, error).with_path(path);
    // The file that a symbolic link names is replaced, not the link.
    let real = path.canonicalize().map_err(failed)?;
    let draft = Draft::beside(&real, true, operation)?;
    let new = Qcow2::create(&draft.path, &layout, image.backing())?;
    let has_backing = layout.backing.is_some();
    let mut bytes = vec![0; PIECE as usize];
    each_own(&image, progress, operation, |at, len, content| match content {
        Content::Zeroes if has_backing => new.write_zeroes(at, len, Unmap::Allowed, Durability::AtFlush),
        Content::Zeroes => Ok(()),
        Content::Data => {
            let bytes = &mut bytes[..len as usize];
            image.read(at, &mut Buffers::from_mut(bytes))?;
            write_unless_zero(&new, at, bytes, layout.cluster_size as usize, has_backing)
        }
    })?;
    new.close()?;
    let mode = std::fs::metadata(path).map_err(failed)?.permissions();
    std::fs::set_permissions(&draft.path, mode).map_err(failed)?;
    // A crash must find one or the other whole.
    draft.publish_safely()
}

fn write_unless_zero(
    new: &Qcow2,
    at: u64,
    bytes: &[u8],
    unit: usize,
    has_backing: bool,
) -> Result<(), Error> {
    // Pieces begin at clusters, since extents do.
    for (index, part) in bytes.chunks(unit).enumerate() {
        let at = at + (index * unit) as u64;
        if !crate::bytes::is_zero(part) {
            new.write(at, &Buffers::from_slice(part), Durability::AtFlush)?;
        } else if has_backing {
            new.write_zeroes(at, part.len() as u64, Unmap::Allowed, Durability::AtFlush)?;
        }
    }
    Ok(())
}
