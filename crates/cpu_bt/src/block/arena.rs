//! Memory for blocks: a system's start decodes tens of thousands of them, and all go at once.
//!
//! A block lies in one piece, its instructions behind its head, so that finding it and executing it touches memory
//! that follows each other. Pieces are cut from chunks, and a chunk lives as long as the arena or one of its blocks is in
//! use. The host backs chunks by huge pages if it has some, but not the first: a copy of a machine that does little takes little.

use super::{Block, Op};
use crate::block::Detail;
use memory::prefer_huge_pages;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;

/// Length of a chunk in bytes: a huge page.
const CHUNK_LEN: usize = 2 << 20;
/// Heads lie in one line of the processor's caches.
const ALIGN: usize = 64;

/// What a block is made of, beside its instructions and bytes.
pub(crate) struct Head {
    pub(crate) gpa: u64,
    pub(crate) second_page: Option<u64>,
    pub(crate) versions: [u32; 2],
}

/// Where blocks lie.
#[derive(Default)]
pub(super) struct Arena {
    /// The last one is being filled.
    chunks: Vec<Rc<Chunk>>,
    /// Empty ones: the host need not clear them again.
    free: Vec<Rc<Chunk>>,
}

/// A block in use. Its memory stays, whatever the arena forgets meanwhile.
#[derive(Clone)]
pub(crate) struct BlockRef {
    block: NonNull<Block>,
    _chunk: Rc<Chunk>,
}

pub(super) struct Chunk {
    start: NonNull<u8>,
    used: Cell<usize>,
    /// What the instructions in it own. They themselves are never dropped.
    details: RefCell<Vec<*const Detail>>,
}

impl Arena {
    /// Bytes taken from the host.
    pub(super) fn len(&self) -> usize {
        self.chunks.len() * CHUNK_LEN
    }

    /// Drops all blocks that are not in use.
    pub(super) fn clear(&mut self) {
        for mut chunk in self.chunks.drain(..) {
            if let Some(unused) = Rc::get_mut(&mut chunk) {
                unused.empty();
                self.free.push(chunk);
            }
        }
    }

    /// Gives what is free back to the host.
    pub(super) fn give_back(&mut self) {
        self.free = Vec::new();
    }

    /// Makes a block; takes all instructions out of `ops`.
    ///
    /// # Panics
    /// When instructions and bytes are more than a block can have.
    pub(super) fn place(&mut self, head: Head, ops: &mut Vec<Op>, bytes: &[u8]) -> NonNull<Block> {
        let (op_count, byte_count) = (ops.len(), bytes.len());
        let len = size_of::<Block>() + op_count * size_of::<Op>() + byte_count;
        let chunk = match self.chunks.last().filter(|chunk| chunk.room() >= len) {
            Some(chunk) => chunk,
            None => {
                let first = self.chunks.is_empty();
                let chunk = self.free.pop().unwrap_or_else(|| Rc::new(Chunk::new(!first)));
                self.chunks.push(chunk);
                self.chunks.last().expect("just pushed")
            }
        };
        let start = chunk.take(len);
        let mut details = chunk.details.borrow_mut();
        details.extend(ops.iter().filter_map(|op| op.detail.as_ref()).map(Rc::as_ptr));
        // SAFETY: `len` bytes that are nobody else's begin at `start`, aligned for a block and so for what follows it.
        // The instructions move there; the chunk drops what they own.
        unsafe {
            let block = start.cast::<Block>();
            let to = block.add(1).cast::<Op>();
            std::ptr::copy_nonoverlapping(ops.as_ptr(), to.as_ptr(), op_count);
            ops.set_len(0);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.add(op_count).cast().as_ptr(), byte_count);
            block.write(Block {
                gpa: head.gpa,
                hits: Cell::new(0),
                op_count: op_count.try_into().expect("few instructions"),
                byte_count: byte_count.try_into().expect("few bytes"),
                versions: Cell::new(head.versions),
                second_page: head.second_page,
                ops: to,
                // The pointer that counts are kept behind, too: a reference to the chunk alone would not do.
                chunk: NonNull::new_unchecked(Rc::as_ptr(chunk).cast_mut()),
            });
            block
        }
    }
}

impl Chunk {
    const LAYOUT: Layout = match Layout::from_size_align(CHUNK_LEN, CHUNK_LEN) {
        Ok(layout) => layout,
        Err(_) => unreachable!(),
    };

    fn new(huge: bool) -> Chunk {
        // SAFETY: the layout has a size.
        let Some(start) = NonNull::new(unsafe { alloc(Chunk::LAYOUT) }) else {
            handle_alloc_error(Chunk::LAYOUT);
        };
        if huge {
            prefer_huge_pages(std::ptr::slice_from_raw_parts(start.as_ptr(), CHUNK_LEN));
        }
        Chunk { start, used: Cell::new(0), details: RefCell::default() }
    }

