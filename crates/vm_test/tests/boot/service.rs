//! The daemon as a service of the system: our units under Debian's systemd, in a guest whose machines run in it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::agent::AgentFiles;
use vm_test::{Case, Guest, Patience, Shell, Suite, copy_sparse, debian, install_files};

/// What stays when the host goes down, with order 1 and 0: started the other way round.
const MACHINES: [(&str, i32); 2] = [("app", 1), ("base", 0)];

pub(crate) fn add(suite: &mut Suite) {
    suite.full_bt_matrix("daemon::as_a_service_of_the_system", &[2], service);
}

/// A host without a network: nothing waits for one. Machines outlive the daemon's upgrade; the host's shutdown shuts them down in order, its start starts them again.
fn service(case: &Case) -> Result<()> {
    let disk = case.path("disk.img");
    copy_sparse(&case.artifacts.debian.disk, &disk)?;
    install(case, &disk)?;
    let guest = Guest::debian(&case.artifacts, &disk).cpus(case.cpus).memory_mib(2048).reboots();
    let mut vm = guest.start(&case.program, &case.folder)?;
    let mut shell = debian::log_in(&mut vm, &case.artifacts)?;
    // What the guest's journal says of its first life is wanted in its second.
    shell.check("mkdir -p /var/log/journal && systemctl restart systemd-journald && journalctl --flush")?;
    shell.check("systemctl enable --now arnia.service arnia-guests.service")?;
    debian::settle(&mut shell)?;
    for (name, order) in MACHINES {
        shell.check(&format!(
            "arnia run --kernel /srv/vmlinuz --initrd /srv/initramfs.cpio --memory 128M --no-network --autostart \
             --append 'console=ttyS0 panic=-1 arnia.test=agent arnia.end=idle' {name}"
        ))?;
        shell.check(&format!("arnia set {name} autostart.order={order}"))?;
    }
    let first = lives(&mut shell)?;

    // An upgrade: another daemon, the same machines.
    shell.check("systemctl restart arnia.service")?;
    ensure!(lives(&mut shell)? == first, "machines did not outlive the daemon's restart");

    shell.send("systemctl reboot")?;
    let mut shell = debian::log_in(&mut vm, &case.artifacts)?;
    let told =
        shell.check("journalctl --boot=-1 --unit=arnia-guests.service --output=cat | grep ' is off'")?;
    ensure!(told == "app is off\nbase is off", "they were not shut down in order: {told:?}");
    let second = lives(&mut shell)?;
    ensure!(first.iter().zip(&second).all(|(first, second)| first != second), "{first:?} and {second:?}");
    let started = shell.check("arnia ls -o json | tr -d ' \\n'")?;
    let started: Value = serde_json::from_str(&started).context("the list of machines")?;
    let when = |name: &str| {
        let vm = started.as_array()?.iter().find(|vm| vm["name"] == name)?;
        vm["started"].as_i64()
    };
    ensure!(
        when("base").is_some() && when("base") <= when("app"),
        "they were not started in order: {started}"
    );
    debian::settle(&mut shell)?;
    shell.send("systemctl poweroff")?;
    vm.wait(Patience::Shutdown)?.expect_code(0)
}

/// The machines' boots, each told by its guest as soon as it can.
fn lives(shell: &mut Shell<'_>) -> Result<Vec<String>> {
    let tell = |(name, _): (&str, i32)| {
        // No longer than a command may take here; again and again, because a boot may take longer.
        // Progress, which goes to a terminal like this one, is not wanted.
        let ask = format!(
            "timeout 60 arnia exec --wait 50 {name} -- cat /proc/sys/kernel/random/boot_id 2> /tmp/why || {{ cat /tmp/why; false; }}"
        );
        let deadline = std::time::Instant::now() + Patience::Login.limit();
        loop {
            let told = shell.run(&ask)?;
            if told.status == 0 {
                return Ok(told.text);
            }
            ensure!(
                std::time::Instant::now() < deadline,
                "the machine {name} does not answer: {}",
                told.text
            );
        }
    };
    MACHINES.into_iter().map(tell).collect()
}

/// Puts the programs, the units, and what machines boot on the guest's disk, where packages would.
fn install(case: &Case, disk: &Path) -> Result<()> {
    let daemon = std::env::var_os("ARNIA_DAEMON_GUEST").map(PathBuf::from);
    let programs = daemon.as_deref().and_then(Path::parent);
    let programs = programs.context("ARNIA_DAEMON_GUEST is not set; run it by `cargo xtask test`")?;
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging");
    let units = "/etc/systemd/system";
    install_files(
        disk,
        &[
            (&programs.join("bin-arnia"), "/usr/bin/arnia", 0o755),
            (&programs.join("bin-arnia-vmm"), "/usr/bin/arnia-vmm", 0o755),
            (&packaging.join("arnia.service"), &format!("{units}/arnia.service"), 0o644),
            (&packaging.join("arnia-guests.service"), &format!("{units}/arnia-guests.service"), 0o644),
            (&case.artifacts.kernel.image, "/srv/vmlinuz", 0o644),
            (&AgentFiles::from_env()?.initramfs(), "/srv/initramfs.cpio", 0o644),
        ],
        &[],
    )
}
