//! A machine that is saved under one engine and goes on under the other, while its guest checks itself.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::thread;

use anyhow::{Result, ensure};
use vm_test::{After, Case, Engine, Guest, Patience, Program, Shell, Suite, Vm};

pub(crate) fn add(suite: &mut Suite) {
    suite.kvm_test("engines::a_machine_changes_engines_and_back", 2, there_and_back);
}

/// Runs in the guest all the time: sums that are known, again and again; a counter that a timer drives.
const AT_WORK: &str = "\
    dd if=/dev/urandom of=/tmp/data bs=64k count=4 2>/dev/null; sha256sum /tmp/data > /tmp/sum; echo 0 > /tmp/rounds; echo 0 > /tmp/ticks; \
    (n=0; while :; do i=0; s=0; while [ $i -lt 300 ]; do i=$((i+1)); s=$((s+i*i)); done; \
      [ $s = 9045050 ] || echo sum $s >> /tmp/wrong; sha256sum -c /tmp/sum >/dev/null 2>&1 || echo data >> /tmp/wrong; \
      n=$((n+1)); echo $n > /tmp/rounds.new; mv /tmp/rounds.new /tmp/rounds; done) & \
    (n=0; while :; do sleep 0.1; n=$((n+1)); echo $n > /tmp/ticks.new; mv /tmp/ticks.new /tmp/ticks; done) & true";

/// KVM, then translation, then KVM again; each time saved while the guest is at work.
fn there_and_back(case: &Case) -> Result<()> {
    let (folder, disk) = (case.path("snapshots"), case.empty_disk("disk.img", 4 << 20)?);
    fs::create_dir_all(&folder)?;
    let port = echo()?;
    let guest = Guest::busybox(&case.artifacts).cpus(case.cpus).memory_mib(160).disk(&disk).network();
    let mut vm = guest.after(After::Shell).snapshots(&folder).start(&case.program, &case.path("kvm"))?;
    vm.console().expect("# ", Patience::Boot)?;
    let mut sh = Shell::take_over(vm.console())?;
    sh.check("ifconfig eth0 10.0.2.15 up && route add default gw 10.0.2.2")?;
    sh.check(
        "dd if=/dev/urandom of=/dev/vda bs=64k count=8 2>/dev/null; sync; sha256sum /dev/vda > /tmp/disk",
    )?;
    sh.check(AT_WORK)?;
    let mut seen = (0, 0);
    check(&mut sh, port, &mut seen)?;
    for (number, engine) in [Engine::Bt, Engine::Kvm, Engine::Bt].into_iter().enumerate() {
        let name = format!("s{number}");
        vm.control().snapshot(&name, None)?;
        // It has not been the last to touch the disk if the first one goes on.
        drop(vm);
        let options = [
            "--snapshots".into(),
            folder.clone().into(),
            "--disk".into(),
            case.path(&format!("{name}.img")).into(),
        ];
        vm = Vm::restore(&Program::Worker(engine), &folder.join(&name), &options, &case.path(&name))?;
        let mut sh = Shell::resumed(vm.console());
        check(&mut sh, port, &mut seen)?;
        ensure!(vm.control().status()?.engine == engine.to_string(), "the engine is another");
    }
    vm.control().stop()?;
    vm.wait(Patience::Shutdown)?.expect_code(3)
}

/// What the guest finds: that it has computed and counted on since `seen`, its disk and its network.
fn check(sh: &mut Shell<'_>, port: u16, seen: &mut (u64, u64)) -> Result<()> {
    let cpus = sh.check("grep -c ^processor /proc/cpuinfo")?;
    let more = "while [ $(cat /tmp/rounds) -lt $((R+2)) ] || [ $(cat /tmp/ticks) -lt $((T+3)) ]; do sleep 0.1; done; cat /tmp/rounds /tmp/ticks";
    let counted = sh.check(&format!("R={}; T={}; {more}", seen.0, seen.1))?;
    let counted: Vec<u64> = counted.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    *seen = (counted[0], counted[1]);
    ensure!(sh.run("cat /tmp/wrong")?.status != 0, "with {cpus} CPUs: {}", sh.check("cat /tmp/wrong")?);
    sh.check("echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /tmp/disk")?;
    sh.check("dd if=/dev/urandom of=/dev/vda bs=64k count=2 seek=20 2>/dev/null; sync; sha256sum /dev/vda > /tmp/disk")?;
    sh.check("ping -c 1 -W 20 10.0.2.2")?;
    let echoed = sh.check(&format!("echo there-and-back | nc 10.0.2.2 {port}"))?;
    ensure!(echoed == "there-and-back", "the network gives back {echoed:?}");
    let log = sh.run("dmesg | grep -E 'BUG:|Oops|Kernel panic'")?;
    ensure!(log.status != 0, "the guest's kernel complains: {}", log.text);
    Ok(())
}

/// A server on the host that gives back what it gets. It ends with the test program.
fn echo() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut bytes = [0; 64];
            if let Ok(len) = stream.read(&mut bytes) {
                let _ = stream.write_all(&bytes[..len]);
            }
        }
    });
    Ok(port)
}
