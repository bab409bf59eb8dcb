//! TCP through the router.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use net::{NatConfig, NatLimits};
use smoltcp::socket::tcp::{self, State};

use crate::config;
use crate::guest::{DNS, GATEWAY, GUEST, Guest, Harm, pattern};

/// Runs `serve` for each connection that comes, on a thread of its own.
fn server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = std::sync::Arc::new(serve);
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Sends `count` bytes of the pattern and closes.
fn sender(count: usize) -> u16 {
    let data = pattern(count);
    server(move |mut stream| stream.write_all(&data).unwrap())
}

/// Reads to the end, then answers with the length and a sum.
fn receiver() -> u16 {
    server(|mut stream| {
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        stream.write_all(&digest(&data)).unwrap();
    })
}

fn digest(data: &[u8]) -> [u8; 16] {
    let mut sum = 0xcbf2_9ce4_8422_2325u64;
    for &byte in data {
        sum = (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let mut digest = [0; 16];
    digest[..8].copy_from_slice(&(data.len() as u64).to_be_bytes());
    digest[8..].copy_from_slice(&sum.to_be_bytes());
    digest
}

fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn download() {
    for (mtu, count) in [(1500, 8 << 20), (576, 1 << 20), (9000, 8 << 20), (65_520, 16 << 20)] {
        let port = sender(count);
        let mut guest = Guest::new(config(&format!("mtu={mtu}")));
        let socket = guest.connect((GATEWAY, port), 256 << 10).unwrap();
        let data = guest.read_to_end(socket).unwrap();
        assert!(data == pattern(count), "{} bytes of {count}", data.len());
        let stats = guest.nat.handle().stats();
        assert_eq!((stats.tcp_opened, stats.tcp_failed), (1, 0));
        assert_eq!(stats.drops_malformed + stats.drops_not_for_us + stats.drops_limit, 0);
    }
}

#[test]
fn upload_and_half_close() {
    for (mtu, count) in [(1500, 8 << 20), (576, 1 << 20), (65_520, 16 << 20)] {
        let port = receiver();
        let mut guest = Guest::new(config(&format!("mtu={mtu}")));
        let socket = guest.connect((GATEWAY, port), 256 << 10).unwrap();
        let data = pattern(count);
        guest.send(socket, &data);
        // The guest has said all; the answer comes after that.
        guest.tcp(socket).close();
        assert_eq!(guest.read_to_end(socket).unwrap(), digest(&data));
    }
}

#[test]
fn half_close_from_the_hosts_side() {
    let (send, receive) = std::sync::mpsc::channel();
    let port = server(move |mut stream| {
        stream.write_all(b"goodbye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        send.send(data).unwrap();
    });
    let mut guest = Guest::new(config(""));
    let socket = guest.connect((GATEWAY, port), 64 << 10).unwrap();
    assert_eq!(guest.read_to_end(socket).unwrap(), b"goodbye");
    let data = pattern(300_000);
    guest.send(socket, &data);
    guest.tcp(socket).close();
    let got = guest.run("half close", |_| receive.try_recv().ok());
    assert!(got == data);
    // Nothing is left of it but what waits for repetitions.
    guest.run("close", |guest| (guest.tcp(socket).state() == State::Closed).then_some(()));
    assert_eq!(guest.nat.handle().stats().tcp_buffered_bytes, 0);
}

#[test]
fn both_ways_at_once() {
    let port = server(|mut stream| {
        let mut reader = stream.try_clone().unwrap();
        let writer = thread::spawn(move || stream.write_all(&pattern(3 << 20)));
        let mut data = Vec::new();
        reader.read_to_end(&mut data).unwrap();
        writer.join().unwrap().unwrap();
        assert!(data == pattern(2 << 20));
    });
    let mut guest = Guest::new(config(""));
    let socket = guest.connect((GATEWAY, port), 128 << 10).unwrap();
    let data = pattern(2 << 20);
    let (mut sent, mut got) = (0, Vec::new());
    guest.run("both ways", |guest| {
        let socket = guest.tcp(socket);
        if sent < data.len() {
            if socket.can_send() {
                sent += socket.send_slice(&data[sent..]).unwrap();
            }
        } else {
            socket.close();
        }
        let mut buffer = [0; 65_536];
        match socket.recv_slice(&mut buffer) {
            Ok(count) => got.extend_from_slice(&buffer[..count]),
            Err(tcp::RecvError::Finished) => return Some(()),
            Err(error) => panic!("{error:?}"),
        }
        None
    });
    assert!(got == pattern(3 << 20));
}

#[test]
fn many_connections_at_once() {
    let port = server(|mut stream| {
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        stream.write_all(&data).unwrap();
    });
    let mut guest = Guest::new(config(""));
    let messages: Vec<Vec<u8>> = (0..200usize).map(|i| pattern(1 + i * 97)).collect();
    let sockets: Vec<_> = messages.iter().map(|_| guest.start_connect((GATEWAY, port), 32 << 10)).collect();
    let mut sent = vec![false; sockets.len()];
    let mut got = vec![Vec::new(); sockets.len()];
    let mut left = sockets.len();
    guest.run("many", |guest| {
        for (i, &handle) in sockets.iter().enumerate() {
            let socket = guest.tcp(handle);
            if !sent[i] && socket.can_send() {
                assert_eq!(socket.send_slice(&messages[i]).unwrap(), messages[i].len());
                socket.close();
                sent[i] = true;
            }
            let mut buffer = [0; 4096];
            while let Ok(count) = socket.recv_slice(&mut buffer) {
                if count == 0 {
                    break;
                }
                got[i].extend_from_slice(&buffer[..count]);
                left -= usize::from(got[i].len() == messages[i].len());
            }
        }
        (left == 0).then_some(())
    });
    assert!(got == messages);
    assert_eq!(guest.nat.handle().stats().tcp_opened, 200);
}

#[test]
fn harm_on_the_link_changes_no_byte() {
    for seed in 0..3 {
        let count = 400_000;
        let (down, up) = (sender(count), receiver());
        let mut guest = Guest::new(config(""));
        guest.harm = [Harm::new(seed * 2 + 1, 2), Harm::new(seed * 2 + 2, 2)];
        let socket = guest.connect((GATEWAY, down), 64 << 10).unwrap();
        let data = guest.read_to_end(socket).unwrap();
        assert!(data == pattern(count), "seed {seed}");
        assert!(guest.nat.handle().stats().tcp_retransmitted_bytes > 0);

        let socket = guest.connect((GATEWAY, up), 64 << 10).unwrap();
        let data = pattern(count);
        guest.send(socket, &data);
        guest.tcp(socket).close();
        assert_eq!(guest.read_to_end(socket).unwrap(), digest(&data), "seed {seed}");
    }
}

#[test]
fn refusal_is_told_at_once() {
    let mut guest = Guest::new(config(""));
    assert!(guest.connect((GATEWAY, closed_port()), 4096).is_none());
    assert!(guest.connect((DNS, 80), 4096).is_none(), "only names are served there");
    assert_eq!(guest.nat.handle().stats().tcp_failed, 2);
    let port = sender(10);
    for options in ["loopback=off", "restrict=on"] {
        let mut guest = Guest::new(config(options));
        assert!(guest.connect((GATEWAY, port), 4096).is_none(), "{options}");
    }
}

#[test]
fn a_limit_on_connections_refuses_further_ones() {
    let port = server(|mut stream| {
        let _ = stream.read(&mut [0]);
    });
    let limits = NatLimits { tcp_flows_max: 3, ..NatLimits::default() };
    let mut guest = Guest::new(NatConfig { limits, ..NatConfig::default() });
    let open: Vec<_> = (0..3).map(|_| guest.connect((GATEWAY, port), 4096).unwrap()).collect();
    assert!(guest.connect((GATEWAY, port), 4096).is_none());
    assert_eq!(guest.nat.handle().stats().drops_limit, 1);
    // One that closes makes room.
    guest.tcp(open[0]).abort();
    guest.settle();
    assert!(guest.connect((GATEWAY, port), 4096).is_some());
}

#[test]
fn resets_cross_over() {
    // From the guest to the host.
    let (send, receive) = std::sync::mpsc::channel();
    let port = server(move |mut stream| {
        let result = stream.read(&mut [0; 16]).map_err(|error| error.kind());
        send.send(result).unwrap();
    });
    let mut guest = Guest::new(config(""));
    let socket = guest.connect((GATEWAY, port), 4096).unwrap();
    guest.tcp(socket).abort();
    let result = guest.run("reset", |_| receive.try_recv().ok());
    assert_eq!(result, Err(std::io::ErrorKind::ConnectionReset));

    // From the host to the guest: a program that closes with unread data in its socket.
    let port = server(|mut stream| {
        stream.write_all(b"last words").unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
    });
    let socket = guest.connect((GATEWAY, port), 4096).unwrap();
    let mut words = Vec::new();
    guest.run("words", |guest| {
        let mut buffer = [0; 64];
        let count = guest.tcp(socket).recv_slice(&mut buffer).unwrap();
        words.extend_from_slice(&buffer[..count]);
        (words.len() == 10).then_some(())
    });
    assert_eq!(words, b"last words");
    guest.send(socket, b"more than one byte");
    guest.run("reset", |guest| (guest.tcp(socket).state() == State::Closed).then_some(()));
}

#[test]
fn a_guest_that_does_not_read_holds_its_peer_up_and_not_our_memory() {
    let port = sender(64 << 20);
    let mut guest = Guest::new(config(""));
    let socket = guest.connect((GATEWAY, port), 64 << 10).unwrap();
    // The window closes; the kernel's buffers fill; the server waits.
    guest.run("full", |guest| (guest.tcp(socket).recv_queue() == 64 << 10).then_some(()));
    guest.settle();
    guest.nat.handle();
    assert!(guest.nat.handle().stats().tcp_buffered_bytes <= 1 << 20);
    let data = guest.read_to_end(socket).unwrap();
    assert!(data == pattern(64 << 20));
}

#[test]
fn a_server_that_does_not_read_closes_the_guests_window() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let (send, receive) = std::sync::mpsc::channel();
    let port = server(move |mut stream| {
        wait.lock().unwrap().recv().unwrap();
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        send.send(digest(&data)).unwrap();
    });
    let mut guest = Guest::new(config(""));
    let socket = guest.connect((GATEWAY, port), 256 << 10).unwrap();
    let data = pattern(32 << 20);
    let mut sent = 0;
    // Until the guest can send no more, and for some rounds after.
    let mut still = 0;
    guest.run("full", |guest| {
        let socket = guest.tcp(socket);
        if socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
            still = 0;
        }
        still += 1;
        (still > 20).then_some(())
    });
    assert!(sent < data.len(), "something must have held it up");
    go.send(()).unwrap();
    guest.send(socket, &data[sent..]);
    guest.tcp(socket).close();
    let got = guest.run("all", |_| receive.try_recv().ok());
    assert_eq!(got, digest(&data));
}

// ----- forwarded ports -----

fn client(to: SocketAddr, message: Vec<u8>) -> JoinHandle<std::io::Result<Vec<u8>>> {
    thread::spawn(move || {
        let mut stream = TcpStream::connect(to)?;
        stream.write_all(&message)?;
        stream.shutdown(Shutdown::Write)?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply)?;
        Ok(reply)
    })
}

