//! Changing an image's header while it is open: its size, its backing file.

use super::Qcow2;
use super::header::{Backing, Header, encode};
use super::opening::read_header;
use super::spec::*;
use super::writing::{Source, whole_clusters};
use crate::bytes::{put_be32, put_be64};
use crate::{Disk, Error, ErrorKind, Operation, SECTOR_SIZE};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

impl Qcow2 {
    pub(super) fn resize_to(&self, size: u64) -> Result<(), Error> {
        let operation = Operation::Resize;
        let fault = |kind, why: &str| Error::new(kind, operation).with_path(self.path()).with_detail(why);
        if !self.file.is_writable() {
            return Err(Error::new(ErrorKind::ReadOnly, operation).with_path(self.path()));
        }
        if size == 0 || !size.is_multiple_of(SECTOR_SIZE) || size > 1 << 62 {
            return Err(fault(ErrorKind::Unsupported, "a size is a multiple of 512 bytes"));
        }
        let old = self.info().size;
        if size < old {
            if !self.snapshots.is_empty() {
                return Err(fault(
                    ErrorKind::Unsupported,
                    "an image with internal snapshots cannot become smaller",
                ));
            }
            // What is cut off must not come back when it grows again.
            self.write_zeroes(size, old - size, crate::Unmap::Allowed, crate::Durability::AtCompletion)?;
        }
        self.flush()?;
        if size > old {
            self.enlarge_l1(size)?;
            // Before the size says that there is something: neither the guest nor whoever opens the image after a
            // crash may see there what the backing file has.
            let hidden = self.backing().map_or(0, |backing| backing.info().size.min(size));
            if hidden > old {
                self.hide_backing(old, hidden, size)?;
            }
        }
        self.change_size(size)?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    fn hide_backing(&self, from: u64, to: u64, size: u64) -> Result<(), Error> {
        let bits = self.cluster_bits();
        let (first, end) = whole_clusters(from, size - from, size, bits);
        let stop = to.div_ceil(1 << bits).min(end);
        if self.can_unmap() && first < stop {
            self.unmap_clusters(first, stop, Operation::Resize)?;
            self.write_all(from, &Source::Zeroes((first << bits) - from), Operation::Resize)?;
        } else {
            self.write_all(from, &Source::Zeroes(to - from), Operation::Resize)?;
        }
        self.flush_all()
    }

    /// Writes the size into the header. The L1 table is large enough.
    fn change_size(&self, size: u64) -> Result<(), Error> {
        let mut meta = self.lock();
        self.file.write(SIZE_AT, &size.to_be_bytes(), Operation::Resize)?;
        self.file.sync(Operation::Resize)?;
        meta.header.size = size;
        Ok(())
    }

    /// Moves the L1 table to a larger one, if a disk of this size needs it.
    fn enlarge_l1(&self, size: u64) -> Result<(), Error> {
        let operation = Operation::Resize;
        let _flushing = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut meta = self.lock();
        let (bits, cluster) = (meta.header.cluster_bits, meta.header.cluster_size());
        let needed = size.div_ceil(meta.header.l2_span());
        if needed * 8 > L1_BYTES_MAX {
            return Err(Error::new(ErrorKind::Unsupported, operation).with_path(self.path()).with_detail(
                "a disk of this size needs larger clusters; convert it to an image that has them",
            ));
        }
        let (old_at, old_len) = (meta.header.l1_at, meta.l1.len() as u64 * 8);
        if needed <= meta.l1.len() as u64 {
            return Ok(());
        }
        let clusters = (needed * 8).div_ceil(cluster);
        let place = meta.allocate_together(&self.file, clusters, operation)?;
        meta.take_fresh(place, clusters);
        let mut entries = meta.l1.clone();
        // Tables that were made since the flush are not written yet; their entries come later.
        for index in &meta.l1_dirty {
            entries[*index] = 0;
        }
        entries.resize((clusters << bits) as usize / 8, 0);
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.file.write(place, &bytes, operation)?;
        meta.refs.write_back(&self.file, operation)?;
        let mut fields = [0; 12];
        put_be32(&mut fields, 0, needed as u32);
        put_be64(&mut fields, 4, place);
        self.file.sync(operation)?;
        self.file.write(L1_SIZE_AT, &fields, operation)?;
        self.file.sync(operation)?;
        (meta.header.l1_at, meta.header.l1_entries) = (place, needed as u32);
        meta.l1.resize(needed as usize, 0);
        for index in 0..clusters {
            meta.tables.set((place >> bits) + index);
        }
        for index in 0..old_len.div_ceil(cluster) {
            let old = (old_at >> bits) + index;
            meta.tables.clear(old);
            meta.drop_reference(&self.file, old, operation)?;
        }
        Ok(())
    }

    /// Makes the image name another backing file, or none. What the disk reads as must not depend on it:
    /// the caller has seen to that.
    pub(crate) fn set_backing(
        &self,
        backing: Option<Backing>,
        disk: Option<Arc<dyn Disk>>,
    ) -> Result<(), Error> {
        let operation = Operation::Rebase;
        self.flush()?;
        let meta = self.lock();
        let (old, _) = read_header(&self.file)?;
        let header = Header { backing: backing.clone(), ..old };
        let mut bytes = encode(&header);
        let size = meta.header.cluster_size();
        if bytes.len() as u64 > size {
            return Err(Error::new(ErrorKind::Unsupported, operation)
                .with_path(self.path())
                .with_detail("the name of the backing file does not fit into one cluster"));
        }
        // Names of features and what else stood there are of no use any more; one write for all, so that
        // a crash leaves either header.
        bytes.resize((size as usize).min(4096).max(bytes.len()), 0);
        self.file.sync(operation)?;
        self.file.write(0, &bytes, operation)?;
        self.file.sync(operation)?;
        drop(meta);
        self.lock().header.backing = backing;
        *self.backing.write().unwrap_or_else(PoisonError::into_inner) = disk;
        Ok(())
    }
}
