//! The program `arnia-vmm`: from the command line to the exit status.

use crate::cli::{Cli, Start};
use crate::control::{Handler, Listener, Server};
use crate::controller::{Controller, Ended, Event, Parts};
use crate::engines::Wanted;
use crate::inputs::{self, Line, Lines};
use crate::machine::{GuestEvents, Machine};
use crate::sandbox::Needs;
use crate::snapshot::Snapshot;
use crate::spec::VmSpec;
use crate::terminal::{CharSink, Input, RawMode, Wake};
use crate::vcpu::Gate;
use crate::{Error, ErrorKind, engines, sandbox, signals};
use api::worker::config::{CharDevice, JitConfig};
use api::worker::exit;
use clap::Parser;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;
use virtio::console::ConsoleInput;

/// Runs the program.
pub fn main() -> ExitCode {
    let started = Instant::now();
    clock::begin_measuring_host_tsc();
    // Ends by itself, with status 2, when the command line is wrong.
    let cli = Cli::parse();
    crate::log::start(cli.log_level());
    if cli.is_probe() {
        return match probe() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("arnia-vmm: {}", error.report());
                ExitCode::from(exit::FAILED)
            }
        };
    }
    let mut report = None;
    let (status, message) = match run(cli, started, &mut report) {
        Ok(ended) => (ended.exit_status(), ended.message()),
        Err(error) => {
            let status = match error.kind() {
                ErrorKind::BadInput => exit::BAD_INPUT,
                ErrorKind::Host | ErrorKind::Internal => exit::FAILED,
            };
            (status, Some(error.report()))
        }
    };
    if let Some(message) = &message {
        eprintln!("arnia-vmm: {message}");
    }
    if let Some(file) = report
        && let Err(e) = write_report(file, &exit::Report { status, message })
    {
        eprintln!("arnia-vmm: the report of the machine's end cannot be written: {e}");
    }
    ExitCode::from(status)
}

/// Tells what each engine can do on this host.
fn probe() -> Result<(), Error> {
    let reports = engines::report(&engines::all(&JitConfig::default(), true)?);
    let text = serde_json::to_string_pretty(&reports)
        .map_err(|e| Error::host("what was found cannot be written").with_source(e))?;
    println!("{text}");
    Ok(())
}

fn open_report(path: &Path) -> Result<File, Error> {
    File::create(path).map_err(|e| {
        Error::bad_input(format!("the file {path:?} cannot be written"))
            .with_source(e)
            .with_advice("check --report")
    })
}

/// Writes the report and makes it last: somebody may read it after the host has started again.
fn write_report(mut file: File, report: &exit::Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    file.write_all(&line)?;
    file.sync_data()
}

fn run(cli: Cli, started: Instant, report: &mut Option<File>) -> Result<Ended, Error> {
    let signals =
        signals::take_over().map_err(|e| Error::host("signals cannot be taken over").with_source(e))?;
    let (mut spec, snapshot) = match cli.into_start()? {
        Start::Boot(config) => {
            *report = config.report.as_deref().map(open_report).transpose()?;
            (VmSpec::try_from(*config)?, None)
        }
        Start::Restore(config) => {
            *report = config.report.as_deref().map(open_report).transpose()?;
            let (snapshot, spec) = Snapshot::open(*config)?;
            (spec, Some(snapshot))
        }
    };
    // What a saved guest has seen is decided already.
    let portable = snapshot.is_none();
    let tsc_hz = snapshot.as_ref().map_or(spec.tsc_hz, |snapshot| Some(snapshot.tsc_hz()));
    let wanted = Wanted {
        engine: spec.engine,
        force: spec.force_engine,
        portable,
        other_tsc_hz: tsc_hz.filter(|hz| !clock::is_host_tsc_hz(*hz)),
    };
    let engine = engines::choose(wanted, engines::all(&spec.jit, spec.nested)?)?;
    spec.fix_paths();
    check_disk_folder(&spec)?;
    let (mut inputs, mut lines) = inputs::open(&spec, snapshot)?;
    let control = spec.control.as_deref().map(Listener::bind).transpose()?;
    // Nothing more is opened, and no other thread exists yet.
    if spec.sandbox {
        sandbox::enter(&needs(&spec, engine.name()))?;
    }
    lines.start().map_err(thread)?;

    let (sender, events) = channel();
    let gate = Arc::new(Gate::default());
    let to_controller = sender.clone();
    let guest_events = Arc::new(GuestEvents::new(gate.clone(), move |event| {
        let _ = to_controller.send(Event::Guest(event));
    }));
    let for_devices = guest_events.clone();
    let restored = inputs.restored.take();
    let networks = std::mem::take(&mut inputs.networks);
    let (machine, vcpus) = Machine::build(
        &spec,
        &*engine,
        inputs,
        restored.as_ref(),
        Arc::new(move |event| for_devices.event(event)),
    )?;
    let controller = Controller::new(
        &spec,
        Parts {
            machine,
            vcpus,
            gate,
            guest_events,
            events,
            reports: sender.clone(),
            engine: engine.name(),
            started,
            restored,
            networks,
        },
    )?;
    let on_signal = sender.clone();
    signals.start(move |signal| drop(on_signal.send(Event::Signal(signal)))).map_err(thread)?;
    let server = control.map(|control| serve(control, sender.clone())).transpose().map_err(thread)?;
    let raw_mode = connect_terminal(&spec, &controller, &lines, sender)?;
    connect_sockets(&controller, &mut lines).map_err(thread)?;
    lines.keep_files();

    let ended = controller.run();

    drop(server);
    // The guest's last words come before ours, on a terminal as it was.
    lines.finish();
    drop(raw_mode);
    Ok(ended)
}

