//! `arnia image import`, `export`, `pull` and `push`.

use super::{Act, Trust, Watch, explain};
use crate::registry::login;
use crate::{Context, Error, programs};
use api::ByteSize;
use api::image::{ImageFirmware, ImageName, PersonalitySource};
use image::Store;
use image::export::{ExportFormat, export, root};
use image::import::{self, Boot, ImportOptions};
use image::transfer::{Place, PullOptions, archive, pull, push};
use std::path::PathBuf;

/// Take an image from a file: an archive that `export` wrote, a disk (raw, qcow2, VMDK, VDI, VHD, VHDX), an
/// appliance (OVA, OVF), or an archive of a root file system (tar, also compressed).
///
/// What boots it is found out where the file tells: the loader on a disk, the firmware in an appliance's
/// descriptor, the kernel in a root file system.
#[derive(Debug, clap::Args)]
#[command(about = "Take an image from a file: a disk, an appliance, an archive")]
#[command(after_help = "Examples:\n  arnia image import web.tar --name web:1\n  \
                  arnia image import debian-12-genericcloud-amd64.qcow2 --name cloud:12 --personality cloud-init\n  \
                  arnia image import appliance.ova --name shop:3\n  \
                  arnia image import disk.raw --name legacy:1 --firmware bios\n  \
                  arnia image import rootfs.tar.xz --name lab:1 --disk-size 4G\n  \
                  arnia image import root.raw --name lab:2 --kernel vmlinuz --initrd initrd.img --append root=/dev/vda")]
pub(super) struct Import {
    /// The archive, disk or appliance
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The image's name
    #[arg(long, value_name = "NAME")]
    name: ImageName,
    /// The firmware that boots it, if that is not to be found out
    #[arg(long, value_enum, value_name = "FIRMWARE", conflicts_with = "kernel")]
    firmware: Option<Firmware>,
    /// The kernel that boots it
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The kernel's initrd
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "")]
    append: String,
    /// A disk's format, if that is not to be found out: raw, qcow2, vmdk, vdi, vhd, vhdx
    #[arg(long, value_name = "FORMAT")]
    format: Option<disk::Format>,
    /// Size of the disk that is made of a root file system; 8G if not given
    #[arg(long, value_name = "SIZE")]
    disk_size: Option<ByteSize>,
    /// What in it gives instances their identity
    #[arg(long, value_enum, value_name = "WHAT", default_value = "none")]
    personality: Personality,
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

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Personality {
    /// arnia-agent
    Agent,
    /// cloud-init
    CloudInit,
    /// Nothing
    None,
}

/// Write an image into one file: an archive with everything and its signatures, its disk for other programs, an appliance
/// (OVA), or its root file system as a tar archive.
#[derive(Debug, clap::Args)]
#[command(about = "Write an image into one file")]
#[command(
    after_help = "Examples:\n  arnia image export web:1 web.tar\n  arnia image export web:1 web.qcow2\n  \
                  arnia image export legacy:1 legacy.ova\n  arnia image export web:1 disk --format vhdx\n  \
                  arnia image export web:1 root.tar --format tar && docker import root.tar\n\n\
                  The root file system is read in a virtual machine, which takes the image debian (or the image itself, \
                  if it has the guest agent)."
)]
pub(super) struct Export {
    /// Its name or digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The file, which must not exist
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// archive, ova, tar (the root file system), raw, qcow2, vmdk, vdi, vhd or vhdx; as the file's name says if not given,
    /// for which .tar is archive
    #[arg(long, value_name = "FORMAT", value_parser = export_form)]
    format: Option<ExportForm>,
}

/// As what an image is written, and whether it takes a machine.
#[derive(Clone, Copy, Debug)]
enum ExportForm {
    Image(ExportFormat),
    Root,
}

fn export_form(text: &str) -> Result<ExportForm, String> {
    match text {
        "archive" => Ok(ExportForm::Image(ExportFormat::Archive)),
        "ova" => Ok(ExportForm::Image(ExportFormat::Ova)),
        "tar" => Ok(ExportForm::Root),
        _ => {
            let format = text.parse().map_err(|error| format!("{error}, archive, ova, tar"))?;
            Ok(ExportForm::Image(ExportFormat::Disk(format)))
        }
    }
}

