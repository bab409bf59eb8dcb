//! The host's side: descriptors to wait on, and sockets that never block.

use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::slab::Key;
use crate::{NetError, NetErrorKind};

/// Who an event of the epoll descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// There is something for the guest, or the timer has run out: nothing to do but be awake.
    Output,
    Timer,
    Commands,
    Tcp(Key),
    Udp(Key),
    Ping(Key),
    Dns(Key),
    TcpForward(Key),
    UdpForward(Key),
}

impl Token {
    fn encode(self) -> u64 {
        let pack = |kind: u64, key: Key| kind << 56 | u64::from(key.generation) << 32 | u64::from(key.index);
        match self {
            Self::Output => 0,
            Self::Timer => 1 << 56,
            Self::Commands => 2 << 56,
            Self::Tcp(key) => pack(3, key),
            Self::Udp(key) => pack(4, key),
            Self::Ping(key) => pack(5, key),
            Self::Dns(key) => pack(6, key),
            Self::TcpForward(key) => pack(7, key),
            Self::UdpForward(key) => pack(8, key),
        }
    }

    fn decode(value: u64) -> Option<Self> {
        let key = Key { index: value as u32, generation: (value >> 32) as u32 & 0x00ff_ffff };
        Some(match value >> 56 {
            0 => Self::Output,
            1 => Self::Timer,
            2 => Self::Commands,
            3 => Self::Tcp(key),
            4 => Self::Udp(key),
            5 => Self::Ping(key),
            6 => Self::Dns(key),
            7 => Self::TcpForward(key),
            8 => Self::UdpForward(key),
            _ => return None,
        })
    }
}

/// What has happened at a descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub(super) token: Token,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// An error or hang-up; both directions count as ready too, so that the next call finds it.
    pub(super) failed: bool,
}

/// How a descriptor is watched.
#[derive(Clone, Copy, Debug)]
pub(super) enum Watch {
    /// Readable, reported as long as it is.
    Level,
    /// Readable, writable or closed, reported when it becomes so. The owner remembers that until a call says
    /// "would block", which saves a system call at each change of interest.
    Edge,
}

/// Events taken from the kernel with one call.
const EVENTS_MAX: usize = 64;

/// The one descriptor that stands for all others.
#[derive(Debug)]
pub(super) struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    pub(super) fn new() -> Result<Self, NetError> {
        let fd = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| host_error("an epoll descriptor", errno))?;
        Ok(Self { fd })
    }

    /// Watches a descriptor until it is closed.
    pub(super) fn add(&self, fd: impl AsFd, token: Token, watch: Watch) -> io::Result<()> {
        use epoll::EventFlags as Flags;
        let flags = match watch {
            Watch::Level => Flags::IN,
            Watch::Edge => Flags::IN | Flags::OUT | Flags::RDHUP | Flags::ET,
        };
        Ok(epoll::add(&self.fd, fd, epoll::EventData::new_u64(token.encode()), flags)?)
    }

    pub(super) fn remove(&self, fd: impl AsFd) {
        // A descriptor that is not watched any more needs no removing.
        let _ = epoll::delete(&self.fd, fd);
    }

    /// Fills `out` with what has happened, without waiting. Returns whether there may be more.
    pub(super) fn take(&self, out: &mut Vec<Event>) -> bool {
        use epoll::EventFlags as Flags;
        out.clear();
        let mut buffer = [const { MaybeUninit::uninit() }; EVENTS_MAX];
        let Ok((events, _)) = epoll::wait(&self.fd, &mut buffer, Some(&Timespec::default())) else {
            return false;
        };
        out.extend(events.iter().filter_map(|event| {
            let flags = event.flags;
            let failed = flags.intersects(Flags::ERR | Flags::HUP);
            Some(Event {
                token: Token::decode(event.data.u64())?,
                readable: failed || flags.intersects(Flags::IN | Flags::RDHUP),
                writable: failed || flags.contains(Flags::OUT),
                failed,
            })
        }));
        events.len() == EVENTS_MAX
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Returns how many descriptors this process may have.
pub(super) fn descriptors_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

fn host_error(what: &str, errno: rustix::io::Errno) -> NetError {
    NetError::new(
        NetErrorKind::Host,
        format!("cannot get {what} from the host's kernel: raise the limit on open files (ulimit -n)"),
    )
    .with_source(errno)
}

/// A descriptor that is readable while it is raised.
#[derive(Debug)]
pub(super) struct Flag {
    fd: OwnedFd,
}

impl Flag {
    pub(super) fn new() -> Result<Self, NetError> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| host_error("an event descriptor", errno))?;
        Ok(Self { fd })
    }

    pub(super) fn raise(&self) {
        // Fails only when it is raised already, to the brim of its counter.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    pub(super) fn lower(&self) {
        // Fails only when it is not raised.
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
    }
}

