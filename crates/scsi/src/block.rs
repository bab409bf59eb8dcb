//! A disk by its commands (SBC-3, SPC-4).

use crate::Sense;
use disk::{DiskInfo, SECTOR_SIZE};

/// What a command asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskAction {
    /// Nothing more: it is done.
    Done,
    /// These bytes are the answer.
    Answer(Vec<u8>),
    /// The answer is these bytes of the disk.
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// The data of the command go to these bytes of the disk.
    Write {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Whether they are safe when the command is done (FUA).
        forced: bool,
    },
    /// What was written becomes safe.
    Flush,
    /// The data of the command, so many bytes at most, say what is not needed any more: see [`ScsiDisk::unmap_list`].
    Unmap {
        /// Length of the list in bytes.
        list: u64,
    },
    /// Each block of these bytes of the disk gets the content of the one block of data.
    WriteSame {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Whether storage may be freed where that content is zero.
        unmap: bool,
        /// Whether there is no data, and the content is zero.
        zero: bool,
    },
    /// The command failed.
    Check(Sense),
}

/// A disk as a logical unit: it has no state but what it answers.
#[derive(Clone, Debug)]
pub struct ScsiDisk {
    serial: String,
}

/// The block of a guest, in bytes.
const BLOCK: u64 = SECTOR_SIZE;
/// Blocks of one UNMAP descriptor or WRITE SAME.
const UNMAP_BLOCKS_MAX: u32 = 1 << 22;
/// Descriptors of one UNMAP.
const UNMAP_DESCRIPTORS_MAX: u32 = 255;
/// Longest serial number that is told.
const SERIAL_MAX: usize = 36;

impl ScsiDisk {
    /// A disk with this serial number; without one it has none.
    pub fn new(serial: &str) -> ScsiDisk {
        let printable = serial.chars().filter(char::is_ascii_graphic);
        ScsiDisk { serial: printable.take(SERIAL_MAX).collect() }
    }

    /// Finds out what a command asks for. Ranges are within the disk, and nothing is written to one that is only
    /// read.
    pub fn command(&self, cdb: &[u8; 16], info: &DiskInfo) -> DiskAction {
        self.try_command(cdb, info).unwrap_or_else(DiskAction::Check)
    }

