//! LZ4's legacy frame, the one that kernels are compressed with (lz4_Frame_format.md, "Legacy frame"): the magic,
//! then blocks, each preceded by its compressed size. Blocks do not depend on each other, and each but the last
//! has the full uncompressed size.

use super::decompress::damaged;
use crate::Error;
use std::ops::Range;

/// How a frame begins.
pub(crate) const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Uncompressed size of each block but the last.
pub(crate) const BLOCK_LEN: usize = 8 << 20;

/// The blocks of a frame: where they are, to be decompressed one by one.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// Of each block, its compressed bytes in the file.
    packed: Vec<Range<usize>>,
    /// Of all of them, when decompressed.
    len: usize,
}

impl Blocks {
    /// Finds the blocks of the frame that lies at `frame` in `file` and becomes `len` bytes.
    ///
    /// # Errors
    /// When it ends too early.
    pub(crate) fn find(file: &[u8], frame: Range<usize>, len: usize) -> Result<Blocks, Error> {
        let bytes = file.get(..frame.end).ok_or_else(|| damaged(None))?;
        let mut at = frame.start + MAGIC.len();
        let mut packed = Vec::new();
        for _ in 0..len.div_ceil(BLOCK_LEN) {
            let size =
                bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or_else(|| damaged(None))?;
            let block = at + 4..at + 4 + u32::from_le_bytes(*size) as usize;
            at = block.end;
            if at > bytes.len() {
                return Err(damaged(None));
            }
            packed.push(block);
        }
        Ok(Blocks { packed, len })
    }

    /// Of all blocks together, when decompressed.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn count(&self) -> usize {
        self.packed.len()
    }

    /// Where block `index` lies in what is decompressed.
    pub(crate) fn range(&self, index: usize) -> Range<usize> {
        let start = index * BLOCK_LEN;
        start..(start + BLOCK_LEN).min(self.len)
    }

    /// Decompresses block `index` of `file` into `out`, which is as long as its [`range`](Self::range).
    ///
    /// # Errors
    /// When the block is damaged.
    pub(crate) fn decompress(&self, file: &[u8], index: usize, out: &mut [u8]) -> Result<(), Error> {
        let packed = file.get(self.packed[index].clone()).ok_or_else(|| damaged(None))?;
        match lz4_flex::block::decompress_into(packed, out) {
            Ok(written) if written == out.len() => Ok(()),
            Ok(_) => Err(damaged(None)),
            Err(e) => Err(damaged(Some(std::io::Error::other(e)))),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A frame of `data` whose blocks are literals only, with the size that the kernel's build appends.
    pub(crate) fn frame(data: &[u8]) -> Vec<u8> {
        let mut frame = MAGIC.to_vec();
        for part in data.chunks(BLOCK_LEN) {
            // One token, the length in steps of 255, the bytes.
            let mut block = vec![0xf0];
            let mut left = part.len() - 15;
            while left >= 255 {
                block.push(255);
                left -= 255;
            }
            block.push(left as u8);
            block.extend_from_slice(part);
            frame.extend_from_slice(&(block.len() as u32).to_le_bytes());
            frame.extend_from_slice(&block);
        }
        frame.extend_from_slice(&(data.len() as u32).to_le_bytes());
        frame
    }

    #[test]
    fn a_frame_that_ends_too_early_is_damaged() {
        let file = frame(&[7; 100]);
        let end = file.len() - 4;
        assert_eq!(Blocks::find(&file, 0..end, 100).unwrap().count(), 1);
        for end in 0..end {
            assert!(Blocks::find(&file, 0..end, 100).is_err(), "{end}");
        }
        assert!(Blocks::find(&file, 0..end, BLOCK_LEN + 1).is_err(), "there is no second block");
        assert_eq!(Blocks::find(&file, 0..end, 0).unwrap().count(), 0);
    }
}
