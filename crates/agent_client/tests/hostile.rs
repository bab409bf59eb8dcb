//! The client against agents that mean it harm: played by hand, over a Unix socket.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use agent_client::{Agent, Command, Endpoint, ErrorKind, GuestFiles};
use api::agent::frame::{FrameKind, read_frame, write_frame};
use api::agent::{Attributes, Entry, FileKind, Reply, ReplyResult};

/// More than a busy host needs for anything here.
const PATIENCE: Duration = Duration::from_secs(60);

/// An agent that does this with every connection, after the first request. Its socket is gone when it is dropped.
struct Hostile {
    socket: PathBuf,
}

impl Hostile {
    fn new(name: &str, act: impl Fn(UnixStream) + Send + Sync + Copy + 'static) -> Hostile {
        let socket = std::env::temp_dir().join(format!("arnia-hostile-{name}-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("a socket");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                thread::spawn(move || {
                    if let Ok(Some(_)) = read_frame(&mut stream) {
                        act(stream);
                    }
                });
            }
        });
        Hostile { socket }
    }

    fn agent(&self) -> Agent {
        Agent::new(Endpoint::Direct(self.socket.clone()))
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn reply(stream: &mut UnixStream, reply: Reply) -> bool {
    let text = serde_json::to_vec(&ReplyResult::Ok(reply)).expect("JSON");
    write_frame(stream, FrameKind::Reply, &text).is_ok()
}

/// A program with more input than the agent ever takes.
fn program() -> Command {
    Command::new(["true"]).input(vec![b'x'; 4 << 20])
}

#[test]
fn a_program_that_says_something_for_ever_is_given_up() {
    let hostile = Hostile::new("drips", |mut stream| {
        reply(&mut stream, Reply::Started);
        while write_frame(&mut stream, FrameKind::Stdout, b"x").is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
    });
    let begin = Instant::now();
    let error =
        hostile.agent().run(&program().within(Duration::from_millis(300))).expect_err("it has no end");
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert_eq!(error.to_string(), "the program in the guest has not ended within 0.3 s");
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
}

#[test]
fn whatever_ends_a_program_its_input_is_not_waited_for() {
    // Too much output, and no output that makes sense; meanwhile the input stands still.
    let floods = Hostile::new("floods", |mut stream| {
        reply(&mut stream, Reply::Started);
        while write_frame(&mut stream, FrameKind::Stdout, &[b'x'; 1 << 16]).is_ok() {}
    });
    let lies = Hostile::new("lies", |mut stream| {
        reply(&mut stream, Reply::Started);
        let _ = write_frame(&mut stream, FrameKind::Data, b"x");
        // Held open until the host hangs up, and nothing is read.
        thread::sleep(PATIENCE);
    });
    for hostile in [floods, lies] {
        let begin = Instant::now();
        let error = hostile.agent().run(&program()).expect_err("it breaks the protocol");
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    }
    // One that ends well although it has taken nothing.
    let ends = Hostile::new("ends", |mut stream| {
        reply(&mut stream, Reply::Started);
        let _ = write_frame(&mut stream, FrameKind::Event, br#"{"type":"exited","status":0}"#);
        thread::sleep(PATIENCE);
    });
    let begin = Instant::now();
    ends.agent().run(&program()).expect("it has ended");
    assert!(begin.elapsed() < PATIENCE / 2, "{:?}", begin.elapsed());
}

/// Answers every request for a list with the same entry, and that there is more.
fn list(mut stream: UnixStream, name_len: usize, target_len: usize) {
    let attributes = Attributes {
        kind: FileKind::Link,
        size: 0,
        mode: 0,
        uid: 0,
        gid: 0,
        modified_s: 0,
        target: Some("t".repeat(target_len)),
    };
    // As many as fit a frame, if they are not too long.
    let count = if target_len > 1000 { 20 } else { 256 };
    let entries = vec![Entry { name: "n".repeat(name_len), attributes }; count];
    while reply(&mut stream, Reply::Entries { entries: entries.clone(), more: true }) {
        if !matches!(read_frame(&mut stream), Ok(Some(_))) {
            return;
        }
    }
}

#[test]
fn a_folders_list_is_bounded() {
    let longest = Hostile::new("names", |stream| list(stream, 256, 1));
    let error = longest.agent().list("/x").expect_err("a name of 256 bytes");
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    let far = Hostile::new("targets", |stream| list(stream, 1, 4097));
    let error = far.agent().list("/x").expect_err("a target of 4097 bytes");
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    // Fewer than a million, and far more than any folder should take.
    let much = Hostile::new("many", |stream| list(stream, 255, 4096));
    let error = much.agent().list("/x").expect_err("it has no end");
    assert!(error.to_string().contains("128 MiB"), "{error}");
}
