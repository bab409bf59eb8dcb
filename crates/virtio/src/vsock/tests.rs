use super::spec::*;
use super::*;
use crate::test::{Bench, Buffer, Driver};
use memory::{Bytes, GuestAddress};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};

const CID: u64 = 77;
const RX: u64 = 0x10_0000;
const RX_LEN: u32 = 8192;
const TX: u64 = 0x30_0000;

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vsock-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn path(&self) -> PathBuf {
        self.0.join("v")
    }

    fn device(&self) -> Vsock {
        Vsock::new(VsockConfig { cid: CID, path: self.path() }).unwrap()
    }

    fn service(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.0.join(format!("v_{port}"))).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A guest that speaks vsock packet by packet.
struct Guest {
    scratch: Scratch,
    bench: Bench,
    device: Vsock,
}

impl Guest {
    fn new() -> Guest {
        let scratch = Scratch::new();
        let mut device = scratch.device();
        let mut bench = Bench::new(&mut device, 16, 0);
        for i in 0..16 {
            bench.rings[0].add(&[Buffer::In(RX + i * RX_LEN as u64, RX_LEN)]);
        }
        Guest { scratch, bench, device }
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        let header = Header { len: data.len() as u32, ..header };
        self.bench.ram.guest().write_slice(&header.to_bytes(), GuestAddress(TX)).unwrap();
        self.bench.ram.guest().write_slice(data, GuestAddress(TX + 44)).unwrap();
        let mut buffers = vec![Buffer::Out(TX, 44)];
        if !data.is_empty() {
            buffers.push(Buffer::Out(TX + 44, data.len() as u32));
        }
        self.bench.rings[1].add(&buffers);
        self.bench.settle();
        assert!(self.bench.rings[1].take_used().is_some());
    }

    /// The packets that came, whose buffers are offered again.
    fn receive(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        self.bench.settle();
        while let Some((head, len)) = self.bench.rings[0].take_used() {
            let at = self.bench.ram.load::<u64>(self.bench.rings[0].layout().descriptors + head as u64 * 16);
            let at = at.unwrap();
            let mut bytes = vec![0; len as usize];
            self.bench.ram.guest().read_slice(&mut bytes, GuestAddress(at)).unwrap();
            let header = Header::from_bytes(bytes[..44].try_into().unwrap());
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
            assert_eq!(header.len as usize, bytes.len() - 44);
            packets.push((header, bytes[44..].to_vec()));
            self.bench.rings[0].add(&[Buffer::In(at, RX_LEN)]);
            self.bench.settle();
        }
        packets
    }

    /// The one packet that came.
    fn receive_one(&mut self) -> Header {
        let packets = self.receive();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets[0].0
    }

    /// Connects guest port 1000 to a service of the host.
    fn connect(&mut self, port: u32) -> UnixStream {
        let service = self.scratch.service(port);
        self.send(packet(op::REQUEST, port), &[]);
        assert_eq!(self.receive_one().op, op::RESPONSE);
        let stream = service.accept().unwrap().0;
        stream.set_nonblocking(true).unwrap();
        stream
    }

    fn connections(&self) -> usize {
        let work: &dyn Any = &*self.bench.works[0];
        work.downcast_ref::<VsockWork>().unwrap().muxer().connection_count()
    }
}

fn packet(op: u16, port: u32) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: 1000,
        dst_port: port,
        kind: TYPE_STREAM,
        op,
        buf_alloc: 64 << 10,
        ..Header::default()
    }
}

fn read(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let len = stream.read(&mut bytes).unwrap();
    bytes.truncate(len);
    bytes
}

#[test]
fn a_guest_connects_to_a_service_and_data_flows() {
    let mut guest = Guest::new();
    let mut host = guest.connect(52);
    guest.send(packet(op::RW, 52), b"from the guest");
    assert_eq!(read(&mut host), b"from the guest");
    host.write_all(b"from the host").unwrap();
    let packets = guest.receive();
    assert_eq!(packets.len(), 1);
    let (header, data) = &packets[0];
    assert_eq!((header.op, header.src_port, header.dst_port), (op::RW, 52, 1000));
    assert_eq!((header.buf_alloc, header.fwd_cnt), (credit::BUF_ALLOC, 14));
    assert_eq!(data, b"from the host");
}

