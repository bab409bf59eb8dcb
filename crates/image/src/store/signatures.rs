//! Signatures beside the images that they are of.

use std::fs;
use std::path::PathBuf;

use api::image::Digest;

use super::{Session, Store, entries};
use crate::error::AboutFile;
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
        for key in entries(&folder)? {
            let path = folder.join(&key);
            signatures.push((key, fs::read_to_string(&path).about("read", &path)?));
        }
        Ok(signatures)
    }
}

impl Session<'_> {
    /// Keeps a signature of an image. Whether it is good is for whoever uses it to find out.
    ///
    /// # Errors
    /// If the key's ID is none, or the signature is too long.
    pub fn add_signature(&self, digest: Digest, key: &str, text: &str) -> Result<()> {
        let id =
            key.len() == 16 && key.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte));
        if !id || text.len() as u64 > SIGNATURE_LEN_MAX {
            return Err(Error::bad_input("this is no signature"));
        }
        let folder: PathBuf = self.store.place("signatures", digest);
        fs::create_dir_all(&folder).about("create", &folder)?;
        files::write_whole(&folder.join(key), text.as_bytes())
    }
}
