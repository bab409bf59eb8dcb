//! VHD: fixed, dynamic and differencing images of Virtual PC, Hyper-V and Azure.
//!
//! Microsoft, "Virtual Hard Disk Image Format Specification", 1.0. Numbers are big-endian.

use crate::bytes::{be32, be64, put_be16, put_be32, put_be64};
use crate::convert::{Builder, write_sparse};
use crate::file::HostFile;
use crate::mapped::{BlockPlace, Blocks, Layout, Place};
use crate::{Error, ErrorKind, Operation};
use std::path::Path;
use std::sync::Mutex;

pub(crate) const FOOTER_COOKIE: &[u8; 8] = b"conectix";
const HEADER_COOKIE: &[u8; 8] = b"cxsparse";
const FOOTER_LEN: u64 = 512;
const HEADER_LEN: u64 = 1024;
const TYPE_FIXED: u32 = 2;
const TYPE_DYNAMIC: u32 = 3;
const TYPE_DIFFERENCING: u32 = 4;
const UNALLOCATED: u32 = u32::MAX;
const BLOCK_SIZE: u64 = 2 << 20;
/// The format's own limit.
const SIZE_MAX: u64 = 2040 << 30;
/// "Platform code": a relative path of Windows, in UTF-16.
const LOCATOR_RELATIVE: u32 = 0x5732_7275;
const NAME_MAX: u32 = 4096;

/// What an image is.
pub(crate) struct Vhd {
    pub(crate) layout: Box<dyn Layout>,
    /// For differencing images: names of the image below, the likeliest first, and its identity.
    pub(crate) below: Option<(Vec<String>, [u8; 16])>,
    pub(crate) kind: &'static str,
}

/// The identity in an image's footer.
pub(crate) fn identity(file: &HostFile) -> Result<[u8; 16], Error> {
    Ok(footer(file)?[68..84].try_into().expect("sixteen bytes"))
}

/// The footer: at the end, or its copy at the beginning of images that grow.
fn footer(file: &HostFile) -> Result<[u8; FOOTER_LEN as usize], Error> {
    let len = file.len()?;
    let is_footer = |bytes: &[u8]| bytes.starts_with(FOOTER_COOKIE) && be32(bytes, 64) == checksum(bytes, 64);
    let mut bytes = [0; FOOTER_LEN as usize];
    for at in [len.saturating_sub(FOOTER_LEN), 0] {
        file.read_padded(at, &mut bytes, Operation::Open)?;
        if is_footer(&bytes) {
            return Ok(bytes);
        }
    }
    Err(file.damaged(Operation::Open, "it is not a VHD image, or its footer is damaged"))
}

/// One's complement of the sum of all bytes but those of the checksum itself.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let all: u32 = bytes.iter().map(|byte| *byte as u32).sum();
    let own: u32 = bytes[at..at + 4].iter().map(|byte| *byte as u32).sum();
    !(all - own)
}

struct Fixed(u64);

impl Layout for Fixed {
    fn size(&self) -> u64 {
        self.0
    }

    fn place(&self, _: &[HostFile], offset: u64, len: u64) -> Result<(Place, u64), Error> {
        Ok((Place::File(0, offset), len))
    }
}

/// Blocks that begin with a bitmap of which sectors are theirs.
struct Differencing(Blocks);

impl Layout for Differencing {
    fn size(&self) -> u64 {
        self.0.size
    }

    fn place(&self, files: &[HostFile], offset: u64, len: u64) -> Result<(Place, u64), Error> {
        let (place, within, len) = self.0.split(offset, len);
        let BlockPlace::At(at) = place else { return Ok((Place::Below, len)) };
        let bitmap_len = bitmap_len(self.0.block_size);
        let (first, last) = (within / 512, (within + len - 1) / 512);
        let mut bits = vec![0; (last / 8 - first / 8 + 1) as usize];
        files[0].read(at + first / 8, &mut bits, Operation::Read)?;
        let is_own = |sector: u64| bits[(sector / 8 - first / 8) as usize] >> (7 - sector % 8) & 1 != 0;
        let alike = (first + 1..=last).take_while(|sector| is_own(*sector) == is_own(first)).count() as u64;
        let len = len.min((first + 1 + alike) * 512 - within);
        match is_own(first) {
            true => Ok((Place::File(0, at + bitmap_len + within), len)),
            false => Ok((Place::Below, len)),
        }
    }
}

