//! A bar for work that takes more than a moment.

use super::refused;
use crate::ending::on_signal;
use crate::{Error, bar};
use disk::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Work shorter than this needs no bar.
const PATIENCE: Duration = Duration::from_millis(700);

/// Does the work, with a bar on the terminal meanwhile. A signal that ends the program lets the work leave everything sound
/// first: no file that is not whole stays behind.
pub(super) fn with_bar(
    what: &str,
    work: impl FnOnce(&Progress) -> Result<(), disk::Error> + Send,
) -> Result<(), Error> {
    let progress = Arc::new(Progress::default());
    let (ended, end) = channel::<()>();
    let (left, is_left) = channel::<()>();
    let cancelled = progress.clone();
    let _on_signal = on_signal(move || {
        cancelled.cancel();
        // Nothing is sent: the channel ends with the work.
        let _ = is_left.recv();
    });
    let result = std::thread::scope(|scope| {
        let progress = &*progress;
        let worker = scope.spawn(move || {
            // Dropped at the end, also that of a panic.
            let _ended = (ended, left);
            work(progress)
        });
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        bar.set_style(bar::style(Some(0)));
        bar.set_message(what.to_owned());
        let started = Instant::now();
        while end.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
            let (done, total) = progress.get();
            if bar.is_hidden() && started.elapsed() >= PATIENCE {
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
            bar.set_length(total);
            bar.set_position(done);
        }
        bar.finish_and_clear();
        worker.join()
    });
    match result {
        Ok(result) => result.map_err(refused),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
