//! Single files and folders of a guest.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use api::agent::frame::{CHUNK_LEN, FrameKind};
use api::agent::{Attributes, Entry, Reply, Request};

use crate::agent::{Agent, done};
use crate::connection::mismatch;
use crate::error::{Error, ErrorKind};

/// How long a file's data may stand still: the time of each frame.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long listing a folder may take altogether: a guest could send one name a minute.
const LIST_LIMIT: Duration = Duration::from_secs(600);
/// Longest name that is taken, in bytes: no host could hold a longer one either (`NAME_MAX`, limits.h).
const NAME_LEN_MAX: usize = 255;
/// Longest target of a symbolic link that is taken, in bytes (`PATH_MAX`, limits.h).
const TARGET_LEN_MAX: usize = 4096;
/// What a list of a folder may take of the host's memory, in bytes: a million names of usual lengths.
const LISTING_LEN_MAX: usize = 128 << 20;

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
            connection.begin();
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
            connection.begin();
            if let Err(error) = connection.send(FrameKind::Data, &bytes[..count]) {
                // An agent that cannot write says why, and hangs up.
                return Err(connection.reply().err().filter(is_refusal).unwrap_or(error));
            }
            if count == 0 {
                connection.begin();
                return done(&connection.reply()?);
            }
        }
    }

    fn stat(&self, path: &str, follow: bool) -> Result<Attributes, Error> {
        match self.ask(Request::Stat { path: path.to_owned(), follow })? {
            Reply::Attributes(attributes) => {
                check_target(attributes.target.as_deref().unwrap_or_default())?;
                Ok(attributes)
            }
            other => Err(mismatch(&other)),
        }
    }

    fn list(&self, path: &str) -> Result<Vec<Entry>, Error> {
        let mut connection = self.connect(TIMEOUT)?;
        let mut all = Listing::default();
        let end = Instant::now() + LIST_LIMIT;
        loop {
            if Instant::now() > end {
                let text = format!("the agent's list of {path} took more than {} s", LIST_LIMIT.as_secs());
                return Err(Error::new(ErrorKind::TimedOut, text));
            }
            let after = all.entries.last().map(|entry| entry.name.clone());
            let (entries, more) = match connection.request(Request::List { path: path.to_owned(), after })? {
                Reply::Entries { entries, more } => (entries, more),
                other => return Err(mismatch(&other)),
            };
            let stands_still = entries.is_empty();
            for entry in entries {
                all.add(entry)?;
            }
            if !more {
                return Ok(all.entries());
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

/// What an agent says is in a folder, as far as that can be.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    entries: Vec<Entry>,
    /// What they take of memory, in bytes.
    len: usize,
}

impl Listing {
    /// Adds a name.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] if it is none, or too long, or one too many.
    pub(crate) fn add(&mut self, entry: Entry) -> Result<(), Error> {
        let bad = entry.name.is_empty() || [".", ".."].contains(&entry.name.as_str());
        if bad || entry.name.contains(['/', '\0']) || entry.name.len() > NAME_LEN_MAX {
            return Err(Error::protocol("the agent's list of a folder makes no sense"));
        }
        check_target(entry.attributes.target.as_deref().unwrap_or_default())?;
        self.len += len_of(&entry);
        if self.len > LISTING_LEN_MAX {
            return Err(Error::protocol(format!(
                "the guest's folder has too much in it: its list takes more than {} MiB",
                LISTING_LEN_MAX >> 20
            )));
        }
        self.entries.push(entry);
        Ok(())
    }

    pub(crate) fn entries(self) -> Vec<Entry> {
        self.entries
    }
}

/// What the lists of a folder, and of those that it is in, may take of memory together, in bytes: whoever goes through a
/// tree holds one for each folder down to where it is.
const HELD_LEN_MAX: usize = 2 * LISTING_LEN_MAX;

/// The lists that somebody holds who goes through a guest's tree.
#[derive(Debug, Default)]
pub struct HeldLists {
    len: usize,
}

impl HeldLists {
    /// Takes note of one more list; returns what it takes of memory, for [`HeldLists::give_back`].
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] if all of them together take too much.
    pub fn take(&mut self, list: &[Entry]) -> Result<usize, Error> {
        let len = list.iter().map(len_of).sum();
        if self.len + len > HELD_LEN_MAX {
            return Err(Error::protocol(format!(
                "the guest's folders have too much in them: the lists of those in each other take more than {} MiB",
                HELD_LEN_MAX >> 20
            )));
        }
        self.len += len;
        Ok(len)
    }

    /// A list that was taken is held no more.
    pub fn give_back(&mut self, len: usize) {
        self.len -= len;
    }
}

/// What an entry takes of memory, in bytes.
fn len_of(entry: &Entry) -> usize {
    let target = entry.attributes.target.as_ref().map_or(0, String::len);
    size_of::<Entry>() + entry.name.len() + target
}

/// Refuses where a symbolic link cannot lead.
pub(crate) fn check_target(target: &str) -> Result<(), Error> {
    match target.len() <= TARGET_LEN_MAX {
        true => Ok(()),
        false => Err(Error::protocol("the agent's target of a symbolic link makes no sense")),
    }
}

fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Refused(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::agent::FileKind;

    #[test]
    fn lists_within_each_other_are_bounded() {
        let attributes = Attributes {
            kind: FileKind::Link,
            size: 0,
            mode: 0,
            uid: 0,
            gid: 0,
            modified_s: 0,
            target: Some("t".repeat(TARGET_LEN_MAX)),
        };
        let list = vec![Entry { name: "n".into(), attributes }; 1000];
        let mut held = HeldLists::default();
        let mut depth = 0;
        let one = held.take(&list).unwrap();
        while held.take(&list).is_ok() {
            depth += 1;
        }
        assert_eq!(depth + 1, HELD_LEN_MAX / one);
        held.give_back(one);
        assert_eq!(held.take(&list).unwrap(), one);
    }
}
