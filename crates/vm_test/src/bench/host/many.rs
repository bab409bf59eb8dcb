//! Many small machines at once, all of which answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::DAEMON;
use crate::Arnia;
use crate::bench::report::Report;
use crate::bench::{Bed, MIB, process};

const MACHINES: usize = 50;
/// How many are asked for at a time, by as many commands.
const HANDS: usize = 4;
const MEMORY: &str = "128M";

pub(super) fn measure(bed: &Bed<'_>, report: &mut Report) -> Result<()> {
    let arnia = Arnia::new()?;
    let (daemon, _) = arnia.start_daemon()?;
    arnia.import_tiny(bed.artifacts)?;
    let run =
        |name: &str| arnia.run(&["run", Arnia::TINY, "--memory", MEMORY, "--name", name, "--", "hostname"]);
    run("first")?;
    println!("host: {MACHINES} machines at once");
    let begun = Instant::now();
    for_each(|number| {
        let name = format!("many-{number}");
        let said = run(&name)?;
        ensure!(said.trim() == name, "{name} calls itself {said:?}");
        Ok(())
    })?;
    report.add("50 machines started, each having answered", "s", DAEMON, begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    for_each(|number| {
        let name = format!("many-{number}");
        let said = arnia.run(&["exec", &name, "--", "hostname"])?;
        ensure!(said.trim() == name, "{name} calls itself {said:?}");
        Ok(())
    })?;
    report.add("50 machines answering while all run", "s", DAEMON, begun.elapsed().as_secs_f64());
    let mut memory = 0;
    for vm in arnia.json(&["ls"])?.as_array().context("a list")? {
        let pid = vm["worker"]["pid"].as_u64().with_context(|| format!("{} does not run", vm["name"]))?;
        memory += process::memory(u32::try_from(pid)?)?;
    }
    report.add("memory of 51 machines that run", "MiB", DAEMON, memory as f64 / MIB);
    let memory = process::memory(daemon.0.id())?;
    report.add("daemon memory with 51 machines that run (goal 50)", "MiB", DAEMON, memory as f64 / MIB);
    Ok(())
}

/// Does something for each machine, by several hands at once.
fn for_each(work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let hand = || {
            loop {
                match next.fetch_add(1, Ordering::Relaxed) {
                    number if number < MACHINES => work(number)?,
                    _ => return Ok(()),
                }
            }
        };
        let hands: Vec<_> = (0..HANDS).map(|_| scope.spawn(hand)).collect();
        hands.into_iter().try_for_each(|hand| hand.join().expect("a hand does not panic"))
    })
}
