//! The disk of a machine that runs, whose images change under it: overlays are put on top, committed away,
//! flattened and rebased while the guest goes on.
//!
//! ```text
//!   device queues ──> LiveDisk ──> the image on top ──> what it stands on ──> …
//!                        ^ replaced while no request is in flight
//! ```
//!
//! **Crash safety.** At every moment the files alone are a sound image with the disk's present content: data is
//! safe where it goes before it disappears where it was, and a name is changed by one write. `kill -9` in the
//! middle leaves a job half done, which can be begun again or left.

use crate::convert::Draft;
use crate::file::HostFile;
use crate::layers;
use crate::qcow2::{Backing, CreateOptions, Qcow2};
use crate::{
    Access, Buffers, Disk, DiskInfo, Durability, Error, ErrorKind, Extent, Image, IoQueue, OpenOptions,
    Operation, Progress, Unmap,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

pub use freezing::{Freezing, is_layer, is_layer_of};

/// A disk that stands for another, which can be replaced.
pub struct LiveDisk {
    current: RwLock<Arc<dyn Disk>>,
}

impl LiveDisk {
    fn current(&self) -> Arc<dyn Disk> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, disk: Arc<dyn Disk>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = disk;
    }
}

impl Disk for LiveDisk {
    fn info(&self) -> DiskInfo {
        self.current().info()
    }

    fn read(&self, offset: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        self.current().read(offset, into)
    }

    fn read_now(&self, offset: u64, into: &mut Buffers<'_>) -> Option<Result<(), Error>> {
        self.current().read_now(offset, into)
    }

    fn write(&self, offset: u64, from: &Buffers<'_>, durability: Durability) -> Result<(), Error> {
        self.current().write(offset, from, durability)
    }

    fn flush(&self) -> Result<(), Error> {
        self.current().flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.current().discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: Unmap, durability: Durability) -> Result<(), Error> {
        self.current().write_zeroes(offset, len, unmap, durability)
    }

    fn extent(&self, offset: u64, len: u64) -> Result<Extent, Error> {
        self.current().extent(offset, len)
    }

    fn resize(&self, size: u64) -> Result<(), Error> {
        self.current().resize(size)
    }

    fn prepare_queues(&self, number: usize) {
        self.current().prepare_queues(number);
    }

    /// A queue of the present image: queues are made anew when it is replaced.
    fn io_queue(self: Arc<Self>, depth: usize) -> Box<dyn IoQueue> {
        self.current().io_queue(depth)
    }
}

/// A disk with its images, for block jobs. All calls may come from any thread; jobs at a disk take turns.
pub struct Live {
    disk: Arc<LiveDisk>,
    /// The image on top.
    image: Mutex<Image>,
    options: OpenOptions,
    /// Images that overlays were put on while the machine ran: still open to be written, last on top.
    below: Mutex<Vec<Image>>,
    /// Held by who changes the images.
    job: Mutex<()>,
}

