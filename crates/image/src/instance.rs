//! Instances: machines that come from images, each somebody of its own.
//!
//! An instance is a folder:
//!
//! | file | content |
//! |---|---|
//! | `instance.json` | [`Instance`]: what it is made of and who it is |
//! | `NAME.img` | its own disks, by the names that the image gives them |
//! | `seed.iso` | what it reads at its first boot |
//!
//! Kernel and initrd stay in the store. The image is pinned there under the instance's ID, so that nothing
//! that the instance needs is pruned.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use api::ByteSize;
use api::agent::{GuestFile, Identity, Personality, Provision};
use api::image::{Digest, ImageBoot, ImageFirmware, PersonalitySource};
use api::worker::config::{DiskConfig, NetConfig, UserNetConfig, VmConfig};
use serde::{Deserialize, Serialize};

use crate::error::AboutFile;
use crate::files::{self, RemoveUnlessKept};
use crate::progress::Progress;
use crate::seed::{self, SeedKind, StaticNetwork};
use crate::{Error, ErrorKind, Result, Store};

/// What an instance shall be.
#[derive(Clone, Debug, Default)]
pub struct InstanceParams {
    /// Its host name.
    pub name: String,
    /// How it gets its disks.
    pub clone: CloneKind,
    /// Size of its first disk, if larger than the image's.
    pub disk: Option<ByteSize>,
    /// What it is given at its first boot.
    pub provision: Provision,
    /// A network that is not DHCP.
    pub network: Option<StaticNetwork>,
    /// For whom the seed is.
    pub seed: SeedKind,
}

/// How an instance gets its disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloneKind {
    /// As quickly as the host can: sharing what is not changed.
    #[default]
    Linked,
    /// With a copy of its own of everything.
    Full,
}

/// An instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// Names it among all, and is its pin in the store.
    pub id: String,
    /// The image that it came from.
    pub image: Digest,
    /// Who it is to firmware and operating system (SMBIOS).
    pub uuid: String,
    /// Changes whenever the machine is another one than its memory believes (VM Generation ID).
    pub generation_id: String,
    /// The MAC address of its first card.
    pub mac: String,
    /// Its host name.
    pub hostname: String,
    /// Kernel, if the host loads one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Its initrd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Its command line.
    #[serde(default)]
    pub append: String,
    /// Firmware, if it boots by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<ImageFirmware>,
    /// Its disks, in order. The seed comes behind them.
    pub disks: Vec<PathBuf>,
    /// Its seed disk, if the image takes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<PathBuf>,
    /// Memory that it needs at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_minimum: Option<ByteSize>,
}

const FILE: &str = "instance.json";

