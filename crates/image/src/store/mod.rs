//! The store: images of one host, by content.
//!
//! ```text
//! names/debian@12 ──> manifests/<digest> ──> blobs/<digest>   (kernel, initrd, disks)
//! pins/<instance> ──┘        ^
//! cache/<key>  ── build ─────┘ or a blob        signatures/<digest>/<key id>
//! ```
//!
//! Everything under `blobs` and `manifests` is named by its blake3 digest and never changes; a name is a
//! small file that is replaced as a whole. So a reader needs no lock, a crash leaves at most something that
//! nobody names, and two images with the same disk have it once. Whoever adds holds the lock shared (a
//! [`Session`]), so that [`Store::prune`], which holds it alone, never takes away what is about to be named.

mod prune;
mod signatures;
mod view;

pub use prune::{PruneOptions, Pruned};

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use api::image::{Blob, Digest, ImageName, MANIFEST_LEN_MAX, Manifest};
use rustix::fs::FlockOperation;
use serde::de::DeserializeOwned;

use crate::error::AboutFile;
use crate::files::{self, RemoveUnlessKept, SparseWriter};
use crate::progress::{self, Progress};
use crate::{Error, ErrorKind, Result};

/// The store's own form. One of another form is refused.
const FORM: &str = "arnia image store 1\n";
/// Fewest digits by which an image can be named.
const PREFIX_LEN_MIN: usize = 6;

/// The images of one host. Cheap to clone; usable from many threads and processes at once.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// The right to add to a store. While it lives, nothing is pruned.
#[derive(Debug)]
pub struct Session<'a> {
    store: &'a Store,
    _lock: File,
}

impl Store {
    /// Opens the store in a folder, and makes it if there is none.
    ///
    /// # Errors
    /// If the folder cannot be used or holds a store of another form.
    pub fn open(root: impl Into<PathBuf>) -> Result<Store> {
        let store = Store { root: root.into() };
        for folder in ["blobs", "manifests", "names", "pins", "cache", "signatures", "partial"] {
            let path = store.root.join(folder);
            fs::create_dir_all(&path).about("create", &path)?;
        }
        let form = store.root.join("form");
        match fs::read_to_string(&form) {
            Ok(text) if text == FORM => {}
            Ok(text) => {
                let text = format!(
                    "{} is {:?}, which this program does not know",
                    store.root.display(),
                    text.trim()
                );
                return Err(
                    Error::bad_input(text).with_remedy("use the program that made it, or another folder")
                );
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                files::write_whole(&form, FORM.as_bytes())?
            }
            Err(error) => return Err(Error::file("read", &form, error)),
        }
        Ok(store)
    }

