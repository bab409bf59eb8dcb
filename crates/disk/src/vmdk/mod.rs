//! VMDK, VMware's format: a text that names extents, which are flat files or sparse ones.
//!
//! VMware, "Virtual Disk Format 5.0". Numbers are little-endian. `sparse.rs` reads sparse extents, plain and
//! stream-optimised; `build.rs` makes them.

mod build;
mod sparse;

pub(crate) use build::VmdkBuilder;

use crate::file::HostFile;
use crate::mapped::{Layout, Place};
use crate::{Buffers, Error, ErrorKind, Operation};
use sparse::Sparse;

pub(crate) const SPARSE_MAGIC: &[u8; 4] = b"KDMV";
pub(crate) const DESCRIPTOR_MAGIC: &[u8] = b"# Disk DescriptorFile";
const DESCRIPTOR_LEN_MAX: u64 = 1 << 20;
const EXTENTS_MAX: usize = 4096;
/// Size of an extent, and of a disk, in bytes: what no host has, and no sum of it overflows.
const SIZE_MAX: u64 = 1 << 60;
const SECTOR: u64 = 512;

/// A part of a disk.
struct Extent {
    /// Where it begins on the disk, and how long it is.
    start: u64,
    len: u64,
    file: usize,
    kind: ExtentKind,
}

enum ExtentKind {
    /// From this byte of its file on.
    Flat(u64),
    Sparse(Sparse),
    Zero,
}

/// A disk made of extents.
pub(crate) struct Vmdk {
    extents: Vec<Extent>,
    size: u64,
}

/// What a descriptor says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Descriptor {
    create_type: String,
    has_parent: bool,
    extents: Vec<ExtentLine>,
}

#[derive(Debug, PartialEq, Eq)]
struct ExtentLine {
    sectors: u64,
    kind: String,
    name: String,
    offset: u64,
}

/// Opens a disk whose first file is open; `open` opens others that it names.
pub(crate) fn parse(
    file: HostFile,
    open: &mut dyn FnMut(&str) -> Result<HostFile, Error>,
) -> Result<(Vmdk, Vec<HostFile>, String), Error> {
    let mut magic = [0; 4];
    file.read(0, &mut magic, Operation::Open)?;
    if magic == *SPARSE_MAGIC {
        let sparse = Sparse::parse(&file)?;
        let descriptor = match sparse.descriptor(&file)? {
            Some(text) => descriptor(&file, &text)?,
            None => Descriptor::default(),
        };
        refuse_parent(&file, &descriptor)?;
        let size = sparse.capacity();
        let extents = vec![Extent { start: 0, len: size, file: 0, kind: ExtentKind::Sparse(sparse) }];
        return Ok((Vmdk { extents, size }, vec![file], descriptor.create_type));
    }
    let len = file.len()?;
    if len > DESCRIPTOR_LEN_MAX {
        return Err(file.damaged(Operation::Open, "it is not a VMDK image"));
    }
    let mut text = vec![0; len as usize];
    file.read(0, &mut text, Operation::Open)?;
    let descriptor = descriptor(&file, &text)?;
    refuse_parent(&file, &descriptor)?;
    let (mut files, mut extents, mut start) = (vec![file], Vec::new(), 0u64);
    for line in descriptor.extents {
        let len = line.sectors.checked_mul(SECTOR).filter(|len| *len <= SIZE_MAX);
        let len = len.ok_or_else(|| files[0].damaged(Operation::Open, "an extent has an impossible size"))?;
        let mut next = |files: &mut Vec<HostFile>| -> Result<usize, Error> {
            files.push(open(&line.name)?);
            Ok(files.len() - 1)
        };
        let (file, kind) = match line.kind.as_str() {
            "FLAT" | "VMFS" => {
                let file = next(&mut files)?;
                let at = line.offset.saturating_mul(SECTOR);
                if at
                    .checked_add(len)
                    .is_none_or(|end| files[file].len().is_ok_and(|file_len| end > file_len))
                {
                    return Err(
                        files[file].damaged(Operation::Open, "it is shorter than its descriptor says")
                    );
                }
                (file, ExtentKind::Flat(at))
            }
            "SPARSE" => {
                let file = next(&mut files)?;
                let sparse = Sparse::parse(&files[file])?;
                if sparse.capacity() < len {
                    return Err(
                        files[file].damaged(Operation::Open, "it is smaller than its descriptor says")
                    );
                }
                (file, ExtentKind::Sparse(sparse))
            }
            "ZERO" => (0, ExtentKind::Zero),
            other => {
                return Err(Error::new(ErrorKind::Unsupported, Operation::Open)
                    .with_path(files[0].path())
                    .with_detail(format!("it has an extent of kind {other}, which is not supported")));
            }
        };
        extents.push(Extent { start, len, file, kind });
        start = start.checked_add(len).filter(|end| *end <= SIZE_MAX).ok_or_else(|| {
            files[0].damaged(Operation::Open, "its extents are larger together than a disk can be")
        })?;
    }
    if start == 0 {
        return Err(files[0].damaged(Operation::Open, "it has no extents"));
    }
    Ok((Vmdk { extents, size: start }, files, descriptor.create_type))
}

