//! Machines that go on from a snapshot run with what they had then, whatever was changed since; and count as that.

mod rig;

use api::v1::error::ErrorCode;
use api::v1::project::{ProjectUpdate, Quota};
use api::v1::snapshot::{CloneParams, SnapshotParams};
use api::v1::vm::{StopParams, Vm, VmState};
use client::Client;
use rig::{Daemon, block_on, code, run};
use serde_json::json;

#[test]
fn part() {
    rig::part();
}

fn vm(client: &Client, name: &str) -> Vm {
    block_on(client.vm(name)).expect("a machine")
}

fn cpus_used(client: &Client) -> u64 {
    let projects = block_on(client.projects()).expect("projects");
    projects.into_iter().find(|project| project.name == "default").expect("the default project").usage.cpus
}

fn wait(client: &Client, operation: Result<api::v1::operation::Operation, client::Error>) {
    block_on(client.wait(operation.expect("an operation"))).expect("it is done");
}

#[test]
fn a_suspended_machine_goes_on_as_it_was() {
    let mut daemon = Daemon::new("going-on");
    let client = daemon.client("default");
    let mut params = daemon.params("web", "", true);
    params.config.cpus = 4;
    run(&client, &params, "k");

    // What is in force when it goes on may be changed meanwhile, its size may not.
    wait(&client, block_on(client.vm_suspend("web")));
    assert_eq!(vm(&client, "web").state, VmState::Suspended);
    assert_eq!(code(block_on(client.vm_update("web", &json!({"cpus": 1}), None))), ErrorCode::WrongState);
    block_on(client.vm_update("web", &json!({"description": "mine"}), None)).expect("a change");
    wait(&client, block_on(client.vm_start("web")));
    let now = vm(&client, "web");
    assert_eq!((now.state, now.restart_needed), (VmState::Running, false));

    // A machine that was made smaller while it runs is as large as before until it boots.
    let smaller = block_on(client.vm_update("web", &json!({"cpus": 1}), None)).expect("a change");
    assert_eq!((smaller.config.cpus, smaller.restart_needed, cpus_used(&client)), (1, true, 4));
    wait(&client, block_on(client.vm_suspend("web")));
    assert_eq!(cpus_used(&client), 4, "it is to go on with them");
    wait(&client, block_on(client.vm_start("web")));
    assert_eq!((vm(&client, "web").restart_needed, cpus_used(&client)), (true, 4));
    daemon.kill();
    daemon.start();
    let client = daemon.client("default");
    rig::wait("it is found again", || vm(&client, "web").state == VmState::Running);
    assert_eq!((vm(&client, "web").restart_needed, cpus_used(&client)), (true, 4));
    wait(&client, block_on(client.vm_restart("web", StopParams::default())));
    assert_eq!((vm(&client, "web").restart_needed, cpus_used(&client)), (false, 1));
}

#[test]
fn a_clone_is_as_large_as_what_it_goes_on_from() {
    let daemon = Daemon::new("clones");
    let client = daemon.client("default");
    let mut params = daemon.params("web", "", true);
    params.config.cpus = 4;
    run(&client, &params, "k");
    let snapshot = SnapshotParams { name: "before".into(), description: String::new(), freeze: false };
    wait(&client, block_on(client.snapshot_create("web", &snapshot)));
    block_on(client.vm_update("web", &json!({"cpus": 1}), None)).expect("a change");
    let clone = |name: &str, snapshot: Option<&str>| {
        let params = CloneParams { names: vec![name.into()], snapshot: snapshot.map(str::to_owned) };
        block_on(client.vm_clone("web", &params))
    };
    // Of the machine as it runs, and of one that has what the record says by now.
    wait(&client, clone("running", None));
    wait(&client, block_on(client.vm_restart("web", StopParams::default())));
    wait(&client, clone("saved", Some("before")));
    for name in ["running", "saved"] {
        let clone = vm(&client, name);
        assert_eq!(
            (clone.config.cpus, clone.state, clone.restart_needed),
            (4, VmState::Running, false),
            "{name}"
        );
    }
    assert_eq!(cpus_used(&client), 9);
    let quota = Quota { cpus: Some(12), ..Quota::default() };
    let update = ProjectUpdate { quota: Some(quota), ..ProjectUpdate::default() };
    block_on(client.project_update("default", &update)).expect("a quota");
    let refused = clone("more", Some("before")).expect("an operation");
    let error = block_on(client.wait(refused)).expect_err("a refusal");
    assert_eq!(error.api().code, ErrorCode::QuotaExceeded);
}
