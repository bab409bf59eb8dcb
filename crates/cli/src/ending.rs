//! What is put right when a signal ends the program: files that are not whole are removed, the terminal is made as it was.
//!
//! ```text
//!   SIGINT, SIGTERM, SIGHUP ──> thread "signals": default actions again ─> what was asked for ─> the same signal: the end
//! ```
//!
//! The program still ends by the signal, so that whoever started it sees why. A second signal ends it at once, whatever
//! is still being done.

use futures_util::future::select_all;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use tokio::signal::unix::{Signal, SignalKind, signal};

type Action = Box<dyn FnOnce() + Send>;

/// What is to be done, with numbers by which it is found.
static ACTIONS: Mutex<Vec<(u64, Action)>> = Mutex::new(Vec::new());

/// The signals that a person or the host ends programs with.
const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// As long as this lives, its action is done when a signal ends the program.
#[must_use]
#[derive(Debug)]
pub(crate) struct OnSignal(u64);

/// Has something done when a signal ends the program, in a thread of its own. Where signals cannot be taken, nothing is.
pub(crate) fn on_signal(action: impl FnOnce() + Send + 'static) -> OnSignal {
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    actions().push((number, Box::new(action)));
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let (ready, is_ready) = channel();
        // Without the thread, or the signals, they end the program as ever.
        if std::thread::Builder::new().name("signals".into()).spawn(|| wait(ready)).is_ok() {
            let _ = is_ready.recv();
        }
    });
    OnSignal(number)
}

impl Drop for OnSignal {
    fn drop(&mut self) {
        // While the actions are done, this waits for the program's end.
        actions().retain(|(number, _)| *number != self.0);
    }
}

fn actions() -> MutexGuard<'static, Vec<(u64, Action)>> {
    ACTIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for one of the signals, and ends the program.
fn wait(ready: Sender<()>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
    runtime.block_on(async {
        let taken = SIGNALS.into_iter().filter(|&number| !is_ignored(number));
        let mut taken: Vec<(libc::c_int, Signal)> =
            taken.filter_map(|number| Some((number, signal(SignalKind::from_raw(number)).ok()?))).collect();
        let _ = ready.send(());
        if taken.is_empty() {
            return;
        }
        let each = taken.iter_mut().map(|(number, signal)| {
            Box::pin(async move {
                signal.recv().await;
                *number
            })
        });
        let (number, ..) = select_all(each).await;
        end(number);
    });
}

/// Does what was asked for, and ends the program by the signal.
fn end(number: libc::c_int) {
    let mut actions = actions();
    SIGNALS.into_iter().filter(|&number| !is_ignored(number)).for_each(|number| {
        // SAFETY: the default action is no function.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    });
    actions.drain(..).for_each(|(_, action)| action());
    // SAFETY: the signal's action is the default one, which is the end of the program.
    unsafe { libc::raise(number) };
}

/// Whether the program was started with the signal ignored, as by `nohup`: it stays so.
fn is_ignored(number: libc::c_int) -> bool {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the call writes to `now`, of which all zeroes is a value, too.
    let now = unsafe {
        libc::sigaction(number, std::ptr::null(), now.as_mut_ptr());
        now.assume_init()
    };
    now.sa_sigaction == libc::SIG_IGN
}