    fn try_command(&self, cdb: &[u8; 16], info: &DiskInfo) -> Result<DiskAction, Sense> {
        let word = |at: usize| u16::from_be_bytes([cdb[at], cdb[at + 1]]);
        let dword = |at: usize| u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]]);
        let qword = |at: usize| u64::from(dword(at)) << 32 | u64::from(dword(at + 4));
        let answer = |mut bytes: Vec<u8>, allocated: usize| {
            bytes.truncate(allocated);
            Ok(DiskAction::Answer(bytes))
        };
        let forced = cdb[1] & 8 != 0;
        let read = |first: u64, count: u64| {
            let (offset, len) = range(info, first, count)?;
            Ok(if len == 0 { DiskAction::Done } else { DiskAction::Read { offset, len } })
        };
        let write = |first: u64, count: u64, forced: bool| {
            let (offset, len) = writable(info, first, count)?;
            Ok(if len == 0 { DiskAction::Done } else { DiskAction::Write { offset, len, forced } })
        };
        // READ (6) and WRITE (6): 21 bits, and 0 stands for 256.
        let short = (u64::from(dword(0) & 0x1f_ffff), if cdb[4] == 0 { 256 } else { u64::from(cdb[4]) });
        match cdb[0] {
            // TEST UNIT READY, START STOP UNIT, VERIFY (10) and (16) without data
            0x00 | 0x1b => Ok(DiskAction::Done),
            0x2f if cdb[1] & 6 == 0 => range(info, dword(2).into(), word(7).into()).map(|_| DiskAction::Done),
            0x8f if cdb[1] & 6 == 0 => range(info, qword(2), dword(10).into()).map(|_| DiskAction::Done),
            // REQUEST SENSE: failures are told with the command that failed.
            0x03 => answer(Sense::NONE.fixed().to_vec(), cdb[4].into()),
            // INQUIRY
            0x12 if cdb[1] & 1 == 0 && cdb[2] == 0 => answer(inquiry(), word(3).into()),
            0x12 if cdb[1] & 1 != 0 => answer(self.vital_data(cdb[2], info)?, word(3).into()),
            // MODE SENSE (6) and (10)
            0x1a => {
                let pages = mode_pages(cdb[2] & 0x3f)?;
                answer([&[pages.len() as u8 + 3, 0, access(info), 0][..], &pages].concat(), cdb[4].into())
            }
            0x5a => {
                let pages = mode_pages(cdb[2] & 0x3f)?;
                let head = [0, pages.len() as u8 + 6, 0, access(info), 0, 0, 0, 0];
                answer([&head[..], &pages].concat(), word(7).into())
            }
            // READ CAPACITY (10), and (16) as a service action
            0x25 => {
                let last = last_block(info).min(u32::MAX.into()) as u32;
                answer([last.to_be_bytes(), (BLOCK as u32).to_be_bytes()].concat(), 8)
            }
            0x9e if cdb[1] & 0x1f == 0x10 => answer(capacity(info), dword(10) as usize),
            0x08 => read(short.0, short.1),
            0x28 => read(dword(2).into(), word(7).into()),
            0xa8 => read(dword(2).into(), dword(6).into()),
            0x88 => read(qword(2), dword(10).into()),
            0x0a => write(short.0, short.1, false),
            0x2a => write(dword(2).into(), word(7).into(), forced),
            0xaa => write(dword(2).into(), dword(6).into(), forced),
            0x8a => write(qword(2), dword(10).into(), forced),
            // SYNCHRONIZE CACHE (10) and (16): all of it, whatever is asked for.
            0x35 | 0x91 => Ok(DiskAction::Flush),
            // UNMAP
            0x42 => {
                writable(info, 0, 0)?;
                Ok(DiskAction::Unmap { list: word(7).into() })
            }
            // WRITE SAME (10) and (16)
            0x41 => same(info, dword(2).into(), word(7).into(), cdb[1] & 8 != 0, false),
            0x93 => same(info, qword(2), dword(10).into(), cdb[1] & 8 != 0, cdb[1] & 1 != 0),
            0x12 | 0x2f | 0x8f | 0x9e => Err(Sense::BAD_FIELD),
            _ => Err(Sense::UNKNOWN_COMMAND),
        }
    }

    /// The ranges of an UNMAP command's list (SBC-3, §5.28), in bytes.
    ///
    /// # Errors
    /// When one is not on the disk, or the list is too long.
    pub fn unmap_list(&self, list: &[u8], info: &DiskInfo) -> Result<Vec<(u64, u64)>, Sense> {
        let Some(told) = list.get(2..4) else { return Ok(Vec::new()) };
        let len = usize::from(u16::from_be_bytes([told[0], told[1]]));
        let descriptors = list.get(8..).unwrap_or_default();
        let descriptors = &descriptors[..len.min(descriptors.len())];
        if descriptors.len() / 16 > UNMAP_DESCRIPTORS_MAX as usize {
            return Err(Sense::BAD_PARAMETER);
        }
        let ranges = descriptors.chunks_exact(16).map(|bytes| {
            let number = |at: usize, len: usize| {
                bytes[at..at + len].iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
            };
            let (first, count) = (number(0, 8), number(8, 4));
            if count > UNMAP_BLOCKS_MAX.into() {
                return Err(Sense::BAD_PARAMETER);
            }
            writable(info, first, count)
        });
        ranges.collect()
    }

    /// Vital product data (SPC-4, §7.8; SBC-3, §6.6).
    fn vital_data(&self, page: u8, info: &DiskInfo) -> Result<Vec<u8>, Sense> {
        let mut data = Vec::new();
        match page {
            0x00 => data.extend([0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2]),
            0x80 if !self.serial.is_empty() => data.extend(self.serial.as_bytes()),
            // A name by vendor, in ASCII: T10 vendor ID based.
            0x83 if !self.serial.is_empty() => {
                data.extend([2, 1, 0, 8 + self.serial.len() as u8]);
                data.extend(b"ARNIA   ");
                data.extend(self.serial.as_bytes());
            }
            0x80 | 0x83 => {}
            // Limits.
            0xb0 => {
                data = vec![0; 60];
                let granularity = info.discard_granularity.unwrap_or(0) / BLOCK as u32;
                let mut put = |at: usize, value: u32| data[at - 4..at].copy_from_slice(&value.to_be_bytes());
                if !info.read_only {
                    put(20, UNMAP_BLOCKS_MAX);
                    put(24, UNMAP_DESCRIPTORS_MAX);
                    put(28, granularity);
                    put(40, UNMAP_BLOCKS_MAX);
                }
            }
            // It does not turn: the medium is not a disc.
            0xb1 => {
                data = vec![0; 60];
                data[1] = 1;
            }
            // Thin provisioning: UNMAP, and WRITE SAME that unmaps; what is unmapped may read as anything.
            0xb2 => {
                let can = !info.read_only && info.discard_granularity.is_some();
                data.extend([0, if can { 0xe0 } else { 0 }, if can { 2 } else { 0 }, 0]);
            }
            _ => return Err(Sense::BAD_FIELD),
        }
        let len = (data.len() as u16).to_be_bytes();
        Ok([&[0, page][..], &len, &data].concat())
    }
}