impl Instance {
    /// Makes an instance of an image in a folder, which is made and must not exist.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without the image, [`ErrorKind::BadInput`] for what cannot be; nothing is
    /// left then.
    pub fn create(
        store: &Store,
        image: Digest,
        folder: &Path,
        params: &InstanceParams,
        progress: &mut dyn Progress,
    ) -> Result<Instance> {
        let manifest = store.manifest(image)?;
        if let Some(network) = &params.network {
            network.check()?;
        }
        let uuid = random_uuid()?;
        let mac = net::MacAddress::random()
            .map_err(|error| Error::failed("no random MAC address").with_source(error))?;
        let mut instance = Instance {
            id: format!("i-{uuid}"),
            image,
            generation_id: random_uuid()?,
            mac: mac.to_string(),
            hostname: params.name.clone(),
            kernel: None,
            initrd: None,
            append: String::new(),
            firmware: None,
            disks: Vec::new(),
            seed: None,
            memory_minimum: manifest.minimum.memory,
            uuid,
        };
        let personality = instance.personality(&params.provision, params.network.as_ref())?;
        personality.check().map_err(|error| Error::bad_input(error.to_string()))?;
        fs::create_dir(folder).about("create", folder)?;
        let undo_folder = RemoveUnlessKept::new(folder);
        // The pin before anything relies on the image.
        store.pin(&instance.id, image)?;
        let undo_pin = Unpin { store, owner: Some(instance.id.clone()) };
        match &manifest.boot {
            ImageBoot::Kernel { kernel, initrd, append } => {
                instance.kernel = Some(store.blob_path(kernel)?);
                instance.initrd = initrd.map(|initrd| store.blob_path(&initrd)).transpose()?;
                instance.append = append.clone();
            }
            ImageBoot::Firmware { firmware } => instance.firmware = Some(*firmware),
        }
        for (index, disk) in manifest.disks.iter().enumerate() {
            let size = params.disk.filter(|_| index == 0).map_or(disk.blob.size, |size| size.0);
            if size < disk.blob.size || !size.is_multiple_of(512) {
                let text = format!(
                    "a disk of {size} bytes is too small for the image's {} or not whole sectors",
                    disk.blob.size
                );
                return Err(Error::bad_input(text).with_remedy("leave the size out, or name a larger one"));
            }
            let path = folder.join(format!("{}.img", disk.name));
            progress.begin(&format!("making the disk {}", disk.name), Some(disk.blob.size));
            clone_disk(&store.blob_path(&disk.blob)?, &path, size, params.clone, progress)?;
            instance.disks.push(path);
        }
        if manifest.personality != PersonalitySource::None {
            let path = folder.join("seed.iso");
            let network = params.network.as_ref().map(|network| (network, instance.mac.as_str()));
            seed::write(&path, params.seed, &personality, network)?;
            instance.seed = Some(path);
        }
        instance.save(folder)?;
        undo_folder.keep();
        undo_pin.keep();
        Ok(instance)
    }

