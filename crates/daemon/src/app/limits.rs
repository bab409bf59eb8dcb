//! What machines may use of the host: by control groups where those can be had, in the worker elsewhere.
//!
//! | limit | control group | elsewhere |
//! |---|---|---|
//! | processor time | `cpu.max` | the worker lets its vCPUs rest |
//! | weight | `cpu.weight` | niceness |
//! | processors | `cpuset.cpus` | affinity |
//! | memory | `memory.max`: what no worker may exceed | the balloon, always: what the guest keeps |
//! | disks, cards | | the worker, always |

use super::App;
use crate::Error;
use crate::machine::{Control, GroupLimits, scheduling};
use api::ByteSize;
use api::v1::error::ErrorCode;
use api::v1::limits::{CPU_WEIGHT_DEFAULT, Limits, ResizeParams, parse_cpu_set};
use api::v1::vm::{Vm, VmConfig};
use api::worker::control::{Reply, Request};
use image::Instance;
use std::sync::Arc;
use store::VmRecord;

/// What a worker may need beside its guest's memory: the engine's caches, buffers, the program.
const WORKER_MEMORY: u64 = 1 << 30;

impl App {
    /// Makes a machine's process subject to its limits; `before` are those that it has now.
    pub(super) async fn apply_limits(&self, vm: &VmRecord, pid: u32, before: &Limits) -> Result<(), Error> {
        let limits = &vm.config.limits;
        self.limit_process(vm, pid, before)?;
        let control = self.folder(&vm.id).control();
        let grouped = self.cgroups.as_ref().is_some_and(|groups| groups.has("cpu"));
        if limits.cpu != before.cpu && !grouped {
            control.ask(Request::CpuLimit { percent: limits.cpu }).await?;
        }
        if limits.memory != before.memory {
            let bytes = limits.memory.unwrap_or(vm.config.memory).0;
            control.ask(Request::MemoryTarget { bytes }).await?;
        }
        if limits.disk != before.disk {
            for disk in 0..disks(&control).await? {
                control.ask(Request::DiskLimits { disk, limits: limits.disk.clone() }).await?;
            }
        }
        if limits.net != before.net {
            for net in 0..vm.config.nics.len() as u32 {
                control.ask(Request::NetLimits { net, limits: limits.net.clone() }).await?;
            }
        }
        Ok(())
    }

