//! Reading: runs of clusters that map alike, and what each of them holds.

use super::Qcow2;
use super::meta::{Mapping, Meta};
use crate::{Buffers, Content, Disk, Error, Extent, Operation};
use std::io;
use std::sync::PoisonError;

/// More clusters than this are not moved by one step of a write.
pub(super) const STEP_CLUSTERS: u64 = 1024;

impl Qcow2 {
    /// How the disk maps from `offset` on, and how many bytes map alike, `len` at most.
    pub(super) fn run(
        &self,
        meta: &mut Meta,
        offset: u64,
        len: u64,
        operation: Operation,
    ) -> Result<(Mapping, u64), Error> {
        let bits = meta.header.cluster_bits;
        let (first, last) = (offset >> bits, (offset + len - 1) >> bits);
        let mapping = meta.mapping(&self.file, first, operation)?;
        let mut cluster = first;
        while cluster < last && cluster - first < STEP_CLUSTERS {
            let next = meta.mapping(&self.file, cluster + 1, operation)?;
            let goes_on = match (mapping, next) {
                (Mapping::Absent, Mapping::Absent) | (Mapping::Zero(_), Mapping::Zero(_)) => true,
                (Mapping::Stored(at, own), Mapping::Stored(next, next_own)) => {
                    own == next_own && next == at + ((cluster + 1 - first) << bits)
                }
                _ => false,
            };
            if !goes_on {
                break;
            }
            cluster += 1;
        }
        let end = (cluster + 1) << bits;
        Ok((mapping, (end - offset).min(len)))
    }

    /// Fills `into` with what a run that begins with `mapping` holds from byte `offset` of the disk on.
    pub(super) fn read_run(
        &self,
        mapping: Mapping,
        offset: u64,
        into: &mut Buffers<'_>,
    ) -> Result<(), Error> {
        let len = into.len();
        let bits = self.cluster_bits();
        let within = offset & ((1 << bits) - 1);
        match mapping {
            Mapping::Zero(_) => {
                into.zero(0, len);
                Ok(())
            }
            Mapping::Absent => match self.backing() {
                None => {
                    into.zero(0, len);
                    Ok(())
                }
                Some(backing) => read_clamped(&*backing, offset, into),
            },
            Mapping::Stored(at, _) => match self.file.read_list(at + within, into) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.read_at_end(at, at + within, into)
                }
                result => result.map_err(|error| self.failed(Operation::Read, offset, len, error)),
            },
            Mapping::Packed(at, packed_len) => {
                let compression = self.lock().header.compression;
                let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
                let cluster = unpacked.cluster(&self.file, compression, at, packed_len, 1 << bits)?;
                drop(unpacked);
                into.copy_from(0, &cluster[within as usize..][..len]);
                Ok(())
            }
        }
    }

    /// Reads where the file ends: other programs leave the last cluster unfinished, and what is missing
    /// of it is zero.
    pub(super) fn read_at_end(&self, cluster_at: u64, at: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        let (file_len, len) = (self.file.len()?, into.len());
        if cluster_at >= file_len {
            return Err(self.file.damaged(
                Operation::Read,
                format!("a cluster lies at {cluster_at:#x}, beyond the end of the file: it was cut off"),
            ));
        }
        let there = (file_len.saturating_sub(at) as usize).min(len);
        self.file
            .read_list(at, &mut into.part(0, there))
            .map_err(|error| self.file.failed(Operation::Read, error))?;
        into.zero(there, len - there);
        Ok(())
    }
}

/// Reads from a disk that may be shorter than the one over it: beyond its end there are zeroes.
pub(crate) fn read_clamped(disk: &dyn Disk, offset: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
    let len = into.len();
    let there = (disk.info().size.saturating_sub(offset)).min(len as u64) as usize;
    if there == len {
        return disk.read(offset, into);
    }
    if there > 0 {
        disk.read(offset, &mut into.part(0, there))?;
    }
    into.zero(there, len - there);
    Ok(())
}

/// What a disk that may be shorter holds at a place; zeroes beyond its end.
pub(crate) fn extent_clamped(disk: &dyn Disk, offset: u64, len: u64) -> Result<Extent, Error> {
    let there = disk.info().size.saturating_sub(offset).min(len);
    if there == 0 {
        return Ok(Extent { len, content: Content::Zeroes, depth: 0, present: false, file_offset: None });
    }
    disk.extent(offset, there)
}
