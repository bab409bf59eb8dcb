//! Files of guests: one as its bytes, a folder as a tar archive (POSIX ustar with GNU's long names).
//!
//! The agent is asked on a thread that may wait; the bytes go through a channel to and from the client's
//! connection, a few pieces at a time, so that the slower side sets the pace.

use super::archive::archive;
use crate::Error;
use crate::http::right::Right;
use agent_client::{FileAttributes, GuestFiles};
use api::agent::{AgentErrorKind, FileKind};
use api::v1::error::ErrorCode;
use axum::body::{Body, Bytes};
use futures_util::StreamExt;
use std::io::{self, Read, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Pieces that wait between guest and client.
const PIECES: usize = 8;
/// Longest name in an archive: that of a path (`PATH_MAX`, limits.h).
const NAME_LEN_MAX: u64 = 4096;
/// How long a client may leave its upload standing still.
const STALL_MAX: Duration = Duration::from_secs(60);

/// What a client is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The bytes of a file.
    File,
    /// An archive of a folder.
    Folder,
}

/// Where what comes from a guest goes: first its kind or why there is nothing, then bytes.
pub(crate) struct Outlet {
    kind: Kind,
    head: Option<oneshot::Sender<Result<Kind, Error>>>,
    pieces: mpsc::Sender<io::Result<Bytes>>,
    /// Nothing more is sent.
    shut: bool,
}

/// The other end of an [`Outlet`].
pub(crate) struct Outgoing {
    pub(super) head: oneshot::Receiver<Result<Kind, Error>>,
    pub(super) pieces: mpsc::Receiver<io::Result<Bytes>>,
}

pub(crate) fn outlet() -> (Outlet, Outgoing) {
    let (head, head_receiver) = oneshot::channel();
    let (pieces, pieces_receiver) = mpsc::channel(PIECES);
    let outlet = Outlet { kind: Kind::File, head: Some(head), pieces, shut: false };
    (outlet, Outgoing { head: head_receiver, pieces: pieces_receiver })
}

impl Outgoing {
    /// Waits until it is known what comes; then gives it as a body, which breaks off when the client loses its right.
    pub(crate) async fn body(self, right: Right) -> Result<(Kind, Body), Error> {
        let lost = |_| Error::new(ErrorCode::Internal, "the guest's file got lost");
        let kind = self.head.await.map_err(lost)??;
        let lost = Box::pin(async move { right.lost().await });
        let pieces = futures_util::stream::unfold(Some((self.pieces, lost)), async |state| {
            let (mut pieces, mut lost) = state?;
            tokio::select! {
                biased;
                error = &mut lost => Some((Err(no_more(&error)), None)),
                piece = pieces.recv() => piece.map(|piece| (piece, Some((pieces, lost)))),
            }
        });
        Ok((kind, Body::from_stream(pieces)))
    }
}

