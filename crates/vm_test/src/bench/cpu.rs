//! Speed of execution: the workload program natively and in guests with one CPU, in turns. The fastest
//! of all rounds counts: whatever else the host does only makes a round slower.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::ratios::Ratios;
use super::report::Report;
use super::{Bed, Options};
use crate::workloads::{Selection, Session, Workloads};

/// All rounds together; no further one is begun that would not end by then.
const LIMIT: Duration = Duration::from_secs(360);

/// How far the clocks of a guest and its host may be apart over a session, as a part of it.
const CLOCK_TOLERANCE: f64 = 0.02;

pub(super) fn measure(bed: &Bed<'_>, report: &mut Report) -> Result<()> {
    let workloads = Workloads::from_env()?;
    workloads.check_rows(&bed.options.rows)?;
    let Options { quick, runs, .. } = *bed.options;
    let budget = Duration::from_millis(if quick { 60 } else { 300 });
    let selection = Selection { rows: bed.options.rows.join(","), budget, pin: true };
    let rounds = if quick { 1 } else { runs };
    let started = Instant::now();
    let mut ratios = Ratios::default();
    for round in 1..=rounds {
        println!("cpu: round {round} of {rounds}");
        let session = workloads.native(bed.artifacts, &selection, bed.scratch, &mut told("native"))?;
        ratios.add("native", &session);
        for program in &bed.options.programs {
            let subject = program.to_string();
            let session =
                workloads.guest(bed.artifacts, program, 1, &selection, bed.scratch, &mut told(&subject));
            let session = session.with_context(|| format!("cannot measure {program}"))?;
            ratios.add(&subject, &session);
            if let Some(boot) = session.boot_to_init {
                report.add("boot to init, 1 CPU", "s", &subject, boot.as_secs_f64());
            }
            for fault in session.failures.iter().cloned().chain(clock_fault(&session)) {
                ratios.fault(format!("{program}: {fault}"));
            }
        }
        if started.elapsed() / round * (round + 1) > LIMIT && round < rounds {
            println!("cpu: no time for another round");
            break;
        }
    }
    report.set_ratios(ratios);
    Ok(())
}

fn told(subject: &str) -> impl FnMut(&crate::workloads::Row) {
    move |row| println!("cpu: {subject:6}  {:24} {:>14.2} ns per {}", row.name, row.ns_per_op, row.operation)
}

/// Figures are by the guest's clock, so they mean something only if it runs as the host's does.
fn clock_fault(session: &Session) -> Option<String> {
    let (inside, outside) = (session.lasted.as_secs_f64(), session.watched.as_secs_f64());
    // Lines come late by the time that the console and the host's scheduler take.
    let tolerance = outside * CLOCK_TOLERANCE + 0.3;
    ((inside - outside).abs() > tolerance)
        .then(|| format!("{inside:.2} s passed in the guest and {outside:.2} s outside"))
}
