//! Single files and folders of a guest.

use std::io::{self, Read, Write};
use std::time::Duration;

use api::agent::frame::{CHUNK_LEN, FrameKind};
use api::agent::{Attributes, Entry, Reply, Request};

use crate::agent::{Agent, done};
use crate::connection::mismatch;
use crate::error::{Error, ErrorKind};

/// How long a file's data may stand still.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Names in a folder that are taken: more than any folder has, less than fills a host.
const ENTRIES_MAX: usize = 1_000_000;

/// Attributes for a file that is written. What is absent stays as it is, or gets the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileAttributes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// Files of a guest, by whichever agent it has. Paths are absolute.
pub trait GuestFiles {
    /// Reads a file into `to`. It is the caller's to limit how much it takes; what comes may be more or
    /// less than the attributes say if the file changes meanwhile.
    ///
    /// # Errors
    /// See [`ErrorKind`]; `to` may have got a part then.
    fn read_file(&self, path: &str, to: &mut dyn Write) -> Result<Attributes, Error>;

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    /// See [`ErrorKind`]; the guest has what it had then.
    fn write_file(&self, path: &str, attributes: &FileAttributes, from: &mut dyn Read) -> Result<(), Error>;

    /// What is at a path.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] with `NotFound` if there is nothing.
    fn stat(&self, path: &str, follow: bool) -> Result<Attributes, Error>;

    /// What is in a folder, in the order of the names' bytes. No name has a slash or means another folder.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    fn list(&self, path: &str) -> Result<Vec<Entry>, Error>;

    /// Makes a folder and those above it; one that is there is no error.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    fn make_folder(&self, path: &str, mode: Option<u32>) -> Result<(), Error>;

    /// Makes a symbolic link, in place of one that is there.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    fn make_link(&self, path: &str, target: &str) -> Result<(), Error>;
}

impl GuestFiles for Agent {
    fn read_file(&self, path: &str, to: &mut dyn Write) -> Result<Attributes, Error> {
        let mut connection = self.connect(TIMEOUT)?;
        let attributes = match connection.request(Request::FileRead { path: path.to_owned() })? {
            Reply::File(attributes) => attributes,
            other => return Err(mismatch(&other)),
        };
        loop {
            let frame = connection.receive()?;
            if frame.kind != FrameKind::Data {
                return Err(Error::protocol(format!("the agent sent {:?} inside a file", frame.kind)));
            }
            if frame.payload.is_empty() {
                return Ok(attributes);
            }
            to.write_all(&frame.payload)
                .map_err(|error| Error::io("cannot write what the guest sent", error))?;
        }
    }

    fn write_file(&self, path: &str, attributes: &FileAttributes, from: &mut dyn Read) -> Result<(), Error> {
        let mut connection = self.connect(TIMEOUT)?;
        let FileAttributes { mode, uid, gid } = *attributes;
        match connection.request(Request::FileWrite { path: path.to_owned(), mode, uid, gid })? {
            Reply::Ready => {}
            other => return Err(mismatch(&other)),
        }
        let mut bytes = vec![0; CHUNK_LEN];
        loop {
            let count = match from.read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(|error| Error::io("cannot read what is to be sent", error))?,
            };
            if let Err(error) = connection.send(FrameKind::Data, &bytes[..count]) {
                // An agent that cannot write says why, and hangs up.
                return Err(connection.reply().err().filter(is_refusal).unwrap_or(error));
            }
            if count == 0 {
                return done(&connection.reply()?);
            }
        }
    }

    fn stat(&self, path: &str, follow: bool) -> Result<Attributes, Error> {
        match self.ask(Request::Stat { path: path.to_owned(), follow })? {
            Reply::Attributes(attributes) => Ok(attributes),
            other => Err(mismatch(&other)),
        }
    }

    fn list(&self, path: &str) -> Result<Vec<Entry>, Error> {
        let mut connection = self.connect(TIMEOUT)?;
        let mut all: Vec<Entry> = Vec::new();
        loop {
            let after = all.last().map(|entry| entry.name.clone());
            let (entries, more) = match connection.request(Request::List { path: path.to_owned(), after })? {
                Reply::Entries { entries, more } => (entries, more),
                other => return Err(mismatch(&other)),
            };
            let stands_still = entries.is_empty();
            for entry in entries {
                add(&mut all, entry)?;
            }
            if !more {
                return Ok(all);
            }
            if stands_still {
                return Err(Error::protocol("the agent's list of a folder has no end"));
            }
        }
    }

    fn make_folder(&self, path: &str, mode: Option<u32>) -> Result<(), Error> {
        done(&self.ask(Request::MakeFolder { path: path.to_owned(), mode })?)
    }

    fn make_link(&self, path: &str, target: &str) -> Result<(), Error> {
        done(&self.ask(Request::MakeLink { path: path.to_owned(), target: target.to_owned() })?)
    }
}

/// Adds what an agent says is in a folder, if that can be.
pub(crate) fn add(all: &mut Vec<Entry>, entry: Entry) -> Result<(), Error> {
    let bad = entry.name.is_empty() || [".", ".."].contains(&entry.name.as_str());
    if bad || entry.name.contains(['/', '\0']) || all.len() >= ENTRIES_MAX {
        return Err(Error::protocol("the agent's list of a folder makes no sense"));
    }
    all.push(entry);
    Ok(())
}

fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Refused(_))
}
