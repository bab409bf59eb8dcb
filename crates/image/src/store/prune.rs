//! Taking away what nobody needs.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use api::image::Digest;

use super::{Store, entries};
use crate::error::AboutFile;
use crate::{Error, ErrorKind, Result};

/// How long an interrupted download is kept to be resumed.
const DOWNLOAD_KEPT: Duration = Duration::from_secs(7 * 86_400);

/// What is taken away beside what nobody names.
#[derive(Clone, Copy, Debug, Default)]
pub struct PruneOptions {
    /// Layers of builds too; the next build starts anew.
    pub cache: bool,
    /// Interrupted downloads, also those of today.
    pub downloads: bool,
    /// Take nothing away, only say what would be.
    pub dry_run: bool,
}

/// What was taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Pruned {
    /// Images.
    pub images: Vec<Digest>,
    /// Number of blobs.
    pub blobs: u64,
    /// Bytes that they took on the host.
    pub bytes: u64,
}

impl Store {
    /// Takes away images that have no name and no pin, and blobs that no image and no kept layer needs.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while somebody adds.
    pub fn prune(&self, options: PruneOptions) -> Result<Pruned> {
        let Some(_lock) = self.exclusive()? else {
            return Err(Error::new(ErrorKind::Busy, "images are being built or pulled just now")
                .with_remedy("try again when that is done"));
        };
        let mut kept: HashSet<Digest> = self.names()?.into_iter().map(|(_, digest)| digest).collect();
        kept.extend(self.pins()?.into_iter().map(|(_, digest)| digest));
        let mut pruned = Pruned::default();
        let mut blobs = HashSet::new();
        for digest in self.manifests()? {
            if kept.contains(&digest) {
                // One that cannot be read keeps nothing, but it is not for us to throw it away.
                let manifest = self.manifest(digest)?;
                blobs.extend(manifest.blobs().into_iter().map(|blob| blob.digest));
            } else {
                pruned.images.push(digest);
            }
        }
        if !options.cache {
            self.keep_cached(&mut blobs)?;
        }
        // Manifests before blobs: at no time is there an image without its blobs.
        for digest in &pruned.images {
            remove(&self.place("manifests", *digest), options)?;
            remove(&self.place("signatures", *digest), options)?;
        }
        if options.cache {
            for key in entries(&self.root.join("cache"))? {
                remove(&self.root.join("cache").join(key), options)?;
            }
        }
        for name in entries(&self.root.join("blobs"))? {
            if Digest::from_hex(&name).is_none_or(|digest| !blobs.contains(&digest)) {
                let path = self.root.join("blobs").join(name);
                pruned.blobs += 1;
                pruned.bytes += taken(&path);
                remove(&path, options)?;
            }
        }
        self.prune_partial(options, &mut pruned)?;
        Ok(pruned)
    }

    fn keep_cached(&self, blobs: &mut HashSet<Digest>) -> Result<()> {
        for key in entries(&self.root.join("cache"))? {
            let Some(value) = self.cached::<serde_json::Value>(&key) else { continue };
            collect_digests(&value, blobs);
        }
        Ok(())
    }

    /// Nobody adds, so nothing unfinished is being worked on; only downloads can go on.
    fn prune_partial(&self, options: PruneOptions, pruned: &mut Pruned) -> Result<()> {
        let folder = self.root.join("partial");
        for name in entries(&folder)? {
            let path = folder.join(&name);
            let recent = || {
                let modified = path.metadata().and_then(|there| there.modified()).ok();
                modified
                    .and_then(|at| SystemTime::now().duration_since(at).ok())
                    .is_none_or(|age| age < DOWNLOAD_KEPT)
            };
            if name.starts_with("download-") && !options.downloads && recent() {
                continue;
            }
            pruned.bytes += taken(&path);
            remove(&path, options)?;
        }
        Ok(())
    }
}

fn collect_digests(value: &serde_json::Value, into: &mut HashSet<Digest>) {
    match value {
        serde_json::Value::String(text) => into.extend(text.parse::<Digest>()),
        serde_json::Value::Array(values) => values.iter().for_each(|value| collect_digests(value, into)),
        serde_json::Value::Object(fields) => fields.values().for_each(|value| collect_digests(value, into)),
        _ => {}
    }
}

fn taken(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    path.symlink_metadata().map_or(0, |there| there.blocks() * 512)
}

fn remove(path: &Path, options: PruneOptions) -> Result<()> {
    if options.dry_run {
        return Ok(());
    }
    match path.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(there) if there.is_dir() => fs::remove_dir_all(path).about("remove", path),
        Ok(_) => fs::remove_file(path).about("remove", path),
    }
}
