//! `arnia top`.

use super::{Run, bytes, duration};
use crate::output::{Row, print};
use crate::{Context, Error};
use api::v1::vm::VmMetrics;
use serde::Serialize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Shows what running virtual machines use: of processor time within one second, and of memory. At a terminal again and again, until
/// Ctrl+C; else once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia top\n  arnia top --once\n  arnia top -o json")]
pub struct Top {
    /// Show it once; at a terminal it is shown again and again, until Ctrl+C
    #[arg(long)]
    once: bool,
}

/// Puts the cursor at the top and clears what is below (ECMA-48: CUP, ED).
const BEGIN_ANEW: &str = "\x1b[H\x1b[J";
/// Over so long what is used of processors is measured.
const PERIOD: Duration = Duration::from_secs(1);

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
        let goes_on = !self.once && context.output.is_at_terminal();
        context.with_daemon(async |client| {
            loop {
                let uses = within_a_period(&client, goes_on).await?;
                if goes_on {
                    print(BEGIN_ANEW)?;
                }
                context.output.list(&uses)?;
                if !goes_on {
                    return Ok(ExitCode::SUCCESS);
                }
            }
        })
    }
}

/// What machines use now; without any there is nothing to measure, unless it is asked for again and again.
async fn within_a_period(client: &client::Client, goes_on: bool) -> Result<Vec<Use>, Error> {
    let mut before = Vec::new();
    for vm in client.vms().await?.into_iter().filter(|vm| vm.worker.is_some()) {
        // One that ends meanwhile is left out.
        if let Ok(metrics) = client.vm_metrics(&vm.name).await {
            before.push((vm.name, metrics.cpu_time_ms, Instant::now()));
        }
    }
    if goes_on || !before.is_empty() {
        tokio::time::sleep(PERIOD).await;
    }
    let mut uses = Vec::new();
    for (name, cpu_time_ms, time) in before {
        if let Ok(metrics) = client.vm_metrics(&name).await {
            let used = metrics.cpu_time_ms.saturating_sub(cpu_time_ms) as f64;
            let cpu_percent = 100.0 * used / time.elapsed().as_millis().max(1) as f64;
            uses.push(Use { name, cpu_percent, metrics });
        }
    }
    Ok(uses)
}
