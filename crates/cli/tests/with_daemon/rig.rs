//! A daemon that answers what a test says, and the program called with it.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest wait for what a test expects.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is answered to a request, `METHOD PATH`: status and body, or nothing at all.
pub(crate) type Answer = fn(&str) -> Option<(u16, Value)>;

/// A daemon in a folder of its own, which is removed with it.
pub(crate) struct Daemon {
    folder: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Daemon {
    /// Listens until the test program ends. The name is the test's own.
    pub(crate) fn new(name: &str, answer: Answer) -> Daemon {
        let folder = std::env::temp_dir().join(format!("arnia-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let listener = UnixListener::bind(folder.join("socket")).expect("a socket");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let log = log.clone();
                std::thread::spawn(move || serve(stream, answer, &log));
            }
        });
        Daemon { folder, asked }
    }

    /// For files of the test; what the program keeps is there, too.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The program, which talks to this daemon.
    pub(crate) fn arnia(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_arnia"));
        command.args(arguments).env("ARNIA_SOCKET", self.folder.join("socket"));
        command.env("ARNIA_HOME", &self.folder).env_remove("ARNIA_PROJECT").env_remove("ARNIA_CONTEXT");
        command
    }

    /// What was asked for until now: method, and path without a query.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Waits until something is so.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what} does not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Reads a request, and returns its first line.
pub(crate) fn read_request(reader: &mut impl BufRead) -> String {
    let mut head = String::new();
    let mut len = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            len = value.trim().parse().unwrap_or(0);
        }
        if head.is_empty() {
            head = line;
        }
    }
    let _ = reader.read_exact(&mut vec![0; len]);
    head
}

fn serve(stream: UnixStream, answer: Answer, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(&stream);
    let head = read_request(&mut reader);
    let request = head.trim().trim_end_matches(" HTTP/1.1");
    let path = request.split('?').next().unwrap_or_default().to_owned();
    log.lock().unwrap_or_else(PoisonError::into_inner).push(path);
    let Some((status, body)) = answer(request) else {
        // As long as the other side waits.
        let _ = reader.read(&mut [0]);
        return;
    };
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!("HTTP/1.1 {status} -\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let _ = (&stream).write_all((head + &body).as_bytes());
}

/// A machine of this name, which runs.
pub(crate) fn vm(name: &str) -> Value {
    json!({"id": name, "name": name, "project": "default", "state": "running", "restart_needed": false,
        "config": {"boot": {"kernel": "/k"}, "nics": []}, "created": 0, "revision": 1})
}

/// An operation in this state.
pub(crate) fn operation(id: &str, state: &str) -> Value {
    let target = json!({"kind": "vm", "id": "web", "name": "web"});
    json!({"id": id, "kind": "vm_start", "project": "default", "target": target, "state": state, "user": "owner",
        "created": 0})
}

/// A refusal with this code.
pub(crate) fn refusal(code: &str) -> Value {
    json!({"error": {"code": code, "message": format!("the answer is {code}")}})
}
