//! A whole network in one process: its switch in a thread, cards that the tests play.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;
use crate::{Backend, MacAddress, NatConfig, Outside};

/// What may happen soon; a test waits no longer for what it expects.
const PATIENCE: Duration = Duration::from_secs(20);

fn mac(last: u8) -> MacAddress {
    MacAddress([0xa6, 0x41, 0x72, 0, 0, last])
}

fn port(last: u8) -> SwitchPort {
    let address = Some(Ipv4Addr::new(10, 9, 0, last));
    SwitchPort { key: PortKey([last; 32]), mac: mac(last), address, name: format!("vm{last}") }
}

/// A network that runs.
struct Network {
    path: PathBuf,
    orders: Sender<Option<Vec<SwitchPort>>>,
    done: Receiver<SwitchStats>,
    thread: Option<JoinHandle<()>>,
}

impl Network {
    fn new(name: &str, ports: Vec<SwitchPort>) -> Network {
        let path = std::env::temp_dir().join(format!("arnia-switch-{}-{name}", std::process::id()));
        Network::at(path, ports)
    }

    fn at(path: PathBuf, ports: Vec<SwitchPort>) -> Network {
        let _ = std::fs::remove_file(&path);
        let config = NatConfig {
            subnet: "10.9.0.0/24".parse().unwrap(),
            outside: Outside::Restricted,
            ..NatConfig::default()
        };
        let mut switch = Switch::new(listen(&path).unwrap(), config).unwrap();
        switch.set_ports(ports);
        let ((orders, inbox), (outbox, done)) = (channel(), channel());
        let run = move || {
            loop {
                match inbox.try_recv() {
                    Ok(Some(ports)) => switch.set_ports(ports),
                    Ok(None) => break,
                    Err(_) => {}
                }
                let event = switch.turn(Duration::from_millis(2)).unwrap();
                if event.stranger {
                    switch.set_ports([1, 2, 3].map(port));
                }
                let _ = outbox.send(switch.stats());
            }
        };
        let thread = Some(std::thread::spawn(run));
        Network { path, orders, done, thread }
    }

    fn plug(&self, last: u8) -> SwitchLink {
        SwitchLink::connect(&self.path, PortKey([last; 32]), 1500).unwrap()
    }

    fn wait_for(&self, what: impl Fn(&SwitchStats) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !what(&self.done.recv_timeout(PATIENCE).unwrap()) {
            assert!(Instant::now() < deadline, "the switch does not come so far");
        }
    }

    fn end(&mut self) {
        let _ = self.orders.send(None);
        self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.end();
        let _ = std::fs::remove_file(&self.path);
    }
}

fn frame(from: u8, to: MacAddress, text: &str) -> Vec<u8> {
    // An EtherType for experiments (IEEE 802 §9.2.4).
    [&to.0[..], &mac(from).0, &[0x88, 0xb5], text.as_bytes()].concat()
}

/// The next frame that is one of ours, in time.
fn next(link: &mut SwitchLink) -> String {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = vec![0; link.frame_size_max()];
    while Instant::now() < deadline {
        link.poll();
        match link.receive(&mut buffer) {
            Some(len) if buffer[12..14] == [0x88, 0xb5] => {
                return String::from_utf8(buffer[14..len].to_vec()).unwrap();
            }
            Some(_) => {}
            None => std::thread::yield_now(),
        }
    }
    panic!("no frame comes");
}

#[test]
fn frames_go_to_whom_they_are_for() {
    let network = Network::new("pass", [1, 2, 3].map(port).to_vec());
    let [mut one, mut two, mut three] = [1, 2, 3].map(|last| network.plug(last));
    one.transmit(&frame(1, mac(2), "to two"));
    one.transmit(&frame(1, MacAddress::BROADCAST, "to all"));
    one.transmit(&frame(1, mac(9), "to nobody"));
    assert_eq!([next(&mut two), next(&mut two)], ["to two", "to all"]);
    assert_eq!(next(&mut three), "to all");
    two.transmit(&frame(2, mac(1), "back"));
    assert_eq!(next(&mut one), "back");
    network.wait_for(|stats| stats.unknown == 1);
}

#[test]
fn a_card_cannot_say_that_it_is_another() {
    let network = Network::new("spoof", [1, 2].map(port).to_vec());
    let (mut one, mut two) = (network.plug(1), network.plug(2));
    one.transmit(&frame(2, mac(2), "as two"));
    one.transmit(&frame(9, mac(2), "as somebody"));
    one.transmit(&frame(1, mac(2), "as itself"));
    assert_eq!(next(&mut two), "as itself");
    network.wait_for(|stats| stats.spoofed == 2);
}