#[test]
fn what_nobody_serves_is_refused() {
    let mut guest = Guest::new();
    guest.send(packet(op::REQUEST, 99), &[]);
    let answer = guest.receive_one();
    assert_eq!((answer.op, answer.src_port, answer.dst_port), (op::RST, 99, 1000));
    for (header, answered) in [
        (packet(op::RW, 5), true),
        (packet(op::SHUTDOWN, 5), true),
        (packet(77, 5), true),
        (packet(op::RST, 5), false),
        (Header { dst_cid: HOST_CID, kind: 9, ..packet(op::REQUEST, 5) }, true),
    ] {
        guest.send(header, &[]);
        let got: Vec<u16> = guest.receive().iter().map(|(header, _)| header.op).collect();
        assert_eq!(got, if answered { vec![op::RST] } else { vec![] }, "{header:?}");
    }
    assert_eq!(guest.connections(), 0);
}

#[test]
fn the_host_connects_and_is_told_so() {
    let mut guest = Guest::new();
    let mut host = UnixStream::connect(guest.scratch.path()).unwrap();
    host.write_all(b"CONNECT 1024\nearly").unwrap();
    let request = guest.receive_one();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 1024));
    let reply = |op| Header { src_port: 1024, dst_port: request.src_port, ..packet(op, 0) };
    guest.send(reply(op::RESPONSE), &[]);
    host.set_nonblocking(true).unwrap();
    assert_eq!(read(&mut host), format!("OK {}\n", request.src_port).into_bytes());
    let packets = guest.receive();
    assert_eq!((packets[0].0.op, &packets[0].1[..]), (op::RW, &b"early"[..]));
    guest.send(reply(op::RW), b"hello");
    assert_eq!(read(&mut host), b"hello");
    guest.send(reply(op::RST), &[]);
    assert_eq!(read(&mut host), b"");
    assert_eq!(guest.connections(), 0);
}

#[test]
fn a_host_that_is_refused_or_talks_nonsense_is_disconnected() {
    let mut guest = Guest::new();
    let mut host = UnixStream::connect(guest.scratch.path()).unwrap();
    host.write_all(b"connect 7\n").unwrap();
    let request = guest.receive_one();
    guest.send(Header { src_port: 7, dst_port: request.src_port, ..packet(op::RST, 0) }, &[]);
    assert_eq!(read(&mut host), b"");
    for nonsense in [
        &b"\n"[..],
        b"GET / HTTP/1.1\r\n",
        b"CONNECT x\n",
        b"CONNECT 4294967296\n",
        &[b'C'; 40],
        b"\xff\xfe\n",
    ] {
        let mut host = UnixStream::connect(guest.scratch.path()).unwrap();
        host.write_all(nonsense).unwrap();
        assert!(guest.receive().is_empty());
        // Closed with or without what was not read.
        assert!(matches!(host.read(&mut [0; 8]), Ok(0) | Err(_)), "{nonsense:?}");
    }
    assert_eq!(guest.connections(), 0);
}

#[test]
fn the_guest_is_sent_no_more_than_it_has_room_for() {
    let mut guest = Guest::new();
    let service = guest.scratch.service(1);
    guest.send(Header { buf_alloc: 10_000, ..packet(op::REQUEST, 1) }, &[]);
    let mut host = service.accept().unwrap().0;
    host.write_all(&[7; 25_000]).unwrap();
    let data = |packets: &[(Header, Vec<u8>)]| packets.iter().map(|(_, data)| data.len()).sum::<usize>();
    let packets = guest.receive();
    assert_eq!(data(&packets), 10_000);
    let ops: Vec<u16> = packets.iter().map(|(header, _)| header.op).collect();
    assert_eq!(ops, [op::RESPONSE, op::RW, op::RW, op::CREDIT_REQUEST]);
    guest.send(Header { buf_alloc: 10_000, fwd_cnt: 4_000, ..packet(op::CREDIT_UPDATE, 1) }, &[]);
    assert_eq!(data(&guest.receive()), 4_000);
    guest.send(Header { buf_alloc: 10_000, fwd_cnt: 14_000, ..packet(op::CREDIT_UPDATE, 1) }, &[]);
    assert_eq!(data(&guest.receive()), 10_000);
    guest.send(Header { buf_alloc: u32::MAX, fwd_cnt: 24_000, ..packet(op::CREDIT_UPDATE, 1) }, &[]);
    assert_eq!(data(&guest.receive()), 1_000);
}

