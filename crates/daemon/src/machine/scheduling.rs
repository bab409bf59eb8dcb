//! On which processors a process runs, and its weight beside others, where no control group says so.

use api::v1::limits::CPU_WEIGHT_DEFAULT;
use rustix::io::Errno;
use rustix::process::{Pid, setpriority_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::collections::BTreeSet;
use std::{fs, io};

/// Each step of niceness is a quarter more or less processor time (sched(7)).
const STEP: f64 = 1.25;

/// The niceness that comes nearest to a weight.
fn niceness(weight: u32) -> i32 {
    let steps = (f64::from(CPU_WEIGHT_DEFAULT) / f64::from(weight.max(1))).ln() / STEP.ln();
    (steps.round() as i32).clamp(-20, 19)
}

/// Gives all threads of a process this weight.
pub(crate) fn set_weight(pid: u32, weight: u32) -> io::Result<()> {
    let nice = niceness(weight);
    each_thread(pid, |thread| setpriority_process(Some(thread), nice))
}

/// Lets all threads of a process run on these processors, or, if there are none, on any.
pub(crate) fn set_cpus(pid: u32, cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    match cpus {
        [] => (0..CpuSet::MAX_CPU).for_each(|cpu| set.set(cpu)),
        cpus => cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| set.set(*cpu)),
    }
    each_thread(pid, |thread| sched_setaffinity(Some(thread), &set))
}

/// New threads have what the one has that made them: so it is done until there are no new ones.
fn each_thread(pid: u32, mut act: impl FnMut(Pid) -> rustix::io::Result<()>) -> io::Result<()> {
    let mut done = BTreeSet::new();
    loop {
        let before = done.len();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let Some(thread) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            if !done.insert(thread) {
                continue;
            }
            match Pid::from_raw(thread).map(&mut act) {
                // It has ended meanwhile.
                Some(Err(Errno::SRCH)) | None => {}
                Some(result) => result?,
            }
        }
        if done.len() == before {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_become_niceness() {
        let cases = [(100, 0), (125, -1), (80, 1), (10, 10), (1, 19), (10_000, -20), (1000, -10)];
        for (weight, nice) in cases {
            assert_eq!(niceness(weight), nice, "{weight}");
        }
    }

    #[test]
    fn a_process_is_pinned_and_let_go() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let allowed = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
            line.trim().to_owned()
        };
        let all = allowed(child.id());
        let first = all.split([',', '-']).next().unwrap().to_owned();
        set_cpus(child.id(), &[first.parse().unwrap()]).unwrap();
        assert_eq!(allowed(child.id()), first);
        set_cpus(child.id(), &[]).unwrap();
        assert_eq!(allowed(child.id()), all);
        set_weight(child.id(), 50).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        // Field 19 is the niceness (proc_pid_stat(5)).
        let nice = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().to_owned();
        assert_eq!(nice, "3");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
