//! Goal: whatever the link does to segments, both ends see the same bytes and the same end.
//! Method: two endpoints face each other over a simulated link in virtual time, seeded.

use super::super::buffer::CHUNK;
use super::*;

/// A small generator (xorshift64*) so that a failing seed can be run again.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn byte_at(side: usize, position: usize) -> u8 {
    (position.wrapping_mul(31) ^ (position >> 8) ^ (side * 0x55)) as u8
}

/// A segment under way.
#[derive(Clone)]
struct Packet {
    arrives: Instant,
    to: usize,
    header: Outgoing,
    payload: Vec<u8>,
}

/// One side: an endpoint and the program that uses it.
struct Side {
    endpoint: Endpoint,
    to_write: usize,
    written: usize,
    read: usize,
    closes: bool,
}

struct Sim {
    random: Random,
    now: Instant,
    pools: Pools,
    sides: [Option<Side>; 2],
    link: Vec<Packet>,
    loss_percent: u64,
    payload_max: usize,
    delivered: usize,
}

impl Sim {
    fn new(seed: u64, loss_percent: u64) -> Self {
        Self {
            random: Random::new(seed),
            now: Instant::now(),
            pools: Pools::new(4 << 20),
            sides: [None, None],
            link: Vec::new(),
            loss_percent,
            payload_max: 65_535,
            delivered: 0,
        }
    }

    fn spec(&mut self, rx_limit: usize) -> EndpointSpec {
        // Sequence numbers near the wrap as often as not.
        let iss = if self.random.below(2) == 0 {
            u32::MAX - self.random.below(5000) as u32
        } else {
            self.random.next() as u32
        };
        EndpointSpec { iss: Seq(iss), mss: 1460, rx_limit }
    }

    fn open(&mut self, rx_limit: usize, to_write: usize) {
        let spec = self.spec(rx_limit);
        let endpoint = Endpoint::connect(spec, self.now);
        self.sides[0] = Some(Side { endpoint, to_write, written: 0, read: 0, closes: true });
    }

    /// Lets programs run: write what fits, read some.
    fn work(&mut self) {
        for index in 0..2 {
            let Some(side) = &mut self.sides[index] else { continue };
            let endpoint = &mut side.endpoint;
            let count = (side.to_write - side.written)
                .min((256 << 10usize).min(self.pools.tx.available() / 4).max(CHUNK))
                .saturating_sub(endpoint.tx.len())
                .min(1 + self.random.below(40_000) as usize);
            let end = endpoint.tx.len() + count;
            if count > 0 && endpoint.end().is_none() && endpoint.tx.reserve(end, &mut self.pools.tx) >= end {
                let data: Vec<u8> = (side.written..side.written + count).map(|i| byte_at(index, i)).collect();
                endpoint.tx.write_at(endpoint.tx.len(), &data);
                endpoint.tx.extend(count);
                side.written += count;
            }
            if side.written == side.to_write && side.closes {
                endpoint.close();
            }
            let count = if self.random.below(4) == 0 {
                0
            } else {
                endpoint.rx.len().min(1 + self.random.below(60_000) as usize)
            };
            let mut data = vec![0; count];
            endpoint.rx.read_at(0, &mut data);
            endpoint.rx.consume(count, &mut self.pools.rx);
            for (i, &byte) in data.iter().enumerate() {
                assert_eq!(
                    byte,
                    byte_at(1 - index, side.read + i),
                    "byte {} for side {index}",
                    side.read + i
                );
            }
            side.read += count;
            endpoint.on_rx_taken();
        }
    }

