//! Fuzz targets: hostile guests, made from bytes. Each function plays one and panics only when the
//! device did what no guest may bring it to: a panic of its own, endless work, an answer that cannot be.

use crate::Kick;
use crate::balloon::Balloon;
use crate::blk::spec::{T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT, T_WRITE_ZEROES};
use crate::blk::{Blk, BlkConfig};
use crate::console::Console;
use crate::device::VirtioDevice;
use crate::fs::Fs;
use crate::net::Net;
use crate::queue::{CHAIN_LEN_MAX, Chain, Position, Queue};
use crate::rng::Rng;
use crate::scsi::{Scsi, TargetConfig};
use crate::spec::feature;
use crate::test::{Bench, Buffer, Driver, DriverRing, MemDisk, Recorder, Wire};
use crate::vsock::{Header, Vsock, VsockConfig};
use device::limit::{Limiter, Limits, Rate};
use device::pci::PciFunction;
use memory::{Bytes, GuestAddress, Ram};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where a guest of these targets keeps its buffers.
const WINDOW: u64 = 0x10_0000;
/// And its indirect tables.
const TABLES: u64 = 0x20_0000;
const RING_SIZE: u16 = 16;

/// Bytes that decide what a guest does; zeroes when they are used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let len = N.min(self.0.len());
        bytes[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        bytes
    }

    fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }

    /// An address: nearly always in the window, sometimes anywhere.
    fn address(&mut self) -> u64 {
        if self.u8() < 250 { WINDOW + self.u16() as u64 } else { self.u64() }
    }

    /// A length: mostly small, sometimes any.
    fn len(&mut self) -> u32 {
        match self.u8() {
            0..192 => self.u8() as u32,
            192..252 => self.u16() as u32,
            _ => self.u32(),
        }
    }

    fn buffer(&mut self) -> Buffer {
        let (gpa, len) = (self.address(), self.len());
        if self.u8().is_multiple_of(2) { Buffer::Out(gpa, len) } else { Buffer::In(gpa, len) }
    }
}

/// Any rings at all: memory around a queue filled with the input.
pub fn queue(data: &[u8]) {
    let mut input = Input(data);
    let event_idx = input.u8() % 2 == 0;
    let position = Position { next_available: input.u16(), next_used: input.u16(), broken: false };
    let ram = Arc::new(Ram::new(1 << 16).expect("memory"));
    let driver = DriverRing::new(ram.clone(), 0, RING_SIZE, 0x1000, event_idx);
    let mut layout = driver.layout();
    if input.u8() == 0 {
        layout.descriptors = input.u64();
        layout.available = input.u64();
        layout.used = input.u64();
        layout.size = input.u16();
    }
    let available = position.next_available.wrapping_add(input.u8() as u16 % 20);
    driver.publish_index(available);
    for index in 0..RING_SIZE {
        driver.write_descriptor(
            0x1000,
            index,
            input.address() & 0xffff,
            input.len(),
            input.u8() as u16 % 8,
            input.u8() as u16 % 18,
        );
        let _ = ram.store(layout.available.wrapping_add(4 + 2 * index as u64), input.u8() as u16 % 17);
    }
    while let Some(at) = (!input.is_empty()).then(|| input.u16()) {
        let _ = ram.store(at as u64, input.u8());
    }
    let kick = Arc::new(Kick::new().expect("an eventfd"));
    let recorder = Arc::new(Recorder::default());
    let mut queue = Queue::new(0, layout, position, event_idx, ram.clone(), kick, recorder.clone());
    let (mut chain, mut count) = (Chain::new(), 0);
    // Rings that overlap each other are moved by the device's own answers.
    let stands_still = layout == driver.layout();
    while count < 1000 && queue.pop(&mut chain) {
        count += 1;
        assert!(!stands_still || count <= RING_SIZE, "no more chains than entries");
        assert!(chain.head() < layout.size);
        let spans = chain.readable().len() + chain.writable().len();
        assert!((1..=CHAIN_LEN_MAX).contains(&spans));
        let total = |spans: &[crate::queue::Span]| spans.iter().map(|span| span.len as u64).sum::<u64>();
        assert_eq!(total(chain.readable()), chain.readable_len() as u64);
        assert_eq!(total(chain.writable()), chain.writable_len() as u64);
        let mut bytes = [0; 256];
        let _ = chain.read_at(&ram, chain.readable_len() / 2, &mut bytes);
        // Not into the rings: that would be the driver moving again.
        if chain.writable().iter().all(|span| span.gpa >= 0x4000 && span.gpa < 0xf000 && span.len < 0x1000) {
            assert!(chain.write_at(&ram, chain.writable_len() / 2, &bytes).is_ok());
        }
        queue.push(chain.head(), chain.writable_len());
    }
    queue.push_all(&[(0, 1), (1, 2), (u16::MAX, 3)]);
    queue.signal();
    queue.arm();
    queue.disarm();
    queue.arm_beyond(available);
    assert_eq!(recorder.fault().is_some(), queue.is_broken());
}

