//! What people do with machines that come from images, by `arnia` and a daemon of its own: run, snapshot, clone,
//! suspend, ports, limits, labs as files. The image is tiny, so that each machine is there in moments.

use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use vm_test::{Arnia, Case, KillOnDrop, Patience, Suite, free_port};

pub(crate) fn add(suite: &mut Suite) {
    suite.engineless_test("product::run_snapshot_clone_suspend", life);
    suite.engineless_test("product::ports", ports);
    suite.engineless_test("product::limits", limits);
    suite.engineless_test("product::labs", labs);
    suite.engineless_test("product::pools_and_all_machines", whole_host);
}

fn start(case: &Case) -> Result<Arnia> {
    let arnia = Arnia::new()?;
    arnia.import_tiny(&case.artifacts)?;
    Ok(arnia)
}

/// Runs a machine until its agent has answered.
fn run(arnia: &Arnia, name: &str, more: &[&str]) -> Result<String> {
    let line =
        [&["run", Arnia::TINY, "--memory", "192M", "--name", name][..], more, &["--", "hostname"]].concat();
    arnia.run(&line)
}

fn inside(arnia: &Arnia, name: &str, line: &str) -> Result<String> {
    Ok(arnia.run(&["exec", name, "--", "sh", "-c", line])?.trim_end().to_owned())
}

fn life(case: &Case) -> Result<()> {
    let arnia = start(case)?;
    // The first one boots, the second goes on from it: both are themselves.
    for name in ["one", "two"] {
        ensure!(run(&arnia, name, &[])?.trim() == name, "{name} is somebody else");
    }
    let gone =
        arnia.try_run(&["run", "--rm", Arnia::TINY, "--memory", "192M", "--", "sh", "-c", "exit 7"])?;
    ensure!(gone.status.code() == Some(7), "{gone:?}");
    ensure!(arnia.json(&["ls"])?.as_array().context("a list")?.len() == 2, "--rm has left something");
    let log = std::fs::read_to_string(arnia.home().join("data/daemon.log"))?;
    ensure!(!log.contains("was not told"), "the daemon complains: {log}");

    // A snapshot is of memory and disk: both are as they were.
    inside(
        &arnia,
        "one",
        "echo before > /tmp/memory; echo before | dd of=/dev/vda bs=512 conv=sync 2>/dev/null; sync",
    )?;
    arnia.run(&["snapshot", "create", "one", "fresh"])?;
    inside(
        &arnia,
        "one",
        "echo after > /tmp/memory; echo after | dd of=/dev/vda bs=512 conv=sync 2>/dev/null; sync",
    )?;
    let both = "cat /tmp/memory; dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -d '\\0'";
    arnia.run(&["clone", "one@fresh", "three"])?;
    arnia.run(&["start", "three"])?;
    ensure!(inside(&arnia, "three", both)? == "before\nbefore", "a clone of a snapshot");
    ensure!(inside(&arnia, "three", "hostname")? == "three", "a clone is somebody else");
    ensure!(inside(&arnia, "one", both)? == "after\nafter", "the machine itself went on");
    arnia.run(&["snapshot", "restore", "one", "fresh"])?;
    ensure!(inside(&arnia, "one", both)? == "before\nbefore", "it has gone back");
    arnia.run(&["snapshot", "rm", "one", "fresh"])?;
    ensure!(inside(&arnia, "three", both)? == "before\nbefore", "a clone outlives its snapshot");

    // Suspended, it has no process; resumed, it is where it was.
    arnia.run(&["suspend", "two"])?;
    let vm = arnia.json(&["info", "two"])?;
    ensure!(vm["state"] == "suspended" && vm["worker"].is_null(), "{vm}");
    arnia.run(&["resume", "two"])?;
    ensure!(inside(&arnia, "two", "hostname")? == "two", "it is another");

    // Its disk becomes larger while it runs.
    arnia.run(&["resize", "two", "--disk", "32M"])?;
    let sectors = || inside(&arnia, "two", "cat /sys/block/vda/size");
    arnia.wait(Patience::Command, || Ok(sectors()? == "65536"))?;
    let smaller = arnia.try_run(&["resize", "two", "--disk", "1M"])?;
    let why = String::from_utf8_lossy(&smaller.stderr);
    ensure!(smaller.status.code() == Some(2) && why.contains("the disk has 32M"), "{smaller:?}");
    arnia.run(&["stop", "--force", "two"])?;
    arnia.run(&["resize", "two", "--disk", "48M"])?;
    let smaller = arnia.try_run(&["resize", "two", "--disk", "1M"])?;
    ensure!(smaller.status.code() == Some(2), "{smaller:?}");
    arnia.run(&["start", "two"])?;
    arnia.run(&["exec", "--wait", "600", "two", "--", "true"])?;
    ensure!(sectors()? == "98304", "the disk has {} sectors", sectors()?);
    console(&arnia)
}