    /// Puts on the link what both ends have to say.
    fn send(&mut self) -> bool {
        let mut any = false;
        for index in 0..2 {
            for _ in 0..64 {
                let Some(side) = &mut self.sides[index] else { break };
                let Some(header) = side.endpoint.next_segment(self.now, self.payload_max) else { break };
                any = true;
                let mut payload = vec![0; header.data.len()];
                side.endpoint.tx.read_at(header.data.start, &mut payload);
                if self.random.below(100) < self.loss_percent {
                    continue;
                }
                let copies = if self.random.below(100) < self.loss_percent { 2 } else { 1 };
                for _ in 0..copies {
                    // A late one is overtaken by many.
                    let late = self.random.below(100) < self.loss_percent;
                    let delay = Duration::from_micros(50 + if late { self.random.below(8000) } else { 0 });
                    self.link.push(Packet {
                        arrives: self.now + delay,
                        to: 1 - index,
                        header: header.clone(),
                        payload: payload.clone(),
                    });
                }
            }
        }
        any
    }

    fn deliver(&mut self, packet: &Packet, rx_limit: usize, to_write: usize) {
        let header = &packet.header;
        let segment = Segment {
            seq: header.seq,
            ack: header.ack,
            flags: header.flags,
            window: header.window,
            mss: header.mss,
            window_shift: header.window_shift,
            payload: &packet.payload,
        };
        self.delivered += 1;
        match &mut self.sides[packet.to] {
            Some(side) => side.endpoint.on_segment(&segment, self.now, &mut self.pools),
            None if header.flags.syn && header.ack.is_none() => {
                let spec = self.spec(rx_limit);
                let endpoint = Endpoint::accept(&segment, spec, self.now);
                self.sides[packet.to] = Some(Side { endpoint, to_write, written: 0, read: 0, closes: true });
            }
            None => {}
        }
    }

    /// Runs until both ends are closed. Panics when that takes more virtual time than it may.
    fn run(&mut self, rx_limit: usize, to_write: usize, limit: Duration) {
        let end = self.now + limit;
        loop {
            self.work();
            let sent = self.send();
            let over = |side: &Option<Side>| {
                side.as_ref().is_some_and(|side| {
                    matches!(side.endpoint.state(), State::Closed | State::TimeWait)
                        && side.endpoint.rx.is_empty()
                })
            };
            if self.sides.iter().all(over) {
                return;
            }
            assert!(
                self.now < end,
                "stuck: {:?}",
                self.sides.each_ref().map(|side| side.as_ref().map(|s| &s.endpoint))
            );
            // On to the next event.
            let arrival = self.link.iter().map(|packet| packet.arrives).min();
            let deadline = self.sides.iter().flatten().filter_map(|side| side.endpoint.deadline()).min();
            let waiting = self.sides.iter().flatten().any(|side| {
                !side.endpoint.rx.is_empty()
                    || (side.written < side.to_write && side.endpoint.tx.len() < 256 << 10)
            });
            let step = if sent || waiting { Some(self.now + Duration::from_micros(100)) } else { None };
            let next =
                [arrival, deadline, step].into_iter().flatten().min().expect("nothing will ever happen");
            self.now = self.now.max(next);
            for side in self.sides.iter_mut().flatten() {
                side.endpoint.on_deadline(self.now);
            }
            let now = self.now;
            let mut due: Vec<Packet> = Vec::new();
            self.link.retain(|packet| {
                let is_due = packet.arrives <= now;
                if is_due {
                    due.push(packet.clone());
                }
                !is_due
            });
            due.sort_by_key(|packet| packet.arrives);
            for packet in due {
                self.deliver(&packet, rx_limit, to_write);
            }
        }
    }

    fn finish(mut self, expect: [usize; 2]) {
        for (index, side) in self.sides.iter_mut().enumerate() {
            let side = side.as_mut().unwrap();
            assert_eq!(side.read, expect[1 - index], "bytes read by side {index}");
            assert_ne!(side.endpoint.end(), Some(End::Reset));
            // The last acknowledgement may get lost for longer than the peer remembers (RFC 9293 §3.6.1); all
            // data had come by then.
            let given_up = side.endpoint.end() == Some(End::Aborted);
            assert!(!given_up || (self.loss_percent >= 10 && side.endpoint.tx.is_empty()));
            side.endpoint.release(&mut self.pools);
        }
        assert_eq!(self.pools.in_use(), 0);
    }
}

