//! File systems held for a snapshot.
//!
//! `FIFREEZE` writes out what is dirty and makes every writer wait until `FITHAW` (linux/fs.h). The agent
//! must not write to a file while they are frozen: it would wait for itself.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use api::agent::{AgentError, AgentErrorKind, Freeze};

use crate::failure::{failed, invalid};

nix::ioctl_readwrite!(fifreeze, b'X', 119, i32);
nix::ioctl_readwrite!(fithaw, b'X', 120, i32);

/// Longest time until file systems thaw by themselves.
const TIMEOUT_MAX: Duration = Duration::from_secs(600);

#[derive(Default)]
struct State {
    /// What is frozen, in the order in which it was, with a file open in each so that nothing has to be
    /// looked up to thaw it.
    frozen: Vec<(String, File)>,
    skipped: Vec<String>,
    /// Counts freezes, so that a timer of an earlier one does not end a later one.
    round: u64,
}

static STATE: Mutex<State> = Mutex::new(State { frozen: Vec::new(), skipped: Vec::new(), round: 0 });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn is_frozen() -> bool {
    !state().frozen.is_empty()
}

/// Freezes all file systems that lie on disks. Again, while they are: nothing but another time limit.
pub(crate) fn freeze(timeout_ms: u32) -> Result<Freeze, AgentError> {
    let timeout = Duration::from_millis(timeout_ms.into());
    if timeout.is_zero() || timeout > TIMEOUT_MAX {
        return Err(invalid("the time until the file systems thaw by themselves is between 1 ms and 600 s"));
    }
    let mut state = state();
    state.round += 1;
    let round = state.round;
    // The timer before the first freeze: if it cannot be had, nothing happens.
    thread::Builder::new()
        .name("thaw".into())
        .spawn(move || {
            thread::sleep(timeout);
            if self::state().round == round {
                let _ = thaw();
            }
        })
        .map_err(|error| failed("cannot start the timer", &error))?;
    if state.frozen.is_empty() {
        let text = std::fs::read_to_string("/proc/self/mountinfo");
        let text = text.map_err(|error| failed("cannot read the list of mounts", &error))?;
        freeze_each(&mut state, &on_disks(&text))?;
    }
    Ok(view(&state))
}

fn freeze_each(state: &mut State, mounts: &[String]) -> Result<(), AgentError> {
    state.skipped.clear();
    for mount in mounts {
        let result = File::open(mount).and_then(|file| {
            let mut unused = 0;
            // SAFETY: the descriptor is open, and the kernel does not look at the argument.
            unsafe { fifreeze(file.as_raw_fd(), &raw mut unused) }?;
            Ok(file)
        });
        match result {
            Ok(file) => state.frozen.push((mount.clone(), file)),
            Err(error) if cannot_freeze(&error) => state.skipped.push(mount.clone()),
            Err(error) => {
                thaw_all(state);
                return Err(failed(format!("cannot freeze {mount}"), &error));
            }
        }
    }
    Ok(())
}

/// Not supported, or frozen already by somebody who will thaw it.
fn cannot_freeze(error: &io::Error) -> bool {
    use nix::Error as E;
    [E::EOPNOTSUPP, E::ENOTTY, E::EBUSY, E::EINVAL, E::ENOSYS]
        .iter()
        .any(|known| error.raw_os_error() == Some(*known as i32))
}

/// Thaws them.
pub(crate) fn thaw() -> Result<Freeze, AgentError> {
    let mut state = state();
    state.round += 1;
    thaw_all(&mut state);
    if !state.frozen.is_empty() {
        return Err(AgentError::new(AgentErrorKind::Failed, "some file systems did not thaw"));
    }
    Ok(view(&state))
}

fn thaw_all(state: &mut State) {
    state.frozen.retain(|(mount, file)| {
        let mut unused = 0;
        // SAFETY: as above.
        match unsafe { fithaw(file.as_raw_fd(), &raw mut unused) } {
            // EINVAL: somebody else has thawed it.
            Ok(_) | Err(nix::Error::EINVAL) => false,
            Err(error) => {
                eprintln!("arnia-agent: cannot thaw {mount}: {error}");
                true
            }
        }
    });
    state.skipped.clear();
}

fn view(state: &State) -> Freeze {
    Freeze {
        frozen: state.frozen.iter().map(|(mount, _)| mount.clone()).collect(),
        skipped: state.skipped.clone(),
    }
}

/// Mount points of file systems on disks, the last mounted first, each file system once
/// (`proc_pid_mountinfo(5)`).
fn on_disks(mountinfo: &str) -> Vec<String> {
    let mut seen = Vec::new();
    let mut mounts = Vec::new();
    for line in mountinfo.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (Some(device), Some(mount)) = (fields.get(2), fields.get(4)) else { continue };
        let after = fields.iter().position(|field| *field == "-").map(|dash| &fields[dash + 1..]);
        let source = after.and_then(|after| after.get(1)).copied().unwrap_or_default();
        if source.starts_with("/dev/") && !seen.contains(device) {
            seen.push(device);
            mounts.push(unescape(mount));
        }
    }
    mounts.reverse();
    mounts
}

/// The kernel writes blanks and backslashes in octal.
fn unescape(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (from, to)| path.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_found_in_reverse() {
        let text = "\
22 27 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 254:16 / /data\\040two rw shared:2 master:1 - xfs /dev/vdb rw
31 27 254:0 /var /srv rw - ext4 /dev/vda rw
32 27 0:30 / /tmp rw - tmpfs tmpfs rw
nonsense
";
        assert_eq!(on_disks(text), ["/data two", "/"]);
    }

    #[test]
    fn a_freeze_without_end_is_refused() {
        assert!(freeze(0).is_err());
        assert!(freeze(u32::MAX).is_err());
        assert!(!is_frozen());
    }
}
