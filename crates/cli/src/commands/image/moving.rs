//! `arnia image import`, `export`, `pull` and `push`.

use super::{Act, Trust, Watch, explain};
use crate::{Context, Error};
use api::image::{ImageFirmware, ImageName};
use image::Store;
use image::transfer::{Place, PullOptions, RegistryLogin, archive, pull, push};
use std::path::PathBuf;

/// Take an image from a file: an archive that `export` wrote, or a raw disk.
#[derive(Debug, clap::Args)]
#[command(about = "Take an image from a file")]
#[command(after_help = "Examples:\n  arnia image import web.tar --name web:1\n  \
                  arnia image import disk.raw --name legacy:1 --firmware bios\n  \
                  arnia image import root.raw --name lab:1 --kernel vmlinuz --initrd initrd.img --append root=/dev/vda")]
pub(super) struct Import {
    /// The archive, or the raw disk
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The image's name
    #[arg(long, value_name = "NAME")]
    name: ImageName,
    /// A disk: the firmware that boots it
    #[arg(long, value_enum, value_name = "FIRMWARE", conflicts_with = "kernel")]
    firmware: Option<Firmware>,
    /// A disk: the kernel that boots it
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The kernel's initrd
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "")]
    append: String,
    /// A sentence about it
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
    #[command(flatten)]
    trust: Trust,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Firmware {
    /// A PC's BIOS
    Bios,
    /// UEFI
    Uefi,
}

/// Write an image with its signatures into one file.
#[derive(Debug, clap::Args)]
#[command(about = "Write an image into one file")]
#[command(after_help = "Examples:\n  arnia image export web:1 web.tar")]
pub(super) struct Export {
    /// Its name or digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The file, which must not exist
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Fetch an image from a web server or a registry. An interrupted one goes on where it stopped.
#[derive(Debug, clap::Args)]
#[command(about = "Fetch an image from a web server or a registry")]
#[command(after_help = "Examples:\n  arnia image pull https://images.example/debian/12.json\n  \
                  arnia image pull oci://registry.example/team/web:1 --name web:1 --key publisher.pub\n\n\
                  A registry's login is taken from ARNIA_REGISTRY_USER and ARNIA_REGISTRY_PASSWORD.")]
pub(super) struct Pull {
    /// https://HOST/PATH/TAG.json or oci://HOST/PATH:TAG
    #[arg(value_name = "PLACE")]
    place: String,
    /// The image's name here
    #[arg(long, value_name = "NAME")]
    name: Option<ImageName>,
    #[command(flatten)]
    trust: Trust,
}

/// Send an image to a web server (by PUT) or a registry. What is there already is not sent again.
#[derive(Debug, clap::Args)]
#[command(about = "Send an image to a web server or a registry")]
#[command(after_help = "Examples:\n  arnia image push web:1 oci://registry.example/team/web:1")]
pub(super) struct Push {
    /// Its name or digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// https://HOST/PATH/TAG.json or oci://HOST/PATH:TAG
    #[arg(value_name = "PLACE")]
    place: String,
}

fn login() -> Option<RegistryLogin> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Some(RegistryLogin {
        user: variable("ARNIA_REGISTRY_USER")?,
        password: variable("ARNIA_REGISTRY_PASSWORD")?,
    })
}

impl Act for Import {
    fn act(&self, store: &Store, context: &Context) -> Result<(), Error> {
        let mut watch = Watch::new(false);
        let digest = if archive::is_archive(&self.file) {
            let mut file = std::fs::File::open(&self.file).map_err(|error| {
                Error::failed(format!("cannot open {}", self.file.display())).with_source(error)
            })?;
            archive::import(store, &mut file, &self.name, &self.trust.keys()?, &mut watch).map_err(explain)?
        } else {
            let boot = match (&self.kernel, self.firmware) {
                (Some(kernel), _) => image::import::Boot::Kernel {
                    kernel: kernel.clone(),
                    initrd: self.initrd.clone(),
                    append: self.append.clone(),
                },
                (None, Some(Firmware::Bios)) => image::import::Boot::Firmware(ImageFirmware::Bios),
                (None, Some(Firmware::Uefi)) => image::import::Boot::Firmware(ImageFirmware::Uefi),
                (None, None) => {
                    return Err(Error::bad_input("a disk needs something that boots it")
                        .with_remedy("add --firmware bios, --firmware uefi, or --kernel FILE"));
                }
            };
            image::import::disk(store, &self.file, &self.name, boot, &self.description, &mut watch)
                .map_err(explain)?
        };
        drop(watch);
        super::list::show(store, digest, context, "imported")
    }
}

impl Act for Export {
    fn act(&self, store: &Store, context: &Context) -> Result<(), Error> {
        let digest = store.resolve(&self.image).map_err(explain)?;
        let mut watch = Watch::new(false);
        archive::export(store, digest, &self.file, &mut watch).map_err(explain)?;
        drop(watch);
        context.output.say(&format!("wrote {}", self.file.display()))
    }
}

impl Act for Pull {
    fn act(&self, store: &Store, context: &Context) -> Result<(), Error> {
        let place = Place::parse(&self.place).map_err(explain)?;
        let options = PullOptions { name: self.name.clone(), keys: self.trust.keys()?, login: login() };
        let mut watch = Watch::new(false);
        let digest = pull(store, &place, &options, &mut watch).map_err(explain)?;
        drop(watch);
        super::list::show(store, digest, context, "pulled")
    }
}

impl Act for Push {
    fn act(&self, store: &Store, context: &Context) -> Result<(), Error> {
        let digest = store.resolve(&self.image).map_err(explain)?;
        let place = Place::parse(&self.place).map_err(explain)?;
        let mut watch = Watch::new(false);
        push(store, digest, &place, login().as_ref(), &mut watch).map_err(explain)?;
        drop(watch);
        context.output.say(&format!("pushed {} to {}", self.image, self.place))
    }
}