/// Finds out early what would otherwise be a riddle later: a folder that is not there gets no rights.
fn check_disk_folder(spec: &VmSpec) -> Result<(), Error> {
    match &spec.disk_folder {
        Some(folder) if !folder.is_dir() => Err(Error::bad_input(format!("there is no folder {folder:?}"))
            .with_advice("make it, or check --disk-folder")),
        _ => Ok(()),
    }
}

fn thread(e: io::Error) -> Error {
    Error::host("a thread cannot be started").with_source(e)
}

/// What of the host's files the machine still needs when it runs.
fn needs(spec: &VmSpec, engine: &str) -> Needs {
    let vsock = spec.vsock.as_ref().map(|vsock| vsock.socket.clone());
    let lines = [&spec.serial, &spec.console].into_iter().filter_map(|line| match line {
        CharDevice::Socket(socket) => Some(socket.path.clone()),
        _ => None,
    });
    Needs {
        removed: spec
            .control
            .iter()
            .cloned()
            .chain(vsock)
            .chain(spec.qemu_agent.clone())
            .chain(lines)
            .collect(),
        name_servers: spec.nets.iter().any(|net| net.network.asks_name_servers()),
        snapshots: spec.snapshots.clone(),
        media: spec.config.cdroms.iter().filter_map(|drive| drive.media.clone()).collect(),
        disk_folder: spec.disk_folder.clone(),
        kvm: engine == "kvm",
    }
}

fn serve(control: Listener, sender: Sender<Event>) -> io::Result<Server> {
    let handler: Handler = Arc::new(move |request, reply| {
        // When the machine has ended, the event is dropped, and the reply with it.
        let _ = sender.send(Event::Control(request, reply));
    });
    control.serve(handler)
}

/// Connects standard input to the guest, if one of its lines leads to the terminal.
fn connect_terminal(
    spec: &VmSpec,
    controller: &Controller,
    lines: &Lines,
    sender: Sender<Event>,
) -> Result<Option<RawMode>, Error> {
    let refused = |e: io::Error| Error::host("the terminal cannot be used").with_source(e);
    let wake = Wake::new().map_err(refused)?;
    let sink: Arc<dyn CharSink> = if spec.serial == CharDevice::Stdio {
        let port = controller.serial_port();
        let wake = wake.clone();
        port.on_room(move || wake.wake());
        Arc::new(SerialSink(port))
    } else if let Some(console) = &lines.console_input {
        Arc::new(ConsoleSink(console.clone()))
    } else {
        return Ok(None);
    };
    let raw_mode = RawMode::enter().map_err(refused)?;
    if raw_mode.is_none() && rustix::termios::isatty(io::stdin()) {
        // In the background: reading would stop the program.
        return Ok(None);
    }
    let stdin = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(refused)?);
    Input::new(stdin, sink, wake, move |command| drop(sender.send(Event::Typed(command))))
        .start("input")
        .map_err(refused)?;
    Ok(raw_mode)
}

/// Starts to serve the lines that lead to sockets.
fn connect_sockets(controller: &Controller, lines: &mut Lines) -> io::Result<()> {
    for (socket, line) in &mut lines.sockets {
        let sink: Arc<dyn CharSink> = match line {
            Line::Serial => {
                let (port, wake) = (controller.serial_port(), socket.wake());
                port.on_room(move || wake.wake());
                Arc::new(SerialSink(port))
            }
            Line::Console => match lines.console_socket_input.clone() {
                Some(input) => Arc::new(ConsoleSink(input)),
                None => continue,
            },
        };
        socket.start(sink)?;
    }
    Ok(())
}

struct SerialSink(Arc<platform::serial::SerialPort>);

impl CharSink for SerialSink {
    fn receive(&self, bytes: &[u8]) -> usize {
        self.0.receive(bytes)
    }
}

struct ConsoleSink(ConsoleInput);

impl CharSink for ConsoleSink {
    fn receive(&self, bytes: &[u8]) -> usize {
        self.0.receive(bytes)
    }
}
