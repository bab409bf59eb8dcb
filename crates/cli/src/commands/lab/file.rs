//! The file, and what there is.

use crate::Context;
use crate::commands::machine::absolute;
use crate::{Error, ErrorKind};
use api::ByteSize;
use api::v1::network::{Network, NetworkConfig, USER_NETWORK};
use api::v1::storage::Volume;
use api::v1::vm::{Vm, VmConfig};
use client::Client;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest file that is read.
const LEN_MAX: u64 = 8 << 20;

/// What a file describes.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lab {
    /// By which `--prune` knows what came from the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) networks: BTreeMap<String, NetworkConfig>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) volumes: BTreeMap<String, LabVolume>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) vms: BTreeMap<String, LabVm>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LabVolume {
    pub(super) size: ByteSize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pool: Option<String>,
}

/// A machine: its configuration, and whether it runs. Both are fields of one thing in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LabVm {
    pub(super) running: bool,
    pub(super) config: VmConfig,
}

impl<'de> Deserialize<'de> for LabVm {
    // By hand, because a flattened field cannot refuse unknown ones.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<LabVm, D::Error> {
        use serde::de::Error;
        let mut fields = Map::deserialize(deserializer)?;
        let running = match fields.remove("running") {
            None => true,
            Some(Value::Bool(running)) => running,
            Some(_) => return Err(D::Error::custom("`running` is true or false")),
        };
        let config = VmConfig::deserialize(Value::Object(fields)).map_err(D::Error::custom)?;
        Ok(LabVm { running, config })
    }
}

impl Serialize for LabVm {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error;
        let mut value = serde_json::to_value(&self.config).map_err(S::Error::custom)?;
        value["running"] = self.running.into();
        value.serialize(serializer)
    }
}

/// What of network cards is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cards {
    /// Everything.
    Exact,
    /// No MAC and IP addresses: whoever applies the file gets new ones.
    WithoutAddresses,
    /// No ports of the host either, which only one machine can have.
    OfCopies,
}

impl Lab {
    /// Reads a file; paths in it are made absolute: they are meant from where it is.
    pub(super) fn read(context: &Context, path: &Path) -> Result<Lab, Error> {
        let unreadable =
            |e: std::io::Error| Error::bad_input(format!("{path:?} cannot be read")).with_source(e);
        let mut text = String::new();
        if path == Path::new("-") {
            std::io::stdin().take(LEN_MAX).read_to_string(&mut text).map_err(unreadable)?;
        } else {
            let file = std::fs::File::open(path).map_err(unreadable)?;
            file.take(LEN_MAX).read_to_string(&mut text).map_err(unreadable)?;
        }
        let mut lab = Lab::parse(&text).map_err(|e| {
            Error::bad_input(format!("{path:?} does not describe a lab"))
                .with_source(e)
                .with_remedy("`arnia apply --help` shows such a file, and `arnia export` writes one")
        })?;
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        for vm in lab.vms.values_mut() {
            let config = &mut vm.config;
            let boot = &mut config.boot;
            let folders = config.mounts.iter_mut().map(|mount| &mut mount.folder);
            let paths = boot
                .initrd
                .iter_mut()
                .chain(config.disks.iter_mut().filter_map(|d| d.path.as_mut()))
                .chain(folders);
            for path in paths.chain(&mut boot.kernel).filter(|path| !path.is_empty()) {
                let whole = folder.join(PathBuf::from(&*path));
                // Of a file in a folder with an absolute path, what is relative is on this host all the same.
                let meant = if Path::new(&*path).is_relative() && context.is_remote()? {
                    Path::new(&*path)
                } else {
                    &whole
                };
                *path = absolute(context, meant)?;
            }
        }
        Ok(lab)
    }

    /// Takes a text apart. JSON is YAML, too.
    pub(super) fn parse(text: &str) -> Result<Lab, serde_saphyr::Error> {
        serde_saphyr::from_str(text)
    }

    /// What there is, as a file.
    pub(super) fn of(present: Present, names: &[String], cards: Cards) -> Result<Lab, Error> {
        if let Some(name) = names.iter().find(|name| !present.vms.contains_key(*name)) {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no virtual machine {name:?}"))
                .with_remedy("see `arnia ls` for those that there are"));
        }
        let mut lab = Lab::default();
        for (name, vm) in present.vms {
            if !names.is_empty() && !names.contains(&name) {
                continue;
            }
            let running = vm.state.is_active();
            let mut config = vm.config;
            for nic in &mut config.nics {
                if cards != Cards::Exact {
                    (nic.mac, nic.address) = (None, None);
                }
                if cards == Cards::OfCopies {
                    nic.ports.clear();
                }
            }
            for nic in &config.nics {
                if let Some(network) = present.networks.get(&nic.network) {
                    lab.networks.insert(network.name.clone(), network.config.clone());
                }
            }
            for volume in config.disks.iter().filter_map(|disk| disk.volume.as_ref()) {
                if let Some(volume) = present.volumes.get(volume) {
                    let described = LabVolume { size: volume.size, pool: Some(volume.pool.clone()) };
                    lab.volumes.insert(volume.name.clone(), described);
                }
            }
            lab.vms.insert(name, LabVm { running, config });
        }
        if names.is_empty() {
            for (name, network) in present.networks {
                lab.networks.insert(name, network.config);
            }
            for (name, volume) in present.volumes {
                lab.volumes.insert(name, LabVolume { size: volume.size, pool: Some(volume.pool) });
            }
        }
        Ok(lab)
    }
}

/// What a project has.
#[derive(Debug, Default)]
pub(super) struct Present {
    pub(super) vms: BTreeMap<String, Vm>,
    pub(super) volumes: BTreeMap<String, Volume>,
    /// Without the one that is always there.
    pub(super) networks: BTreeMap<String, Network>,
}

impl Present {
    pub(super) async fn ask(client: &Client) -> Result<Present, Error> {
        let vms = client.vms().await?.into_iter().map(|vm| (vm.name.clone(), vm));
        let volumes = client.volumes().await?.into_iter().map(|volume| (volume.name.clone(), volume));
        let networks = client.networks().await?.into_iter().filter(|network| network.name != USER_NETWORK);
        let networks = networks.map(|network| (network.name.clone(), network));
        Ok(Present { vms: vms.collect(), volumes: volumes.collect(), networks: networks.collect() })
    }
}
