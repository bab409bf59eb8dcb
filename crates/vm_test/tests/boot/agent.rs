//! The guest agent in real guests: programs, files, frozen file systems, identity, shutdown.

use std::fs;
use std::path::Path;
use std::process::Command as HostCommand;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent_client::{Agent, Command, ErrorKind, FileAttributes, GuestFiles, tree};
use anyhow::{Context, Result, ensure};
use api::agent::{
    AgentErrorKind, Exit, Identity, Personality, Provision, ShutdownMode, UserAccount, WindowSize,
};
use vm_test::agent::{AgentFiles, VsockPath};
use vm_test::{
    After, Case, Guest, HttpServer, Patience, Suite, check_ext4, copy_sparse, sha256_hex, system_tool,
};

pub(crate) fn add(suite: &mut Suite) {
    suite.worker_test("agent::busybox", busybox);
    suite.worker_test("agent::debian", debian);
}

/// The smallest guest: no systemd, no users, no libraries.
fn busybox(case: &Case) -> Result<()> {
    let (files, vsock) = (AgentFiles::from_env()?, VsockPath::unique());
    let guest = Guest::busybox(&case.artifacts).initrd(&files.initramfs()).vsock(vsock.path());
    let mut vm = guest.test("agent").after(After::Idle).start(&case.program, &case.folder)?;
    let agent = vsock.agent()?;

    programs(&agent)?;
    files_both_ways(case, &agent, "/tmp")?;
    let finished = agent.run(&Command::new(["hostname"]))?;
    ensure!(finished.text() == "arnia", "the guest calls itself {}", finished.text());
    let identity = Identity {
        hostname: Some("clone-7".into()),
        clock_ns: Some(2_000_000_000_000_000_000),
        random_seed: Some("5a".repeat(32)),
        ..Identity::default()
    };
    let report = agent.take_personality(&Personality { identity, ..Personality::default() })?;
    ensure!(report.failed.is_empty(), "not all of the identity was taken: {:?}", report.failed);
    let finished = agent.run(&Command::shell("hostname; cat /etc/hostname; date +%Y"))?;
    ensure!(finished.text() == "clone-7\nclone-7\n2033", "after the change: {}", finished.text());
    // It has no file system on a disk.
    ensure!(agent.freeze(Duration::from_secs(60))?.frozen.is_empty(), "what did it freeze?");

    agent.shutdown(ShutdownMode::Poweroff, false)?;
    vm.wait(Patience::Shutdown)?.expect_code(0)
}

/// A stock system with the agent installed as our images have it.
fn debian(case: &Case) -> Result<()> {
    let (files, vsock) = (AgentFiles::from_env()?, VsockPath::unique());
    let disk = case.path("disk.img");
    copy_sparse(&case.artifacts.debian.disk, &disk)?;
    files.install(&disk)?;
    let guest = Guest::debian(&case.artifacts, &disk).network().vsock(vsock.path());
    let mut vm = guest.start(&case.program, &case.folder)?;
    let agent = vsock.agent()?;
    let info = agent.info()?;
    ensure!(info.system.starts_with("Debian GNU/Linux 12"), "the system is {}", info.system);

    programs(&agent)?;
    let finished = agent.run(&Command::shell("id -un; id -G; echo $HOME").user("man"))?;
    ensure!(finished.text() == "man\n12\n/var/cache/man", "as another user: {}", finished.text());
    files_both_ways(case, &agent, "/root")?;
    interfaces(&agent)?;
    only_the_host_connects(&agent)?;
    frozen(case, &agent, &disk)?;
    identity(&agent)?;

    agent.shutdown(ShutdownMode::Poweroff, false)?;
    vm.wait(Patience::Shutdown)?.expect_code(0)?;
    ensure!(vm.console().transcript().contains("reboot: Power down"), "the guest did not shut down in order");
    check_ext4(&disk)
}

