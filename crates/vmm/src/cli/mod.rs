//! The command line of `arnia-vmm`. Parsing is pure: text becomes a
//! [`VmConfig`](api::worker::config::VmConfig), nothing is opened but the file of `--config`.

mod options;

use crate::Error;
use api::ByteSize;
use api::worker::config::{
    BootKind, BootMethod, CdromConfig, CharDevice, DiskConfig, Display, EngineChoice, FirmwareImage,
    JitConfig, JitMode, JitStress, NetConfig, OnReset, RestoreConfig, STOP_TIMEOUT_MAX, TraceConfig,
    VmConfig, VsockConfig,
};
use clap::{Parser, ValueEnum};
use log::LevelFilter;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  A kernel and an initial RAM disk, on this terminal:
    arnia-vmm --kernel vmlinuz --initrd initrd.img --append console=ttyS0

  A Debian disk with network; ssh -p 2222 root@127.0.0.1 leads into it:
    arnia-vmm --kernel vmlinuz --initrd initrd.img --append \"console=ttyS0 root=/dev/vda1\" \\
      --cpus 2 --memory 1G --disk debian.img --net user,forward=2222:22

  In the background, controlled over a socket:
    arnia-vmm --config vm.json --serial file=vm.log --control vm.sock &
    echo '{\"op\":\"power\"}' | socat - unix-connect:vm.sock

  A snapshot of it while it runs, and a copy that goes on from there:
    arnia-vmm --config vm.json --control vm.sock --snapshots snapshots &
    echo '{\"op\":\"snapshot\",\"name\":\"ready\"}' | socat - unix-connect:vm.sock
    arnia-vmm --restore snapshots/ready --disk copy.img --net user,forward=2223:22

On a terminal, Ctrl-] is the escape key: Ctrl-] x ends the machine at once, Ctrl-] p presses its power
button, Ctrl-] Ctrl-] sends a Ctrl-]. The first SIGTERM, SIGINT or SIGHUP presses the power button, another
one a second or more later ends the machine at once, as SIGQUIT does.

Exit status: 0 the guest powered off; 1 the host or this program failed; 2 bad input, nothing was changed;
3 ended from outside; 4 the guest crashed and --no-reboot was given; 6 the guest asked for a reset and
--no-reboot was given; with --debug-exit, (value << 1) | 1 for a value that the guest wrote to port 0xf4.";

