//! Instances: machines that come from images, each somebody of its own.
//!
//! An instance is a folder:
//!
//! | file | content |
//! |---|---|
//! | `instance.json` | [`Instance`]: what it is made of and who it is |
//! | `NAME.qcow2` | its own disks, by the names that the image gives them: what differs from the image's |
//! | `NAME.img` | a disk with a copy of its own of everything ([`CloneKind::Full`]) |
//! | `NAME.qcow2.….layer` | what was on a disk when a snapshot was made: it stands on that, and so may others, by other names |
//! | `seed.iso` | what it reads at its first boot |
//!
//! Kernel, initrd and the disks that others stand on stay in the store. The image is pinned there under the instance's ID, so that nothing
//! that the instance needs is pruned.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ::disk::Format;
use ::disk::qcow2::CreateOptions;
use api::ByteSize;
use api::agent::{GuestFile, Identity, Personality, Provision};
use api::image::{Digest, ImageBoot, ImageFirmware, PersonalitySource};
use api::v1::vm::CloneKind;
use api::worker::config::{DiskConfig, FirmwareImage, NetConfig, UserNetConfig, VmConfig};
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
    /// Who it is to firmware and operating system, a UUID; a random one when absent.
    pub uuid: Option<String>,
    /// The MAC address of its first card; a random one when absent.
    pub mac: Option<String>,
    /// How it gets its disks.
    pub clone: CloneKind,
    /// Disks to stand on in place of the image's: those of a machine of this image, which has been saved. Each is as
    /// large as the one that it stands on.
    pub over: Vec<InstanceDisk>,
    /// Disks to copy as they are in place of the image's: those of a machine of this image that does not run.
    pub copied: Vec<InstanceDisk>,
    /// Size of its first disk, if larger than the image's.
    pub disk: Option<ByteSize>,
    /// What it is given at its first boot.
    pub provision: Provision,
    /// A network that is not DHCP.
    pub network: Option<StaticNetwork>,
    /// For whom the seed is.
    pub seed: SeedKind,
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
    pub disks: Vec<InstanceDisk>,
    /// Its seed disk, if the image takes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<PathBuf>,
    /// Memory that it needs at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_minimum: Option<ByteSize>,
}

/// A disk of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceDisk {
    /// Its file.
    pub path: PathBuf,
    /// What it stands on, from the top down: then it is a qcow2 image. A disk that stands on nothing is raw.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stands_on: Vec<PathBuf>,
}

impl InstanceDisk {
    /// The disk in a layer that a machine's process has kept of `self`, with all that it stands on.
    ///
    /// That process may be a hostile guest's: what the layer stands on are layers beside it, and what the disk itself
    /// is known to stand on. Nothing else that an image names is taken.
    ///
    /// # Errors
    /// If an image cannot be read, and [`ErrorKind::Unverified`] if one names a file that it may not.
    pub fn kept(&self, layer: PathBuf) -> Result<InstanceDisk> {
        let real = |path: &Path| fs::canonicalize(path).about("find", path);
        let known = self.stands_on.iter().map(|path| real(path)).collect::<Result<Vec<_>>>()?;
        let folder = real(layer.parent().unwrap_or(Path::new("/")))?;
        let check = |path: &Path| {
            let found = real(path)?;
            let is_beside = found.parent() == Some(&folder) && ::disk::is_layer(&found);
            match is_beside || known.contains(&found) {
                true => Ok(()),
                false => Err(Error::new(
                    ErrorKind::Unverified,
                    format!("a disk that was kept stands on {}, which is not its", path.display()),
                )),
            }
        };
        check(&layer)?;
        let mut stands_on: Vec<PathBuf> = Vec::new();
        while stands_on.len() < CHAIN_MAX {
            let image = stands_on.last().unwrap_or(&layer);
            let failed =
                |error| Error::failed(format!("cannot read the disk {}", image.display())).with_source(error);
            let info = ::disk::ImageInfo::read(image, Some(Format::Qcow2)).map_err(failed)?;
            let Some(backing) = info.backing() else { break };
            let below = image.with_file_name(&backing.name);
            check(&below)?;
            stands_on.push(below);
            if backing.format.as_deref() != Some(Format::Qcow2.name()) {
                break;
            }
        }
        Ok(InstanceDisk { path: layer, stands_on })
    }

