//! Folders of the host, mounted where the host wants them.
//!
//! One device has them all (`mount -t virtiofs arnia`): it is mounted once, out of the way, and each share is bound from
//! there to its place. What is mounted is read from the kernel each time, and what is to be mounted from the device
//! itself: so nothing has to be remembered, and a guest that boots by itself has its shares, too.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use api::agent::shares::{LISTING, ListedShare, Listing, ShareReport, TAG};
use api::agent::{AgentError, AgentErrorKind, Reply};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::failure::failed;

/// Where the device is mounted.
const BASE: &str = "/run/arnia/shares";
/// Virtio devices, and the number of those that we look for (virtio 1.2, §5.11).
const DEVICES: &str = "/sys/bus/virtio/devices";
const DEVICE_TYPE: &str = "0x001a";
/// Longest listing that is read: no machine has as many shares.
const LISTING_LEN_MAX: u64 = 1 << 20;

/// Looking what is mounted, and mounting the rest, is one thing.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Mounts what the host shows and is not mounted yet, and unmounts what it shows no more.
pub(crate) fn mount_all() -> Result<Reply, AgentError> {
    let _one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if !has_device() {
        let message = "the machine has no device for shared folders, or this kernel does not see it";
        return Err(AgentError::new(AgentErrorKind::Failed, message));
    }
    let mounted = Mounted::now()?;
    if !mounted.base {
        let made = std::fs::create_dir_all(BASE)
            .and_then(|()| attach(TAG, BASE, Some("virtiofs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV));
        made.map_err(|error| match error.raw_os_error() == Some(nix::Error::ENODEV as i32) {
            true => AgentError::new(AgentErrorKind::Failed, "this guest's kernel has no virtiofs"),
            false => failed("cannot mount the device for shared folders", &error),
        })?;
    }
    let listing = listing().map_err(|error| failed("cannot read which folders are shared", &error))?;
    let (kept, lost): (Vec<Place>, Vec<Place>) = mounted.places.into_iter().partition(|place| {
        let is_wanted = |share: &ListedShare| share.name == place.name && share.target == place.target;
        listing.shares.iter().any(is_wanted) && !place.is_stale()
    });
    for place in lost {
        // Nobody answers for it any more, so that waiting for its users would be for ever.
        let _ = umount2(place.target.as_str(), MntFlags::MNT_DETACH);
    }
    if listing.shares.is_empty() {
        // Nothing to be out of the way of.
        let _ = umount2(BASE, MntFlags::empty());
    }
    let report = |share: &ListedShare| {
        let there = kept.iter().any(|place| place.name == share.name && place.target == share.target);
        let error = if there { None } else { place(share).err().map(|error| error.to_string()) };
        ShareReport { name: share.name.clone(), error }
    };
    Ok(Reply::Shares { shares: listing.shares.iter().map(report).collect() })
}

/// At the agent's start: as [`mount_all`], where there is something to mount.
pub(crate) fn mount_at_start() {
    if !has_device() {
        return;
    }
    match mount_all() {
        Ok(Reply::Shares { shares }) => {
            for share in shares {
                if let Some(error) = share.error {
                    eprintln!("arnia-agent: the shared folder {} is not mounted: {error}", share.name);
                }
            }
        }
        Ok(_) => {}
        Err(error) => eprintln!("arnia-agent: shared folders: {}", error.message),
    }
}

/// Unmounts a share; with `force` although somebody uses it.
pub(crate) fn unmount(name: &str, force: bool) -> Result<Reply, AgentError> {
    let flags = if force { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    for place in Mounted::now()?.places.iter().filter(|place| place.name == name) {
        match umount2(place.target.as_str(), flags) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(nix::Error::EBUSY) => {
                let message = format!("{} is in use in the guest", place.target);
                return Err(AgentError::new(AgentErrorKind::Failed, message));
            }
            Err(error) => return Err(failed(format!("cannot unmount {}", place.target), &error.into())),
        }
    }
    Ok(Reply::Done)
}

fn has_device() -> bool {
    let Ok(devices) = std::fs::read_dir(DEVICES) else { return false };
    devices.flatten().any(|device| {
        std::fs::read_to_string(device.path().join("device")).is_ok_and(|kind| kind.trim() == DEVICE_TYPE)
    })
}

fn listing() -> io::Result<Listing> {
    let file = std::fs::File::open(Path::new(BASE).join(LISTING))?;
    Ok(serde_json::from_reader(io::Read::take(file, LISTING_LEN_MAX))?)
}

/// Puts a share where it is to be.
fn place(share: &ListedShare) -> io::Result<()> {
    let (source, target) = (Path::new(BASE).join(&share.name), share.target.as_str());
    let source = source.to_string_lossy();
    std::fs::create_dir_all(target)?;
    attach(&source, target, None, MsFlags::MS_BIND)?;
    if share.read_only {
        let flags = MsFlags::MS_BIND
            | MsFlags::MS_REMOUNT
            | MsFlags::MS_RDONLY
            | MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV;
        attach(&source, target, None, flags).inspect_err(|_| {
            let _ = umount2(target, MntFlags::MNT_DETACH);
        })?;
    }
    Ok(())
}

fn attach(source: &str, target: &str, kind: Option<&str>, flags: MsFlags) -> io::Result<()> {
    Ok(mount(Some(source), target, kind, flags, None::<&str>)?)
}

/// What is mounted of the device.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mounted {
    /// Whether the device itself is.
    base: bool,
    places: Vec<Place>,
}

#[derive(Debug, PartialEq, Eq)]
struct Place {
    name: String,
    target: String,
}

impl Place {
    /// Whether it is a share of before: of the machine that this one is a copy of, or of another folder.
    fn is_stale(&self) -> bool {
        // Opening asks the server, whatever the kernel remembers.
        let opened = std::fs::File::open(&self.target);
        opened.is_err_and(|error| error.raw_os_error() == Some(nix::Error::ESTALE as i32))
    }
}

impl Mounted {
    fn now() -> Result<Mounted, AgentError> {
        let text = std::fs::read_to_string("/proc/self/mountinfo");
        Ok(Mounted::parse(&text.map_err(|error| failed("cannot read the list of mounts", &error))?))
    }

    /// Reads a list of mounts (proc_pid_mountinfo(5)).
    fn parse(text: &str) -> Mounted {
        let mut mounted = Mounted::default();
        for line in text.lines() {
            let Some((place, kind)) = line.split_once(" - ") else { continue };
            if !kind.starts_with(&format!("virtiofs {TAG} ")) {
                continue;
            }
            let mut fields = place.split(' ').skip(3);
            let (Some(root), Some(target)) = (fields.next(), fields.next()) else { continue };
            let (root, target) = (unescape(root), unescape(target));
            match root.strip_prefix('/') {
                Some("") => mounted.base |= target == BASE,
                Some(name) if !name.contains('/') => {
                    mounted.places.push(Place { name: name.to_owned(), target });
                }
                _ => {}
            }
        }
        mounted
    }
}

/// Blanks and the like are written as three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) => {
                bytes.push(value);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_is_read_from_the_kernels_list() {
        let text = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
90 22 0:40 / /run/arnia/shares rw,nosuid,nodev - virtiofs arnia rw
91 22 0:40 /mnt-src /mnt/src rw,nosuid,nodev shared:5 - virtiofs arnia rw
92 22 0:40 /a-b /home/a\\040b ro,nosuid,nodev - virtiofs arnia rw
93 22 0:41 /x /mnt/x rw - virtiofs other rw
94 22 0:40 /mnt-src/deep /mnt/deep rw - virtiofs arnia rw
";
        let place = |name: &str, target: &str| Place { name: name.into(), target: target.into() };
        let places = vec![place("mnt-src", "/mnt/src"), place("a-b", "/home/a b")];
        assert_eq!(Mounted::parse(text), Mounted { base: true, places });
    }
}