/// Runs one virtual machine.
#[derive(Debug, Parser)]
#[command(name = "arnia-vmm", version, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    /// Read the machine from a JSON file. Other options add to it and take precedence
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A name for people, shown in status and to the guest
    #[arg(long)]
    name: Option<String>,
    /// The machine's UUID [default: a new one]
    #[arg(long)]
    uuid: Option<String>,
    /// The VM Generation ID, a UUID: by another one a guest learns that it is a copy [default: a new one]
    #[arg(long, value_name = "UUID")]
    generation_id: Option<String>,

    /// The kernel: a Linux bzImage or an ELF executable for x86-64
    #[arg(long, value_name = "FILE", conflicts_with = "firmware")]
    kernel: Option<PathBuf>,
    /// Boot from the disks by firmware instead: bios, uefi (as the host's packages have them), or a file
    #[arg(long, value_name = "WHICH")]
    firmware: Option<String>,
    /// Where UEFI firmware keeps its variables; made if it is not there. With --restore the snapshot's are
    /// written there [default: nowhere]
    #[arg(long, value_name = "FILE")]
    firmware_variables: Option<PathBuf>,
    /// The initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// How the kernel is entered [default: auto]
    #[arg(long, value_enum, value_name = "METHOD")]
    boot: Option<Boot>,

    /// Number of vCPUs [default: 1]
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Guest memory, with a unit: K, M, G, T [default: 1G]
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// What executes guest code [default: auto]
    #[arg(long, value_enum)]
    engine: Option<Engine>,
    /// How the software engine works: on translates hot code, off interprets everything, lockstep does both
    /// on the same state and stops at the first difference [default: on]
    #[arg(long, value_enum, value_name = "MODE")]
    jit: Option<Jit>,
    /// Most memory for translated code [default: 128M]
    #[arg(long, value_name = "SIZE")]
    jit_cache: Option<ByteSize>,
    /// Keep status flags that only the frame of a fault or an interrupt can show: exact, but slower
    #[arg(long)]
    jit_exact_flags: bool,
    /// How often code is interpreted before it is translated
    #[arg(long, value_name = "N", hide = true)]
    jit_hot: Option<u32>,
    /// Forced modes: tlb, flush
    #[arg(long, value_enum, value_name = "WHAT", hide = true, value_delimiter = ',')]
    jit_stress: Vec<JitStressed>,
    /// Write what the software engine translates and leaves:
    /// FILE[,events=blocks+traces+host+exits][,at=FIRST-LAST][,vcpu=N]
    #[arg(long, value_name = "TRACE", value_parser = options::trace)]
    trace: Option<TraceConfig>,
    /// Use the engine that --engine names even where it was found to be of no use
    #[arg(long, requires = "engine")]
    force_engine: bool,
    /// Let the guest use hardware virtualization itself, where KVM offers that to guests
    #[arg(long)]
    nested: bool,
    /// Frequency of the guest's time-stamp counter, for machines that move between hosts of different ones [default: the
    /// host's]
    #[arg(long, value_name = "HZ")]
    tsc_hz: Option<u64>,
    /// What the processors can do: x86-64-v2, x86-64-v3, host [default: the newest that the engine gives]
    #[arg(long, value_name = "NAME")]
    cpu_model: Option<String>,

    /// A disk: [path=]FILE[,format=FORMAT][,bus=virtio|ahci|scsi][,ro][,snapshot=NAME][,allow=PATH]...[,serial=TEXT]
    /// [,limit-bytes=SIZE][,limit-ops=N][,burst-bytes=SIZE][,burst-ops=N]. FORMAT is auto (found out from the
    /// file), raw, qcow2, vmdk, vdi, vhd or vhdx. An image may stand on files of its own folder, and on those in
    /// a PATH. Limits are per second, for reads and writes together, but not at an AHCI controller; a burst may go
    /// through at once after a rest. A comma in a path is written twice. May be repeated
    #[arg(long, value_name = "DISK", value_parser = options::disk)]
    disk: Vec<DiskConfig>,
    /// A network card: none, or user[,forward=[ADDRESS:]PORT:[GUEST:]PORT[/udp]]...[,mac=MAC][,restrict]
    /// [,subnet=NETWORK][,hostname=NAME][,limit-bytes=SIZE][,limit-ops=N][,burst-bytes=SIZE][,burst-ops=N].
    /// Limits are per second, in each direction; operations are frames. May be repeated
    #[arg(long, value_name = "NET", value_parser = options::net)]
    net: Vec<Net>,
    /// A CD-ROM drive with an ISO image: FILE[,media=DIR], or empty[,media=DIR]. From DIR other discs can be put in
    /// while the machine runs: see the control request disc. May be repeated
    #[arg(long, value_name = "DISC", value_parser = options::cdrom)]
    cdrom: Vec<CdromConfig>,
    /// What firmware tries to boot, in this order: disk, cdrom, net [default: disk,cdrom]
    #[arg(long, value_enum, value_name = "KINDS", value_delimiter = ',')]
    boot_order: Vec<BootFrom>,
    /// The display adapter, and a keyboard with it; see the control requests screenshot and keys
    /// [default: vga with --firmware, none with --kernel]
    #[arg(long, value_enum, value_name = "WHICH")]
    display: Option<DisplayKind>,
    /// Leave out the memory balloon, by which the guest's memory can be made smaller and its free pages go back
    /// to the host
    #[arg(long, conflicts_with = "restore")]
    no_balloon: bool,
    /// Sockets between host and guest: cid=N,socket=PATH
    #[arg(long, value_name = "VSOCK", value_parser = options::vsock)]
    vsock: Option<VsockConfig>,
    /// A serial port for QEMU's guest agent (org.qemu.guest_agent.0), which this Unix socket leads to
    #[arg(long, value_name = "PATH")]
    qemu_agent: Option<PathBuf>,
    /// Where the serial port COM1 (ttyS0) leads: stdio, file=PATH, socket=PATH[,log=FILE] or none
    /// [default: stdio]
    #[arg(long, value_name = "WHERE", value_parser = options::char_device)]
    serial: Option<CharDevice>,
    /// Where the virtio console (hvc0) leads: stdio, file=PATH, socket=PATH[,log=FILE] or none
    /// [default: none]
    #[arg(long, value_name = "WHERE", value_parser = options::char_device)]
    console: Option<CharDevice>,

    /// Listen for control requests on a Unix socket, which must not exist
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Make snapshots, which the control socket is asked for, in this folder
    #[arg(long, value_name = "DIR")]
    snapshots: Option<PathBuf>,
    /// Let the control socket put overlays on disks while the machine runs, with files in this folder
    #[arg(long, value_name = "DIR")]
    disk_folder: Option<PathBuf>,
    /// Go on from a snapshot. Its machine stays what it was; --disk and --net say, one for each, where disks
    /// and networks lead now. A --disk that does not exist becomes a copy of the snapshot's; without --disk
    /// what the guest writes is lost at the end
    #[arg(long, value_name = "DIR", conflicts_with_all = [
        "config", "kernel", "firmware", "initrd", "append", "boot", "cpus", "memory",
        "cpu_model", "debug_exit", "display", "cdrom", "boot_order",
    ])]
    restore: Option<PathBuf>,
    /// With --restore: a file that the snapshot names and that is not in its folder (kernel, initrd, disc, image that a disk
    /// stands on), or a folder of such files; may be repeated
    #[arg(long, value_name = "PATH", requires = "restore")]
    allow: Vec<PathBuf>,
    /// With --restore: check the snapshot's files even if they are as they were when last checked
    #[arg(long, requires = "restore")]
    verify: bool,
    /// With --restore: stand still until the control socket says `resume`
    #[arg(long, requires = "restore")]
    paused: bool,
    /// Write why the machine ended, as a line of JSON, into this file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// End instead of starting again when the guest resets the machine
    #[arg(long)]
    no_reboot: bool,
    /// After SIGTERM, SIGINT or SIGHUP has pressed the power button: how long the guest has until the machine is ended;
    /// 60 by default
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(..=i64::from(STOP_TIMEOUT_MAX)))]
    stop_timeout: Option<u32>,
    /// Let the guest end the machine with a status of its choice, by a write to port 0xf4
    #[arg(long)]
    debug_exit: bool,
    /// Tell what each engine can do on this host, as JSON, and end
    #[arg(long, exclusive = true)]
    probe: bool,
    /// Keep all rights that the program was started with
    #[arg(long)]
    no_sandbox: bool,
    /// How much to tell on standard error
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "warn")]
    log: LogLevel,
}

