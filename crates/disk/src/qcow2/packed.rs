//! Compressed clusters.

use super::Qcow2;
use super::header::Compression;
use super::meta::{Mapping, Meta};
use super::spec::CLUSTER_BITS_MAX;
use crate::file::HostFile;
use crate::{Disk, Error, Operation};
use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;

/// How much of unpacked clusters is kept: guests read a cluster in several pieces.
const KEPT_BYTES: usize = 4 << 20;

/// Clusters that were unpacked lately, by their place in the file.
#[derive(Default)]
pub(super) struct Unpacked {
    clusters: VecDeque<(u64, Arc<[u8]>)>,
}

impl Unpacked {
    /// The content of a compressed cluster.
    pub(super) fn cluster(
        &mut self,
        file: &HostFile,
        compression: Compression,
        at: u64,
        len: u32,
        cluster_size: usize,
    ) -> Result<Arc<[u8]>, Error> {
        if let Some(index) = self.clusters.iter().position(|(place, _)| *place == at) {
            let found = self.clusters.remove(index).expect("it was found");
            self.clusters.push_back(found.clone());
            return Ok(found.1);
        }
        // The length is in sectors: the last may reach beyond the end of the file.
        let mut packed = vec![0; len as usize];
        file.read_padded(at, &mut packed, Operation::Read)?;
        let bytes: Arc<[u8]> = unpack(compression, &packed, cluster_size)
            .ok_or_else(|| {
                file.damaged(Operation::Read, format!("the compressed cluster at {at:#x} cannot be unpacked"))
            })?
            .into();
        while self.clusters.len() * cluster_size >= KEPT_BYTES {
            self.clusters.pop_front();
        }
        self.clusters.push_back((at, bytes.clone()));
        Ok(bytes)
    }

    pub(super) fn clear(&mut self) {
        self.clusters.clear();
    }
}

/// Unpacks exactly `len` bytes; `None` when the data is damaged. Whatever it is, no more memory is taken
/// than for those and a window of the largest cluster size.
pub(super) fn unpack(compression: Compression, packed: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    match compression {
        Compression::Zlib => {
            let mut inflate = flate2::Decompress::new(false);
            inflate.decompress(packed, &mut bytes, flate2::FlushDecompress::Finish).ok();
            (inflate.total_out() == len as u64).then_some(bytes)
        }
        Compression::Zstd => {
            let mut decoder = ruzstd::decoding::FrameDecoder::new();
            decoder.set_max_window_size(1 << (CLUSTER_BITS_MAX + 1));
            let mut decoder = ruzstd::decoding::StreamingDecoder::new_with_decoder(packed, decoder).ok()?;
            decoder.read_exact(&mut bytes).ok()?;
            Some(bytes)
        }
    }
}

/// Packs a cluster; `None` when that would not make it smaller.
pub(super) fn pack(compression: Compression, bytes: &[u8]) -> Option<Vec<u8>> {
    match compression {
        Compression::Zlib => {
            // A window of 4 KiB: QEMU unpacks with no larger one.
            let mut deflate =
                flate2::Compress::new_with_window_bits(flate2::Compression::default(), false, 12);
            let mut packed = vec![0; bytes.len()];
            let status = deflate.compress(bytes, &mut packed, flate2::FlushCompress::Finish);
            if !matches!(status, Ok(flate2::Status::StreamEnd)) || deflate.total_out() >= bytes.len() as u64 {
                return None;
            }
            packed.truncate(deflate.total_out() as usize);
            Some(packed)
        }
        Compression::Zstd => {
            let level = ruzstd::encoding::CompressionLevel::Fastest;
            let packed = ruzstd::encoding::compress_to_vec(bytes, level);
            (packed.len() < bytes.len()).then_some(packed)
        }
    }
}

/// Where the next compressed cluster goes: behind the last one, as long as that has room.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PackedEnd {
    at: u64,
    left: u64,
}

impl Qcow2 {
    /// Writes one whole cluster of an image that is being made, compressed if that pays. The cluster was
    /// never written before, and the image is not shared yet.
    pub(crate) fn write_packed(
        &self,
        cluster: u64,
        bytes: &[u8],
        end: &std::sync::Mutex<PackedEnd>,
    ) -> Result<(), Error> {
        let operation = Operation::Convert;
        let compression = self.lock().header.compression;
        let Some(packed) = pack(compression, bytes) else {
            let offset = cluster * bytes.len() as u64;
            let len = (self.info().size - offset).min(bytes.len() as u64) as usize;
            let from = crate::Buffers::from_slice(&bytes[..len]);
            return self.write(offset, &from, crate::Durability::AtFlush);
        };
        self.make_room()?;
        let mut end = end.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut meta = self.lock();
        let at = self.place_packed(&mut meta, &mut end, packed.len() as u64)?;
        meta.own_l2(&self.file, cluster, operation)?;
        drop(meta);
        drop(end);
        self.file.write(at, &packed, operation)?;
        let mut meta = self.lock();
        meta.set_mapping(&self.file, cluster, Mapping::Packed(at, packed.len() as u32), operation)
    }

    /// Takes `len` bytes of the file; each cluster of the file counts how many compressed ones are in it.
    fn place_packed(&self, meta: &mut Meta, end: &mut PackedEnd, len: u64) -> Result<u64, Error> {
        let operation = Operation::Convert;
        let (bits, size) = (meta.header.cluster_bits, meta.header.cluster_size());
        if end.left < len {
            let (place, _) = meta.allocate(&self.file, 1, operation)?;
            meta.take_fresh(place, 1);
            let follows = end.left > 0 && place == end.at + end.left;
            if !follows {
                (end.at, end.left) = (place, 0);
            }
            end.left += size;
        }
        let at = end.at;
        let last = (at + len - 1) >> bits;
        // The cluster where it begins is counted already by what took it, unless this is the first in it.
        for cluster in at >> bits..=last {
            let is_new = cluster << bits >= at;
            if !is_new && !meta.count_up(&self.file, cluster, operation)? {
                // So many that its count is full: begin anew.
                *end = PackedEnd::default();
                return self.place_packed(meta, end, len);
            }
        }
        (end.at, end.left) = (at + len, end.left - len);
        if end.left == 0 {
            *end = PackedEnd::default();
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_is_unpacked() {
        let bytes: Vec<u8> = (0..65536u32).map(|i| ((i / 97) ^ (i / 1000)) as u8).collect();
        let noise: Vec<u8> =
            (0..65536u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
        for compression in [Compression::Zlib, Compression::Zstd] {
            let packed = pack(compression, &bytes).unwrap();
            assert!(packed.len() < bytes.len() / 2);
            assert_eq!(unpack(compression, &packed, bytes.len()).unwrap(), bytes);
            let mut padded = packed.clone();
            padded.resize(packed.len() + 511, 0xaa);
            assert_eq!(unpack(compression, &padded, bytes.len()).unwrap(), bytes, "with what follows it");
            assert_eq!(unpack(compression, &packed[..packed.len() / 2], bytes.len()), None);
            assert_eq!(unpack(compression, &packed, bytes.len() + 1), None);
            if let Some(packed) = pack(compression, &noise) {
                assert!(packed.len() < noise.len());
            }
            assert_eq!(unpack(compression, &noise, 65536), None);
        }
    }
}
