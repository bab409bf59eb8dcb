//! Streams whose use ends at a point in time.
//!
//! A socket's own time limits count anew with every read and write: a peer that sends one byte now and then is never
//! timed out by them. Here the limit of each read and write is what is left until an absolute deadline.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Bytes that one call writes at most. The kernel waits anew for every packet that it makes of a call's bytes: so many
/// are one packet.
const WRITE_LEN_MAX: usize = 32 * 1024;

/// A stream that can be told how long one read or write may wait.
pub trait Timeouts: Read + Write {
    /// Limits every following read; with `None`, they may wait for ever.
    ///
    /// # Errors
    /// If the system refuses.
    fn limit_reads(&self, limit: Option<Duration>) -> io::Result<()>;

    /// Limits every following write; with `None`, they may wait for ever.
    ///
    /// # Errors
    /// If the system refuses.
    fn limit_writes(&self, limit: Option<Duration>) -> io::Result<()>;
}

impl Timeouts for UnixStream {
    fn limit_reads(&self, limit: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(limit)
    }

    fn limit_writes(&self, limit: Option<Duration>) -> io::Result<()> {
        self.set_write_timeout(limit)
    }
}

/// A stream with a deadline. What is not done by then fails with `TimedOut`.
#[derive(Debug)]
pub(crate) struct Timed<S> {
    stream: S,
    limit: Option<Limit>,
}

#[derive(Clone, Copy, Debug)]
struct Limit {
    /// How long one read or write may wait.
    still: Duration,
    /// When all of them must have ended; nothing for a time that the clock does not reach.
    end: Option<Instant>,
}

impl Limit {
    /// How long the next read or write may wait.
    fn left(&self) -> io::Result<Duration> {
        let left = self.end.map_or(self.still, |end| end.saturating_duration_since(Instant::now()));
        match left.min(self.still) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(left),
        }
    }
}

impl<S: Timeouts> Timed<S> {
    /// A stream of which everything must be done within `total` from now, or from a later [`Timed::begin`].
    pub(crate) fn new(stream: S, total: Duration) -> Timed<S> {
        let mut timed = Timed { stream, limit: None };
        timed.begin(total);
        timed
    }

    /// From now on there is so much time.
    pub(crate) fn begin(&mut self, total: Duration) {
        self.begin_moving(total, total);
    }

    /// The same; and no single read or write may wait for longer than `still`.
    pub(crate) fn begin_moving(&mut self, still: Duration, total: Duration) {
        self.limit = Some(Limit { still, end: Instant::now().checked_add(total) });
    }

    /// From now on there is no limit.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn unlimit(&mut self) -> io::Result<()> {
        self.limit = None;
        self.stream.limit_reads(None)?;
        self.stream.limit_writes(None)
    }
}

impl<S> Timed<S> {
    pub(crate) fn get(&self) -> &S {
        &self.stream
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }
}

/// What a socket says when its limit is over is the same as that it would have to wait.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

impl<S: Timeouts> Read for Timed<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(limit) = &self.limit {
            self.stream.limit_reads(Some(limit.left()?))?;
        }
        self.stream.read(buffer).map_err(timed_out)
    }
}

impl<S: Timeouts> Write for Timed<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut bytes = bytes;
        if let Some(limit) = &self.limit {
            self.stream.limit_writes(Some(limit.left()?))?;
            bytes = &bytes[..bytes.len().min(WRITE_LEN_MAX)];
        }
        self.stream.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// How often the peers of these tests move: often enough for every limit on a single read or write.
    const DRIP: Duration = Duration::from_millis(10);
    /// What the exchanges may take.
    const TOTAL: Duration = Duration::from_millis(300);
    /// More than a busy host needs for that.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_peer_that_sends_byte_by_byte_is_timed_out() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let peer = thread::spawn(move || {
            while theirs.write_all(b"x").is_ok() {
                thread::sleep(DRIP);
            }
        });
        let begin = Instant::now();
        let mut timed = Timed::new(ours, TOTAL);
        let error = timed.read_exact(&mut vec![0; 1 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!((TOTAL..PATIENCE).contains(&begin.elapsed()), "{:?}", begin.elapsed());
        // There is time again for another exchange.
        timed.begin(PATIENCE);
        timed.read_exact(&mut [0; 3]).unwrap();
        drop(timed);
        peer.join().unwrap();
    }

    #[test]
    fn a_peer_that_reads_piece_by_piece_is_timed_out() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let peer = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while theirs.read(&mut bytes).is_ok_and(|count| count > 0) {
                thread::sleep(DRIP);
            }
        });
        let begin = Instant::now();
        let mut timed = Timed::new(ours, TOTAL);
        let error = timed.write_all(&vec![0; 64 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
        drop(timed);
        peer.join().unwrap();
    }

    #[test]
    fn one_that_stands_still_is_timed_out_before_the_end() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut timed = Timed::new(ours, PATIENCE);
        timed.begin_moving(DRIP, 10 * PATIENCE);
        let begin = Instant::now();
        assert_eq!(timed.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() < PATIENCE);
    }
}