#[test]
fn the_host_buffers_what_it_gave_credit_for_and_not_more() {
    let mut guest = Guest::new();
    let mut host = guest.connect(1);
    let piece = vec![5; 32 << 10];
    let (mut sent, mut told) = (0u32, 0u32);
    // The host reads nothing: the socket fills, then the buffer, then the credit is used up.
    while sent - told + piece.len() as u32 <= credit::BUF_ALLOC {
        guest.send(packet(op::RW, 1), &piece);
        sent += piece.len() as u32;
        for (header, _) in guest.receive() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            told = header.fwd_cnt;
        }
    }
    assert!(sent > credit::BUF_ALLOC, "the socket itself took something");
    // When the host reads on, the guest hears of it.
    let mut got = 0;
    while got < sent {
        got += read(&mut host).len() as u32;
        if let Some((header, _)) = guest.receive().last() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            told = header.fwd_cnt;
        }
    }
    assert!(told > sent - credit::BUF_ALLOC / 2 - 1);
    // A guest that sends without credit loses the connection.
    let mut resets = 0;
    for _ in 0..40 {
        guest.send(packet(op::RW, 1), &piece);
        resets += guest.receive().iter().filter(|(header, _)| header.op == op::RST).count();
        if resets > 0 {
            break;
        }
    }
    assert_eq!((resets, guest.connections()), (1, 0));
}

