//! Judging an image, and repairing its reference counts.
//!
//! Every reference that the tables make is counted and compared with what the image counts. Too many
//! counted is a *leak*: space that nobody uses. Too few is an *error*: the next write may destroy data.
//!
//! Entries that cannot be understood are errors, too, and nobody knows what they stood for: it may be what seems
//! to be leaked. So while there are such, no count is lowered.

mod bitmaps;

use super::Qcow2;
use super::header::Header;
use super::meta::{Mapping, Meta, decode, write_count};
use super::opening::{fault, read_header};
use super::spec::*;
use crate::bytes::be64;
use crate::file::HostFile;
use crate::{Error, ErrorKind, Operation};

/// More clusters than this are not checked: the counts are held in memory.
const CLUSTERS_MAX: u64 = 1 << 28;
/// More findings than this are counted but not told.
const FINDINGS_MAX: usize = 50;

/// What a check may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing.
    No,
    /// Reference counts that are too high.
    Leaks,
    /// All reference counts and the flags that go with them.
    All,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Things that can lose data.
    pub errors: u64,
    /// Clusters that nobody uses.
    pub leaks: u64,
    /// Sentences about the first of them.
    pub findings: Vec<String>,
    /// How many of the errors and leaks were repaired.
    pub repaired: u64,
    /// Clusters of the disk that have data.
    pub allocated_clusters: u64,
    /// Of those, how many are compressed.
    pub compressed_clusters: u64,
    /// Clusters that the disk has.
    pub total_clusters: u64,
    /// Where the file could end.
    pub image_end: u64,
}

impl CheckReport {
    fn error(&mut self, what: String) {
        self.errors += 1;
        self.tell(what);
    }

    fn tell(&mut self, what: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(what);
        }
    }
}

impl Qcow2 {
    /// Checks an image, and repairs it as far as `repair` says. The file is locked meanwhile.
    ///
    /// # Errors
    /// When it cannot be read, or is too damaged to be judged.
    pub(crate) fn check_file(file: &HostFile, repair: Repair) -> Result<CheckReport, Error> {
        let (header, _) = read_header(file)?;
        let mut walk = Walk::new(file, header.clone())?;
        walk.all()?;
        let flags = std::mem::take(&mut walk.flags);
        let (mut report, wrong) = walk.compare()?;
        let is_understood = report.errors == 0;
        let leaks = if is_understood { report.leaks } else { 0 };
        let (has_leaks, has_errors) = (leaks > 0, wrong > 0 || !flags.is_empty());
        report.errors += wrong + flags.len() as u64;
        let fixes = match repair {
            Repair::No => false,
            Repair::Leaks => has_leaks && !has_errors,
            Repair::All => has_leaks || has_errors || header.is_dirty || header.is_corrupt,
        };
        if fixes {
            for (at, entry) in &flags {
                file.write(*at, &entry.to_be_bytes(), Operation::Check)?;
            }
            let too_high = match has_leaks || wrong > 0 {
                true => rebuild(file, &header, &walk.wanted)?,
                false => 0,
            };
            report.repaired = leaks + wrong + flags.len() as u64 - too_high;
            if too_high > 0 {
                report.tell(format!(
                    "{too_high} clusters are used more often than {} bits can count; convert the image to one that \
                     can",
                    1 << header.refcount_order
                ));
            }
            // Errors of other kinds remain.
            if is_understood && too_high == 0 && header.version >= 3 {
                let left =
                    be64(&read8(file, INCOMPATIBLE_AT)?, 0) & !(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT);
                file.sync(Operation::Check)?;
                file.write(INCOMPATIBLE_AT, &left.to_be_bytes(), Operation::Check)?;
            }
            file.sync(Operation::Check)?;
        }
        Ok(report)
    }
}

