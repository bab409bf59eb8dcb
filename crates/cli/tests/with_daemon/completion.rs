//! The tabulator key in a real bash at a terminal, which script(1) gives it.

use crate::rig::{Daemon, vm, wait_until};
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

const PROMPT: &str = "PROMPT>";

/// Writes down how it is called; completes as the program does.
const STAND_IN: &str = r#"#!/bin/bash
[ -n "$ARNIA_COMPLETE" ] || [ "$1" = completions ] && exec PROGRAM "$@"
printf '<%s>' "$@" >> FOLDER/called
echo >> FOLDER/called
"#;

#[test]
fn bash_completes_words_that_it_splits() {
    let daemon = Daemon::new("bash", |request| {
        Some(match request {
            _ if request.contains("/v1/vms/web/snapshots") => {
                let snapshot = json!({"id": "s", "name": "before", "vm": "web", "description": "", "bytes": 0,
                    "created": 0});
                (200, json!({"items": [snapshot]}))
            }
            _ if request.contains("/v1/vms") => (200, json!({"items": [vm("web"), vm("worker")]})),
            _ => (200, json!({"items": []})),
        })
    });
    let folder = daemon.folder().display().to_string();
    std::fs::create_dir(daemon.folder().join("bin")).expect("a folder");
    let program = daemon.folder().join("bin/arnia");
    let stand_in = STAND_IN.replace("PROGRAM", env!("CARGO_BIN_EXE_arnia")).replace("FOLDER", &folder);
    std::fs::write(&program, stand_in).expect("a program");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("a program");
    std::fs::write(
        daemon.folder().join("rc"),
        format!("PS1='{PROMPT} '\nsource <(arnia completions bash)\n"),
    )
    .expect("a file");

    // What is typed up to the key, perhaps with the cursor moved back; and how the program is called then.
    let lines = [
        ("arnia start wo\t", "<start><worker>"),
        ("arnia cp ./x we\t", "<cp><./x><web:>"),
        ("arnia cp ./x web:\t", "<cp><./x><web:>"),
        ("arnia clone web@\t", "<clone><web@before>"),
        ("arnia clone web@be\t", "<clone><web@before>"),
        ("arnia clone web@x --output=js\t", "<clone><web@x><--output=json>"),
        ("arnia --output=json start wo\t", "<--output=json><start><worker>"),
        ("true; X=1 arnia --output=js\t", "<--output=json>"),
        // The cursor is behind `wo`.
        ("arnia start wo --output=json\x1bb\x1bb\x02\x02\x02\t", "<start><worker><--output=json>"),
        ("arnia start \"wo\t", "<start><worker>"),
    ];
    let mut script = Command::new("script");
    let bash = format!("bash --rcfile '{folder}/rc' -i");
    script.args(["--quiet", "--return", "--command", &bash, "/dev/null"]);
    let path = format!("{folder}/bin:{}", std::env::var("PATH").unwrap_or_default());
    script.env("ARNIA_SOCKET", format!("{folder}/socket")).env("ARNIA_HOME", &folder).env("PATH", path);
    script.env("TERM", "dumb").env_remove("INPUTRC").env_remove("HISTFILE").env("HOME", &folder);
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script(1) starts");
    let mut keyboard = child.stdin.take().expect("piped");
    let mut screen = child.stdout.take().expect("piped");
    let shown = Arc::new(Mutex::new(String::new()));
    let seen = shown.clone();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(len @ 1..) = screen.read(&mut bytes) {
            seen.lock().expect("a lock").push_str(&String::from_utf8_lossy(&bytes[..len]));
        }
    });
    let calls = || std::fs::read_to_string(daemon.folder().join("called")).unwrap_or_default();
    let is_ready = |number| {
        let shown = shown.lock().expect("a lock");
        calls().lines().count() == number && shown.ends_with(&format!("{PROMPT} "))
    };
    for (number, (keys, _)) in lines.iter().enumerate() {
        wait_until("the prompt", || is_ready(number));
        // To the end, for where the cursor was moved.
        keyboard.write_all(format!("{keys}\x05\n").as_bytes()).expect("keys");
    }
    wait_until("the last prompt", || is_ready(lines.len()));
    drop(keyboard);
    child.kill().expect("it ends");
    child.wait().expect("it ends");
    let expected = lines.iter().map(|(_, called)| *called).collect::<Vec<_>>();
    assert_eq!(calls().lines().collect::<Vec<_>>(), expected, "{}", shown.lock().expect("a lock"));
}
