//! `arnia disk overlay`, `commit`, `flatten` and `rebase`.

use super::progress::with_bar;
use super::{Source, refused};
use crate::commands::Run;
use crate::{Context, Error, ErrorKind};
use api::ByteSize;
use disk::qcow2::CreateOptions;
use disk::{Access, Format, Image};
use std::path::PathBuf;
use std::process::ExitCode;

/// Create a qcow2 image that stands on another one and takes all changes. Takes no longer for a large
/// disk. The image below must not change from then on
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  arnia disk overlay debian.qcow2 web.qcow2\n  arnia disk overlay --backing-format raw debian.img web.qcow2 --size 40G"
)]
pub(super) struct Overlay {
    /// The image to stand on
    #[arg(value_name = "BELOW")]
    below: PathBuf,
    /// The new image
    #[arg(value_name = "FILE")]
    path: PathBuf,
    /// Format of the image below; without this it is found out
    #[arg(long, value_name = "FORMAT")]
    backing_format: Option<Format>,
    /// Size of the new disk; without this that of the one below
    #[arg(long)]
    size: Option<ByteSize>,
    /// Replace a file that has the name already
    #[arg(long)]
    force: bool,
}

impl Run for Overlay {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let options = CreateOptions::new(self.size.map_or(0, |size| size.0));
        disk::create_overlay(&self.path, &self.below, self.backing_format, &options, self.force)
            .map_err(refused)?;
        context.output.say(&format!("Created {} on {}.", self.path.display(), self.below.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Move what an overlay holds into the image that it stands on. The overlay is empty afterwards. Other
/// overlays on the same image are spoilt by this
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia disk commit web.qcow2")]
pub(super) struct Commit {
    #[command(flatten)]
    source: Source,
}

impl Run for Commit {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let options = self.source.options(Access::ReadWrite);
        with_bar("committing", |progress| disk::commit(&self.source.path, &options, progress))?;
        context.output.say(&format!("Committed {}.", self.source.path.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Make an overlay stand alone: copy into it what shows through from below
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia disk flatten web.qcow2")]
pub(super) struct Flatten {
    #[command(flatten)]
    source: Source,
}

impl Run for Flatten {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let path = &self.source.path;
        let image = Image::open(path, &self.source.options(Access::ReadWrite)).map_err(refused)?;
        let Some(qcow2) = image.qcow2.filter(|qcow2| qcow2.backing().is_some()) else {
            return Err(Error::new(ErrorKind::BadInput, format!("{} stands alone already", path.display())));
        };
        with_bar("flattening", |progress| disk::flatten(&qcow2, progress))?;
        context.output.say(&format!("{} stands alone now.", path.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Make an overlay stand on another image. It reads as before: what the new image does not have alike is
/// copied into the overlay
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  arnia disk rebase web.qcow2 --on debian-12.1.qcow2\n  arnia disk rebase web.qcow2 --on /images/debian.qcow2 --name-only"
)]
pub(super) struct Rebase {
    #[command(flatten)]
    source: Source,
    /// The image to stand on from now on
    #[arg(long, value_name = "IMAGE")]
    on: PathBuf,
    /// Its format; without this it is found out
    #[arg(long, value_name = "FORMAT")]
    backing_format: Option<Format>,
    /// Change the name only: the same image has got another place
    #[arg(long)]
    name_only: bool,
}

impl Run for Rebase {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let options = self.source.options(Access::ReadWrite);
        let new = Some((self.on.as_path(), self.backing_format));
        with_bar("rebasing", |progress| {
            disk::rebase(&self.source.path, &options, new, self.name_only, progress)
        })?;
        context.output.say(&format!(
            "{} stands on {} now.",
            self.source.path.display(),
            self.on.display()
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}
