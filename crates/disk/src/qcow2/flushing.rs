//! Flushing: the tables' way into the file, and clusters that become free.

use super::{Qcow2, cache};
use crate::{Error, Operation};
use std::sync::PoisonError;

impl Qcow2 {
    /// See [`meta`]: the order in which changes reach the file.
    pub(super) fn flush_all(&self) -> Result<(), Error> {
        let operation = Operation::Flush;
        let _flushing = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut meta = self.lock();
        meta.refs.write_back(&self.file, operation)?;
        let copies = meta.l2.copies();
        let l1: Vec<_> = meta.l1_dirty.iter().map(|index| (*index, meta.l1[*index])).collect();
        let unlinked = std::mem::take(&mut meta.unlinked);
        let l1_at = meta.header.l1_at;
        drop(meta);
        let result = self.write_tables(&copies, &l1, l1_at);
        let mut meta = self.lock();
        if let Err(error) = result {
            meta.unlinked.extend(unlinked);
            return Err(error);
        }
        meta.l2.written(&copies);
        for (index, value) in l1 {
            if meta.l1[index] == value {
                meta.l1_dirty.remove(&index);
            }
        }
        drop(meta);
        self.free(unlinked)
    }

    pub(super) fn write_tables(
        &self,
        copies: &[cache::Copy],
        l1: &[(usize, u64)],
        l1_at: u64,
    ) -> Result<(), Error> {
        self.file.sync(Operation::Flush)?;
        if copies.is_empty() && l1.is_empty() {
            return Ok(());
        }
        for copy in copies {
            self.file.write(copy.at, &copy.bytes, Operation::Flush)?;
        }
        for (index, value) in l1 {
            self.file.write(l1_at + *index as u64 * 8, &value.to_be_bytes(), Operation::Flush)?;
        }
        self.file.sync(Operation::Flush)
    }

    /// Ends references that the file no longer has, and gives storage back to the host.
    pub(super) fn free(&self, mut clusters: Vec<u64>) -> Result<(), Error> {
        if clusters.is_empty() {
            return Ok(());
        }
        clusters.sort_unstable();
        // Nobody reads or writes what becomes free.
        let _alone = self.moving.write().unwrap_or_else(PoisonError::into_inner);
        self.unpacked.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut meta = self.lock();
        let bits = meta.header.cluster_bits;
        let mut hole: Option<(u64, u64)> = None;
        let punch = |hole: (u64, u64)| {
            // Storage that stays occupied is no failure.
            let _ = self.file.punch_hole(hole.0 << bits, (hole.1 - hole.0) << bits);
        };
        for cluster in clusters {
            if !meta.drop_reference(&self.file, cluster, Operation::Flush)? {
                continue;
            }
            hole = Some(match hole {
                Some((first, end)) if end == cluster => (first, end + 1),
                other => {
                    other.map(punch);
                    (cluster, cluster + 1)
                }
            });
        }
        hole.map(punch);
        Ok(())
    }

    /// Makes everything safe, and takes no more changes. Nobody writes meanwhile.
    pub(crate) fn freeze(&self) -> Result<(), Error> {
        self.close()?;
        self.file.freeze()
    }

    /// Makes everything safe and the file as short as it can be. What fails is lost; the image stays
    /// sound.
    pub(crate) fn close(&self) -> Result<(), Error> {
        self.flush_all()?;
        let mut meta = self.lock();
        meta.refs.write_back(&self.file, Operation::Flush)?;
        let end = meta.fresh_from << meta.header.cluster_bits;
        if !self.file.is_block_device() && end < self.file.len()? {
            self.file.set_len(end, Operation::Flush)?;
        }
        Ok(())
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if self.file.is_writable() {
            let _ = self.close();
        }
    }
}
