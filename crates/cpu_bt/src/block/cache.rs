//! The blocks of one vCPU, found by physical address, and a front that finds them by linear address.
//! Beside them, what the vCPU remembers of translated code.

use super::arena::{Arena, BlockRef, Head};
use super::{Block, Op};
use crate::cpu::{BlockKey, Cpu};
use crate::fault::Result;
use crate::jit::cache::Key;
use crate::thrift::discard;
use memory::Zeroable;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr::NonNull;

const FRONT_ENTRIES: usize = 16384;
const CODE_ENTRIES: usize = 8192;
const PHYSICAL_ENTRIES: usize = 16384;
/// Most blocks kept; beyond, all are dropped and decoded anew as they are needed.
const BLOCKS_MAX: usize = 64 * 1024;
/// And most memory for them, those that were replaced included.
const ARENA_MAX: usize = 64 << 20;

/// The block cache.
pub(crate) struct BlockCache {
    /// All that `blocks` and `front` lead to, and what they have led to.
    arena: Arena,
    blocks: HashMap<(u64, BlockKey), NonNull<Block>, BuildHasherDefault<AddressHasher>>,
    front: Box<[FrontEntry]>,
    code: Box<[CodeEntry]>,
    physical: Box<[PhysicalEntry]>,
    /// What was noted of linear addresses in an older generation is void: for the lower and the upper
    /// half of the address space.
    generations: [u32; 2],
    /// The youngest generations that there were.
    youngest: [u32; 2],
    /// How often old generations have come to look young.
    rounds: u32,
    /// What was noted of translated code in an older generation is void.
    code_generation: u32,
    /// How often addresses of code were forgotten.
    forgotten: u64,
    /// Where the instructions of a block are put together; empty between blocks.
    pub(crate) scratch: Vec<Op>,
}

#[derive(Clone, Copy, Default)]
struct FrontEntry {
    linear: u64,
    generation: u32,
    key: BlockKey,
    block: Option<NonNull<Block>>,
}

/// Translated code by linear address.
#[derive(Clone, Copy, Default)]
struct CodeEntry {
    linear: u64,
    code: u64,
    generation: u32,
    code_generation: u32,
    /// Identity of its page, for the instruction TLB.
    page_id: u32,
    key: Key,
}

/// Translated code by physical address.
#[derive(Clone, Copy, Default)]
struct PhysicalEntry {
    gpa: u64,
    code: u64,
    code_generation: u32,
    key: Key,
}

// SAFETY: integers, and no block.
unsafe impl Zeroable for FrontEntry {}
// SAFETY: integers.
unsafe impl Zeroable for CodeEntry {}
// SAFETY: integers.
unsafe impl Zeroable for PhysicalEntry {}

/// What a vCPU remembers of the code at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Its translation, and the identity of its page.
    Code(u64, u32),
    /// It is not translated and has to be interpreted.
    Interpret,
    /// Nothing.
    Nothing,
}

/// Value of `code` for what is interpreted.
const INTERPRET: u64 = 1;

