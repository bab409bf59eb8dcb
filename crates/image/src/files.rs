//! Files with holes, and files that are there whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use api::image::{Blob, Digest};
use rustix::fs::SeekFrom as RawSeek;

use crate::error::AboutFile;
use crate::progress::{self, Progress};
use crate::{Error, Result};

/// How much is moved at once.
const CHUNK_LEN: usize = 1 << 20;
/// Zeroes of this length and alignment become holes.
const HOLE_LEN: usize = 4096;

/// Where a file has data: from, to. What lies between reads as zeroes.
pub(crate) struct Extents<'a> {
    file: &'a File,
    at: u64,
    len: u64,
}

impl<'a> Extents<'a> {
    pub(crate) fn new(file: &'a File) -> io::Result<Extents<'a>> {
        Ok(Extents { file, at: 0, len: file.metadata()?.len() })
    }
}

impl Iterator for Extents<'_> {
    type Item = io::Result<(u64, u64)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.len {
            return None;
        }
        let start = match rustix::fs::seek(self.file, RawSeek::Data(self.at)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(rustix::io::Errno::NXIO) => return None,
            // A file system without holes.
            Err(rustix::io::Errno::INVAL) => self.at,
            Err(error) => return Some(Err(error.into())),
        };
        let end = rustix::fs::seek(self.file, RawSeek::Hole(start)).unwrap_or(self.len).min(self.len);
        if end <= start {
            return None;
        }
        self.at = end;
        Some(Ok((start, end)))
    }
}

/// Digest and length of a file.
pub(crate) fn digest(path: &Path, progress: &mut dyn Progress) -> Result<Blob> {
    let mut file = File::open(path).about("open", path)?;
    let size = file.metadata().about("read", path)?.len();
    let extents =
        Extents::new(&file).and_then(Iterator::collect::<io::Result<Vec<_>>>).about("read", path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK_LEN];
    let mut at = 0;
    for (start, end) in extents {
        hash_zeroes(&mut hasher, start - at, progress)?;
        file.seek(SeekFrom::Start(start)).about("read", path)?;
        at = start;
        while at < end {
            progress::check(progress)?;
            let wanted = usize::try_from(end - at).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
            file.read_exact(&mut buffer[..wanted]).about("read", path)?;
            hasher.update(&buffer[..wanted]);
            progress.advance(wanted as u64);
            at += wanted as u64;
        }
    }
    hash_zeroes(&mut hasher, size - at, progress)?;
    Ok(Blob { digest: Digest(*hasher.finalize().as_bytes()), size })
}

fn hash_zeroes(hasher: &mut blake3::Hasher, mut count: u64, progress: &mut dyn Progress) -> Result<()> {
    static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
    while count > 0 {
        progress::check(progress)?;
        // Long stretches in steps that can be called off.
        let step = count.min(64 << 20);
        let mut rest = step;
        while rest > 0 {
            let piece = rest.min(ZEROES.len() as u64);
            hasher.update(&ZEROES[..piece as usize]);
            rest -= piece;
        }
        progress.advance(step);
        count -= step;
    }
    Ok(())
}

/// Makes a copy that shares the original's blocks where the file system can, and has its holes elsewhere.
/// The copy must not exist.
///
/// # Errors
/// If it cannot be made; nothing is left then.
pub fn copy_sparse(from: &Path, to: &Path, progress: &mut dyn Progress) -> Result<()> {
    let source = File::open(from).about("open", from)?;
    let undo = RemoveUnlessKept::new(to);
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).about("create", to)?;
    let len = source.metadata().about("read", from)?.len();
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        progress.advance(len);
        undo.keep();
        return Ok(());
    }
    target.set_len(len).about("write", to)?;
    let extents =
        Extents::new(&source).and_then(Iterator::collect::<io::Result<Vec<_>>>).about("read", from)?;
    let mut at = 0;
    for (start, end) in extents {
        progress.advance(start - at);
        at = start;
        while at < end {
            progress::check(progress)?;
            let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(8 * CHUNK_LEN);
            // The kernel moves it; on some file systems without touching it at all.
            let (mut from_at, mut to_at) = (at, at);
            let count =
                rustix::fs::copy_file_range(&source, Some(&mut from_at), &target, Some(&mut to_at), wanted)
                    .about("write", to)?;
            if count == 0 {
                return Err(Error::failed(format!("{} became shorter while it was copied", from.display())));
            }
            at += count as u64;
            progress.advance(count as u64);
        }
    }
    progress.advance(len - at);
    undo.keep();
    Ok(())
}

/// Writes a file with holes where there are zeroes, and makes its digest on the way.
pub(crate) struct SparseWriter {
    file: File,
    hasher: blake3::Hasher,
    len: u64,
}

