//! Signatures beside the images that they are of.

use std::fs;
use std::path::PathBuf;

use api::image::Digest;

use super::{Session, Store, entries};
use crate::error::AboutFile;
use crate::sign::TrustedKey;
use crate::{Error, Result, files};

/// Longest signature file, in bytes.
pub(crate) const SIGNATURE_LEN_MAX: u64 = 4096;

impl Store {
    /// The signatures of an image: key ID and the signature file's text.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn signatures(&self, digest: Digest) -> Result<Vec<(String, String)>> {
        let folder = self.place("signatures", digest);
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let mut signatures = Vec::new();
        // Others are drafts as earlier versions named them.
        for key in entries(&folder)?.into_iter().filter(|key| is_key_id(key)) {
            let path = folder.join(&key);
            signatures.push((key, fs::read_to_string(&path).about("read", &path)?));
        }
        Ok(signatures)
    }
}

fn is_key_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte))
}

impl Session<'_> {
    /// Keeps signatures that came with an image from elsewhere: the ID of the key that each claims, and its
    /// text. With keys, only what one of them has made is kept. Without, nobody knows what is good: then what
    /// is there already stays, so that nobody can put nonsense in the place of a good signature.
    ///
    /// # Errors
    /// If the image is not there, or a signature that is to be kept is none or cannot be written.
    pub(crate) fn keep_signatures(
        &self,
        digest: Digest,
        signatures: &[(String, String)],
        keys: &[TrustedKey],
    ) -> Result<()> {
        let bytes = self.store.manifest_bytes(digest)?;
        for (id, text) in signatures {
            let is_kept = match keys {
                [] => !self.store.place("signatures", digest).join(id).exists(),
                keys => keys.iter().any(|key| key.signed(&bytes, text)),
            };
            if is_kept {
                self.add_signature(digest, id, text)?;
            }
        }
        Ok(())
    }

    /// Keeps a signature of an image, in place of what is there under the key's ID: the caller knows it to be
    /// good.
    ///
    /// # Errors
    /// If the key's ID is none, or the signature is too long.
    pub(crate) fn add_signature(&self, digest: Digest, key: &str, text: &str) -> Result<()> {
        if !is_key_id(key) || text.len() as u64 > SIGNATURE_LEN_MAX {
            return Err(Error::bad_input("this is no signature"));
        }
        let folder: PathBuf = self.store.place("signatures", digest);
        fs::create_dir_all(&folder).about("create", &folder)?;
        files::write_whole(&folder.join(key), text.as_bytes())
    }
}
