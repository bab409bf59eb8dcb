//! Making an image of one file: `header | descriptor | directories and tables | grains`, or for streams
//! `header | descriptor | grains, tables | directory | footer`.

use super::sparse::{FLAG_COMPRESSED, FLAG_MARKERS, GD_AT_END, HEADER_LEN};
use super::{SECTOR, SPARSE_MAGIC};
use crate::bytes::{put_le16, put_le32, put_le64};
use crate::convert::{Builder, new_uuid};
use crate::file::HostFile;
use crate::{Error, ErrorKind, Operation};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

const GRAIN: u64 = 64 << 10;
const TABLE_ENTRIES: u64 = 512;
const DESCRIPTOR_AT: u64 = 1;
const DESCRIPTOR_SECTORS: u64 = 20;
/// Grains begin at a multiple of this.
const DATA_ALIGN: u64 = 64 << 10;
const MARKER_END: u32 = 0;
const MARKER_TABLE: u32 = 1;
const MARKER_DIRECTORY: u32 = 2;
const MARKER_FOOTER: u32 = 3;

pub(crate) struct VmdkBuilder {
    file: HostFile,
    name: String,
    sectors: u64,
    is_stream: bool,
    state: Mutex<State>,
}

struct State {
    /// Where each grain lies, as a sector.
    grains: Vec<u32>,
    /// Where the next one goes.
    end: u64,
}

impl VmdkBuilder {
    pub(crate) fn new(path: &Path, name: &Path, size: u64, is_stream: bool) -> Result<VmdkBuilder, Error> {
        if size == 0 || !size.is_multiple_of(SECTOR) || size > 2 << 40 {
            return Err(Error::new(ErrorKind::Unsupported, Operation::Create)
                .with_path(path)
                .with_detail("a VMDK disk has a multiple of 512 bytes, up to 2 TiB"));
        }
        let grains = size.div_ceil(GRAIN);
        let tables = grains.div_ceil(TABLE_ENTRIES);
        let head = (DESCRIPTOR_AT + DESCRIPTOR_SECTORS) * SECTOR;
        // Two directories and two sets of tables, as VMware has them.
        let tables_len = 2 * ((tables * 4).next_multiple_of(SECTOR) + tables * TABLE_ENTRIES * 4);
        let end = if is_stream { head } else { head + tables_len }.next_multiple_of(DATA_ALIGN);
        let name = name.file_name().unwrap_or_default().to_string_lossy().replace('"', "_");
        let state = Mutex::new(State { grains: vec![0; grains as usize], end });
        Ok(VmdkBuilder { file: HostFile::create(path)?, name, sectors: size / SECTOR, is_stream, state })
    }