    /// The folder of this user's store: `ARNIA_IMAGES`, or `/var/lib/arnia/images` for root, or
    /// `arnia/images` in the user's data folder.
    pub fn default_folder() -> PathBuf {
        if let Some(path) = std::env::var_os("ARNIA_IMAGES") {
            return path.into();
        }
        if rustix::process::geteuid().is_root() {
            return "/var/lib/arnia/images".into();
        }
        let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let home =
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".local/share");
        data.unwrap_or_else(home).join("arnia/images")
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.root
    }

    /// Begins to add. Waits while somebody prunes.
    ///
    /// # Errors
    /// If the store cannot be locked.
    pub fn session(&self) -> Result<Session<'_>> {
        let lock = self.lock_file()?;
        rustix::fs::flock(&lock, FlockOperation::LockShared).about("lock", &self.root)?;
        Ok(Session { store: self, _lock: lock })
    }

    /// The lock, held by nobody else; nothing if somebody adds.
    fn exclusive(&self) -> Result<Option<File>> {
        let lock = self.lock_file()?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(lock)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(Error::file("lock", &self.root, error.into())),
        }
    }

    fn lock_file(&self) -> Result<File> {
        let path = self.root.join("lock");
        File::options().create(true).truncate(false).write(true).open(&path).about("open", &path)
    }

    fn place(&self, folder: &str, digest: Digest) -> PathBuf {
        self.root.join(folder).join(digest.hex())
    }

    fn name_place(&self, name: &ImageName) -> PathBuf {
        // Neither character can be part of a name.
        self.root.join("names").join(format!("{}@{}", name.name().replace('/', "+"), name.tag()))
    }

    /// Where a blob lies. It is read-only and stays as it is; copy it or lay something over it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if it is not there; [`ErrorKind::Unverified`] if it has another length.
    pub fn blob_path(&self, blob: &Blob) -> Result<PathBuf> {
        let path = self.place("blobs", blob.digest);
        let len = path.metadata().about("find the blob", &path)?.len();
        if len != blob.size {
            let text = format!("the blob {} has {len} bytes instead of {}", blob.digest, blob.size);
            return Err(Error::new(ErrorKind::Unverified, text)
                .with_remedy("the host's disk may be failing; pull the image again"));
        }
        Ok(path)
    }

    /// Whether a blob is there.
    pub fn has_blob(&self, blob: &Blob) -> bool {
        self.blob_path(blob).is_ok()
    }

    /// The manifest of an image.
    ///
    /// # Errors
    /// If there is none, or it is not what its name says.
    pub fn manifest(&self, digest: Digest) -> Result<Manifest> {
        let bytes = self.manifest_bytes(digest)?;
        Manifest::parse(&bytes).map_err(|error| Error::new(ErrorKind::Unverified, error.to_string()))
    }

    /// Its bytes, of which its digest is made.
    ///
    /// # Errors
    /// As [`Store::manifest`].
    pub fn manifest_bytes(&self, digest: Digest) -> Result<Vec<u8>> {
        let path = self.place("manifests", digest);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::new(ErrorKind::NotFound, format!("there is no image {digest}")));
            }
            result => result.about("open", &path)?,
        };
        let mut bytes = Vec::new();
        file.take(MANIFEST_LEN_MAX + 1).read_to_end(&mut bytes).about("read", &path)?;
        if *blake3::hash(&bytes).as_bytes() != digest.0 {
            let text = format!("the manifest {} is not what its name says", path.display());
            return Err(Error::new(ErrorKind::Unverified, text));
        }
        Ok(bytes)
    }

    /// The image of this name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn by_name(&self, name: &ImageName) -> Result<Digest> {
        let path = self.name_place(name);
        match read_digest(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(Error::new(ErrorKind::NotFound, format!("there is no image {name}"))
                    .with_remedy("`arnia image ls` shows those that there are"))
            }
            result => result,
        }
    }

    /// The image that somebody means: by name, by digest or by its first digits.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or [`ErrorKind::BadInput`] if it could be several.
    pub fn resolve(&self, text: &str) -> Result<Digest> {
        let digits = text.strip_prefix("blake3:").unwrap_or(text);
        let named = ImageName::from_str(text);
        if let Ok(name) = &named
            && let Ok(digest) = self.by_name(name)
        {
            return Ok(digest);
        }
        if digits.len() >= PREFIX_LEN_MIN && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let mut found = self.manifests()?;
            found.retain(|digest| digest.hex().starts_with(digits));
            match found.as_slice() {
                [] => {}
                [digest] => return Ok(*digest),
                several => {
                    let text = format!("{} images begin with {digits}", several.len());
                    return Err(Error::bad_input(text).with_remedy("give more digits"));
                }
            }
        }
        self.by_name(&named.map_err(Error::bad_input)?)
    }

    /// All manifests, named or not.
    fn manifests(&self) -> Result<Vec<Digest>> {
        let names = entries(&self.root.join("manifests"))?;
        Ok(names.iter().filter_map(|name| Digest::from_hex(name)).collect())
    }

    /// All names.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn names(&self) -> Result<Vec<(ImageName, Digest)>> {
        let mut names = Vec::new();
        for entry in entries(&self.root.join("names"))? {
            let Some((name, tag)) = entry.split_once('@') else { continue };
            let Ok(name) = format!("{}:{tag}", name.replace('+', "/")).parse::<ImageName>() else { continue };
            // It may be gone by now.
            if let Ok(digest) = self.by_name(&name) {
                names.push((name, digest));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Takes a name away. The image stays until it is pruned.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn remove_name(&self, name: &ImageName) -> Result<Digest> {
        let digest = self.by_name(name)?;
        let path = self.name_place(name);
        fs::remove_file(&path).about("remove", &path)?;
        files::sync_folder(&path)?;
        Ok(digest)
    }

    /// Keeps an image for somebody, an instance for example, until it is unpinned; whatever happens to its
    /// names. One owner has one pin.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such image, [`ErrorKind::BadInput`] for an odd owner.
    pub fn pin(&self, owner: &str, digest: Digest) -> Result<()> {
        let session = self.session()?;
        session.store.manifest(digest)?;
        let (place, text) = (self.pin_place(owner)?, format!("{digest}\n"));
        if fs::read(&place).is_ok_and(|there| there == text.as_bytes()) {
            return Ok(());
        }
        files::write_whole(&place, text.as_bytes())
    }

    /// Lets it go. Without a pin nothing happens.
    ///
    /// # Errors
    /// If the pin cannot be removed.
    pub fn unpin(&self, owner: &str) -> Result<()> {
        let path = self.pin_place(owner)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &path, error)),
            _ => Ok(()),
        }
    }

    /// All pins: owner and image.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn pins(&self) -> Result<Vec<(String, Digest)>> {
        let folder = self.root.join("pins");
        let mut pins = Vec::new();
        for owner in entries(&folder)? {
            match read_digest(&folder.join(&owner)) {
                Ok(digest) => pins.push((owner, digest)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // A draft as earlier versions named them, cut short by a crash.
                Err(error) if error.kind() == ErrorKind::Unverified && owner.contains(".new-") => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pins)
    }

    fn pin_place(&self, owner: &str) -> Result<PathBuf> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if owner.is_empty() || owner.len() > 200 || owner.starts_with('.') || !owner.bytes().all(good) {
            return Err(Error::bad_input(format!(
                "{owner:?} cannot own an image: letters, digits, . _ and -"
            )));
        }
        Ok(self.root.join("pins").join(owner))
    }

    /// Reads all of an image and compares it with its digests.
    ///
    /// # Errors
    /// [`ErrorKind::Unverified`] with the first blob that is not what it should be.
    pub fn check(&self, digest: Digest, progress: &mut dyn Progress) -> Result<()> {
        for blob in self.manifest(digest)?.blobs() {
            let path = self.blob_path(&blob)?;
            progress.begin(&format!("checking {}", blob.digest.short()), Some(blob.size));
            if files::digest(&path, progress)? != blob {
                let text = format!("{} is not what its name says", path.display());
                return Err(Error::new(ErrorKind::Unverified, text).with_remedy(
                    "the host's disk may be failing; remove the image and pull or build it again",
                ));
            }
        }
        Ok(())
    }

    /// What a build left under this key, if it is still there.
    pub(crate) fn cached<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.root.join("cache").join(key)).ok()?).ok()
    }
}

