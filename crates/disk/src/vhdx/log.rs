//! The log ([MS-VHDX] 2.3): changes of tables that were not yet made when the writer ended.

use super::{MIB, crc32c};
use crate::bytes::{le32, le64};
use crate::file::HostFile;
use crate::{Error, Operation};
use std::collections::{BTreeMap, HashSet};

const SECTOR: usize = 4096;
const ENTRY_SIGNATURE: &[u8; 4] = b"loge";
const DESCRIPTOR_ZERO: &[u8; 4] = b"zero";
const DESCRIPTOR_DATA: &[u8; 4] = b"desc";
const DATA_SIGNATURE: &[u8; 4] = b"data";
/// More zeroes than this are no change of a table.
const ZEROES_MAX: u64 = 256 << 20;

/// Sectors of 4 KiB as they are after the log was replayed; the file itself stays as it is.
#[derive(Default)]
pub(super) struct Patches {
    sectors: BTreeMap<u64, Box<[u8; SECTOR]>>,
    zeroes: Vec<(u64, u64)>,
    end: u64,
}

impl Patches {
    /// Finds the newest complete sequence of entries and replays it (2.3.3).
    pub(super) fn read(file: &HostFile, id: [u8; 16], at: u64, len: u64) -> Result<Patches, Error> {
        let mut log = vec![0; len as usize];
        file.read(at, &mut log, Operation::Open)?;
        let entries = entries(&log, &id);
        let mut best: Option<Vec<usize>> = None;
        let mut best_sequence = 0;
        for sequence in sequences(&log, &entries) {
            let Some(last) = sequence.last() else { continue };
            let number = entries[last].number;
            // The last entry says where the sequence must begin.
            let first = sequence.iter().position(|at| *at == entries[last].tail);
            if let Some(first) = first.filter(|_| number > best_sequence) {
                best_sequence = number;
                best = Some(sequence[first..].to_vec());
            }
        }
        let Some(sequence) = best else {
            return Err(file.damaged(Operation::Open, "its log has no complete entry"));
        };
        let mut patches = Patches::default();
        for at in sequence {
            let bytes = ring(&log, at, entries[&at].len).concat();
            patches.apply(&bytes).ok_or_else(|| file.damaged(Operation::Open, "its log is damaged"))?;
        }
        if patches.end > file.len()? + (1 << 40) {
            return Err(file.damaged(Operation::Open, "its log reaches far beyond the end of the file"));
        }
        Ok(patches)
    }

    /// Where the file ends at least, after the replay.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    fn apply(&mut self, entry: &[u8]) -> Option<()> {
        let count = le32(entry, 24) as usize;
        self.end = self.end.max(le64(entry, 56));
        let mut data_at = (64 + count * 32).next_multiple_of(SECTOR);
        for index in 0..count {
            let descriptor = entry.get(64 + index * 32..96 + index * 32)?;
            let at = le64(descriptor, 16);
            if !at.is_multiple_of(SECTOR as u64) || !(MIB..=1 << 62).contains(&at) {
                return None;
            }
            if descriptor.starts_with(DESCRIPTOR_ZERO) {
                let len = le64(descriptor, 8);
                if len > ZEROES_MAX || !len.is_multiple_of(SECTOR as u64) {
                    return None;
                }
                let inside: Vec<u64> = self.sectors.range(at..at + len).map(|(at, _)| *at).collect();
                inside.iter().for_each(|at| drop(self.sectors.remove(at)));
                self.zeroes.push((at, len));
            } else if descriptor.starts_with(DESCRIPTOR_DATA) {
                let data = entry.get(data_at..data_at + SECTOR)?;
                data_at += SECTOR;
                if !data.starts_with(DATA_SIGNATURE) {
                    return None;
                }
                // The first eight and the last four bytes lie in the descriptor (2.3.1.3).
                let mut sector = Box::new([0; SECTOR]);
                sector[..8].copy_from_slice(&descriptor[8..16]);
                sector[8..SECTOR - 4].copy_from_slice(&data[8..SECTOR - 4]);
                sector[SECTOR - 4..].copy_from_slice(&descriptor[4..8]);
                self.sectors.insert(at, sector);
            } else {
                return None;
            }
        }
        Some(())
    }

    /// Reads the file as it is after the replay.
    pub(super) fn read_file(&self, file: &HostFile, at: u64, bytes: &mut [u8]) -> Result<(), Error> {
        file.read_padded(at, bytes, Operation::Open)?;
        let end = at + bytes.len() as u64;
        let part = |from: u64, len: u64| {
            let (first, last) = (from.max(at), (from + len).min(end));
            (first < last).then(|| ((first - at) as usize..(last - at) as usize, (first - from) as usize))
        };
        for (from, len) in &self.zeroes {
            if let Some((range, _)) = part(*from, *len) {
                bytes[range].fill(0);
            }
        }
        for (from, sector) in &self.sectors {
            if let Some((range, skip)) = part(*from, SECTOR as u64) {
                let len = range.len();
                bytes[range].copy_from_slice(&sector[skip..skip + len]);
            }
        }
        Ok(())
    }
}

/// An entry that is whole.
struct Entry {
    /// In bytes, a multiple of [`SECTOR`].
    len: usize,
    /// Its sequence number.
    number: u64,
    /// Where the sequence begins whose last entry it is.
    tail: usize,
}

/// A range of the log, which is a ring: up to its end, and on from its beginning.
fn ring(log: &[u8], at: usize, len: usize) -> [&[u8]; 2] {
    let first = len.min(log.len() - at);
    [&log[at..at + first], &log[..len - first]]
}