    fn take(&self, grain: u64, len: u64) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let at = state.end;
        state.end += len.next_multiple_of(SECTOR);
        state.grains[grain as usize] = (at / SECTOR) as u32;
        at
    }

    fn header(&self, directory_at: u64, redundant_at: u64, data_at: u64) -> Vec<u8> {
        let mut header = vec![0; HEADER_LEN];
        header[..4].copy_from_slice(SPARSE_MAGIC);
        // "The test for line ends is valid", and for a plain image "there are redundant tables".
        let (version, flags) = if self.is_stream { (3, 1 | FLAG_COMPRESSED | FLAG_MARKERS) } else { (1, 3) };
        put_le32(&mut header, 4, version);
        put_le32(&mut header, 8, flags);
        put_le64(&mut header, 12, self.sectors);
        put_le64(&mut header, 20, GRAIN / SECTOR);
        put_le64(&mut header, 28, DESCRIPTOR_AT);
        put_le64(&mut header, 36, DESCRIPTOR_SECTORS);
        put_le32(&mut header, 44, TABLE_ENTRIES as u32);
        put_le64(&mut header, 48, redundant_at);
        put_le64(&mut header, 56, directory_at);
        put_le64(&mut header, 64, data_at);
        header[73..77].copy_from_slice(b"\n \r\n");
        put_le16(&mut header, 77, self.is_stream as u16);
        header
    }

    fn descriptor(&self) -> Result<Vec<u8>, Error> {
        let id = new_uuid(Operation::Convert)?;
        let create_type = if self.is_stream { "streamOptimized" } else { "monolithicSparse" };
        let mut text = format!(
            "# Disk DescriptorFile\nversion=1\nCID={:02x}{:02x}{:02x}{:02x}\nparentCID=ffffffff\ncreateType=\"{create_type}\"\n\n\
             # Extent description\nRW {} SPARSE \"{}\"\n\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\n\
             ddb.geometry.cylinders = \"{}\"\nddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\n\
             ddb.adapterType = \"ide\"\n",
            // Not the value that means "no parent".
            id[0] & 0x7f, id[1], id[2], id[3], self.sectors, self.name, (self.sectors / (16 * 63)).min(16383)
        )
        .into_bytes();
        text.resize((DESCRIPTOR_SECTORS * SECTOR) as usize, 0);
        Ok(text)
    }

    fn finish_plain(&self, state: &State) -> Result<(), Error> {
        let tables = (state.grains.len() as u64).div_ceil(TABLE_ENTRIES);
        let directory_len = (tables * 4).next_multiple_of(SECTOR);
        let set_len = directory_len + tables * TABLE_ENTRIES * 4;
        let redundant_at = (DESCRIPTOR_AT + DESCRIPTOR_SECTORS) * SECTOR;
        let mut entries = state.grains.clone();
        entries.resize((tables * TABLE_ENTRIES) as usize, 0);
        let table_bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        for at in [redundant_at, redundant_at + set_len] {
            let first = (at + directory_len) / SECTOR;
            let mut bytes: Vec<u8> = (0..tables)
                .flat_map(|table| ((first + table * TABLE_ENTRIES * 4 / SECTOR) as u32).to_le_bytes())
                .collect();
            bytes.resize(directory_len as usize, 0);
            bytes.extend(&table_bytes);
            self.file.write(at, &bytes, Operation::Convert)?;
        }
        let data_at = (redundant_at + 2 * set_len).next_multiple_of(DATA_ALIGN) / SECTOR;
        // Grains are whole, also the last one.
        self.file.set_len(state.end, Operation::Convert)?;
        let header = self.header((redundant_at + set_len) / SECTOR, redundant_at / SECTOR, data_at);
        self.file.write(0, &header, Operation::Convert)
    }

    fn finish_stream(&self, state: &State) -> Result<(), Error> {
        let mut bytes = Vec::new();
        let mut directory = Vec::new();
        let marker = |sectors: u64, kind: u32| {
            let mut marker = vec![0; SECTOR as usize];
            put_le64(&mut marker, 0, sectors);
            put_le32(&mut marker, 12, kind);
            marker
        };
        for table in state.grains.chunks(TABLE_ENTRIES as usize) {
            if table.iter().all(|grain| *grain == 0) {
                directory.push(0);
                continue;
            }
            bytes.extend(marker(TABLE_ENTRIES * 4 / SECTOR, MARKER_TABLE));
            directory.push(((state.end + bytes.len() as u64) / SECTOR) as u32);
            let mut entries = table.to_vec();
            entries.resize(TABLE_ENTRIES as usize, 0);
            bytes.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
        }
        let directory_len = (directory.len() as u64 * 4).next_multiple_of(SECTOR);
        bytes.extend(marker(directory_len / SECTOR, MARKER_DIRECTORY));
        let directory_at = (state.end + bytes.len() as u64) / SECTOR;
        let mut directory: Vec<u8> = directory.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        directory.resize(directory_len as usize, 0);
        bytes.extend(directory);
        let data_at = DATA_ALIGN / SECTOR;
        bytes.extend(marker(1, MARKER_FOOTER));
        bytes.extend(self.header(directory_at, 0, data_at));
        bytes.extend(marker(0, MARKER_END));
        self.file.write(state.end, &bytes, Operation::Convert)?;
        self.file.write(0, &self.header(GD_AT_END, 0, data_at), Operation::Convert)
    }
}

impl Builder for VmdkBuilder {
    fn unit(&self) -> u64 {
        GRAIN
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        for (index, grain) in bytes.chunks(GRAIN as usize).enumerate() {
            let number = offset / GRAIN + index as u64;
            if !self.is_stream {
                let at = self.take(number, GRAIN);
                self.file.write(at, grain, Operation::Convert)?;
                continue;
            }
            let mut whole = grain.to_vec();
            whole.resize(GRAIN as usize, 0);
            let mut packed = vec![0; 12];
            let mut deflate = flate2::write::ZlibEncoder::new(&mut packed, flate2::Compression::default());
            std::io::Write::write_all(&mut deflate, &whole)
                .and_then(|()| deflate.finish().map(drop))
                .map_err(|error| self.file.failed(Operation::Convert, error))?;
            put_le64(&mut packed, 0, number * (GRAIN / SECTOR));
            let len = packed.len() as u32 - 12;
            put_le32(&mut packed, 8, len);
            packed.resize(packed.len().next_multiple_of(SECTOR as usize), 0);
            let at = self.take(number, packed.len() as u64);
            self.file.write(at, &packed, Operation::Convert)?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), Error> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.write(DESCRIPTOR_AT * SECTOR, &self.descriptor()?, Operation::Convert)?;
        if self.is_stream { self.finish_stream(&state) } else { self.finish_plain(&state) }
    }
}
