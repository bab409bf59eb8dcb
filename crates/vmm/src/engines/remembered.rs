//! Results of probes, remembered for some minutes: a start need not try again what was tried a moment ago.
//!
//! A result is taken only under the circumstances under which it was found: the same boot of the host, the same
//! kernel, the same program, the same device node (a module that is loaded anew makes another), and not long
//! ago. It lies where only this user can write. Anything else is as good as nothing.

use cpu::{Engine, Support};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// So long a result is taken for true, in seconds: a host may be moved with all that runs on it.
const VALID: u64 = 600;
/// A file of results is not larger than this.
const SIZE_MAX: u64 = 64 << 10;

#[derive(Serialize, Deserialize)]
struct Remembered {
    circumstances: String,
    /// In seconds since 1970.
    at: u64,
    support: Support,
}

/// What the engine can do: as it was found a moment ago, or found now.
pub(super) fn probe(engine: &dyn Engine) -> Support {
    match (folder(), engine.circumstances()) {
        (Some(folder), Some(circumstances)) => {
            let path = folder.join(format!("arnia-probe-{}.json", engine.name()));
            probe_with(engine, &path, &format!("{} {circumstances}", surroundings()))
        }
        _ => engine.probe(),
    }
}

fn probe_with(engine: &dyn Engine, path: &Path, circumstances: &str) -> Support {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if let Some(remembered) = read(path)
        && remembered.circumstances == circumstances
        && (remembered.at..remembered.at.saturating_add(VALID)).contains(&now)
        // What was there must be there still.
        && (!remembered.support.usable || engine.offered_cpuid().is_ok())
    {
        log::debug!("the probe of {} is remembered from {} s ago", engine.name(), now - remembered.at);
        return remembered.support;
    }
    let support = engine.probe();
    let text = Remembered { circumstances: circumstances.to_owned(), at: now, support: support.clone() };
    // Best effort: without it the next start takes a little longer.
    if let Err(e) = write(path, &serde_json::to_vec(&text).unwrap_or_default()) {
        log::debug!("the probe of {} is not remembered: {e}", engine.name());
    }
    support
}

/// The user's folder for what lasts as long as the host runs; nothing where others could write.
fn folder() -> Option<PathBuf> {
    let user = rustix::process::geteuid();
    let folder = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) => PathBuf::from(folder),
        None if user.is_root() => PathBuf::from("/run"),
        None => return None,
    };
    let about = fs::symlink_metadata(&folder).ok()?;
    (about.is_dir() && about.uid() == user.as_raw() && about.mode() & 0o022 == 0).then_some(folder)
}

/// What every probe hangs on: the boot of the host, its kernel, this program.
fn surroundings() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (boot, kernel) = (read("/proc/sys/kernel/random/boot_id"), read("/proc/sys/kernel/osrelease"));
    format!("{} {} {}", boot.trim(), kernel.trim(), env!("CARGO_PKG_VERSION"))
}

fn read(path: &Path) -> Option<Remembered> {
    let options = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = options.ok()?;
    let about = file.metadata().ok()?;
    if !about.is_file() || about.uid() != rustix::process::geteuid().as_raw() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(SIZE_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Whole or not at all: several workers may do it at once.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let draft = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    let done = file.write_all(bytes).and_then(|()| fs::rename(&draft, path));
    if done.is_err() {
        let _ = fs::remove_file(&draft);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpu::{Speed, Vm, VmConfig};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Counting(AtomicU32);

    impl Engine for Counting {
        fn name(&self) -> &'static str {
            "counting"
        }
        fn probe(&self) -> Support {
            let number = self.0.fetch_add(1, Ordering::Relaxed);
            Support {
                usable: true,
                speed: Speed::Hardware,
                findings: vec![number.to_string()],
                remedies: vec![],
            }
        }
        fn create_vm(&self, _: VmConfig) -> Result<Arc<dyn Vm>, cpu::Error> {
            unreachable!("only probed")
        }
    }

    #[test]
    fn a_result_is_taken_only_where_it_was_found_and_not_for_long() {
        let path = std::env::temp_dir().join(format!("arnia-probe-test-{}.json", std::process::id()));
        let engine = Counting::default();
        let probe = |circumstances| probe_with(&engine, &path, circumstances).findings[0].clone();
        assert_eq!([probe("a"), probe("a"), probe("b"), probe("b"), probe("a")], ["0", "0", "1", "1", "2"]);
        let change = |change: fn(&mut Remembered)| {
            let mut remembered = read(&path).unwrap();
            change(&mut remembered);
            write(&path, &serde_json::to_vec(&remembered).unwrap()).unwrap();
        };
        change(|old| old.at -= VALID);
        assert_eq!(probe("a"), "3", "old");
        change(|ahead| ahead.at += VALID);
        assert_eq!(probe("a"), "4", "of the future");
        fs::write(&path, "{").unwrap();
        assert_eq!([probe("a"), probe("a")], ["5", "5"], "damaged");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert_eq!(probe("a"), "6", "a link");
        fs::remove_file(&path).unwrap();
    }
}
