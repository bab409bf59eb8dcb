//! What a machine shall be, as `arnia run` and `arnia create` are told.

use super::appliance;
use super::image::Trust;
use super::limits::LimitOptions;
use crate::{Context, Error, progress};
use api::ByteSize;
use api::agent::{Provision, UserAccount};
use api::image::ImageFirmware;
use api::v1::error::ErrorCode;
use api::v1::image::{ImageBuild, ImageParams};
use api::v1::network::{NicConfig, USER_NETWORK};
use api::v1::vm::{
    Autostart, BootConfig, CloneKind, DiskConfig, InstanceParams, SeedKind, VmConfig, VmParams, check_sizes,
};
use client::Client;
use std::path::{Path, PathBuf};

/// What a machine shall be.
#[derive(Debug, clap::Args)]
pub(super) struct Machine {
    /// The image that it comes from: its name; or where it is, https://HOST/PATH/TAG.json, oci://HOST/PATH:TAG or a file,
    /// and then a key that is trusted must have signed it. With --kernel or --firmware: the machine's name
    #[arg(value_name = "IMAGE", required_unless_present_any = ["kernel", "firmware"])]
    what: Option<String>,
    /// Its name: a to z, 0 to 9 and hyphens [default: the image's, with a number if it is taken]
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,
    /// Boot this kernel instead of an image: a Linux bzImage or an ELF executable for x86-64
    #[arg(long, value_name = "FILE", conflicts_with = "firmware")]
    kernel: Option<PathBuf>,
    /// Boot the disks by firmware instead of an image: bios or uefi
    #[arg(long, value_name = "WHICH", value_parser = firmware)]
    firmware: Option<ImageFirmware>,
    /// The kernel's initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line, or more words for that of the image [default for --kernel: console=ttyS0]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "firmware")]
    append: Option<String>,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Guest memory, with a unit: K, M, G, T
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    memory: ByteSize,
    /// Size of the image's disk, if it shall be larger; or a raw disk image or block device of the host, with `,ro` if
    /// the guest may only read; may be repeated
    #[arg(long, value_name = "SIZE|FILE[,ro]")]
    disk: Vec<String>,
    /// A volume as a disk, after those of --disk; may be repeated
    #[arg(long, value_name = "NAME")]
    volume: Vec<String>,
    /// A port of the host that leads into the guest: [ADDRESS:]PORT:PORT[/udp]; may be repeated
    #[arg(short, long, value_name = "PORTS")]
    port: Vec<String>,
    /// A network card, in this network [default: one in `user`, where the machine is alone]; may be repeated. With an
    /// address or a MAC address of its own, or slower: NETWORK,address=10.20.0.5,mac=a6:41:72:00:00:01,limit-bytes=10M
    #[arg(long, value_name = "NETWORK", value_parser = card)]
    network: Vec<NicConfig>,
    /// No network card
    #[arg(long, conflicts_with_all = ["port", "network"])]
    no_network: bool,
    /// A public SSH key that may log in as the image's default user; may be repeated
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "firmware"])]
    ssh_key: Vec<PathBuf>,
    /// How cloud-init in the image is told who the machine is: nocloud, or config-drive as OpenStack does
    #[arg(long, value_name = "FORM", value_parser = seed, default_value = "nocloud", conflicts_with_all = ["kernel", "firmware"])]
    seed: SeedKind,
    /// Give it a copy of its own of the image's disks, instead of sharing what it does not change
    #[arg(long, conflicts_with_all = ["kernel", "firmware"])]
    full: bool,
    /// Boot it, also where it could go on from where an earlier machine of the image had booted
    #[arg(long, conflicts_with_all = ["kernel", "firmware"])]
    cold: bool,
    /// Start it when the host starts
    #[arg(long)]
    autostart: bool,
    /// For people
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
    #[command(flatten)]
    limits: LimitOptions,
    #[command(flatten)]
    trust: Trust,
}