/// Makes the reference counts of an image right that was not closed properly.
pub(super) fn repair_dirty(file: &HostFile) -> Result<(), Error> {
    debug_assert!(file.is_writable());
    let report = Qcow2::check_file(file, Repair::All)?;
    if report.errors + report.leaks > report.repaired {
        let first = report.findings.first().map_or("", |finding| finding);
        return Err(
            file.damaged(Operation::Open, format!("it was not closed properly and is damaged: {first}"))
        );
    }
    Ok(())
}

fn read8(file: &HostFile, at: u64) -> Result<[u8; 8], Error> {
    let mut bytes = [0; 8];
    file.read(at, &mut bytes, Operation::Check)?;
    Ok(bytes)
}

struct Walk<'a> {
    file: &'a HostFile,
    header: Header,
    file_len: u64,
    /// References found, by cluster of the file.
    wanted: Vec<u32>,
    /// Entries whose flag is wrong: place and right value. Filled once all references are known.
    flags: Vec<(u64, u64)>,
    report: CheckReport,
}

impl<'a> Walk<'a> {
    fn new(file: &'a HostFile, header: Header) -> Result<Walk<'a>, Error> {
        let file_len = file.len()?;
        let clusters = file_len.div_ceil(header.cluster_size());
        if clusters > CLUSTERS_MAX {
            return Err(Error::new(ErrorKind::Unsupported, Operation::Check)
                .with_path(file.path())
                .with_detail("it has too many clusters to be checked"));
        }
        let report =
            CheckReport { total_clusters: header.size.div_ceil(header.cluster_size()), ..Default::default() };
        Ok(Walk { file, header, file_len, wanted: vec![0; clusters as usize], flags: Vec::new(), report })
    }

    fn all(&mut self) -> Result<(), Error> {
        self.refer(0, 1, "the header");
        let (bits, header) = (self.header.cluster_bits, self.header.clone());
        self.refer(header.reftable_at, (header.reftable_clusters as u64) << bits, "the refcount table");
        for entry in self.table(header.reftable_at, ((header.reftable_clusters as u64) << bits) / 8)? {
            if entry & REFTABLE_OFFSET != 0 {
                self.refer(entry & REFTABLE_OFFSET, 1 << bits, "a refcount block");
            }
        }
        let (_, snapshots) = read_header(self.file)?;
        if header.snapshots > 0 {
            let len = snapshots_len(self.file, &header)?;
            self.refer(header.snapshots_at, len, "the snapshot table");
        }
        self.l1(header.l1_at, header.l1_entries, true)?;
        for snapshot in &snapshots {
            self.l1(snapshot.l1_at, snapshot.l1_entries, false)?;
        }
        self.bitmaps()?;
        self.l1_flags(header.l1_at, header.l1_entries)
    }

    /// A table of 64-bit numbers; shorter where the file ends.
    fn table(&mut self, at: u64, entries: u64) -> Result<Vec<u64>, Error> {
        let len = (entries * 8).min(self.file_len.saturating_sub(at)) as usize & !7;
        let mut bytes = vec![0; len];
        self.file.read(at, &mut bytes, Operation::Check)?;
        Ok(bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect())
    }

    /// Counts a reference to each cluster of a range.
    fn refer(&mut self, at: u64, len: u64, what: &str) -> bool {
        let bits = self.header.cluster_bits;
        if len == 0 {
            return true;
        }
        let end = at.saturating_add(len - 1) >> bits;
        if end >= self.wanted.len() as u64 {
            self.report.error(format!("{what} at {at:#x} lies beyond the end of the file"));
            return false;
        }
        for cluster in at >> bits..=end {
            let wanted = &mut self.wanted[cluster as usize];
            *wanted = wanted.saturating_add(1);
        }
        true
    }

    fn l1(&mut self, at: u64, entries: u32, is_active: bool) -> Result<(), Error> {
        self.refer(at, entries as u64 * 8, "an L1 table");
        let bits = self.header.cluster_bits;
        for entry in self.table(at, entries as u64)? {
            let table = entry & OFFSET;
            let is_nowhere = entry != 0 && table == 0;
            if is_nowhere || entry & L1_RESERVED != 0 || table & ((1 << bits) - 1) != 0 {
                self.report.error(format!("an L1 entry has an impossible value ({entry:#x})"));
                continue;
            }
            if table != 0 && self.refer(table, 1 << bits, "an L2 table") {
                self.l2(table, is_active)?;
            }
        }
        Ok(())
    }

    fn l2(&mut self, at: u64, is_active: bool) -> Result<(), Error> {
        let size = self.header.cluster_size();
        for entry in self.table(at, size / 8)? {
            match decode(&self.header, entry) {
                Err(why) => self.report.error(format!("{why} (entry {entry:#x})")),
                Ok(mapping) => {
                    let has_data = matches!(mapping, Mapping::Stored(..) | Mapping::Packed(..));
                    if is_active {
                        self.report.allocated_clusters += has_data as u64;
                        self.report.compressed_clusters += matches!(mapping, Mapping::Packed(..)) as u64;
                    }
                    match mapping {
                        Mapping::Absent | Mapping::Zero(None) => {}
                        Mapping::Zero(Some(at)) | Mapping::Stored(at, _) => {
                            self.refer(at, size, "a cluster of data");
                        }
                        Mapping::Packed(at, len) => {
                            // Its length is in sectors and may reach beyond the end.
                            let len = (len as u64).min(self.file_len.saturating_sub(at)).max(1);
                            self.refer(at, len, "a compressed cluster");
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Looks at the flags that say "the only reference".
    fn l1_flags(&mut self, at: u64, entries: u32) -> Result<(), Error> {
        let (bits, size) = (self.header.cluster_bits, self.header.cluster_size());
        for (index, entry) in self.table(at, entries as u64)?.into_iter().enumerate() {
            let table = entry & OFFSET;
            if table == 0 || table >> bits >= self.wanted.len() as u64 || table & (size - 1) != 0 {
                continue;
            }
            self.flag(at + index as u64 * 8, entry, table);
            for (index, entry) in self.table(table, size / 8)?.into_iter().enumerate() {
                if let Ok(Mapping::Stored(place, _) | Mapping::Zero(Some(place))) =
                    decode(&self.header, entry)
                {
                    self.flag(table + index as u64 * 8, entry, place);
                }
            }
        }
        Ok(())
    }

    fn flag(&mut self, at: u64, entry: u64, place: u64) {
        let Some(wanted) = self.wanted.get((place >> self.header.cluster_bits) as usize) else { return };
        let right = if *wanted == 1 { entry | COPIED } else { entry & !COPIED };
        // An entry that is not understood may be another reference.
        let is_sure = right & COPIED == 0 || self.report.errors == 0;
        if right != entry && is_sure {
            self.report.tell(format!("the entry at {at:#x} is wrong about being the only one ({entry:#x})"));
            self.flags.push((at, right));
        }
    }

    /// Compares with what the image counts; the second is how many counts are too low. While there are errors,
    /// counts that are too high become what is wanted.
    fn compare(&mut self) -> Result<(CheckReport, u64), Error> {
        let mut report = std::mem::take(&mut self.report);
        let mut meta = match Meta::read(self.file, self.header.clone()) {
            Ok(meta) => meta,
            Err(error) => {
                report.error(error.to_string());
                return Ok((report, 0));
            }
        };
        let bits = self.header.cluster_bits;
        let (mut wrong, is_understood) = (0, report.errors == 0);
        for (cluster, found) in self.wanted.iter_mut().enumerate() {
            let cluster = cluster as u64;
            let counted = meta.count(self.file, cluster, Operation::Check)?;
            let wanted = *found as u64;
            if counted > wanted && !is_understood {
                *found = u32::try_from(counted).unwrap_or(u32::MAX);
            }
            if counted > 0 || wanted > 0 {
                report.image_end = (cluster + 1) << bits;
            }
            if counted > wanted {
                report.leaks += 1;
                report.tell(format!("cluster {cluster} is counted {counted} times and used {wanted} times"));
            } else if counted < wanted {
                wrong += 1;
                report.tell(format!("cluster {cluster} is counted {counted} times but used {wanted} times"));
            }
        }
        Ok((report, wrong))
    }
}

fn snapshots_len(file: &HostFile, header: &Header) -> Result<u64, Error> {
    let left = file.len()?.saturating_sub(header.snapshots_at).min(SNAPSHOT_TABLE_BYTES_MAX as u64);
    let mut bytes = vec![0; left as usize];
    file.read(header.snapshots_at, &mut bytes, Operation::Check)?;
    let mut at = 0;
    for _ in 0..header.snapshots {
        let rest = bytes.get(at..).unwrap_or_default();
        let (_, len) = super::header::parse_snapshot(rest, header).map_err(|why| fault(file, why))?;
        at += len;
    }
    Ok(at as u64)
}

/// Writes new reference counts behind everything else, then makes the header point to them: a crash
/// leaves the old ones or the new ones. Returns how many counts are higher than the image can count; those get
/// the highest that it can.
fn rebuild(file: &HostFile, header: &Header, wanted: &[u32]) -> Result<u64, Error> {
    let operation = Operation::Check;
    let (bits, size) = (header.cluster_bits, header.cluster_size());
    let mut wanted = wanted.to_vec();
    // The old table and blocks are no longer used.
    let mut old = vec![0; (header.reftable_clusters as usize) << bits];
    file.read_padded(header.reftable_at, &mut old, operation)?;
    let old_blocks = old.chunks_exact(8).map(|entry| be64(entry, 0) & REFTABLE_OFFSET).filter(|at| *at != 0);
    let old_table = (0..header.reftable_clusters as u64).map(|index| header.reftable_at + (index << bits));
    for place in old_blocks.chain(old_table) {
        if let Some(count) = wanted.get_mut((place >> bits) as usize) {
            *count = count.saturating_sub(1);
        }
    }
    let end = wanted
        .iter()
        .rposition(|count| *count > 0)
        .map_or(1, |last| last as u64 + 1)
        .max(wanted.len() as u64);
    let per_block = 1u64 << (bits + 3 - header.refcount_order);
    let (mut blocks, mut table_clusters) = (1, 1);
    let clusters = loop {
        let clusters = end + blocks + table_clusters;
        if clusters <= blocks * per_block && blocks * 8 <= table_clusters << bits {
            break clusters;
        }
        blocks = clusters.div_ceil(per_block);
        table_clusters = (blocks * 8).div_ceil(size);
    };
    if table_clusters << bits > REFTABLE_BYTES_MAX {
        return Err(Error::new(ErrorKind::NoSpace, operation).with_path(file.path()));
    }
    wanted.resize(clusters as usize, 1);
    let max = u64::MAX >> (64 - (1u32 << header.refcount_order));
    let too_high = wanted.iter().filter(|count| u64::from(**count) > max).count() as u64;
    let mut block_bytes = vec![0; size as usize];
    for block in 0..blocks {
        block_bytes.fill(0);
        for index in 0..per_block {
            let Some(count) = wanted.get((block * per_block + index) as usize) else { break };
            let bit = index << header.refcount_order;
            let count = (*count as u64).min(max);
            write_count(&mut block_bytes[(bit / 8) as usize..], header.refcount_order, bit % 8, count);
        }
        file.write((end + block) << bits, &block_bytes, operation)?;
    }
    let mut table: Vec<u8> = (end..end + blocks).flat_map(|block| (block << bits).to_be_bytes()).collect();
    table.resize((table_clusters << bits) as usize, 0);
    file.write((end + blocks) << bits, &table, operation)?;
    file.sync(operation)?;
    let mut fields = ((end + blocks) << bits).to_be_bytes().to_vec();
    fields.extend((table_clusters as u32).to_be_bytes());
    file.write(REFTABLE_AT, &fields, operation)?;
    file.sync(operation)?;
    Ok(too_high)
}
