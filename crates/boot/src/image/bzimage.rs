//! The setup header of a bzImage (boot protocol, "The Real-Mode Kernel Header").

use super::contents::Contents;
use super::{Bytes, decompress};
use crate::{Error, ErrorKind};

/// Offsets of header fields, the same in the file and in the zero page.
pub(crate) mod field {
    pub(crate) const SETUP_SECTS: u64 = 0x1f1;
    pub(crate) const VID_MODE: u64 = 0x1fa;
    pub(crate) const BOOT_FLAG: u64 = 0x1fe;
    /// The jump instruction's displacement: the header ends at 0x202 + this byte.
    pub(crate) const JUMP_DISPLACEMENT: u64 = 0x201;
    pub(crate) const HEADER: u64 = 0x202;
    pub(crate) const VERSION: u64 = 0x206;
    pub(crate) const TYPE_OF_LOADER: u64 = 0x210;
    pub(crate) const LOADFLAGS: u64 = 0x211;
    pub(crate) const CODE32_START: u64 = 0x214;
    pub(crate) const RAMDISK_IMAGE: u64 = 0x218;
    pub(crate) const RAMDISK_SIZE: u64 = 0x21c;
    pub(crate) const CMD_LINE_PTR: u64 = 0x228;
    pub(crate) const INITRD_ADDR_MAX: u64 = 0x22c;
    pub(crate) const KERNEL_ALIGNMENT: u64 = 0x230;
    pub(crate) const RELOCATABLE_KERNEL: u64 = 0x234;
    pub(crate) const XLOADFLAGS: u64 = 0x236;
    pub(crate) const CMDLINE_SIZE: u64 = 0x238;
    pub(crate) const PAYLOAD_OFFSET: u64 = 0x248;
    pub(crate) const PAYLOAD_LENGTH: u64 = 0x24c;
    pub(crate) const SETUP_DATA: u64 = 0x250;
    pub(crate) const PREF_ADDRESS: u64 = 0x258;
    pub(crate) const INIT_SIZE: u64 = 0x260;
    /// The header of every protocol version ends before this offset.
    pub(crate) const HEADER_END_MAX: u64 = 0x290;
}

pub(crate) const MAGIC: u32 = 0x5372_6448; // "HdrS"
pub(crate) const BOOT_FLAG: u16 = 0xaa55;
/// LOADFLAGS: the protected-mode code is loaded at 1 MiB or above.
pub(crate) const LOADED_HIGH: u8 = 1 << 0;
/// XLOADFLAGS: there is a 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1 << 0;

/// The setup header of a bzImage, checked against the file's length.
#[derive(Clone, Debug)]
pub(crate) struct SetupHeader {
    /// Bytes of the header, from 0x1f1 on, for the zero page.
    pub(crate) raw: Vec<u8>,
    /// Where the protected-mode code begins in the file.
    pub(crate) code_offset: usize,
    /// The compressed kernel, relative to the file; `None` when the header tells none (before 2.08).
    pub(crate) payload: Option<std::ops::Range<usize>>,
    /// Highest address that the initial RAM disk may occupy.
    pub(crate) initrd_addr_max: u64,
    /// Longest command line, without the NUL.
    pub(crate) cmdline_size: u64,
    /// Whether the decompressor can be entered in 64-bit mode.
    pub(crate) has_64_bit_entry: bool,
    /// Whether the protected-mode code may lie anywhere aligned.
    pub(crate) is_relocatable: bool,
    /// Where the kernel prefers to lie.
    pub(crate) pref_address: u64,
    /// Where it must lie when it is not relocatable.
    pub(crate) code32_start: u64,
    /// Alignment when relocatable; a power of two.
    pub(crate) kernel_alignment: u64,
    /// Memory that the kernel uses from its load address on before it looks at the memory map.
    pub(crate) init_size: u64,
}

impl SetupHeader {
    /// Reads the header. `None` when the bytes are no bzImage.
    ///
    /// # Errors
    /// When they are one, but too old or cut short.
    pub(crate) fn find(data: &[u8]) -> Result<Option<SetupHeader>, Error> {
        let bytes = Bytes(data);
        if bytes.u32(field::HEADER) != Some(MAGIC) || bytes.u16(field::BOOT_FLAG) != Some(BOOT_FLAG) {
            return Ok(None);
        }
        Self::parse(bytes).map(Some)
    }

