//! Virtual machines: their records, and views of them.

use super::people::check_description;
use super::projects::check_quota;
use super::{App, Caller, Request};
use super::{kept, mounts, networks};
use crate::{Error, util};
use api::v1::error::ErrorCode;
use api::v1::event::EventKind;
use api::v1::name;
use api::v1::operation::Operation;
use api::v1::vm::{StopParams, Vm, VmConfig, VmMetrics, VmParams, VmState, check_sizes};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use store::{Records, Sizes, VmRecord};

/// Disks and network cards that fit on the bus beside what every machine has, what an image brings, and a display.
const DEVICES_MAX: usize = 21;
const LABELS_MAX: usize = 100;
/// Answers to creations are remembered this long.
const KEYS_KEPT: i64 = 24 * 3600;

/// How long a machine has to tell its counters when all are asked.
const COUNTERS_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

/// A metric: its name, kind and meaning, and values by number of machine.
pub(crate) type MetricRows = (String, &'static str, String, Vec<(usize, f64)>);

/// What came of a creation.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) vm: Vm,
    pub(crate) operation: Option<Operation>,
}

impl App {
    /// A machine as clients see it.
    pub(crate) fn vm_view(&self, record: VmRecord) -> Vm {
        let machine = self.machine(&record.id);
        let state = machine.state();
        let worker = machine.live().view.clone();
        let other_sizes = record.running_sizes.is_some_and(|sizes| sizes != Sizes::of(&record.config));
        let is_old = record.running_revision != Some(record.revision) || other_sizes;
        Vm {
            image_digest: record.origin.map(|origin| origin.image.to_string()),
            restart_needed: state.is_active() && is_old,
            state,
            reason: record.reason.filter(|_| !state.is_active()),
            worker: worker.filter(|_| state.is_active()),
            guest: self.guest_known(&machine).filter(|_| state.is_active()),
            id: record.id,
            name: record.name,
            project: record.project,
            config: record.config,
            created: record.created,
            started: record.started,
            revision: record.revision,
        }
    }

    /// Creates a machine, once for each key of the caller, and starts it if asked for.
    pub(crate) fn vm_create(
        self: &Arc<App>,
        caller: &Caller,
        project: &str,
        params: VmParams,
        key: Option<&str>,
    ) -> Result<Created, Error> {
        name::check("virtual machine", &params.name)?;
        let fingerprint = key.map(|_| {
            let text = serde_json::to_vec(&(project, &params)).unwrap_or_default();
            util::hex(&util::digest(&text))
        });
        let mut config = params.config;
        check_config(caller, None, &config)?;
        networks::complete_cards(&mut config)?;
        mounts::complete(&mut config);
        let id = util::uuid();
        let origin = self.choose_image(&id, &config, params.instance)?;
        let has_image = origin.is_some();
        let mut record =
            VmRecord { origin, ..VmRecord::new(id.clone(), project, params.name, config, util::now()) };
        let result = self.write(|records| {
            if let (Some(key), Some(fingerprint)) = (key, &fingerprint)
                && let Some((known, answer)) = records.creation(&caller.name, key)?
            {
                return repeated(records, &known, fingerprint, &answer);
            }
            check_volumes(records, project, &record.config)?;
            networks::assign_addresses(records, project, &record.id, &mut record.config)?;
            let before = records.usage(project)?;
            records.vm_insert(&record)?;
            check_quota(records, project, before)?;
            let operation = match params.start {
                true => Some(self.plan_operation(records, caller, &record, &Request::VmStart {})?),
                false => None,
            };
            if let (Some(key), Some(fingerprint)) = (key, &fingerprint) {
                let answer = (&record.id, operation.as_ref().map(|operation| &operation.view.id));
                let answer = serde_json::to_string(&answer).unwrap_or_default();
                let now = util::now();
                records.creation_insert(&caller.name, key, (fingerprint, &answer), now, now - KEYS_KEPT)?;
            }
            Ok((record, operation, true))
        });
        if has_image && !matches!(result, Ok((_, _, true))) {
            self.release_image(&id);
        }
        let (record, operation, new) = result?;
        let operation = match operation {
            Some(operation) if new => Some(self.run_operation(operation)),
            known => known.map(|operation| operation.view),
        };
        if new {
            let what = EventKind::VmChanged {
                vm: record.id.clone(),
                name: record.name.clone(),
                state: VmState::Stopped,
                reason: None,
            };
            self.tell(project, what);
        }
        Ok(Created { vm: self.vm_view(record), operation })
    }