#[test]
fn clean_link_carries_both_ways_without_retransmission() {
    let mut sim = Sim::new(1, 0);
    sim.open(256 << 10, 3_000_000);
    sim.run(256 << 10, 2_000_000, Duration::from_secs(60));
    for side in sim.sides.iter_mut().flatten() {
        assert_eq!(side.endpoint.take_retransmitted(), 0);
    }
    sim.finish([3_000_000, 2_000_000]);
}

#[test]
fn lossy_link_changes_nothing_but_time() {
    for seed in 0..60 {
        let loss = [1, 3, 10, 15][seed as usize % 4];
        let (a, b) = ((seed as usize * 7919) % 200_000, (seed as usize * 104_729) % 150_000);
        let rx_limit = [CHUNK_LIMIT, 64 << 10, 256 << 10][seed as usize % 3];
        let mut sim = Sim::new(seed, loss);
        sim.open(rx_limit, a);
        sim.run(rx_limit, b, Duration::from_secs(36_000));
        sim.finish([a, b]);
    }
}

/// A receive buffer of hardly more than a segment, so that windows close all the time.
const CHUNK_LIMIT: usize = 2000;

#[test]
fn tiny_and_empty_transfers_close_properly() {
    for (seed, (a, b)) in [(0, 0), (1, 0), (0, 1), (1, 1), (1460, 1461)].into_iter().enumerate() {
        for loss in [0, 20] {
            let mut sim = Sim::new(seed as u64 + 100, loss);
            sim.open(64 << 10, a);
            sim.run(64 << 10, b, Duration::from_secs(3600));
            sim.finish([a, b]);
        }
    }
}

#[test]
fn half_closed_connection_still_carries_the_other_way() {
    let mut sim = Sim::new(5, 5);
    sim.open(64 << 10, 10);
    // Side 1 has much more to say after side 0 has said FIN.
    sim.run(64 << 10, 500_000, Duration::from_secs(3600));
    sim.finish([10, 500_000]);
}

#[test]
fn small_memory_is_shared_and_nothing_is_lost() {
    let mut sim = Sim::new(9, 5);
    sim.pools = Pools::new(8 * CHUNK);
    sim.open(1 << 20, 300_000);
    sim.run(1 << 20, 300_000, Duration::from_secs(36_000));
    sim.finish([300_000, 300_000]);
}

// ----- single segments, from the guest's point of view -----

struct Bench {
    endpoint: Endpoint,
    pools: Pools,
    now: Instant,
    /// The guest's numbers.
    seq: Seq,
}

const ISS: Seq = Seq(1000);
const IRS: Seq = Seq(u32::MAX - 2);

fn segment(seq: Seq, ack: Option<Seq>, payload: &[u8]) -> Segment<'_> {
    Segment { seq, ack, flags: Flags::default(), window: 500, mss: None, window_shift: None, payload }
}

impl Bench {
    fn established() -> Self {
        let now = Instant::now();
        let syn = Segment {
            flags: Flags { syn: true, ..Flags::default() },
            mss: Some(1000),
            window_shift: Some(7),
            window: 64_000,
            ..segment(IRS, None, &[])
        };
        let spec = EndpointSpec { iss: ISS, mss: 1460, rx_limit: 128 << 10 };
        let mut bench = Self {
            endpoint: Endpoint::accept(&syn, spec, now),
            pools: Pools::new(1 << 20),
            now,
            seq: IRS.plus(1),
        };
        let answer = bench.next().unwrap();
        assert!(answer.flags.syn && answer.ack == Some(IRS.plus(1)));
        assert_eq!((answer.mss, answer.window_shift), (Some(1460), Some(7)));
        bench.take(segment(IRS.plus(1), Some(ISS.plus(1)), &[]));
        assert_eq!(bench.endpoint.state(), State::Established);
        assert_eq!(bench.next(), None);
        bench
    }

