//! Sparse extents: grains, found by a grain directory and grain tables.

use super::{DESCRIPTOR_LEN_MAX, SECTOR, SPARSE_MAGIC};
use crate::bytes::{le16, le32, le64};
use crate::file::HostFile;
use crate::mapped::Place;
use crate::{Buffers, Error, ErrorKind, Operation};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

pub(super) const FLAG_ZERO_GRAIN: u32 = 1 << 2;
pub(super) const FLAG_COMPRESSED: u32 = 1 << 16;
pub(super) const FLAG_MARKERS: u32 = 1 << 17;
pub(super) const HEADER_LEN: usize = 512;
/// "The grain directory is at the end": the footer says where.
pub(super) const GD_AT_END: u64 = u64::MAX;
const COMPRESSION_DEFLATE: u16 = 1;
const TABLE_ENTRIES_MAX: u32 = 4096;
const DIRECTORY_ENTRIES_MAX: u64 = 1 << 22;
/// Grain tables that are kept in memory: 2 KiB each as a rule.
const TABLES_KEPT: usize = 2048;
const GRAIN_MAX: u64 = 1 << 20;

pub(super) struct Sparse {
    capacity: u64,
    grain: u64,
    table_entries: u32,
    flags: u32,
    descriptor_at: u64,
    descriptor_len: u64,
    directory: Vec<u32>,
    tables: Mutex<HashMap<u32, Arc<[u32]>>>,
    /// The grain that was unpacked last: guests and conversions read it in pieces.
    unpacked: Mutex<Option<(u64, Arc<[u8]>)>>,
}

impl Sparse {
    pub(super) fn parse(file: &HostFile) -> Result<Sparse, Error> {
        let bad = |why: &str| file.damaged(Operation::Open, why);
        let unsupported = |why: &str| {
            Error::new(ErrorKind::Unsupported, Operation::Open).with_path(file.path()).with_detail(why)
        };
        let mut header = [0; HEADER_LEN];
        file.read(0, &mut header, Operation::Open)?;
        let file_len = file.len()?;
        if le64(&header, 56) == GD_AT_END {
            // The footer lies before the end-of-stream marker; both have one sector.
            file.read(file_len.saturating_sub(1024), &mut header, Operation::Open)?;
        }
        if !header.starts_with(SPARSE_MAGIC) {
            return Err(bad("it is not a sparse VMDK extent, or it was cut off"));
        }
        if !(1..=3).contains(&le32(&header, 4)) {
            return Err(unsupported("its version of the format is not known"));
        }
        let (flags, compression) = (le32(&header, 8), le16(&header, 77));
        if flags & FLAG_COMPRESSED != 0 && compression != COMPRESSION_DEFLATE {
            return Err(unsupported("it is compressed in an unknown way"));
        }
        let (capacity, grain) = (le64(&header, 12), le64(&header, 20));
        let table_entries = le32(&header, 44);
        if !grain.is_power_of_two() || !(8..=GRAIN_MAX / SECTOR).contains(&grain) {
            return Err(bad("its grains have an impossible size"));
        }
        if table_entries == 0 || table_entries > TABLE_ENTRIES_MAX {
            return Err(bad("its grain tables have an impossible size"));
        }
        if capacity == 0 || capacity > 1 << 50 {
            return Err(bad("its disk has an impossible size"));
        }
        let entries = capacity.div_ceil(grain * table_entries as u64);
        let at = le64(&header, 56).checked_mul(SECTOR);
        let end = at.and_then(|at| at.checked_add(entries * 4));
        if entries > DIRECTORY_ENTRIES_MAX || end.is_none_or(|end| end > file_len) {
            return Err(bad("its grain directory lies beyond the end of the file"));
        }
        let mut directory = vec![0; entries as usize * 4];
        file.read(at.unwrap_or(0), &mut directory, Operation::Open)?;
        Ok(Sparse {
            capacity: capacity * SECTOR,
            grain: grain * SECTOR,
            table_entries,
            flags,
            descriptor_at: le64(&header, 28),
            descriptor_len: le64(&header, 36),
            directory: directory.chunks_exact(4).map(|entry| le32(entry, 0)).collect(),
            tables: Mutex::default(),
            unpacked: Mutex::default(),
        })
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The text that is embedded in an extent that is a whole disk.
    pub(super) fn descriptor(&self, file: &HostFile) -> Result<Option<Vec<u8>>, Error> {
        if self.descriptor_at == 0 {
            return Ok(None);
        }
        let (at, len) =
            (self.descriptor_at.saturating_mul(SECTOR), self.descriptor_len.saturating_mul(SECTOR));
        if len > DESCRIPTOR_LEN_MAX || at.saturating_add(len) > file.len()? {
            return Err(file.damaged(Operation::Open, "its descriptor lies beyond the end of the file"));
        }
        let mut text = vec![0; len as usize];
        file.read(at, &mut text, Operation::Open)?;
        Ok(Some(text))
    }

    fn table(&self, file: &HostFile, sector: u32) -> Result<Arc<[u32]>, Error> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.get(&sector) {
            return Ok(table.clone());
        }
        let mut bytes = vec![0; self.table_entries as usize * 4];
        file.read(sector as u64 * SECTOR, &mut bytes, Operation::Read)?;
        let table: Arc<[u32]> = bytes.chunks_exact(4).map(|entry| le32(entry, 0)).collect();
        if tables.len() >= TABLES_KEPT {
            tables.clear();
        }
        tables.insert(sector, table.clone());
        Ok(table)
    }

