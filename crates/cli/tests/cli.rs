//! The program as a user calls it.

use std::process::{Command, Output};

fn arnia(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_arnia")).args(arguments).output().expect("arnia starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

#[test]
fn the_version_comes_in_every_format() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(stdout(&arnia(&["version"])), format!("Client:  {version}\n"));
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&arnia(&["version", "-o", "json"]))).expect("JSON");
    assert_eq!(json, serde_json::json!({ "client": version }));
    assert!(stdout(&arnia(&["-o", "yaml", "version"])).contains("client: "));
}

#[test]
fn wrong_options_end_with_status_2() {
    for arguments in [&["fly"][..], &["version", "--nonsense"], &["version", "-o", "xml"], &[]] {
        let output = arnia(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn completions_are_written_and_a_closed_pipe_is_no_failure() {
    let output = arnia(&["completions", "bash"]);
    assert!(output.status.success() && stdout(&output).contains("_arnia"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_arnia"))
        .args(["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("arnia starts");
    drop(child.stdout.take());
    assert!(child.wait().expect("arnia ends").success());
}

#[test]
fn a_full_standard_error_does_not_change_the_status() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let mut command = Command::new(env!("CARGO_BIN_EXE_arnia"));
    let status = command.args(["disk", "info", "/nosuch"]).stderr(full).status().expect("arnia starts");
    assert_eq!(status.code(), Some(3), "{status}");
}

#[test]
fn programs_are_told_that_a_format_has_nothing_to_check() {
    let path = std::env::temp_dir().join(format!("arnia-check-{}.raw", std::process::id()));
    std::fs::write(&path, [0; 1024]).expect("a file");
    let output = arnia(&["disk", "check", "-o", "json", path.to_str().expect("text")]);
    std::fs::remove_file(&path).expect("it is there");
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a document");
    assert_eq!((&value["checked"], &value["errors"]), (&false.into(), &0.into()));
    assert!(output.status.success());
}
