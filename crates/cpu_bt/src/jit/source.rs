//! The bytes that a trace is made from: a copy, of which is read only what is looked at. Memory may be written
//! meanwhile, and is compared with it before the trace counts.

use super::cache::Key;
use crate::block::decode::INSTRUCTION_LEN_MAX;
use crate::vm::line_mask;
use iced_x86::{Decoder, DecoderOptions};
use memory::Ram;

/// A page, and what of the next one an instruction may end in.
const LEN: usize = 4096 + INSTRUCTION_LEN_MAX;
/// So much is read at once.
const PIECE: usize = 256;
/// So much is compared at once.
const LINE: usize = 64;

/// A copy of the page that a trace begins in.
pub(super) struct Source {
    page: *const u8,
    second: Option<*const u8>,
    /// Which 64-byte lines of the page were read.
    lines: u64,
    bytes: Box<[u8]>,
}

impl Source {
    /// Of the page of `gpa`, and the page in which its first instruction ends if that is another one. `bytes` is memory to
    /// use. `None` where there is no memory.
    pub(super) fn new(ram: &Ram, gpa: u64, second: Option<u64>, bytes: Box<[u8]>) -> Option<Source> {
        let page_of = |gpa: u64| ram.code_page(gpa).map(|page| page.ptr.cast_const());
        let page = page_of(gpa)?;
        let second = match second {
            Some(second) => Some(page_of(second)?),
            None => None,
        };
        let bytes = if bytes.len() == LEN { bytes } else { vec![0; LEN].into() };
        let mut source = Source { page, second, lines: 0, bytes };
        if let Some(second) = second {
            // SAFETY: the start of a page of RAM, which stays mapped as long as the machine. Who writes it meanwhile is
            // noticed by `is_same`.
            unsafe { std::ptr::copy(second, source.bytes[4096..].as_mut_ptr(), INSTRUCTION_LEN_MAX) };
        }
        Some(source)
    }

    /// Gives the memory back.
    pub(super) fn into_bytes(self) -> Box<[u8]> {
        self.bytes
    }

    /// Whether some of `len` bytes from an offset in the page on were not read yet.
    pub(super) fn lacks(&self, at: usize, len: usize) -> bool {
        line_mask(at as u64, len.min(4096 - at) as u64) & !self.lines != 0
    }

    /// Reads `len` bytes from an offset in the page on, as far as the page goes.
    pub(super) fn read(&mut self, at: usize, len: usize) {
        for piece in (at / PIECE * PIECE..(at + len).min(4096)).step_by(PIECE) {
            let lines = line_mask(piece as u64, PIECE as u64);
            if self.lines & lines != 0 {
                continue;
            }
            self.lines |= lines;
            // SAFETY: inside the page, as above.
            unsafe { std::ptr::copy(self.page.add(piece), self.bytes[piece..].as_mut_ptr(), PIECE) };
        }
    }

    /// The bytes, of which those hold that were read.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A decoder of the page as if it stood at address 0, which goes on into the second page if there is one.
    pub(super) fn decoder(&self, key: Key) -> Decoder<'_> {
        let bytes = if self.second.is_some() { &self.bytes[..] } else { &self.bytes[..4096] };
        Decoder::with_ip(key.width() as u32 * 8, bytes, 0, DecoderOptions::NONE)
    }

    /// The lines that were read.
    pub(super) fn lines(&self) -> u64 {
        self.lines
    }

    /// Whether memory still holds the same in some of the lines that were read, and in the second page.
    pub(super) fn is_same(&self, lines: u64) -> bool {
        debug_assert!(lines & !self.lines == 0);
        let same = |at: *const u8, bytes: &[u8]| {
            // SAFETY: so many bytes of a page of RAM, as above.
            unsafe { libc::memcmp(at.cast(), bytes.as_ptr().cast(), bytes.len()) == 0 }
        };
        let (first, rest) = self.bytes.split_at(4096);
        let mut chunks = first.chunks_exact(LINE).enumerate().filter(|(line, _)| lines >> line & 1 != 0);
        // SAFETY: inside the page.
        chunks.all(|(line, chunk)| same(unsafe { self.page.add(line * LINE) }, chunk))
            && self.second.is_none_or(|second| same(second, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_looked_at_is_read_and_compared() {
        let ram = Ram::new(1 << 20).unwrap();
        let put = |gpa: u64, byte: u8| {
            let page = ram.code_page(gpa).unwrap();
            // SAFETY: inside a page of RAM.
            unsafe { page.ptr.add((gpa & 0xfff) as usize).write(byte) };
        };
        (0..0x2000).for_each(|offset| put(0x4000 + offset, offset as u8));
        let mut source = Source::new(&ram, 0x4123, Some(0x5000), Box::default()).unwrap();
        assert!(source.lacks(0x123, 1));
        source.read(0x1f8, 15);
        assert!(!source.lacks(0x1f8, 15) && !source.lacks(0x100, 1) && source.lacks(0x300, 1));
        source.read(0xff8, INSTRUCTION_LEN_MAX);
        for offset in [0x100, 0x2ff, 0xfff, 0x1000, 0x100e] {
            assert_eq!(source.bytes()[offset], offset as u8);
        }
        put(0x4300, 0xee);
        put(0x500f, 0xee);
        assert!(source.is_same(source.lines()));
        for gpa in [0x42ff, 0x4f00, 0x500e] {
            put(gpa, 0xee);
            assert!(!source.is_same(source.lines()));
            put(gpa, gpa as u8);
            assert!(source.is_same(source.lines()));
        }
        put(0x4140, 0xee);
        assert!(source.is_same(line_mask(0x180, 0x100)) && !source.is_same(line_mask(0x17f, 1)));
        // Used again, it holds nothing of the page before.
        let source = Source::new(&ram, 0x6000, None, source.into_bytes()).unwrap();
        assert!(source.lacks(0x123, 1) && source.is_same(0));
    }
}
