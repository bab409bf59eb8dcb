//! What a machine may use of its host at most. All of it can be changed while the machine runs.

use crate::ByteSize;
use crate::worker::config::RateLimits;
use serde::{Deserialize, Serialize};

/// The weight of a machine that has none.
pub const CPU_WEIGHT_DEFAULT: u32 = 100;
/// The largest weight.
pub const CPU_WEIGHT_MAX: u32 = 10_000;
/// The largest limit of processor time: more than any host has.
pub const CPU_LIMIT_MAX: u32 = 100_000;

/// What a machine may use of its host at most. What is absent is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Processor time, of vCPUs and devices together, in hundredths of one processor: 150 is one and a half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 100000))]
    pub cpu: Option<u32>,
    /// Its share when processors are short, beside others with theirs; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 10000))]
    pub cpu_weight: Option<u32>,
    /// The processors of the host that it may run on, like `0-3,6`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_set: Option<String>,
    /// Memory that the guest keeps of what it has; its balloon takes the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// What each of its disks may do in a second.
    #[serde(default, skip_serializing_if = "RateLimits::is_none")]
    pub disk: RateLimits,
    /// What each of its network cards may do in a second, in each direction.
    #[serde(default, skip_serializing_if = "RateLimits::is_none")]
    pub net: RateLimits,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Limits::default()
    }

    /// Why these limits cannot be for a machine with so much memory, if so: a sentence.
    pub fn fault(&self, memory: ByteSize) -> Option<String> {
        if self.cpu.is_some_and(|cpu| !(1..=CPU_LIMIT_MAX).contains(&cpu)) {
            return Some(format!(
                "a limit of processor time is 1 to {CPU_LIMIT_MAX} hundredths of a processor"
            ));
        }
        if self.cpu_weight.is_some_and(|weight| !(1..=CPU_WEIGHT_MAX).contains(&weight)) {
            return Some(format!("a weight is 1 to {CPU_WEIGHT_MAX}"));
        }
        if let Some(set) = &self.cpu_set
            && parse_cpu_set(set).is_none()
        {
            return Some(format!("{set:?} is no list of processors, like 0-3,6"));
        }
        if self.memory.is_some_and(|limit| limit.0 == 0 || limit.0 > memory.0) {
            return Some(format!("a limit of memory is less than what the machine has, {memory}"));
        }
        [&self.disk, &self.net].into_iter().find_map(RateLimits::fault).map(str::to_owned)
    }
}

/// Highest number of a processor that can be named.
const CPU_NUMBER_MAX: usize = 1023;

/// The processors of a list like `0-3,6`, in order and each once; nothing if it is none.
pub fn parse_cpu_set(text: &str) -> Option<Vec<usize>> {
    let number = |text: &str| -> Option<usize> {
        let digits = !text.is_empty() && text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|number| digits && *number <= CPU_NUMBER_MAX)
    };
    let mut cpus = std::collections::BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first.trim())?, number(last.trim())?);
        if first > last {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus.into_iter().collect())
}

/// New sizes of a machine. What is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ResizeParams {
    /// Number of vCPUs, from the next start on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 255))]
    pub cpus: Option<u32>,
    /// Memory, from the next start on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Size of its first disk, which can only become larger; at once, also while the machine runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<ByteSize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(parse_cpu_set("0-2,6, 1"), Some(vec![0, 1, 2, 6]));
        assert_eq!(parse_cpu_set("7"), Some(vec![7]));
        for bad in ["", ",", "1,", "3-1", "a", "-1", "1-", "99999", "0-5000", "+1"] {
            assert_eq!(parse_cpu_set(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn limits_that_cannot_be_are_named() {
        let gib = ByteSize(1 << 30);
        assert_eq!(Limits::default().fault(gib), None);
        let bad = [
            r#"{"cpu": 0}"#,
            r#"{"cpu_weight": 10001}"#,
            r#"{"cpu_set": "x"}"#,
            r#"{"memory": "2G"}"#,
            r#"{"disk": {"operations": 0}}"#,
            r#"{"net": {"burst_bytes": "1M"}}"#,
        ];
        for text in bad {
            let limits: Limits = serde_json::from_str(text).unwrap();
            assert!(limits.fault(gib).is_some(), "{text}");
        }
    }
}
