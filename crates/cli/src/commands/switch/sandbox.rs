//! What the process of a network gives up before the first frame comes.
//!
//! It reads what hostile guests send. Everything is open by then: it needs no files but its configuration, no
//! capabilities, and no other processes.

use crate::Error;
use crate::sandbox::{drop_rights, restrict_calls, rules};
use landlock::{AccessFs, PathBeneath, PathFd, RulesetCreatedAttr, RulesetError};
use std::path::Path;

/// Calls that it needs. No program can be run, no other process reached.
const ALLOWED: &[i64] = &[
    // Cards and the outside.
    libc::SYS_socket,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Waiting.
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_eventfd2,
    // Its configuration, and where names are asked for.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_writev,
];

/// Gives up all rights but those that a network needs; `names` tells whether names are looked up.
pub(super) fn enter(config: &Path, names: bool) -> Result<(), Error> {
    let failed = || Error::failed("the process of a network cannot give up its rights");
    drop_rights().map_err(|e| failed().with_source(e))?;
    restrict_files(config, names).map_err(|e| failed().with_source(e))?;
    restrict_calls(ALLOWED).map_err(|e| failed().with_source(e))
}

fn restrict_files(config: &Path, names: bool) -> Result<(), RulesetError> {
    let mut rules = rules()?;
    // The folder: the file is replaced as a whole.
    let resolv = std::fs::canonicalize("/etc/resolv.conf").ok().filter(|_| names);
    let folders = config.parent().into_iter().chain(resolv.as_deref().and_then(Path::parent));
    let files = names.then_some(Path::new("/etc/resolv.conf"));
    for path in folders.filter(|folder| *folder != Path::new("/etc")).chain(files) {
        if let Ok(fd) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(fd, AccessFs::ReadFile))?;
        }
    }
    rules.restrict_self().map(drop)
}