fn card(text: &str) -> Result<NicConfig, String> {
    let (network, options) = text.split_once(',').unwrap_or((text, ""));
    let mut card = NicConfig::of_network(network);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("address", value)) => card.address = Some(value.into()),
            Some(("mac", value)) => card.mac = Some(value.into()),
            Some(("name", value)) => card.name = Some(value.into()),
            Some(("limit-bytes", value)) => {
                card.limits.bytes = Some(value.parse().map_err(|e| format!("{option}: {e}"))?);
            }
            _ => return Err(format!("{option:?} is not known: write address=, mac=, name= or limit-bytes=")),
        }
    }
    match network {
        "" => Err("name a network: see `arnia network ls`".into()),
        _ => Ok(card),
    }
}

fn seed(text: &str) -> Result<SeedKind, String> {
    match text {
        "nocloud" => Ok(SeedKind::NoCloud),
        "config-drive" => Ok(SeedKind::ConfigDrive),
        _ => Err("write nocloud or config-drive".into()),
    }
}

fn firmware(text: &str) -> Result<ImageFirmware, String> {
    match text {
        "bios" => Ok(ImageFirmware::Bios),
        "uefi" => Ok(ImageFirmware::Uefi),
        _ => Err("write bios or uefi".into()),
    }
}

impl Machine {
    /// What the daemon is asked for. An image that this program knows how to build is built if it is not there.
    pub(super) async fn params(&self, context: &Context, client: &Client) -> Result<VmParams, Error> {
        // Before an image is built or fetched, which takes minutes.
        check_sizes(self.cpus, self.memory).map_err(|refusal| {
            let error = Error::bad_input(refusal.message);
            refusal.remedy.into_iter().fold(error, Error::with_remedy)
        })?;
        let is_image = self.kernel.is_none() && self.firmware.is_none();
        let what = match &self.what {
            Some(what) if is_image => Some(appliance::fetch(context, client, what, &self.trust).await?),
            what => what.clone(),
        };
        let mut config = match &what {
            Some(image) if is_image => VmConfig::of_image(image),
            _ => VmConfig::booting(BootConfig {
                kernel: self.kernel.as_deref().map(|path| absolute(context, path)).transpose()?,
                firmware: self.firmware,
                ..BootConfig::default()
            }),
        };
        let default_append = if self.kernel.is_some() { "console=ttyS0" } else { "" };
        config.boot.append = self.append.clone().unwrap_or_else(|| default_append.into());
        config.boot.initrd = self.initrd.as_deref().map(|path| absolute(context, path)).transpose()?;
        config.cpus = self.cpus;
        config.memory = self.memory;
        config.description = self.description.clone();
        config.limits = self.limits.limits();
        config.autostart = Autostart { enabled: self.autostart, order: 0 };
        let size = self.add_disks(context, &mut config, is_image)?;
        config.nics = match self.no_network {
            true => Vec::new(),
            false => self.cards(),
        };
        let mut instance = InstanceParams {
            clone: if self.full { CloneKind::Full } else { CloneKind::Linked },
            disk: size,
            provision: Provision::default(),
            seed: self.seed,
            cold: self.cold,
        };
        let name = match (&self.name, &what) {
            (Some(name), _) => name.clone(),
            (None, Some(image)) if is_image => free_name(client, image).await?,
            (None, Some(name)) => name.clone(),
            (None, None) => {
                return Err(Error::bad_input("the machine needs a name").with_remedy("add --name NAME"));
            }
        };
        if let Some(image) = config.image.clone() {
            let image = ensure_image(context, client, &image).await?;
            if !self.ssh_key.is_empty() {
                let name = image.manifest.default_user.unwrap_or_else(|| "root".into());
                let ssh_keys = self.ssh_key.iter().map(|path| ssh_key(path)).collect::<Result<_, _>>()?;
                instance.provision.users = vec![UserAccount { name, ssh_keys, ..UserAccount::default() }];
            }
        }
        Ok(VmParams { name, config, instance, start: false })
    }

