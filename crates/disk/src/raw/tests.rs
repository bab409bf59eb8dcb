use super::*;
use crate::{IoQueue, Request, RequestKind};
use memory::{Bytes, GuestAddress, Ram};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// A file that is removed at the end of the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(bytes: &[u8]) -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("disk-raw-{}-{number}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Scratch(path)
    }

    fn open(&self) -> Raw {
        Raw::open(&self.0, Access::ReadWrite).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn kind_of(path: &Path, access: Access) -> Option<ErrorKind> {
    Raw::open(path, access).err().map(|error| error.kind())
}

#[test]
fn data_moves_between_file_and_scattered_guest_memory() {
    let content: Vec<u8> = (0..8192u32).map(|i| (i * 7 / 3) as u8).collect();
    let scratch = Scratch::new(&content);
    let disk = scratch.open();
    let ram = Arc::new(Ram::new(1 << 20).unwrap());
    ram.set_dirty_logging(true);
    let mut buffers = Buffers::guest(ram.clone());
    for (gpa, len) in [(0x3000, 1000), (0x1001, 24), (0x8000, 3072)] {
        buffers.push(gpa, len).unwrap();
    }
    disk.read(512, &mut buffers).unwrap();
    assert_eq!(ram.take_dirty().iter().collect::<Vec<_>>(), [1, 3, 8]);
    let mut read = vec![0; 4096];
    buffers.copy_to(0, &mut read);
    assert_eq!(read, content[512..][..4096]);
    let mut part = [0; 24];
    ram.guest().read_slice(&mut part, GuestAddress(0x1001)).unwrap();
    assert_eq!(part, content[1512..1536]);

    for (offset, durability) in [(3072, Durability::AtFlush), (4096, Durability::AtCompletion)] {
        disk.write(offset, &buffers, durability).unwrap();
        assert_eq!(scratch.bytes()[offset as usize..][..4096], content[512..][..4096]);
    }
    disk.flush().unwrap();
}

#[test]
fn lists_longer_than_one_system_call_takes_are_moved_whole() {
    let content: Vec<u8> = (0..1 << 20u32).map(|i| (i ^ i >> 8) as u8).collect();
    let scratch = Scratch::new(&content);
    let disk = scratch.open();
    let ram = Arc::new(Ram::new(4 << 20).unwrap());
    let mut buffers = Buffers::guest(ram);
    for i in 0..3000 {
        buffers.push(i * 512, 300).unwrap();
    }
    disk.read(100_000, &mut buffers).unwrap();
    let mut read = vec![0; buffers.len()];
    buffers.copy_to(0, &mut read);
    assert_eq!(read, content[100_000..][..900_000]);
    disk.write(0, &buffers, Durability::AtFlush).unwrap();
    assert_eq!(scratch.bytes()[..900_000], content[100_000..][..900_000]);
}

#[test]
fn zeroes_are_zeroes_whichever_way_the_host_makes_them() {
    for (punch, zero) in [(true, true), (false, true), (true, false), (false, false)] {
        for unmap in [Unmap::Keep, Unmap::Allowed] {
            let scratch = Scratch::new(&[0xaa; 300_032]);
            let disk = scratch.open();
            disk.file.pretend(punch, zero);
            disk.write_zeroes(512, 200_000, unmap, Durability::AtCompletion).unwrap();
            let bytes = scratch.bytes();
            assert_eq!(bytes.len(), 300_032);
            assert!(bytes[..512].iter().all(|byte| *byte == 0xaa));
            assert!(bytes[512..200_512].iter().all(|byte| *byte == 0));
            assert!(bytes[200_512..].iter().all(|byte| *byte == 0xaa));
        }
    }
}

#[test]
fn a_discard_keeps_the_size_and_the_neighbours() {
    let scratch = Scratch::new(&[0x55; 1 << 16]);
    let disk = scratch.open();
    disk.discard(8192, 1 << 14).unwrap();
    let bytes = scratch.bytes();
    assert_eq!(bytes.len(), 1 << 16);
    assert!(bytes[..8192].iter().chain(&bytes[8192 + (1 << 14)..]).all(|byte| *byte == 0x55));
    let inside = &bytes[8192..8192 + (1 << 14)];
    assert!(inside.iter().all(|byte| *byte == 0) || inside.iter().all(|byte| *byte == 0x55));
}

#[test]
fn what_lies_beyond_the_end_or_may_not_change_is_refused() {
    let scratch = Scratch::new(&[1; 512]);
    let disk = scratch.open();
    let mut byte = [0];
    let kind = |result: Result<(), Error>| result.unwrap_err().kind();
    assert_eq!(kind(disk.read(512, &mut Buffers::from_mut(&mut byte))), ErrorKind::OutOfRange);
    let source = Buffers::from_slice(&[9; 2]);
    assert_eq!(kind(disk.write(u64::MAX, &source, Durability::AtFlush)), ErrorKind::OutOfRange);
    assert_eq!(kind(disk.discard(0, u64::MAX)), ErrorKind::OutOfRange);
    drop(disk);
    let disk = Raw::open(&scratch.0, Access::ReadOnly).unwrap();
    assert_eq!(kind(disk.write(0, &source, Durability::AtFlush)), ErrorKind::ReadOnly);
    assert_eq!(kind(disk.discard(0, 1)), ErrorKind::ReadOnly);
    assert_eq!(kind(disk.write_zeroes(0, 1, Unmap::Keep, Durability::AtFlush)), ErrorKind::ReadOnly);
    disk.flush().unwrap();
    assert_eq!(scratch.bytes(), [1; 512]);
}

#[test]
fn a_file_that_ends_within_a_sector_loses_nothing() {
    let scratch = Scratch::new(&[1; 1000]);
    let padded = [vec![1; 1000], vec![0; 24]].concat();
    let disk = Arc::new(Raw::open(&scratch.0, Access::ReadOnly).unwrap());
    assert_eq!(disk.info().size, 1024);
    assert_eq!(crate::ImageInfo::read(&scratch.0, None).unwrap().size, 1024);
    for (offset, len) in [(0, 1024), (512, 512), (990, 20), (999, 2), (1000, 24), (1010, 14), (0, 1000)] {
        let mut bytes = vec![7; len];
        disk.read(offset, &mut Buffers::from_mut(&mut bytes)).unwrap();
        assert_eq!(bytes, padded[offset as usize..][..len], "{offset} {len}");
        let mut bytes = vec![7; len];
        if let Some(result) = disk.read_now(offset, &mut Buffers::from_mut(&mut bytes)) {
            result.unwrap();
            assert_eq!(bytes, padded[offset as usize..][..len], "{offset} {len}");
        }
    }
    // By each kind of queue.
    disk.prepare_queues(1);
    let queues: [Box<dyn IoQueue>; 3] = [
        disk.clone().io_queue(4),
        Box::new(PoolQueue::new(disk.clone(), 4).unwrap()),
        Box::new(BlockingQueue::new(disk.clone(), 4)),
    ];
    let ram = Arc::new(Ram::new(1 << 16).unwrap());
    for mut queue in queues {
        ram.guest().write_slice(&[7; 1024], GuestAddress(0x100)).unwrap();
        let mut buffers = Buffers::guest(ram.clone());
        buffers.push(0x100, 1024).unwrap();
        queue.submit(Request { token: 1, kind: RequestKind::Read, offset: 0, buffers });
        queue.kick();
        let done = loop {
            match queue.complete() {
                Some(done) => break done,
                None => std::thread::yield_now(),
            }
        };
        done.result.unwrap();
        let mut bytes = vec![0; 1024];
        ram.guest().read_slice(&mut bytes, GuestAddress(0x100)).unwrap();
        assert_eq!(bytes, padded);
    }
    assert_eq!(scratch.bytes(), [1; 1000], "to read changes nothing");
    // What is cut off is not what ended so.
    File::options().write(true).open(&scratch.0).unwrap().set_len(900).unwrap();
    assert!(disk.read(512, &mut Buffers::from_mut(&mut [0; 512])).is_err());
    drop(disk);
    std::fs::write(&scratch.0, [1; 1000]).unwrap();
    // Into another format, too.
    let source: Arc<dyn Disk> = Arc::new(Raw::open(&scratch.0, Access::ReadOnly).unwrap());
    let target = scratch.0.with_extension("qcow2");
    let options = crate::TargetOptions::new(crate::Format::Qcow2);
    crate::convert(&source, &target, &options, &Progress::default()).unwrap();
    drop(source);
    let image = crate::Image::open(&target, &crate::OpenOptions::new(Access::ReadOnly)).unwrap();
    std::fs::remove_file(&target).unwrap();
    let mut bytes = vec![7; 1024];
    image.disk.read(0, &mut Buffers::from_mut(&mut bytes)).unwrap();
    assert!(bytes == padded && image.disk.info().size == 1024);
    // To be written it has whole sectors.
    let disk = scratch.open();
    assert_eq!((disk.info().size, scratch.bytes()), (1024, padded));
    disk.write(1000, &Buffers::from_slice(&[9; 24]), Durability::AtFlush).unwrap();
    assert_eq!(scratch.bytes()[999..], [vec![1], vec![9; 24]].concat());
}

#[test]
fn a_file_that_shrank_is_an_error_not_zeroes() {
    let scratch = Scratch::new(&[1; 4096]);
    let disk = scratch.open();
    File::options().write(true).open(&scratch.0).unwrap().set_len(1024).unwrap();
    let mut bytes = [0; 1024];
    let error = disk.read(512, &mut Buffers::from_mut(&mut bytes)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("shorter"), "{error}");
}

#[test]
fn a_disk_that_another_has_open_is_refused_with_the_cause() {
    let scratch = Scratch::new(&[0; 512]);
    let first = scratch.open();
    let error = Raw::open(&scratch.0, Access::ReadWrite).err().expect("locked");
    assert_eq!(error.kind(), ErrorKind::LockedByOther);
    assert!(error.to_string().contains("another virtual machine is using it"), "{error}");
    assert_eq!(kind_of(&scratch.0, Access::ReadOnly), Some(ErrorKind::LockedByOther));
    drop(first);
    let readers = [Access::ReadOnly; 2].map(|access| Raw::open(&scratch.0, access).unwrap());
    assert_eq!(kind_of(&scratch.0, Access::ReadWrite), Some(ErrorKind::LockedByOther));
    drop(readers);
    assert_eq!(kind_of(&scratch.0, Access::ReadWrite), None);
}

#[test]
fn what_is_no_disk_is_refused_by_kind() {
    let empty = Scratch::new(&[0; 511]);
    for (path, kind) in [
        (Path::new("/nonexistent/disk.img"), ErrorKind::NotFound),
        (Path::new("/tmp"), ErrorKind::BadFormat),
        (Path::new("/dev/null"), ErrorKind::BadFormat),
        (&empty.0, ErrorKind::BadFormat),
    ] {
        assert_eq!(kind_of(path, Access::ReadOnly), Some(kind), "{}", path.display());
        assert_eq!(kind_of(path, Access::ReadWrite), Some(kind), "{}", path.display());
    }
}

#[test]
fn a_blocking_queue_finishes_requests_in_order() {
    let scratch = Scratch::new(&[3; 4096]);
    let disk: Arc<dyn Disk> = Arc::new(scratch.open());
    let mut queue = BlockingQueue::new(disk, 4);
    let ram = Arc::new(Ram::new(1 << 16).unwrap());
    let buffers = |len| {
        let mut buffers = Buffers::guest(ram.clone());
        buffers.push(0x100, len).unwrap();
        buffers
    };
    for (token, kind, offset, len) in [
        (7, RequestKind::Read, 0, 512),
        (8, RequestKind::Write(Durability::AtFlush), 4096, 1),
        (9, RequestKind::WriteZeroes(512, Unmap::Keep, Durability::AtFlush), 0, 0),
        (10, RequestKind::Flush, 0, 0),
    ] {
        queue.submit(Request { token, kind, offset, buffers: buffers(len) });
    }
    assert_eq!((queue.room(), queue.in_flight()), (0, 4));
    let done: Vec<_> = std::iter::from_fn(|| queue.complete()).map(|c| (c.token, c.result.is_ok())).collect();
    assert_eq!(done, [(7, true), (8, false), (9, true), (10, true)]);
    assert_eq!(queue.room(), 4);
    assert_eq!(scratch.bytes()[..513], [vec![0; 512], vec![3]].concat());
}
