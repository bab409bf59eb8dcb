//! Moving an image's own clusters into the one that it stands on, also under a guest.

use super::meta::Mapping;
use super::writing::unlink;
use super::{Qcow2, spec};
use crate::{Buffers, Disk, Durability, Error, Operation, Progress, Unmap};
use std::sync::PoisonError;

/// Bytes of an image that are moved down at a time; writes to them wait so long.
const MOVED_PIECE: u64 = 4 << 20;

impl Qcow2 {
    /// Moves all that the image itself stores into `below`, which it stands on, so that the backing file shows
    /// everywhere. Guests may use the disk meanwhile; what they write stays in the image if it came too late.
    ///
    /// Piece by piece: other writes to it wait, it is copied, made safe below, and then its entries go. So
    /// whenever the process ends, each cluster is in one of the two.
    pub(crate) fn move_down(&self, below: &dyn Disk, progress: &Progress) -> Result<(), Error> {
        self.lock().is_moving_down = true;
        // Whoever writes without having heard of it has done so by then.
        drop(self.moving.write().unwrap_or_else(PoisonError::into_inner));
        let result = self.move_down_pieces(below, progress);
        self.lock().is_moving_down = false;
        result
    }

    pub(super) fn move_down_pieces(&self, below: &dyn Disk, progress: &Progress) -> Result<(), Error> {
        let operation = Operation::Commit;
        let bits = self.cluster_bits();
        let size = self.info().size;
        let end = size.div_ceil(1 << bits);
        progress.begin(size);
        let mut cluster = 0;
        let mut bytes = Vec::new();
        while cluster < end {
            progress.check(operation)?;
            self.make_room()?;
            let moving = self.begin_moving();
            let mut meta = self.lock();
            let per_table = 1 << (bits - 3);
            let table_end = end.min((cluster / per_table + 1) * per_table);
            if meta.l1[(cluster / per_table) as usize] & spec::OFFSET == 0 {
                drop(meta);
                progress.advance(((table_end - cluster) << bits).min(size - (cluster << bits)));
                cluster = table_end;
                continue;
            }
            while meta.busy.contains(&cluster) {
                meta = self.settled.wait(meta).unwrap_or_else(PoisonError::into_inner);
            }
            let piece_end = table_end.min(cluster + (MOVED_PIECE >> bits).max(1));
            let mut piece = Vec::new();
            for number in cluster..piece_end {
                let mapping = meta.mapping(&self.file, number, operation)?;
                if meta.busy.contains(&number) {
                    break;
                }
                piece.push(mapping);
            }
            let number = piece.len() as u64;
            if piece.iter().any(|mapping| *mapping != Mapping::Absent) {
                meta.busy.extend(cluster..cluster + number);
                let overlaps = |range: &(u64, u64)| range.0 < cluster + number && cluster < range.1;
                while meta.writing.iter().any(overlaps) {
                    meta = self.settled.wait(meta).unwrap_or_else(PoisonError::into_inner);
                }
                drop(meta);
                let copied = piece.iter().zip(cluster..).try_for_each(|(mapping, number)| {
                    self.copy_down(below, *mapping, number << bits, &mut bytes)
                });
                let copied = copied.and_then(|()| below.flush());
                let mut meta = self.lock();
                let result = copied.and_then(|()| {
                    meta.own_l2(&self.file, cluster, operation)?;
                    for number in cluster..cluster + number {
                        // As it is now: a guest may have discarded it meanwhile, which waits for nobody.
                        let now = meta.mapping(&self.file, number, operation)?;
                        if now != Mapping::Absent {
                            meta.set_mapping(&self.file, number, Mapping::Absent, operation)?;
                            unlink(&mut meta, now);
                        }
                    }
                    Ok(())
                });
                for number in cluster..cluster + number {
                    meta.busy.remove(&number);
                }
                drop(meta);
                self.settled.notify_all();
                result?;
            } else {
                drop(meta);
            }
            drop(moving);
            progress.advance((number << bits).min(size - (cluster << bits)));
            cluster += number;
        }
        self.flush_all()
    }

    /// Copies a cluster to the image below, as far as it is a part of the disk.
    pub(super) fn copy_down(
        &self,
        below: &dyn Disk,
        mapping: Mapping,
        offset: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let len = (1u64 << self.cluster_bits()).min(self.info().size - offset);
        match mapping {
            Mapping::Absent => Ok(()),
            Mapping::Zero(_) => below.write_zeroes(offset, len, Unmap::Allowed, Durability::AtFlush),
            Mapping::Stored(..) | Mapping::Packed(..) => {
                bytes.resize(len as usize, 0);
                self.read_run(mapping, offset, &mut Buffers::from_mut(bytes))?;
                below.write(offset, &Buffers::from_slice(bytes), Durability::AtFlush)
            }
        }
    }

    /// Forgets all that the image itself stores, so that the backing file shows everywhere.
    pub(crate) fn empty(&self) -> Result<(), Error> {
        let operation = Operation::Commit;
        let mut cluster = 0;
        let end = self.info().size.div_ceil(1 << self.cluster_bits());
        while cluster < end {
            self.make_room()?;
            let _moving = self.begin_moving();
            let mut meta = self.lock();
            let per_table = 1 << (meta.header.cluster_bits - 3);
            let stop = end.min((cluster / per_table + 1) * per_table);
            if meta.l1[(cluster / per_table) as usize] & spec::OFFSET != 0 {
                meta.own_l2(&self.file, cluster, operation)?;
                for cluster in cluster..stop {
                    let old = meta.mapping(&self.file, cluster, operation)?;
                    if old != Mapping::Absent {
                        meta.set_mapping(&self.file, cluster, Mapping::Absent, operation)?;
                        unlink(&mut meta, old);
                    }
                }
            }
            cluster = stop;
        }
        self.flush_all()
    }
}