/// What a disk consists of now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveInfo {
    /// The image on top.
    pub path: PathBuf,
    /// Its format.
    pub format: crate::Format,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Whether it can only be read.
    pub read_only: bool,
    /// The files behind the image, nearest first.
    pub chain: Vec<PathBuf>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    /// Takes an image that was opened with `options`. Paths are made absolute: the folder that they start from
    /// may not be known later.
    pub fn new(mut image: Image, options: &OpenOptions) -> Live {
        image.path = std::path::absolute(&image.path).unwrap_or(image.path);
        let disk = Arc::new(LiveDisk { current: RwLock::new(image.disk.clone()) });
        Live {
            disk,
            image: Mutex::new(image),
            options: options.clone(),
            below: Mutex::default(),
            job: Mutex::new(()),
        }
    }

    /// The disk, for devices.
    pub fn disk(&self) -> Arc<LiveDisk> {
        self.disk.clone()
    }

    /// What it consists of now.
    pub fn info(&self) -> LiveInfo {
        let image = lock(&self.image);
        let DiskInfo { size, read_only, .. } = image.disk.info();
        LiveInfo {
            path: image.path.clone(),
            format: image.format,
            size,
            read_only,
            chain: image.chain.clone(),
        }
    }

    fn begin(&self, operation: Operation) -> Result<MutexGuard<'_, ()>, Error> {
        self.job.try_lock().map_err(|_| {
            self.refused(operation, "another job is at work on it; wait for its end, or cancel it")
        })
    }

    fn refused(&self, operation: Operation, why: impl Into<String>) -> Error {
        Error::new(ErrorKind::Unsupported, operation).with_path(&lock(&self.image).path).with_detail(why)
    }

    fn writable_qcow2(&self, operation: Operation) -> Result<Arc<Qcow2>, Error> {
        let image = lock(&self.image).clone();
        if image.disk.info().read_only {
            return Err(Error::new(ErrorKind::ReadOnly, operation).with_path(image.path));
        }
        image.qcow2.ok_or_else(|| {
            self.refused(operation, format!("it is {}; only qcow2 images stand on others", image.format))
        })
    }

    /// Changes the size. The guest may use the disk meanwhile; the device has to tell it afterwards.
    ///
    /// # Errors
    /// As [`Disk::resize`]; and for a smaller size, which would cut off what the guest still uses.
    pub fn resize(&self, size: u64) -> Result<(), Error> {
        let _job = self.begin(Operation::Resize)?;
        let now = self.disk.info().size;
        if size < now {
            return Err(self.refused(
                Operation::Resize,
                format!("it has {now} bytes and a guest that may use all of them; it can only become larger"),
            ));
        }
        if size == now { Ok(()) } else { self.disk.resize(size) }
    }

    /// Puts an empty image on top: what the guest writes from now on goes to a new file at `path`, and the
    /// present image stays as it is. In constant time.
    ///
    /// No request may be in flight at the disk's queues, and queues are made anew afterwards.
    ///
    /// # Errors
    /// As [`create`](crate::create); the disk is then as before.
    pub fn overlay(&self, path: &Path) -> Result<(), Error> {
        let operation = Operation::Create;
        let _job = self.begin(operation)?;
        let below = lock(&self.image).clone();
        if below.disk.info().read_only {
            return Err(Error::new(ErrorKind::ReadOnly, operation).with_path(below.path));
        }
        below.disk.flush()?;
        let name = layers::name_for(path, &below.path)?;
        let backing = Backing { name, format: Some(below.format.name().into()) };
        let size = below.disk.info().size;
        let options = CreateOptions { backing: Some(backing), ..CreateOptions::new(size) };
        let draft = Draft::new(path, false, operation)?;
        Qcow2::create(&draft.path, &options, Some(below.disk.clone()))?.close()?;
        draft.publish_safely()?;
        let file = HostFile::open(path, Access::ReadWrite)?;
        let image = Arc::new(Qcow2::open(file, Some(below.disk.clone()), None)?);
        let mut chain = vec![below.path.clone()];
        chain.extend(below.chain.iter().cloned());
        self.disk.replace(image.clone());
        *lock(&self.image) = Image {
            disk: image.clone(),
            format: crate::Format::Qcow2,
            path: path.to_owned(),
            qcow2: Some(image),
            chain,
            below: Some(Arc::new(below.clone())),
        };
        lock(&self.below).push(below);
        Ok(())
    }

    /// Makes the image stand on another one, or on none (`None`): copies into it what would show otherwise. The
    /// guest may use the disk meanwhile.
    ///
    /// # Errors
    /// As [`rebase`](crate::rebase). What was copied until then stays, and the image stands on what it stood on.
    pub fn rebase(&self, new: Option<&Path>, progress: &Progress) -> Result<(), Error> {
        let operation = Operation::Rebase;
        let _job = self.begin(operation)?;
        let image = self.writable_qcow2(operation)?;
        let below = match new {
            None => {
                layers::flatten(&image, progress)?;
                None
            }
            Some(path) => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
                // One that is open here already is locked against everybody else.
                let known = lock(&self.below).iter().find(|known| known.path == path).cloned();
                let below = match known {
                    Some(known) => known,
                    None => Image::open(
                        &path,
                        &OpenOptions {
                            access: Access::ReadOnly,
                            format: None,
                            snapshot: None,
                            ..self.options.clone()
                        },
                    )?,
                };
                let own = lock(&self.image).path.clone();
                layers::rebase_open(&image, &own, &path, &below, progress)?;
                Some(below)
            }
        };
        let chain = |below: &Image| std::iter::once(&below.path).chain(&below.chain).cloned().collect();
        let kept: Vec<PathBuf> = below.as_ref().map(chain).unwrap_or_default();
        {
            let mut image = lock(&self.image);
            image.chain = kept.clone();
            image.below = below.map(Arc::new);
        }
        // What nothing stands on any more is let go.
        lock(&self.below).retain(|image| kept.contains(&image.path));
        Ok(())
    }

    /// Moves what the image on top stores into the one that it stands on, as far as the guest does not write
    /// meanwhile. [`Live::finish_commit`] does the rest.
    ///
    /// # Errors
    /// As [`commit`](crate::commit), and when the lower image is not open to be written: only those are that an
    /// overlay was put on while the machine ran.
    pub fn commit(&self, progress: &Progress) -> Result<(), Error> {
        let operation = Operation::Commit;
        let _job = self.begin(operation)?;
        let (image, below) = self.commit_pair()?;
        let size = image.info().size;
        if below.disk.info().size < size {
            below.disk.resize(size)?;
        }
        image.move_down(&*below.disk, progress)
    }

    fn commit_pair(&self) -> Result<(Arc<Qcow2>, Image), Error> {
        let image = self.writable_qcow2(Operation::Commit)?;
        let below = lock(&self.below).last().cloned();
        match below {
            Some(below) => Ok((image, below)),
            None if lock(&self.image).chain.is_empty() => {
                Err(self.refused(Operation::Commit, "it stands on no other image"))
            }
            None => Err(self.refused(
                Operation::Commit,
                "what it stands on is open to be read only; stop the machine and use `arnia disk commit`",
            )),
        }
    }

    /// Ends a commit: moves the rest, goes on with the lower image and removes the one that was on top.
    ///
    /// No request may be in flight at the disk's queues, and queues are made anew afterwards.
    ///
    /// # Errors
    /// As [`Live::commit`]; the disk is then as before.
    pub fn finish_commit(&self) -> Result<(), Error> {
        let _job = self.begin(Operation::Commit)?;
        let (image, below) = self.commit_pair()?;
        // It may have become larger meanwhile.
        let size = image.info().size;
        if below.disk.info().size < size {
            below.disk.resize(size)?;
        }
        image.move_down(&*below.disk, &Progress::default())?;
        below.disk.flush()?;
        self.disk.replace(below.disk.clone());
        let above = std::mem::replace(&mut *lock(&self.image), below);
        lock(&self.below).pop();
        // It is empty, and nothing stands on it.
        let _ = std::fs::remove_file(&above.path);
        Ok(())
    }
}

mod freezing;

#[cfg(test)]
mod tests;
