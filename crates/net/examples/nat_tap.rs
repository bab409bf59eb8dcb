//! Plugs the NAT into a TAP device, so that a network namespace, and with it a real TCP stack, is its guest.
//!
//! ```text
//! ip netns add guest
//! cargo run --release -p net --example nat_tap -- tap7 guest forward=2222:22 &     # as root
//! ip netns exec guest ip link set tap7 up
//! ip netns exec guest ip addr add 10.0.2.15/24 dev tap7
//! ip netns exec guest ip route add default via 10.0.2.2
//! ip netns exec guest curl http://10.0.2.2:8000/
//! ```
//!
//! Only making the device needs root; the NAT itself does not.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::Duration;

use net::{Backend, Nat, NatConfig};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Opens a TAP device that carries bare Ethernet frames.
fn open_tap(name: &str) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: `ifreq` is a plain C structure for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request outlives the call and is of the type that TUNSETIFF takes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result == 0 { Ok(file) } else { Err(io::Error::last_os_error()) }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, namespace, options @ ..] = &arguments[..] else {
        return Err("usage: nat_tap DEVICE NAMESPACE [OPTIONS]".into());
    };
    let config: NatConfig = options.first().map_or("", String::as_str).parse()?;
    let mut nat = Nat::new(config)?;
    let handle = nat.handle();
    for status in handle.forwards() {
        println!("forward {}", status.forward);
    }
    let mut tap = open_tap(name)?;
    let mtu = (nat.frame_size_max() - 14).to_string();
    Command::new("ip").args(["link", "set", "dev", name, "mtu", &mtu]).status()?;
    Command::new("ip").args(["link", "set", "dev", name, "netns", namespace]).status()?;

    let mut frame = vec![0; nat.frame_size_max()];
    let mut unsent = None;
    loop {
        let delay = nat.poll().unwrap_or(Duration::MAX).min(Duration::from_secs(10));
        let mut wants_output = false;
        while let Some(length) = unsent.take().or_else(|| nat.receive(&mut frame)) {
            match tap.write(&frame[..length]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // No room for the guest's next frame: then the network need not be asked for it.
                    unsent = Some(length);
                    wants_output = true;
                    break;
                }
                // The device is down; the frame is lost.
                Err(_) => {}
            }
        }
        let mut input = vec![0; nat.frame_size_max()];
        let mut moved = false;
        for _ in 0..256 {
            match tap.read(&mut input) {
                Ok(length) => {
                    nat.transmit(&input[..length]);
                    moved = true;
                }
                Err(_) => break,
            }
        }
        if moved {
            continue;
        }
        let events = if wants_output { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut polled = vec![PollFd::new(&tap, events)];
        if !wants_output {
            polled.push(PollFd::new(&nat, PollFlags::IN));
        }
        let timeout = Timespec { tv_sec: delay.as_secs() as i64, tv_nsec: delay.subsec_nanos().into() };
        rustix::event::poll(&mut polled, Some(&timeout))?;
        if std::env::var_os("NAT_STATS").is_some() {
            for (name, value) in handle.stats().iter().filter(|(_, value)| *value > 0) {
                eprint!("{name}={value} ");
            }
            eprintln!();
        }
    }
}
