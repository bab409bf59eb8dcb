//! Images on the way: archives, plain HTTP(S), and OCI registries.
//!
//! | place | manifest | blobs |
//! |---|---|---|
//! | archive | `manifest.json`, `signatures/KEY.minisig` | `blobs/DIGEST.zst` |
//! | `https://HOST/PATH/TAG.json` | that, and `TAG.json.minisig` | `https://HOST/PATH/blobs/DIGEST.zst` |
//! | `oci://HOST/PATH:TAG` | the config of an OCI manifest | layers |
//!
//! Blobs travel compressed by zstd, whose checks are not relied on: the manifest says what must come out,
//! and how much. So a hostile place can give nothing else, and can fill no more than was announced.

pub mod archive;
mod http;
mod oci;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use api::image::{Blob, Digest, ImageName, Manifest};

use crate::error::AboutFile;
use crate::progress::{self, Progress};
use crate::sign::TrustedKey;
use crate::{Error, ErrorKind, Result, Session, Store, sign};

pub use oci::RegistryLogin;

/// Level of compression: quick, because what is compressed is often sent but once.
const LEVEL: i32 = 3;
/// Longest that the compressed form of so many bytes may be: zstd adds little to what it cannot compress.
fn compressed_len_max(len: u64) -> u64 {
    len + len / 128 + (64 << 10)
}

/// Where images are pulled from and pushed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A manifest's URL.
    Http {
        /// The URL of the folder, with its slash.
        folder: String,
        /// The name of the manifest in it, without `.json`.
        tag: String,
    },
    /// A repository of an OCI registry.
    Oci {
        /// `https://HOST` or `http://HOST`.
        registry: String,
        /// The repository.
        repository: String,
        /// The tag.
        tag: String,
    },
}

impl Place {
    /// Reads `https://HOST/PATH/TAG.json` or `oci://HOST/PATH:TAG`. Registries on this host are reached
    /// without TLS, as is usual.
    ///
    /// # Errors
    /// If it is neither.
    pub fn parse(text: &str) -> Result<Place> {
        let bad = || {
            Error::bad_input(format!("{text:?} is no place for images"))
                .with_remedy("write https://HOST/PATH/TAG.json or oci://HOST/PATH:TAG")
        };
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(bad());
        }
        if let Some(rest) = text.strip_prefix("oci://") {
            let (host, path) = rest.split_once('/').ok_or_else(bad)?;
            // The same rules as for names in the store.
            let name: ImageName = path.parse().map_err(|error: String| bad().with_source(error))?;
            let bare = host.rsplit_once(':').map_or(host, |(bare, _)| bare);
            let scheme = if ["localhost", "127.0.0.1", "[::1]"].contains(&bare) { "http" } else { "https" };
            if host.is_empty() {
                return Err(bad());
            }
            return Ok(Place::Oci {
                registry: format!("{scheme}://{host}"),
                repository: name.name().to_owned(),
                tag: name.tag().to_owned(),
            });
        }
        let rest = text.strip_prefix("https://").or(text.strip_prefix("http://")).ok_or_else(bad)?;
        let (folder, file) = text.rsplit_once('/').filter(|_| rest.contains('/')).ok_or_else(bad)?;
        let tag = file
            .strip_suffix(".json")
            .filter(|tag| !tag.is_empty() && !tag.contains(['?', '#']))
            .ok_or_else(bad)?;
        Ok(Place::Http { folder: format!("{folder}/"), tag: tag.to_owned() })
    }

    /// A name for what comes from here.
    pub fn default_name(&self) -> Option<ImageName> {
        match self {
            Place::Http { folder, tag } => {
                let name = folder.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
                format!("{name}:{tag}").parse().ok()
            }
            Place::Oci { repository, tag, .. } => format!("{repository}:{tag}").parse().ok(),
        }
    }
}

/// How a pull is done.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// The image's name here. Default: that of the place.
    pub name: Option<ImageName>,
    /// Keys of which one must have signed the image; with none it need not be signed.
    pub keys: Vec<TrustedKey>,
    /// For a registry that wants one.
    pub login: Option<RegistryLogin>,
}

