//! A snapshot on disk with those that it builds on, and where each page of its memory lies.

use super::folder::CHECKED_FILE;
use super::{checksum, manifest};
use crate::Error;
use api::worker::snapshot::{CHAIN_LEN_MAX, FileEntry, MANIFEST_FILE, Manifest};
use memory::{FileSegment, PAGE_SIZE};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// More stretches than this cannot be mapped: the host allows some 65 thousand in a process.
const SEGMENTS_MAX: usize = 30_000;

/// One snapshot of a chain.
#[derive(Debug)]
pub struct Link {
    /// Its folder.
    pub dir: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Hash of the manifest's file.
    manifest_hash: String,
}

/// A refusal of a snapshot, before anything runs.
pub(super) fn refused(dir: &Path, why: impl Into<String>) -> Error {
    Error::bad_input(format!("the snapshot {dir:?} cannot be used: {}", why.into()))
        .with_advice("take another snapshot, or check --restore")
}

/// Opens a regular file of a snapshot, without waiting for anything that is none.
pub(super) fn open_file(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

impl Link {
    /// Reads the manifest of a snapshot.
    ///
    /// # Errors
    /// When there is none, or not one that this program reads.
    pub fn read(dir: &Path) -> Result<Link, Error> {
        let path = dir.join(MANIFEST_FILE);
        let file = open_file(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound if dir.is_dir() => refused(
                dir,
                format!("there is no {MANIFEST_FILE} in it, so it is no snapshot or an unfinished one"),
            ),
            _ => Error::bad_input(format!("the snapshot {dir:?} cannot be opened"))
                .with_source(e)
                .with_advice("check --restore"),
        })?;
        let mut bytes = Vec::new();
        file.take(manifest::SIZE_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| refused(dir, format!("its manifest cannot be read: {e}")))?;
        if bytes.len() as u64 > manifest::SIZE_MAX {
            return Err(refused(dir, "its manifest is too large"));
        }
        let manifest = manifest::decode(&bytes).map_err(|why| refused(dir, why))?;
        Ok(Link { dir: dir.to_owned(), manifest, manifest_hash: checksum::of_bytes(&bytes) })
    }

    /// Opens one of its files, checks its length and, unless it is known to be as it was written, its
    /// contents.
    ///
    /// # Errors
    /// When it is missing or not what the manifest says.
    pub fn open(&self, entry: &FileEntry, verify: bool) -> Result<File, Error> {
        let cannot = |why: String| refused(&self.dir, why);
        let file = open_file(&self.dir.join(&entry.file))
            .map_err(|e| cannot(format!("its file {} cannot be opened: {e}", entry.file)))?;
        let stamp = Stamp::of(&file).map_err(|e| cannot(e.to_string()))?;
        if stamp.size != entry.size {
            return Err(cannot(format!(
                "its file {} has {} bytes instead of {}",
                entry.file, stamp.size, entry.size
            )));
        }
        let checked = Checked::read(&self.dir).filter(|checked| checked.manifest == self.manifest_hash);
        if !verify && checked.is_some_and(|checked| checked.files.get(&entry.file) == Some(&stamp)) {
            return Ok(file);
        }
        log::info!("checking {} of the snapshot {:?}", entry.file, self.dir);
        let sum = checksum::of_file(&file, entry.size, &|_| ControlFlow::Continue(()))
            .map_err(|e| cannot(format!("its file {} cannot be read: {e}", entry.file)))?;
        if sum != entry.blake3 {
            return Err(cannot(format!("its file {} is damaged: the check sum is wrong", entry.file)));
        }
        self.note_checked(&entry.file, stamp);
        Ok(file)
    }

    /// Notes that a file is as it should be, so that the next machine starts faster.
    fn note_checked(&self, name: &str, stamp: Stamp) {
        let mut checked = Checked::read(&self.dir)
            .filter(|checked| checked.manifest == self.manifest_hash)
            .unwrap_or_else(|| Checked { manifest: self.manifest_hash.clone(), files: BTreeMap::new() });
        checked.files.insert(name.to_owned(), stamp);
        let path = self.dir.join(CHECKED_FILE);
        let temporary = self.dir.join(format!("{CHECKED_FILE}.{}", std::process::id()));
        // A folder that cannot be written is checked each time.
        let written = std::fs::write(&temporary, serde_json::to_vec(&checked).expect("plain data"))
            .and_then(|()| std::fs::rename(&temporary, path));
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
    }
}

/// Which files were found to be as they should be, and what they looked like then.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Checked {
    /// Hash of the manifest's file.
    pub(super) manifest: String,
    /// By name.
    pub(super) files: BTreeMap<String, Stamp>,
}

impl Checked {
    fn read(dir: &Path) -> Option<Checked> {
        let mut text = String::new();
        open_file(&dir.join(CHECKED_FILE)).ok()?.take(1 << 16).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }
}

