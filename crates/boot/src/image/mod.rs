//! Kernel files: what they are and what is in them. Pure functions of bytes.

pub(crate) mod bzimage;
pub(crate) mod contents;
pub(crate) mod decompress;
pub(crate) mod elf;
pub(crate) mod lz4;

use crate::{Error, ErrorKind};
use bzimage::SetupHeader;
use std::fs::File;
use std::io::{Read, Seek};

/// Larger files are refused before they are read.
const FILE_SIZE_MAX: u64 = 1 << 30;

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
    pub fn read(mut file: &File) -> Result<Kernel, Error> {
        let unreadable = |e| Error::new(ErrorKind::Unreadable, "the kernel cannot be read").with_source(e);
        let size = file.metadata().map_err(unreadable)?.len();
        if size > FILE_SIZE_MAX {
            let message = format!("it is not a kernel: {} MiB is larger than any kernel", size >> 20);
            return Err(Error::new(ErrorKind::NotAKernel, message));
        }
        file.rewind().map_err(unreadable)?;
        let mut data = Vec::with_capacity(size as usize);
        memory::prefer_huge_pages(std::ptr::slice_from_raw_parts(data.as_ptr(), data.capacity()));
        file.take(FILE_SIZE_MAX).read_to_end(&mut data).map_err(unreadable)?;
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
