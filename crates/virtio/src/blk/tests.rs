use super::spec::*;
use super::*;
use crate::Kick;
use crate::queue::RingError;
use crate::spec::feature as ring_feature;
use crate::test::{Bench, Buffer, Driver, MemDisk};
use disk::{IoQueue, Operation, Unmap};
use memory::{Bytes, GuestAddress};
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, OnceLock};

const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x11_0000;
const STATUS: u64 = 0x12_0000;

struct Guest {
    bench: Bench,
    disk: Arc<MemDisk>,
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 512 * 31 + i) as u8).collect()
}

fn guest_with(features: u64, read_only: bool) -> Guest {
    let disk = MemDisk::new(pattern(64 << 10), read_only);
    let mut blk = Blk::new(disk.clone(), BlkConfig { serial: "serial-0123".into(), ..BlkConfig::default() });
    Guest { bench: Bench::new(&mut blk, 64, features), disk }
}

fn guest() -> Guest {
    guest_with(feature::FLUSH | ring_feature::RING_EVENT_IDX, false)
}

impl Guest {
    fn header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[0..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&sector.to_le_bytes());
        self.bench.ram.guest().write_slice(&header, GuestAddress(HEADER)).unwrap();
    }

    /// Does a request with these buffers between header and status; returns status and used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.header(kind, sector);
        let mut buffers = vec![Buffer::Out(HEADER, 16)];
        buffers.extend(data);
        buffers.push(Buffer::In(STATUS, 1));
        self.chain(&buffers)
    }

    fn chain(&mut self, buffers: &[Buffer]) -> (u8, u32) {
        self.bench.ram.store(STATUS, 0xeeu8).unwrap();
        let head = self.bench.rings[0].add(buffers);
        self.bench.settle();
        let (used, len) = self.bench.rings[0].take_used().expect("an answer");
        assert_eq!(used, head);
        (self.bench.ram.load::<u8>(STATUS).unwrap(), len)
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.bench.ram.guest().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn segments(&self, segments: &[(u64, u32, u32)]) -> Buffer {
        let bytes: Vec<u8> = segments
            .iter()
            .flat_map(|(sector, count, flags)| {
                [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
            })
            .collect();
        self.bench.ram.guest().write_slice(&bytes, GuestAddress(DATA)).unwrap();
        Buffer::Out(DATA, bytes.len() as u32)
    }
}

#[test]
fn sectors_are_read_and_written_however_the_buffers_are_cut() {
    let mut guest = guest();
    let read = [Buffer::In(DATA, 100), Buffer::In(DATA + 0x1000, 900), Buffer::In(DATA + 0x3000, 536)];
    assert_eq!(guest.request(T_IN, 3, &read), (S_OK, 1537));
    let expected = pattern(64 << 10);
    assert_eq!(guest.bytes(DATA, 100), expected[1536..1636]);
    assert_eq!(guest.bytes(DATA + 0x1000, 900), expected[1636..2536]);
    assert_eq!(guest.bytes(DATA + 0x3000, 536), expected[2536..3072]);

    guest.bench.ram.guest().write_slice(&[0xab; 1024], GuestAddress(DATA)).unwrap();
    assert_eq!(guest.request(T_OUT, 127, &[Buffer::Out(DATA, 500), Buffer::Out(DATA + 500, 12)]), (S_OK, 1));
    assert_eq!(guest.disk.bytes()[127 * 512..], [0xab; 512]);

    // Header, data and status need not have descriptors of their own (§2.7.4).
    guest.header(T_IN, 0);
    let joined = [Buffer::Out(HEADER, 10), Buffer::Out(HEADER + 10, 6), Buffer::In(DATA, 513)];
    guest.chain(&joined);
    assert_eq!(guest.bytes(DATA, 513), [&expected[..512], &[S_OK]].concat());
}

#[test]
fn flush_and_identification() {
    let mut guest = guest();
    assert_eq!(guest.request(T_FLUSH, 0, &[]), (S_OK, 1));
    assert_eq!(guest.disk.take_log(), [(Operation::Flush, 0, 0)]);
    assert_eq!(guest.request(T_GET_ID, 0, &[Buffer::In(DATA, 20)]), (S_OK, 21));
    assert_eq!(guest.bytes(DATA, 20), b"serial-0123\0\0\0\0\0\0\0\0\0");
}

#[test]
fn discard_and_write_zeroes_take_segments() {
    let mut guest = guest();
    let two = guest.segments(&[(8, 8, 0), (100, 1, 0)]);
    assert_eq!(guest.request(T_DISCARD, 0, &[two]), (S_OK, 1));
    assert_eq!(guest.disk.take_log(), [(Operation::Discard, 4096, 4096), (Operation::Discard, 51200, 512)]);
    let zero = guest.segments(&[(1, 2, 0), (5, 1, SEGMENT_UNMAP)]);
    assert_eq!(guest.request(T_WRITE_ZEROES, 0, &[zero]), (S_OK, 1));
    let bytes = guest.disk.bytes();
    assert!(bytes[512..1536].iter().chain(&bytes[2560..3072]).all(|byte| *byte == 0));
    assert_ne!(bytes[1536..2560], [0; 1024]);
    for (kind, segments, status) in [
        (T_DISCARD, &[(0, 1, 1)][..], S_UNSUPP),
        (T_WRITE_ZEROES, &[(0, 1, 2)], S_UNSUPP),
        (T_DISCARD, &[(0, DISCARD_SECTORS_MAX + 1, 0)], S_IOERR),
        (T_WRITE_ZEROES, &[(0, ZEROES_SECTORS_MAX + 1, 0)], S_IOERR),
        (T_DISCARD, &[(u64::MAX, 1, 0)], S_IOERR),
        (T_DISCARD, &[(0, 1, 0), (128, 1, 0)], S_IOERR),
        (T_DISCARD, &[(0, 1, 0); 17], S_IOERR),
    ] {
        let buffer = guest.segments(segments);
        assert_eq!(guest.request(kind, 0, &[buffer]).0, status, "{kind} {segments:?}");
    }
    assert_eq!(guest.request(T_DISCARD, 0, &[Buffer::Out(DATA, 15)]).0, S_IOERR);
    assert_eq!(guest.request(T_DISCARD, 0, &[]).0, S_IOERR);
}

#[test]
fn wrong_requests_are_answered_with_a_status_and_touch_nothing() {
    let mut guest = guest();
    let before = guest.disk.bytes();
    for (kind, sector, buffer, status) in [
        (T_IN, 128, Buffer::In(DATA, 512), S_IOERR),
        (T_IN, 127, Buffer::In(DATA, 1024), S_IOERR),
        (T_IN, u64::MAX, Buffer::In(DATA, 512), S_IOERR),
        (T_IN, 0, Buffer::In(DATA, 511), S_IOERR),
        (T_OUT, 128, Buffer::Out(DATA, 512), S_IOERR),
        (T_OUT, 0, Buffer::Out(DATA, 513), S_IOERR),
        (T_IN, 0, Buffer::In(1 << 40, 512), S_IOERR),
        (T_OUT, 0, Buffer::Out(u64::MAX - 10, 512), S_IOERR),
        (2, 0, Buffer::Out(DATA, 512), S_UNSUPP),
        (u32::MAX, 0, Buffer::In(DATA, 512), S_UNSUPP),
    ] {
        assert_eq!(guest.request(kind, sector, &[buffer]).0, status, "{kind} {sector} {buffer:?}");
    }
    assert_eq!(guest.chain(&[Buffer::Out(HEADER, 15), Buffer::In(STATUS, 1)]).0, S_IOERR);
    assert_eq!(guest.chain(&[Buffer::In(STATUS, 1)]).0, S_IOERR);
    assert_eq!(guest.disk.bytes(), before);
    assert_eq!(guest.bench.recorder.fault(), None);
    assert_eq!(guest.request(T_IN, 0, &[Buffer::In(DATA, 512)]).0, S_OK, "it still works");
}

#[test]
fn what_cannot_be_answered_breaks_the_queue() {
    for (buffers, error) in [
        (&[Buffer::Out(HEADER, 16)][..], RingError::BadRequest),
        (&[Buffer::Out(HEADER, 16), Buffer::In(1 << 40, 1)], RingError::BadBuffer),
        (&[Buffer::Out(1 << 40, 16), Buffer::In(STATUS, 1)], RingError::BadBuffer),
    ] {
        let mut guest = guest();
        guest.header(T_FLUSH, 0);
        guest.bench.rings[0].add(buffers);
        guest.bench.settle();
        assert_eq!(guest.bench.recorder.fault(), Some((0, error)), "{buffers:?}");
    }
}

#[test]
fn failures_of_the_disk_become_a_status() {
    let mut guest = guest();
    for (operation, kind, buffer) in [
        (Operation::Read, T_IN, Some(Buffer::In(DATA, 512))),
        (Operation::Write, T_OUT, Some(Buffer::Out(DATA, 512))),
        (Operation::Flush, T_FLUSH, None),
    ] {
        guest.disk.fail(Some(operation));
        assert_eq!(guest.request(kind, 0, buffer.as_slice()).0, S_IOERR);
        guest.disk.fail(None);
        assert_eq!(guest.request(kind, 0, buffer.as_slice()).0, S_OK);
    }
    let mut guest = guest_with(feature::FLUSH, true);
    assert_eq!(guest.request(T_OUT, 0, &[Buffer::Out(DATA, 512)]).0, S_IOERR);
    assert_eq!(guest.request(T_IN, 0, &[Buffer::In(DATA, 512)]).0, S_OK);
}

#[test]
fn writes_are_durable_at_once_unless_the_driver_can_flush() {
    for (features, write_back, durable) in [
        (feature::FLUSH, true, 0),
        (0, true, 1),
        (feature::FLUSH | feature::CONFIG_WCE, true, 0),
        (feature::FLUSH | feature::CONFIG_WCE, false, 1),
    ] {
        let disk = MemDisk::new(vec![0; 4096], false);
        let mut blk = Blk::new(disk.clone(), BlkConfig::default());
        blk.config_write(config::WRITEBACK as u64, &[write_back as u8]);
        let mut guest = Guest { bench: Bench::new(&mut blk, 8, features), disk };
        assert_eq!(guest.request(T_OUT, 0, &[Buffer::Out(DATA, 512)]).0, S_OK);
        assert_eq!(guest.disk.durable_writes(), durable, "{features:#x} {write_back}");
    }
}

#[test]
fn the_configuration_says_what_the_disk_is() {
    let disk = MemDisk::new(vec![0; 1 << 20], false);
    let config = BlkConfig { queues: 4, queue_size: 128, ..BlkConfig::default() };
    let driver = Driver::new(Box::new(Blk::new(disk, config)));
    for (offset, len, value) in [
        (config::CAPACITY, 8, 2048),
        (config::SEG_MAX, 4, 126),
        (config::BLK_SIZE, 4, 512),
        (config::PHYSICAL_BLOCK_EXP, 1, 3),
        (config::WRITEBACK, 1, 1),
        (config::NUM_QUEUES, 2, 4),
        (config::MAX_DISCARD_SEG, 4, SEGMENTS_MAX as u64),
        (config::DISCARD_SECTOR_ALIGNMENT, 4, 8),
        (config::WRITE_ZEROES_MAY_UNMAP, 1, 1),
        (config::LEN, 4, 0),
    ] {
        assert_eq!(driver.config(offset as u64, len), value, "{offset}");
    }
    driver.config_write(config::WRITEBACK as u64, &[0]);
    assert_eq!(driver.config(config::WRITEBACK as u64, 1), 0);
    let offered = driver.offered();
    assert_ne!(offered & feature::DISCARD, 0);
    assert_eq!(offered & feature::RO, 0);
    let read_only = Driver::new(Box::new(Blk::new(MemDisk::new(vec![0; 512], true), BlkConfig::default())));
    let offered = read_only.offered();
    assert_eq!(offered & (feature::RO | feature::DISCARD | feature::WRITE_ZEROES), feature::RO);
}

#[test]
fn many_requests_on_many_queues_through_threads() {
    let disk = MemDisk::new(pattern(1 << 20), false);
    let config = BlkConfig { queues: 3, queue_size: 64, ..BlkConfig::default() };
    let mut driver = Driver::new(Box::new(Blk::new(disk.clone(), config)));
    driver.start(64, u64::MAX);
    let expected = pattern(1 << 20);
    for round in 0..100u64 {
        for queue in 0..3usize {
            let before = driver.rings[queue].available_index();
            for i in 0..16u64 {
                let slot = 0x20_0000 + (queue as u64 * 16 + i) * 0x2000;
                let sector = (round * 48 + queue as u64 * 16 + i) % 2040;
                let mut header = [0; 16];
                header[8..16].copy_from_slice(&sector.to_le_bytes());
                driver.ram.guest().write_slice(&header, GuestAddress(slot)).unwrap();
                let buffers =
                    [Buffer::Out(slot, 16), Buffer::In(slot + 0x1000, 1024), Buffer::In(slot + 16, 1)];
                driver.rings[queue].add_indirect(slot + 64, &buffers);
            }
            driver.notify_since(queue, before);
        }
        for queue in 0..3usize {
            for _ in 0..16 {
                assert_eq!(driver.wait_used(queue).1, 1025);
            }
            for i in 0..16u64 {
                let slot = 0x20_0000 + (queue as u64 * 16 + i) * 0x2000;
                let sector = (round * 48 + queue as u64 * 16 + i) % 2040;
                let mut data = [0; 1024];
                driver.ram.guest().read_slice(&mut data, GuestAddress(slot + 0x1000)).unwrap();
                assert_eq!(data, expected[sector as usize * 512..][..1024]);
                assert_eq!(driver.ram.load::<u8>(slot + 16), Some(S_OK));
            }
        }
    }
    // Stopping in the middle loses nothing.
    for i in 0..20 {
        driver.ram.guest().write_slice(&[0; 16], GuestAddress(HEADER)).unwrap();
        driver.rings[0].add(&[Buffer::Out(HEADER, 16), Buffer::In(DATA, 512), Buffer::In(STATUS, 1)]);
        driver.notify(0);
        if i % 3 == 0 {
            driver.function.pause();
            driver.function.resume();
        }
        driver.wait_used(0);
    }
}

#[test]
fn a_saved_device_fits_only_its_disk() {
    let blk = |size| Blk::new(MemDisk::new(vec![0; size], false), BlkConfig::default());
    let mut first = blk(4096);
    first.config_write(config::WRITEBACK as u64, &[0]);
    let saved = first.save();
    let mut same = blk(4096);
    same.restore(saved.clone()).unwrap();
    assert_eq!(same.save(), saved);
    assert!(blk(8192).restore(saved).is_err());
    assert!(blk(4096).restore(DeviceSaved::Rng).is_err());
}

/// A disk that does nothing until it is told to, and then the last request first.
struct Lazy {
    disk: Arc<MemDisk>,
    shared: Arc<LazyShared>,
}

#[derive(Default)]
struct LazyShared {
    /// How many requests may be done.
    allowed: Mutex<usize>,
    kick: OnceLock<Kick>,
    in_flight_max: AtomicUsize,
}

impl LazyShared {
    fn allow(&self, count: usize) {
        *self.allowed.lock().unwrap() += count;
        self.kick.get().unwrap().notify();
    }
}

struct LazyQueue {
    disk: Arc<MemDisk>,
    shared: Arc<LazyShared>,
    depth: usize,
    waiting: Vec<disk::Request>,
}

impl Disk for Lazy {
    fn info(&self) -> disk::DiskInfo {
        self.disk.info()
    }
    fn read(&self, offset: u64, into: &mut disk::Buffers<'_>) -> Result<(), disk::Error> {
        self.disk.read(offset, into)
    }
    fn write(
        &self,
        offset: u64,
        from: &disk::Buffers<'_>,
        durability: Durability,
    ) -> Result<(), disk::Error> {
        self.disk.write(offset, from, durability)
    }
    fn flush(&self) -> Result<(), disk::Error> {
        self.disk.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), disk::Error> {
        self.disk.discard(offset, len)
    }
    fn write_zeroes(
        &self,
        at: u64,
        len: u64,
        unmap: Unmap,
        durability: Durability,
    ) -> Result<(), disk::Error> {
        self.disk.write_zeroes(at, len, unmap, durability)
    }
    fn io_queue(self: Arc<Self>, depth: usize) -> Box<dyn IoQueue> {
        let (disk, shared) = (self.disk.clone(), self.shared.clone());
        // Less than the driver's queue, so that it fills up.
        Box::new(LazyQueue { disk, shared, depth: depth.min(20), waiting: Vec::new() })
    }
}

impl IoQueue for LazyQueue {
    fn submit(&mut self, request: disk::Request) {
        assert!(self.room() > 0);
        self.waiting.push(request);
        self.shared.in_flight_max.fetch_max(self.waiting.len(), Ordering::Relaxed);
    }
    fn complete(&mut self) -> Option<disk::Completion> {
        let kick = self.shared.kick.get().unwrap();
        let mut allowed = self.shared.allowed.lock().unwrap();
        if *allowed == 0 || self.waiting.is_empty() {
            kick.clear();
            return None;
        }
        *allowed -= 1;
        let mut inner = disk::BlockingQueue::new(self.disk.clone(), 1);
        inner.submit(self.waiting.pop()?);
        inner.complete()
    }
    fn room(&self) -> usize {
        self.depth - self.waiting.len()
    }
    fn in_flight(&self) -> usize {
        self.waiting.len()
    }
    fn completion_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.shared.kick.get().map(|kick| std::os::fd::AsFd::as_fd(kick))
    }
}

