//! Telling what happens.

use super::{App, lock};
use crate::util;
use api::v1::event::{Event, EventKind};
use std::collections::VecDeque;
use tokio::sync::broadcast;

/// Events that are kept for those who come back after a lost connection.
const KEPT: usize = 1024;

/// What happened.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// The number of the last event. It is never given again, also when that event is forgotten.
    last: u64,
    kept: VecDeque<Event>,
}

impl App {
    /// Tells everybody who listens.
    pub(crate) fn tell(&self, project: &str, what: EventKind) {
        let mut past = lock(&self.past_events);
        past.last += 1;
        let event = Event { id: past.last, time: util::now(), project: project.to_owned(), what };
        if past.kept.len() == KEPT {
            past.kept.pop_front();
        }
        past.kept.push_back(event.clone());
        // Under the lock, so that a new listener neither misses an event nor gets it twice. Nobody listening is
        // no failure.
        let _ = self.events.send(event);
    }

    /// What happened after the event `after`, as far as it is kept, and what happens from now on.
    pub(crate) fn listen(&self, after: Option<u64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let past = lock(&self.past_events);
        let missed = match after {
            None => Vec::new(),
            Some(after) => past.kept.iter().filter(|event| event.id > after).cloned().collect(),
        };
        (missed, self.events.subscribe())
    }

    /// Forgets what happened in a project that is gone: it is nothing to a later one of its name.
    pub(super) fn forget_events(&self, project: &str) {
        lock(&self.past_events).kept.retain(|event| event.project != project);
    }
}