impl AsFd for Flag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A descriptor that becomes readable when a time has come.
#[derive(Debug)]
pub(super) struct Timer {
    fd: OwnedFd,
}

impl Timer {
    pub(super) fn new() -> Result<Self, NetError> {
        let fd = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .map_err(|errno| host_error("a timer descriptor", errno))?;
        Ok(Self { fd })
    }

    /// Makes the descriptor readable after `delay`, instead of at the time set before.
    pub(super) fn set(&self, delay: Duration) {
        // Zero would switch the timer off.
        let delay = delay.max(Duration::from_nanos(1));
        let value = Timespec { tv_sec: delay.as_secs() as i64, tv_nsec: delay.subsec_nanos().into() };
        let spec = Itimerspec { it_interval: Timespec::default(), it_value: value };
        // Fails only for times out of range, which `Duration::subsec_nanos` excludes.
        let _ = rustix::time::timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &spec);
    }

    pub(super) fn lower(&self) {
        // Fails only when it has not run out.
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const SOCKET_FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// Begins a TCP connection. Ok does not mean that it is open yet.
pub(super) fn tcp_connect(to: SocketAddr) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SOCKET_FLAGS, None)?;
    tcp_prepare(&socket)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}

/// Sets the options that every spliced TCP socket has.
pub(super) fn tcp_prepare(socket: impl AsFd) -> io::Result<()> {
    // What the guest has sent has waited already for what it would be sent with.
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    Ok(())
}

/// Makes the next close of a TCP socket send a reset, so that the far end sees that the guest did.
pub(super) fn tcp_reset_on_close(socket: impl AsFd) {
    // Where this fails the close is an ordinary one.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

/// Makes a UDP socket that also reports ICMP errors.
pub(super) fn udp_socket() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SOCKET_FLAGS, None)?;
    report_errors(&socket)?;
    Ok(socket)
}

/// Makes a UDP socket that exchanges datagrams with one address only.
pub(super) fn udp_connect(to: SocketAddr) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, SOCKET_FLAGS, None)?;
    rustix::net::connect(&socket, &to)?;
    Ok(socket)
}

/// Makes an unprivileged ICMP echo socket; the host's administrator decides who may
/// (`net.ipv4.ping_group_range`).
pub(super) fn ping_socket() -> io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SOCKET_FLAGS, Some(ipproto::ICMP))?;
    report_errors(&socket)?;
    Ok(socket)
}

fn report_errors(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the duration of the call, and the option's value is an int that lives
    // as long.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_RECVERR,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An ICMP error that came back for a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IcmpError {
    /// Where the datagram was going.
    pub(super) destination: SocketAddrV4,
    /// Who sent the error.
    pub(super) offender: Ipv4Addr,
    pub(super) kind: u8,
    pub(super) code: u8,
    /// Length of the datagram's payload, as far as the error quotes it.
    pub(super) quoted: usize,
}

/// What one look into the error queue of a socket finds.
pub(super) enum QueuedError {
    Empty,
    Icmp(IcmpError),
    /// An error that concerns only this host.
    Other,
}

