//! VHDX, Hyper-V's format.
//!
//! Microsoft, [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format". Numbers are little-endian.
//!
//! `log.rs` replays what a program that ended early had logged: here into memory, since images are only
//! read; `build.rs` makes images.

mod build;
mod log;

pub(crate) use build::VhdxBuilder;

use crate::bytes::{le16, le32, le64};
use crate::file::HostFile;
use crate::mapped::{BlockPlace, Blocks};
use crate::{Error, ErrorKind, Operation};
use log::Patches;

pub(crate) const FILE_SIGNATURE: &[u8; 8] = b"vhdxfile";
const HEADER_SIGNATURE: &[u8; 4] = b"head";
const REGION_SIGNATURE: &[u8; 4] = b"regi";
const METADATA_SIGNATURE: &[u8; 8] = b"metadata";
const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
const REGIONS_AT: [u64; 2] = [192 << 10, 256 << 10];
const HEADER_LEN: usize = 4096;
const REGION_TABLE_LEN: usize = 64 << 10;
const REGIONS_MAX: u32 = 2047;
const METADATA_ITEMS_MAX: u16 = 2047;
const MIB: u64 = 1 << 20;
/// The format's own limit.
const SIZE_MAX: u64 = 64 << 40;
/// What a log may have at most; more is not replayed.
const LOG_LEN_MAX: u64 = 256 << 20;

/// A GUID as it lies in the file: the first three parts little-endian.
const fn guid(first: u32, second: u16, third: u16, rest: [u8; 8]) -> [u8; 16] {
    let (a, b, c) = (first.to_le_bytes(), second.to_le_bytes(), third.to_le_bytes());
    let r = rest;
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7]]
}

const REGION_BAT: [u8; 16] =
    guid(0x2DC2_7766, 0xF623, 0x4200, [0x9D, 0x64, 0x11, 0x5E, 0x9B, 0xFD, 0x4A, 0x08]);
const REGION_METADATA: [u8; 16] =
    guid(0x8B7C_A206, 0x4790, 0x4B9A, [0xB8, 0xFE, 0x57, 0x5F, 0x05, 0x0F, 0x88, 0x6E]);
const ITEM_PARAMETERS: [u8; 16] =
    guid(0xCAA1_6737, 0xFA36, 0x4D43, [0xB3, 0xB6, 0x33, 0xF0, 0xAA, 0x44, 0xE7, 0x6B]);
const ITEM_SIZE: [u8; 16] =
    guid(0x2FA5_4224, 0xCD1B, 0x4876, [0xB2, 0x11, 0x5D, 0xBE, 0xD8, 0x3B, 0xF4, 0xB8]);
const ITEM_ID: [u8; 16] = guid(0xBECA_12AB, 0xB2E6, 0x4523, [0x93, 0xEF, 0xC3, 0x09, 0xE0, 0x00, 0xC7, 0x46]);
const ITEM_LOGICAL: [u8; 16] =
    guid(0x8141_BF1D, 0xA96F, 0x4709, [0xBA, 0x47, 0xF2, 0x33, 0xA8, 0xFA, 0xAB, 0x5F]);
const ITEM_PHYSICAL: [u8; 16] =
    guid(0xCDA3_48C7, 0x445D, 0x4471, [0x9C, 0xC9, 0xE9, 0x88, 0x52, 0x51, 0xC5, 0x56]);

/// States of a block's entry (2.5.1.1).
const BLOCK_FULLY_PRESENT: u64 = 6;
const BLOCK_PARTIALLY_PRESENT: u64 = 7;

