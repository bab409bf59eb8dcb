//! Serving the queues of a balloon.

use super::Shared;
use super::spec::{PAGE, STAT_LEN, STAT_NAMES};
use crate::queue::{Chain, Queue, RingError};
use crate::worker::{Progress, Wait, Work, serve};
use memory::Ram;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Page numbers that are read at a time, 4 bytes each.
const NUMBERS: usize = 1024;
/// How much of a chain is read at most: a driver gives 1 KiB (Linux). What a hostile one says beyond is left alone, so
/// that no chain keeps the worker for long.
pub(super) const LIST_MAX: u32 = 64 << 10;
/// More figures than this no guest has.
const STATS_MAX: usize = 64;

/// The worker of a balloon.
pub struct BalloonWork {
    inflate: Option<Queue>,
    deflate: Option<Queue>,
    stats: Option<Queue>,
    reports: Option<Queue>,
    /// One that has no meaning without a feature.
    unused: Option<Queue>,
    shared: Arc<Shared>,
    chain: Chain,
    /// The guest's buffer for figures, which it gets back when newer ones are wanted (§5.5.6.3).
    stats_buffer: Option<u16>,
}

impl BalloonWork {
    pub(super) fn new(queues: [Option<Queue>; 4], unused: Option<Queue>, shared: Arc<Shared>) -> BalloonWork {
        let [inflate, deflate, stats, reports] = queues;
        let (chain, stats_buffer) = (Chain::new(), None);
        BalloonWork { inflate, deflate, stats, reports, unused, shared, chain, stats_buffer }
    }

    pub(super) fn into_queues(mut self) -> impl Iterator<Item = Queue> {
        // A buffer that is held would be lost to the queue that goes on later: the guest gets it back, and gives
        // it again with newer figures.
        if let (Some(head), Some(queue)) = (self.stats_buffer.take(), &mut self.stats) {
            queue.push(head, 0);
            queue.signal();
        }
        [self.inflate, self.deflate, self.stats, self.reports, self.unused].into_iter().flatten()
    }

    fn queues(&self) -> impl Iterator<Item = &Queue> {
        [&self.inflate, &self.deflate, &self.stats, &self.reports].into_iter().flatten()
    }

    /// Takes the statistics that are there, and asks for newer ones.
    fn exchange_stats(&mut self) -> bool {
        let Some(queue) = &mut self.stats else { return false };
        let (mut batch, mut did) = (queue.size(), false);
        queue.disarm();
        while batch > 0 && queue.pop(&mut self.chain) {
            (batch, did) = (batch - 1, true);
            // One buffer goes back and forth; of a guest that gives more, all but the last go back at once.
            if let Some(head) = self.stats_buffer.replace(self.chain.head()) {
                queue.push(head, 0);
            }
            let mut bytes = [0; STATS_MAX * STAT_LEN];
            match self.chain.read_at(queue.ram(), 0, &mut bytes) {
                Ok(len) => {
                    let mut stats = self.shared.stats();
                    for stat in bytes[..len].chunks_exact(STAT_LEN) {
                        let tag = u16::from_le_bytes([stat[0], stat[1]]);
                        let value = u64::from_le_bytes(stat[2..].try_into().expect("eight bytes"));
                        // All ones: the guest does not know.
                        if let (Some(name), true) = (STAT_NAMES.get(tag as usize), value != u64::MAX) {
                            stats.insert(name, value);
                        }
                    }
                }
                Err(error) => queue.fail(error),
            }
        }
        if self.shared.wants_stats.swap(false, Ordering::AcqRel)
            && let Some(head) = self.stats_buffer.take()
        {
            queue.push(head, 0);
            did = true;
        }
        queue.signal();
        did
    }
}

/// Gives the pages whose numbers stand in a chain back to the host, neighbours together.
fn give_back(chain: &Chain, ram: &Ram) -> Result<(), RingError> {
    let mut bytes = [0; NUMBERS * 4];
    let mut at = 0;
    let mut run: Option<(u64, u64)> = None;
    let flush = |run: &mut Option<(u64, u64)>| {
        if let Some((first, end)) = run.take() {
            // Pages that are no RAM, and a host that does not take them: nothing changes.
            let _ = ram.discard(first * PAGE, (end - first) * PAGE);
        }
    };
    while at < chain.readable_len().min(LIST_MAX) {
        let len = chain.read_at(ram, at, &mut bytes)?;
        for number in bytes[..len].chunks_exact(4) {
            let page = u64::from(u32::from_le_bytes(number.try_into().expect("four bytes")));
            match &mut run {
                Some((_, end)) if *end == page => *end += 1,
                // Linux gives them from the highest to the lowest.
                Some((first, _)) if *first == page + 1 => *first = page,
                _ => {
                    flush(&mut run);
                    run = Some((page, page + 1));
                }
            }
        }
        at += len.max(1) as u32;
    }
    flush(&mut run);
    Ok(())
}

impl Work for BalloonWork {
    fn work(&mut self) -> Progress {
        let mut each = |queue: &mut Option<Queue>, each: &dyn Fn(&Chain, &Ram) -> Result<(), RingError>| {
            let Some(queue) = queue else { return Progress::Idle };
            serve(queue, &mut self.chain, |chain, ram| each(chain, ram).map(|()| 0))
        };
        let inflated = each(&mut self.inflate, &give_back);
        // What the guest takes back is there when it is touched.
        let deflated = each(&mut self.deflate, &|_, _| Ok(()));
        let reported = each(&mut self.reports, &|chain, ram| {
            for span in chain.writable() {
                let freed = ram.discard(span.gpa, u64::from(span.len)).unwrap_or(0);
                self.shared.reported.fetch_add(freed, Ordering::Relaxed);
            }
            Ok(())
        });
        let exchanged = Progress::done(self.exchange_stats());
        inflated.and(deflated).and(reported).and(exchanged)
    }

    fn is_pending(&self) -> bool {
        self.queues().any(Queue::has_available)
            || (self.stats_buffer.is_some() && self.shared.wants_stats.load(Ordering::Acquire))
    }

    fn arm(&mut self) -> bool {
        let queues = [&mut self.inflate, &mut self.deflate, &mut self.stats, &mut self.reports];
        // All of them, whatever the first says.
        queues.into_iter().flatten().filter_map(|queue| queue.arm().then_some(())).count() > 0
    }

    fn wait<'a>(&'a self, wait: &mut Wait<'a>) {
        for queue in self.queues() {
            wait.kick(queue.kick());
        }
    }
}
