//! The loader layer: the system that was built, on a disk that firmware boots.
//!
//! It is made in a virtual machine, which boots the layer below from a copy and writes another disk: partitions, file
//! systems and GRUB are the guest's own programs' work, and nothing of it is read on the host.

use std::fs::{self, File};

use api::agent::Exit;
use api::image::ImageFirmware;
use api::worker::config::DiskConfig;

use super::machine::needs_agent;
use super::{BuildOptions, Key, Layer, Programs};
use crate::error::AboutFile;
use crate::files::{self, RemoveUnlessKept};
use crate::machine::{Machine, Wanted, run_command};
use crate::progress::Progress;
use crate::{Error, Result, Session};

const SCRIPT: &str = include_str!("loader.sh");

pub(super) fn key(firmware: ImageFirmware, append: &str, below: &Layer) -> String {
    Key::new("loader")
        .text(SCRIPT)
        .text(&firmware.to_string())
        .text(append)
        .text(&format!("{below:?}"))
        .finish()
}

pub(super) fn build(
    session: &Session<'_>,
    (firmware, append): (ImageFirmware, &str),
    below: &Layer,
    programs: &Programs,
    options: &BuildOptions,
    progress: &mut dyn Progress,
) -> Result<Layer> {
    needs_agent(below, "a loader for firmware needs")?;
    let folder = session.partial("loader");
    let _undo = RemoveUnlessKept::new(&folder);
    fs::create_dir(&folder).about("create", &folder)?;
    let (system, disk) = (folder.join("system.img"), folder.join("disk.img"));
    progress.begin("copying the system", Some(below.disk.size));
    files::copy_sparse(&session.store().blob_path(&below.disk)?, &system, progress)?;
    File::create_new(&disk).and_then(|file| file.set_len(below.disk.size)).about("create", &disk)?;
    let wanted = Wanted {
        kernel: &below.kernel,
        initrd: below.initrd.as_ref(),
        append: &below.append,
        disks: vec![DiskConfig::new(&system), DiskConfig::new(&disk)],
        cpus: options.cpus,
        network: true,
    };
    let machine = Machine::start(session, wanted, &folder, &programs.worker)?;
    machine.carry_out(progress, |machine, progress| install(machine, firmware, append, progress))?;
    progress.begin("taking the disk", Some(below.disk.size));
    Ok(Layer { disk: session.take_file(&disk, progress)?, firmware: Some(firmware), ..below.clone() })
}

fn install(
    machine: &Machine,
    firmware: ImageFirmware,
    append: &str,
    progress: &mut dyn Progress,
) -> Result<()> {
    machine.wait_until_online(progress)?;
    progress.begin(&format!("installing the loader for {firmware}"), None);
    let (exit, last) =
        run_command(&machine.agent, &format!("firmware={firmware} append='{append}'\n{SCRIPT}"), progress)?;
    match exit {
        Exit::Status(0) => Ok(()),
        _ => Err(Error::failed(format!("the loader cannot be installed; the machine said last:\n  {last}"))
            .with_remedy("`--verbose` shows all that it says; the disk may be too small (`disk:`), or the base no Debian")),
    }
}
