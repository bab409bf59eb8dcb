//! Folders of guests as tar archives, while they are read.

use super::files::Outlet;
use super::printable;
use crate::Error;
use agent_client::{GuestFiles, HeldLists};
use api::agent::{AgentErrorKind, Entry, FileKind};
use api::v1::error::ErrorCode;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// Folders within folders: more than anybody has, fewer than exhaust the stack.
const DEPTH_MAX: u32 = 256;
/// How long a folder is looked through for what cannot be copied before any of it is sent.
const LOOK_AHEAD: Duration = Duration::from_secs(1);
/// Bytes of a block in an archive.
const BLOCK: usize = 512;

/// Sends an archive of a folder of the guest to where `outlet` leads.
///
/// # Errors
/// If the guest cannot tell it all, or the client does not take it. The archive has no end then.
pub(super) fn archive(agent: &dyn GuestFiles, path: &str, outlet: &mut Outlet) -> Result<(), Error> {
    look_ahead(agent, path, 0, &mut HeldLists::default(), Instant::now() + LOOK_AHEAD)?;
    let builder = tar::Builder::new(io::BufWriter::with_capacity(64 * 1024, outlet));
    let mut archive = Archive { agent, builder, held: HeldLists::default() };
    let result = archive.add_folder(path, "", 0);
    let mut builder = archive.builder;
    match result {
        Ok(()) => builder.into_inner().and_then(|mut writer| writer.flush()).map_err(unsent),
        Err(error) => {
            // When they are dropped, the builder ends the archive and the buffer is sent: the client would get a part as
            // if it were all, and not hear why.
            builder.get_mut().get_mut().shut();
            Err(error)
        }
    }
}

fn unsent(error: io::Error) -> Error {
    Error::new(ErrorCode::Cancelled, "the archive cannot be sent").with_cause(error)
}

fn check_depth(depth: u32) -> Result<(), Error> {
    if depth < DEPTH_MAX {
        return Ok(());
    }
    let message = format!("folders lie more than {DEPTH_MAX} deep in each other");
    Err(Error::new(ErrorCode::Invalid, message))
}

fn below(path: &str, name: &str) -> String {
    format!("{}/{name}", path.trim_end_matches('/'))
}

/// Sockets, pipes and devices mean nothing elsewhere.
fn is_copied(entry: &Entry) -> bool {
    entry.attributes.kind != FileKind::Other
}

/// Looks for names that cannot be copied before anything is sent, while there is time: later, the client would not hear
/// why what it gets breaks off.
fn look_ahead(
    agent: &dyn GuestFiles,
    path: &str,
    depth: u32,
    held: &mut HeldLists,
    until: Instant,
) -> Result<(), Error> {
    check_depth(depth)?;
    let entries = agent.list(path)?;
    let len = held.take(&entries)?;
    for entry in entries.iter().filter(|entry| is_copied(entry)) {
        // Within a folder, too: a guest may take its time with each.
        if Instant::now() > until {
            break;
        }
        let source = below(path, &entry.name);
        check_reachable(agent, &source)?;
        if entry.attributes.kind == FileKind::Folder {
            look_ahead(agent, &source, depth + 1, held, until)?;
        }
    }
    held.give_back(len);
    Ok(())
}

/// Refuses a name that is not UTF-8: agents tell it with other characters in it, by which the file is not found.
fn check_reachable(agent: &dyn GuestFiles, path: &str) -> Result<(), Error> {
    if !path.contains(char::REPLACEMENT_CHARACTER) {
        return Ok(());
    }
    let not_found = agent_client::ErrorKind::Refused(AgentErrorKind::NotFound);
    match agent.stat(path, false) {
        Err(error) if error.kind() == not_found => {
            let message = format!("the guest's {:?} has a name that is not UTF-8", printable(path, 1024));
            Err(Error::new(ErrorCode::Invalid, message)
                .with_remedy("rename it in the guest; or make an archive there, and copy that"))
        }
        // It has that character in its name.
        _ => Ok(()),
    }
}

/// An archive that is being made of a guest's folder.
struct Archive<'a, W: Write> {
    agent: &'a dyn GuestFiles,
    builder: tar::Builder<W>,
    held: HeldLists,
}

