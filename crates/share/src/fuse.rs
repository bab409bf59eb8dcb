//! The FUSE protocol, as the virtio-fs driver of Linux speaks it (linux/fuse.h, version 7.38; virtio 1.2, §5.11.6).
//!
//! All fields are little-endian here: those of an x86 guest.

use std::ffi::CStr;

/// The version that is spoken.
pub const MAJOR: u32 = 7;
/// And its minor number.
pub const MINOR: u32 = 38;
/// The node that is the root.
pub const ROOT_ID: u64 = 1;
/// Length of the header of a request.
pub const IN_HEADER_LEN: usize = 40;
/// Length of the header of an answer.
pub const OUT_HEADER_LEN: usize = 16;
/// Longest text of a link.
pub const PATH_MAX: usize = 4096;
/// Longest name.
pub const NAME_MAX: usize = 255;

/// What a request asks for.
#[allow(missing_docs)]
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
}

/// Flags of `fuse_init_in` and `fuse_init_out`.
#[allow(missing_docs)]
pub mod init {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
}

/// Flags of `fuse_setattr_in`: what is to be set.
#[allow(missing_docs)]
pub mod setattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// `fuse_getattr_in.getattr_flags`: the file handle is valid.
pub const GETATTR_FH: u32 = 1;
/// `fuse_open_out.open_flags`: the guest does not cache.
pub const FOPEN_DIRECT_IO: u32 = 1;
/// `fuse_fsync_in.fsync_flags`: content only.
pub const FSYNC_FDATASYNC: u32 = 1;

/// Bits of a node's number below its share.
const NUMBER_BITS: u32 = 40;

/// The ID of a node: a share, and a number within it. Share 0 is the folder that has the shares in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId {
    /// The share, of 24 bits.
    pub share: u32,
    /// The node's number, of 40 bits. A share's own folder has [`ROOT_ID`].
    pub number: u64,
}

impl NodeId {
    /// Largest number of a share.
    pub const SHARE_MAX: u32 = (1 << (64 - NUMBER_BITS)) - 1;
    /// Largest number of a node.
    pub const NUMBER_MAX: u64 = (1 << NUMBER_BITS) - 1;

    /// The folder of a share.
    pub fn root(share: u32) -> NodeId {
        NodeId { share, number: ROOT_ID }
    }

    /// Takes an ID apart.
    pub fn from_raw(raw: u64) -> NodeId {
        NodeId { share: (raw >> NUMBER_BITS) as u32, number: raw & Self::NUMBER_MAX }
    }

    /// As it is in messages.
    pub fn raw(self) -> u64 {
        u64::from(self.share) << NUMBER_BITS | self.number
    }
}

/// `fuse_in_header`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InHeader {
    /// Length of the whole request.
    pub len: u32,
    /// What is asked for.
    pub opcode: u32,
    /// What the answer is to say.
    pub unique: u64,
    /// The node that it is about.
    pub node: u64,
}

impl InHeader {
    /// Where [`InHeader::unique`] is.
    pub const UNIQUE_AT: usize = 8;
    /// Where [`InHeader::node`] is.
    pub const NODE_AT: usize = 16;

    /// Reads a header; its length must be the request's.
    pub fn parse(request: &[u8]) -> Option<InHeader> {
        let mut fields = Fields(request);
        let (len, opcode) = (fields.u32()?, fields.u32()?);
        let (unique, node) = (fields.u64()?, fields.u64()?);
        (request.len() >= IN_HEADER_LEN && len as usize == request.len()).then_some(InHeader {
            len,
            opcode,
            unique,
            node,
        })
    }

    /// Whether nobody waits for an answer.
    pub fn is_silent(&self) -> bool {
        matches!(self.opcode, opcode::FORGET | opcode::BATCH_FORGET)
    }
}

/// Where the other node of a request is that is about two, within its body.
pub fn second_node_at(opcode: u32) -> Option<usize> {
    match opcode {
        // fuse_rename_in.newdir, fuse_rename2_in.newdir, fuse_link_in.oldnodeid.
        opcode::RENAME | opcode::RENAME2 | opcode::LINK => Some(0),
        // fuse_copy_file_range_in.nodeid_out.
        opcode::COPY_FILE_RANGE => Some(16),
        _ => None,
    }
}

/// The fields of a message, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// Passes over so many bytes.
    pub fn skip(&mut self, len: usize) -> Option<()> {
        self.0 = self.0.get(len..)?;
        Some(())
    }

    /// A text that ends with a zero byte.
    pub fn text(&mut self) -> Option<&'a CStr> {
        let text = CStr::from_bytes_until_nul(self.0).ok()?;
        self.0 = &self.0[text.to_bytes_with_nul().len()..];
        Some(text)
    }
}

/// `fuse_attr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    /// Seconds and nanoseconds of access, change of content, change of attributes.
    pub times: [(u64, u32); 3],
    /// Type and permissions.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub block_size: u32,
}

/// An answer that is put together: a header, and fields.
#[derive(Debug)]
pub struct Answer<'a>(&'a mut Vec<u8>);

impl<'a> Answer<'a> {
    /// Begins an answer in `buffer`, which is emptied.
    pub fn new(buffer: &'a mut Vec<u8>) -> Answer<'a> {
        buffer.clear();
        buffer.resize(OUT_HEADER_LEN, 0);
        Answer(buffer)
    }

    /// Length of the fields so far.
    pub fn len(&self) -> usize {
        self.0.len() - OUT_HEADER_LEN
    }

    /// Whether there are no fields.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes fields off the end.
    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(OUT_HEADER_LEN + len);
    }