/// Any accesses to configuration space and base address registers, and any saved state.
pub fn registers(data: &[u8]) {
    let mut input = Input(data);
    let driver = Driver::new(Box::new(Rng::new()));
    let function = &driver.function;
    // Threads would make it slow and random; what they do is the other targets' matter.
    function.pause();
    while !input.is_empty() {
        match input.u8() % 6 {
            0 => {
                function.config_read(input.u16());
            }
            1 => {
                let len = [1, 2, 4][input.u8() as usize % 3];
                let data = input.array::<4>();
                function.config_write((input.u16() % 4096) & !(len as u16 - 1), &data[..len]);
            }
            2 | 3 => {
                let offset = input.u16() as u64 % 0x3c;
                let len = [1, 2, 4, 8][input.u8() as usize % 4];
                driver.common_write(offset, len, input.u64());
            }
            4 => {
                let (bar, offset) = (input.u8() as usize % 7, input.u16() as u64);
                let data = input.array::<8>();
                function.bar_write(bar, offset, &data[..1 + input.u8() as usize % 8]);
            }
            _ => {
                let (bar, offset) = (input.u8() as usize % 7, input.u16() as u64);
                let mut data = [0xff; 8];
                function.bar_read(bar, offset, &mut data[..1 + input.u8() as usize % 8]);
            }
        }
    }
    let mut input = Input(data);
    let mut saved = function.save();
    for _ in 0..input.u8() % 4 {
        let queue = &mut saved.registers.queues[0];
        match input.u8() % 12 {
            0 => saved.isr = input.u8(),
            1 => saved.registers.status = input.u8(),
            2 => saved.registers.accepted = input.u64(),
            3 => saved.registers.config_vector = input.u16(),
            4 => queue.vector = input.u16(),
            5 => queue.layout.size = input.u16(),
            6 => queue.layout.descriptors = input.u64(),
            7 => queue.layout.used = input.u64(),
            8 => queue.enabled = true,
            9 => saved.queues[0].next_available = input.u16(),
            10 => saved.queues[0].broken = true,
            _ => saved.config.values[input.u16() as usize % 4096] = input.u8(),
        }
    }
    let second = Driver::with_ram(Box::new(Rng::new()), driver.ram.clone());
    second.function.pause();
    if second.function.restore(saved).is_ok() {
        second.function.resume();
        second.function.pause();
    }
    second.function.reset();
    assert_eq!(second.status(), 0);
}

