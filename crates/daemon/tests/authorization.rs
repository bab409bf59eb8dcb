//! Who may do what: every endpoint with every kind of caller. An endpoint that is not in the table here fails the test.

mod rig;

use api::v1::access::{Grant, Role, UserParams};
use api::v1::error::ErrorCode;
use api::v1::project::ProjectParams;
use client::Client;
use rig::{Daemon, block_on, code, token_params};
use std::collections::BTreeSet;

#[test]
fn part() {
    rig::part();
}

/// Who is allowed, at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Least {
    /// Whoever is logged in; each sees what is theirs.
    Known,
    /// This role in the project.
    Project(Role),
    /// This role in all projects.
    Host(Role),
}

use Least::{Host, Known, Project};
use Role::{Admin, Operator, Viewer};

/// Written by hand, from what each endpoint does, and not taken from the daemon's own table.
const TABLE: &[(&str, Least)] = &[
    ("host_view", Known),
    ("metrics", Host(Viewer)),
    ("openapi", Known),
    ("event_list", Project(Viewer)),
    ("vm_create", Project(Operator)),
    ("vm_list", Project(Viewer)),
    ("vm_view", Project(Viewer)),
    ("vm_update", Project(Operator)),
    ("vm_delete", Project(Operator)),
    ("vm_start", Project(Operator)),
    ("vm_stop", Project(Operator)),
    ("vm_restart", Project(Operator)),
    ("vm_pause", Project(Operator)),
    ("vm_resume", Project(Operator)),
    ("vm_rename", Project(Operator)),
    ("vm_resize", Project(Operator)),
    ("vm_suspend", Project(Operator)),
    ("vm_clone", Project(Operator)),
    ("snapshot_create", Project(Operator)),
    ("snapshot_list", Project(Viewer)),
    ("snapshot_view", Project(Viewer)),
    ("snapshot_delete", Project(Operator)),
    ("snapshot_restore", Project(Operator)),
    ("vm_log", Project(Viewer)),
    ("vm_metrics", Project(Viewer)),
    ("vm_console", Project(Operator)),
    ("port_list", Project(Viewer)),
    ("port_create", Project(Operator)),
    ("port_delete", Project(Operator)),
    ("mount_list", Project(Viewer)),
    ("mount_create", Project(Operator)),
    ("mount_delete", Project(Operator)),
    ("vm_guest", Project(Viewer)),
    ("vm_exec", Project(Operator)),
    ("vm_screenshot", Project(Operator)),
    ("vm_screen_text", Project(Operator)),
    ("vm_keys", Project(Operator)),
    ("file_read", Project(Operator)),
    ("file_write", Project(Operator)),
    ("file_view", Project(Operator)),
    ("file_list", Project(Operator)),
    ("operation_list", Project(Viewer)),
    ("operation_view", Known),
    ("operation_cancel", Known),
    ("image_create", Host(Admin)),
    ("image_list", Known),
    ("image_view", Known),
    ("image_delete", Host(Admin)),
    ("volume_create", Project(Operator)),
    ("volume_list", Project(Viewer)),
    ("volume_view", Project(Viewer)),
    ("volume_delete", Project(Operator)),
    ("pool_create", Host(Admin)),
    ("pool_list", Known),
    ("pool_delete", Host(Admin)),
    ("network_create", Project(Operator)),
    ("network_list", Project(Viewer)),
    ("network_view", Project(Viewer)),
    ("network_update", Project(Operator)),
    ("network_delete", Project(Operator)),
    ("project_create", Host(Admin)),
    ("project_list", Known),
    ("project_view", Known),
    ("project_update", Host(Admin)),
    ("project_delete", Host(Admin)),
    ("user_create", Host(Admin)),
    ("user_list", Host(Admin)),
    ("user_view", Host(Admin)),
    ("user_update", Host(Admin)),
    ("user_delete", Host(Admin)),
    ("token_create", Host(Admin)),
    ("token_list", Host(Admin)),
    ("token_delete", Host(Admin)),
    ("identity_view", Known),
    ("audit_list", Host(Admin)),
];

/// The roles that a caller has: in the project that is asked for, and in all.
#[derive(Debug)]
struct Caller {
    who: &'static str,
    project: Option<Role>,
    host: Option<Role>,
    client: Client,
}

impl Caller {
    fn may(&self, least: Least) -> bool {
        match least {
            Known => true,
            Project(role) => self.project >= Some(role),
            Host(role) => self.host >= Some(role),
        }
    }
}

/// A path of the document, with names in the place of its parameters.
fn path(pattern: &str, vm: &str, name: &str) -> String {
    let parts = pattern.split('/').map(|part| match part {
        "{vm}" => vm,
        "{port}" => "80",
        part if part.starts_with('{') => name,
        part => part,
    });
    parts.collect::<Vec<_>>().join("/")
}

fn ask(client: &Client, method: &str, path: &str) -> u16 {
    let json = [("content-type", "application/json")];
    block_on(client.send(&method.to_uppercase(), path, &json, b"{}".to_vec())).expect("an answer").0
}

