//! The archive that a folder travels to a guest in.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::path::Path;

/// Writes what is in a folder as an archive.
///
/// # Errors
/// As the files or `to` fail, and when a file becomes shorter while it is read.
pub(super) fn write(folder: &Path, to: &mut impl Write) -> io::Result<()> {
    let mut builder = tar::Builder::new(io::BufWriter::with_capacity(64 * 1024, to));
    builder.follow_symlinks(false);
    add_folder(&mut builder, folder, Path::new(""))?;
    builder.into_inner()?.flush()
}

fn add_folder<W: Write>(builder: &mut tar::Builder<W>, folder: &Path, inside: &Path) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), inside.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            builder.append_dir(&name, &path)?;
            add_folder(builder, &path, &name)?;
        } else if kind.is_symlink() {
            builder.append_path_with_name(&path, &name)?;
        } else if kind.is_file() {
            let file = File::open(&path)?;
            add_file(builder, &name, &file.metadata()?, file)?;
        }
        // Sockets, pipes and devices mean nothing elsewhere.
    }
    Ok(())
}

/// Adds a file with exactly the bytes that its header announces, though the file may be written to meanwhile: what
/// comes behind it in the archive is found by that number. The crate's own way does not, and leaves out holes by entries
/// of a kind that is GNU's alone, which guests do not take.
fn add_file<W: Write>(
    builder: &mut tar::Builder<W>,
    name: &Path,
    metadata: &Metadata,
    bytes: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_metadata(metadata);
    let mut bytes = bytes.take(metadata.len());
    builder.append_data(&mut header, name, &mut bytes)?;
    match bytes.limit() {
        0 => Ok(()),
        missing => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{} has become {missing} bytes shorter while it was read", name.display()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("arnia-archive-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn holes_are_written_as_bytes() {
        let folder = folder("holes");
        let sparse = File::create(folder.join("sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (1 << 20) - 3).unwrap();
        std::os::unix::fs::symlink("sparse", folder.join("link")).unwrap();
        let mut bytes = Vec::new();
        write(&folder, &mut bytes).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let kinds = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.path().unwrap().into_owned(), entry.header().entry_type(), entry.size())
        });
        let link = ("link".into(), tar::EntryType::Symlink, 0);
        assert_eq!(kinds.collect::<Vec<_>>(), [link, ("sparse".into(), tar::EntryType::Regular, 1 << 20)]);
    }

    #[test]
    fn a_file_that_changes_meanwhile_spoils_nothing() {
        let folder = folder("changes");
        let (log, next) = (folder.join("log"), folder.join("next"));
        fs::write(&log, "0123456789").unwrap();
        fs::write(&next, "next").unwrap();
        let (metadata, next_metadata) = (fs::metadata(&log).unwrap(), fs::metadata(&next).unwrap());
        let mut builder = tar::Builder::new(Vec::new());
        // It has grown by more than a record of the archive since its size was asked for.
        let grown = [b"0123456789", &[b'x'; 2000][..]].concat();
        add_file(&mut builder, Path::new("log"), &metadata, &grown[..]).unwrap();
        add_file(&mut builder, Path::new("next"), &next_metadata, &b"next"[..]).unwrap();
        let error = add_file(&mut builder, Path::new("cut"), &metadata, &b"0123"[..]).unwrap_err();
        assert_eq!(error.to_string(), "cut has become 6 bytes shorter while it was read");
        let bytes = builder.into_inner().unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut texts = archive.entries().unwrap().map(|entry| io::read_to_string(entry.unwrap()).unwrap());
        assert_eq!(texts.next().as_deref(), Some("0123456789"));
        assert_eq!(texts.next().as_deref(), Some("next"));
    }
}