/// What changes when a file is written to or replaced: whoever has the right to write to it can change its
/// bytes, but no ordinary program the time of its last change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(file: &File) -> io::Result<Stamp> {
        let data = file.metadata()?;
        Ok(Stamp {
            inode: data.ino(),
            size: data.len(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }
}

/// Reads the manifests of a snapshot and of all that it builds on, itself first.
///
/// # Errors
/// When one is missing, or not the one that it should be.
pub fn read(dir: &Path) -> Result<Vec<Link>, Error> {
    let dir = std::fs::canonicalize(dir).map_err(|e| {
        Error::bad_input(format!("the snapshot {dir:?} cannot be opened"))
            .with_source(e)
            .with_advice("check --restore")
    })?;
    let mut links = vec![Link::read(&dir)?];
    while let Some(parent) = &links[links.len() - 1].manifest.parent {
        if links.len() >= CHAIN_LEN_MAX {
            return Err(refused(&dir, format!("it builds on more than {} others", CHAIN_LEN_MAX - 1)));
        }
        let parent_dir = dir.parent().unwrap_or(Path::new("/")).join(&parent.name);
        if !parent_dir.exists() {
            let why =
                format!("it builds on {:?}, which is missing: it should be {parent_dir:?}", parent.name);
            return Err(refused(&dir, why));
        }
        let link = Link::read(&parent_dir)?;
        let (size, own) = (link.manifest.memory.file.size, links[0].manifest.memory.file.size);
        if link.manifest.id != parent.id || size != own {
            let why = format!("it builds on another snapshot than the one that is now {parent_dir:?}");
            return Err(refused(&dir, why));
        }
        links.push(link);
    }
    Ok(links)
}

/// Opens the memory of a chain and says which file has which part of it.
///
/// # Errors
/// When a file is not what it should be.
pub fn memory(links: &[Link], verify: bool) -> Result<Vec<FileSegment>, Error> {
    let files = links
        .iter()
        .map(|link| link.open(&link.manifest.memory.file, verify).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()?;
    let layers: Vec<_> = links.iter().map(|link| link.manifest.memory.parts.as_deref()).collect();
    let pages = links[0].manifest.memory.file.size / PAGE_SIZE;
    let segments = resolve(&layers, pages);
    if segments.len() > SEGMENTS_MAX {
        let why = format!("its memory lies in {} pieces in {} files", segments.len(), links.len());
        return Err(Error::bad_input(format!("the snapshot {:?} cannot be used: {why}", links[0].dir))
            .with_advice("take a full snapshot now and then, not only incremental ones"));
    }
    let segment = |(range, layer): (Range<u64>, usize)| FileSegment {
        start: range.start * PAGE_SIZE,
        len: (range.end - range.start) * PAGE_SIZE,
        file: files[layer].clone(),
    };
    Ok(segments.into_iter().map(segment).collect())
}

/// Which layer each page comes from, the newest first; `None` for a layer that has all. Layers are in order.
fn resolve(layers: &[Option<&[(u64, u64)]>], pages: u64) -> Vec<(Range<u64>, usize)> {
    let everything = 0..pages;
    let mut missing = Vec::from_iter([everything]);
    let mut found = Vec::new();
    for (index, parts) in layers.iter().enumerate() {
        let Some(parts) = parts else {
            found.extend(missing.drain(..).map(|range| (range, index)));
            break;
        };
        let mut still = Vec::new();
        let mut parts = parts.iter().map(|&(start, count)| start..start + count).peekable();
        for range in missing {
            let mut at = range.start;
            while let Some(part) = parts.peek().cloned() {
                if part.start >= range.end {
                    break;
                }
                if part.end > at {
                    if part.start > at {
                        still.push(at..part.start);
                        at = part.start;
                    }
                    let end = part.end.min(range.end);
                    found.push((at..end, index));
                    at = end;
                }
                if part.end > range.end {
                    break;
                }
                parts.next();
            }
            if at < range.end {
                still.push(at..range.end);
            }
        }
        missing = still;
    }
    found.sort_by_key(|(range, _)| range.start);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_layer_that_has_a_page_gives_it() {
        let newest: &[(u64, u64)] = &[(2, 2), (10, 1), (19, 1)];
        let middle: &[(u64, u64)] = &[(0, 3), (9, 4), (15, 5)];
        let found = resolve(&[Some(newest), Some(middle), None], 20);
        let mut by_page = [9; 20];
        for (range, layer) in &found {
            for page in range.clone() {
                assert_eq!(by_page[page as usize], 9, "once");
                by_page[page as usize] = *layer;
            }
        }
        assert_eq!(by_page, [1, 1, 0, 0, 2, 2, 2, 2, 2, 1, 0, 1, 1, 2, 2, 1, 1, 1, 1, 0]);
        assert_eq!(resolve(&[None], 5), [(0..5, 0)]);
        // A chain whose oldest has not all leaves zeroes.
        assert_eq!(resolve(&[Some(&[(1, 1)])], 5), [(1..2, 0)]);
    }
}
