//! What is to be done so that what there is becomes what the file says. Pure.

use super::file::{Lab, LabVm, Present};
use super::step::Step;
use crate::{Error, ErrorKind};
use api::v1::network::NetworkParams;
use api::v1::storage::VolumeParams;
use api::v1::vm::{Vm, VmConfig};
use serde::Serialize;
use serde_json::{Map, Value};

/// By this label it is known which file a machine came from.
pub(super) const LABEL: &str = "arnia.lab";

/// The steps, in the order in which they are to be done: what ends gives its host ports, addresses and volumes back before
/// others want them, and what machines use is there before them.
///
/// # Errors
/// When the file asks for what cannot be done without losing data.
pub(super) fn plan(lab: &Lab, present: &Present, prune: bool) -> Result<Vec<Step>, Error> {
    let [mut ends, mut changes, mut creations, mut starts] = [const { Vec::new() }; 4];
    if prune {
        let of_lab = |vm: &&Vm| lab.name.is_some() && vm.config.labels.get(LABEL) == lab.name.as_ref();
        let gone = present.vms.values().filter(of_lab).filter(|vm| !lab.vms.contains_key(&vm.name));
        ends.extend(gone.map(|vm| Step::RemoveVm { vm: vm.name.clone() }));
    }
    for (name, wanted) in &lab.vms {
        let config = completed(lab, wanted, present.vms.get(name));
        let vm = name.clone();
        let Some(there) = present.vms.get(name) else {
            creations.push(Step::CreateVm { vm, config: Box::new(config), start: wanted.running });
            continue;
        };
        let running = there.state.is_active();
        let goes_on = running && wanted.running;
        match patch(&there.config, &config) {
            Some(patch) => {
                let restart_needed = goes_on && (there.restart_needed || !in_force_at_once(&patch));
                let (vm, revision) = (vm.clone(), there.revision);
                changes.push(Step::ChangeVm { vm, revision, patch, running: goes_on, restart_needed });
            }
            None if goes_on && there.restart_needed => changes.push(Step::RestartVm { vm: vm.clone() }),
            None => {}
        }
        match (running, wanted.running) {
            (false, true) => starts.push(Step::StartVm { vm }),
            (true, false) => ends.push(Step::StopVm { vm }),
            _ => {}
        }
    }
    Ok([ends, volumes(lab, present)?, networks(lab, present), changes, creations, starts].concat())
}

fn volumes(lab: &Lab, present: &Present) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    for (name, wanted) in &lab.volumes {
        match present.volumes.get(name) {
            None => {
                let (pool, size) = (wanted.pool.clone(), wanted.size);
                steps.push(Step::CreateVolume { volume: VolumeParams { name: name.clone(), pool, size } });
            }
            Some(there) if there.size != wanted.size => {
                let message =
                    format!("the volume {name:?} has {}, and the file says {}", there.size, wanted.size);
                return Err(Error::new(ErrorKind::Conflict, message)
                    .with_remedy("volumes keep their size: write that of the volume, or another name"));
            }
            Some(there) if wanted.pool.as_ref().is_some_and(|pool| *pool != there.pool) => {
                let message = format!("the volume {name:?} lies in the pool {:?}", there.pool);
                return Err(Error::new(ErrorKind::Conflict, message)
                    .with_remedy("volumes stay in their pool: write that one, or another name"));
            }
            Some(_) => {}
        }
    }
    Ok(steps)
}

fn networks(lab: &Lab, present: &Present) -> Vec<Step> {
    let mut steps = Vec::new();
    for (name, wanted) in &lab.networks {
        let Some(there) = present.networks.get(name) else {
            let network = NetworkParams { name: name.clone(), config: wanted.clone() };
            steps.push(Step::CreateNetwork { network });
            continue;
        };
        // What the daemon chose stays, where the file leaves it open.
        let mut wanted = wanted.clone();
        wanted.subnet = wanted.subnet.or_else(|| there.config.subnet.clone());
        wanted.domain = wanted.domain.or_else(|| there.config.domain.clone());
        if let Some(patch) = patch(&there.config, &wanted) {
            let (network, revision) = (name.clone(), there.revision);
            steps.push(Step::ChangeNetwork { network, revision, patch });
        }
    }
    steps
}

