//! Kernel files: what they are and what is in them. Pure functions of bytes.

pub(crate) mod bzimage;
pub(crate) mod contents;
pub(crate) mod decompress;
pub(crate) mod elf;
pub(crate) mod lz4;

use crate::{Error, ErrorKind, parallel};
use bzimage::SetupHeader;
use memory::{Bytes as _, GuestAddress, Ram};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Larger files are refused before they are read.
const FILE_SIZE_MAX: u64 = 1 << 30;
/// So much of a file is read at once.
const CHUNK: usize = 2 << 20;

/// A kernel file, read and recognised.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) data: Vec<u8>,
    pub(crate) format: Format,
}

/// What a kernel file is.
#[derive(Debug)]
pub(crate) enum Format {
    BzImage(SetupHeader),
    Elf,
}

impl Kernel {
    /// Reads a kernel file from its beginning, whatever its present offset, and recognises its format.
    ///
    /// # Errors
    /// When the file cannot be read or is not a kernel.
    pub fn read(file: &File) -> Result<Kernel, Error> {
        let unreadable = |e| Error::new(ErrorKind::Unreadable, "the kernel cannot be read").with_source(e);
        let size = file.metadata().map_err(unreadable)?.len();
        if size > FILE_SIZE_MAX {
            let message = format!("it is not a kernel: {} MiB is larger than any kernel", size >> 20);
            return Err(Error::new(ErrorKind::NotAKernel, message));
        }
        let mut data = vec![0; size as usize];
        memory::prefer_huge_pages(&raw const data[..]);
        let chunks = data.chunks_mut(CHUNK).enumerate().collect();
        parallel::for_each(chunks, |(index, chunk)| file.read_exact_at(chunk, (index * CHUNK) as u64))
            .map_err(unreadable)?;
        Kernel::from_bytes(data)
    }

    /// Recognises a kernel that is already in memory.
    ///
    /// # Errors
    /// When the bytes are not a kernel.
    pub fn from_bytes(data: Vec<u8>) -> Result<Kernel, Error> {
        let format = if let Some(header) = SetupHeader::find(&data)? {
            Format::BzImage(header)
        } else if elf::is_elf(&data) {
            Format::Elf
        } else {
            let message = "it is not a kernel: neither a Linux bzImage nor a 64-bit x86 ELF executable";
            return Err(Error::new(ErrorKind::NotAKernel, message));
        };
        Ok(Kernel { data, format })
    }

    /// A word for the format: `bzImage` or `ELF`.
    pub fn format_name(&self) -> &'static str {
        match self.format {
            Format::BzImage(_) => "bzImage",
            Format::Elf => "ELF",
        }
    }
}

/// Writes `len` bytes of a file, from its beginning, to `address` of guest memory.
///
/// # Errors
/// When they cannot be read or written.
pub(crate) fn copy_to_guest(file: &File, ram: &Ram, address: u64, len: u64) -> std::io::Result<()> {
    let starts = (0..len).step_by(CHUNK).collect();
    parallel::for_each(starts, |start: u64| {
        let (at, mut chunk) = (address + start, vec![0; (len - start).min(CHUNK as u64) as usize]);
        file.read_exact_at(&mut chunk, start)?;
        ram.populate(at, chunk.len() as u64);
        ram.guest().write_slice(&chunk, GuestAddress(at)).map_err(std::io::Error::other)
    })
}

/// Little-endian integers at offsets of untrusted bytes.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl Bytes<'_> {
    pub(crate) fn array<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let at = usize::try_from(at).ok()?;
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }
    pub(crate) fn u16(&self, at: u64) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }
    pub(crate) fn u32(&self, at: u64) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }
    pub(crate) fn u64(&self, at: u64) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
}
