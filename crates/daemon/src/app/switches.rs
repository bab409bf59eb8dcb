//! The processes of networks: started when a machine with a card in it starts, watched, found again.
//!
//! What a process knows is in its file `switch.json`: the cards of the machines that run, as they were started. It reads
//! the file again when that is written anew. Like workers, switches outlive the daemon; one that no card is plugged into
//! ends by itself.

use super::networks::Plan;
use super::{App, lock};
use crate::machine::{Folder, Process, process};
use crate::{Error, util};
use api::switch::{SwitchConfig, SwitchPortConfig};
use api::v1::error::ErrorCode;
use api::v1::network::{NetworkMode, NicConfig, USER_NETWORK};
use api::worker::config as worker;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::{NetworkRecord, VmRecord};

/// How long a switch has to come up.
const PATIENCE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(2);
/// How long to wait before one is started again that has ended by itself.
const AGAIN: Duration = Duration::from_millis(500);

/// What the cards of a machine are plugged into, by their names; those in networks of their own are not here.
pub(super) type Cards = HashMap<String, worker::NetConfig>;

/// The process of one network. Held by whoever changes what it knows.
#[derive(Debug, Default)]
pub(super) struct Switch {
    process: tokio::sync::Mutex<Option<Arc<Process>>>,
}

/// The secret of a card.
fn key(network: &NetworkRecord, vm: &str, nic: &NicConfig) -> String {
    let text = [&network.secret[..], vm.as_bytes(), b"/", nic.name.as_deref().unwrap_or_default().as_bytes()];
    util::hex(&util::digest(&text.concat()))
}

impl App {
    fn switch(&self, id: &str) -> Arc<Switch> {
        lock(&self.switches).entry(id.to_owned()).or_default().clone()
    }

    fn switch_folder(&self, id: &str) -> Folder {
        Folder(self.config.paths.network_runtime(id))
    }

    /// Makes the networks of a machine ready for its cards.
    pub(super) async fn plug_in(self: &Arc<App>, vm: &VmRecord) -> Result<Cards, Error> {
        let mut cards = Cards::new();
        let mut networks: Vec<&str> = vm.config.nics.iter().map(|nic| nic.network.as_str()).collect();
        networks.sort_unstable();
        networks.dedup();
        for name in networks.into_iter().filter(|name| *name != USER_NETWORK) {
            let network = self.read(|records| Ok(records.network(&vm.project, name)?))?;
            let folder = self.switch_folder(&network.id);
            let nics = vm.config.nics.iter().filter(|nic| nic.network == name);
            let mut ports = Vec::new();
            for nic in nics {
                let key = key(&network, &vm.id, nic);
                ports.push(SwitchPortConfig {
                    vm: vm.id.clone(),
                    name: vm.name.clone(),
                    key: key.clone(),
                    mac: nic.mac.clone().unwrap_or_default(),
                    address: nic.address.clone(),
                });
                let (mac, socket) = (nic.mac.clone(), folder.file("ports"));
                let (mtu, limits) = (network.config.mtu, nic.limits.clone());
                let card = worker::SwitchNetConfig { mac, socket, key, mtu, limits };
                cards.insert(nic.name.clone().unwrap_or_default(), worker::NetConfig::Switch(card));
            }
            self.open_ports(&network, &vm.id, ports).await?;
        }
        Ok(cards)
    }

    /// Tells the process of a network which cards a machine has now, and starts it if it does not run.
    async fn open_ports(
        self: &Arc<App>,
        network: &NetworkRecord,
        vm: &str,
        ports: Vec<SwitchPortConfig>,
    ) -> Result<(), Error> {
        let failed = |e: &dyn std::fmt::Display| {
            Error::internal(format!("the process of the network {:?} cannot be started", network.name), e)
        };
        let switch = self.switch(&network.id);
        let mut process = switch.process.lock().await;
        let folder = self.switch_folder(&network.id);
        let mut all = known_ports(&folder);
        all.retain(|port| port.vm != vm && self.machine(&port.vm).state().is_active());
        all.extend(ports);
        crate::config::private_folder(folder.path()).map_err(|e| failed(&e))?;
        let config = switch_config(network, &folder, all)?;
        write(&folder, &config).map_err(|e| failed(&e))?;
        self.have_switch(&mut process, &network.id, &config).await
    }

