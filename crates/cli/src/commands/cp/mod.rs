//! `arnia cp`: files and folders between this computer and a guest.

mod archive;
mod store;

use super::Run;
use crate::{Context, Error};
use api::agent::FileKind;
use api::v1::error::ErrorCode;
use client::Client;
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use tokio::sync::mpsc;

/// Copies a file or folder into a virtual machine, or out of it, by the agent in the guest. Permissions are kept; in
/// the guest all belongs to root. If there is a folder at the destination, the copy goes into it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia cp site.conf web:/etc/nginx/conf.d/
  arnia cp ./site web:/srv/site
  arnia cp web:/var/log/syslog .
A name before a colon is a virtual machine; write ./a:b for a file that is called so.")]
pub struct Cp {
    /// What to copy: a path here, or NAME:PATH
    source: String,
    /// Where to: NAME:PATH, or a path here
    destination: String,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Here(&'a Path),
    Guest { vm: &'a str, path: &'a str },
}

impl Place<'_> {
    fn parse(text: &str) -> Result<Place<'_>, Error> {
        let Some((vm, path)) = text.split_once(':') else { return Ok(Place::Here(Path::new(text))) };
        if vm.is_empty() || vm.contains('/') {
            return Ok(Place::Here(Path::new(text)));
        }
        match path.starts_with('/') {
            true => Ok(Place::Guest { vm, path }),
            false => Err(Error::bad_input(format!("the path {path:?} in the guest does not begin with /"))
                .with_remedy(format!("write {vm}:/PATH; a file here that is called so is ./{text}"))),
        }
    }
}