impl<W: Write> Archive<'_, W> {
    fn add_folder(&mut self, path: &str, inside: &str, depth: u32) -> Result<(), Error> {
        check_depth(depth)?;
        let entries = self.agent.list(path)?;
        let len = self.held.take(&entries)?;
        for entry in entries.into_iter().filter(is_copied) {
            self.add(entry, path, inside, depth)?;
        }
        self.held.give_back(len);
        Ok(())
    }

    /// Adds what `path` has in it, as `inside` with its name behind that.
    fn add(&mut self, entry: Entry, path: &str, inside: &str, depth: u32) -> Result<(), Error> {
        let attributes = entry.attributes;
        let source = below(path, &entry.name);
        check_reachable(self.agent, &source)?;
        let name = format!("{inside}{}", entry.name);
        let mut header = tar::Header::new_gnu();
        header.set_mode(attributes.mode & 0o7777);
        header.set_uid(attributes.uid.into());
        header.set_gid(attributes.gid.into());
        header.set_mtime(u64::try_from(attributes.modified_s).unwrap_or(0));
        header.set_size(0);
        match attributes.kind {
            FileKind::Folder => {
                header.set_entry_type(tar::EntryType::Directory);
                self.builder.append_data(&mut header, format!("{name}/"), io::empty()).map_err(unsent)?;
                self.add_folder(&source, &format!("{name}/"), depth + 1)
            }
            FileKind::Link => {
                header.set_entry_type(tar::EntryType::Symlink);
                let target = attributes.target.unwrap_or_default();
                self.builder.append_link(&mut header, &name, target).map_err(unsent)
            }
            FileKind::File => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(attributes.size);
                // The header alone; what follows is written past the builder.
                self.builder.append_data(&mut header, &name, io::empty()).map_err(unsent)?;
                let mut exact = Exact { inner: self.builder.get_mut(), left: attributes.size, cut: false };
                match self.agent.read_file(&source, &mut exact) {
                    // What was promised is there.
                    Err(_) if exact.cut => {}
                    result => drop(result?),
                }
                if exact.left > 0 {
                    let message = format!("{source} became shorter while it was read");
                    return Err(Error::new(ErrorCode::GuestFailed, message));
                }
                let padding = (BLOCK - (attributes.size % BLOCK as u64) as usize) % BLOCK;
                self.builder.get_mut().write_all(&[0; BLOCK][..padding]).map_err(unsent)
            }
            // Not copied.
            FileKind::Other => Ok(()),
        }
    }
}

/// Passes on as many bytes as were promised, and takes no more: a file that has grown since is cut there, and one that has
/// no end is not read for ever.
struct Exact<W> {
    inner: W,
    left: u64,
    /// There was more.
    cut: bool,
}