fn lazy() -> (Blk, Arc<LazyShared>) {
    let shared = Arc::new(LazyShared::default());
    shared.kick.set(Kick::new().unwrap()).unwrap();
    let disk = Lazy { disk: MemDisk::new(pattern(64 << 10), false), shared: shared.clone() };
    (Blk::new(Arc::new(disk), BlkConfig::default()), shared)
}

/// Offers `count` reads of sector n to page n of the data.
fn offer_reads(ram: &memory::Ram, ring: &mut crate::test::DriverRing, count: u64) -> Vec<u16> {
    let offer = |n: u64| {
        let slot = DATA + n * 0x1000;
        let header = [[0; 8], n.to_le_bytes()].concat();
        ram.guest().write_slice(&header, GuestAddress(slot)).unwrap();
        ring.add(&[Buffer::Out(slot, 16), Buffer::In(slot + 512, 512), Buffer::In(slot + 16, 1)])
    };
    (0..count).map(offer).collect()
}

#[test]
fn a_disk_may_work_in_the_background_and_in_any_order() {
    let (mut blk, shared) = lazy();
    let mut bench = Bench::new(&mut blk, 64, ring_feature::RING_EVENT_IDX);
    let heads = offer_reads(&bench.ram, &mut bench.rings[0], 16);
    bench.settle();
    assert_eq!(bench.rings[0].take_used(), None);
    // Room is left only for a request with all its segments: then the disk is waited for.
    assert_eq!(shared.in_flight_max.load(Ordering::Relaxed), 5);
    shared.allow(3);
    bench.settle();
    let used: Vec<u16> = std::iter::from_fn(|| bench.rings[0].take_used()).map(|(head, _)| head).collect();
    assert_eq!(used.len(), 3);
    assert_eq!(used[0], heads[4], "the last of the first five");
    shared.allow(100);
    bench.settle();
    let rest = std::iter::from_fn(|| bench.rings[0].take_used()).count();
    assert_eq!(rest, 13);
    for n in 0..16 {
        let mut data = [0; 512];
        bench.ram.guest().read_slice(&mut data, GuestAddress(DATA + n * 0x1000 + 512)).unwrap();
        assert_eq!(data, pattern(64 << 10)[n as usize * 512..][..512]);
    }
}