/// The console ends when what was typed has ended and been answered.
fn console(arnia: &Arnia) -> Result<()> {
    let empty = arnia.try_run(&["console", "two"])?;
    ensure!(empty.status.success(), "{empty:?}");
    Ok(())
}

/// A port of the host leads into a guest, and another one is opened while it runs.
fn ports(case: &Case) -> Result<()> {
    let arnia = start(case)?;
    let (first, second) = (free_port()?.to_string(), free_port()?.to_string());
    run(&arnia, "web", &["--port", &format!("{first}:80")])?;
    inside(&arnia, "web", "ip link set lo up; udhcpc -i eth0 -n -q -t 10 -s /etc/udhcpc.script")?;
    inside(&arnia, "web", "mkdir -p /tmp/www; echo hello > /tmp/www/index.html; httpd -p 80 -h /tmp/www")?;
    let fetch = |port: &str| -> Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port.parse()?))?;
        stream.set_read_timeout(Some(Patience::Command.limit()))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    ensure!(fetch(&first)?.ends_with("hello\n"), "by the first port");
    arnia.run(&["port", "add", "web", &format!("{second}:80")])?;
    ensure!(fetch(&second)?.ends_with("hello\n"), "by the second port");
    // As the list shows it.
    arnia.run(&["port", "rm", "web", &format!("{second}:80")])?;
    ensure!(fetch(&second).is_err(), "the port is still open");
    ensure!(fetch(&first)?.ends_with("hello\n"), "the other port has gone with it");
    Ok(())
}