/// What a client reads or sends ends in the middle, because it has lost its right.
fn no_more(error: &Error) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, error.to_string())
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.shut {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if let Some(head) = self.head.take() {
            let _ = head.send(Ok(self.kind));
        }
        let sent = self.pieces.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        // The client does not listen any more.
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Outlet {
    /// Something went wrong: nothing more is sent, whatever is still written.
    pub(super) fn shut(&mut self) {
        self.shut = true;
    }

    /// Nothing comes, and this is why.
    pub(crate) fn fail(self, error: Error) {
        if let Some(head) = self.head {
            let _ = head.send(Err(error));
        }
    }
}

/// Sends a file or folder of the guest to where `outlet` leads.
pub(crate) fn send_out(agent: &dyn GuestFiles, path: &str, mut outlet: Outlet) {
    let result = match agent.stat(path, true) {
        Err(error) => Err(error.into()),
        Ok(attributes) => match attributes.kind {
            FileKind::File => agent.read_file(path, &mut outlet).map(drop).map_err(Error::from),
            FileKind::Folder => {
                outlet.kind = Kind::Folder;
                archive(agent, path, &mut outlet)
            }
            _ => Err(Error::new(ErrorCode::Invalid, "there is neither a file nor a folder at this path")),
        },
    };
    match (result, outlet.head.take()) {
        // An empty file.
        (Ok(()), Some(head)) => drop(head.send(Ok(outlet.kind))),
        (Err(error), Some(head)) => drop(head.send(Err(error))),
        // The client sees that the body is not whole; it cannot be told any more why.
        (Err(error), None) => {
            log::warn!("what was to be copied from {path:?} of a guest broke off: {error}");
            drop(outlet.pieces.blocking_send(Err(io::Error::other(error.to_string()))));
        }
        (Ok(()), None) => {}
    }
}

/// What a client sends, to be read on another thread.
pub(crate) struct Inlet {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

/// Why what a client sent was not read to its end, if that is because the client lost its right.
#[derive(Clone, Default)]
pub(crate) struct Lost(Arc<OnceLock<Error>>);

impl Lost {
    /// What to tell the client: rather this than that the guest got only a part.
    pub(crate) fn or(self, error: Error) -> Error {
        self.0.get().cloned().unwrap_or(error)
    }
}

/// Makes a body readable on another thread. Its end comes only after all of it: a client that goes away in the
/// middle, or loses its right, is an error.
pub(crate) fn inlet(body: Body, right: Right) -> (Inlet, Lost) {
    let (sender, pieces) = mpsc::channel(PIECES);
    let lost_right = Lost::default();
    let noted = lost_right.clone();
    tokio::spawn(async move {
        let mut body = body.into_data_stream();
        let lost = right.lost();
        tokio::pin!(lost);
        loop {
            let piece = tokio::select! {
                biased;
                error = &mut lost => {
                    let end = no_more(&error);
                    let _ = noted.0.set(error);
                    Err(end)
                }
                piece = tokio::time::timeout(STALL_MAX, body.next()) => match piece {
                    Ok(None) => return,
                    Ok(Some(piece)) => piece.map_err(io::Error::other),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                },
            };
            let last = piece.is_err();
            if sender.send(piece).await.is_err() || last {
                return;
            }
        }
    });
    (Inlet { pieces, piece: Bytes::new() }, lost_right)
}

impl Read for Inlet {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.piece = piece?,
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

/// Unpacks an archive into a folder of the guest, which is made if it is not there. Owners are root.
pub(crate) fn unpack(agent: &dyn GuestFiles, folder: &str, from: impl Read) -> Result<(), Error> {
    agent.make_folder(folder, None)?;
    let bad = |e: io::Error| Error::new(ErrorCode::Invalid, "the archive cannot be read").with_cause(e);
    let mut archive = tar::Archive::new(from);
    let (mut long_name, mut long_target) = (None, None);
    // Raw: the names that come before an entry are read here, so that their length has a limit.
    for entry in archive.entries().map_err(bad)?.raw(true) {
        let mut entry = entry.map_err(bad)?;
        let kind = entry.header().entry_type();
        match kind {
            tar::EntryType::GNULongName => long_name = Some(text_of(&mut entry)?),
            tar::EntryType::GNULongLink => long_target = Some(text_of(&mut entry)?),
            tar::EntryType::XGlobalHeader => {}
            tar::EntryType::XHeader => {
                return Err(Error::new(ErrorCode::Invalid, "the archive has extended headers")
                    .with_remedy("make it with `tar --format=gnu`"));
            }
            _ => {
                let name = match long_name.take() {
                    Some(name) => name,
                    None => utf8(&entry.path_bytes())?,
                };
                let target = long_target.take();
                let Some(path) = inside(folder, &name)? else { continue };
                let mode = entry.header().mode().map_err(bad)? & 0o7777;
                match kind {
                    tar::EntryType::Directory => agent.make_folder(&path, Some(mode))?,
                    tar::EntryType::Symlink => {
                        let target = match target {
                            Some(target) => target,
                            None => utf8(&entry.link_name_bytes().unwrap_or_default())?,
                        };
                        agent.make_link(&path, &target)?;
                    }
                    tar::EntryType::Regular | tar::EntryType::Continuous => {
                        let attributes = FileAttributes { mode: Some(mode), ..FileAttributes::default() };
                        let mut whole =
                            Whole { left: entry.header().entry_size().map_err(bad)?, inner: &mut entry };
                        agent.write_file(&path, &attributes, &mut whole)?;
                    }
                    _ => {
                        let message = format!("{name:?} is neither file, folder nor symbolic link");
                        return Err(Error::new(ErrorCode::Invalid, message));
                    }
                }
            }
        }
    }
    Ok(())
}

/// A file of an archive, whose early end is an error and not a shorter file.
struct Whole<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.saturating_sub(count as u64);
        match count {
            0 if self.left > 0 && !buffer.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(count),
        }
    }
}

fn text_of(entry: &mut impl Read) -> Result<String, Error> {
    let mut bytes = Vec::new();
    let read = entry.take(NAME_LEN_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::new(ErrorCode::Invalid, "the archive cannot be read").with_cause(e))?;
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    if bytes.len() as u64 > NAME_LEN_MAX {
        return Err(Error::new(ErrorCode::Invalid, "the archive has a name of more than 4096 bytes"));
    }
    utf8(&bytes)
}

fn utf8(bytes: &[u8]) -> Result<String, Error> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| Error::new(ErrorCode::Invalid, "the archive has a name that is no UTF-8"))
}

/// The path of an entry below `folder`; nothing for the folder itself.
fn inside(folder: &str, name: &str) -> Result<Option<String>, Error> {
    let parts = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>();
    if parts.contains(&"..") {
        return Err(Error::new(
            ErrorCode::Invalid,
            format!("the archive's {name:?} leads out of the folder"),
        ));
    }
    Ok((!parts.is_empty()).then(|| format!("{}/{}", folder.trim_end_matches('/'), parts.join("/"))))
}

/// Refuses paths that the agent would take for something else.
pub(crate) fn check_path(path: &str) -> Result<(), Error> {
    if !path.starts_with('/') || path.contains('\0') || path.len() as u64 > NAME_LEN_MAX {
        return Err(super::refused(
            AgentErrorKind::Invalid,
            "a path in a guest begins with / and has at most 4096 bytes".into(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_entry_of_an_archive_leads_out_of_its_folder() {
        assert_eq!(inside("/srv/", "a/./b//c").unwrap().as_deref(), Some("/srv/a/b/c"));
        assert_eq!(inside("/srv", "/etc/passwd").unwrap().as_deref(), Some("/srv/etc/passwd"));
        assert_eq!(inside("/srv", "./").unwrap(), None);
        assert!(inside("/srv", "a/../../etc").is_err());
    }

    #[test]
    fn a_file_that_ends_early_is_known() {
        let mut whole = Whole { inner: &b"123"[..], left: 5 };
        assert!(whole.read_to_end(&mut Vec::new()).is_err());
    }
}
