//! The sandbox belongs to a thread, so each test enters it on one of its own.

use super::*;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;

fn inside<T: Send + 'static>(needs: Needs, work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        enter(&needs).unwrap();
        work()
    });
    thread.join().unwrap()
}

fn raw_socket(family: i32, kind: i32) -> i32 {
    // SAFETY: no pointers are involved; a descriptor that comes of it stays open until the test ends.
    let fd = unsafe { libc::socket(family, kind, 0) };
    if fd >= 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap() }
}

#[test]
fn what_a_machine_does_still_works() {
    let (mut reader, writer) = rustix::pipe::pipe().map(|(r, w)| (File::from(r), File::from(w))).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    inside(Needs::default(), move || {
        // Threads, memory, files that are open, sockets, time, random numbers.
        std::thread::Builder::new()
            .name("inner".into())
            .spawn(move || (&writer).write_all(b"hello").unwrap())
            .unwrap()
            .join()
            .unwrap();
        let mut got = [0; 5];
        reader.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        let _stream = TcpStream::connect(address).unwrap();
        let _accepted = listener.accept().unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap();
        let ram = memory::Ram::new(64 << 20).unwrap();
        ram.store(0x1000, 1u64).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
        crate::spec::random_bytes::<16>().unwrap();
        std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    });
}

#[test]
fn what_a_machine_does_not_do_fails() {
    inside(Needs::default(), || {
        assert_eq!(raw_socket(libc::AF_PACKET, libc::SOCK_RAW), libc::EPERM);
        assert_eq!(raw_socket(libc::AF_INET, libc::SOCK_RAW), libc::EPERM);
        assert_eq!(raw_socket(libc::AF_NETLINK, libc::SOCK_RAW), libc::EPERM);
        assert!(Command::new("/bin/true").status().is_err(), "no programs");
        // SAFETY: no pointers that are looked at; whatever it does to this process, it has not the right.
        let result = unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
        assert_eq!((result, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPERM)));
        let caps = caps::read(None, caps::CapSet::Effective).unwrap_or_default();
        assert!(caps.is_empty(), "{caps:?}");
    });
}

#[test]
fn files_are_out_of_reach_but_for_what_is_needed() {
    let folder = std::env::temp_dir().join(format!("arnia-sandbox-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let socket = folder.join("vm.sock");
    std::fs::write(&socket, "").unwrap();
    let (path, name_servers) = (socket.clone(), std::path::Path::new("/etc/resolv.conf").exists());
    let (denied, removed, named) =
        inside(Needs { removed: vec![socket], name_servers: true, ..Needs::default() }, move || {
            let denied = File::open("/etc/passwd").err().map(|e| e.kind());
            let written = File::options().append(true).open(&path).err().map(|e| e.kind());
            let named = File::open("/etc/resolv.conf").is_ok();
            (denied.and(written), std::fs::remove_file(&path).is_ok(), named)
        });
    let _ = std::fs::remove_dir_all(&folder);
    assert!(removed);
    assert_eq!(named, name_servers);
    match denied {
        Some(kind) => assert_eq!(kind, ErrorKind::PermissionDenied),
        None => eprintln!("SKIPPED: this kernel has no Landlock"),
    }
}
