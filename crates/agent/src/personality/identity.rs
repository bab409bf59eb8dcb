//! Hostname, machine-id, host keys, randomness, clock.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use api::agent::Identity;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use super::{Steps, replace, ssh};
use crate::Root;

pub(super) fn take(root: &Root, identity: &Identity, steps: &mut Steps) {
    // Time and randomness first: keys are made of them.
    if let Some(clock_ns) = identity.clock_ns {
        steps.step("set the clock", || {
            let time = TimeSpec::from(Duration::from_nanos(clock_ns));
            if root.is_live() { Ok(clock_settime(ClockId::CLOCK_REALTIME, time)?) } else { Ok(()) }
        });
    }
    if let Some(seed) = &identity.random_seed {
        steps.step("mixed in randomness", || if root.is_live() { add_entropy(&bytes(seed)) } else { Ok(()) });
    }
    if let Some(name) = &identity.hostname {
        steps.step("set the hostname", || set_hostname(root, name));
    }
    if let Some(id) = &identity.machine_id {
        steps.step("set the machine-id", || set_machine_id(root, id));
    }
    if identity.ssh_host_keys {
        steps.step("made SSH host keys", || ssh::renew_host_keys(root));
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn set_hostname(root: &Root, name: &str) -> io::Result<()> {
    replace(&root.path("/etc/hostname"), format!("{name}\n").as_bytes(), 0o644)?;
    let hosts = root.text("/etc/hosts").unwrap_or_default();
    replace(&root.path("/etc/hosts"), with_name(&hosts, name).as_bytes(), 0o644)?;
    if root.is_live() {
        nix::unistd::sethostname(name)?;
    }
    Ok(())
}

/// The machine's own name stands at 127.0.1.1, as Debian has it (Debian reference, section 5.1.1).
fn with_name(hosts: &str, name: &str) -> String {
    let others = hosts.lines().filter(|line| line.split_whitespace().next() != Some("127.0.1.1"));
    let mut lines: Vec<String> = others.map(str::to_owned).collect();
    if !lines.iter().any(|line| line.split_whitespace().next() == Some("127.0.0.1")) {
        lines.insert(0, "127.0.0.1 localhost".to_owned());
    }
    let short = name.split('.').next().unwrap_or(name);
    let names = if short == name { name.to_owned() } else { format!("{name} {short}") };
    let place = lines.iter().position(|line| line.split_whitespace().next() == Some("127.0.0.1"));
    lines.insert(place.map_or(0, |place| place + 1), format!("127.0.1.1 {names}"));
    lines.join("\n") + "\n"
}

fn set_machine_id(root: &Root, id: &str) -> io::Result<()> {
    let text = format!("{id}\n");
    replace(&root.path("/etc/machine-id"), text.as_bytes(), 0o444)?;
    // Usually a link to the other. Where it is a file of its own, D-Bus reads it.
    let dbus = root.path("/var/lib/dbus/machine-id");
    if dbus.symlink_metadata().is_ok_and(|there| there.is_file()) {
        replace(&dbus, text.as_bytes(), 0o444)?;
    }
    Ok(())
}

/// The argument of `RNDADDENTROPY` (linux/random.h), with room for the longest seed.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    size: i32,
    bytes: [u8; 4096],
}

nix::ioctl_write_ptr_bad!(add_to_pool, nix::request_code_write!(b'R', 3, 8), PoolInfo);
nix::ioctl_none!(reseed, b'R', 7);

fn add_entropy(seed: &[u8]) -> io::Result<()> {
    let mut info = PoolInfo { entropy_bits: 0, size: 0, bytes: [0; 4096] };
    let size = seed.len().min(info.bytes.len());
    info.bytes[..size].copy_from_slice(&seed[..size]);
    info.size = size as i32;
    info.entropy_bits = 8 * info.size;
    let device = File::open("/dev/urandom")?;
    // SAFETY: the structure is the request's, and says how many of its bytes are to be read.
    unsafe { add_to_pool(device.as_raw_fd(), &raw const info) }?;
    // SAFETY: the request has no argument.
    unsafe { reseed(device.as_raw_fd()) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::TestRoot;

    #[test]
    fn names_are_written_where_they_are_looked_for() {
        let test = TestRoot::new("identity");
        test.write("/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 old\n::1 localhost\n");
        test.write("/etc/machine-id", "");
        test.write("/var/lib/dbus/machine-id", "old\n");
        let identity = Identity {
            hostname: Some("web.lan".into()),
            machine_id: Some("0123456789abcdef0123456789abcdef".into()),
            ..Identity::default()
        };
        let mut steps = Steps::default();
        take(&test.0, &identity, &mut steps);
        assert_eq!(steps.report.failed, [""; 0]);
        assert_eq!(test.0.text("/etc/hostname").unwrap(), "web.lan\n");
        assert_eq!(
            test.0.text("/etc/hosts").unwrap(),
            "127.0.0.1 localhost\n127.0.1.1 web.lan web\n::1 localhost\n"
        );
        assert_eq!(test.0.text("/etc/machine-id").unwrap(), "0123456789abcdef0123456789abcdef\n");
        assert_eq!(test.0.text("/var/lib/dbus/machine-id").unwrap(), "0123456789abcdef0123456789abcdef\n");
        assert_eq!(with_name("", "a"), "127.0.0.1 localhost\n127.0.1.1 a\n");
    }

    #[test]
    fn seeds_are_read() {
        assert_eq!(bytes("00ffA5"), [0, 255, 0xa5]);
    }
}
