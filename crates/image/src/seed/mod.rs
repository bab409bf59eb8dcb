//! Seed disks: what an instance reads at its first boot.
//!
//! One disk serves both agents: cloud-init finds the files of its NoCloud source, ours finds `arnia.json`.
//! For images whose cloud-init looks for an OpenStack config drive instead, there is that form.

mod iso9660;

use std::fs::File;
use std::path::Path;

use api::agent::Personality;
pub use api::v1::vm::SeedKind;
use serde_json::{Value, json};

use crate::error::AboutFile;
use crate::{Error, Result};

/// A network for the first card, if not DHCP.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticNetwork {
    /// Address and prefix length, like `10.0.3.7/24`.
    pub address: String,
    /// The router.
    #[serde(default)]
    pub gateway: Option<std::net::IpAddr>,
    /// Name servers.
    #[serde(default)]
    pub nameservers: Vec<std::net::IpAddr>,
}

/// Seeds are a multiple of so many bytes long.
const SIZE_STEP: u64 = 1 << 20;
/// The longest personality that a guest takes from a seed, in bytes.
const PERSONALITY_LEN_MAX: usize = 4 << 20;

impl StaticNetwork {
    pub(crate) fn check(&self) -> Result<()> {
        let good = self.address.split_once('/').is_some_and(|(address, prefix)| {
            match (address.parse::<std::net::IpAddr>(), prefix.parse::<u8>()) {
                (Ok(address), Ok(prefix)) => prefix <= if address.is_ipv4() { 32 } else { 128 },
                _ => false,
            }
        });
        if good {
            Ok(())
        } else {
            Err(Error::bad_input(format!("{:?} is no address with prefix, like 10.0.3.7/24", self.address)))
        }
    }

    /// As systemd-networkd has it.
    pub(crate) fn networkd(&self, mac: &str) -> String {
        let mut text = format!("[Match]\nMACAddress={mac}\n\n[Network]\nAddress={}\n", self.address);
        text += &self.gateway.map(|gateway| format!("Gateway={gateway}\n")).unwrap_or_default();
        text += &self.nameservers.iter().map(|server| format!("DNS={server}\n")).collect::<String>();
        text
    }

    /// As cloud-init has it (network configuration, version 2).
    fn cloud(&self, mac: &str) -> Value {
        let mut card = json!({"match": {"macaddress": mac}, "addresses": [self.address]});
        if let Some(gateway) = self.gateway {
            card["routes"] = json!([{"to": "default", "via": gateway}]);
        }
        if !self.nameservers.is_empty() {
            card["nameservers"] = json!({"addresses": self.nameservers});
        }
        json!({"version": 2, "ethernets": {"card0": card}})
    }
}

/// Writes a seed disk. Its file is not synchronised.
///
/// # Errors
/// If the personality cannot be, is too long, or the file cannot be written.
pub fn write(
    path: &Path,
    kind: SeedKind,
    personality: &Personality,
    network: Option<(&StaticNetwork, &str)>,
) -> Result<()> {
    personality.check().map_err(|error| Error::bad_input(error.to_string()))?;
    let user_data = format!("#cloud-config\n{:#}\n", cloud_config(personality)).into_bytes();
    let hostname = personality.identity.hostname.clone().unwrap_or_default();
    let image = match kind {
        SeedKind::NoCloud => {
            // JSON is YAML, which cloud-init reads.
            let meta = json!({"instance-id": personality.instance_id, "local-hostname": hostname});
            let arnia = format!("{:#}\n", json!(personality));
            if arnia.len() > PERSONALITY_LEN_MAX {
                return Err(Error::bad_input("users, files and commands are longer than 4 MiB")
                    .with_remedy("put large files into the image, or copy them once it runs"));
            }
            let mut files = vec![
                ("meta-data", format!("{meta:#}\n").into_bytes()),
                ("user-data", user_data),
                ("arnia.json", arnia.into_bytes()),
            ];
            if let Some((network, mac)) = network {
                files.push(("network-config", format!("{:#}\n", network.cloud(mac)).into_bytes()));
            }
            iso9660::image("cidata", &files)
        }
        SeedKind::ConfigDrive => {
            let keys: Vec<&String> =
                personality.provision.users.iter().flat_map(|user| &user.ssh_keys).collect();
            let keys: serde_json::Map<String, Value> = keys
                .into_iter()
                .enumerate()
                .map(|(number, key)| (format!("key-{number}"), json!(key)))
                .collect();
            let meta = json!({"uuid": personality.instance_id, "hostname": hostname, "name": hostname, "public_keys": keys});
            let files = vec![
                ("openstack/latest/meta_data.json", format!("{meta:#}\n").into_bytes()),
                ("openstack/latest/user_data", user_data),
            ];
            iso9660::image("config-2", &files)
        }
    };
    std::fs::write(path, &image).about("write", path)?;
    // All seeds of a usual size are of one size: a machine that goes on from the snapshot of another finds a
    // disk that is as large as that one's.
    let size = (image.len() as u64).next_multiple_of(SIZE_STEP);
    File::options().write(true).open(path).and_then(|file| file.set_len(size)).about("write", path)?;
    // It may hold secrets.
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))
        .map_err(|error| Error::file("write", path, error))
}

