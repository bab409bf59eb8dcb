//! cloud-init in Debian, which is not ours: what our seeds tell it, it does. In a full run only: it is a program in
//! Python, and the image is built of packages first.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vm_test::{Arnia, Case, Patience, Suite, free_port};

/// No agent of ours sets anything up here; it only runs the commands that look.
const RECIPE: &str = "name: cloud:1
from: {debian: bookworm}
packages: [linux-image-cloud-amd64, systemd-sysv, systemd-resolved, dbus, udev, kmod, zstd, initramfs-tools,
  iproute2, openssh-server, sudo, cloud-init]
personality: cloud-init
disk: 3G
files:
  - {path: /etc/cloud/cloud.cfg.d/10-locale.cfg, content: \"locale: false\\n\"}
";
const IMAGE: &str = "cloud:1";
const FILE: &str = "first line\nsecond 'line' with: signs\n";

pub(crate) fn add(suite: &mut Suite) {
    suite.full_engineless_test("cloud_init::no_cloud_and_clone", no_cloud);
    suite.full_engineless_test("cloud_init::config_drive", config_drive);
}

/// A daemon whose store has the image. The store stays for the next run, so that nothing is built twice.
fn start(case: &Case) -> Result<Arnia> {
    let arnia = Arnia::new()?.with_images(&case.folder.with_file_name("images"));
    let recipe = case.path("cloud.yaml");
    std::fs::write(&recipe, RECIPE)?;
    arnia.run(&["image", "build", &recipe.to_string_lossy()])?;
    ensure!(arnia.json(&["image", "info", IMAGE])?["manifest"]["personality"] == "cloud_init");
    Ok(arnia)
}

/// A key pair of OpenSSH's; returns the public one.
fn key(path: &Path) -> Result<String> {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status();
    ensure!(made.context("ssh-keygen, of Debian's package openssh-client")?.success(), "ssh-keygen failed");
    Ok(std::fs::read_to_string(path.with_extension("pub"))?.trim().to_owned())
}

/// What a command prints that a user gives by SSH with this key.
fn ssh(key: &Path, port: u16, user: &str, command: &str) -> Result<String> {
    let output = Command::new("ssh")
        .args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
        .args(["-o", "ConnectTimeout=60", "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes", "-F", "none"])
        .arg("-i")
        .arg(key)
        .args(["-p", &port.to_string(), &format!("{user}@127.0.0.1"), command])
        .output()?;
    ensure!(output.status.success(), "ssh: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

fn inside(arnia: &Arnia, name: &str, line: &str) -> Result<String> {
    Ok(arnia.run(&["exec", name, "--", "sh", "-c", line])?.trim_end().to_owned())
}

/// Waits until cloud-init has done all it was told, without an error.
fn settle(arnia: &Arnia, name: &str) -> Result<()> {
    let line = ["exec", "--wait", "600", name, "--", "cloud-init", "status", "--wait", "--long"];
    let status = arnia.try_run(&line)?;
    let log = || inside(arnia, name, "tail -n 40 /var/log/cloud-init.log").unwrap_or_default();
    ensure!(status.status.success(), "{status:?}\n{}", log());
    Ok(())
}

/// Who a machine is to others and to itself: name, machine-id, SSH host keys, instance.
fn identity(arnia: &Arnia, name: &str) -> Result<Vec<String>> {
    let lines = inside(
        arnia,
        name,
        "hostname; cat /etc/machine-id; cat /etc/ssh/ssh_host_ed25519_key.pub | cut -d ' ' -f 2; \
         cat /var/lib/cloud/data/instance-id; ip -o link show up | grep -o 'a6:41:72:[0-9a-f:]*'",
    )?;
    let lines: Vec<String> = lines.lines().map(str::to_owned).collect();
    ensure!(lines.len() == 5 && lines[0] == name, "{name} says that it is {lines:?}");
    let uuid = arnia.json(&["info", name])?["id"].as_str().context("its UUID")?.replace('-', "");
    ensure!(lines[1] == uuid, "the machine-id is {} and the UUID {uuid}", lines[1]);
    Ok(lines)
}

/// The seed that our agent reads, too, with all that can be asked for; then a clone of the disk that has booted.
fn no_cloud(case: &Case) -> Result<()> {
    let arnia = start(case)?;
    let (secret, port) = (case.path("key"), free_port()?);
    let provision = json!({
        "users": [{"name": "ann", "ssh_keys": [key(&secret)?], "administrator": true}],
        "files": [{"path": "/srv/told/file", "content": FILE, "mode": 0o640, "owner": "www-data:adm"}],
        "commands": ["echo \"$(id -un) on $(hostname)\" > /srv/told/command"],
    });
    let machine = json!({
        "name": "one", "start": true, "instance": {"provision": provision},
        "config": {"image": IMAGE, "cpus": 2, "memory": "1G",
                   "nics": [{"network": "user", "ports": [format!("127.0.0.1:{port}:22")]}]},
    });
    // Its first command starts the daemon.
    arnia.run(&["ls"])?;
    let (status, answer) = arnia.http("POST", "/v1/vms", Some(&machine))?;
    ensure!((200..300).contains(&status), "the daemon answers {status}: {answer}");
    arnia.wait(Patience::Command, || Ok(arnia.json(&["info", "one"])?["state"] == "running"))?;
    settle(&arnia, "one")?;
    ensure!(inside(&arnia, "one", "cloud-id")? == "nocloud", "another source");
    let first = identity(&arnia, "one")?;
    let told =
        inside(&arnia, "one", "stat -c '%a %U:%G' /srv/told/file; cat /srv/told/file /srv/told/command")?;
    ensure!(told == format!("640 www-data:adm\n{FILE}root on one"), "it was told otherwise: {told}");
    let user = ssh(&secret, port, "ann", "id -un; sudo -n id -un; getent passwd ann | cut -d : -f 7")?;
    ensure!(user == "ann\nroot\n/bin/bash", "by SSH: {user}");
    ssh(&secret, port, "root", "true").expect_err("root was given no key");
    let network = inside(&arnia, "one", "ls /run/systemd/network /etc/systemd/network; ip -4 -o address")?;
    ensure!(network.contains("cloud-init") && network.contains("10.0.2."), "the network: {network}");

    // Its clone begins with this disk and is another machine.
    inside(&arnia, "one", "echo kept > /srv/told/kept; sync")?;
    let patience = Patience::Shutdown.limit().as_secs().to_string();
    arnia.run(&["stop", "--timeout", &patience, "one"])?;
    arnia.run(&["clone", "one", "two"])?;
    arnia.run(&["start", "two"])?;
    settle(&arnia, "two")?;
    let second = identity(&arnia, "two")?;
    ensure!(
        first.iter().zip(&second).all(|(one, two)| one != two),
        "{first:?} and {second:?} have something in common"
    );
    ensure!(inside(&arnia, "two", "cat /srv/told/kept; id -un ann")? == "kept\nann", "the disk is another");
    // The first one stays who it is.
    arnia.run(&["stop", "--timeout", &patience, "two"])?;
    arnia.run(&["start", "one"])?;
    settle(&arnia, "one")?;
    ensure!(identity(&arnia, "one")? == first, "the first one has become another");
    Ok(())
}

/// The same by OpenStack's form of disk, and a key for the image's user by the command line.
fn config_drive(case: &Case) -> Result<()> {
    let arnia = start(case)?;
    let (secret, port) = (case.path("key"), free_port()?);
    key(&secret)?;
    let public = secret.with_extension("pub");
    let ports = format!("127.0.0.1:{port}:22");
    arnia.run(&[
        "run",
        IMAGE,
        "--name",
        "drive",
        "--seed",
        "config-drive",
        "--ssh-key",
        &public.to_string_lossy(),
        "--port",
        &ports,
        "--cpus",
        "2",
    ])?;
    settle(&arnia, "drive")?;
    ensure!(inside(&arnia, "drive", "cloud-id")? == "configdrive", "another source");
    identity(&arnia, "drive")?;
    let user = ssh(&secret, port, "root", "id -un; hostname")?;
    ensure!(user == "root\ndrive", "by SSH: {user}");
    Ok(())
}
