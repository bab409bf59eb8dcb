//! `arnia image rm` and `prune`.

use super::{Act, explain, size};
use crate::output::Format;
use crate::{Context, Error};
use api::image::ImageName;
use image::{PruneOptions, Store};

/// Take a name away from an image. Instances that need it keep it; `prune` frees the room.
#[derive(Debug, clap::Args)]
#[command(about = "Take a name away from an image")]
#[command(
    after_help = "Examples:\n  arnia image rm web:1\n  arnia image rm web:1 web:2 && arnia image prune"
)]
pub(super) struct Rm {
    /// Their names
    #[arg(value_name = "NAME", required = true)]
    pub(super) names: Vec<String>,
}

/// Free the room of images that have no name and that nobody needs.
#[derive(Debug, clap::Args)]
#[command(about = "Free the room of images that nobody needs")]
#[command(after_help = "Examples:\n  arnia image prune --dry-run\n  arnia image prune --cache")]
pub(super) struct Prune {
    /// Layers of builds too; the next build starts anew
    #[arg(long)]
    cache: bool,
    /// Interrupted downloads too, however recent
    #[arg(long)]
    downloads: bool,
    /// Only say what would be freed
    #[arg(long)]
    dry_run: bool,
}

impl Act for Rm {
    fn act(&self, store: &Store, context: &Context) -> Result<(), Error> {
        // All of them before any is touched.
        let names = self.names.iter().map(|text| text.parse::<ImageName>().map_err(Error::bad_input));
        let names = names.collect::<Result<Vec<_>, _>>()?;
        for name in &names {
            store.by_name(name).map_err(explain)?;
        }
        for name in &names {
            let digest = store.remove_name(name).map_err(explain)?;
            let users = store.view(digest).map(|view| view.pinned_by.len()).unwrap_or_default();
            context.output.say(&removed(name, users))?;
        }
        Ok(())
    }
}

/// What is said when a name is gone.
pub(super) fn removed(name: &ImageName, users: usize) -> String {
    let kept = if users > 0 { format!("; {users} instances keep the image") } else { String::new() };
    format!("removed the name {name}{kept}")
}

impl Act for Prune {
    fn act(&self, store: &Store, context: &Context) -> Result<(), Error> {
        let options = PruneOptions { cache: self.cache, downloads: self.downloads, dry_run: self.dry_run };
        let pruned = store.prune(options).map_err(explain)?;
        if context.output.format() != Format::Table {
            return context.output.data(&pruned);
        }
        let would = if self.dry_run { "would free" } else { "freed" };
        let (images, blobs) = (pruned.images.len(), pruned.blobs);
        context.output.say(&format!("{would} {} ({images} images, {blobs} blobs)", size(pruned.bytes)))
    }
}
