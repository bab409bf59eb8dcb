//! Mapping what holds the bytes of RAM.

use crate::ram::{Backing, Region};
use crate::{Error, ErrorKind, PAGE_SIZE};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::fs::File;
use std::io;
use std::sync::Arc;

/// A stretch of RAM whose contents are in a file, at the same offset there as in RAM.
#[derive(Clone, Debug)]
pub struct FileSegment {
    /// First offset, a multiple of the page size.
    pub start: u64,
    /// Length in bytes, a multiple of the page size.
    pub len: u64,
    /// The file.
    pub file: Arc<File>,
}

impl FileSegment {
    /// The first offset after the stretch.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

pub(crate) fn memfd(size: u64) -> Result<File, Error> {
    let refused = |what: &str, e: rustix::io::Errno| {
        Error::new(ErrorKind::HostRefused, format!("cannot {what} {size} bytes of guest memory"))
            .with_source(io::Error::from(e))
    };
    let fd = memfd_create("guest-ram", MemfdFlags::CLOEXEC).map_err(|e| refused("create", e))?;
    ftruncate(&fd, size).map_err(|e| refused("size", e))?;
    Ok(File::from(fd))
}

/// Gives all pages of a memfd back.
pub(crate) fn punch(file: &File, size: u64) -> Result<(), Error> {
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, size).map_err(|e| {
        Error::new(ErrorKind::HostRefused, "the host does not clear the guest's memory")
            .with_source(io::Error::from(e))
    })
}

/// Gives some pages of a region back: after that they read as zero, or as the file behind them.
pub(crate) fn discard(region: &Region, start: u64, len: u64, backing: &Backing) -> io::Result<()> {
    match backing {
        Backing::Shared(file) => {
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Ok(fallocate(&**file, how, region.offset + start, len)?)
        }
        Backing::Private(_) => {
            // SAFETY: the pages lie within the region's mapping, which is accessed by raw pointers only; what they
            // hold may change at any time.
            let advised = unsafe {
                let at = region.hva.add(start as usize).cast();
                rustix::mm::madvise(at, len as usize, rustix::mm::Advice::LinuxDontNeed)
            };
            Ok(advised?)
        }
    }
}

pub(crate) fn check_segments(size: u64, segments: &[FileSegment]) -> Result<(), Error> {
    let bad = |what: String| Error::new(ErrorKind::BadSize, what);
    let mut sorted: Vec<_> = segments.iter().collect();
    sorted.sort_by_key(|segment| segment.start);
    let mut before = 0;
    for segment in sorted {
        let is_whole = segment.start.is_multiple_of(PAGE_SIZE) && segment.len.is_multiple_of(PAGE_SIZE);
        if !is_whole || segment.start < before || segment.end() > size {
            return Err(bad(format!("{:#x}+{:#x} is no part of the memory", segment.start, segment.len)));
        }
        // Past its end there are no pages: a guest that touched them would end the process.
        let file = segment.file.metadata().map_err(|e| {
            Error::new(ErrorKind::HostRefused, "a file of guest memory cannot be looked at").with_source(e)
        })?;
        if segment.end() > file.len() {
            return Err(bad(format!("a file of guest memory has {} bytes only", file.len())));
        }
        before = segment.end();
    }
    Ok(())
}

/// Maps the bytes of one region over whatever was at its place.
pub(crate) fn map_region(region: &Region, backing: &Backing) -> Result<(), Error> {
    match backing {
        Backing::Shared(file) => map_over(region, region.offset, region.range.len, file, MapFlags::SHARED),
        Backing::Private(segments) => {
            let (first, end) = (region.offset, region.offset + region.range.len);
            for segment in segments {
                let (start, stop) = (segment.start.max(first), segment.end().min(end));
                if start < stop {
                    map_over(region, start, stop - start, &segment.file, MapFlags::PRIVATE)?;
                }
            }
            Ok(())
        }
    }
}