    /// Changes a machine's configuration.
    pub(crate) async fn vm_update(
        self: &Arc<App>,
        caller: &Caller,
        vm: &VmRecord,
        mut config: VmConfig,
        expected: Option<i64>,
    ) -> Result<Vm, Error> {
        check_config(caller, Some(&vm.config), &config)?;
        if config.image != vm.config.image {
            return Err(Error::new(ErrorCode::Invalid, "the image of a machine stays what it was")
                .with_remedy("create another machine"));
        }
        networks::complete_cards(&mut config)?;
        mounts::complete(&mut config);
        let record = self.write(|records| {
            check_volumes(records, &vm.project, &config)?;
            networks::assign_addresses(records, &vm.project, &vm.id, &mut config)?;
            let before = records.usage(&vm.project)?;
            let expected = expected.unwrap_or(vm.revision);
            let record = kept::update(records, &vm.id, expected, &vm.name, &config)?;
            check_quota(records, &vm.project, before)?;
            Ok(record)
        })?;
        let changed = self.change_live(vm, record.clone()).await;
        self.tell_changed(&record);
        match changed {
            Ok(record) => Ok(self.vm_view(record)),
            // It is as it was.
            Err(error) => {
                let undo =
                    |records: &Records<'_>| records.vm_update(&vm.id, record.revision, &vm.name, &vm.config);
                self.write(|records| Ok(undo(records).map(drop)?))?;
                Err(error)
            }
        }
    }

    /// Gives a machine another name.
    pub(crate) fn vm_rename(&self, vm: &VmRecord, new: &str, expected: Option<i64>) -> Result<Vm, Error> {
        name::check("virtual machine", new)?;
        let expected = expected.unwrap_or(vm.revision);
        let record = self.write(|records| kept::update(records, &vm.id, expected, new, &vm.config))?;
        self.tell_changed(&record);
        Ok(self.vm_view(record))
    }

    pub(super) fn tell_changed(&self, vm: &VmRecord) {
        let state = self.machine(&vm.id).state();
        let (id, name) = (vm.id.clone(), vm.name.clone());
        self.tell(&vm.project, EventKind::VmChanged { vm: id, name, state, reason: None });
    }

