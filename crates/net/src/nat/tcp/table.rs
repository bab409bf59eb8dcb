//! All TCP connections of a network.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use super::buffer::Pools;
use super::endpoint::{Endpoint, EndpointSpec, Flags, Outgoing, Segment, State};
use super::flow::{Flow, FlowId, Phase, SocketFate, Syn, share};
use super::seq::Seq;
use crate::MacAddress;
use crate::nat::arp;
use crate::nat::core::{Core, Route};
use crate::nat::dns::{self, DnsForwarder};
use crate::nat::host::{self, Event, Token, Watch};
use crate::nat::icmp::{self, LateError, Unreachable};
use crate::nat::slab::{Key, Slab};
use crate::nat::wire::{self, ETHERNET, IPV4, Ipv4, Link, PROTOCOL_TCP, TCP, TcpIn};

/// Segments that one flow sends before others have their turn.
const BURST: u32 = 32;
/// Data from the guest is written to the socket at the end of a batch, or when there is this much.
const FLUSH: usize = 192 << 10;
/// Connections taken from one forwarded port before others have their turn.
const ACCEPTS_MAX: usize = 64;
/// How long a forwarded port rests when the host has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long a guest that is not known yet may take to be found; then the connection is given up.
const NEIGHBOUR_WAIT: Duration = Duration::from_secs(60);
/// How often it is asked for meanwhile.
const NEIGHBOUR_ASK: Duration = Duration::from_secs(1);
/// How long the host may take to connect.
const CONNECT_WAIT: Duration = Duration::from_secs(130);
/// Entries of the timer queue, beyond some for each flow, before it is tidied up.
const TIMERS_SLACK: usize = 64;
/// Attempts to find a port that distinguishes a connection which would look like another.
const PORT_ATTEMPTS: u32 = 64;

/// A forwarded port.
#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    guest: SocketAddrV4,
    /// When it is watched again, if it rests.
    paused_until: Option<Instant>,
}

/// All connections.
#[derive(Debug)]
pub(in crate::nat) struct TcpTable {
    flows: Slab<Flow>,
    by_id: HashMap<FlowId, Key>,
    listeners: Slab<Listener>,
    pools: Pools,
    /// Flows that may have a segment for the guest; the first has its turn.
    ready: VecDeque<Key>,
    turn: u32,
    /// Flows with data for the host.
    dirty: Vec<Key>,
    /// Flows in TIME-WAIT, oldest first; they make room when there is none.
    time_wait: VecDeque<Key>,
    /// Flows that wait for their guest to be found.
    homeless: Vec<Key>,
    ask_at: Option<Instant>,
    timers: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    secret: RandomState,
    epoch: Instant,
}

impl TcpTable {
    pub(in crate::nat) fn new(buffer_total_max: usize) -> Self {
        Self {
            flows: Slab::new(),
            by_id: HashMap::new(),
            listeners: Slab::new(),
            pools: Pools::new(buffer_total_max),
            ready: VecDeque::new(),
            turn: 0,
            dirty: Vec::new(),
            time_wait: VecDeque::new(),
            homeless: Vec::new(),
            ask_at: None,
            timers: BinaryHeap::new(),
            secret: RandomState::new(),
            epoch: Instant::now(),
        }
    }

    // ----- from the guest -----

    /// Takes a segment of a guest.
    pub(in crate::nat) fn on_segment(
        &mut self,
        core: &mut Core,
        dns: &mut DnsForwarder,
        ip: &Ipv4<'_>,
        tcp: &TcpIn<'_>,
    ) {
        let id = FlowId {
            guest: SocketAddrV4::new(ip.source, tcp.source_port),
            remote: SocketAddrV4::new(ip.destination, tcp.destination_port),
        };
        let segment = &tcp.segment;
        let opens = segment.flags.syn && segment.ack.is_none() && !segment.flags.rst;
        if let Some(&key) = self.by_id.get(&id)
            && self.on_segment_of_flow(core, key, ip.source_mac, segment, opens)
        {
            return;
        }
        if opens {
            self.open(core, dns, ip, id, segment);
        } else if !segment.flags.rst {
            refuse(core, ip.source_mac, id, segment);
        }
    }

