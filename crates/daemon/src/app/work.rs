//! How far an operation is, and whether it is called off.

use super::{App, lock};
use api::v1::event::EventKind;
use api::v1::operation::{Operation, Progress};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// An operation under way, as those who work on it and those who watch it see it.
#[derive(Debug, Default)]
pub(crate) struct Work {
    progress: Mutex<Option<Progress>>,
    cancelled: AtomicBool,
    /// Who is told when something new begins.
    told: Option<(Arc<App>, Operation)>,
}

impl Work {
    /// That of an operation.
    pub(super) fn of(app: &Arc<App>, operation: &Operation) -> Work {
        Work { told: Some((app.clone(), operation.clone())), ..Work::default() }
    }

    /// What is done just now.
    pub(crate) fn progress(&self) -> Option<Progress> {
        lock(&self.progress).clone()
    }

    /// Calls it off; it ends when it notices.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Something new begins; `total` is in bytes, if it is known.
    pub(super) fn begin(&self, message: &str, total: Option<u64>) {
        let progress = Progress { message: message.to_owned(), done: total.map(|_| 0), total };
        *lock(&self.progress) = Some(progress.clone());
        if let Some((app, operation)) = &self.told {
            let view = Operation { progress: Some(progress), ..operation.clone() };
            let project = view.project.clone();
            app.tell(&project, EventKind::OperationChanged { operation: Box::new(view) });
        }
    }

    /// How many bytes are done.
    pub(super) fn reach(&self, bytes: u64) {
        if let Some(progress) = lock(&self.progress).as_mut() {
            progress.done = Some(bytes);
        }
    }
}

/// Lets the image library tell how far it is.
pub(super) struct Watch(pub(super) Arc<Work>);

impl image::Progress for Watch {
    fn begin(&mut self, what: &str, total: Option<u64>) {
        self.0.begin(what, total);
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(done) = lock(&self.0.progress).as_mut().and_then(|progress| progress.done.as_mut()) {
            *done += bytes;
        }
    }

    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}
