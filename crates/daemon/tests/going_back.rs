//! Snapshots, suspending, and going back, as far as the daemon has to do with it.

mod rig;

use api::v1::access::{Grant, Role, UserParams};
use api::v1::error::ErrorCode;
use api::v1::project::{ProjectParams, ProjectUpdate, Quota};
use api::v1::snapshot::{CloneParams, SnapshotParams};
use api::v1::vm::{StopParams, VmState};
use client::Client;
use rig::{Daemon, block_on, code, run, wait};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

#[test]
fn part() {
    rig::part();
}

fn snapshot(client: &Client, vm: &str, name: &str) {
    let params = SnapshotParams { name: name.into(), description: String::new(), freeze: false };
    let operation = block_on(client.snapshot_create(vm, &params)).expect("an operation");
    block_on(client.wait(operation)).expect("a snapshot");
}

fn state(client: &Client, vm: &str) -> VmState {
    block_on(client.vm(vm)).expect("the machine").state
}

/// Asks the worker of a machine, past the daemon.
fn ask_worker(daemon: &Daemon, id: &str, request: &str) -> String {
    let control = rig::config(&daemon.folder).paths.runtime.join("vms").join(id).join("control");
    let mut control = UnixStream::connect(control).expect("a worker");
    control.write_all(format!("{request}\n").as_bytes()).expect("a request");
    let mut line = String::new();
    BufReader::new(control).read_line(&mut line).expect("an answer");
    line
}

#[test]
fn what_was_taken_away_does_not_come_back_with_a_snapshot() {
    let daemon = Daemon::new("taken");
    let owner = daemon.client("p");
    let project = ProjectParams { name: "p".into(), description: String::new(), quota: Quota::default() };
    block_on(owner.project_create(&project)).expect("a project");
    let grants = vec![Grant { project: Some("p".into()), role: Role::Operator }];
    block_on(owner.user_create(&UserParams { name: "op".into(), description: String::new(), grants }))
        .expect("a user");
    let secret = block_on(owner.token_create(&rig::token_params("op", None))).expect("a token").secret;
    let operator = daemon.client("p").with_token(secret.expect("a secret"));

    let mut params = daemon.params("web", "", true);
    params.config.cpus = 2;
    run(&owner, &params, "1");
    snapshot(&owner, "web", "before");
    block_on(owner.wait(
        block_on(owner.vm_stop("web", StopParams { force: true, timeout: None })).expect("an operation"),
    ))
    .expect("it stops");

    let set = |patch: serde_json::Value| block_on(owner.vm_update("web", &patch, None)).expect("a change");
    let allow = |cpus: Option<u32>| {
        let update = ProjectUpdate { quota: Some(Quota { cpus, ..Quota::default() }), ..Default::default() };
        block_on(owner.project_update("p", &update)).expect("a quota");
    };

    // Processors, by quota.
    set(json!({ "cpus": 1 }));
    allow(Some(1));
    assert_eq!(code(block_on(operator.snapshot_restore("web", "before"))), ErrorCode::QuotaExceeded);
    let now = block_on(owner.vm("web")).expect("the machine");
    assert_eq!((now.config.cpus, now.state), (1, VmState::Stopped), "nothing is lost");
    allow(None);

    // A file of the host.
    let (kernel, other) = (daemon.folder.join("kernel"), daemon.folder.join("kernel2"));
    std::fs::write(&other, "no kernel either").expect("a file");
    set(json!({ "boot": { "kernel": other } }));
    assert_eq!(code(block_on(operator.snapshot_restore("web", "before"))), ErrorCode::WrongState);
    let copy = CloneParams { names: vec!["copy".into()], snapshot: Some("before".into()) };
    assert_eq!(code(block_on(operator.vm_clone("web", &copy))), ErrorCode::WrongState);
    set(json!({ "boot": { "kernel": kernel } }));
    let operation = block_on(operator.snapshot_restore("web", "before")).expect("an operation");
    block_on(operator.wait(operation)).expect("it is as it was");
    let now = block_on(owner.vm("web")).expect("the machine");
    assert_eq!((now.config.cpus, now.state), (2, VmState::Running));
}

#[test]
fn a_daemon_that_is_killed_while_it_suspends_leaves_no_process_that_nobody_knows() {
    let mut daemon = Daemon::new("suspending");
    let client = daemon.client("default");
    run(&client, &daemon.params("web", "", true), "1");
    let stuck = daemon.folder.join("stuck");
    std::fs::write(&stuck, "").expect("a file");
    let operation = block_on(client.vm_suspend("web")).expect("an operation");
    wait("its memory is saved", || state(&client, "web") == VmState::Stopping);
    daemon.kill();
    std::fs::remove_file(&stuck).expect("it can be removed");
    daemon.start();
    // The next daemon does what was not done.
    let client = daemon.client("default");
    block_on(client.wait(block_on(client.operation(&operation.id, 60)).expect("the operation")))
        .expect("it is suspended");
    wait("it is suspended", || state(&client, "web") == VmState::Suspended);
    block_on(client.wait(block_on(client.vm_start("web")).expect("an operation"))).expect("it goes on");
    assert_eq!(state(&client, "web"), VmState::Running);
}

#[test]
fn a_snapshot_that_takes_long_keeps_nobody_else_waiting() {
    let daemon = Daemon::new("long");
    let client = daemon.client("default");
    for name in ["one", "two"] {
        run(&client, &daemon.params(name, "", true), name);
        snapshot(&client, name, "first");
    }
    let slow = daemon.folder.join("slow");
    std::fs::write(&slow, "").expect("a file");
    let params = SnapshotParams { name: "second".into(), description: String::new(), freeze: false };
    let first = block_on(client.snapshot_create("one", &params)).expect("an operation");
    wait("it is being made", || {
        let now = block_on(client.operation(&first.id, 0)).expect("the operation");
        now.progress.is_some_and(|progress| progress.message.contains("saving"))
    });
    // What nobody needs any more is taken away later; nobody waits for that.
    let removed = async { tokio::time::timeout(rig::GUARD, client.snapshot_delete("two", "first")).await };
    block_on(removed).expect("it does not wait").expect("it is removed");
    // Nor for the one that takes long.
    let second = block_on(client.snapshot_create("two", &params)).expect("an operation");
    wait("it is being made, too", || {
        let now = block_on(client.operation(&second.id, 0)).expect("the operation");
        now.progress.is_some_and(|progress| progress.message.contains("saving"))
    });
    let left = || {
        std::fs::read_dir(rig::config(&daemon.folder).paths.data.join("snapshots")).expect("a folder").count()
    };
    assert_eq!(left(), 2);
    std::fs::remove_file(&slow).expect("it can be removed");
    for operation in [first, second] {
        block_on(client.wait(operation)).expect("a snapshot");
    }
    wait("what nobody needs goes", || left() == 3);
}

#[test]
fn pausing_asks_the_machine_whatever_is_said_of_it() {
    let daemon = Daemon::new("pausing");
    let client = daemon.client("default");
    run(&client, &daemon.params("web", "", true), "1");
    let id = block_on(client.vm_pause("web")).expect("it stands still").id;
    // As if the answer to a request to go on had been lost.
    ask_worker(&daemon, &id, "{\"op\":\"resume\"}");
    assert_eq!(state(&client, "web"), VmState::Paused, "it is said so");
    block_on(client.vm_pause("web")).expect("it stands still");
    let status = ask_worker(&daemon, &id, "{\"op\":\"status\"}");
    assert!(status.contains("paused"), "{status}");
}
