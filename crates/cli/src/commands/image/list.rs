//! `arnia image ls` and `info`.

use super::{Act, explain, size};
use crate::output::{Format, Row};
use crate::{Context, Error};
use api::image::{Digest, ImageBoot, ImageView};
use image::Store;

/// List the images of this host, or of that which the context names.
#[derive(Debug, clap::Args)]
#[command(about = "List the images of this host")]
#[command(after_help = "Examples:\n  arnia image ls\n  arnia image ls -o json")]
pub(super) struct Ls {}

/// Tell all about an image.
#[derive(Debug, clap::Args)]
#[command(about = "Tell all about an image")]
#[command(after_help = "Examples:\n  arnia image info debian\n  arnia image info 3f786850e387 -o yaml")]
pub(super) struct Info {
    /// Its name, its digest, or the digest's first digits
    #[arg(value_name = "IMAGE")]
    pub(super) image: String,
}

impl Row for ImageView {
    const HEADS: &'static [&'static str] = &["name", "id", "disk", "stored", "used by", "description"];

    fn cells(&self) -> Vec<String> {
        vec![
            names(self),
            self.digest.short(),
            size(self.disk_bytes),
            size(self.stored_bytes),
            self.pinned_by.len().to_string(),
            self.manifest.description.clone(),
        ]
    }
}

fn names(image: &ImageView) -> String {
    if image.names.is_empty() {
        return "-".to_owned();
    }
    image.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl Act for Ls {
    fn act(&self, store: &Store, context: &Context) -> Result<(), Error> {
        table(&store.list().map_err(explain)?, context)
    }
}

/// Writes a list of images.
pub(super) fn table(images: &[ImageView], context: &Context) -> Result<(), Error> {
    if images.is_empty() && context.output.format() == Format::Table {
        return context.output.say("There are no images. `arnia image build debian` makes one.");
    }
    context.output.list(images)
}

impl Act for Info {
    fn act(&self, store: &Store, context: &Context) -> Result<(), Error> {
        let digest = store.resolve(&self.image).map_err(explain)?;
        details(&store.view(digest).map_err(explain)?, context)
    }
}

/// Writes all about an image.
pub(super) fn details(view: &ImageView, context: &Context) -> Result<(), Error> {
    let manifest = &view.manifest;
    let boot = match &manifest.boot {
        ImageBoot::Kernel { append, .. } => format!("kernel, with {append:?}"),
        ImageBoot::Firmware { firmware } => format!("firmware, {firmware}"),
    };
    let disks = manifest.disks.iter().map(|disk| format!("{} {}", disk.name, size(disk.blob.size)));
    let ports = manifest.ports.iter().map(|port| format!("{} {}", port.port, port.name).trim().to_owned());
    let join = |items: Vec<String>| items.join("\n");
    context.output.item(
        view,
        &[
            ("Names", names(view)),
            ("Digest", view.digest.to_string()),
            ("Description", manifest.description.clone()),
            ("Architecture", manifest.architecture.clone()),
            ("Boot", boot),
            ("Disks", join(disks.collect())),
            ("Stored", size(view.stored_bytes)),
            ("Minimum memory", manifest.minimum.memory.map(|size| size.to_string()).unwrap_or_default()),
            ("Default user", manifest.default_user.clone().unwrap_or_default()),
            ("Ports", join(ports.collect())),
            ("Volumes", join(manifest.volumes.clone())),
            ("Signatures", join(view.signed_by.clone())),
            ("Used by", join(view.pinned_by.clone())),
        ],
    )
}

/// Says what was done with an image; programs get the image.
pub(super) fn show(store: &Store, digest: Digest, context: &Context, what: &str) -> Result<(), Error> {
    told(&store.view(digest).map_err(explain)?, context, what)
}

/// The same of an image that was looked up already.
pub(super) fn told(view: &ImageView, context: &Context, what: &str) -> Result<(), Error> {
    match context.output.format() {
        Format::Table => {
            let text = format!(
                "{what} {} ({}, disk {}, {} stored)",
                names(view),
                view.digest.short(),
                size(view.disk_bytes),
                size(view.stored_bytes)
            );
            context.output.say(&text)
        }
        _ => context.output.data(view),
    }
}
