//! Opens everything that a machine is made of: files, disks, networks, sockets. What exists already is
//! checked before anything is made, and what was made is removed again when something later fails.

use crate::Error;
use crate::source::BootSource;
use crate::spec::{DiskSpec, NetSpec, VmSpec};
use crate::terminal::Output;
use crate::undo::Made;
use api::worker::config::CharDevice;
use disk::{Disk, Raw};
use memory::Ram;
use net::{Backend, MacAddress};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use virtio::console::{Console, ConsoleInput};
use virtio::vsock::{Vsock, VsockConfig};

/// All that a machine is made of.
pub struct Inputs {
    /// Guest memory, empty.
    pub ram: Arc<Ram>,
    /// What is booted.
    pub boot: BootSource,
    /// The disks, to be flushed at the end.
    pub disks: Vec<Arc<dyn Disk>>,
    /// What goes on the PCI bus.
    pub devices: Devices,
    /// Where COM1 writes to.
    pub serial_output: Box<dyn Write + Send>,
}

/// What goes on the PCI bus.
#[derive(Default)]
pub struct Devices {
    /// Network cards.
    pub nets: Vec<Card>,
    /// Disks.
    pub disks: Vec<DiskDevice>,
    /// Sockets between host and guest.
    pub vsock: Option<Vsock>,
    /// The console.
    pub console: Option<Console>,
}

/// A network card.
pub struct Card {
    /// Its address.
    pub mac: MacAddress,
    /// What it is plugged into.
    pub backend: Box<dyn Backend + Send>,
}

/// A disk as a device.
pub struct DiskDevice {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Its serial number.
    pub serial: String,
}

/// What stays with the program while the machine runs.
pub struct Lines {
    /// Outputs to be emptied at the end.
    pub outputs: Vec<Output>,
    /// Where the console's input goes, if it leads to the terminal.
    pub console_input: Option<ConsoleInput>,
    /// Files that did not exist before; removed again unless the machine comes to life.
    pub new_files: Vec<Made>,
}

impl Lines {
    /// Starts to write what the guest writes.
    ///
    /// # Errors
    /// When the host refuses another thread.
    pub fn start(&mut self) -> io::Result<()> {
        self.outputs.iter_mut().try_for_each(Output::start)
    }

    /// Leaves new files in place: the machine has come to life.
    pub fn keep_files(&mut self) {
        self.new_files.drain(..).for_each(Made::keep);
    }

    /// Empties the outputs.
    pub fn finish(self) {
        /// A terminal that nobody reads must not keep the program.
        const PATIENCE: Duration = Duration::from_secs(2);
        for output in self.outputs {
            let dropped = output.dropped();
            if dropped > 0 {
                log::warn!("{dropped} bytes of the guest's output were lost because nobody read them");
            }
            output.finish(PATIENCE);
        }
    }
}

/// Opens what `spec` names.
///
/// # Errors
/// When something cannot be used; everything is then as before.
pub fn open(spec: &VmSpec) -> Result<(Inputs, Lines), Error> {
    // First what is only read …
    let mut ram = Ram::new(spec.memory)
        .map_err(|e| Error::host("the guest's memory is not to be had").with_source(e))?;
    let boot = BootSource::open(&spec.boot, &mut ram)?;
    let ram = Arc::new(ram);
    let disks = spec.disks.iter().map(open_disk).collect::<Result<Vec<_>, _>>()?;
    // … then what occupies ports …
    let nets = spec.nets.iter().map(plug_in).collect::<Result<Vec<_>, _>>()?;
    // … and last what leaves files behind.
    let mut lines = Lines { outputs: Vec::new(), console_input: None, new_files: Vec::new() };
    let vsock = match &spec.vsock {
        None => None,
        Some(vsock) => {
            let config = VsockConfig { cid: vsock.cid, path: vsock.socket.clone() };
            let device = Vsock::new(config).map_err(|e| {
                Error::bad_input(format!("the vsock socket {:?} cannot be made", vsock.socket))
                    .with_source(e)
                    .with_advice("check --vsock")
            })?;
            Some(device)
        }
    };
    let serial_output = open_output(&spec.serial, "serial", &mut lines)?;
    let console = match &spec.console {
        CharDevice::None => None,
        device => {
            let output = open_output(device, "console", &mut lines)?;
            let console =
                Console::new(output).map_err(|e| Error::host("the console cannot be made").with_source(e))?;
            lines.console_input = (*device == CharDevice::Stdio).then(|| console.input());
            Some(console)
        }
    };
    let devices = Devices {
        nets,
        disks: disks
            .iter()
            .zip(&spec.disks)
            .map(|(disk, spec)| DiskDevice { disk: disk.clone(), serial: spec.serial.clone() })
            .collect(),
        vsock,
        console,
    };
    Ok((Inputs { ram, boot, disks, devices, serial_output }, lines))
}

fn open_disk(spec: &DiskSpec) -> Result<Arc<dyn Disk>, Error> {
    // The error names the path and says what to do.
    let disk = Raw::open(&spec.path, spec.access)
        .map_err(|e| Error::bad_input("a disk cannot be used").with_source(e))?;
    Ok(Arc::new(disk))
}

fn plug_in(spec: &NetSpec) -> Result<Card, Error> {
    let nat = net::Nat::new(spec.network.clone()).map_err(|e| {
        Error::bad_input("the network cannot be made").with_source(e).with_advice("check --net")
    })?;
    Ok(Card { mac: spec.mac, backend: Box::new(nat) })
}

/// Opens where a serial line writes to.
fn open_output(device: &CharDevice, name: &str, lines: &mut Lines) -> Result<Box<dyn Write + Send>, Error> {
    let file = match device {
        CharDevice::None => return Ok(Box::new(io::sink())),
        CharDevice::Stdio => {
            let stdout = io::stdout().as_fd().try_clone_to_owned();
            File::from(stdout.map_err(|e| Error::host("standard output cannot be used").with_source(e))?)
        }
        CharDevice::File(path) => {
            let existed = path.exists();
            let file = File::options().append(true).create(true).open(path).map_err(|e| {
                Error::bad_input(format!("the file {path:?} cannot be written"))
                    .with_source(e)
                    .with_advice(format!("check --{name}"))
            })?;
            if !existed {
                lines.new_files.push(Made::new(path));
            }
            file
        }
    };
    let output = Output::new(name, file);
    let writer = output.writer();
    lines.outputs.push(output);
    Ok(Box::new(writer))
}
