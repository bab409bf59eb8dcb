//! Bodies of fuzz targets: hostile images. No input may make a format panic, hang, or take memory without
//! bound.

use crate::file::HostFile;
use crate::qcow2::{Qcow2, Repair};
use crate::{
    Access, Buffers, Disk, Durability, Error, Format, Operation, Unmap, mapped, vdi, vhd, vhdx, vmdk,
};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::path::Path;

/// Reads are taken here and there, not everywhere: a disk may be large.
const READS: u64 = 16;

fn file(bytes: &[u8], access: Access) -> Option<HostFile> {
    let file = File::from(memfd_create("image", MemfdFlags::CLOEXEC).ok()?);
    let file = HostFile::new(file, Path::new("image"), access, false);
    file.write(0, bytes, Operation::Create).ok()?;
    Some(file)
}

fn read(disk: &dyn Disk) {
    let size = disk.info().size;
    let mut bytes = vec![0; 70_000];
    for step in 0..READS {
        let at = size / READS * step;
        let len = bytes.len().min((size - at) as usize);
        let _ = disk.read(at, &mut Buffers::from_mut(&mut bytes[..len]));
        let _ = disk.extent(at, size - at);
    }
}

fn change(disk: &dyn Disk) {
    let size = disk.info().size;
    for step in 0..READS {
        let at = size / READS * step;
        let len = (size - at).min(5000);
        let _ = disk.write(at, &Buffers::from_slice(&[0x5a; 5000][..len as usize]), Durability::AtFlush);
        let _ = disk.discard(at, (size - at).min(300_000));
        let _ = disk.write_zeroes(at, (size - at).min(200_000), Unmap::Allowed, Durability::AtFlush);
    }
    let _ = disk.flush();
}

/// A qcow2 image: opened, read, changed, checked and repaired.
pub fn qcow2(bytes: &[u8]) {
    if let Some(file) = file(bytes, Access::ReadWrite) {
        let _ = Qcow2::check_file(&file, Repair::No);
        // A size in the header may say that the disk is of exbibytes; a table for it cannot be had.
        if let Ok(disk) = Qcow2::open(file, None, None) {
            read(&disk);
            change(&disk);
            read(&disk);
        }
    }
    if let Some(file) = file(bytes, Access::ReadWrite) {
        let _ = Qcow2::check_file(&file, Repair::All);
    }
    if let Some(file) = file(bytes, Access::ReadOnly)
        && let Ok(disk) = Qcow2::open(file, None, Some("1"))
    {
        read(&disk);
    }
}

/// An image of one of the other formats.
pub fn others(bytes: &[u8]) {
    let open = |format: Format| -> Option<mapped::Mapped> {
        let file = file(bytes, Access::ReadOnly)?;
        let (layout, files): (Box<dyn mapped::Layout>, _) = match format {
            Format::Vdi => (Box::new(vdi::parse(&file).ok()?), vec![file]),
            Format::Vhd => (vhd::parse(&file).ok()?.layout, vec![file]),
            Format::Vhdx => (Box::new(vhdx::parse(&file).ok()?), vec![file]),
            Format::Vmdk => {
                let mut none = |_: &str| -> Result<HostFile, Error> {
                    Err(Error::new(crate::ErrorKind::Forbidden, Operation::Open))
                };
                let (vmdk, files, _) = vmdk::parse(file, &mut none).ok()?;
                (Box::new(vmdk), files)
            }
            _ => return None,
        };
        Some(mapped::Mapped { layout, files, below: None })
    };
    for format in [Format::Vdi, Format::Vhd, Format::Vhdx, Format::Vmdk] {
        if let Some(disk) = open(format) {
            read(&disk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::CreateOptions;
    use crate::{TargetOptions, create};

    /// Sound images with bytes changed at places where it hurts: the tables at their beginning.
    fn mutations(image: &[u8], head: usize, seed: u64, mut each: impl FnMut(&[u8])) {
        let mut state = seed;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        for round in 0..400 {
            let mut bytes = image.to_vec();
            for _ in 0..=random(4) {
                let at = random(head.min(bytes.len()));
                bytes[at] = match random(4) {
                    0 => 0,
                    1 => 0xff,
                    2 => bytes[at].wrapping_add(1),
                    _ => random(256) as u8,
                };
            }
            if round % 5 == 0 {
                bytes.truncate(random(image.len()));
            }
            each(&bytes);
        }
    }

    fn image(format: Format) -> Vec<u8> {
        let path = std::env::temp_dir().join(format!("disk-fuzz-{}-{format}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let mut options = TargetOptions::new(format);
        options.qcow2 = CreateOptions { cluster_size: 512, ..CreateOptions::new(0) };
        let source = path.with_extension("raw");
        std::fs::write(&source, (0..200_000u32).map(|i| (i / 300) as u8).collect::<Vec<_>>()).unwrap();
        let raw: std::sync::Arc<dyn Disk> =
            std::sync::Arc::new(crate::Raw::open(&source, Access::ReadOnly).unwrap());
        crate::convert(&raw, &path, &options, &crate::Progress::default()).unwrap();
        assert!(create(&path, 1 << 20, &options).is_err());
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(&source).unwrap();
        bytes
    }

    #[test]
    fn hostile_qcow2_images() {
        let image = image(Format::Qcow2);
        mutations(&image, 110, 1, qcow2);
        mutations(&image, 9000, 2, qcow2);
    }

    #[test]
    fn hostile_images_of_other_formats() {
        // Past checksums nothing gets by chance, so these are mostly of formats without.
        for (format, head) in
            [(Format::Vdi, 520), (Format::Vmdk, 600), (Format::Vhd, 1700), (Format::Vmdk, 20_000)]
        {
            mutations(&image(format), head, head as u64, others);
        }
    }
}
