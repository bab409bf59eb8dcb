//! Bodies of the fuzz targets: plain functions of bytes that must neither panic nor hang.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use crate::connection::Connection;
use crate::exec::{Exec, ExecEvent};
use crate::qga::Qga;
use crate::timed::Timeouts;
use api::agent::Request;

/// What sends nothing for so long has hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// Plays a hostile agent: `data` is what it sends, whatever it is asked.
pub fn agent(data: &[u8]) {
    let Ok((ours, theirs)) = UnixStream::pair() else { return };
    let data = data.to_vec();
    let feeder = thread::spawn(move || {
        let mut theirs = theirs;
        // The other side may have heard enough.
        let _ = theirs.write_all(&data).and_then(|()| theirs.shutdown(std::net::Shutdown::Write));
        let _ = io::copy(&mut theirs, &mut io::sink());
    });
    let mut connection = Connection::new(ours, PATIENCE);
    while connection.request(Request::Info {}).is_ok() {}
    if let Ok(exec) = Exec::new(connection) {
        let (_, mut output) = exec.split();
        while let Ok(event) = output.next_event() {
            if matches!(event, ExecEvent::Exited(_)) {
                break;
            }
        }
    }
    let _ = feeder.join();
}

/// Plays a hostile agent of QEMU's kind.
pub fn qemu_agent(data: &[u8]) {
    let stream = Script { data };
    let Ok(mut qga) = Qga::new(stream) else { return };
    let _ = qga.ping();
    let _ = qga.interfaces();
    let _ = qga.exec_status(1);
    let _ = crate::qga::files::entries(&String::from_utf8_lossy(data));
}

struct Script<'a> {
    data: &'a [u8],
}

impl Read for Script<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.data.read(buffer)
    }
}

impl Write for Script<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All that it sends is there at once.
impl Timeouts for Script<'_> {
    fn limit_reads(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn limit_writes(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::agent::frame::{FrameKind, write_frame};

    /// A small generator of repeatable pseudo-random numbers (xorshift64).
    struct Random(u64);
    impl Random {
        fn below(&mut self, n: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % n as u64) as usize
        }
    }

    #[test]
    fn hostile_agents_are_survived() {
        let mut seed = Vec::new();
        for (kind, text) in [
            (FrameKind::Reply, r#"{"ok":{"type":"done"}}"#),
            (FrameKind::Stdout, "hello"),
            (FrameKind::Event, r#"{"type":"input_taken","bytes":3}"#),
            (FrameKind::Event, r#"{"type":"exited","status":3}"#),
        ] {
            write_frame(&mut seed, kind, text.as_bytes()).unwrap();
        }
        let lines = b"\xff{\"return\": 1}\n{\"return\": []}\n{\"error\": {\"class\": \"x\"}}\n";
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for round in 0..600 {
            let mut data = if round % 2 == 0 { seed.clone() } else { lines.to_vec() };
            for _ in 0..random.below(5) {
                let at = random.below(data.len());
                data[at] = [0, 1, 0x7f, 0xff, b'"', b'\n', random.below(256) as u8][random.below(7)];
            }
            let mut listed =
                b"41ed 0 0 4096 10 .//b\n81a4 1 2 3 4 .//a\na1ff 0 0 4 11 .//l\n\0.//l\0to\n\0".to_vec();
            let at = random.below(listed.len());
            listed[at] = [0, b'\n', b'/', b'.', b' ', b'9'][random.below(6)];
            qemu_agent(&listed);
            agent(&data);
            qemu_agent(&data);
        }
    }
}
