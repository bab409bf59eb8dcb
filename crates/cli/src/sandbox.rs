//! What the processes that serve guests give up: capabilities, new rights, files, system calls.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated, RulesetError, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use std::collections::BTreeMap;
use std::io;

/// What is restricted, as far as the host's kernel can.
pub(crate) const ABI_USED: ABI = ABI::V6;

/// Gives up all capabilities, and ever getting any.
pub(crate) fn drop_rights() -> io::Result<()> {
    for set in
        [caps::CapSet::Ambient, caps::CapSet::Inheritable, caps::CapSet::Effective, caps::CapSet::Permitted]
    {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// A set of rules by which no file can be reached, to be added to.
pub(crate) fn rules() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_USED))?
        .scope(Scope::from_all(ABI_USED))?
        .create()
}

/// Calls that each needs for itself, whatever their arguments: memory, threads, time, the log.
const ITSELF: &[i64] = &[
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

/// Gives up all system calls but `allowed` and what each process needs for itself. Others fail with EPERM; a kernel
/// that restricts none is told of in the log.
pub(crate) fn restrict_calls(allowed: &[i64]) -> Result<(), seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ITSELF.iter().chain(allowed).map(|number| (*number, Vec::new())).collect();
    let equals = |argument: u8, value: u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
    };
    let prctls = PRCTLS.map(|option| SeccompRule::new(vec![equals(0, option as u64)?]));
    rules.insert(libc::SYS_prctl, prctls.into_iter().collect::<Result<_, _>>()?);
    // Whether a socket waits; nothing else that devices do.
    rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(vec![equals(1, libc::FIONBIO)?])?]);
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