/// Fetch an image from a web server or a registry. An interrupted one goes on where it stopped.
#[derive(Debug, clap::Args)]
#[command(about = "Fetch an image from a web server or a registry")]
#[command(after_help = "Examples:\n  arnia image pull https://images.example/debian/12.json\n  \
                  arnia image pull oci://registry.example/team/web:1 --name web:1 --key publisher.pub\n\n\
                  A registry's login is taken from ARNIA_REGISTRY_USER and ARNIA_REGISTRY_PASSWORD, or is that of \
                  `podman login` or `docker login`.")]
pub(super) struct Pull {
    /// https://HOST/PATH/TAG.json or oci://HOST/PATH:TAG
    #[arg(value_name = "PLACE")]
    pub(super) place: String,
    /// The image's name here
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<ImageName>,
    #[command(flatten)]
    pub(super) trust: Trust,
}

/// Send an image to a web server (by PUT) or a registry. What is there already is not sent again.
#[derive(Debug, clap::Args)]
#[command(about = "Send an image to a web server or a registry")]
#[command(after_help = "Examples:\n  arnia image push web:1 oci://registry.example/team/web:1\n\n\
                  A registry's login is taken from ARNIA_REGISTRY_USER and ARNIA_REGISTRY_PASSWORD, or is that of \
                  `podman login` or `docker login`.")]
pub(super) struct Push {
    /// Its name or digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// https://HOST/PATH/TAG.json or oci://HOST/PATH:TAG
    #[arg(value_name = "PLACE")]
    place: String,
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
                (Some(kernel), _) => Some(Boot::Kernel {
                    kernel: kernel.clone(),
                    initrd: self.initrd.clone(),
                    append: self.append.clone(),
                }),
                (None, Some(Firmware::Bios)) => Some(Boot::Firmware(ImageFirmware::Bios)),
                (None, Some(Firmware::Uefi)) => Some(Boot::Firmware(ImageFirmware::Uefi)),
                (None, None) => None,
            };
            let options = ImportOptions {
                boot,
                format: self.format,
                disk_size: self.disk_size.map(|size| size.0),
                personality: match self.personality {
                    Personality::Agent => PersonalitySource::Agent,
                    Personality::CloudInit => PersonalitySource::CloudInit,
                    Personality::None => PersonalitySource::None,
                },
                description: self.description.clone(),
            };
            import::import(store, &self.file, &self.name, &options, &mut watch).map_err(explain)?
        };
        drop(watch);
        super::list::show(store, digest, context, "imported")
    }
}

impl Act for Export {
    fn act(&self, store: &Store, context: &Context) -> Result<(), Error> {
        let digest = store.resolve(&self.image).map_err(explain)?;
        let mut watch = Watch::new(false);
        let by_name = || ExportForm::Image(ExportFormat::of_name(&self.file));
        match self.format.unwrap_or_else(by_name) {
            ExportForm::Image(format) => {
                // An appliance is called what the image is, without what names of machines cannot have.
                let name = self.image.replace([':', '/'], "-");
                export(store, digest, &name, &self.file, format, &mut watch)
            }
            ExportForm::Root => root(store, digest, &self.file, &programs::worker()?, &mut watch),
        }
        .map_err(explain)?;
        drop(watch);
        context.output.say(&format!("wrote {}", self.file.display()))
    }
}

impl Act for Pull {
    fn act(&self, store: &Store, context: &Context) -> Result<(), Error> {
        let place = Place::parse(&self.place).map_err(explain)?;
        let options =
            PullOptions { name: self.name.clone(), keys: self.trust.keys()?, login: login(&self.place)? };
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
        push(store, digest, &place, login(&self.place)?.as_ref(), &mut watch).map_err(explain)?;
        drop(watch);
        context.output.say(&format!("pushed {} to {}", self.image, self.place))
    }
}
