//! Telling what happens.

use super::{App, lock};
use crate::util;
use api::v1::event::{Event, EventKind};
use tokio::sync::broadcast;

/// Events that are kept for those who come back after a lost connection.
const KEPT: usize = 1024;

impl App {
    /// Tells everybody who listens.
    pub(crate) fn tell(&self, project: &str, what: EventKind) {
        let mut past = lock(&self.past_events);
        let id = past.back().map_or(1, |event| event.id + 1);
        let event = Event { id, time: util::now(), project: project.to_owned(), what };
        if past.len() == KEPT {
            past.pop_front();
        }
        past.push_back(event.clone());
        // Under the lock, so that a new listener neither misses an event nor gets it twice. Nobody listening is
        // no failure.
        let _ = self.events.send(event);
    }

    /// What happened after the event `after`, as far as it is kept, and what happens from now on.
    pub(crate) fn listen(&self, after: Option<u64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let past = lock(&self.past_events);
        let missed = match after {
            None => Vec::new(),
            Some(after) => past.iter().filter(|event| event.id > after).cloned().collect(),
        };
        (missed, self.events.subscribe())
    }
}
