//! A disk's present content is kept for others, in constant time: the image on top becomes a *layer*, which nobody
//! writes to any more, and an empty image over it takes its name.
//!
//! ```text
//!   disk.qcow2 (A)     ── freeze ──>     disk.qcow2 (B, empty) ──> disk.qcow2.MARK.layer (A) ──> …
//! ```
//!
//! The machine's disk keeps its path. Layers lie beside it, and name each other without a folder: whoever has links to
//! all of them in another folder has the disk as it was, and each file stays as long as anybody has a link to it.
//!
//! **Crash safety.** The new image is whole and safe before it gets the name, by one rename. Both images have the same
//! content at that moment.

use super::{Live, lock};
use crate::convert::Draft;
use crate::file::HostFile;
use crate::file::sync_file;
use crate::qcow2::{Backing, CreateOptions, Qcow2};
use crate::{Access, Disk, Error, ErrorKind, Format, Image, Operation, Progress};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the name of a layer ends.
const SUFFIX: &str = "layer";
/// Data is copied in pieces of so many bytes.
const PIECE: u64 = 1 << 20;

/// Whether this is the name of a layer.
pub fn is_layer(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == SUFFIX)
}

/// Whether this is a layer of the disk whose image on top has the name of `top`, in whatever folder.
pub fn is_layer_of(path: &Path, top: &Path) -> bool {
    let (Some(name), Some(top)) = (path.file_name(), top.file_name()) else { return false };
    let rest = name.as_encoded_bytes().strip_prefix(top.as_encoded_bytes());
    is_layer(path) && rest.is_some_and(|rest| rest.first() == Some(&b'.'))
}

/// An image that is ready to be put on top.
pub struct Freezing {
    draft: Draft,
    image: Arc<Qcow2>,
    /// The image that becomes a layer.
    top: Arc<Qcow2>,
    layer: PathBuf,
}

impl Live {
    /// Whether [`Live::freeze`] can be done: the image on top is a qcow2 image in `folder`, an absolute path, that
    /// can be written to, and no job is at work.
    pub fn can_freeze(&self, folder: &Path) -> bool {
        let image = lock(&self.image);
        let is_fit = image.qcow2.is_some() && !image.disk.info().read_only;
        is_fit && image.path.parent() == Some(folder) && self.job.try_lock().is_ok()
    }

    /// The layers that the disk stands on, the nearest first.
    pub fn layers(&self) -> Vec<PathBuf> {
        let image = lock(&self.image);
        let is_own = |path: &&PathBuf| is_layer(path) && path.parent() == image.path.parent();
        image.chain.iter().take_while(is_own).cloned().collect()
    }

