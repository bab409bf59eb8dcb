//! The daemon as a process, with workers that are processes, too, but run no guest: they answer on the control
//! socket and end as they are told. All is killed for real.
//!
//! This program plays three parts: the tests, the daemon, and the worker. Which one, a variable says.

use api::switch::SwitchConfig;
use api::v1::access::{Grant, Role, TokenParams, UserParams};
use api::v1::error::ErrorCode;
use api::v1::network::{NetworkConfig, NetworkMode, NetworkParams, NicConfig, Port};
use api::v1::operation::OperationState;
use api::v1::project::ProjectParams;
use api::v1::screen::Keys;
use api::v1::vm::{RestartPolicy, StopParams, VmConfig, VmParams, VmState};
use api::worker::config as worker;
use api::worker::control::{
    Counters, PortStatus, Reply, ReplyLine, ReplyResult, Request, RequestLine, ScreenText, Screenshot, Status,
};
use client::{Client, Created, Remote};
use daemon::{Config, Mode, Paths};
use net::Backend;
use net::switch::{Switch, SwitchLink, SwitchPort};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PART: &str = "ARNIA_TEST_PART";
const FOLDER: &str = "ARNIA_TEST_FOLDER";

/// Plays the daemon or the worker; as a test of its own it does nothing.
#[test]
fn part() {
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

fn config(folder: &Path) -> Config {
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

/// A worker without a guest. Its power button works, unless its command line says `deaf`.
fn play_worker(path: &Path) {
    let config: worker::VmConfig =
        serde_json::from_slice(&std::fs::read(path).expect("a configuration")).expect("a configuration");
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
    let listener = UnixListener::bind(config.control.as_ref().expect("a control socket")).expect("a socket");
    let mut state = api::worker::control::VmState::Running;
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
                state = api::worker::control::VmState::Paused;
                Reply::Done
            }
            Request::Resume {} => {
                state = api::worker::control::VmState::Running;
                Reply::Done
            }
            Request::Power {} => {
                ending = (config.append != "deaf").then_some(0);
                Reply::Done
            }
            Request::Stop {} => {
                ending = Some(3);
                Reply::Done
            }
            Request::PortAdd { card, rule } => Reply::Ports {
                // As the host would choose it.
                ports: vec![PortStatus { card, rule: rule.replace("127.0.0.1:0:", "127.0.0.1:40000:") }],
            },
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
struct Daemon {
    folder: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    fn new(name: &str) -> Daemon {
        let folder = std::env::temp_dir().join(format!("arnia-d-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        let program = std::env::current_exe().expect("this program");
        let script = format!(
            "#!/bin/sh\nexec env {PART}=worker {FOLDER}=\"$2\" {} part --exact --nocapture\n",
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

    fn start(&mut self) {
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["part", "--exact", "--nocapture"])
            .env(PART, "daemon")
            .env(FOLDER, &self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        self.child = Some(child.expect("a daemon"));
        let socket = config(&self.folder).paths.socket();
        wait("the daemon listens", || UnixStream::connect(&socket).is_ok());
    }

    /// As `kill -9` does.
    fn kill(&mut self) {
        let mut child = self.child.take().expect("a daemon");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }

    fn client(&self, project: &str) -> Client {
        Client::new(&config(&self.folder).paths.socket(), project)
    }

    fn params(&self, name: &str, append: &str, start: bool) -> VmParams {
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

/// Waits for a condition; how long is only a guard against waiting for ever.
fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(120), "{what}: not within two minutes");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

fn run(client: &Client, params: &VmParams, key: &str) {
    let created = block_on(client.vm_create(params, key)).expect("a machine");
    let Created::Starting(operation) = created else { panic!("it starts") };
    block_on(client.wait(*operation)).expect("it has started");
}

fn code<T: std::fmt::Debug>(result: Result<T, client::Error>) -> ErrorCode {
    result.expect_err("a refusal").api().code
}

#[test]
fn a_machine_is_created_run_changed_and_removed() {
    let daemon = Daemon::new("life");
    let client = daemon.client("default");
    let params = daemon.params("web", "", true);
    run(&client, &params, "key-1");
    // The same again creates nothing; something else with the same key is refused.
    assert!(matches!(block_on(client.vm_create(&params, "key-1")), Ok(Created::Starting(_))));
    assert_eq!(code(block_on(client.vm_create(&daemon.params("x", "", true), "key-1"))), ErrorCode::Invalid);
    assert_eq!(code(block_on(client.vm_create(&params, "key-2"))), ErrorCode::AlreadyExists);
    let vm = block_on(client.vm("web")).expect("a machine");
    assert_eq!((vm.state, vm.restart_needed), (VmState::Running, false));

    assert_eq!(block_on(client.vm_pause("web")).expect("a pause").state, VmState::Paused);
    assert_eq!(block_on(client.vm_resume("web")).expect("its end").state, VmState::Running);

    let patch = serde_json::json!({"cpus": 2, "labels": {"tier": "front"}});
    let changed = block_on(client.vm_update("web", &patch, Some(vm.revision))).expect("a change");
    assert_eq!((changed.config.cpus, changed.restart_needed), (2, true));
    assert_eq!(changed.config.nics, vm.config.nics, "the address of the card stays");
    assert_eq!(code(block_on(client.vm_update("web", &patch, Some(vm.revision)))), ErrorCode::Changed);
    for bad in [
        serde_json::json!({"cpus": 0}),
        serde_json::json!({"speed": 1}),
        serde_json::json!([]),
        serde_json::json!({"boot": {"kernel": "/nonexistent"}}),
        serde_json::json!({"nics": [{"ports": ["x"]}]}),
    ] {
        assert_eq!(code(block_on(client.vm_update("web", &bad, None))), ErrorCode::Invalid, "{bad}");
    }

    assert_eq!(code(block_on(client.vm_delete("web", false))), ErrorCode::WrongState);
    let stop = block_on(client.vm_stop("web", StopParams::default())).expect("an operation");
    block_on(client.wait(stop)).expect("it is off");
    let vm = block_on(client.vm("web")).expect("a machine");
    assert_eq!((vm.state, vm.reason.as_deref()), (VmState::Stopped, Some("the guest powered off")));
    block_on(client.vm_rename("web", "old")).expect("a new name");
    block_on(client.vm_delete("old", false)).expect("it goes");
    assert_eq!(code(block_on(client.vm("old"))), ErrorCode::NotFound);
}

#[test]
fn ports_are_opened_and_closed_while_a_machine_runs() {
    let daemon = Daemon::new("ports");
    let client = daemon.client("default");
    let port = |rule: &str, nic| Port { rule: rule.into(), nic };
    run(&client, &daemon.params("web", "", true), "k");
    block_on(client.port_create("web", &port("8080:80", 0))).expect("a port");
    let chosen = block_on(client.port_create("web", &port("127.0.0.1:0:22", 0))).expect("a port");
    assert_eq!(chosen.rule, "127.0.0.1:40000:22");
    let vm = block_on(client.vm("web")).expect("a machine");
    assert_eq!(vm.config.nics[0].ports, ["8080:80", "127.0.0.1:40000:22"]);
    assert!(!vm.restart_needed, "it has them already");
    assert_eq!(
        code(block_on(client.port_create("web", &port("127.0.0.1:8080:81", 0)))),
        ErrorCode::AlreadyExists
    );
    assert_eq!(code(block_on(client.port_create("web", &port("8081:80", 1)))), ErrorCode::Invalid);
    assert_eq!(code(block_on(client.port_create("web", &port("x", 0)))), ErrorCode::Invalid);
    // The same port of another protocol is another.
    block_on(client.port_create("web", &port("8080:80/udp", 0))).expect("a port");
    assert_eq!(code(block_on(client.port_delete("web", "81"))), ErrorCode::NotFound);
    assert_eq!(code(block_on(client.port_delete("web", "x"))), ErrorCode::Invalid);
    block_on(client.port_delete("web", "8080")).expect("it goes");
    let rules = block_on(client.ports("web")).expect("ports").into_iter().map(|port| port.rule);
    assert_eq!(rules.collect::<Vec<_>>(), ["127.0.0.1:40000:22", "8080:80/udp"]);
    // Of one that is off, only its configuration changes.
    block_on(client.vm_create(&daemon.params("off", "", false), "k2")).expect("a machine");
    block_on(client.port_create("off", &port("8080:80", 0))).expect("a port");
    assert_eq!(block_on(client.vm("off")).expect("a machine").config.nics[0].ports, ["8080:80"]);
}

#[test]
fn networks_are_made_used_and_removed() {
    let daemon = Daemon::new("nets");
    let client = daemon.client("default");
    let params = |name: &str, config: NetworkConfig| NetworkParams { name: name.into(), config };
    let internal = || NetworkConfig::new(NetworkMode::Internal);
    let small = NetworkConfig { subnet: Some("10.77.0.0/29".into()), ..internal() };
    let lab = block_on(client.network_create(&params("lab", small))).expect("a network");
    assert_eq!(
        (lab.gateway.as_deref(), lab.config.domain.as_deref()),
        (Some("10.77.0.1"), Some("lab.internal"))
    );
    let chosen = block_on(client.network_create(&params("back", internal()))).expect("a network");
    assert!(chosen.config.subnet.is_some_and(|subnet| subnet.starts_with("10.") && subnet.ends_with("/24")));
    let names = block_on(client.networks()).expect("networks").into_iter().map(|network| network.name);
    assert_eq!(names.collect::<Vec<_>>(), ["back", "lab", "user"]);
    for (config, why) in [
        (NetworkConfig { subnet: Some("10.77.0.1/24".into()), ..internal() }, ErrorCode::Invalid),
        (NetworkConfig { mtu: 10, ..internal() }, ErrorCode::Invalid),
        (NetworkConfig::new(NetworkMode::User), ErrorCode::Invalid),
        (NetworkConfig::new(NetworkMode::Bridged), ErrorCode::Unsupported),
    ] {
        assert_eq!(code(block_on(client.network_create(&params("bad", config.clone())))), why, "{config:?}");
    }
    assert_eq!(code(block_on(client.network_create(&params("lab", internal())))), ErrorCode::AlreadyExists);
    assert_eq!(code(block_on(client.network_create(&params("user", internal())))), ErrorCode::AlreadyExists);

    // Cards get addresses until there are none, and nobody gets another's.
    let in_lab = |name: &str, address: Option<&str>| {
        let mut params = daemon.params(name, "", false);
        let nic = NicConfig { address: address.map(Into::into), ..NicConfig::of_network("lab") };
        params.config.nics = vec![NicConfig::default(), nic];
        block_on(client.vm_create(&params, name))
    };
    let mut addresses = Vec::new();
    for (name, address) in [("a", None), ("b", Some("10.77.0.5")), ("c", None), ("d", None)] {
        let Ok(Created::Vm(vm)) = in_lab(name, address) else { panic!("{name} is made") };
        let nic = &vm.config.nics[1];
        assert_eq!((nic.name.as_deref(), vm.config.nics[0].address.as_deref()), (Some("net1"), None));
        addresses.push(nic.address.clone().expect("an address"));
    }
    assert_eq!(addresses, ["10.77.0.3", "10.77.0.5", "10.77.0.4", "10.77.0.6"]);
    assert_eq!(code(in_lab("e", None)), ErrorCode::AlreadyExists, "it is full");
    assert_eq!(code(in_lab("e", Some("10.77.0.5"))), ErrorCode::AlreadyExists);
    assert_eq!(code(in_lab("e", Some("10.77.0.1"))), ErrorCode::Invalid, "the gateway's");
    for nic in [
        serde_json::json!({"network": "nowhere"}),
        serde_json::json!({"network": "lab", "ports": ["1:1"]}),
        serde_json::json!({"network": "user", "address": "10.0.2.15"}),
        serde_json::json!({"network": "user", "name": "A"}),
        serde_json::json!({"network": "user", "limits": {"bytes": 0}}),
    ] {
        let patch = serde_json::json!({"nics": [nic]});
        assert_eq!(code(block_on(client.vm_update("a", &patch, None))), ErrorCode::Invalid, "{patch}");
    }
    let shown = block_on(client.network("lab")).expect("a network");
    assert_eq!((shown.cards.len(), shown.cards[0].vm.as_str()), (4, "a"));

    // What its machines were told stays while they are in it.
    let patch = serde_json::json!({"description": "for the course"});
    let changed = block_on(client.network_update("lab", &patch, Some(shown.revision))).expect("a change");
    assert_eq!((changed.config.description.as_str(), changed.revision), ("for the course", 2));
    assert_eq!(code(block_on(client.network_update("lab", &patch, Some(1)))), ErrorCode::Changed);
    let patch = serde_json::json!({"mtu": 9000});
    assert_eq!(code(block_on(client.network_update("lab", &patch, None))), ErrorCode::InUse);
    assert_eq!(code(block_on(client.network_delete("lab"))), ErrorCode::InUse);
    assert_eq!(code(block_on(client.network_delete("user"))), ErrorCode::InUse);
    block_on(client.network_delete("back")).expect("it goes");

    // Another project has no such network, not even for its machines.
    let other = serde_json::from_str::<ProjectParams>(r#"{"name": "other"}"#).expect("a project");
    block_on(client.project_create(&other)).expect("a project");
    let stranger = daemon.client("other");
    assert_eq!(code(block_on(stranger.network("lab"))), ErrorCode::NotFound);
    let mut params = daemon.params("spy", "", false);
    params.config.nics = vec![NicConfig::of_network("lab")];
    assert_eq!(code(block_on(stranger.vm_create(&params, "spy"))), ErrorCode::Invalid);
}

#[test]
fn a_network_outlives_the_daemon_and_comes_back_when_it_is_killed() {
    let mut daemon = Daemon::new("switch");
    let client = daemon.client("default");
    let config = NetworkConfig::new(NetworkMode::Internal);
    block_on(client.network_create(&NetworkParams { name: "lab".into(), config })).expect("a network");
    for name in ["one", "two"] {
        let mut params = daemon.params(name, "", true);
        params.config.nics = vec![NicConfig::of_network("lab")];
        run(&client, &params, name);
    }
    // The fake workers have no cards; the test plugs in for them, by the keys that they were given.
    let card = |name: &str| {
        let id = block_on(client.vm(name)).expect("a machine").id;
        let text = std::fs::read(daemon.folder.join("run/vms").join(id).join("worker.json")).expect("a file");
        let config: worker::VmConfig = serde_json::from_slice(&text).expect("a configuration");
        let worker::NetConfig::Switch(card) = config.nets[0].clone() else { panic!("it is in a network") };
        card
    };
    let (one, two) = (card("one"), card("two"));
    let plug = |card: &worker::SwitchNetConfig| {
        SwitchLink::connect(&card.socket, card.key.parse().expect("a key"), card.mtu)
    };
    let (mut first, mut second) = (plug(&one).expect("one is let in"), plug(&two).expect("two is let in"));
    let mac = |card: &worker::SwitchNetConfig| {
        card.mac.as_deref().expect("one").parse::<net::MacAddress>().unwrap()
    };
    let frame = [&mac(&two).0[..], &mac(&one).0, &[0x88, 0xb5], b"hello"].concat();
    let mut reach = |what: &str| {
        let mut buffer = [0; 2000];
        wait(what, || {
            first.poll();
            second.poll();
            first.transmit(&frame);
            let _ = first.receive(&mut buffer);
            second.receive(&mut buffer).is_some_and(|len| buffer[..len] == frame)
        });
    };
    reach("one reaches two");
    daemon.kill();
    reach("without a daemon");
    daemon.start();
    reach("with the next one");
    let switch = || {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).ok()?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(&one.socket).ok()?).ok()?;
        Some(rustix::net::sockopt::socket_peercred(&socket).ok()?.pid)
    };
    let before = switch().expect("it listens");
    rustix::process::kill_process(before, rustix::process::Signal::KILL).expect("it is killed");
    wait("another process", || switch().is_some_and(|now| now != before));
    reach("after its process was killed");
    // A machine that has ended is out, whatever its key.
    let client = daemon.client("default");
    let stop = block_on(client.vm_stop("two", StopParams::default())).expect("an operation");
    block_on(client.wait(stop)).expect("it is off");
    wait("two is out", || plug(&two).is_err());
    assert!(plug(&one).is_ok());
}

#[test]
fn screens_are_seen_and_keys_pressed_while_a_machine_runs() {
    let daemon = Daemon::new("screen");
    let client = daemon.client("default");
    run(&client, &daemon.params("web", "", true), "k");
    assert_eq!(block_on(client.screenshot("web")).expect("a picture"), b"\x89PNG\r\n\x1a\n");
    assert_eq!(block_on(client.screen_text("web")).expect("a text"), "boot:\n");
    let keys = |keys: &[&str], text: &str| Keys {
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        text: text.into(),
    };
    block_on(client.keys("web", &keys(&["enter"], "x"))).expect("they are pressed");
    assert_eq!(code(block_on(client.keys("web", &keys(&[], "")))), ErrorCode::Invalid);
    assert_eq!(code(block_on(client.keys("web", &keys(&[], &"x".repeat(2000))))), ErrorCode::Invalid);
    block_on(client.vm_create(&daemon.params("off", "", false), "k2")).expect("a machine");
    assert_eq!(code(block_on(client.screenshot("off"))), ErrorCode::WrongState);
    assert_eq!(code(block_on(client.keys("off", &keys(&["enter"], "")))), ErrorCode::WrongState);
}

#[test]
fn failures_say_why() {
    let daemon = Daemon::new("failures");
    let client = daemon.client("default");
    let Ok(Created::Starting(operation)) =
        block_on(client.vm_create(&daemon.params("bad", "bad", true), "k"))
    else {
        panic!("it is accepted")
    };
    let error = block_on(client.wait(*operation)).expect_err("it cannot start");
    assert!(error.to_string().contains("this kernel is bad"), "{error}");
    assert_eq!(block_on(client.vm("bad")).expect("a machine").state, VmState::Failed);

    // A guest that does not heed its power button goes on, and can be ended.
    run(&client, &daemon.params("deaf", "deaf", true), "k2");
    let stop = StopParams { force: false, timeout: Some(0) };
    let operation = block_on(client.vm_stop("deaf", stop)).expect("an operation");
    let error = block_on(client.wait(operation)).expect_err("it does not stop");
    assert_eq!(error.api().code, ErrorCode::GuestTimeout);
    assert_eq!(block_on(client.vm("deaf")).expect("a machine").state, VmState::Running);
    // Waiting can be given up.
    let operation = block_on(client.vm_stop("deaf", StopParams::default())).expect("an operation");
    block_on(client.operation_cancel(&operation.id)).expect("it can be cancelled");
    wait("the operation ends", || {
        block_on(client.operation(&operation.id, 1)).expect("an operation").state == OperationState::Cancelled
    });
    block_on(client.vm_delete("deaf", true)).expect("force removes it");
}

#[test]
fn a_killed_worker_is_noticed_and_started_again_if_it_shall() {
    let daemon = Daemon::new("worker");
    let client = daemon.client("default");
    run(&client, &daemon.params("again", "", true), "k");
    let mut once = daemon.params("once", "", true);
    once.config.restart = RestartPolicy::Never;
    run(&client, &once, "k2");
    let pid = |name: &str| block_on(client.vm(name)).expect("a machine").worker.map(|worker| worker.pid);
    let before = pid("again");
    for pid in [before, pid("once")].into_iter().flatten() {
        kill(pid);
    }
    wait("it runs again", || pid("again").is_some_and(|now| Some(now) != before));
    wait("it has failed", || block_on(client.vm("once")).expect("a machine").state == VmState::Failed);
    let reason = block_on(client.vm("once")).expect("a machine").reason;
    assert_eq!(reason.as_deref(), Some("its process was killed"));
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it can be killed");
}

/// Many with `ARNIA_TEST_FULL`, few otherwise.
fn rounds() -> usize {
    if std::env::var_os("ARNIA_TEST_FULL").is_some() { 100 } else { 5 }
}

#[test]
fn a_killed_daemon_loses_no_machine_and_no_acknowledged_operation() {
    let mut daemon = Daemon::new("killed");
    run(&daemon.client("default"), &daemon.params("rock", "", true), "rock");
    let rock =
        block_on(daemon.client("default").vm("rock")).expect("a machine").worker.expect("a worker").pid;
    for round in 0..rounds() {
        let client = daemon.client("default");
        let name = format!("vm-{round}");
        let Ok(Created::Starting(start)) = block_on(client.vm_create(&daemon.params(&name, "", true), &name))
        else {
            panic!("round {round}: it is accepted")
        };
        // Killed at another moment each time: while it is accepted, launched, taken over.
        std::thread::sleep(Duration::from_micros((round as u64 * 7919) % 60_000));
        daemon.kill();
        daemon.start();
        block_on(client.wait(*start)).unwrap_or_else(|e| panic!("round {round}: it was acknowledged: {e}"));
        wait("it runs", || block_on(client.vm(&name)).expect("a machine").state == VmState::Running);
        let stop = block_on(client.vm_stop(&name, StopParams::default())).expect("an operation");
        daemon.kill();
        daemon.start();
        block_on(client.wait(stop)).unwrap_or_else(|e| panic!("round {round}: it was acknowledged: {e}"));
        wait("it is off", || block_on(client.vm(&name)).expect("a machine").state == VmState::Stopped);
        wait("the other runs on", || {
            let vm = block_on(client.vm("rock")).expect("a machine");
            vm.worker.map(|worker| worker.pid) == Some(rock)
        });
    }
    let vms = block_on(daemon.client("default").vms()).expect("machines");
    assert_eq!(vms.len(), rounds() + 1);
}

fn token_params(user: &str, certificate: Option<String>) -> TokenParams {
    TokenParams { user: user.into(), description: String::new(), lifetime: None, certificate }
}

/// By TLS: who is known by a token, by a certificate, and not at all; and a daemon that is not the one trusted.
#[test]
fn callers_from_elsewhere_are_known_by_token_or_certificate() {
    let mut daemon = Daemon::new("tls");
    // A port that is free now; nobody else takes it within this test's moments.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port();
    std::fs::write(daemon.folder.join("listen"), format!("127.0.0.1:{port}")).expect("a file");
    daemon.kill();
    daemon.start();
    let owner = daemon.client("default");
    let params = UserParams {
        name: "ann".into(),
        description: String::new(),
        grants: vec![Grant { project: None, role: Role::Viewer }],
    };
    block_on(owner.user_create(&params)).expect("a user");
    let secret =
        block_on(owner.token_create(&token_params("ann", None))).expect("a token").secret.expect("a secret");
    let made = rcgen::generate_simple_self_signed(vec!["ann".to_owned()]).expect("a certificate");
    let other = rcgen::generate_simple_self_signed(vec!["ann".to_owned()]).expect("a certificate");
    let file = |name: &str, text: String| {
        std::fs::write(daemon.folder.join(name), text).expect("a file");
        daemon.folder.join(name)
    };
    let identity = (file("ann.pem", made.cert.pem()), file("ann.key", made.signing_key.serialize_pem()));
    let stranger =
        (file("other.pem", other.cert.pem()), file("other.key", other.signing_key.serialize_pem()));
    let by_certificate = token_params("ann", Some(made.cert.pem()));
    assert_eq!(block_on(owner.token_create(&by_certificate)).expect("a token").secret, None);
    assert_eq!(code(block_on(owner.token_create(&by_certificate))), ErrorCode::AlreadyExists);
    assert_eq!(
        code(block_on(owner.token_create(&token_params("ann", Some("x".into()))))),
        ErrorCode::Invalid
    );

    let address = format!("127.0.0.1:{port}");
    let fingerprint = block_on(client::fingerprint_of(&address)).expect("it answers");
    let remote = |identity: Option<&(PathBuf, PathBuf)>| {
        let remote = Remote {
            address: address.clone(),
            fingerprint: fingerprint.clone(),
            identity: identity.cloned(),
        };
        Client::remote(&remote, "default").expect("a client")
    };
    let known = [remote(None).with_token(secret), remote(Some(&identity))];
    for client in &known {
        assert_eq!(block_on(client.identity()).expect("it is known").user, "ann");
        assert_eq!(
            code(block_on(client.vm_create(&daemon.params("x", "", false), "k"))),
            ErrorCode::Forbidden
        );
    }
    assert_eq!(code(block_on(remote(None).identity())), ErrorCode::Unauthenticated);
    assert_eq!(code(block_on(remote(Some(&stranger)).identity())), ErrorCode::Unauthenticated);
    let wrong = Remote {
        address: address.clone(),
        fingerprint: format!("sha256:{}", "0".repeat(64)),
        identity: None,
    };
    let error =
        block_on(Client::remote(&wrong, "default").expect("a client").identity()).expect_err("not trusted");
    assert!(
        error.is_unreachable()
            && error.api().remedy.as_ref().is_some_and(|it| it.contains("another certificate")),
        "{error:?}"
    );
    // A token that is removed ends what the certificate may.
    for token in block_on(owner.tokens()).expect("tokens") {
        block_on(owner.token_delete(&token.id)).expect("it goes");
    }
    assert_eq!(code(block_on(remote(Some(&identity)).identity())), ErrorCode::Unauthenticated);
}

/// Every operation of the document: what comes of it without a valid token, with one of a user without roles, and
/// with one of a viewer of another project. An endpoint that is not asked here does not exist.
#[test]
fn no_endpoint_serves_those_who_may_not() {
    let daemon = Daemon::new("access");
    let owner = daemon.client("default");
    block_on(owner.project_create(&ProjectParams {
        name: "other".into(),
        description: String::new(),
        quota: Default::default(),
    }))
    .expect("a project");
    block_on(owner.vm_create(&daemon.params("web", "", false), "k")).expect("a machine");
    let token = |name: &str, grants: Vec<Grant>| {
        let params = UserParams { name: name.into(), description: String::new(), grants };
        block_on(owner.user_create(&params)).expect("a user");
        let params = token_params(name, None);
        let secret = block_on(owner.token_create(&params)).expect("a token").secret.expect("a secret");
        daemon.client("default").with_token(secret)
    };
    let invalid = daemon.client("default").with_token("arnia_0000000000000000_00");
    let nobody = token("nobody", Vec::new());
    let elsewhere = token("elsewhere", vec![Grant { project: Some("other".into()), role: Role::Admin }]);
    let viewer = token("viewer", vec![Grant { project: None, role: Role::Viewer }]);
    // What everybody who is logged in may ask; each sees only what is theirs.
    let known = [
        "host_view",
        "openapi",
        "operation_view",
        "operation_cancel",
        "image_list",
        "image_view",
        "pool_list",
        "project_list",
        "project_view",
        "identity_view",
    ];
    let document: serde_json::Value = serde_json::from_str(&daemon::openapi_json()).expect("JSON");
    let mut asked = BTreeMap::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("methods") {
            let name = operation["operationId"].as_str().expect("a name");
            let path = path.replace("{vm}", "web").replace("{name}", "default").replace("{operation}", "x");
            let path = path
                .replace("{port}", "80")
                .replace("{volume}", "x")
                .replace("{pool}", "x")
                .replace("{user}", "viewer");
            let path = path.replace("{token}", "x").replace("{image}", "x").replace("{snapshot}", "x");
            let ask = |client: &Client| {
                let json = [("content-type", "application/json")];
                let method = method.to_uppercase();
                block_on(client.send(&method, &path, &json, b"{}".to_vec())).expect("an answer").0
            };
            assert_eq!(ask(&invalid), 401, "{name} without a valid token");
            if !known.contains(&name) {
                for (client, who) in [(&nobody, "nobody"), (&elsewhere, "elsewhere")] {
                    let status = ask(client);
                    assert!(matches!(status, 403 | 404), "{name} by {who}: {status}");
                }
            }
            let changes = method != "get" && name != "operation_cancel";
            if changes {
                assert_eq!(ask(&viewer), 403, "{name} by a viewer");
            }
            asked.insert(name.to_owned(), ());
        }
    }
    assert!(asked.len() > 40, "{asked:?}");
    // The machine is as it was, and invisible from elsewhere, also by its identity.
    let id = block_on(owner.vm("web")).expect("a machine").id;
    assert_eq!(code(block_on(elsewhere.vm(&id))), ErrorCode::NotFound);
    let other = Client::new(&config(&daemon.folder).paths.socket(), "other");
    assert_eq!(code(block_on(other.vm(&id))), ErrorCode::NotFound);
    assert_eq!(block_on(viewer.vm("web")).expect("a viewer sees it").name, "web");
}
