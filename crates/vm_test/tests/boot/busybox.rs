//! The busybox guest: each subsystem by a test that runs inside, and what is done to the machine
//! from outside.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use api::worker::exit;
use vm_test::{
    After, Case, Guest, HttpServer, Patience, Program, RunState, Shell, Suite, Vm, free_port, sha256_hex,
};

const MEMORY_MIB: u32 = 512;

pub(crate) fn add(suite: &mut Suite) {
    suite.matrix("busybox::self_tests", &[1, 2, 4], self_tests);
    suite.test("busybox::disks", disks);
    suite.test("busybox::network", network);
    suite.test("busybox::forwarded_port", forwarded_port);
    suite.matrix("busybox::paused_time_does_not_pass", &[2], paused_time_does_not_pass);
    suite.test("busybox::power_button", power_button);
    suite.test("busybox::termination_signal", termination_signal);
    suite.test("busybox::stop", stop);
    suite.matrix("busybox::reboot", &[2], reboot);
    suite.test("busybox::reset_ends_a_machine_that_shall_not_reboot", reset_ends);
}

fn guest(case: &Case) -> Guest {
    Guest::busybox(&case.artifacts).cpus(case.cpus).memory_mib(MEMORY_MIB)
}

/// Waits for the end of the guest's own tests, each of which must have passed.
fn expect_passed(vm: &mut Vm, names: &[&str], patience: Patience) -> Result<()> {
    let log = vm.console().expect("ARNIA-DONE", patience)?;
    for name in names {
        if !log.contains(&format!("ARNIA-TEST {name} ok")) {
            let from = log.find("ARNIA-INIT").unwrap_or(0);
            bail!("test {name} failed in the guest:\n{}", &log[from..]);
        }
    }
    Ok(())
}

/// Processors, memory, clock, processes and random numbers; then the guest turns itself off.
fn self_tests(case: &Case) -> Result<()> {
    self_tests_with(case, &[], SELF_TESTS, Patience::Boot)
}

/// What a guest finds out about itself.
pub(crate) const SELF_TESTS: &[&str] = &["smp", "memory", "time", "processes", "rng"];

/// Some of them, with more options for the worker, and as long as that takes.
pub(crate) fn self_tests_with(
    case: &Case,
    options: &[(&str, &str)],
    tests: &[&str],
    patience: Patience,
) -> Result<()> {
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let guest = options.iter().fold(guest(case), |guest, (name, value)| guest.worker_option(name, *value));
    let guest = guest.test(&tests.join(",")).variable("cpus", case.cpus);
    let guest = guest.variable("memory", MEMORY_MIB).variable("epoch", epoch).after(After::Poweroff);
    let mut vm = guest.start(&case.program, &case.folder)?;
    expect_passed(&mut vm, tests, patience)?;
    vm.wait(Patience::Shutdown)?.expect_code(0)
}

/// Data goes through disks in both directions, flushed data is in the file, a read-only disk stays
/// as it was.
fn disks(case: &Case) -> Result<()> {
    const SIZE: u64 = 8 << 20;
    let [data, scratch, sealed] =
        ["data.img", "scratch.img", "sealed.img"].map(|name| case.empty_disk(name, SIZE));
    let (data, scratch, sealed) = (data?, scratch?, sealed?);
    let first = HttpServer::bytes(1 << 20);
    fs::OpenOptions::new().write(true).open(&data)?.write_all(&first)?;

    let guest = guest(case).disk(&data).disk(&scratch).read_only_disk(&sealed);
    let guest = guest.test("disk").variable("disk_sha", sha256_hex(&first)).after(After::Poweroff);
    let mut vm = guest.start(&case.program, &case.folder)?;
    expect_passed(&mut vm, &["disk"], Patience::Boot)?;
    vm.wait(Patience::Shutdown)?.expect_code(0)?;

    let mut file = fs::File::open(&data)?;
    let mut written = vec![0; 5 << 20];
    file.read_exact(&mut written)?;
    ensure!(written[..1 << 20] == first, "what the guest did not touch has changed");
    let pattern: Vec<u8> = b"arnia\n".iter().copied().cycle().take(4 << 20).collect();
    ensure!(written[1 << 20..] == pattern, "what the guest wrote is not in the file");
    let mut odd = [0; 3];
    file.seek(SeekFrom::Start(6_000_001))?;
    file.read_exact(&mut odd)?;
    ensure!(&odd == b"odd", "the small write is not in the file");
    ensure!(file.metadata()?.len() == SIZE, "the disk's file has another size now");
    ensure!(fs::read(&sealed)?.iter().all(|&byte| byte == 0), "the read-only disk has changed");
    Ok(())
}

/// DHCP, ping, downloads and uploads over the NAT.
fn network(case: &Case) -> Result<()> {
    let server = HttpServer::start()?;
    let sum = sha256_hex(&HttpServer::bytes(3_000_000));
    let guest = guest(case).network().test("net").variable("port", server.port());
    let guest = guest.variable("download_sha", sum).after(After::Poweroff);
    let mut vm = guest.start(&case.program, &case.folder)?;
    expect_passed(&mut vm, &["net"], Patience::Boot)?;
    vm.wait(Patience::Shutdown)?.expect_code(0)
}