    /// Removes a machine; one that runs only by force.
    pub(crate) async fn vm_delete(self: &Arc<App>, vm: &VmRecord, force: bool) -> Result<(), Error> {
        let machine = self.machine(&vm.id);
        let _lifecycle = match force {
            true => machine.lifecycle.lock().await,
            false => machine.lifecycle.try_lock().map_err(|_| runs(vm))?,
        };
        if machine.state().is_active() {
            if !force {
                return Err(runs(vm));
            }
            self.stop_locked(&machine, StopParams { force: true, timeout: None }).await?;
        }
        self.write(|records| Ok(records.vm_delete(&vm.id)?))?;
        super::lock(&self.machines).remove(&vm.id);
        // At once, while its project is there: the folders may take their time.
        self.tell(&vm.project, EventKind::VmDeleted { vm: vm.id.clone(), name: vm.name.clone() });
        let (app, id, has_image) = (self.clone(), vm.id.clone(), vm.origin.is_some());
        let removed = tokio::task::spawn_blocking(move || {
            if has_image {
                app.release_image(&id);
            }
            for folder in [app.config.paths.vm_runtime(&id), app.config.paths.vm_data(&id)] {
                if let Err(error) = std::fs::remove_dir_all(&folder)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    log::warn!("the folder {folder:?} of a removed machine stays: {error}");
                }
            }
        });
        removed.await.map_err(|e| Error::internal("the folders of a removed machine may have stayed", e))?;
        let app = self.clone();
        tokio::spawn(async move { app.sweep().await });
        Ok(())
    }

    /// Asks for an operation on a machine.
    pub(crate) fn vm_operation(
        self: &Arc<App>,
        caller: &Caller,
        vm: &VmRecord,
        request: &Request,
    ) -> Result<Operation, Error> {
        let record = self.write(|records| {
            // It may have been removed since it was looked up.
            records.vm_by_id(&vm.id)?;
            self.plan_operation(records, caller, vm, request)
        })?;
        Ok(self.run_operation(record))
    }

    /// What a machine uses.
    pub(crate) async fn vm_metrics(&self, vm: &VmRecord) -> Result<VmMetrics, Error> {
        let machine = self.running(vm)?;
        let control = self.folder(&vm.id).control();
        let (status, counters) = (control.status().await?, control.counters().await?);
        let mut metrics = VmMetrics {
            guest_time_ms: status.guest_time_ms,
            resets: status.resets,
            counters: counters.engine.into_iter().chain(counters.io).chain(counters.devices).collect(),
            ..VmMetrics::default()
        };
        if let Some(process) = machine.process() {
            (metrics.cpu_time_ms, metrics.resident_bytes) = super::host::process_usage(process.pid());
        }
        Ok(metrics)
    }

    /// The counters of machines that run, for the metrics of the host: by name, what kind they are, what they count,
    /// and the value for each of `vms` that has one. A machine that does not answer soon is left out.
    pub(crate) async fn vm_counters(&self, vms: &[(VmRecord, VmState, Option<u32>)]) -> Vec<MetricRows> {
        let asked =
            vms.iter().enumerate().filter(|(_, (_, _, pid))| pid.is_some()).map(async |(index, (vm, ..))| {
                let control = self.folder(&vm.id).control();
                let asked = async { Ok::<_, Error>((control.status().await?, control.counters().await?)) };
                Some((index, tokio::time::timeout(COUNTERS_PATIENCE, asked).await.ok()?.ok()?))
            });
        let mut metrics: BTreeMap<String, MetricRows> = BTreeMap::new();
        let mut add = |name: String, help: String, index: usize, value: f64| {
            let metric = metrics.entry(name.clone());
            metric.or_insert_with(|| (name, "counter", help, Vec::new())).3.push((index, value));
        };
        for (index, (status, counters)) in futures_util::future::join_all(asked).await.into_iter().flatten() {
            let guest_time = status.guest_time_ms as f64 / 1000.0;
            add(
                "arnia_vm_guest_seconds_total".into(),
                "Time that has passed in the guest.".into(),
                index,
                guest_time,
            );
            add("arnia_vm_resets_total".into(), "Resets of the machine.".into(), index, status.resets as f64);
            for (group, kind) in [(counters.devices, ""), (counters.engine, "engine_"), (counters.io, "io_")]
            {
                for (name, value) in group {
                    let help = match kind {
                        "" => format!("What its devices were asked to do: {}.", name.replace('_', " ")),
                        "engine_" => format!("Of the CPU engine: {}.", name.replace('_', " ")),
                        _ => format!("Accesses of vCPUs to devices: {}.", name.replace('_', " ")),
                    };
                    add(format!("arnia_vm_{kind}{name}_total"), help, index, value as f64);
                }
            }
        }
        metrics.into_values().collect()
    }

    /// Machines with their processes, for the metrics of the host.
    pub(crate) fn vm_processes(&self) -> Result<Vec<(VmRecord, VmState, Option<u32>)>, Error> {
        let vms = self.read(|records| Ok(records.all_vms()?))?;
        let known = vms.into_iter().map(|vm| {
            let machine = self.machine(&vm.id);
            let pid = machine.process().map(|process| process.pid());
            (vm, machine.state(), pid)
        });
        Ok(known.collect())
    }
}

fn runs(vm: &VmRecord) -> Error {
    Error::new(ErrorCode::WrongState, format!("the virtual machine {:?} runs", vm.name))
        .with_remedy("stop it first, or use --force to end it at once")
}

type Planned = (VmRecord, Option<store::OperationRecord>, bool);

