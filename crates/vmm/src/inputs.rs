//! Opens everything that a machine is made of: files, disks, networks, sockets. What exists already is
//! checked before anything is made, and what was made is removed again when something later fails.

use crate::Error;
use crate::machine::{DISK_QUEUES_MAX, Shares};
use crate::snapshot::disks::Tracked;
use crate::snapshot::restore::{Restored, RestoredDisk, SavedImage};
use crate::snapshot::{Folder, Snapshot};
use crate::source::{BootSource, open_file};
use crate::spec::{DiskSpec, NetSpec, NetworkSpec, VmSpec};
use crate::terminal::{Output, SocketLine};
use crate::undo::Made;
use api::worker::config::{BootKind, CdromBus, CharDevice, DiskBus, LineSocketConfig};
use device::limit::Limits;
use disk::qcow2::CreateOptions;
use disk::{Access, Disk, Format, Image, Live, Progress, Raw, Scratch, TargetOptions};
use memory::{Ram, RamRange, VideoMemory};
use net::switch::SwitchLink;
use net::{Backend, MacAddress, NatHandle};
use platform::DisplayConfig;
use platform::vga::spec as vga;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use virtio::console::{Console, ConsoleInput};
use virtio::fs::Fs;
use virtio::serial::{QEMU_AGENT, SerialPort};
use virtio::vsock::{Vsock, VsockConfig};

/// All that a machine is made of.
pub struct Inputs {
    /// Guest memory: empty, or a snapshot's.
    pub ram: Arc<Ram>,
    /// What the machine goes on from, instead of booting.
    pub restored: Option<Restored>,
    /// What is booted.
    pub boot: BootSource,
    /// The disks, to be flushed at the end.
    pub disks: Vec<Arc<dyn Disk>>,
    /// Where snapshots are made, and each disk as it is watched for them.
    pub snapshots: Option<(Folder, Vec<Arc<Tracked>>)>,
    /// The images of each disk, for block jobs; `None` for one that is lost at the end.
    pub live: Vec<Option<Arc<Live>>>,
    /// What goes on the PCI bus.
    pub devices: Devices,
    /// The networks behind the cards, in their order, where they are the machine's own.
    pub networks: Vec<Option<NatHandle>>,
    /// Where COM1 writes to.
    pub serial_output: Box<dyn Write + Send>,
    /// The display adapter.
    pub display: Option<DisplayConfig>,
}

/// What goes on the PCI bus.
#[derive(Default)]
pub struct Devices {
    /// Network cards.
    pub nets: Vec<Card>,
    /// Disks.
    pub disks: Vec<DiskDevice>,
    /// CD-ROM drives, each with its disc or none.
    pub discs: Vec<(CdromBus, Option<Arc<dyn Disk>>)>,
    /// What firmware tries to boot.
    pub boot_order: Vec<BootKind>,
    /// Whether there is a balloon.
    pub balloon: bool,
    /// Sockets between host and guest.
    pub vsock: Option<Vsock>,
    /// The serial port of QEMU's guest agent.
    pub qemu_agent: Option<SerialPort>,
    /// Folders of the host that the guest sees.
    pub shares: Option<(Fs, Shares)>,
    /// The console.
    pub console: Option<Console>,
}

/// A network card.
pub struct Card {
    /// Its address.
    pub mac: MacAddress,
    /// What it is plugged into.
    pub backend: Box<dyn Backend + Send>,
    /// How fast frames go in each direction.
    pub limits: Limits,
}

/// A disk as a device.
pub struct DiskDevice {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Its serial number.
    pub serial: String,
    /// How the guest reaches it.
    pub bus: DiskBus,
    /// How fast it may be used.
    pub limits: Limits,
}

/// What stays with the program while the machine runs.
pub struct Lines {
    /// Outputs to be emptied at the end.
    pub outputs: Vec<Output>,
    /// Where the console's input goes, if it leads to the terminal.
    pub console_input: Option<ConsoleInput>,
    /// Lines on sockets, each with whether it is the serial port (and not the console).
    pub sockets: Vec<(SocketLine, Line)>,
    /// Sockets and files that go with the worker.
    pub made: Vec<Made>,
    /// The console's input, for the socket that it leads to.
    pub console_socket_input: Option<ConsoleInput>,
    /// Files that did not exist before; removed again unless the machine comes to life.
    pub new_files: Vec<Made>,
}