/// Users with each role, in the project `default`, elsewhere and everywhere.
fn callers(daemon: &Daemon) -> Vec<Caller> {
    let owner = daemon.client("default");
    let caller = |who: &'static str, project: Option<&str>, role: Option<Role>| {
        let grants = role.map(|role| Grant { project: project.map(str::to_owned), role });
        let params =
            UserParams { name: who.into(), description: String::new(), grants: grants.into_iter().collect() };
        block_on(owner.user_create(&params)).expect("a user");
        let token = block_on(owner.token_create(&token_params(who, None))).expect("a token");
        let client = daemon.client("default").with_token(token.secret.expect("a secret"));
        let here = role.filter(|_| project.is_none_or(|project| project == "default"));
        Caller { who, project: here, host: role.filter(|_| project.is_none()), client }
    };
    vec![
        caller("nobody", None, None),
        caller("elsewhere", Some("other"), Some(Admin)),
        caller("viewer", Some("default"), Some(Viewer)),
        caller("operator", Some("default"), Some(Operator)),
        caller("admin", Some("default"), Some(Admin)),
        caller("host-viewer", None, Some(Viewer)),
        caller("host-operator", None, Some(Operator)),
        caller("host-admin", None, Some(Admin)),
    ]
}

#[test]
fn every_endpoint_serves_those_who_may_and_nobody_else() {
    let daemon = Daemon::new("access");
    let owner = daemon.client("default");
    let other = ProjectParams { name: "other".into(), description: String::new(), quota: Default::default() };
    block_on(owner.project_create(&other)).expect("a project");
    block_on(owner.vm_create(&daemon.params("web", "", false), "k")).expect("a machine");
    let before = block_on(owner.vm("web")).expect("a machine");
    let callers = callers(&daemon);
    let invalid = daemon.client("default").with_token("arnia_0000000000000000_00");
    let document: serde_json::Value = serde_json::from_str(&daemon::openapi_json()).expect("JSON");
    let mut seen = BTreeSet::new();
    for (pattern, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("methods") {
            let name = operation["operationId"].as_str().expect("a name");
            let entry = TABLE.iter().find(|(known, _)| *known == name);
            let least = entry.unwrap_or_else(|| panic!("{name} has no line in the table of this test")).1;
            seen.insert(name.to_owned());
            // Refused before anything is looked at; what is there must not be touched.
            let real = path(pattern, "web", "default");
            assert_eq!(ask(&invalid, method, &real), 401, "{name} without a valid token");
            // Where nothing is, those who may can do no harm.
            let nothing = path(pattern, "ghost", "ghost");
            for caller in &callers {
                let who = caller.who;
                if caller.may(least) && name == "event_list" {
                    // A stream without end is served by beginning.
                    let endless = async {
                        let asked = caller.client.send("GET", &nothing, &[], Vec::new());
                        tokio::time::timeout(std::time::Duration::from_millis(500), asked).await
                    };
                    assert!(block_on(endless).is_err(), "{name} by {who}, who may");
                    continue;
                }
                if caller.may(least) {
                    let status = ask(&caller.client, method, &nothing);
                    assert!(!matches!(status, 401 | 403 | 500..), "{name} by {who}, who may: {status}");
                    continue;
                }
                let status = ask(&caller.client, method, &real);
                // Who has no role in a project does not learn that it exists.
                let hidden = matches!(least, Project(_)) && caller.project.is_none();
                assert_eq!(status, if hidden { 404 } else { 403 }, "{name} by {who}, who may not");
            }
            // By its identity a machine is not to be had either from within another project.
            if pattern.contains("{vm}") {
                let elsewhere =
                    &callers.iter().find(|caller| caller.who == "elsewhere").expect("a caller").client;
                let other = format!("{}?project=other", path(pattern, &before.id, "default"));
                let status = ask(elsewhere, method, &other);
                assert!((400..500).contains(&status), "{name} of another project's machine: {status}");
                let view = format!("/v1/vms/{}?project=other", before.id);
                assert_eq!(ask(elsewhere, "get", &view), 404);
            }
        }
    }
    let table: BTreeSet<String> = TABLE.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(seen, table, "the table has lines for what is no more");
    assert_eq!(block_on(owner.vm("web")).expect("it is as it was"), before);
}

/// What whoever is logged in may ask for shows each only what is theirs.
#[test]
fn what_everybody_may_ask_for_shows_each_what_is_theirs() {
    let daemon = Daemon::new("theirs");
    let owner = daemon.client("default");
    let other = ProjectParams { name: "other".into(), description: String::new(), quota: Default::default() };
    block_on(owner.project_create(&other)).expect("a project");
    rig::run(&owner, &daemon.params("web", "", true), "k");
    let operation = block_on(owner.operations()).expect("operations").remove(0);
    let callers = callers(&daemon);
    let client = |who: &str| &callers.iter().find(|caller| caller.who == who).expect("a caller").client;
    for (who, sees) in [("nobody", false), ("elsewhere", false), ("viewer", true), ("host-viewer", true)] {
        let seen = block_on(client(who).operation(&operation.id, 0));
        assert_eq!(seen.is_ok(), sees, "{who}");
        if !sees {
            assert_eq!(code(seen), ErrorCode::NotFound, "{who}");
            assert_eq!(
                code(block_on(client(who).operation_cancel(&operation.id))),
                ErrorCode::NotFound,
                "{who}"
            );
            assert_eq!(ask(client(who), "get", "/v1/projects/default"), 404, "{who}");
        }
        let projects =
            block_on(client(who).projects()).expect("projects").into_iter().map(|project| project.name);
        assert_eq!(projects.collect::<Vec<_>>().contains(&"default".to_owned()), sees, "{who}");
    }
    assert_eq!(code(block_on(client("viewer").operation_cancel(&operation.id))), ErrorCode::Forbidden);
    assert_eq!(block_on(client("viewer").vm("web")).expect("a viewer sees it").name, "web");
}
