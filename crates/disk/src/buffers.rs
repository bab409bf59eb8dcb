//! What a disk moves data to and from. The crate's `unsafe` about memory is gathered here.

use memory::Ram;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

/// A stretch of guest-physical addresses is not wholly RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotRam {
    /// Where it begins.
    pub gpa: u64,
    /// Its length in bytes.
    pub len: u64,
}

impl fmt::Display for NotRam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest addresses {:#x} and the {} bytes from there on are not RAM", self.gpa, self.len)
    }
}

impl std::error::Error for NotRam {}

/// An ordered list of stretches of memory that one operation reads or fills: guest RAM, or plain memory
/// borrowed for `'a`.
///
/// Guest RAM is only ever accessed through raw pointers (by the kernel in `preadv` and its kin, or by
/// volatile copies), since the guest may access it at the same time. A list over guest RAM keeps the RAM
/// alive, so `Buffers<'static>` can be handed to work in the background.
pub struct Buffers<'a> {
    iovecs: Vec<libc::iovec>,
    /// Guest-physical addresses of `iovecs`; used only with `ram`.
    gpas: Vec<u64>,
    len: usize,
    ram: Option<Arc<Ram>>,
    fillable: bool,
    _borrow: PhantomData<&'a mut [u8]>,
}

// SAFETY: the pointers lead into guest RAM, kept alive by `ram` and accessed by all threads with
// volatile or kernel accesses only, or into a slice that is borrowed as `&'a mut [u8]` or, when not
// `fillable`, `&'a [u8]`, both of which may go to another thread.
unsafe impl Send for Buffers<'_> {}
// SAFETY: through `&Buffers` memory is only read, except for guest RAM, where races are allowed for.
unsafe impl Sync for Buffers<'_> {}

impl Buffers<'static> {
    /// Creates an empty list over guest RAM.
    pub fn guest(ram: Arc<Ram>) -> Buffers<'static> {
        Buffers {
            iovecs: Vec::new(),
            gpas: Vec::new(),
            len: 0,
            ram: Some(ram),
            fillable: true,
            _borrow: PhantomData,
        }
    }

    /// Appends a stretch of guest RAM. An empty one is left out.
    ///
    /// # Errors
    /// When part of it is not RAM; the list is as before.
    ///
    /// # Panics
    /// When the list is over plain memory: the caller's mistake.
    pub fn push(&mut self, gpa: u64, len: u32) -> Result<(), NotRam> {
        let ram = self.ram.as_ref().expect("a list over guest RAM");
        if len == 0 {
            return Ok(());
        }
        let bad = || NotRam { gpa, len: len as u64 };
        let slice = ram.guest().get_slice(GuestAddress(gpa), len as usize).map_err(|_| bad())?;
        let total = self.len.checked_add(slice.len()).ok_or_else(bad)?;
        self.iovecs
            .push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
        self.gpas.push(gpa);
        self.len = total;
        Ok(())
    }

    /// Empties the list, keeping what it has allocated.
    pub fn clear(&mut self) {
        self.iovecs.clear();
        self.gpas.clear();
        self.len = 0;
    }
}