    /// Takes a segment of a known connection. Returns false when it opens a new one in its place.
    fn on_segment_of_flow(
        &mut self,
        core: &mut Core,
        key: Key,
        mac: MacAddress,
        segment: &Segment<'_>,
        opens: bool,
    ) -> bool {
        let Some(flow) = self.flows.get_mut(key) else { return false };
        flow.mac = Some(mac);
        let endpoint = match &mut flow.phase {
            Phase::Connecting(syn) => {
                if segment.flags.rst || (opens && segment.seq != syn.seq) {
                    // The guest gave up, or began anew without telling.
                    self.remove(core, key, SocketFate::Reset);
                    return !opens;
                }
                return true;
            }
            Phase::Spliced(endpoint) => endpoint,
        };
        // A guest that reuses its port may cut TIME-WAIT short (RFC 9293 §3.10.7.4, RFC 6191).
        if opens && endpoint.state() == State::TimeWait && !segment.seq.is_before(endpoint.rcv_nxt()) {
            self.remove(core, key, SocketFate::Close);
            return false;
        }
        endpoint.on_segment(segment, core.now, &mut self.pools);
        let waiting = endpoint.rx.len();
        if waiting >= FLUSH {
            flow.pump_to_host(&mut self.pools);
        }
        self.mark_dirty(key);
        self.mark_ready(key);
        true
    }

    /// Begins a connection that a guest asks for.
    fn open(
        &mut self,
        core: &mut Core,
        dns: &mut DnsForwarder,
        ip: &Ipv4<'_>,
        id: FlowId,
        segment: &Segment<'_>,
    ) {
        let target = match core.route(*id.remote.ip()) {
            Route::Nobody => return,
            Route::Gateway if core.is_loopback_open() => {
                Some(SocketAddr::from((Ipv4Addr::LOCALHOST, id.remote.port())))
            }
            Route::Gateway => None,
            Route::Dns if id.remote.port() == dns::PORT => dns.tcp_server(core),
            Route::Dns => None,
            Route::Outside => Some(id.remote.into()),
            Route::Denied => {
                core.counters.drops_denied.add(1);
                return icmp::unreachable(core, ip, Unreachable::Prohibited);
            }
        };
        let Some(target) = target else {
            core.counters.tcp_failed.add(1);
            return refuse(core, ip.source_mac, id, segment);
        };
        if !self.make_room(core) {
            core.counters.drops_limit.add(1);
            return refuse(core, ip.source_mac, id, segment);
        }
        let syn = Syn {
            seq: segment.seq,
            window: segment.window,
            mss: segment.mss,
            window_shift: segment.window_shift,
        };
        let socket = match host::tcp_connect(target) {
            Ok(socket) => socket,
            Err(error) => {
                core.counters.tcp_failed.add(1);
                return fail(core, ip.source_mac, id, syn, &error);
            }
        };
        let flow = Flow::new(id, Some(ip.source_mac), Phase::Connecting(syn), socket);
        if let Some(key) = self.insert(core, flow) {
            self.plan_open(core.now + CONNECT_WAIT, key);
        } else {
            core.counters.drops_limit.add(1);
            refuse(core, ip.source_mac, id, segment);
        }
    }

    /// Sees to it that there is room for one more flow.
    fn make_room(&mut self, core: &mut Core) -> bool {
        while self.flows.len() >= core.spec.limits.tcp_flows_max {
            let Some(key) = self.time_wait.pop_front() else { return false };
            if self.flows.get_mut(key).is_some_and(|flow| {
                flow.endpoint().is_some_and(|endpoint| endpoint.state() == State::TimeWait)
            }) {
                self.remove(core, key, SocketFate::Close);
            }
        }
        true
    }

    fn insert(&mut self, core: &Core, flow: Flow) -> Option<Key> {
        let id = flow.id;
        let key = self.flows.insert(flow);
        let socket = self.flows.get(key).and_then(|flow| flow.socket.as_ref())?;
        if core.epoll.add(socket, Token::Tcp(key), Watch::Edge).is_err() {
            self.flows.remove(key);
            return None;
        }
        self.by_id.insert(id, key);
        core.counters.tcp_active.set(self.flows.len() as u64);
        Some(key)
    }

