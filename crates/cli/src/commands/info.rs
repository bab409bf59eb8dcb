//! `arnia info`.

use super::{Run, bytes, duration, since};
use crate::{Context, Error};
use api::v1::host::Host;
use api::v1::vm::{Vm, VmConfig};
use std::process::ExitCode;

/// Shows a virtual machine, or, without a name, the host.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia info\n  arnia info web\n  arnia info web -o yaml")]
pub struct Info {
    /// The virtual machine; the host when absent
    name: Option<String>,
}

impl Run for Info {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            match &self.name {
                Some(name) => {
                    let mut vm = client.vm(name).await?;
                    // What the daemon remembers of the guest may be a little old.
                    if vm.guest.is_some()
                        && let Ok(guest) = client.vm_guest(name).await
                    {
                        vm.guest = Some(guest);
                    }
                    context.output.item(&vm, &vm_lines(&vm))?;
                }
                None => {
                    let host = client.host().await?;
                    context.output.item(&host, &host_lines(&host))?;
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn vm_lines(vm: &Vm) -> Vec<(&'static str, String)> {
    let config = &vm.config;
    let disks = config.disks.iter().map(|disk| {
        let what = match (&disk.volume, &disk.path) {
            (Some(volume), _) => format!("volume {volume}"),
            (None, path) => path.clone().unwrap_or_default(),
        };
        if disk.read_only { format!("{what} (read only)") } else { what }
    });
    let nics = config.nics.iter().map(|nic| {
        let ports = nic.ports.join(" ");
        let (name, address) = (nic.name.as_deref().unwrap_or_default(), nic.address.as_deref());
        let words =
            [name, &nic.network, nic.mac.as_deref().unwrap_or_default(), address.unwrap_or_default(), &ports];
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    });
    let state = match &vm.reason {
        Some(reason) => format!("{} ({reason})", vm.state),
        None => vm.state.to_string(),
    };
    let mut lines = vec![
        ("Name", vm.name.clone()),
        ("State", state),
        ("Identity", vm.id.clone()),
        ("Project", vm.project.clone()),
        ("Description", config.description.clone()),
        ("CPUs", config.cpus.to_string()),
        ("Memory", config.memory.to_string()),
        ("Boots", boots(config)),
        ("Disks", disks.collect::<Vec<_>>().join("\n")),
        ("Network cards", nics.collect::<Vec<_>>().join("\n")),
        ("Limits", super::limits::shown(&config.limits)),
        ("Autostart", if config.autostart.enabled { "yes".into() } else { "no".into() }),
        ("Created", format!("{} ago", duration(since(vm.created)))),
    ];
    if let Some(worker) = &vm.worker {
        lines.push(("Started", format!("{} ago", duration(since(vm.started.unwrap_or(vm.created))))));
        lines.push(("Process", worker.pid.to_string()));
        lines.push(("Engine", format!("{} ({})", worker.engine, worker.cpu_model)));
    }
    if let Some(guest) = &vm.guest {
        lines.push(("Guest", format!("{} ({})", guest.system, guest.kernel)));
        lines.push(("Hostname", guest.hostname.clone()));
        lines.push(("Addresses", guest.addresses().join("\n")));
        lines.push(("Agent", guest.agent.clone()));
    }
    if vm.restart_needed {
        lines.push(("Note", format!("changed since it was started: `arnia restart {}`", vm.name)));
    }
    lines
}

fn boots(config: &VmConfig) -> String {
    let boot = &config.boot;
    if let Some(image) = &config.image {
        return format!("the image {image}");
    }
    if let Some(firmware) = boot.firmware {
        return format!("its disks, by {firmware}");
    }
    let kernel = boot.kernel.clone().unwrap_or_default();
    let initrd = boot.initrd.as_ref().map(|initrd| format!("\nwith {initrd}")).unwrap_or_default();
    format!("{kernel}{initrd}\n{}", boot.append).trim_end().to_owned()
}

fn host_lines(host: &Host) -> Vec<(&'static str, String)> {
    vec![
        ("Host", host.name.clone()),
        ("Daemon", format!("{} ({}, process {})", host.version, host.mode, host.pid)),
        ("Up", duration(since(host.started))),
        ("Kernel", host.kernel.clone()),
        ("Processor", format!("{} × {}", host.cpus, host.cpu_model)),
        ("Memory", format!("{}, {} available", bytes(host.memory_bytes), bytes(host.memory_available_bytes))),
        ("Machines", format!("{}, {} running", host.vms, host.vms_running)),
        (
            "In use",
            format!("{} vCPUs, {} of guest memory", host.cpus_running, bytes(host.memory_running_bytes)),
        ),
        ("Data", host.data.clone()),
    ]
}
