//! The compressed payload of a bzImage.
//!
//! The payload is one stream of whatever compressor the kernel was built with, recognised by its magic
//! (the table in Linux's lib/decompress.c); its last four bytes are the uncompressed size. Gzip ends
//! that way by itself, for the others the kernel's build appends the size.

use super::contents::Contents;
use super::lz4;
use crate::{Error, ErrorKind};
use std::io::Read;
use std::ops::Range;

/// Decoders may use this much memory for their dictionaries: what the largest presets need, and more.
const DICTIONARY_SIZE_MAX: u64 = 128 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Gzip,
    Bzip2,
    Lzma,
    Xz,
    Lzo,
    Lz4,
    Zstd,
    None,
}

impl Compression {
    fn recognise(payload: &[u8]) -> Option<Compression> {
        use Compression::*;
        const MAGICS: [(&[u8], Compression); 9] = [
            (&[0x1f, 0x8b], Gzip),
            (&[0x1f, 0x9e], Gzip),
            (b"BZh", Bzip2),
            (&[0x5d, 0x00], Lzma),
            (b"\xfd7zXZ\0", Xz),
            (&[0x89, 0x4c], Lzo),
            (&lz4::MAGIC, Lz4),
            (&[0x28, 0xb5, 0x2f, 0xfd], Zstd),
            (b"\x7fELF", None),
        ];
        MAGICS.iter().find(|(magic, _)| payload.starts_with(magic)).map(|found| found.1)
    }
}

/// Decompresses the payload that lies at `payload` in `file`, or as much of it as is needed to look at its headers.
///
/// # Errors
/// `Unsupported` when the compression is unknown, `Damaged` when the stream is, `TooLittleMemory` when
/// the result would exceed `size_max`.
pub(crate) fn payload(file: &[u8], payload: Range<usize>, size_max: u64) -> Result<Contents, Error> {
    let unsupported = |what| Error::new(ErrorKind::Unsupported, what);
    let range = payload;
    let payload = file.get(range.clone()).ok_or_else(|| damaged(None))?;
    let kind = Compression::recognise(payload)
        .ok_or_else(|| unsupported("the kernel is compressed in a way that is not known"))?;
    match kind {
        Compression::None => return Ok(Contents::whole(payload.to_vec())),
        Compression::Lzo => {
            return Err(unsupported("the kernel is compressed with LZO, which is not supported"));
        }
        _ => {}
    }
    let Some((body, size)) = payload.split_last_chunk::<4>() else { return Err(damaged(None)) };
    let size = u32::from_le_bytes(*size) as u64;
    if size > size_max {
        let message = format!(
            "the guest has too little memory: its kernel alone is {} MiB when decompressed",
            size.div_ceil(1 << 20)
        );
        return Err(Error::new(ErrorKind::TooLittleMemory, message));
    }
    let size = size as usize;
    let dictionary_kib = (DICTIONARY_SIZE_MAX >> 10) as u32;
    let whole = match kind {
        Compression::Lz4 => {
            let blocks = lz4::Blocks::find(file, range.start..range.end - 4, size)?;
            return Contents::packed(file, blocks);
        }
        Compression::Gzip => stream(flate2::read::GzDecoder::new(payload), size),
        Compression::Bzip2 => stream(bzip2::read::BzDecoder::new(body), size),
        Compression::Xz => stream(lzma_rust2::XzReader::new_mem_limit(body, false, dictionary_kib), size),
        Compression::Lzma => {
            let reader = lzma_rust2::LzmaReader::new_mem_limit(body, dictionary_kib, None);
            stream(reader.map_err(|e| damaged(Some(e)))?, size)
        }
        Compression::Zstd => {
            let reader =
                ruzstd::decoding::StreamingDecoder::new_with_max_window_size(body, DICTIONARY_SIZE_MAX);
            stream(reader.map_err(|e| damaged(Some(std::io::Error::other(e))))?, size)
        }
        Compression::None | Compression::Lzo => unreachable!("returned above"),
    };
    whole.map(Contents::whole)
}

