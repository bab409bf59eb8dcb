//! Making an image: `identifier, headers, region tables | log | metadata | block table | blocks`, each part at a
//! multiple of 1 MiB.

use super::*;
use crate::bytes::{put_le16, put_le32, put_le64};
use crate::convert::{Builder, new_uuid, write_sparse};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const BLOCK_SIZE: u64 = 2 * MIB;
const LOGICAL: u64 = 512;
const LOG_AT: u64 = MIB;
const METADATA_AT: u64 = 2 * MIB;
const BAT_AT: u64 = 3 * MIB;

pub(crate) struct VhdxBuilder {
    file: HostFile,
    size: u64,
    bat_len: u64,
    next: AtomicU64,
    table: Mutex<Vec<u64>>,
}

impl VhdxBuilder {
    pub(crate) fn new(path: &Path, size: u64) -> Result<VhdxBuilder, Error> {
        if size == 0 || !size.is_multiple_of(LOGICAL) || size > SIZE_MAX {
            return Err(Error::new(ErrorKind::Unsupported, Operation::Create)
                .with_path(path)
                .with_detail("a VHDX disk has a multiple of 512 bytes, up to 64 TiB"));
        }
        let blocks = size.div_ceil(BLOCK_SIZE);
        let entries = blocks + (blocks - 1) / chunk_ratio(BLOCK_SIZE, LOGICAL);
        let bat_len = (entries * 8).next_multiple_of(MIB);
        let table = Mutex::new(vec![0; entries as usize]);
        let next = AtomicU64::new(BAT_AT + bat_len);
        Ok(VhdxBuilder { file: HostFile::create(path)?, size, bat_len, next, table })
    }
}

impl Builder for VhdxBuilder {
    fn unit(&self) -> u64 {
        BLOCK_SIZE
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let count = (bytes.len() as u64).div_ceil(BLOCK_SIZE);
        let at = self.next.fetch_add(count * BLOCK_SIZE, Ordering::Relaxed);
        write_sparse(&self.file, at, bytes)?;
        let ratio = chunk_ratio(BLOCK_SIZE, LOGICAL);
        let mut table = self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for index in 0..count {
            let block = offset / BLOCK_SIZE + index;
            table[(block + block / ratio) as usize] = (at + index * BLOCK_SIZE) | BLOCK_FULLY_PRESENT;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), Error> {
        let operation = Operation::Convert;
        let file = &self.file;
        let table = self.table.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        file.set_len(self.next.into_inner(), operation)?;
        let bat: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        file.write(BAT_AT, &bat, operation)?;
        file.write(METADATA_AT, &metadata(self.size)?, operation)?;
        let regions = region_table(self.bat_len);
        for at in REGIONS_AT {
            file.write(at, &regions, operation)?;
        }
        let ids = [new_uuid(operation)?, new_uuid(operation)?];
        for (sequence, at) in HEADERS_AT.into_iter().enumerate() {
            file.write(at, &header(sequence as u64, &ids), operation)?;
        }
        let mut identifier = FILE_SIGNATURE.to_vec();
        identifier.extend("Arnia".encode_utf16().flat_map(u16::to_le_bytes));
        file.write(0, &identifier, operation)
    }
}

fn header(sequence: u64, ids: &[[u8; 16]; 2]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    bytes[..4].copy_from_slice(HEADER_SIGNATURE);
    put_le64(&mut bytes, 8, sequence);
    bytes[16..32].copy_from_slice(&ids[0]);
    bytes[32..48].copy_from_slice(&ids[1]);
    put_le16(&mut bytes, 66, 1);
    put_le32(&mut bytes, 68, MIB as u32);
    put_le64(&mut bytes, 72, LOG_AT);
    let sum = checksum(&bytes);
    put_le32(&mut bytes, 4, sum);
    bytes
}

fn region_table(bat_len: u64) -> Vec<u8> {
    let mut bytes = vec![0; REGION_TABLE_LEN];
    bytes[..4].copy_from_slice(REGION_SIGNATURE);
    put_le32(&mut bytes, 8, 2);
    for (index, (id, at, len)) in
        [(REGION_BAT, BAT_AT, bat_len), (REGION_METADATA, METADATA_AT, MIB)].into_iter().enumerate()
    {
        let entry = &mut bytes[16 + index * 32..][..32];
        entry[..16].copy_from_slice(&id);
        put_le64(entry, 16, at);
        put_le32(entry, 24, len as u32);
        put_le32(entry, 28, 1);
    }
    let sum = checksum(&bytes);
    put_le32(&mut bytes, 4, sum);
    bytes
}

fn metadata(size: u64) -> Result<Vec<u8>, Error> {
    let id = new_uuid(Operation::Convert)?;
    // Flags (2.6.1.2): 2 "is about the virtual disk", 4 "must be known".
    let items: [([u8; 16], Vec<u8>, u32); 5] = [
        (ITEM_PARAMETERS, (BLOCK_SIZE as u32 as u64).to_le_bytes().to_vec(), 4),
        (ITEM_SIZE, size.to_le_bytes().to_vec(), 6),
        (ITEM_ID, id.to_vec(), 6),
        (ITEM_LOGICAL, (LOGICAL as u32).to_le_bytes().to_vec(), 6),
        (ITEM_PHYSICAL, 4096u32.to_le_bytes().to_vec(), 6),
    ];
    let mut bytes = vec![0; 64 << 10];
    bytes[..8].copy_from_slice(METADATA_SIGNATURE);
    put_le16(&mut bytes, 10, items.len() as u16);
    for (index, (id, value, flags)) in items.iter().enumerate() {
        let at = bytes.len() as u32;
        let entry = &mut bytes[32 + index * 32..][..32];
        entry[..16].copy_from_slice(id);
        put_le32(entry, 16, at);
        put_le32(entry, 20, value.len() as u32);
        put_le32(entry, 24, *flags);
        bytes.extend(value);
    }
    Ok(bytes)
}
