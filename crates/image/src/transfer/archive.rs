//! Archives: an image as one tar file.
//!
//! The entries have fixed names; one of another name, a link or a folder makes the archive no image. So
//! nothing in it can name a path of the host.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use api::image::{Digest, ImageName, MANIFEST_LEN_MAX, Manifest};

use super::{compressed_len_max, digest_file_name, pack, unpack};
use crate::error::AboutFile;
use crate::files::{self, RemoveUnlessKept};
use crate::progress::Progress;
use crate::sign::{self, TrustedKey};
use crate::{Error, ErrorKind, Result, Store};

/// Signatures in an archive at most.
const SIGNATURES_MAX: usize = 16;

/// Writes an image into a file, which must not exist.
///
/// # Errors
/// If the image is not there or the file cannot be written; nothing is left then.
pub fn export(store: &Store, image: Digest, to: &Path, progress: &mut dyn Progress) -> Result<()> {
    let session = store.session()?;
    let manifest = store.manifest(image)?;
    let file = File::options().write(true).create_new(true).open(to).about("create", to)?;
    let undo = RemoveUnlessKept::new(to);
    let mut tar = tar::Builder::new(BufWriter::new(file));
    append(&mut tar, "manifest.json", &store.manifest_bytes(image)?).about("write", to)?;
    for (key, text) in store.signatures(image)? {
        append(&mut tar, &format!("signatures/{key}.minisig"), text.as_bytes()).about("write", to)?;
    }
    for blob in manifest.blobs() {
        let path = session.partial("export");
        let _undo = RemoveUnlessKept::new(&path);
        let mut compressed = File::create(&path).about("create", &path)?;
        progress.begin(&format!("compressing {}", blob.digest.short()), Some(blob.size));
        pack(store, &blob, &mut compressed, progress)?;
        let mut header = header(compressed.metadata().about("read", &path)?.len());
        let compressed = File::open(&path).about("open", &path)?;
        tar.append_data(&mut header, format!("blobs/{}", digest_file_name(blob.digest)), compressed)
            .about("write", to)?;
    }
    let file = tar
        .into_inner()
        .and_then(|writer| writer.into_inner().map_err(|error| error.into_error()))
        .about("write", to)?;
    file.sync_all().about("write", to)?;
    undo.keep();
    files::sync_folder(to)
}

/// The header of an ordinary file.
pub(crate) fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header
}

fn append(tar: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    tar.append_data(&mut header(bytes.len() as u64), name, bytes)
}

/// Whether a file looks like an archive of ours: its first entry is the manifest.
pub fn is_archive(path: &Path) -> bool {
    let mut first = [0; 13];
    File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == *b"manifest.json"
}

/// Takes the image of an archive into the store and gives it a name. Blobs that are here already are passed
/// over. If there are keys, one of them must have signed it.
///
/// # Errors
/// [`ErrorKind::BadInput`] for what is no archive of ours, [`ErrorKind::Unverified`] for one that holds
/// something else than it says.
pub fn import(
    store: &Store,
    from: &mut dyn Read,
    name: &ImageName,
    keys: &[TrustedKey],
    progress: &mut dyn Progress,
) -> Result<Digest> {
    let session = store.session()?;
    let mut tar = tar::Archive::new(from);
    let broken = |error: std::io::Error| {
        Error::bad_input("this is no archive of an image, or it is damaged").with_source(error)
    };
    let odd = |what: &str| Error::bad_input(format!("the archive has {what}; that is no image of ours"));
    // As they are: extensions for long names would be read into memory, however long.
    let entries = tar.entries().map_err(broken)?.raw(true);
    let mut manifest: Option<(Vec<u8>, Manifest)> = None;
    let mut signatures = Vec::new();
    let mut checked = false;
    let mut seen = 0;
    for entry in entries {
        let mut entry = entry.map_err(broken)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(odd(&format!("{name:?}, which is no ordinary file")));
        }
        let size = entry.size();
        let mut small = |limit: u64| -> Result<Vec<u8>> {
            if size > limit {
                return Err(odd(&format!("{size} bytes under {name:?}")));
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(broken)?;
            Ok(bytes)
        };
        if name == "manifest.json" && manifest.is_none() {
            let bytes = small(MANIFEST_LEN_MAX)?;
            let parsed = Manifest::parse(&bytes).map_err(|error| Error::bad_input(error.to_string()))?;
            manifest = Some((bytes, parsed));
        } else if name.starts_with("signatures/") && name.ends_with(".minisig") {
            let text = String::from_utf8_lossy(&small(4096)?).into_owned();
            if signatures.len() == SIGNATURES_MAX {
                return Err(odd("too many signatures"));
            }
            signatures.extend(sign::claimed_id(&text).map(|id| (id, text)));
        } else {
            let (bytes, manifest) = manifest.as_ref().ok_or_else(|| odd("no manifest at its beginning"))?;
            if !checked && !keys.is_empty() {
                sign::require(bytes, &signatures, keys)?;
            }
            checked = true;
            let blobs = manifest.blobs();
            let blob = blobs.iter().find(|blob| name == format!("blobs/{}", digest_file_name(blob.digest)));
            let blob = blob.ok_or_else(|| odd(&format!("{name:?}")))?;
            seen += 1;
            if seen > blobs.len() || size > compressed_len_max(blob.size) {
                return Err(odd("more than its manifest says"));
            }
            if !store.has_blob(blob) {
                progress.begin(&format!("unpacking {}", blob.digest.short()), Some(blob.size));
                unpack(&session, &mut entry, blob, progress)?;
            }
        }
    }
    let (bytes, _) = manifest.ok_or_else(|| odd("no manifest"))?;
    if !checked && !keys.is_empty() {
        sign::require(&bytes, &signatures, keys)?;
    }
    let digest = session.add_manifest_bytes(&bytes).map_err(|error| match error.kind() {
        ErrorKind::NotFound => odd("not all that its manifest names"),
        _ => error,
    })?;
    session.keep_signatures(digest, &signatures, keys)?;
    session.set_name(name, digest)?;
    Ok(digest)
}
