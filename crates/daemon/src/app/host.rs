//! The host.

use super::App;
use crate::{Error, Mode};
use api::v1::host::Host;
use std::fs;

/// Processor time in milliseconds and resident memory in bytes of a process; zeros when it has ended.
pub(crate) fn process_usage(pid: u32) -> (u64, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold blanks (proc_pid_stat(5)); utime and stime are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    let cpu_time_ms = (field(14) + field(15)) * 1000 / ticks_per_second.max(1);
    (cpu_time_ms, field(24) * rustix::param::page_size() as u64)
}

fn meminfo(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.strip_suffix("kB"));
    line.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':')).map_or_else(String::new, |(_, name)| name.trim().to_owned())
}

impl App {
    /// What the host is and has.
    pub(crate) fn host(&self) -> Result<Host, Error> {
        let vms = self.vm_processes()?;
        let running = || vms.iter().filter(|(_, state, _)| state.is_active());
        let uname = rustix::system::uname();
        Ok(Host {
            name: uname.nodename().to_string_lossy().into_owned(),
            version: env!("CARGO_PKG_VERSION").into(),
            mode: match self.config.mode {
                Mode::User => "user".into(),
                Mode::System => "system".into(),
            },
            pid: std::process::id(),
            started: self.started,
            kernel: uname.release().to_string_lossy().into_owned(),
            cpu_model: cpu_model(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from) as u32,
            memory_bytes: meminfo("MemTotal"),
            memory_available_bytes: meminfo("MemAvailable"),
            vms: vms.len() as u64,
            vms_running: running().count() as u64,
            cpus_running: running().map(|(vm, ..)| u64::from(vm.config.cpus)).sum(),
            memory_running_bytes: running().map(|(vm, ..)| vm.config.memory.0).sum(),
            data: self.config.paths.data.to_string_lossy().into_owned(),
        })
    }
}