impl<'a> Buffers<'a> {
    /// A list of one stretch to be filled.
    pub fn from_mut(bytes: &'a mut [u8]) -> Buffers<'a> {
        let iovec = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        Buffers::plain(iovec, true)
    }

    /// A list of one stretch to be read from only.
    pub fn from_slice(bytes: &'a [u8]) -> Buffers<'a> {
        let iovec = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        Buffers::plain(iovec, false)
    }

    fn plain(iovec: libc::iovec, fillable: bool) -> Buffers<'a> {
        let len = iovec.iov_len;
        let iovecs = if len == 0 { Vec::new() } else { vec![iovec] };
        Buffers { iovecs, gpas: Vec::new(), len, ram: None, fillable, _borrow: PhantomData }
    }

    /// Total length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to move.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the memory may be written.
    pub fn is_fillable(&self) -> bool {
        self.fillable
    }

    /// The stretches, for system calls. Whoever fills memory through them checks
    /// [`Buffers::is_fillable`] first and reports it with [`Buffers::report_filled`] afterwards.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// The stretches of `len` bytes from `at` on.
    ///
    /// # Panics
    /// When it is not a range of the list.
    pub fn iovecs_of(&self, at: usize, len: usize) -> Vec<libc::iovec> {
        let mut iovecs = Vec::new();
        self.each(at, len, |ptr, len, _| {
            iovecs.push(libc::iovec { iov_base: ptr.cast(), iov_len: len });
        });
        iovecs
    }

    /// Calls `f` with each stretch of `len` bytes from `at` on: host pointer, length, guest-physical
    /// address (0 for plain memory).
    fn each(&self, at: usize, len: usize, mut f: impl FnMut(*mut u8, usize, u64)) {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len), "a range of the list");
        let (mut skip, mut left) = (at, len);
        for (index, iovec) in self.iovecs.iter().enumerate() {
            if left == 0 {
                return;
            }
            if skip >= iovec.iov_len {
                skip -= iovec.iov_len;
                continue;
            }
            let here = (iovec.iov_len - skip).min(left);
            // SAFETY: `skip` is less than the length of this stretch.
            let ptr = unsafe { iovec.iov_base.cast::<u8>().add(skip) };
            f(ptr, here, self.gpas.get(index).map_or(0, |gpa| gpa + skip as u64));
            left -= here;
            skip = 0;
        }
    }

    /// The part of `len` bytes from `at` on, as a list of its own.
    ///
    /// # Panics
    /// When it is not a part of this list: the caller's mistake.
    pub fn part(&mut self, at: usize, len: usize) -> Buffers<'_> {
        let (mut iovecs, mut gpas) = (Vec::new(), Vec::new());
        self.each(at, len, |ptr, len, gpa| {
            iovecs.push(libc::iovec { iov_base: ptr.cast(), iov_len: len });
            gpas.push(gpa);
        });
        Buffers { iovecs, gpas, len, ram: self.ram.clone(), fillable: self.fillable, _borrow: PhantomData }
    }

    /// Like [`Buffers::part`], to be read from only.
    ///
    /// # Panics
    /// When it is not a part of this list: the caller's mistake.
    pub fn part_to_read(&self, at: usize, len: usize) -> Buffers<'_> {
        let (mut iovecs, gpas) = (Vec::new(), Vec::new());
        self.each(at, len, |ptr, len, _| {
            iovecs.push(libc::iovec { iov_base: ptr.cast(), iov_len: len });
        });
        Buffers { iovecs, gpas, len, ram: self.ram.clone(), fillable: false, _borrow: PhantomData }
    }

    /// Reports that `len` bytes from `at` on were filled through [`Buffers::iovecs`]: the dirty log and
    /// the watch of translated code have to know.
    ///
    /// # Panics
    /// When it is not a range of the list.
    pub fn report_filled(&self, at: usize, len: usize) {
        if let Some(ram) = &self.ram {
            self.each(at, len, |_, len, gpa| ram.report_write(gpa, len as u64));
        }
    }

    /// Copies `bytes` into the list at `at`.
    ///
    /// # Panics
    /// When they do not fit or the list is not to be filled: the caller's mistake.
    pub fn copy_from(&mut self, at: usize, bytes: &[u8]) {
        assert!(self.fillable, "memory that may be written");
        let mut rest = bytes;
        self.each(at, bytes.len(), |ptr, len, _| {
            let (here, after) = rest.split_at(len);
            // SAFETY: `each` gives stretches inside memory that is alive, and writable as checked above.
            unsafe { VolatileSlice::new(ptr, len) }.copy_from(here);
            rest = after;
        });
        self.report_filled(at, bytes.len());
    }

    /// Fills `bytes` from the list at `at`.
    ///
    /// # Panics
    /// When the list has not so many: the caller's mistake.
    pub fn copy_to(&self, at: usize, bytes: &mut [u8]) {
        let (len, mut done) = (bytes.len(), 0);
        self.each(at, len, |ptr, len, _| {
            // SAFETY: `each` gives stretches inside memory that is alive.
            unsafe { VolatileSlice::new(ptr, len) }.copy_to(&mut bytes[done..done + len]);
            done += len;
        });
    }

    /// Fills `len` bytes from `at` on with zeroes.
    ///
    /// # Panics
    /// When it is not a range of the list or the list is not to be filled: the caller's mistake.
    pub fn zero(&mut self, at: usize, len: usize) {
        assert!(self.fillable, "memory that may be written");
        self.each(at, len, |ptr, len, _| {
            // SAFETY: as in `copy_from`. The guest may race with this, as with any write to its memory:
            // the pointer came from a mapping, not from a reference, and nothing is read back.
            unsafe { std::ptr::write_bytes(ptr, 0, len) };
        });
        self.report_filled(at, len);
    }
}

impl fmt::Debug for Buffers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.ram.is_some() { "guest RAM" } else { "plain memory" };
        write!(f, "Buffers({} bytes in {} stretches of {what})", self.len, self.iovecs.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::Bytes;

    fn guest() -> (Arc<Ram>, Buffers<'static>) {
        let ram = Arc::new(Ram::new(1 << 20).unwrap());
        let mut buffers = Buffers::guest(ram.clone());
        buffers.push(0x1ff0, 32).unwrap();
        buffers.push(0x8000, 0).unwrap();
        buffers.push(0x5000, 100).unwrap();
        (ram, buffers)
    }

    #[test]
    fn copies_cross_stretches_and_reach_the_dirty_log() {
        let (ram, mut buffers) = guest();
        assert_eq!((buffers.len(), buffers.iovecs().len()), (132, 2));
        ram.set_dirty_logging(true);
        let bytes: Vec<u8> = (0..40).collect();
        buffers.copy_from(20, &bytes);
        assert_eq!(ram.take_dirty().iter().collect::<Vec<_>>(), [2, 5]);
        let mut back = [0; 12];
        ram.guest().read_slice(&mut back, GuestAddress(0x1ff0 + 20)).unwrap();
        assert_eq!(back, bytes[..12]);
        let mut back = [0; 40];
        buffers.copy_to(20, &mut back);
        assert_eq!(back, bytes[..]);
        buffers.part(30, 10).zero(0, 10);
        buffers.part_to_read(20, 40).copy_to(0, &mut back);
        assert_eq!(back[10..20], [0; 10]);
        assert_eq!((back[9], back[20]), (9, 20));
        buffers.part(0, 132).part(10, 50).copy_from(49, &[77]);
        buffers.copy_to(59, &mut back[..1]);
        assert_eq!(back[0], 77);
    }

    #[test]
    fn what_is_not_ram_is_refused_and_changes_nothing() {
        let (_, mut buffers) = guest();
        for (gpa, len) in [(1 << 20, 1), ((1 << 20) - 1, 2), (u64::MAX, 1), (u64::MAX - 1, u32::MAX)] {
            assert_eq!(buffers.push(gpa, len), Err(NotRam { gpa, len: len as u64 }));
        }
        assert_eq!(buffers.len(), 132);
        buffers.clear();
        assert!(buffers.is_empty() && buffers.iovecs().is_empty());
    }

    #[test]
    #[should_panic = "may be written"]
    fn a_list_to_be_read_is_not_filled() {
        Buffers::from_slice(&[1, 2, 3]).copy_from(0, &[0]);
    }
}