#[test]
fn each_side_can_finish_before_the_other() {
    // The guest first.
    let mut guest = Guest::new();
    let mut host = guest.connect(1);
    guest.send(packet(op::RW, 1), b"last words");
    guest.send(Header { flags: SHUTDOWN_SEND, ..packet(op::SHUTDOWN, 1) }, &[]);
    assert_eq!(read(&mut host), b"last words");
    assert_eq!(read(&mut host), b"");
    host.write_all(b"answer").unwrap();
    assert_eq!(guest.receive()[0].1, b"answer");
    guest.send(Header { flags: SHUTDOWN_BOTH, ..packet(op::SHUTDOWN, 1) }, &[]);
    assert_eq!(guest.receive_one().op, op::RST);
    assert_eq!(guest.connections(), 0);

    // The host first, in one direction, then wholly.
    let mut guest = Guest::new();
    let mut host = guest.connect(2);
    host.write_all(b"bye").unwrap();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    let packets = guest.receive();
    assert_eq!(packets[0].1, b"bye");
    assert_eq!((packets[1].0.op, packets[1].0.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    guest.send(packet(op::RW, 2), b"still here");
    assert_eq!(read(&mut host), b"still here");
    drop(host);
    let last = guest.receive_one();
    assert_eq!((last.op, last.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
    guest.send(packet(op::RST, 2), &[]);
    assert_eq!(guest.connections(), 0);
    assert!(guest.receive().is_empty());
}

#[test]
fn a_host_that_vanishes_is_noticed_by_a_writing_guest() {
    let mut guest = Guest::new();
    let host = guest.connect(1);
    drop(host);
    guest.send(packet(op::RW, 1), b"to nobody");
    let packets = guest.receive();
    let last = packets.last().unwrap().0;
    assert_eq!((last.op, last.flags), (op::SHUTDOWN, SHUTDOWN_BOTH), "{packets:?}");
}

#[test]
fn a_flood_of_nonsense_stops_at_the_answers_limit() {
    let mut guest = Guest::new();
    // No room for answers at all: the device stops taking packets instead of keeping answers.
    let scratch = Scratch::new();
    let mut device = scratch.device();
    guest.bench = Bench::new(&mut device, 16, 0);
    guest.bench.ram.guest().write_slice(&packet(op::RW, 5).to_bytes(), GuestAddress(TX)).unwrap();
    let mut taken = 0;
    for _ in 0..100 {
        while guest.bench.rings[1].free_count() > 0 {
            guest.bench.rings[1].add(&[Buffer::Out(TX, 44)]);
        }
        guest.bench.settle();
        while guest.bench.rings[1].take_used().is_some() {
            taken += 1;
        }
    }
    assert_eq!(taken, 256);
    for i in 0..8 {
        guest.bench.rings[0].add(&[Buffer::In(RX + i * 0x1000, 100)]);
    }
    guest.bench.settle();
    assert_eq!(std::iter::from_fn(|| guest.bench.rings[0].take_used()).count(), 8);
    while guest.bench.rings[1].take_used().is_some() {
        taken += 1;
    }
    assert_eq!(taken, 264);
}

#[test]
fn malformed_packets_break_the_queue() {
    for (len_said, len) in [(0, 43), (1, 44), (u32::MAX, 200), (100_000, 100_044)] {
        let mut guest = Guest::new();
        let header = Header { len: len_said, ..packet(op::RW, 1) };
        guest.bench.ram.guest().write_slice(&header.to_bytes(), GuestAddress(TX)).unwrap();
        guest.bench.rings[1].add(&[Buffer::Out(TX, len)]);
        guest.bench.settle();
        assert_eq!(
            guest.bench.recorder.fault(),
            Some((1, crate::queue::RingError::BadRequest)),
            "{len_said}"
        );
    }
}

#[test]
fn connections_are_bounded() {
    let mut guest = Guest::new();
    let service = guest.scratch.service(1);
    let mut accepted = Vec::new();
    let (mut responses, mut resets) = (0, 0);
    // Sockets may run out before: then too the guest is refused and nothing breaks.
    for port in 0..1100 {
        guest.send(Header { src_port: port, ..packet(op::REQUEST, 1) }, &[]);
        match guest.receive_one().op {
            op::RESPONSE => {
                responses += 1;
                accepted.push(service.accept().unwrap().0);
            }
            op::RST => resets += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!(responses + resets, 1100);
    assert!(responses <= 1024 && resets > 0 && guest.connections() == responses);
    // A reset of the device drops them all.
    let works = std::mem::take(&mut guest.bench.works);
    assert_eq!(guest.device.deactivate(works).len(), 3);
    guest.device.reset();
    assert_eq!(guest.device.muxer.as_ref().unwrap().connection_count(), 0);
    let mut byte = [0];
    assert!(accepted.iter_mut().all(|stream| matches!(stream.read(&mut byte), Ok(0))));
}

#[test]
fn a_restored_guest_is_told_that_its_connections_are_gone() {
    let mut guest = Guest::new();
    let mut host = guest.connect(1);
    let works = std::mem::take(&mut guest.bench.works);
    guest.device.deactivate(works);
    let saved = guest.device.save();
    guest.device.restore(saved).unwrap();
    assert_eq!(read(&mut host), b"");
    let mut bench = Bench::new(&mut guest.device, 16, 0);
    bench.ram.store(RX, 0xffff_ffffu32).unwrap();
    bench.settle();
    bench.rings[2].add(&[Buffer::In(RX, 4)]);
    bench.settle();
    assert_eq!(bench.rings[2].take_used().map(|(_, len)| len), Some(4));
    assert_eq!(bench.ram.load::<u32>(RX), Some(EVENT_TRANSPORT_RESET));
    bench.rings[2].add(&[Buffer::In(RX, 4)]);
    bench.settle();
    assert_eq!(bench.rings[2].take_used(), None, "once");
}

#[test]
fn what_cannot_be_made_is_refused_with_the_cause() {
    let scratch = Scratch::new();
    let make = |cid, path| Vsock::new(VsockConfig { cid, path }).map(drop).map_err(|error| error.kind());
    for cid in [0, 1, 2, u32::MAX as u64, u64::MAX] {
        assert_eq!(make(cid, scratch.path()), Err(ErrorKind::BadConfig), "{cid}");
    }
    assert_eq!(make(3, scratch.0.join("no/such/dir/v")), Err(ErrorKind::BadAddress));
    assert_eq!(make(3, scratch.0.join("x".repeat(200))), Err(ErrorKind::BadAddress));
    let first = scratch.device();
    assert_eq!(make(3, scratch.path()), Err(ErrorKind::AddressInUse));
    drop(first);
    assert!(!scratch.path().exists());
    // What a crash leaves behind is no obstacle.
    drop(UnixListener::bind(scratch.path()).unwrap());
    assert_eq!(make(3, scratch.path()), Ok(()));
}

#[test]
fn streams_pass_through_threads() {
    let scratch = Scratch::new();
    let service = scratch.service(5);
    let mut driver = Driver::new(Box::new(scratch.device()));
    assert_eq!(driver.config(0, 8), CID);
    driver.start(16, u64::MAX);
    for i in 0..16 {
        driver.rings[0].add(&[Buffer::In(RX + i * RX_LEN as u64, RX_LEN)]);
    }
    driver.notify(0);
    let send = |driver: &mut Driver, op: u16, data: &[u8]| {
        let header = Header { len: data.len() as u32, ..packet(op, 5) };
        driver.ram.guest().write_slice(&header.to_bytes(), GuestAddress(TX)).unwrap();
        driver.ram.guest().write_slice(data, GuestAddress(TX + 44)).unwrap();
        let before = driver.rings[1].available_index();
        driver.rings[1].add(&[Buffer::Out(TX, 44 + data.len() as u32)]);
        driver.notify_since(1, before);
        driver.wait_used(1);
    };
    send(&mut driver, op::REQUEST, &[]);
    let mut host = service.accept().unwrap().0;
    assert_eq!(driver.wait_used(0).1, 44);
    // An echo on the host's side.
    let echo = std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(len @ 1..) = host.read(&mut bytes) {
            host.write_all(&bytes[..len]).unwrap();
        }
    });
    for round in 0..100u32 {
        let before = driver.rings[0].available_index();
        driver.rings[0].add(&[Buffer::In(RX, RX_LEN)]);
        driver.notify_since(0, before);
        send(&mut driver, op::RW, &round.to_le_bytes());
        let mut got = 0;
        while got < 4 {
            got += driver.wait_used(0).1 - 44;
        }
    }
    driver.reset();
    echo.join().unwrap();
}

/// Saved with a stream open and a packet under way: both sides learn that the stream is gone, and the guest makes
/// new ones at the new device.
#[test]
fn a_socket_saved_at_work_ends_its_streams_and_takes_new_ones() {
    let first = Scratch::new();
    let service = first.service(5);
    let mut driver = Driver::new(Box::new(first.device()));
    driver.start(16, u64::MAX);
    for i in 0..8 {
        driver.rings[0].add(&[Buffer::In(RX + i * RX_LEN as u64, RX_LEN)]);
    }
    driver.notify(0);
    let send = |driver: &mut Driver, op: u16| {
        driver.ram.guest().write_slice(&packet(op, 5).to_bytes(), GuestAddress(TX)).unwrap();
        driver.rings[1].add(&[Buffer::Out(TX, 44)]);
        driver.notify(1);
    };
    send(&mut driver, op::REQUEST);
    let mut host = service.accept().unwrap().0;
    driver.wait_used(1);
    assert_eq!(driver.wait_used(0).1, 44, "accepted");
    driver.function.pause();
    send(&mut driver, op::CREDIT_REQUEST);
    let second = Scratch::new();
    let service = second.service(5);
    driver.rings[2].add(&[Buffer::In(RX + 0x8_0000, 4)]);
    let mut driver = driver.moved(Box::new(second.device()));
    assert_eq!(driver.wait_used(2).1, 4);
    assert_eq!(driver.ram.load::<u32>(RX + 0x8_0000), Some(EVENT_TRANSPORT_RESET));
    // The packet of before comes for a stream that there is not.
    driver.wait_used(1);
    assert_eq!(driver.wait_used(0).1, 44);
    let mut bytes = [0; 44];
    driver.ram.guest().read_slice(&mut bytes, GuestAddress(RX + RX_LEN as u64)).unwrap();
    assert_eq!(Header::from_bytes(&bytes).op, op::RST);
    send(&mut driver, op::REQUEST);
    let _new = service.accept().unwrap();
    driver.wait_used(1);
    assert_eq!(driver.wait_used(0).1, 44, "accepted again");
    drop(first);
    assert_eq!(host.read(&mut [0]).unwrap_or(0), 0, "the old end hears nothing more");
}
