//! Tables with an entry for each page, and other large things that begin as zeroes.

use std::alloc::{Layout, alloc, alloc_zeroed, handle_alloc_error};
use std::mem::MaybeUninit;
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

/// Zeroes for a large value, which take memory only where they are touched, whatever the value's alignment: the standard
/// allocator writes zeroes where more than its own is asked for.
pub fn zeroed_box<T>() -> Box<MaybeUninit<T>> {
    let layout = Layout::new::<T>();
    if layout.size() < 2 * crate::PAGE_SIZE as usize {
        return Box::new_zeroed();
    }
    // SAFETY: the layout has a size.
    let start = unsafe { alloc(layout) };
    if start.is_null() {
        handle_alloc_error(layout);
    }
    let before = start.align_offset(crate::PAGE_SIZE as usize).min(layout.size());
    let pages = (layout.size() - before) & !(crate::PAGE_SIZE as usize - 1);
    let end = before + pages;
    // SAFETY: all of it within the allocation, which nobody else has seen. Pages that the host takes back come as zeroes
    // when they are touched again: allocators have private memory without a file (madvise(2), MADV_DONTNEED).
    unsafe {
        start.write_bytes(0, before);
        start.add(end).write_bytes(0, layout.size() - end);
        if rustix::mm::madvise(start.add(before).cast(), pages, rustix::mm::Advice::LinuxDontNeed).is_err() {
            start.add(before).write_bytes(0, pages);
        }
        Box::from_raw(start.cast())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(64))]
    struct Large([u8; 200_001]);

    #[test]
    fn large_values_begin_as_zeroes_even_in_memory_that_was_used() {
        for _ in 0..3 {
            // SAFETY: bytes, for which zero is a value.
            let mut value = unsafe { zeroed_box::<Large>().assume_init() };
            assert!(value.0.iter().all(|byte| *byte == 0));
            assert_eq!((&raw const *value).addr() % 64, 0);
            value.0.fill(0xa5);
        }
        // SAFETY: as above.
        let small = unsafe { zeroed_box::<[u64; 3]>().assume_init() };
        assert_eq!(*small, [0; 3]);
    }
}
