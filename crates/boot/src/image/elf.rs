//! ELF executables (System V ABI, "Object Files"), as far as a kernel loader needs them.

use super::Bytes;
use crate::{Error, ErrorKind};
use std::ops::Range;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_X86_64: u16 = 62;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
/// Xen's note type for the 32-bit entry point of PVH (xen/include/public/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// More program headers than any kernel has.
const SEGMENTS_MAX: u16 = 128;

/// A loadable segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Its bytes in the file.
    pub(crate) file: Range<usize>,
    /// Physical address.
    pub(crate) paddr: u64,
    /// Virtual address.
    vaddr: u64,
    /// Size in memory; what the file does not cover is zero.
    pub(crate) memory_size: u64,
}

/// An executable for x86-64.
#[derive(Clone, Debug)]
pub(crate) struct Elf {
    /// Segments to load, none of them empty.
    pub(crate) segments: Vec<Segment>,
    /// Physical entry point in 64-bit mode.
    pub(crate) entry: u64,
    /// Physical entry point of PVH, if the executable has its note.
    pub(crate) pvh_entry: Option<u32>,
}

pub(crate) fn is_elf(data: &[u8]) -> bool {
    data.starts_with(b"\x7fELF")
}

impl Elf {
    /// Reads the headers of an executable that is `len` bytes long and of which `data` is the beginning. A note beyond
    /// that is not found.
    ///
    /// # Errors
    /// When it is not an executable for x86-64, or points outside itself.
    pub(crate) fn parse(data: &[u8], len: usize) -> Result<Elf, Error> {
        let bytes = Bytes(data);
        let not = |why: &str| Error::new(ErrorKind::NotAKernel, format!("it is not a kernel: {why}"));
        let damaged =
            || Error::new(ErrorKind::Damaged, "the kernel is damaged: its ELF headers make no sense");
        if !is_elf(data) {
            return Err(not("no ELF executable"));
        }
        // e_ident: class 64-bit, little-endian.
        if bytes.array(4) != Some([2, 1]) || bytes.u16(18) != Some(EM_X86_64) {
            return Err(not("an ELF file, but not for x86-64"));
        }
        if !matches!(bytes.u16(16), Some(ET_EXEC | ET_DYN)) {
            return Err(not("an ELF file, but not an executable"));
        }
        let entry = bytes.u64(24).ok_or_else(damaged)?;
        let table = bytes.u64(32).ok_or_else(damaged)?;
        let entry_size = bytes.u16(54).ok_or_else(damaged)?;
        let count = bytes.u16(56).ok_or_else(damaged)?;
        if entry_size != 56 || count > SEGMENTS_MAX {
            return Err(damaged());
        }
        let (mut segments, mut pvh_entry) = (Vec::new(), None);
        for index in 0..count {
            let at = table.checked_add(index as u64 * 56).ok_or_else(damaged)?;
            let kind = bytes.u32(at).ok_or_else(damaged)?;
            let field = |offset: u64| at.checked_add(offset).and_then(|at| bytes.u64(at)).ok_or_else(damaged);
            let (offset, vaddr, paddr, file_size, memory_size) =
                (field(8)?, field(16)?, field(24)?, field(32)?, field(40)?);
            let end = offset.checked_add(file_size).filter(|end| *end <= len as u64);
            match kind {
                PT_LOAD if memory_size > 0 => {
                    let fits = file_size <= memory_size && paddr.checked_add(memory_size).is_some();
                    let end = end.filter(|_| fits).ok_or_else(damaged)?;
                    segments.push(Segment { file: offset as usize..end as usize, paddr, vaddr, memory_size });
                }
                PT_NOTE => {
                    let end = end.ok_or_else(damaged)?;
                    let notes = data.get(offset as usize..end as usize);
                    pvh_entry = pvh_entry.or_else(|| notes.and_then(find_pvh_note));
                }
                _ => {}
            }
        }
        if segments.is_empty() {
            return Err(not("an ELF file with nothing to load"));
        }
        let entry = physical(&segments, entry).ok_or_else(damaged)?;
        Ok(Elf { segments, entry, pvh_entry })
    }

    /// The physical addresses from the lowest segment's start to the highest one's end.
    pub(crate) fn extent(&self) -> Range<u64> {
        let start = self.segments.iter().map(|s| s.paddr).min().unwrap_or(0);
        let end = self.segments.iter().map(|s| s.paddr + s.memory_size).max().unwrap_or(0);
        start..end
    }
}