    /// Makes sure that a network has its process: one that lives is taken over, else one is started.
    async fn have_switch(
        self: &Arc<App>,
        held: &mut Option<Arc<Process>>,
        id: &str,
        config: &SwitchConfig,
    ) -> Result<(), Error> {
        let folder = self.switch_folder(id);
        if process::lives(&folder) {
            if held.is_some() {
                return Ok(());
            }
            if let Some(process) = adopt(&folder, "ports").await {
                self.watch_switch(id, process.clone());
                *held = Some(process);
                return Ok(());
            }
        }
        *held = Some(self.start_switch(id, config).await?);
        Ok(())
    }

    async fn start_switch(self: &Arc<App>, id: &str, config: &SwitchConfig) -> Result<Arc<Process>, Error> {
        let failed = |e: &dyn std::fmt::Display| {
            Error::internal(format!("the process of the network {:?} cannot be started", config.name), e)
        };
        let folder = self.switch_folder(id);
        // One that ends just now still has the lock.
        let path = folder.file("switch.json");
        let text = serde_json::to_vec_pretty(config).map_err(|e| failed(&e))?;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let process = loop {
            match Process::start_switch(&self.config.switch, &folder, (&path, &text)) {
                Ok(process) => break Arc::new(process),
                Err(_) if process::lives(&folder) && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(INTERVAL).await;
                }
                Err(e) => return Err(failed(&e)),
            }
        };
        while connect(&folder, "ports").is_none() {
            let late = tokio::time::Instant::now() > deadline;
            if late || !process::lives(&folder) {
                process.kill();
                process.ended().await;
                return Err(failed(&process::last_words(&folder.file("log"))));
            }
            tokio::time::sleep(INTERVAL).await;
        }
        self.watch_switch(id, process.clone());
        Ok(process)
    }

    /// Starts a switch again when it has ended although machines are plugged in.
    fn watch_switch(self: &Arc<App>, id: &str, process: Arc<Process>) {
        let (app, id) = (self.clone(), id.to_owned());
        tokio::spawn(async move {
            process.ended().await;
            let (switch, folder) = (app.switch(&id), app.switch_folder(&id));
            let mut held = switch.process.lock().await;
            if !held.as_ref().is_some_and(|now| Arc::ptr_eq(now, &process)) {
                return;
            }
            *held = None;
            let network = app.read(|records| Ok(records.all_networks()?));
            let network = network.ok().and_then(|all| all.into_iter().find(|network| network.id == id));
            let mut ports = known_ports(&folder);
            ports.retain(|port| app.machine(&port.vm).state().is_active());
            let Some(network) = network.filter(|_| !ports.is_empty()) else { return };
            log::warn!("the process of the network {} has ended and is started again", network.name);
            tokio::time::sleep(AGAIN).await;
            let started = match switch_config(&network, &folder, ports) {
                Ok(config) => Box::pin(app.start_switch(&id, &config)).await,
                Err(error) => Err(error),
            };
            match started {
                Ok(process) => *held = Some(process),
                Err(error) => log::error!("the network {} is down: {error}", network.name),
            }
        });
    }

    /// The cards of a machine that has ended are in no network any more.
    pub(super) async fn unplug(&self, vm: &str) {
        let switches: Vec<_> = lock(&self.switches).iter().map(|(id, it)| (id.clone(), it.clone())).collect();
        for (id, switch) in switches {
            let _held = switch.process.lock().await;
            let folder = self.switch_folder(&id);
            let Some(mut config) = read(&folder) else { continue };
            let before = config.ports.len();
            // It may be starting again meanwhile.
            config.ports.retain(|port| port.vm != vm || self.machine(vm).state().is_active());
            if config.ports.len() != before
                && let Err(error) = write(&folder, &config)
            {
                log::warn!("the cards of an ended machine stay in the network {}: {error}", config.name);
            }
        }
    }

    /// A network is gone.
    pub(super) fn forget_switch(&self, id: &str) {
        if let Some(switch) = lock(&self.switches).remove(id)
            && let Ok(mut process) = switch.process.try_lock()
            && let Some(process) = process.take()
        {
            process.kill();
        }
        let _ = std::fs::remove_dir_all(self.switch_folder(id).path());
    }

    /// Takes over the switches that an earlier daemon has left, and starts those again that are missed.
    pub(super) async fn find_switches(self: &Arc<App>) {
        for network in self.read(|records| Ok(records.all_networks()?)).unwrap_or_default() {
            let folder = self.switch_folder(&network.id);
            let mut ports = known_ports(&folder);
            ports.retain(|port| self.machine(&port.vm).state().is_active());
            let switch = self.switch(&network.id);
            let mut held = switch.process.lock().await;
            if ports.is_empty() && !process::lives(&folder) {
                continue;
            }
            let found = match switch_config(&network, &folder, ports) {
                Ok(config) => self.have_switch(&mut held, &network.id, &config).await,
                Err(error) => Err(error),
            };
            if let Err(error) = found {
                log::error!("the network {} is down: {error}", network.name);
            }
        }
    }
}

