//! Persistent bitmaps (QEMU, docs/interop/qcow2.rst, "Bitmaps extension"): which backup programs keep in images. Here
//! they are only found, so that a check knows what of the file is theirs.

use super::Walk;
use crate::bytes::{be16, be32, be64};
use crate::qcow2::spec::{BITMAP_DIRECTORY_BYTES_MAX, BITMAP_TABLE_BYTES_MAX, BITMAPS_MAX, OFFSET};
use crate::{Error, Operation};

/// Length of a directory entry without what follows it: extra data and a name.
const ENTRY_LEN: usize = 24;
/// An entry of a bitmap's table that points nowhere: all bits are set.
const ALL_ONES: u64 = 1;

/// An entry of the directory.
struct Entry {
    /// Where the bitmap's table lies, and how many entries it has.
    table_at: u64,
    table_entries: u32,
    /// Length of the entry in the directory.
    len: usize,
}

/// Parses the entry at the beginning of `bytes`; `None` where they end before.
fn parse(bytes: &[u8]) -> Option<Entry> {
    let fixed = bytes.get(..ENTRY_LEN)?;
    let len = ENTRY_LEN + be16(fixed, 18) as usize + be32(fixed, 20) as usize;
    let len = len.next_multiple_of(8);
    (len <= bytes.len()).then_some(Entry { table_at: be64(fixed, 0), table_entries: be32(fixed, 8), len })
}

impl Walk<'_> {
    /// Counts the references that the bitmaps make: to their directory, to each one's table, and to its data.
    ///
    /// # Errors
    /// When the file cannot be read. What is wrong with bitmaps becomes a finding.
    pub(super) fn bitmaps(&mut self) -> Result<(), Error> {
        let Some(bitmaps) = self.header.bitmaps else { return Ok(()) };
        let mask = self.header.cluster_size() - 1;
        if bitmaps.number > BITMAPS_MAX
            || bitmaps.directory_len > BITMAP_DIRECTORY_BYTES_MAX
            || bitmaps.directory_at & mask != 0
            || !self.refer(bitmaps.directory_at, bitmaps.directory_len, "the directory of the bitmaps")
        {
            self.report.error("the directory of the bitmaps lies at an impossible place".into());
            return Ok(());
        }
        let mut directory = vec![0; bitmaps.directory_len as usize];
        self.file.read_padded(bitmaps.directory_at, &mut directory, Operation::Check)?;
        let mut rest = &directory[..];
        // Tables of a sound image do not overlap; of others no more is read than the file is long,
        // and of each, since files may have holes of any length, no more than fits into memory.
        let mut left = self.file_len;
        for _ in 0..bitmaps.number {
            let Some(entry) = parse(rest) else {
                self.report.error("the directory of the bitmaps is cut off".into());
                return Ok(());
            };
            rest = &rest[entry.len..];
            let len = entry.table_entries as u64 * 8;
            if entry.table_at & mask != 0 || len > left.min(BITMAP_TABLE_BYTES_MAX) {
                self.report.error(format!("a bitmap's table at {:#x} cannot be there", entry.table_at));
                continue;
            }
            left -= len;
            if self.refer(entry.table_at, len, "a bitmap's table") {
                self.bitmap(entry.table_at, entry.table_entries as u64)?;
            }
        }
        Ok(())
    }

    /// Counts the references of one bitmap's table.
    fn bitmap(&mut self, table_at: u64, entries: u64) -> Result<(), Error> {
        let size = self.header.cluster_size();
        for entry in self.table(table_at, entries)? {
            let at = entry & OFFSET;
            if matches!(entry, 0 | ALL_ONES) {
                continue;
            }
            if entry != at || at & (size - 1) != 0 {
                self.report.error(format!("an entry of a bitmap has an impossible value ({entry:#x})"));
                continue;
            }
            self.refer(at, size, "data of a bitmap");
        }
        Ok(())
    }
}
