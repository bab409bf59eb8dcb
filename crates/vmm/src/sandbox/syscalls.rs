//! Seccomp: which system calls can still be made. What is not listed fails with EPERM.

use super::Needs;
use crate::Error;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use std::collections::BTreeMap;

/// Calls that are allowed whatever their arguments.
const ALLOWED: &[i64] = &[
    // Reading and writing what is open.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fadvise64,
    // Rings that were made before, each for one file (crates/disk/src/ring.rs). No other can be made.
    libc::SYS_io_uring_enter,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    // Opening and removing, within what Landlock leaves.
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    // Waiting and waking.
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_signalfd4,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_membarrier,
    libc::SYS_restart_syscall,
    // Memory: its own.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_memfd_create,
    // Threads, and the end.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_getpgrp,
    libc::SYS_gettid,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    // Sockets that are there, and what comes in through them.
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
];

/// Calls that are allowed beside, to machines that make files: snapshots, overlays of disks.
const ALLOWED_FOR_FILES: &[i64] = &[libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_flock];

/// And to machines of which snapshots can be made.
const ALLOWED_FOR_SNAPSHOTS: &[i64] = &[libc::SYS_mkdirat, libc::SYS_linkat, libc::SYS_getdents64];

/// What may be asked of descriptors beside, by them: that a file shares another's blocks (FICLONE).
const IOCTLS_FOR_SNAPSHOTS: [u64; 1] = [0x4004_9409];

/// What a socket may be: local, or of the Internet protocols.
const SOCKET_FAMILIES: [i32; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];
const SOCKET_TYPES: [i32; 2] = [libc::SOCK_STREAM, libc::SOCK_DGRAM];
/// By such a local one a card comes back to the switch of its network.
const SWITCH_SOCKET: (i32, i32) = (libc::AF_UNIX, libc::SOCK_SEQPACKET);
/// The bits of a socket's type beside its flags.
const SOCKET_TYPE_MASK: u64 = 0xf;

/// What may be asked of descriptors: terminal modes, non-blocking mode.
const IOCTLS: [u64; 9] = [
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TCGETS2,
    libc::TCSETS2,
    libc::TIOCGPGRP,
    libc::TIOCGWINSZ,
    libc::FIONBIO,
];

/// `arch_prctl` codes (asm/prctl.h): the base of GS, by which translated code finds its state.
const ARCH_PRCTLS: [u64; 2] = [0x1001, 0x1004];

/// `prctl` options: a thread's name, and a mapping's.
const PRCTLS: [i32; 2] = [libc::PR_SET_NAME, 0x5356_4d41];

/// Restricts the calling thread and those that it starts.
pub(super) fn restrict(needs: &Needs) -> Result<(), Error> {
    let failed =
        |e: seccompiler::Error| Error::host("the process cannot give up its system calls").with_source(e);
    let (no_clone3, allow) = programs(needs).map_err(|e| failed(e.into()))?;
    // The list last: it does not hold the call that installs filters.
    for program in [no_clone3, allow] {
        match apply_filter(&program) {
            Ok(()) => {}
            Err(seccompiler::Error::Prctl(e) | seccompiler::Error::Seccomp(e))
                if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) =>
            {
                log::warn!("this kernel does not restrict system calls");
                return Ok(());
            }
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(())
}

fn programs(needs: &Needs) -> Result<(BpfProgram, BpfProgram), BackendError> {
    let arch = TargetArch::x86_64;
    let allow = SeccompFilter::new(
        rules(needs)?,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        arch,
    )?;
    // Its flags are behind a pointer, where no filter sees them: the C library is made to fall back to
    // `clone`. The list allows it, so that this refusal, the stricter of the two, decides.
    let no_clone3 = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        arch,
    )?;
    Ok((no_clone3.try_into()?, allow.try_into()?))
}

fn rules(needs: &Needs) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    // No conditions: always.
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|number| (*number, Vec::new())).collect();
    let one_of = |argument: u8, values: &[u64]| {
        let rule = |value: &u64| SeccompRule::new(vec![equals(argument, *value)?]);
        values.iter().map(rule).collect::<Result<Vec<_>, _>>()
    };
    let mut ioctls = one_of(1, &IOCTLS)?;
    if needs.snapshots.is_some() || needs.disk_folder.is_some() {
        rules.extend(ALLOWED_FOR_FILES.iter().map(|number| (*number, Vec::new())));
    }
    if needs.snapshots.is_some() {
        rules.extend(ALLOWED_FOR_SNAPSHOTS.iter().map(|number| (*number, Vec::new())));
        ioctls.extend(one_of(1, &IOCTLS_FOR_SNAPSHOTS)?);
    }
    if needs.kvm {
        ioctls.extend(one_of(1, cpu_kvm::IOCTLS)?);
    }
    rules.insert(libc::SYS_ioctl, ioctls);
    rules.insert(libc::SYS_prctl, one_of(0, &PRCTLS.map(|option| option as u64))?);
    rules.insert(libc::SYS_arch_prctl, one_of(0, &ARCH_PRCTLS)?);
    rules.insert(libc::SYS_clone3, Vec::new());
    // A signal to itself, as abort() sends.
    rules.insert(libc::SYS_tgkill, one_of(0, &[std::process::id() as u64])?);
    // New threads, not new processes.
    let thread = libc::CLONE_THREAD as u64;
    let is_thread =
        SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), thread)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![is_thread])?]);
    // Reading its own limits.
    let own = equals(0, 0)?;
    let no_change = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![own, no_change])?]);
    let mut sockets = Vec::new();
    let kinds = SOCKET_FAMILIES.iter().flat_map(|family| SOCKET_TYPES.map(|kind| (*family, kind)));
    for (family, kind) in kinds.chain([SWITCH_SOCKET]) {
        let has_kind = SeccompCondition::new(
            1,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(SOCKET_TYPE_MASK),
            kind as u64,
        )?;
        sockets.push(SeccompRule::new(vec![equals(0, family as u64)?, has_kind])?);
    }
    rules.insert(libc::SYS_socket, sockets);
    Ok(rules)
}

fn equals(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}