    fn take(&mut self, segment: Segment<'_>) {
        self.endpoint.on_segment(&segment, self.now, &mut self.pools);
    }

    fn next(&mut self) -> Option<Outgoing> {
        self.endpoint.next_segment(self.now, 65_535)
    }

    fn write(&mut self, count: usize) {
        let end = self.endpoint.tx.len() + count;
        assert!(self.endpoint.tx.reserve(end, &mut self.pools.tx) >= end);
        self.endpoint.tx.extend(count);
    }

    fn drain(&mut self) -> Vec<Outgoing> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn wait(&mut self) {
        self.now = self.endpoint.deadline().unwrap();
        self.endpoint.on_deadline(self.now);
    }
}

#[test]
fn three_duplicates_resend_the_first_segment_once() {
    let mut bench = Bench::established();
    bench.write(10_000);
    assert_eq!(bench.drain().len(), 10);
    for _ in 0..3 {
        bench.take(segment(bench.seq, Some(ISS.plus(1)), &[]));
    }
    let again = bench.drain();
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].seq, again[0].data.clone()), (ISS.plus(1), 0..1000));
    // A partial acknowledgement names the next hole.
    bench.take(segment(bench.seq, Some(ISS.plus(3001)), &[]));
    let again = bench.drain();
    assert_eq!((again.len(), again[0].seq), (1, ISS.plus(3001)));
    bench.take(segment(bench.seq, Some(ISS.plus(10_001)), &[]));
    assert_eq!(bench.endpoint.take_retransmitted(), 2000);
    assert!(bench.endpoint.tx.is_empty() && bench.pools.in_use() == 0);
}

#[test]
fn silence_is_met_with_repetition_ever_slower_and_then_a_reset() {
    let mut bench = Bench::established();
    bench.write(100);
    assert_eq!(bench.drain().len(), 1);
    let mut gaps = Vec::new();
    while bench.endpoint.end().is_none() {
        let before = bench.now;
        bench.wait();
        gaps.push(bench.now - before);
        if bench.endpoint.end().is_none() {
            assert_eq!(bench.next().unwrap().data, 0..100);
        }
    }
    assert!(gaps.windows(2).all(|pair| pair[1] >= pair[0] && pair[1] <= RTO_MAX));
    assert_eq!(gaps.len(), usize::from(DATA_RETRIES_MAX) + 1);
    let reset = bench.next().unwrap();
    assert!(reset.flags.rst && reset.seq == ISS.plus(101));
    assert!(bench.endpoint.is_finished());
}

#[test]
fn closed_window_is_probed_for_as_long_as_the_guest_answers() {
    let mut bench = Bench::established();
    bench.take(Segment { window: 0, ..segment(bench.seq, Some(ISS.plus(1)), &[]) });
    bench.write(100);
    assert_eq!(bench.next(), None);
    for _ in 0..40 {
        bench.wait();
        let probe = bench.next().unwrap();
        assert_eq!((probe.seq, probe.data.len()), (ISS, 0));
        bench.take(Segment { window: 0, ..segment(bench.seq, Some(ISS.plus(1)), &[]) });
        assert_eq!(bench.next(), None);
    }
    bench.take(segment(bench.seq, Some(ISS.plus(1)), &[]));
    assert_eq!(bench.next().unwrap().data, 0..100);
}

#[test]
fn early_data_waits_for_its_turn_and_is_told_of() {
    let mut bench = Bench::established();
    bench.take(segment(bench.seq.plus(10), Some(ISS.plus(1)), b"world"));
    bench.take(segment(bench.seq.plus(15), Some(ISS.plus(1)), b"!"));
    let duplicates = bench.drain();
    assert_eq!(duplicates.len(), 2);
    assert!(duplicates.iter().all(|one| one.ack == Some(bench.seq) && one.window == duplicates[0].window));
    assert!(bench.endpoint.rx.is_empty());
    bench.take(segment(bench.seq, Some(ISS.plus(1)), b"hello, my "));
    let mut out = [0; 16];
    bench.endpoint.rx.read_at(0, &mut out);
    assert_eq!(&out, b"hello, my world!");
    assert_eq!(bench.next().unwrap().ack, Some(bench.seq.plus(16)));
}