/// Takes over the process that listens at `socket` in `folder`. It may just be coming up.
pub(super) async fn adopt(folder: &Folder, socket: &str) -> Option<Arc<Process>> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while process::lives(folder) && tokio::time::Instant::now() < deadline {
        // While the connection lives, the process that listened for it cannot be another one.
        if let Some(connection) = connect(folder, socket)
            && let Ok(peer) = rustix::net::sockopt::socket_peercred(&connection)
            && let Ok(process) = Process::new(peer.pid.as_raw_nonzero().get() as u32, None)
            && connect(folder, socket).is_some()
        {
            return Some(Arc::new(process));
        }
        tokio::time::sleep(INTERVAL).await;
    }
    None
}

/// A connection to the process in `folder`, which says nothing.
fn connect(folder: &Folder, name: &str) -> Option<OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).ok()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(folder.file(name)).ok()?).ok()?;
    Some(socket)
}

fn switch_config(
    network: &NetworkRecord,
    folder: &Folder,
    ports: Vec<SwitchPortConfig>,
) -> Result<SwitchConfig, Error> {
    let plan = Plan::of(&network.config)?;
    Ok(SwitchConfig {
        name: format!("{}/{}", network.project, network.name),
        socket: folder.file("ports"),
        subnet: plan.subnet.to_string(),
        gateway: plan.gateway.to_string(),
        name_server: plan.name_server.to_string(),
        domain: network.config.domain.clone().unwrap_or_default(),
        dhcp: network.config.dhcp,
        outside: network.config.mode == NetworkMode::Nat,
        mtu: network.config.mtu,
        ports,
    })
}

fn read(folder: &Folder) -> Option<SwitchConfig> {
    serde_json::from_slice(&std::fs::read(folder.file("switch.json")).ok()?).ok()
}

fn known_ports(folder: &Folder) -> Vec<SwitchPortConfig> {
    read(folder).map(|config| config.ports).unwrap_or_default()
}

/// Writes what the process shall know: as a whole, so that it never reads half of it.
fn write(folder: &Folder, config: &SwitchConfig) -> Result<(), Error> {
    let lost =
        |e: std::io::Error| Error::new(ErrorCode::Internal, "its file cannot be written").with_cause(e);
    let text = serde_json::to_vec_pretty(config).map_err(|e| lost(e.into()))?;
    let (new, path): (PathBuf, PathBuf) = (folder.file("switch.json.new"), folder.file("switch.json"));
    std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path)).map_err(lost)
}
