use super::*;
use crate::queue::RingError;
use crate::test::{Bench, Buffer, Driver};
use memory::{Bytes, GuestAddress};
use share::fuse::{Fields, IN_HEADER_LEN, InHeader, OUT_HEADER_LEN, init, opcode};
use share::{Folder, FolderConfig, Key, Limits, Owner, PAYLOAD_MAX};
use std::path::PathBuf;
use std::time::Duration;

const OUT: u64 = 0x20_0000;
const IN: u64 = 0x40_0000;
const ROOM: u32 = PAYLOAD_MAX + 4096;

fn key() -> Key {
    "42".repeat(32).parse().unwrap()
}

/// A folder with a server, gone afterwards.
struct Place {
    folder: PathBuf,
    socket: PathBuf,
    server: Option<std::thread::JoinHandle<()>>,
}

impl Place {
    fn new(name: &str, id: u32) -> Place {
        let top = std::env::temp_dir().join(format!("arnia-fs-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&top);
        std::fs::create_dir_all(top.join("folder")).unwrap();
        let mut place = Place { folder: top.join("folder"), socket: top.join("socket"), server: None };
        place.serve(id);
        place
    }

    fn serve(&mut self, id: u32) {
        let _ = std::fs::remove_file(&self.socket);
        let config = FolderConfig {
            path: self.folder.clone(),
            read_only: false,
            owner: Owner::default(),
            hidden: Vec::new(),
        };
        let (listener, folder) = (share::listen(&self.socket).unwrap(), Folder::open(&config).unwrap());
        let server = share::serve::Server::new(listener, key(), id, folder, Limits::within(500));
        self.server = Some(std::thread::spawn(move || server.run(Duration::from_secs(1)).unwrap()));
    }

    fn link(&self) -> Link {
        Link::new(&self.socket, key())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server.take().map(std::thread::JoinHandle::join);
        let _ = std::fs::remove_dir_all(self.folder.parent().unwrap());
    }
}

struct Guest {
    driver: Driver,
    control: FsControl,
}

type Answer = Result<Vec<u8>, i32>;

impl Guest {
    fn new() -> Guest {
        let device = Fs::new().unwrap();
        let control = device.control();
        let mut driver = Driver::new(Box::new(device));
        driver.start(64, 0);
        let mut guest = Guest { driver, control };
        let body: Vec<u8> =
            [7, 38, 1 << 17, u32::MAX].iter().flat_map(|field: &u32| field.to_le_bytes()).collect();
        let answer = guest.ask(opcode::INIT, 0, &[&body]).unwrap();
        let mut fields = Fields(&answer);
        assert_eq!((fields.u32(), answer.len()), (Some(7), 64));
        fields.skip(8).unwrap();
        let flags = fields.u32().unwrap();
        assert!(flags & init::DO_READDIRPLUS != 0 && flags & 1 << 16 == 0, "no write-back cache: {flags:x}");
        guest
    }

    /// Sends a request; the device has it.
    fn send(&mut self, queue: usize, opcode: u32, node: u64, body: &[&[u8]], room: u32) {
        let mut message = vec![0; IN_HEADER_LEN];
        message[4..8].copy_from_slice(&opcode.to_le_bytes());
        message[InHeader::UNIQUE_AT..][..8].copy_from_slice(&99u64.to_le_bytes());
        message[InHeader::NODE_AT..][..8].copy_from_slice(&node.to_le_bytes());
        message.extend(body.concat());
        let len = message.len() as u32;
        message[..4].copy_from_slice(&len.to_le_bytes());
        self.driver.ram.guest().write_slice(&message, GuestAddress(OUT)).unwrap();
        let mut buffers = vec![Buffer::Out(OUT, 40), Buffer::Out(OUT + 40, len - 40)];
        if room > 0 {
            buffers.extend([Buffer::In(IN, 16), Buffer::In(IN + 16, room - 16)]);
        }
        self.driver.rings[queue].add(&buffers);
        self.driver.notify(queue);
    }

    fn answer(&mut self, queue: usize) -> Answer {
        let (_, len) = self.driver.wait_used(queue);
        let mut message = vec![0; len as usize];
        self.driver.ram.guest().read_slice(&mut message, GuestAddress(IN)).unwrap();
        let mut fields = Fields(&message);
        assert_eq!(fields.u32(), Some(len));
        let error = fields.u32().unwrap() as i32;
        assert_eq!(fields.u64(), Some(99));
        if error == 0 { Ok(message[OUT_HEADER_LEN..].to_vec()) } else { Err(-error) }
    }

    fn ask(&mut self, opcode: u32, node: u64, body: &[&[u8]]) -> Answer {
        self.send(queue::REQUEST, opcode, node, body, ROOM);
        self.answer(queue::REQUEST)
    }

    fn lookup(&mut self, node: u64, name: &str) -> Result<u64, i32> {
        let answer = self.ask(opcode::LOOKUP, node, &[name.as_bytes(), b"\0"])?;
        Ok(Fields(&answer).u64().unwrap())
    }

    fn read(&mut self, node: u64) -> Answer {
        let opened = self.ask(opcode::OPEN, node, &[&[0; 8]])?;
        let body = [&opened[..8], &[0; 8], &PAYLOAD_MAX.to_le_bytes(), &[0; 20]];
        self.ask(opcode::READ, node, &body)
    }

    fn names(&mut self) -> Vec<String> {
        let answer = self.ask(opcode::READDIR, 1, &[&[0; 16], &4096u32.to_le_bytes(), &[0; 20]]).unwrap();
        let (mut names, mut rest) = (Vec::new(), &answer[..]);
        while !rest.is_empty() {
            let len = u32::from_le_bytes(rest[16..20].try_into().unwrap()) as usize;
            names.push(String::from_utf8(rest[24..24 + len].to_vec()).unwrap());
            rest = &rest[24 + len.next_multiple_of(8)..];
        }
        names
    }
}

#[test]
fn the_driver_finds_the_tag() {
    let driver = Driver::new(Box::new(Fs::new().unwrap()));
    let tag: Vec<u8> = (0..36).map(|at| driver.config(at, 1) as u8).collect();
    assert_eq!(&tag[..6], b"arnia\0");
    assert_eq!(driver.config(36, 4), 1);
}

#[test]
fn shares_come_and_go_in_the_root() {
    let (one, two) = (Place::new("one", 1), Place::new("two", 2));
    std::fs::write(one.folder.join("file"), "of one").unwrap();
    std::fs::write(two.folder.join("file"), vec![2; PAYLOAD_MAX as usize + 5]).unwrap();
    let mut guest = Guest::new();
    assert_eq!(guest.names(), [".", "..", LISTING]);
    assert_eq!(guest.lookup(1, "one"), Err(2));
    guest.control.add("one", 1, one.link()).unwrap();
    guest.control.add("two", 2, two.link()).unwrap();
    guest.control.set_listing(b"what there is".to_vec());
    for (name, id) in [("two", 3), ("three", 2), ("three", 0), ("a/b", 3), ("", 3), (".x", 3)] {
        assert!(guest.control.add(name, id, two.link()).is_err(), "{name:?} {id}");
    }
    assert_eq!(guest.names(), [".", "..", LISTING, "one", "two"]);
    let listing = guest.lookup(1, LISTING).unwrap();
    assert_eq!(guest.read(listing).unwrap(), b"what there is");
    assert_eq!(guest.ask(opcode::MKDIR, 1, &[&[0; 8], b"x\0"]), Err(30));
    let first = guest.lookup(1, "one").unwrap();
    assert_eq!(first, NodeId::root(1).raw());
    let file = guest.lookup(first, "file").unwrap();
    assert_eq!(guest.read(file).unwrap(), b"of one");
    let second = guest.lookup(1, "two").unwrap();
    let other = guest.lookup(second, "file").unwrap();
    assert_eq!(guest.read(other).unwrap(), vec![2; PAYLOAD_MAX as usize]);
    // Not from one share into the other.
    assert_eq!(guest.ask(opcode::RENAME, first, &[&second.to_le_bytes(), b"file\0x\0"]), Err(18));
    assert_eq!(guest.ask(opcode::LINK, first, &[&other.to_le_bytes(), b"x\0"]), Err(18));
    assert_eq!(guest.ask(opcode::RENAME, first, &[&[0; 3]]), Err(22));

    assert!(guest.control.remove("one") && !guest.control.remove("one"));
    assert_eq!(guest.lookup(first, "file"), Err(116));
    assert_eq!(guest.lookup(1, "one"), Err(2));
    assert_eq!(guest.lookup(second, "file"), Ok(other));
}

#[test]
fn a_server_that_is_another_one_does_not_know_the_nodes_of_before() {
    let mut place = Place::new("again", 9);
    std::fs::write(place.folder.join("file"), "content").unwrap();
    let mut guest = Guest::new();
    guest.control.add("it", 9, place.link()).unwrap();
    let root = guest.lookup(1, "it").unwrap();
    let file = guest.lookup(root, "file").unwrap();
    // It ends when nobody is plugged in.
    std::fs::rename(&place.socket, place.folder.join("away")).unwrap();
    guest.control.shared.table().renew();
    place.server.take().unwrap().join().unwrap();
    assert_eq!(guest.lookup(root, "file"), Err(5), "nobody is there");
    place.serve(9);
    let found = std::iter::repeat_with(|| guest.lookup(root, "file")).find(|found| *found != Err(5));
    assert_ne!(found, Some(Ok(file)), "another node");
    assert_eq!(guest.ask(opcode::GETATTR, file, &[&[0; 16]]), Err(116));
}

#[test]
fn a_saved_machine_goes_on_with_its_shares() {
    let place = Place::new("saved", 5);
    std::fs::write(place.folder.join("file"), "content").unwrap();
    let mut guest = Guest::new();
    guest.control.add("it", 5, place.link()).unwrap();
    let root = guest.lookup(1, "it").unwrap();
    let file = guest.lookup(root, "file").unwrap();
    guest.driver.function.pause();
    let device = Fs::new().unwrap();
    let control = device.control();
    control.add("it", 5, place.link()).unwrap();
    let mut guest = Guest { driver: guest.driver.moved(Box::new(device)), control };
    assert_eq!(guest.ask(opcode::GETATTR, file, &[&[0; 16]]), Err(116), "no other file");
    let file = guest.lookup(root, "file").unwrap();
    assert_eq!(guest.read(file).unwrap(), b"content");
    let mut other = Fs::new().unwrap();
    assert!(other.restore(DeviceSaved::Rng).is_err());
}

#[test]
fn a_server_that_does_not_answer_holds_up_no_pause_and_no_removal() {
    let place = Place::new("mute", 3);
    let socket = place.folder.join("mute");
    let mute = share::listen(&socket).unwrap();
    let mut guest = Guest::new();
    guest.control.add("mute", 3, Link::new(&socket, key())).unwrap();
    guest.send(queue::REQUEST, opcode::LOOKUP, 1, &[b"mute\0"], ROOM);
    // It has been asked: the hello, and the request.
    rustix::fs::fcntl_setfl(&mute, rustix::fs::OFlags::empty()).unwrap();
    let mute = rustix::net::accept(&mute).unwrap();
    for _ in 0..2 {
        rustix::net::recv(&mute, &mut [0; 100][..], rustix::net::RecvFlags::empty()).unwrap();
    }
    guest.driver.function.pause();
    assert_eq!(guest.answer(queue::REQUEST), Err(5));
    guest.driver.function.resume();
    // Forgetting is on another queue, and has no answer.
    guest.send(queue::HIPRIO, opcode::FORGET, NodeId::root(3).raw(), &[&1u64.to_le_bytes()], 0);
    assert_eq!(guest.driver.wait_used(queue::HIPRIO).1, 0);
    guest.send(queue::REQUEST, opcode::LOOKUP, 1, &[b"mute\0"], ROOM);
    guest.control.remove("mute");
    guest.driver.function.wake();
    // Refused because it was asked of a server that is gone, or because there is none.
    assert!(matches!(guest.answer(queue::REQUEST), Err(5 | 2)));
}

#[test]
fn messages_that_make_no_sense_are_refused() {
    let mut device = Fs::new().unwrap();
    let mut bench = Bench::new(&mut device, 16, 0);
    let mut refused = |bytes: &[u8], buffers: &[Buffer]| {
        bench.ram.guest().write_slice(bytes, GuestAddress(0x10_0000)).unwrap();
        bench.rings[queue::REQUEST].add(buffers);
        bench.settle();
        bench.rings[queue::REQUEST].take_used().unwrap().1
    };
    let (out, room) = (|len| Buffer::Out(0x10_0000, len), Buffer::In(0x18_0000, 100));
    assert_eq!(refused(&[0; 40], &[out(40), room]), 16);
    assert_eq!(refused(&[1; 40], &[out(10), room]), 16);
    assert_eq!(refused(&[0; 40], &[out(1 << 19), room]), 16);
    assert_eq!(refused(&[0; 40], &[room]), 16);
    assert_eq!(refused(&[0; 40], &[out(40)]), 0);
    assert_eq!(refused(&[0; 40], &[out(40), Buffer::In(0x18_0000, 15)]), 0);
    assert_eq!(bench.recorder.fault(), None);
    bench.rings[queue::REQUEST].add(&[Buffer::Out(1 << 40, 40)]);
    bench.settle();
    assert_eq!(bench.recorder.fault(), Some((1, RingError::BadBuffer)));
}

/// A worker that looks for more before it sleeps must see the answer that it waits for, not only the guest's next request.
#[test]
fn an_answer_is_something_to_do() {
    let place = Place::new("soon", 3);
    let socket = place.folder.join("soon");
    let server = share::listen(&socket).unwrap();
    let mut device = Fs::new().unwrap();
    device.control().add("soon", 3, Link::new(&socket, key())).unwrap();
    let mut bench = Bench::new(&mut device, 16, 0);
    let mut request = vec![0; IN_HEADER_LEN];
    request[4..8].copy_from_slice(&opcode::GETATTR.to_le_bytes());
    request[InHeader::UNIQUE_AT..][..8].copy_from_slice(&99u64.to_le_bytes());
    request[InHeader::NODE_AT..][..8].copy_from_slice(&NodeId::root(3).raw().to_le_bytes());
    request.resize(IN_HEADER_LEN + 16, 0);
    let len = request.len() as u32;
    request[..4].copy_from_slice(&len.to_le_bytes());
    bench.ram.guest().write_slice(&request, GuestAddress(0x10_0000)).unwrap();
    bench.rings[queue::REQUEST].add(&[Buffer::Out(0x10_0000, len), Buffer::In(0x18_0000, 200)]);
    bench.settle();
    assert!(bench.works.iter().all(|work| !work.is_pending()), "it has asked, and nothing has come");

    rustix::fs::fcntl_setfl(&server, rustix::fs::OFlags::empty()).unwrap();
    let server = rustix::net::accept(&server).unwrap();
    let mut message = [0; 200];
    for _ in 0..2 {
        rustix::net::recv(&server, &mut message[..], rustix::net::RecvFlags::empty()).unwrap();
    }
    let number = u64::from_le_bytes(message[InHeader::UNIQUE_AT..][..8].try_into().unwrap());
    let answer = share::fuse::refusal(number, 2);
    rustix::net::send(&server, &answer, rustix::net::SendFlags::empty()).unwrap();
    assert!(bench.works.iter().any(|work| work.is_pending()), "the answer is there");
    bench.settle();
    assert_eq!(bench.rings[queue::REQUEST].take_used().unwrap().1, 16);
    assert!(bench.works.iter().all(|work| !work.is_pending()));
}
