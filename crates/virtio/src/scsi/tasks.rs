//! What is in flight at a SCSI host, of all its request queues together: what waits for the limit of its disk, and what
//! is being carried out. Task management looks at it and ends what waits.
//!
//! ```text
//!  request worker                      here                       control worker
//!   begin ── waits ──────────────────> task                        ABORT TASK, … ──> end: a verdict
//!     └───── may go on ──> begun ────> task (begun)                   │ wakes the request workers
//!   carried out, or answered by the verdict ──> gone ── wakes ──────> answers when all that it ended are gone
//! ```

use super::lock;
use crate::Kick;
use std::sync::{Arc, Mutex};

/// Why a request is not carried out any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// By ABORT TASK, ABORT TASK SET or CLEAR TASK SET.
    Aborted,
    /// By a reset of the unit or the target.
    Reset,
}

/// Names a request as long as it is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TaskId(u64);

#[derive(Debug)]
struct Task {
    id: TaskId,
    target: usize,
    /// By what the driver names it.
    tag: u64,
    begun: bool,
    verdict: Option<Verdict>,
}

/// Which requests to a target are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    All,
    /// With this tag.
    Tag(u64),
}

/// The requests in flight. A driver's rings bound their number.
#[derive(Default)]
pub(super) struct Tasks {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tasks: Vec<Task>,
    next: u64,
    /// Whoever carries out requests.
    workers: Vec<Arc<Kick>>,
    /// Whoever manages them.
    control: Option<Arc<Kick>>,
}

impl Tasks {
    /// Forgets whom to wake, and all requests. For when nobody is at work.
    pub(super) fn clear(&self) {
        *lock(&self.state) = State::default();
    }

    /// A worker of requests has to be woken by this.
    pub(super) fn add_worker(&self, kick: Arc<Kick>) {
        lock(&self.state).workers.push(kick);
    }

    /// The worker of the control queue has to be woken by this.
    pub(super) fn set_control(&self, kick: Arc<Kick>) {
        lock(&self.state).control = Some(kick);
    }

    /// A request has come; `begun` says that it is carried out at once.
    pub(super) fn add(&self, target: usize, tag: u64, begun: bool) -> TaskId {
        let mut state = lock(&self.state);
        let id = TaskId(state.next);
        state.next += 1;
        state.tasks.push(Task { id, target, tag, begun, verdict: None });
        id
    }

    /// A request that has waited is carried out now, unless it was ended meanwhile.
    pub(super) fn begin(&self, id: TaskId) -> Result<(), Verdict> {
        let mut state = lock(&self.state);
        match state.tasks.iter_mut().find(|task| task.id == id) {
            Some(Task { verdict: Some(verdict), .. }) => Err(*verdict),
            Some(task) => {
                task.begun = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether a request was ended while it waited.
    pub(super) fn is_ended(&self, id: TaskId) -> bool {
        lock(&self.state).tasks.iter().any(|task| task.id == id && task.verdict.is_some())
    }

    /// A request has been answered.
    pub(super) fn remove(&self, id: TaskId) {
        let mut state = lock(&self.state);
        if let Some(index) = state.tasks.iter().position(|task| task.id == id) {
            let task = state.tasks.remove(index);
            // Who ended it, or found it being carried out, may be waiting for that.
            if task.begun || task.verdict.is_some() {
                state.control.iter().for_each(|kick| kick.notify());
            }
        }
    }

    /// Whether there are such requests.
    pub(super) fn any(&self, target: usize, which: Which) -> bool {
        lock(&self.state).tasks.iter().any(|task| task.is(target, which))
    }

    /// Ends the requests that wait. Returns them and those that are being carried out: all that have to be answered before
    /// this is done.
    pub(super) fn end(&self, target: usize, which: Which, verdict: Verdict) -> Vec<TaskId> {
        let mut state = lock(&self.state);
        let mut meant = Vec::new();
        for task in state.tasks.iter_mut().filter(|task| task.is(target, which)) {
            if !task.begun {
                task.verdict.get_or_insert(verdict);
            }
            meant.push(task.id);
        }
        if !meant.is_empty() {
            state.workers.iter().for_each(|kick| kick.notify());
        }
        meant
    }

    /// Whether none of these is in flight any more.
    pub(super) fn are_gone(&self, ids: &[TaskId]) -> bool {
        !lock(&self.state).tasks.iter().any(|task| ids.contains(&task.id))
    }
}

impl Task {
    fn is(&self, target: usize, which: Which) -> bool {
        self.target == target
            && match which {
                Which::All => true,
                Which::Tag(tag) => self.tag == tag,
            }
    }
}
