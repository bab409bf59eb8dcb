//! Making an image in one format of a disk in another.
//!
//! ```text
//!           next piece             read, leave out zeroes           put
//!   Cursor ───────────> thread 1 ───────────────────────> Builder ──────> ".NAME.partial-…" ── rename ──> NAME
//!           ───────────> thread 2 ───────────────────────>
//! ```
//!
//! What the source knows to be zero is not read. What turns out to be zero is not written. The image gets
//! its name when it is whole.

use crate::bytes::is_zero;
use crate::file::{HostFile, sync_file};
use crate::qcow2::{self, PackedEnd, Qcow2};
use crate::vdi::VdiBuilder;
use crate::vhd::VhdBuilder;
use crate::vhdx::VhdxBuilder;
use crate::vmdk::VmdkBuilder;
use crate::{Buffers, Content, Disk, Durability, Error, ErrorKind, Format, Operation, Progress};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// How much a thread takes at a time, unless the format's unit is larger.
const PIECE: u64 = 2 << 20;
/// How much of it is in memory at a time, unless the format's unit is larger: what a processor's own cache holds, so
/// that the bytes come from memory once and not twice.
const STEP: u64 = 256 << 10;
/// More threads than this do not help: memory is the limit then.
const THREADS_MAX: usize = 8;

/// What a new image is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetOptions {
    /// Its format.
    pub format: Format,
    /// Whether data is compressed (qcow2, VMDK).
    pub compress: bool,
    /// What is special to qcow2; its size is ignored.
    pub qcow2: qcow2::CreateOptions,
    /// Whether a file that has the name already is replaced.
    pub replace: bool,
}

impl TargetOptions {
    /// An image of this format, with defaults for all else.
    pub fn new(format: Format) -> TargetOptions {
        TargetOptions { format, compress: false, qcow2: qcow2::CreateOptions::new(0), replace: false }
    }
}

/// An image in the making.
pub(crate) trait Builder: Send + Sync {
    /// Data comes in multiples of this many bytes at multiples of it; the disk's last piece may be
    /// shorter.
    fn unit(&self) -> u64;

    /// Puts data at a place of the disk. Each place is put once at most; others read as zeroes. Several
    /// threads may put at a time.
    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Error>;

    /// Completes the image.
    fn finish(self: Box<Self>) -> Result<(), Error>;
}

/// Makes an empty image.
///
/// # Errors
/// [`ErrorKind::Exists`], [`ErrorKind::Unsupported`] for a size that the format cannot have, or as the
/// host fails; nothing is left then.
pub fn create(target: &Path, size: u64, options: &TargetOptions) -> Result<(), Error> {
    let draft = Draft::new(target, options.replace, Operation::Create)?;
    builder(&draft.path, target, size, options)?.finish()?;
    draft.publish_no_less_safe()
}

/// Makes an image of a disk.
///
/// # Errors
/// As [`create`], or as the source fails; nothing is left then.
pub fn convert(
    source: &Arc<dyn Disk>,
    target: &Path,
    options: &TargetOptions,
    progress: &Progress,
) -> Result<(), Error> {
    let size = source.info().size;
    progress.begin(size);
    let draft = Draft::new(target, options.replace, Operation::Convert)?;
    let builder = builder(&draft.path, target, size, options)?;
    copy(&**source, &*builder, size, progress)?;
    builder.finish()?;
    draft.publish_no_less_safe()
}

fn builder(
    path: &Path,
    target: &Path,
    size: u64,
    options: &TargetOptions,
) -> Result<Box<dyn Builder>, Error> {
    if options.compress && !matches!(options.format, Format::Qcow2 | Format::Vmdk) {
        return Err(Error::new(ErrorKind::Unsupported, Operation::Convert)
            .with_path(target)
            .with_detail(format!("{} images are not compressed; qcow2 and vmdk can be", options.format)));
    }
    match options.format {
        Format::Vdi => Ok(Box::new(VdiBuilder::new(path, size)?)),
        Format::Vhd => Ok(Box::new(VhdBuilder::new(path, size)?)),
        Format::Vhdx => Ok(Box::new(VhdxBuilder::new(path, size)?)),
        Format::Vmdk => Ok(Box::new(VmdkBuilder::new(path, target, size, options.compress)?)),
        Format::Raw => Ok(Box::new(RawBuilder::new(path, size)?)),
        Format::Qcow2 => {
            let layout = qcow2::CreateOptions { size, ..options.qcow2.clone() };
            Ok(Box::new(Qcow2Builder::new(path, &layout, options.compress)?))
        }
    }
}

