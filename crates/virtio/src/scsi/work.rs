//! Serving the request queues of a SCSI host.

use super::spec::*;
use super::tasks::{TaskId, Tasks, Verdict};
use super::unit::{Data, Outcome};
use super::{Sizes, Targets, lock};
use crate::queue::{Chain, Queue, RingError};
use crate::worker::{Progress, Wait, Work};
use ::scsi::Sense;
use device::limit::Limiter;
use disk::Buffers;
use memory::Ram;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// The worker of a request queue.
pub(super) struct RequestWork {
    queue: Queue,
    targets: Targets,
    tasks: Arc<Tasks>,
    sizes: Sizes,
    chain: Chain,
    /// What waits for the limit of its disk, in the order in which it came. No more than the queue has descriptors.
    held: VecDeque<Held>,
    /// Chains to be used again.
    spare: Vec<Chain>,
}

/// A request that waits.
struct Held {
    chain: Chain,
    asked: Asked,
    target: usize,
    limiter: Arc<Limiter>,
    task: TaskId,
}

/// What is asked for.
#[derive(Clone, Copy)]
struct Asked {
    /// Target and unit, if there is such a target.
    place: Option<(usize, u16)>,
    /// By what the driver names the request.
    tag: u64,
    cdb: [u8; 16],
}

impl Asked {
    fn read(chain: &Chain, ram: &Ram, targets: &Targets, sizes: Sizes) -> Result<Asked, RingError> {
        let (head, answer) = (REQUEST_HEAD + sizes.cdb, ANSWER_HEAD + sizes.sense);
        if chain.readable_len() < head || chain.writable_len() < answer {
            return Err(RingError::BadRequest);
        }
        let mut request = vec![0; head as usize];
        chain.read_at(ram, 0, &mut request)?;
        let (mut cdb, mut tag) = ([0; 16], [0; 8]);
        let given = &request[REQUEST_HEAD as usize..];
        let len = given.len().min(cdb.len());
        cdb[..len].copy_from_slice(&given[..len]);
        tag.copy_from_slice(&request[LUN_LEN..LUN_LEN + 8]);
        let place = place(&request[..LUN_LEN]).filter(|(target, _)| *target < targets.len());
        Ok(Asked { place, tag: u64::from_le_bytes(tag), cdb })
    }
}

impl RequestWork {
    pub(super) fn new(queue: Queue, targets: Targets, tasks: Arc<Tasks>, sizes: Sizes) -> RequestWork {
        tasks.add_worker(queue.kick_handle());
        let (chain, held, spare) = (Chain::new(), VecDeque::new(), Vec::new());
        RequestWork { queue, targets, tasks, sizes, chain, held, spare }
    }

    pub(super) fn into_queue(self) -> Queue {
        self.queue
    }

    fn has_room(&self) -> bool {
        self.held.len() < usize::from(self.queue.size())
    }

    /// Begins the request in `self.chain`: carries it out, or lets it wait for the limit of its disk.
    fn begin(&mut self) {
        let asked = match Asked::read(&self.chain, self.queue.ram(), &self.targets, self.sizes) {
            Ok(asked) => asked,
            Err(error) => return self.queue.fail(error),
        };
        let Some((target, lun)) = asked.place else { return self.carry_out(&asked, None) };
        let of_disk = lun == 0 && asked.cdb[0] != REPORT_LUNS;
        let limiter = if of_disk { lock(&self.targets[target]).limiter(&asked.cdb).cloned() } else { None };
        // Behind what waits already: nothing overtakes what is for the same disk.
        let must_wait = |limiter: &Arc<Limiter>| {
            self.held.iter().any(|held| held.target == target) || limiter.delay().is_some()
        };
        let waits = limiter.as_ref().is_some_and(must_wait);
        let task = self.tasks.add(target, asked.tag, !waits);
        match limiter {
            Some(limiter) if waits => {
                let chain = std::mem::replace(&mut self.chain, self.spare.pop().unwrap_or_default());
                self.held.push_back(Held { chain, asked, target, limiter, task });
            }
            limiter => {
                self.carry_out(&asked, limiter.as_deref());
                self.tasks.remove(task);
            }
        }
    }