/// Takes the oldest error from the error queue of a UDP or ping socket (ip(7), IP_RECVERR). The first bytes of
/// the datagram that it is about go into `payload`.
pub(super) fn take_error(socket: BorrowedFd<'_>, payload: &mut [u8]) -> QueuedError {
    /// Room for one `sock_extended_err` with the offender's address behind it, aligned for headers.
    #[repr(C, align(8))]
    struct Control([u8; 256]);
    let mut control = Control([0; 256]);
    // SAFETY: these are plain C structures for which all zeroes is a value.
    let (mut name, mut message) =
        unsafe { (std::mem::zeroed::<libc::sockaddr_in>(), std::mem::zeroed::<libc::msghdr>()) };
    let mut slice = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: every pointer in `message` leads to a live local buffer or to `payload`, each of the length given
    // beside it, and the descriptor is open while it is borrowed.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    if count < 0 {
        return QueuedError::Empty;
    }
    // SAFETY: the kernel has filled in `message`; the macros walk only within `msg_controllen` of `control`.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return only headers that lie wholly in `control`, which is
        // aligned for them.
        let head = unsafe { *header };
        let needed = size_of::<libc::sock_extended_err>() + size_of::<libc::sockaddr_in>();
        if head.cmsg_level == libc::IPPROTO_IP
            && head.cmsg_type == libc::IP_RECVERR
            && (head.cmsg_len as usize) >= size_of::<libc::cmsghdr>() + needed
        {
            // SAFETY: the header's length says that this much data follows it; read without assuming alignment.
            let (error, offender) = unsafe {
                let data = libc::CMSG_DATA(header).cast::<libc::sock_extended_err>();
                (data.read_unaligned(), data.add(1).cast::<libc::sockaddr_in>().read_unaligned())
            };
            const SO_EE_ORIGIN_ICMP: u8 = 2;
            if error.ee_origin != SO_EE_ORIGIN_ICMP {
                return QueuedError::Other;
            }
            let address = |address: &libc::sockaddr_in| Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            return QueuedError::Icmp(IcmpError {
                destination: SocketAddrV4::new(address(&name), u16::from_be(name.sin_port)),
                offender: address(&offender),
                kind: error.ee_type,
                code: error.ee_code,
                quoted: (count as usize).min(payload.len()),
            });
        }
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    QueuedError::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_trip() {
        let key = Key { index: 0xfffe_dcba, generation: 0x00ab_cdef };
        for token in [
            Token::Output,
            Token::Timer,
            Token::Commands,
            Token::Tcp(key),
            Token::Udp(key),
            Token::Ping(key),
            Token::Dns(key),
            Token::TcpForward(key),
            Token::UdpForward(key),
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }

    #[test]
    fn an_unreachable_port_is_found_in_the_error_queue() {
        // A port that was free a moment ago.
        let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let socket = udp_socket().unwrap();
        assert!(matches!(take_error(socket.as_fd(), &mut [0; 8]), QueuedError::Empty));
        rustix::net::sendto(&socket, b"hello", rustix::net::SendFlags::empty(), &to).unwrap();
        // Over the loopback interface the answer is there when the call returns.
        let mut payload = [0; 64];
        let QueuedError::Icmp(error) = take_error(socket.as_fd(), &mut payload) else { panic!("no error") };
        assert_eq!(error.destination, to);
        assert_eq!((error.kind, error.code), (3, 3));
        assert_eq!(error.offender, Ipv4Addr::LOCALHOST);
        assert_eq!(&payload[..error.quoted], b"hello");
    }

    #[test]
    fn timer_and_flag_wake_the_epoll() {
        let epoll = Epoll::new().unwrap();
        let (timer, flag) = (Timer::new().unwrap(), Flag::new().unwrap());
        epoll.add(&timer, Token::Timer, Watch::Level).unwrap();
        epoll.add(&flag, Token::Output, Watch::Level).unwrap();
        let mut events = Vec::new();
        epoll.take(&mut events);
        assert!(events.is_empty());
        flag.raise();
        flag.raise();
        epoll.take(&mut events);
        assert!(matches!(events[..], [Event { token: Token::Output, readable: true, .. }]));
        flag.lower();
        timer.set(Duration::ZERO);
        // Ready at once, or as soon as the kernel's clock ticks: wait for the descriptor, not for a time.
        let mut polled = [rustix::event::PollFd::new(&epoll, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut polled, None).unwrap();
        epoll.take(&mut events);
        assert!(matches!(events[..], [Event { token: Token::Timer, .. }]));
        timer.lower();
        epoll.take(&mut events);
        assert!(events.is_empty());
    }
}
