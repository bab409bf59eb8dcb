use super::spec::*;
use super::*;
use crate::queue::RingError;
use crate::test::{Bench, Buffer, MemDisk};
use device::limit::{Limiter, Limits, Rate};
use disk::Operation;
use memory::{Bytes, GuestAddress};

const REQUEST: u64 = 0x10_0000;
const ANSWER: u64 = 0x11_0000;
const OUT: u64 = 0x12_0000;
const IN: u64 = 0x13_0000;

struct Guest {
    bench: Bench,
    device: Scsi,
    disk: Arc<MemDisk>,
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 512 * 31 + i) as u8).collect()
}

fn device(disk: &Arc<MemDisk>) -> Scsi {
    // A disc that is cut off in its last block.
    let disc = MemDisk::new(pattern(5 * 1024), true);
    Scsi::new(
        vec![
            TargetConfig::Disk {
                disk: disk.clone(),
                serial: "serial-1".into(),
                limiter: Arc::new(Limiter::new(Limits::default())),
            },
            TargetConfig::Cd(Some(disc)),
        ],
        1,
    )
}

fn guest() -> Guest {
    let disk = MemDisk::new(pattern(64 << 10), false);
    let mut device = device(&disk);
    Guest { bench: Bench::new(&mut device, 64, 0), device, disk }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    response: u8,
    status: u8,
    sense: Option<(u8, u8)>,
    residual: u32,
    data: Vec<u8>,
}

fn good(data: Vec<u8>, residual: u32) -> Answer {
    Answer { response: S_OK, status: GOOD, sense: None, residual, data }
}

impl Guest {
    fn command(&mut self, target: u8, lun: u8, cdb: &[u8], out: &[u8], len: u32) -> Answer {
        let mut request = vec![0; (REQUEST_HEAD + CDB_SIZE) as usize];
        request[..4].copy_from_slice(&[1, target, 0x40, lun]);
        request[REQUEST_HEAD as usize..][..cdb.len()].copy_from_slice(cdb);
        let ram = self.bench.ram.clone();
        ram.guest().write_slice(&request, GuestAddress(REQUEST)).unwrap();
        ram.guest().write_slice(out, GuestAddress(OUT)).unwrap();
        let answer_len = (ANSWER_HEAD + SENSE_SIZE) as usize;
        let mut buffers = vec![Buffer::Out(REQUEST, request.len() as u32)];
        // In two pieces, so that lists are passed on as such.
        let half = out.len() as u32 / 3;
        buffers.extend([Buffer::Out(OUT, half), Buffer::Out(OUT + u64::from(half), out.len() as u32 - half)]);
        buffers.push(Buffer::In(ANSWER, answer_len as u32));
        buffers.extend([Buffer::In(IN, len / 3), Buffer::In(IN + u64::from(len / 3), len - len / 3)]);
        buffers.retain(|buffer| !matches!(buffer, Buffer::Out(_, 0) | Buffer::In(_, 0)));
        let head = self.bench.rings[REQUEST_QUEUE].add(&buffers);
        self.bench.settle();
        let (used, written) = self.bench.rings[REQUEST_QUEUE].take_used().expect("an answer");
        assert_eq!(used, head);
        let mut bytes = vec![0; answer_len];
        ram.guest().read_slice(&mut bytes, GuestAddress(ANSWER)).unwrap();
        let mut data = vec![0; written as usize - answer_len];
        ram.guest().read_slice(&mut data, GuestAddress(IN)).unwrap();
        let has_sense = bytes[..4] != [0; 4];
        let sense = has_sense.then(|| (bytes[ANSWER_HEAD as usize + 2], bytes[ANSWER_HEAD as usize + 12]));
        let residual = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        Answer { response: bytes[11], status: bytes[10], sense, residual, data }
    }

    fn failed(&mut self, cdb: &[u8], out: &[u8], len: u32) -> (u8, u8) {
        let answer = self.command(0, 0, cdb, out, len);
        assert_eq!((answer.response, answer.status), (S_OK, CHECK_CONDITION), "{answer:?}");
        answer.sense.expect("sense data")
    }
}

