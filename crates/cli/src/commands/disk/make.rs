//! `arnia disk create` and `convert`.

use super::progress::with_bar;
use super::{Source, bytes, refused};
use crate::commands::Run;
use crate::{Context, Error};
use api::ByteSize;
use disk::qcow2::{Compression, CreateOptions};
use disk::{Access, Format, Image, OpenOptions, TargetOptions};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What an image is made like.
#[derive(Debug, clap::Args)]
struct Target {
    /// Replace a file that has the name already
    #[arg(long)]
    force: bool,
    /// qcow2: size of clusters, from 512 to 2M
    #[arg(long, value_name = "SIZE")]
    cluster_size: Option<ByteSize>,
    /// qcow2: version of the format, 2 or 3
    #[arg(long, value_name = "VERSION")]
    compat: Option<u32>,
    /// qcow2: let other programs delay reference counts, at the price of a repair after a crash
    #[arg(long)]
    lazy_refcounts: bool,
}

impl Target {
    fn options(&self, path: &Path, format: Option<Format>, compression: Option<Method>) -> TargetOptions {
        let format = format.unwrap_or_else(|| Format::of_name(path));
        let base = CreateOptions::new(0);
        let qcow2 = CreateOptions {
            cluster_size: self.cluster_size.map_or(base.cluster_size, |size| size.0),
            version: self.compat.unwrap_or(base.version),
            lazy_refcounts: self.lazy_refcounts,
            compression: compression.map_or(base.compression, Method::compression),
            ..base
        };
        TargetOptions {
            compress: compression.is_some(),
            replace: self.force,
            qcow2,
            ..TargetOptions::new(format)
        }
    }
}

/// How data is compressed.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Method {
    /// Read by every program
    Zlib,
    /// qcow2 only: faster
    Zstd,
}

impl Method {
    fn compression(self) -> Compression {
        match self {
            Method::Zlib => Compression::Zlib,
            Method::Zstd => Compression::Zstd,
        }
    }
}

/// Create an empty disk. It takes space as it is used
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  arnia disk create web.qcow2 20G\n  arnia disk create --format raw scratch.img 512M"
)]
pub(super) struct Create {
    /// The new file; its ending tells the format, unless --format does
    #[arg(value_name = "FILE")]
    path: PathBuf,
    /// Size of the disk, like 20G
    size: ByteSize,
    /// Format of the image
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<Format>,
    #[command(flatten)]
    target: Target,
}

impl Run for Create {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let options = self.target.options(&self.path, self.format, None);
        disk::create(&self.path, self.size.0, &options).map_err(refused)?;
        context.output.say(&format!(
            "Created {} ({}, {}).",
            self.path.display(),
            options.format,
            bytes(self.size.0)
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Make an image in another format, of a disk as it is now
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  arnia disk convert debian.raw debian.qcow2\n  arnia disk convert --compress=zstd web.qcow2 backup.qcow2\n  arnia disk convert --snapshot before-upgrade web.qcow2 old.raw"
)]
pub(super) struct Convert {
    #[command(flatten)]
    source: Source,
    /// The new file; its ending tells the format, unless --to does
    #[arg(value_name = "FILE")]
    path: PathBuf,
    /// Format of the new image
    #[arg(short, long, value_name = "FORMAT")]
    to: Option<Format>,
    /// Compress the data
    #[arg(short, long, value_name = "METHOD", value_enum, num_args = 0..=1, default_missing_value = "zlib", require_equals = true)]
    compress: Option<Method>,
    /// Convert this internal snapshot of a qcow2 image
    #[arg(long, value_name = "NAME")]
    snapshot: Option<String>,
    #[command(flatten)]
    target: Target,
}

impl Run for Convert {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let options =
            OpenOptions { snapshot: self.snapshot.clone(), ..self.source.options(Access::ReadOnly) };
        let source = Image::open(&self.source.path, &options).map_err(refused)?;
        let target = self.target.options(&self.path, self.to, self.compress);
        with_bar("converting", |progress| disk::convert(&source.disk, &self.path, &target, progress))?;
        context.output.say(&format!(
            "Converted {} ({}) to {} ({}).",
            self.source.path.display(),
            source.format,
            self.path.display(),
            target.format
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}
