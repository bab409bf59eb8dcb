//! The first boot of an instance: finding its seed disk and taking the personality that it holds.
//!
//! The seed disk is the one that cloud-init's NoCloud looks for: an ISO 9660 file system with the volume
//! name `cidata`. Beside cloud-init's own files it has `arnia.json`, an [`api::agent::Personality`].

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use api::agent::Personality;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::Root;
use crate::personality::{self, INSTANCE_ID};

/// Volume name of a NoCloud seed, in small letters.
const LABEL: &str = "cidata";
/// Where the seed is mounted while it is read.
const MOUNT: &str = "/run/arnia/seed";
/// Longest personality, in bytes.
const SEED_LEN_MAX: u64 = 4 << 20;

/// Looks for a seed and takes its personality if it is not the one that this machine has.
///
/// # Errors
/// A sentence. That there is no seed is no error.
pub fn run(root: &Root) -> Result<(), String> {
    let Some(device) = find_seed(root) else {
        eprintln!("arnia-agent: there is no seed disk; this machine stays who it is");
        return Ok(());
    };
    let text = read_seed(&device)?;
    let Some(text) = text else {
        eprintln!("arnia-agent: the seed disk {} has no arnia.json; it is not for me", device.display());
        return Ok(());
    };
    let personality: Personality =
        serde_json::from_str(&text).map_err(|error| format!("the seed's arnia.json is wrong: {error}"))?;
    if is_known(root, &personality) {
        return Ok(());
    }
    let report = personality::take(root, &personality).map_err(|error| error.to_string())?;
    eprintln!("arnia-agent: this is {} now: {}", personality.instance_id, report.done.join(", "));
    if report.failed.is_empty() { Ok(()) } else { Err(report.failed.join("; ")) }
}

fn is_known(root: &Root, personality: &Personality) -> bool {
    root.text(INSTANCE_ID).is_some_and(|known| known.trim() == personality.instance_id)
}

fn find_seed(root: &Root) -> Option<PathBuf> {
    let entries = fs::read_dir(root.path("/sys/class/block")).ok()?;
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    let devices = names.into_iter().map(|name| root.path("/dev").join(name));
    devices.into_iter().find(|device| File::open(device).is_ok_and(|file| has_label(&file)))
}

/// Whether an ISO 9660 file system with our label begins here (ECMA-119, section 8.4: the primary volume
/// descriptor is in sector 16, its volume identifier at byte 40).
fn has_label(file: &File) -> bool {
    let mut descriptor = [0; 72];
    let read = file.read_exact_at(&mut descriptor, 16 * 2048);
    read.is_ok()
        && descriptor[..6] == *b"\x01CD001"
        && String::from_utf8_lossy(&descriptor[40..]).trim_end().eq_ignore_ascii_case(LABEL)
}

fn read_seed(device: &Path) -> Result<Option<String>, String> {
    let error = |what: &str, error: &dyn std::fmt::Display| format!("{what} {}: {error}", device.display());
    fs::create_dir_all(MOUNT).map_err(|e| error("cannot make a place for", &e))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let try_mount = || mount(Some(device), MOUNT, Some("iso9660"), flags, None::<&str>);
    if try_mount().is_err() {
        // The kernel asks for the module by itself where it can; early in a boot that may fail.
        let _ = Command::new("modprobe").arg("isofs").stderr(Stdio::null()).status();
        try_mount().map_err(|e| error("cannot mount the seed disk", &e))?;
    }
    let path = Path::new(MOUNT).join("arnia.json");
    let text = match fs::metadata(&path) {
        Ok(there) if there.len() <= SEED_LEN_MAX => fs::read_to_string(&path).map(Some),
        Ok(_) => Err(std::io::Error::other("it is too long")),
        Err(_) => Ok(None),
    };
    let unmounted = umount2(MOUNT, MntFlags::MNT_DETACH);
    let text = text.map_err(|e| error("cannot read arnia.json of", &e))?;
    unmounted.map_err(|e| error("cannot unmount", &e))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::TestRoot;

    #[test]
    fn only_a_seed_is_taken_for_one() {
        let test = TestRoot::new("firstboot");
        let mut image = vec![0; 34 * 1024];
        test.write("/dev/vda", "short");
        assert!(find_seed(&test.0).is_none());
        fs::create_dir_all(test.0.path("/sys/class/block/vda")).unwrap();
        fs::create_dir_all(test.0.path("/sys/class/block/vdb")).unwrap();
        fs::write(test.0.path("/dev/vdb"), &image).unwrap();
        assert!(find_seed(&test.0).is_none());
        image[32768..32774].copy_from_slice(b"\x01CD001");
        image[32808..32840].copy_from_slice(format!("{:32}", "CIDATA").as_bytes());
        fs::write(test.0.path("/dev/vdb"), &image).unwrap();
        assert_eq!(find_seed(&test.0), Some(test.0.path("/dev/vdb")));
    }
}
