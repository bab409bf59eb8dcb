//! The workload program computes the same in a guest as on the host: arithmetic, floating point, the
//! C library, system calls, processes and scripts.

use std::time::Duration;

use anyhow::{Result, ensure};
use vm_test::workloads::{Selection, Workloads, differences};
use vm_test::{Case, Suite};

pub(crate) fn add(suite: &mut Suite) {
    suite.matrix("workloads::same_results", &[1, 2], same_results);
}

fn same_results(case: &Case) -> Result<()> {
    // No time to repeat: each row is done twice, which is what checksums need.
    let selection = Selection { rows: String::new(), budget: Duration::ZERO, pin: false };
    let workloads = Workloads::from_env()?;
    let native = workloads.native(&case.artifacts, &selection, &case.folder, &mut |_| ())?;
    ensure!(native.rows.len() > 20, "the host did only {} rows", native.rows.len());
    let guest =
        workloads.guest(&case.artifacts, &case.program, case.cpus, &selection, &case.folder, &mut |_| ())?;
    ensure!(guest.failures.is_empty(), "failed in the guest: {}", guest.failures.join("; "));
    let differences = differences(&native.rows, &guest.rows);
    ensure!(differences.is_empty(), "the guest computes otherwise than the host: {}", differences.join(", "));
    Ok(())
}
