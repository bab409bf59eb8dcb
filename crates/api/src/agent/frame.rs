//! Frames: a length, a kind, and so many bytes.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 4 | length of the payload, little endian, at most [`FRAME_LEN_MAX`] |
//! | 4 | 1 | [`FrameKind`] |
//! | 5 | length | payload |

use std::fmt;
use std::io::{self, Read, Write};

/// Longest payload of a frame, in bytes.
pub const FRAME_LEN_MAX: usize = 128 * 1024;
/// Bytes of a frame before its payload.
pub const HEADER_LEN: usize = 5;
/// How much of a stream is best put into one frame: a virtio socket moves packets of this size.
pub const CHUNK_LEN: usize = 64 * 1024;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Host to guest: a [`super::RequestLine`] as JSON.
    Request = 1,
    /// Guest to host: a [`super::ReplyResult`] as JSON.
    Reply = 2,
    /// Host to guest: standard input of the program; empty at its end.
    Stdin = 3,
    /// Guest to host: standard output of the program, or all of its terminal's.
    Stdout = 4,
    /// Guest to host: standard error of the program.
    Stderr = 5,
    /// Host to guest, while a program runs: a [`super::Control`] as JSON.
    Control = 6,
    /// Guest to host, while a program runs: an [`super::Event`] as JSON.
    Event = 7,
    /// Contents of a file, either way; empty at its end.
    Data = 8,
}

impl FrameKind {
    fn from_u8(value: u8) -> Option<FrameKind> {
        use FrameKind::{Control, Data, Event, Reply, Request, Stderr, Stdin, Stdout};
        [Request, Reply, Stdin, Stdout, Stderr, Control, Event, Data]
            .into_iter()
            .find(|kind| *kind as u8 == value)
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: FrameKind,
    /// That.
    pub payload: Vec<u8>,
}

/// The bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A payload longer than [`FRAME_LEN_MAX`].
    TooLong(u32),
    /// A kind that this version does not know.
    UnknownKind(u8),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLong(length) => {
                write!(f, "a frame of {length} bytes; the longest allowed has {FRAME_LEN_MAX}")
            }
            FrameError::UnknownKind(kind) => write!(f, "a frame of the unknown kind {kind}"),
        }
    }
}

impl std::error::Error for FrameError {}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

fn parse_header(header: [u8; HEADER_LEN]) -> Result<(FrameKind, usize), FrameError> {
    let [a, b, c, d, kind] = header;
    let length = u32::from_le_bytes([a, b, c, d]);
    let kind = FrameKind::from_u8(kind).ok_or(FrameError::UnknownKind(kind))?;
    match usize::try_from(length) {
        Ok(len) if len <= FRAME_LEN_MAX => Ok((kind, len)),
        _ => Err(FrameError::TooLong(length)),
    }
}

/// Writes one frame by one call, so that frames of one writer never mix.
///
/// # Errors
/// `InvalidInput` for a payload longer than [`FRAME_LEN_MAX`], else what the writer says.
pub fn write_frame(writer: &mut impl Write, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
    if payload.len() > FRAME_LEN_MAX {
        let error = FrameError::TooLong(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
    }
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.push(kind as u8);
    bytes.extend_from_slice(payload);
    writer.write_all(&bytes)
}

/// Reads one frame; `None` if the stream ends before it begins.
///
/// # Errors
/// `InvalidData` for what is no frame, `UnexpectedEof` if the stream ends inside, else what the reader says.
pub fn read_frame(reader: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut header = [0; HEADER_LEN];
    let mut filled = 0;
    while filled < HEADER_LEN {
        match reader.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let (kind, len) = parse_header(header)?;
    let mut payload = vec![0; len];
    reader.read_exact(&mut payload)?;
    Ok(Some(Frame { kind, payload }))
}

/// Takes frames out of bytes that come in pieces. Holds at most one frame and what was pushed last.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    /// Where the bytes begin that are not consumed yet.
    start: usize,
}

impl FrameDecoder {
    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// If the bytes are no frame. The stream is then of no further use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.buffer[self.start..];
        let Some(header) = rest.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let (kind, len) = parse_header(*header)?;
        let Some(payload) = rest.get(HEADER_LEN..HEADER_LEN + len) else { return Ok(None) };
        let frame = Frame { kind, payload: payload.to_vec() };
        self.start += HEADER_LEN + len;
        Ok(Some(frame))
    }

    /// Whether part of a frame is waiting for its rest.
    pub fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame> {
        [(FrameKind::Request, 0), (FrameKind::Data, 1), (FrameKind::Stdout, FRAME_LEN_MAX)]
            .map(|(kind, len)| Frame { kind, payload: (0..len).map(|i| i as u8).collect() })
            .to_vec()
    }

    #[test]
    fn what_is_written_is_read_in_whatever_pieces() {
        let mut bytes = Vec::new();
        for frame in frames() {
            write_frame(&mut bytes, frame.kind, &frame.payload).unwrap();
        }
        let mut reader = bytes.as_slice();
        let mut whole = Vec::new();
        while let Some(frame) = read_frame(&mut reader).unwrap() {
            whole.push(frame);
        }
        assert_eq!(whole, frames());
        for piece in [1, 3, 5, 4096, bytes.len()] {
            let mut decoder = FrameDecoder::default();
            let mut found = Vec::new();
            for bytes in bytes.chunks(piece) {
                decoder.push(bytes);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    found.push(frame);
                }
            }
            assert!(decoder.is_empty());
            assert_eq!(found, frames(), "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_before_memory_is_taken_for_it() {
        let long = (FRAME_LEN_MAX as u32 + 1).to_le_bytes();
        for (bytes, error) in [
            ([&long[..], &[1]].concat(), FrameError::TooLong(FRAME_LEN_MAX as u32 + 1)),
            (vec![0xff, 0xff, 0xff, 0xff, 1], FrameError::TooLong(u32::MAX)),
            (vec![0, 0, 0, 0, 0], FrameError::UnknownKind(0)),
            (vec![0, 0, 0, 0, 9], FrameError::UnknownKind(9)),
        ] {
            let mut decoder = FrameDecoder::default();
            decoder.push(&bytes);
            assert_eq!(decoder.next_frame(), Err(error));
            let io = read_frame(&mut bytes.as_slice()).unwrap_err();
            assert_eq!(io.kind(), io::ErrorKind::InvalidData);
        }
        assert_eq!(
            read_frame(&mut [2, 0, 0, 0, 1, 0].as_slice()).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        let long = vec![0; FRAME_LEN_MAX + 1];
        assert!(write_frame(&mut Vec::new(), FrameKind::Data, &long).is_err());
    }
}
