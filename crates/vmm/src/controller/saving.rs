//! The controller's part in snapshots: the short stops, and who is told what.

use super::{Controller, Event, engine_failed, vcpu_gone};
use crate::Error;
use crate::control::ReplyTo;
use crate::snapshot::disks::Tracked;
use crate::snapshot::restore::Restored;
use crate::snapshot::saver::{Finished, Plan, PlannedDisk, Saver, SaverEvent, Stopped, new_id};
use crate::spec::VmSpec;
use crate::state::VmState;
use api::worker::control::{ControlErrorKind, Reply, SnapshotDone, SnapshotProgress};
use api::worker::snapshot::{
    FileEntry, MEMORY_FILE, Manifest, Memory, NAME_LEN_MAX, OutsideDisk, Parent, STATE_FILE, SavedDisk,
    is_valid_name,
};
use disk::Live;
use memory::PageSet;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use x86::CpuState;

/// What the controller keeps for snapshots.
pub(super) struct Saving {
    spec: VmSpec,
    events: Sender<Event>,
    current: Option<Current>,
    /// What the next incremental snapshot builds on; the dirty log is on since then.
    base: Option<Base>,
    /// For memory that came from files: all pages written since, as far as they were taken from the log.
    /// Such memory does not tell by itself.
    written_ever: Option<PageSet>,
    /// How many snapshots were begun.
    begun: u64,
}

/// A snapshot in the making.
struct Current {
    /// Which one, so that it is not taken for one that was given up.
    number: u64,
    saver: Saver,
    reply: ReplyTo,
    begun: Instant,
    stopped: Duration,
    longest_stop: Duration,
    /// Pages written since the machine was stopped for it; `None` before that.
    since_stop: Option<PageSet>,
}

struct Base {
    name: String,
    id: String,
    /// Pages written since it was made, as far as they were taken from the log.
    written: PageSet,
}

impl Saving {
    pub(super) fn new(spec: &VmSpec, events: Sender<Event>) -> Saving {
        Saving { spec: spec.clone(), events, current: None, base: None, written_ever: None, begun: 0 }
    }

    /// How far the snapshot in the making has come.
    pub(super) fn progress(&self) -> Option<SnapshotProgress> {
        self.current.as_ref().map(|current| current.saver.progress())
    }

    /// Whether the dirty log is on for more than the snapshot in the making.
    fn is_logging(&self) -> bool {
        self.base.is_some() || self.written_ever.is_some()
    }

    /// What the next incremental snapshot can build on.
    pub(super) fn base(&self) -> Option<String> {
        self.base.as_ref().map(|base| base.name.clone())
    }
}

/// A refusal of a request.
type Refusal = (ControlErrorKind, String);

fn bad(message: impl Into<String>) -> Refusal {
    (ControlErrorKind::BadRequest, message.into())
}

fn failed(error: &Error) -> Refusal {
    (ControlErrorKind::Failed, error.report())
}

impl Controller {
    /// Puts a saved state in place of a booted one.
    pub(super) fn adopt(&mut self, restored: Restored) -> Result<(), Error> {
        let Restored { state, origin: (dir, id), .. } = restored;
        // Processors first: what devices then raise meets local APICs that are in place.
        for (vcpu, state) in self.vcpus.iter().zip(state.vcpus.clone()) {
            vcpu.with(move |vcpu| vcpu.set_state(&state)).ok_or_else(vcpu_gone)?.map_err(|e| {
                Error::bad_input("the snapshot cannot be used")
                    .with_source(e)
                    .with_advice("take another snapshot, or check --restore")
            })?;
        }
        self.machine.restore(state)?;
        let Some((folder, _)) = self.machine.snapshots() else { return Ok(()) };
        let none = PageSet::new(self.machine.ram().pages());
        // A snapshot of this machine in the same folder can build on the one that it comes from.
        if let (Some(parent), Some(name)) = (dir.parent(), dir.file_name().and_then(|name| name.to_str()))
            && std::fs::canonicalize(folder.path()).is_ok_and(|path| path == parent)
            && is_valid_name(name)
        {
            self.saving.base = Some(Base { name: name.to_owned(), id, written: none.clone() });
        }
        self.saving.written_ever = Some(none);
        self.machine.log_writes();
        Ok(())
    }

