//! What a file server gives up before the first request comes.
//!
//! It reads what hostile guests send. All that it needs is its folder, and the connections of one socket.

use crate::Error;
use crate::sandbox::{ABI_USED, drop_rights, rules};
use landlock::{AccessFs, BitFlags, PathBeneath, RulesetCreatedAttr, RulesetError};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use share::Folder;
use std::collections::BTreeMap;

/// Calls that are allowed whatever their arguments. No program can be run, no socket made, no other process reached.
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
    // Itself: memory, threads, time, the log.
    libc::SYS_write,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// `prctl` options: a thread's name, and a mapping's.
const PRCTLS: [i32; 2] = [libc::PR_SET_NAME, 0x5356_4d41];

/// Gives up all rights but those to the folder.
pub(super) fn enter(folder: &Folder, read_only: bool) -> Result<(), Error> {
    let failed = || Error::failed("a file server cannot give up its rights");
    drop_rights().map_err(|e| failed().with_source(e))?;
    restrict_files(folder, read_only).map_err(|e| failed().with_source(e))?;
    restrict_calls().map_err(|e| failed().with_source(e))
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

fn restrict_calls() -> Result<(), seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|number| (*number, Vec::new())).collect();
    let equals = |argument: u8, value: u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
    };
    let prctls = PRCTLS.map(|option| SeccompRule::new(vec![equals(0, option as u64)?]));
    rules.insert(libc::SYS_prctl, prctls.into_iter().collect::<Result<_, _>>()?);
    // New threads, not new processes. The flags of `clone3` no filter sees: the C library falls back to `clone`.
    let thread = libc::CLONE_THREAD as u64;
    let is_thread =
        SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), thread)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![is_thread])?]);
    // A signal to itself, as abort() sends.
    let itself = SeccompRule::new(vec![equals(0, std::process::id().into())?])?;
    rules.insert(libc::SYS_tgkill, vec![itself]);
    rules.insert(libc::SYS_clone3, Vec::new());
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let (allow, arch) = (SeccompAction::Allow, TargetArch::x86_64);
    let programs: [BpfProgram; 2] = [
        SeccompFilter::new(no_clone3, allow.clone(), SeccompAction::Errno(libc::ENOSYS as u32), arch)?
            .try_into()?,
        SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM as u32), allow, arch)?.try_into()?,
    ];
    for program in &programs {
        match apply_filter(program) {
            Err(seccompiler::Error::Prctl(e) | seccompiler::Error::Seccomp(e))
                if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) =>
            {
                log::warn!("this kernel does not restrict system calls");
                return Ok(());
            }
            result => result?,
        }
    }
    Ok(())
}