/// A request as a real driver would make it, so that not only nonsense is tried: the queue, what
/// stands at the given address, and the buffers.
type Craft = fn(&mut Input<'_>, u64) -> (usize, Vec<u8>, Vec<Buffer>);

/// Plays a guest of `device` with the rest of the input; `outside` is what the world may do meanwhile.
fn play(
    device: &mut dyn VirtioDevice,
    mut input: Input<'_>,
    craft: Craft,
    mut outside: impl FnMut(&mut Input<'_>),
) {
    let features = device.features() & (input.u64() | input.u64());
    let features = if input.u8().is_multiple_of(2) { features | feature::RING_EVENT_IDX } else { features };
    let mut bench = Bench::new(device, RING_SIZE, features);
    let queues = bench.rings.len();
    // Room of each chain in writable bytes, to check the answers against; not when descriptors were
    // changed behind them.
    let mut rooms = vec![[u64::MAX; RING_SIZE as usize]; queues];
    let mut tampered = false;
    let mut steps = 0;
    while !input.is_empty() && steps < 512 {
        steps += 1;
        match input.u8() % 16 {
            0..4 => {
                let (at, len) = (WINDOW + input.u16() as u64, input.u8() as usize % 65);
                let bytes = input.bytes(len);
                bench.ram.guest().write_slice(&bytes, GuestAddress(at)).expect("the window is RAM");
            }
            action @ 4..10 => {
                let (queue, buffers) = if action < 8 {
                    let at = WINDOW + input.u8() as u64 * 256;
                    let (queue, bytes, buffers) = craft(&mut input, at);
                    bench.ram.guest().write_slice(&bytes, GuestAddress(at)).expect("the window is RAM");
                    (queue, buffers)
                } else {
                    let queue = input.u8() as usize % queues;
                    (queue, (0..1 + input.u8() % 6).map(|_| input.buffer()).collect())
                };
                let ring = &mut bench.rings[queue];
                let indirect = input.u8().is_multiple_of(4);
                let head = if indirect && ring.free_count() > 0 {
                    ring.add_indirect(TABLES + input.u8() as u64 * 256, &buffers)
                } else if ring.free_count() >= buffers.len() {
                    ring.add(&buffers)
                } else {
                    continue;
                };
                let writable = |buffer: &Buffer| match buffer {
                    Buffer::In(_, len) => *len as u64,
                    Buffer::Out(..) => 0,
                };
                // Indirect tables may overlap; then their chains are not what they were added as.
                tampered |= indirect;
                rooms[ring.index() as usize][head as usize] = buffers.iter().map(writable).sum();
            }
            10 => {
                tampered = true;
                let ring = &bench.rings[input.u8() as usize % queues];
                let index = input.u8() as u16 % RING_SIZE;
                let (gpa, len) = (input.address(), input.len());
                ring.write_descriptor(
                    ring.layout().descriptors,
                    index,
                    gpa,
                    len,
                    input.u16() & 7,
                    input.u16() % 18,
                );
            }
            11 => {
                tampered = true;
                let ring = &mut bench.rings[input.u8() as usize % queues];
                match input.u8() {
                    0..64 => ring.publish_index(input.u16()),
                    _ => ring.publish(input.u8() as u16 % 17),
                }
            }
            12 => outside(&mut input),
            13 => {
                for ring in &mut bench.rings {
                    while let Some((head, len)) = ring.take_used() {
                        let room = &mut rooms[ring.index() as usize][head as usize];
                        assert!(tampered || len as u64 <= *room, "more written than there was room for");
                        *room = u64::MAX;
                    }
                }
            }
            _ => bench.settle(),
        }
    }
    bench.settle();
    let works = std::mem::take(&mut bench.works);
    let given_back = device.deactivate(works);
    assert_eq!(given_back.len(), queues, "all queues are handed back");
    let saved = device.save();
    device.restore(saved).expect("its own state");
    device.reset();
    // After a reset nothing of it is left to break the next driver.
    let mut next = Bench::new(device, RING_SIZE, 0);
    next.settle();
    assert_eq!(next.recorder.fault(), None);
}

/// A guest with a disk.
pub fn blk(data: &[u8]) {
    let mut input = Input(data);
    let disk = MemDisk::new(vec![0x5a; 64 << 10], input.u8().is_multiple_of(8));
    let config = BlkConfig { queues: 2, queue_size: 64, serial: "fuzz".into(), ..BlkConfig::default() };
    let mut device = Blk::new(disk, config);
    device.config_write(32, &[input.u8() % 2]);
    let craft: Craft = |input, at| {
        let kinds = [T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES, 99];
        let kind = kinds[input.u8() as usize % kinds.len()];
        let mut bytes = [kind.to_le_bytes(), [0; 4]].concat();
        bytes.extend((input.u8() as u64).to_le_bytes());
        let len = match kind {
            T_DISCARD | T_WRITE_ZEROES => {
                for _ in 0..input.u8() % 4 {
                    bytes.extend((input.u8() as u64).to_le_bytes());
                    bytes.extend((input.u8() as u32).to_le_bytes());
                    bytes.extend((input.u8() as u32 % 3).to_le_bytes());
                }
                bytes.len() as u32 - 16
            }
            _ => input.u8() as u32 % 16 * 256,
        };
        let mut buffers = vec![Buffer::Out(at, 16)];
        match kind {
            T_IN | T_GET_ID => buffers.push(Buffer::In(at + 16, len)),
            _ => buffers.push(Buffer::Out(at + 16, len)),
        }
        buffers.push(Buffer::In(at + 4096, 1));
        (input.u8() as usize % 2, bytes, buffers)
    };
    play(&mut device, input, craft, |_| {});
}

/// A guest with a SCSI host: a disk and a CD-ROM drive.
pub fn scsi(data: &[u8]) {
    let mut input = Input(data);
    let disk = MemDisk::new(vec![0x5a; 64 << 10], input.u8().is_multiple_of(8));
    let disc = MemDisk::new(vec![1; 9 << 10], true);
    // With a limit that is reached now and then.
    let operations = input.u8().is_multiple_of(2).then_some(Rate { per_second: 1, burst: 4 });
    let limiter = Arc::new(Limiter::new(Limits { operations, bytes: None }));
    let targets = vec![
        TargetConfig::Disk { disk, serial: "fuzz".into(), limiter },
        TargetConfig::Cd(Some(disc.clone())),
    ];
    let mut device = Scsi::new(targets, 1);
    let control = device.control();
    let craft: Craft = |input, at| {
        if input.u8().is_multiple_of(4) {
            let bytes =
                [u32::from(input.u8() % 4).to_le_bytes(), u32::from(input.u8() % 9).to_le_bytes()].concat();
            let bytes = [&bytes[..], &[1, input.u8() % 3, 0x40, 0, 0, 0, 0, 0], &[0; 8]].concat();
            return (0, bytes, vec![Buffer::Out(at, 24), Buffer::In(at + 4096, 5)]);
        }
        let commands = [
            0, 3, 8, 0xa, 0x12, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x2a, 0x35, 0x41, 0x42, 0x43, 0x46, 0x4a, 0x51,
            0x5a, 0x88, 0x8a, 0x93, 0x9e, 0xa0, 0xa8, 0xff,
        ];
        let mut bytes = vec![1, input.u8() % 3, 0x40, input.u8() % 2];
        bytes.resize(19, 0);
        bytes.push(commands[input.u8() as usize % commands.len()]);
        bytes.extend([
            input.u8(),
            0,
            0,
            input.u8() % 2,
            input.u8(),
            0,
            input.u8() % 2,
            input.u8(),
            0,
            0,
            0,
            0,
            0,
            1,
        ]);
        bytes.resize(19 + 32, 0);
        bytes.extend(input.bytes(40));
        let (out, room) = (input.u16() as u32 % 3000, input.u16() as u32 % 5000);
        let buffers = vec![Buffer::Out(at, 51), Buffer::Out(at + 51, out), Buffer::In(at + 4096, 108 + room)];
        (2, bytes, buffers)
    };
    play(&mut device, input, craft, |input| {
        let disc = input.u8().is_multiple_of(2).then(|| disc.clone() as _);
        let _ = control.change_disc(1, disc, input.u8() < 200);
    });
}

/// A guest with a network card.
pub fn net(data: &[u8]) {
    let mut input = Input(data);
    let frame_size_max = [1514, 60, 9014][input.u8() as usize % 3];
    let (wire, end) = Wire::new(frame_size_max);
    let mut device = Net::new([2, 0, 0, 0, 0, 1], Box::new(wire));
    let link = device.link();
    let craft: Craft = |input, at| match input.u8() % 2 {
        0 => (
            0,
            Vec::new(),
            vec![Buffer::In(at, input.u16() as u32 % 3000), Buffer::In(at + 8192, input.u8() as u32)],
        ),
        _ => {
            // A header that asks for offloads, on TCP over IPv4 or IPv6.
            let is_v4 = input.u8().is_multiple_of(2);
            let mut bytes = vec![input.u8() % 4, [0, 1, 4, 0x81][input.u8() as usize % 4], 0, 0];
            bytes.extend((input.u16() % 2000).to_le_bytes());
            bytes.extend([if is_v4 { 34 } else { 54 }, 0, 16, 0, 0, 0]);
            bytes.extend([2; 12]);
            match is_v4 {
                true => bytes.extend([8, 0, 0x45, 0, input.u8(), input.u8(), 0, 0, 0, 0, 64, 6, 0, 0]),
                false => bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, input.u8(), input.u8(), 6, 64]),
            }
            bytes.extend(vec![1; if is_v4 { 8 + 12 } else { 32 + 12 }]);
            bytes.extend([input.u8(), input.u8()]);
            let len = input.u16() as u32 % 5000;
            (1, bytes, vec![Buffer::Out(at, 12), Buffer::Out(at + 12, len)])
        }
    };
    play(&mut device, input, craft, |input| {
        if input.u8() == 0 {
            link.set(!link.is_up());
        }
        let len = (input.u16() as usize) % (frame_size_max + 1);
        let mut frame = vec![0x42; len];
        let bytes = input.bytes(64.min(len));
        frame[..bytes.len()].copy_from_slice(&bytes);
        if len > 40 {
            frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        }
        end.send(&frame);
        for frame in end.take() {
            assert!((14..=frame_size_max).contains(&frame.len()));
        }
    });
}

