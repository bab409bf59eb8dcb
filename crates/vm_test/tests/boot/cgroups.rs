//! The daemon in a guest, whose kernel has control groups of version 2: the host's may not.

use std::path::PathBuf;

use anyhow::{Context, Result};
use vm_test::{Case, Guest, Patience, Suite};

pub(crate) fn add(suite: &mut Suite) {
    suite.bt_matrix("daemon::limits_by_control_groups", &[2], limits);
}

/// Its test is `guests/cgroups/test`. A machine runs in the machine, translated twice.
fn limits(case: &Case) -> Result<()> {
    let initramfs = std::env::var_os("ARNIA_DAEMON_GUEST").map(PathBuf::from);
    let initramfs = initramfs.context("ARNIA_DAEMON_GUEST is not set; run it by `cargo xtask test`")?;
    let guest =
        Guest::busybox(&case.artifacts).initrd(&initramfs).test("cgroups").memory_mib(2560).cpus(case.cpus);
    let mut vm = guest.start(&case.program, &case.folder)?;
    vm.console().expect("ARNIA-TEST cgroups ok", Patience::Boot)?;
    vm.wait(Patience::Shutdown)?.expect_code(0)
}