/// Whether a machine that runs has all of a change at once, or never needs it while it runs. The daemon decides the same
/// by the fields of its own list, and has the last word.
fn in_force_at_once(patch: &Value) -> bool {
    const FIELDS: [&str; 5] = ["limits", "description", "labels", "autostart", "restart"];
    patch.as_object().is_some_and(|patch| patch.keys().all(|field| FIELDS.contains(&field.as_str())))
}

/// The configuration as the daemon has it: with the label, and with the addresses that the daemon chose.
fn completed(lab: &Lab, wanted: &LabVm, there: Option<&Vm>) -> VmConfig {
    let mut config = wanted.config.clone();
    if let Some(name) = &lab.name {
        config.labels.insert(LABEL.into(), name.clone());
    }
    for (index, nic) in config.nics.iter_mut().enumerate() {
        let Some(there) = there.and_then(|vm| vm.config.nics.get(index)) else { continue };
        nic.name = nic.name.take().or_else(|| there.name.clone());
        nic.mac = nic.mac.take().or_else(|| there.mac.clone());
        if nic.network == there.network {
            nic.address = nic.address.take().or_else(|| there.address.clone());
        }
    }
    for mount in &mut config.mounts {
        let there = there.and_then(|vm| vm.config.mounts.iter().find(|there| there.target == mount.target));
        mount.name = mount.name.take().or_else(|| there?.name.clone());
    }
    config
}

/// What turns one configuration into the other; nothing if they are the same.
fn patch<T: Serialize>(from: &T, to: &T) -> Option<Value> {
    let (from, to) = (serde_json::to_value(from).ok()?, serde_json::to_value(to).ok()?);
    merge_patch(&from, &to)
}

