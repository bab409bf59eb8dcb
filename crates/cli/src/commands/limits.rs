//! What a machine may use of its host, as `arnia run`, `create` and `set` are told.

use api::ByteSize;
use api::v1::limits::{CPU_LIMIT_MAX, Limits, parse_cpu_set};
use serde_json::{Map, Value, json};
use std::str::FromStr;

/// Limits. `none` takes one away.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitOptions {
    /// Processor time: in processors, like 1.5, or in hundredths of one, like 150%
    #[arg(long, value_name = "CPUS", value_parser = limit::<CpuLimit>)]
    cpu_limit: Option<Limit<CpuLimit>>,
    /// Share beside others when processors are short, 1 to 10000 [default: 100]
    #[arg(long, value_name = "WEIGHT", value_parser = limit::<u32>)]
    cpu_weight: Option<Limit<u32>>,
    /// Processors of the host to run on, like 0-3,6
    #[arg(long, value_name = "LIST", value_parser = limit::<CpuSet>)]
    cpu_set: Option<Limit<CpuSet>>,
    /// Memory that the guest keeps of what it has; its balloon takes the rest
    #[arg(long, value_name = "SIZE", value_parser = limit::<ByteSize>)]
    memory_limit: Option<Limit<ByteSize>>,
    /// Requests in a second, of each disk
    #[arg(long, value_name = "N", value_parser = limit::<u64>)]
    disk_iops: Option<Limit<u64>>,
    /// Bytes in a second, of each disk, like 100M
    #[arg(long, value_name = "SIZE", value_parser = limit::<ByteSize>)]
    disk_rate: Option<Limit<ByteSize>>,
    /// Bytes in a second, of each network card and in each direction
    #[arg(long, value_name = "SIZE", value_parser = limit::<ByteSize>)]
    net_rate: Option<Limit<ByteSize>>,
}

/// A limit, or that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Limit<T> {
    None,
    Of(T),
}

/// Hundredths of a processor.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CpuLimit(u32);

/// A list of processors.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CpuSet(String);

impl FromStr for CpuLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<CpuLimit, String> {
        let wrong = || format!("{text:?} is no number of processors, like 1.5 or 150%");
        let hundredths = match text.strip_suffix('%') {
            Some(number) => number.trim().parse::<f64>().map_err(|_| wrong())?,
            None => text.parse::<f64>().map_err(|_| wrong())? * 100.0,
        };
        if !(1.0..=f64::from(CPU_LIMIT_MAX)).contains(&hundredths) {
            return Err(wrong());
        }
        Ok(CpuLimit(hundredths.round() as u32))
    }
}

impl FromStr for CpuSet {
    type Err = String;

    fn from_str(text: &str) -> Result<CpuSet, String> {
        match parse_cpu_set(text) {
            Some(_) => Ok(CpuSet(text.to_owned())),
            None => Err("write a list of processors, like 0-3,6".into()),
        }
    }
}

fn limit<T: FromStr>(text: &str) -> Result<Limit<T>, String>
where
    T::Err: std::fmt::Display,
{
    match text {
        "none" => Ok(Limit::None),
        text => text.parse().map(Limit::Of).map_err(|e: T::Err| e.to_string()),
    }
}

impl LimitOptions {
    /// The changes that are asked for, as a merge patch of the limits; nothing if there are none.
    pub(super) fn patch(&self) -> Option<Value> {
        let mut patch = Map::new();
        let mut put = |place: &[&str], value: Option<Value>| {
            let Some(value) = value else { return };
            match place {
                [name] => drop(patch.insert((*name).to_owned(), value)),
                [group, name] => {
                    let group = patch.entry(*group).or_insert_with(|| json!({}));
                    group[*name] = value;
                }
                _ => {}
            }
        };
        fn of<T>(limit: &Option<Limit<T>>, value: impl Fn(&T) -> Value) -> Option<Value> {
            limit.as_ref().map(|limit| match limit {
                Limit::None => Value::Null,
                Limit::Of(it) => value(it),
            })
        }
        put(&["cpu"], of(&self.cpu_limit, |limit| json!(limit.0)));
        put(&["cpu_weight"], of(&self.cpu_weight, |weight| json!(weight)));
        put(&["cpu_set"], of(&self.cpu_set, |set| json!(set.0)));
        put(&["memory"], of(&self.memory_limit, |size| json!(size)));
        put(&["disk", "operations"], of(&self.disk_iops, |number| json!(number)));
        put(&["disk", "bytes"], of(&self.disk_rate, |size| json!(size)));
        put(&["net", "bytes"], of(&self.net_rate, |size| json!(size)));
        (!patch.is_empty()).then_some(Value::Object(patch))
    }

    /// The limits of a machine that is new.
    pub(super) fn limits(&self) -> Limits {
        let mut patch = self.patch().unwrap_or_else(|| json!({}));
        // What a new machine has not is not there to be taken away.
        without_nulls(&mut patch);
        serde_json::from_value(patch).unwrap_or_default()
    }
}

fn without_nulls(value: &mut Value) {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| !field.is_null());
        fields.values_mut().for_each(without_nulls);
    }
}

/// Limits as people read them.
pub(super) fn shown(limits: &Limits) -> String {
    let mut parts = Vec::new();
    let mut part = |text: Option<String>| parts.extend(text);
    part(limits.cpu.map(|cpu| format!("{}.{:02} processors", cpu / 100, cpu % 100)));
    part(limits.cpu_weight.map(|weight| format!("weight {weight}")));
    part(limits.cpu_set.as_ref().map(|set| format!("on processors {set}")));
    part(limits.memory.map(|size| format!("memory {size}")));
    for (what, rates) in [("disk", &limits.disk), ("network", &limits.net)] {
        part(rates.bytes.map(|size| format!("{what} {size}/s")));
        part(rates.operations.map(|number| format!("{what} {number} requests/s")));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        limits: LimitOptions,
    }

    #[test]
    fn limits_are_read_taken_away_and_shown() {
        let line = ["x", "--cpu-limit", "1.5", "--cpu-set", "0-1", "--disk-iops", "100", "--net-rate", "2M"];
        let limits = Line::parse_from(line).limits.limits();
        assert_eq!(limits.cpu, Some(150));
        assert_eq!(shown(&limits), "1.50 processors, on processors 0-1, disk 100 requests/s, network 2M/s");
        let patch = Line::parse_from(["x", "--cpu-limit", "none", "--disk-rate", "1M"]).limits.patch();
        assert_eq!(patch, Some(json!({"cpu": null, "disk": {"bytes": "1M"}})));
        assert_eq!(Line::parse_from(["x"]).limits.patch(), None);
        assert_eq!("150%".parse(), Ok(CpuLimit(150)));
        for bad in ["0", "-1", "x", "0%", "nan", "inf", "99999"] {
            assert!(bad.parse::<CpuLimit>().is_err(), "{bad}");
        }
    }
}