#[test]
fn fin_before_the_data_it_follows() {
    let mut bench = Bench::established();
    let fin = Flags { fin: true, ..Flags::default() };
    bench.take(Segment { flags: fin, ..segment(bench.seq.plus(3), Some(ISS.plus(1)), b"def") });
    assert!(!bench.endpoint.is_rx_closed());
    bench.take(segment(bench.seq, Some(ISS.plus(1)), b"abc"));
    assert!(bench.endpoint.is_rx_closed());
    assert_eq!(bench.endpoint.rx.len(), 6);
    assert_eq!(bench.drain().last().unwrap().ack, Some(bench.seq.plus(7)));
    assert_eq!(bench.endpoint.state(), State::CloseWait);
    bench.endpoint.close();
    let fin = bench.next().unwrap();
    assert!(fin.flags.fin);
    assert_eq!(bench.endpoint.state(), State::LastAck);
    bench.take(segment(bench.seq.plus(7), Some(ISS.plus(2)), &[]));
    assert_eq!(bench.endpoint.end(), Some(End::Finished));
}

#[test]
fn closing_first_ends_in_time_wait_and_both_at_once_in_closing() {
    let fin = Flags { fin: true, ..Flags::default() };
    let mut bench = Bench::established();
    bench.endpoint.close();
    assert!(bench.next().unwrap().flags.fin);
    assert_eq!(bench.endpoint.state(), State::FinWait1);
    bench.take(segment(bench.seq, Some(ISS.plus(2)), &[]));
    assert_eq!(bench.endpoint.state(), State::FinWait2);
    bench.take(Segment { flags: fin, ..segment(bench.seq, Some(ISS.plus(2)), &[]) });
    assert_eq!(bench.endpoint.state(), State::TimeWait);
    assert_eq!(bench.next().unwrap().ack, Some(bench.seq.plus(1)));
    // The guest did not hear that: it is said again.
    bench.take(Segment { flags: fin, ..segment(bench.seq, Some(ISS.plus(2)), &[]) });
    assert_eq!(bench.next().unwrap().ack, Some(bench.seq.plus(1)));
    bench.wait();
    assert_eq!(bench.endpoint.end(), Some(End::Finished));

    let mut bench = Bench::established();
    bench.endpoint.close();
    assert!(bench.next().unwrap().flags.fin);
    bench.take(Segment { flags: fin, ..segment(bench.seq, Some(ISS.plus(1)), &[]) });
    assert_eq!(bench.endpoint.state(), State::Closing);
    bench.take(segment(bench.seq.plus(1), Some(ISS.plus(2)), &[]));
    assert_eq!(bench.endpoint.state(), State::TimeWait);
}

#[test]
fn only_an_exact_reset_or_none_is_believed() {
    let rst = Flags { rst: true, ..Flags::default() };
    let mut bench = Bench::established();
    bench.take(Segment { flags: rst, ..segment(bench.seq.plus(1), None, &[]) });
    assert_eq!(bench.endpoint.state(), State::Established);
    assert_eq!(bench.next().unwrap().ack, Some(bench.seq), "a challenge");
    bench.take(Segment { flags: rst, ..segment(bench.seq.minus(1), None, &[]) });
    assert_eq!(bench.next(), None);
    bench.take(Segment { flags: rst, ..segment(bench.seq, None, &[]) });
    assert_eq!(bench.endpoint.end(), Some(End::Reset));
    assert!(bench.endpoint.is_finished());
}

