//! Warnings of a guest's kernel, compared between programs.
//!
//! The stock kernel finds something to complain about on every machine. What it says under QEMU is
//! the measure: anything more is our fault.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail};

use crate::{Artifacts, Guest, Patience, Program, Shell, debian, sha256_hex};

/// Lists the kernel's messages from the level of warnings up, without time stamps.
pub const LIST_WARNINGS: &str = "dmesg --notime --level=emerg,alert,crit,err,warn";

/// Fails if the guest behind `shell` logged a warning that the same `guest` does not log under QEMU.
///
/// # Errors
/// With the warnings that are ours alone, or if QEMU cannot be run.
pub fn compare_with_qemu(shell: &mut Shell<'_>, guest: &Guest, artifacts: &Artifacts) -> Result<()> {
    let ours = shell.check(LIST_WARNINGS)?;
    let theirs =
        qemu_warnings(guest, artifacts).context("cannot get the same guest's warnings under QEMU")?;
    let extra = extra_warnings(&ours, &theirs);
    if !extra.is_empty() {
        bail!("the guest's kernel warns of what it does not under QEMU:\n  {}", extra.join("\n  "));
    }
    Ok(())
}

/// The warnings under QEMU, from an earlier run if there was one with the same guest.
fn qemu_warnings(guest: &Guest, artifacts: &Artifacts) -> Result<String> {
    let cache = artifacts.cache("qemu-kernel-log")?;
    let key = &sha256_hex(guest.fingerprint().as_bytes())[..16];
    let known = cache.join(format!("{key}.txt"));
    if let Ok(warnings) = fs::read_to_string(&known) {
        return Ok(warnings);
    }
    let folder = cache.join(format!("{key}-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let disk = folder.join("disk.img");
    crate::copy_sparse(&artifacts.debian.disk, &disk)?;
    let mut vm = guest.beside(&disk).start(&Program::Qemu, &folder)?;
    let mut shell = debian::log_in(&mut vm, artifacts)?;
    debian::settle(&mut shell)?;
    let warnings = shell.check(LIST_WARNINGS)?;
    shell.send("poweroff")?;
    vm.wait(Patience::Shutdown)?.expect_code(0)?;
    fs::write(&known, &warnings)?;
    fs::remove_dir_all(&folder)?;
    Ok(warnings)
}

/// Warnings that say only that the host let the guest wait, which it may do at any time.
const HOST_WAS_BUSY: &[&str] = &["hrtimer: interrupt took "];

/// The lines of `ours` whose like is not in `theirs`.
pub fn extra_warnings<'a>(ours: &'a str, theirs: &str) -> Vec<&'a str> {
    let known: BTreeSet<String> = theirs.lines().map(without_particulars).collect();
    let counts = |line: &&str| {
        let busy = HOST_WAS_BUSY.iter().any(|message| line.contains(message));
        !line.trim().is_empty() && !busy && !known.contains(&without_particulars(line))
    };
    ours.lines().filter(counts).collect()
}

/// A message without what differs from machine to machine: numbers, addresses, places on buses.
fn without_particulars(line: &str) -> String {
    let mut like = String::new();
    for word in line.split_whitespace() {
        let bare = word.trim_matches(|character: char| !character.is_ascii_alphanumeric());
        let hexadecimal = bare
            .trim_start_matches("0x")
            .chars()
            .all(|character| character.is_ascii_hexdigit() || matches!(character, ':' | '.' | '-' | 'x'));
        // "add" is a word, "0xadd", "a:dd" and "12" are numbers.
        let number = hexadecimal && bare.chars().any(|character| character.is_ascii_digit());
        if !like.is_empty() {
            like.push(' ');
        }
        if number {
            like.push('#');
        } else {
            like.extend(
                word.chars().map(|character| if character.is_ascii_digit() { '#' } else { character }),
            );
        }
    }
    like
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn particulars_do_not_make_a_difference() {
        let cases = [
            ("pci 0000:00:1f.2: BAR 4: no space", "pci 0000:00:03.0: BAR 0: no space", true),
            ("tsc: Marking TSC unstable due to x", "tsc: Marking TSC unstable due to x", true),
            ("mem 0xfe00-0xfe0f busy", "mem 0xc000-0xffff busy", true),
            ("ata1: failed", "ata2: failed", true),
            ("sda: failed", "vda: failed", false),
            ("clocksource: bad", "clocksource: good", false),
        ];
        for (ours, theirs, same) in cases {
            assert_eq!(extra_warnings(ours, theirs).is_empty(), same, "{ours} / {theirs}");
        }
    }

    #[test]
    fn only_what_is_more_counts() {
        assert_eq!(extra_warnings("a\nb\n\n", "c\na"), ["b"]);
        assert!(extra_warnings("", "a").is_empty());
        assert!(extra_warnings("hrtimer: interrupt took 12042800 ns", "a").is_empty());
    }
}