/// Which line of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// COM1.
    Serial,
    /// The virtio console.
    Console,
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
        for (socket, _) in self.sockets {
            socket.finish(PATIENCE);
        }
        for output in self.outputs {
            let dropped = output.dropped();
            if dropped > 0 {
                log::warn!("{dropped} bytes of the guest's output were lost because nobody read them");
            }
            output.finish(PATIENCE);
        }
    }
}

/// Opens what `spec` names, and what it takes from a snapshot.
///
/// # Errors
/// When something cannot be used; everything is then as before.
pub fn open(spec: &VmSpec, snapshot: Option<Snapshot>) -> Result<(Inputs, Lines), Error> {
    let mut new_files = Vec::new();
    // First what is only read …
    let (mut ram, boot, disks) = match &snapshot {
        None => {
            let mut ram = Ram::new(spec.memory)
                .map_err(|e| Error::host("the guest's memory is not to be had").with_source(e))?;
            let boot = BootSource::open(&spec.boot, &mut ram)?;
            (ram, boot, spec.disks.iter().map(open_disk).collect::<Result<Vec<_>, _>>()?)
        }
        Some(snapshot) => {
            let disks = spec.disks.iter().zip(snapshot.disks());
            let disks = disks.map(|(spec, restored)| restore_disk(spec, restored, &mut new_files));
            let disks = disks.collect::<Result<Vec<_>, _>>()?;
            let mut ram = snapshot.map_memory()?;
            let boot = BootSource::for_a_reset(&spec.boot, &mut ram)?;
            (ram, boot, disks)
        }
    };
    let discs = spec.cdroms.iter().map(|drive| drive.path.as_deref().map(open_disc).transpose());
    let discs = discs.collect::<Result<Vec<_>, _>>()?;
    let discs = spec.cdroms.iter().map(|drive| drive.bus).zip(discs).collect();
    let display = spec.display.then(|| open_display(&mut ram)).transpose()?;
    let ram = Arc::new(ram);
    let (disks, live): (Vec<_>, Vec<_>) = disks.into_iter().map(OpenDisk::into_parts).unzip();
    // One queue for each vCPU, as `machine::devices` makes them.
    let queues = spec.cpus.min(DISK_QUEUES_MAX) as usize;
    disks.iter().for_each(|disk| disk.prepare_queues(queues));
    let is_own_file = |index: usize| match &snapshot {
        None => true,
        Some(snapshot) => !matches!(snapshot.disks()[index], RestoredDisk::Scratch { .. }),
    };
    let (snapshots, disks) = watch_disks(spec, disks, is_own_file)?;
    // … then what occupies ports …
    let plugged = spec.nets.iter().map(plug_in).collect::<Result<Vec<_>, _>>()?;
    let (nets, networks): (Vec<_>, Vec<_>) = plugged.into_iter().unzip();
    // … and last what leaves files behind.
    let mut lines = Lines {
        outputs: Vec::new(),
        console_input: None,
        sockets: Vec::new(),
        made: Vec::new(),
        console_socket_input: None,
        new_files,
    };
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
    let qemu_agent = spec.qemu_agent.as_deref().map(|path| {
        SerialPort::new(QEMU_AGENT, path).map_err(|e| {
            Error::bad_input(format!("the socket {path:?} for QEMU's guest agent cannot be made"))
                .with_source(e)
                .with_advice("check --qemu-agent")
        })
    });
    let qemu_agent = qemu_agent.transpose()?;
    let serial_output = open_output(&spec.serial, Line::Serial, &mut lines)?;
    let console = match &spec.console {
        _ if !spec.has_console => None,
        device => {
            let output = open_output(device, Line::Console, &mut lines)?;
            let console =
                Console::new(output).map_err(|e| Error::host("the console cannot be made").with_source(e))?;
            lines.console_input = (*device == CharDevice::Stdio).then(|| console.input());
            lines.console_socket_input = matches!(device, CharDevice::Socket(_)).then(|| console.input());
            Some(console)
        }
    };
    let devices = Devices {
        nets,
        disks: disks
            .iter()
            .zip(&spec.disks)
            .map(|(disk, spec)| DiskDevice {
                disk: disk.clone(),
                serial: spec.serial.clone(),
                bus: spec.bus,
                limits: spec.limits,
            })
            .collect(),
        discs,
        boot_order: spec.boot_order.clone(),
        balloon: spec.balloon,
        vsock,
        qemu_agent,
        shares: spec.shares.as_deref().map(Shares::make).transpose()?,
        console,
    };
    let restored = snapshot.map(Snapshot::into_restored);
    let inputs =
        Inputs { ram, restored, boot, disks, snapshots, live, devices, networks, serial_output, display };
    Ok((inputs, lines))
}