    /// Reads the instance in a folder.
    ///
    /// # Errors
    /// If there is none, or its file is damaged.
    pub fn load(folder: &Path) -> Result<Instance> {
        let path = folder.join(FILE);
        let bytes = fs::read(&path).about("read", &path)?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::new(ErrorKind::Unverified, format!("{} is damaged", path.display())).with_source(error)
        })
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::failed("cannot write the instance").with_source(error))?;
        files::write_whole(&folder.join(FILE), &bytes)
    }

    /// Removes the instance in a folder with its disks, and lets its image go.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub fn remove(store: &Store, folder: &Path) -> Result<()> {
        let instance = Instance::load(folder)?;
        fs::remove_dir_all(folder).about("remove", folder)?;
        store.unpin(&instance.id)
    }

    /// Makes another instance of this one's disks, as they are: the machine must not run, or its disks must
    /// be frozen. The clone takes on its own identity at its next boot, or by [`Instance::personality`] if
    /// its memory is cloned too.
    ///
    /// # Errors
    /// As [`Instance::create`].
    pub fn clone_to(
        &self,
        store: &Store,
        folder: &Path,
        hostname: &str,
        progress: &mut dyn Progress,
    ) -> Result<Instance> {
        let uuid = random_uuid()?;
        let mac = net::MacAddress::random()
            .map_err(|error| Error::failed("no random MAC address").with_source(error))?;
        let mut clone = Instance {
            id: format!("i-{uuid}"),
            uuid,
            generation_id: random_uuid()?,
            mac: mac.to_string(),
            hostname: hostname.to_owned(),
            disks: Vec::new(),
            ..self.clone()
        };
        let personality = clone.personality(&Provision::default(), None)?;
        personality.check().map_err(|error| Error::bad_input(error.to_string()))?;
        fs::create_dir(folder).about("create", folder)?;
        let undo_folder = RemoveUnlessKept::new(folder);
        store.pin(&clone.id, clone.image)?;
        let undo_pin = Unpin { store, owner: Some(clone.id.clone()) };
        for disk in &self.disks {
            let size = disk.metadata().about("read", disk)?.len();
            let path = folder.join(disk.file_name().unwrap_or_default());
            progress.begin(&format!("copying {}", disk.display()), Some(size));
            files::copy_sparse(disk, &path, progress)?;
            clone.disks.push(path);
        }
        if self.seed.is_some() {
            let path = folder.join("seed.iso");
            seed::write(&path, SeedKind::NoCloud, &personality, None)?;
            clone.seed = Some(path);
        }
        clone.save(folder)?;
        undo_folder.keep();
        undo_pin.keep();
        Ok(clone)
    }

    /// What makes a guest this instance: for its seed, or for its agent after memory was cloned. Each call
    /// has a random seed of its own.
    ///
    /// # Errors
    /// If the host has no randomness.
    pub fn personality(&self, provision: &Provision, network: Option<&StaticNetwork>) -> Result<Personality> {
        let mut provision = provision.clone();
        if let Some(network) = network {
            provision.files.push(GuestFile {
                path: "/etc/systemd/network/10-arnia.network".into(),
                content: network.networkd(&self.mac),
                mode: Some(0o644),
                owner: None,
            });
        }
        Ok(Personality {
            instance_id: self.id.clone(),
            identity: Identity {
                hostname: Some(self.hostname.clone()),
                // systemd makes the same of the SMBIOS UUID for a machine that has none yet.
                machine_id: Some(self.uuid.replace('-', "")),
                ssh_host_keys: true,
                random_seed: Some(hex(&random::<64>()?)),
                clock_ns: None,
            },
            provision,
        })
    }

    /// A worker's configuration for it, with one card on the worker's own network and the rest by default.
    ///
    /// # Errors
    /// [`ErrorKind::BadInput`] if it boots by firmware: such a configuration has no kernel.
    pub fn vm_config(&self) -> Result<VmConfig> {
        let Some(kernel) = &self.kernel else {
            return Err(Error::bad_input("it boots by firmware and not by a kernel"));
        };
        let mut config = VmConfig::new(kernel);
        config.name = Some(self.hostname.clone());
        config.uuid = Some(self.uuid.clone());
        config.initrd = self.initrd.clone();
        config.append = self.append.clone();
        if let Some(memory) = self.memory_minimum {
            config.memory = config.memory.max(memory);
        }
        for disk in &self.disks {
            config.disks.push(disk_config(disk, false)?);
        }
        if let Some(seed) = &self.seed {
            config.disks.push(disk_config(seed, true)?);
        }
        let card = UserNetConfig {
            mac: Some(self.mac.clone()),
            hostname: Some(self.hostname.clone()),
            ..UserNetConfig::default()
        };
        config.nets = vec![NetConfig::User(card)];
        Ok(config)
    }
}

fn disk_config(path: &Path, read_only: bool) -> Result<DiskConfig> {
    // By way of its written form: fields with defaults may be added to it.
    serde_json::from_value(serde_json::json!({"path": path, "read_only": read_only}))
        .map_err(|error| Error::failed("cannot describe the disk").with_source(error))
}

/// Makes a disk with the content of a blob.
fn clone_disk(from: &Path, to: &Path, size: u64, kind: CloneKind, progress: &mut dyn Progress) -> Result<()> {
    let _ = kind;
    files::copy_sparse(from, to, progress)?;
    File::options().write(true).open(to).and_then(|file| file.set_len(size)).about("write", to)
}

/// Takes a pin away unless told that all went well.
struct Unpin<'a> {
    store: &'a Store,
    owner: Option<String>,
}

impl Unpin<'_> {
    fn keep(mut self) {
        self.owner = None;
    }
}

impl Drop for Unpin<'_> {
    fn drop(&mut self) {
        if let Some(owner) = &self.owner {
            let _ = self.store.unpin(owner);
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let got = rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty());
        filled += got.map_err(|error| {
            Error::failed("the host has no randomness").with_source(std::io::Error::from(error))
        })?;
    }
    Ok(bytes)
}

