//! The blocks of one vCPU, found by physical address, and a front that finds them by linear address.

use super::Block;
use crate::cpu::{BlockKey, Cpu};
use crate::fault::Result;
use crate::jit::cache::Key;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

const FRONT_ENTRIES: usize = 4096;
/// Most blocks kept; beyond, all are dropped and decoded anew as they are needed.
const BLOCKS_MAX: usize = 64 * 1024;

/// The block cache.
pub(crate) struct BlockCache {
    blocks: HashMap<(u64, BlockKey), Rc<Block>, BuildHasherDefault<AddressHasher>>,
    front: Box<[FrontEntry]>,
    /// Front entries of older generations are void.
    generation: u32,
}

#[derive(Clone, Default)]
struct FrontEntry {
    linear: u64,
    generation: u32,
    key: BlockKey,
    block: Option<Rc<Block>>,
    /// Address of the translation for [`FrontEntry::code_key`]; 0 when there is none.
    code: u64,
    code_key: Key,
    /// Identity of its page, for the instruction TLB.
    page_id: u32,
}

/// Physical addresses are spread well enough by one multiplication.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.write_u64(value as u64);
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl BlockCache {
    pub(crate) fn new() -> BlockCache {
        BlockCache {
            blocks: HashMap::default(),
            front: vec![FrontEntry::default(); FRONT_ENTRIES].into(),
            generation: 1,
        }
    }

    /// Linear addresses may lead elsewhere now.
    pub(crate) fn forget_addresses(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            self.clear();
        }
    }

    /// Counts the times that addresses were forgotten.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// The translated code of a linear address and the identity of its page, if that was noted and holds
    /// still.
    #[inline(always)]
    pub(crate) fn translated(&self, linear: u64, key: BlockKey, code_key: Key) -> Option<(u64, u32)> {
        let entry = &self.front[BlockCache::slot(linear)];
        let holds = entry.linear == linear
            && entry.generation == self.generation
            && entry.key == key
            && entry.code_key == code_key
            && entry.code != 0;
        holds.then_some((entry.code, entry.page_id))
    }

    /// Notes the translated code of a linear address whose block was just found.
    pub(crate) fn note_translated(&mut self, linear: u64, key: BlockKey, code_key: Key, code: u64, page_id: u32) {
        let entry = &mut self.front[BlockCache::slot(linear)];
        if entry.linear == linear && entry.generation == self.generation && entry.key == key {
            (entry.code, entry.code_key, entry.page_id) = (code, code_key, page_id);
        }
    }

    /// Forgets all addresses of translated code.
    pub(crate) fn forget_translated(&mut self) {
        for entry in &mut self.front {
            entry.code = 0;
        }
    }

    /// Drops all blocks.
    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
        self.front.fill(FrontEntry::default());
        self.generation = 1;
    }

    #[inline(always)]
    fn slot(linear: u64) -> usize {
        (linear ^ linear >> 12) as usize % FRONT_ENTRIES
    }
}

impl Cpu {
    /// The block at linear address `linear`, decoded now if need be.
    #[inline(always)]
    pub(crate) fn find_block(&mut self, linear: u64) -> Result<Rc<Block>> {
        let entry = &self.blocks.front[BlockCache::slot(linear)];
        if entry.linear == linear
            && entry.generation == self.blocks.generation
            && entry.key == self.mode.key
            && let Some(block) = &entry.block
            && self.vm.page_version(block.gpa) == block.versions[0]
        {
            return Ok(block.clone());
        }
        self.find_block_slow(linear)
    }

    #[inline(never)]
    fn find_block_slow(&mut self, linear: u64) -> Result<Rc<Block>> {
        let gpa = self.fetch_address(linear)?;
        let key = self.mode.key;
        if let Some(block) = self.blocks.blocks.get(&(gpa, key)).cloned()
            && self.is_valid(&block, linear)?
        {
            self.remember(linear, &block);
            return Ok(block);
        }
        if self.blocks.blocks.len() >= BLOCKS_MAX || self.stubs.is_full() {
            // No block is executing now, so no host code of the arena is either.
            self.blocks.clear();
            self.stubs.clear();
        }
        let block = Rc::new(self.decode_block(linear, gpa)?);
        self.blocks.blocks.insert((gpa, key), block.clone());
        self.remember(linear, &block);
        Ok(block)
    }

    fn remember(&mut self, linear: u64, block: &Rc<Block>) {
        // What crosses a page depends on the translation of the second page too: always look it up.
        if block.second_page.is_none() {
            self.blocks.front[BlockCache::slot(linear)] = FrontEntry {
                linear,
                generation: self.blocks.generation,
                key: self.mode.key,
                block: Some(block.clone()),
                code: 0,
                code_key: Key(0),
                page_id: 0,
            };
        }
    }

    fn is_valid(&mut self, block: &Block, linear: u64) -> Result<bool> {
        if self.vm.page_version(block.gpa) != block.versions[0] {
            return Ok(false);
        }
        let Some(second) = block.second_page else { return Ok(true) };
        let next = (linear & !0xfff).wrapping_add(0x1000);
        let next = if self.mode.is_64() { next } else { next & 0xffff_ffff };
        Ok(self.fetch_address(next)? == second && self.vm.page_version(second) == block.versions[1])
    }
}
