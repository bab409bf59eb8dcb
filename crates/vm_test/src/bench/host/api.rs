//! How soon the daemon answers and starts, and its memory, with machines defined that do not run.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{DAEMON, milliseconds, percentile};
use crate::Arnia;
use crate::bench::report::Report;
use crate::bench::{Bed, MIB, process};

/// Machines that are defined while views are measured.
const FEW: usize = 100;
/// And while starts of the daemon are.
const MANY: usize = 1000;
/// Views of one machine, each over a connection of its own, as commands have it.
const VIEWS: usize = 2000;

pub(super) fn measure(bed: &Bed<'_>, report: &mut Report) -> Result<()> {
    let arnia = Arnia::new()?;
    let (mut daemon, _) = arnia.start_daemon()?;
    println!("host: views of {FEW} machines");
    define(bed, &arnia, 0..FEW)?;
    let mut views = Vec::with_capacity(VIEWS);
    for number in 0..VIEWS {
        let path = format!("/v1/vms/vm-{}", number % FEW);
        let begun = Instant::now();
        let (status, _) = arnia.http("GET", &path, None)?;
        views.push(begun.elapsed());
        ensure!(status == 200, "{path} is answered by {status}");
    }
    report.add("API view with 100 machines, median (goal 2)", "ms", DAEMON, percentile(&mut views, 50));
    report.add(
        "API view with 100 machines, 99th percentile (goal 10)",
        "ms",
        DAEMON,
        percentile(&mut views, 99),
    );
    println!("host: starts with {MANY} machines");
    define(bed, &arnia, FEW..MANY)?;
    for _ in 0..bed.options.runs {
        drop(daemon);
        let took;
        (daemon, took) = arnia.start_daemon()?;
        report.add("daemon start with 1000 machines (goal 200)", "ms", DAEMON, milliseconds(took));
        // All of them are read, too: a daemon that has done nothing yet needs little memory.
        let mut after = String::new();
        loop {
            let (_, page) = arnia.http("GET", &format!("/v1/vms?limit=100&after={after}"), None)?;
            let Some(last) = page["items"].as_array().and_then(|items| items.last()) else { break };
            after = last["name"].as_str().unwrap_or_default().to_owned();
        }
        ensure!(after == "vm-999", "the list ends with {after:?}");
        let memory = process::memory(daemon.0.id())?;
        report.add("daemon memory with 1000 machines (goal 50)", "MiB", DAEMON, memory as f64 / MIB);
    }
    Ok(())
}

fn define(bed: &Bed<'_>, arnia: &Arnia, numbers: std::ops::Range<usize>) -> Result<()> {
    for number in numbers {
        let machine = json!({
            "name": format!("vm-{number}"),
            "config": { "cpus": 1, "memory": "128M", "nics": [{}],
                "boot": { "kernel": bed.artifacts.kernel.image, "append": "console=ttyS0" } },
        });
        let (status, answer) = arnia.http("POST", "/v1/vms", Some(&machine))?;
        ensure!(status == 201, "a machine cannot be defined: {answer}");
    }
    Ok(())
}