/// Pauses the device once three requests are in flight, and lets these be answered.
fn pause_with_three_in_flight(driver: &Driver, shared: &LazyShared) {
    while shared.in_flight_max.load(Ordering::Relaxed) < 3 {
        std::thread::yield_now();
    }
    let function = driver.function.clone();
    let pausing = std::thread::spawn(move || function.pause());
    shared.allow(3);
    pausing.join().unwrap();
}

#[test]
fn stopping_waits_for_what_is_in_flight() {
    let (blk, shared) = lazy();
    let mut driver = Driver::new(Box::new(blk));
    driver.start(64, u64::MAX);
    offer_reads(&driver.ram, &mut driver.rings[0], 3);
    driver.notify(0);
    pause_with_three_in_flight(&driver, &shared);
    assert_eq!(std::iter::from_fn(|| driver.rings[0].take_used()).count(), 3);
    driver.function.resume();
    shared.allow(1);
    offer_reads(&driver.ram, &mut driver.rings[0], 1);
    driver.notify(0);
    driver.wait_used(0);
}

/// Saved with requests in flight, others that the device has not seen, and an interrupt that nobody has taken:
/// each is answered once, whoever answers it.
#[test]
fn a_disk_saved_at_work_answers_all_and_nothing_twice() {
    let (blk, shared) = lazy();
    let mut driver = Driver::new(Box::new(blk));
    driver.start(64, u64::MAX);
    let mut heads = offer_reads(&driver.ram, &mut driver.rings[0], 3);
    driver.notify(0);
    pause_with_three_in_flight(&driver, &shared);
    // The guest has not looked yet, and asks for more of a device that stands still.
    heads.extend(offer_reads(&driver.ram, &mut driver.rings[0], 4));
    driver.notify(0);
    let told = driver.interrupts.messages().len();
    let (blk, shared) = lazy();
    shared.allow(100);
    let mut driver = driver.moved(Box::new(blk));
    let mut used: Vec<u16> = (0..7).map(|_| driver.wait_used(0).0).collect();
    used.sort_unstable();
    heads.sort_unstable();
    assert_eq!(used, heads);
    assert!(told >= 1 && !driver.interrupts.messages().is_empty());
    assert_eq!(driver.rings[0].take_used(), None, "answered twice");
    for n in 0..4 {
        let mut data = [0; 512];
        driver.ram.guest().read_slice(&mut data, GuestAddress(DATA + n * 0x1000 + 512)).unwrap();
        assert_eq!(data, pattern(64 << 10)[n as usize * 512..][..512], "sector {n}");
    }
}

