//! Opens everything that a machine is made of: files, disks, networks, sockets. What exists already is
//! checked before anything is made, and what was made is removed again when something later fails.

use crate::Error;
use crate::spec::{DiskSpec, NetSpec, VmSpec};
use crate::terminal::Output;
use crate::undo::Made;
use api::worker::config::CharDevice;
use boot::{Entry, Kernel, Plan};
use disk::{Disk, Raw};
use memory::Ram;
use net::{Backend, MacAddress};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
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
    let kernel = open_file(&spec.kernel, "kernel", "--kernel")?;
    let initrd =
        spec.initrd.as_deref().map(|path| open_file(path, "initial RAM disk", "--initrd")).transpose()?;
    let ram = Arc::new(
        Ram::new(spec.memory)
            .map_err(|e| Error::host("the guest's memory is not to be had").with_source(e))?,
    );
    let boot = BootSource::new(spec, kernel, initrd, &ram)?;
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

fn open_file(path: &Path, what: &str, option: &str) -> Result<File, Error> {
    let cannot = |e: io::Error| {
        Error::bad_input(format!("the {what} {path:?} cannot be opened"))
            .with_source(e)
            .with_advice(format!("check {option}"))
    };
    // A FIFO would otherwise make the program wait for a writer.
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(cannot)?;
    if !file.metadata().map_err(cannot)?.is_file() {
        return Err(Error::bad_input(format!("the {what} {path:?} is not a regular file"))
            .with_advice(format!("check {option}")));
    }
    Ok(file)
}

/// What is booted: read anew at each start of the machine.
pub struct BootSource {
    path: PathBuf,
    kernel: File,
    initrd: Option<File>,
    command_line: String,
    method: boot::Method,
    /// The plan for the first start, made while the files were checked.
    first_plan: Option<Plan>,
}

impl BootSource {
    fn new(spec: &VmSpec, kernel: File, initrd: Option<File>, ram: &Ram) -> Result<BootSource, Error> {
        let mut source = BootSource {
            path: spec.kernel.clone(),
            kernel,
            initrd,
            command_line: spec.command_line.clone(),
            method: spec.boot,
            first_plan: None,
        };
        source.first_plan = Some(source.plan(ram)?);
        Ok(source)
    }

    fn plan(&self, ram: &Ram) -> Result<Plan, Error> {
        let bad = |e: boot::Error| {
            let advice = match e.kind() {
                boot::ErrorKind::TooLittleMemory => "give more with --memory",
                boot::ErrorKind::BadCommandLine => "check --append",
                boot::ErrorKind::Unsupported => "choose another kernel or another --boot",
                _ => "check --kernel",
            };
            Error::bad_input(format!("{:?} cannot be booted", self.path)).with_source(e).with_advice(advice)
        };
        let initrd_size = match &self.initrd {
            None => None,
            Some(file) => {
                let metadata = file.metadata();
                Some(
                    metadata
                        .map_err(|e| Error::host("the initial RAM disk cannot be read").with_source(e))?
                        .len(),
                )
            }
        };
        let inputs = boot::Inputs { ram, initrd_size, command_line: &self.command_line, method: self.method };
        let kernel = Kernel::read(&self.kernel).map_err(bad)?;
        let plan = Plan::new(kernel, inputs).map_err(bad)?;
        log::info!("{}", plan.describe());
        Ok(plan)
    }

    /// Loads everything into `ram`, which is all zero.
    ///
    /// # Errors
    /// When a file is no longer what it was.
    pub fn load(&mut self, ram: &Ram, machine: &boot::Machine, seed: [u8; 32]) -> Result<Entry, Error> {
        let plan = match self.first_plan.take() {
            Some(plan) => plan,
            None => self.plan(ram)?,
        };
        plan.load(ram, self.initrd.as_ref(), machine, seed)
            .map_err(|e| Error::host(format!("{:?} cannot be loaded", self.path)).with_source(e))
    }
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