impl<W: Write> Write for Exact<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.inner.write_all(&bytes[..count])?;
        self.left -= count as u64;
        self.cut = count < bytes.len();
        if self.cut { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(count) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::{Kind, outlet, send_out};
    use super::*;
    use agent_client::FileAttributes;
    use api::agent::{AgentError, Attributes};
    use std::io::Read;

    /// A guest with a folder that has these names in it, of which those that are no UTF-8 are not found. Every file has so
    /// many bytes, of which the guest sends one less where `short` says so; one called `endless` has no end.
    struct Folder {
        names: &'static [&'static str],
        size: u64,
        short: &'static str,
    }

    fn attributes(kind: FileKind, size: u64) -> Attributes {
        Attributes { kind, size, mode: 0o644, uid: 0, gid: 0, modified_s: 0, target: None }
    }

    impl GuestFiles for Folder {
        fn read_file(&self, path: &str, to: &mut dyn Write) -> Result<Attributes, agent_client::Error> {
            let len = self.size - u64::from(path.ends_with(self.short));
            // The client has perhaps gone.
            let _ = to.write_all(&vec![b'x'; len as usize]);
            if path.ends_with("/endless") {
                while to.write_all(b"more").is_ok() {}
                let message = "the host has hung up".into();
                return Err(AgentError { kind: AgentErrorKind::Failed, message }.into());
            }
            self.stat(path, true)
        }

        fn stat(&self, path: &str, _: bool) -> Result<Attributes, agent_client::Error> {
            match path {
                "/folder" => Ok(attributes(FileKind::Folder, 0)),
                _ if path.ends_with("odd\u{fffd}") => {
                    Err(AgentError { kind: AgentErrorKind::NotFound, message: "not found".into() }.into())
                }
                _ => Ok(attributes(FileKind::File, self.size)),
            }
        }

        fn list(&self, _: &str) -> Result<Vec<Entry>, agent_client::Error> {
            let entry = |name: &&str| Entry {
                name: (*name).to_owned(),
                attributes: attributes(FileKind::File, self.size),
            };
            Ok(self.names.iter().map(entry).collect())
        }

        fn write_file(
            &self,
            _: &str,
            _: &FileAttributes,
            _: &mut dyn Read,
        ) -> Result<(), agent_client::Error> {
            unreachable!("nothing is written")
        }

        fn make_folder(&self, _: &str, _: Option<u32>) -> Result<(), agent_client::Error> {
            unreachable!("nothing is made")
        }

        fn make_link(&self, _: &str, _: &str) -> Result<(), agent_client::Error> {
            unreachable!("nothing is made")
        }
    }

    /// What a client gets of a folder: the kind or why not, the bytes, and whether they broke off.
    fn sent(folder: Folder) -> (Result<Kind, Error>, Vec<u8>, bool) {
        let (outlet, mut outgoing) = outlet();
        let guest = std::thread::spawn(move || send_out(&folder, "/folder", outlet));
        let head = outgoing.head.blocking_recv().unwrap();
        let (mut bytes, mut broken) = (Vec::new(), false);
        while let Some(piece) = outgoing.pieces.blocking_recv() {
            match piece {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(_) => broken = true,
            }
        }
        guest.join().unwrap();
        (head, bytes, broken)
    }

    #[test]
    fn what_cannot_be_copied_is_said_instead_of_a_part_of_the_archive() {
        let names = &["a", "legal \u{fffd}", "odd\u{fffd}"];
        // A big tree, too: nothing is sent before it was looked at.
        for size in [3, 1 << 20] {
            let (head, bytes, _) = sent(Folder { names, size, short: "none" });
            let error = head.unwrap_err();
            assert_eq!(error.code(), ErrorCode::Invalid);
            assert!(error.to_string().contains("not UTF-8"), "{error}");
            assert_eq!(bytes, b"");
        }
        let (head, bytes, _) = sent(Folder { names: &["a", "b"], size: 3, short: "/b" });
        assert!(head.unwrap_err().to_string().contains("shorter"));
        assert_eq!(bytes, b"");
    }

    #[test]
    fn a_file_without_an_end_is_cut() {
        let (head, bytes, broken) = sent(Folder { names: &["a", "endless", "z"], size: 700, short: "none" });
        assert_eq!(head.unwrap(), Kind::Folder);
        let mut archive = tar::Archive::new(&bytes[..]);
        let sizes = archive.entries().unwrap().map(|entry| entry.unwrap().size());
        assert!(!broken && sizes.eq([700; 3]));
    }

    #[test]
    fn an_archive_that_breaks_off_has_no_end() {
        let (head, bytes, broken) = sent(Folder { names: &["a", "b"], size: 1 << 20, short: "/b" });
        assert_eq!(head.unwrap(), Kind::Folder);
        assert!(broken && bytes.last() == Some(&b'x'), "the end of an archive is zeros");
        let (head, bytes, broken) = sent(Folder { names: &["a", "legal \u{fffd}"], size: 9, short: "none" });
        assert_eq!(head.unwrap(), Kind::Folder);
        assert!(!broken && bytes.ends_with(&[0; 2 * BLOCK]));
        assert_eq!(tar::Archive::new(&bytes[..]).entries().unwrap().count(), 2);
    }

    #[test]
    fn a_grown_file_is_cut() {
        let mut out = Vec::new();
        let mut exact = Exact { inner: &mut out, left: 5, cut: false };
        exact.write_all(b"1234").unwrap();
        assert_eq!((exact.left, exact.cut), (1, false));
        exact.write_all(b"5678").unwrap_err();
        assert_eq!((exact.left, exact.cut, out.as_slice()), (0, true, b"12345".as_slice()));
    }
}
