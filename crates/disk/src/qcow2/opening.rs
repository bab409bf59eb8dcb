//! Opening an image, and what is known of it without its tables.

use super::header::{self, Header, HeaderFault};
use super::meta::Meta;
use super::{Qcow2, Qcow2Info, Snapshot, check, spec};
use crate::file::HostFile;
use crate::{Disk, Error, ErrorKind, Operation, SECTOR_SIZE};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, RwLock};

impl Qcow2 {
    /// Reads what an image is, without its tables.
    pub(crate) fn read_info(file: &HostFile) -> Result<Qcow2Info, Error> {
        Qcow2::read_size_and_info(file).map(|(_, info)| info)
    }

    /// The same, and the size of the disk.
    pub(crate) fn read_size_and_info(file: &HostFile) -> Result<(u64, Qcow2Info), Error> {
        let (header, snapshots) = read_header(file)?;
        Ok((header.size, describe(&header, &snapshots)))
    }

    /// Opens an image whose backing file, if it names one, is `backing`; with the name or number of an
    /// internal snapshot, that one, to be read only.
    pub(crate) fn open(
        file: HostFile,
        backing: Option<Arc<dyn Disk>>,
        snapshot: Option<&str>,
    ) -> Result<Qcow2, Error> {
        let (mut header, snapshots) = read_header(&file)?;
        if let Some(wanted) = snapshot {
            let found = snapshots
                .iter()
                .find(|s| s.name == wanted)
                .or_else(|| snapshots.iter().find(|s| s.id == wanted));
            let Some(found) = found else {
                let names: Vec<_> = snapshots.iter().map(|snapshot| format!("{:?}", snapshot.name)).collect();
                let has = if names.is_empty() { "none".into() } else { names.join(", ") };
                return Err(Error::new(ErrorKind::NotFound, Operation::Open)
                    .with_path(file.path())
                    .with_detail(format!("it has no internal snapshot {wanted:?}; it has {has}")));
            };
            (header.l1_at, header.l1_entries, header.size) = (found.l1_at, found.l1_entries, found.disk_size);
        }
        if header.size < SECTOR_SIZE {
            return Err(file.damaged(Operation::Open, "its disk has no size"));
        }
        if file.is_writable() && header.is_corrupt {
            return Err(file.damaged(
                Operation::Open,
                "it is marked as corrupt; repair it with `arnia disk check --repair all`, or open it read-only",
            ));
        }
        if file.is_writable() && header.is_dirty {
            check::repair_dirty(&file)?;
            (header, _) = read_header(&file)?;
        }
        if file.is_writable() && header.autoclear != 0 {
            // Bitmaps and the like, which would be out of date after the first write.
            file.write(spec::AUTOCLEAR_AT, &[0; 8], Operation::Open)?;
            header.autoclear = 0;
        }
        let size = AtomicU64::new(header.size);
        let meta = Meta::read(&file, header)?;
        Ok(Qcow2 {
            file,
            backing: RwLock::new(backing),
            meta: Mutex::new(meta),
            settled: Condvar::new(),
            flushing: Mutex::new(()),
            moving: RwLock::new(()),
            size,
            unpacked: Mutex::default(),
            snapshots,
        })
    }
}

pub(super) fn describe(header: &Header, snapshots: &[Snapshot]) -> Qcow2Info {
    Qcow2Info {
        version: header.version,
        cluster_size: header.cluster_size(),
        refcount_bits: 1 << header.refcount_order,
        compression: header.compression,
        lazy_refcounts: header.lazy_refcounts,
        is_dirty: header.is_dirty,
        is_corrupt: header.is_corrupt,
        backing: header.backing.clone(),
        snapshots: snapshots.to_vec(),
    }
}

pub(super) fn fault(file: &HostFile, fault: HeaderFault) -> Error {
    match fault {
        HeaderFault::Bad(why) => file.damaged(Operation::Open, why),
        HeaderFault::Unsupported(why) => Error::new(ErrorKind::Unsupported, Operation::Open)
            .with_path(file.path())
            .with_detail(format!("{why}, which is not supported; convert it with the program that made it")),
    }
}

pub(super) fn read_header(file: &HostFile) -> Result<(Header, Vec<Snapshot>), Error> {
    // The smallest cluster size first, so that no more is read than belongs to the header.
    let file_len = file.len()?;
    let mut bytes = vec![0; file_len.min(512) as usize];
    file.read(0, &mut bytes, Operation::Open)?;
    let bits = match bytes.get(20..24) {
        Some(_) => crate::bytes::be32(&bytes, 20).clamp(spec::CLUSTER_BITS_MIN, spec::CLUSTER_BITS_MAX),
        None => spec::CLUSTER_BITS_MIN,
    };
    bytes.resize(file_len.min(1 << bits) as usize, 0);
    file.read(0, &mut bytes, Operation::Open)?;
    let header = Header::parse(&bytes).map_err(|why| fault(file, why))?;
    let snapshots = read_snapshots(file, &header)?;
    Ok((header, snapshots))
}

pub(super) fn read_snapshots(file: &HostFile, header: &Header) -> Result<Vec<Snapshot>, Error> {
    if header.snapshots == 0 {
        return Ok(Vec::new());
    }
    let left = file.len()?.saturating_sub(header.snapshots_at);
    let mut bytes = vec![0; left.min(spec::SNAPSHOT_TABLE_BYTES_MAX as u64) as usize];
    file.read(header.snapshots_at, &mut bytes, Operation::Open)?;
    let (mut snapshots, mut rest) = (Vec::new(), &bytes[..]);
    for _ in 0..header.snapshots {
        let (snapshot, len) = header::parse_snapshot(rest, header).map_err(|why| fault(file, why))?;
        snapshots.push(snapshot);
        rest = &rest[len.min(rest.len())..];
    }
    Ok(snapshots)
}