    /// Carries out what is asked for in `self.chain`, and answers it.
    fn carry_out(&mut self, asked: &Asked, limiter: Option<&Limiter>) {
        let ram = self.queue.ram().clone();
        let mut data = ChainData::new(&self.chain, &ram, self.sizes);
        if let Some(limiter) = limiter {
            limiter.charge(1, data.out_len() + data.in_len());
        }
        let (response, outcome) = match asked.place {
            None => (S_BAD_TARGET, Outcome::nothing()),
            Some((target, 0)) if asked.cdb[0] != REPORT_LUNS => {
                (S_OK, lock(&self.targets[target]).run(&asked.cdb, &mut data))
            }
            Some((_, lun)) => (S_OK, elsewhere(&asked.cdb, lun, &mut data)),
        };
        self.answer(response, &outcome);
    }

    /// Answers the request in `self.chain`.
    fn answer(&mut self, response: u8, outcome: &Outcome) {
        match answer(&self.chain, self.queue.ram(), self.sizes, response, outcome) {
            Ok(written) => self.queue.push(self.chain.head(), written),
            Err(error) => self.queue.fail(error),
        }
    }

    /// The next request that waits no longer: its disk's limit lets it through, it was ended, or `regardless`.
    fn next_to_go(&self, regardless: bool) -> Option<usize> {
        let mut waiting: Vec<usize> = Vec::new();
        self.held.iter().position(|held| {
            let may = regardless || !waiting.contains(&held.target) && held.limiter.delay().is_none();
            waiting.push(held.target);
            may || self.tasks.is_ended(held.task)
        })
    }

    /// Answers what waits no longer; whether there was anything.
    fn release(&mut self, regardless: bool) -> bool {
        let mut any = false;
        while let Some(held) = self.next_to_go(regardless).and_then(|index| self.held.remove(index)) {
            any = true;
            let Held { chain, asked, limiter, task, .. } = held;
            let last = std::mem::replace(&mut self.chain, chain);
            self.spare.push(last);
            match self.tasks.begin(task) {
                Ok(()) => self.carry_out(&asked, Some(&limiter)),
                Err(Verdict::Aborted) => self.answer(S_ABORTED, &Outcome::nothing()),
                Err(Verdict::Reset) => self.answer(S_RESET, &Outcome::nothing()),
            }
            self.tasks.remove(task);
        }
        any
    }

    /// How long nothing of what waits may go on.
    fn delay(&self) -> Option<Duration> {
        let mut waiting: Vec<usize> = Vec::new();
        let firsts = self.held.iter().filter(|held| {
            let is_first = !waiting.contains(&held.target);
            waiting.push(held.target);
            is_first
        });
        firsts.map(|held| held.limiter.delay().unwrap_or_default()).min()
    }
}

/// Writes the answer to a request; returns how much was written in all.
fn answer(
    chain: &Chain,
    ram: &Arc<Ram>,
    sizes: Sizes,
    response: u8,
    outcome: &Outcome,
) -> Result<u32, RingError> {
    let data = ChainData::new(chain, ram, sizes);
    let expected = data.out_len().max(data.in_len());
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
    Ok(data.in_at + outcome.moved.min(data.in_len()) as u32)
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
pub(super) fn place(lun: &[u8]) -> Option<(usize, u16)> {
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

impl<'a> ChainData<'a> {
    fn new(chain: &'a Chain, ram: &'a Arc<Ram>, sizes: Sizes) -> ChainData<'a> {
        ChainData { chain, ram, out_at: REQUEST_HEAD + sizes.cdb, in_at: ANSWER_HEAD + sizes.sense }
    }
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
        let mut did = self.release(false);
        let mut batch = self.queue.size();
        self.queue.disarm();
        while batch > 0 && self.has_room() && self.queue.pop(&mut self.chain) {
            batch -= 1;
            did = true;
            self.begin();
        }
        self.queue.signal();
        if self.is_pending() { Progress::More } else { Progress::done(did) }
    }

    fn is_pending(&self) -> bool {
        self.has_room() && self.queue.has_available() || self.next_to_go(false).is_some()
    }

    fn arm(&mut self) -> bool {
        // Without room it is the time that is waited for.
        self.has_room() && self.queue.arm()
    }

    fn wait<'a>(&'a self, wait: &mut Wait<'a>) {
        wait.kick(self.queue.kick());
        if let Some(delay) = self.delay() {
            wait.at_most(delay);
        }
    }

    fn drain(&mut self) {
        // What has been taken from the ring is answered. It pays afterwards, as ever.
        self.release(true);
        self.queue.signal();
    }
}