#[test]
fn a_forwarded_port_leads_in() {
    for options in ["forward=0:22", "forward=0:22,restrict=on", "forward=[::1]:0:22"] {
        let mut guest = Guest::new(config(options));
        let listen = guest.nat.handle().forwards()[0].forward.listen;
        let server = guest.add_tcp(64 << 10);
        guest.tcp(server).listen(22).unwrap();
        let message = pattern(500_000);
        let client = client(listen, message.clone());
        let mut data = Vec::new();
        guest.run("echo", |guest| {
            let socket = guest.tcp(server);
            if socket.state() == State::Established || socket.state() == State::CloseWait {
                let seen = socket.remote_endpoint().unwrap();
                assert_eq!(
                    seen.addr,
                    smoltcp::wire::IpAddress::Ipv4(GATEWAY),
                    "loopback looks like the gateway"
                );
            }
            let mut buffer = [0; 65_536];
            match socket.recv_slice(&mut buffer) {
                Ok(count) => data.extend_from_slice(&buffer[..count]),
                Err(tcp::RecvError::Finished) => return Some(()),
                Err(tcp::RecvError::InvalidState) => {}
            }
            None
        });
        assert!(data == message);
        guest.send(server, &digest(&data));
        guest.tcp(server).close();
        guest.run("reply", |_| client.is_finished().then_some(()));
        assert_eq!(client.join().unwrap().unwrap(), digest(&message));
        assert_eq!(guest.nat.handle().stats().tcp_accepted, 1);
    }
}

