//! Fuzz target: a hostile guest of a folder.

use crate::fuse::{IN_HEADER_LEN, NodeId, OUT_HEADER_LEN, opcode, parse_answer};
use crate::{Folder, FolderConfig, Limits, MESSAGE_MAX, Owner, Session};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

const SHARE: u32 = 7;
const LIMITS: Limits = Limits { nodes: 8, open_nodes: 3, handles: 4 };

/// A folder in which nothing outside of `inside` may ever change.
struct Place {
    top: PathBuf,
    folder: Arc<Folder>,
}

fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    PLACE.get_or_init(|| {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let top = std::env::temp_dir().join(format!("arnia-share-fuzz-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&top);
        let inside = top.join("inside");
        std::fs::create_dir_all(inside.join("d")).expect("a folder");
        std::fs::write(top.join("secret"), SECRET).expect("a file");
        std::fs::write(inside.join("f"), "content").expect("a file");
        std::os::unix::fs::symlink("../secret", inside.join("l")).expect("a link");
        let config =
            FolderConfig { path: inside, read_only: false, owner: Owner::default(), hidden: Vec::new() };
        Place { folder: Arc::new(Folder::open(&config).expect("the folder")), top }
    })
}

const SECRET: &[u8] = b"what no guest may have";

/// Requests made of the input: their kinds and bodies are its, nodes and handles mostly those that answers named.
pub fn session(data: &[u8]) {
    let place = place();
    let session = Session::new(place.folder.clone(), SHARE, LIMITS).expect("a session");
    let mut known = vec![NodeId::root(SHARE).raw()];
    let mut handles = vec![0u64];
    let mut answer = Vec::new();
    for piece in data.chunks(48) {
        let (&[kind, which, other, cut], body) = piece.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
        let mut request = vec![0; IN_HEADER_LEN];
        request[4..8].copy_from_slice(&u32::from(kind % 54).to_le_bytes());
        request[8..16].copy_from_slice(&77u64.to_le_bytes());
        let node = known[which as usize % known.len()];
        request[16..24].copy_from_slice(&node.to_le_bytes());
        match other % 3 {
            0 => request.extend(handles[other as usize % handles.len()].to_le_bytes()),
            1 => request.extend(known[other as usize % known.len()].to_le_bytes()),
            _ => {}
        }
        // Names that mean something, in the places where names are.
        let names: [&[u8]; 8] =
            [b"f\0", b"d\0", b"l\0", b"..\0", b"../secret\0", b"x\0y\0", b"/etc\0", b".\0"];
        match cut % 4 {
            0 => request.extend(names[cut as usize / 4 % 8]),
            1 => {
                request.extend(body.get(..8).unwrap_or(body));
                request.extend(names[cut as usize / 4 % 8]);
            }
            _ => request.extend(body),
        }
        let len = request.len() as u32;
        request[..4].copy_from_slice(&len.to_le_bytes());
        let has_answer = session.answer(&request, &mut answer);
        let opcode = u32::from(kind % 54);
        assert_eq!(has_answer, !matches!(opcode, opcode::FORGET | opcode::BATCH_FORGET));
        if !has_answer {
            continue;
        }
        assert_eq!(parse_answer(&answer), Some(77), "an answer to what was asked");
        assert!(answer.len() <= MESSAGE_MAX);
        assert!(!answer.windows(SECRET.len()).any(|part| part == SECRET), "something from outside");
        if answer.len() > OUT_HEADER_LEN + 8 {
            let value = u64::from_le_bytes(answer[OUT_HEADER_LEN..][..8].try_into().expect("8 bytes"));
            match opcode {
                opcode::OPEN | opcode::OPENDIR => handles.push(value),
                opcode::LOOKUP | opcode::MKDIR | opcode::MKNOD | opcode::SYMLINK => known.push(value),
                _ => {}
            }
        }
    }
    check_outside(&place.top);
}

/// What is outside of the folder is as it was.
fn check_outside(top: &Path) {
    let mut names: Vec<_> =
        std::fs::read_dir(top).expect("the folder").map(|entry| entry.expect("it").file_name()).collect();
    names.sort();
    assert_eq!(names, ["inside", "secret"]);
    assert_eq!(std::fs::read(top.join("secret")).expect("it"), SECRET);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_survives_any_requests() {
        // xorshift64.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..600 {
            let mut data = vec![0; 960];
            for byte in &mut data {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = if state.is_multiple_of(3) { 0 } else { state as u8 };
            }
            session(&data);
        }
        let _ = std::fs::remove_dir_all(&place().top);
    }
}
