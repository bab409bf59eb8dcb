//! `arnia disk`: image files, without a daemon.
//!
//! One file per group of subcommands; the work itself is done by the crate `disk`.

mod change;
mod layers;
mod look;
mod make;
mod progress;

use super::Run;
use crate::{Context, Error, ErrorKind};
use ::disk::{Access, BackingPolicy, Format, OpenOptions};
use std::path::PathBuf;
use std::process::ExitCode;

/// Work with disk images: raw, qcow2, vmdk, vdi, vhd, vhdx
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  arnia disk create web.qcow2 20G\n  arnia disk convert debian.raw debian.qcow2"
)]
pub struct Disk {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Create an empty disk
    Create(make::Create),
    /// Tell what an image is
    Info(look::Info),
    /// Make an image in another format
    Convert(make::Convert),
    /// Change the size of a disk
    Resize(change::Resize),
    /// Look for damage, and repair it
    Check(look::Check),
    /// Free what a disk does not need
    Compact(change::Compact),
    /// Tell where a disk has data
    Map(look::Map),
    /// Create an image that stands on another, in constant time
    Overlay(layers::Overlay),
    /// Move what an overlay holds into the image it stands on
    Commit(layers::Commit),
    /// Make an overlay stand alone
    Flatten(layers::Flatten),
    /// Make an overlay stand on another image
    Rebase(layers::Rebase),
}

impl Run for Disk {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let command: &dyn Run = match &self.command {
            Command::Create(command) => command,
            Command::Info(command) => command,
            Command::Convert(command) => command,
            Command::Resize(command) => command,
            Command::Check(command) => command,
            Command::Compact(command) => command,
            Command::Map(command) => command,
            Command::Overlay(command) => command,
            Command::Commit(command) => command,
            Command::Flatten(command) => command,
            Command::Rebase(command) => command,
        };
        command.run(context)
    }
}

/// How an image that is there already is opened.
#[derive(Debug, clap::Args)]
struct Source {
    /// The image file or block device
    #[arg(id = "image", value_name = "IMAGE")]
    path: PathBuf,
    /// Its format; without this it is found out
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<Format>,
    /// A folder whose files the image may stand on, beside its own; or such a file
    #[arg(long = "allow", value_name = "PATH")]
    allowed: Vec<PathBuf>,
}

impl Source {
    fn options(&self, access: Access) -> OpenOptions {
        let policy = self.allowed.iter().fold(BackingPolicy::beside_image(), |policy, path| policy.and(path));
        OpenOptions { format: self.format, policy, ..OpenOptions::new(access) }
    }
}

/// What the crate `disk` says, with the exit status of the command line.
fn refused(error: ::disk::Error) -> Error {
    use ::disk::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::NotFound => ErrorKind::NotFound,
        Kind::Permission | Kind::Forbidden => ErrorKind::Denied,
        Kind::LockedByOther | Kind::Exists => ErrorKind::Conflict,
        Kind::BadFormat | Kind::Unsupported | Kind::ReadOnly | Kind::OutOfRange => ErrorKind::BadInput,
        _ => ErrorKind::Failed,
    };
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    let remedy = match error.kind() {
        Kind::Forbidden => Some("name that folder with --allow FOLDER"),
        Kind::LockedByOther => Some("see which program has it open: lslocks"),
        _ => None,
    };
    match remedy {
        Some(remedy) => Error::new(kind, text).with_remedy(remedy),
        None => Error::new(kind, text),
    }
}

/// A number of bytes for people.
fn bytes(number: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (number.max(1).ilog2() / 10) as usize;
    match unit {
        0 => format!("{number} B"),
        _ => {
            let value = number as f64 / (1u64 << (10 * unit)) as f64;
            let digits = if value.fract() == 0.0 { 0 } else { 1 };
            format!("{value:.digits$} {}", UNITS[unit])
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_of_bytes_are_short() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (20 << 30, "20 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            let shown = super::bytes(number);
            assert!(shown == text || (number == u64::MAX && shown == "16 EiB"), "{shown}");
        }
    }
}