    /// Does what takes time before [`Live::freeze`], while the guest goes on. `mark` makes the layer's name one that
    /// nobody has yet.
    ///
    /// # Errors
    /// As [`create`](crate::create); nothing is left then.
    pub fn prepare_freeze(&self, mark: &str) -> Result<Freezing, Error> {
        let operation = Operation::Create;
        let top = self.writable_qcow2(operation)?;
        let path = lock(&self.image).path.clone();
        let fault = || Error::new(ErrorKind::Unsupported, operation).with_path(&path);
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(fault().with_detail("its name is no text, and images cannot name it"));
        };
        let name = format!("{name}.{mark}.{SUFFIX}");
        let layer = path.with_file_name(&name);
        self.name_below_wholly(&top)?;
        // Little is left of it for the moment in which the guest stands still.
        top.flush()?;
        let info = top.image_info();
        let backing = Backing { name, format: Some(Format::Qcow2.name().into()) };
        let size = top.info().size;
        let options = CreateOptions {
            backing: Some(backing),
            cluster_size: info.cluster_size,
            ..CreateOptions::new(size)
        };
        let draft = Draft::beside(&path, true, operation)?;
        Qcow2::create(&draft.path, &options, Some(top.clone()))?.close()?;
        sync_file(&draft.path, operation)?;
        let file = HostFile::open(&draft.path, Access::ReadWrite)?.renamed(&path);
        let image = Arc::new(Qcow2::open(file, Some(top.clone()), None)?);
        Ok(Freezing { draft, image, top, layer })
    }

    /// Has the image name what it stands on by a whole path, unless that is a layer: it is to be found from other
    /// folders, too.
    fn name_below_wholly(&self, top: &Qcow2) -> Result<(), Error> {
        let _job = self.begin(Operation::Create)?;
        let (path, below) = {
            let image = lock(&self.image);
            (image.path.clone(), image.chain.first().cloned())
        };
        let (Some(backing), Some(below)) = (top.image_info().backing, below) else { return Ok(()) };
        if Path::new(&backing.name).is_absolute() || is_layer(&below) {
            return Ok(());
        }
        let failed = |error| Error::from_io(Operation::Create, error).with_path(&below);
        let whole = std::path::absolute(&below).map_err(failed)?;
        let Some(name) = whole.to_str() else {
            return Err(Error::new(ErrorKind::Unsupported, Operation::Create)
                .with_path(path)
                .with_detail("the name of what it stands on is no text"));
        };
        top.set_backing(Some(Backing { name: name.to_owned(), ..backing }), top.backing())
    }

    /// Makes the image on top a layer and goes on with an empty one. Returns the layer's path.
    ///
    /// No request may be in flight at the disk's queues, and queues are made anew afterwards.
    ///
    /// # Errors
    /// As the host fails, or when the disk's images have changed since it was prepared; the disk is then as before.
    pub fn freeze(&self, freezing: Freezing) -> Result<PathBuf, Error> {
        let operation = Operation::Create;
        let _job = self.begin(operation)?;
        let Freezing { draft, image, top, layer } = freezing;
        let old = lock(&self.image).clone();
        let is_same = old.qcow2.as_ref().is_some_and(|now| Arc::ptr_eq(now, &top));
        if !is_same || top.info().size != image.info().size {
            return Err(self.refused(operation, "its images have changed meanwhile; try again"));
        }
        top.flush()?;
        std::fs::hard_link(&old.path, &layer)
            .map_err(|error| Error::from_io(operation, error).with_path(&layer))?;
        if let Err(error) = draft.publish() {
            let _ = std::fs::remove_file(&layer);
            return Err(error);
        }
        // Nobody writes to the layer from here on, whether or not the host lets others have it: they are told then.
        let _ = top.freeze();
        let below = Image { path: layer.clone(), ..old.clone() };
        let mut chain = vec![layer.clone()];
        chain.extend(old.chain);
        self.disk.replace(image.clone());
        *lock(&self.image) = Image {
            disk: image.clone(),
            format: Format::Qcow2,
            path: old.path,
            qcow2: Some(image),
            chain,
            below: Some(Arc::new(below)),
        };
        // What others may have links to is not committed into.
        lock(&self.below).clear();
        Ok(layer)
    }

    /// Takes what its layers hold into the image on top, which then stands on what the last of them stood on.
    /// Returns the layers: they belong to others now, or to nobody. The guest may use the disk meanwhile.
    ///
    /// # Errors
    /// As the files. What was copied until then stays, and the image stands on what it stood on.
    pub fn collapse(&self, progress: &Progress) -> Result<Vec<PathBuf>, Error> {
        let operation = Operation::Rebase;
        let _job = self.begin(operation)?;
        let top = self.writable_qcow2(operation)?;
        let layers = self.layers();
        let mut last = lock(&self.image).below.clone();
        for _ in 1..layers.len() {
            last = last.and_then(|image| image.below.clone());
        }
        let (Some(last), false) = (last, layers.is_empty()) else { return Ok(Vec::new()) };
        copy_layers(&top, layers.len() as u32, progress)?;
        let backing = last.qcow2.as_ref().and_then(|qcow2| qcow2.image_info().backing);
        top.set_backing(backing, last.below.as_ref().map(|below| below.disk.clone()))?;
        let mut image = lock(&self.image);
        image.chain.drain(..layers.len());
        image.below = last.below.clone();
        Ok(layers)
    }
}

/// Gives an image a copy of what its next `number` layers hold.
fn copy_layers(top: &Qcow2, number: u32, progress: &Progress) -> Result<(), Error> {
    let size = top.info().size;
    progress.begin(size);
    let mut at = 0;
    while at < size {
        progress.check(Operation::Rebase)?;
        let extent = top.extent(at, (size - at).min(PIECE))?;
        if extent.present && (1..=number).contains(&extent.depth) {
            top.copy_up(at, extent.len)?;
        }
        progress.advance(extent.len);
        at += extent.len;
    }
    top.flush()
}
