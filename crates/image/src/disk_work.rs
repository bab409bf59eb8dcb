//! Work of the disk library, watched by somebody who watches images.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::progress::Progress;
use crate::{Error, ErrorKind};

/// Does work that tells its progress by a [`disk::Progress`], and passes that on.
pub(crate) fn with_progress(
    what: &str,
    progress: &mut dyn Progress,
    work: impl FnOnce(&disk::Progress) -> Result<(), disk::Error> + Send,
) -> Result<(), disk::Error> {
    let state = disk::Progress::default();
    let (ended, end) = channel::<()>();
    let result = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // Dropped at the end, also that of a panic.
            let _ended = ended;
            work(&state)
        });
        let (mut told, mut begun) = (0, false);
        while end.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
            let (done, total) = state.get();
            if total > 0 && !begun {
                progress.begin(what, Some(total));
                begun = true;
            }
            progress.advance(done - told);
            told = done;
            if progress.is_cancelled() {
                state.cancel();
            }
        }
        worker.join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// An error of the disk library as one of this.
pub(crate) fn refused(error: disk::Error) -> Error {
    use disk::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::NotFound => ErrorKind::NotFound,
        Kind::LockedByOther => ErrorKind::Busy,
        Kind::Cancelled => ErrorKind::Cancelled,
        Kind::Io | Kind::NoSpace | Kind::Permission => ErrorKind::Failed,
        _ => ErrorKind::BadInput,
    };
    Error::new(kind, error.to_string())
}