    /// What the host's kernel does.
    fn limit_process(&self, vm: &VmRecord, pid: u32, before: &Limits) -> Result<(), Error> {
        let limits = &vm.config.limits;
        let weight = limits.cpu_weight.unwrap_or(CPU_WEIGHT_DEFAULT);
        let refused = |what: &str, e: std::io::Error| {
            let error =
                Error::new(ErrorCode::Invalid, format!("the host does not grant the {what}")).with_cause(&e);
            match e.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    error.with_remedy("only a daemon with root's rights may raise it; choose a lower one")
                }
                _ => error.with_remedy("see `arnia info` for the processors that the host has"),
            }
        };
        // A machine that was made smaller is as large as before until it boots.
        let has = vm.running_sizes.map_or(0, |sizes| sizes.memory.0);
        if let Some(groups) = &self.cgroups {
            let group = GroupLimits {
                cpu: limits.cpu,
                cpu_weight: weight,
                cpu_set: limits.cpu_set.clone(),
                memory: vm.config.memory.0.max(has) + WORKER_MEMORY,
            };
            let limited = groups.adopt(&vm.id, pid).and_then(|()| groups.limit(&vm.id, &group));
            limited.map_err(|e| refused("limits", e))?;
        }
        let has = |controller| self.cgroups.as_ref().is_some_and(|groups| groups.has(controller));
        if limits.cpu_weight != before.cpu_weight && !has("cpu") {
            scheduling::set_weight(pid, weight).map_err(|e| refused("weight", e))?;
        }
        if limits.cpu_set != before.cpu_set && !has("cpuset") {
            let cpus = limits.cpu_set.as_deref().and_then(parse_cpu_set).unwrap_or_default();
            scheduling::set_cpus(pid, &cpus).map_err(|e| refused("processors", e))?;
        }
        Ok(())
    }

    /// Carries out at once what of a change can be: the limits. Whatever else differs needs another start.
    pub(super) async fn change_live(
        self: &Arc<App>,
        before: &VmRecord,
        after: VmRecord,
    ) -> Result<VmRecord, Error> {
        let machine = self.machine(&after.id);
        let Ok(_lifecycle) = machine.lifecycle.try_lock() else { return Ok(after) };
        let Some(process) = machine.process() else { return Ok(after) };
        if before.config.limits != after.config.limits {
            self.apply_limits(&after, process.pid(), &before.config.limits).await?;
        }
        let only_limits = in_force(&before.config) == in_force(&after.config);
        if only_limits && before.running_revision == Some(before.revision) {
            self.write(|records| Ok(records.vm_runs_with(&after.id, after.revision)?))?;
            return self.read(|records| Ok(records.vm_by_id(&after.id)?));
        }
        Ok(after)
    }

    /// Gives a machine other sizes.
    pub(crate) async fn vm_resize(
        self: &Arc<App>,
        caller: &super::Caller,
        vm: &VmRecord,
        params: &ResizeParams,
    ) -> Result<Vm, Error> {
        if *params == ResizeParams::default() {
            return Err(Error::new(ErrorCode::Invalid, "there is no new size")
                .with_remedy("name cpus, memory or disk"));
        }
        let mut config = vm.config.clone();
        config.cpus = params.cpus.unwrap_or(config.cpus);
        config.memory = params.memory.unwrap_or(config.memory);
        if let Some(size) = params.disk {
            self.grow_disk(vm, size.0).await?;
        }
        if config == vm.config {
            return Ok(self.vm_view(vm.clone()));
        }
        self.vm_update(caller, vm, config, None).await
    }

    /// Makes the first disk of a machine larger: in its process, or by itself if the machine is off.
    async fn grow_disk(self: &Arc<App>, vm: &VmRecord, size: u64) -> Result<(), Error> {
        let invalid = |message: String| Error::new(ErrorCode::Invalid, message);
        if size == 0 || !size.is_multiple_of(512) {
            return Err(invalid("the size of a disk is a multiple of 512 bytes".into()));
        }
        let machine = self.machine(&vm.id);
        let Ok(_lifecycle) = machine.lifecycle.try_lock() else {
            let message = format!("the virtual machine {:?} is being started or stopped", vm.name);
            return Err(Error::new(ErrorCode::WrongState, message).with_remedy("wait until that is done"));
        };
        if machine.process().is_some() {
            let control = self.folder(&vm.id).control();
            if let Reply::Disks(disks) = control.ask(Request::Disks {}).await?
                && let Some(now) = disks.disks.first().map(|disk| disk.size)
                && size < now
            {
                let message = format!("the disk has {} and can only become larger", ByteSize(now));
                return Err(invalid(message).with_remedy("choose a larger size"));
            }
            control.ask(Request::DiskResize { disk: 0, size }).await?;
            return Ok(());
        }
        let place = self.instance_folder(&vm.id);
        if !place.join(image::INSTANCE_FILE).exists() {
            return Err(Error::new(
                ErrorCode::WrongState,
                format!("{:?} has no disk of its own yet", vm.name),
            )
            .with_remedy("start it once, or create it with the size that its disk shall have"));
        }
        if vm.resume.is_some() {
            return Err(Error::new(ErrorCode::WrongState, format!("{:?} is suspended", vm.name))
                .with_remedy("resume it first: its memory believes in the disk that it has"));
        }
        let grown = tokio::task::spawn_blocking(move || match Instance::load(&place)?.disks.first() {
            Some(disk) => disk.grow(size).map(|()| true),
            None => Ok(false),
        });
        match grown.await.map_err(|e| Error::internal("the disk cannot be made larger", e))?? {
            true => Ok(()),
            false => Err(invalid("the machine's image has no disk".into())),
        }
    }
}

/// A configuration without what is in force at once, or never changes what runs.
fn in_force(config: &VmConfig) -> VmConfig {
    VmConfig {
        limits: Limits::default(),
        description: String::new(),
        labels: Default::default(),
        autostart: Default::default(),
        restart: Default::default(),
        ..config.clone()
    }
}

/// How many disks a worker has.
async fn disks(control: &Control) -> Result<u32, Error> {
    match control.ask(Request::Disks {}).await? {
        Reply::Disks(disks) => Ok(disks.disks.len() as u32),
        _ => Err(Error::new(ErrorCode::Internal, "the machine's process answered something else")),
    }
}