/// Opens an image of a disc, whatever else it looks like: an ISO image may hold a partition table.
///
/// # Errors
/// When it cannot be read.
pub fn open_disc(path: &Path) -> Result<Arc<dyn Disk>, Error> {
    let disc = Raw::open(path, Access::ReadOnly)
        .map_err(|e| Error::bad_input("a disc cannot be used").with_source(e).with_advice("check --cdrom"))?;
    Ok(Arc::new(disc))
}

/// Where the video BIOS for the display adapter is.
const VIDEO_BIOS: &str = "/usr/share/seabios/vgabios-stdvga.bin";

/// Makes room in the guest's memory for a display adapter.
fn open_display(ram: &mut Ram) -> Result<DisplayConfig, Error> {
    let memory = VideoMemory::new(vga::VIDEO_MEMORY)
        .map_err(|e| Error::host("the display's memory is not to be had").with_source(e))?;
    let memory = Arc::new(memory);
    ram.leave_to_devices(RamRange { start: vga::WINDOW_START, len: vga::WINDOW_LEN });
    ram.set_video(memory.clone());
    // BIOS firmware alone needs it; without it, its screens are on the serial port only.
    let rom = std::fs::read(VIDEO_BIOS).ok().filter(|rom| rom.len() <= 1 << 20).unwrap_or_else(|| {
        log::info!("there is no video BIOS at {VIDEO_BIOS} (Debian: apt-get install seabios)");
        Vec::new()
    });
    Ok(DisplayConfig { memory, rom })
}

/// A disk that was opened.
enum OpenDisk {
    /// One whose images can change.
    Live(Arc<Live>),
    /// Any other.
    Fixed(Arc<dyn Disk>),
}

impl OpenDisk {
    fn into_parts(self) -> (Arc<dyn Disk>, Option<Arc<Live>>) {
        match self {
            OpenDisk::Live(live) => (live.disk(), Some(live)),
            OpenDisk::Fixed(disk) => (disk, None),
        }
    }
}

fn open_disk(spec: &DiskSpec) -> Result<OpenDisk, Error> {
    // The error names the path and says what to do.
    let image = Image::open(&spec.path, &spec.options)
        .map_err(|e| Error::bad_input("a disk cannot be used").with_source(e))?;
    log::info!("disk {} is {}", spec.path.display(), image.format);
    Ok(OpenDisk::Live(Arc::new(Live::new(image, &spec.options))))
}

/// Opens a disk of a snapshot.
fn restore_disk(
    spec: &DiskSpec,
    restored: &RestoredDisk,
    new_files: &mut Vec<Made>,
) -> Result<OpenDisk, Error> {
    let unusable = |e: disk::Error| Error::bad_input("a disk cannot be used").with_source(e);
    let size = match restored {
        RestoredDisk::Scratch { base } => {
            let base = Image::open(&base.path, &base.options).map_err(unusable)?.disk;
            let folder = std::env::temp_dir();
            log::info!("what the guest writes to {:?} is lost at the end; keep it with --disk", spec.path);
            return Ok(OpenDisk::Fixed(Arc::new(Scratch::new(base, &folder).map_err(|e| {
                Error::host("no temporary file can be made for what the guest writes to a disk")
                    .with_source(e)
                    .with_advice("name a disk with --disk, or another folder with TMPDIR")
            })?)));
        }
        RestoredDisk::Existing { size } => *size,
        RestoredDisk::Copied { from, size } => {
            let copy = copy_disk(from, spec, new_files)?;
            return check_size(open_disk(&copy)?, &copy, *size);
        }
    };
    check_size(open_disk(spec)?, spec, size)
}

/// Refuses a disk that is not as large as the machine of the snapshot knows it.
fn check_size(disk: OpenDisk, spec: &DiskSpec, size: u64) -> Result<OpenDisk, Error> {
    let is = match &disk {
        OpenDisk::Live(live) => live.info().size,
        OpenDisk::Fixed(disk) => disk.info().size,
    };
    if is != size {
        return Err(Error::bad_input(format!(
            "the disk {:?} has {is} bytes, and the machine of the snapshot knows it with {size}",
            spec.path
        ))
        .with_advice("check --disk"));
    }
    Ok(disk)
}

