//! One end of a TCP connection with the guest, without I/O.
//!
//! ```text
//!   accept ──> SynReceived ──┐                      ┌─> FinWait1 ──> FinWait2 ──┐
//!                            ├──> Established ──────┤       └──> Closing ───────┴─> TimeWait ──> Closed
//!   connect ─> SynSent ──────┘                      └─> CloseWait ─> LastAck ──────────────────> Closed
//! ```
//!
//! The rest of the stack hands in segments ([`Endpoint::on_segment`]), asks for segments until there are none
//! ([`Endpoint::next_segment`]) and calls when the time of [`Endpoint::deadline`] has come
//! ([`Endpoint::on_deadline`]). Bytes for the guest wait in `tx` from the first unacknowledged one on; bytes
//! from the guest wait in `rx`, those that came too early behind its end.
//!
//! The far end sits in the memory of this machine and takes frames only when it has room for them, so loss is
//! the exception: sending is bounded by the guest's window alone until something does get lost, and only then
//! by a congestion window (RFC 5681, with NewReno's recovery of RFC 6582). Selective acknowledgement and
//! timestamps are not offered.
//!
//! Section numbers are those of RFC 9293 where no other document is named.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::buffer::{ChunkQueue, Pools};
use super::ranges::Ranges;
use super::seq::Seq;

/// How far the windows that we announce are scaled (RFC 7323 §2.2): up to 8 MiB in steps of 128 bytes.
const WINDOW_SHIFT: u8 = 7;
/// Largest buffer that such a window can describe.
pub(crate) const WINDOW_MAX: usize = (u16::MAX as usize) << WINDOW_SHIFT;
/// Largest scale that is taken from a peer (RFC 7323 §2.3).
const WINDOW_SHIFT_MAX: u8 = 14;
/// Segment size of a peer that names none (§3.7.1).
const MSS_DEFAULT: u16 = 536;
/// Smallest segment size that is believed; what a smaller one would cost is the peer's own loss.
const MSS_MIN: u16 = 64;

/// First retransmission timeout (RFC 6298 §2.1).
const RTO_FIRST: Duration = Duration::from_secs(1);
/// Lower bound. RFC 6298 §2.4 says one second; the link is this machine's memory, and what is to be waited
/// for is only the guest's delayed acknowledgement (40 ms in Linux, 200 ms at most elsewhere).
const RTO_MIN: Duration = Duration::from_millis(250);
const RTO_MAX: Duration = Duration::from_secs(60);
/// Times that a SYN is repeated, and data.
const SYN_RETRIES_MAX: u8 = 6;
const DATA_RETRIES_MAX: u8 = 12;
/// When a silent peer is asked whether it still lives (§3.8.4), how often again, and how many times.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(600);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEPALIVE_PROBES_MAX: u8 = 6;
/// How long the last acknowledgement can be repeated (§3.6.1). Nothing lingers in a link without routers, so
/// it need only outlast the peer's retransmission.
const TIME_WAIT: Duration = Duration::from_secs(10);
/// Pure acknowledgements owed for segments that came out of order. Three make the sender retransmit.
const DUPLICATES_OWED_MAX: u8 = 4;

/// State of the connection (§3.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    SynSent,
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    Closing,
    TimeWait,
    CloseWait,
    LastAck,
    Closed,
}

/// How a connection came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both sides said FIN.
    Finished,
    /// The guest sent RST.
    Reset,
    /// [`Endpoint::abort`] was called, or the guest no longer answered.
    Aborted,
}

/// Control bits of a segment that matter here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    pub(crate) psh: bool,
}

/// A segment from the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) seq: Seq,
    /// The acknowledgement number, if the ACK bit is set.
    pub(crate) ack: Option<Seq>,
    pub(crate) flags: Flags,
    /// The window field as it stands, not scaled.
    pub(crate) window: u16,
    /// Options; only of meaning with SYN.
    pub(crate) mss: Option<u16>,
    pub(crate) window_shift: Option<u8>,
    pub(crate) payload: &'a [u8],
}

impl Segment<'_> {
    /// Returns how many sequence numbers the segment takes.
    pub(crate) fn length(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.flags.syn) + u32::from(self.flags.fin)
    }
}

