//! What is in guest memory: command headers, tables, frames.

use memory::{Bytes, GuestAddress, Ram};

/// The most entries of a table that are looked at: with 4 MiB each more than any command moves.
const ENTRIES_MAX: usize = 1024;

/// A command as the guest has written it.
#[derive(Clone, Debug, Default)]
pub(super) struct Command {
    header: u64,
    pub(super) fis: [u8; 20],
    pub(super) packet: [u8; 16],
    /// Where data go to or come from: address and length.
    pub(super) data: Vec<(u64, u32)>,
}

impl Command {
    /// Reads the command in a slot; `None` when it is not in memory.
    pub(super) fn read(ram: &Ram, list: u64, slot: u32) -> Option<Command> {
        let header = list.checked_add(u64::from(slot) * 32)?;
        let mut bytes = [0; 16];
        read(ram, header, &mut bytes)?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let table = u64::from(word(8) & !0x7f) | u64::from(word(12)) << 32;
        let entries = usize::from((word(0) >> 16) as u16).min(ENTRIES_MAX);
        let mut command = Command { header, ..Command::default() };
        read(ram, table, &mut command.fis)?;
        read(ram, table.checked_add(0x40)?, &mut command.packet)?;
        let mut list = vec![0; entries * 16];
        read(ram, table.checked_add(0x80)?, &mut list)?;
        for entry in list.chunks_exact(16) {
            let address = u64::from_le_bytes(entry[..8].try_into().ok()?);
            let count = u32::from_le_bytes(entry[12..16].try_into().ok()?) & 0x3f_ffff;
            command.data.push((address & !1, (count | 1) + 1));
        }
        Some(command)
    }

    /// Notes how many bytes were moved.
    pub(super) fn set_moved(&self, ram: &Ram, bytes: u64) {
        let count = bytes.min(u32::MAX.into()) as u32;
        let _ = ram.guest().write_slice(&count.to_le_bytes(), GuestAddress(self.header + 4));
    }

    /// The first `len` bytes of the data as pieces of memory, as far as there are so many.
    pub(super) fn pieces(&self, len: u64) -> Vec<(u64, u32)> {
        let mut left = len;
        let mut pieces = Vec::new();
        for (address, count) in &self.data {
            let here = left.min(u64::from(*count)) as u32;
            if here == 0 {
                break;
            }
            pieces.push((*address, here));
            left -= u64::from(here);
        }
        pieces
    }

    /// Writes bytes to where data go; returns how many fitted.
    pub(super) fn put(&self, ram: &Ram, bytes: &[u8]) -> usize {
        let mut done = 0;
        for (address, len) in self.pieces(bytes.len() as u64) {
            let end = done + len as usize;
            if ram.guest().write_slice(&bytes[done..end], GuestAddress(address)).is_err() {
                break;
            }
            done = end;
        }
        done
    }
}

fn read(ram: &Ram, gpa: u64, into: &mut [u8]) -> Option<()> {
    ram.guest().read_slice(into, GuestAddress(gpa)).ok()
}

/// Writes a frame to where received ones lie.
pub(super) fn receive(ram: &Ram, base: u64, offset: u64, fis: &[u8]) {
    if let Some(gpa) = base.checked_add(offset) {
        let _ = ram.guest().write_slice(fis, GuestAddress(gpa));
    }
}
