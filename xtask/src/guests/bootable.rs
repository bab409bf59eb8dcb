//! A disk that firmware boots: the Debian guest in a partition, with GRUB for BIOS and for UEFI.
//!
//! ```text
//! sector 0     GRUB's first stage, protective partition table
//! 1            GPT
//! 2048         BIOS boot partition: GRUB for BIOS
//! 4096         EFI system partition: GRUB for UEFI, and the menu of both
//! 69632        the root file system
//! ```

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::debian::DebianDisk;
use super::recipe::{Recipe, artifact_name};
use crate::host;

const SECTOR: u64 = 512;
const BIOS_BOOT: u64 = 2048;
const ESP: u64 = 4096;
const ROOT: u64 = 69632;
/// What GPT keeps at the disk's end, rounded up.
const TAIL: u64 = 2048;

/// What GRUB needs to find its menu and boot Linux from it, by BIOS and by UEFI.
const MODULES: [&str; 8] = ["part_gpt", "fat", "ext2", "normal", "linux", "configfile", "echo", "test"];
/// Where Debian's packages have GRUB's pieces.
const GRUB: &str = "/usr/lib/grub";

/// The disk.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BootableDisk {
    /// Hash of the recipe it was made by.
    pub(crate) recipe: String,
    /// The disk. Boot a copy of it.
    pub(crate) disk: PathBuf,
}

/// Builds the disk from the Debian guest's.
pub(crate) fn build(recipe: &Recipe, debian: &DebianDisk, cache: &Path) -> Result<BootableDisk> {
    let of = debian.disk.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let name = artifact_name("bootable", recipe, &[&of]);
    let folder = super::artifact(cache, &name, |folder| {
        println!("writing the disk with boot loaders");
        let disk = folder.join("disk.img");
        partition(&disk, &debian.disk)?;
        bios(recipe, folder, &disk)?;
        uefi(recipe, folder, &disk)
    })?;
    Ok(BootableDisk { recipe: recipe.hash().to_owned(), disk: folder.join("disk.img") })
}

/// Makes the disk with its partitions, the last of which holds the file system.
fn partition(disk: &Path, root: &Path) -> Result<()> {
    let sectors = fs::metadata(root)?.len().div_ceil(SECTOR);
    File::create(disk)?.set_len((ROOT + sectors + TAIL) * SECTOR)?;
    let (bios_len, esp_len) = (ESP - BIOS_BOOT, ROOT - ESP);
    let table = format!(
        "label: gpt\n\
         start={BIOS_BOOT}, size={bios_len}, type=21686148-6449-6E6F-744E-656564454649\n\
         start={ESP}, size={esp_len}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
         start={ROOT}, size={sectors}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n"
    );
    let script = r#"PATH="$PATH:/usr/sbin:/sbin"
        printf '%s' "$1" | sfdisk --quiet "$2"
        dd if="$3" of="$2" bs=1M seek="$4" conv=notrunc,sparse status=none oflag=seek_bytes"#;
    let mut command = host::command(["sh", "-eu", "-c", script, "partition", &table]);
    host::run(command.arg(disk).arg(root).arg((ROOT * SECTOR).to_string()))
}

/// Puts GRUB for BIOS where a BIOS finds it: its first stage into sector 0 and the rest, which it
/// finds by number, into the BIOS boot partition.
fn bios(recipe: &Recipe, folder: &Path, disk: &Path) -> Result<()> {
    /// In the first stage: the first sector of the second (grub-core/boot/i386/pc/boot.S).
    const FIRST_STAGE_SECTOR: usize = 0x5c;
    /// Up to here the first stage may go; partition table and disk signature follow.
    const FIRST_STAGE_LEN: usize = 440;
    /// In the second stage's first sector: sector, count and segment of what follows it
    /// (grub-core/boot/i386/pc/diskboot.S).
    const BLOCK_LIST: usize = 0x1f4;
    const KERNEL_SEGMENT: u16 = 0x820;

    let core = folder.join("core.img");
    make_image(recipe, "i386-pc", &core, &["biosdisk"])?;
    let mut first = fs::read(format!("{GRUB}/i386-pc/boot.img")).context("GRUB's first stage")?;
    ensure!(first.len() == SECTOR as usize, "GRUB's first stage is not one sector long");
    first[FIRST_STAGE_SECTOR..FIRST_STAGE_SECTOR + 8].copy_from_slice(&BIOS_BOOT.to_le_bytes());
    let mut core = fs::read(core)?;
    let sectors = (core.len() as u64).div_ceil(SECTOR);
    ensure!(sectors < ESP - BIOS_BOOT, "GRUB does not fit into the BIOS boot partition");
    let list = &mut core[BLOCK_LIST..BLOCK_LIST + 12];
    list[..8].copy_from_slice(&(BIOS_BOOT + 1).to_le_bytes());
    list[8..10].copy_from_slice(&(sectors as u16 - 1).to_le_bytes());
    list[10..].copy_from_slice(&KERNEL_SEGMENT.to_le_bytes());
    let disk = File::options().write(true).open(disk)?;
    disk.write_all_at(&first[..FIRST_STAGE_LEN], 0)?;
    disk.write_all_at(&core, BIOS_BOOT * SECTOR)?;
    Ok(())
}

/// Fills the EFI system partition: GRUB under the name that firmware looks for, and the menu.
fn uefi(recipe: &Recipe, folder: &Path, disk: &Path) -> Result<()> {
    let grub = folder.join("BOOTX64.EFI");
    make_image(recipe, "x86_64-efi", &grub, &[])?;
    let script = r#"image="$1@@$4"
        mformat -i "$image" -T "$5" -h 64 -s 32 -v ESP ::
        mmd -i "$image" ::/EFI ::/EFI/BOOT ::/grub
        mcopy -i "$image" "$2" ::/EFI/BOOT/BOOTX64.EFI
        mcopy -i "$image" "$3" ::/grub/grub.cfg"#;
    let mut command = host::command(["sh", "-eu", "-c", script, "uefi"]);
    command.arg(disk).arg(grub).arg(recipe.file("grub.cfg"));
    host::run(command.arg((ESP * SECTOR).to_string()).arg((ROOT - ESP).to_string()))
}

fn make_image(recipe: &Recipe, format: &str, to: &Path, modules: &[&str]) -> Result<()> {
    let mut command = host::command(["grub-mkimage", "--prefix", "(hd0,gpt2)/grub", "--format", format]);
    command.arg("--config").arg(recipe.file("early.cfg")).arg("--output").arg(to);
    host::run(command.args(modules).args(MODULES))
}
