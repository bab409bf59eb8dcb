//! Forgetting who this machine is, so that its disk can serve as a template.

use std::fs;
use std::io;
use std::path::Path;

use crate::Root;
use crate::personality::INSTANCE_ID;

/// Removes what only one machine may have. Whoever starts from the disk then gets all of it anew.
///
/// # Errors
/// If something is there and cannot be removed: the disk would make machines with the same identity.
pub fn run(root: &Root) -> io::Result<()> {
    if root.path("/etc/ssh").is_dir() {
        crate::personality::remove_host_keys(root)?;
    }
    // Empty, not gone: systemd then makes one up and keeps it, without taking the boot for a first boot
    // that asks questions (machine-id(5)).
    let machine_id = root.path("/etc/machine-id");
    if machine_id.symlink_metadata().is_ok() {
        fs::write(&machine_id, "")?;
    }
    let dbus = root.path("/var/lib/dbus/machine-id");
    if dbus.symlink_metadata().is_ok_and(|there| there.is_file()) {
        fs::remove_file(&dbus)?;
    }
    for path in [
        INSTANCE_ID,
        "/var/lib/systemd/random-seed",
        "/var/lib/systemd/credential.secret",
        "/var/lib/NetworkManager/secret_key",
        "/etc/udev/rules.d/70-persistent-net.rules",
        "/root/.bash_history",
    ] {
        root.remove(path)?;
    }
    // Leases, what cloud-init remembers, the log of a life that is over.
    for folder in [
        "/var/lib/dhcp",
        "/var/lib/systemd/network",
        "/var/lib/cloud",
        "/var/log/journal",
        "/tmp",
        "/var/tmp",
    ] {
        empty(&root.path(folder))?;
    }
    nix::unistd::sync();
    Ok(())
}

/// Empties a folder; one that is not there is empty.
fn empty(folder: &Path) -> io::Result<()> {
    if !folder.symlink_metadata().is_ok_and(|there| there.is_dir()) {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let result = if path.symlink_metadata()?.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        match result {
            // Private folders of services are mounted or in use while the system runs; they vanish with it.
            Err(error) if matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::NotFound) => {}
            result => result?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::TestRoot;

    #[test]
    fn identity_is_gone_and_the_rest_is_kept() {
        let test = TestRoot::new("generalise");
        let gone = [
            "/etc/ssh/ssh_host_rsa_key",
            "/etc/ssh/ssh_host_rsa_key.pub",
            "/var/lib/dbus/machine-id",
            "/var/lib/arnia/instance-id",
            "/var/lib/systemd/random-seed",
            "/var/lib/cloud/instance/x",
            "/var/log/journal/0123/system.journal",
            "/tmp/x",
        ];
        let kept =
            ["/etc/ssh/sshd_config", "/etc/hostname", "/var/log/dpkg.log", "/home/ann/.ssh/authorized_keys"];
        for path in gone.iter().chain(&kept) {
            test.write(path, "x");
        }
        test.write("/etc/machine-id", "0123\n");
        run(&test.0).unwrap();
        run(&test.0).unwrap();
        for path in gone {
            assert!(!test.0.has(path), "{path} is still there");
        }
        for path in kept {
            assert!(test.0.has(path), "{path} is gone");
        }
        assert_eq!(test.0.text("/etc/machine-id").unwrap(), "");
    }
}