/// Makes a copy of a snapshot's disk, as `spec` wants it, and returns how it is opened: a raw one, or a qcow2
/// image that stands on the snapshot's.
fn copy_disk(from: &SavedImage, spec: &DiskSpec, new_files: &mut Vec<Made>) -> Result<DiskSpec, Error> {
    let mut copy = spec.clone();
    let to = &spec.path;
    match spec.options.format {
        // What the guest has written must not decide what the file is.
        None | Some(Format::Raw) => {
            match from.options.format {
                Some(Format::Raw) => copy_raw(&from.path, to, new_files)?,
                _ => convert_to_raw(from, to, new_files)?,
            }
            copy.options.format = Some(Format::Raw);
        }
        Some(Format::Qcow2) => {
            let options = CreateOptions::new(0);
            disk::create_overlay_over(to, &from.path, &from.options, &options, false).map_err(|e| {
                Error::bad_input(format!("the disk {to:?} cannot be made over {:?}", from.path))
                    .with_source(e)
                    .with_advice("check --disk")
            })?;
            new_files.push(Made::new(to));
            let allow = from.allow.iter().chain([&from.path]);
            copy.options.policy = allow.fold(copy.options.policy, |policy, path| policy.and(path));
        }
        Some(format) => {
            return Err(Error::bad_input(format!("the disk {to:?} cannot be made as {format}")).with_advice(
                "choose format=raw for a copy, or format=qcow2 for an image over the snapshot's",
            ));
        }
    }
    Ok(copy)
}

/// Makes a raw disk with the content of an image.
fn convert_to_raw(from: &SavedImage, to: &Path, new_files: &mut Vec<Made>) -> Result<(), Error> {
    log::info!("copying {:?} to {to:?}", from.path);
    Image::open(&from.path, &from.options)
        .and_then(|image| {
            disk::convert(&image.disk, to, &TargetOptions::new(Format::Raw), &Progress::default())
        })
        .map_err(|e| {
            Error::bad_input(format!("the disk {to:?} cannot be made as a copy of {:?}", from.path))
                .with_source(e)
                .with_advice("check --disk")
        })?;
    new_files.push(Made::new(to));
    Ok(())
}

/// Makes a raw copy of a file: by sharing its blocks where the file system can.
fn copy_raw(from: &Path, to: &Path, new_files: &mut Vec<Made>) -> Result<(), Error> {
    let failed = |e: io::Error| {
        Error::bad_input(format!("the disk {to:?} cannot be made as a copy of {from:?}"))
            .with_source(e)
            .with_advice("check --disk")
    };
    let source = File::open(from).map_err(failed)?;
    let copy = File::options().write(true).create_new(true).open(to).map_err(failed)?;
    new_files.push(Made::new(to));
    if rustix::fs::ioctl_ficlone(&copy, &source).is_ok() {
        return Ok(());
    }
    log::info!("copying {from:?} to {to:?}");
    let size = source.metadata().map_err(failed)?.len();
    copy.set_len(size).map_err(failed)?;
    for data in memory::data_ranges(&source, 0..size) {
        let data = data.map_err(failed)?;
        let mut at = data.start;
        let mut buffer = vec![0; 1 << 20];
        while at < data.end {
            use std::os::unix::fs::FileExt;
            let len = (data.end - at).min(buffer.len() as u64) as usize;
            source.read_exact_at(&mut buffer[..len], at).map_err(failed)?;
            copy.write_all_at(&buffer[..len], at).map_err(failed)?;
            at += len as u64;
        }
    }
    Ok(())
}

/// The folder for snapshots with the disks as they are watched, and the disks as devices use them.
type Watched = (Option<(Folder, Vec<Arc<Tracked>>)>, Vec<Arc<dyn Disk>>);

