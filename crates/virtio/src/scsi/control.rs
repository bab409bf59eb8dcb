//! Serving the control queue of a SCSI host, and that of events.

use super::spec::*;
use super::tasks::{TaskId, Tasks, Verdict, Which};
use super::work::place;
use super::{Changes, Targets, lock};
use crate::queue::{Chain, Queue, RingError};
use crate::worker::{Progress, Wait, Work};
use memory::Ram;
use std::sync::Arc;

/// The worker of the control queue, and of that of events.
pub(super) struct ControlWork {
    control: Option<Queue>,
    events: Option<Queue>,
    targets: Targets,
    tasks: Arc<Tasks>,
    /// Functions that are done when what they have ended was answered.
    pending: Vec<Pending>,
    /// What events are to tell of, if the driver wants to be told.
    changes: Option<Changes>,
    chain: Chain,
}

impl ControlWork {
    pub(super) fn new(
        control: Option<Queue>,
        events: Option<Queue>,
        targets: Targets,
        tasks: Arc<Tasks>,
        changes: Option<Changes>,
    ) -> ControlWork {
        if let Some(control) = &control {
            tasks.set_control(control.kick_handle());
        }
        ControlWork { control, events, targets, tasks, pending: Vec::new(), changes, chain: Chain::new() }
    }

    fn has_changes(&self) -> bool {
        self.changes.as_ref().is_some_and(|changes| !lock(changes).is_empty())
    }

    /// Tells of changes, as far as the driver has given buffers for that; whether there were any.
    fn tell(&mut self) -> bool {
        let (Some(changes), Some(queue)) = (&self.changes, &mut self.events) else { return false };
        let ram = queue.ram().clone();
        let mut told = false;
        while !lock(changes).is_empty() && queue.pop(&mut self.chain) {
            let Some(target) = lock(changes).pop_first() else { break };
            let mut event = [0; EVENT_LEN as usize];
            event[..4].copy_from_slice(&T_PARAM_CHANGE.to_le_bytes());
            // LUN 0 as REPORT LUNS tells it, which is how Linux looks for it: without the method of requests.
            event[4..8].copy_from_slice(&[1, target, 0, 0]);
            event[12..].copy_from_slice(&CAPACITY_CHANGED.to_le_bytes());
            match self.chain.write_at(&ram, 0, &event) {
                Ok(written) => queue.push(self.chain.head(), written as u32),
                Err(error) => queue.fail(error),
            }
            told = true;
        }
        if told {
            queue.signal();
        }
        told
    }

    pub(super) fn into_queues(self) -> impl Iterator<Item = Queue> {
        self.control.into_iter().chain(self.events)
    }
}

/// A function of task management that has to wait.
struct Pending {
    chain: Chain,
    /// The requests that have to be answered first.
    tasks: Vec<TaskId>,
    /// The target that is then reset.
    reset: Option<usize>,
}

/// What comes of a request to the control queue.
enum Answer {
    Now(Vec<u8>),
    /// When these requests have been answered; then the target is reset, if one is named.
    After(Vec<TaskId>, Option<usize>),
}

/// Finds out what a request to the control queue asks for, and begins it.
fn control(chain: &Chain, ram: &Ram, targets: &Targets, tasks: &Tasks) -> Result<Answer, RingError> {
    let mut request = [0; TMF_LEN];
    let len = chain.read_at(ram, 0, &mut request)?;
    let word =
        |at: usize| u32::from_le_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
    match word(0) {
        T_TMF if len >= 16 => {
            let mut tag = [0; 8];
            tag.copy_from_slice(&request[16..]);
            Ok(manage(targets, tasks, word(4), place(&request[8..16]), u64::from_le_bytes(tag)))
        }
        // No asynchronous events.
        T_AN_QUERY | T_AN_SUBSCRIBE if len >= 12 => Ok(Answer::Now(vec![0, 0, 0, 0, S_OK])),
        _ => Err(RingError::BadRequest),
    }
}

