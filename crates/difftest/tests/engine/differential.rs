//! The engine against the host processor. `DIFFTEST_FULL=1` tests more; `DIFFTEST_SEED`,
//! `DIFFTEST_CASES` and `DIFFTEST_FILTER` choose what.

use difftest::{Report, Suite, Way};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn suite(cases: usize, full: usize) -> Suite {
    let full_wanted = std::env::var_os("DIFFTEST_FULL").is_some();
    Suite {
        seed: number("DIFFTEST_SEED").unwrap_or(1),
        cases: number("DIFFTEST_CASES").map_or(if full_wanted { full } else { cases }, |n| n as usize),
        way: Way::Handlers,
        aligned: false,
        filter: std::env::var("DIFFTEST_FILTER").ok(),
    }
}

fn check(report: &Report) {
    assert!(report.is_clean(), "{report}");
    println!("{report}");
    assert!(std::env::var_os("DIFFTEST_FILTER").is_some() || report.compared > 0, "nothing was compared");
}

/// Each instruction form, by the engine's own handlers.
#[test]
fn single_instructions_agree() {
    check(&suite(24, 1000).single_instructions());
}

/// Each instruction form, natively wherever that is possible.
#[test]
fn single_instructions_agree_natively() {
    check(&Suite { way: Way::Natively, ..suite(24, 1000) }.single_instructions());
}

/// Each instruction form in compatibility mode, which has opcodes of its own.
#[test]
fn single_instructions_of_32_bits_agree() {
    check(&suite(16, 500).single_instructions_of_32_bits());
}

/// The same, translated.
#[test]
fn single_instructions_of_32_bits_agree_translated() {
    check(&Suite { way: Way::Translated, ..suite(16, 500) }.single_instructions_of_32_bits());
}

/// Each instruction form with the alignment check on, by handlers, natively and as translated code is.
#[test]
fn alignment_is_checked() {
    let handlers = Suite { aligned: true, ..suite(8, 150) };
    check(&handlers.single_instructions());
    check(&Suite { way: Way::Natively, ..handlers.clone() }.single_instructions());
    check(&Suite { way: Way::Translated, ..handlers.clone() }.single_instructions());
    check(&handlers.single_instructions_of_32_bits());
}

/// POPF switches the alignment check on and off, between translated code and such that is not.
#[test]
fn alignment_check_is_switched() {
    check(&suite(500, 20_000).alignment());
    check(&Suite { way: Way::Translated, ..suite(1000, 50_000) }.alignment());
}

/// Near branches: where they lead and what they do to the stack.
#[test]
fn branches_agree() {
    check(&suite(200, 10_000).branches());
}

/// FXSAVE, XSAVE and their kin.
#[test]
fn state_images_agree() {
    check(&suite(1000, 50_000).images());
}

/// Sequences: state carries over from one instruction to the next.
#[test]
fn sequences_agree() {
    check(&suite(1000, 50_000).sequences());
}

/// Sequences, translated, with flags that are exact at faults too.
#[test]
fn translated_sequences_agree() {
    check(&Suite { way: Way::Translated, ..suite(500, 50_000) }.sequences());
}

/// Arbitrary bytes in all modes.
#[test]
fn arbitrary_code_does_no_harm() {
    for_arbitrary_bytes(&suite(3000, 200_000), 65, difftest::fuzzing::execute_bytes);
}

/// Arbitrary bytes and sequences, in all modes: translated and interpreted they do the same.
#[test]
fn arbitrary_code_does_the_same_translated() {
    for_arbitrary_bytes(&suite(1500, 100_000), 100, difftest::fuzzing::compare_bytes);
}

fn for_arbitrary_bytes(runs: &Suite, len: usize, f: fn(&[u8])) {
    let mut seed = runs.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..runs.cases {
        let bytes: Vec<u8> = (0..len)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                (seed >> 32) as u8
            })
            .collect();
        f(&bytes);
    }
}
