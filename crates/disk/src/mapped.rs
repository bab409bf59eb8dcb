//! Images that are only read: a format says where each part of the disk lies, this reads it there.

use crate::file::HostFile;
use crate::qcow2::{extent_clamped, read_clamped};
use crate::{Buffers, Content, Disk, DiskInfo, Durability, Error, ErrorKind, Extent, Operation, Unmap};
use std::sync::Arc;

/// Where a part of a disk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In this file of the image, from this byte on.
    File(usize, u64),
    /// Nowhere: it is zero.
    Zero,
    /// In the image below.
    Below,
    /// Compressed: the format unpacks it.
    Packed,
}

/// What a format knows after reading its tables.
pub(crate) trait Layout: Send + Sync + 'static {
    /// Size of the disk in bytes, a multiple of 512.
    fn size(&self) -> u64;

    /// Where the disk lies from `offset` on, and how many bytes from there lie together: 1 to `len`.
    fn place(&self, files: &[HostFile], offset: u64, len: u64) -> Result<(Place, u64), Error>;

    /// Fills `into` from a compressed part; it does not reach beyond what [`Layout::place`] said.
    fn read_packed(&self, files: &[HostFile], offset: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        let _ = (offset, into);
        Err(files[0].damaged(Operation::Read, "it has no compressed parts"))
    }
}

/// A disk in an image of such a format.
pub(crate) struct Mapped {
    pub(crate) layout: Box<dyn Layout>,
    /// The image's files: one at least, the one that was named first.
    pub(crate) files: Vec<HostFile>,
    pub(crate) below: Option<Arc<dyn Disk>>,
}

impl Mapped {
    fn check(&self, operation: Operation, offset: u64, len: u64) -> Result<(), Error> {
        self.info().check(operation, offset, len).map_err(|error| error.with_path(self.files[0].path()))
    }

    fn refused(&self, operation: Operation) -> Error {
        Error::new(ErrorKind::ReadOnly, operation).with_path(self.files[0].path())
    }

    /// What of the disk's data at `at` of a file are holes of it, which the host knows to be zero. What lies beyond the
    /// file's end counts as data, so that reading it tells that the file was cut off.
    fn stored(&self, index: usize, at: u64, len: u64) -> Result<Extent, Error> {
        let Some(file) = self.files.get(index) else { return Err(self.refused(Operation::Map)) };
        let data = Extent { file_offset: Some(at), ..Extent::data(len) };
        if file.is_block_device() {
            return Ok(data);
        }
        Ok(match file.len()?.saturating_sub(at) {
            0 => data,
            left => match file.stored(at, len.min(left)) {
                (true, len) => Extent { len, ..data },
                (false, len) => Extent { len, content: Content::Zeroes, ..data },
            },
        })
    }

    fn read_file(&self, index: usize, at: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        let Some(file) = self.files.get(index) else { return Err(self.refused(Operation::Read)) };
        file.read_list(at, into).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                file.damaged(Operation::Read, format!("data lies at {at:#x}, beyond its end: it was cut off"))
            }
            _ => file.failed(Operation::Read, error),
        })
    }
}

impl Disk for Mapped {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            size: self.layout.size(),
            read_only: true,
            logical_block_size: 512,
            physical_block_size: 4096,
            discard_granularity: None,
        }
    }

    fn read(&self, offset: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        let len = into.len() as u64;
        self.check(Operation::Read, offset, len)?;
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let (place, run) = self.layout.place(&self.files, at, len - done)?;
            let mut part = into.part(done as usize, run as usize);
            match (place, &self.below) {
                (Place::File(index, at), _) => self.read_file(index, at, &mut part)?,
                (Place::Packed, _) => self.layout.read_packed(&self.files, at, &mut part)?,
                (Place::Below, Some(below)) => read_clamped(&**below, at, &mut part)?,
                (Place::Below, None) | (Place::Zero, _) => part.zero(0, run as usize),
            }
            done += run;
        }
        Ok(())
    }

    fn write(&self, _: u64, _: &Buffers<'_>, _: Durability) -> Result<(), Error> {
        Err(self.refused(Operation::Write))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> Result<(), Error> {
        Err(self.refused(Operation::Discard))
    }

    fn write_zeroes(&self, _: u64, _: u64, _: Unmap, _: Durability) -> Result<(), Error> {
        Err(self.refused(Operation::WriteZeroes))
    }

    fn extent(&self, offset: u64, len: u64) -> Result<Extent, Error> {
        self.check(Operation::Map, offset, len)?;
        if len == 0 {
            return Ok(Extent::data(0));
        }
        let (place, len) = self.layout.place(&self.files, offset, len)?;
        Ok(match (place, &self.below) {
            (Place::File(index, at), _) => self.stored(index, at, len)?,
            (Place::Packed, _) => Extent::data(len),
            (Place::Below, Some(below)) => {
                let below = extent_clamped(&**below, offset, len)?;
                Extent { depth: below.depth + 1, ..below }
            }
            (Place::Below, None) | (Place::Zero, _) => {
                Extent { content: Content::Zeroes, file_offset: None, ..Extent::data(len) }
            }
        })
    }
}

/// Blocks of equal size, each wherever its table entry says: what most of these formats are.
pub(crate) struct Blocks {
    pub(crate) size: u64,
    pub(crate) block_size: u64,
    /// Where each block lies in the first file.
    pub(crate) places: Vec<BlockPlace>,
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockPlace {
    At(u64),
    Zero,
    Below,
}

impl Blocks {
    /// The block of a byte of the disk, how far into it that is, and how much of `len` is in it.
    pub(crate) fn split(&self, offset: u64, len: u64) -> (BlockPlace, u64, u64) {
        let within = offset % self.block_size;
        let place = self.places.get((offset / self.block_size) as usize).copied().unwrap_or(BlockPlace::Zero);
        (place, within, len.min(self.block_size - within))
    }
}

impl Layout for Blocks {
    fn size(&self) -> u64 {
        self.size
    }

    fn place(&self, _: &[HostFile], offset: u64, len: u64) -> Result<(Place, u64), Error> {
        let (place, within, len) = self.split(offset, len);
        Ok(match place {
            BlockPlace::At(at) => (Place::File(0, at.saturating_add(within)), len),
            BlockPlace::Zero => (Place::Zero, len),
            BlockPlace::Below => (Place::Below, len),
        })
    }
}