    /// As a worker is told of it.
    pub fn config(&self) -> DiskConfig {
        // Named, never found out: a guest could make its disk look like another format.
        let mut config = DiskConfig::new(&self.path);
        config.format = self.format().name().into();
        config.allow = self.stands_on.clone();
        config
    }

    /// Makes it larger. Nobody may use it meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::BadInput`] if it would be smaller.
    pub fn grow(&self, size: u64) -> Result<()> {
        let failed = |error| {
            Error::failed(format!("the disk {} cannot be made larger", self.path.display()))
                .with_source(error)
        };
        let mut options = ::disk::OpenOptions::new(::disk::Access::ReadWrite);
        options.format = Some(self.format());
        options.policy = self.stands_on.iter().fold(options.policy, |policy, path| policy.and(path));
        let disk = ::disk::Image::open(&self.path, &options).map_err(failed)?.disk;
        let now = disk.info().size;
        if size < now {
            let text = format!("the disk has {} and can only become larger", ByteSize(now));
            return Err(Error::bad_input(text).with_remedy("choose a larger size"));
        }
        if size == now { Ok(()) } else { disk.resize(size).map_err(failed) }
    }

    fn format(&self) -> Format {
        if self.stands_on.is_empty() { Format::Raw } else { Format::Qcow2 }
    }

    /// Makes a disk over this one, in constant time; this one must not be changed from then on. It is as large,
    /// unless a larger `size` is given. Its file is not synchronised.
    pub(crate) fn overlay(&self, path: PathBuf, size: u64) -> Result<InstanceDisk> {
        let failed =
            |error| Error::failed(format!("cannot make the disk {}", path.display())).with_source(error);
        let mut options = ::disk::OpenOptions::new(::disk::Access::ReadOnly);
        options.format = Some(self.format());
        options.policy = self.stands_on.iter().fold(options.policy, |policy, path| policy.and(path));
        ::disk::draft_overlay_over(&path, &self.path, &options, &CreateOptions::new(size)).map_err(failed)?;
        let stands_on = [&self.path].into_iter().chain(&self.stands_on).cloned().collect();
        Ok(InstanceDisk { path, stands_on })
    }
}

/// A disk stands on no more images than this.
const CHAIN_MAX: usize = 64;

