//! What a driver asks of a block device (virtio 1.2, §5.2.6): parsing, apart from doing.

use super::spec::*;
use crate::queue::{Chain, RingError};
use disk::{SECTOR_SIZE, Unmap};
use memory::Ram;

/// The most segments of one discard or write-zeroes request.
pub const SEGMENTS_MAX: u32 = 16;
/// The most sectors of one segment to be discarded: 2 GiB.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 22;
/// The most sectors of one segment to be zeroed: 64 MiB, since the host may have to write them.
pub const ZEROES_SECTORS_MAX: u32 = 1 << 17;

/// A part of the disk that a discard or write-zeroes request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// For write-zeroes: whether storage may be freed.
    pub unmap: Unmap,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read from byte `offset` on into the writable part, all but its last byte.
    Read {
        /// First byte on the disk.
        offset: u64,
    },
    /// Write the readable part after the header at byte `offset`.
    Write {
        /// First byte on the disk.
        offset: u64,
    },
    /// Make earlier writes durable.
    Flush,
    /// Write the identification string.
    GetId,
    /// Discard these segments.
    Discard(Vec<Segment>),
    /// Write zeroes to these segments.
    WriteZeroes(Vec<Segment>),
    /// Answer with this status: the request is wrong or unknown.
    Refuse(u8),
}

/// Parses a request. The chain may be cut into descriptors in any way (§2.7.4); its last writable byte
/// is the status.
///
/// # Errors
/// When there is no room for a status, so that no answer is possible, or what has to be read is not
/// RAM.
pub fn parse(chain: &Chain, ram: &Ram) -> Result<Request, RingError> {
    if chain.writable_len() == 0 {
        return Err(RingError::BadRequest);
    }
    let mut header = [0; HEADER_LEN as usize];
    if chain.read_at(ram, 0, &mut header)? != header.len() {
        return Ok(Request::Refuse(S_IOERR));
    }
    let kind = u32::from_le_bytes(header[0..4].try_into().expect("four bytes"));
    let sector = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
    let (out_len, in_len) = (chain.readable_len() - HEADER_LEN, chain.writable_len() - 1);
    let whole_sectors = |len: u32| (len as u64).is_multiple_of(SECTOR_SIZE);
    let offset = sector.checked_mul(SECTOR_SIZE);
    Ok(match (kind, offset) {
        (T_IN, Some(offset)) if whole_sectors(in_len) => Request::Read { offset },
        (T_OUT, Some(offset)) if whole_sectors(out_len) => Request::Write { offset },
        (T_IN | T_OUT, _) => Request::Refuse(S_IOERR),
        (T_FLUSH, _) => Request::Flush,
        (T_GET_ID, _) => Request::GetId,
        (T_DISCARD | T_WRITE_ZEROES, _) => {
            if out_len == 0 || out_len % SEGMENT_LEN != 0 || out_len / SEGMENT_LEN > SEGMENTS_MAX {
                return Ok(Request::Refuse(S_IOERR));
            }
            let mut bytes = [0; (SEGMENTS_MAX * SEGMENT_LEN) as usize];
            let bytes = &mut bytes[..out_len as usize];
            chain.read_at(ram, HEADER_LEN, bytes)?;
            let (flags, sectors_max) = match kind {
                T_DISCARD => (0, DISCARD_SECTORS_MAX),
                _ => (SEGMENT_UNMAP, ZEROES_SECTORS_MAX),
            };
            match segments(bytes, flags, sectors_max) {
                Ok(segments) if kind == T_DISCARD => Request::Discard(segments),
                Ok(segments) => Request::WriteZeroes(segments),
                Err(status) => Request::Refuse(status),
            }
        }
        _ => Request::Refuse(S_UNSUPP),
    })
}

/// Parses segments; the error is the status to answer with (§5.2.6.2).
fn segments(bytes: &[u8], flags_allowed: u32, sectors_max: u32) -> Result<Vec<Segment>, u8> {
    bytes
        .chunks_exact(SEGMENT_LEN as usize)
        .map(|bytes| {
            let sector = u64::from_le_bytes(bytes[0..8].try_into().expect("eight bytes"));
            let sectors = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
            let flags = u32::from_le_bytes(bytes[12..16].try_into().expect("four bytes"));
            if flags & !flags_allowed != 0 {
                return Err(S_UNSUPP);
            }
            if sectors > sectors_max {
                return Err(S_IOERR);
            }
            let offset = sector.checked_mul(SECTOR_SIZE).ok_or(S_IOERR)?;
            let unmap = if flags & SEGMENT_UNMAP != 0 { Unmap::Allowed } else { Unmap::Keep };
            Ok(Segment { offset, len: sectors as u64 * SECTOR_SIZE, unmap })
        })
        .collect()
}
