//! `arnia switch`: the process of one network. The daemon starts it; nobody types it.

mod sandbox;

use super::Run;
use crate::{Context, Error};
use api::switch::SwitchConfig;
use net::switch::{Switch, SwitchPort};
use net::{NatConfig, Outside};
use rustix::fs::inotify;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long it lives without a card that is plugged in.
const LINGER: Duration = Duration::from_secs(30);
/// How often it looks whether it is still needed.
const TURN: Duration = Duration::from_secs(5);
/// Largest configuration: thousands of cards.
const CONFIG_LEN_MAX: u64 = 16 << 20;

/// Runs the switch of a network.
#[derive(Debug, clap::Args)]
pub struct RunSwitch {
    /// What it is: a file, which is read again when it is replaced
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Run for RunSwitch {
    fn run(&self, _: &Context) -> Result<ExitCode, Error> {
        crate::log::start();
        let config = read(&self.config)?;
        let failed = |what: &str| Error::failed(format!("the network {}: {what}", config.name));
        let changes =
            watch(&self.config).map_err(|e| failed("its configuration cannot be watched").with_source(e))?;
        let listener = net::switch::listen(&config.socket)
            .map_err(|e| failed("its socket cannot be made").with_source(e))?;
        let mut switch = Switch::new(listener, nat_config(&config)?)
            .map_err(|e| failed("it cannot be made").with_source(e))?;
        switch.watch(changes.as_fd()).map_err(|e| failed("it cannot watch").with_source(e))?;
        switch.set_ports(ports(&config)?);
        sandbox::enter(&self.config, config.outside)?;
        serve(&mut switch, &changes, &self.config, &config.name)
    }
}

fn serve(switch: &mut Switch, changes: &OwnedFd, path: &Path, name: &str) -> Result<ExitCode, Error> {
    let mut used = Instant::now();
    while used.elapsed() < LINGER {
        let event = switch
            .turn(TURN)
            .map_err(|e| Error::failed(format!("the network {name} does not go on")).with_source(e))?;
        if event.watched {
            drain(changes);
        }
        if event.watched || event.stranger {
            match read(path).and_then(|config| ports(&config)) {
                Ok(ports) => switch.set_ports(ports),
                // It is being written, or the network is gone.
                Err(error) => log::warn!("{}", error.report()),
            }
        }
        if switch.connected() > 0 {
            used = Instant::now();
        }
    }
    log::info!("nobody is in the network {name}: its process ends");
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<SwitchConfig, Error> {
    let bad = || Error::bad_input(format!("the configuration {path:?} cannot be used"));
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| bad().with_source(e))?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, CONFIG_LEN_MAX), &mut text)
        .map_err(|e| bad().with_source(e))?;
    serde_json::from_slice(&text).map_err(|e| bad().with_source(e))
}

/// What the network itself is: DHCP, names, and the outside.
fn nat_config(config: &SwitchConfig) -> Result<NatConfig, Error> {
    let bad = |what: &str| Error::bad_input(format!("{what} of the network {} cannot be used", config.name));
    let address = |text: &str| text.parse().map_err(|_| bad("an address"));
    let subnet: net::Ipv4Subnet =
        config.subnet.parse().map_err(|e: net::NetError| bad("the subnet").with_source(e))?;
    Ok(NatConfig {
        subnet,
        gateway: Some(address(&config.gateway)?),
        dns: Some(address(&config.name_server)?),
        // Whoever is let in is known, and has an address of its own.
        guest: Some(subnet.nth(3)),
        mtu: config.mtu,
        // Several machines share it: what listens on the host's loopback is for the host.
        host_loopback: net::HostLoopback::Denied,
        outside: if config.outside { Outside::Allowed } else { Outside::Restricted },
        default_route: config.outside,
        domain: Some(config.domain.clone()),
        dhcp: config.dhcp,
        ..NatConfig::default()
    })
}

fn ports(config: &SwitchConfig) -> Result<Vec<SwitchPort>, Error> {
    let port = |port: &api::switch::SwitchPortConfig| {
        let bad = |e: net::NetError| {
            Error::bad_input(format!("the card of {} cannot be let in", port.name)).with_source(e)
        };
        Ok(SwitchPort {
            key: port.key.parse().map_err(bad)?,
            mac: port.mac.parse().map_err(bad)?,
            address: port.address.as_deref().and_then(|address| address.parse().ok()),
            name: port.name.clone(),
        })
    };
    config.ports.iter().map(port).collect()
}

/// Becomes readable when the file is replaced.
fn watch(path: &Path) -> rustix::io::Result<OwnedFd> {
    let changes = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    inotify::add_watch(&changes, folder, inotify::WatchFlags::MOVED_TO)?;
    Ok(changes)
}

fn drain(changes: &OwnedFd) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(changes, &mut buffer);
    while events.next().is_ok() {}
}
