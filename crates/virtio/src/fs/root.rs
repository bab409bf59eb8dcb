//! The folder that has the shares in it: answered by the device itself.

use super::Table;
use share::PAYLOAD_MAX;
use share::fuse::{
    Answer, Attr, Dirent, FOPEN_DIRECT_IO, Fields, IN_HEADER_LEN, InHeader, MAJOR, MINOR, NAME_MAX, NodeId,
    ROOT_ID, init, opcode,
};

/// A file beside the shares that says what there is, for the agent in the guest.
pub const LISTING: &str = ".shares.json";
/// Its node.
const LISTING_ID: u64 = 2;
/// Types and permissions (stat.h): a folder and a file that everybody may read.
const FOLDER_MODE: u32 = 0o040_555;
const FILE_MODE: u32 = 0o100_444;
const DT_DIR: u32 = 4;
const DT_REG: u32 = 8;
/// What the guest knows of the root is to be asked for anew each time.
const VALID: u64 = 0;
/// Requests of the guest's kernel that nobody waits for, at once.
const BACKGROUND_MAX: u16 = 64;
const INIT_WANTED: u32 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS;

/// errno.h.
mod errno {
    pub(super) const ENOENT: i32 = 2;
    pub(super) const EINVAL: i32 = 22;
    pub(super) const EROFS: i32 = 30;
    pub(super) const ENOSYS: i32 = 38;
    pub(super) const EPROTO: i32 = 71;
    pub(super) const ESTALE: i32 = 116;
}

/// What becomes of a request to the root.
pub(super) enum Outcome {
    /// The answer stands in the buffer.
    Answered,
    /// It asks for a share by its name: the share's server is to be asked for the folder itself.
    Share(u32),
}

/// Whether a share can be called so.
pub(super) fn is_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && !name.starts_with('.') && !name.contains(['/', '\0'])
}

fn attr(node: u64, table: &Table) -> Attr {
    let (mode, size) = match node {
        LISTING_ID => (FILE_MODE, table.listing.len() as u64),
        _ => (FOLDER_MODE, 0),
    };
    Attr { ino: node, size, mode, nlink: 1, block_size: 4096, ..Attr::default() }
}

/// Answers a request to the root or the listing, or says who is to answer it.
pub(super) fn answer(header: &InHeader, request: &[u8], table: &mut Table, buffer: &mut Vec<u8>) -> Outcome {
    let body = Fields(&request[IN_HEADER_LEN..]);
    let mut answer = Answer::new(buffer);
    match carry_out(header, body, table, &mut answer) {
        Ok(None) => answer.finish(header.unique),
        Ok(Some(share)) => return Outcome::Share(share),
        Err(errno) => answer.fail(header.unique, errno),
    }
    Outcome::Answered
}

fn carry_out(
    header: &InHeader,
    mut body: Fields<'_>,
    table: &mut Table,
    answer: &mut Answer<'_>,
) -> Result<Option<u32>, i32> {
    let short = errno::EINVAL;
    // These are about the session, not a node.
    match header.opcode {
        opcode::INIT => return begin(body, table, answer).map(|()| None),
        opcode::DESTROY => {
            table.renew();
            return Ok(None);
        }
        _ => {}
    }
    if header.node != ROOT_ID && header.node != LISTING_ID {
        return Err(errno::ESTALE);
    }
    let is_root = header.node == ROOT_ID;
    match header.opcode {
        opcode::LOOKUP if is_root => {
            let name = body.text().ok_or(short)?.to_bytes();
            if name == LISTING.as_bytes() {
                answer.entry_out(LISTING_ID, &attr(LISTING_ID, table), VALID);
                return Ok(None);
            }
            let share = table.shares.iter().find(|share| share.name.as_bytes() == name);
            return share.map(|share| Some(share.id)).ok_or(errno::ENOENT);
        }
        opcode::GETATTR => {
            answer.attr_out(&attr(header.node, table), VALID);
        }
        opcode::STATFS => {
            // struct fuse_kstatfs: nothing, in blocks of 4 KiB.
            answer.zeroes(40).u32(4096).u32(NAME_MAX as u32).u32(4096).zeroes(28);
        }
        opcode::OPENDIR if is_root => {
            answer.open_out(0, 0);
        }
        opcode::OPEN if !is_root => {
            // Read as it is now, whatever its length was.
            answer.open_out(0, FOPEN_DIRECT_IO);
        }
        opcode::READ if !is_root => {
            let (_, offset, size) =
                (body.u64().ok_or(short)?, body.u64().ok_or(short)?, body.u32().ok_or(short)?);
            let rest =
                usize::try_from(offset).ok().and_then(|at| table.listing.get(at..)).unwrap_or_default();
            answer.bytes(&rest[..rest.len().min(size.min(PAYLOAD_MAX) as usize)]);
        }
        opcode::READDIR | opcode::READDIRPLUS if is_root => {
            let (_, offset, size) =
                (body.u64().ok_or(short)?, body.u64().ok_or(short)?, body.u32().ok_or(short)?);
            list(table, offset, size, header.opcode == opcode::READDIRPLUS, answer);
        }
        opcode::RELEASE | opcode::RELEASEDIR | opcode::FSYNC | opcode::FSYNCDIR => {}
        opcode::MKDIR
        | opcode::MKNOD
        | opcode::CREATE
        | opcode::SYMLINK
        | opcode::LINK
        | opcode::UNLINK
        | opcode::RMDIR
        | opcode::RENAME
        | opcode::RENAME2
        | opcode::SETATTR
        | opcode::WRITE => return Err(errno::EROFS),
        _ => return Err(errno::ENOSYS),
    }
    Ok(None)
}

/// A guest begins: what it may do is agreed upon, and what an earlier session knew is forgotten.
fn begin(mut body: Fields<'_>, table: &mut Table, answer: &mut Answer<'_>) -> Result<(), i32> {
    let mut next = || body.u32().ok_or(errno::EINVAL);
    let (major, _minor, readahead, flags) = (next()?, next()?, next()?, next()?);
    if major < MAJOR {
        return Err(errno::EPROTO);
    }
    table.renew();
    // struct fuse_init_out. With a newer major number the guest asks again when it has seen ours.
    answer.u32(MAJOR).u32(MINOR).u32(readahead).u32(flags & INIT_WANTED);
    answer.u16(BACKGROUND_MAX).u16(BACKGROUND_MAX / 4 * 3).u32(PAYLOAD_MAX).u32(1).zeroes(36);
    Ok(())
}

fn list(table: &Table, offset: u64, size: u32, plus: bool, answer: &mut Answer<'_>) {
    let size = size.min(PAYLOAD_MAX);
    let own = [(".", ROOT_ID, DT_DIR), ("..", ROOT_ID, DT_DIR), (LISTING, LISTING_ID, DT_REG)];
    let shares = table.shares.iter().map(|share| (share.name.as_str(), NodeId::root(share.id).raw(), DT_DIR));
    for (index, (name, ino, kind)) in own.into_iter().chain(shares).enumerate() {
        let next = index as u64 + 1;
        if next <= offset {
            continue;
        }
        // Without attributes: those of a share are its server's to say.
        let entry = Dirent { ino, offset: next, kind, name: name.as_bytes() };
        if !answer.dirent(&entry, None, plus, size) {
            break;
        }
    }
}
