//! What of a kernel is written to guest memory.

use super::elf::Elf;
use super::lz4::Blocks;
use crate::{Error, parallel};
use memory::{Bytes, GuestAddress, Ram};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// The contents of a kernel: all of them, or the beginning, and compressed blocks that are decompressed when they are
/// written. Memory that nobody has touched yet is what takes the time, so as little as possible is used in between.
#[derive(Debug)]
pub(crate) struct Contents {
    /// From the beginning on: everything, or the first block.
    beginning: Vec<u8>,
    rest: Option<Blocks>,
}

impl Contents {
    pub(crate) fn whole(data: Vec<u8>) -> Contents {
        Contents { beginning: data, rest: None }
    }

    /// The first of `blocks`, which lie in `file`, is decompressed at once.
    ///
    /// # Errors
    /// When it is damaged.
    pub(crate) fn packed(file: &[u8], blocks: Blocks) -> Result<Contents, Error> {
        let mut beginning = vec![0; if blocks.count() == 0 { 0 } else { blocks.range(0).len() }];
        memory::prefer_huge_pages(&raw const beginning[..]);
        if blocks.count() > 0 {
            blocks.decompress(file, 0, &mut beginning)?;
        }
        Ok(Contents { beginning, rest: Some(blocks).filter(|blocks| blocks.count() > 1) })
    }

    /// With everything decompressed.
    ///
    /// # Errors
    /// When a block is damaged.
    pub(crate) fn complete(mut self, file: &[u8]) -> Result<Contents, Error> {
        if let Some(blocks) = self.rest.take() {
            self.beginning.resize(blocks.len(), 0);
            for index in 1..blocks.count() {
                blocks.decompress(file, index, &mut self.beginning[blocks.range(index)])?;
            }
        }
        Ok(self)
    }

    /// The headers, which lie at the beginning.
    ///
    /// # Errors
    /// As [`Elf::parse`].
    pub(crate) fn elf(&self) -> Result<Elf, Error> {
        Elf::parse(&self.beginning, self.rest.as_ref().map_or(self.beginning.len(), Blocks::len))
    }

    #[cfg(test)]
    pub(crate) fn beginning(&self) -> &[u8] {
        &self.beginning
    }
}

/// A kernel and where it goes.
#[derive(Debug)]
pub(crate) struct Image {
    contents: Contents,
    /// What the contents are decompressed from.
    file: Vec<u8>,
    /// Ranges of the contents and the addresses they go to.
    pieces: Vec<(Range<usize>, u64)>,
}