fn refuse_parent(file: &HostFile, descriptor: &Descriptor) -> Result<(), Error> {
    match descriptor.has_parent {
        false => Ok(()),
        true => Err(Error::new(ErrorKind::Unsupported, Operation::Open).with_path(file.path()).with_detail(
            "it is a VMware snapshot and stands on another image; consolidate it with VMware first",
        )),
    }
}

fn descriptor(file: &HostFile, text: &[u8]) -> Result<Descriptor, Error> {
    let bad = |why: &str| file.damaged(Operation::Open, why);
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let text = std::str::from_utf8(&text[..end]).map_err(|_| bad("its descriptor is no text"))?;
    if !text.trim_start().starts_with("# Disk DescriptorFile") {
        return Err(bad("it is not a VMDK image"));
    }
    let mut descriptor = Descriptor::default();
    for line in text.lines().map(str::trim) {
        if let Some((name, value)) = line.split_once('=').filter(|(name, _)| !name.contains(' ')) {
            let value = value.trim().trim_matches('"');
            match name.trim() {
                "createType" => value.clone_into(&mut descriptor.create_type),
                "parentCID" => descriptor.has_parent = !value.eq_ignore_ascii_case("ffffffff"),
                _ => {}
            }
        } else if line.starts_with("RW ") || line.starts_with("RDONLY ") {
            if descriptor.extents.len() == EXTENTS_MAX {
                return Err(bad("it has too many extents"));
            }
            descriptor.extents.push(extent_line(line).ok_or_else(|| bad("an extent cannot be understood"))?);
        }
    }
    Ok(descriptor)
}

/// `RW 4192256 SPARSE "name.vmdk"` or `RW 1048576 FLAT "name-flat.vmdk" 0`.
fn extent_line(line: &str) -> Option<ExtentLine> {
    let mut words = line.splitn(4, ' ').skip(1);
    let (sectors, kind) = (words.next()?.parse().ok()?, words.next()?.to_owned());
    let rest = words.next().unwrap_or_default().trim();
    if kind == "ZERO" {
        return Some(ExtentLine { sectors, kind, name: String::new(), offset: 0 });
    }
    let (name, rest) = rest.strip_prefix('"')?.split_once('"')?;
    let offset = match rest.trim() {
        "" => 0,
        number => number.parse().ok()?,
    };
    Some(ExtentLine { sectors, kind, name: name.to_owned(), offset })
}

impl Vmdk {
    fn extent(&self, offset: u64) -> (&Extent, u64) {
        let index = self.extents.partition_point(|extent| extent.start + extent.len <= offset);
        let extent = &self.extents[index];
        (extent, offset - extent.start)
    }
}