/// The file in an instance's folder that says what it is; written last.
pub const INSTANCE_FILE: &str = "instance.json";
/// The folder of an instance's disks, in its own.
const DISKS: &str = "disks";

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
        let instance = Instance::prepare(store, image, folder, params, progress)?;
        let undo_folder = RemoveUnlessKept::new(folder);
        let undo_pin = Unpin { store, owner: Some(instance.id.clone()) };
        instance.complete(folder)?;
        undo_folder.keep();
        undo_pin.keep();
        Ok(instance)
    }

    /// The same, but for [`Instance::complete`], which must follow before anybody writes to its disks. Until then it
    /// is not there: should the host lose power, it has to be made again.
    ///
    /// # Errors
    /// As [`Instance::create`].
    pub fn prepare(
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
        let uuid = params.uuid.clone().map_or_else(random_uuid, Ok)?;
        let mac = params.mac.clone().map_or_else(random_mac, Ok)?;
        let mut instance = Instance {
            id: Instance::pin_of(&uuid),
            image,
            generation_id: random_uuid()?,
            mac,
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
        let disks = folder.join(DISKS);
        fs::create_dir(&disks).about("create", &disks)?;
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
            progress.begin(&format!("making the disk {}", disk.name), Some(disk.blob.size));
            if let Some(from) = params.copied.get(index) {
                let path = disks.join(from.path.file_name().unwrap_or_default());
                files::copy_sparse(&from.path, &path, progress)?;
                share_layers(&from.path, &disks, progress)?;
                instance.disks.push(InstanceDisk { path, stands_on: from.stands_on.clone() });
                continue;
            }
            let (base, size) = match params.over.get(index) {
                Some(base) => (base.clone(), 0),
                None => (InstanceDisk { path: store.blob_path(&disk.blob)?, stands_on: Vec::new() }, size),
            };
            instance.disks.push(match params.clone {
                CloneKind::Linked => base.overlay(disks.join(format!("{}.qcow2", disk.name)), size)?,
                CloneKind::Full => {
                    copy_disk(&base, disks.join(format!("{}.img", disk.name)), size, progress)?
                }
            });
        }
        if manifest.personality != PersonalitySource::None {
            let path = folder.join("seed.iso");
            let network = params.network.as_ref().map(|network| (network, instance.mac.as_str()));
            seed::write(&path, params.seed, &personality, network)?;
            instance.seed = Some(path);
        }
        undo_folder.keep();
        undo_pin.keep();
        Ok(instance)
    }

    /// Makes all of it last, also if the host loses power, and then says that it is there.
    ///
    /// # Errors
    /// If the host's disk is full.
    pub fn complete(&self, folder: &Path) -> Result<()> {
        let own = self.disks.iter().map(|disk| &disk.path).chain(&self.seed);
        // All at once: the file system then has to write its journal only once.
        std::thread::scope(|scope| {
            let syncs: Vec<_> = own
                .map(|path| {
                    scope
                        .spawn(move || File::open(path).and_then(|file| file.sync_all()).about("write", path))
                })
                .collect();
            syncs.into_iter().try_for_each(|sync| sync.join().unwrap_or(Ok(())))
        })?;
        self.save(folder)
    }

    /// The pin in the store of the instance with this UUID: who makes one may set it before.
    pub fn pin_of(uuid: &str) -> String {
        format!("i-{uuid}")
    }

    /// The folder that its disks lie in, and nothing else: its process may write there. One of an earlier version,
    /// whose disks lie beside what is known of it, has none.
    pub fn disk_folder(&self) -> Option<PathBuf> {
        let folder = self.disks.first()?.path.parent()?;
        folder.ends_with(DISKS).then(|| folder.to_owned())
    }

    /// Reads the instance in a folder.
    ///
    /// # Errors
    /// If there is none, or its file is damaged.
    pub fn load(folder: &Path) -> Result<Instance> {
        let path = folder.join(INSTANCE_FILE);
        let bytes = fs::read(&path).about("read", &path)?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::new(ErrorKind::Unverified, format!("{} is damaged", path.display())).with_source(error)
        })
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::failed("cannot write the instance").with_source(error))?;
        files::write_whole(&folder.join(INSTANCE_FILE), &bytes)
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

    /// Gives the instance in a folder other disks: empty ones over `bases`, one for each of its own, in constant time.
    /// Those that it had are gone. It is another generation then.
    ///
    /// # Errors
    /// If the host's disk is full. The instance is as it was before.
    pub fn put_over(&self, folder: &Path, bases: &[InstanceDisk]) -> Result<Instance> {
        let generation_id = random_uuid()?;
        let mut changed = Instance { generation_id, disks: Vec::new(), ..self.clone() };
        let mut made = Vec::new();
        let disks = folder.join(DISKS);
        match fs::create_dir(&disks) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).about("create", &disks);
            }
            _ => {}
        }
        for (disk, base) in self.disks.iter().zip(bases) {
            // Beside the old one until it is known to all.
            let stem = disk.path.file_stem().unwrap_or_default().to_string_lossy();
            let stem = stem.split('~').next().unwrap_or_default();
            let path = disks.join(format!("{stem}~{}.qcow2", &changed.generation_id[..8]));
            made.push(RemoveUnlessKept::new(&path));
            changed.disks.push(base.overlay(path, 0)?);
        }
        changed.complete(folder)?;
        made.into_iter().for_each(RemoveUnlessKept::keep);
        for disk in &self.disks {
            let _ = fs::remove_file(&disk.path);
            layers_of(&disk.path).iter().for_each(|layer| drop(fs::remove_file(layer)));
        }
        Ok(changed)
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
    pub fn vm_config(&self) -> VmConfig {
        let mut config = VmConfig::new("");
        config.kernel = self.kernel.clone();
        config.firmware = self.firmware.map(|firmware| match firmware {
            ImageFirmware::Bios => FirmwareImage::Bios,
            ImageFirmware::Uefi => FirmwareImage::Uefi,
        });
        config.name = Some(self.hostname.clone());
        config.uuid = Some(self.uuid.clone());
        config.initrd = self.initrd.clone();
        config.append = self.append.clone();
        if let Some(memory) = self.memory_minimum {
            config.memory = config.memory.max(memory);
        }
        config.disks = self.disks.iter().map(InstanceDisk::config).collect();
        if let Some(seed) = &self.seed {
            let mut disk = InstanceDisk { path: seed.clone(), stands_on: Vec::new() }.config();
            disk.read_only = true;
            config.disks.push(disk);
        }
        let card = UserNetConfig {
            mac: Some(self.mac.clone()),
            hostname: Some(self.hostname.clone()),
            ..UserNetConfig::default()
        };
        config.nets = vec![NetConfig::User(card)];
        config
    }
}

