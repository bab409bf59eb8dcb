//! What the program writes, and what it leaves when a signal ends it.

use super::rig::wait_until;
use super::stub::{self, Answer, Daemon, Folder, ended_by, signal, with_default_signals};
use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

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

/// A daemon of whose guest's file of 1 MB only the first bytes come.
fn slow_file() -> Daemon {
    Daemon::start(|request| match request.contains("/files/attributes") {
        true => Answer::json(
            200,
            &json!({"kind": "file", "size": 1_000_000, "mode": 420, "uid": 0, "gid": 0, "modified_s": 0}),
        ),
        false => Answer { status: 200, body: b"the first bytes".to_vec(), len: 1_000_000 },
    })
}

#[test]
fn a_copy_that_is_ended_leaves_nothing() {
    let daemon = slow_file();
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let folder = Folder::new();
        fs::write(folder.0.join("old"), "old").expect("a file");
        for target in ["new", "old"] {
            let mut command = daemon.command(&["cp", "web:/file"]);
            let command = with_default_signals(command.arg(folder.0.join(target)));
            let mut child = command.spawn().expect("arnia");
            let part = folder.0.join(format!("{target}.arnia-{}", child.id()));
            wait_until("the partial file", || part.metadata().is_ok_and(|part| part.len() > 0));
            // So that the signal does not come before it is waited for.
            std::thread::sleep(Duration::from_millis(50));
            signal(&child, number);
            assert_eq!(ended_by(&mut child), Some(number));
            assert_eq!(folder.names(), ["old"], "{target}");
            assert_eq!(fs::read_to_string(folder.0.join("old")).expect("it is there"), "old");
        }
    }
}

#[test]
fn a_signal_that_is_ignored_stays_so() {
    let daemon = slow_file();
    let folder = Folder::new();
    let arnia = env!("CARGO_BIN_EXE_arnia");
    let script = format!("trap '' HUP; exec {arnia} cp web:/file {}", folder.0.join("new").display());
    let mut command = Command::new("sh");
    let command = with_default_signals(daemon.with_socket(command.args(["-c", &script])));
    let mut child = command.spawn().expect("sh");
    let part = folder.0.join(format!("new.arnia-{}", child.id()));
    wait_until("the partial file", || part.metadata().is_ok_and(|part| part.len() > 0));
    signal(&child, libc::SIGHUP);
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().expect("a child").is_none() && part.exists());
    signal(&child, libc::SIGTERM);
    assert_eq!(ended_by(&mut child), Some(libc::SIGTERM));
    assert!(folder.names().is_empty());
}

#[test]
fn a_conversion_that_is_ended_leaves_nothing() {
    let folder = Folder::new();
    let (source, target) = (folder.0.join("a.raw"), folder.0.join("b.qcow2"));
    let mut noise =
        fs::File::open("/dev/urandom").map(|file| std::io::Read::take(file, 256 << 20)).expect("noise");
    std::io::copy(&mut noise, &mut fs::File::create(&source).expect("a file")).expect("room");
    fs::write(&target, "old").expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_arnia"));
    command.args(["disk", "convert", "--force", "--compress"]).args([&source, &target]);
    let mut child = with_default_signals(&mut command).spawn().expect("arnia");
    let part = folder.0.join(format!(".b.qcow2.partial-{}", child.id()));
    wait_until("the partial file", || part.metadata().is_ok_and(|part| part.len() > 1 << 20));
    signal(&child, libc::SIGINT);
    assert_eq!(ended_by(&mut child), Some(libc::SIGINT));
    assert_eq!(folder.names(), ["a.raw", "b.qcow2"]);
    assert_eq!(fs::read_to_string(&target).expect("it is there"), "old");
}

/// Flags of a terminal's local modes.
fn modes(terminal: &fs::File) -> rustix::termios::LocalModes {
    rustix::termios::tcgetattr(terminal).expect("a terminal").local_modes
}

#[test]
fn the_terminal_is_as_it_was_after_a_signal() {
    let daemon = Daemon::console();
    let (_person, terminal) = stub::terminal();
    let before = modes(&terminal);
    let stdin = terminal.try_clone().expect("a descriptor");
    let mut command = daemon.command(&["console", "web"]);
    let command = with_default_signals(command.stdin(stdin).stderr(Stdio::null()));
    let mut child = command.spawn().expect("arnia");
    wait_until("another mode of the terminal", || modes(&terminal) != before);
    std::thread::sleep(Duration::from_millis(200));
    signal(&child, libc::SIGTERM);
    assert_eq!(ended_by(&mut child), Some(libc::SIGTERM));
    assert_eq!(modes(&terminal), before);
}