impl Layout for Vmdk {
    fn size(&self) -> u64 {
        self.size
    }

    fn place(&self, files: &[HostFile], offset: u64, len: u64) -> Result<(Place, u64), Error> {
        let (extent, within) = self.extent(offset);
        let len = len.min(extent.len - within);
        match &extent.kind {
            ExtentKind::Flat(at) => Ok((Place::File(extent.file, at + within), len)),
            ExtentKind::Zero => Ok((Place::Zero, len)),
            ExtentKind::Sparse(sparse) => {
                let (place, len) = sparse.place(&files[extent.file], within, len)?;
                let place = match place {
                    Place::File(_, at) => Place::File(extent.file, at),
                    place => place,
                };
                Ok((place, len))
            }
        }
    }

    fn read_packed(&self, files: &[HostFile], offset: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        let (extent, within) = self.extent(offset);
        match &extent.kind {
            ExtentKind::Sparse(sparse) => sparse.read_packed(&files[extent.file], within, into),
            _ => Err(files[extent.file].damaged(Operation::Read, "it has no compressed parts")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Access;
    use crate::bytes::{put_le32, put_le64};
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::path::Path;

    /// What becomes of a file with these bytes; it may name no others.
    fn size_of(bytes: &[u8]) -> Result<u64, Error> {
        let file = std::fs::File::from(memfd_create("vmdk", MemfdFlags::CLOEXEC).unwrap());
        let file = HostFile::new(file, Path::new("a.vmdk"), Access::ReadOnly, false);
        file.write(0, bytes, Operation::Create).unwrap();
        let mut none = |_: &str| Err(Error::new(ErrorKind::Forbidden, Operation::Open));
        parse(file, &mut none).map(|(vmdk, ..)| vmdk.size())
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        let header = |grain: u64| {
            let mut header = vec![0; 4096];
            header[..4].copy_from_slice(SPARSE_MAGIC);
            put_le32(&mut header, 4, 1);
            put_le64(&mut header, 12, 2048);
            put_le64(&mut header, 20, grain);
            put_le32(&mut header, 44, 512);
            put_le64(&mut header, 56, 2);
            header
        };
        assert_eq!(size_of(&header(128)).unwrap(), 1 << 20);
        for grain in [0, 4, 100, 4096, 1 << 54, 1 << 55, 1 << 63] {
            assert_eq!(size_of(&header(grain)).unwrap_err().kind(), ErrorKind::BadFormat, "{grain}");
        }
        let zero = |sectors: u64, times: usize| {
            format!("# Disk DescriptorFile\n{}", format!("RW {sectors} ZERO\n").repeat(times))
        };
        assert_eq!(size_of(zero(1 << 50, 2).as_bytes()).unwrap(), 1 << 60);
        // 16 times 2^60 bytes are 2^64.
        for (sectors, times) in
            [(1 << 51, 2), (1 << 51, 16), (1 << 51, 17), (1 << 51, 4000), (1 << 60, 1), (u64::MAX, 1)]
        {
            let error = size_of(zero(sectors, times).as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadFormat, "{sectors} {times}: {error}");
        }
    }

    #[test]
    fn extents_are_read_as_vmware_writes_them() {
        let line = |sectors, kind: &str, name: &str, offset| {
            Some(ExtentLine { sectors, kind: kind.into(), name: name.into(), offset })
        };
        for (text, expected) in [
            ("RW 63 FLAT \"a b-flat.vmdk\" 0", line(63, "FLAT", "a b-flat.vmdk", 0)),
            ("RW 4192256 SPARSE \"a.vmdk\"", line(4192256, "SPARSE", "a.vmdk", 0)),
            ("RDONLY 10 ZERO", line(10, "ZERO", "", 0)),
            ("RW x FLAT \"a\" 0", None),
            ("RW 1 FLAT a 0", None),
            ("RW 1 FLAT \"a\" -1", None),
        ] {
            assert_eq!(extent_line(text), expected, "{text}");
        }
    }
}
