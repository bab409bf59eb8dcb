//! A guest's side, played by hand: what its kernel would ask.

use crate::fuse::{Fields, IN_HEADER_LEN, InHeader, NodeId, OUT_HEADER_LEN, opcode, setattr};
use crate::{Folder, FolderConfig, FolderError, Key, Limits, Link, Owner, Received, Sent, Session, serve};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const SHARE: u32 = 0x12_3456;
const ROOT: u64 = (SHARE as u64) << 40 | 1;
const LIMITS: Limits = Limits { nodes: 1000, open_nodes: 8, handles: 10 };

/// A folder that is gone afterwards, with `inside` to be shown and `outside` beside it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let top = std::env::temp_dir().join(format!("arnia-share-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        fs::create_dir_all(top.join("inside")).unwrap();
        fs::create_dir_all(top.join("outside")).unwrap();
        fs::write(top.join("outside/secret"), "not for guests").unwrap();
        Place(top)
    }

    fn inside(&self, name: &str) -> PathBuf {
        self.0.join("inside").join(name)
    }

    fn config(&self) -> FolderConfig {
        let owner = Owner { uid: 1000, gid: 1001 };
        FolderConfig { path: self.0.join("inside"), read_only: false, owner, hidden: Vec::new() }
    }

    fn guest(&self, change: impl FnOnce(&mut FolderConfig)) -> Guest {
        let mut config = self.config();
        change(&mut config);
        let folder = Arc::new(Folder::open(&config).unwrap());
        Guest { session: Session::new(folder, SHARE, LIMITS).unwrap() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A request as bytes.
fn request(opcode: u32, unique: u64, node: u64, body: &[&[u8]]) -> Vec<u8> {
    let mut message = vec![0; IN_HEADER_LEN];
    message[4..8].copy_from_slice(&opcode.to_le_bytes());
    message[InHeader::UNIQUE_AT..][..8].copy_from_slice(&unique.to_le_bytes());
    message[InHeader::NODE_AT..][..8].copy_from_slice(&node.to_le_bytes());
    message.extend(body.concat());
    let len = message.len() as u32;
    message[..4].copy_from_slice(&len.to_le_bytes());
    message
}

struct Guest {
    session: Session,
}

type Answer = Result<Vec<u8>, Errno>;

fn take_apart(answer: &[u8]) -> Answer {
    let mut fields = Fields(answer);
    assert_eq!(fields.u32().unwrap() as usize, answer.len());
    match fields.u32().unwrap() as i32 {
        0 => Ok(answer[OUT_HEADER_LEN..].to_vec()),
        error => Err(Errno::from_raw_os_error(-error)),
    }
}

impl Guest {
    fn ask(&self, opcode: u32, node: u64, body: &[&[u8]]) -> Answer {
        let mut answer = Vec::new();
        assert!(self.session.answer(&request(opcode, 5, node, body), &mut answer));
        assert_eq!(answer[8..16], 5u64.to_le_bytes());
        take_apart(&answer)
    }

    /// The node that an answer names first, or a handle.
    fn number(&self, opcode: u32, node: u64, body: &[&[u8]]) -> Result<u64, Errno> {
        Ok(Fields(&self.ask(opcode, node, body)?).u64().unwrap())
    }

    fn lookup(&self, node: u64, name: &str) -> Result<u64, Errno> {
        self.number(opcode::LOOKUP, node, &[name.as_bytes(), b"\0"])
    }

    fn open(&self, node: u64, flags: i32) -> Result<u64, Errno> {
        self.number(opcode::OPEN, node, &[&flags.to_le_bytes(), &[0; 4]])
    }

    fn read(&self, handle: u64, offset: u64, size: u32) -> Answer {
        let body = [&handle.to_le_bytes()[..], &offset.to_le_bytes(), &size.to_le_bytes(), &[0; 20]];
        self.ask(opcode::READ, ROOT, &body)
    }

    fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Answer {
        let size = data.len() as u32;
        let body = [&handle.to_le_bytes()[..], &offset.to_le_bytes(), &size.to_le_bytes(), &[0; 20], data];
        self.ask(opcode::WRITE, ROOT, &body)
    }

    fn create(&self, name: &str, mode: u32) -> Result<(u64, u64), Errno> {
        let flags = 2i32.to_le_bytes();
        let answer =
            self.ask(opcode::CREATE, ROOT, &[&flags, &mode.to_le_bytes(), &[0; 8], name.as_bytes(), b"\0"])?;
        Ok((Fields(&answer).u64().unwrap(), Fields(&answer[128..]).u64().unwrap()))
    }

    fn forget(&self, node: u64, lookups: u64) {
        let message = request(opcode::FORGET, 0, node, &[&lookups.to_le_bytes()]);
        assert!(!self.session.answer(&message, &mut Vec::new()));
    }

    fn setattr(&self, node: u64, valid: u32, change: impl FnOnce(&mut [u8; 88])) -> Answer {
        let mut body = [0; 88];
        body[..4].copy_from_slice(&valid.to_le_bytes());
        change(&mut body);
        self.ask(opcode::SETATTR, node, &[&body])
    }

    /// All names in a folder with the nodes that come with them.
    fn list(&self, node: u64, size: u32) -> Vec<(String, u64)> {
        let handle = self.number(opcode::OPENDIR, node, &[&[0; 8]]).unwrap();
        let (mut names, mut offset) = (Vec::new(), 0u64);
        loop {
            let body = [&handle.to_le_bytes()[..], &offset.to_le_bytes(), &size.to_le_bytes(), &[0; 20]];
            let answer = self.ask(opcode::READDIRPLUS, node, &body).unwrap();
            assert!(answer.len() <= size as usize);
            if answer.is_empty() {
                break;
            }
            let mut rest = &answer[..];
            while !rest.is_empty() {
                let node = Fields(rest).u64().unwrap();
                let mut entry = Fields(&rest[128..]);
                entry.u64().unwrap();
                offset = entry.u64().unwrap();
                let len = entry.u32().unwrap() as usize;
                names.push((String::from_utf8(rest[152..152 + len].to_vec()).unwrap(), node));
                rest = &rest[152 + len.next_multiple_of(8)..];
            }
        }
        self.ask(opcode::RELEASEDIR, node, &[&handle.to_le_bytes(), &[0; 16]]).unwrap();
        names.retain(|(name, _)| name != "." && name != "..");
        names.sort();
        names
    }
}

#[test]
fn files_are_made_written_read_and_removed() {
    let place = Place::new("files");
    let guest = place.guest(|_| ());
    let (node, handle) = guest.create("new", 0o4750).unwrap();
    assert_eq!(guest.write(handle, 0, b"hello").unwrap()[..4], 5u32.to_le_bytes());
    guest.write(handle, 10, b"there").unwrap();
    assert_eq!(fs::read(place.inside("new")).unwrap(), b"hello\0\0\0\0\0there");
    assert_eq!(
        fs::metadata(place.inside("new")).unwrap().mode() & 0o7777,
        0o750,
        "no program of the host's user"
    );
    assert_eq!(guest.read(handle, 3, 100).unwrap(), b"lo\0\0\0\0\0there");
    let attr = guest.ask(opcode::GETATTR, node, &[&[0; 16]]).unwrap();
    let at = |at: usize| u32::from_le_bytes(attr[16 + at..][..4].try_into().unwrap());
    assert_eq!((at(8), at(60) & 0o7777, at(68), at(72)), (15, 0o750, 1000, 1001), "size, mode, owner");
    guest.ask(opcode::RELEASE, node, &[&handle.to_le_bytes(), &[0; 16]]).unwrap();
    assert_eq!(guest.read(handle, 0, 1), Err(Errno::BADF));
    guest.ask(opcode::UNLINK, ROOT, &[b"new\0"]).unwrap();
    assert!(!place.inside("new").exists());
    assert_eq!(guest.lookup(ROOT, "new"), Err(Errno::NOENT));
    // The guest may still have it open.
    assert!(guest.ask(opcode::GETATTR, node, &[&[0; 16]]).is_ok());
    guest.forget(node, 1);
    assert_eq!(guest.ask(opcode::GETATTR, node, &[&[0; 16]]), Err(Errno::STALE));
    assert_eq!(guest.session.held(), (0, 0, 0));
}

#[test]
fn folders_links_and_renames() {
    let place = Place::new("renames");
    let guest = place.guest(|_| ());
    let mode = 0o755u32.to_le_bytes();
    let a = guest.number(opcode::MKDIR, ROOT, &[&mode, &[0; 4], b"a\0"]).unwrap();
    let b = guest.number(opcode::MKDIR, ROOT, &[&mode, &[0; 4], b"b\0"]).unwrap();
    fs::write(place.inside("a/one"), "1").unwrap();
    fs::write(place.inside("b/two"), "2").unwrap();
    let one = guest.lookup(a, "one").unwrap();
    guest.ask(opcode::RENAME, a, &[&b.to_le_bytes(), b"one\0uno\0"]).unwrap();
    assert_eq!(fs::read_to_string(place.inside("b/uno")).unwrap(), "1");
    assert_eq!(guest.lookup(b, "uno").unwrap(), one, "the same file");
    let flags = |flags: u32| [flags.to_le_bytes(), [0; 4]].concat();
    let no_replace = [&b.to_le_bytes()[..], &flags(1), b"uno\0two\0"];
    assert_eq!(guest.ask(opcode::RENAME2, b, &no_replace), Err(Errno::EXIST));
    guest.ask(opcode::RENAME2, b, &[&b.to_le_bytes(), &flags(2), b"uno\0two\0"]).unwrap();
    assert_eq!(fs::read_to_string(place.inside("b/two")).unwrap(), "1");
    assert_eq!(guest.ask(opcode::RENAME2, b, &[&b.to_le_bytes(), &flags(4), b"uno\0x\0"]), Err(Errno::INVAL));
    guest.ask(opcode::LINK, a, &[&one.to_le_bytes(), b"hard\0"]).unwrap();
    assert_eq!(fs::metadata(place.inside("a/hard")).unwrap().nlink(), 2);
    guest.ask(opcode::SYMLINK, ROOT, &[b"soft\0../outside/secret\0"]).unwrap();
    let soft = guest.lookup(ROOT, "soft").unwrap();
    assert_eq!(guest.ask(opcode::READLINK, soft, &[]).unwrap(), b"../outside/secret");
    assert_eq!(guest.ask(opcode::RMDIR, ROOT, &[b"a\0"]), Err(Errno::NOTEMPTY));
    guest.ask(opcode::UNLINK, a, &[b"hard\0"]).unwrap();
    guest.ask(opcode::RMDIR, ROOT, &[b"a\0"]).unwrap();
    let all = guest.list(ROOT, 4096);
    assert_eq!(all.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["b", "soft"]);
}

#[test]
fn nothing_leads_out_of_the_folder() {
    let place = Place::new("out");
    symlink("../outside", place.inside("folder")).unwrap();
    symlink(place.0.join("outside/secret"), place.inside("file")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        place.inside("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let guest = place.guest(|_| ());
    for name in ["..", "../outside", "a/b", "", "/etc/passwd"] {
        assert_eq!(guest.lookup(ROOT, name), Err(Errno::INVAL), "{name:?}");
    }
    // Links are links, whatever they say: their node is no folder, and cannot be opened.
    let folder = guest.lookup(ROOT, "folder").unwrap();
    assert!(guest.lookup(folder, "secret").is_err());
    assert!(guest.number(opcode::OPENDIR, folder, &[&[0; 8]]).is_err());
    let file = guest.lookup(ROOT, "file").unwrap();
    assert_eq!(guest.open(file, 0), Err(Errno::ACCESS));
    assert!(guest.create("file", 0o600).is_err());
    assert!(guest.setattr(file, setattr::SIZE, |_| ()).is_err());
    assert!(guest.setattr(file, setattr::MODE, |_| ()).is_err());
    // A pipe of the host is none of the guest.
    let pipe = guest.lookup(ROOT, "pipe").unwrap();
    assert_eq!(guest.open(pipe, 0), Err(Errno::ACCESS));
    let device = [&0o060_644u32.to_le_bytes()[..], &[0; 12], b"disk\0"].concat();
    assert_eq!(guest.ask(opcode::MKNOD, ROOT, &[&device]), Err(Errno::PERM));
    for name in [&b"..\0"[..], b".\0", b"a/b\0"] {
        for opcode in [opcode::UNLINK, opcode::RMDIR] {
            assert_eq!(guest.ask(opcode, ROOT, &[name]), Err(Errno::INVAL));
        }
        assert_eq!(guest.ask(opcode::RENAME, ROOT, &[&ROOT.to_le_bytes(), name, b"x\0"]), Err(Errno::INVAL));
        assert_eq!(
            guest.ask(opcode::RENAME, ROOT, &[&ROOT.to_le_bytes(), b"file\0", name]),
            Err(Errno::INVAL)
        );
    }
    assert_eq!(fs::read_to_string(place.0.join("outside/secret")).unwrap(), "not for guests");
    // Nodes of other shares are not this one's.
    assert_eq!(guest.lookup(NodeId::root(SHARE + 1).raw(), "file"), Err(Errno::STALE));
    assert!(matches!(
        Folder::open(&FolderConfig { path: "/proc/self".into(), ..place.config() }),
        Err(FolderError::Kernel(_))
    ));
    assert!(Folder::open(&FolderConfig { path: place.inside("nowhere"), ..place.config() }).is_err());
}

#[test]
fn a_read_only_folder_stays_as_it_is() {
    let place = Place::new("read-only");
    fs::write(place.inside("file"), "as it is").unwrap();
    let guest = place.guest(|config| config.read_only = true);
    let node = guest.lookup(ROOT, "file").unwrap();
    for flags in [1, 2, 0o1000] {
        assert_eq!(guest.open(node, flags), Err(Errno::ROFS), "{flags:o}");
    }
    let handle = guest.open(node, 0).unwrap();
    assert_eq!(guest.read(handle, 0, 100).unwrap(), b"as it is");
    assert_eq!(guest.write(handle, 0, b"x"), Err(Errno::ROFS));
    assert_eq!(guest.create("new", 0o644), Err(Errno::ROFS));
    assert_eq!(guest.setattr(node, setattr::MODE, |_| ()), Err(Errno::ROFS));
    for (opcode, body) in [
        (opcode::MKDIR, &[&[0; 8][..], b"d\0"].concat()),
        (opcode::MKNOD, &[&[0; 16][..], b"n\0"].concat()),
        (opcode::SYMLINK, &b"l\0t\0".to_vec()),
        (opcode::LINK, &[&node.to_le_bytes()[..], b"l\0"].concat()),
        (opcode::UNLINK, &b"file\0".to_vec()),
        (opcode::RMDIR, &b"file\0".to_vec()),
        (opcode::RENAME, &[&ROOT.to_le_bytes()[..], b"file\0x\0"].concat()),
        (opcode::FALLOCATE, &[&handle.to_le_bytes()[..], &[0; 24]].concat()),
        (opcode::COPY_FILE_RANGE, &[0; 56].to_vec()),
    ] {
        assert_eq!(guest.ask(opcode, ROOT, &[body]), Err(Errno::ROFS), "{opcode}");
    }
    assert_eq!(fs::read_dir(place.0.join("inside")).unwrap().count(), 1);
}

#[test]
fn what_is_hidden_is_not_there() {
    let place = Place::new("hidden");
    fs::create_dir_all(place.inside("home/state/keys")).unwrap();
    let hidden = place.inside("home/state");
    let guest = place.guest(|config| config.hidden = vec![hidden.clone(), "/no/such/folder".into()]);
    let home = guest.lookup(ROOT, "home").unwrap();
    assert_eq!(guest.lookup(home, "state"), Err(Errno::NOENT));
    assert_eq!(guest.list(home, 4096), []);
    assert_eq!(guest.ask(opcode::RENAME, home, &[&ROOT.to_le_bytes(), b"state\0mine\0"]), Err(Errno::NOENT));
    // Nor can something be put in its place.
    fs::create_dir(place.inside("empty")).unwrap();
    fs::remove_dir(place.inside("home/state/keys")).unwrap();
    assert_eq!(guest.ask(opcode::RENAME, ROOT, &[&home.to_le_bytes(), b"empty\0state\0"]), Err(Errno::EXIST));
    assert_eq!(guest.ask(opcode::RMDIR, home, &[b"state\0"]), Err(Errno::NOENT));
    for path in [hidden.clone(), hidden.join("x")] {
        fs::create_dir_all(&path).unwrap();
        let config = FolderConfig { path, hidden: vec![hidden.clone()], ..place.config() };
        assert!(matches!(Folder::open(&config), Err(FolderError::Hidden(_))));
    }
}

#[test]
fn what_is_hidden_stays_where_it_is() {
    let place = Place::new("hidden-moved");
    let hidden = place.inside("home/local/state");
    fs::create_dir_all(&hidden).unwrap();
    fs::write(hidden.join("key"), "the host's").unwrap();
    fs::create_dir_all(place.inside("mine/other")).unwrap();
    let guest = place.guest(|config| config.hidden = vec![hidden.clone()]);
    let home = guest.lookup(ROOT, "home").unwrap();
    let local = guest.lookup(home, "local").unwrap();
    let mine = guest.lookup(ROOT, "mine").unwrap();
    let rename = |node: u64, to: u64, flags: u32, names: &[u8]| {
        let flags = [flags.to_le_bytes(), [0; 4]].concat();
        guest.ask(opcode::RENAME2, node, &[&to.to_le_bytes(), &flags, names])
    };
    // An exchange moves both, whichever is named first.
    assert_eq!(rename(mine, local, 2, b"other\0state\0"), Err(Errno::NOENT));
    assert_eq!(rename(local, mine, 2, b"state\0other\0"), Err(Errno::NOENT));
    // A folder above takes what is hidden with it.
    for (node, name) in [(ROOT, "home"), (home, "local")] {
        let names = |first: &str, second: &str| format!("{first}\0{second}\0").into_bytes();
        for flags in [0, 1] {
            assert_eq!(rename(node, mine, flags, &names(name, "new")), Err(Errno::BUSY), "{name}");
        }
        assert_eq!(rename(node, mine, 2, &names(name, "other")), Err(Errno::BUSY), "{name}");
        assert_eq!(rename(mine, node, 2, &names("other", name)), Err(Errno::BUSY), "{name}");
        assert_eq!(guest.ask(opcode::RMDIR, node, &[name.as_bytes(), b"\0"]), Err(Errno::BUSY), "{name}");
    }
    assert_eq!(fs::read_to_string(hidden.join("key")).unwrap(), "the host's");
    // What is beside it may be moved, and exchanged.
    fs::write(place.inside("home/local/file"), "").unwrap();
    rename(local, mine, 2, b"file\0other\0").unwrap();
    rename(mine, home, 0, b"file\0file\0").unwrap_err();
    rename(mine, home, 0, b"other\0file\0").unwrap();
    assert!(place.inside("home/file").is_file() && place.inside("home/local/file").is_dir());
}

#[test]
fn attributes_are_set() {
    let place = Place::new("attributes");
    fs::write(place.inside("file"), "0123456789").unwrap();
    fs::set_permissions(place.inside("file"), PermissionsExt::from_mode(0o600)).unwrap();
    let guest = place.guest(|_| ());
    let node = guest.lookup(ROOT, "file").unwrap();
    let metadata = || fs::metadata(place.inside("file")).unwrap();
    guest
        .setattr(node, setattr::MODE, |body| body[68..72].copy_from_slice(&0o100_6640u32.to_le_bytes()))
        .unwrap();
    assert_eq!(metadata().mode() & 0o7777, 0o640);
    guest.setattr(node, setattr::SIZE, |body| body[16] = 4).unwrap();
    assert_eq!(metadata().len(), 4);
    guest.setattr(node, setattr::MTIME, |body| body[40..44].copy_from_slice(&77u32.to_le_bytes())).unwrap();
    assert_eq!(metadata().mtime(), 77);
    // Whose it is already, and somebody else's.
    let owner = |uid: u32| move |body: &mut [u8; 88]| body[76..80].copy_from_slice(&uid.to_le_bytes());
    guest.setattr(node, setattr::UID, owner(1000)).unwrap();
    assert_eq!(guest.setattr(node, setattr::UID, owner(0)), Err(Errno::PERM));
}

#[test]
fn many_files_need_few_descriptors() {
    let place = Place::new("many");
    let names: Vec<String> = (0..200).map(|n| format!("file{n:03}")).collect();
    fs::create_dir(place.inside("deep")).unwrap();
    for name in &names {
        fs::write(place.inside("deep").join(name), name).unwrap();
    }
    let guest = place.guest(|_| ());
    let deep = guest.lookup(ROOT, "deep").unwrap();
    let listed = guest.list(deep, 1000);
    assert_eq!(listed.iter().map(|(name, _)| name).collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
    let (nodes, open, _) = guest.session.held();
    assert!(nodes == 201 && open <= LIMITS.open_nodes, "{nodes} {open}");
    for (name, node) in &listed {
        let handle = guest.open(*node, 0).unwrap();
        assert_eq!(guest.read(handle, 0, 100).unwrap(), name.as_bytes());
        guest.ask(opcode::RELEASE, *node, &[&handle.to_le_bytes(), &[0; 16]]).unwrap();
    }
    // A file that was replaced on the host is not the one that the guest knows.
    fs::rename(place.inside("deep/file001"), place.inside("deep/file000")).unwrap();
    guest.list(deep, 1000);
    assert_eq!(guest.open(listed[0].1, 0), Err(Errno::STALE));
    assert!(guest.open(listed[1].1, 0).is_ok());
    for _ in 0..LIMITS.handles {
        let _ = guest.open(listed[5].1, 0);
    }
    assert_eq!(guest.open(listed[5].1, 0), Err(Errno::NFILE), "handles are bounded");
    assert_eq!(guest.create("one-more", 0o644), Err(Errno::NFILE));
}

#[test]
fn a_machine_is_let_in_by_its_key() {
    let place = Place::new("server");
    fs::write(place.inside("file"), vec![7; 300_000]).unwrap();
    let socket = place.0.join("socket");
    let listener = crate::listen(&socket).unwrap();
    let key: Key = "5a".repeat(32).parse().unwrap();
    let folder = Folder::open(&place.config()).unwrap();
    let server = serve::Server::new(listener, key.clone(), SHARE, folder, Limits::within(1000));
    let thread = std::thread::spawn(move || server.run(Duration::from_secs(2)));
    let mut wrong = Link::new(&socket, "5b".repeat(32).parse().unwrap());
    assert!(wrong.plug_in().unwrap());
    wrong.send(&request(opcode::LOOKUP, 1, ROOT, &[b"file\0"]));
    let mut room = vec![0; crate::MESSAGE_MAX];
    let wait = |link: &Link| poll(&mut [PollFd::new(&link.socket().unwrap(), PollFlags::IN)], None).unwrap();
    wait(&wrong);
    assert_eq!(wrong.receive(&mut room), Received::Gone);

    let mut link = Link::new(&socket, key);
    assert!(link.plug_in().unwrap() && !link.plug_in().unwrap());
    let mut ask = |message: Vec<u8>| {
        assert_eq!(link.send(&message), Sent::Yes);
        wait(&link);
        let Received::Message(len) = link.receive(&mut room) else { panic!("an answer") };
        take_apart(&room[..len])
    };
    let node = Fields(&ask(request(opcode::LOOKUP, 1, ROOT, &[b"file\0"])).unwrap()).u64().unwrap();
    let handle = Fields(&ask(request(opcode::OPEN, 2, node, &[&[0; 8]])).unwrap()).u64().unwrap();
    let body = [&handle.to_le_bytes()[..], &[0; 8], &crate::PAYLOAD_MAX.to_le_bytes(), &[0; 20]];
    let answer = ask(request(opcode::READ, 3, node, &body)).unwrap();
    assert_eq!(answer, vec![7; crate::PAYLOAD_MAX as usize]);
    drop(link);
    thread.join().unwrap().unwrap();
    assert!(Path::new(&socket).exists());
}