/// A guest with a balloon.
pub fn balloon(data: &[u8]) {
    let mut device = Balloon::new();
    let control = device.control();
    let craft: Craft = |input, at| {
        let bytes = input.bytes(64);
        let len = input.u16() as u32;
        match input.u8() % 4 {
            // Reports name pages themselves.
            3 => (3, Vec::new(), vec![Buffer::In(at & !0xfff, len * 16)]),
            queue => (queue as usize, bytes.to_vec(), vec![Buffer::Out(at, len % 5000)]),
        }
    };
    play(&mut device, Input(data), craft, |input| {
        control.set_target(input.u32() as u64 * 4096);
        control.status();
    });
}

/// A guest with a console.
pub fn console(data: &[u8]) {
    let mut device = Console::new(Box::new(std::io::sink())).expect("a console");
    let terminal = device.input();
    device.config_write(8, &[b'x', 0, 0, 0]);
    let craft: Craft = |input, at| match input.u8() % 2 {
        0 => (0, Vec::new(), vec![Buffer::In(at, input.u8() as u32)]),
        _ => (1, Vec::new(), vec![Buffer::Out(at, input.u16() as u32)]),
    };
    play(&mut device, Input(data), craft, |input| {
        let len = input.u8() as usize;
        let (room, bytes) = (terminal.room(), input.bytes(len));
        assert_eq!(terminal.receive(&bytes), bytes.len().min(room));
        terminal.resize(input.u16(), input.u16());
    });
}