/// Fetches an image. What is here already is not fetched again; what an interrupted pull left is gone on
/// with.
///
/// # Errors
/// [`ErrorKind::Unverified`] if it is not what it should be or not signed, [`ErrorKind::Transfer`] if the
/// place does not give it.
pub fn pull(
    store: &Store,
    place: &Place,
    options: &PullOptions,
    progress: &mut dyn Progress,
) -> Result<Digest> {
    let name = options.name.clone().or_else(|| place.default_name());
    let name = name
        .ok_or_else(|| Error::bad_input("the image needs a name here").with_remedy("give one by --name"))?;
    let session = store.session()?;
    progress.begin("fetching the manifest", None);
    let mut source: Box<dyn Source> = match place {
        Place::Http { folder, tag } => Box::new(http::Site::open(folder, tag)?),
        Place::Oci { registry, repository, tag } => {
            Box::new(oci::Repository::open(registry, repository, tag, options.login.as_ref())?)
        }
    };
    let bytes = source.manifest()?;
    let manifest =
        Manifest::parse(&bytes).map_err(|error| Error::new(ErrorKind::Unverified, error.to_string()))?;
    let signatures: Vec<_> =
        source.signatures()?.into_iter().filter_map(|text| Some((sign::claimed_id(&text)?, text))).collect();
    if !options.keys.is_empty() {
        // Before a single blob is fetched.
        sign::require(&bytes, &signatures, &options.keys)?;
    }
    for blob in manifest.blobs() {
        if !store.has_blob(&blob) {
            fetch(&session, source.as_mut(), &blob, progress)?;
        }
    }
    let digest = session.add_manifest_bytes(&bytes)?;
    session.keep_signatures(digest, &signatures, &options.keys)?;
    session.set_name(&name, digest)?;
    Ok(digest)
}

/// A place that gives an image.
trait Source {
    /// The manifest's bytes.
    fn manifest(&mut self) -> Result<Vec<u8>>;
    /// Texts of signatures.
    fn signatures(&mut self) -> Result<Vec<String>>;
    /// The compressed blob from this byte on, and whether it really begins there (else at its beginning).
    fn blob(&mut self, blob: &Blob, from: u64) -> Result<(Box<dyn Read>, Resumed)>;
}

/// Whether a place goes on where it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resumed {
    Yes,
    No,
}

/// Fetches one blob: into a file that an interruption leaves behind, then unpacked and checked.
fn fetch(
    session: &Session<'_>,
    source: &mut dyn Source,
    blob: &Blob,
    progress: &mut dyn Progress,
) -> Result<()> {
    let path = session.store().folder().join("partial").join(format!("download-{}", blob.digest.hex()));
    // Two pulls of the same blob take turns; the second finds it done.
    let file = lock_download(&path)?;
    if session.store().has_blob(blob) {
        return fs::remove_file(&path).about("remove", &path);
    }
    let there = file.metadata().about("read", &path)?.len();
    let (reader, resumed) = source.blob(blob, there)?;
    if there > 0 && resumed == Resumed::No {
        file.set_len(0).about("write", &path)?;
    }
    let start = if resumed == Resumed::Yes { there } else { 0 };
    progress.begin(&format!("fetching {}", blob.digest.short()), None);
    progress.advance(start);
    let limit = compressed_len_max(blob.size);
    let mut from = reader.take(limit.saturating_sub(start) + 1);
    let mut buffer = vec![0; 256 << 10];
    let mut to = &file;
    loop {
        progress::check(progress)?;
        let count = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result.map_err(|error| {
                Error::new(ErrorKind::Transfer, "the transfer broke off")
                    .with_source(error)
                    .with_remedy("pull again: it goes on where it stopped")
            })?,
        };
        if count == 0 {
            break;
        }
        to.write_all(&buffer[..count]).about("write", &path)?;
        progress.advance(count as u64);
    }
    if file.metadata().about("read", &path)?.len() > limit {
        fs::remove_file(&path).about("remove", &path)?;
        return Err(Error::new(
            ErrorKind::Unverified,
            format!("more data came for {} than it can have", blob.digest),
        ));
    }
    progress.begin(&format!("checking {}", blob.digest.short()), Some(blob.size));
    let taken = unpack(session, File::open(&path).about("open", &path)?, blob, progress);
    // Whether it was right or wrong, nobody goes on with it. One that was called off is kept.
    if !taken.as_ref().is_err_and(|error| error.kind() == ErrorKind::Cancelled) {
        fs::remove_file(&path).about("remove", &path)?;
    }
    taken
}

