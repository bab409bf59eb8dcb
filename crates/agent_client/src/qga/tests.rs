//! The client against agents that are not what they should be.

use super::*;
use std::io::{BufRead, BufReader};
use std::thread::JoinHandle;

/// What the exchanges of these tests may take.
const LIMIT: Duration = Duration::from_millis(300);
/// More than a busy host needs for that.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest that sends the same bytes again and again, whatever it is told, with pauses.
fn repeating(bytes: Vec<u8>, pause: Duration) -> (UnixStream, JoinHandle<()>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let guest = thread::spawn(move || {
        while theirs.write_all(&bytes).is_ok() {
            thread::sleep(pause);
        }
    });
    (ours, guest)
}

/// A client of an agent that comes into step as it should, and then answers the next command with this.
fn answered(answer: Vec<u8>) -> (Qga<UnixStream>, JoinHandle<()>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let guest = thread::spawn(move || {
        let mut commands = BufReader::new(theirs.try_clone().unwrap()).split(b'\n');
        let sync = commands.next().unwrap().unwrap();
        let sync: Value = serde_json::from_slice(&sync[1..]).unwrap();
        let id = &sync["arguments"]["id"];
        theirs.write_all(b"what somebody else has asked for\n").unwrap();
        let synchronised = json!({"return": id}).to_string();
        theirs.write_all(&[&[DELIMITER], synchronised.as_bytes(), b"\n"].concat()).unwrap();
        commands.next().unwrap().unwrap();
        // The client may have heard enough.
        let _ = theirs.write_all(&answer);
    });
    (Qga::new(ours).unwrap(), guest)
}

#[test]
fn an_agent_that_never_comes_into_step_is_given_up() {
    for (bytes, pause) in [
        // Now and then a byte, and never the one that is waited for.
        (b"x".to_vec(), Duration::from_millis(10)),
        // A line that has no end, and lines that answer nothing.
        (vec![DELIMITER, b' '], Duration::from_millis(10)),
        (b"\xff{\"return\": 1}\n".to_vec(), Duration::from_millis(10)),
    ] {
        let begin = Instant::now();
        let (stream, guest) = repeating(bytes.clone(), pause);
        let error = Qga::begin(stream, LIMIT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{bytes:?}: {error}");
        assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
        guest.join().unwrap();
    }
}

#[test]
fn what_is_passed_over_has_a_limit() {
    for bytes in [vec![b' '; 1 << 16], [&[DELIMITER][..], &[b' '; 1 << 16], b"\n"].concat()] {
        let (stream, guest) = repeating(bytes, Duration::ZERO);
        let error = Qga::begin(stream, 10 * PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        guest.join().unwrap();
    }
}

#[test]
fn an_answer_that_comes_byte_by_byte_is_timed_out() {
    let (stream, guest) = repeating(b" ".to_vec(), Duration::from_millis(10));
    let mut qga = Qga { stream: Timed::new(stream, PATIENCE), buffer: Vec::new() };
    let begin = Instant::now();
    let limits = Limits { total: LIMIT, ..Limits::SMALL };
    let error = qga.exchange("guest-ping", json!({}), limits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    drop(qga);
    guest.join().unwrap();
}

#[test]
fn small_answers_are_small() {
    // Some 64 bytes of memory for every two of these.
    let numbers = format!("{{\"return\": [{}0]}}\n", "0,".repeat(1 << 20));
    let (mut qga, guest) = answered(numbers.into_bytes());
    let error = qga.info().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    drop(qga);
    guest.join().unwrap();
}

#[test]
fn the_output_of_programs_may_be_long_and_is_nothing_else() {
    let answer = |output: &Value| {
        json!({"return": {"exited": true, "exitcode": 3, "out-data": output, "other": [0]}}).to_string()
            + "\n"
    };
    let output = vec![0x5a; 3 << 20];
    let (mut qga, guest) = answered(answer(&BASE64_STANDARD.encode(&output).into()).into_bytes());
    let finished = qga.exec_status(1).unwrap().unwrap();
    assert!(finished.stdout == output && finished.stderr.is_empty());
    assert_eq!(finished.exit.code(), 3);
    guest.join().unwrap();
    // No value is built of what should be text.
    let (mut qga, guest) = answered(answer(&json!([0, 0])).into_bytes());
    assert_eq!(qga.exec_status(1).unwrap_err().kind(), ErrorKind::Protocol);
    guest.join().unwrap();
}
