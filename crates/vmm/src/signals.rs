//! Signals that ask the worker to end, as events.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Which kind of end a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, SIGINT, SIGHUP: please.
    Terminate,
    /// SIGQUIT: at once.
    Quit,
}

const ASKING: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Takes the signals away from their default action, in this thread and all that it starts later. Call it
/// before any other thread exists.
///
/// # Errors
/// When the host refuses.
pub fn take_over() -> io::Result<Signals> {
    let set = signal_set();
    // SAFETY: the set is initialised, and the old mask is not asked for.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: the set is initialised; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and belongs to nobody else.
    Ok(Signals { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
}

fn signal_set() -> libc::sigset_t {
    // SAFETY: all zeroes is a valid value to be initialised by sigemptyset; the numbers are valid.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in ASKING {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

/// The signals that were taken over.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Starts a thread that reports each signal.
    ///
    /// # Errors
    /// When the host refuses another thread.
    pub fn start(self, on_signal: impl Fn(Signal) + Send + 'static) -> io::Result<()> {
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            while let Ok(signal) = self.next() {
                on_signal(signal);
            }
        })?;
        Ok(())
    }

    fn next(&self) -> io::Result<Signal> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        loop {
            match rustix::io::read(&self.fd, &mut info) {
                Ok(count) if count == info.len() => break,
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        // ssi_signo is the first field (signalfd(2)).
        match i32::from_ne_bytes([info[0], info[1], info[2], info[3]]) {
            libc::SIGQUIT => Ok(Signal::Quit),
            _ => Ok(Signal::Terminate),
        }
    }
}