impl Run for Cp {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let ends = (Place::parse(&self.source)?, Place::parse(&self.destination)?);
        context.with_daemon(async |client| match ends {
            (Place::Here(from), Place::Guest { vm, path }) => copy_in(&client, from, vm, path).await,
            (Place::Guest { vm, path }, Place::Here(to)) => copy_out(&client, vm, path, to).await,
            _ => Err(Error::bad_input("one end of a copy is in a guest, and the other is here")
                .with_remedy("copy from guest to guest by way of a file here")),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |e| Error::failed(format!("{} cannot be read", path.display())).with_source(e)
}

/// A bar that appears on a terminal; how much there is may not be known.
fn bar(total: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::new(total.unwrap_or(0));
    let style = match total {
        Some(_) => "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
        None => "{spinner} {bytes}, {bytes_per_sec}",
    };
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}

/// The last part of a path, which a copy of it is called by.
fn name_of(path: &str) -> Result<&str, Error> {
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    match name {
        "" | "." | ".." => Err(Error::bad_input(format!("{path:?} has no name that the copy could have"))
            .with_remedy("say what the copy shall be called")),
        name => Ok(name),
    }
}

async fn copy_in(client: &Client, from: &Path, vm: &str, to: &str) -> Result<(), Error> {
    let metadata = fs::metadata(from)
        .map_err(|e| Error::bad_input(format!("{} cannot be read", from.display())).with_source(e))?;
    let there = match client.file_view(vm, to, true).await {
        Ok(attributes) => Some(attributes.kind),
        Err(error) if error.api().code == ErrorCode::NotFound => {
            // It may also be the machine that does not exist.
            client.vm(vm).await?;
            None
        }
        Err(error) => return Err(error.into()),
    };
    let mut target = to.to_owned();
    if to.ends_with('/') || there == Some(FileKind::Folder) {
        let whole = fs::canonicalize(from).map_err(unreadable(from))?;
        let name = whole.to_str().ok_or_else(|| Error::bad_input("the name is no UTF-8"))?;
        target = format!("{}/{}", to.trim_end_matches('/'), name_of(name)?);
    }
    let folder = metadata.is_dir();
    let total = if folder { size_of(from)? } else { metadata.len() };
    let (sender, pieces) = mpsc::channel(4);
    let progress = bar(Some(total));
    let mut outlet = Outlet { sender, progress: progress.clone() };
    let source = from.to_owned();
    let reader = tokio::task::spawn_blocking(move || {
        let result = match folder {
            true => archive::write(&source, &mut outlet),
            false => File::open(&source).and_then(|mut file| io::copy(&mut file, &mut outlet).map(drop)),
        };
        if let Err(error) = &result {
            // The guest must not take what came for the whole.
            let _ = outlet.sender.blocking_send(Err(io::Error::new(error.kind(), error.to_string())));
        }
        result
    });
    let mode = (!folder).then(|| metadata.permissions().mode() & 0o7777);
    let written = client.file_write(vm, &target, mode, folder, pieces).await;
    let read = reader.await.map_err(|e| Error::failed("the copy was broken off").with_source(e))?;
    progress.finish_and_clear();
    match read {
        // Nobody takes it any more: the other side says why.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(unreadable(from)(error)),
        _ => Ok(written?),
    }
}

/// Bytes of all files below a folder.
fn size_of(folder: &Path) -> Result<u64, Error> {
    let mut total = 0;
    for entry in fs::read_dir(folder).map_err(unreadable(folder))? {
        let path = entry.map_err(unreadable(folder))?.path();
        let metadata = fs::symlink_metadata(&path).map_err(unreadable(&path))?;
        total += if metadata.is_dir() { size_of(&path)? } else { metadata.len() };
    }
    Ok(total)
}

/// Sends pieces and counts them.
struct Outlet {
    sender: mpsc::Sender<io::Result<Vec<u8>>>,
    progress: ProgressBar,
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.sender.blocking_send(Ok(bytes.to_vec()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.progress.inc(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn copy_out(client: &Client, vm: &str, from: &str, to: &Path) -> Result<(), Error> {
    let attributes = client.file_view(vm, from, true).await?;
    let target = match to.is_dir() {
        true => to.join(name_of(from)?),
        false => to.to_owned(),
    };
    let mut download = client.file_read(vm, from).await?;
    let progress = bar((!download.is_archive).then_some(attributes.size));
    let (sender, pieces) = mpsc::channel::<io::Result<Vec<u8>>>(4);
    let inlet = Inlet { pieces, piece: io::Cursor::default() };
    let (is_archive, mode, place) = (download.is_archive, attributes.mode, target.clone());
    let writer = tokio::task::spawn_blocking(move || match is_archive {
        true => unpack(inlet, &place, mode),
        false => store::write(inlet, &place, mode),
    });
    let mut received = Ok(());
    loop {
        match download.piece().await {
            Ok(None) => break,
            Ok(Some(piece)) => {
                progress.inc(piece.len() as u64);
                if sender.send(Ok(piece.to_vec())).await.is_err() {
                    break;
                }
            }
            Err(error) => {
                let _ = sender.send(Err(io::Error::other("the guest's file does not come whole"))).await;
                received = Err(error);
                break;
            }
        }
    }
    drop(sender);
    let written = writer.await.map_err(|e| Error::failed("the copy was broken off").with_source(e))?;
    progress.finish_and_clear();
    received?;
    written.map_err(|e| Error::failed(format!("{} cannot be written", target.display())).with_source(e))
}

/// Reads the pieces that come.
struct Inlet {
    pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
    piece: io::Cursor<Vec<u8>>,
}

impl Read for Inlet {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.piece.read(buffer)? {
                0 => match self.pieces.blocking_recv() {
                    None => return Ok(0),
                    Some(piece) => self.piece = io::Cursor::new(piece?),
                },
                count => return Ok(count),
            }
        }
    }
}

/// Unpacks a folder. The archive's names come from the guest: nothing is written outside of the folder, nor through
/// a link of it.
fn unpack(from: Inlet, to: &Path, mode: u32) -> io::Result<()> {
    match fs::create_dir(to) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && to.is_dir() => {}
        result => result?,
    }
    let mut archive = tar::Archive::new(from);
    archive.set_preserve_permissions(false);
    archive.set_preserve_mtime(true);
    archive.unpack(to)?;
    // What is behind the archive's end is taken, too: only then is it known that all has come.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode & 0o777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_before_a_colon_is_a_machine() {
        assert_eq!(Place::parse("web:/a:b").unwrap(), Place::Guest { vm: "web", path: "/a:b" });
        assert_eq!(Place::parse("./web:/a").unwrap(), Place::Here(Path::new("./web:/a")));
        assert_eq!(Place::parse("file").unwrap(), Place::Here(Path::new("file")));
        assert!(Place::parse("web:a").is_err());
        assert!(name_of("/").is_err() && name_of("/a/..").is_err());
        assert_eq!(name_of("/a/b/").unwrap(), "b");
    }
}