/// A part of the contents that one thread writes.
enum Part<'a> {
    Plain(usize, &'a [u8]),
    Packed(&'a Blocks, usize),
}

impl Image {
    /// Of `contents`, whose compressed blocks are in `file`, `pieces` are written: ranges with their addresses.
    pub(crate) fn new(contents: Contents, file: Vec<u8>, pieces: Vec<(Range<usize>, u64)>) -> Image {
        let file = if contents.rest.is_some() { file } else { Vec::new() };
        Image { contents, file, pieces }
    }

    pub(crate) fn piece_count(&self) -> usize {
        self.pieces.len()
    }

    /// Writes all pieces.
    ///
    /// # Errors
    /// When a block is damaged, or a piece lies beyond guest memory.
    pub(crate) fn write(&self, ram: &Ram) -> Result<(), Error> {
        /// Touching fresh memory is what takes the time, and processors can do it side by side.
        const CHUNK: usize = 4 << 20;
        let plain = self.contents.beginning.chunks(CHUNK).enumerate();
        let mut parts: Vec<_> = plain.map(|(index, chunk)| Part::Plain(index * CHUNK, chunk)).collect();
        if let Some(blocks) = &self.contents.rest {
            let needed =
                (1..blocks.count()).filter(|index| self.overlaps(blocks.range(*index)).next().is_some());
            parts.extend(needed.map(|index| Part::Packed(blocks, index)));
        }
        // Each thread takes what another one has used before.
        let buffers = Mutex::new(Vec::<Vec<u8>>::new());
        parallel::for_each(parts, |part| match part {
            Part::Plain(start, bytes) => self.write_part(ram, start, bytes),
            Part::Packed(blocks, index) => {
                let pool = || buffers.lock().unwrap_or_else(PoisonError::into_inner);
                let mut buffer = pool().pop().unwrap_or_default();
                let range = blocks.range(index);
                if buffer.len() < range.len() {
                    buffer = vec![0; range.len()];
                    memory::prefer_huge_pages(&raw const buffer[..]);
                }
                let bytes = &mut buffer[..range.len()];
                blocks.decompress(&self.file, index, bytes)?;
                self.write_part(ram, range.start, bytes)?;
                pool().push(buffer);
                Ok(())
            }
        })
    }

    /// Writes what `bytes`, which lie at `start` of the contents, have in common with the pieces.
    fn write_part(&self, ram: &Ram, start: usize, bytes: &[u8]) -> Result<(), Error> {
        for (common, address) in self.overlaps(start..start + bytes.len()) {
            let bytes = &bytes[common.start - start..common.end - start];
            ram.populate(address, bytes.len() as u64);
            ram.guest().write_slice(bytes, GuestAddress(address)).map_err(crate::plan::memory_error)?;
        }
        Ok(())
    }

    /// What `range` of the contents has in common with the pieces, and where that goes.
    fn overlaps(&self, range: Range<usize>) -> impl Iterator<Item = (Range<usize>, u64)> {
        self.pieces.iter().filter_map(move |(piece, address)| {
            let common = piece.start.max(range.start)..piece.end.min(range.end);
            let address = address + common.start.saturating_sub(piece.start) as u64;
            (!common.is_empty()).then_some((common, address))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::lz4::{BLOCK_LEN, tests::frame};
    use super::*;
    use crate::ErrorKind;

    const MIB: usize = 1 << 20;

    fn image(file: Vec<u8>, len: usize, pieces: &[(Range<usize>, u64)]) -> Image {
        let blocks = Blocks::find(&file, 0..file.len() - 4, len).unwrap();
        Image::new(Contents::packed(&file, blocks).unwrap(), file, pieces.to_vec())
    }

    #[test]
    fn pieces_of_several_blocks_arrive_and_nothing_else_does() {
        let data: Vec<u8> = (0..4 * BLOCK_LEN as u32 + 1000).map(|n| (n >> 8 ^ n) as u8 | 1).collect();
        let ram = Ram::new(64 << 20).unwrap();
        let pieces = [
            // Within the first block, over three blocks to the middle of a page, and in the last one.
            (100..200, 1 << 20),
            (5 * MIB..20 * MIB + 77, 8 << 20),
            (4 * BLOCK_LEN + 10..4 * BLOCK_LEN + 1000, (40 << 20) + 5),
        ];
        image(frame(&data), data.len(), &pieces).write(&ram).unwrap();
        let mut expected = vec![0; 64 << 20];
        for (range, address) in pieces {
            expected[address as usize..][..range.len()].copy_from_slice(&data[range]);
        }
        let mut got = vec![0; 64 << 20];
        ram.guest().read_slice(&mut got, GuestAddress(0)).unwrap();
        assert!(got == expected);
    }

    #[test]
    fn a_damaged_block_is_told_if_it_is_needed() {
        let mut file = frame(&vec![7; 3 * BLOCK_LEN]);
        let ram = Ram::new(64 << 20).unwrap();
        let second = file.len() / 3 + 16;
        file[second] ^= 0xff;
        let write = |range| image(file.clone(), 3 * BLOCK_LEN, &[(range, 1 << 20)]).write(&ram);
        write(0..MIB).unwrap();
        write(2 * BLOCK_LEN..3 * BLOCK_LEN).unwrap();
        assert_eq!(write(BLOCK_LEN..BLOCK_LEN + 1).unwrap_err().kind(), ErrorKind::Damaged);
    }
}