impl SparseWriter {
    pub(crate) fn create(path: &Path) -> io::Result<SparseWriter> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(SparseWriter { file, hasher: blake3::Hasher::new(), len: 0 })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Ends the file and makes it last.
    pub(crate) fn finish(self) -> io::Result<Blob> {
        self.file.set_len(self.len)?;
        self.file.sync_all()?;
        Ok(Blob { digest: Digest(*self.hasher.finalize().as_bytes()), size: self.len })
    }
}

impl Write for SparseWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Up to the next boundary first, so that whole blocks of zeroes are seen as such.
        let to_boundary = HOLE_LEN - (self.len % HOLE_LEN as u64) as usize;
        let mut rest = bytes;
        let mut piece_len = to_boundary;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(piece_len.min(rest.len()));
            if piece.iter().all(|byte| *byte == 0) {
                self.file.seek(SeekFrom::Current(piece.len() as i64))?;
            } else {
                self.file.write_all(piece)?;
            }
            rest = behind;
            piece_len = HOLE_LEN;
        }
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a file is one that [`write_whole`] has not finished.
pub(crate) fn is_draft(name: &str) -> bool {
    // Nothing else in the store begins so: images, pins and keys have no such names.
    name.starts_with('.')
}

/// A name for a file in the making, beside its place: no two writers have the same.
fn draft_path(path: &Path) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new-{}-{number}", std::process::id()))
}

/// Writes a small file, whole or not at all, also if the host loses power.
pub(crate) fn write_whole(path: &Path, contents: &[u8]) -> Result<()> {
    let draft = draft_path(path);
    let undo = RemoveUnlessKept::new(&draft);
    let write = || -> io::Result<()> {
        let mut file = File::create(&draft)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().about("write", path)?;
    undo.keep();
    sync_folder(path)
}

/// Makes the names in the folder of this file last.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|folder| folder.sync_all()).about("write", folder)
}

/// Removes a file or folder unless told that all went well.
pub(crate) struct RemoveUnlessKept(Option<PathBuf>);

impl RemoveUnlessKept {
    pub(crate) fn new(path: &Path) -> RemoveUnlessKept {
        RemoveUnlessKept(Some(path.to_owned()))
    }

    pub(crate) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for RemoveUnlessKept {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::progress::Silent;
    use std::os::unix::fs::MetadataExt;

    /// A folder for a test, gone afterwards.
    pub(crate) struct Folder(pub(crate) PathBuf);

    impl Folder {
        pub(crate) fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("arnia-image-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).expect("a temporary folder");
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Data, a long hole, data, a hole at the end.
    fn with_holes(path: &Path) -> Vec<u8> {
        let mut bytes = vec![0; 3 << 20];
        bytes[..5].copy_from_slice(b"start");
        bytes[2 << 20..(2 << 20) + 70_000].fill(7);
        let mut writer = SparseWriter::create(path).unwrap();
        for piece in bytes.chunks(1001) {
            writer.write_all(piece).unwrap();
        }
        let blob = writer.finish().unwrap();
        assert_eq!(blob.digest.0, *blake3::hash(&bytes).as_bytes());
        bytes
    }

    #[test]
    fn several_threads_write_a_file_whole() {
        let folder = Folder::new("whole");
        let path = folder.0.join("a");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                let contents = vec![writer; 1 << (10 + writer)];
                scope.spawn(move || (0..50).for_each(|_| write_whole(path, &contents).unwrap()));
            }
        });
        let contents = fs::read(&path).unwrap();
        assert_eq!(contents.len(), 1 << (10 + contents[0]));
        assert!(contents.iter().all(|byte| *byte == contents[0]));
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "drafts were left");
    }

    #[test]
    fn holes_stay_holes_and_digests_are_the_contents() {
        let folder = Folder::new("sparse");
        let (path, copy) = (folder.0.join("a"), folder.0.join("b"));
        let bytes = with_holes(&path);
        assert!(fs::read(&path).unwrap() == bytes);
        let taken = path.metadata().unwrap().blocks() * 512;
        assert!(taken < 1 << 20, "{taken} bytes are taken");
        let blob = digest(&path, &mut Silent).unwrap();
        assert_eq!((blob.digest.0, blob.size), (*blake3::hash(&bytes).as_bytes(), bytes.len() as u64));
        copy_sparse(&path, &copy, &mut Silent).unwrap();
        assert!(fs::read(&copy).unwrap() == bytes);
        assert!(copy.metadata().unwrap().blocks() * 512 < 1 << 20);
        copy_sparse(&path, &copy, &mut Silent).expect_err("it is there already");
    }
}
