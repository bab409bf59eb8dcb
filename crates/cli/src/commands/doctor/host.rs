//! What Arnia uses of a host beside a processor. Everything is found by trying, nothing is left changed.

use super::{Check, Verdict};
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Looks at everything.
pub(super) fn look(folder: &Path) -> Vec<Check> {
    vec![
        processor(),
        memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        landlock(),
        seccomp(),
        userfaultfd(),
        io_uring(),
        cgroups(),
        reflink(folder),
    ]
}

fn processor() -> Check {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        line.split_once(": ").map(|(_, value)| value.trim().to_owned())
    };
    let name = value("model name").unwrap_or_else(|| "unknown".into());
    let count = info.lines().filter(|line| line.starts_with("processor")).count();
    let flags = value("flags").unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|own| own == flag);
    let virtualization = match (has("vmx"), has("svm")) {
        (true, _) => "VT-x",
        (_, true) => "AMD-V",
        _ => "no hardware virtualization",
    };
    let inside = if has("hypervisor") { ", itself in a virtual machine" } else { "" };
    Check::good("processor", format!("{count} x {name}, {virtualization}{inside}"))
}

/// From the text of `/proc/meminfo`.
fn memory(info: &str) -> Check {
    let value = |name: &str| -> Option<u64> {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
    };
    let gib = |kib: u64| kib as f64 / f64::from(1 << 20);
    match (value("MemTotal"), value("MemAvailable")) {
        (Some(total), Some(available)) => {
            let finding = format!("{:.1} GiB, {:.1} GiB of it free for guests", gib(total), gib(available));
            if available < 512 << 10 {
                Check::weak(
                    "memory",
                    finding,
                    "end other programs, or give guests little memory (--memory 128M)",
                )
            } else {
                Check::good("memory", finding)
            }
        }
        _ => Check::weak("memory", "this host does not tell how much it has", "mount /proc"),
    }
}

/// Makes a system call that takes up to three numbers or null pointers; returns what it returns.
fn call(number: libc::c_long, arguments: [libc::c_long; 3]) -> io::Result<libc::c_long> {
    // SAFETY: callers pass no pointers but null, which these calls refuse or take for "nothing".
    let result = unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn landlock() -> Check {
    const VERSION: libc::c_long = 1;
    match call(libc::SYS_landlock_create_ruleset, [0, 0, VERSION]) {
        Ok(version) => {
            Check::good("landlock", format!("version {version}: a worker can reach no files but its own"))
        }
        Err(e) => Check::weak(
            "landlock",
            format!("is not there ({e}): a worker's files are guarded by their owners and modes alone"),
            "use a kernel with Landlock (5.13 or later) and add landlock to the parameter lsm= at its start",
        ),
    }
}

fn seccomp() -> Check {
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.contains("errno") => {
            Check::good("seccomp", "a worker can give up system calls that it does not need")
        }
        _ => Check::weak(
            "seccomp",
            "is not there: a worker keeps all system calls",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

fn userfaultfd() -> Check {
    const USER_MODE_ONLY: libc::c_long = 1;
    match call(libc::SYS_userfaultfd, [USER_MODE_ONLY | libc::c_long::from(libc::O_CLOEXEC), 0, 0]) {
        Ok(fd) => {
            close(fd);
            Check::good("userfaultfd", "memory can be fetched when a guest first touches it")
        }
        Err(e) => Check::weak(
            "userfaultfd",
            format!("is refused ({e}): a machine that moves has to wait for all of its memory"),
            "set the kernel's vm.unprivileged_userfaultfd to 1, or use a kernel with CONFIG_USERFAULTFD",
        ),
    }
}

fn io_uring() -> Check {
    // No parameters: a kernel that has it says that their address is bad.
    match call(libc::SYS_io_uring_setup, [1, 0, 0]) {
        Ok(fd) => {
            close(fd);
            Check::good("io_uring", "is there")
        }
        Err(e) if e.raw_os_error() == Some(libc::EFAULT) => Check::good("io_uring", "is there"),
        Err(e) => Check::weak(
            "io_uring",
            format!("is refused ({e}): disks use threads instead"),
            "set the kernel's kernel.io_uring_disabled to 0",
        ),
    }
}

fn close(fd: libc::c_long) {
    // SAFETY: the descriptor was just made and belongs to nobody else.
    unsafe { libc::close(fd as libc::c_int) };
}

fn cgroups() -> Check {
    match fs::read_to_string("/sys/fs/cgroup/cgroup.controllers") {
        Ok(controllers) => {
            let missing: Vec<_> = ["cpu", "cpuset", "memory"]
                .into_iter()
                .filter(|wanted| !controllers.split_whitespace().any(|own| own == *wanted))
                .collect();
            if missing.is_empty() {
                Check::good("cgroups", "version 2, with limits for processors and memory")
            } else {
                let finding = format!("version 2, without {}", missing.join(", "));
                Check::weak("cgroups", finding, "let the service manager delegate these controllers")
            }
        }
        Err(_) => Check::weak(
            "cgroups",
            "version 2 is not there: workers keep limits themselves, and nothing bounds their memory",
            "start the kernel with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 at /sys/fs/cgroup",
        ),
    }
}

/// Whether copies of files can share blocks.
fn reflink(folder: &Path) -> Check {
    let name = |what: &str| folder.join(format!(".arnia-doctor-{}-{what}", std::process::id()));
    let (source, copy) = (name("a"), name("b"));
    let tried = (|| -> io::Result<Result<(), io::Error>> {
        fs::write(&source, [0x5a; 4096])?;
        let (from, to) = (File::open(&source)?, File::create(&copy)?);
        Ok(rustix::fs::ioctl_ficlone(to, from).map_err(Into::into))
    })();
    for file in [&source, &copy] {
        let _ = fs::remove_file(file);
    }
    let place = folder.display();
    match tried {
        Ok(Ok(())) => Check::good("reflink", format!("copies of disks in {place} cost nothing")),
        Ok(Err(_)) => Check::weak(
            "reflink",
            format!("the file system of {place} copies whole files"),
            "keep disks on XFS or Btrfs, where copies share their blocks",
        ),
        Err(e) => Check {
            name: "reflink",
            verdict: Verdict::Bad,
            finding: format!("{place} cannot be written: {e}"),
            remedy: Some("name the folder for disks with --folder".into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_in_gib() {
        let plenty = memory("MemTotal:       25165824 kB\nMemFree: 1 kB\nMemAvailable:   12582912 kB\n");
        assert_eq!(
            (plenty.verdict, &plenty.finding[..]),
            (Verdict::Good, "24.0 GiB, 12.0 GiB of it free for guests")
        );
        assert_eq!(memory("MemTotal: 1048576 kB\nMemAvailable: 1024 kB\n").verdict, Verdict::Weak);
        assert_eq!(memory("").verdict, Verdict::Weak);
    }

    #[test]
    fn every_check_says_something_and_leaves_nothing_behind() {
        let folder = std::env::temp_dir().join(format!("arnia-doctor-test-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        for check in look(&folder) {
            assert!(!check.finding.is_empty(), "{check:?}");
            assert_eq!(check.verdict == Verdict::Good, check.remedy.is_none(), "{check:?}");
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir(&folder).unwrap();
        assert_eq!(reflink(&folder).verdict, Verdict::Bad);
    }
}