#[test]
fn segments_that_cannot_be_are_answered_and_dropped() {
    let mut bench = Bench::established();
    let syn = Flags { syn: true, ..Flags::default() };
    bench.take(Segment { flags: syn, ..segment(bench.seq, Some(ISS.plus(1)), &[]) });
    assert_eq!(bench.next().unwrap().ack, Some(bench.seq));
    bench.take(segment(bench.seq, Some(ISS.plus(5000)), b"acknowledges what was never sent"));
    assert_eq!(bench.next().unwrap().ack, Some(bench.seq));
    bench.take(segment(bench.seq.plus(10 << 20), Some(ISS.plus(1)), b"far beyond the window"));
    assert_eq!(bench.next().unwrap().ack, Some(bench.seq));
    bench.take(segment(bench.seq, None, b"no acknowledgement at all"));
    assert!(bench.endpoint.rx.is_empty());
    assert_eq!(bench.endpoint.state(), State::Established);
}

#[test]
fn refused_and_unanswered_connections() {
    let now = Instant::now();
    let spec = EndpointSpec { iss: ISS, mss: 1460, rx_limit: 64 << 10 };
    let mut pools = Pools::new(0);
    let mut refused = Endpoint::connect(spec, now);
    assert!(refused.next_segment(now, 1460).unwrap().flags.syn);
    let rst = Flags { rst: true, ..Flags::default() };
    refused.on_segment(&Segment { flags: rst, ..segment(Seq(0), Some(ISS.plus(7)), &[]) }, now, &mut pools);
    assert_eq!(refused.state(), State::SynSent, "that reset was not for us");
    refused.on_segment(&Segment { flags: rst, ..segment(Seq(0), Some(ISS.plus(1)), &[]) }, now, &mut pools);
    assert_eq!(refused.end(), Some(End::Reset));

    let mut unanswered = Endpoint::connect(spec, now);
    let mut syns = 0;
    let mut time = now;
    while unanswered.end().is_none() {
        syns += usize::from(unanswered.next_segment(time, 1460).is_some());
        time = unanswered.deadline().unwrap();
        unanswered.on_deadline(time);
    }
    assert_eq!(syns, usize::from(SYN_RETRIES_MAX) + 1);
    assert_eq!(unanswered.end(), Some(End::Aborted));
}

#[test]
fn both_sides_open_at_once() {
    let now = Instant::now();
    let spec = EndpointSpec { iss: ISS, mss: 1460, rx_limit: 64 << 10 };
    let mut pools = Pools::new(0);
    let mut endpoint = Endpoint::connect(spec, now);
    assert!(endpoint.next_segment(now, 1460).unwrap().flags.syn);
    let syn = Flags { syn: true, ..Flags::default() };
    endpoint.on_segment(&Segment { flags: syn, ..segment(IRS, None, &[]) }, now, &mut pools);
    let answer = endpoint.next_segment(now, 1460).unwrap();
    assert!(answer.flags.syn && answer.ack == Some(IRS.plus(1)) && answer.seq == ISS);
    endpoint.on_segment(&segment(IRS.plus(1), Some(ISS.plus(1)), &[]), now, &mut pools);
    assert_eq!(endpoint.state(), State::Established);
}

#[test]
fn silent_guest_is_asked_and_then_given_up() {
    let mut bench = Bench::established();
    let mut probes = 0;
    while bench.endpoint.end().is_none() {
        bench.wait();
        probes += usize::from(bench.next().is_some_and(|probe| !probe.flags.rst));
    }
    assert_eq!(probes, usize::from(KEEPALIVE_PROBES_MAX));
}

#[test]
fn a_long_pause_does_not_count_as_silence() {
    let mut bench = Bench::established();
    bench.now += 100 * KEEPALIVE_IDLE;
    // As a timer queue does that finds the deadline still in the past.
    for _ in 0..100 {
        bench.endpoint.on_deadline(bench.now);
    }
    assert_eq!(bench.endpoint.state(), State::Established);
    assert!(bench.endpoint.deadline().unwrap() > bench.now);
}