/// The answer to a creation that was asked for before.
fn repeated(records: &Records<'_>, known: &str, asked: &str, answer: &str) -> Result<Planned, Error> {
    if known != asked {
        return Err(Error::new(
            ErrorCode::Invalid,
            "the Idempotency-Key was used for another creation within the last day",
        )
        .with_remedy("use a new key"));
    }
    let (id, operation): (String, Option<String>) =
        serde_json::from_str(answer).map_err(|e| Error::internal("the earlier answer is lost", e))?;
    let operation = operation.map(|id| records.operation(&id)).transpose()?;
    Ok((records.vm_by_id(&id)?, operation, false))
}

/// Refuses what no machine can be, or what this caller may not ask for. What the machine has already (`before`)
/// may stay.
fn check_config(caller: &Caller, before: Option<&VmConfig>, config: &VmConfig) -> Result<(), Error> {
    let invalid = |message: String| Err(Error::new(ErrorCode::Invalid, message));
    check_description(&config.description)?;
    check_sizes(config.cpus, config.memory)?;
    let boot = &config.boot;
    match (&config.image, &boot.kernel, boot.firmware) {
        (None, None, None) => {
            return Err(Error::new(ErrorCode::Invalid, "the machine has nothing to boot")
                .with_remedy("name an image, a kernel, or a firmware"));
        }
        (Some(_), None, None) if boot.initrd.is_none() => {}
        (None, Some(_), None) => {}
        (None, None, Some(_)) if boot.initrd.is_none() && boot.append.is_empty() => {}
        _ => {
            return Err(Error::new(ErrorCode::Invalid, "the machine is to boot several things at once")
                .with_remedy("name either an image, or a kernel with its initrd, or a firmware"));
        }
    }
    if config.disks.len() + config.nics.len() > DEVICES_MAX {
        return invalid(format!("a machine has at most {DEVICES_MAX} disks and network cards"));
    }
    let labels = &config.labels;
    if labels.len() > LABELS_MAX || labels.iter().any(|(name, value)| name.len() + value.len() > 1024) {
        return invalid(format!("there are at most {LABELS_MAX} labels, of at most 1024 bytes each"));
    }
    if let Some(fault) = config.limits.fault(config.memory) {
        return invalid(fault);
    }
    for disk in &config.disks {
        if disk.volume.is_some() == disk.path.is_some() {
            return invalid("a disk is either a volume or a path".into());
        }
        let serial = disk.serial.as_deref().unwrap_or_default();
        if serial.len() > 20 || !serial.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return invalid("a disk's serial number has at most 20 printable ASCII characters".into());
        }
    }
    networks::check_cards(config)?;
    mounts::check(caller, before, config)?;
    check_paths(caller, before, config)
}

/// The files of the host that a machine uses.
pub(super) fn paths(config: &VmConfig) -> impl Iterator<Item = &str> {
    let disks = config.disks.iter().filter_map(|disk| disk.path.as_deref());
    config.boot.kernel.as_deref().into_iter().chain(config.boot.initrd.as_deref()).chain(disks)
}

fn check_paths(caller: &Caller, before: Option<&VmConfig>, config: &VmConfig) -> Result<(), Error> {
    for path in paths(config) {
        if before.is_some_and(|before| paths(before).any(|known| known == path)) {
            continue;
        }
        if !caller.is_admin() {
            return Err(Error::new(ErrorCode::Forbidden, "only admins may use files of the host")
                .with_remedy("use volumes, or ask an admin"));
        }
        if !Path::new(path).is_absolute() || path.contains('\0') {
            return Err(Error::new(ErrorCode::Invalid, format!("{path:?} is no absolute path")));
        }
        if let Err(e) = Path::new(path).metadata() {
            return Err(Error::new(ErrorCode::Invalid, format!("the file {path:?} cannot be used"))
                .with_cause(e)
                .with_remedy("check the path"));
        }
    }
    Ok(())
}

pub(super) fn check_volumes(records: &Records<'_>, project: &str, config: &VmConfig) -> Result<(), Error> {
    for volume in config.disks.iter().filter_map(|disk| disk.volume.as_deref()) {
        if records.volume(project, volume).is_err() {
            return Err(Error::new(ErrorCode::Invalid, format!("there is no volume {volume:?}"))
                .with_remedy(format!("make it with `arnia volume create {volume} 10G`")));
        }
    }
    Ok(())
}