/// A neighbour that computes without end, with a limit and without: what the limit does is a matter of ratio.
fn limits(case: &Case) -> Result<()> {
    let arnia = start(case)?;
    for name in ["noisy", "quiet"] {
        run(&arnia, name, &[])?;
    }
    inside(&arnia, "noisy", "(while :; do :; done) >/dev/null 2>&1 & true")?;
    let pid = arnia.json(&["info", "noisy"])?["worker"]["pid"].as_u64().context("a process")?;
    let used = || -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(") ").context("a form of proc(5)")?;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
        Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
    };
    // The part of a processor that it has while so many seconds of processor time could be had.
    let share = || -> Result<f64> {
        let (before, since) = (used()?, Instant::now());
        while since.elapsed().as_secs_f64() < 3.0 {
            inside(&arnia, "quiet", "true")?;
        }
        Ok((used()? - before) / since.elapsed().as_secs_f64())
    };
    let free = share()?;
    // A quarter of what it has beside whatever else this host does.
    let percent = (free * 25.0).max(1.0).round();
    arnia.run(&["set", "noisy", "--cpu-limit", &format!("{percent}%")])?;
    let limited = share()?;
    println!("a noisy machine has {free:.2} of a processor, and {limited:.2} with a limit of {percent} %");
    ensure!(free > 1.5 * limited, "the limit of {percent} % makes no difference: {free:.2} and {limited:.2}");
    let vm = arnia.json(&["info", "noisy"])?;
    ensure!(vm["restart_needed"] == false, "a limit is there at once: {vm}");
    // The guest answers all the same, and is stopped and resumed as ever.
    ensure!(inside(&arnia, "noisy", "echo $((6 * 7))")? == "42", "it does not answer");
    arnia.run(&["pause", "noisy"])?;
    arnia.run(&["resume", "noisy"])?;
    arnia.run(&["set", "noisy", "--cpu-limit", "none"])?;
    let again = share()?;
    ensure!(again > 1.5 * limited, "the limit stays: {again:.2}");
    inside(&arnia, "noisy", "pkill -f 'while :' || killall sh; true").ok();

    // Requests of a disk: by what the guest counts in its own time.
    let reads = "dd if=/dev/vda of=/dev/null bs=4k count=60 iflag=direct 2>&1 | tail -n 1";
    inside(&arnia, "quiet", reads)?;
    arnia.run(&["set", "quiet", "--disk-iops", "20"])?;
    let begun = Instant::now();
    inside(&arnia, "quiet", reads)?;
    // 60 at 20 in a second, but for the burst: not sooner, however fast the host.
    ensure!(begun.elapsed().as_secs_f64() > 2.0, "60 requests took {:?} with 20 a second", begun.elapsed());
    // Memory: the balloon takes what the guest shall not keep.
    arnia.run(&[
        "set",
        "quiet",
        "--memory-limit",
        "128M",
        "--disk-iops",
        "none",
        "--cpu-set",
        "0",
        "--cpu-weight",
        "50",
    ])?;
    let free_kib = "awk '/MemFree/ { print $2 }' /proc/meminfo";
    let before: u64 = inside(&arnia, "noisy", free_kib)?.parse()?;
    arnia
        .wait(Patience::Command, || Ok(inside(&arnia, "quiet", free_kib)?.parse::<u64>()? + 40_000 < before))
        .context("the balloon takes no memory")?;
    let pid = arnia.json(&["info", "quiet"])?["worker"]["pid"].as_u64().context("a process")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.lines().any(|line| line.split_whitespace().eq(["Cpus_allowed_list:", "0"])), "{status}");
    let refused = arnia.try_run(&["set", "quiet", "--memory-limit", "1T"])?;
    ensure!(refused.status.code() == Some(2), "{refused:?}");
    // They are there from the start, too.
    run(&arnia, "small", &["--cpu-limit", "0.5", "--cpu-set", "0"])?;
    ensure!(arnia.json(&["info", "small"])?["config"]["limits"]["cpu"] == 50, "the limit is not kept");
    metrics(&arnia)
}

/// Prometheus' text has what each machine uses.
fn metrics(arnia: &Arnia) -> Result<()> {
    let text = arnia.text("/v1/metrics")?;
    for metric in [
        "arnia_vm_cpu_seconds_total",
        "arnia_vm_resident_bytes",
        "arnia_vm_memory_bytes",
        "arnia_vm_disk_requests_total",
        "arnia_vm_disk_bytes_total",
        "arnia_vm_net_sent_bytes_total",
        "arnia_vm_net_received_bytes_total",
        "arnia_vm_guest_seconds_total",
        "arnia_vm_engine_",
    ] {
        let has = |line: &str| line.starts_with(metric) && line.contains("vm=\"quiet\"");
        ensure!(text.lines().any(has), "{metric} is missing in {text}");
    }
    Ok(())
}