/// A guest with an entropy source.
pub fn rng(data: &[u8]) {
    let craft: Craft = |input, at| (0, Vec::new(), vec![Buffer::In(at, input.u16() as u32)]);
    play(&mut Rng::new(), Input(data), craft, |_| {});
}

/// A guest with a socket device, and programs on the host.
pub fn vsock(data: &[u8]) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let stem = format!("vsock-fuzz-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(&stem);
    let service_path = std::env::temp_dir().join(format!("{stem}_1"));
    struct Remove(PathBuf);
    impl Drop for Remove {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
    let _remove = Remove(service_path.clone());
    let service = UnixListener::bind(&service_path).expect("a socket");
    service.set_nonblocking(true).expect("a socket that does not block");
    let mut device = Vsock::new(VsockConfig { cid: 3, path: path.clone() }).expect("a device");
    let mut streams: Vec<UnixStream> = Vec::new();
    let craft: Craft = |input, at| match input.u8() % 4 {
        0 => (0, Vec::new(), vec![Buffer::In(at, 44 + input.u16() as u32 % 5000)]),
        1 => (2, Vec::new(), vec![Buffer::In(at, 8)]),
        _ => {
            // Few ports, so that packets meet: the service's, and those of connections from the host.
            let ports = [1, 1, 1 << 30, (1 << 30) + 1];
            let (op, flags) = (1 + input.u8() as u16 % 8, input.u8() as u32 % 4);
            let len = if op == crate::vsock::spec::op::RW { input.u16() as u32 } else { 0 };
            let header = Header {
                src_cid: 3,
                dst_cid: 2,
                src_port: input.u8() as u32 % 4,
                dst_port: ports[input.u8() as usize % 4],
                len,
                kind: 1,
                op,
                flags,
                buf_alloc: input.u16() as u32 * 4,
                fwd_cnt: input.u16() as u32,
            };
            (1, header.to_bytes().to_vec(), vec![Buffer::Out(at, 44 + len)])
        }
    };
    play(&mut device, Input(data), craft, |input| match input.u8() % 5 {
        0 => {
            if let Ok((stream, _)) = service.accept() {
                let _ = stream.set_nonblocking(true);
                streams.push(stream);
            }
        }
        1 if streams.len() < 16 => {
            if let Ok(mut stream) = UnixStream::connect(&path) {
                let _ = stream.set_nonblocking(true);
                let text = match input.u8() % 4 {
                    0 => input.bytes(20),
                    _ => format!("CONNECT {}\n", input.u8() % 4).into_bytes(),
                };
                let _ = stream.write_all(&text);
                streams.push(stream);
            }
        }
        2 => {
            let bytes = vec![7; input.u16() as usize];
            if let Some(stream) = streams.last_mut() {
                let _ = stream.write(&bytes);
            }
        }
        3 => {
            let mut bytes = vec![0; input.u16() as usize];
            if let Some(stream) = streams.last_mut() {
                let _ = stream.read(&mut bytes);
            }
        }
        _ => drop(streams.pop()),
    });
}

/// A guest with folders of the host, whose servers answer as they like.
pub fn fs(data: &[u8]) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let socket = std::env::temp_dir().join(format!("fs-fuzz-{}-{number}", std::process::id()));
    let listener = share::listen(&socket).expect("a socket");
    let mut device = Fs::new().expect("a device");
    let control = device.control();
    let key: share::Key = "00".repeat(32).parse().expect("a key");
    let link = || share::Link::new(&socket, key.clone());
    control.add("one", 1, link()).expect("a share");
    control.set_listing(data.to_vec());
    let craft: Craft = |input, at| {
        let opcode = u32::from(input.u8()) % 54;
        let roots = [0, 1, 2, 1 << 40 | 1, 1 << 40 | 9, 2 << 40 | 1];
        let node: u64 = roots[input.u8() as usize % roots.len()];
        let mut bytes = vec![0; 16];
        bytes[4..8].copy_from_slice(&opcode.to_le_bytes());
        bytes[8] = input.u8();
        bytes.extend(node.to_le_bytes());
        bytes.resize(40, 0);
        match input.u8() % 4 {
            0 => bytes.extend(b"one\0"),
            1 => bytes.extend(b".shares.json\0"),
            _ => {
                let len = input.u8() as usize % 64;
                bytes.extend(input.bytes(len));
            }
        }
        let len = bytes.len() as u32;
        // Mostly as long as it says.
        let said = if input.u8() < 240 { len } else { input.u32() };
        bytes[..4].copy_from_slice(&said.to_le_bytes());
        let room = [0, 8, 16, 200, 5000][input.u8() as usize % 5];
        let mut buffers = vec![Buffer::Out(at, len)];
        if room > 0 {
            buffers.push(Buffer::In(WINDOW + 0x8000, room));
        }
        (input.u8() as usize % 2, bytes, buffers)
    };
    let mut servers = Vec::new();
    let mut message = vec![0; share::MESSAGE_MAX];
    play(&mut device, Input(data), craft, |input| match input.u8() % 6 {
        0 => servers.extend(rustix::net::accept(&listener)),
        1 => drop(servers.pop()),
        2 => {
            let id = u32::from(input.u8() % 4);
            let _ = control.add("two", id, link());
        }
        3 => drop(control.remove(if input.u8() < 200 { "two" } else { "one" })),
        _ => {
            let Some(server) = servers.last() else { return };
            let flags = rustix::net::RecvFlags::DONTWAIT;
            let len = rustix::net::recv(server, &mut message[..], flags).map_or(0, |(_, len)| len);
            // An answer to what was asked, to something else, or no answer at all.
            let mut answer = share::fuse::refusal(0, i32::from(input.u8() % 4)).to_vec();
            answer[8..16].copy_from_slice(message.get(8..16).filter(|_| len >= 40).unwrap_or(&[9; 8]));
            let extra = input.u16() as usize % 6000;
            answer.resize(16 + extra, 7);
            let said = if input.u8() < 240 { answer.len() as u32 } else { input.u32() };
            answer[..4].copy_from_slice(&said.to_le_bytes());
            let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
            let _ = rustix::net::send(server, &answer, flags);
        }
    });
    let _ = std::fs::remove_file(&socket);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a target on pseudo-random inputs, always the same ones.
    fn run(target: fn(&[u8]), inputs: u64, len_max: usize) {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..inputs {
            let len = next() as usize % len_max;
            let data: Vec<u8> = (0..len).map(|_| (next() >> 32) as u8).collect();
            target(&data);
        }
    }

    #[test]
    fn queue_survives() {
        run(queue, 5000, 600);
    }

    #[test]
    fn registers_survive() {
        run(registers, 1000, 600);
    }

    #[test]
    fn blk_survives() {
        run(blk, 2000, 1500);
    }

    #[test]
    fn scsi_survives() {
        run(scsi, 2000, 1500);
    }

    #[test]
    fn net_survives() {
        run(net, 1000, 1500);
    }

    #[test]
    fn balloon_survives() {
        run(balloon, 2000, 1500);
    }

    #[test]
    fn console_survives() {
        run(console, 2000, 1500);
    }

    #[test]
    fn rng_survives() {
        run(rng, 1000, 1500);
    }

    #[test]
    fn fs_survives() {
        run(fs, 2000, 1500);
    }

    #[test]
    fn vsock_survives() {
        run(vsock, 2000, 1500);
    }
}
