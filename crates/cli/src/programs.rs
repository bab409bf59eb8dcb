//! Where the other programs of Arnia are.

use crate::{Error, ErrorKind};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Finds the worker `arnia-vmm`: where the variable `ARNIA_VMM` says, else beside this program, else in
/// `PATH`.
///
/// # Errors
/// When it is in none of these places.
pub fn worker() -> Result<PathBuf, Error> {
    find("arnia-vmm", "ARNIA_VMM", "which runs virtual machines", |_| true)
}

/// Finds the guest agent `arnia-agent`, which images get on board: where the variable `ARNIA_AGENT` says,
/// else beside this program or in the folder `guest` there, in `/usr/lib/arnia`, or in `PATH`. Only a static
/// program will do: a guest has other libraries.
///
/// # Errors
/// When it is in none of these places.
pub fn agent() -> Result<PathBuf, Error> {
    find("arnia-agent", "ARNIA_AGENT", "which goes into images, as a static program", is_static).map_err(
        |e| {
            e.with_remedy(
            "in the source tree, `cargo xtask build` makes it; else put it beside arnia or name it in the \
             variable ARNIA_AGENT",
        )
        },
    )
}

fn find(name: &str, variable: &str, what: &str, serves: fn(&Path) -> bool) -> Result<PathBuf, Error> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let program = std::env::current_exe().ok();
    let folder = program.as_deref().and_then(Path::parent);
    let beside = folder.map(|folder| [folder.join(name), folder.join("guest").join(name)]);
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&in_path).map(|dir| dir.join(name)).collect::<Vec<_>>();
    let installed = Path::new("/usr/lib/arnia").join(name);
    let places = beside.into_iter().flatten().chain([installed]).chain(in_path);
    places.into_iter().find(|path| is_program(path) && serves(path)).ok_or_else(|| {
        Error::new(ErrorKind::Failed, format!("the program {name}, {what}, is not to be found"))
            .with_remedy(format!("put it beside arnia or into PATH, or name it in the variable {variable}"))
    })
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Has a program that outlives this one inherit nothing but its standard streams: of what this program's caller has open,
/// locks would be held and pipes would not end as long as that program runs.
pub(crate) fn inherit_streams_only(command: &mut Command) {
    // Listed here already: after the fork nothing may be allocated.
    let open = open_descriptors();
    // SAFETY: the closure makes system calls only, and touches no lock and no allocator.
    unsafe { command.pre_exec(move || close_on_exec(&open)) };
}

/// The descriptors of this program beside the standard streams.
fn open_descriptors() -> Vec<RawFd> {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|&fd| fd > 2).collect()
}

/// Has all descriptors beside the standard streams closed when another program is executed; of hosts whose kernel knows
/// no quicker way (Linux before 5.11), those in `open`.
fn close_on_exec(open: &[RawFd]) -> std::io::Result<()> {
    // SAFETY: the call reads and writes no memory of this program.
    let marked =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if marked != 0 {
        mark_each(open);
    }
    Ok(())
}

fn mark_each(open: &[RawFd]) {
    for &fd in open {
        // SAFETY: the call reads and writes no memory of this program; a descriptor that is closed meanwhile is refused.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// Whether an ELF program needs no interpreter (System V ABI, chapter 5: the program header `PT_INTERP`).
fn is_static(path: &Path) -> bool {
    /// Program headers stand at the file's start, right behind its own header.
    const HEAD_LEN: u64 = 4096;
    const PT_INTERP: u32 = 3;
    let mut head = Vec::new();
    let file = std::fs::File::open(path);
    let read =
        file.and_then(|file| std::io::Read::read_to_end(&mut std::io::Read::take(file, HEAD_LEN), &mut head));
    if read.is_err() || !head.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let u16_at = |at: usize| head.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]) as usize);
    // Both are small numbers, whatever their width.
    let (begin, size, count) = (u16_at(0x20), u16_at(0x36), u16_at(0x38));
    let headers = (0..count).filter_map(|index| head.get(begin + index * size..)?.first_chunk::<4>());
    count > 0 && !headers.into_iter().any(|kind| u32::from_le_bytes(*kind) == PT_INTERP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_outlives_this_one_has_nothing_of_it_but_the_streams() {
        use std::os::fd::AsRawFd;
        // As from a caller: not closed when another program is executed.
        let inherited = rustix::pipe::pipe().unwrap().0;
        let fd = inherited.as_raw_fd();
        let has_it = |prepare: fn(&mut Command)| {
            let mut command = Command::new("test");
            command.args(["-e", &format!("/proc/self/fd/{fd}")]);
            prepare(&mut command);
            command.status().unwrap().success()
        };
        assert!(has_it(|_| {}));
        assert!(!has_it(inherit_streams_only));
        // Where the kernel has no close_range.
        assert!(has_it(|_| {}) && open_descriptors().contains(&fd));
        mark_each(&[fd]);
        assert!(!has_it(|_| {}));
    }

    #[test]
    fn programs_that_need_libraries_are_told_from_static_ones() {
        // This test itself is one of the former, and no program one of the latter.
        assert!(!is_static(&std::env::current_exe().unwrap()));
        assert!(!is_static(Path::new("/etc/passwd")));
        let mut program = vec![0; 0x80];
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (program[0x20], program[0x36], program[0x38], program[0x40]) = (0x40, 0x38, 1, 1);
        let path = std::env::temp_dir().join(format!("arnia-static-{}", std::process::id()));
        std::fs::write(&path, &program).unwrap();
        assert!(is_static(&path));
        program[0x40] = 3;
        std::fs::write(&path, &program).unwrap();
        assert!(!is_static(&path));
        std::fs::remove_file(&path).unwrap();
    }
}