impl<'a> Session<'a> {
    /// The store.
    pub fn store(&self) -> &'a Store {
        self.store
    }

    /// A place in the store's folder for something unfinished; the caller removes it.
    pub(crate) fn partial(&self, what: &str) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.store.root.join("partial").join(format!("{what}-{}-{number}", std::process::id()))
    }

    /// Takes a file into the store. It must lie on the same file system, and is moved.
    ///
    /// # Errors
    /// If it cannot be read or moved.
    pub fn take_file(&self, path: &Path, progress: &mut dyn Progress) -> Result<Blob> {
        let blob = files::digest(path, progress)?;
        File::open(path).and_then(|file| file.sync_all()).about("write", path)?;
        self.settle(path, blob)?;
        Ok(blob)
    }

    /// Takes a copy of a file into the store.
    ///
    /// # Errors
    /// If it cannot be read, or the host's disk is full.
    pub fn copy_file(&self, path: &Path, progress: &mut dyn Progress) -> Result<Blob> {
        let partial = self.partial("copy");
        let undo = RemoveUnlessKept::new(&partial);
        files::copy_sparse(path, &partial, progress)?;
        let blob = self.take_file(&partial, progress)?;
        undo.keep();
        Ok(blob)
    }

    /// Takes all of a stream into the store. If `expected` is given, it must be that, and no more of it is
    /// read than that is long.
    ///
    /// # Errors
    /// [`ErrorKind::Unverified`] if it is something else.
    pub fn take_stream(
        &self,
        from: &mut dyn Read,
        expected: Option<&Blob>,
        progress: &mut dyn Progress,
    ) -> Result<Blob> {
        let partial = self.partial("stream");
        let undo = RemoveUnlessKept::new(&partial);
        let mut writer = SparseWriter::create(&partial).about("create", &partial)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            progress::check(progress)?;
            let count = match from.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(|error| {
                    Error::new(ErrorKind::Transfer, "the data broke off").with_source(error)
                })?,
            };
            if count == 0 {
                break;
            }
            if expected.is_some_and(|expected| writer.len() + count as u64 > expected.size) {
                return Err(Error::new(ErrorKind::Unverified, "there is more data than the manifest says"));
            }
            writer.write_all(&buffer[..count]).about("write", &partial)?;
            progress.advance(count as u64);
        }
        let blob = writer.finish().about("write", &partial)?;
        if let Some(expected) = expected
            && *expected != blob
        {
            let text = format!("the data is {} and not {}", blob.digest, expected.digest);
            return Err(Error::new(ErrorKind::Unverified, text));
        }
        self.settle(&partial, blob)?;
        undo.keep();
        Ok(blob)
    }

    /// Gives a finished file its name.
    fn settle(&self, path: &Path, blob: Blob) -> Result<()> {
        let place = self.store.place("blobs", blob.digest);
        if self.store.has_blob(&blob) {
            // Somebody was here before; theirs may be in use.
            return fs::remove_file(path).about("remove", path);
        }
        let mut permissions = path.metadata().about("read", path)?.permissions();
        permissions.set_readonly(true);
        fs::set_permissions(path, permissions).about("write", path)?;
        fs::rename(path, &place).about("write", &place)?;
        files::sync_folder(&place)
    }

    /// Adds an image all of whose blobs are there.
    ///
    /// # Errors
    /// If the manifest cannot be, or a blob is missing.
    pub fn add_manifest(&self, manifest: &Manifest) -> Result<Digest> {
        manifest.check().map_err(|error| Error::bad_input(error.to_string()))?;
        self.add_manifest_bytes(&manifest.to_bytes())
    }

    /// Adds an image by its manifest's very bytes, which its digest and its signatures are of.
    ///
    /// # Errors
    /// As [`Session::add_manifest`].
    pub fn add_manifest_bytes(&self, bytes: &[u8]) -> Result<Digest> {
        let manifest = Manifest::parse(bytes).map_err(|error| Error::bad_input(error.to_string()))?;
        for blob in manifest.blobs() {
            self.store.blob_path(&blob)?;
        }
        let digest = Digest(*blake3::hash(bytes).as_bytes());
        let place = self.store.place("manifests", digest);
        if !place.exists() {
            files::write_whole(&place, bytes)?;
        }
        Ok(digest)
    }

    /// Gives an image a name, in place of what had it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such image.
    pub fn set_name(&self, name: &ImageName, digest: Digest) -> Result<()> {
        self.store.manifest(digest)?;
        files::write_whole(&self.store.name_place(name), format!("{digest}\n").as_bytes())
    }

    /// Remembers what a build made.
    pub(crate) fn cache(&self, key: &str, what: &impl serde::Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(what)
            .map_err(|error| Error::failed("cannot note a layer").with_source(error))?;
        files::write_whole(&self.store.root.join("cache").join(key), &bytes)
    }
}

fn read_digest(path: &Path) -> Result<Digest> {
    let text = fs::read_to_string(path).about("read", path)?;
    text.trim()
        .parse()
        .map_err(|error: String| Error::new(ErrorKind::Unverified, format!("{}: {error}", path.display())))
}

/// Names in a folder of the store, without drafts.
fn entries(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).about("read", folder)? {
        let name = entry.about("read", folder)?.file_name().to_string_lossy().into_owned();
        if !files::is_draft(&name) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
pub(crate) mod tests;