/// A segment for the guest; the caller copies the payload out of `tx`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) seq: Seq,
    pub(crate) ack: Option<Seq>,
    pub(crate) flags: Flags,
    pub(crate) window: u16,
    pub(crate) mss: Option<u16>,
    pub(crate) window_shift: Option<u8>,
    /// Which bytes of `tx` are the payload.
    pub(crate) data: Range<usize>,
}

/// What an endpoint is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndpointSpec {
    /// Our first sequence number.
    pub(crate) iss: Seq,
    /// Largest payload that the link carries.
    pub(crate) mss: u16,
    /// Bytes from the guest that may wait.
    pub(crate) rx_limit: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    Idle,
    /// Something sent is not acknowledged (RFC 6298 §5).
    Retransmit(Instant),
    /// Something waits for a window that does not open (§3.8.6.1).
    Persist(Instant),
    TimeWait(Instant),
}

/// One end of a TCP connection.
#[derive(Debug)]
pub(crate) struct Endpoint {
    state: State,
    end: End,
    /// Bytes for the guest: from the first one not acknowledged to the last one known.
    pub(crate) tx: ChunkQueue,
    /// Bytes from the guest, in order up to the end of the queue.
    pub(crate) rx: ChunkQueue,
    /// Bytes from the guest that may wait; the window offered follows it.
    pub(crate) rx_limit: usize,

    // Sending (§3.3.1): what is not acknowledged, what is sent next, what was ever sent.
    snd_una: Seq,
    snd_nxt: Seq,
    snd_max: Seq,
    snd_wnd: u32,
    snd_wnd_max: u32,
    snd_wl1: Seq,
    snd_wl2: Seq,
    snd_shift: u8,
    mss_link: u16,
    mss: u32,
    /// No bytes will follow those in `tx`.
    tx_closed: bool,
    fin_sent: bool,

    // Receiving: what is expected next, and the end of the window offered.
    rcv_nxt: Seq,
    rcv_adv: Seq,
    rcv_shift: u8,
    scaling_asked: bool,
    early: Ranges,
    rx_fin: Option<Seq>,

    // Owed to the guest.
    ack_owed: bool,
    duplicates_owed: u8,
    probe_owed: bool,
    head_owed: bool,
    reset_owed: bool,
    /// A reset that answers a segment of some other connection (§3.10.7.3, first).
    stray_reset: Option<Seq>,

    // Loss and time.
    cwnd: u32,
    ssthresh: u32,
    duplicates: u8,
    /// Recovery lasts until this is acknowledged (RFC 6582 §3.2); `None` outside it.
    recover: Option<Seq>,
    srtt: Option<(Duration, Duration)>,
    rto: Duration,
    rtt_probe: Option<(Seq, Instant)>,
    retries: u8,
    timer: Timer,
    heard: Instant,
    /// When the guest was last asked whether it lives, and how often since it was last heard.
    asked: Option<Instant>,
    keepalives: u8,
    retransmitted: u32,
}

/// Congestion windows before the first loss: none.
const UNBOUNDED: u32 = u32::MAX / 2;

impl Endpoint {
    fn new(state: State, spec: EndpointSpec, now: Instant) -> Self {
        Self {
            state,
            end: End::Finished,
            tx: ChunkQueue::default(),
            rx: ChunkQueue::default(),
            rx_limit: spec.rx_limit.min(WINDOW_MAX),
            snd_una: spec.iss,
            snd_nxt: spec.iss,
            snd_max: spec.iss,
            snd_wnd: 0,
            snd_wnd_max: 0,
            snd_wl1: Seq(0),
            snd_wl2: spec.iss,
            snd_shift: 0,
            mss_link: spec.mss,
            mss: u32::from(spec.mss.min(MSS_DEFAULT)),
            tx_closed: false,
            fin_sent: false,
            rcv_nxt: Seq(0),
            rcv_adv: Seq(0),
            rcv_shift: 0,
            scaling_asked: false,
            early: Ranges::default(),
            rx_fin: None,
            ack_owed: false,
            duplicates_owed: 0,
            probe_owed: false,
            head_owed: false,
            reset_owed: false,
            stray_reset: None,
            cwnd: UNBOUNDED,
            ssthresh: UNBOUNDED,
            duplicates: 0,
            recover: None,
            srtt: None,
            rto: RTO_FIRST,
            rtt_probe: None,
            retries: 0,
            timer: Timer::Idle,
            heard: now,
            asked: None,
            keepalives: 0,
            retransmitted: 0,
        }
    }