/// A connection from the host reaches a server in the guest.
fn forwarded_port(case: &Case) -> Result<()> {
    let port = free_port()?;
    let server = HttpServer::start()?;
    let sum = sha256_hex(&HttpServer::bytes(3_000_000));
    let guest = guest(case).forward(port, 80).variable("port", server.port()).variable("download_sha", sum);
    let mut vm = guest.test("net,serve").after(After::Shell).start(&case.program, &case.folder)?;
    expect_passed(&mut vm, &["net", "serve"], Patience::Boot)?;

    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    for _ in 0..3 {
        let mut stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("the port does not answer")?;
        stream.set_read_timeout(Some(Patience::Command.limit()))?;
        stream.write_all(b"GET /numbers HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        ensure!(answer.starts_with("HTTP/1.") && body == expected, "the guest's answer came through wrong");
    }
    vm.console().send("poweroff -f\n")?;
    vm.wait(Patience::Shutdown)?.expect_code(0)
}

/// Pausing stops the guest and its time; resuming goes on as if nothing had been.
fn paused_time_does_not_pass(case: &Case) -> Result<()> {
    const PAUSE: Duration = Duration::from_secs(8);
    let mut vm = guest(case).test("ticks").start(&case.program, &case.folder)?;
    for _ in 0..3 {
        next_tick(&mut vm)?;
    }
    ensure!(vm.control().state()? == RunState::Running, "it runs, and its status says otherwise");
    vm.control().pause()?;
    ensure!(vm.control().state()? == RunState::Paused, "it is paused, and its status says otherwise");
    // Consume what was under way; the last whole tick is the time at which the guest stopped.
    let mut stopped_at = 0.0;
    while vm.console().unread().contains('\n') {
        stopped_at = next_tick(&mut vm)?;
    }
    let paused = Instant::now();
    while paused.elapsed() < PAUSE {
        std::thread::sleep(Duration::from_millis(100));
        ensure!(!vm.console().unread().contains('\n'), "a paused guest goes on printing");
    }
    if stopped_at == 0.0 {
        // Nothing was under way, so the next tick cannot be compared; the one after the pause can
        // still not be later than the pause was long.
        vm.control().resume()?;
        stopped_at = next_tick(&mut vm)?;
    } else {
        vm.control().resume()?;
    }
    let resumed_at = next_tick(&mut vm)?;
    let passed = resumed_at - stopped_at;
    ensure!(passed >= 0.0 && passed < PAUSE.as_secs_f64(), "{passed} s passed in the guest during the pause");
    ensure!(vm.control().state()? == RunState::Running, "it runs again, and its status says otherwise");
    Ok(())
}

/// The time of the next whole tick, in the guest's seconds.
fn next_tick(vm: &mut Vm) -> Result<f64> {
    vm.console().expect("ARNIA-TICK ", Patience::Boot)?;
    Ok(vm.console().expect("\n", Patience::Command)?.trim().parse()?)
}

/// The control socket's power button is ACPI's, and the guest turns itself off for it.
fn power_button(case: &Case) -> Result<()> {
    turned_off_by(case, |vm| vm.control().power())
}

/// So is the signal by which service managers end programs.
fn termination_signal(case: &Case) -> Result<()> {
    // QEMU ends at once instead.
    if case.program == Program::Qemu { Ok(()) } else { turned_off_by(case, Vm::terminate) }
}

fn turned_off_by(case: &Case, press: fn(&Vm) -> Result<()>) -> Result<()> {
    let mut vm = guest(case).after(After::Shell).start(&case.program, &case.folder)?;
    vm.console().expect("ARNIA-SHELL", Patience::Boot)?;
    press(&vm)?;
    vm.console().expect("ARNIA-POWER-BUTTON", Patience::Shutdown)?;
    vm.wait(Patience::Shutdown)?.expect_code(0)
}

/// `stop` ends the machine whatever the guest does, and says that it was not the guest's doing.
fn stop(case: &Case) -> Result<()> {
    let mut vm = guest(case).after(After::Shell).start(&case.program, &case.folder)?;
    vm.console().expect("ARNIA-SHELL", Patience::Boot)?;
    let mut shell = Shell::take_over(vm.console())?;
    ensure!(shell.check("echo $((6 * 7))")? == "42", "the shell cannot count");
    shell.send("while :; do :; done")?;
    vm.control().stop()?;
    let ended = vm.wait(Patience::Host)?;
    // QEMU does not tell the difference.
    let expected = if case.program == Program::Qemu { 0 } else { i32::from(exit::STOPPED) };
    ended.expect_code(expected)?;
    Ok(())
}

/// A reset, asked for by the guest or pressed outside, starts the machine from the beginning.
fn reboot(case: &Case) -> Result<()> {
    let mut vm = guest(case).reboots().after(After::Shell).start(&case.program, &case.folder)?;
    vm.console().expect("ARNIA-SHELL", Patience::Boot)?;
    vm.console().send("echo left > /tmp/behind; reboot -f\n")?;
    vm.console().expect("ARNIA-INIT", Patience::Boot)?;
    vm.console().expect("ARNIA-SHELL", Patience::Boot)?;
    vm.control().reset()?;
    vm.console().expect("ARNIA-INIT", Patience::Boot)?;
    vm.console().expect("ARNIA-SHELL", Patience::Boot)?;
    let mut shell = Shell::take_over(vm.console())?;
    ensure!(shell.run("cat /tmp/behind")?.status != 0, "a file in memory outlived the reset");
    ensure!(shell.check("nproc")? == case.cpus.to_string(), "not all CPUs came back");
    shell.send("poweroff -f")?;
    vm.wait(Patience::Shutdown)?.expect_code(0)
}

/// Where a machine shall not start again, a reset ends the program, with a status of its own.
fn reset_ends(case: &Case) -> Result<()> {
    let mut vm = guest(case).after(After::Reboot).start(&case.program, &case.folder)?;
    let expected = if case.program == Program::Qemu { 0 } else { i32::from(exit::RESET) };
    vm.wait(Patience::Boot)?.expect_code(expected)
}