#[test]
fn blocks_are_read_and_written_however_the_buffers_are_cut() {
    let mut guest = guest();
    let read = [0x28, 0, 0, 0, 0, 3, 0, 0, 4];
    assert_eq!(guest.command(0, 0, &read, &[], 2048), good(pattern(64 << 10)[1536..3584].to_vec(), 0));
    // More room than data, and less.
    assert_eq!(guest.command(0, 0, &read, &[], 3000).residual, 952);
    assert_eq!(guest.command(0, 0, &read, &[], 700).data, pattern(64 << 10)[1536..2236]);
    let bytes: Vec<u8> = (0..1024).map(|i| (i * 7) as u8).collect();
    assert_eq!(guest.command(0, 0, &[0x2a, 8, 0, 0, 0, 9, 0, 0, 2], &bytes, 0), good(vec![], 0));
    assert_eq!(guest.disk.bytes()[9 * 512..][..1024], bytes);
    assert_eq!(guest.disk.durable_writes(), 1);
    guest.disk.take_log();
    assert_eq!(guest.command(0, 0, &[0x35], &[], 0), good(vec![], 0));
    assert_eq!(guest.disk.take_log(), [(Operation::Flush, 0, 0)]);
    // What is not needed, and the same block everywhere.
    let mut list = vec![0; 24];
    (list[3], list[15], list[19]) = (16, 8, 16);
    guest.command(0, 0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24], &list, 0);
    assert_eq!(guest.disk.take_log(), [(Operation::Discard, 4096, 8192)]);
    guest.command(0, 0, &[0x41, 0, 0, 0, 0, 1, 0, 0, 3], &[5; 512], 0);
    assert_eq!(guest.disk.bytes()[512..2048], [5; 1536]);
    guest.disk.take_log();
    guest.command(0, 0, &[0x93, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8], &[], 0);
    assert_eq!(guest.disk.take_log(), [(Operation::WriteZeroes, 0, 4096)]);
}

#[test]
fn what_fails_is_told_with_sense_data() {
    let mut guest = guest();
    assert_eq!(guest.failed(&[0x28, 0, 0, 0, 0, 127, 0, 0, 2], &[], 1024), (5, 0x21));
    assert_eq!(guest.failed(&[0xee], &[], 0), (5, 0x20));
    assert_eq!(guest.failed(&[0x41, 0, 0, 0, 0, 1, 0, 0, 3], &[5; 100], 0), (5, 0x26));
    guest.disk.fail(Some(Operation::Read));
    assert_eq!(guest.failed(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1], &[], 512), (3, 0x11));
    guest.disk.fail(Some(Operation::Write));
    assert_eq!(guest.failed(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1], &[0; 512], 0), (3, 0x0c));
    assert_eq!(guest.bench.recorder.fault(), None);
}

