//! The program against a daemon that says what the test has it say.

mod stub;

use serde_json::{Value, json};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use stub::{Answer, Daemon, Folder, eventually, signal};

fn operation(name: &str, state: &str) -> Value {
    json!({
        "id": format!("op-{name}"), "kind": "vm_stop", "project": "default", "state": state, "user": "root",
        "target": {"kind": "vm", "id": name, "name": name}, "created": 1,
    })
}

/// A daemon that stops `a` and `b`, knows no other, and has none that runs.
fn stopping() -> Daemon {
    Daemon::start(|request| match request {
        _ if request.contains("/vms/a/") => Answer::json(200, &operation("a", "succeeded")),
        _ if request.contains("/vms/b/") => Answer::json(200, &operation("b", "succeeded")),
        _ if request.starts_with("GET /v1/vms?") => Answer::json(200, &json!({"items": []})),
        _ => Answer::json(404, &json!({"error": {"code": "not_found", "message": "there is none"}})),
    })
}

fn names(output: &Output) -> Vec<String> {
    let value: Value = serde_json::from_slice(&output.stdout).expect("one document");
    let list = value.as_array().expect("a list");
    list.iter().map(|item| item["target"]["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn programs_get_one_list_of_all_that_was_done() {
    let daemon = stopping();
    assert_eq!(names(&daemon.arnia(&["stop", "a", "b", "-o", "json"])), ["a", "b"]);
    assert_eq!(names(&daemon.arnia(&["stop", "a", "-o", "json"])), ["a"]);
    assert_eq!(names(&daemon.arnia(&["stop", "a", "b", "--no-wait", "-o", "json"])), ["a", "b"]);
    for command in ["start", "restart", "suspend"] {
        assert_eq!(names(&daemon.arnia(&[command, "b", "a", "-o", "json"])), ["b", "a"], "{command}");
    }
    let none = daemon.arnia(&["stop", "--all", "-o", "json"]);
    assert!(none.status.success() && names(&none).is_empty());
    // What was done before a failure is told, too.
    let failed = daemon.arnia(&["stop", "a", "nosuch", "b", "-o", "json"]);
    assert_eq!((names(&failed), failed.status.code()), (vec!["a".to_owned()], Some(3)));
    // People are told of each.
    let text = daemon.arnia(&["stop", "a", "b"]);
    assert_eq!(String::from_utf8_lossy(&text.stdout), "a is off\nb is off\n");
}
