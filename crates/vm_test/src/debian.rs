//! The Debian guest: logging in, and what a user would try first.

use std::fs;

use anyhow::{Result, bail, ensure};

use crate::{Artifacts, HttpServer, Patience, Shell, Vm, sha256_hex};

/// Size of the download that is compared: some thousand packets.
const DOWNLOAD: usize = 3_000_000;

/// Waits for the login prompt and logs in.
///
/// # Errors
/// If the guest does not come that far.
pub fn log_in<'a>(vm: &'a mut Vm, artifacts: &Artifacts) -> Result<Shell<'a>> {
    let console = vm.console();
    console.expect("arnia login: ", Patience::Login)?;
    console.send(&format!("{}\n", artifacts.debian.user))?;
    console.expect("Password: ", Patience::Command)?;
    console.send(&format!("{}\n", artifacts.debian.password))?;
    console.expect(":~# ", Patience::Command)?;
    let mut shell = Shell::take_over(console)?;
    // From here on kernel messages only go to the kernel's log, not between the answers.
    shell.check("dmesg -n 1")?;
    Ok(shell)
}

/// Waits until all that starts with the system has started.
///
/// # Errors
/// If it does not settle in time.
pub fn settle(shell: &mut Shell<'_>) -> Result<()> {
    let state = shell.run("systemctl is-system-running --wait")?;
    ensure!(state.text == "running", "the system is {} instead of running", state.text);
    Ok(())
}

/// Runs commands whose right answers the host knows, reporting each to `told`.
///
/// # Errors
/// At the first wrong answer.
pub fn try_commands(
    shell: &mut Shell<'_>,
    artifacts: &Artifacts,
    cpus: u32,
    told: &mut dyn FnMut(&str),
) -> Result<()> {
    let release = shell.check("uname -r")?;
    ensure!(release.contains("cloud-amd64"), "uname -r said {release}");
    told(&format!("uname -r: {release}"));

    let nproc = shell.check("nproc")?;
    ensure!(nproc == cpus.to_string(), "nproc said {nproc} instead of {cpus}");
    told(&format!("nproc: {nproc}"));

    // The same kernel as a file in the guest: through file system, disk and processor.
    let right = sha256_hex(&fs::read(&artifacts.debian.kernel)?);
    let sum = shell.check("sha256sum /boot/vmlinuz-$(uname -r)")?;
    ensure!(sum.starts_with(&right), "sha256sum of the kernel said {sum} instead of {right}");
    told(&format!("sha256sum /boot/vmlinuz-*: {right}, as on the host"));

    settle(shell)?;
    told("systemctl is-system-running: running");
    Ok(())
}

/// Downloads from a server on the host's loopback, over the NAT, and compares checksums.
///
/// # Errors
/// If what arrives is not what was sent.
pub fn try_download(shell: &mut Shell<'_>, told: &mut dyn FnMut(&str)) -> Result<()> {
    let server = HttpServer::start()?;
    let right = sha256_hex(&HttpServer::bytes(DOWNLOAD));
    // Logging in can be quicker than DHCP.
    shell.check("/lib/systemd/systemd-networkd-wait-online --timeout=60")?;
    let url = format!("http://10.0.2.2:{}/bytes/{DOWNLOAD}", server.port());
    let sum = shell.check(&format!("wget -q -O - {url} | sha256sum"))?;
    if !sum.starts_with(&right) {
        bail!("the download's checksum is {sum} instead of {right}");
    }
    told(&format!("download of {DOWNLOAD} bytes over the NAT: {right}, as on the host"));
    Ok(())
}