fn bitmap_len(block_size: u64) -> u64 {
    (block_size / 512).div_ceil(8).next_multiple_of(512)
}

pub(crate) fn parse(file: &HostFile) -> Result<Vhd, Error> {
    let bad = |why: &str| file.damaged(Operation::Open, why);
    let (footer, file_len) = (footer(file)?, file.len()?);
    let (size, header_at, kind) = (be64(&footer, 48), be64(&footer, 16), be32(&footer, 60));
    if size < 512 || !size.is_multiple_of(512) || size > 64 << 40 {
        return Err(bad("its disk has an impossible size"));
    }
    if kind == TYPE_FIXED {
        if size + FOOTER_LEN > file_len {
            return Err(bad("its disk is larger than its file: it was cut off"));
        }
        return Ok(Vhd { layout: Box::new(Fixed(size)), below: None, kind: "fixed" });
    }
    if !(TYPE_DYNAMIC..=TYPE_DIFFERENCING).contains(&kind) {
        return Err(bad("its kind is not known"));
    }
    let mut header = [0; HEADER_LEN as usize];
    file.read(header_at, &mut header, Operation::Open)?;
    if !header.starts_with(HEADER_COOKIE) || be32(&header, 36) != checksum(&header, 36) {
        return Err(bad("its header is damaged"));
    }
    let (table_at, entries, block_size) =
        (be64(&header, 16), be32(&header, 28) as u64, be32(&header, 32) as u64);
    if !block_size.is_power_of_two() || !(4096..=256 << 20).contains(&block_size) {
        return Err(bad("its blocks have an impossible size"));
    }
    if entries < size.div_ceil(block_size) {
        return Err(bad("its block table is too small for its disk"));
    }
    if table_at.checked_add(entries * 4).is_none_or(|end| end > file_len) {
        return Err(bad("its block table lies beyond the end of the file"));
    }
    let mut table = vec![0; entries as usize * 4];
    file.read(table_at, &mut table, Operation::Open)?;
    let is_differencing = kind == TYPE_DIFFERENCING;
    // What is asked of a block begins behind its bitmap, unless that is needed.
    let skipped = if is_differencing { 0 } else { bitmap_len(block_size) };
    let places = table.chunks_exact(4).map(|entry| match be32(entry, 0) {
        UNALLOCATED => {
            if is_differencing {
                BlockPlace::Below
            } else {
                BlockPlace::Zero
            }
        }
        sector => BlockPlace::At(sector as u64 * 512 + skipped),
    });
    let blocks = Blocks { size, block_size, places: places.collect() };
    if !is_differencing {
        return Ok(Vhd { layout: Box::new(blocks), below: None, kind: "dynamic" });
    }
    let names = below_names(file, &header)?;
    let parent = header[40..56].try_into().expect("sixteen bytes");
    Ok(Vhd { layout: Box::new(Differencing(blocks)), below: Some((names, parent)), kind: "differencing" })
}

/// The names that a differencing image has for the one below, as paths of this host.
fn below_names(file: &HostFile, header: &[u8]) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for locator in header[576..768].chunks_exact(24) {
        let (code, len, at) = (be32(locator, 0), be32(locator, 8), be64(locator, 16));
        if code == LOCATOR_RELATIVE && len <= NAME_MAX {
            let mut bytes = vec![0; len as usize];
            file.read(at, &mut bytes, Operation::Open)?;
            let units = bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
            names.push(windows_path(units));
        }
    }
    let name = header[64..576].chunks_exact(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]]));
    names.push(windows_path(name));
    names.retain(|name| !name.is_empty());
    Ok(names)
}

fn windows_path(units: impl Iterator<Item = u16>) -> String {
    let text: String = char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    let text = text.replace('\\', "/");
    // A path with a drive means a file of another host: here only its name can serve.
    match text.split_once(":/") {
        Some((_, rest)) => rest.rsplit('/').next().unwrap_or_default().to_owned(),
        None => text,
    }
}

/// Makes a dynamic image.
pub(crate) struct VhdBuilder {
    file: HostFile,
    size: u64,
    state: Mutex<BuilderState>,
}

struct BuilderState {
    table: Vec<u32>,
    /// Where the next block goes.
    end: u64,
}

const TABLE_AT: u64 = FOOTER_LEN + HEADER_LEN;

