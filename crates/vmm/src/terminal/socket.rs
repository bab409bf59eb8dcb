//! A serial line on a Unix socket: whoever connects sees what the guest wrote last and what it writes from
//! then on, and can type.
//!
//! ```text
//! device ─> SocketWriter ─> history ──> queue of each client ─> thread ─> client
//!                                                              thread <─ client ─> CharSink
//! ```
//!
//! The guest never waits for a client. One that does not read loses the line when its queue is full: it is
//! sent away, and may connect again.

use super::{CharSink, Wake};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a new client sees of the past, in bytes.
const HISTORY_SIZE: usize = 64 * 1024;
/// How much may wait for one client, its share of the past included.
const QUEUE_SIZE: usize = 512 * 1024;
/// More clients than this are sent away.
const CLIENTS_MAX: usize = 16;
/// Waits this long at most for room: sinks without a wake-up are asked again then.
const RETRY: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// A serial line on a socket. Its thread runs from [`SocketLine::start`] to [`SocketLine::finish`].
#[derive(Debug)]
pub struct SocketLine {
    shared: Arc<Shared>,
    listener: Option<UnixListener>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Where a device writes to. What it writes goes to the clients and, if there is one, to a log.
pub struct SocketWriter {
    shared: Arc<Shared>,
    log: Option<Box<dyn Write + Send>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something is to be sent, the guest has room for input, or the end has come.
    wake: Wake,
}

#[derive(Debug, Default)]
struct State {
    history: VecDeque<u8>,
    clients: Vec<Client>,
    closed: bool,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    queue: VecDeque<u8>,
    /// It has closed its side for writing; it may still read.
    silent: bool,
    gone: bool,
}

impl SocketLine {
    /// Prepares to serve the clients of `listener`. What the guest writes before the start is kept.
    ///
    /// # Errors
    /// When the process may not open more descriptors.
    pub fn new(listener: UnixListener) -> io::Result<SocketLine> {
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared { state: Mutex::default(), wake: Wake::new()? });
        Ok(SocketLine { shared, listener: Some(listener), thread: None })
    }

    /// A writer for a device, which also writes to `log`.
    pub fn writer(&self, log: Option<Box<dyn Write + Send>>) -> SocketWriter {
        SocketWriter { shared: self.shared.clone(), log }
    }

    /// Wakes the line's thread; to be called when the sink has room again.
    pub fn wake(&self) -> Wake {
        self.shared.wake.clone()
    }

    /// Starts the thread; what clients type goes to `sink`. Nothing happens when it runs already.
    ///
    /// # Errors
    /// When the host refuses another thread.
    pub fn start(&mut self, sink: Arc<dyn CharSink>) -> io::Result<()> {
        if let Some(listener) = self.listener.take() {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name("line".into());
            self.thread = Some(thread.spawn(move || shared.run(&listener, &*sink))?);
        }
        Ok(())
    }

    /// Sends what is on its way, but no client can hold it up for longer than `patience`, and sends the
    /// clients away.
    pub fn finish(mut self, patience: Duration) {
        let mut clients = {
            let mut state = self.shared.lock();
            state.closed = true;
            std::mem::take(&mut state.clients)
        };
        self.shared.wake.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for client in &mut clients {
            let _ = client.stream.set_nonblocking(false);
            let _ = client.stream.set_write_timeout(Some(patience));
            let _ = client.stream.write_all(client.queue.make_contiguous());
        }
    }
}

impl Write for SocketWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(log) = &mut self.log {
            log.write_all(bytes)?;
        }
        let mut state = self.shared.lock();
        state.remember(bytes);
        for client in &mut state.clients {
            client.enqueue(bytes);
        }
        let anybody = !state.clients.is_empty();
        drop(state);
        if anybody {
            self.shared.wake.wake();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl State {
    fn remember(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(HISTORY_SIZE)..];
        let surplus = (self.history.len() + bytes.len()).saturating_sub(HISTORY_SIZE);
        self.history.drain(..surplus);
        self.history.extend(bytes);
    }

    fn accept(&mut self, stream: UnixStream) {
        if self.clients.len() < CLIENTS_MAX && stream.set_nonblocking(true).is_ok() {
            let queue = self.history.clone();
            self.clients.push(Client { stream, queue, silent: false, gone: false });
        }
    }
}

impl Client {
    fn enqueue(&mut self, bytes: &[u8]) {
        self.gone |= self.queue.len() + bytes.len() > QUEUE_SIZE;
        if !self.gone {
            self.queue.extend(bytes);
        }
    }