    /// Adds `len` bytes, which `fill` writes; it returns how many of them there are.
    ///
    /// # Errors
    /// That of `fill`.
    pub fn fill<E>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<(), E> {
        let at = self.0.len();
        self.0.resize(at + len, 0);
        let filled = fill(&mut self.0[at..])?;
        self.0.truncate(at + filled.min(len));
        Ok(())
    }

    /// Adds 16 bits.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Adds 32 bits.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Adds 64 bits.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Adds bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Adds zeroes.
    pub fn zeroes(&mut self, len: usize) -> &mut Self {
        self.0.resize(self.0.len() + len, 0);
        self
    }

    /// Adds a `fuse_attr`.
    pub fn attr(&mut self, attr: &Attr) -> &mut Self {
        self.u64(attr.ino).u64(attr.size).u64(attr.blocks);
        for time in attr.times {
            self.u64(time.0);
        }
        for time in attr.times {
            self.u32(time.1);
        }
        self.u32(attr.mode).u32(attr.nlink).u32(attr.uid).u32(attr.gid);
        // rdev: devices are not shown as such. Flags: none.
        self.u32(0).u32(attr.block_size).u32(0)
    }

    /// Adds a `fuse_attr_out`, valid for so many seconds.
    pub fn attr_out(&mut self, attr: &Attr, valid: u64) -> &mut Self {
        self.u64(valid).zeroes(8).attr(attr)
    }

    /// Adds a `fuse_entry_out`, valid for so many seconds.
    pub fn entry_out(&mut self, node: u64, attr: &Attr, valid: u64) -> &mut Self {
        // No generation; whole seconds.
        self.u64(node).u64(0).u64(valid).u64(valid).zeroes(8).attr(attr)
    }

    /// Adds a `fuse_dirent`, if it fits; `entry` precedes it in a listing with attributes.
    pub fn dirent(
        &mut self,
        entry: &Dirent<'_>,
        plus: Option<(u64, Attr)>,
        with_plus: bool,
        max: u32,
    ) -> bool {
        let padded = entry.name.len().next_multiple_of(8);
        let len = DIRENT_LEN + padded + if with_plus { ENTRY_OUT_LEN } else { 0 };
        if self.len() + len > max as usize {
            return false;
        }
        match plus {
            Some((node, attr)) if with_plus => {
                self.entry_out(node, &attr, VALID_SECONDS);
            }
            // Node 0: "no attributes are returned for this entry".
            None if with_plus => {
                self.zeroes(ENTRY_OUT_LEN);
            }
            _ => {}
        }
        self.u64(entry.ino).u64(entry.offset).u32(entry.name.len() as u32).u32(entry.kind);
        self.bytes(entry.name).zeroes(padded - entry.name.len());
        true
    }

    /// Adds a `fuse_open_out`.
    pub fn open_out(&mut self, handle: u64, flags: u32) -> &mut Self {
        self.u64(handle).u32(flags).u32(0)
    }

    /// Completes the answer to the request `unique`.
    pub fn finish(self, unique: u64) {
        let len = self.0.len() as u32;
        write_out_header(self.0, len, 0, unique);
    }

    /// Makes it an answer that says why not.
    pub fn fail(self, unique: u64, errno: i32) {
        self.0.truncate(OUT_HEADER_LEN);
        write_out_header(self.0, OUT_HEADER_LEN as u32, errno, unique);
    }
}

/// How long a guest may rely on what it knows of a node, in seconds.
pub const VALID_SECONDS: u64 = 1;
/// Length of a `fuse_entry_out`.
pub const ENTRY_OUT_LEN: usize = 128;
/// Length of a `fuse_dirent` without its name.
pub const DIRENT_LEN: usize = 24;

/// `fuse_dirent`.
#[derive(Clone, Copy, Debug)]
pub struct Dirent<'a> {
    /// Its inode number.
    pub ino: u64,
    /// Where the listing goes on after it.
    pub offset: u64,
    /// `DT_REG` and the like.
    pub kind: u32,
    /// Its name.
    pub name: &'a [u8],
}

fn write_out_header(message: &mut [u8], len: u32, errno: i32, unique: u64) {
    message[..4].copy_from_slice(&len.to_le_bytes());
    message[4..8].copy_from_slice(&(-errno).to_le_bytes());
    message[8..16].copy_from_slice(&unique.to_le_bytes());
}

/// The header of an answer that says why not, and nothing else.
pub fn refusal(unique: u64, errno: i32) -> [u8; OUT_HEADER_LEN] {
    let mut message = [0; OUT_HEADER_LEN];
    write_out_header(&mut message, OUT_HEADER_LEN as u32, errno, unique);
    message
}

/// What the answer of a server is to, if its header is right.
pub fn parse_answer(message: &[u8]) -> Option<u64> {
    let mut fields = Fields(message);
    let (len, error) = (fields.u32()?, fields.u32()? as i32);
    let unique = fields.u64()?;
    // Linux takes -511 to 0.
    (len as usize == message.len() && (-511..=0).contains(&error)).then_some(unique)
}

/// Puts the number of the request that an answer is to into it.
pub fn set_answer_unique(message: &mut [u8], unique: u64) {
    message[8..16].copy_from_slice(&unique.to_le_bytes());
}