#[test]
fn a_port_that_the_guest_refuses_is_reset() {
    let mut guest = Guest::new(config("forward=0:22"));
    let listen = guest.nat.handle().forwards()[0].forward.listen;
    let client = client(listen, b"anybody?".to_vec());
    guest.run("refusal", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_guest_that_comes_late_is_found() {
    let mut guest = Guest::without_address(config("forward=0:22"));
    let listen = guest.nat.handle().forwards()[0].forward.listen;
    let client = client(listen, b"hello".to_vec());
    guest.run("accepted", |guest| (guest.nat.handle().stats().tcp_accepted == 1).then_some(()));
    guest.set_address(GUEST, GATEWAY);
    let server = guest.add_tcp(4096);
    guest.tcp(server).listen(22).unwrap();
    assert_eq!(guest.read_to_end_of_listener(server), b"hello");
    guest.tcp(server).close();
    guest.run("closed", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap().unwrap(), b"");
}

impl Guest {
    /// Like `read_to_end`, for a socket that may not be connected yet.
    fn read_to_end_of_listener(&mut self, handle: smoltcp::iface::SocketHandle) -> Vec<u8> {
        self.run("connection", |guest| guest.tcp(handle).may_recv().then_some(()));
        self.read_to_end(handle).unwrap()
    }
}

#[test]
fn an_address_that_is_nowhere_is_unreachable() {
    let mut guest = Guest::new(config(""));
    let nowhere = Ipv4Addr::new(169, 254, 1, 1);
    guest.start_connect((nowhere, 80), 4096);
    let told = guest.run("unreachable", |guest| guest.unreachable.pop());
    assert_eq!(told, (13, nowhere));
}

#[test]
fn names_over_tcp_go_to_the_hosts_server() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let resolvers = net::Resolvers::Fixed(vec![listener.local_addr().unwrap()]);
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = [0; 8];
        stream.read_exact(&mut question).unwrap();
        question.reverse();
        stream.write_all(&question).unwrap();
    });
    let mut guest = Guest::new(NatConfig { resolvers, ..NatConfig::default() });
    let socket = guest.connect((DNS, 53), 4096).unwrap();
    guest.send(socket, b"question");
    assert_eq!(guest.read_to_end(socket).unwrap(), b"noitseuq");
}

#[test]
fn a_guest_that_starts_anew_is_not_stuck_with_its_old_connection() {
    let port = receiver();
    let mut guest = Guest::new(config(""));
    guest.connect((GATEWAY, port), 4096).unwrap();
    // As after a reboot: the same ports, and nothing remembered.
    guest.forget_connections();
    let socket = guest.connect((GATEWAY, port), 4096).unwrap();
    guest.tcp(socket).close();
    assert_eq!(guest.read_to_end(socket).unwrap(), digest(b""));
}
