//! One TCP stream between guest and host through the user-mode network: ours, and QEMU's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::bench::report::Report;
use crate::bench::{Bed, MIB};
use crate::{After, Guest, Patience, Shell};

/// Bytes of one stream.
const LEN: usize = 128 << 20;
const LEN_QUICK: usize = 16 << 20;

pub(super) fn measure(bed: &Bed<'_>, report: &mut Report) -> Result<()> {
    let len = if bed.options.quick { LEN_QUICK } else { LEN };
    for &program in &bed.options.programs {
        println!("host: TCP through the NAT, {program}");
        let guest = Guest::busybox(bed.artifacts).cpus(1).memory_mib(256).network().after(After::Shell);
        let mut vm = guest.start(&program, bed.scratch)?;
        vm.console().expect("ARNIA-SHELL", Patience::Boot)?;
        let mut shell = Shell::take_over(vm.console())?;
        shell.check("ip link set lo up; udhcpc -i eth0 -n -q -t 10 -s /etc/udhcpc.script >/dev/null 2>&1")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        for _ in 0..bed.options.runs {
            let subject = program.to_string();
            shell.check(&format!("nc 10.0.2.2 {port} </dev/null >/dev/null & true"))?;
            let speed = send(&listener, len).context("from host to guest")?;
            report.add("TCP from host to guest, one stream", "MiB/s", &subject, speed);
            shell.check(&format!("head -c {len} /dev/zero | nc 10.0.2.2 {port} >/dev/null & true"))?;
            let speed = receive(&listener, len).context("from guest to host")?;
            report.add("TCP from guest to host, one stream", "MiB/s", &subject, speed);
        }
    }
    Ok(())
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(Patience::Boot.limit()))?;
    stream.set_write_timeout(Some(Patience::Boot.limit()))?;
    Ok(stream)
}

/// Sends so much, and waits until the guest has all of it. MiB each second.
fn send(listener: &TcpListener, len: usize) -> Result<f64> {
    let mut stream = accept(listener)?;
    let begun = Instant::now();
    let piece = vec![0; 64 << 10];
    for _ in 0..len / piece.len() {
        stream.write_all(&piece)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // The guest's program ends, and hangs up, when it has read the end.
    while stream.read(&mut [0; 64])? > 0 {}
    Ok(len as f64 / MIB / begun.elapsed().as_secs_f64())
}

fn receive(listener: &TcpListener, len: usize) -> Result<f64> {
    let mut stream = accept(listener)?;
    let begun = Instant::now();
    let (mut piece, mut sum) = (vec![0; 64 << 10], 0);
    // Until all has come: programs differ in when they hang up.
    while sum < len {
        let count = stream.read(&mut piece)?;
        ensure!(count > 0, "the guest sent {sum} bytes instead of {len}");
        sum += count;
    }
    Ok(len as f64 / MIB / begun.elapsed().as_secs_f64())
}