    /// Answers a SYN of the guest: what follows is SYN and ACK.
    pub(crate) fn accept(syn: &Segment<'_>, spec: EndpointSpec, now: Instant) -> Self {
        let mut endpoint = Self::new(State::SynReceived, spec, now);
        endpoint.take_syn(syn);
        endpoint
    }

    /// Begins a connection to the guest: what follows is SYN.
    pub(crate) fn connect(spec: EndpointSpec, now: Instant) -> Self {
        let mut endpoint = Self::new(State::SynSent, spec, now);
        endpoint.scaling_asked = true;
        endpoint
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Tells whether both directions were opened.
    pub(crate) fn is_synchronized(&self) -> bool {
        !matches!(self.state, State::SynSent | State::SynReceived | State::Closed)
    }

    /// Tells whether the connection is over and nothing is left to say.
    pub(crate) fn is_finished(&self) -> bool {
        self.state == State::Closed && !self.reset_owed
    }

    /// Returns how the connection ended, once it has.
    pub(crate) fn end(&self) -> Option<End> {
        (self.state == State::Closed).then_some(self.end)
    }

    /// Tells whether the guest has said that no more bytes will follow those in `rx`.
    pub(crate) fn is_rx_closed(&self) -> bool {
        matches!(
            self.state,
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait | State::Closed
        )
    }

    /// Returns how many bytes of `tx` were never sent.
    pub(crate) fn unsent(&self) -> usize {
        self.tx.len().saturating_sub(self.snd_max.since(self.tx_start()) as usize)
    }

    /// Tells whether the guest would take bytes beyond those in `tx`, and there are few left to send.
    pub(crate) fn is_hungry(&self) -> bool {
        !self.tx_closed
            && matches!(self.state, State::Established | State::CloseWait)
            && (self.tx.len() as u32) < self.snd_wnd.max(1)
            && self.unsent() < self.mss as usize
    }

    /// Returns how many bytes were sent again since this was last asked.
    pub(crate) fn take_retransmitted(&mut self) -> u32 {
        std::mem::take(&mut self.retransmitted)
    }

    /// Returns the guest's sequence number to check a new SYN against in TIME-WAIT (RFC 6191 §2).
    pub(crate) fn rcv_nxt(&self) -> Seq {
        self.rcv_nxt
    }

    /// Says that no bytes will follow those in `tx`; a FIN goes out after them.
    pub(crate) fn close(&mut self) {
        self.tx_closed = true;
    }

    /// Ends the connection with a reset.
    pub(crate) fn abort(&mut self) {
        if self.state != State::Closed {
            // A peer that never heard of us needs no reset.
            self.reset_owed = self.state != State::SynSent || self.snd_max != self.snd_una;
            self.finish(End::Aborted);
        }
    }

    fn finish(&mut self, end: End) {
        self.state = State::Closed;
        self.end = end;
        self.timer = Timer::Idle;
    }

    /// Gives back all memory; the endpoint is closed after it.
    pub(crate) fn release(&mut self, pools: &mut Pools) {
        self.tx.clear(&mut pools.tx);
        self.rx.clear(&mut pools.rx);
        self.early.clear();
        self.state = State::Closed;
        self.reset_owed = false;
    }

    /// Gives back memory of `rx` that nothing needs.
    pub(crate) fn trim_rx(&mut self, pools: &mut Pools) {
        if self.early.is_empty() {
            self.rx.trim(&mut pools.rx);
        }
    }

    /// To be called after bytes were taken out of `rx` or its limit was raised: a window that has grown much
    /// is told to the guest.
    pub(crate) fn on_rx_taken(&mut self) {
        if !self.is_synchronized() {
            return;
        }
        // §3.8.6.2.2: avoid silly windows.
        let grown = self.window_edge().since(self.rcv_adv);
        let offered = self.rcv_adv.since(self.rcv_nxt);
        let mss = u32::from(self.mss_link);
        let worth = (2 * mss).min(self.rx_limit as u32 / 2);
        if grown >= worth && (offered < worth || grown >= self.rx_limit as u32 / 4) && !self.is_rx_closed() {
            self.ack_owed = true;
        }
    }

    // ----- segments in -----

    /// Takes a segment that belongs to this connection.
    pub(crate) fn on_segment(&mut self, segment: &Segment<'_>, now: Instant, pools: &mut Pools) {
        match self.state {
            State::Closed => {}
            State::SynSent => self.on_segment_in_syn_sent(segment, now),
            _ => self.on_segment_in_order(segment, now, pools),
        }
    }

    fn take_syn(&mut self, syn: &Segment<'_>) {
        self.rcv_nxt = syn.seq.plus(1);
        self.rcv_adv = self.rcv_nxt;
        self.mss = u32::from(syn.mss.unwrap_or(MSS_DEFAULT).clamp(MSS_MIN, self.mss_link));
        if let Some(shift) = syn.window_shift {
            self.snd_shift = shift.min(WINDOW_SHIFT_MAX);
            self.rcv_shift = WINDOW_SHIFT;
            self.scaling_asked = true;
        } else {
            self.scaling_asked = false;
        }
        // The window of a SYN is never scaled (RFC 7323 §2.2).
        self.take_window(syn, u32::from(syn.window));
    }

    fn take_window(&mut self, segment: &Segment<'_>, window: u32) {
        self.snd_wnd = window;
        self.snd_wnd_max = self.snd_wnd_max.max(window);
        self.snd_wl1 = segment.seq;
        self.snd_wl2 = segment.ack.unwrap_or(self.snd_wl2);
        if window > 0
            && let Timer::Persist(_) = self.timer
        {
            self.timer = Timer::Idle;
            self.retries = 0;
            self.settle_rto();
        }
    }

    /// §3.10.7.3.
    fn on_segment_in_syn_sent(&mut self, segment: &Segment<'_>, now: Instant) {
        if let Some(ack) = segment.ack
            && (!ack.is_after(self.snd_una) || ack.is_after(self.snd_max))
        {
            if !segment.flags.rst {
                self.stray_reset = Some(ack);
            }
            return;
        }
        if segment.flags.rst {
            if segment.ack.is_some() {
                self.finish(End::Reset);
            }
            return;
        }
        if !segment.flags.syn {
            return;
        }
        self.heard = now;
        self.take_syn(segment);
        match segment.ack {
            Some(ack) => {
                self.snd_una = ack;
                self.sample_rtt(ack, now);
                self.retries = 0;
                self.timer = Timer::Idle;
                self.state = State::Established;
                self.ack_owed = true;
            }
            None => {
                // Both sides opened at once: say SYN again, now with ACK.
                self.state = State::SynReceived;
                self.snd_nxt = self.snd_una;
                self.timer = Timer::Idle;
            }
        }
    }

    /// §3.10.7.4, in the order of its steps.
    fn on_segment_in_order(&mut self, segment: &Segment<'_>, now: Instant, pools: &mut Pools) {
        // First: the sequence number.
        if !self.is_acceptable(segment) {
            if segment.flags.rst {
                return;
            }
            if self.state == State::SynReceived && segment.flags.syn && segment.seq == self.rcv_nxt.minus(1) {
                // The same SYN again: our answer was lost.
                self.snd_nxt = self.snd_una;
                return;
            }
            if self.state == State::TimeWait && segment.flags.fin {
                self.timer = Timer::TimeWait(now + TIME_WAIT);
            }
            self.ack_owed = true;
            // A closed window refuses data, yet the acknowledgement that comes with it holds.
            if segment.seq != self.rcv_nxt || segment.flags.syn {
                return;
            }
        }
        // Second: RST. Only one that hits the very next byte is believed (RFC 5961 §3.2).
        if segment.flags.rst {
            if segment.seq == self.rcv_nxt {
                self.finish(End::Reset);
            } else {
                self.ack_owed = true;
            }
            return;
        }
        // Fourth: SYN (RFC 5961 §4.2).
        if segment.flags.syn {
            self.ack_owed = true;
            return;
        }
        // Fifth: ACK.
        let Some(ack) = segment.ack else { return };
        self.heard = now;
        self.asked = None;
        self.keepalives = 0;
        if self.state == State::SynReceived {
            if !ack.is_after(self.snd_una) || ack.is_after(self.snd_max) {
                self.stray_reset = Some(ack);
                return;
            }
            self.snd_una = ack;
            self.sample_rtt(ack, now);
            self.retries = 0;
            self.timer = Timer::Idle;
            self.state = State::Established;
            self.take_window(segment, u32::from(segment.window) << self.snd_shift);
        } else if !self.on_ack(segment, ack, now, pools) {
            return;
        }
        // Seventh and eighth: the payload, and FIN.
        if matches!(self.state, State::Established | State::FinWait1 | State::FinWait2) {
            self.on_data(segment, now, pools);
        }
    }

    /// Tells whether any part of the segment lies in the window (table 6).
    fn is_acceptable(&self, segment: &Segment<'_>) -> bool {
        let length = segment.length();
        if length == 0 {
            // An empty segment just beyond the window is common and harmless.
            return segment.seq.is_within(self.rcv_nxt, self.rcv_adv);
        }
        let end = segment.seq.plus(length);
        if self.rcv_adv == self.rcv_nxt {
            return false;
        }
        segment.seq.is_before(self.rcv_adv) && end.is_after(self.rcv_nxt)
    }

    /// Returns the number of the first byte of `tx`: that after the SYN while the SYN is not acknowledged.
    fn tx_start(&self) -> Seq {
        match self.state {
            State::SynSent | State::SynReceived => self.snd_una.plus(1),
            _ => self.snd_una,
        }
    }

    /// Takes an acknowledgement. Returns false when the segment is to be dropped.
    fn on_ack(&mut self, segment: &Segment<'_>, ack: Seq, now: Instant, pools: &mut Pools) -> bool {
        if ack.is_after(self.snd_max) {
            self.ack_owed = true;
            return false;
        }
        // RFC 5961 §5.2: an acknowledgement older than anything that could be under way.
        if ack.is_before(self.snd_una.minus(self.snd_wnd_max)) {
            self.ack_owed = true;
            return false;
        }
        let window = u32::from(segment.window) << self.snd_shift;
        if ack.is_after(self.snd_una) {
            self.on_progress(ack, now, pools);
        } else if ack == self.snd_una
            && segment.length() == 0
            && window == self.snd_wnd
            && self.snd_max != self.snd_una
        {
            self.on_duplicate_ack();
        }
        if matches!(self.timer, Timer::Persist(_)) {
            // It lives, so it may keep us waiting (§3.8.6.1).
            self.retries = 0;
        }
        let newer = self.snd_wl1.is_before(segment.seq)
            || (self.snd_wl1 == segment.seq && !ack.is_before(self.snd_wl2));
        if newer && !ack.is_before(self.snd_una) {
            self.take_window(segment, window);
        }
        true
    }

    fn on_progress(&mut self, ack: Seq, now: Instant, pools: &mut Pools) {
        let acked = ack.since(self.snd_una);
        let bytes = (acked as usize).min(self.tx.len());
        self.tx.consume(bytes, &mut pools.tx);
        if self.tx.is_empty() {
            self.tx.trim(&mut pools.tx);
        }
        let fin_acked = self.fin_sent && acked as usize > bytes;
        self.snd_una = ack;
        self.snd_nxt = self.snd_nxt.max(ack);
        self.sample_rtt(ack, now);
        self.retries = 0;
        self.duplicates = 0;
        self.grow_window(ack, acked);
        self.timer = if ack == self.snd_max { Timer::Idle } else { Timer::Retransmit(now + self.rto) };
        if fin_acked {
            match self.state {
                State::FinWait1 => self.state = State::FinWait2,
                State::Closing => self.enter_time_wait(now),
                State::LastAck => self.finish(End::Finished),
                _ => {}
            }
        }
    }

    fn grow_window(&mut self, ack: Seq, acked: u32) {
        match self.recover {
            Some(recover) if ack.is_before(recover) => {
                // A partial acknowledgement shows the next hole (RFC 6582 §3.2, step 3).
                if self.snd_nxt == self.snd_max {
                    self.head_owed = true;
                }
                self.cwnd = self.cwnd.saturating_sub(acked).saturating_add(self.mss).max(self.mss);
            }
            Some(_) => {
                self.recover = None;
                self.head_owed = false;
                self.cwnd = self.ssthresh.max(2 * self.mss);
            }
            None if self.cwnd >= UNBOUNDED => {}
            // RFC 5681 §3.1.
            None if self.cwnd < self.ssthresh => self.cwnd += acked,
            None => {
                self.cwnd += (u64::from(self.mss) * u64::from(acked) / u64::from(self.cwnd)).max(1) as u32
            }
        }
        self.cwnd = self.cwnd.min(UNBOUNDED);
    }

    /// RFC 5681 §3.2.
    fn on_duplicate_ack(&mut self) {
        self.duplicates = self.duplicates.saturating_add(1);
        if self.recover.is_some() {
            if self.duplicates > 3 {
                self.cwnd = self.cwnd.saturating_add(self.mss).min(UNBOUNDED);
            }
        } else if self.duplicates == 3 {
            let flight = self.snd_max.since(self.snd_una);
            self.ssthresh = (flight / 2).max(2 * self.mss);
            self.cwnd = self.ssthresh + 3 * self.mss;
            self.recover = Some(self.snd_max);
            self.rtt_probe = None;
            self.head_owed = true;
        }
    }

    /// RFC 6298 §2, with Karn's rule: what was retransmitted is not measured.
    fn sample_rtt(&mut self, ack: Seq, now: Instant) {
        if let Some((seq, sent)) = self.rtt_probe
            && !ack.is_before(seq)
        {
            self.rtt_probe = None;
            let rtt = now.saturating_duration_since(sent);
            let (srtt, rttvar) = match self.srtt {
                None => (rtt, rtt / 2),
                Some((srtt, rttvar)) => ((srtt * 7 + rtt) / 8, (rttvar * 3 + srtt.abs_diff(rtt)) / 4),
            };
            self.srtt = Some((srtt, rttvar));
        }
        self.settle_rto();
    }

    /// Ends the backing off.
    fn settle_rto(&mut self) {
        if let Some((srtt, rttvar)) = self.srtt {
            self.rto = (srtt + 4 * rttvar).clamp(RTO_MIN, RTO_MAX);
        }
    }

    fn on_data(&mut self, segment: &Segment<'_>, now: Instant, pools: &mut Pools) {
        if segment.length() == 0 {
            return;
        }
        self.ack_owed = true;
        let mut seq = segment.seq;
        let mut data = segment.payload;
        if seq.is_before(self.rcv_nxt) {
            let known = self.rcv_nxt.since(seq) as usize;
            if known > data.len() {
                return;
            }
            data = &data[known..];
            seq = self.rcv_nxt;
        }
        let fin = seq.plus(data.len() as u32);
        let room = if seq.is_after(self.rcv_adv) { 0 } else { self.rcv_adv.since(seq) as usize };
        let whole = data.len() <= room;
        data = &data[..data.len().min(room)];
        let offset = seq.since(self.rcv_nxt) as usize;
        let place = self.rx.len() + offset;
        if !data.is_empty() {
            if !self.rx.try_reserve(place + data.len(), &mut pools.rx) {
                // No memory: as if lost.
                return;
            }
            if offset == 0 {
                self.rx.write_at(place, data);
                let reached = self.early.join(seq.plus(data.len() as u32));
                self.rx.extend(reached.since(self.rcv_nxt) as usize);
                self.rcv_nxt = reached;
            } else {
                if !self.early.insert(seq, seq.plus(data.len() as u32)) {
                    return;
                }
                self.rx.write_at(place, data);
            }
        }
        if offset != 0 {
            // Tell of the hole at once (RFC 5681 §4.2).
            self.duplicates_owed = (self.duplicates_owed + 1).min(DUPLICATES_OWED_MAX);
        }
        if segment.flags.fin && whole && self.rx_fin.is_none() {
            self.rx_fin = Some(fin);
        }
        if self.rx_fin == Some(self.rcv_nxt) {
            self.on_fin(now);
        }
    }

    fn on_fin(&mut self, now: Instant) {
        self.rcv_nxt = self.rcv_nxt.plus(1);
        self.rcv_adv = self.rcv_adv.max(self.rcv_nxt);
        self.early.clear();
        match self.state {
            State::Established => self.state = State::CloseWait,
            State::FinWait1 => self.state = State::Closing,
            State::FinWait2 => self.enter_time_wait(now),
            _ => {}
        }
    }

    fn enter_time_wait(&mut self, now: Instant) {
        self.state = State::TimeWait;
        self.timer = Timer::TimeWait(now + TIME_WAIT);
    }

    // ----- segments out -----

    /// Returns the next segment for the guest, or None when there is none now. The payload has at most
    /// `payload_max` bytes.
    pub(crate) fn next_segment(&mut self, now: Instant, payload_max: usize) -> Option<Outgoing> {
        if let Some(seq) = self.stray_reset.take() {
            let flags = Flags { rst: true, ..Flags::default() };
            return Some(Outgoing { ack: None, window: 0, ..self.bare(seq, flags) });
        }
        match self.state {
            State::Closed => {
                if !std::mem::take(&mut self.reset_owed) {
                    return None;
                }
                let flags = Flags { rst: true, ..Flags::default() };
                Some(self.bare(self.snd_max, flags))
            }
            State::SynSent | State::SynReceived => self.next_syn(now),
            _ => self.next_synchronized(now, payload_max),
        }
    }

    fn bare(&self, seq: Seq, flags: Flags) -> Outgoing {
        Outgoing { seq, ack: Some(self.rcv_nxt), flags, window: 0, mss: None, window_shift: None, data: 0..0 }
    }

    fn next_syn(&mut self, now: Instant) -> Option<Outgoing> {
        if self.snd_nxt != self.snd_una {
            return None;
        }
        if self.snd_max == self.snd_una {
            self.rtt_probe = Some((self.snd_una.plus(1), now));
        } else {
            self.rtt_probe = None;
        }
        self.snd_nxt = self.snd_una.plus(1);
        self.snd_max = self.snd_nxt;
        self.timer = Timer::Retransmit(now + self.rto);
        self.ack_owed = false;
        let flags = Flags { syn: true, ..Flags::default() };
        let first = self.bare(self.snd_una, flags);
        let answer = self.state == State::SynReceived;
        let window = self.rx_limit.min(usize::from(u16::MAX)) as u16;
        if answer {
            self.rcv_adv = self.rcv_adv.max(self.rcv_nxt.plus(u32::from(window)));
        }
        Some(Outgoing {
            ack: if answer { first.ack } else { None },
            window,
            mss: Some(self.mss_link),
            window_shift: self.scaling_asked.then_some(WINDOW_SHIFT),
            ..first
        })
    }

    fn next_synchronized(&mut self, now: Instant, payload_max: usize) -> Option<Outgoing> {
        // Duplicates first and bare: one with data, or with another window, would not count as one.
        if self.duplicates_owed > 0 {
            self.duplicates_owed -= 1;
            self.ack_owed = false;
            let window = self.rcv_adv.since(self.rcv_nxt) >> self.rcv_shift;
            let window = window.min(u32::from(u16::MAX)) as u16;
            return Some(Outgoing { window, ..self.bare(self.snd_max, Flags::default()) });
        }
        if std::mem::take(&mut self.head_owed)
            && self.snd_max != self.snd_una
            && let Some(segment) = self.resend_head(now, payload_max)
        {
            return Some(segment);
        }
        if let Some(segment) = self.next_data(now, payload_max) {
            return Some(segment);
        }
        if std::mem::take(&mut self.probe_owed) {
            // A number already acknowledged: the peer must answer with what it expects (§3.8.4).
            return Some(self.with_window(self.bare(self.snd_una.minus(1), Flags::default())));
        }
        if self.ack_owed {
            return Some(self.with_window(self.bare(self.snd_max, Flags::default())));
        }
        None
    }

    fn next_data(&mut self, now: Instant, payload_max: usize) -> Option<Outgoing> {
        if matches!(self.state, State::FinWait2 | State::TimeWait) {
            return None;
        }
        let offset = self.snd_nxt.since(self.snd_una) as usize;
        if offset > self.tx.len() {
            return None; // The FIN is out.
        }
        let left = self.tx.len() - offset;
        let window = self.snd_wnd.min(self.cwnd) as usize;
        let usable = window.saturating_sub(offset);
        let full = (self.mss as usize).min(payload_max);
        let count = left.min(usable).min(full);
        // §3.8.6.2.1: wait rather than fill a small window with a small segment, as long as something that
        // is under way will bring an acknowledgement.
        let waits = count < full
            && count < left
            && self.snd_nxt != self.snd_una
            && count < self.snd_wnd_max as usize / 2;
        let count = if waits { 0 } else { count };
        let fin = self.tx_closed && count == left && usable > count;
        if count == 0 && !fin {
            if self.snd_nxt == self.snd_una && (left > 0 || self.tx_closed) && self.timer == Timer::Idle {
                self.timer = Timer::Persist(now + self.rto);
            }
            return None;
        }

        let seq = self.snd_nxt;
        self.snd_nxt = seq.plus(count as u32 + u32::from(fin));
        if self.snd_nxt.is_after(self.snd_max) {
            if self.rtt_probe.is_none() && seq == self.snd_max {
                self.rtt_probe = Some((self.snd_nxt, now));
            }
            self.snd_max = self.snd_nxt;
        } else {
            self.retransmitted += count as u32;
        }
        if !matches!(self.timer, Timer::Retransmit(_)) {
            self.timer = Timer::Retransmit(now + self.rto);
        }
        if fin {
            self.fin_sent = true;
            match self.state {
                State::Established => self.state = State::FinWait1,
                State::CloseWait => self.state = State::LastAck,
                _ => {}
            }
        }
        let flags = Flags { fin, psh: count > 0 && count == left, ..Flags::default() };
        let segment = Outgoing { data: offset..offset + count, ..self.bare(seq, flags) };
        Some(self.with_window(segment))
    }

    /// Makes the first unacknowledged segment again.
    fn resend_head(&mut self, now: Instant, payload_max: usize) -> Option<Outgoing> {
        let count = self.tx.len().min(self.mss as usize).min(payload_max);
        let fin = self.fin_sent && count == self.tx.len();
        if count == 0 && !fin {
            return None;
        }
        self.retransmitted += count as u32;
        self.rtt_probe = None;
        self.timer = Timer::Retransmit(now + self.rto);
        let flags = Flags { fin, psh: count > 0, ..Flags::default() };
        let segment = Outgoing { data: 0..count, ..self.bare(self.snd_una, flags) };
        Some(self.with_window(segment))
    }

    /// Returns the end of the window that the buffer allows; it never moves back (§3.8.6.2.2).
    fn window_edge(&self) -> Seq {
        let room = self.rx_limit.saturating_sub(self.rx.len());
        let field = (room >> self.rcv_shift).min(usize::from(u16::MAX)) as u32;
        self.rcv_nxt.plus(field << self.rcv_shift).max(self.rcv_adv)
    }

    fn with_window(&mut self, segment: Outgoing) -> Outgoing {
        self.ack_owed = false;
        self.rcv_adv = self.window_edge();
        let window = (self.rcv_adv.since(self.rcv_nxt) >> self.rcv_shift).min(u32::from(u16::MAX)) as u16;
        Outgoing { window, ..segment }
    }

    // ----- time -----

    /// Returns when [`Endpoint::on_deadline`] is to be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.timer {
            Timer::Retransmit(at) | Timer::Persist(at) | Timer::TimeWait(at) => Some(at),
            Timer::Idle if self.is_synchronized() => {
                // From the last question on: after a pause, the guest gets time to answer each of them.
                Some(self.asked.map_or(self.heard + KEEPALIVE_IDLE, |asked| asked + KEEPALIVE_INTERVAL))
            }
            Timer::Idle => None,
        }
    }

    /// Does what is due; harmless when nothing is.
    pub(crate) fn on_deadline(&mut self, now: Instant) {
        if self.deadline().is_none_or(|at| at > now) {
            return;
        }
        match self.timer {
            Timer::Retransmit(_) => self.on_retransmit_timeout(),
            Timer::Persist(_) => {
                self.retries += 1;
                if self.retries > DATA_RETRIES_MAX {
                    return self.abort();
                }
                self.probe_owed = true;
                self.rto = (self.rto * 2).min(RTO_MAX);
                self.timer = Timer::Persist(now + self.rto);
            }
            Timer::TimeWait(_) => self.finish(End::Finished),
            Timer::Idle => {
                self.keepalives += 1;
                if self.keepalives > KEEPALIVE_PROBES_MAX {
                    return self.abort();
                }
                self.asked = Some(now);
                self.probe_owed = true;
            }
        }
    }

    /// RFC 6298 §5.4 to 5.7: back off, and go back to the first byte not acknowledged.
    fn on_retransmit_timeout(&mut self) {
        self.retries += 1;
        let retries_max = if self.is_synchronized() { DATA_RETRIES_MAX } else { SYN_RETRIES_MAX };
        if self.retries > retries_max {
            return self.abort();
        }
        let flight = self.snd_max.since(self.snd_una);
        if self.is_synchronized() {
            if self.retries == 1 {
                self.ssthresh = (flight / 2).max(2 * self.mss);
            }
            self.cwnd = self.mss;
        }
        self.rto = (self.rto * 2).min(RTO_MAX);
        self.snd_nxt = self.snd_una;
        self.rtt_probe = None;
        self.duplicates = 0;
        self.head_owed = false;
        // Duplicates that our going back provokes must not start a recovery; slow start runs meanwhile.
        self.recover = None;
        self.timer = Timer::Idle;
    }
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