/// The whole entries of the log, by their places.
///
/// No sector of an entry but its first begins with the signature of entries (2.3.1): descriptors and data have their
/// own. So an entry ends where the next one begins at the latest, and however the log was made, each of its bytes is
/// looked at once.
fn entries(log: &[u8], id: &[u8; 16]) -> BTreeMap<usize, Entry> {
    let is_head = |at: &usize| log[*at..].starts_with(ENTRY_SIGNATURE);
    let heads: Vec<usize> = (0..log.len()).step_by(SECTOR).filter(is_head).collect();
    let next = heads.iter().skip(1).copied().chain(heads.first().map(|first| first + log.len()));
    let whole = |(&at, next): (&usize, usize)| {
        let head = &log[at..at + SECTOR];
        let (len, count) = (le32(head, 8) as usize, le32(head, 24) as usize);
        let is_possible = len > 0 && len.is_multiple_of(SECTOR) && len <= next - at && 64 + count * 32 <= len;
        if !is_possible || head[32..48] != *id {
            return None;
        }
        let [first, rest] = ring(log, at, len);
        let sum = crc32c(&[&first[..4], &[0; 4], &first[8..], rest]);
        (sum == le32(head, 4))
            .then(|| (at, Entry { len, number: le64(head, 16), tail: le32(head, 12) as usize }))
    };
    heads.iter().zip(next).filter_map(whole).collect()
}

/// The longest sequences: places of entries that follow each other, each with the next number. Every entry is in one.
fn sequences(log: &[u8], entries: &BTreeMap<usize, Entry>) -> Vec<Vec<usize>> {
    let after = |at: usize| {
        let entry = &entries[&at];
        let next = (at + entry.len) % log.len();
        let follows = entries.get(&next)?.number == entry.number.checked_add(1)?;
        follows.then_some(next)
    };
    let continued: HashSet<usize> = entries.keys().filter_map(|at| after(*at)).collect();
    let firsts = entries.keys().filter(|at| !continued.contains(at));
    // Numbers grow along a sequence, so that none comes back to where it began.
    firsts.map(|first| std::iter::successors(Some(*first), |at| after(*at)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Access;
    use crate::bytes::{put_le32, put_le64};
    use crate::vhdx::checksum;
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::path::Path;

    const ID: [u8; 16] = [9; 16];
    const LOG_LEN: usize = 16 << 20;

    /// Puts an entry without descriptors into a log.
    fn put(log: &mut [u8], at: usize, number: u64, tail: usize, end: u64) {
        let entry = &mut log[at..at + SECTOR];
        entry[..4].copy_from_slice(ENTRY_SIGNATURE);
        put_le32(entry, 8, SECTOR as u32);
        put_le32(entry, 12, tail as u32);
        put_le64(entry, 16, number);
        entry[32..48].copy_from_slice(&ID);
        put_le64(entry, 56, end);
        let sum = checksum(entry);
        put_le32(entry, 4, sum);
    }

    fn read(log: &[u8]) -> Result<Patches, Error> {
        let file = std::fs::File::from(memfd_create("vhdx", MemfdFlags::CLOEXEC).unwrap());
        let file = HostFile::new(file, Path::new("a.vhdx"), Access::ReadOnly, false);
        file.write(0, log, Operation::Create).unwrap();
        Patches::read(&file, ID, 0, log.len() as u64)
    }

    #[test]
    fn a_sequence_may_go_round_the_ring_and_the_newest_counts() {
        let mut log = vec![0; LOG_LEN];
        let last = LOG_LEN - SECTOR;
        // An old one, one that goes round, and one whose beginning was overwritten.
        put(&mut log, 8 * SECTOR, 3, 8 * SECTOR, 1 << 20);
        put(&mut log, last, 5, last, 2 << 20);
        put(&mut log, 0, 6, last, 3 << 20);
        put(&mut log, 16 * SECTOR, 9, 15 * SECTOR, 4 << 20);
        // Not the next number.
        put(&mut log, SECTOR, 8, last, 5 << 20);
        assert_eq!(read(&log).unwrap().end(), 3 << 20);
        log[last + 100] ^= 1;
        assert_eq!(read(&log).unwrap().end(), 1 << 20, "the last one's beginning is damaged");
        put(&mut log, 0, u64::MAX, 0, 6 << 20);
        assert_eq!(read(&log).unwrap().end(), 6 << 20);
        assert!(read(&[0; 1 << 20]).is_err());
    }

    /// No byte is in two entries, nor an entry in two sequences: a log may have 256 MiB.
    #[test]
    fn hostile_logs_are_looked_at_once() {
        let looked_at = |log: &[u8]| {
            let entries = entries(log, &ID);
            let bytes: usize = entries.values().map(|entry| entry.len).sum();
            (bytes, entries.len(), sequences(log, &entries).iter().map(Vec::len).sum())
        };
        // A long sequence, whose end says that it began elsewhere.
        let mut log = vec![0; LOG_LEN];
        for at in (0..LOG_LEN).step_by(SECTOR) {
            put(&mut log, at, 1 + (at / SECTOR) as u64, 7, 0);
        }
        assert!(read(&log).is_err());
        assert_eq!(looked_at(&log), (LOG_LEN, LOG_LEN / SECTOR, LOG_LEN / SECTOR));
        // Entries that all have the length of the log.
        for at in (0..LOG_LEN).step_by(SECTOR) {
            put_le32(&mut log, at + 8, LOG_LEN as u32);
        }
        assert!(read(&log).is_err());
        assert_eq!(looked_at(&log), (0, 0, 0));
    }
}
