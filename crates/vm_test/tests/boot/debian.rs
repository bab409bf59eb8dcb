//! The Debian guest: to its login prompt, work, and shutdown from inside and outside.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use vm_test::{
    Case, Engine, Guest, HttpServer, Patience, Program, Shell, Suite, copy_sparse, debian, free_port,
    kernel_log, sha256_hex,
};

pub(crate) fn add(suite: &mut Suite) {
    suite.matrix("debian::work_and_poweroff", &[2], work_and_poweroff);
    suite.matrix("debian::power_button", &[1], power_button);
}

/// A session as a user would have it, ended by `poweroff`.
fn work_and_poweroff(case: &Case) -> Result<()> {
    let disk = case.path("disk.img");
    copy_sparse(&case.artifacts.debian.disk, &disk)?;
    let ssh_port = free_port()?;
    let vsock = VsockPath::new();
    let mut guest = Guest::debian(&case.artifacts, &disk).cpus(case.cpus).forward(ssh_port, 22);
    if case.program != Program::Qemu {
        guest = guest.vsock(&vsock.0);
    }
    let mut vm = guest.start(&case.program, &case.folder)?;
    let mut shell = debian::log_in(&mut vm, &case.artifacts)?;
    let mut ignore = |_: &str| {};
    debian::try_commands(&mut shell, &case.artifacts, case.cpus, &mut ignore)?;
    debian::try_download(&mut shell, &mut ignore)?;

    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, ssh_port)).context("the forwarded port")?;
    stream.set_read_timeout(Some(Patience::Command.limit()))?;
    let mut greeting = [0; 8];
    stream.read_exact(&mut greeting).context("the guest's SSH server does not answer")?;
    ensure!(&greeting == b"SSH-2.0-", "the guest's SSH server answers {greeting:?}");

    if case.program != Program::Qemu {
        // QEMU's needs a driver of the host's kernel.
        sockets_both_ways(&mut shell, &vsock.0)?;
    }
    // Under KVM a guest's kernel sees the host's processor, and has its own things to say about that.
    if case.program == Program::Worker(Engine::Bt) {
        kernel_log::compare_with_qemu(&mut shell, &guest, &case.artifacts)?;
    }
    shell.send("poweroff")?;
    vm.wait(Patience::Shutdown)?.expect_code(0)?;
    ensure!(
        vm.console().transcript().contains("reboot: Power down"),
        "the guest did not say that it was off"
    );
    Ok(())
}

/// The power button makes systemd shut the system down in order.
fn power_button(case: &Case) -> Result<()> {
    let disk = case.path("disk.img");
    copy_sparse(&case.artifacts.debian.disk, &disk)?;
    let mut vm = Guest::debian(&case.artifacts, &disk).cpus(case.cpus).start(&case.program, &case.folder)?;
    vm.console().expect("arnia login: ", Patience::Login)?;
    vm.control().power()?;
    vm.console().expect("Reached target", Patience::Shutdown)?;
    vm.wait(Patience::Shutdown)?.expect_code(0)?;
    ensure!(
        vm.console().transcript().contains("reboot: Power down"),
        "the guest did not say that it was off"
    );
    Ok(())
}

/// A virtio socket connects programs of host and guest, whichever of them begins.
fn sockets_both_ways(shell: &mut Shell<'_>, path: &Path) -> Result<()> {
    let sent = HttpServer::bytes(200_000);
    shell.check("socat VSOCK-LISTEN:5000 EXEC:sha256sum > /dev/null 2>&1 &")?;
    shell.check("until ss --vsock --listening | grep -q :5000; do sleep 0.1; done")?;
    let mut stream = UnixStream::connect(path).context("the socket of the guest")?;
    stream.set_read_timeout(Some(Patience::Command.limit()))?;
    stream.write_all(b"CONNECT 5000\n")?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut greeting = String::new();
    reader.read_line(&mut greeting)?;
    ensure!(greeting.starts_with("OK "), "a connection to the guest's port was answered by {greeting:?}");
    stream.write_all(&sent)?;
    stream.shutdown(Shutdown::Write)?;
    let mut sum = String::new();
    reader.read_to_string(&mut sum)?;
    ensure!(sum.starts_with(&sha256_hex(&sent)), "the guest got other bytes than were sent: {sum}");

    let mut listening_at = path.as_os_str().to_owned();
    listening_at.push("_5001");
    let listener = UnixListener::bind(&listening_at)?;
    shell.check("seq 1 20000 | socat -u STDIN VSOCK-CONNECT:2:5001 &")?;
    let (mut stream, _) = listener.accept()?;
    std::fs::remove_file(&listening_at)?;
    stream.set_read_timeout(Some(Patience::Command.limit()))?;
    let mut numbers = String::new();
    stream.read_to_string(&mut numbers)?;
    let expected: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    ensure!(numbers == expected, "the host got other lines than were sent ({} bytes)", numbers.len());
    Ok(())
}

/// A path for the socket: short, as sockets need it, and gone afterwards.
struct VsockPath(PathBuf);

impl VsockPath {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("arnia-vsock-{}", std::process::id())))
    }
}

impl Drop for VsockPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
