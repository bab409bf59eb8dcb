//! Reading RAM as a whole: for snapshots and migration, while the guest may run.

use crate::ram::{Backing, Region};
use crate::{Error, ErrorKind, PAGE_SIZE, PageSet, Ram};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

impl Ram {
    /// Pages that the host holds something for. All others are zero, except for those of RAM from files
    /// that were written since; the dirty log has these, if it was on all the time.
    ///
    /// # Errors
    /// When the host does not tell.
    pub fn populated(&self) -> Result<PageSet, Error> {
        let mut pages = PageSet::new(self.pages());
        let failed = |e| {
            Error::new(ErrorKind::HostRefused, "the guest's memory cannot be looked through").with_source(e)
        };
        let mut add = |file: &File, range: Range<u64>| -> io::Result<()> {
            for data in data_ranges(file, range) {
                let data = data?;
                pages.insert_range(data.start / PAGE_SIZE..data.end.div_ceil(PAGE_SIZE));
            }
            Ok(())
        };
        match &*self.backing() {
            Backing::Shared(file) => add(file, 0..self.size()).map_err(failed)?,
            Backing::Private(segments) => {
                for segment in segments {
                    add(&segment.file, segment.start..segment.end()).map_err(failed)?;
                }
            }
        }
        Ok(pages)
    }

    /// The region of a page.
    fn region_at(&self, page: u64) -> &Region {
        let offset = page * PAGE_SIZE;
        let is_in = |region: &&Region| (region.offset..region.offset + region.range.len).contains(&offset);
        self.ram_regions().find(is_in).unwrap_or_else(|| panic!("page {page} is not RAM"))
    }

    /// Host address of a page, by its number.
    fn page(&self, page: u64) -> *mut u8 {
        let offset = page * PAGE_SIZE;
        let region = self.region_at(page);
        // SAFETY: within the region's mapping, as was just checked.
        unsafe { region.hva.add((offset - region.offset) as usize) }
    }

    /// The guest-physical address of a page.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn page_address(&self, page: u64) -> u64 {
        let offset = page * PAGE_SIZE;
        let region = self.region_at(page);
        region.range.start + (offset - region.offset)
    }

    /// Whether a page is all zero at this moment. The guest may change it at any time.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn is_zero_page(&self, page: u64) -> bool {
        let words = self.page(page).cast::<u64>();
        // SAFETY: a page of memory that lives as long as `self`, read without assuming that it is stable.
        (0..PAGE_SIZE as usize / 8).all(|index| unsafe { words.add(index).read_volatile() } == 0)
    }

    /// Copies pages to their place in a file: page `n` to byte `n * 4096`. The kernel reads the memory,
    /// so the guest may write to it at the same time; each byte is then old or new.
    ///
    /// # Errors
    /// As the host fails; any part may have been written.
    ///
    /// # Panics
    /// When there are no such pages.
    pub fn copy_to_file(&self, pages: Range<u64>, file: &File) -> io::Result<()> {
        let mut page = pages.start;
        while page < pages.end {
            // One region at a time: they are not neighbours in the address space.
            let region = self.region_at(page);
            let end = pages.end.min((region.offset + region.range.len) / PAGE_SIZE);
            let (ptr, mut at) = (self.page(page), page * PAGE_SIZE);
            let mut done = 0;
            let len = ((end - page) * PAGE_SIZE) as usize;
            while done < len {
                // SAFETY: `[ptr, ptr + len)` is mapped as long as `self` lives; the kernel copies from it.
                let written = unsafe {
                    libc::pwrite(file.as_raw_fd(), ptr.add(done).cast(), len - done, at as libc::off_t)
                };
                match written {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    1.. => {
                        done += written as usize;
                        at += written as u64;
                    }
                    _ => {
                        let error = io::Error::last_os_error();
                        if error.kind() != io::ErrorKind::Interrupted {
                            return Err(error);
                        }
                    }
                }
            }
            page = end;
        }
        Ok(())
    }
}

/// The stretches of `range` in which a file has data; what is between them reads as zeroes. A file system
/// that does not know says that all is data.
pub fn data_ranges(file: &File, range: Range<u64>) -> impl Iterator<Item = io::Result<Range<u64>>> + '_ {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < range.end => start,
            Ok(_) | Err(Errno::NXIO) => {
                at = range.end;
                return None;
            }
            Err(e) => {
                at = range.end;
                return Some(Err(e.into()));
            }
        };
        let end = match seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(range.end),
            Err(e) => {
                at = range.end;
                return Some(Err(e.into()));
            }
        };
        at = end;
        Some(Ok(start..end))
    })
}
