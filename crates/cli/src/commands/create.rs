//! `arnia run` and `arnia create`.

use super::{Run, console};
use crate::progress::{Wait, shown};
use crate::{Context, Error};
use api::ByteSize;
use api::v1::network::NicConfig;
use api::v1::vm::{Autostart, DiskConfig, VmConfig, VmParams};
use client::Created;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What a machine shall be.
#[derive(Debug, clap::Args)]
struct Machine {
    /// Its name: a to z, 0 to 9 and hyphens
    #[arg(value_name = "NAME")]
    name: String,
    /// The kernel: a Linux bzImage or an ELF executable for x86-64
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0", allow_hyphen_values = true)]
    append: String,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Guest memory, with a unit: K, M, G, T
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    memory: ByteSize,
    /// A raw disk image or block device of the host, with `,ro` if the guest may only read; may be repeated
    #[arg(long, value_name = "FILE[,ro]")]
    disk: Vec<String>,
    /// A volume as a disk, after those of --disk; may be repeated
    #[arg(long, value_name = "NAME")]
    volume: Vec<String>,
    /// A port of the host that leads into the guest: [ADDRESS:]PORT:PORT[/udp]; may be repeated
    #[arg(short, long, value_name = "PORTS")]
    port: Vec<String>,
    /// No network card
    #[arg(long, conflicts_with = "port")]
    no_network: bool,
    /// Start it when the host starts
    #[arg(long)]
    autostart: bool,
    /// For people
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
}

impl Machine {
    fn params(&self, start: bool) -> Result<VmParams, Error> {
        let mut config = VmConfig::new(absolute(&self.kernel)?);
        config.boot.initrd = self.initrd.as_deref().map(absolute).transpose()?;
        config.boot.append = self.append.clone();
        config.cpus = self.cpus;
        config.memory = self.memory;
        config.description = self.description.clone();
        config.autostart = Autostart { enabled: self.autostart, order: 0 };
        for disk in &self.disk {
            let (path, read_only) =
                disk.strip_suffix(",ro").map_or((disk.as_str(), false), |path| (path, true));
            let path = Some(absolute(Path::new(path))?);
            config.disks.push(DiskConfig { path, read_only, ..DiskConfig::default() });
        }
        for volume in &self.volume {
            config.disks.push(DiskConfig { volume: Some(volume.clone()), ..DiskConfig::default() });
        }
        config.nics = match self.no_network {
            true => Vec::new(),
            false => vec![NicConfig { ports: self.port.clone(), ..NicConfig::default() }],
        };
        Ok(VmParams { name: self.name.clone(), config, start })
    }
}

/// The daemon has another working directory.
pub(super) fn absolute(path: &Path) -> Result<String, Error> {
    let bad = || Error::bad_input(format!("the path {path:?} cannot be used"));
    let path = std::path::absolute(path).map_err(|e| bad().with_source(e))?;
    path.into_os_string().into_string().map_err(|_| bad().with_remedy("use a path of UTF-8 characters"))
}

/// A key by which the daemon knows a request that is sent again.
pub(super) fn key() -> String {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("cli-{}-{}", std::process::id(), time.as_nanos())
}

/// Creates a virtual machine and starts it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia run --kernel vmlinuz --initrd initrd.img demo
  arnia run --kernel vmlinuz --initrd initrd.img --append \"console=ttyS0 root=/dev/vda1\" \\
    --cpus 2 --memory 2G --disk debian.img --port 2222:22 --console web")]
pub struct RunVm {
    #[command(flatten)]
    machine: Machine,
    /// Connect to its console
    #[arg(long)]
    console: bool,
    #[command(flatten)]
    wait: Wait,
}

impl Run for RunVm {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let params = self.machine.params(true)?;
        let name = &params.name;
        context.with_daemon(async |client| {
            let Created::Starting(operation) = client.vm_create(&params, &key()).await? else {
                return Err(Error::failed("the daemon has created the machine and not started it"));
            };
            if self.console {
                shown(&format!("starting {name}"), client.wait(*operation)).await?;
                return console::attach(&client, name).await;
            }
            let done = format!("{name} runs; `arnia console {name}` connects to its console");
            self.wait.finish(context, &client, *operation, &format!("starting {name}"), &done).await?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// Creates a virtual machine and leaves it off.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia create --kernel vmlinuz --initrd initrd.img --memory 512M demo
  arnia start demo")]
pub struct Create {
    #[command(flatten)]
    machine: Machine,
}

impl Run for Create {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let params = self.machine.params(false)?;
        context.with_daemon(async |client| match client.vm_create(&params, &key()).await? {
            Created::Vm(vm) => {
                let done = format!("{} is there; `arnia start {}` starts it", vm.name, vm.name);
                match context.output.format() {
                    crate::output::Format::Table => context.output.say(&done)?,
                    _ => context.output.data(&vm)?,
                }
                Ok(ExitCode::SUCCESS)
            }
            Created::Starting(_) => Err(Error::failed("the daemon starts the machine unasked")),
        })
    }
}
