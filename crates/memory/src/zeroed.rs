//! Tables with an entry for each page.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// A type of which zero is a value.
///
/// # Safety
/// All bytes zero is a value of the type.
pub unsafe trait Zeroable {}

// SAFETY: an integer may be zero.
unsafe impl Zeroable for u32 {}
// SAFETY: an integer may be zero.
unsafe impl Zeroable for AtomicU8 {}
// SAFETY: an integer may be zero.
unsafe impl Zeroable for AtomicU32 {}
// SAFETY: an integer may be zero.
unsafe impl Zeroable for AtomicU64 {}
// SAFETY: an integer may be zero.
unsafe impl Zeroable for u64 {}

/// A table of so many zeroes. It takes no memory and no time until its parts are touched, so that a
/// machine with much memory starts as fast as a small one.
pub fn zeroed<T: Zeroable>(count: usize) -> Box<[T]> {
    let layout = Layout::array::<T>(count).expect("a table that fits into the address space");
    if layout.size() == 0 {
        return Box::default();
    }
    // SAFETY: the layout has a size; memory is as `Box` would allocate it, and zero is a value of `T`.
    unsafe {
        let table = alloc_zeroed(layout);
        if table.is_null() {
            handle_alloc_error(layout);
        }
        Box::from_raw(std::ptr::slice_from_raw_parts_mut(table.cast(), count))
    }
}

/// Asks the host to back a large buffer by huge pages, before it is touched: it is filled faster so. A host that refuses
/// leaves it as it is.
pub fn prefer_huge_pages(buffer: *const [u8]) {
    let (start, page) = (buffer.cast::<u8>() as usize, crate::PAGE_SIZE as usize);
    let (first, end) = (start.next_multiple_of(page), (start + buffer.len()) & !(page - 1));
    if first < end {
        // SAFETY: no memory changes its contents by this, whoever it belongs to.
        let _ =
            unsafe { rustix::mm::madvise(first as *mut _, end - first, rustix::mm::Advice::LinuxHugepage) };
    }
}
