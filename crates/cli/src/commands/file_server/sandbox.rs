//! What a file server gives up before the first request comes.
//!
//! It reads what hostile guests send. All that it needs is its folder, and the connections of one socket.

use crate::Error;
use crate::sandbox::{ABI_USED, drop_rights, restrict_calls, rules};
use landlock::{AccessFs, BitFlags, PathBeneath, RulesetCreatedAttr, RulesetError};
use share::Folder;

/// Calls that it needs. No program can be run, no socket made, no other process reached.
const ALLOWED: &[i64] = &[
    // The machine.
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_setsockopt,
    libc::SYS_poll,
    libc::SYS_ppoll,
    // Files, within what Landlock leaves.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_copy_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
];

/// Gives up all rights but those to the folder.
pub(super) fn enter(folder: &Folder, read_only: bool) -> Result<(), Error> {
    let failed = || Error::failed("a file server cannot give up its rights");
    drop_rights().map_err(|e| failed().with_source(e))?;
    restrict_files(folder, read_only).map_err(|e| failed().with_source(e))?;
    restrict_calls(ALLOWED).map_err(|e| failed().with_source(e))
}

fn restrict_files(folder: &Folder, read_only: bool) -> Result<(), RulesetError> {
    let rules = rules()?.add_rule(PathBeneath::new(folder, access(read_only)))?;
    rules.restrict_self().map(drop)
}

/// What may be done in the folder. Never: running what is there, devices.
fn access(read_only: bool) -> BitFlags<AccessFs> {
    use landlock::Access;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    match read_only {
        true => read,
        false => {
            let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
            AccessFs::from_all(ABI_USED) & !never
        }
    }
}