fn copy(source: &dyn Disk, builder: &dyn Builder, size: u64, progress: &Progress) -> Result<(), Error> {
    let cursor = Mutex::new(Cursor { at: 0, size, piece: PIECE.next_multiple_of(builder.unit()) });
    let threads = std::thread::available_parallelism().map_or(2, |number| number.get()).clamp(2, THREADS_MAX);
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                if let Err(error) = copy_pieces(source, builder, &cursor, progress) {
                    // The first failure is told; the others end at their next piece.
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    cursor.lock().unwrap_or_else(PoisonError::into_inner).at = u64::MAX;
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Where the next piece begins.
struct Cursor {
    at: u64,
    size: u64,
    piece: u64,
}

impl Cursor {
    /// The next piece that may have data.
    fn next(&mut self, source: &dyn Disk, progress: &Progress) -> Result<Option<(u64, u64)>, Error> {
        while self.at < self.size {
            let extent = source.extent(self.at, self.size - self.at)?;
            let here = (self.piece - self.at % self.piece).min(self.size - self.at);
            if extent.content == Content::Data || extent.len < here {
                let at = self.at;
                self.at += here;
                return Ok(Some((at, here)));
            }
            // Whole pieces of nothing; the rest is looked at with the next one.
            let end = self.at + extent.len;
            let end = if end == self.size { end } else { end - end % self.piece };
            progress.advance(end - self.at);
            self.at = end;
        }
        Ok(None)
    }
}

fn copy_pieces(
    source: &dyn Disk,
    builder: &dyn Builder,
    cursor: &Mutex<Cursor>,
    progress: &Progress,
) -> Result<(), Error> {
    let mut bytes = Vec::new();
    let step = STEP.next_multiple_of(builder.unit());
    loop {
        progress.check(Operation::Convert)?;
        let next = cursor.lock().unwrap_or_else(PoisonError::into_inner).next(source, progress)?;
        let Some((offset, len)) = next else { return Ok(()) };
        // Pieces begin at units.
        for at in (offset..offset + len).step_by(step as usize) {
            bytes.resize(step.min(offset + len - at) as usize, 0);
            read_piece(source, at, &mut bytes)?;
            put_data(builder, at, &bytes)?;
        }
        progress.advance(len);
    }
}

/// Reads a piece; what the source knows to be zero is not asked for.
fn read_piece(source: &dyn Disk, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        let extent = source.extent(at, (bytes.len() - done) as u64)?;
        let part = &mut bytes[done..][..extent.len as usize];
        match extent.content {
            Content::Zeroes => part.fill(0),
            Content::Data => source.read(at, &mut Buffers::from_mut(part))?,
        }
        done += extent.len as usize;
    }
    Ok(())
}

/// Puts what is not zero, in runs of whole units.
fn put_data(builder: &dyn Builder, offset: u64, bytes: &[u8]) -> Result<(), Error> {
    each_run(bytes, builder.unit() as usize, |start, run| builder.put(offset + start as u64, run))
}

/// Calls `f` with each run of whole units of which none is zero, and where it begins.
fn each_run(
    bytes: &[u8],
    unit: usize,
    mut f: impl FnMut(usize, &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut start = 0;
    while start < bytes.len() {
        let end = |at: usize| (at + unit).min(bytes.len());
        if is_zero(&bytes[start..end(start)]) {
            start = end(start);
            continue;
        }
        let mut stop = end(start);
        while stop < bytes.len() && !is_zero(&bytes[stop..end(stop)]) {
            stop = end(stop);
        }
        f(start, &bytes[start..stop])?;
        start = stop;
    }
    Ok(())
}

/// Writes what is not zero to a place of a new file, where all is zero.
pub(crate) fn write_sparse(file: &HostFile, at: u64, bytes: &[u8]) -> Result<(), Error> {
    each_run(bytes, 4096, |start, run| file.write(at + start as u64, run, Operation::Convert))
}

/// A new identity for an image: a random UUID (RFC 9562, version 4).
pub(crate) fn new_uuid(operation: Operation) -> Result<[u8; 16], Error> {
    let mut uuid = [0; 16];
    rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::from_io(operation, error.into()))?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

/// A file in the making beside its final place. Dropping it removes it.
pub(crate) struct Draft {
    pub(crate) path: PathBuf,
    target: PathBuf,
    replace: bool,
    operation: Operation,
}

impl Draft {
    pub(crate) fn new(target: &Path, replace: bool, operation: Operation) -> Result<Draft, Error> {
        // Early, so that nobody waits for a refusal; the rename looks again.
        if let Ok(there) = target.symlink_metadata() {
            if !there.is_file() && replace {
                return Err(Error::new(ErrorKind::Exists, operation)
                    .with_path(target)
                    .with_detail("it is no regular file and is not replaced"));
            }
            if !replace {
                return Err(Error::new(ErrorKind::Exists, operation).with_path(target));
            }
            // Somebody may be using what is to be replaced.
            HostFile::open(target, crate::Access::ReadOnly).map(drop).or_else(|error| {
                match error.kind() {
                    ErrorKind::LockedByOther => Err(error),
                    _ => Ok(()),
                }
            })?;
        }
        Draft::beside(target, replace, operation)
    }

    /// The same for a file that the caller has open, and may replace.
    pub(crate) fn beside(target: &Path, replace: bool, operation: Operation) -> Result<Draft, Error> {
        let Some(name) = target.file_name() else { return Err(Draft::no_name(target, operation)) };
        let name = format!(".{}.partial-{}", name.to_string_lossy(), std::process::id());
        Ok(Draft { path: target.with_file_name(name), target: target.to_owned(), replace, operation })
    }

    fn no_name(target: &Path, operation: Operation) -> Error {
        Error::new(ErrorKind::NotFound, operation).with_path(target).with_detail("that is no name of a file")
    }

    /// Gives the file its name, and makes both survive a crash of the host: before that, a crash could leave the
    /// name with an empty file in the place of what it replaced.
    ///
    /// # Errors
    /// As [`Draft::publish`]. If the folder cannot be made safe, the file has its name nevertheless.
    pub(crate) fn publish_safely(self) -> Result<(), Error> {
        let operation = self.operation;
        sync_file(&self.path, operation)?;
        let folder = match self.target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        self.publish()?;
        sync_file(&folder, operation)
    }

    /// Gives the file its name. Where it replaces another one, that is lost, and so it is made safe first; a file that was
    /// not there is written back when the host sees fit, as copies are.
    ///
    /// # Errors
    /// As [`Draft::publish_safely`].
    pub(crate) fn publish_no_less_safe(self) -> Result<(), Error> {
        match self.replace && self.target.exists() {
            true => self.publish_safely(),
            false => self.publish(),
        }
    }

    pub(crate) fn publish(self) -> Result<(), Error> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let flags = if self.replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let result = match renameat_with(CWD, &self.path, CWD, &self.target, flags) {
            // A file system without that flag.
            Err(rustix::io::Errno::INVAL) if !self.replace && !self.target.exists() => {
                rustix::fs::rename(&self.path, &self.target)
            }
            result => result,
        };
        result.map_err(|error| {
            match error {
                rustix::io::Errno::EXIST => Error::new(ErrorKind::Exists, self.operation),
                error => Error::from_io(self.operation, error.into()),
            }
            .with_path(&self.target)
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone already when it was published.
        let _ = std::fs::remove_file(&self.path);
    }
}

struct RawBuilder {
    file: HostFile,
}

impl RawBuilder {
    fn new(path: &Path, size: u64) -> Result<RawBuilder, Error> {
        if size == 0 || !size.is_multiple_of(crate::SECTOR_SIZE) {
            return Err(Error::new(ErrorKind::Unsupported, Operation::Create)
                .with_path(path)
                .with_detail("the size of a disk is a multiple of 512 bytes, and not 0"));
        }
        let file = HostFile::create(path)?;
        if let Err(error) = file.set_len(size, Operation::Create) {
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        Ok(RawBuilder { file })
    }
}

impl Builder for RawBuilder {
    fn unit(&self) -> u64 {
        4096
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.file.write(offset, bytes, Operation::Convert)
    }

    fn finish(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}

struct Qcow2Builder {
    image: Qcow2,
    /// Where compressed clusters go, if they are compressed.
    packed_end: Option<Mutex<PackedEnd>>,
    cluster_size: u64,
}

impl Qcow2Builder {
    fn new(path: &Path, options: &qcow2::CreateOptions, compress: bool) -> Result<Qcow2Builder, Error> {
        let image = Qcow2::create(path, options, None)?;
        image.leave_out_syncs();
        let packed_end = compress.then(Mutex::default);
        Ok(Qcow2Builder { image, packed_end, cluster_size: options.cluster_size })
    }
}

impl Builder for Qcow2Builder {
    fn unit(&self) -> u64 {
        self.cluster_size
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let Some(end) = &self.packed_end else {
            return self.image.write(offset, &Buffers::from_slice(bytes), Durability::AtFlush);
        };
        let size = self.cluster_size as usize;
        for (index, cluster) in bytes.chunks(size).enumerate() {
            let number = offset / self.cluster_size + index as u64;
            if cluster.len() == size {
                self.image.write_packed(number, cluster, end)?;
            } else {
                let mut whole = cluster.to_vec();
                whole.resize(size, 0);
                self.image.write_packed(number, &whole, end)?;
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), Error> {
        self.image.close()
    }
}
