//! The log ([MS-VHDX] 2.3): changes of tables that were not yet made when the writer ended.

use super::{MIB, checksum};
use crate::bytes::{le32, le64};
use crate::file::HostFile;
use crate::{Error, Operation};
use std::collections::BTreeMap;

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
        let mut best: Option<Vec<usize>> = None;
        let mut best_sequence = 0;
        let mut start = 0;
        while start < log.len() {
            let sequence = sequence_from(&log, start, &id);
            let Some(last) = sequence.last() else {
                start += SECTOR;
                continue;
            };
            let number = le64(&log, last + 16);
            // The last entry says where the sequence must begin.
            let tail = le32(&log, last + 12) as usize;
            if number > best_sequence && sequence.contains(&tail) {
                best_sequence = number;
                let first = sequence.iter().position(|entry| *entry == tail).expect("it is in it");
                best = Some(sequence[first..].to_vec());
            }
            start += SECTOR;
        }
        let Some(sequence) = best else {
            return Err(file.damaged(Operation::Open, "its log has no complete entry"));
        };
        let mut patches = Patches::default();
        for entry in sequence {
            let bytes = entry_at(&log, entry).expect("it was checked");
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

/// The entry that begins at a place of the log, which is a ring; `None` unless it is whole.
fn entry_at(log: &[u8], at: usize) -> Option<Vec<u8>> {
    let head = log.get(at..at + 64)?;
    if !head.starts_with(ENTRY_SIGNATURE) {
        return None;
    }
    let len = le32(head, 8) as usize;
    let count = le32(head, 24) as usize;
    if len == 0 || !len.is_multiple_of(SECTOR) || len > log.len() || 64 + count.checked_mul(32)? > len {
        return None;
    }
    let mut entry = vec![0; len];
    let first = len.min(log.len() - at);
    entry[..first].copy_from_slice(&log[at..at + first]);
    entry[first..].copy_from_slice(&log[..len - first]);
    (le32(&entry, 4) == checksum(&entry)).then_some(entry)
}

/// The places of entries that follow each other from a place on.
fn sequence_from(log: &[u8], start: usize, id: &[u8; 16]) -> Vec<usize> {
    let (mut sequence, mut at, mut total) = (Vec::new(), start, 0);
    let mut expected = None;
    while let Some(entry) = entry_at(log, at) {
        let number = le64(&entry, 16);
        total += entry.len();
        if entry[32..48] != *id || expected.is_some_and(|expected| expected != number) || total > log.len() {
            break;
        }
        sequence.push(at);
        expected = number.checked_add(1);
        at = (at + entry.len()) % log.len();
    }
    sequence
}