    fn endpoint_spec(&self, core: &Core, id: FlowId) -> EndpointSpec {
        // RFC 6528: a secret hash of the connection's name, moving with time. One step is 4 µs.
        let hash = self.secret.hash_one(id) as u32;
        let clock = (core.now.saturating_duration_since(self.epoch).as_micros() / 4) as u32;
        EndpointSpec {
            iss: Seq(hash.wrapping_add(clock)),
            mss: core.spec.mtu - (IPV4 + TCP) as u16,
            rx_limit: share(&self.pools.rx, core.spec.limits.flow_buffer_max),
        }
    }

    // ----- the host's side -----

    /// Notes what has happened at the socket of a flow.
    pub(in crate::nat) fn on_event(&mut self, core: &mut Core, key: Key, event: Event) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        match flow.phase {
            Phase::Connecting(syn) => {
                if !event.writable && !event.failed {
                    return;
                }
                let Some(socket) = &flow.socket else { return };
                let result = match sockopt::socket_error(socket) {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(errno)) | Err(errno) => Err(io::Error::from(errno)),
                };
                match result {
                    Ok(()) => self.on_connected(core, key, syn, event),
                    Err(error) => self.on_connect_failed(core, key, syn, &error),
                }
            }
            Phase::Spliced(_) => {
                flow.readable |= event.readable;
                flow.writable |= event.writable;
                if event.failed {
                    flow.on_socket_error();
                }
                if event.writable {
                    self.mark_dirty(key);
                }
                self.mark_ready(key);
            }
        }
    }

    fn on_connected(&mut self, core: &mut Core, key: Key, syn: Syn, event: Event) {
        let Some(id) = self.flows.get(key).map(|flow| flow.id) else { return };
        let spec = self.endpoint_spec(core, id);
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.phase = Phase::Spliced(Box::new(Endpoint::accept(&syn.segment(), spec, core.now)));
        flow.open_by = None;
        flow.writable = true;
        flow.readable = event.readable;
        core.counters.tcp_opened.add(1);
        self.mark_ready(key);
    }

    fn on_connect_failed(&mut self, core: &mut Core, key: Key, syn: Syn, error: &io::Error) {
        core.counters.tcp_failed.add(1);
        let Some(flow) = self.flows.get(key) else { return };
        let (id, mac) = (flow.id, flow.mac);
        self.remove(core, key, SocketFate::Close);
        if let Some(mac) = mac {
            fail(core, mac, id, syn, error);
        }
    }

    // ----- forwarded ports -----

    /// Takes over a socket that listens for a forwarded port.
    pub(in crate::nat) fn add_forward(
        &mut self,
        core: &Core,
        socket: TcpListener,
        guest: SocketAddrV4,
    ) -> io::Result<Key> {
        let key = self.listeners.insert(Listener { socket, guest, paused_until: None });
        let added = match self.listeners.get(key) {
            Some(listener) => core.epoll.add(&listener.socket, Token::TcpForward(key), Watch::Level),
            None => Ok(()),
        };
        if let Err(error) = added {
            self.listeners.remove(key);
            return Err(error);
        }
        Ok(key)
    }

    /// Closes a forwarded port; connections over it go on.
    pub(in crate::nat) fn remove_forward(&mut self, key: Key) {
        self.listeners.remove(key);
    }

    /// Takes the connections that wait at a forwarded port.
    pub(in crate::nat) fn on_forward_event(&mut self, core: &mut Core, key: Key) {
        for _ in 0..ACCEPTS_MAX {
            let Some(listener) = self.listeners.get_mut(key) else { return };
            let guest = listener.guest;
            match listener.socket.accept() {
                Ok((socket, peer)) => self.accept(core, OwnedFd::from(socket), peer, guest),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    let out_of_descriptors = matches!(
                        error.raw_os_error(),
                        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
                    );
                    if out_of_descriptors {
                        // It would stay readable and keep us busy with nothing.
                        core.epoll.remove(&listener.socket);
                        listener.paused_until = Some(core.now + ACCEPT_PAUSE);
                        return;
                    }
                    // The peer has gone away meanwhile.
                }
            }
        }
    }

    fn accept(&mut self, core: &mut Core, socket: OwnedFd, peer: SocketAddr, guest: SocketAddrV4) {
        let usable = host::tcp_prepare(&socket).is_ok() && rustix::io::ioctl_fionbio(&socket, true).is_ok();
        let id = if usable && self.make_room(core) { self.inbound_id(core, peer, guest) } else { None };
        let Some(id) = id else {
            core.counters.drops_limit.add(1);
            return host::tcp_reset_on_close(&socket);
        };
        let endpoint = Endpoint::connect(self.endpoint_spec(core, id), core.now);
        let mac = core.neighbour(*guest.ip());
        let mut flow = Flow::new(id, mac, Phase::Spliced(Box::new(endpoint)), socket);
        flow.writable = true;
        flow.readable = true;
        let Some(key) = self.insert(core, flow) else {
            return core.counters.drops_limit.add(1);
        };
        core.counters.tcp_accepted.add(1);
        if mac.is_none() {
            self.plan_open(core.now + NEIGHBOUR_WAIT, key);
            self.homeless.push(key);
            self.ask_at.get_or_insert(core.now);
        }
        self.mark_ready(key);
    }

    /// Chooses what a connection from outside looks like to the guest: like its peer, if that is not taken.
    fn inbound_id(&self, core: &Core, peer: SocketAddr, guest: SocketAddrV4) -> Option<FlowId> {
        let mut id = FlowId { guest, remote: core.seen_from_guest(peer) };
        for attempt in 0..PORT_ATTEMPTS {
            if id.remote.port() != 0 && !self.by_id.contains_key(&id) {
                return Some(id);
            }
            let hash = self.secret.hash_one((id, attempt)) as u16;
            id.remote.set_port(hash | 0x8000);
        }
        None
    }

    /// Notes that a guest was found.
    pub(in crate::nat) fn on_neighbour(&mut self, address: Ipv4Addr, mac: MacAddress) {
        let mut found = Vec::new();
        self.homeless.retain(|&key| {
            let Some(flow) = self.flows.get_mut(key) else { return false };
            if *flow.id.guest.ip() != address {
                return true;
            }
            flow.mac = Some(mac);
            flow.open_by = None;
            found.push(key);
            false
        });
        for key in found {
            self.mark_ready(key);
        }
        if self.homeless.is_empty() {
            self.ask_at = None;
        }
    }

    // ----- to the guest -----

    fn mark_ready(&mut self, key: Key) {
        if let Some(flow) = self.flows.get_mut(key)
            && !flow.is_ready
        {
            flow.is_ready = true;
            self.ready.push_back(key);
        }
    }

    fn mark_dirty(&mut self, key: Key) {
        if let Some(flow) = self.flows.get_mut(key)
            && !flow.is_dirty
        {
            flow.is_dirty = true;
            self.dirty.push(key);
        }
    }

    /// Tells whether a flow may have a segment for the guest.
    pub(in crate::nat) fn has_output(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Hands to the host what the guest has sent since the last time.
    pub(in crate::nat) fn flush(&mut self) {
        for key in self.dirty.drain(..) {
            if let Some(flow) = self.flows.get_mut(key) {
                flow.is_dirty = false;
                flow.pump_to_host(&mut self.pools);
                // The window may have grown, or the flow may be over.
                if !flow.is_ready {
                    flow.is_ready = true;
                    self.ready.push_back(key);
                }
            }
        }
    }

    /// Puts the next segment for a guest into `frame`. Returns the frame's length, or None when no flow has one.
    pub(in crate::nat) fn produce(&mut self, core: &mut Core, frame: &mut [u8]) -> Option<usize> {
        let headers = ETHERNET + IPV4 + TCP;
        // Room for a SYN at least.
        let payload_max = frame.len().checked_sub(headers).filter(|&room| room >= 8)?;
        while let Some(&key) = self.ready.front() {
            if let Some(length) = self.produce_from(core, key, frame, payload_max) {
                self.turn += 1;
                if self.turn >= BURST {
                    self.turn = 0;
                    self.ready.rotate_left(1);
                }
                return Some(length);
            }
            self.turn = 0;
            self.ready.pop_front();
            if let Some(flow) = self.flows.get_mut(key) {
                flow.is_ready = false;
            }
            self.settle(core, key);
        }
        None
    }

    fn produce_from(
        &mut self,
        core: &mut Core,
        key: Key,
        frame: &mut [u8],
        payload_max: usize,
    ) -> Option<usize> {
        let limit = share(&self.pools.tx, core.spec.limits.flow_buffer_max);
        let flow = self.flows.get_mut(key)?;
        let mac = flow.mac?;
        flow.pump_to_guest(&mut self.pools, limit);
        let Phase::Spliced(endpoint) = &mut flow.phase else { return None };
        let out = endpoint.next_segment(core.now, payload_max)?;
        let start = wire::tcp_payload_start(&out);
        endpoint.tx.read_at(out.data.start, &mut frame[start..start + out.data.len()]);
        let link = core.link(mac);
        Some(wire::write_tcp(frame, link, flow.id.remote, flow.id.guest, &out))
    }

    /// Brings a flow to rest after it has said what it had to: plans its timer, closes what is over.
    fn settle(&mut self, core: &mut Core, key: Key) {
        let rx_limit = share(&self.pools.rx, core.spec.limits.flow_buffer_max);
        let Some(flow) = self.flows.get_mut(key) else { return };
        let fate = flow.socket_fate();
        if fate != SocketFate::Needed {
            flow.drop_socket(fate);
        }
        let Phase::Spliced(endpoint) = &mut flow.phase else { return };
        let again = endpoint.take_retransmitted();
        if again > 0 {
            core.counters.tcp_retransmitted_bytes.add(u64::from(again));
        }
        endpoint.rx_limit = rx_limit;
        if endpoint.state() == State::TimeWait && flow.socket.is_none() && !flow.is_waiting_out {
            flow.is_waiting_out = true;
            // All wait equally long, so those that are over stand in front.
            while self.time_wait.front().is_some_and(|&oldest| self.flows.get(oldest).is_none()) {
                self.time_wait.pop_front();
            }
            self.time_wait.push_back(key);
            return self.settle(core, key);
        }
        if endpoint.is_finished() && flow.socket.is_none() {
            return self.remove(core, key, SocketFate::Close);
        }
        if let Some(deadline) = endpoint.deadline() {
            self.plan(deadline, key);
        }
    }

    fn remove(&mut self, core: &Core, key: Key, fate: SocketFate) {
        if let Some(mut flow) = self.flows.remove(key) {
            self.by_id.remove(&flow.id);
            if let Some(endpoint) = flow.endpoint() {
                endpoint.release(&mut self.pools);
            }
            flow.drop_socket(fate);
        }
        core.counters.tcp_active.set(self.flows.len() as u64);
    }

    // ----- time -----

    /// Sees to it that the flow is looked at by then. A flow has few entries: one is added only when the
    /// deadline moves forward, and one that comes too early is only moved.
    fn plan(&mut self, at: Instant, key: Key) {
        if let Some(flow) = self.flows.get_mut(key)
            && flow.planned.is_none_or(|planned| at < planned)
        {
            flow.planned = Some(at);
            self.timers.push(Reverse((at, key.index, key.generation)));
            if self.timers.len() > TIMERS_SLACK + 4 * self.flows.len() {
                // Throw out entries that were overtaken by earlier ones.
                let flows = &self.flows;
                self.timers.retain(|&Reverse((at, index, generation))| {
                    flows.get(Key { index, generation }).is_some_and(|flow| flow.planned == Some(at))
                });
            }
        }
    }

    fn plan_open(&mut self, at: Instant, key: Key) {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.open_by = Some(at);
        }
        self.plan(at, key);
    }

    /// Returns when [`TcpTable::on_deadline`] is to be called.
    pub(in crate::nat) fn deadline(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, ..))| *at);
        let paused = self.listeners.iter().filter_map(|(_, listener)| listener.paused_until).min();
        timer.into_iter().chain(paused).chain(self.ask_at).min()
    }

    /// Does what is due.
    pub(in crate::nat) fn on_deadline(&mut self, core: &mut Core) {
        let now = core.now;
        while let Some(&Reverse((at, index, generation))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            let key = Key { index, generation };
            let Some(flow) = self.flows.get_mut(key) else { continue };
            if flow.planned != Some(at) {
                continue;
            }
            flow.planned = None;
            if flow.open_by.is_some_and(|by| by <= now) {
                self.give_up(core, key);
                continue;
            }
            if let Some(by) = flow.open_by {
                self.plan(by, key);
            }
            let Some(flow) = self.flows.get_mut(key) else { continue };
            if let Phase::Spliced(endpoint) = &mut flow.phase {
                endpoint.on_deadline(now);
                if let Some(deadline) = endpoint.deadline() {
                    self.plan(deadline, key);
                }
            }
            self.mark_ready(key);
        }
        if self.ask_at.is_some_and(|at| at <= now) {
            self.ask(core);
        }
        let rested: Vec<Key> = self
            .listeners
            .iter()
            .filter(|(_, listener)| listener.paused_until.is_some_and(|until| until <= now))
            .map(|(key, _)| key)
            .collect();
        for key in rested {
            if let Some(listener) = self.listeners.get_mut(key) {
                let watched = core.epoll.add(&listener.socket, Token::TcpForward(key), Watch::Level);
                listener.paused_until = watched.is_err().then(|| now + ACCEPT_PAUSE);
            }
        }
        core.counters.tcp_buffered_bytes.set(self.pools.in_use() as u64);
    }

    /// Asks where the guests are that connections wait for.
    fn ask(&mut self, core: &mut Core) {
        self.homeless.retain(|&key| self.flows.get(key).is_some());
        let mut guests: Vec<Ipv4Addr> = self
            .homeless
            .iter()
            .filter_map(|&key| self.flows.get(key))
            .map(|flow| *flow.id.guest.ip())
            .collect();
        guests.sort_unstable();
        guests.dedup();
        for guest in &guests {
            arp::ask(core, *guest);
        }
        self.ask_at = (!guests.is_empty()).then(|| core.now + NEIGHBOUR_ASK);
    }

    /// Gives up a connection that did not open in time.
    fn give_up(&mut self, core: &mut Core, key: Key) {
        let Some(flow) = self.flows.get(key) else { return };
        match flow.phase {
            Phase::Connecting(syn) => {
                self.on_connect_failed(core, key, syn, &rustix::io::Errno::TIMEDOUT.into());
            }
            Phase::Spliced(_) => self.remove(core, key, SocketFate::Reset),
        }
    }
}