#[test]
fn targets_and_units_are_found_and_others_are_not() {
    let mut guest = guest();
    assert_eq!(guest.command(7, 0, &[0], &[], 0).response, S_BAD_TARGET);
    assert_eq!(guest.command(0, 1, &[0], &[], 0).sense, Some((5, 0x25)));
    assert_eq!(guest.command(0, 1, &[0x12, 0, 0, 0, 36], &[], 36).data[0], 0x7f);
    let luns = guest.command(1, 0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 256);
    assert_eq!(luns.data, [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // The drive: first that it was reset, then its disc, whose end is zero.
    assert_eq!(guest.command(1, 0, &[0], &[], 0).sense, Some((6, 0x29)));
    assert_eq!(guest.command(1, 0, &[0x12, 0, 0, 0, 36], &[], 36).data[0], 5);
    let last = guest.command(1, 0, &[0x28, 0, 0, 0, 0, 2, 0, 0, 1], &[], 2048);
    assert_eq!(last, good([&pattern(5 * 1024)[4096..], &[0; 1024]].concat(), 0));
    // Another disc, unless the guest holds the one that is there.
    let control = guest.device.control();
    assert_eq!(guest.command(1, 0, &[0x1e, 0, 0, 0, 1], &[], 0).status, GOOD);
    assert_eq!(control.change_disc(1, None, false), Err(DiscError::Held));
    assert_eq!(control.change_disc(0, None, true), Err(DiscError::NoSuchDrive));
    assert_eq!(control.change_disc(1, None, true), Ok(()));
    assert_eq!(guest.command(1, 0, &[0], &[], 0).sense, Some((2, 0x3a)));
}

#[test]
fn tasks_are_managed_and_the_state_goes_on() {
    let mut guest = guest();
    let ask = |guest: &mut Guest, request: &[u8], len: u32| {
        guest.bench.ram.guest().write_slice(request, GuestAddress(REQUEST)).unwrap();
        guest.bench.rings[0].add(&[Buffer::Out(REQUEST, request.len() as u32), Buffer::In(ANSWER, len)]);
        guest.bench.settle();
        assert_eq!(guest.bench.rings[0].take_used().map(|used| used.1), Some(len));
        let mut bytes = vec![0; len as usize];
        guest.bench.ram.guest().read_slice(&mut bytes, GuestAddress(ANSWER)).unwrap();
        bytes
    };
    let tmf = |function: u8, target: u8| {
        [&[0, 0, 0, 0, function, 0, 0, 0, 1, target, 0x40, 0, 0, 0, 0, 0][..], &[0; 8]].concat()
    };
    assert_eq!(ask(&mut guest, &tmf(0, 0), 1), [S_OK]);
    assert_eq!(ask(&mut guest, &tmf(5, 9), 1), [S_BAD_TARGET]);
    assert_eq!(ask(&mut guest, &tmf(99, 0), 1), [S_FUNCTION_REJECTED]);
    assert_eq!(ask(&mut guest, &[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 5), [0, 0, 0, 0, S_OK]);
    guest.command(1, 0, &[0], &[], 0);
    let works = std::mem::take(&mut guest.bench.works);
    assert_eq!(guest.device.deactivate(works).len(), 3);
    let saved = guest.device.save();
    let mut other = device(&guest.disk);
    other.restore(saved.clone()).unwrap();
    assert_eq!(other.save(), saved);
    let mut smaller = device(&MemDisk::new(vec![0; 4096], false));
    assert!(smaller.restore(saved).is_err(), "a disk of another size");
}

/// A guest with two disks; the rate of the first is kept.
struct Slow {
    guest: Guest,
    other: Arc<MemDisk>,
    limiter: Arc<Limiter>,
}

impl Slow {
    /// The first request goes through, and pays for an hour.
    fn new() -> Slow {
        let disk = MemDisk::new(vec![0; 64 << 10], false);
        let other = MemDisk::new(vec![0; 64 << 10], false);
        let limiter = Arc::new(Limiter::new(Limits {
            bytes: Some(Rate { per_second: 1, burst: 0 }),
            operations: None,
        }));
        let target = |disk: &Arc<MemDisk>, limiter: Arc<Limiter>| TargetConfig::Disk {
            disk: disk.clone(),
            serial: String::new(),
            limiter,
        };
        let free = Arc::new(Limiter::new(Limits::default()));
        let mut device = Scsi::new(vec![target(&disk, limiter.clone()), target(&other, free)], 1);
        let bench = Bench::new(&mut device, 64, 0);
        Slow { guest: Guest { bench, device, disk }, other, limiter }
    }

    /// Gives the device a write of one block of `tag`, which is also where it goes.
    fn write(&mut self, target: u8, tag: u8) -> u16 {
        let at = u64::from(tag) * 0x1000;
        let mut request = vec![0; (REQUEST_HEAD + CDB_SIZE) as usize];
        request[..4].copy_from_slice(&[1, target, 0x40, 0]);
        request[8] = tag;
        request[REQUEST_HEAD as usize..][..9].copy_from_slice(&[0x2a, 0, 0, 0, 0, tag, 0, 0, 1]);
        let ram = self.guest.bench.ram.clone();
        ram.guest().write_slice(&request, GuestAddress(REQUEST + at)).unwrap();
        ram.guest().write_slice(&[tag; 512], GuestAddress(REQUEST + at + 0x400)).unwrap();
        let head = self.guest.bench.rings[REQUEST_QUEUE].add(&[
            Buffer::Out(REQUEST + at, request.len() as u32),
            Buffer::Out(REQUEST + at + 0x400, 512),
            Buffer::In(REQUEST + at + 0x800, ANSWER_HEAD + SENSE_SIZE),
        ]);
        self.guest.bench.settle();
        head
    }

    /// The next write that was answered.
    fn answered(&mut self) -> Option<u16> {
        Some(self.guest.bench.rings[REQUEST_QUEUE].take_used()?.0)
    }

    fn response(&self, tag: u8) -> u8 {
        let mut bytes = [0; ANSWER_HEAD as usize];
        let at = REQUEST + u64::from(tag) * 0x1000 + 0x800;
        self.guest.bench.ram.guest().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes[11]
    }

    /// Asks for a function of task management; its answer, if it has come.
    fn manage(&mut self, function: u32, target: u8, tag: u8) -> Option<u8> {
        let mut request = [0; TMF_LEN];
        request[4] = function as u8;
        request[8..12].copy_from_slice(&[1, target, 0x40, 0]);
        request[16] = tag;
        let ram = self.guest.bench.ram.clone();
        ram.guest().write_slice(&request, GuestAddress(OUT)).unwrap();
        ram.guest().write_slice(&[0xff], GuestAddress(IN)).unwrap();
        self.guest.bench.rings[0].add(&[Buffer::Out(OUT, TMF_LEN as u32), Buffer::In(IN, 1)]);
        // The control queue's worker; then that of the requests, which it has woken; and again.
        self.guest.bench.works[0].work();
        let at_once = self.guest.bench.rings[0].take_used().is_some();
        self.guest.bench.settle();
        self.guest.bench.settle();
        if !at_once && self.guest.bench.rings[0].take_used().is_none() {
            return None;
        }
        let mut answer = [0; 1];
        ram.guest().read_slice(&mut answer, GuestAddress(IN)).unwrap();
        Some(answer[0])
    }

    fn block(disk: &MemDisk, tag: u8) -> u8 {
        disk.bytes()[usize::from(tag) * 512]
    }
}

#[test]
fn a_disk_at_its_limit_holds_up_no_other_and_keeps_its_order() {
    let mut slow = Slow::new();
    let first = slow.write(0, 1);
    assert_eq!(slow.answered(), Some(first), "the first goes through");
    let (second, third) = (slow.write(0, 2), slow.write(0, 3));
    assert_eq!(slow.answered(), None, "they wait");
    let other = slow.write(1, 4);
    assert_eq!(slow.answered(), Some(other), "another disk does not");
    // Nor does what only asks about the disk.
    assert_eq!(slow.guest.command(0, 0, &[0x12, 0, 0, 0, 36], &[], 36).data.len(), 36);
    assert_eq!((Slow::block(&slow.guest.disk, 1), Slow::block(&slow.guest.disk, 2)), (1, 0));
    assert_eq!(Slow::block(&slow.other, 4), 4);
    assert_eq!(slow.manage(TMF_QUERY_TASK, 0, 2), Some(S_FUNCTION_SUCCEEDED));
    assert_eq!(slow.manage(TMF_QUERY_TASK, 0, 1), Some(S_OK), "it has been answered");
    assert_eq!(slow.manage(TMF_QUERY_TASK_SET, 1, 0), Some(S_OK));
    // Another limit counts for what waits, too.
    slow.limiter.set(Limits::default());
    slow.guest.bench.settle();
    assert_eq!(slow.answered(), Some(second));
    assert_eq!(slow.answered(), Some(third));
    assert_eq!((Slow::block(&slow.guest.disk, 2), slow.response(3)), (2, S_OK));
    assert_eq!(slow.limiter.counted(), (3, 3 * 512));
    assert_eq!(slow.guest.bench.recorder.fault(), None);
}

#[test]
fn what_waits_for_a_limit_is_ended_when_the_driver_asks_for_that() {
    let mut slow = Slow::new();
    let heads: Vec<u16> = (1..=4).map(|tag| slow.write(0, tag)).collect();
    assert_eq!(slow.answered(), Some(heads[0]));
    assert_eq!(slow.manage(TMF_ABORT_TASK, 1, 2), Some(S_OK), "of another target");
    assert_eq!(slow.answered(), None);
    assert_eq!(slow.manage(TMF_ABORT_TASK, 0, 2), Some(S_OK));
    // Answered before the function is: one that the function has ended is not there any more.
    assert_eq!((slow.answered(), slow.response(2)), (Some(heads[1]), S_ABORTED));
    assert_eq!(slow.answered(), None, "the others wait on");
    assert_eq!(slow.manage(TMF_LOGICAL_UNIT_RESET, 0, 0), Some(S_OK));
    for tag in [3, 4] {
        assert_eq!(slow.answered(), Some(heads[usize::from(tag) - 1]));
        assert_eq!(slow.response(tag), S_RESET);
    }
    let written: Vec<u8> = (1..=4).map(|tag| Slow::block(&slow.guest.disk, tag)).collect();
    assert_eq!(written, [1, 0, 0, 0], "what was ended was not written");
    assert_eq!(slow.manage(TMF_ABORT_TASK_SET, 0, 0), Some(S_OK), "there is nothing to end");
    assert_eq!(slow.guest.bench.recorder.fault(), None);
}

#[test]
fn what_waits_is_done_before_the_workers_are_handed_back() {
    let mut slow = Slow::new();
    slow.write(0, 1);
    let head = slow.write(0, 2);
    slow.answered();
    assert_eq!(slow.answered(), None);
    slow.guest.bench.works.iter_mut().for_each(|work| work.drain());
    assert_eq!(slow.answered(), Some(head));
    assert_eq!((Slow::block(&slow.guest.disk, 2), slow.response(2)), (2, S_OK));
}

#[test]
fn requests_that_are_none_break_the_queue() {
    for buffers in [
        &[Buffer::Out(REQUEST, 10), Buffer::In(ANSWER, 200)][..],
        &[Buffer::Out(REQUEST, 60), Buffer::In(ANSWER, 5)],
    ] {
        let mut guest = guest();
        guest.bench.rings[REQUEST_QUEUE].add(buffers);
        guest.bench.settle();
        assert_eq!(guest.bench.recorder.fault(), Some((REQUEST_QUEUE as u16, RingError::BadRequest)));
    }
}

#[test]
fn the_driver_is_told_that_a_disk_has_another_size() {
    let disk = MemDisk::new(pattern(64 << 10), false);
    let event = |guest: &mut Guest| -> Option<[u8; EVENT_LEN as usize]> {
        guest.bench.settle();
        guest.bench.rings[EVENT_QUEUE].take_used().map(|(_, written)| {
            assert_eq!(written, EVENT_LEN);
            let mut bytes = [0; EVENT_LEN as usize];
            guest.bench.ram.guest().read_slice(&mut bytes, GuestAddress(IN)).unwrap();
            bytes
        })
    };
    let mut device = device(&disk);
    let mut guest = Guest { bench: Bench::new(&mut device, 64, F_CHANGE), device, disk };
    guest.bench.rings[EVENT_QUEUE].add(&[Buffer::In(IN, EVENT_LEN)]);
    assert_eq!(event(&mut guest), None);
    guest.device.control().resized(0);
    guest.device.control().resized(0);
    let told = event(&mut guest).expect("an event");
    assert_eq!(told, [3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x2a, 9, 0, 0]);
    // Without a buffer it waits for one.
    guest.device.control().resized(0);
    assert_eq!(event(&mut guest), None);
    guest.bench.rings[EVENT_QUEUE].add(&[Buffer::In(IN, EVENT_LEN)]);
    assert!(event(&mut guest).is_some());
    assert_eq!(guest.bench.recorder.fault(), None);

    // A driver that did not ask for it is not told.
    let mut guest = self::guest();
    guest.bench.rings[EVENT_QUEUE].add(&[Buffer::In(IN, EVENT_LEN)]);
    guest.device.control().resized(0);
    assert_eq!(event(&mut guest), None);
}