impl VhdBuilder {
    pub(crate) fn new(path: &Path, size: u64) -> Result<VhdBuilder, Error> {
        if size == 0 || !size.is_multiple_of(512) || size > SIZE_MAX {
            return Err(Error::new(ErrorKind::Unsupported, Operation::Create).with_path(path).with_detail(
                "a VHD disk has a multiple of 512 bytes, up to 2040 GiB; take vhdx for larger ones",
            ));
        }
        let blocks = size.div_ceil(BLOCK_SIZE);
        let end = (TABLE_AT + blocks * 4).next_multiple_of(512);
        let state = Mutex::new(BuilderState { table: vec![UNALLOCATED; blocks as usize], end });
        Ok(VhdBuilder { file: HostFile::create(path)?, size, state })
    }
}

impl Builder for VhdBuilder {
    fn unit(&self) -> u64 {
        BLOCK_SIZE
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let bitmap = vec![0xff; bitmap_len(BLOCK_SIZE) as usize];
        for (index, block) in bytes.chunks(BLOCK_SIZE as usize).enumerate() {
            let at = {
                let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                // Data begins at a page of the host, which takes it faster, and so do disks with such sectors.
                let at = (state.end + bitmap.len() as u64).next_multiple_of(4096) - bitmap.len() as u64;
                state.end = at + bitmap.len() as u64 + BLOCK_SIZE;
                state.table[(offset / BLOCK_SIZE) as usize + index] = (at / 512) as u32;
                at
            };
            self.file.write(at, &bitmap, Operation::Convert)?;
            write_sparse(&self.file, at + bitmap.len() as u64, block)?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), Error> {
        let BuilderState { table, end } =
            self.state.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        let footer = make_footer(self.size)?;
        let mut bytes = footer.clone();
        let mut header = vec![0; HEADER_LEN as usize];
        header[..8].copy_from_slice(HEADER_COOKIE);
        put_be64(&mut header, 8, u64::MAX);
        put_be64(&mut header, 16, TABLE_AT);
        put_be32(&mut header, 24, 0x0001_0000);
        put_be32(&mut header, 28, table.len() as u32);
        put_be32(&mut header, 32, BLOCK_SIZE as u32);
        let sum = checksum(&header, 36);
        put_be32(&mut header, 36, sum);
        bytes.extend(header);
        bytes.extend(table.iter().flat_map(|entry| entry.to_be_bytes()));
        bytes.resize(bytes.len().next_multiple_of(512), 0xff);
        self.file.write(0, &bytes, Operation::Convert)?;
        self.file.write(end, &footer, Operation::Convert)
    }
}

fn make_footer(size: u64) -> Result<Vec<u8>, Error> {
    let mut footer = vec![0; FOOTER_LEN as usize];
    footer[..8].copy_from_slice(FOOTER_COOKIE);
    put_be32(&mut footer, 8, 2);
    put_be32(&mut footer, 12, 0x0001_0000);
    put_be64(&mut footer, 16, FOOTER_LEN);
    // "win " and "Wi2k": programs take the size from the size field then, and not from the geometry,
    // which cannot say every size.
    footer[28..32].copy_from_slice(b"win ");
    put_be32(&mut footer, 32, 0x000a_0000);
    footer[36..40].copy_from_slice(b"Wi2k");
    put_be64(&mut footer, 40, size);
    put_be64(&mut footer, 48, size);
    let (cylinders, heads, sectors) = geometry(size / 512);
    put_be16(&mut footer, 56, cylinders);
    (footer[58], footer[59]) = (heads, sectors);
    put_be32(&mut footer, 60, TYPE_DYNAMIC);
    footer[68..84].copy_from_slice(&crate::convert::new_uuid(Operation::Convert)?);
    let sum = checksum(&footer, 64);
    put_be32(&mut footer, 64, sum);
    Ok(footer)
}

/// The specification's appendix "CHS Calculation".
fn geometry(sectors: u64) -> (u16, u8, u8) {
    let sectors = sectors.min(65535 * 16 * 255);
    let (mut per_track, mut heads);
    let mut tracks;
    if sectors > 65535 * 16 * 63 {
        (per_track, heads) = (255, 16);
        tracks = sectors / per_track;
    } else {
        per_track = 17;
        tracks = sectors / per_track;
        heads = tracks.div_ceil(1024).max(4);
        if tracks >= heads * 1024 || heads > 16 {
            (per_track, heads) = (31, 16);
            tracks = sectors / per_track;
        }
        if tracks >= heads * 1024 {
            (per_track, heads) = (63, 16);
            tracks = sectors / per_track;
        }
    }
    ((tracks / heads) as u16, heads as u8, per_track as u8)
}