fn map_over(region: &Region, offset: u64, len: u64, file: &File, how: MapFlags) -> Result<(), Error> {
    // SAFETY: `[offset, offset + len)` lies within the region, whose mapping belongs to this crate and is
    // accessed by raw pointers only.
    let mapped = unsafe {
        mmap(
            region.hva.add((offset - region.offset) as usize).cast(),
            len as usize,
            ProtFlags::READ | ProtFlags::WRITE,
            how | MapFlags::FIXED | MapFlags::NORESERVE,
            file,
            offset,
        )
    };
    mapped.map(drop).map_err(|e| {
        Error::new(ErrorKind::HostRefused, format!("cannot map {len} bytes of guest memory"))
            .with_source(io::Error::from(e))
    })
}

#[cfg(test)]
mod tests {
    use crate::{FileSegment, LOW_RAM_END, PAGE_SIZE, PageSet, Ram};
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    fn file(size: u64) -> Arc<File> {
        let file = super::memfd(size).unwrap();
        (&file).write_all(&[7; 8]).unwrap();
        Arc::new(file)
    }

    fn segment(start: u64, len: u64, file: &Arc<File>) -> FileSegment {
        FileSegment { start, len, file: file.clone() }
    }

    #[test]
    fn writes_stay_private_and_the_rest_is_zero() {
        let size = 16 * PAGE_SIZE;
        let (base, newer) = (file(size), file(size));
        newer.write_all_at(&[9; 8], 5 * PAGE_SIZE).unwrap();
        let segments = vec![segment(0, 5 * PAGE_SIZE, &base), segment(5 * PAGE_SIZE, PAGE_SIZE, &newer)];
        let one = Ram::from_files(size, segments.clone()).unwrap();
        let two = Ram::from_files(size, segments).unwrap();
        assert!(one.shared_file().is_none());
        assert_eq!(one.load::<u8>(0), Some(7));
        assert_eq!(one.load::<u8>(5 * PAGE_SIZE), Some(9));
        assert_eq!(one.load::<u64>(6 * PAGE_SIZE), Some(0));
        one.store(0, 1u8).unwrap();
        one.store(15 * PAGE_SIZE, 1u8).unwrap();
        assert_eq!((two.load::<u8>(0), two.load::<u8>(15 * PAGE_SIZE)), (Some(7), Some(0)));
        let mut expected = PageSet::new(16);
        expected.insert(0);
        expected.insert(5);
        assert!(expected.iter().all(|page| two.populated().unwrap().contains(page)));
        one.clear().unwrap();
        assert_eq!((one.load::<u8>(0), one.load::<u8>(5 * PAGE_SIZE)), (Some(0), Some(0)));
        assert!(one.shared_file().is_some());
        assert_eq!(two.load::<u8>(0), Some(7));
    }

    #[test]
    fn memory_above_the_hole_comes_from_the_file_that_follows() {
        let size = LOW_RAM_END + 4 * PAGE_SIZE;
        let base = file(size);
        base.write_all_at(&[5; 8], LOW_RAM_END - PAGE_SIZE).unwrap();
        base.write_all_at(&[6; 8], LOW_RAM_END + PAGE_SIZE).unwrap();
        let ram = Ram::from_files(size, vec![segment(0, size, &base)]).unwrap();
        assert_eq!(ram.load::<u8>(LOW_RAM_END - PAGE_SIZE), Some(5));
        assert_eq!(ram.load::<u8>(crate::HIGH_RAM_START + PAGE_SIZE), Some(6));
    }

    #[test]
    fn segments_that_cannot_be_are_refused() {
        let size = 4 * PAGE_SIZE;
        let (whole, short) = (file(size), file(PAGE_SIZE));
        for segments in [
            vec![segment(1, PAGE_SIZE, &whole)],
            vec![segment(0, 100, &whole)],
            vec![segment(0, 5 * PAGE_SIZE, &whole)],
            vec![segment(!0xfff, PAGE_SIZE, &whole)],
            vec![segment(0, 2 * PAGE_SIZE, &whole), segment(PAGE_SIZE, PAGE_SIZE, &whole)],
            vec![segment(0, 2 * PAGE_SIZE, &short)],
        ] {
            assert!(Ram::from_files(size, segments.clone()).is_err(), "{segments:?}");
        }
    }
}
