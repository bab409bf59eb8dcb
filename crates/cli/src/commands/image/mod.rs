//! `arnia image`: building, moving and keeping images. On this user's store all of it works without a daemon; images of
//! another daemon are reached by its API.

mod build;
mod keep;
mod list;
mod moving;
mod publish;
mod remote;
mod signing;
mod watch;

use super::Run;
use crate::connect::{default_paths, image_folder};
use crate::{Context, Error, ErrorKind};
use clap::Subcommand;
use image::Store;
use image::sign::TrustedKey;
use std::path::PathBuf;
use std::process::ExitCode;

pub(crate) use remote::fetch_there;
pub(crate) use watch::Watch;

/// Build, import, move and keep images: what virtual machines come from.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia image build debian\n  arnia image ls\n  \
                  arnia image pull oci://registry.example/team/web:1")]
pub struct Image {
    /// Where the images are kept, if not where ARNIA_IMAGES says or in this user's data folder
    #[arg(long, global = true, value_name = "FOLDER")]
    store: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(build::Build),
    Import(moving::Import),
    Export(moving::Export),
    Ls(list::Ls),
    Info(list::Info),
    Rm(keep::Rm),
    Prune(keep::Prune),
    Pull(moving::Pull),
    Push(moving::Push),
    Publish(publish::Publish),
    Keygen(signing::Keygen),
    Sign(signing::Sign),
    Verify(signing::Verify),
}

/// What a subcommand does with the store.
trait Act {
    fn act(&self, store: &Store, context: &Context) -> Result<(), Error>;
}

impl Run for Image {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        if let Command::Publish(publish) = &self.command {
            return publish.run(context);
        }
        let about_images = !matches!(self.command, Command::Keygen(_));
        if about_images && self.store.is_none() && !context.is_local()? {
            return context.with_daemon(async |client| {
                self.command.act_by_api(&client, context).await?;
                Ok(ExitCode::SUCCESS)
            });
        }
        let folder = match &self.store {
            Some(folder) => folder.clone(),
            None => image_folder(&default_paths()?.1),
        };
        let store = Store::open(folder).map_err(explain)?;
        let command: &dyn Act = match &self.command {
            Command::Build(command) => command,
            Command::Import(command) => command,
            Command::Export(command) => command,
            Command::Ls(command) => command,
            Command::Info(command) => command,
            Command::Rm(command) => command,
            Command::Prune(command) => command,
            Command::Pull(command) => command,
            Command::Push(command) => command,
            Command::Publish(_) => return Ok(ExitCode::SUCCESS),
            Command::Keygen(command) => command,
            Command::Sign(command) => command,
            Command::Verify(command) => command,
        };
        command.act(&store, context)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// An error of the image library, for the terminal.
pub(crate) fn explain(error: image::Error) -> Error {
    use image::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::NotFound => ErrorKind::NotFound,
        Kind::BadInput => ErrorKind::BadInput,
        Kind::Busy => ErrorKind::Conflict,
        Kind::Unverified => ErrorKind::Denied,
        _ => ErrorKind::Failed,
    };
    let mut told = Error::new(kind, error.to_string());
    if let Some(remedy) = error.remedy() {
        told = told.with_remedy(remedy.to_owned());
    }
    match std::error::Error::source(&error) {
        // Its text: the source itself belongs to the error.
        Some(source) => told.with_source(chain(source)),
        None => told,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// A size for people.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Keys that an image has to be signed by: those given, else those that this user trusts.
#[derive(Debug, clap::Args)]
pub(super) struct Trust {
    /// Public key that must have signed the image, instead of the trusted ones
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// Take the image also if nobody trusted has signed it
    #[arg(long, conflicts_with = "key")]
    allow_unsigned: bool,
}

impl Trust {
    fn keys(&self) -> Result<Vec<TrustedKey>, Error> {
        if self.allow_unsigned {
            return Ok(Vec::new());
        }
        if self.key.is_empty() {
            return TrustedKey::all(&TrustedKey::default_folder()).map_err(explain);
        }
        self.given()
    }

    /// Those given.
    fn given(&self) -> Result<Vec<TrustedKey>, Error> {
        self.key.iter().map(|path| TrustedKey::read(path).map_err(explain)).collect()
    }

    /// The same for what is run as soon as it is here: somebody has to be trusted, unless it is said otherwise.
    pub(super) fn keys_to_run(&self) -> Result<Vec<TrustedKey>, Error> {
        let keys = self.keys()?;
        if keys.is_empty() && !self.allow_unsigned {
            let folder = TrustedKey::default_folder();
            return Err(Error::new(ErrorKind::Denied, "nobody is trusted yet to sign what shall be run")
                .with_remedy(format!(
                    "give the publisher's public key by --key, put it into {}, or take it as it is by --allow-unsigned",
                    folder.display()
                )));
        }
        Ok(keys)
    }

    /// Whether anything was said.
    pub(super) fn is_given(&self) -> bool {
        self.allow_unsigned || !self.key.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_for_people() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (4 << 30, "4.0 GiB")] {
            assert_eq!(super::size(bytes), text);
        }
    }
}