/// A range of blocks in bytes, if it is on the disk.
fn range(info: &DiskInfo, first: u64, count: u64) -> Result<(u64, u64), Sense> {
    let end = first.checked_add(count).filter(|end| *end <= info.size / BLOCK);
    end.map(|_| (first * BLOCK, count * BLOCK)).ok_or(Sense::OUT_OF_RANGE)
}

fn writable(info: &DiskInfo, first: u64, count: u64) -> Result<(u64, u64), Sense> {
    if info.read_only {
        return Err(Sense::WRITE_PROTECTED);
    }
    range(info, first, count)
}

fn same(info: &DiskInfo, first: u64, count: u64, unmap: bool, zero: bool) -> Result<DiskAction, Sense> {
    // 0 stands for all that follows (SBC-3, §5.46), as long as that is not too much.
    let count = if count == 0 { (info.size / BLOCK).saturating_sub(first) } else { count };
    if count > UNMAP_BLOCKS_MAX.into() {
        return Err(Sense::BAD_FIELD);
    }
    let (offset, len) = writable(info, first, count)?;
    Ok(DiskAction::WriteSame { offset, len, unmap, zero })
}

/// Standard INQUIRY data (SPC-4, §6.6.2).
fn inquiry() -> Vec<u8> {
    let mut bytes = vec![0; 36];
    // A disk; SPC-3; data in the form of today; commands may be queued.
    (bytes[2], bytes[3], bytes[4], bytes[7]) = (5, 2, 31, 2);
    bytes[8..16].copy_from_slice(b"ARNIA   ");
    bytes[16..32].copy_from_slice(b"DISK            ");
    bytes[32..36].copy_from_slice(b"1.0 ");
    bytes
}

/// The device-specific byte of a mode header: write protection, and that FUA is known.
fn access(info: &DiskInfo) -> u8 {
    if info.read_only { 0x90 } else { 0x10 }
}