    /// The network cards. Ports lead in by the network `user`: if there are some, there is a card in it.
    fn cards(&self) -> Vec<NicConfig> {
        let mut cards = self.network.clone();
        match cards.iter().position(|card| card.network == USER_NETWORK) {
            Some(index) => cards[index].ports = self.port.clone(),
            None if cards.is_empty() || !self.port.is_empty() => {
                cards.insert(0, NicConfig { ports: self.port.clone(), ..NicConfig::default() });
            }
            None => {}
        }
        cards
    }

    /// Adds the disks; returns the size that the image's disk shall have.
    fn add_disks(
        &self,
        context: &Context,
        config: &mut VmConfig,
        is_image: bool,
    ) -> Result<Option<ByteSize>, Error> {
        let mut size = None;
        for disk in &self.disk {
            if let (true, Ok(wanted)) = (is_image && size.is_none(), disk.parse::<ByteSize>()) {
                size = Some(wanted);
                continue;
            }
            let (path, read_only) =
                disk.strip_suffix(",ro").map_or((disk.as_str(), false), |path| (path, true));
            let path = Some(absolute(context, Path::new(path))?);
            config.disks.push(DiskConfig { path, read_only, ..DiskConfig::default() });
        }
        for volume in &self.volume {
            config.disks.push(DiskConfig { volume: Some(volume.clone()), ..DiskConfig::default() });
        }
        Ok(size)
    }
}

/// The image; built now if it is not there and this program brings its recipe along.
async fn ensure_image(
    context: &Context,
    client: &Client,
    name: &str,
) -> Result<api::image::ImageView, Error> {
    match client.image(name).await {
        Err(error)
            if error.api().code == ErrorCode::NotFound && image::recipe::RecipeSource::is_built_in(name) => {}
        result => return Ok(result?),
    }
    context.output.hint(&format!("The image {name} is not there yet: it is built now, once."));
    let build = ImageBuild { recipe: name.into(), no_cache: false };
    let operation = client.image_create(&ImageParams::Build(build)).await?;
    progress::watched(client, operation, &format!("building {name}")).await?;
    Ok(client.image(name).await?)
}

/// The image's name, or that with the first number that is free.
async fn free_name(client: &Client, image: &str) -> Result<String, Error> {
    let base = image.split(':').next().unwrap_or(image).rsplit('/').next().unwrap_or(image);
    let base: String = base.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let base = base.trim_matches('-').to_owned();
    let taken: Vec<String> = client.vms().await?.into_iter().map(|vm| vm.name).collect();
    let numbered = (2..).map(|number| format!("{base}-{number}"));
    let mut names = std::iter::once(base.clone()).chain(numbered);
    Ok(names.find(|name| !taken.contains(name)).unwrap_or(base))
}

fn ssh_key(path: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::bad_input(format!("the key {} cannot be read", path.display())).with_source(e))?;
    if text.contains("PRIVATE KEY") {
        return Err(Error::bad_input(format!("{} is a private key", path.display()))
            .with_remedy(format!("give the public one: {}.pub", path.display())));
    }
    Ok(text.trim().to_owned())
}

/// A path as the daemon is to know it, which has another working directory. One on another host has other files, too:
/// what is relative is refused, for it can only be meant here.
pub(in crate::commands) fn absolute(context: &Context, path: &Path) -> Result<String, Error> {
    let bad = || Error::bad_input(format!("the path {path:?} cannot be used"));
    if path.is_relative() && context.is_remote()? {
        return Err(Error::bad_input(format!(
            "{} is a path on this host, and the daemon is on another",
            path.display()
        ))
        .with_remedy("give the whole path on the daemon's host"));
    }
    let path = std::path::absolute(path).map_err(|e| bad().with_source(e))?;
    path.into_os_string().into_string().map_err(|_| bad().with_remedy("use a path of UTF-8 characters"))
}

/// A key by which the daemon knows a request that is sent again.
pub(in crate::commands) fn key() -> String {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("cli-{}-{}", std::process::id(), time.as_nanos())
}
