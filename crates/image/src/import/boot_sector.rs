//! What boots a disk, as its first sectors tell.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use api::image::ImageFirmware;

use crate::Result;
use crate::error::AboutFile;

const SECTOR: u64 = 512;
/// UEFI specification 2.10, table 5.6: the EFI System Partition, as its GUID's bytes lie on the disk.
const ESP: [u8; 16] = guid(0xc12a_7328, 0xf81f, 0x11d2, [0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b]);
/// GRUB manual, "BIOS installation": the partition that holds GRUB on a disk with GPT ("Hah!IdontNeedEFI").
const BIOS_BOOT: [u8; 16] =
    guid(0x2168_6148, 0x6449, 0x6e6f, [0x74, 0x4e, 0x65, 0x65, 0x64, 0x45, 0x46, 0x49]);
/// UEFI specification 2.10, section 5.2.3: the type of the one MBR partition that protects a GPT.
const PROTECTIVE: u8 = 0xee;
/// The same section: an EFI System Partition in an MBR.
const MBR_ESP: u8 = 0xef;

/// The firmware that boots the raw disk in a file: its MBR's code, or its EFI System Partition. A disk with
/// both is booted by UEFI only if its MBR has no code. `None` if it has neither.
pub(super) fn firmware(path: &Path) -> Result<Option<ImageFirmware>> {
    let file = File::open(path).about("open", path)?;
    let mbr = sector(&file, 0).about("read", path)?;
    if mbr[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    let kinds = [0, 1, 2, 3].map(|index| mbr[446 + 16 * index + 4]);
    let has_code = mbr[..440].iter().any(|&byte| byte != 0);
    let (bios, uefi) = if kinds.contains(&PROTECTIVE) {
        let types = gpt_types(&file).about("read", path)?;
        // Code alone is what GRUB's or syslinux's MBR leaves; without a BIOS partition it may be a mere message.
        (has_code && (types.contains(&BIOS_BOOT) || !types.contains(&ESP)), types.contains(&ESP))
    } else {
        (has_code, kinds.contains(&MBR_ESP))
    };
    Ok(match (bios, uefi) {
        (true, _) => Some(ImageFirmware::Bios),
        (false, true) => Some(ImageFirmware::Uefi),
        (false, false) => None,
    })
}

fn sector(file: &File, number: u64) -> io::Result<[u8; SECTOR as usize]> {
    let mut bytes = [0; SECTOR as usize];
    file.read_exact_at(&mut bytes, number * SECTOR)?;
    Ok(bytes)
}

/// The types of the partitions in a GUID partition table (UEFI specification 2.10, section 5.3); none if it
/// cannot be.
fn gpt_types(file: &File) -> io::Result<Vec<[u8; 16]>> {
    let header = sector(file, 1)?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let entries_at = u64::from(word(72)) | u64::from(word(76)) << 32;
    let (count, len) = (word(80), word(84));
    if &header[..8] != b"EFI PART" || !(128..=4096).contains(&len) || count > 1024 {
        return Ok(Vec::new());
    }
    let mut table = vec![0; count as usize * len as usize];
    match entries_at.checked_mul(SECTOR).map(|at| file.read_exact_at(&mut table, at)) {
        Some(Ok(())) => {}
        // It says that it lies behind the disk's end.
        None => return Ok(Vec::new()),
        Some(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Vec::new()),
        Some(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => return Ok(Vec::new()),
        Some(Err(error)) => return Err(error),
    }
    let kind = |entry: &[u8]| <[u8; 16]>::try_from(&entry[..16]).unwrap_or_default();
    Ok(table.chunks_exact(len as usize).map(kind).filter(|kind| *kind != [0; 16]).collect())
}

/// A GUID's bytes on a disk: its first three fields are little-endian.
const fn guid(a: u32, b: u16, c: u16, d: [u8; 8]) -> [u8; 16] {
    let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Folder;

    fn disk(code: bool, kinds: &[u8], gpt: &[[u8; 16]]) -> Vec<u8> {
        let mut bytes = vec![0; 64 * 512];
        bytes[0] = u8::from(code) * 0xeb;
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        for (index, kind) in kinds.iter().enumerate() {
            bytes[446 + 16 * index + 4] = *kind;
        }
        bytes[512..520].copy_from_slice(b"EFI PART");
        bytes[512 + 72] = 2;
        bytes[512 + 80] = 8;
        bytes[512 + 84] = 128;
        for (index, kind) in gpt.iter().enumerate() {
            bytes[1024 + 128 * index..][..16].copy_from_slice(kind);
        }
        bytes
    }

    #[test]
    fn loaders_are_found() {
        let folder = Folder::new("boot-sector");
        let path = folder.0.join("disk");
        let found = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            firmware(&path).unwrap()
        };
        use ImageFirmware::{Bios, Uefi};
        assert_eq!(found(&disk(true, &[0x83], &[])), Some(Bios));
        assert_eq!(found(&disk(false, &[0x83], &[])), None);
        assert_eq!(found(&disk(false, &[MBR_ESP], &[])), Some(Uefi));
        assert_eq!(found(&disk(false, &[PROTECTIVE], &[ESP])), Some(Uefi));
        assert_eq!(found(&disk(true, &[PROTECTIVE], &[ESP])), Some(Uefi));
        assert_eq!(found(&disk(true, &[PROTECTIVE], &[ESP, BIOS_BOOT])), Some(Bios));
        assert_eq!(found(&[0; 1024]), None);
        // Tables that lie.
        for (at, value) in [(72, 0xff), (79, 0xff), (80, 0), (83, 0xff), (84, 1), (87, 0xff)] {
            let mut bytes = disk(false, &[PROTECTIVE], &[ESP]);
            bytes[512 + at] = value;
            assert_eq!(found(&bytes), None, "{at}");
        }
    }
}
