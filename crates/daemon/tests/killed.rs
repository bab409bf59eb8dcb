//! The daemon and workers are killed at random moments while clients create, change, start, stop and remove machines:
//! what was acknowledged is so afterwards, and nothing is there twice.

mod rig;

use api::v1::error::ErrorCode;
use api::v1::operation::OperationState;
use api::v1::vm::{StopParams, VmState};
use client::{Client, Created};
use rig::{Daemon, block_on, kill, wait};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[test]
fn part() {
    rig::part();
}

const CLIENTS: u64 = 3;
/// Machines of one client at a time.
const MACHINES: usize = 6;
const SEED: u64 = 0x2545_f491_4f6c_dd1d;

/// Many with `ARNIA_TEST_FULL`, few otherwise.
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

/// What a client knows of a machine of its own.
struct Known {
    name: String,
    /// The last label that was acknowledged, and the last that was asked for.
    label: (u64, u64),
}

/// What a client knows for certain.
#[derive(Default)]
struct Knowledge {
    machines: Vec<Known>,
    removed: Vec<String>,
    operations: Vec<String>,
    refused: u64,
}

/// Asks until the daemon answers: it is killed again and again.
fn insist<T>(what: &str, mut ask: impl FnMut() -> Result<T, client::Error>) -> Result<T, client::Error> {
    let started = Instant::now();
    loop {
        match ask() {
            Err(error) if error.is_unreachable() => {
                assert!(started.elapsed() < Duration::from_secs(120), "{what}: nobody answers: {error}");
                std::thread::sleep(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}

/// A client's day.
fn work(daemon: &Daemon, client: &Client, number: u64, done: &AtomicBool) -> Knowledge {
    let mut random = Random(SEED + number);
    let mut know = Knowledge::default();
    let mut next = 0;
    while !done.load(Ordering::Relaxed) {
        if know.machines.is_empty() || know.machines.len() < MACHINES && random.below(3) == 0 {
            let name = format!("c{number}-{next}");
            next += 1;
            let params = daemon.params(&name, "", random.below(2) == 0);
            // The same key each time: however often it is asked for, it is created once.
            let created = insist("a creation", || block_on(client.vm_create(&params, &name)));
            if let Created::Starting(operation) = created.unwrap_or_else(|e| panic!("{name}: {e}")) {
                know.operations.push(operation.id);
            }
            know.machines.push(Known { name, label: (0, 0) });
            continue;
        }
        let index = random.below(know.machines.len() as u64) as usize;
        let name = know.machines[index].name.clone();
        let operation = match random.below(8) {
            0 => {
                match insist("a removal", || block_on(client.vm_delete(&name, true))) {
                    // Gone by a request whose answer was lost.
                    Err(error) if error.api().code == ErrorCode::NotFound => {}
                    result => result.unwrap_or_else(|e| panic!("{name}: {e}")),
                }
                know.machines.remove(index);
                know.removed.push(name);
                continue;
            }
            1..4 => {
                let label = &mut know.machines[index].label;
                label.1 += 1;
                let patch = serde_json::json!({"labels": {"n": label.1.to_string()}});
                // Once: an answer that is lost leaves both possible.
                match block_on(client.vm_update(&name, &patch, None)) {
                    Ok(_) => label.0 = label.1,
                    Err(error) if error.is_unreachable() => {}
                    Err(error) => panic!("{name}: {error}"),
                }
                continue;
            }
            4 | 5 => block_on(client.vm_start(&name)),
            6 => block_on(client.vm_stop(&name, StopParams { force: true, timeout: None })),
            _ => block_on(client.vm_restart(&name, StopParams { force: true, timeout: None })),
        };
        match operation {
            Ok(operation) => know.operations.push(operation.id),
            Err(error) if error.is_unreachable() => {}
            Err(_) => know.refused += 1,
        }
    }
    know
}

#[test]
fn kills_at_random_moments_under_load_lose_nothing() {
    let mut daemon = Daemon::new("chaos");
    let client = daemon.client("default");
    let done = AtomicBool::new(false);
    let mut random = Random(SEED);
    // What the clients need of it; it is started and killed beside them.
    let params = Daemon { folder: daemon.folder.clone(), child: None };
    let knowledge: Vec<Knowledge> = std::thread::scope(|scope| {
        let (done, params) = (&done, &params);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let client = client.clone();
                scope.spawn(move || work(params, &client, number, done))
            })
            .collect();
        let mut workers = 0;
        for _ in 0..rounds() {
            // Not to wait for something: at another moment each time.
            std::thread::sleep(Duration::from_micros(random.below(80_000)));
            let pids: Vec<u32> = block_on(client.vms())
                .unwrap_or_default()
                .into_iter()
                .filter_map(|vm| vm.worker.map(|worker| worker.pid))
                .collect();
            if random.below(4) == 0 && !pids.is_empty() {
                let pid = pids[random.below(pids.len() as u64) as usize];
                // It may have ended by itself.
                let _ = std::panic::catch_unwind(|| kill(pid));
                workers += 1;
                continue;
            }
            daemon.kill();
            daemon.start();
        }
        done.store(true, Ordering::Relaxed);
        println!("{} rounds, {workers} of them at workers", rounds());
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    });
    std::mem::forget(params);

    let mut expected = 0;
    for know in &knowledge {
        for id in &know.operations {
            wait("an acknowledged operation ends", || {
                block_on(client.operation(id, 1)).expect("an acknowledged operation").state
                    != OperationState::Running
            });
        }
        for machine in &know.machines {
            let vm = block_on(client.vm(&machine.name)).unwrap_or_else(|e| panic!("{}: {e}", machine.name));
            let label: u64 = vm.config.labels.get("n").map_or(0, |text| text.parse().expect("a number"));
            let (least, most) = machine.label;
            assert!((least..=most).contains(&label), "{}: {label} is not {least} to {most}", vm.name);
            expected += 1;
        }
        for name in &know.removed {
            let gone = block_on(client.vm(name)).expect_err("it was removed").api().code;
            assert_eq!(gone, ErrorCode::NotFound, "{name}");
        }
    }
    let operations: usize = knowledge.iter().map(|know| know.operations.len()).sum();
    println!("{expected} machines, {operations} operations");
    wait("all machines are at rest", || {
        let vms = block_on(client.vms()).expect("machines");
        assert_eq!(vms.len(), expected, "there are machines that nobody knows of");
        vms.iter().all(|vm| !matches!(vm.state, VmState::Starting | VmState::Stopping))
    });
    // Each machine that runs has a process, no two have the same, and they can all be ended.
    let mut pids = std::collections::BTreeSet::new();
    for vm in block_on(client.vms()).expect("machines") {
        if let Some(worker) = vm.worker {
            assert!(pids.insert(worker.pid), "{} has another's process", vm.name);
        }
        block_on(client.vm_delete(&vm.name, true)).unwrap_or_else(|e| panic!("{}: {e}", vm.name));
    }
    for pid in pids {
        wait("processes end with their machines", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
