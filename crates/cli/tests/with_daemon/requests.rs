//! What the program asks its daemon for.

use crate::rig::{Daemon, operation, refusal, vm};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::process::{Output, Stdio};

const RUN: &[&str] = &["run", "--rm", "--kernel", "/k", "web", "--", "true"];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs the program to its end.
fn output(daemon: &Daemon, arguments: &[&str]) -> Output {
    daemon.arnia(arguments).stdin(Stdio::null()).output().expect("arnia starts")
}

#[test]
fn a_signal_while_the_guest_boots_leaves_no_machine_behind() {
    let daemon = Daemon::new("signal", |request| match request {
        _ if request.starts_with("POST ") => Some((202, operation("1", "running"))),
        // It starts for ever.
        _ if request.starts_with("GET ") => None,
        _ => Some((204, json!(null))),
    });
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let before = daemon.asked().len();
        let mut child = daemon.arnia(RUN).stderr(Stdio::null()).spawn().expect("arnia starts");
        crate::rig::wait_until("the wait", || {
            daemon.asked()[before..].iter().any(|it| it.starts_with("GET "))
        });
        kill_process(Pid::from_child(&child), signal).expect("a signal");
        assert_eq!(child.wait().expect("arnia ends").code(), Some(status));
        let asked = &daemon.asked()[before..];
        assert_eq!(asked.last().map(String::as_str), Some("DELETE /v1/vms/web"), "{asked:?}");
    }
}

#[test]
fn a_start_that_fails_leaves_no_machine_behind_and_tells_why() {
    let daemon = Daemon::new("fails", |request| match request {
        _ if request.starts_with("POST ") => Some((202, operation("1", "running"))),
        _ if request.starts_with("GET ") => {
            let mut failed = operation("1", "failed");
            failed["error"] = refusal("not_found")["error"].clone();
            Some((200, failed))
        }
        // That it cannot be removed does not change what the command is about.
        _ => Some((500, refusal("internal"))),
    });
    let output = output(&daemon, RUN);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("web is not removed: the answer is internal"), "{said}");
    assert!(said.contains("arnia: the answer is not_found"), "{said}");
    assert_eq!(daemon.asked().last().map(String::as_str), Some("DELETE /v1/vms/web"));
}

/// One of this name may be somebody's.
#[test]
fn a_machine_that_was_not_created_is_not_removed() {
    let daemon = Daemon::new("taken", |_| Some((409, refusal("already_exists"))));
    assert_eq!(output(&daemon, RUN).status.code(), Some(4));
    assert_eq!(daemon.asked(), ["POST /v1/vms"]);
}

#[test]
fn operations_are_all_listed() {
    let daemon = Daemon::new("operations", |request| {
        let (first, last) = if request.contains("after=99") { (100, 134) } else { (0, 99) };
        let items = (first..=last).map(|id| operation(&id.to_string(), "succeeded")).collect::<Vec<_>>();
        Some((200, json!({"items": items, "next": (last == 99).then_some("99")})))
    });
    let output = output(&daemon, &["operation", "ls"]);
    assert_eq!(text(&output.stdout).lines().count(), 1 + 135, "{output:?}");
}

#[test]
fn a_machine_that_is_set_is_written_for_programs() {
    let daemon = Daemon::new("set", |_| Some((200, vm("web"))));
    let output = output(&daemon, &["set", "web", "cpus=2", "-o", "json"]);
    let written: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(written["name"], "web");
}

/// The daemon says whether a change needs a restart.
#[test]
fn apply_restarts_only_what_needs_it() {
    fn answer(request: &str, restart_needed: bool) -> Option<(u16, serde_json::Value)> {
        let mut web = vm("web");
        web["restart_needed"] = restart_needed.into();
        Some(match request {
            _ if request.starts_with("GET /v1/vms") => (200, json!({"items": [vm("web")]})),
            _ if request.starts_with("GET ") => (200, json!({"items": []})),
            _ if request.starts_with("PATCH ") => (200, web),
            _ => (202, operation("1", "succeeded")),
        })
    }
    let quiet = Daemon::new("quiet", |request| answer(request, false));
    let needing = Daemon::new("needing", |request| answer(request, true));
    for (daemon, change, restarts) in [(&quiet, "description: new", false), (&needing, "cpus: 2", true)] {
        let file = daemon.folder().join("lab.yaml");
        let lab = format!("vms: {{web: {{boot: {{kernel: /k}}, nics: [], {change}}}}}");
        std::fs::write(&file, lab).expect("a file");
        let file = file.display().to_string();
        let output = output(daemon, &["apply", "--yes", "--restart", "-f", &file]);
        assert!(output.status.success(), "{output:?}");
        let asked = daemon.asked();
        assert!(asked.iter().any(|request| request == "PATCH /v1/vms/web"), "{asked:?}");
        let restarted = asked.iter().any(|request| request == "POST /v1/vms/web/restart");
        assert_eq!(restarted, restarts, "{asked:?}");
        assert_eq!(text(&output.stdout).contains("after a restart"), restarts, "{output:?}");
    }
}

/// What an earlier `apply` without --restart has left.
#[test]
fn apply_restarts_later_what_was_not_restarted_at_once() {
    let daemon = Daemon::new("later", |request| {
        let mut web = vm("web");
        web["restart_needed"] = true.into();
        Some(match request {
            _ if request.starts_with("GET /v1/vms") => (200, json!({"items": [web]})),
            _ if request.starts_with("GET ") => (200, json!({"items": []})),
            _ => (202, operation("1", "succeeded")),
        })
    });
    let file = daemon.folder().join("lab.yaml");
    std::fs::write(&file, "vms: {web: {boot: {kernel: /k}, nics: []}}").expect("a file");
    let file = file.display().to_string();
    let is_restarted = || daemon.asked().iter().any(|request| request == "POST /v1/vms/web/restart");
    let diff = output(&daemon, &["diff", "--exit-code", "-f", &file]);
    assert_eq!(diff.status.code(), Some(1), "{diff:?}");
    assert!(text(&diff.stdout).contains("web\n    (it runs with an older configuration"), "{diff:?}");
    assert!(output(&daemon, &["apply", "--yes", "-f", &file]).status.success() && !is_restarted());
    assert!(
        output(&daemon, &["apply", "--yes", "--restart", "-f", &file]).status.success() && is_restarted()
    );
}

/// All are looked up before one is removed.
#[test]
fn contexts_are_removed_together() {
    let daemon = Daemon::new("contexts", |_| None);
    let file = daemon.folder().join("contexts.json");
    std::fs::write(&file, r#"{"contexts": {"a": {"address": "h:1", "fingerprint": "sha256:0"}}}"#)
        .expect("a file");
    let refused = output(&daemon, &["context", "rm", "a", "nosuch"]);
    assert_eq!((refused.status.code(), text(&refused.stdout).as_str()), (Some(3), ""));
    assert!(std::fs::read_to_string(&file).expect("a file").contains("h:1"));
    assert_eq!(text(&output(&daemon, &["context", "rm", "a"]).stdout), "a is removed\n");
    assert!(!std::fs::read_to_string(&file).expect("a file").contains("h:1"));
}