/// The personality in cloud-init's words.
fn cloud_config(personality: &Personality) -> Value {
    let provision = &personality.provision;
    let mut config = json!({"ssh_deletekeys": personality.identity.ssh_host_keys});
    if let Some(hostname) = &personality.identity.hostname {
        config["hostname"] = json!(hostname);
        config["manage_etc_hosts"] = json!("localhost");
    }
    if let Some(seed) = &personality.identity.random_seed {
        config["random_seed"] = json!({"data": seed});
    }
    // A machine that boots for the first time makes its machine-id of its UUID. A copy of a disk that has booted has one.
    if let Some(id) = personality.identity.machine_id.as_deref().filter(|id| is_hex(id)) {
        let script = format!(
            "[ -s /etc/machine-id ] && [ \"$(cat /etc/machine-id)\" != {id} ] || exit 0; echo {id} > /etc/machine-id; \
             [ ! -f /var/lib/dbus/machine-id ] || [ -L /var/lib/dbus/machine-id ] || echo {id} > /var/lib/dbus/machine-id; \
             systemctl --no-block try-restart systemd-journald.service || true"
        );
        config["bootcmd"] = json!([["cloud-init-per", "instance", "arnia-machine-id", "sh", "-c", script]]);
    }
    if !provision.users.is_empty() {
        let users = provision.users.iter().map(|user| {
            let mut entry = json!({"name": user.name, "shell": user.shell.as_deref().unwrap_or("/bin/bash")});
            if user.administrator {
                entry["sudo"] = json!("ALL=(ALL) NOPASSWD:ALL");
            }
            if !user.ssh_keys.is_empty() {
                entry["ssh_authorized_keys"] = json!(user.ssh_keys);
            }
            if let Some(hash) = &user.password_hash {
                entry["passwd"] = json!(hash);
                entry["lock_passwd"] = json!(false);
            }
            entry
        });
        config["users"] = users.collect();
        config["disable_root"] = json!(!provision.users.iter().any(|user| user.name == "root"));
    }
    let files = provision.files.iter().map(|file| {
        let mode = format!("{:04o}", file.mode.unwrap_or(0o644));
        json!({"path": file.path, "content": file.content, "permissions": mode,
               "owner": file.owner.as_deref().unwrap_or("root:root")})
    });
    config["write_files"] = files.collect();
    config["runcmd"] = json!(provision.commands);
    config
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::agent::{Identity, Provision, UserAccount};

    #[test]
    fn cloud_init_is_told_the_same() {
        let personality = Personality {
            instance_id: "i-1".into(),
            identity: Identity {
                hostname: Some("web".into()),
                machine_id: Some("0123abcd".repeat(4)),
                ssh_host_keys: true,
                ..Identity::default()
            },
            provision: Provision {
                users: vec![UserAccount {
                    name: "ann".into(),
                    ssh_keys: vec!["ssh-ed25519 AAAA".into()],
                    administrator: true,
                    ..UserAccount::default()
                }],
                commands: vec!["echo 'a: b'".into()],
                ..Provision::default()
            },
        };
        let config = cloud_config(&personality);
        assert_eq!(config["hostname"], "web");
        assert_eq!(config["users"][0]["ssh_authorized_keys"][0], "ssh-ed25519 AAAA");
        assert_eq!(config["runcmd"][0], "echo 'a: b'");
        assert!(config["bootcmd"][0][5].as_str().unwrap().contains(&"0123abcd".repeat(4)));
    }

    #[test]
    fn networks_are_checked() {
        let network =
            |address: &str| StaticNetwork { address: address.into(), gateway: None, nameservers: vec![] };
        network("10.0.3.7/24").check().unwrap();
        network("fd00::1/64").check().unwrap();
        for address in ["10.0.3.7", "10.0.3.7/33", "x/24", "10.0.3.7/24\nDNS=1"] {
            network(address).check().expect_err(address);
        }
        assert!(
            network("10.0.3.7/24").networkd("a6:41:72:00:00:01").contains("MACAddress=a6:41:72:00:00:01\n")
        );
    }
}
