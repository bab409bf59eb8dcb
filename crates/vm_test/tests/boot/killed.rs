//! `kill -9` of the daemon and of workers at random moments, while real guests write and machines come and go.
//!
//! - No machine, no record and no acknowledged change is lost, and nothing is there that nobody asked for.
//! - What a guest had written and synced is on its disk, whatever was killed.
//! - A guest whose own worker is not killed notices nothing: it is the same boot of the same process to the end.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vm_test::{Arnia, Case, KillOnDrop, Patience, Suite, arnia};

use crate::inside;

/// Its worker is never killed.
const SPARED: &str = "spared";
/// Its worker is.
const HUNTED: &str = "hunted";
/// The exit status of `arnia` for what does not exist.
const NOT_FOUND: i32 = 3;
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// In the guest: counts on its disk, and tells each number when it is safe. One at a time: whoever the daemon's end has cut off
/// holds the lock until the last of it is gone.
const COUNT: &str = r#"exec 9>/tmp/lock; flock 9
n=$(dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -dc 0-9); n=${n:-0}
echo "found $n"
while :; do
    n=$((n + 1))
    printf '%-511s\n' "$n" | dd of=/dev/vda bs=512 conv=notrunc,fsync 2>/dev/null || exit
    echo "wrote $n"
done"#;

pub(crate) fn add(suite: &mut Suite) {
    suite.engineless_test("daemon::kills_under_load_lose_no_guest", kills);
}

/// Few in an everyday run.
fn rounds() -> u32 {
    if std::env::var_os("ARNIA_TEST_FULL").is_some() { 100 } else { 6 }
}

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn kills(case: &Case) -> Result<()> {
    let arnia = Arnia::new()?;
    for name in [SPARED, HUNTED] {
        arnia.run(&["volume", "create", name, "1M"])?;
        inside::start(case, &arnia, name, &["--volume", name])?;
    }
    let wait = Patience::Boot.seconds_to_wait().to_string();
    let boot = || {
        let words = ["exec", "--wait", &wait, SPARED, "--", "cat", "/proc/sys/kernel/random/boot_id"];
        Ok::<_, anyhow::Error>((arnia.run(&words)?, worker(&arnia, SPARED)?.context("it runs")?))
    };
    let before = boot()?;

    let (done, deaths) = (AtomicBool::new(false), AtomicU32::new(0));
    let known = thread::scope(|scope| {
        let (arnia, done, deaths) = (&arnia, &done, &deaths);
        let counters = [SPARED, HUNTED].map(|name| scope.spawn(move || count(arnia, name, done)));
        let client = scope.spawn(move || come_and_go(case, arnia, done));
        let killed = kill_at_random(arnia, deaths);
        done.store(true, Ordering::Relaxed);
        // However this ends, nothing of it may go on.
        let counted = counters.map(|counter| counter.join().unwrap_or_else(|_| bail!("a counter panicked")));
        let known = client.join().unwrap_or_else(|_| bail!("the client panicked"));
        killed?;
        for (name, counted) in [SPARED, HUNTED].into_iter().zip(counted) {
            let numbers = counted.with_context(|| format!("the guest of {name}"))?;
            ensure!(numbers > 0, "the guest of {name} has written nothing");
            println!("{name} has counted to {numbers}");
        }
        known
    })?;
    println!("{} rounds, {} of them at workers", rounds(), deaths.load(Ordering::Relaxed));

    ensure!(boot()? == before, "{SPARED} is another boot or process, and nobody has killed it");
    known.check(&arnia)
}

/// The worker of a machine that runs.
fn worker(arnia: &Arnia, name: &str) -> Result<Option<i64>> {
    Ok(arnia.json(&["info", name])?["worker"]["pid"].as_i64())
}

