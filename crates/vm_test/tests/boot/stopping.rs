//! Ending a guest that has crashed and listens to nothing: by signals to the worker, by `arnia stop`.

use anyhow::{Result, ensure};
use api::worker::exit;
use vm_test::{Arnia, Case, Guest, Patience, Suite};

/// The kernel's first program does not exist, and it stands still in its panic.
const PANIC: &str = "panic=0 rdinit=/none init=/none root=none";
const PANICKED: &str = "Kernel panic";

pub(crate) fn add(suite: &mut Suite) {
    suite.worker_test("stopping::a_panicked_guest_is_ended_after_its_time", after_its_time);
    suite.worker_test("stopping::a_second_signal_ends_a_panicked_guest", second_signal);
    suite.engineless_test("daemon::a_panicked_guest_can_be_stopped", by_the_daemon);
}

fn panicked(case: &Case, seconds: &str) -> Result<vm_test::Vm> {
    let guest = Guest::busybox(&case.artifacts).append(PANIC).worker_option("--stop-timeout", seconds);
    let mut vm = guest.start(&case.program, &case.folder)?;
    vm.console().expect(PANICKED, Patience::Boot)?;
    Ok(vm)
}

fn after_its_time(case: &Case) -> Result<()> {
    let mut vm = panicked(case, "1")?;
    vm.terminate()?;
    let ended = vm.wait(Patience::Shutdown)?;
    ended.expect_code(exit::STOPPED.into())?;
    ensure!(ended.stderr.contains("has not powered off within 1 s of a signal"), "{}", ended.stderr);
    Ok(())
}

fn second_signal(case: &Case) -> Result<()> {
    // A day: it is not that which ends it.
    let mut vm = panicked(case, "86400")?;
    vm.terminate()?;
    // One that comes at once is taken for an echo of the first, so that further ones are sent until it is over.
    let ended = loop {
        match vm.try_wait()? {
            Some(ended) => break ended,
            None => vm.terminate()?,
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    };
    ended.expect_code(exit::STOPPED.into())?;
    ensure!(ended.stderr.contains("ended by repeated signals"), "{}", ended.stderr);
    Ok(())
}

fn by_the_daemon(case: &Case) -> Result<()> {
    let arnia = Arnia::new()?;
    let (kernel, initrd) = (&case.artifacts.kernel.image, &case.artifacts.busybox.initramfs);
    let (kernel, initrd) = (kernel.to_string_lossy(), initrd.to_string_lossy());
    let append = format!("console=ttyS0 {PANIC}");
    arnia.run(&[
        "run", "--kernel", &kernel, "--initrd", &initrd, "--append", &append, "--memory", "256M", "demo",
    ])?;
    arnia.expect("demo", PANICKED, Patience::Boot)?;
    let stopped = arnia.try_run(&["stop", "--timeout", "1", "demo"])?;
    ensure!(!stopped.status.success(), "{stopped:?}");
    let said = String::from_utf8_lossy(&stopped.stderr);
    ensure!(said.contains("has not powered off within 1 second") && said.contains("--force"), "{said}");
    ensure!(arnia.json(&["info", "demo"])?["state"] == "running", "it runs on");
    arnia.run(&["stop", "--force", "demo"])?;
    let vm = arnia.json(&["info", "demo"])?;
    ensure!(vm["state"] == "stopped", "{vm}");
    Ok(())
}