/// Answers a segment that belongs to no connection with a reset (RFC 9293 §3.10.7.1).
fn refuse(core: &mut Core, mac: MacAddress, id: FlowId, segment: &Segment<'_>) {
    let (seq, ack) = match segment.ack {
        Some(ack) => (ack, None),
        None => (Seq(0), Some(segment.seq.plus(segment.length()))),
    };
    let out = Outgoing {
        seq,
        ack,
        flags: Flags { rst: true, ..Flags::default() },
        window: 0,
        mss: None,
        window_shift: None,
        data: 0..0,
    };
    let link: Link = core.link(mac);
    core.queue(ETHERNET + IPV4 + TCP, |frame| wire::write_tcp(frame, link, id.remote, id.guest, &out));
}

/// Tells the guest why its connection did not open: RST when it was refused, else ICMP.
fn fail(core: &mut Core, mac: MacAddress, id: FlowId, syn: Syn, error: &io::Error) {
    match Unreachable::from_host(error) {
        None | Some(Unreachable::Port) => refuse(core, mac, id, &syn.segment()),
        Some(code) => {
            // All that the guest needs to know its SYN again (RFC 792: the first 64 bits).
            let mut transport = [0; 8];
            transport[0..2].copy_from_slice(&id.guest.port().to_be_bytes());
            transport[2..4].copy_from_slice(&id.remote.port().to_be_bytes());
            transport[4..8].copy_from_slice(&syn.seq.0.to_be_bytes());
            let late = LateError {
                mac,
                from: core.spec.gateway,
                kind: 0,
                code: 0,
                source: *id.guest.ip(),
                destination: *id.remote.ip(),
                protocol: PROTOCOL_TCP,
            };
            icmp::late_unreachable(core, code, late, &transport);
        }
    }
}
