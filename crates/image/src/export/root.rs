//! The root file system of an image as a tar archive, for containers and other programs, and for `import`.
//!
//! A guest's file system is read by a guest: the archive is made by `tar` in a virtual machine that has the image's disks beside its
//! own. So no root is needed, whatever is on the disks reaches no parser of the host, and every file system that Linux
//! knows will do. Nothing is changed: the machine writes to overlays that go with it.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use agent_client::{Command, ExecEvent};
use api::agent::Exit;
use api::image::{Digest, ImageBoot, Manifest, PersonalitySource};

use crate::error::AboutFile;
use crate::files::{self, RemoveUnlessKept};
use crate::instance::InstanceDisk;
use crate::machine::{Machine, Wanted};
use crate::progress::{self, Progress};
use crate::{Error, ErrorKind, Result, Session, Store};

/// The image whose machine does the work, if it is there: it comes along as a recipe.
const HELPER: &str = "debian";
/// Finds the root file system on the disks, and writes the archive to standard output.
const SCRIPT: &str = include_str!("root.sh");
/// How much of what is said on standard error is kept, in bytes.
const SAID_MAX: usize = 4096;

/// Writes the root file system of an image into a file, which must not exist: with owners, modes, times, links, devices,
/// extended attributes and access control lists. Other file systems that the image would mount are not in it.
///
/// # Errors
/// If the image is not there, no image in the store can do the work, no root file system is found, or the file cannot be
/// written; nothing is left then.
pub fn root(
    store: &Store,
    image: Digest,
    to: &Path,
    worker: &Path,
    progress: &mut dyn Progress,
) -> Result<()> {
    let session = store.session()?;
    let manifest = store.manifest(image)?;
    let helper = helper(store, &manifest)?;
    let file = File::options().write(true).create_new(true).open(to).about("create", to)?;
    let undo = RemoveUnlessKept::new(to);
    let folder = session.partial("root-export");
    let _gone = RemoveUnlessKept::new(&folder);
    fs::create_dir(&folder).about("create", &folder)?;
    progress.begin("booting a virtual machine", None);
    let machine = start(&session, &helper, &manifest, &folder, worker)?;
    let done = machine.wait_until_ready(progress).and_then(|()| {
        progress.begin("reading the root file system", None);
        archive(&machine, &devices(manifest.disks.len()), BufWriter::new(&file), to, progress)
    });
    done.map_err(|error| machine.explain(error))?;
    file.sync_all().about("write", to)?;
    undo.keep();
    files::sync_folder(to)
}

/// An image of this store that can do the work: it boots by a kernel, and has the guest agent.
fn helper(store: &Store, image: &Manifest) -> Result<Manifest> {
    let serves = |manifest: &Manifest| {
        matches!(manifest.boot, ImageBoot::Kernel { .. })
            && manifest.personality == PersonalitySource::Agent
            && manifest.disks.len() == 1
    };
    let debian = match store.resolve(HELPER) {
        Ok(digest) => Some(store.manifest(digest)?),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    debian.into_iter().chain([image.clone()]).find(serves).ok_or_else(|| {
        Error::bad_input("the file system is read in a virtual machine, and there is no image for one")
            .with_remedy(format!("make one with `arnia image build {HELPER}`, and try again"))
    })
}

fn start(
    session: &Session<'_>,
    helper: &Manifest,
    image: &Manifest,
    folder: &Path,
    worker: &Path,
) -> Result<Machine> {
    let ImageBoot::Kernel { kernel, initrd, append } = &helper.boot else {
        return Err(Error::failed("the image for the machine boots by firmware"));
    };
    let blobs = helper.disks.iter().chain(&image.disks).map(|disk| &disk.blob);
    let disks = blobs.enumerate().map(|(index, blob)| {
        let base = InstanceDisk { path: session.store().blob_path(blob)?, stands_on: Vec::new() };
        Ok(base.overlay(folder.join(format!("{index}.qcow2")), 0)?.config())
    });
    let disks = disks.collect::<Result<_>>()?;
    let wanted = Wanted { kernel, initrd: initrd.as_ref(), append, disks, cpus: 1, network: false };
    Machine::start(session, wanted, folder, worker)
}

/// The names of the image's disks in the machine: behind the machine's own.
fn devices(count: usize) -> Vec<String> {
    (b'b'..=b'z').take(count).map(|letter| format!("/dev/vd{}", char::from(letter))).collect()
}

fn archive(
    machine: &Machine,
    devices: &[String],
    mut to: impl Write,
    path: &Path,
    progress: &mut dyn Progress,
) -> Result<()> {
    let lost = |error: agent_client::Error| Error::failed("the machine was lost").with_source(error);
    let line = ["sh", "-eu", "-c", SCRIPT, "root"].into_iter().chain(devices.iter().map(String::as_str));
    let params = Command::new(line).params;
    let (mut input, mut output) = machine.agent.exec(&params).map_err(lost)?.split();
    input.close().map_err(lost)?;
    let mut said = Vec::new();
    loop {
        progress::check(progress)?;
        match output.next_event().map_err(lost)? {
            ExecEvent::Stdout(bytes) => {
                to.write_all(&bytes).about("write", path)?;
                progress.advance(bytes.len() as u64);
            }
            ExecEvent::Stderr(bytes) => {
                let room = SAID_MAX.saturating_sub(said.len()).min(bytes.len());
                said.extend_from_slice(&bytes[..room]);
            }
            ExecEvent::Exited(Exit::Status(0)) => return to.flush().about("write", path),
            ExecEvent::Exited(_) => {
                // What a guest says is not for terminals as it is.
                let said = String::from_utf8_lossy(&said).trim().replace(|c: char| c.is_control(), " ");
                return Err(Error::failed("the root file system cannot be read").with_source(said));
            }
        }
    }
}
