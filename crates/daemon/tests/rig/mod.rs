//! The daemon as a process, with workers that are processes, too, but run no guest: they answer on the control
//! socket and end as they are told. All is killed for real.
//!
//! A test program plays three parts: the tests, the daemon, and the worker. Which one, a variable says.

// Each program that has these uses some of them.
#![allow(dead_code)]

use api::agent;
use api::agent::frame::{FrameKind, read_frame, write_frame};
use api::switch::SwitchConfig;
use api::v1::access::TokenParams;
use api::v1::error::ErrorCode;
use api::v1::vm::{VmConfig, VmParams};
use api::worker::config as worker;
use api::worker::control::{
    Counters, PortStatus, Reply, ReplyLine, ReplyResult, Request, RequestLine, ScreenText, Screenshot,
    SnapshotDone, Status, VmState,
};
use client::{Client, Created};
use daemon::{Config, Mode, Paths};
use net::switch::{Switch, SwitchPort};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PART: &str = "ARNIA_TEST_PART";
const FOLDER: &str = "ARNIA_TEST_FOLDER";
const TEST_FOLDER: &str = "ARNIA_TEST_RIG";

/// Plays the daemon, the worker or the switch, if the variable says so. Each test program has a test `part` that calls it.
pub(crate) fn part() {
    match std::env::var(PART).as_deref() {
        Ok("daemon") => {
            let folder = PathBuf::from(std::env::var_os(FOLDER).expect("a folder"));
            daemon::run(config(&folder)).expect("the daemon runs");
            std::process::exit(0);
        }
        Ok("switch") => play_switch(Path::new(&std::env::var_os(FOLDER).expect("a configuration"))),
        Ok("worker") => play_worker(Path::new(&std::env::var_os(FOLDER).expect("a configuration"))),
        _ => {}
    }
}

pub(crate) fn config(folder: &Path) -> Config {
    let paths = Paths { data: folder.join("data"), runtime: folder.join("run") };
    let listen = std::fs::read_to_string(folder.join("listen")).ok();
    let listen = listen.map(|address| address.parse().expect("an address"));
    let images = paths.images();
    let (worker, switch) = (folder.join("worker"), folder.join("switch"));
    Config { mode: Mode::User, paths, worker, switch, agent: None, images, listen }
}

/// The switch of a network, as `arnia switch` is one.
fn play_switch(path: &Path) {
    let read = || {
        let config: SwitchConfig = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let port = |port: &api::switch::SwitchPortConfig| SwitchPort {
            key: port.key.parse().expect("a key"),
            mac: port.mac.parse().expect("an address"),
            address: port.address.as_deref().map(|address| address.parse().expect("an address")),
            name: port.name.clone(),
        };
        Some((config.ports.iter().map(port).collect::<Vec<_>>(), config))
    };
    let (mut ports, config) = read().expect("a configuration");
    let nat =
        net::NatConfig { subnet: config.subnet.parse().expect("a subnet"), ..net::NatConfig::default() };
    let listener = net::switch::listen(&config.socket).expect("a socket");
    let mut switch = Switch::new(listener, nat).expect("a switch");
    loop {
        switch.set_ports(ports.clone());
        let _ = switch.turn(Duration::from_millis(20));
        // The network is gone when its file is.
        let Some((now, _)) = read() else { break };
        ports = now;
    }
}

/// The agent of a guest that there is not. Each of its files has no end and takes all that is written to it; whatever
/// else it is asked, a program has started, which says nothing and reads all.
fn play_agent(socket: &Path) {
    let listener = UnixListener::bind(socket).expect("a socket for the agent");
    std::thread::spawn(move || {
        for mut host in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut line = String::new();
                let greeted = BufReader::with_capacity(1, &host).read_line(&mut line);
                let _ = greeted.and_then(|_| host.write_all(b"OK 1\n"));
                let Ok(Some(frame)) = read_frame(&mut host) else { return };
                let asked = serde_json::from_slice::<agent::RequestLine>(&frame.payload);
                let Ok(agent::RequestLine { request, .. }) = asked else { return };
                let reply = match request {
                    agent::Request::Stat { .. } => agent::Reply::Attributes(ENDLESS),
                    agent::Request::FileRead { .. } => agent::Reply::File(ENDLESS),
                    agent::Request::FileWrite { .. } => agent::Reply::Ready,
                    _ => agent::Reply::Started,
                };
                let is_read = matches!(reply, agent::Reply::File(_));
                let reply = serde_json::to_vec(&agent::ReplyResult::Ok(reply)).expect("JSON");
                let mut sent = write_frame(&mut host, FrameKind::Reply, &reply);
                while is_read && sent.is_ok() {
                    sent = write_frame(&mut host, FrameKind::Data, &[0; 4096]);
                }
                let _ = std::io::copy(&mut host, &mut std::io::sink());
            });
        }
    });
}