/// The entry point as a physical address: Linux gives it so, other kernels give a virtual one.
fn physical(segments: &[Segment], entry: u64) -> Option<u64> {
    let inside = |start: u64, s: &Segment| entry.wrapping_sub(start) < s.memory_size;
    if segments.iter().any(|s| inside(s.paddr, s)) {
        return Some(entry);
    }
    let segment = segments.iter().find(|s| inside(s.vaddr, s))?;
    Some(segment.paddr + entry.wrapping_sub(segment.vaddr))
}

/// Looks for the PVH note: name "Xen", type 18, the entry point as four or eight bytes.
fn find_pvh_note(notes: &[u8]) -> Option<u32> {
    let bytes = Bytes(notes);
    let mut at = 0u64;
    loop {
        let (name_size, size, kind) = (bytes.u32(at)?, bytes.u32(at + 4)?, bytes.u32(at + 8)?);
        let name_at = at + 12;
        let body_at = name_at + (name_size as u64).next_multiple_of(4);
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && name_size == 4 && bytes.array(name_at) == Some(*b"Xen\0") {
            return bytes.u32(body_at).filter(|_| size >= 4);
        }
        at = body_at + (size as u64).next_multiple_of(4);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An executable with one segment at 1 MiB (in the file from offset 0x1000 on) and, if asked for, a
    /// PVH note.
    pub(crate) fn elf(code: &[u8], memory_size: u64, entry: u64, pvh: Option<u32>) -> Vec<u8> {
        let mut file = vec![0; 0x1000];
        let mut put = |at: usize, value: &[u8]| file[at..at + value.len()].copy_from_slice(value);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &ET_EXEC.to_le_bytes());
        put(18, &EM_X86_64.to_le_bytes());
        put(24, &entry.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &(1 + pvh.is_some() as u16).to_le_bytes());
        let header = |kind: u32, fields: [u64; 5]| {
            let mut out = [kind.to_le_bytes(), 5u32.to_le_bytes()].concat();
            out.extend(fields.iter().flat_map(|f| f.to_le_bytes()));
            out
        };
        let len = code.len() as u64;
        put(64, &header(PT_LOAD, [0x1000, 0xffff_ffff_8010_0000, 0x10_0000, len, memory_size]));
        if let Some(entry) = pvh {
            let other = [4, 3, 1].map(u32::to_le_bytes).concat();
            let note = [4, 4, XEN_ELFNOTE_PHYS32_ENTRY].map(u32::to_le_bytes).concat();
            let notes = [&other[..], b"GNU\0abc\0", &note, b"Xen\0", &entry.to_le_bytes()].concat();
            put(0x800, &notes);
            put(120, &header(PT_NOTE, [0x800, 0, 0, notes.len() as u64, 0]));
        }
        file.extend_from_slice(code);
        file
    }

    #[test]
    fn segments_and_entry_points_are_found() {
        let file = elf(b"code", 0x5000, 0x10_0010, Some(0x10_0020));
        let elf = Elf::parse(&file, file.len()).unwrap();
        assert_eq!(elf.segments.len(), 1);
        assert_eq!(elf.segments[0].file, 0x1000..0x1004);
        assert_eq!(elf.extent(), 0x10_0000..0x10_5000);
        assert_eq!((elf.entry, elf.pvh_entry), (0x10_0010, Some(0x10_0020)));
    }

    #[test]
    fn a_virtual_entry_point_becomes_physical() {
        let file = elf(b"code", 0x5000, 0xffff_ffff_8010_0123, None);
        // Of this one only the headers are at hand.
        let elf = Elf::parse(&file[..0x1000], file.len()).unwrap();
        assert_eq!((elf.entry, elf.pvh_entry), (0x10_0123, None));
    }

    #[test]
    fn wrong_files_are_refused_with_the_reason() {
        let good = elf(b"code", 0x5000, 0x10_0010, None);
        let with = |at: usize, value: &[u8]| {
            let mut file = good.clone();
            file[at..at + value.len()].copy_from_slice(value);
            Elf::parse(&file, file.len()).unwrap_err()
        };
        assert!(with(4, &[1]).to_string().contains("not for x86-64"));
        assert!(with(18, &183u16.to_le_bytes()).to_string().contains("not for x86-64"));
        assert!(with(16, &[1]).to_string().contains("not an executable"));
        assert!(with(56, &[0]).to_string().contains("nothing to load"));
        for damage in [
            with(54, &[32]),
            with(56, &[0xff, 0xff]),
            with(32, &u64::MAX.to_le_bytes()),
            with(64 + 8, &u64::MAX.to_le_bytes()),
            with(64 + 24, &u64::MAX.to_le_bytes()),
            with(64 + 32, &0x6000u64.to_le_bytes()),
            with(24, &0u64.to_le_bytes()),
        ] {
            assert_eq!(damage.kind(), ErrorKind::Damaged, "{damage}");
        }
    }
}
