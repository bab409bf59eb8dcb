//! What is around a device: interrupt controllers, disks, wires.

use crate::Kick;
use crate::device::Interrupt;
use crate::queue::RingError;
use device::{IrqSink, Msi, MsiSink};
use disk::{BlockingQueue, Buffers, Disk, DiskInfo, Durability, Error, IoQueue, Operation, Unmap};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Takes interrupts and lets a test wait for them.
#[derive(Default)]
pub struct Interrupts {
    state: Mutex<Received>,
    changed: Condvar,
}

#[derive(Default)]
struct Received {
    messages: Vec<Msi>,
    level: bool,
    edges: usize,
}

impl Interrupts {
    /// Waits until `done` gives something, looking again whenever an interrupt came.
    ///
    /// # Panics
    /// When it does not come in 30 seconds: something hangs.
    pub fn wait<T>(&self, mut done: impl FnMut() -> Option<T>) -> T {
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(value) = done() {
                return value;
            }
            let (next, timeout) = self.changed.wait_timeout(state, Duration::from_secs(30)).unwrap();
            assert!(!timeout.timed_out() || done().is_some(), "what was waited for does not come");
            state = next;
        }
    }

    /// The messages that came so far.
    pub fn messages(&self) -> Vec<Msi> {
        self.state.lock().unwrap().messages.clone()
    }

    /// The level of the line.
    pub fn level(&self) -> bool {
        self.state.lock().unwrap().level
    }

    /// How often the line rose.
    pub fn edges(&self) -> usize {
        self.state.lock().unwrap().edges
    }
}

impl MsiSink for Interrupts {
    fn send_msi(&self, msi: Msi) {
        self.state.lock().unwrap().messages.push(msi);
        self.changed.notify_all();
    }
}

impl IrqSink for Interrupts {
    fn set_irq(&self, _irq: u32, level: bool) {
        let mut state = self.state.lock().unwrap();
        state.level = level;
        state.edges += level as usize;
        self.changed.notify_all();
    }
}

/// Counts interrupts of a device without a transport.
#[derive(Default)]
pub struct Recorder {
    used: Mutex<Vec<u16>>,
    config_changes: AtomicUsize,
    fault: Mutex<Option<(u16, RingError)>>,
}

impl Recorder {
    /// The queues that interrupted since the last call.
    pub fn take_used(&self) -> Vec<u16> {
        std::mem::take(&mut self.used.lock().unwrap())
    }

    /// How often the configuration changed.
    pub fn config_changes(&self) -> usize {
        self.config_changes.load(Ordering::Relaxed)
    }

    /// What broke the device first.
    pub fn fault(&self) -> Option<(u16, RingError)> {
        *self.fault.lock().unwrap()
    }
}

impl Interrupt for Recorder {
    fn queue_used(&self, queue: u16) {
        self.used.lock().unwrap().push(queue);
    }

    fn config_changed(&self) {
        self.config_changes.fetch_add(1, Ordering::Relaxed);
    }

    fn needs_reset(&self, queue: u16, error: RingError) {
        self.fault.lock().unwrap().get_or_insert((queue, error));
    }
}

/// A disk in memory that remembers what was asked of it.
pub struct MemDisk {
    info: DiskInfo,
    bytes: Mutex<Vec<u8>>,
    log: Mutex<Vec<(Operation, u64, u64)>>,
    /// Writes that were to be durable at once.
    durable_writes: AtomicUsize,
    fails: Mutex<Option<Operation>>,
}

impl MemDisk {
    /// A disk with this content.
    pub fn new(bytes: Vec<u8>, read_only: bool) -> Arc<MemDisk> {
        let info = DiskInfo {
            size: bytes.len() as u64,
            read_only,
            logical_block_size: 512,
            physical_block_size: 4096,
            discard_granularity: Some(4096),
        };
        Arc::new(MemDisk {
            info,
            bytes: Mutex::new(bytes),
            log: Mutex::default(),
            durable_writes: AtomicUsize::new(0),
            fails: Mutex::new(None),
        })
    }