fn programs(agent: &Agent) -> Result<()> {
    let finished = agent.run(&Command::shell("echo out; echo err >&2; exit 7"))?;
    ensure!(finished.exit == Exit::Status(7), "the status is {:?}", finished.exit);
    ensure!(finished.stdout == b"out\n" && finished.stderr == b"err\n", "the output is {finished:?}");
    let finished = agent.run(&Command::shell("kill -9 $$"))?;
    ensure!(finished.exit == Exit::Signal(9), "the signal is {:?}", finished.exit);
    let size = WindowSize { rows: 30, columns: 99 };
    let finished = agent.run(&Command::shell("tty > /dev/null && stty size").terminal(size))?;
    ensure!(finished.text() == "30 99", "the terminal says {:?}", finished.text());
    let missing = agent.run(&Command::new(["no-such-program"])).err().context("there is no such program")?;
    ensure!(missing.kind() == ErrorKind::Refused(AgentErrorKind::NotFound), "it says {missing}");

    let bytes = HttpServer::bytes(700_000);
    let finished = agent.run(&Command::new(["sha256sum"]).input(bytes.clone()))?;
    ensure!(finished.text().starts_with(&sha256_hex(&bytes)), "the guest read something else");
    let finished = agent.run(&Command::new(["seq", "1", "100000"]))?;
    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    ensure!(finished.stdout == expected.as_bytes(), "the host read something else");
    Ok(())
}

fn files_both_ways(case: &Case, agent: &Agent, folder: &str) -> Result<()> {
    let bytes = HttpServer::bytes(1_500_000);
    let path = format!("{folder}/bytes");
    let attributes = FileAttributes { mode: Some(0o640), ..FileAttributes::default() };
    agent.write_file(&path, &attributes, &mut bytes.as_slice())?;
    let sum = agent.run(&Command::new(["sha256sum", &path]))?.text();
    ensure!(sum.starts_with(&sha256_hex(&bytes)), "the guest has another file: {sum}");
    ensure!(agent.stat(&path, false)?.mode == 0o640, "the mode is another");

    let (from, to) = (case.path("from"), case.path("to"));
    fs::create_dir_all(from.join("deep/er"))?;
    fs::write(from.join("deep/er/one"), "1")?;
    fs::write(from.join("two"), &bytes)?;
    tree::copy_in(agent, &from, &format!("{folder}/tree"), &mut |_| ())?;
    let listed = agent.run(&Command::shell(format!("cd {folder}/tree && find . -type f | sort")))?;
    ensure!(listed.text() == "./deep/er/one\n./two", "the guest has {}", listed.text());
    tree::copy_out(agent, &format!("{folder}/tree"), &to, &mut |_| ())?;
    let same = HostCommand::new("diff").arg("-r").args([&from, &to]).status()?;
    ensure!(same.success(), "what came back differs");
    Ok(())
}

fn interfaces(agent: &Agent) -> Result<()> {
    // Logging in can be quicker than DHCP.
    let online = agent.run(&Command::new(["/lib/systemd/systemd-networkd-wait-online", "--timeout=120"]))?;
    ensure!(online.exit == Exit::Status(0), "the network does not come up: {online:?}");
    let interfaces = agent.interfaces()?;
    let card = interfaces.iter().find(|interface| interface.addresses.contains(&"10.0.2.15/24".to_owned()));
    let card = card.with_context(|| format!("no card has the address: {interfaces:?}"))?;
    let mac = agent.run(&Command::shell(format!("cat /sys/class/net/{}/address", card.name)))?.text();
    ensure!(card.mac.as_deref() == Some(mac.as_str()), "the MAC address is {mac}, not {:?}", card.mac);
    Ok(())
}

/// A program in the guest reaches the agent's port by the loopback address, and gets nothing.
fn only_the_host_connects(agent: &Agent) -> Result<()> {
    let script = r#"modprobe vsock_loopback && printf '\001\000\000\000\001{' | socat -t 5 - VSOCK-CONNECT:1:771 | wc -c"#;
    let finished = agent.run(&Command::shell(script))?;
    ensure!(finished.text() == "0", "the agent answered a program of the guest: {finished:?}");
    Ok(())
}

