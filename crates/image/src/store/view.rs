//! Images as lists show them.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use api::image::{Digest, ImageName, ImageView};

use super::Store;
use crate::Result;

impl Store {
    /// All images, in the order of their names; those without one come last.
    ///
    /// # Errors
    /// If the store cannot be read. An image that cannot be read is left out.
    pub fn list(&self) -> Result<Vec<ImageView>> {
        let mut names: BTreeMap<Digest, Vec<ImageName>> = BTreeMap::new();
        for (name, digest) in self.names()? {
            names.entry(digest).or_default().push(name);
        }
        let mut images = Vec::new();
        for digest in self.manifests()? {
            images.extend(self.view_with(digest, names.remove(&digest).unwrap_or_default()));
        }
        images.sort_by_key(|image| (image.names.is_empty(), image.names.first().cloned(), image.digest));
        Ok(images)
    }

    /// One image.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub fn view(&self, digest: Digest) -> Result<ImageView> {
        let names = self.names()?.into_iter().filter(|(_, named)| *named == digest);
        self.view_with(digest, names.map(|(name, _)| name).collect())
    }

    fn view_with(&self, digest: Digest, names: Vec<ImageName>) -> Result<ImageView> {
        let manifest = self.manifest(digest)?;
        let taken = |blob: &api::image::Blob| {
            self.place("blobs", blob.digest).metadata().map_or(0, |there| there.blocks() * 512)
        };
        let pins = self.pins()?.into_iter().filter(|(_, pinned)| *pinned == digest);
        Ok(ImageView {
            names,
            digest,
            disk_bytes: manifest.disks.iter().map(|disk| disk.blob.size).sum(),
            stored_bytes: manifest.blobs().iter().map(taken).sum(),
            signed_by: self.signatures(digest)?.into_iter().map(|(key, _)| key).collect(),
            pinned_by: pins.map(|(owner, _)| owner).collect(),
            manifest,
        })
    }
}