/// Physical addresses are spread well enough by one multiplication.
#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        // Tables are indexed by the low bits. Those of a product depend on the low bits of its factors alone, which are
        // the same for all code at one offset in its page.
        self.0.rotate_left(26)
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.write_u64(value as u64);
    }
    fn write_u16(&mut self, value: u16) {
        self.write_u64(value as u64);
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(value as u64);
    }
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
    fn write_u128(&mut self, value: u128) {
        self.write_u64(value as u64);
        self.write_u64((value >> 64) as u64);
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl BlockCache {
    pub(crate) fn new() -> BlockCache {
        BlockCache {
            arena: Arena::default(),
            blocks: HashMap::default(),
            front: memory::zeroed(FRONT_ENTRIES),
            code: memory::zeroed(CODE_ENTRIES),
            physical: memory::zeroed(PHYSICAL_ENTRIES),
            generations: [1; 2],
            youngest: [1; 2],
            rounds: 0,
            code_generation: 1,
            forgotten: 0,
            scratch: Vec::new(),
        }
    }

    /// Linear addresses may lead elsewhere now.
    pub(crate) fn forget_addresses(&mut self) {
        self.forget_half(0);
        self.forget_half(u64::MAX);
    }

    /// Linear addresses in the same half of the address space as `linear` may lead elsewhere now.
    pub(crate) fn forget_half(&mut self, linear: u64) {
        self.forgotten += 1;
        let youngest = &mut self.youngest[half(linear)];
        *youngest = youngest.wrapping_add(1);
        if *youngest == 0 {
            // What is as old as this looks new again.
            *youngest = 1;
            self.rounds += 1;
            self.clear();
        }
        self.generations[half(linear)] = self.youngest[half(linear)];
    }

    /// What [`BlockCache::return_to_lower_addresses`] takes.
    pub(crate) fn lower_addresses(&self) -> (u32, u32) {
        (self.generations[0], self.rounds)
    }

    /// What was noted of linear addresses in the lower half holds again.
    pub(crate) fn return_to_lower_addresses(&mut self, (generation, rounds): (u32, u32)) {
        if rounds == self.rounds {
            self.generations[0] = generation;
        }
    }

    /// Counts the times that addresses of code were forgotten.
    pub(crate) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Another number whenever translated code may be gone.
    pub(crate) fn code_generation(&self) -> u32 {
        self.code_generation
    }

    /// Translated code has become void somewhere.
    pub(crate) fn forget_translated(&mut self) {
        self.forgotten += 1;
        self.code_generation = self.code_generation.wrapping_add(1);
        if self.code_generation == 0 {
            self.code_generation = 1;
            self.code.fill(CodeEntry::default());
            self.physical.fill(PhysicalEntry::default());
        }
    }

    /// What is known of the code at a linear address.
    #[inline(always)]
    pub(crate) fn translated(&self, linear: u64, key: Key) -> Known {
        let entry = &self.code[linear as usize % CODE_ENTRIES];
        let holds = entry.linear == linear
            && entry.generation == self.generations[half(linear)]
            && entry.code_generation == self.code_generation
            && entry.key == key;
        match entry.code {
            _ if !holds => Known::Nothing,
            INTERPRET => Known::Interpret,
            code => Known::Code(code, entry.page_id),
        }
    }

    /// The block at a linear address that was executed lately and is not worth to be translated yet. Counts. Now
    /// and then there is none, for another vCPU may have translated it. The block may be out of date.
    #[inline]
    fn cold_block(&self, linear: u64, key: BlockKey, hot: u32, others: bool) -> Option<&Block> {
        const LOOK_EVERY: u32 = 8;
        let entry = &self.front[BlockCache::slot(linear)];
        // SAFETY: the arena has not been cleared since, for what leads to its blocks is cleared with it.
        let block = unsafe { entry.block?.as_ref() };
        let hits = block.hits.get();
        let cold = entry.linear == linear
            && entry.generation == self.generations[half(linear)]
            && entry.key == key
            && hits < hot
            && hits > 0
            && !(others && hits.is_multiple_of(LOOK_EVERY));
        cold.then(|| {
            block.hits.set(hits + 1);
            block
        })
    }

    /// The translation of a physical address, if that was noted and holds still.
    #[inline]
    pub(crate) fn translated_at(&self, gpa: u64, key: Key) -> Option<u64> {
        let entry = &self.physical[physical_slot(gpa)];
        let holds = entry.gpa == gpa && entry.key == key && entry.code_generation == self.code_generation;
        (holds && entry.code != 0).then_some(entry.code)
    }

    /// Notes the translation of an address, or that there is none and will be none.
    pub(crate) fn note_translated(&mut self, linear: u64, gpa: u64, key: Key, known: Known) {
        let (code, page_id) = match known {
            Known::Code(code, page_id) => (code, page_id),
            Known::Interpret => (INTERPRET, 0),
            Known::Nothing => return,
        };
        let (generation, code_generation) = (self.generations[half(linear)], self.code_generation);
        self.code[linear as usize % CODE_ENTRIES] =
            CodeEntry { linear, code, generation, code_generation, page_id, key };
        if code != INTERPRET {
            self.physical[physical_slot(gpa)] = PhysicalEntry { gpa, code, code_generation, key };
        }
    }

    /// Makes a block: see [`Arena::place`].
    pub(super) fn place(&mut self, head: Head, ops: &mut Vec<Op>, bytes: &[u8]) -> NonNull<Block> {
        self.arena.place(head, ops, bytes)
    }

    /// Drops all blocks.
    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
        self.front.fill(FrontEntry::default());
        self.arena.clear();
        self.code.fill(CodeEntry::default());
    }

    /// Drops all blocks and gives the memory of all tables back.
    pub(crate) fn give_back(&mut self) {
        self.clear();
        self.blocks.shrink_to_fit();
        self.arena.give_back();
        // It holds no blocks any more.
        discard(&mut self.front);
        discard(&mut self.code);
        discard(&mut self.physical);
    }

    /// Whether it is time to drop all blocks.
    fn is_full(&self) -> bool {
        self.blocks.len() >= BLOCKS_MAX || self.arena.len() >= ARENA_MAX
    }

    /// How many blocks there are.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    #[inline(always)]
    fn slot(linear: u64) -> usize {
        (linear ^ linear >> 12) as usize % FRONT_ENTRIES
    }
}

