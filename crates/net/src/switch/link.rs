//! A machine's end of the cable.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::time::{Itimerspec, TimerfdFlags, TimerfdTimerFlags};

use super::PortKey;
use super::wire::{self, Received, Sent, WELCOME};
use crate::{Backend, NetError, NetErrorKind};

/// Length of an Ethernet header.
const HEADER: usize = 14;
/// How long the switch has to let a card in at the machine's start.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before the next attempt, when the network's process is gone.
const RETRY: Duration = Duration::from_millis(250);

/// A card's cable to the switch of its network, a [`Backend`]. When the network's process ends, it is plugged into the
/// next one as soon as that is there; frames in between are lost.
#[derive(Debug)]
pub struct SwitchLink {
    path: PathBuf,
    key: PortKey,
    frame_size_max: usize,
    /// Stands for the socket, whichever that is.
    epoll: OwnedFd,
    socket: Option<Plugged>,
    /// Wakes whoever waits for `epoll` when it is time for the next attempt: nothing else would come.
    alarm: OwnedFd,
    retry: Instant,
}

#[derive(Debug)]
struct Plugged {
    fd: OwnedFd,
    /// Whether the switch has let the card in.
    welcome: bool,
}

impl SwitchLink {
    /// Plugs a card in, into the switch that listens at `path`; `mtu` is the network's.
    ///
    /// # Errors
    /// When nothing listens there, or the card is not let in.
    pub fn connect(path: &Path, key: PortKey, mtu: u16) -> Result<Self, NetError> {
        let refuse = |message: String| NetError::new(NetErrorKind::Config, message);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| {
            NetError::new(NetErrorKind::Host, "cannot get an epoll descriptor from the host's kernel")
                .with_source(errno)
        })?;
        let clock = rustix::time::TimerfdClockId::Monotonic;
        let alarm = rustix::time::timerfd_create(clock, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .and_then(|alarm| {
                epoll::add(&epoll, &alarm, epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
                Ok(alarm)
            });
        let alarm = alarm.map_err(|errno| {
            NetError::new(NetErrorKind::Host, "cannot get a timer descriptor from the host's kernel")
                .with_source(errno)
        })?;
        let mut link = Self {
            path: path.to_owned(),
            key,
            frame_size_max: HEADER + usize::from(mtu),
            epoll,
            socket: None,
            alarm,
            retry: Instant::now(),
        };
        link.plug_in().map_err(|e| {
            refuse(format!("nothing answers for the network at {path:?}: is its process there?"))
                .with_source(e)
        })?;
        let deadline = Instant::now() + PATIENCE;
        while link.socket.as_ref().is_some_and(|socket| !socket.welcome) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(refuse(format!("the network at {path:?} does not answer")));
            }
            let wait = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let _ = poll(&mut [PollFd::new(&link.epoll, PollFlags::IN)], Some(&wait));
            // Frames may follow at once; they wait until the card asks for them.
            link.take_welcome();
        }
        match link.socket {
            Some(_) => Ok(link),
            None => {
                Err(refuse(format!("the network at {path:?} does not know this card: its key is not valid")))
            }
        }
    }

    /// Whether it is plugged in now.
    pub fn is_plugged_in(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| socket.welcome)
    }

    fn plug_in(&mut self) -> std::io::Result<()> {
        let fd = wire::plug_in(&self.path, &self.key)?;
        epoll::add(&self.epoll, &fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        self.socket = Some(Plugged { fd, welcome: false });
        Ok(())
    }

    fn take_welcome(&mut self) {
        let Some(socket) = self.socket.as_mut().filter(|socket| !socket.welcome) else { return };
        let mut answer = [0; WELCOME.len()];
        match wire::receive(&socket.fd, &mut answer) {
            Received::Packet(len) if &answer[..len] == WELCOME => socket.welcome = true,
            Received::Nothing => {}
            _ => self.unplug(),
        }
    }

    fn unplug(&mut self) {
        // Closing a descriptor takes it out of the epoll descriptor, too.
        self.socket = None;
        self.try_later();
    }

    fn try_later(&mut self) {
        self.retry = Instant::now() + RETRY;
        let value = Timespec { tv_sec: 0, tv_nsec: RETRY.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
        // Fails only for times out of range.
        let _ = rustix::time::timerfd_settime(&self.alarm, TimerfdTimerFlags::empty(), &once);
    }
}

impl Backend for SwitchLink {
    fn transmit(&mut self, frame: &[u8]) {
        if let Some(socket) = self.socket.as_ref().filter(|socket| socket.welcome)
            && frame.len() <= self.frame_size_max
            && wire::send(&socket.fd, frame) == Sent::Closed
        {
            self.unplug();
        }
    }

    fn receive(&mut self, frame: &mut [u8]) -> Option<usize> {
        self.take_welcome();
        loop {
            let socket = self.socket.as_ref().filter(|socket| socket.welcome)?;
            match wire::receive(&socket.fd, frame) {
                Received::Packet(len) => return Some(len),
                Received::TooLong => {}
                Received::Nothing => return None,
                Received::Closed => self.unplug(),
            }
        }
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn poll(&mut self) -> Option<Duration> {
        self.take_welcome();
        if self.socket.is_none() && Instant::now() >= self.retry {
            // Fails only when it has not run out.
            let _ = rustix::io::read(&self.alarm, &mut [0; 8]);
            if self.plug_in().is_err() {
                self.try_later();
            }
        }
        match self.socket {
            Some(_) => None,
            None => Some(self.retry.saturating_duration_since(Instant::now())),
        }
    }

    fn frame_size_max(&self) -> usize {
        self.frame_size_max
    }
}
