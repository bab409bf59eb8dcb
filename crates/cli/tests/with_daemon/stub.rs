//! A daemon whose answers may be cut short or of any bytes, and what tests of signals need beside it.

use super::rig::{read_request, wait_until};
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder that goes with the test.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("arnia-cli-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    /// The names in it, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries =
            fs::read_dir(&self.0).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What the daemon answers.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// How long the body is said to be; what is missing never comes.
    pub(crate) len: usize,
}

impl Answer {
    pub(crate) fn json(status: u16, value: &serde_json::Value) -> Answer {
        let body = value.to_string().into_bytes();
        Answer { status, len: body.len(), body }
    }
}

/// A daemon at a socket in a folder of its own. Its threads end with the test's process.
pub(crate) struct Daemon {
    folder: Folder,
}

impl Daemon {
    /// One that answers each request by its first line.
    pub(crate) fn start(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Daemon {
        let answer = Arc::new(answer);
        Daemon::serve(move |stream| {
            let answer = answer.clone();
            std::thread::spawn(move || reply(stream, &*answer));
        })
    }

    /// One that connects to a console, which says nothing.
    pub(crate) fn console() -> Daemon {
        Daemon::serve(|stream| {
            std::thread::spawn(|| {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    stream.set_nonblocking(true).expect("a socket");
                    let stream = tokio::net::UnixStream::from_std(stream).expect("a socket");
                    let _console = tokio_tungstenite::accept_async(stream).await.expect("a WebSocket");
                    std::future::pending::<()>().await;
                });
            });
        })
    }

    fn serve(connected: impl Fn(UnixStream) + Send + 'static) -> Daemon {
        let folder = Folder::new();
        let listener = UnixListener::bind(folder.0.join("socket")).expect("a socket");
        std::thread::spawn(move || listener.incoming().flatten().for_each(connected));
        Daemon { folder }
    }

    /// The program, which is to ask this daemon.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_arnia"));
        self.with_socket(command.args(arguments));
        command
    }

    pub(crate) fn with_socket<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("ARNIA_SOCKET", self.folder.0.join("socket")).env_remove("ARNIA_PROJECT")
    }

    pub(crate) fn arnia(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("arnia starts")
    }
}

fn reply(mut stream: UnixStream, answer: &dyn Fn(&str) -> Answer) {
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    let request = read_request(&mut reader);
    let Answer { status, body, len } = answer(&request);
    let head =
        format!("HTTP/1.1 {status} It\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n\r\n");
    // The program may have gone already.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    // Until the program has had enough.
    let _ = reader.read_to_end(&mut Vec::new());
}

/// Has the program started with the default actions of signals, whatever the test was started with: what a shell puts
/// into the background ignores SIGINT, what nohup starts SIGHUP.
pub(crate) fn with_default_signals(command: &mut Command) -> &mut Command {
    let defaults = || {
        for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: the default action is no function.
            unsafe { libc::signal(number, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: signal(2) may be called between fork and exec.
    unsafe { command.pre_exec(defaults) }
}

/// The signal that has ended the program.
pub(crate) fn ended_by(child: &mut Child) -> Option<i32> {
    let mut status = None;
    wait_until("the program's end", || {
        status = child.try_wait().expect("a child");
        status.is_some()
    });
    status.and_then(|status| status.signal())
}

pub(crate) fn signal(child: &Child, number: i32) {
    // SAFETY: the call reads and writes no memory of this program.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, number) }, 0);
}

/// Both ends of a terminal: the person's, and the program's.
pub(crate) fn terminal() -> (File, File) {
    let (mut person, mut program) = (-1, -1);
    let nothing = std::ptr::null_mut();
    // SAFETY: both numbers are written to, and the other pointers may be null.
    let made = unsafe { libc::openpty(&mut person, &mut program, nothing, nothing.cast(), nothing.cast()) };
    assert_eq!(made, 0);
    // SAFETY: the descriptors are new, and nobody else's.
    unsafe { (File::from_raw_fd(person), File::from_raw_fd(program)) }
}