/// The half of the address space: 0 is the lower.
#[inline(always)]
fn half(linear: u64) -> usize {
    (linear >> 63) as usize
}

#[inline(always)]
fn physical_slot(gpa: u64) -> usize {
    (gpa ^ gpa >> 14) as usize % PHYSICAL_ENTRIES
}

impl Cpu {
    /// The block at a linear address if it is known, up to date and not to be translated yet.
    #[inline]
    pub(crate) fn find_cold_block(&self, linear: u64) -> Option<BlockRef> {
        let block = self.blocks.cold_block(linear, self.mode.key, self.hot(), self.vm.signals.len() > 1)?;
        let [first, second] = block.versions.get();
        let is_valid = self.vm.page_version(block.gpa) == first
            && block.second_page.is_none_or(|page| self.vm.page_version(page) == second);
        // SAFETY: it was found in the tables.
        is_valid.then(|| unsafe { BlockRef::new(NonNull::from(block)) })
    }

    /// The block at linear address `linear`, decoded now if need be.
    #[inline(always)]
    pub(crate) fn find_block(&mut self, linear: u64) -> Result<BlockRef> {
        let entry = &self.blocks.front[BlockCache::slot(linear)];
        if entry.linear == linear
            && entry.generation == self.blocks.generations[half(linear)]
            && entry.key == self.mode.key
            && let Some(found) = entry.block
            // SAFETY: what the tables lead to is in the arena, see `BlockCache::clear`.
            && let block = unsafe { BlockRef::new(found) }
            && self.vm.page_version(block.gpa) == block.versions.get()[0]
            // Where the second page is, is true as long as where the first is.
            && block.second_page.is_none_or(|second| self.vm.page_version(second) == block.versions.get()[1])
        {
            return Ok(block);
        }
        self.find_block_slow(linear)
    }

    #[inline(never)]
    fn find_block_slow(&mut self, linear: u64) -> Result<BlockRef> {
        let gpa = self.fetch_address(linear)?;
        let key = self.mode.key;
        // SAFETY: as above.
        let use_block = |found| unsafe { BlockRef::new(found) };
        if let Some(&found) = self.blocks.blocks.get(&(gpa, key))
            && let block = use_block(found)
            && (self.is_valid(&block, linear)? || self.renew_block(&block)?)
        {
            self.remember(linear, found);
            return Ok(block);
        }
        if self.blocks.is_full() || self.stubs.is_full() {
            // No block is executing now, so no host code of the arena is either.
            self.blocks.clear();
            self.stubs.clear();
        }
        let made = self.decode_block(linear, gpa)?;
        let block = use_block(made);
        if let Some(trace) = &self.vm.options.trace {
            self.trace_block(trace, linear, gpa, block.ops().len());
        }
        self.blocks.blocks.insert((gpa, key), made);
        self.remember(linear, made);
        Ok(block)
    }

    fn remember(&mut self, linear: u64, block: NonNull<Block>) {
        self.blocks.front[BlockCache::slot(linear)] = FrontEntry {
            linear,
            generation: self.blocks.generations[half(linear)],
            key: self.mode.key,
            block: Some(block),
        };
    }

    fn is_valid(&mut self, block: &Block, linear: u64) -> Result<bool> {
        if self.vm.page_version(block.gpa) != block.versions.get()[0] {
            return Ok(false);
        }
        let Some(second) = block.second_page else { return Ok(true) };
        let next = (linear & !0xfff).wrapping_add(0x1000);
        let next = if self.mode.is_64() { next } else { next & 0xffff_ffff };
        Ok(self.fetch_address(next)? == second && self.vm.page_version(second) == block.versions.get()[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    #[test]
    fn code_at_one_offset_of_many_pages_is_spread() {
        let hasher = BuildHasherDefault::<AddressHasher>::default();
        let slots: HashSet<u64> = (0..4096u64)
            .map(|page| hasher.hash_one((page << 12 | 0x340, BlockKey::new(64, false))) % 4096)
            .collect();
        // As many as balls thrown by lot would meet, about 2590, and not the few that the low bits alone can be.
        assert!(slots.len() > 2300, "{}", slots.len());
    }
}