fn stream(reader: impl Read, size: usize) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(size);
    memory::prefer_huge_pages(std::ptr::slice_from_raw_parts(out.as_ptr(), out.capacity()));
    reader.take(size as u64).read_to_end(&mut out).map_err(|e| damaged(Some(e)))?;
    if out.len() == size { Ok(out) } else { Err(damaged(None)) }
}

/// The error for a payload that does not decompress.
pub(super) fn damaged(source: Option<std::io::Error>) -> Error {
    let error =
        Error::new(ErrorKind::Damaged, "the kernel is damaged: its compressed part does not decompress");
    match source {
        Some(source) => error.with_source(source),
        None => error,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// Compresses with the host's program as the kernel's build does; `None` when it is not installed.
    pub(crate) fn compress_like_linux(program: &[&str], data: &[u8]) -> Option<Vec<u8>> {
        let mut child = Command::new(program[0])
            .args(&program[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut stdin = child.stdin.take().unwrap();
        let input = data.to_vec();
        let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &input));
        let mut out = child.wait_with_output().ok()?.stdout;
        writer.join().unwrap().ok()?;
        if program[0] != "gzip" {
            out.extend_from_slice(&(data.len() as u32).to_le_bytes());
        }
        Some(out)
    }

    fn unpack(packed: &[u8], size_max: u64) -> Result<Vec<u8>, Error> {
        let contents = payload(packed, 0..packed.len(), size_max)?.complete(packed)?;
        Ok(contents.beginning().to_vec())
    }

    /// Bytes that compress, but not to nothing; with CALL instructions for the x86 filter to change.
    fn sample(len: usize) -> Vec<u8> {
        (0..len as u32).flat_map(|i| [0xe8, (i >> 3) as u8, (i % 7) as u8, 0, 0]).take(len).collect()
    }

    #[test]
    fn what_the_compressors_of_linux_make_is_read_back() {
        let programs: [&[&str]; 8] = [
            &["gzip", "-n", "-9"],
            &["bzip2", "-9"],
            &["xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB"],
            &["xz", "--format=lzma", "-9"],
            &["lz4", "-l", "-9"],
            &["zstd", "-22", "--ultra"],
            &["zstd", "-3"],
            &["xz", "--check=sha256"],
        ];
        let data = sample(300_000);
        let mut tried = 0;
        for program in programs {
            let Some(packed) = compress_like_linux(program, &data) else {
                eprintln!("SKIPPED: {} is not installed", program[0]);
                continue;
            };
            tried += 1;
            assert!(unpack(&packed, 1 << 20).unwrap() == data, "{program:?}");
            assert_eq!(unpack(&packed, 299_999).unwrap_err().kind(), ErrorKind::TooLittleMemory);
            let damaged = unpack(&packed[..packed.len() / 2], u64::MAX).unwrap_err();
            assert!(matches!(damaged.kind(), ErrorKind::Damaged), "{program:?}: {damaged}");
        }
        assert!(tried > 0, "none of the compressors is installed");
    }

    #[test]
    fn lz4_blocks_are_joined() {
        let data = sample(lz4::BLOCK_LEN + 1000);
        let packed = lz4::tests::frame(&data);
        assert!(unpack(&packed, u64::MAX).unwrap() == data);
        let at_first = payload(&packed, 0..packed.len(), u64::MAX).unwrap();
        assert!(at_first.beginning() == &data[..lz4::BLOCK_LEN]);
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (bytes, kind) in [
            (&b""[..], ErrorKind::Unsupported),
            (b"hello", ErrorKind::Unsupported),
            (b"\x89\x4cLZO....", ErrorKind::Unsupported),
            (b"\x1f\x8b\x08", ErrorKind::Damaged),
            (b"\x02\x21\x4c\x18\xff\xff\xff\xff\x01\0\0\0", ErrorKind::Damaged),
        ] {
            assert_eq!(unpack(bytes, 1 << 20).unwrap_err().kind(), kind, "{bytes:x?}");
        }
        assert_eq!(unpack(b"\x7fELF...", 0).unwrap(), b"\x7fELF...");
    }
}