/// Makes a raw disk with the content of another.
fn copy_disk(
    from: &InstanceDisk,
    path: PathBuf,
    size: u64,
    progress: &mut dyn Progress,
) -> Result<InstanceDisk> {
    if !from.stands_on.is_empty() {
        return Err(Error::bad_input("a full clone is made of an image, not of a machine that was saved"));
    }
    files::copy_sparse(&from.path, &path, progress)?;
    File::options().write(true).open(&path).and_then(|file| file.set_len(size)).about("write", &path)?;
    Ok(InstanceDisk { path, stands_on: Vec::new() })
}

/// What was kept of a disk for snapshots, as files beside it.
fn layers_of(disk: &Path) -> Vec<PathBuf> {
    let entries = disk.parent().and_then(|folder| fs::read_dir(folder).ok());
    let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    paths.filter(|path| ::disk::is_layer_of(path, disk)).collect()
}

/// Gives a copy of a disk in `folder` the files that it stands on beside the original: nobody changes them any more.
fn share_layers(disk: &Path, folder: &Path, progress: &mut dyn Progress) -> Result<()> {
    for layer in layers_of(disk) {
        let to = folder.join(layer.file_name().unwrap_or_default());
        if fs::hard_link(&layer, &to).is_err() {
            files::copy_sparse(&layer, &to, progress)?;
        }
    }
    Ok(())
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

fn random_mac() -> Result<String> {
    let mac = net::MacAddress::random();
    let mac = mac.map_err(|error| Error::failed("no random MAC address").with_source(error))?;
    Ok(mac.to_string())
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
    fn what_a_process_kept_of_its_disk_stands_on_nothing_else() {
        let folder = Folder::new("kept");
        let store = Store::open(folder.0.join("store")).unwrap();
        let image = image(&store);
        let place = folder.0.join("one");
        let one = Instance::create(&store, image, &place, &params("one"), &mut Silent).unwrap();
        // What its process may write to does not hold what is believed of it.
        let disks = one.disk_folder().unwrap();
        assert!(disks.starts_with(&place) && !disks.join(INSTANCE_FILE).exists());
        let kept = folder.0.join("snapshot");
        fs::create_dir(&kept).unwrap();
        fs::write(folder.0.join("secret"), [1; 4096]).unwrap();
        let base = one.disks[0].stands_on[0].clone();
        let layer = |name: &str, below: &Path, format| {
            let path = kept.join(name);
            let mut open = ::disk::OpenOptions::new(::disk::Access::ReadOnly);
            (open.format, open.policy) = (Some(format), open.policy.and(&base));
            ::disk::create_overlay_over(&path, below, &open, &CreateOptions::new(0), false).unwrap();
            path
        };
        let first = layer("root.qcow2.a.layer", &base, Format::Raw);
        let second = layer("root.qcow2.b.layer", &first, Format::Qcow2);
        let disk = one.disks[0].kept(second).unwrap();
        let real = |path: &Path| fs::canonicalize(path).unwrap();
        let below: Vec<PathBuf> = disk.stands_on.iter().map(|path| real(path)).collect();
        assert_eq!(below, [real(&first), real(&base)]);
        let of_secret = layer("root.qcow2.c.layer", &folder.0.join("secret"), Format::Raw);
        let named_otherwise = layer("disk.qcow2", &base, Format::Raw);
        for bad in [of_secret, named_otherwise, kept.join("../secret")] {
            assert_eq!(one.disks[0].kept(bad).unwrap_err().kind(), ErrorKind::Unverified);
        }
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
        let copy = InstanceParams { copied: one.disks.clone(), ..params("three") };
        let three = Instance::create(&store, image, &folder.0.join("three"), &copy, &mut Silent).unwrap();
        let over = InstanceParams { over: one.disks.clone(), ..params("four") };
        let four = Instance::create(&store, image, &folder.0.join("four"), &over, &mut Silent).unwrap();
        assert!([&three, &four].iter().all(|copy| read(&copy.disks[0]).starts_with(b"content")));
        let again = four.put_over(&folder.0.join("four"), &one.disks).unwrap();
        assert_eq!(Instance::load(&folder.0.join("four")).unwrap(), again);
        assert!(!four.disks[0].path.exists() && read(&again.disks[0]).starts_with(b"content"));
        assert_ne!(again.generation_id, four.generation_id);
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
        let config = one.vm_config();
        assert_eq!((config.disks.len(), config.disks[1].read_only), (2, true));
        assert!(read(&one.disks[0]).starts_with(b"content"));
        let personality = one.personality(&Provision::default(), None).unwrap();
        personality.check().unwrap();

        // What they need is kept, whatever happens to the name.
        store.remove_name(&"base".parse().unwrap()).unwrap();
        store.prune(PruneOptions::default()).unwrap();
        store.check(image, &mut Silent).unwrap();
        for name in ["one", "two", "three", "four"] {
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
        for (name, clone) in [("linked", CloneKind::Linked), ("full", CloneKind::Full)] {
            let params = InstanceParams { disk: Some(ByteSize(1 << 30)), clone, ..params(name) };
            let folder = folder.0.join(name);
            let instance = Instance::create(&store, image, &folder, &params, &mut Silent).unwrap();
            let disk = &instance.disks[0];
            assert_eq!(disk.stands_on.len(), usize::from(clone == CloneKind::Linked));
            assert_eq!(open(disk).info().size, 1 << 30);
            assert!(read(disk).starts_with(b"content"));
            let taken = std::os::unix::fs::MetadataExt::blocks(&disk.path.metadata().unwrap()) * 512;
            assert!(taken < 1 << 20, "{name} takes {taken} bytes");
        }
    }

    fn open(disk: &InstanceDisk) -> std::sync::Arc<dyn ::disk::Disk> {
        let config = disk.config();
        let mut options = ::disk::OpenOptions::new(::disk::Access::ReadOnly);
        options.policy =
            config.allow.iter().fold(::disk::BackingPolicy::none(), |policy, path| policy.and(path));
        ::disk::Image::open(&config.path, &options).unwrap().disk
    }

    fn read(disk: &InstanceDisk) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        open(disk).read(0, &mut ::disk::Buffers::from_mut(&mut bytes)).unwrap();
        bytes
    }
}
