//! Host keys of the SSH server.

use std::fs;
use std::io;
use std::process::{Command, Stdio};

use crate::Root;

const FOLDER: &str = "/etc/ssh";
/// Kinds of keys for a server that has had none: quickly made, and every client of today knows one.
const KINDS: [&str; 2] = ["ed25519", "ecdsa"];

/// Makes new keys of the kinds that there were. A system without an SSH server needs none.
pub(crate) fn renew_host_keys(root: &Root) -> io::Result<()> {
    if !root.path(FOLDER).is_dir() || keygen(root).is_none() {
        return Ok(());
    }
    let old = remove_host_keys(root)?;
    let kinds = if old.is_empty() { KINDS.map(str::to_owned).to_vec() } else { old };
    for kind in kinds {
        let path = root.path(&format!("{FOLDER}/ssh_host_{kind}_key"));
        let mut command = Command::new(keygen(root).unwrap_or("ssh-keygen"));
        command.args(["-q", "-N", "", "-t", &kind, "-C", "", "-f"]).arg(&path);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
        if !status.success() {
            return Err(io::Error::other(format!("ssh-keygen -t {kind} ended with {status}")));
        }
    }
    if root.is_live() && root.path("/run/systemd/system").is_dir() {
        for unit in ["ssh.service", "sshd.service"] {
            // Does nothing for a server that does not run, and there is at most one of them.
            let mut command = Command::new("systemctl");
            command.args(["--no-block", "--quiet", "try-restart", unit]).stderr(Stdio::null());
            let _ = command.status();
        }
    }
    Ok(())
}

/// Removes all keys, and says of which kinds there were.
pub(crate) fn remove_host_keys(root: &Root) -> io::Result<Vec<String>> {
    let mut kinds = Vec::new();
    for entry in fs::read_dir(root.path(FOLDER))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix("ssh_host_") else { continue };
        if let Some(kind) = rest.strip_suffix("_key") {
            kinds.push(kind.to_owned());
        } else if !rest.ends_with("_key.pub") {
            continue;
        }
        fs::remove_file(entry.path())?;
    }
    // Quick ones first: a server can start with the first.
    kinds.sort_by_key(|kind| KINDS.iter().position(|quick| quick == kind).unwrap_or(KINDS.len()));
    Ok(kinds)
}

fn keygen(root: &Root) -> Option<&'static str> {
    let program = ["/usr/bin/ssh-keygen", "/bin/ssh-keygen", "/usr/local/bin/ssh-keygen"];
    // For a folder that stands for a system, the program of the system that runs.
    let live = Root::live();
    program.into_iter().find(|path| if root.is_live() { root.has(path) } else { live.has(path) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::TestRoot;

    #[test]
    fn keys_are_made_anew_in_the_same_kinds() {
        let test = TestRoot::new("ssh");
        test.write("/etc/ssh/ssh_host_ed25519_key", "old");
        test.write("/etc/ssh/ssh_host_ed25519_key.pub", "old");
        test.write("/etc/ssh/sshd_config", "kept");
        if keygen(&test.0).is_none() {
            eprintln!("skipped: this host has no ssh-keygen");
            return;
        }
        renew_host_keys(&test.0).unwrap();
        let first = test.0.text("/etc/ssh/ssh_host_ed25519_key.pub").unwrap();
        assert!(first.starts_with("ssh-ed25519 "), "{first}");
        renew_host_keys(&test.0).unwrap();
        assert_ne!(test.0.text("/etc/ssh/ssh_host_ed25519_key.pub").unwrap(), first);
        assert!(!test.0.has("/etc/ssh/ssh_host_ecdsa_key"));
        assert_eq!(test.0.text("/etc/ssh/sshd_config").unwrap(), "kept");
        assert_eq!(remove_host_keys(&test.0).unwrap(), ["ed25519"]);
        renew_host_keys(&test.0).unwrap();
        assert!(test.0.has("/etc/ssh/ssh_host_ecdsa_key") && test.0.has("/etc/ssh/ssh_host_ed25519_key"));
    }
}