    /// Begins a snapshot.
    pub(super) fn snapshot(
        &mut self,
        name: String,
        parent: Option<String>,
        with_disks: bool,
        reply: ReplyTo,
    ) {
        match self.begin_snapshot(&name, parent, with_disks) {
            Ok((saver, stop)) => {
                log::info!("making the snapshot {name:?}");
                self.saving.current = Some(Current {
                    number: self.saving.begun,
                    saver,
                    reply,
                    begun: Instant::now(),
                    stopped: stop,
                    longest_stop: stop,
                    since_stop: None,
                });
            }
            Err((kind, message)) => reply.refuse(kind, message),
        }
    }

    fn begin_snapshot(
        &mut self,
        name: &str,
        parent: Option<String>,
        with_disks: bool,
    ) -> Result<(Saver, Duration), Refusal> {
        if !with_disks && self.state != VmState::Paused {
            let message = "a machine that runs is saved with its disks; pause it, or leave out `disks`";
            return Err((ControlErrorKind::WrongState, message.into()));
        }
        if !matches!(self.state, VmState::Running | VmState::Paused) || self.guest_events.is_latched() {
            return Err((ControlErrorKind::WrongState, "the machine is about to end or to be reset".into()));
        }
        if let Some(current) = self.saving.progress() {
            let message =
                format!("the snapshot {:?} is being made; wait, or send cancel_snapshot", current.name);
            return Err((ControlErrorKind::Busy, message));
        }
        if !is_valid_name(name) {
            return Err(bad(format!(
                "{name:?} is no name for a snapshot: use 1 to {NAME_LEN_MAX} letters, digits, \".\", \"_\" \
                 and \"-\", beginning with a letter or a digit"
            )));
        }
        let Some((folder, disks)) = self.machine.snapshots() else {
            return Err(bad("the machine has no folder for snapshots; start it with --snapshots DIR"));
        };
        let base = self.saving.base.as_ref();
        if let Some(parent) = &parent
            && base.is_none_or(|base| base.name != *parent)
        {
            return Err(bad(match base {
                None => format!("nothing is known of what changed since {parent:?}; leave out `parent`"),
                Some(base) => format!(
                    "what changed is known since {:?}, not since {parent:?}; name that, or leave out `parent`",
                    base.name
                ),
            }));
        }
        let partial = folder.begin(name).map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => {
                bad(format!("there is a snapshot {name:?} already; choose another name"))
            }
            ErrorKind::WouldBlock => {
                (ControlErrorKind::Busy, format!("another machine is making a snapshot {name:?} there"))
            }
            _ => (
                ControlErrorKind::Failed,
                format!("the snapshot cannot be begun in {:?}: {e}", folder.path()),
            ),
        })?;
        let is_saved = |disk: &&Arc<Tracked>| with_disks && disk.is_writable();
        let disks: Vec<_> = disks.iter().map(|disk| Some(disk).filter(is_saved).cloned()).collect();
        let planned = disks.iter().enumerate().map(|(index, disk)| {
            let disk = disk.clone()?;
            Some(PlannedDisk { disk, live: self.layered(index) })
        });
        let planned = planned.collect();
        let manifest = self.manifest(parent.is_some(), with_disks).map_err(|e| failed(&e))?;

        // From here on it is known what changes.
        let begun = Instant::now();
        let is_running = self.state == VmState::Running;
        if is_running {
            self.stand_still();
            self.machine.hold_devices();
        }
        disks.iter().flatten().for_each(|disk| disk.set_logging(true));
        let log = if self.saving.is_logging() {
            self.machine.take_dirty().map(|dirty| self.note_written(&dirty))
        } else {
            self.machine.log_writes();
            Ok(())
        };
        if is_running {
            self.machine.release_devices();
            self.run_vcpus();
        }
        let stop = begun.elapsed();
        log.map_err(|e| failed(&e))?;

        let ram = self.machine.ram().clone();
        let written = self.saving.base.as_ref().map(|base| base.written.clone());
        let pages = match (parent, written) {
            (Some(_), Some(written)) => written,
            _ => {
                let mut pages = ram.populated().map_err(|e| (ControlErrorKind::Failed, e.to_string()))?;
                self.saving.written_ever.iter().for_each(|written| pages.insert_all(written));
                pages
            }
        };
        self.saving.begun += 1;
        let (events, number) = (self.saving.events.clone(), self.saving.begun);
        let plan = Plan { partial, ram, pages, disks: planned, manifest };
        Saver::start(plan, move |event| drop(events.send(Event::Saver(number, event))))
            .map(|saver| (saver, stop))
            .map_err(|e| (ControlErrorKind::Failed, format!("a thread cannot be started: {e}")))
    }

    /// A disk that can be kept as layers: its image lies in the folder for disks.
    fn layered(&self, index: usize) -> Option<Arc<Live>> {
        let folder = self.disk_folder.as_deref()?;
        self.machine.images(index).filter(|live| live.can_freeze(folder)).cloned()
    }

    /// All of the manifest that is known before the work begins.
    fn manifest(&self, is_incremental: bool, with_disks: bool) -> Result<Manifest, Error> {
        let file = |name: &str, size| FileEntry { file: name.into(), size, blake3: String::new() };
        let spec = &self.saving.spec;
        let base = self.saving.base.as_ref().filter(|_| is_incremental);
        let disks = self.machine.snapshots().map(|(_, disks)| &disks[..]).unwrap_or_default();
        let paths = spec.config.disks.iter().map(|disk| &disk.path);
        let disks = disks.iter().zip(paths).enumerate().map(|(index, (disk, path))| {
            if with_disks && disk.is_writable() {
                SavedDisk::Copy(file(&format!("disk{index}.img"), disk.size()))
            } else {
                SavedDisk::Outside(OutsideDisk { path: path.clone(), size: disk.size() })
            }
        });
        let mut machine = spec.config.clone();
        if spec.has_console && machine.console == api::worker::config::CharDevice::None {
            // There is one, which leads nowhere now.
            machine.console = api::worker::config::CharDevice::Stdio;
        }
        // What the guest is shown is the host's affair, and the keys are secrets.
        machine.shares = machine.shares.map(|_| Vec::new());
        Ok(Manifest {
            id: new_id()?,
            program: env!("CARGO_PKG_VERSION").into(),
            created_ms: 0,
            parent: base.map(|base| Parent { name: base.name.clone(), id: base.id.clone() }),
            engine: self.status.engine.clone(),
            cpu_model: self.machine.cpu_model().into(),
            cpuid: self.machine.cpuid(),
            tsc_hz: self.machine.tsc_hz(),
            machine,
            uuid: spec.uuid.to_string(),
            macs: spec.nets.iter().map(|net| net.mac.to_string()).collect(),
            state: file(STATE_FILE, 0),
            memory: Memory { file: file(MEMORY_FILE, self.machine.memory_bytes()), parts: None },
            disks: disks.collect(),
        })
    }

    /// Keeps account of pages that were taken from the log.
    fn note_written(&mut self, dirty: &PageSet) {
        if let Some(base) = &mut self.saving.base {
            base.written.insert_all(dirty);
        }
        if let Some(written) = &mut self.saving.written_ever {
            written.insert_all(dirty);
        }
        if let Some(since) = self.saving.current.as_mut().and_then(|current| current.since_stop.as_mut()) {
            since.insert_all(dirty);
        }
    }

    /// Does what a snapshot in the making needs.
    pub(super) fn saver(&mut self, number: u64, event: SaverEvent) {
        // One that was given up may have asked before it noticed.
        if self.saving.current.as_ref().is_none_or(|current| current.number != number) {
            return;
        }
        match event {
            SaverEvent::Round(answer) => {
                let begun = Instant::now();
                let is_running = self.state == VmState::Running;
                if is_running {
                    self.stand_still();
                }
                let dirty = self.machine.take_dirty();
                if is_running {
                    self.run_vcpus();
                }
                self.count_stop(begun.elapsed());
                match dirty {
                    Ok(dirty) => {
                        self.note_written(&dirty);
                        let _ = answer.send(dirty);
                    }
                    // Without an answer it gives up.
                    Err(error) => log::error!("{}", error.report()),
                }
            }
            SaverEvent::Stop(answer, copied) => {
                let begun = Instant::now();
                let is_running = self.state == VmState::Running;
                if is_running {
                    self.stand_still();
                    self.machine.pause();
                }
                match self.stopped() {
                    Ok(stopped) => {
                        self.note_written(&stopped.dirty);
                        if let Some(current) = &mut self.saving.current {
                            current.since_stop = Some(PageSet::new(stopped.dirty.capacity()));
                        }
                        let _ = answer.send(stopped);
                        // Until it has copied the rest, or has failed to.
                        let _ = copied.recv();
                    }
                    Err(error) => log::error!("{}", error.report()),
                }
                if let Some((_, disks)) = self.machine.snapshots() {
                    disks.iter().for_each(|disk| disk.set_logging(false));
                }
                if is_running {
                    self.machine.resume();
                    self.run_vcpus();
                }
                self.count_stop(begun.elapsed());
            }
            SaverEvent::Finished(result) => self.finished(*result),
        }
    }

    /// What of the machine is saved at this moment, in which it stands still.
    fn stopped(&mut self) -> Result<Stopped, Error> {
        let vcpus = self
            .vcpus
            .iter()
            .map(|vcpu| vcpu.with(|vcpu| vcpu.state()).ok_or_else(vcpu_gone)?.map_err(engine_failed))
            .collect::<Result<Vec<CpuState>, _>>()?;
        let state = self.machine.save(vcpus);
        // Last: the engine may write to memory when it gives its state.
        Ok(Stopped { dirty: self.machine.take_dirty()?, state, wall_ms: self.machine.wall_ms() })
    }

    fn count_stop(&mut self, stop: Duration) {
        if let Some(current) = &mut self.saving.current {
            current.stopped += stop;
            current.longest_stop = current.longest_stop.max(stop);
        }
    }

    fn finished(&mut self, result: Result<Finished, Error>) {
        let Some(current) = self.saving.current.take() else { return };
        let Current { saver, reply, begun, stopped, longest_stop, since_stop, .. } = current;
        // Its last word is said.
        drop(saver);
        match result {
            Ok(Finished { name, id, bytes, rounds }) => {
                log::info!("the snapshot {name:?} is made");
                let written = since_stop.unwrap_or_else(|| PageSet::new(self.machine.ram().pages()));
                self.saving.base = Some(Base { name: name.clone(), id: id.clone(), written });
                reply.send(Ok(Reply::Snapshot(SnapshotDone {
                    name,
                    id,
                    bytes,
                    stopped_us: stopped.as_micros() as u64,
                    longest_stop_us: longest_stop.as_micros() as u64,
                    total_ms: begun.elapsed().as_millis() as u64,
                    rounds,
                })));
                self.collapse_layers();
            }
            Err(error) => {
                log::warn!("{}", error.report());
                self.end_logs();
                reply.refuse(ControlErrorKind::Failed, error.report());
            }
        }
    }

    /// Ends the logs that only an unfinished snapshot needed.
    fn end_logs(&mut self) {
        if let Some((_, disks)) = self.machine.snapshots() {
            disks.iter().for_each(|disk| disk.set_logging(false));
        }
        if !self.saving.is_logging() {
            let is_running = self.state == VmState::Running;
            if is_running {
                self.stand_still();
            }
            self.machine.end_log();
            if is_running {
                self.run_vcpus();
            }
        }
    }

    /// Asks the snapshot in the making to give up.
    pub(super) fn cancel_snapshot(&mut self, reply: ReplyTo) {
        match &self.saving.current {
            Some(current) => {
                current.saver.cancel();
                reply.send(Ok(Reply::Done));
            }
            None => reply.refuse(ControlErrorKind::WrongState, "no snapshot is being made"),
        }
    }

    /// Gives up the snapshot in the making at once.
    pub(super) fn give_up_snapshot(&mut self, why: &str) {
        if let Some(current) = self.saving.current.take() {
            drop(current.saver);
            current.reply.refuse(ControlErrorKind::Failed, format!("the snapshot was given up: {why}"));
        }
    }

    /// What was written since the last snapshot is not known any more. No vCPU runs.
    pub(super) fn forget_base(&mut self) {
        self.saving.base = None;
        self.saving.written_ever = None;
        self.machine.end_log();
        if let Some((_, disks)) = self.machine.snapshots() {
            disks.iter().for_each(|disk| disk.set_logging(false));
        }
    }
}