    /// The content.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    /// What was asked since the last call: operation, offset, length.
    pub fn take_log(&self) -> Vec<(Operation, u64, u64)> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// How many writes were to be durable at completion.
    pub fn durable_writes(&self) -> usize {
        self.durable_writes.load(Ordering::Relaxed)
    }

    /// Lets all operations of a kind fail from now on.
    pub fn fail(&self, operation: Option<Operation>) {
        *self.fails.lock().unwrap() = operation;
    }

    fn begin(&self, operation: Operation, offset: u64, len: u64) -> Result<(), Error> {
        self.log.lock().unwrap().push((operation, offset, len));
        if *self.fails.lock().unwrap() == Some(operation) {
            return Err(Error::new(disk::ErrorKind::Io, operation));
        }
        self.info.check(operation, offset, len)
    }
}

impl Disk for MemDisk {
    fn info(&self) -> DiskInfo {
        self.info
    }

    fn read(&self, offset: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        let len = into.len();
        self.begin(Operation::Read, offset, len as u64)?;
        into.copy_from(0, &self.bytes.lock().unwrap()[offset as usize..][..len]);
        Ok(())
    }

    fn write(&self, offset: u64, from: &Buffers<'_>, durability: Durability) -> Result<(), Error> {
        let len = from.len();
        self.begin(Operation::Write, offset, len as u64)?;
        if durability == Durability::AtCompletion {
            self.durable_writes.fetch_add(1, Ordering::Relaxed);
        }
        from.copy_to(0, &mut self.bytes.lock().unwrap()[offset as usize..][..len]);
        Ok(())
    }

    fn flush(&self) -> Result<(), Error> {
        self.begin(Operation::Flush, 0, 0)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.begin(Operation::Discard, offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: Unmap, _: Durability) -> Result<(), Error> {
        self.begin(Operation::WriteZeroes, offset, len)?;
        self.bytes.lock().unwrap()[offset as usize..][..len as usize].fill(0);
        Ok(())
    }

    // All is done when it is submitted, so that a test can look at once.
    fn io_queue(self: Arc<Self>, depth: usize) -> Box<dyn IoQueue> {
        Box::new(BlockingQueue::new(self, depth))
    }
}

/// The device's end of a wire whose other end is the test's.
pub struct Wire {
    end: WireEnd,
    frame_size_max: usize,
}

/// The test's end of a [`Wire`].
#[derive(Clone)]
pub struct WireEnd {
    shared: Arc<WireShared>,
}

struct WireShared {
    kick: Kick,
    to_guest: Mutex<VecDeque<Vec<u8>>>,
    from_guest: Mutex<Vec<Vec<u8>>>,
}

impl Wire {
    /// A wire for frames of up to so many bytes.
    pub fn new(frame_size_max: usize) -> (Wire, WireEnd) {
        let kick = Kick::new().expect("an eventfd");
        let shared = WireShared { kick, to_guest: Mutex::default(), from_guest: Mutex::default() };
        let end = WireEnd { shared: Arc::new(shared) };
        (Wire { end: end.clone(), frame_size_max }, end)
    }
}

impl WireEnd {
    /// Sends a frame to the guest.
    pub fn send(&self, frame: &[u8]) {
        self.shared.to_guest.lock().unwrap().push_back(frame.to_vec());
        self.shared.kick.notify();
    }

    /// Takes what the guest has sent.
    pub fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.shared.from_guest.lock().unwrap())
    }

    /// How many frames wait for the guest.
    pub fn waiting(&self) -> usize {
        self.shared.to_guest.lock().unwrap().len()
    }
}

impl net::Backend for Wire {
    fn transmit(&mut self, frame: &[u8]) {
        self.end.shared.from_guest.lock().unwrap().push(frame.to_vec());
    }

    fn receive(&mut self, frame: &mut [u8]) -> Option<usize> {
        let next = self.end.shared.to_guest.lock().unwrap().pop_front()?;
        frame[..next.len()].copy_from_slice(&next);
        Some(next.len())
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.end.shared.kick.as_fd()
    }

    fn poll(&mut self) -> Option<Duration> {
        self.end.shared.kick.clear();
        None
    }

    fn frame_size_max(&self) -> usize {
        self.frame_size_max
    }
}