/// What `--net` says: a card, or that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Net(Option<NetConfig>);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Boot {
    /// What suits the file
    Auto,
    /// Decompressed on the host, by the 64-bit Linux protocol
    Direct,
    /// The bzImage decompresses itself: slower, keeps kernel address randomisation
    SelfDecompressing,
    /// By the PVH entry point
    Pvh,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BootFrom {
    /// Disks, in their order
    Disk,
    /// CD-ROM drives, in their order
    Cdrom,
    /// Network cards, in their order
    Net,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DisplayKind {
    /// No display, no keyboard
    None,
    /// A VGA with a linear frame buffer, and a PS/2 keyboard
    Vga,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Engine {
    /// The fastest that works here
    Auto,
    /// Hardware virtualization
    Kvm,
    /// Binary translation: works everywhere
    Bt,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Jit {
    /// Hot code is translated
    On,
    /// Everything is interpreted
    Off,
    /// Both on the same state; the first difference ends the program with a report
    Lockstep,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum JitStressed {
    /// The software TLB keeps one page
    Tlb,
    /// Each switch of page tables forgets all addresses
    Flush,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// What the program is to do.
#[derive(Debug)]
pub enum Start {
    /// Boot a machine.
    Boot(Box<VmConfig>),
    /// Go on from a snapshot.
    Restore(Box<RestoreConfig>),
}

impl Cli {
    /// Whether only the engines are to be looked at.
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// The level of the log.
    pub fn log_level(&self) -> LevelFilter {
        match self.log {
            LogLevel::Off => LevelFilter::Off,
            LogLevel::Error => LevelFilter::Error,
            LogLevel::Warn => LevelFilter::Warn,
            LogLevel::Info => LevelFilter::Info,
            LogLevel::Debug => LevelFilter::Debug,
            LogLevel::Trace => LevelFilter::Trace,
        }
    }

    /// What the options ask for.
    ///
    /// # Errors
    /// When the file of `--config` cannot be read or is not a configuration.
    pub fn into_start(self) -> Result<Start, Error> {
        match &self.restore {
            Some(_) => self.into_restore().map(|config| Start::Restore(Box::new(config))),
            None => match self.config.as_deref().map(read_restore).transpose()?.flatten() {
                Some(config) => Ok(Start::Restore(Box::new(config))),
                None => self.into_config().map(|config| Start::Boot(Box::new(config))),
            },
        }
    }

    fn engine_choice(&self) -> Option<EngineChoice> {
        self.engine.map(|engine| match engine {
            Engine::Auto => EngineChoice::Auto,
            Engine::Kvm => EngineChoice::Kvm,
            Engine::Bt => EngineChoice::Bt,
        })
    }

    fn set_jit(&self, config: &mut JitConfig) {
        let jit = self.jit.map(|mode| match mode {
            Jit::On => JitMode::On,
            Jit::Off => JitMode::Off,
            Jit::Lockstep => JitMode::Lockstep,
        });
        if let Some(jit) = jit {
            config.mode = jit;
        }
        config.cache = self.jit_cache.or(config.cache.take());
        config.hot = self.jit_hot.or(config.hot.take());
        config.exact_flags |= self.jit_exact_flags;
        config.trace = self.trace.clone().or(config.trace.take());
        config.stress.extend(self.jit_stress.iter().map(|stress| match stress {
            JitStressed::Tlb => JitStress::Tlb,
            JitStressed::Flush => JitStress::Flush,
        }));
    }

    fn nets(nets: Vec<Net>) -> Result<Vec<NetConfig>, Error> {
        if nets.len() > 1 && nets.contains(&Net(None)) {
            return Err(Error::bad_input("--net none stands beside another --net")
                .with_advice("leave out one of them"));
        }
        Ok(nets.into_iter().filter_map(|net| net.0).collect())
    }

    fn into_restore(self) -> Result<RestoreConfig, Error> {
        let engine = self.engine_choice().unwrap_or_default();
        if self.net.contains(&Net(None)) {
            return Err(Error::bad_input("the network cards of a snapshot's machine cannot be taken out")
                .with_advice("leave out --net none"));
        }
        let mut config = RestoreConfig::new(self.restore.clone().unwrap_or_default());
        self.set_jit(&mut config.jit);
        config.allow = self.allow;
        config.verify = self.verify;
        config.paused = self.paused;
        config.name = self.name;
        config.uuid = self.uuid;
        config.generation_id = self.generation_id;
        config.engine = engine;
        config.disks = self.disk;
        config.nets = Cli::nets(self.net)?;
        config.vsock = self.vsock;
        config.qemu_agent = self.qemu_agent;
        if let Some(serial) = self.serial {
            config.serial = serial;
        }
        if let Some(console) = self.console {
            config.console = console;
        }
        config.control = self.control;
        config.snapshots = self.snapshots;
        config.report = self.report;
        config.firmware_variables = self.firmware_variables;
        config.disk_folder = self.disk_folder;
        config.on_reset = self.no_reboot.then_some(OnReset::Exit);
        config.stop_timeout = self.stop_timeout;
        config.sandbox = !self.no_sandbox;
        Ok(config)
    }

    /// The machine that the options describe, on top of the file of `--config` if one is named.
    fn into_config(self) -> Result<VmConfig, Error> {
        if self.verify || self.paused {
            return Err(Error::bad_input(
                "--verify and --paused are for a machine that goes on from a snapshot",
            )
            .with_advice("leave them out, or give --restore DIR"));
        }
        let mut config = match &self.config {
            Some(path) => read_config(path)?,
            None => VmConfig { kernel: None, ..VmConfig::new("") },
        };
        self.set_jit(&mut config.jit);
        let engine = self.engine_choice();
        fn set<T>(field: &mut T, given: Option<T>) {
            if let Some(value) = given {
                *field = value;
            }
        }
        fn set_option<T>(field: &mut Option<T>, given: Option<T>) {
            if given.is_some() {
                *field = given;
            }
        }
        set_option(&mut config.kernel, self.kernel);
        set_option(&mut config.firmware, self.firmware.map(FirmwareImage::from));
        set_option(&mut config.firmware_variables, self.firmware_variables);
        set_option(&mut config.name, self.name);
        set_option(&mut config.uuid, self.uuid);
        set_option(&mut config.generation_id, self.generation_id);
        set_option(&mut config.initrd, self.initrd);
        set(&mut config.append, self.append);
        set(&mut config.cpus, self.cpus);
        set(&mut config.memory, self.memory);
        set_option(&mut config.cpu_model, self.cpu_model);
        set_option(&mut config.vsock, self.vsock);
        set_option(&mut config.qemu_agent, self.qemu_agent);
        let display = self.display.map(|display| match display {
            DisplayKind::None => Display::None,
            DisplayKind::Vga => Display::Vga,
        });
        set_option(&mut config.display, display);
        set(&mut config.serial, self.serial);
        set(&mut config.console, self.console);
        set_option(&mut config.control, self.control);
        set_option(&mut config.snapshots, self.snapshots);
        set_option(&mut config.disk_folder, self.disk_folder);
        config.balloon &= !self.no_balloon;
        set_option(&mut config.report, self.report);
        let boot = self.boot.map(|method| match method {
            Boot::Auto => BootMethod::Auto,
            Boot::Direct => BootMethod::Direct,
            Boot::SelfDecompressing => BootMethod::SelfDecompressing,
            Boot::Pvh => BootMethod::Pvh,
        });
        set(&mut config.boot, boot);
        set(&mut config.engine, engine);
        config.force_engine |= self.force_engine;
        config.nested |= self.nested;
        set_option(&mut config.tsc_hz, self.tsc_hz);
        config.disks.extend(self.disk);
        config.cdroms.extend(self.cdrom);
        if !self.boot_order.is_empty() {
            config.boot_order = self
                .boot_order
                .iter()
                .map(|kind| match kind {
                    BootFrom::Disk => BootKind::Disk,
                    BootFrom::Cdrom => BootKind::Cdrom,
                    BootFrom::Net => BootKind::Net,
                })
                .collect();
        }
        if self.net.contains(&Net(None)) {
            config.nets.clear();
        }
        config.nets.extend(Cli::nets(self.net)?);
        if self.no_reboot {
            config.on_reset = OnReset::Exit;
        }
        set_option(&mut config.stop_timeout, self.stop_timeout);
        config.debug_exit |= self.debug_exit;
        config.sandbox &= !self.no_sandbox;
        Ok(config)
    }
}

fn read_config(path: &Path) -> Result<VmConfig, Error> {
    serde_json::from_str(&read_text(path)?).map_err(|e| no_config(path, e))
}

/// What the file says if it is about a machine that goes on from a snapshot: then it is all that there is to say.
fn read_restore(path: &Path) -> Result<Option<RestoreConfig>, Error> {
    let value: serde_json::Value = serde_json::from_str(&read_text(path)?).map_err(|e| no_config(path, e))?;
    if value.get("snapshot").is_none() {
        return Ok(None);
    }
    serde_json::from_value(value).map(Some).map_err(|e| no_config(path, e))
}

fn read_text(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|e| {
        Error::bad_input(format!("the configuration {path:?} cannot be read"))
            .with_source(e)
            .with_advice("check --config")
    })
}

fn no_config(path: &Path, e: serde_json::Error) -> Error {
    Error::bad_input(format!("{path:?} is not a configuration"))
        .with_source(e)
        .with_advice("see docs/reference/arnia-vmm.md for the fields")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &str) -> Result<VmConfig, String> {
        let args = ["arnia-vmm"].into_iter().chain(args.split_whitespace());
        let cli = Cli::try_parse_from(args).map_err(|e| e.to_string())?;
        cli.into_config().map_err(|e| e.report())
    }

    /// The daemon says all of a machine in a file, also of one that goes on from a snapshot.
    #[test]
    fn a_file_tells_which_machine_goes_on() {
        let path = std::env::temp_dir().join(format!("arnia-vmm-config-{}", std::process::id()));
        let start = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let cli =
                Cli::try_parse_from(["arnia-vmm".as_ref(), "--config".as_ref(), path.as_os_str()]).unwrap();
            cli.into_start().map_err(|e| e.report())
        };
        let Ok(Start::Restore(config)) =
            start(r#"{"snapshot": "s/a", "paused": true, "disks": [{"path": "d"}]}"#)
        else {
            panic!("it goes on")
        };
        assert!(config.paused && config.disks.len() == 1);
        assert!(matches!(start(r#"{"kernel": "k"}"#), Ok(Start::Boot(_))));
        for bad in [r#"{"snapshot": "s/a", "kernel": "k"}"#, "[", r#"{"snapshot": 1}"#] {
            assert!(start(bad).is_err_and(|e| e.contains("not a configuration")), "{bad}");
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_command_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_commands_of_the_documentation_are_read() {
        let config = parse(
            "--kernel vmlinuz --initrd initrd.img --append console=ttyS0 --disk debian.img \
             --net user,forward=2222:22 --cpus 2 --memory 1G --engine bt --vsock cid=3,socket=v.sock \
             --control vm.sock --no-reboot --debug-exit --serial file=log --boot self-decompressing",
        )
        .unwrap();
        assert_eq!((config.cpus, config.memory), (2, ByteSize(1 << 30)));
        assert_eq!(config.disks, [DiskConfig::new("debian.img")]);
        assert_eq!(config.engine, EngineChoice::Bt);
        assert_eq!(config.on_reset, OnReset::Exit);
        assert_eq!(config.serial, CharDevice::File("log".into()));
        assert_eq!(config.boot, BootMethod::SelfDecompressing);
        assert!(config.debug_exit && config.sandbox);
    }

    #[test]
    fn mistakes_are_named() {
        for (args, word) in [
            ("--kernel k --cpus many", "--cpus"),
            ("--kernel k --memory 1.5G", "not a size"),
            ("--kernel k --engine tcg", "--engine"),
            ("--kernel k --disk a,b=c", "b=c"),
            ("--kernel k --net tap", "tap"),
            ("--kernel k --net none --net user", "none"),
            ("--kernel k --vsock socket=x", "cid"),
            ("--kernel k --serial tcp", "tcp"),
            ("--config /nonexistent", "cannot be read"),
            ("--kernel k --unknown", "--unknown"),
        ] {
            let text = parse(args).expect_err(args);
            assert!(text.contains(word), "{args}: {text}");
        }
    }

    #[test]
    fn a_snapshot_is_all_that_is_needed() {
        let start = |args: &str| -> Result<RestoreConfig, String> {
            let args = ["arnia-vmm"].into_iter().chain(args.split_whitespace());
            let cli = Cli::try_parse_from(args).map_err(|e| e.to_string())?;
            match cli.into_start().map_err(|e| e.report())? {
                Start::Restore(config) => Ok(*config),
                Start::Boot(_) => Err("boots".into()),
            }
        };
        let config = start("--restore s/a --disk d --net user --control c --paused --verify --report r --firmware-variables v \
             --generation-id 123e4567-e89b-42d3-a456-426614174000",
        ).unwrap();
        assert_eq!((config.snapshot, config.disks.len(), config.nets.len()), ("s/a".into(), 1, 1));
        assert!(config.paused && config.verify && config.sandbox);
        assert_eq!((config.report, config.firmware_variables), (Some("r".into()), Some("v".into())));
        assert!(config.generation_id.is_some());
        for (args, word) in [
            ("--restore a --kernel k", "--kernel"),
            ("--restore a --memory 1G", "--memory"),
            ("--kernel k --stop-timeout 86401", "86400"),
            ("--restore a --net none", "--net none"),
            ("--kernel k --paused", "--restore"),
        ] {
            let text = start(args).expect_err(args);
            assert!(text.contains(word), "{args}: {text}");
        }
    }

    #[test]
    fn options_add_to_a_file_and_take_precedence() {
        let path = std::env::temp_dir().join(format!("arnia-vmm-config-{}.json", std::process::id()));
        let text = r#"{"kernel": "a", "cpus": 4, "disks": [{"path": "x"}], "nets": [{"user": {}}]}"#;
        std::fs::write(&path, text).unwrap();
        let config = parse(&format!("--config {} --kernel b --disk y,ro", path.display())).unwrap();
        assert_eq!((config.kernel, config.cpus), (Some("b".into()), 4));
        assert_eq!(config.disks.len(), 2);
        assert!(config.disks[1].read_only);
        assert_eq!(config.nets.len(), 1);
        let config = parse(&format!("--config {} --net none", path.display())).unwrap();
        assert!(config.nets.is_empty());
        std::fs::write(&path, "{\"kernel\": 1}").unwrap();
        let text = parse(&format!("--config {}", path.display())).unwrap_err();
        assert!(text.contains("not a configuration") && text.contains("line 1"), "{text}");
        std::fs::remove_file(&path).unwrap();
    }
}