    /// The sector where a grain lies; 0 when it is zero.
    fn grain_sector(&self, file: &HostFile, grain: u64) -> Result<u32, Error> {
        let (table, index) = (grain / self.table_entries as u64, grain % self.table_entries as u64);
        let sector = match self.directory.get(table as usize) {
            None | Some(0) => 0,
            Some(sector) => self.table(file, *sector)?[index as usize],
        };
        // A 1 means zero where the format has that.
        Ok(if sector == 1 && self.flags & FLAG_ZERO_GRAIN != 0 { 0 } else { sector })
    }

    pub(super) fn place(&self, file: &HostFile, offset: u64, len: u64) -> Result<(Place, u64), Error> {
        let (grain, within) = (offset / self.grain, offset % self.grain);
        let sector = self.grain_sector(file, grain)?;
        let mut end = self.grain - within;
        if sector == 0 {
            let mut next = grain + 1;
            while end < len && self.grain_sector(file, next)? == 0 {
                (end, next) = (end + self.grain, next + 1);
            }
            return Ok((Place::Zero, end.min(len)));
        }
        match self.flags & FLAG_COMPRESSED {
            0 => Ok((Place::File(0, sector as u64 * SECTOR + within), end.min(len))),
            _ => Ok((Place::Packed, end.min(len))),
        }
    }

    pub(super) fn read_packed(
        &self,
        file: &HostFile,
        offset: u64,
        into: &mut Buffers<'_>,
    ) -> Result<(), Error> {
        let (grain, within) = (offset / self.grain, offset % self.grain);
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = match &*unpacked {
            Some((number, bytes)) if *number == grain => bytes.clone(),
            _ => {
                let bytes: Arc<[u8]> = self.unpack(file, grain)?.into();
                *unpacked = Some((grain, bytes.clone()));
                bytes
            }
        };
        drop(unpacked);
        into.copy_from(0, &bytes[within as usize..][..into.len()]);
        Ok(())
    }

    fn unpack(&self, file: &HostFile, grain: u64) -> Result<Vec<u8>, Error> {
        let at = self.grain_sector(file, grain)? as u64 * SECTOR;
        let damaged = || file.damaged(Operation::Read, format!("the grain at {at:#x} cannot be unpacked"));
        let (packed_at, len) = if self.flags & FLAG_MARKERS != 0 {
            let mut marker = [0; 12];
            file.read(at, &mut marker, Operation::Read)?;
            (at + 12, le32(&marker, 8) as u64)
        } else {
            let mut marker = [0; 4];
            file.read(at, &mut marker, Operation::Read)?;
            (at + 4, le32(&marker, 0) as u64)
        };
        if len == 0 || len > 2 * self.grain {
            return Err(damaged());
        }
        let mut packed = vec![0; len as usize];
        file.read(packed_at, &mut packed, Operation::Read)?;
        let mut bytes = vec![0; self.grain as usize];
        let mut inflate = flate2::Decompress::new(true);
        let result = inflate.decompress(&packed, &mut bytes, flate2::FlushDecompress::Finish);
        // The last grain of a disk may be shorter; what is missing is zero.
        match result {
            Ok(_) if inflate.total_out() > 0 => Ok(bytes),
            _ => Err(damaged()),
        }
    }
}