/// Carries out a task management function (SAM-5, §7).
fn manage(targets: &Targets, tasks: &Tasks, function: u32, place: Option<(usize, u16)>, tag: u64) -> Answer {
    let now = |response| Answer::Now(vec![response]);
    let Some((target, lun)) = place.filter(|(target, _)| *target < targets.len()) else {
        return now(S_BAD_TARGET);
    };
    if function > TMF_QUERY_TASK_SET {
        return now(S_FUNCTION_REJECTED);
    }
    if lun != 0 && function != TMF_I_T_NEXUS_RESET {
        return now(S_INCORRECT_LUN);
    }
    let exists = |which| if tasks.any(target, which) { S_FUNCTION_SUCCEEDED } else { S_OK };
    match function {
        TMF_ABORT_TASK => Answer::After(tasks.end(target, Which::Tag(tag), Verdict::Aborted), None),
        TMF_ABORT_TASK_SET | TMF_CLEAR_TASK_SET => {
            Answer::After(tasks.end(target, Which::All, Verdict::Aborted), None)
        }
        TMF_I_T_NEXUS_RESET | TMF_LOGICAL_UNIT_RESET => {
            Answer::After(tasks.end(target, Which::All, Verdict::Reset), Some(target))
        }
        TMF_QUERY_TASK => now(exists(Which::Tag(tag))),
        TMF_QUERY_TASK_SET => now(exists(Which::All)),
        // CLEAR ACA: there never is one.
        _ => now(S_OK),
    }
}

impl ControlWork {
    /// Answers functions whose requests have been answered, or all of them; whether there were any.
    fn finish(&mut self, regardless: bool) -> bool {
        let Some(queue) = &mut self.control else { return false };
        let is_done = |pending: &Pending| regardless || self.tasks.are_gone(&pending.tasks);
        let before = self.pending.len();
        while let Some(index) = self.pending.iter().position(is_done) {
            let Pending { chain, reset, .. } = self.pending.swap_remove(index);
            if let Some(target) = reset {
                lock(&self.targets[target]).reset();
            }
            put(queue, &chain, &[S_OK]);
        }
        before != self.pending.len()
    }

    fn has_room(&self) -> bool {
        self.control.as_ref().is_some_and(|queue| self.pending.len() < usize::from(queue.size()))
    }
}

/// Answers a request to the control queue.
fn put(queue: &mut Queue, chain: &Chain, answer: &[u8]) {
    match chain.write_at(queue.ram(), 0, answer) {
        Ok(written) => queue.push(chain.head(), written as u32),
        Err(error) => queue.fail(error),
    }
}

impl Work for ControlWork {
    fn work(&mut self) -> Progress {
        let mut did = self.tell();
        did |= self.finish(false);
        let mut batch = self.control.as_ref().map_or(0, Queue::size);
        self.control.iter_mut().for_each(Queue::disarm);
        while batch > 0 && self.has_room() {
            let Some(queue) = &mut self.control else { break };
            if !queue.pop(&mut self.chain) {
                break;
            }
            batch -= 1;
            did = true;
            match control(&self.chain, queue.ram(), &self.targets, &self.tasks) {
                Ok(Answer::Now(answer)) => put(queue, &self.chain, &answer),
                Ok(Answer::After(tasks, reset)) => {
                    self.pending.push(Pending { chain: std::mem::take(&mut self.chain), tasks, reset });
                }
                Err(error) => queue.fail(error),
            }
        }
        self.finish(false);
        self.control.iter_mut().for_each(Queue::signal);
        match self.has_room() && self.control.as_ref().is_some_and(Queue::has_available) {
            true => Progress::More,
            false => Progress::done(did),
        }
    }

    fn is_pending(&self) -> bool {
        self.has_room() && self.control.as_ref().is_some_and(Queue::has_available)
            || self.pending.iter().any(|pending| self.tasks.are_gone(&pending.tasks))
            || self.has_changes() && self.events.as_ref().is_some_and(Queue::has_available)
    }

    fn arm(&mut self) -> bool {
        let control = self.has_room() && self.control.as_mut().is_some_and(Queue::arm);
        // Buffers for events are of interest only to whoever has events.
        let events = self.has_changes() && self.events.as_mut().is_some_and(Queue::arm);
        control || events
    }

    fn wait<'a>(&'a self, wait: &mut Wait<'a>) {
        for queue in self.control.iter().chain(&self.events) {
            wait.kick(queue.kick());
        }
    }

    fn drain(&mut self) {
        // The request queues are drained, too: nothing that was ended is left when the guest goes on.
        self.finish(true);
        self.control.iter_mut().for_each(Queue::signal);
    }
}
