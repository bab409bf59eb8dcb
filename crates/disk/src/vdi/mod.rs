//! VDI, VirtualBox's format: blocks of 1 MiB and a table of where they lie.
//!
//! VirtualBox, `VDICore.h` ("VDIHEADER1PLUS"). Numbers are little-endian.

use crate::bytes::{le32, le64, put_le32, put_le64};
use crate::convert::Builder;
use crate::file::HostFile;
use crate::mapped::{BlockPlace, Blocks};
use crate::{Error, ErrorKind, Operation};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) const SIGNATURE: u32 = 0xbeda_107f;
pub(crate) const SIGNATURE_AT: usize = 0x40;
const VERSION: u32 = 0x0001_0001;
const HEADER_LEN: usize = 512;
const TYPE_DYNAMIC: u32 = 1;
const TYPE_FIXED: u32 = 2;
const BLOCK_SIZE: u64 = 1 << 20;
const UNALLOCATED: u32 = u32::MAX;
const DISCARDED: u32 = u32::MAX - 1;
/// More blocks than this are not held in memory: 64 TiB of disk.
const BLOCKS_MAX: u64 = 1 << 26;

/// Reads the tables of an image.
pub(crate) fn parse(file: &HostFile) -> Result<Blocks, Error> {
    let bad = |why: &str| file.damaged(Operation::Open, why);
    let unsupported = |why: &str| {
        Error::new(ErrorKind::Unsupported, Operation::Open).with_path(file.path()).with_detail(why)
    };
    let mut header = [0; HEADER_LEN];
    file.read(0, &mut header, Operation::Open)?;
    if le32(&header, SIGNATURE_AT) != SIGNATURE {
        return Err(bad("it is not a VDI image"));
    }
    if le32(&header, 0x44) >> 16 != 1 {
        return Err(unsupported("its version of the format is not known"));
    }
    match le32(&header, 0x4c) {
        TYPE_DYNAMIC | TYPE_FIXED => {}
        _ => {
            return Err(unsupported(
                "it is a VirtualBox snapshot and stands on another image; clone it with VirtualBox first",
            ));
        }
    }
    let (map_at, data_at) = (le32(&header, 0x154) as u64, le32(&header, 0x158) as u64);
    let (size, block_size) = (le64(&header, 0x170), le32(&header, 0x178) as u64);
    let (extra, blocks) = (le32(&header, 0x17c) as u64, le32(&header, 0x180) as u64);
    if block_size < 512 || !block_size.is_power_of_two() || extra != 0 {
        return Err(bad("its blocks have an impossible size"));
    }
    if size < 512 || !size.is_multiple_of(512) || size.div_ceil(block_size) > blocks || blocks > BLOCKS_MAX {
        return Err(bad("its disk has an impossible size"));
    }
    if map_at + blocks * 4 > file.len()? {
        return Err(bad("its block map lies beyond the end of the file"));
    }
    let mut map = vec![0; blocks as usize * 4];
    file.read(map_at, &mut map, Operation::Open)?;
    let places = map.chunks_exact(4).map(|entry| match le32(entry, 0) {
        UNALLOCATED | DISCARDED => BlockPlace::Zero,
        index => BlockPlace::At(data_at + index as u64 * block_size),
    });
    Ok(Blocks { size, block_size, places: places.collect() })
}

/// Makes an image.
pub(crate) struct VdiBuilder {
    file: HostFile,
    size: u64,
    data_at: u64,
    next: AtomicU32,
    map: Mutex<Vec<u32>>,
}

impl VdiBuilder {
    pub(crate) fn new(path: &Path, size: u64) -> Result<VdiBuilder, Error> {
        let blocks = size.div_ceil(BLOCK_SIZE);
        if size == 0 || !size.is_multiple_of(512) || blocks > BLOCKS_MAX {
            return Err(Error::new(ErrorKind::Unsupported, Operation::Create)
                .with_path(path)
                .with_detail("a VDI disk has a multiple of 512 bytes, up to 64 TiB"));
        }
        let file = HostFile::create(path)?;
        let data_at = (HEADER_LEN as u64 + blocks * 4).next_multiple_of(BLOCK_SIZE);
        let map = Mutex::new(vec![UNALLOCATED; blocks as usize]);
        Ok(VdiBuilder { file, size, data_at, next: AtomicU32::new(0), map })
    }
}

impl Builder for VdiBuilder {
    fn unit(&self) -> u64 {
        BLOCK_SIZE
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let count = bytes.len().div_ceil(BLOCK_SIZE as usize) as u32;
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        self.file.write(self.data_at + first as u64 * BLOCK_SIZE, bytes, Operation::Convert)?;
        let mut map = self.map.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for index in 0..count {
            map[(offset / BLOCK_SIZE) as usize + index as usize] = first + index;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), Error> {
        let map = self.map.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        let allocated = self.next.into_inner();
        let mut bytes = vec![0; HEADER_LEN];
        let text = b"<<< Oracle VM VirtualBox Disk Image >>>\n";
        bytes[..text.len()].copy_from_slice(text);
        for (at, value) in [
            (SIGNATURE_AT, SIGNATURE),
            (0x44, VERSION),
            // The rest of the header, from here on.
            (0x48, 0x190),
            (0x4c, TYPE_DYNAMIC),
            (0x154, HEADER_LEN as u32),
            (0x158, self.data_at as u32),
            (0x168, 512),
            (0x178, BLOCK_SIZE as u32),
            (0x180, map.len() as u32),
            (0x184, allocated),
        ] {
            put_le32(&mut bytes, at, value);
        }
        put_le64(&mut bytes, 0x170, self.size);
        for at in [0x188, 0x198] {
            bytes[at..at + 16].copy_from_slice(&crate::convert::new_uuid(Operation::Convert)?);
        }
        bytes.extend(map.iter().flat_map(|entry| entry.to_le_bytes()));
        self.file.set_len(self.data_at + allocated as u64 * BLOCK_SIZE, Operation::Convert)?;
        self.file.write(0, &bytes, Operation::Convert)
    }
}
