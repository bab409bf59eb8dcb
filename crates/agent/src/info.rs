//! What the guest is.

use std::time::{SystemTime, UNIX_EPOCH};

use api::agent::{Info, VERSION};

use crate::Root;
use crate::personality::INSTANCE_ID;

pub(crate) fn collect(root: &Root) -> Info {
    let line = |path: &str| root.text(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Info {
        version: VERSION,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        system: system_name(&root.text("/etc/os-release").unwrap_or_default()),
        kernel: line("/proc/sys/kernel/osrelease"),
        hostname: line("/proc/sys/kernel/hostname"),
        machine_id: Some(line("/etc/machine-id")).filter(|id| !id.is_empty()),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        uptime_ms: uptime_ms(&line("/proc/uptime")).unwrap_or_default(),
        clock_ns: u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX),
        instance_id: Some(line(INSTANCE_ID)).filter(|id| !id.is_empty()),
    }
}

fn system_name(os_release: &str) -> String {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches(['"', '\'']).to_owned()
}

/// `/proc/uptime` has seconds with two decimals.
fn uptime_ms(text: &str) -> Option<u64> {
    let (seconds, hundredths) = text.split_whitespace().next()?.split_once('.')?;
    Some(seconds.parse::<u64>().ok()?.checked_mul(1000)? + hundredths.parse::<u64>().ok()? * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read() {
        assert_eq!(system_name("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
        assert_eq!(system_name(""), "Linux");
        assert_eq!(uptime_ms("12.34 5.00"), Some(12_340));
        assert_eq!(uptime_ms(""), None);
    }

    #[test]
    fn this_host_has_all_of_it() {
        let info = collect(&Root::live());
        assert!(!info.kernel.is_empty() && info.boot_id.len() == 36 && info.uptime_ms > 0, "{info:?}");
    }
}
