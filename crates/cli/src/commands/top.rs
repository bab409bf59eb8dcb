//! `arnia top`.

use super::{Run, bytes, duration};
use crate::output::Row;
use crate::{Context, Error};
use api::v1::vm::VmMetrics;
use serde::Serialize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Shows what running virtual machines use: of processor time within one second, and of memory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia top\n  watch arnia top")]
pub struct Top {}

#[derive(Serialize)]
struct Use {
    name: String,
    cpu_percent: f64,
    metrics: VmMetrics,
}

impl Row for Use {
    const HEADS: &'static [&'static str] = &["name", "cpu", "memory", "cpu time", "guest time", "resets"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            format!("{:.0}%", self.cpu_percent),
            bytes(self.metrics.resident_bytes),
            duration(self.metrics.cpu_time_ms as i64 / 1000),
            duration(self.metrics.guest_time_ms as i64 / 1000),
            self.metrics.resets.to_string(),
        ]
    }
}

impl Run for Top {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let uses = context.with_daemon(async |client| {
            let vms = client.vms().await?;
            let mut before = Vec::new();
            for vm in vms.into_iter().filter(|vm| vm.worker.is_some()) {
                // One that ends meanwhile is left out.
                if let Ok(metrics) = client.vm_metrics(&vm.name).await {
                    before.push((vm.name, metrics.cpu_time_ms, Instant::now()));
                }
            }
            tokio::time::sleep(Duration::from_secs(u64::from(!before.is_empty()))).await;
            let mut uses = Vec::new();
            for (name, cpu_time_ms, time) in before {
                if let Ok(metrics) = client.vm_metrics(&name).await {
                    let used = metrics.cpu_time_ms.saturating_sub(cpu_time_ms) as f64;
                    let cpu_percent = 100.0 * used / time.elapsed().as_millis().max(1) as f64;
                    uses.push(Use { name, cpu_percent, metrics });
                }
            }
            Ok(uses)
        })?;
        context.output.list(&uses)?;
        Ok(ExitCode::SUCCESS)
    }
}