#[test]
fn strangers_stay_out_and_those_who_become_known_come_in() {
    let network = Network::new("keys", vec![port(1)]);
    // Key 4 is in no list; 3 is when the switch looks again.
    let error = SwitchLink::connect(&network.path, PortKey([4; 32]), 1500).unwrap_err();
    assert!(error.to_string().contains("does not know this card"), "{error}");
    let (mut one, mut three) = (network.plug(1), network.plug(3));
    one.transmit(&frame(1, mac(3), "hello"));
    assert_eq!(next(&mut three), "hello");
    // A port that is taken away is unplugged, and what it still sends is heard by nobody.
    network.orders.send(Some(vec![port(1)])).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 2000];
    while three.is_plugged_in() {
        assert!(Instant::now() < deadline, "it is still plugged in");
        let _ = three.receive(&mut buffer);
        std::thread::yield_now();
    }
}

#[test]
fn a_card_comes_back_when_the_network_does() {
    let mut network = Network::new("again", [1, 2].map(port).to_vec());
    let (mut one, mut two) = (network.plug(1), network.plug(2));
    one.transmit(&frame(1, mac(2), "before"));
    assert_eq!(next(&mut two), "before");
    network.end();
    let network = Network::at(network.path.clone(), [1, 2].map(port).to_vec());
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 2000];
    let got = loop {
        assert!(Instant::now() < deadline, "they do not find each other again");
        for link in [&mut one, &mut two] {
            link.poll();
        }
        one.transmit(&frame(1, mac(2), "after"));
        let _ = one.receive(&mut buffer);
        if let Some(len) = two.receive(&mut buffer) {
            break buffer[14..len].to_vec();
        }
        std::thread::yield_now();
    };
    assert_eq!(got, b"after");
    drop(network);
}

/// One who only listens comes back, too: its thread sleeps on the descriptor and on nothing else.
#[test]
fn a_silent_card_comes_back_by_its_descriptor_alone() {
    let mut network = Network::new("silent", [1, 2].map(port).to_vec());
    let mut silent = network.plug(2);
    network.end();
    let network = Network::at(network.path.clone(), [1, 2].map(port).to_vec());
    let mut one = network.plug(1);
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 2000];
    let listening = std::thread::spawn(move || {
        while Instant::now() < deadline {
            let limit = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
            let mut fds =
                [rustix::event::PollFd::from_borrowed_fd(silent.poll_fd(), rustix::event::PollFlags::IN)];
            assert!(rustix::event::poll(&mut fds, Some(&limit)).unwrap() > 0, "nothing wakes it");
            // As a card's thread does it: first what is due, then what has come.
            silent.poll();
            if silent.receive(&mut buffer).is_some() {
                return;
            }
        }
        panic!("it hears nothing");
    });
    while !listening.is_finished() {
        one.poll();
        one.transmit(&frame(1, mac(2), "are you there"));
        std::thread::yield_now();
    }
    listening.join().unwrap();
}

#[test]
fn a_flood_ends_at_the_one_who_makes_it() {
    let network = Network::new("flood", [1, 2, 3].map(port).to_vec());
    let [mut one, mut two, mut three] = [1, 2, 3].map(|last| network.plug(last));
    // Three takes nothing; what is for it fills what the kernel gives, and no more.
    for _ in 0..20_000 {
        one.transmit(&frame(1, mac(3), &"x".repeat(1400)));
        one.transmit(&frame(1, MacAddress::BROADCAST, "noise"));
    }
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = vec![0; 2000];
    loop {
        assert!(Instant::now() < deadline, "two is not heard");
        two.transmit(&frame(2, mac(2), "to itself"));
        let _ = one.receive(&mut buffer);
        match two.receive(&mut buffer) {
            Some(len) if buffer[14..len] == *b"to itself" => break,
            _ => {}
        }
    }
    let mut got = 0;
    while three.receive(&mut buffer).is_some() {
        got += 1;
    }
    assert!(got < 20_000, "{got}");
    network.wait_for(|stats| stats.lost > 0);
}

#[test]
fn keys_are_read_and_never_shown() {
    let key = PortKey([0xab; 32]);
    assert_eq!(key.to_hex().parse::<PortKey>().unwrap(), key);
    assert!(!format!("{key:?}").contains("ab"));
    for text in ["", "ab", &"zz".repeat(32), &"+a".repeat(32), &"é".repeat(32)] {
        assert!(text.parse::<PortKey>().is_err(), "{text}");
    }
}