    fn parse(bytes: Bytes<'_>) -> Result<SetupHeader, Error> {
        let cut = || Error::new(ErrorKind::Damaged, "the kernel is damaged: the file ends too early");
        let version = bytes.u16(field::VERSION).ok_or_else(cut)?;
        if version < 0x206 {
            let message = format!(
                "the kernel is too old: boot protocol {}.{:02}, 2.06 is needed",
                version >> 8,
                version & 0xff
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let byte = |at| bytes.array::<1>(at).map(|b| b[0]).ok_or_else(cut);
        // Fields of later protocol versions are only there when the version says so.
        let since = |min: u16, value: Option<u64>, otherwise: u64| {
            if version >= min { value.ok_or_else(cut) } else { Ok(otherwise) }
        };
        // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
        let setup_sects = match byte(field::SETUP_SECTS)? {
            0 => 4,
            n => n as usize,
        };
        let code_offset = (setup_sects + 1) * 512;
        if code_offset >= bytes.0.len() {
            return Err(cut());
        }
        let payload_offset = since(0x208, bytes.u32(field::PAYLOAD_OFFSET).map(u64::from), 0)?;
        let payload_length = since(0x208, bytes.u32(field::PAYLOAD_LENGTH).map(u64::from), 0)?;
        let payload = match (payload_offset, payload_length) {
            (_, 0) => None,
            (offset, length) => {
                let start = code_offset + offset as usize;
                let range = start..start + length as usize;
                if range.end > bytes.0.len() {
                    return Err(cut());
                }
                Some(range)
            }
        };
        let raw_end = (field::HEADER + byte(field::JUMP_DISPLACEMENT)? as u64).min(field::HEADER_END_MAX);
        let raw = bytes.0.get(field::SETUP_SECTS as usize..raw_end as usize).ok_or_else(cut)?.to_vec();
        let xloadflags = since(0x20c, bytes.u16(field::XLOADFLAGS).map(u64::from), 0)? as u16;
        let alignment = bytes.u32(field::KERNEL_ALIGNMENT).ok_or_else(cut)? as u64;
        Ok(SetupHeader {
            raw,
            code_offset,
            payload,
            initrd_addr_max: bytes.u32(field::INITRD_ADDR_MAX).ok_or_else(cut)? as u64,
            cmdline_size: bytes.u32(field::CMDLINE_SIZE).ok_or_else(cut)? as u64,
            has_64_bit_entry: xloadflags & XLF_KERNEL_64 != 0,
            is_relocatable: byte(field::RELOCATABLE_KERNEL)? != 0,
            pref_address: since(0x20a, bytes.u64(field::PREF_ADDRESS), 0)?,
            code32_start: bytes.u32(field::CODE32_START).ok_or_else(cut)? as u64,
            kernel_alignment: if alignment.is_power_of_two() { alignment } else { 1 << 24 },
            init_size: since(0x20a, bytes.u32(field::INIT_SIZE).map(u64::from), 0)?,
        })
    }

    /// Decompresses the kernel proper: usually an ELF executable.
    ///
    /// # Errors
    /// When there is none, its compression is unknown, it is damaged, or larger than `size_max`.
    pub(crate) fn decompress(&self, data: &[u8], size_max: u64) -> Result<Contents, Error> {
        let payload =
            self.payload.clone().filter(|range| data.get(range.clone()).is_some()).ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, "the kernel does not tell where its compressed part is")
            })?;
        decompress::payload(data, payload, size_max)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A bzImage with the given payload, protocol 2.15.
    pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        let mut put = |at: u64, value: &[u8]| image[at as usize..][..value.len()].copy_from_slice(value);
        put(field::SETUP_SECTS, &[1]);
        put(field::BOOT_FLAG, &BOOT_FLAG.to_le_bytes());
        put(field::JUMP_DISPLACEMENT - 1, &[0xeb, 0x6a]);
        put(field::HEADER, &MAGIC.to_le_bytes());
        put(field::VERSION, &0x20fu16.to_le_bytes());
        put(field::LOADFLAGS, &[LOADED_HIGH]);
        put(field::CODE32_START, &0x10_0000u32.to_le_bytes());
        put(field::INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
        put(field::KERNEL_ALIGNMENT, &0x20_0000u32.to_le_bytes());
        put(field::RELOCATABLE_KERNEL, &[1]);
        put(field::XLOADFLAGS, &XLF_KERNEL_64.to_le_bytes());
        put(field::CMDLINE_SIZE, &2047u32.to_le_bytes());
        put(field::PAYLOAD_OFFSET, &0x300u32.to_le_bytes());
        put(field::PAYLOAD_LENGTH, &(payload.len() as u32).to_le_bytes());
        put(field::PREF_ADDRESS, &0x100_0000u64.to_le_bytes());
        put(field::INIT_SIZE, &0x20_0000u32.to_le_bytes());
        image.resize(1024 + 0x300, 0x90);
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn a_header_is_read() {
        let header = SetupHeader::find(&bzimage(b"payload")).unwrap().unwrap();
        assert_eq!(header.code_offset, 1024);
        assert_eq!(header.payload, Some(1024 + 0x300..1024 + 0x300 + 7));
        assert_eq!((header.cmdline_size, header.initrd_addr_max), (2047, 0x7fff_ffff));
        assert_eq!((header.pref_address, header.init_size), (0x100_0000, 0x20_0000));
        assert!(header.has_64_bit_entry && header.is_relocatable);
        assert_eq!(header.raw.len(), 0x202 + 0x6a - 0x1f1);
    }

    #[test]
    fn every_way_to_cut_it_short_is_refused() {
        let image = bzimage(&[7; 64]);
        for len in 0..image.len() {
            match SetupHeader::find(&image[..len]) {
                Ok(None) => assert!(len < 0x206),
                Ok(Some(_)) => panic!("{len} bytes were accepted"),
                Err(e) => assert_eq!(e.kind(), ErrorKind::Damaged),
            }
        }
    }

    #[test]
    fn old_protocols_are_refused_by_name() {
        let mut image = bzimage(b"");
        image[field::VERSION as usize] = 5;
        let error = SetupHeader::find(&image).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("2.05"), "{error}");
    }

    #[test]
    fn a_payload_beyond_the_file_is_refused() {
        let mut image = bzimage(b"x");
        image[field::PAYLOAD_OFFSET as usize..][..8].fill(0xff);
        assert_eq!(SetupHeader::find(&image).unwrap_err().kind(), ErrorKind::Damaged);
    }
}
