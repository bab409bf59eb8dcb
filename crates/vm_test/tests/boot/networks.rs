//! Networks that machines have in common: names, TCP, and who stays out.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vm_test::{Arnia, Case, Patience, Suite};

use crate::inside::start;

pub(crate) fn add(suite: &mut Suite) {
    suite.engineless_test("networks::machines_of_one_project_reach_each_other", reach);
}

/// Runs a line in a guest.
fn sh(arnia: &Arnia, project: &str, name: &str, line: &str) -> Result<String> {
    let patience = Patience::Boot.seconds_to_wait().to_string();
    arnia.run(&["--project", project, "exec", "--wait", &patience, name, "--", "sh", "-ec", line])
}

/// The same, until it succeeds.
fn sh_until(arnia: &Arnia, name: &str, line: &str, expected: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        match sh(arnia, "default", name, line) {
            Ok(text) if text == expected => return Ok(()),
            other => ensure!(started.elapsed() < Patience::Command.limit(), "{name}: {line}: {other:?}"),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

const SERVE: &str =
    "(while :; do echo hello-from-$(hostname) | nc -l -p 8080; done) >/dev/null 2>&1 </dev/null &";

/// Two machines of a project find each other by name; a third one of another project, in a network of the same name and
/// addresses, finds nobody. A machine that says that it is another is not heard. All of it goes on without the daemon,
/// and comes back when the network's process is killed.
fn reach(case: &Case) -> Result<()> {
    let arnia = Arnia::new()?;
    let network = ["network", "create", "lab", "--mode", "internal", "--subnet", "10.77.1.0/24"];
    arnia.run(&network)?;
    arnia.run(&["project", "create", "other"])?;
    arnia.run(&[&["--project", "other"], &network[..]].concat())?;
    start(case, &arnia, "web", &["--network", "lab"])?;
    start(case, &arnia, "client", &["--network", "user", "--network", "lab,address=10.77.1.50"])?;
    start(case, &arnia, "stranger", &["--project", "other", "--network", "lab"])?;
    let begin = format!("udhcpc -i eth0 -q -n -t 10 -s /etc/udhcpc.script; hostname web; {SERVE}");
    sh(&arnia, "default", "web", &begin)?;
    sh(
        &arnia,
        "default",
        "client",
        "udhcpc -i eth0 -q -n -t 10 -s /etc/udhcpc.script; udhcpc -i eth1 -q -n -t 10 -s /etc/udhcpc.script; hostname client",
    )?;
    sh(&arnia, "other", "stranger", "udhcpc -i eth0 -q -n -t 10 -s /etc/udhcpc.script")?;

    let addresses = sh(&arnia, "default", "client", "ip -4 -o address show")?;
    ensure!(addresses.contains("10.0.2.15/24") && addresses.contains("10.77.1.50/24"), "{addresses}");
    let routes = sh(&arnia, "default", "client", "ip route")?;
    ensure!(routes.matches("default").count() == 1, "the internal network leads nowhere else: {routes}");
    for name in ["web", "web.lab.internal", "10.77.1.10"] {
        sh_until(&arnia, "client", &format!("nc -w 10 {name} 8080 </dev/null"), "hello-from-web\n")?;
    }
    sh(&arnia, "default", "client", "ping -c 1 -W 10 web; ! nslookup nobody.lab.internal")?;
    let bytes = "dd if=/dev/zero bs=64k count=160 2>/dev/null";
    let port = sh(
        &arnia,
        "default",
        "web",
        // Its input stays open: a listener whose input ends ends its half, and the sender would stop there.
        "(tail -f /dev/null | nc -l -p 9090 | wc -c > /tmp/count) </dev/null >/dev/null 2>&1 & echo ok",
    )?;
    ensure!(port == "ok\n", "{port:?}");
    sh_until(&arnia, "client", &format!("{bytes} | nc -w 20 web 9090 && echo sent"), "sent\n")?;
    sh_until(&arnia, "web", "cat /tmp/count", "10485760\n")?;

    // The stranger has the same address as the web server has, in a network of its own.
    let own = sh(&arnia, "other", "stranger", "ip -4 -o address show dev eth0")?;
    ensure!(own.contains("10.77.1.10/24"), "{own}");
    sh(
        &arnia,
        "other",
        "stranger",
        "! ping -c 2 -W 2 10.77.1.50; ! nslookup web; ! nc -w 3 10.77.1.50 8080 </dev/null",
    )?;

    // With another's addresses a machine is not heard.
    let mac = arnia.json(&["info", "web"])?["config"]["nics"][0]["mac"].as_str().context("a MAC")?.to_owned();
    let own_mac = "cat /sys/class/net/eth1/address";
    let own_mac = sh(&arnia, "default", "client", own_mac)?.trim().to_owned();
    let spoof = format!(
        "ip link set eth1 down; ip link set eth1 address {mac}; ip link set eth1 up; ! ping -c 2 -W 2 web"
    );
    sh(&arnia, "default", "client", &spoof)?;
    let back = format!("ip link set eth1 down; ip link set eth1 address {own_mac}; ip link set eth1 up");
    sh(&arnia, "default", "client", &back)?;
    let hello = "nc -w 10 web 8080 </dev/null";
    sh_until(&arnia, "client", hello, "hello-from-web\n")?;
    let steal = "ip address add 10.77.1.10/24 dev eth1; ! arping -c 2 -w 3 -I eth1 -s 10.77.1.10 10.77.1.1; \
                 ip address del 10.77.1.10/24 dev eth1";
    sh(&arnia, "default", "client", steal)?;

    arnia.kill_daemon()?;
    sh_until(&arnia, "client", hello, "hello-from-web\n")?;
    kill_switches(&arnia)?;
    sh_until(&arnia, "client", hello, "hello-from-web\n")?;

    // A machine that starts anew has its address and its name again.
    arnia.run(&["stop", "--force", "web"])?;
    arnia.run(&["start", "web"])?;
    sh(&arnia, "default", "web", &begin)?;
    sh_until(&arnia, "client", hello, "hello-from-web\n")?;
    let refused = arnia.try_run(&["network", "rm", "lab"])?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("client, web"), "{refused:?}");
    Ok(())
}

/// Kills the processes of this daemon's networks.
fn kill_switches(arnia: &Arnia) -> Result<()> {
    let killed = arnia.kill_helpers("switch")?;
    ensure!(killed == 2, "{killed} networks of two projects");
    Ok(())
}
