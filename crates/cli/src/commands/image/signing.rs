//! `arnia image keygen`, `sign` and `verify`.

use super::{Act, Trust, Watch, explain};
use crate::{Context, Error, ErrorKind};
use image::Store;
use image::sign::{TrustedKey, generate_key, sign, signers};
use std::path::PathBuf;

/// Make a key pair to sign images with: FILE, and FILE.pub for those who shall trust it.
#[derive(Debug, clap::Args)]
#[command(about = "Make a key pair to sign images with")]
#[command(after_help = "Examples:\n  arnia image keygen publisher\n\n\
                  With ARNIA_KEY_PASSWORD set, the key is protected by that password. Whoever puts publisher.pub into\n\
                  ~/.config/arnia/trusted-keys pulls and imports only images that a key there has signed.")]
pub(super) struct Keygen {
    /// The secret key's file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Sign an image.
#[derive(Debug, clap::Args)]
#[command(about = "Sign an image")]
#[command(after_help = "Examples:\n  arnia image sign web:1 --key publisher")]
pub(super) struct Sign {
    /// Its name or digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The secret key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// Read all of an image, compare it with its digests, and check who signed it.
#[derive(Debug, clap::Args)]
#[command(about = "Check an image's content and signatures")]
#[command(
    after_help = "Examples:\n  arnia image verify web:1\n  arnia image verify web:1 --key publisher.pub"
)]
pub(super) struct Verify {
    /// Its name or digest
    #[arg(value_name = "IMAGE")]
    image: String,
    #[command(flatten)]
    trust: Trust,
}

fn password() -> Option<String> {
    std::env::var("ARNIA_KEY_PASSWORD").ok().filter(|password| !password.is_empty())
}

impl Act for Keygen {
    fn act(&self, _: &Store, context: &Context) -> Result<(), Error> {
        let key = generate_key(&self.file, password().as_deref()).map_err(explain)?;
        context.output.say(&format!("made the key {}; give others {}", key.id(), key.path.display()))
    }
}

impl Act for Sign {
    fn act(&self, store: &Store, context: &Context) -> Result<(), Error> {
        let digest = store.resolve(&self.image).map_err(explain)?;
        let id = sign(store, digest, &self.key, password().as_deref()).map_err(explain)?;
        context.output.say(&format!("signed {} with the key {id}", self.image))
    }
}

impl Act for Verify {
    fn act(&self, store: &Store, context: &Context) -> Result<(), Error> {
        let digest = store.resolve(&self.image).map_err(explain)?;
        let keys: Vec<TrustedKey> = self.trust.keys()?;
        let mut watch = Watch::new(false);
        store.check(digest, &mut watch).map_err(explain)?;
        drop(watch);
        let by = signers(store, digest, &keys).map_err(explain)?;
        if by.is_empty() && !keys.is_empty() {
            let text = format!("{} is whole, but no trusted key has signed it", self.image);
            return Err(Error::new(ErrorKind::Denied, text).with_remedy(
                "give the publisher's key by --key, or look only at the content by --allow-unsigned",
            ));
        }
        let signed = if by.is_empty() {
            "no key is trusted here to check signatures with".to_owned()
        } else {
            format!("signed by {}", by.join(", "))
        };
        context.output.say(&format!("{} is whole; {signed}", self.image))
    }
}
