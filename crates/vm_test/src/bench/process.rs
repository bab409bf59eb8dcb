//! What a process costs its host: processor time and memory (proc(5)).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Processor time that a process has used, in user and kernel mode, by all its threads.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
    let ticks = parse_ticks(&stat).context("/proc/<pid>/stat has an unknown form")?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// Memory of a process beyond the RAM of its guest, in bytes: the proportional share of every
/// mapping, but for the shared file in memory that is as large as the guest's RAM.
pub(crate) fn memory_beyond_guest(pid: u32, guest_ram: u64) -> Result<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).context("the process is gone")?;
    Ok(beyond_guest(&parse_smaps(&smaps), guest_ram))
}

/// All memory of a process in bytes: the proportional share of every mapping.
pub(crate) fn memory(pid: u32) -> Result<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).context("the process is gone")?;
    Ok(parse_smaps(&smaps).iter().map(|mapping| mapping.pss).sum())
}

/// How much of the memory of a guest that has booted exists on the host, in bytes.
pub(crate) fn guest_memory(pid: u32, guest_ram: u64) -> Result<u64> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).context("the process is gone")? {
        let path = entry?.path();
        let is_memfd = fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:"));
        if let (true, Ok(about)) = (is_memfd, fs::metadata(&path))
            && about.len() == guest_ram
        {
            return Ok(about.blocks() * 512);
        }
    }
    bail!("the process has no file in memory of the size of its guest's")
}

/// One mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Mapping {
    /// The mapped file's inode and the end of the part that is mapped.
    file: Option<(u64, u64)>,
    /// Whether the file exists only in memory.
    in_memory: bool,
    pss: u64,
}

/// User and system ticks, fields 14 and 15. The name, field 2, may hold anything, spaces too.
fn parse_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn parse_smaps(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        if let Some(mapping) = parse_mapping(line) {
            mappings.push(mapping);
        } else if let (Some(kilobytes), Some(mapping)) = (line.strip_prefix("Pss:"), mappings.last_mut()) {
            let kilobytes = kilobytes.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            mapping.pss = kilobytes * 1024_u64;
        }
    }
    mappings
}

/// Reads a head line: `from-to rwxp offset device inode path`.
fn parse_mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.split_whitespace();
    let (from, to) = fields.next()?.split_once('-')?;
    let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
    let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
    let inode: u64 = fields.nth(1)?.parse().ok()?;
    let path = fields.next().unwrap_or_default();
    let file = (inode != 0).then_some((inode, offset + (to - from)));
    Some(Mapping { file, in_memory: path.starts_with("/memfd:") || path.starts_with("/dev/shm/"), pss: 0 })
}

fn beyond_guest(mappings: &[Mapping], guest_ram: u64) -> u64 {
    let mut extents: BTreeMap<u64, u64> = BTreeMap::new();
    for (inode, end) in mappings.iter().filter(|mapping| mapping.in_memory).filter_map(|mapping| mapping.file)
    {
        let extent = extents.entry(inode).or_default();
        *extent = end.max(*extent);
    }
    // The memory file of exactly the guest's size; others hold something else.
    let is_ram = |mapping: &Mapping| {
        mapping.in_memory && mapping.file.is_some_and(|(inode, _)| extents.get(&inode) == Some(&guest_ram))
    };
    mappings.iter().filter(|mapping| !is_ram(mapping)).map(|mapping| mapping.pss).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_come_after_any_name() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 100 23 0 0 20 0";
        assert_eq!(parse_ticks(stat), Some(123));
        assert_eq!(parse_ticks("nonsense"), None);
        assert!(cpu_time(std::process::id()).is_ok());
    }

    #[test]
    fn the_guests_own_memory_does_not_count() {
        let smaps = "\
7f0000000000-7f0000100000 rw-s 00000000 00:01 77 /memfd:ram (deleted)
Pss:                1024 kB
Pss_Dirty:             9 kB
7f1000000000-7f1000100000 rw-s 00100000 00:01 77 /memfd:ram (deleted)
Pss:                 512 kB
7f2000000000-7f2000001000 rw-s 00000000 00:01 78 /memfd:other (deleted)
Pss:                   4 kB
7f3000000000-7f3000001000 rw-p 00000000 00:00 0 [heap]
Pss:                   8 kB
7f4000000000-7f4000001000 r-xp 00000000 08:01 5 /usr/bin/program
Pss:                   2 kB
";
        let mappings = parse_smaps(smaps);
        assert_eq!(mappings.len(), 5);
        assert_eq!(beyond_guest(&mappings, 2 << 20), 14 * 1024);
        // With RAM of another size nothing is left out.
        assert_eq!(beyond_guest(&mappings, 4 << 20), (1024 + 512 + 14) * 1024);
    }
}
