//! Debian's programs compute in a guest what they compute on the host, and their own tests pass there.

use anyhow::{Result, ensure};
use vm_test::software::{Software, differences};
use vm_test::{Case, Suite};

/// A minute of everything; the rest by `cargo xtask test --full`.
const SHORT: &[&str] = &[
    "compression-short",
    "openssl-short",
    "python-short",
    "gcc-short",
    "perl",
    "luajit",
    "node-short",
    "stress-short",
];

/// Everything, in sessions that fail apart.
const COMPUTE: &[&str] = &["compression", "openssl", "openssl-speed", "perl"];
const COMPILERS: &[&str] = &["gcc", "luajit", "node"];
const PYTHON: &[&str] = &["python-arithmetic", "python-threads", "python-library"];
const STRESS: &[&str] = &["stress-switch", "stress-cpu", "stress-memory", "stress-vm"];

pub(crate) fn add(suite: &mut Suite) {
    suite.matrix("software::short", &[2], |case| same_outcomes(case, SHORT));
    suite.full_matrix("software::compute", &[1, 2, 4], |case| same_outcomes(case, COMPUTE));
    suite.full_matrix("software::compilers", &[1, 2, 4], |case| same_outcomes(case, COMPILERS));
    suite.full_matrix("software::python", &[1, 2, 4], |case| same_outcomes(case, PYTHON));
    suite.full_matrix("software::stress", &[1, 2, 4], |case| same_outcomes(case, STRESS));
}

fn same_outcomes(case: &Case, names: &[&str]) -> Result<()> {
    let software = Software::pack(&case.artifacts, &case.folder)?;
    let native = software.native(names)?;
    let guest = software.guest(&case.program, case.cpus, names, &case.folder, &mut |_| ())?;
    let differences = differences(&native, &guest);
    ensure!(differences.is_empty(), "the guest does otherwise than the host: {}", differences.join("; "));
    Ok(())
}