/// A lab as a file: made, found unchanged, changed, written out again.
fn labs(case: &Case) -> Result<()> {
    let arnia = start(case)?;
    let file = case.path("lab.yaml");
    let path = file.to_string_lossy().into_owned();
    run(&arnia, "seed", &[])?;
    std::fs::write(&file, arnia.run(&["export"])?)?;
    let same = arnia.try_run(&["diff", "-f", &path])?;
    ensure!(same.status.success(), "what was written out differs: {same:?}");
    let text = std::fs::read_to_string(&file)?;
    let Some(changed) = text.contains("memory: 192M").then(|| text.replace("memory: 192M", "memory: 256M"))
    else {
        bail!("the file does not say how much memory the machine has:\n{text}");
    };
    std::fs::write(&file, changed)?;
    let differs = arnia.try_run(&["diff", "-f", &path])?;
    ensure!(
        String::from_utf8_lossy(&differs.stdout).contains("256M"),
        "the change is not shown: {differs:?}"
    );
    arnia.run(&["apply", "--yes", "-f", &path])?;
    ensure!(arnia.json(&["info", "seed"])?["config"]["memory"] == "256M", "it was not applied");

    // What cannot be says where it is in the file; and before an image is built for it.
    std::fs::write(&file, format!("vms: {{bad: {{image: \"{}\", cpus: 0}}}}", Arnia::TINY))?;
    let refused = arnia.try_run(&["apply", "--yes", "-f", &path])?;
    let why = String::from_utf8_lossy(&refused.stderr);
    ensure!(why.contains("machine bad: 0 vCPUs cannot be had"), "{refused:?}");
    let refused = arnia.try_run(&["run", "debian", "--cpus", "0"])?;
    let why = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(2) && why.contains("0 vCPUs cannot be had"), "{refused:?}");
    Ok(())
}

/// What machines use is shown once, and again and again at a terminal, which script(1) gives it.
fn goes_on_at_a_terminal(arnia: &Arnia) -> Result<()> {
    let once = arnia.run(&["top"])?;
    ensure!(once.starts_with("NAME ") && once.contains("\nhere "), "{once:?}");
    let mut script = std::process::Command::new("script");
    script.args(["--quiet", "--command", &format!("'{}' top", arnia.program()), "/dev/null"]);
    script.env("ARNIA_HOME", arnia.home()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = KillOnDrop(script.spawn().context("cannot run script(1)")?);
    let output = child.0.stdout.take().context("piped")?;
    let shown = std::io::BufReader::new(output).lines().map_while(Result::ok);
    ensure!(shown.filter(|line| line.starts_with("here ")).take(2).count() == 2, "it is shown only once");
    Ok(())
}

/// What concerns the host as a whole: pools, and all machines of all projects.
fn whole_host(case: &Case) -> Result<()> {
    let arnia = start(case)?;
    let folder = case.path("pool").to_string_lossy().into_owned();
    arnia.run(&["pool", "create", "fast", &folder])?;
    arnia.run(&["volume", "create", "data", "8M", "--pool", "fast"])?;
    let pools = arnia.json(&["pool", "ls"])?.to_string();
    ensure!(pools.contains("\"fast\"") && pools.contains(&folder), "{pools}");
    let used = arnia.try_run(&["pool", "rm", "fast"])?;
    ensure!(!used.status.success(), "a pool with a volume was removed");
    arnia.run(&["volume", "rm", "data"])?;
    arnia.run(&["pool", "rm", "fast"])?;
    ensure!(!arnia.json(&["pool", "ls"])?.to_string().contains("\"fast\""), "it is still there");

    arnia.run(&["project", "create", "other"])?;
    run(&arnia, "here", &[])?;
    arnia.run(&[
        "run",
        Arnia::TINY,
        "--project",
        "other",
        "--memory",
        "192M",
        "--name",
        "there",
        "--",
        "true",
    ])?;
    goes_on_at_a_terminal(&arnia)?;
    // The last that is started with the host is the first that is stopped.
    arnia.run(&["set", "--project", "other", "there", "autostart.order=5"])?;
    let told = arnia.run(&["stop", "--all-projects"])?;
    ensure!(told == "there is off\nhere is off\n", "{told:?}");
    for project in ["default", "other"] {
        let machines = arnia.json(&["ls", "--project", project])?;
        let machines = machines.as_array().context("a list")?;
        ensure!(
            machines.len() == 1 && machines.iter().all(|machine| machine["state"] == "stopped"),
            "{project}: {machines:?}"
        );
    }
    Ok(())
}