/// CRC-32C, as all checksums here are (2.1: "CRC-32C").
fn crc32c(parts: &[&[u8]]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let (mut value, mut bit) = (index as u32, 0);
            while bit < 8 {
                value = if value & 1 != 0 { value >> 1 ^ 0x82F6_3B78 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    let step = |crc: u32, byte: &u8| crc >> 8 ^ TABLE[(crc as u8 ^ byte) as usize];
    !parts.iter().flat_map(|part| part.iter()).fold(!0, step)
}

/// The checksum of a structure whose own checksum lies at byte 4.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c(&[&bytes[..4], &[0; 4], &bytes[8..]])
}

struct Header {
    sequence: u64,
    log_id: [u8; 16],
    log_len: u64,
    log_at: u64,
}

fn header(file: &HostFile) -> Result<Header, Error> {
    let mut newest: Option<Header> = None;
    for at in HEADERS_AT {
        let mut bytes = vec![0; HEADER_LEN];
        file.read_padded(at, &mut bytes, Operation::Open)?;
        if !bytes.starts_with(HEADER_SIGNATURE) || le32(&bytes, 4) != checksum(&bytes) {
            continue;
        }
        let header = Header {
            sequence: le64(&bytes, 8),
            log_id: bytes[48..64].try_into().expect("sixteen bytes"),
            log_len: le32(&bytes, 68) as u64,
            log_at: le64(&bytes, 72),
        };
        if le16(&bytes, 66) != 1 {
            return Err(unsupported(file, "its version of the format is not known"));
        }
        if newest.as_ref().is_none_or(|newest| newest.sequence < header.sequence) {
            newest = Some(header);
        }
    }
    newest.ok_or_else(|| file.damaged(Operation::Open, "both of its headers are damaged"))
}

fn unsupported(file: &HostFile, why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, Operation::Open).with_path(file.path()).with_detail(why)
}

/// Reads the tables of an image.
pub(crate) fn parse(file: &HostFile) -> Result<Blocks, Error> {
    let bad = |why: &str| file.damaged(Operation::Open, why);
    let mut signature = [0; 8];
    file.read(0, &mut signature, Operation::Open)?;
    if signature != *FILE_SIGNATURE {
        return Err(bad("it is not a VHDX image"));
    }
    let header = header(file)?;
    let patches = match header.log_id {
        id if id == [0; 16] => Patches::default(),
        id => {
            let len = header.log_len;
            if len == 0 || !len.is_multiple_of(MIB) || len > LOG_LEN_MAX || !header.log_at.is_multiple_of(MIB)
            {
                return Err(bad("its log lies at an impossible place"));
            }
            Patches::read(file, id, header.log_at, len)?
        }
    };
    let [bat, metadata] = regions(file, &patches)?;
    let facts = facts(file, &patches, metadata)?;
    block_table(file, &patches, bat, &facts)
}

/// Place and length in the file.
type Region = (u64, u64);

/// The two regions that are known (2.2.3): block table and metadata.
fn regions(file: &HostFile, patches: &Patches) -> Result<[Region; 2], Error> {
    let file_len = file.len()?.max(patches.end());
    let mut found = [None; 2];
    let mut bytes = vec![0; REGION_TABLE_LEN];
    let mut is_table = false;
    for at in REGIONS_AT {
        patches.read_file(file, at, &mut bytes)?;
        is_table = bytes.starts_with(REGION_SIGNATURE) && le32(&bytes, 4) == checksum(&bytes);
        if is_table {
            break;
        }
    }
    let count = le32(&bytes, 8);
    if !is_table || count > REGIONS_MAX {
        return Err(file.damaged(Operation::Open, "both of its region tables are damaged"));
    }
    for index in 0..count as usize {
        let entry = &bytes[16 + index * 32..][..32];
        let (at, len) = (le64(entry, 16), le32(entry, 24) as u64);
        let slot = match entry[..16].try_into().expect("sixteen bytes") {
            REGION_BAT => 0,
            REGION_METADATA => 1,
            _ if le32(entry, 28) & 1 != 0 => {
                return Err(unsupported(file, "it has a required region that is not known"));
            }
            _ => continue,
        };
        if at < MIB || at.checked_add(len).is_none_or(|end| end > file_len) {
            return Err(file.damaged(Operation::Open, "one of its regions lies beyond the end of the file"));
        }
        found[slot] = Some((at, len));
    }
    match found {
        [Some(bat), Some(metadata)] => Ok([bat, metadata]),
        _ => Err(file.damaged(Operation::Open, "it lacks a region")),
    }
}

struct Facts {
    size: u64,
    block_size: u64,
    logical: u64,
}

