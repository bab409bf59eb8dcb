//! Users, files and commands.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use api::agent::{GuestFile, Provision, UserAccount};

use super::{Steps, replace};
use crate::Root;
use crate::users::{User, group};

pub(super) fn take(root: &Root, provision: &Provision, steps: &mut Steps) {
    for user in &provision.users {
        steps.step(&format!("made the user {}", user.name), || make_user(root, user));
    }
    for file in &provision.files {
        steps.step(&format!("wrote {}", file.path), || write_file(root, file));
    }
    for (index, command) in provision.commands.iter().enumerate() {
        steps.step(&format!("ran command {}", index + 1), || {
            run(Command::new("/bin/sh").args(["-c", command]).current_dir("/").stdin(Stdio::null()))
        });
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("it ended with {status}"))) }
}

fn make_user(root: &Root, account: &UserAccount) -> io::Result<()> {
    let name = account.name.as_str();
    if User::find(root, name).is_none() {
        if !root.is_live() {
            return Err(io::Error::other("users are made in systems that run"));
        }
        let bash = if root.has("/bin/bash") { "/bin/bash" } else { "/bin/sh" };
        let shell = account.shell.as_deref().unwrap_or(bash);
        if root.has("/usr/sbin/useradd") {
            run(Command::new("/usr/sbin/useradd").args([
                "--create-home",
                "--user-group",
                "--shell",
                shell,
                name,
            ]))?;
        } else {
            run(Command::new("adduser").args(["-D", "-s", shell, name]))?;
        }
    }
    let user = User::find(root, name).ok_or_else(|| io::Error::other("it is not there after it was made"))?;
    if let Some(hash) = &account.password_hash {
        set_password(name, hash)?;
    }
    if !account.ssh_keys.is_empty() {
        allow_keys(root, &user, &account.ssh_keys)?;
    }
    if account.administrator && user.uid != 0 {
        make_administrator(root, name)?;
    }
    Ok(())
}

fn set_password(name: &str, hash: &str) -> io::Result<()> {
    let mut command = Command::new("chpasswd");
    command.arg("-e").stdin(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        writeln!(stdin, "{name}:{hash}")?;
    }
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("chpasswd ended with {status}"))) }
}

fn allow_keys(root: &Root, user: &User, keys: &[String]) -> io::Result<()> {
    let home = user.home.to_string_lossy();
    let folder = root.path(&format!("{home}/.ssh"));
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let path = folder.join("authorized_keys");
    let mut text = fs::read_to_string(&path).unwrap_or_default();
    for key in keys.iter().map(|key| key.trim()) {
        if !text.lines().any(|line| line.trim() == key) {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text += &format!("{key}\n");
        }
    }
    replace(&path, text.as_bytes(), 0o600)?;
    for place in [&folder, &path] {
        chown(place, Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}

fn make_administrator(root: &Root, name: &str) -> io::Result<()> {
    let folder = root.path("/etc/sudoers.d");
    if !folder.is_dir() {
        return Err(io::Error::other("the system has no sudo"));
    }
    replace(
        &folder.join(format!("90-arnia-{name}")),
        format!("{name} ALL=(ALL) NOPASSWD: ALL\n").as_bytes(),
        0o440,
    )
}

fn write_file(root: &Root, file: &GuestFile) -> io::Result<()> {
    let path = root.path(&file.path);
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    replace(&path, file.content.as_bytes(), file.mode.unwrap_or(0o644))?;
    if let Some(owner) = &file.owner {
        let (user, group_name) = owner.split_once(':').map_or((owner.as_str(), None), |(a, b)| (a, Some(b)));
        let missing = |name: &str| io::Error::other(format!("there is no {name}"));
        let user = User::find(root, user).ok_or_else(|| missing(user))?;
        let gid = match group_name {
            Some(name) => group(root, name).ok_or_else(|| missing(name))?,
            None => user.gid,
        };
        chown(&path, Some(user.uid), Some(gid))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::TestRoot;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_and_files_are_written() {
        let test = TestRoot::new("provision");
        let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
        test.write("/etc/passwd", &format!("ann:x:{uid}:{gid}::/home/ann:/bin/sh\n"));
        test.write("/home/ann/.ssh/authorized_keys", "ssh-rsa old");
        test.write("/etc/sudoers.d/README", "");
        let provision = Provision {
            users: vec![UserAccount {
                name: "ann".into(),
                ssh_keys: vec!["ssh-ed25519 AAAA new".into(), "ssh-rsa old".into()],
                ..UserAccount::default()
            }],
            files: vec![
                GuestFile { path: "/etc/a/b".into(), content: "x".into(), mode: Some(0o600), owner: None },
                GuestFile {
                    path: "/etc/c".into(),
                    owner: Some("nobody-here".into()),
                    ..GuestFile::default()
                },
            ],
            commands: vec!["exit 3".into(), "true".into()],
        };
        let mut steps = Steps::default();
        take(&test.0, &provision, &mut steps);
        let keys = test.0.text("/home/ann/.ssh/authorized_keys").unwrap();
        assert_eq!(keys, "ssh-rsa old\nssh-ed25519 AAAA new\n");
        let mode = fs::metadata(test.0.path("/etc/a/b")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(steps.report.done, ["made the user ann", "wrote /etc/a/b", "ran command 2"]);
        assert_eq!(steps.report.failed.len(), 2, "{:?}", steps.report.failed);
        make_administrator(&test.0, "ann").unwrap();
        assert!(test.0.text("/etc/sudoers.d/90-arnia-ann").unwrap().starts_with("ann ALL="));
    }
}