/// Mode pages (SPC-4, §7.5): caching, with a write-back cache; control.
fn mode_pages(page: u8) -> Result<Vec<u8>, Sense> {
    const CACHING: [u8; 20] = [8, 18, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const CONTROL: [u8; 12] = [10, 10, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
    match page {
        8 => Ok(CACHING.to_vec()),
        10 => Ok(CONTROL.to_vec()),
        0x3f => Ok([&CACHING[..], &CONTROL].concat()),
        _ => Err(Sense::BAD_FIELD),
    }
}

/// The number of the last block; of a disk without a whole one, the first: reading it fails.
fn last_block(info: &DiskInfo) -> u64 {
    (info.size / BLOCK).saturating_sub(1)
}

/// READ CAPACITY (16) (SBC-3, §5.16).
fn capacity(info: &DiskInfo) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[..8].copy_from_slice(&last_block(info).to_be_bytes());
    bytes[8..12].copy_from_slice(&(BLOCK as u32).to_be_bytes());
    bytes[13] = (u64::from(info.physical_block_size) / BLOCK).max(1).ilog2() as u8;
    if !info.read_only && info.discard_granularity.is_some() {
        bytes[14] = 0x80;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(read_only: bool) -> DiskInfo {
        DiskInfo {
            size: 1 << 20,
            read_only,
            logical_block_size: 512,
            physical_block_size: 4096,
            discard_granularity: Some(65536),
        }
    }

    fn run(bytes: &[u8], read_only: bool) -> DiskAction {
        let mut cdb = [0; 16];
        cdb[..bytes.len()].copy_from_slice(bytes);
        ScsiDisk::new("abc 1").command(&cdb, &info(read_only))
    }

    #[test]
    fn data_are_where_the_command_says_and_nowhere_else() {
        use DiskAction::*;
        let check = |sense| Check(sense);
        for (cdb, expected) in [
            (&[0x08, 0, 1, 2, 0][..], Read { offset: 258 * 512, len: 256 * 512 }),
            (&[0x28, 0, 0, 0, 7, 255, 0, 0, 1], Read { offset: 2047 * 512, len: 512 }),
            (&[0x28, 0, 0, 0, 7, 255, 0, 0, 2], check(Sense::OUT_OF_RANGE)),
            (&[0xa8, 0, 255, 255, 255, 255, 255, 255, 255, 255], check(Sense::OUT_OF_RANGE)),
            (&[0x88, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 1], check(Sense::OUT_OF_RANGE)),
            (&[0x2a, 8, 0, 0, 0, 4, 0, 0, 3], Write { offset: 2048, len: 1536, forced: true }),
            (
                &[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 3],
                Write { offset: 2048, len: 1536, forced: false },
            ),
            (&[0x28, 0, 0, 0, 0, 0, 0, 0, 0], Done),
            (&[0x35], Flush),
            (&[0x42, 0, 0, 0, 0, 0, 0, 0, 24], Unmap { list: 24 }),
            (
                &[0x93, 9, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0],
                WriteSame { offset: 4096, len: (1 << 20) - 4096, unmap: true, zero: true },
            ),
            (&[0xff], check(Sense::UNKNOWN_COMMAND)),
        ] {
            assert_eq!(run(cdb, false), expected, "{cdb:x?}");
        }
        for cdb in [&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1][..], &[0x42], &[0x41, 0, 0, 0, 0, 0, 0, 0, 1]] {
            assert_eq!(run(cdb, true), check(Sense::WRITE_PROTECTED), "{cdb:x?}");
        }
    }

    #[test]
    fn it_says_what_it_is() {
        let DiskAction::Answer(capacity) = run(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32], false)
        else {
            panic!("no capacity")
        };
        assert_eq!((&capacity[..8], capacity[13], capacity[14]), (&[0, 0, 0, 0, 0, 0, 7, 255][..], 3, 0x80));
        let DiskAction::Answer(serial) = run(&[0x12, 1, 0x80, 0, 255], false) else { panic!("no serial") };
        assert_eq!(serial, [&[0, 0x80, 0, 4][..], b"abc1"].concat());
        // No more than was asked for.
        assert_eq!(run(&[0x12, 0, 0, 0, 5], false), DiskAction::Answer(vec![0, 0, 5, 2, 31]));
        assert_eq!(run(&[0x12, 1, 0x99, 0, 255], false), DiskAction::Check(Sense::BAD_FIELD));
    }

    #[test]
    fn a_disk_without_a_whole_block_has_nothing_to_read() {
        let small = DiskInfo { size: 511, ..info(false) };
        let run = |cdb: &[u8]| {
            let mut whole = [0; 16];
            whole[..cdb.len()].copy_from_slice(cdb);
            ScsiDisk::new("").command(&whole, &small)
        };
        assert_eq!(run(&[0x25]), DiskAction::Answer(vec![0, 0, 0, 0, 0, 0, 2, 0]));
        assert!(matches!(run(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32]), DiskAction::Answer(_)));
        assert_eq!(run(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1]), DiskAction::Check(Sense::OUT_OF_RANGE));
    }

    #[test]
    fn lists_of_what_is_not_needed_are_checked() {
        let (disk, info) = (ScsiDisk::new(""), info(false));
        let list = |descriptors: &[(u64, u32)]| {
            let mut bytes = vec![0; 8];
            bytes[2..4].copy_from_slice(&(descriptors.len() as u16 * 16).to_be_bytes());
            for (first, count) in descriptors {
                bytes.extend([&first.to_be_bytes()[..], &count.to_be_bytes(), &[0; 4]].concat());
            }
            bytes
        };
        assert_eq!(
            disk.unmap_list(&list(&[(8, 16), (2047, 1)]), &info),
            Ok(vec![(4096, 8192), (2047 * 512, 512)])
        );
        assert_eq!(disk.unmap_list(&list(&[(8, 16), (2047, 2)]), &info), Err(Sense::OUT_OF_RANGE));
        assert_eq!(disk.unmap_list(&list(&[(u64::MAX, 2)]), &info), Err(Sense::OUT_OF_RANGE));
        assert_eq!(disk.unmap_list(&list(&[(0, u32::MAX)]), &info), Err(Sense::BAD_PARAMETER));
        assert_eq!(disk.unmap_list(&list(&vec![(0, 1); 300]), &info), Err(Sense::BAD_PARAMETER));
        for len in 0..32 {
            let _ = disk.unmap_list(&list(&[(0, 1), (8, 1)])[..len], &info);
        }
    }
}