/// What the metadata region says (2.6).
fn facts(file: &HostFile, patches: &Patches, (at, len): Region) -> Result<Facts, Error> {
    let bad = |why: &str| file.damaged(Operation::Open, why);
    let mut table = vec![0; (64 << 10).min(len) as usize];
    patches.read_file(file, at, &mut table)?;
    if table.len() < 32 || !table.starts_with(METADATA_SIGNATURE) || le16(&table, 10) > METADATA_ITEMS_MAX {
        return Err(bad("its metadata is damaged"));
    }
    let (mut parameters, mut size, mut logical) = (None, None, None);
    for index in 0..le16(&table, 10) as usize {
        let Some(entry) = table.get(32 + index * 32..64 + index * 32) else {
            return Err(bad("its metadata is cut off"));
        };
        let (item_at, item_len) = (le32(entry, 16) as u64, le32(entry, 20) as u64);
        let slot = match entry[..16].try_into().expect("sixteen bytes") {
            ITEM_PARAMETERS => &mut parameters,
            ITEM_SIZE => &mut size,
            ITEM_LOGICAL => &mut logical,
            ITEM_ID | ITEM_PHYSICAL => continue,
            _ if le32(entry, 24) & 4 != 0 => {
                // Among them the parent locator of differencing images.
                return Err(unsupported(
                    file,
                    "it stands on another image or needs metadata that is not known; merge it with Hyper-V first",
                ));
            }
            _ => continue,
        };
        if item_at < 64 << 10 || item_len > 64 || item_at + item_len > len {
            return Err(bad("its metadata is damaged"));
        }
        let mut value = [0; 8];
        patches.read_file(file, at + item_at, &mut value[..item_len.min(8) as usize])?;
        *slot = Some(le64(&value, 0));
    }
    let (Some(parameters), Some(size), Some(logical)) = (parameters, size, logical) else {
        return Err(bad("its metadata lacks an item"));
    };
    let (block_size, flags) = (parameters & 0xffff_ffff, parameters >> 32);
    if flags & 2 != 0 {
        return Err(unsupported(file, "it stands on another image; merge it with Hyper-V first"));
    }
    if !block_size.is_power_of_two() || !(MIB..=256 << 20).contains(&block_size) {
        return Err(bad("its blocks have an impossible size"));
    }
    if !matches!(logical, 512 | 4096) || !(512..=SIZE_MAX).contains(&size) || !size.is_multiple_of(logical) {
        return Err(bad("its disk has an impossible size"));
    }
    Ok(Facts { size, block_size, logical })
}

/// How many blocks lie between entries of sector bitmaps (2.5).
fn chunk_ratio(block_size: u64, logical: u64) -> u64 {
    (logical << 23) / block_size
}