/// Each file of the guest that there is not.
const ENDLESS: agent::Attributes = agent::Attributes {
    kind: agent::FileKind::File,
    size: u64::MAX,
    mode: 0o644,
    uid: 0,
    gid: 0,
    modified_s: 0,
    target: None,
};

/// What a worker is to be, and whether it stands still at first: it boots, or goes on from a snapshot.
fn worker_config(text: &[u8]) -> (worker::VmConfig, bool) {
    let Ok(restore) = serde_json::from_slice::<worker::RestoreConfig>(text) else {
        return (serde_json::from_slice(text).expect("a configuration"), false);
    };
    let manifest = std::fs::read(restore.snapshot.join("manifest.json")).expect("a manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("a manifest");
    let config = worker::VmConfig {
        name: restore.name,
        uuid: restore.uuid,
        vsock: restore.vsock,
        serial: restore.serial,
        control: restore.control,
        snapshots: restore.snapshots,
        report: restore.report,
        ..serde_json::from_value(manifest["manifest"]["machine"].clone()).expect("a machine")
    };
    (config, restore.paused)
}

/// A rule as it is when the host has chosen `port` where it was to.
fn chosen(rule: &str, port: u16) -> String {
    match rule.strip_prefix("127.0.0.1:0:").or(rule.strip_prefix("0:")) {
        Some(guest) => format!("127.0.0.1:{port}:{guest}"),
        None => rule.to_owned(),
    }
}

/// The ports of a configuration: from 41000 on where the host was to choose.
fn ports(config: &worker::VmConfig) -> Vec<PortStatus> {
    let of_card = |(card, net): (usize, &worker::NetConfig)| match net {
        worker::NetConfig::User(user) => {
            user.forward.iter().map(|rule| PortStatus { card, rule: rule.clone() }).collect()
        }
        _ => Vec::new(),
    };
    let mut ports: Vec<PortStatus> = config.nets.iter().enumerate().flat_map(of_card).collect();
    for (port, number) in ports.iter_mut().zip(41000..) {
        port.rule = chosen(&port.rule, number);
    }
    ports
}

/// A worker without a guest. Its power button works, unless its command line says `deaf`; there is an agent if it says
/// `agent`. While there is a file `slow` beside the daemon's folders, snapshots are not ready; while there is one that
/// is called `stuck`, it does not end when it is told to.
fn play_worker(path: &Path) {
    let (config, paused) = worker_config(&std::fs::read(path).expect("a configuration"));
    let test_folder = PathBuf::from(std::env::var_os(TEST_FOLDER).expect("the test's folder"));
    let report = config.report.clone().expect("a report");
    let end = move |status: u8| -> ! {
        std::fs::write(&report, format!("{{\"status\":{status}}}\n")).expect("a report");
        std::process::exit(i32::from(status));
    };
    if config.append == "bad" {
        eprintln!("arnia-vmm: this kernel is bad");
        end(2);
    }
    let worker::CharDevice::Socket(line) = &config.serial else { panic!("the console is a socket") };
    let _console = UnixListener::bind(&line.path).expect("a console");
    if config.append == "agent" {
        play_agent(&config.vsock.as_ref().expect("a virtio socket").socket);
    }
    let listener = UnixListener::bind(config.control.as_ref().expect("a control socket")).expect("a socket");
    let mut state = match paused {
        true => VmState::Paused,
        false => VmState::Running,
    };
    // Those of the configuration, where the host was to choose; and those that were opened since.
    let mut ports = ports(&config);
    for client in listener.incoming().flatten() {
        let mut text = String::new();
        if BufReader::new(&client).read_line(&mut text).is_err() {
            continue;
        }
        let Ok(request) = serde_json::from_str::<RequestLine>(&text) else { continue };
        let mut ending = None;
        let reply = match request.request {
            Request::Status {} => Reply::Status(Status {
                version: 1,
                program: "fake".into(),
                pid: std::process::id(),
                name: config.name.clone(),
                uuid: config.uuid.clone().unwrap_or_default(),
                state,
                engine: "none".into(),
                cpu_model: "none".into(),
                cpus: config.cpus,
                memory_bytes: config.memory.0,
                guest_time_ms: 1,
                resets: 0,
                snapshot: None,
                snapshot_base: None,
            }),
            Request::Counters {} => Reply::Counters(Counters::default()),
            Request::Pause {} => {
                state = VmState::Paused;
                Reply::Done
            }
            Request::Resume {} => {
                state = VmState::Running;
                Reply::Done
            }
            Request::Power {} => {
                ending = (config.append != "deaf").then_some(0);
                Reply::Done
            }
            Request::Stop {} => {
                ending = (!test_folder.join("stuck").exists()).then_some(3);
                Reply::Done
            }
            Request::PortAdd { card, rule } => {
                ports.push(PortStatus { card, rule: chosen(&rule, 40000) });
                Reply::Ports { ports: ports[ports.len() - 1..].to_vec() }
            }
            Request::PortRemove { card, rule } => {
                ports.retain(|port| (port.card, &port.rule) != (card, &rule));
                Reply::Done
            }
            Request::Ports {} => Reply::Ports { ports: ports.clone() },
            Request::Snapshot { name, .. } => {
                wait("snapshots are not slow", || !test_folder.join("slow").exists());
                let folder = config.snapshots.as_ref().expect("a folder for snapshots").join(&name);
                std::fs::create_dir_all(&folder).expect("a folder");
                // As much of a manifest as anybody looks at here.
                let manifest = serde_json::json!({"manifest": {"machine": config}});
                std::fs::write(folder.join("manifest.json"), manifest.to_string()).expect("a file");
                Reply::Snapshot(SnapshotDone {
                    id: name.clone(),
                    name,
                    bytes: 1,
                    stopped_us: 1,
                    longest_stop_us: 1,
                    total_ms: 1,
                    rounds: 1,
                })
            }
            Request::Screenshot {} => {
                Reply::Screenshot(Screenshot { width: 1, height: 1, png: "iVBORw0KGgo=".into() })
            }
            Request::ScreenText {} => Reply::ScreenText(ScreenText { lines: Some(vec!["boot:".into()]) }),
            _ => Reply::Done,
        };
        let line = ReplyLine { id: None, result: ReplyResult::Ok(reply) };
        let _ = (&client).write_all((serde_json::to_string(&line).expect("JSON") + "\n").as_bytes());
        if let Some(status) = ending {
            end(status);
        }
    }
}

/// A daemon in a folder of its own.
pub(crate) struct Daemon {
    pub(crate) folder: PathBuf,
    pub(crate) child: Option<Child>,
}

impl Daemon {
    pub(crate) fn new(name: &str) -> Daemon {
        let folder = std::env::temp_dir().join(format!("arnia-d-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        let program = std::env::current_exe().expect("this program");
        let script = format!(
            "#!/bin/sh\nexec env {PART}=worker {FOLDER}=\"$2\" {TEST_FOLDER}={} {} part --exact --nocapture\n",
            folder.display(),
            program.display()
        );
        // A worker is called with `--config FILE`, a switch with `switch --config FILE`.
        let switch = script.replace("worker", "switch").replace("$2", "$3");
        for (name, script) in [("worker", script), ("switch", switch)] {
            std::fs::write(folder.join(name), script).expect("a script");
            let executable = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(folder.join(name), executable).expect("an executable script");
        }
        std::fs::write(folder.join("kernel"), "no kernel").expect("a file");
        let mut daemon = Daemon { folder, child: None };
        daemon.start();
        daemon
    }

    pub(crate) fn start(&mut self) {
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["part", "--exact", "--nocapture"])
            .env(PART, "daemon")
            .env(FOLDER, &self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        self.child = Some(child.expect("a daemon"));
        // That it can be connected to is not enough: a worker that a killed daemon was just starting has that one's socket
        // until it becomes another program.
        let client = self.client("default");
        wait("the daemon answers", || block_on(client.identity()).is_ok());
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("a daemon");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }

    pub(crate) fn client(&self, project: &str) -> Client {
        Client::new(&config(&self.folder).paths.socket(), project)
    }

    pub(crate) fn params(&self, name: &str, append: &str, start: bool) -> VmParams {
        let mut config = VmConfig::new(self.folder.join("kernel").to_str().expect("a path"));
        config.boot.append = append.into();
        VmParams { start, ..VmParams::new(name, config) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        // Workers that a failed test has left end by their control sockets.
        for folder in std::fs::read_dir(self.folder.join("run/vms")).into_iter().flatten().flatten() {
            if let Ok(mut control) = UnixStream::connect(folder.path().join("control")) {
                let _ = control.write_all(b"{\"op\":\"stop\"}\n");
            }
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Only a guard against waiting for ever.
pub(crate) const GUARD: Duration = Duration::from_secs(120);

/// Waits for a condition; how long is only a guard against waiting for ever.
pub(crate) fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(120), "{what}: not within two minutes");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

pub(crate) fn run(client: &Client, params: &VmParams, key: &str) {
    let created = block_on(client.vm_create(params, key)).expect("a machine");
    let Created::Starting(operation) = created else { panic!("it starts") };
    block_on(client.wait(*operation)).expect("it has started");
}

pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, client::Error>) -> ErrorCode {
    result.expect_err("a refusal").api().code
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it can be killed");
}

pub(crate) fn token_params(user: &str, certificate: Option<String>) -> TokenParams {
    TokenParams { user: user.into(), description: String::new(), lifetime: None, certificate }
}
