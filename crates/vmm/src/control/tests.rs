use super::*;
use api::worker::control::{ControlErrorKind, LINE_LEN_MAX, Reply, ReplyLine, ReplyResult};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

fn path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("arnia-control-{}-{n}.sock", std::process::id()))
}

/// A server that does what is asked, but for `reset`, which it forgets.
fn serve(path: &Path) -> Server {
    let handler: Handler = Arc::new(|request, reply| match request {
        Request::Reset {} => drop(reply),
        Request::Pause {} => reply.refuse(ControlErrorKind::WrongState, "it is paused"),
        _ => reply.send(Ok(Reply::Done)),
    });
    Listener::bind(path).unwrap().serve(handler).unwrap()
}

fn ask(stream: &UnixStream, line: &str) -> ReplyLine {
    let mut to = stream;
    to.write_all(line.as_bytes()).unwrap();
    to.write_all(b"\n").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{answer}: {e}"))
}

fn kind(reply: ReplyLine) -> Option<ControlErrorKind> {
    match reply.result {
        ReplyResult::Ok(_) => None,
        ReplyResult::Error(error) => Some(error.kind),
    }
}

#[test]
fn requests_are_answered_and_malformed_ones_too() {
    let path = path();
    let _server = serve(&path);
    let (one, two) = (UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap());
    let reply = ask(&one, r#"{"op": "stop", "id": 5}"#);
    assert_eq!(reply, ReplyLine { id: Some(5), result: ReplyResult::Ok(Reply::Done) });
    for (line, expected) in [
        (r#"{"op": "status", "version": 1}"#, None),
        (r#"{"op": "status", "version": 2}"#, Some(ControlErrorKind::UnsupportedVersion)),
        (r#"{"op": "pause"}"#, Some(ControlErrorKind::WrongState)),
        (r#"{"op": "reset"}"#, Some(ControlErrorKind::WrongState)),
        (r#"{"op": "fly"}"#, Some(ControlErrorKind::UnknownOperation)),
        (r#"{"op": "stop", "now": true}"#, Some(ControlErrorKind::Malformed)),
        (r#"{"op": 1}"#, Some(ControlErrorKind::Malformed)),
        ("{}", Some(ControlErrorKind::Malformed)),
        ("hello", Some(ControlErrorKind::Malformed)),
        ("[[[[[[[[", Some(ControlErrorKind::Malformed)),
        ("\u{0}", Some(ControlErrorKind::Malformed)),
        (r#"{"op": "power"}"#, None),
    ] {
        assert_eq!(kind(ask(&two, line)), expected, "{line}");
    }
    let refused = ask(&one, r#"{"id": 9, "op": "fly"}"#);
    assert_eq!(refused.id, Some(9), "the ID comes back with an error, too");
}

#[test]
fn a_line_without_end_is_refused_and_its_client_sent_away() {
    let path = path();
    let _server = serve(&path);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(&vec![b'x'; LINE_LEN_MAX + 1]).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let reply: ReplyLine = serde_json::from_str(&answer).unwrap();
    assert_eq!(kind(reply), Some(ControlErrorKind::Malformed));
}

#[test]
fn too_many_clients_are_sent_away() {
    let path = path();
    let _server = serve(&path);
    let clients: Vec<_> = (0..CLIENTS_MAX)
        .map(|_| {
            let client = UnixStream::connect(&path).unwrap();
            assert_eq!(kind(ask(&client, r#"{"op": "status"}"#)), None);
            client
        })
        .collect();
    let mut answer = String::new();
    UnixStream::connect(&path).unwrap().read_to_string(&mut answer).unwrap();
    assert_eq!(kind(serde_json::from_str(&answer).unwrap()), Some(ControlErrorKind::Busy));
    drop(clients);
}

#[test]
fn the_socket_is_private_and_goes_with_the_server() {
    use std::os::unix::fs::PermissionsExt;
    let path = path();
    let server = serve(&path);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let idle = UnixStream::connect(&path).unwrap();
    drop(server);
    assert!(!path.exists());
    assert_eq!((&idle).read(&mut [0]).unwrap(), 0, "clients are sent away");
}

#[test]
fn a_living_socket_is_respected_and_a_dead_one_replaced() {
    let path = path();
    let server = serve(&path);
    let error = Listener::bind(&path).unwrap_err();
    assert!(error.report().contains("another program listens"), "{}", error.report());
    assert!(path.exists());
    drop(server);

    // A socket whose process was killed.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(Listener::bind(&path).unwrap());
    assert!(!path.exists());

    std::fs::write(&path, b"precious").unwrap();
    let error = Listener::bind(&path).unwrap_err();
    assert!(error.report().contains("not a socket"), "{}", error.report());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
}
