//! Serving the queues of a SCSI host.

use super::spec::*;
use super::unit::{Data, Outcome};
use super::{Changes, Sizes, Targets, lock};
use crate::queue::{Chain, Queue, RingError};
use crate::worker::{Progress, Wait, Work, serve};
use ::scsi::Sense;
use disk::Buffers;
use memory::Ram;
use std::sync::Arc;

/// The worker of a request queue.
pub(super) struct RequestWork {
    queue: Queue,
    targets: Targets,
    sizes: Sizes,
    chain: Chain,
}

impl RequestWork {
    pub(super) fn new(queue: Queue, targets: Targets, sizes: Sizes) -> RequestWork {
        RequestWork { queue, targets, sizes, chain: Chain::new() }
    }

    pub(super) fn into_queue(self) -> Queue {
        self.queue
    }
}

/// Carries out a request; returns how much it has written.
fn request(chain: &Chain, ram: &Arc<Ram>, targets: &Targets, sizes: Sizes) -> Result<u32, RingError> {
    let (head, answer) = (REQUEST_HEAD + sizes.cdb, ANSWER_HEAD + sizes.sense);
    if chain.readable_len() < head || chain.writable_len() < answer {
        return Err(RingError::BadRequest);
    }
    let mut request = vec![0; head as usize];
    chain.read_at(ram, 0, &mut request)?;
    let mut cdb = [0; 16];
    let given = &request[REQUEST_HEAD as usize..];
    let len = given.len().min(cdb.len());
    cdb[..len].copy_from_slice(&given[..len]);
    let mut data = ChainData { chain, ram, out_at: head, in_at: answer };
    let expected = data.out_len().max(data.in_len());
    let unit = place(&request[..LUN_LEN]).and_then(|(target, lun)| Some((targets.get(target)?, lun)));
    let (response, outcome) = match unit {
        None => (S_BAD_TARGET, Outcome { status: GOOD, sense: None, moved: 0 }),
        Some((unit, 0)) if cdb[0] != REPORT_LUNS => (S_OK, lock(unit).run(&cdb, &mut data)),
        Some((_, lun)) => (S_OK, elsewhere(&cdb, lun, &mut data)),
    };
    let sense = outcome.sense.map(Sense::fixed);
    let sense_len = sense.map_or(0, |sense| sense.len().min(sizes.sense as usize));
    let mut bytes = [0; ANSWER_HEAD as usize];
    bytes[..4].copy_from_slice(&(sense_len as u32).to_le_bytes());
    let residual = expected.saturating_sub(outcome.moved).min(u32::MAX.into()) as u32;
    bytes[4..8].copy_from_slice(&residual.to_le_bytes());
    (bytes[10], bytes[11]) = (outcome.status, response);
    chain.write_at(ram, 0, &bytes)?;
    if let Some(sense) = sense {
        chain.write_at(ram, ANSWER_HEAD, &sense[..sense_len])?;
    }
    // Only what was moved to the driver counts as written, behind the answer.
    Ok(answer + outcome.moved.min(u64::from(chain.writable_len() - answer)) as u32)
}

/// REPORT LUNS, which asks a target and not a unit (SPC-4, §6.33).
const REPORT_LUNS: u8 = 0xa0;

/// Commands to a target as such, or to units that are not there.
fn elsewhere(cdb: &[u8; 16], lun: u16, data: &mut dyn Data) -> Outcome {
    let allocated = |len: u32| u64::from(len);
    let (bytes, allocated): (&[u8], u64) = match cdb[0] {
        // One unit: LUN 0.
        REPORT_LUNS => (
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            allocated(u32::from_be_bytes([cdb[6], cdb[7], cdb[8], cdb[9]])),
        ),
        // INQUIRY says that nothing can be there (qualifier 3, type 0x1f).
        0x12 if lun != 0 => (&[0x7f, 0, 5, 2, 31], allocated(u16::from_be_bytes([cdb[3], cdb[4]]).into())),
        0x03 => (&[0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x25, 0, 0, 0, 0, 0], allocated(cdb[4].into())),
        _ => return Outcome::failed(Sense::NO_SUCH_UNIT),
    };
    let len = (bytes.len() as u64).min(allocated).min(data.in_len());
    if len > 0 {
        match data.in_buffers(0, len) {
            Some(mut buffers) => buffers.copy_from(0, &bytes[..len as usize]),
            None => return Outcome::failed(Sense::READ_ERROR),
        }
    }
    Outcome { status: GOOD, sense: None, moved: len }
}

