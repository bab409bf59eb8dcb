//! The software engine in its forced modes: what is rare otherwise happens all the time, and the guest must
//! not notice.

use anyhow::Result;
use vm_test::{Case, Patience, Suite};

use crate::busybox::{SELF_TESTS, self_tests_with};

type Options = &'static [(&'static str, &'static str)];

/// Translating at once, everything forgotten at each switch of address spaces.
const FLUSH: Options = &[("--jit-hot", "0"), ("--jit-stress", "flush")];
/// And only one page in the TLB. A boot takes a minute.
const STRESS: Options = &[("--jit-hot", "0"), ("--jit-stress", "tlb,flush")];
const AT_ONCE: Options = &[("--jit-hot", "0")];
// Cold code is interpreted, or the cache would be emptied some hundred times a second.
const SMALLEST_CACHE: Options = &[("--jit-cache", "256K")];
const INTERPRETED: Options = &[("--jit", "off")];
const LOCKSTEP: Options = &[("--jit", "lockstep")];
/// In lock-step all is done twice, and compared: what writes and reads much memory would take a quarter of an hour.
const LOCKSTEP_TESTS: &[&str] = &["smp", "time", "processes", "rng"];

pub(crate) fn add(suite: &mut Suite) {
    suite.bt_matrix("forced::flush", &[2], |case| forced(case, FLUSH));
    suite.full_bt_matrix("forced::flush", &[1, 4], |case| forced(case, FLUSH));
    suite.full_bt_matrix("forced::stress", &[1, 2, 4], |case| forced(case, STRESS));
    suite.full_bt_matrix("forced::translated_at_once", &[1, 2, 4], |case| forced(case, AT_ONCE));
    suite.full_bt_matrix("forced::smallest_cache", &[1, 2, 4], |case| forced(case, SMALLEST_CACHE));
    suite.full_bt_matrix("forced::interpreted", &[1, 2], |case| forced(case, INTERPRETED));
    suite.full_bt_matrix("forced::lockstep", &[1, 2], lockstep);
}

fn forced(case: &Case, options: Options) -> Result<()> {
    self_tests_with(case, options, SELF_TESTS, Patience::Boot)
}

fn lockstep(case: &Case) -> Result<()> {
    self_tests_with(case, LOCKSTEP, LOCKSTEP_TESTS, Patience::LockStep)
}
