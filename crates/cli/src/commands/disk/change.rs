//! `arnia disk resize` and `compact`.

use super::progress::with_bar;
use super::{Source, bytes, refused};
use crate::commands::Run;
use crate::{Context, Error};
use api::ByteSize;
use disk::{Access, Image, ImageInfo};
use std::process::ExitCode;

/// Change the size of a disk. The guest's partitions and file systems stay as they are: enlarge them
/// afterwards, or make them smaller before
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  arnia disk resize web.qcow2 40G\n  arnia disk resize --shrink web.qcow2 10G"
)]
pub(super) struct Resize {
    #[command(flatten)]
    source: Source,
    /// The new size, like 40G
    size: ByteSize,
    /// Allow a smaller size: what lies beyond it is lost
    #[arg(long)]
    shrink: bool,
}

impl Run for Resize {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let image =
            Image::open(&self.source.path, &self.source.options(Access::ReadWrite)).map_err(refused)?;
        let old = image.disk.info().size;
        if self.size.0 < old && !self.shrink {
            return Err(Error::bad_input(format!(
                "the disk has {} and would lose what lies beyond {}",
                bytes(old),
                bytes(self.size.0)
            ))
            .with_remedy("if that is meant, say --shrink"));
        }
        image.disk.resize(self.size.0).map_err(refused)?;
        context.output.say(&format!(
            "Resized {} from {} to {}.",
            self.source.path.display(),
            bytes(old),
            bytes(self.size.0)
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Free what a disk does not need: zeroes of a raw disk, unused space in a qcow2 image
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia disk compact web.qcow2")]
pub(super) struct Compact {
    #[command(flatten)]
    source: Source,
}

impl Run for Compact {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let path = &self.source.path;
        let occupied =
            || ImageInfo::read(path, self.source.format).map(|info| info.allocated).map_err(refused);
        let before = occupied()?;
        let options = self.source.options(Access::ReadWrite);
        with_bar("compacting", |progress| disk::compact(path, &options, progress))?;
        let after = occupied()?;
        context.output.say(&format!(
            "Compacted {}: it occupied {}, now {}.",
            path.display(),
            bytes(before),
            bytes(after)
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}