    /// Sends as much as the client takes.
    fn send(&mut self) {
        while !self.queue.is_empty() && !self.gone {
            match self.stream.write(self.queue.as_slices().0) {
                Ok(count) => drop(self.queue.drain(..count)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.gone = true,
            }
        }
    }

    /// Appends what the client has typed.
    fn receive(&mut self, typed: &mut VecDeque<u8>) {
        let mut buffer = [0; 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.silent = true,
            Ok(count) => typed.extend(&buffer[..count]),
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(_) => self.gone = true,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, listener: &UnixListener, sink: &dyn CharSink) {
        // Typed, and not yet taken by the guest. While there is some, no more is read.
        let mut typed: VecDeque<u8> = VecDeque::new();
        loop {
            let (mut new_client, mut readable) = (false, Vec::new());
            {
                let state = self.lock();
                if state.closed {
                    return;
                }
                // Borrowed descriptors must outlive the lock, so that the guest can write meanwhile.
                let streams: Vec<UnixStream> =
                    state.clients.iter().filter_map(|client| client.stream.try_clone().ok()).collect();
                let wanted: Vec<PollFlags> = state
                    .clients
                    .iter()
                    .map(|client| {
                        let mut flags = PollFlags::empty();
                        flags.set(PollFlags::OUT, !client.queue.is_empty());
                        flags.set(PollFlags::IN, typed.is_empty() && !client.silent);
                        flags
                    })
                    .collect();
                drop(state);
                let mut fds = vec![PollFd::new(listener, PollFlags::IN), self.wake.poll_fd()];
                fds.extend(streams.iter().zip(wanted).map(|(stream, flags)| PollFd::new(stream, flags)));
                let timeout = (!typed.is_empty()).then_some(&RETRY);
                let _ = poll(&mut fds, timeout);
                new_client |= fds[0].revents().contains(PollFlags::IN);
                readable.extend(fds[2..].iter().map(|fd| fd.revents()));
            }
            self.wake.clear();
            let mut state = self.lock();
            for (client, events) in state.clients.iter_mut().zip(readable) {
                client.send();
                if events.contains(PollFlags::IN) && typed.is_empty() {
                    client.receive(&mut typed);
                }
                client.gone |= events.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL)
                    && !events.contains(PollFlags::IN);
            }
            state.clients.retain(|client| !client.gone);
            if new_client && let Ok((stream, _)) = listener.accept() {
                state.accept(stream);
            }
            drop(state);
            // The sink may call back into a writer of this line, so no lock is held.
            let taken = sink.receive(typed.make_contiguous());
            typed.drain(..taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what is typed; takes two bytes at a time.
    #[derive(Default)]
    struct Guest(Mutex<Vec<u8>>);

    impl CharSink for Guest {
        fn receive(&self, bytes: &[u8]) -> usize {
            let taken = bytes.len().min(2);
            self.0.lock().unwrap().extend_from_slice(&bytes[..taken]);
            taken
        }
    }

    fn line(name: &str) -> (SocketLine, std::path::PathBuf) {
        let path = std::env::temp_dir().join(format!("arnia-line-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        (SocketLine::new(UnixListener::bind(&path).unwrap()).unwrap(), path)
    }

    fn read(stream: &mut UnixStream, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn clients_see_the_past_and_the_present_and_can_type() {
        let (mut line, path) = line("talk");
        let mut writer = line.writer(None);
        writer.write_all(b"past ").unwrap();
        let guest = Arc::new(Guest::default());
        line.start(guest.clone()).unwrap();
        let (mut one, mut two) = (UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap());
        assert_eq!(read(&mut one, 5), b"past ");
        assert_eq!(read(&mut two, 5), b"past ");
        writer.write_all(b"present").unwrap();
        assert_eq!(read(&mut one, 7), b"present");
        one.write_all(b"12345").unwrap();
        while guest.0.lock().unwrap().len() < 5 {
            std::thread::yield_now();
        }
        assert_eq!(*guest.0.lock().unwrap(), b"12345");
        drop(one);
        writer.write_all(b"!").unwrap();
        line.finish(Duration::from_secs(5));
        let mut rest = String::new();
        two.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "present!", "the last words are sent before the line is closed");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_client_that_does_not_read_is_sent_away_and_the_guest_never_waits() {
        let (mut line, path) = line("slow");
        let mut writer = line.writer(None);
        line.start(Arc::new(Guest::default())).unwrap();
        let mut slow = UnixStream::connect(&path).unwrap();
        writer.write_all(b"x").unwrap();
        assert_eq!(read(&mut slow, 1), b"x");
        for _ in 0..64 {
            writer.write_all(&[b'y'; 64 * 1024]).unwrap();
        }
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).unwrap();
        assert!(rest.len() < 64 * 64 * 1024);
        // Another one sees the end of the past.
        let mut next = UnixStream::connect(&path).unwrap();
        assert_eq!(read(&mut next, HISTORY_SIZE), vec![b'y'; HISTORY_SIZE]);
        line.finish(Duration::from_secs(1));
        std::fs::remove_file(path).unwrap();
    }
}