/// A random UUID (RFC 9562, section 5.4).
fn random_uuid() -> Result<String> {
    let mut bytes = random::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex(&bytes);
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Folder;
    use crate::progress::Silent;
    use crate::store::PruneOptions;
    use crate::store::tests::add;

    /// An image whose instances take a seed.
    fn image(store: &Store) -> Digest {
        let digest = add(store, "base", "content");
        let mut with_agent = store.manifest(digest).unwrap();
        with_agent.personality = PersonalitySource::Agent;
        let session = store.session().unwrap();
        let digest = session.add_manifest(&with_agent).unwrap();
        session.set_name(&"base".parse().unwrap(), digest).unwrap();
        digest
    }

    fn params(name: &str) -> InstanceParams {
        InstanceParams { name: name.into(), ..InstanceParams::default() }
    }

    #[test]
    fn every_instance_is_somebody_of_its_own() {
        let folder = Folder::new("instances");
        let store = Store::open(folder.0.join("store")).unwrap();
        let image = image(&store);
        let one =
            Instance::create(&store, image, &folder.0.join("one"), &params("one"), &mut Silent).unwrap();
        let two =
            Instance::create(&store, image, &folder.0.join("two"), &params("two"), &mut Silent).unwrap();
        let three = one.clone_to(&store, &folder.0.join("three"), "three", &mut Silent).unwrap();
        let all = [&one, &two, &three];
        let facets: [fn(&Instance) -> &String; 5] =
            [|i| &i.id, |i| &i.uuid, |i| &i.generation_id, |i| &i.mac, |i| &i.hostname];
        for facet in facets {
            let mut values: Vec<&String> = all.iter().map(|instance| facet(instance)).collect();
            values.sort();
            values.dedup();
            assert_eq!(values.len(), 3, "two share {values:?}");
        }
        assert!(one.mac.starts_with("a6:41:72:"), "{}", one.mac);
        assert_eq!(Instance::load(&folder.0.join("one")).unwrap(), one);
        let config = one.vm_config().unwrap();
        assert_eq!((config.disks.len(), config.disks[1].read_only), (2, true));
        assert!(fs::read(&one.disks[0]).unwrap().starts_with(b"content"));
        let personality = one.personality(&Provision::default(), None).unwrap();
        personality.check().unwrap();

        // What they need is kept, whatever happens to the name.
        store.remove_name(&"base".parse().unwrap()).unwrap();
        store.prune(PruneOptions::default()).unwrap();
        store.check(image, &mut Silent).unwrap();
        for name in ["one", "two", "three"] {
            Instance::remove(&store, &folder.0.join(name)).unwrap();
        }
        store.prune(PruneOptions::default()).unwrap();
        assert_eq!(store.manifest(image).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn what_cannot_be_leaves_nothing() {
        let folder = Folder::new("no-instance");
        let store = Store::open(folder.0.join("store")).unwrap();
        let image = image(&store);
        let network = StaticNetwork { address: "x".into(), gateway: None, nameservers: Vec::new() };
        let cases = [
            params("not a host name"),
            InstanceParams { disk: Some(ByteSize(512)), ..params("one") },
            InstanceParams { network: Some(network), ..params("one") },
        ];
        for params in cases {
            let error =
                Instance::create(&store, image, &folder.0.join("one"), &params, &mut Silent).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
            assert!(!folder.0.join("one").exists() && store.pins().unwrap().is_empty());
        }
        fs::create_dir(folder.0.join("one")).unwrap();
        Instance::create(&store, image, &folder.0.join("one"), &params("one"), &mut Silent).unwrap_err();
        assert!(folder.0.join("one").exists(), "what was there before stays");
    }

    #[test]
    fn disks_may_be_larger() {
        let folder = Folder::new("larger");
        let store = Store::open(folder.0.join("store")).unwrap();
        let image = image(&store);
        let params = InstanceParams { disk: Some(ByteSize(1 << 30)), ..params("one") };
        let instance = Instance::create(&store, image, &folder.0.join("one"), &params, &mut Silent).unwrap();
        assert_eq!(instance.disks[0].metadata().unwrap().len(), 1 << 30);
    }
}