#[test]
fn requests_wait_at_a_limit_until_it_is_lifted() {
    use device::limit::{Limits, Rate};
    let slow = Some(Rate { per_second: 1, burst: 0 });
    for limits in [Limits { bytes: slow, operations: None }, Limits { bytes: None, operations: slow }] {
        let disk = MemDisk::new(pattern(64 << 10), false);
        let config = BlkConfig::default();
        let limiter = config.limiter.clone();
        limiter.set(limits);
        let mut blk = Blk::new(disk.clone(), config);
        let mut guest = Guest { bench: Bench::new(&mut blk, 64, 0), disk };
        guest.header(T_IN, 0);
        for _ in 0..10 {
            guest.bench.rings[0].add(&[
                Buffer::Out(HEADER, 16),
                Buffer::In(DATA, 512),
                Buffer::In(STATUS, 1),
            ]);
        }
        guest.bench.settle();
        let done = std::iter::from_fn(|| guest.bench.rings[0].take_used()).count();
        // One a second at most: nobody is so slow that all of them go through.
        assert!((1..10).contains(&done), "{done} of 10 went through");
        limiter.set(Limits::default());
        guest.bench.settle();
        assert_eq!(std::iter::from_fn(|| guest.bench.rings[0].take_used()).count(), 10 - done);
    }
}
