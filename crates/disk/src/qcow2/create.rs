//! Making an image.

use super::Qcow2;
use super::header::{Backing, Compression, Header, encode};
use super::meta::write_count;
use super::spec::*;
use crate::file::HostFile;
use crate::{Disk, Error, ErrorKind, Operation};
use std::path::Path;
use std::sync::Arc;

/// What a new image is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Size of the disk in bytes, a multiple of 512.
    pub size: u64,
    /// 2 or 3.
    pub version: u32,
    /// Unit of allocation in bytes: a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// How clusters are compressed, if some will be.
    pub compression: Compression,
    /// Whether other programs may leave reference counts out of date while they use it.
    pub lazy_refcounts: bool,
    /// The backing file to name.
    pub backing: Option<Backing>,
}

impl CreateOptions {
    /// An image for a disk of `size` bytes, with defaults for all else.
    pub fn new(size: u64) -> CreateOptions {
        CreateOptions {
            size,
            version: 3,
            cluster_size: 64 << 10,
            compression: Compression::Zlib,
            lazy_refcounts: false,
            backing: None,
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.size == 0 || !self.size.is_multiple_of(512) || self.size > 1 << 62 {
            return Err(format!("{} bytes is no size for a disk: give a multiple of 512", self.size));
        }
        if !self.cluster_size.is_power_of_two()
            || !(CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(&self.cluster_size.ilog2())
        {
            return Err("the cluster size is a power of two from 512 bytes to 2 MiB".into());
        }
        let l1_entries = self.size.div_ceil(self.cluster_size * self.cluster_size / 8);
        if l1_entries * 8 > L1_BYTES_MAX {
            return Err("a disk of this size needs larger clusters".into());
        }
        if !(2..=3).contains(&self.version) {
            return Err("the version is 2 or 3".into());
        }
        if self.version == 2 && (self.compression != Compression::Zlib || self.lazy_refcounts) {
            return Err("version 2 has neither zstd nor lazy reference counts".into());
        }
        if let Some(backing) = &self.backing
            && (backing.name.is_empty() || backing.name.len() > BACKING_NAME_MAX as usize)
        {
            return Err("the name of the backing file is too long: at most 1023 bytes".into());
        }
        Ok(())
    }
}

impl Qcow2 {
    /// Creates an image; a file that is there already is not touched. `backing` is the disk behind the
    /// name in the options.
    pub(crate) fn create(
        path: &Path,
        options: &CreateOptions,
        backing: Option<Arc<dyn Disk>>,
    ) -> Result<Qcow2, Error> {
        options.check().map_err(|why| {
            Error::new(ErrorKind::Unsupported, Operation::Create).with_path(path).with_detail(why)
        })?;
        let file = HostFile::create(path)?;
        match write_empty(&file, options) {
            Ok(()) => Qcow2::open(file, backing, None),
            Err(error) => {
                let _ = std::fs::remove_file(path);
                Err(error)
            }
        }
    }
}

/// Writes `header, refcount table, refcount blocks, L1 table`.
pub(super) fn write_empty(file: &HostFile, options: &CreateOptions) -> Result<(), Error> {
    let size = options.cluster_size;
    let bits = size.ilog2();
    let l1_entries = options.size.div_ceil(size * size / 8);
    let l1_clusters = (l1_entries * 8).div_ceil(size);
    // 16-bit counts.
    let (order, per_block, per_table) = (4, size / 2, size / 8);
    let (mut table_clusters, mut blocks) = (1, 1);
    let clusters = loop {
        let clusters = 1 + table_clusters + blocks + l1_clusters;
        if clusters <= blocks * per_block && blocks <= table_clusters * per_table {
            break clusters;
        }
        blocks = clusters.div_ceil(per_block);
        table_clusters = blocks.div_ceil(per_table);
    };
    let header = Header {
        version: options.version,
        cluster_bits: bits,
        size: options.size,
        l1_entries: l1_entries as u32,
        l1_at: (1 + table_clusters + blocks) << bits,
        reftable_at: size,
        reftable_clusters: table_clusters as u32,
        snapshots: 0,
        snapshots_at: 0,
        refcount_order: order,
        is_dirty: false,
        is_corrupt: false,
        lazy_refcounts: options.lazy_refcounts,
        autoclear: 0,
        compression: options.compression,
        backing: options.backing.clone(),
        bitmaps: None,
    };
    let head = encode(&header);
    if head.len() as u64 > size {
        return Err(Error::new(ErrorKind::Unsupported, Operation::Create)
            .with_path(file.path())
            .with_detail("the name of the backing file does not fit into one cluster"));
    }
    let mut counts = vec![0; (blocks << bits) as usize];
    for cluster in 0..clusters {
        write_count(&mut counts[cluster as usize * 2..], order, 0, 1);
    }
    let first_block = 1 + table_clusters;
    let table: Vec<u8> =
        (first_block..first_block + blocks).flat_map(|block| (block << bits).to_be_bytes()).collect();
    // What is not written is zero, since the file is new.
    file.set_len(clusters << bits, Operation::Create)?;
    file.write(size, &table, Operation::Create)?;
    file.write(first_block << bits, &counts, Operation::Create)?;
    // Last, so that what is cut short is no image.
    file.write(0, &head, Operation::Create)
}
