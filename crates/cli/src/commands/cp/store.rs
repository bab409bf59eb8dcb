//! A file of a guest becomes one here.

use crate::ending::on_signal;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Writes a file: it gets its name when all has come, and nothing stays behind when it does not. Never with set-ID bits:
/// the guest is not this user. Where the name leads by a symbolic link, the file that is there is replaced and not the
/// link; a device, pipe or the like is written to.
///
/// # Errors
/// As `from` or the host fail, and for a symbolic link to nothing.
pub(super) fn write(mut from: impl Read, to: &Path, mode: u32) -> io::Result<()> {
    match fs::metadata(to) {
        Ok(there) if there.is_file() => replace(from, &to.canonicalize()?, mode),
        Ok(_) => io::copy(&mut from, &mut OpenOptions::new().write(true).open(to)?).map(drop),
        Err(_) if to.is_symlink() => {
            Err(io::Error::new(io::ErrorKind::NotFound, "it is a symbolic link to nothing"))
        }
        Err(_) => replace(from, to, mode),
    }
}

/// Writes a new file beside `to` and gives it that name.
fn replace(mut from: impl Read, to: &Path, mode: u32) -> io::Result<()> {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(format!(".arnia-{}", std::process::id()));
    let part: PathBuf = to.with_file_name(name);
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    let unfinished = part.clone();
    let _on_signal = on_signal(move || {
        let _ = fs::remove_file(unfinished);
    });
    let written = (|| {
        io::copy(&mut from, &mut file)?;
        file.set_permissions(fs::Permissions::from_mode(mode & 0o777))?;
        fs::rename(&part, to)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, symlink};

    #[test]
    fn only_files_are_replaced() {
        let folder = std::env::temp_dir().join(format!("arnia-store-{}", std::process::id()));
        fs::create_dir_all(folder.join("elsewhere")).unwrap();
        let (file, link) = (folder.join("elsewhere/file"), folder.join("link"));
        symlink("elsewhere/file", &link).unwrap();
        assert_eq!(write(&b"lost"[..], &link, 0o644).unwrap_err().kind(), io::ErrorKind::NotFound);
        write(&b"old"[..], &file, 0o644).unwrap();
        write(&b"new"[..], &link, 0o4640).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o640);

        let pipe = folder.join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read_to_string(pipe).unwrap()
        });
        write(&b"through"[..], &pipe, 0o644).unwrap();
        assert_eq!(reader.join().unwrap(), "through");
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());

        let broken = io::Read::chain(&b"half"[..], Broken);
        write(broken, &file, 0o644).unwrap_err();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::read_dir(folder.join("elsewhere")).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }

    /// What does not come whole.
    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
}