/// While they are frozen, the file systems are whole on the disk, as a tool from elsewhere sees it.
fn frozen(case: &Case, agent: &Agent, disk: &Path) -> Result<()> {
    agent.run(&Command::shell("seq 1 200000 > /root/dirty"))?;
    let freeze = agent.freeze(Duration::from_secs(600))?;
    ensure!(freeze.frozen == ["/"], "what is frozen is {freeze:?}");
    let refused = agent.run(&Command::new(["true"])).err().context("programs run while all is frozen")?;
    ensure!(refused.kind() == ErrorKind::Refused(AgentErrorKind::Busy), "it says {refused}");
    ensure!(agent.freeze(Duration::from_secs(600))? == freeze, "a second freeze changed something");
    let copy = case.path("frozen.img");
    copy_sparse(disk, &copy)?;
    agent.thaw()?;
    check_ext4(&copy)?;
    let mut debugfs = system_tool("debugfs");
    let shown = debugfs.args(["-R", "cat /root/dirty"]).arg(&copy).output()?;
    ensure!(shown.stdout.ends_with(b"\n200000\n"), "what was written before is not on the disk");
    ensure!(
        agent.run(&Command::shell("echo x > /root/after && sync"))?.exit == Exit::Status(0),
        "it did not thaw"
    );

    // A host that forgets.
    agent.freeze(Duration::from_millis(200))?;
    let deadline = Instant::now() + Patience::Command.limit();
    while agent.run(&Command::new(["true"])).is_err() {
        ensure!(Instant::now() < deadline, "it does not thaw by itself");
    }
    Ok(())
}

/// After a clone the machine is another one.
fn identity(agent: &Agent) -> Result<()> {
    let key = |agent: &Agent| -> Result<String> {
        Ok(agent.run(&Command::shell("cat /etc/ssh/ssh_host_ed25519_key.pub"))?.text())
    };
    let old_key = key(agent)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let personality = Personality {
        instance_id: "i-42".into(),
        identity: Identity {
            hostname: Some("web.example".into()),
            machine_id: Some("0123456789abcdef0123456789abcdef".into()),
            ssh_host_keys: true,
            random_seed: Some("a5".repeat(64)),
            clock_ns: Some(u64::try_from((now + Duration::from_secs(86_400)).as_nanos())?),
        },
        provision: Provision {
            users: vec![UserAccount {
                name: "ann".into(),
                ssh_keys: vec!["ssh-ed25519 AAAAC3 ann@host".into()],
                password_hash: Some("$6$x$y".into()),
                ..UserAccount::default()
            }],
            ..Provision::default()
        },
    };
    let report = agent.take_personality(&personality)?;
    ensure!(report.failed.is_empty(), "not all of it was taken: {:?}", report.failed);
    let info = agent.info()?;
    ensure!(info.hostname == "web.example", "it calls itself {}", info.hostname);
    ensure!(info.machine_id.as_deref() == Some("0123456789abcdef0123456789abcdef"), "{info:?}");
    ensure!(info.instance_id.as_deref() == Some("i-42"), "{info:?}");
    let ahead = Duration::from_nanos(info.clock_ns).saturating_sub(now);
    ensure!(ahead > Duration::from_secs(86_000), "the clock was not set: {ahead:?} ahead");
    let new_key = key(agent)?;
    ensure!(new_key.starts_with("ssh-ed25519 ") && new_key != old_key, "the host key is still {new_key}");
    let kinds = agent.run(&Command::shell("ls /etc/ssh/ssh_host_*_key | wc -l"))?.text();
    ensure!(kinds == "3", "there are {kinds} host keys");
    let ann = agent.run(&Command::shell("cat .ssh/authorized_keys; stat -c %a .ssh; id -un").user("ann"))?;
    ensure!(ann.text() == "ssh-ed25519 AAAAC3 ann@host\n700\nann", "the user got {ann:?}");
    let shadow = agent.run(&Command::shell("grep ^ann: /etc/shadow"))?.text();
    ensure!(shadow.starts_with("ann:$6$x$y:"), "the password is not set: {shadow}");
    Ok(())
}