/// Target and unit that a LUN names (§5.6.6.1): byte 0 is 1, then the target, then the unit with flat addressing;
/// or the well-known unit of a target, which stands for all of it.
fn place(lun: &[u8]) -> Option<(usize, u16)> {
    match lun[0] {
        1 => Some((usize::from(lun[1]), u16::from_be_bytes([lun[2] & 0x3f, lun[3]]))),
        _ => None,
    }
}

struct ChainData<'a> {
    chain: &'a Chain,
    ram: &'a Arc<Ram>,
    out_at: u32,
    in_at: u32,
}

impl Data for ChainData<'_> {
    fn out_len(&self) -> u64 {
        (self.chain.readable_len() - self.out_at).into()
    }

    fn in_len(&self) -> u64 {
        (self.chain.writable_len() - self.in_at).into()
    }

    fn out_buffers(&mut self, at: u64, len: u64) -> Option<Buffers<'static>> {
        let mut buffers = Buffers::guest(self.ram.clone());
        let mut spans = self.chain.readable_part(self.out_at + at as u32, len as usize);
        spans.all(|span| buffers.push(span.gpa, span.len).is_ok()).then_some(buffers)
    }

    fn in_buffers(&mut self, at: u64, len: u64) -> Option<Buffers<'static>> {
        let mut buffers = Buffers::guest(self.ram.clone());
        let mut spans = self.chain.writable_part(self.in_at + at as u32, len as usize);
        spans.all(|span| buffers.push(span.gpa, span.len).is_ok()).then_some(buffers)
    }
}

impl Work for RequestWork {
    fn work(&mut self) -> Progress {
        let (targets, sizes) = (&self.targets, self.sizes);
        serve(&mut self.queue, &mut self.chain, |chain, ram| request(chain, ram, targets, sizes))
    }

    fn is_pending(&self) -> bool {
        self.queue.has_available()
    }

    fn arm(&mut self) -> bool {
        self.queue.arm()
    }

    fn wait<'a>(&'a self, wait: &mut Wait<'a>) {
        wait.kick(self.queue.kick());
    }
}

/// The worker of the control queue, and of that of events.
pub(super) struct ControlWork {
    control: Option<Queue>,
    events: Option<Queue>,
    targets: Targets,
    /// What events are to tell of, if the driver wants to be told.
    changes: Option<Changes>,
    chain: Chain,
}

impl ControlWork {
    pub(super) fn new(
        control: Option<Queue>,
        events: Option<Queue>,
        targets: Targets,
        changes: Option<Changes>,
    ) -> ControlWork {
        ControlWork { control, events, targets, changes, chain: Chain::new() }
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

/// Answers a request to the control queue.
fn control(chain: &Chain, ram: &Ram, targets: &Targets) -> Result<u32, RingError> {
    let mut request = [0; 24];
    let len = chain.read_at(ram, 0, &mut request)?;
    let word =
        |at: usize| u32::from_le_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
    let answer: Vec<u8> = match word(0) {
        T_TMF if len >= 16 => {
            let target = place(&request[8..16]).and_then(|(target, _)| targets.get(target));
            vec![match (target, word(4)) {
                (None, _) => S_BAD_TARGET,
                (Some(unit), TMF_LOGICAL_UNIT_RESET | TMF_I_T_NEXUS_RESET) => {
                    lock(unit).reset();
                    S_OK
                }
                // What they would end or look for has ended.
                (Some(_), 0..=TMF_LAST) => S_OK,
                _ => S_FUNCTION_REJECTED,
            }]
        }
        // No asynchronous events.
        T_AN_QUERY | T_AN_SUBSCRIBE if len >= 12 => vec![0, 0, 0, 0, S_OK],
        _ => return Err(RingError::BadRequest),
    };
    chain.write_at(ram, 0, &answer).map(|written| written as u32)
}

impl Work for ControlWork {
    fn work(&mut self) -> Progress {
        let told = self.tell();
        let Some(queue) = &mut self.control else { return Progress::done(told) };
        let targets = &self.targets;
        match serve(queue, &mut self.chain, |chain, ram| control(chain, ram, targets)) {
            Progress::Idle => Progress::done(told),
            progress => progress,
        }
    }

    fn is_pending(&self) -> bool {
        self.control.as_ref().is_some_and(Queue::has_available)
            || self.has_changes() && self.events.as_ref().is_some_and(Queue::has_available)
    }

    fn arm(&mut self) -> bool {
        let control = self.control.as_mut().is_some_and(Queue::arm);
        // Buffers for events are of interest only to whoever has events.
        let events = self.has_changes() && self.events.as_mut().is_some_and(Queue::arm);
        control || events
    }

    fn wait<'a>(&'a self, wait: &mut Wait<'a>) {
        for queue in self.control.iter().chain(&self.events) {
            wait.kick(queue.kick());
        }
    }
}