/// Puts disks under watch, if there are to be snapshots.
fn watch_disks(
    spec: &VmSpec,
    disks: Vec<Arc<dyn Disk>>,
    is_own_file: impl Fn(usize) -> bool,
) -> Result<Watched, Error> {
    let Some(path) = &spec.snapshots else { return Ok((None, disks)) };
    let folder = Folder::open(path)?;
    let watched = disks.into_iter().zip(&spec.disks).enumerate().map(|(index, (disk, spec))| {
        // Opened again, to be cloned: a file whose bytes are the disk's.
        let file = is_own_file(index).then(|| open_file(&spec.path, "disk", "--disk").ok()).flatten();
        let file = file.filter(|file| is_bytes_of(file, &*disk));
        Arc::new(Tracked::new(disk, file))
    });
    let watched: Vec<_> = watched.collect();
    let disks = watched.iter().map(|disk| disk.clone() as Arc<dyn Disk>).collect();
    Ok((Some((folder, watched)), disks))
}

/// Whether the bytes of a file are those of the disk that was opened from it: a raw one. One that a guest has
/// made to look like another format is taken for that here, which costs time only.
fn is_bytes_of(file: &File, disk: &dyn Disk) -> bool {
    use std::os::unix::fs::FileExt;
    let mut head = [0; 4];
    let is_sized = file.metadata().is_ok_and(|data| data.len() / 512 * 512 == disk.info().size);
    is_sized && file.read_exact_at(&mut head, 0).is_ok() && &head != b"QFI\xfb"
}

fn plug_in(spec: &NetSpec) -> Result<(Card, Option<NatHandle>), Error> {
    let failed = |what: &str, e: net::NetError| {
        Error::bad_input(what.to_owned()).with_source(e).with_advice("check --net")
    };
    match &spec.network {
        NetworkSpec::User(config) => {
            let nat =
                net::Nat::new((**config).clone()).map_err(|e| failed("the network cannot be made", e))?;
            let handle = nat.handle();
            Ok((Card { mac: spec.mac, backend: Box::new(nat), limits: spec.limits }, Some(handle)))
        }
        NetworkSpec::Switch { socket, key, mtu } => {
            let link = SwitchLink::connect(socket, *key, *mtu)
                .map_err(|e| failed("a network card cannot be plugged in", e))?;
            Ok((Card { mac: spec.mac, backend: Box::new(link), limits: spec.limits }, None))
        }
    }
}

/// Opens where a serial line writes to.
fn open_output(device: &CharDevice, line: Line, lines: &mut Lines) -> Result<Box<dyn Write + Send>, Error> {
    let name = match line {
        Line::Serial => "serial",
        Line::Console => "console",
    };
    let file = match device {
        CharDevice::None => return Ok(Box::new(io::sink())),
        CharDevice::Stdio => {
            let stdout = io::stdout().as_fd().try_clone_to_owned();
            File::from(stdout.map_err(|e| Error::host("standard output cannot be used").with_source(e))?)
        }
        CharDevice::File(path) => append_to(path, name, lines)?,
        CharDevice::Socket(socket) => return open_socket(socket, line, name, lines),
    };
    let output = Output::new(name, file);
    let writer = output.writer();
    lines.outputs.push(output);
    Ok(Box::new(writer))
}

fn append_to(path: &Path, name: &str, lines: &mut Lines) -> Result<File, Error> {
    let existed = path.exists();
    let file = File::options().read(true).append(true).create(true).open(path).map_err(|e| {
        Error::bad_input(format!("the file {path:?} cannot be written"))
            .with_source(e)
            .with_advice(format!("check --{name}"))
    })?;
    if !existed {
        lines.new_files.push(Made::new(path));
    }
    Ok(file)
}

/// How much of the past the log of a line on a socket keeps at least.
const LOG_KEPT: u64 = 1 << 20;

fn open_socket(
    socket: &LineSocketConfig,
    line: Line,
    name: &str,
    lines: &mut Lines,
) -> Result<Box<dyn Write + Send>, Error> {
    let log: Option<Box<dyn Write + Send>> = match &socket.log {
        None => None,
        Some(path) => {
            let output = Output::new(name, append_to(path, name, lines)?).keep_last(LOG_KEPT);
            let writer = output.writer();
            lines.outputs.push(output);
            Some(Box::new(writer))
        }
    };
    let listener = crate::control::bind(&socket.path, &format!("--{name}"))?;
    lines.made.push(Made::new(&socket.path));
    let server =
        SocketLine::new(listener).map_err(|e| Error::host("a socket cannot be served").with_source(e))?;
    let writer = server.writer(log);
    lines.sockets.push((server, line));
    Ok(Box::new(writer))
}