/// Opens the file of a download, or makes it, and waits until nobody else works on it.
fn lock_download(path: &Path) -> Result<File> {
    loop {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).about("open", path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).about("lock", path)?;
        let ours = file.metadata().about("read", path)?;
        match path.metadata() {
            Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => return Ok(file),
            // Whoever had it before was done and has removed it; somebody may have made another.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("read", path, error)),
        }
    }
}

/// Unpacks a compressed blob into the store.
fn unpack(session: &Session<'_>, from: impl Read, blob: &Blob, progress: &mut dyn Progress) -> Result<()> {
    let failed = |error: io::Error| {
        Error::new(ErrorKind::Unverified, format!("the data of {} is damaged", blob.digest))
            .with_source(error)
    };
    let mut decoder = zstd::Decoder::new(from).map_err(failed)?;
    session.take_stream(&mut decoder, Some(blob), progress).map(drop).map_err(|error| {
        // What breaks off here is the compressed form, not a connection.
        if error.kind() == ErrorKind::Transfer {
            Error::new(ErrorKind::Unverified, format!("the data of {} is damaged", blob.digest))
                .with_source(error)
        } else {
            error
        }
    })
}

/// Compresses a blob into a file.
fn pack(store: &Store, blob: &Blob, to: &mut dyn Write, progress: &mut dyn Progress) -> Result<()> {
    let path = store.blob_path(blob)?;
    let failed = |error: io::Error| Error::failed("cannot compress").with_source(error);
    let mut from = BufReader::with_capacity(1 << 20, File::open(&path).about("open", &path)?);
    let mut encoder = zstd::Encoder::new(to, LEVEL).map_err(failed)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        progress::check(progress)?;
        let count = from.read(&mut buffer).about("read", &path)?;
        if count == 0 {
            break;
        }
        encoder.write_all(&buffer[..count]).map_err(failed)?;
        progress.advance(count as u64);
    }
    encoder.finish().map_err(failed)?;
    Ok(())
}

/// Sends an image with its signatures. What is there already is not sent again.
///
/// # Errors
/// [`ErrorKind::Transfer`] if the place refuses.
pub fn push(
    store: &Store,
    image: Digest,
    place: &Place,
    login: Option<&RegistryLogin>,
    progress: &mut dyn Progress,
) -> Result<()> {
    let session = store.session()?;
    let manifest = store.manifest(image)?;
    let mut target: Box<dyn Target> = match place {
        Place::Http { folder, tag } => Box::new(http::Site::new(folder, tag)),
        Place::Oci { registry, repository, tag } => {
            Box::new(oci::Upload::new(registry, repository, tag, login)?)
        }
    };
    for blob in manifest.blobs() {
        if target.has_blob(&blob)? {
            continue;
        }
        let path = session.partial("upload");
        let _undo = crate::files::RemoveUnlessKept::new(&path);
        let mut file = File::create(&path).about("create", &path)?;
        progress.begin(&format!("compressing {}", blob.digest.short()), Some(blob.size));
        pack(store, &blob, &mut file, progress)?;
        let len = file.metadata().about("read", &path)?.len();
        progress.begin(&format!("sending {}", blob.digest.short()), Some(len));
        target.send_blob(&blob, &path, progress)?;
    }
    progress.begin("sending the manifest", None);
    let signatures = store.signatures(image)?.into_iter().map(|(_, text)| text).collect();
    target.send_manifest(&store.manifest_bytes(image)?, signatures)
}

/// A place that takes an image.
trait Target {
    /// Whether the blob need not be sent.
    fn has_blob(&mut self, blob: &Blob) -> Result<bool>;
    /// Takes its compressed form.
    fn send_blob(&mut self, blob: &Blob, compressed: &Path, progress: &mut dyn Progress) -> Result<()>;
    /// Takes the rest, after all blobs.
    fn send_manifest(&mut self, bytes: &[u8], signatures: Vec<String>) -> Result<()>;
}

/// A file that tells how far it was read.
struct Watched<'a> {
    file: File,
    progress: &'a mut dyn Progress,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.progress.is_cancelled() {
            return Err(io::Error::other("it was called off"));
        }
        let count = self.file.read(buffer)?;
        self.progress.advance(count as u64);
        Ok(count)
    }
}

fn digest_file_name(digest: Digest) -> String {
    format!("{}.zst", digest.hex())
}

#[cfg(test)]
mod tests;