fn block_table(
    file: &HostFile,
    patches: &Patches,
    (at, len): Region,
    facts: &Facts,
) -> Result<Blocks, Error> {
    let ratio = chunk_ratio(facts.block_size, facts.logical);
    let blocks = facts.size.div_ceil(facts.block_size);
    let entries = blocks + (blocks - 1) / ratio;
    if entries * 8 > len {
        return Err(file.damaged(Operation::Open, "its block table is too small for its disk"));
    }
    let mut table = vec![0; entries as usize * 8];
    patches.read_file(file, at, &mut table)?;
    let mut places = Vec::with_capacity(blocks as usize);
    for block in 0..blocks {
        let entry = le64(&table, (block + block / ratio) as usize * 8);
        places.push(match entry & 7 {
            BLOCK_FULLY_PRESENT => BlockPlace::At(entry >> 20 << 20),
            BLOCK_PARTIALLY_PRESENT => {
                return Err(file.damaged(Operation::Open, "a block is of an image that stands on another"));
            }
            _ => BlockPlace::Zero,
        });
    }
    Ok(Blocks { size: facts.size, block_size: facts.block_size, places })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{put_le32, put_le64};
    use crate::convert::Builder;
    use crate::mapped::Mapped;
    use crate::{Access, Buffers, Content, Disk};

    #[test]
    fn checksums_are_the_well_known_ones() {
        assert_eq!(crc32c(&[b"1234", b"56789"]), 0xe306_9283, "RFC 3720, B.4 and its kin");
    }

    /// Of a block that has storage only in part, the rest is known to be zero without being read. A file that was cut off
    /// is not taken for one that ends with a hole.
    #[test]
    fn holes_of_the_file_are_zero_and_what_is_cut_off_is_not() {
        let path = std::env::temp_dir().join(format!("disk-vhdx-holes-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let builder = Box::new(VhdxBuilder::new(&path, 8 << 20).unwrap());
        let block = [vec![0x77; 1 << 20], vec![0; 1 << 20]].concat();
        builder.put(2 << 20, &block).unwrap();
        builder.finish().unwrap();
        let open = || {
            let file = HostFile::open(&path, Access::ReadOnly).unwrap();
            Mapped { layout: Box::new(parse(&file).unwrap()), files: vec![file], below: None }
        };
        let disk = open();
        let first = disk.extent(2 << 20, 2 << 20).unwrap();
        assert_eq!((first.content, first.len), (Content::Data, 1 << 20));
        let rest = disk.extent(3 << 20, 1 << 20).unwrap();
        assert_eq!((rest.content, rest.len), (Content::Zeroes, 1 << 20));
        let end = first.file_offset.unwrap() + (1 << 20);
        drop(disk);
        std::fs::File::options().write(true).open(&path).unwrap().set_len(end).unwrap();
        let disk = open();
        assert_eq!(disk.extent(2 << 20, 2 << 20).unwrap().len, 1 << 20);
        assert_eq!(disk.extent(3 << 20, 1 << 20).unwrap().content, Content::Data);
        assert!(disk.read(3 << 20, &mut Buffers::from_mut(&mut [0; 512])).is_err());
        std::fs::remove_file(&path).unwrap();
    }

    /// An image whose block table is zero in the file, and right in the log: as when the writer ended between.
    #[test]
    fn what_was_logged_is_replayed() {
        let path = std::env::temp_dir().join(format!("disk-vhdx-log-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let builder = Box::new(VhdxBuilder::new(&path, 8 << 20).unwrap());
        builder.put(2 << 20, &vec![0x77; 2 << 20]).unwrap();
        builder.finish().unwrap();
        let file = HostFile::open(&path, Access::ReadWrite).unwrap();
        let (log_at, bat_at) = (MIB, 3 * MIB);
        let mut bat = vec![0; 4096];
        file.read(bat_at, &mut bat, Operation::Read).unwrap();
        file.write(bat_at, &[0; 4096], Operation::Write).unwrap();
        let id = [9; 16];
        // Two entries: the first makes the table zero, the second is the one that counts.
        let mut log = Vec::new();
        for (number, is_data) in [(5u64, false), (6, true)] {
            let mut entry = vec![0; 4096 + if is_data { 4096 } else { 0 }];
            entry[..4].copy_from_slice(b"loge");
            let len = entry.len() as u32;
            put_le32(&mut entry, 8, len);
            put_le64(&mut entry, 16, number);
            put_le32(&mut entry, 24, 1);
            entry[32..48].copy_from_slice(&id);
            put_le64(&mut entry, 56, 8 << 20);
            put_le64(&mut entry, 64 + 16, bat_at);
            put_le64(&mut entry, 64 + 24, number);
            if is_data {
                entry[64..68].copy_from_slice(b"desc");
                entry[68..72].copy_from_slice(&bat[4092..]);
                entry[72..80].copy_from_slice(&bat[..8]);
                entry[4096..4100].copy_from_slice(b"data");
                entry[4104..8188].copy_from_slice(&bat[8..4092]);
            } else {
                entry[64..68].copy_from_slice(b"zero");
                put_le64(&mut entry, 64 + 8, 4096);
            }
            let sum = checksum(&entry);
            put_le32(&mut entry, 4, sum);
            log.extend(entry);
        }
        file.write(log_at, &log, Operation::Write).unwrap();
        let mut header = vec![0; HEADER_LEN];
        file.read(HEADERS_AT[1], &mut header, Operation::Read).unwrap();
        header[48..64].copy_from_slice(&id);
        let sum = checksum(&header);
        put_le32(&mut header, 4, sum);
        file.write(HEADERS_AT[1], &header, Operation::Write).unwrap();

        let layout = Box::new(parse(&file).unwrap());
        let disk = Mapped { layout, files: vec![file], below: None };
        let mut bytes = vec![0; 4 << 20];
        disk.read(1 << 20, &mut Buffers::from_mut(&mut bytes)).unwrap();
        assert!(bytes[..1 << 20].iter().all(|byte| *byte == 0));
        assert!(bytes[1 << 20..3 << 20].iter().all(|byte| *byte == 0x77));
        // An entry that is damaged does not count.
        let file = HostFile::open_unlocked(&path).unwrap();
        let writer = std::fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_at(&writer, &[1], log_at + 4096 + 5000).unwrap();
        let layout = parse(&file).unwrap();
        assert!(layout.places.iter().all(|place| *place == BlockPlace::Zero));
        std::fs::remove_file(&path).unwrap();
    }
}