fn merge_patch(from: &Value, to: &Value) -> Option<Value> {
    match (from, to) {
        (Value::Object(from), Value::Object(to)) => {
            let mut patch = Map::new();
            for name in from.keys().filter(|name| !to.contains_key(*name)) {
                patch.insert(name.clone(), Value::Null);
            }
            for (name, value) in to {
                match from.get(name) {
                    None => drop(patch.insert(name.clone(), value.clone())),
                    Some(before) => {
                        if let Some(change) = merge_patch(before, value) {
                            patch.insert(name.clone(), change);
                        }
                    }
                }
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        (from, to) => (from != to).then(|| to.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::Cards;
    use super::*;
    use api::v1::vm::VmState;

    const FILE: &str = "
name: lab
networks:
  back: {mode: internal}
volumes:
  data: {size: 1M}
vms:
  web:
    boot: {kernel: /k, append: quiet}
    cpus: 2
    disks: [{volume: data}]
    nics: [{}, {network: back}]
  cold:
    running: false
    boot: {kernel: /k}
";

    /// The daemon names the mounts that have no name; that is no change.
    #[test]
    fn a_mount_without_a_name_keeps_the_one_that_the_daemon_chose() {
        let file = "vms: {web: {image: x, mounts: [{folder: /src, target: /mnt/src}]}}";
        let lab = Lab::parse(file).unwrap();
        let mut config = lab.vms["web"].config.clone();
        config.mounts[0].name = Some("mnt-src".into());
        let mut present = Present::default();
        present.vms.insert("web".into(), vm("web", VmState::Running, config.clone()));
        assert_eq!(plan(&lab, &present, false).unwrap(), []);
        config.mounts[0].read_only = true;
        present.vms.insert("web".into(), vm("web", VmState::Running, config));
        assert_eq!(plan(&lab, &present, false).unwrap().len(), 1);
    }

    fn vm(name: &str, state: VmState, config: VmConfig) -> Vm {
        Vm {
            id: format!("id-{name}"),
            name: name.into(),
            project: "default".into(),
            state,
            reason: None,
            config,
            image_digest: None,
            restart_needed: false,
            created: 0,
            started: None,
            worker: None,
            guest: None,
            revision: 7,
        }
    }

    /// What the daemon has after the steps were done.
    fn done(lab: &Lab) -> Present {
        let mut present = Present::default();
        for step in plan(lab, &present, false).unwrap() {
            if let Step::CreateVm { vm: name, mut config, start } = step {
                for (index, nic) in config.nics.iter_mut().enumerate() {
                    nic.name = Some(format!("net{index}"));
                    nic.mac = Some(format!("02:00:00:00:00:0{index}"));
                    nic.address = (nic.network == "back").then(|| "10.64.0.10".into());
                }
                let state = if start { VmState::Running } else { VmState::Stopped };
                present.vms.insert(name.clone(), vm(&name, state, *config));
            }
        }
        let volume = serde_json::json!({"name": "data", "project": "default", "pool": "default", "size": "1M",
            "used_bytes": 0, "vms": [], "created": 0});
        present.volumes.insert("data".into(), serde_json::from_value(volume).unwrap());
        let network = serde_json::json!({"name": "back", "project": "default", "cards": [], "revision": 3, "config":
            {"mode": "internal", "subnet": "10.64.0.0/24", "domain": "back.internal"}});
        present.networks.insert("back".into(), serde_json::from_value(network).unwrap());
        present
    }

    #[test]
    fn a_file_is_applied_once() {
        let lab = Lab::parse(FILE).unwrap();
        let steps = plan(&lab, &Present::default(), false).unwrap();
        let shown = steps.iter().map(Step::to_string).collect::<Vec<_>>();
        assert_eq!(
            shown,
            [
                "+ volume data (1M)",
                "+ network back (internal)",
                "+ machine cold (1 vCPUs, 1G)",
                "+ machine web (2 vCPUs, 1G, started)"
            ]
        );
        assert_eq!(plan(&lab, &done(&lab), true).unwrap(), []);
    }

    #[test]
    fn changes_are_the_least_that_is_needed() {
        let lab = Lab::parse(FILE).unwrap();
        let mut present = done(&lab);
        let web = present.vms.get_mut("web").unwrap();
        web.config.cpus = 1;
        web.config.description = "old".into();
        web.config.boot.append = String::new();
        present.vms.get_mut("cold").unwrap().state = VmState::Running;
        present.networks.get_mut("back").unwrap().config.mtu = 9000;
        let patch = serde_json::json!({"cpus": 2, "description": null, "boot": {"append": "quiet"}});
        assert_eq!(
            plan(&lab, &present, false).unwrap(),
            [
                Step::StopVm { vm: "cold".into() },
                Step::ChangeNetwork {
                    network: "back".into(),
                    revision: 3,
                    patch: serde_json::json!({"mtu": 1500})
                },
                Step::ChangeVm { vm: "web".into(), revision: 7, patch, running: true, restart_needed: true }
            ]
        );
    }

    /// What ends holds host ports, addresses and volumes that the others want.
    #[test]
    fn what_ends_does_so_before_others_begin() {
        let mut lab = Lab::parse(FILE).unwrap();
        let mut present = done(&lab);
        let mut old = present.vms.remove("web").unwrap();
        old.name = "old".into();
        present.vms.insert("old".into(), old);
        let cold = present.vms.get_mut("cold").unwrap();
        (cold.state, cold.config.cpus) = (VmState::Running, 2);
        present.volumes.clear();
        let mut off = VmConfig::new("/k");
        off.labels.insert(LABEL.into(), "lab".into());
        lab.vms.insert("off".into(), LabVm { running: true, config: off.clone() });
        present.vms.insert("off".into(), vm("off", VmState::Stopped, off));
        let steps = plan(&lab, &present, true).unwrap();
        let shown = steps.iter().map(|step| step.to_string().lines().next().unwrap().to_owned());
        assert_eq!(
            shown.collect::<Vec<_>>(),
            [
                "- machine old",
                "x stop machine cold",
                "+ volume data (1M)",
                "~ machine cold",
                "+ machine web (2 vCPUs, 1G, started)",
                "> start machine off"
            ]
        );
    }

    #[test]
    fn a_restart_is_told_only_where_one_is_needed() {
        let lab = Lab::parse(FILE).unwrap();
        let told = |change: &dyn Fn(&mut Vm)| {
            let mut present = done(&lab);
            change(present.vms.get_mut("web").unwrap());
            let steps = plan(&lab, &present, false).unwrap();
            assert_eq!(steps.len(), 1, "{steps:?}");
            steps[0].to_string().contains("restart")
        };
        assert!(!told(&|vm| vm.config.description = "old".into()));
        assert!(!told(&|vm| vm.config.limits.cpu = Some(50)));
        assert!(told(&|vm| vm.config.cpus = 1));
        assert!(told(&|vm| (vm.config.description, vm.config.cpus) = ("old".into(), 1)));
        assert!(told(&|vm| (vm.config.description, vm.restart_needed) = ("old".into(), true)));
    }

    #[test]
    fn what_runs_with_an_older_configuration_is_to_be_restarted() {
        let lab = Lab::parse(FILE).unwrap();
        let mut present = done(&lab);
        present.vms.get_mut("web").unwrap().restart_needed = true;
        assert_eq!(plan(&lab, &present, false).unwrap(), [Step::RestartVm { vm: "web".into() }]);
        // It has the newer one when it starts.
        present.vms.get_mut("web").unwrap().state = VmState::Stopped;
        assert_eq!(plan(&lab, &present, false).unwrap(), [Step::StartVm { vm: "web".into() }]);
    }

    #[test]
    fn only_what_came_from_the_file_is_removed() {
        let lab = Lab::parse(FILE).unwrap();
        let mut present = done(&lab);
        let mut old = VmConfig::new("/k");
        old.labels.insert(LABEL.into(), "lab".into());
        present.vms.insert("old".into(), vm("old", VmState::Stopped, old));
        present.vms.insert("other".into(), vm("other", VmState::Stopped, VmConfig::new("/k")));
        assert_eq!(plan(&lab, &present, false).unwrap(), []);
        assert_eq!(plan(&lab, &present, true).unwrap(), [Step::RemoveVm { vm: "old".into() }]);
    }

    #[test]
    fn what_would_lose_data_is_refused() {
        let lab = Lab::parse(FILE).unwrap();
        let mut present = done(&lab);
        present.volumes.get_mut("data").unwrap().size = "2M".parse().unwrap();
        assert_eq!(plan(&lab, &present, false).unwrap_err().kind(), ErrorKind::Conflict);
    }

    #[test]
    fn what_is_exported_is_applied_without_change() {
        let lab = Lab::parse(FILE).unwrap();
        for cards in [Cards::WithoutAddresses, Cards::Exact] {
            let text = crate::output::to_yaml(&Lab::of(done(&lab), &[], cards).unwrap()).unwrap();
            let again = Lab::parse(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert_eq!(plan(&again, &done(&lab), false).unwrap(), [], "{text}");
        }
    }

    /// Where its source runs, a copy starts only without the source's ports.
    #[test]
    fn what_is_exported_as_a_copy_has_no_ports_of_the_host() {
        let lab = Lab::parse(FILE).unwrap();
        let ports = |cards| {
            let mut present = done(&lab);
            present.vms.get_mut("web").unwrap().config.nics[0].ports = vec!["8080:80".into()];
            let copied = Lab::of(present, &["web".into()], cards).unwrap();
            copied.vms["web"].config.nics[0].ports.clone()
        };
        assert_eq!(ports(Cards::OfCopies), [""; 0]);
        assert_eq!(ports(Cards::WithoutAddresses), ["8080:80"]);
        assert_eq!(ports(Cards::Exact), ["8080:80"]);
    }

    #[test]
    fn mistakes_are_found() {
        for text in [
            "vms: {web: {cpu: 2, boot: {kernel: k}}}",
            "vm: {}",
            "vms: {web: {running: 1, boot: {kernel: k}}}",
            "- a",
        ] {
            assert!(Lab::parse(text).is_err(), "{text}");
        }
    }
}
