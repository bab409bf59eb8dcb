//! Fuzz targets as plain functions: each reads `data` as a script of what a hostile guest does.

use crate::ahci::{Ahci, DriveConfig, spec};
use crate::{Action, BLOCK, Cdrom, DiskAction, ScsiDisk};
use device::IrqLine;
use device::pci::{PciFunction, reg};
use disk::{Access, Disk, DiskInfo, Raw};
use memory::{Bytes, GuestAddress, Ram};
use std::sync::{Arc, LazyLock};

/// Commands of a CD-ROM drive.
pub fn cdrom(data: &[u8]) {
    let blocks = data.first().map_or(0, |byte| u64::from(*byte) * 997);
    let mut drive = Cdrom::new((blocks > 0).then_some(blocks * BLOCK));
    for bytes in data.chunks_exact(16) {
        let cdb: [u8; 16] = bytes.try_into().expect("16 bytes");
        match drive.command(&cdb) {
            Action::Answer(bytes) => assert!(bytes.len() <= 64 << 10),
            Action::Read { offset, len } => assert!(offset + len <= blocks * BLOCK && len > 0),
            _ => {}
        }
        let mut copy = Cdrom::new(drive.has_disc().then_some(blocks * BLOCK));
        copy.restore(drive.save()).expect("a reachable state can be restored");
        assert_eq!(copy.save(), drive.save());
    }
}

/// Commands of a disk.
pub fn disk(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let info = DiskInfo {
        size: (1 + u64::from(*first)) << 12,
        read_only: first % 4 == 0,
        logical_block_size: 512,
        physical_block_size: 4096,
        discard_granularity: (first % 3 > 0).then_some(65536),
    };
    let unit = ScsiDisk::new("fuzz");
    for bytes in rest.chunks_exact(16) {
        let cdb: [u8; 16] = bytes.try_into().expect("16 bytes");
        let within = |offset: u64, len: u64| assert!(offset + len <= info.size);
        match unit.command(&cdb, &info) {
            DiskAction::Answer(bytes) => assert!(bytes.len() <= 256),
            DiskAction::Read { offset, len } => within(offset, len),
            DiskAction::Write { offset, len, .. } | DiskAction::WriteSame { offset, len, .. } => {
                assert!(!info.read_only);
                within(offset, len);
            }
            _ => {}
        }
    }
    for (offset, len) in unit.unmap_list(rest, &info).unwrap_or_default() {
        assert!(offset + len <= info.size);
    }
}

/// The controller with a disk and a drive: registers, and commands in memory.
pub fn ahci(data: &[u8]) {
    static RAM: LazyLock<Arc<Ram>> = LazyLock::new(|| Arc::new(Ram::new(1 << 20).expect("memory")));
    static DISK: LazyLock<Arc<dyn Disk>> = LazyLock::new(|| {
        let path = std::env::temp_dir().join(format!("arnia-ahci-fuzz-{}", std::process::id()));
        std::fs::write(&path, [0; 1 << 16]).expect("a file");
        let disk = Arc::new(Raw::open(&path, Access::ReadWrite).expect("a disk"));
        let _ = std::fs::remove_file(path);
        disk
    });
    let new = || {
        let disk = DriveConfig::Disk { disk: DISK.clone(), serial: String::new(), limiter: Arc::default() };
        let drives = vec![disk, DriveConfig::Cd(Some(DISK.clone()))];
        Ahci::new(drives, RAM.clone(), IrqLine::unconnected()).expect("a thread")
    };
    let ahci = new();
    ahci.config_write(reg::COMMAND, &6u16.to_le_bytes());
    for port in 0..2 {
        for (register, value) in [(0, 0x1000u32), (8, 0x2000), (0x18, 0x11)] {
            ahci.bar_write(
                spec::BAR,
                spec::PORT_FIRST + port * spec::PORT_SIZE + register,
                &value.to_le_bytes(),
            );
        }
    }
    for step in data.chunks_exact(8) {
        let value = u32::from_le_bytes([step[4], step[5], step[6], step[7]]);
        match step[0] >> 5 {
            // A command whose parts are likely.
            0..=2 => {
                let fis = [0x27, 0x80 | step[1], step[2], step[3], step[4], 0, 0, 0, 0, 0, 0, 0, step[5], 0];
                let header = [u32::from(step[6] & 3) << 16 | 5, 0, 0x3000, 0].map(u32::to_le_bytes).concat();
                let _ = RAM.guest().write_slice(&header, GuestAddress(0x1000));
                let _ = RAM.guest().write_slice(&fis, GuestAddress(0x3000));
                let _ = RAM.guest().write_slice(&step[1..], GuestAddress(0x3040));
                let _ = RAM.guest().write_slice(&[0, 0, step[7], 0], GuestAddress(0x3080));
                ahci.bar_write(spec::BAR, 0x138 + u64::from(step[0] & 1) * 0x80, &1u32.to_le_bytes());
            }
            3 => {
                let _ = RAM.guest().write_slice(&step[4..], GuestAddress(0x3000 + u64::from(step[1])));
            }
            4 => ahci.bar_read(spec::BAR, u64::from(step[1]) * 4, &mut [0; 4]),
            5 => {
                ahci.pause();
                let other = new();
                other.pause();
                other.restore(ahci.save()).expect("a reachable state can be restored");
                ahci.resume();
            }
            _ => ahci.bar_write(spec::BAR, u64::from(step[1]) * 4 % 0x200, &value.to_le_bytes()),
        }
    }
    ahci.reset();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(scripts: usize, target: fn(&[u8])) {
        let mut state = 0x1234_5678_9abc_def1u64;
        for _ in 0..scripts {
            let script: Vec<u8> = (0..400)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    (state >> 24) as u8
                })
                .collect();
            target(&script);
        }
    }

    #[test]
    fn the_drive_withstands_random_commands() {
        run(2000, cdrom);
    }

    #[test]
    fn the_disk_withstands_random_commands() {
        run(2000, super::disk);
    }

    #[test]
    fn the_controller_withstands_random_scripts() {
        run(200, ahci);
    }
}