    /// Forgets what lies in it, of which nothing is in use.
    fn empty(&mut self) {
        for detail in self.details.get_mut().drain(..) {
            // SAFETY: by an instruction in this chunk, which owned it and is gone now.
            unsafe { Rc::decrement_strong_count(detail) };
        }
        self.used.set(0);
    }

    fn room(&self) -> usize {
        CHUNK_LEN - self.used.get()
    }

    /// Cuts off a piece for which there is room.
    fn take(&self, len: usize) -> NonNull<u8> {
        assert!(len <= self.room());
        let at = self.used.get();
        self.used.set((at + len).next_multiple_of(ALIGN));
        // SAFETY: inside the chunk.
        unsafe { self.start.add(at) }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.empty();
        // SAFETY: allocated so, and nothing in it is used any more.
        unsafe { dealloc(self.start.as_ptr(), Chunk::LAYOUT) };
    }
}

impl BlockRef {
    /// Uses a block.
    ///
    /// # Safety
    /// The arena that made it has not been cleared since.
    #[inline(always)]
    pub(super) unsafe fn new(block: NonNull<Block>) -> BlockRef {
        // SAFETY: by the caller, the block is there and the arena owns its chunk.
        let _chunk = unsafe {
            let chunk = block.as_ref().chunk.as_ptr();
            Rc::increment_strong_count(chunk);
            Rc::from_raw(chunk)
        };
        BlockRef { block, _chunk }
    }
}

impl Deref for BlockRef {
    type Target = Block;

    #[inline(always)]
    fn deref(&self) -> &Block {
        // SAFETY: the chunk that it lies in is held.
        unsafe { self.block.as_ref() }
    }
}

impl Block {
    /// Its instructions.
    #[inline(always)]
    pub(crate) fn ops(&self) -> &[Op] {
        // SAFETY: so many lie there, as long as the block does.
        unsafe { std::slice::from_raw_parts(self.ops.as_ptr(), self.op_count as usize) }
    }

    /// What it was decoded from, in the first page.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: they lie behind the instructions, as long as the block does.
        unsafe {
            let start = self.ops.add(self.op_count as usize).cast::<u8>();
            std::slice::from_raw_parts(start.as_ptr(), self.byte_count as usize)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::Instruction;

    fn op(offset: u16, detail: Option<Rc<Detail>>) -> Op {
        let mut op = Op::nothing();
        (op.offset, op.detail) = (offset, detail);
        op
    }

    #[test]
    fn a_block_in_use_outlives_the_arena_and_what_it_owns_goes_with_it() {
        let detail = Rc::new(Detail { insn: Instruction::default(), stub: None });
        let mut arena = Arena::default();
        let mut ops = vec![op(0, None), op(3, Some(detail.clone()))];
        let head = Head { gpa: 0x1234, second_page: None, versions: [7, 0] };
        let block = arena.place(head, &mut ops, &[1, 2, 3, 4, 5]);
        assert!(ops.is_empty());
        // SAFETY: the arena has not been cleared.
        let block = unsafe { BlockRef::new(block) };
        arena.clear();
        assert_eq!((block.gpa, block.versions.get(), block.bytes()), (0x1234, [7, 0], &[1, 2, 3, 4, 5][..]));
        assert_eq!(block.ops().iter().map(|op| op.offset).collect::<Vec<_>>(), [0, 3]);
        assert_eq!(Rc::strong_count(&detail), 2);
        drop(block);
        assert_eq!(Rc::strong_count(&detail), 1);
    }

    #[test]
    fn chunks_are_filled_one_after_the_other() {
        let mut arena = Arena::default();
        let blocks: Vec<_> = (0..20_000u64)
            .map(|gpa| {
                let head = Head { gpa, second_page: None, versions: [0, 0] };
                let mut ops = (0..gpa as u16 % 64).map(|offset| op(offset, None)).collect();
                arena.place(head, &mut ops, &[gpa as u8; 9])
            })
            .collect();
        assert!(arena.len() > 2 * CHUNK_LEN && arena.chunks.iter().all(|chunk| chunk.room() < CHUNK_LEN));
        for (gpa, &block) in blocks.iter().enumerate() {
            // SAFETY: as above.
            let block = unsafe { BlockRef::new(block) };
            assert_eq!((block.gpa, block.ops().len()), (gpa as u64, gpa % 64));
            assert_eq!(block.bytes(), [gpa as u8; 9]);
        }
        // Emptied, they are used again, but for that of a block in use.
        let count = arena.chunks.len();
        // SAFETY: as above.
        let block = unsafe { BlockRef::new(blocks[0]) };
        arena.clear();
        assert_eq!((arena.chunks.len(), arena.free.len()), (0, count - 1));
        let head = Head { gpa: 1, second_page: None, versions: [0, 0] };
        arena.place(head, &mut vec![op(9, None)], &[]);
        assert_eq!((arena.chunks.len(), arena.free.len(), block.bytes()), (1, count - 2, &[0; 9][..]));
        arena.give_back();
        assert!(arena.free.is_empty());
    }
}
