//! What machines, networks, ports, screens and callers are over the API; and that a daemon or worker that is killed
//! loses nothing.

mod rig;

use api::v1::access::{Grant, Role, UserParams};
use api::v1::error::ErrorCode;
use api::v1::network::{NetworkConfig, NetworkMode, NetworkParams, NicConfig, Port};
use api::v1::operation::OperationState;
use api::v1::project::ProjectParams;
use api::v1::screen::Keys;
use api::v1::vm::{RestartPolicy, StopParams, VmState};
use api::worker::config as worker;
use client::{Client, Created, Remote};
use net::Backend;
use net::switch::SwitchLink;
use rig::{Daemon, block_on, code, kill, run, token_params, wait};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use std::path::PathBuf;
use std::time::Duration;

#[test]
fn part() {
    rig::part();
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
fn ports_that_the_host_has_chosen_are_shown_and_closed_as_they_are() {
    let mut daemon = Daemon::new("chosen");
    let client = daemon.client("default");
    let mut params = daemon.params("web", "", true);
    let rules = ["0:22", "0:23", "8080:80"];
    params.config.nics[0].ports = rules.map(str::to_owned).into();
    run(&client, &params, "k");
    let listed = |client: &Client| {
        let ports = block_on(client.ports("web")).expect("ports");
        ports.into_iter().map(|port| port.rule).collect::<Vec<_>>()
    };
    let chosen = |client: &Client| {
        let worker = block_on(client.vm("web")).expect("a machine").worker.expect("a worker");
        worker.chosen_ports.into_iter().map(|port| port.rule).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&client), ["127.0.0.1:41000:22", "127.0.0.1:41001:23"]);
    assert_eq!(listed(&client), ["127.0.0.1:41000:22", "127.0.0.1:41001:23", "8080:80"]);
    daemon.kill();
    daemon.start();
    let client = daemon.client("default");
    wait("it is found again", || block_on(client.vm("web")).expect("a machine").worker.is_some());
    wait("its ports are known again", || chosen(&client).len() == 2);
    // Of those with port 0 only the whole rule says which one is meant.
    for none in ["0", "0:24", "0:22/udp", "41002"] {
        assert_eq!(code(block_on(client.port_delete("web", none))), ErrorCode::NotFound, "{none}");
    }
    block_on(client.port_delete("web", "0:23")).expect("it goes");
    assert_eq!(block_on(client.vm("web")).expect("a machine").config.nics[0].ports, ["0:22", "8080:80"]);
    assert_eq!(chosen(&client), ["127.0.0.1:41000:22"]);
    assert_eq!(listed(&client), ["127.0.0.1:41000:22", "8080:80"]);
    // By the port that it is now.
    block_on(client.port_delete("web", "41000")).expect("it goes");
    assert_eq!((chosen(&client).len(), listed(&client)), (0, vec!["8080:80".to_owned()]));
    let vm = block_on(client.vm("web")).expect("a machine");
    assert!(!vm.restart_needed);
    // The process has closed them.
    let control = daemon.folder.join("run/vms").join(vm.id).join("control");
    let mut control = std::os::unix::net::UnixStream::connect(control).expect("the worker");
    std::io::Write::write_all(&mut control, b"{\"op\": \"ports\"}\n").expect("a request");
    let mut answer = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(control), &mut answer).expect("an answer");
    assert!(answer.contains("8080:80") && !answer.contains("4100"), "{answer}");
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
fn a_stream_of_events_ends_when_it_is_told_to() {
    let daemon = Daemon::new("events");
    let client = daemon.client("default");
    run(&client, &daemon.params("web", "", true), "key-1");
    let id = block_on(client.vm("web")).expect("a machine").id;
    let get = |query: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(rig::config(&daemon.folder).paths.socket())
            .expect("the daemon's socket");
        let request = format!("GET /v1/events?{query} HTTP/1.1\r\nHost: arnia\r\nConnection: close\r\n\r\n");
        std::io::Write::write_all(&mut stream, request.as_bytes()).expect("a request");
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).expect("an end");
        answer
    };
    // All that was missed, and then the end.
    let answer = get("after=0&seconds=0");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(&id), "{answer}");
    let refused = get("seconds=86401");
    assert!(refused.starts_with("HTTP/1.1 400") && refused.contains("86400"), "{refused}");
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