/// Kills the daemon, or a worker that may be killed. The next command starts a daemon.
fn kill_at_random(arnia: &Arnia, deaths: &AtomicU32) -> Result<()> {
    let mut random = Random(SEED);
    for _ in 0..rounds() {
        // Not to wait for something: at another moment each time.
        thread::sleep(Duration::from_millis(random.below(1000)));
        if random.below(3) > 0 {
            // There may be none: the last one is only just dead.
            let _ = arnia.kill_daemon();
            continue;
        }
        let Ok(machines) = arnia.json(&["ls"]) else { continue };
        let pids: Vec<i64> = machines
            .as_array()
            .into_iter()
            .flatten()
            .filter(|vm| vm["name"] != SPARED)
            .filter_map(|vm| vm["worker"]["pid"].as_i64())
            .collect();
        if !pids.is_empty() && arnia::kill(pids[random.below(pids.len() as u64) as usize]).is_ok() {
            deaths.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Has a guest count until the end, again and again; returns how far it came.
fn count(arnia: &Arnia, name: &str, done: &AtomicBool) -> Result<u64> {
    let wait = Patience::Boot.seconds_to_wait().to_string();
    let (mut last, mut stuck) = (0, Instant::now());
    loop {
        let mut command = arnia.command(&["exec", "--wait", &wait, name, "--", "sh", "-c", COUNT]);
        let mut child = KillOnDrop(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?);
        let output = child.0.stdout.take().context("piped")?;
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let number = |line: &str| line.split(' ').nth(1).and_then(|text| text.parse::<u64>().ok());
        if let Some(found) = lines.next().as_deref().and_then(number) {
            ensure!(found >= last, "{found} is on the disk, and {last} was told to be safe");
            // Once more at the end, so that what was told last is looked for, too.
            if done.load(Ordering::Relaxed) {
                return Ok(last);
            }
            stuck = Instant::now();
        }
        for line in lines {
            last = number(&line).with_context(|| format!("the guest says {line:?}"))?;
            if done.load(Ordering::Relaxed) {
                break;
            }
        }
        drop(child);
        ensure!(stuck.elapsed() < Patience::Boot.limit(), "it does not come back");
        // After too many ends in a row a machine stays off until somebody starts it.
        if worker(arnia, name).is_ok_and(|pid| pid.is_none()) {
            let _ = arnia.try_run(&["start", name])?;
        }
    }
}

/// What a client knows of its machines.
#[derive(Default)]
struct Known {
    /// Name; the last description that was acknowledged, and the last that was asked for.
    machines: Vec<(String, u64, u64)>,
    removed: Vec<String>,
    /// Creations and removals without an answer.
    unsure: Vec<String>,
}

/// Creates, starts, changes, stops and removes machines until the end.
fn come_and_go(case: &Case, arnia: &Arnia, done: &AtomicBool) -> Result<Known> {
    let mut random = Random(SEED + 1);
    let mut known = Known::default();
    let mut next = 0;
    let succeeds = |words: &[&str]| Ok::<_, anyhow::Error>(arnia.try_run(words)?.status.success());
    while !done.load(Ordering::Relaxed) {
        // Else the host would fill up with them.
        if let Some(name) = known.unsure.pop() {
            match arnia.try_run(&["rm", "--force", &name])?.status.code() {
                Some(0 | NOT_FOUND) => known.removed.push(name),
                _ => known.unsure.push(name),
            }
        }
        if known.machines.len() < 3 && (known.machines.is_empty() || random.below(2) == 0) {
            let name = format!("m{next}");
            next += 1;
            // One that is created and not started, because its daemon died in between, is there all the same.
            match inside::start(case, arnia, &name, &[]) {
                Ok(()) => known.machines.push((name, 0, 0)),
                Err(_) => known.unsure.push(name),
            }
            continue;
        }
        let index = random.below(known.machines.len() as u64) as usize;
        let machine = &mut known.machines[index];
        let name = machine.0.clone();
        match random.below(6) {
            0 => {
                known.machines.remove(index);
                match succeeds(&["rm", "--force", &name])? {
                    true => known.removed.push(name),
                    false => known.unsure.push(name),
                }
            }
            1 => drop(succeeds(&["stop", "--force", &name])?),
            2 => drop(succeeds(&["start", &name])?),
            _ => {
                machine.2 += 1;
                if succeeds(&["set", &name, &format!("description={}", machine.2)])? {
                    machine.1 = machine.2;
                }
            }
        }
    }
    Ok(known)
}

impl Known {
    /// Looks whether all is there, nothing else, and each machine that runs has one process that goes with it.
    fn check(&self, arnia: &Arnia) -> Result<()> {
        let resting =
            |vm: &Value| !["starting", "stopping"].contains(&vm["state"].as_str().unwrap_or_default());
        let mut machines = Vec::new();
        arnia.wait(Patience::Boot, || {
            machines = arnia.json(&["ls"])?.as_array().cloned().unwrap_or_default();
            Ok(machines.iter().all(resting))
        })?;
        let mut names: Vec<&str> = machines.iter().filter_map(|vm| vm["name"].as_str()).collect();
        for (name, least, most) in &self.machines {
            ensure!(names.contains(&name.as_str()), "{name} is lost");
            let text = arnia.json(&["info", name])?["config"]["description"].clone();
            let found: u64 = text.as_str().filter(|text| !text.is_empty()).map_or(Ok(0), str::parse)?;
            ensure!((least..=most).contains(&&found), "{name}: {found} is not {least} to {most}");
        }
        for name in &self.removed {
            ensure!(!names.contains(&name.as_str()), "{name} was removed and is there");
        }
        names.retain(|name| {
            let mine = self.machines.iter().map(|machine| &machine.0).chain(&self.unsure);
            ![SPARED, HUNTED].contains(name) && !mine.into_iter().any(|known| known == name)
        });
        ensure!(names.is_empty(), "nobody has asked for {names:?}");
        let mut pids = Vec::new();
        for vm in &machines {
            let name = vm["name"].as_str().unwrap_or_default();
            if let Some(pid) = vm["worker"]["pid"].as_i64() {
                ensure!(!pids.contains(&pid), "{name} has another's process");
                pids.push(pid);
            }
            arnia.run(&["rm", "--force", name])?;
        }
        println!(
            "{} machines, {} of them ran; {} were removed",
            machines.len(),
            pids.len(),
            self.removed.len()
        );
        for pid in pids {
            let gone = || Ok(!std::path::Path::new(&format!("/proc/{pid}")).exists());
            arnia.wait(Patience::Host, gone).context("a process has outlived its machine")?;
        }
        Ok(())
    }
}
