//! The controller's part in what is done to disks while the machine runs: it begins jobs on threads of their own,
//! stops a disk's queues for the moment in which its images change, and tells who asked.

use super::{Controller, Event};
use crate::control::ReplyTo;
use crate::spec;
use crate::state::VmState;
use api::ByteSize;
use api::worker::config::RateLimits;
use api::worker::control::{
    ControlErrorKind, Disk as DiskView, DiskJob, DiskJobKind, Disks, Memory, Reply, Request,
};
use device::limit::{Limits, Rate};
use disk::{Live, Progress};
use std::collections::BTreeMap;
use std::error::Error as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

/// What is done to disks, by disk.
pub(super) struct DiskJobs {
    events: Sender<Event>,
    running: BTreeMap<u32, Job>,
}

struct Job {
    kind: DiskJobKind,
    progress: Arc<Progress>,
    thread: JoinHandle<()>,
    /// Who asked for it; nobody for what the machine does by itself.
    reply: Option<ReplyTo>,
}

/// A disk that stands on so many layers gets their content.
const LAYERS_MANY: usize = 8;

/// A refusal of a request.
type Refusal = (ControlErrorKind, String);

fn bad(message: impl Into<String>) -> Refusal {
    (ControlErrorKind::BadRequest, message.into())
}

fn failed(error: disk::Error) -> Refusal {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        message += &format!(": {error}");
        source = error.source();
    }
    (ControlErrorKind::Failed, message)
}

impl DiskJobs {
    pub(super) fn new(events: Sender<Event>) -> DiskJobs {
        DiskJobs { events, running: BTreeMap::new() }
    }
}

impl Controller {
    /// Answers a request about disks, cards or memory.
    pub(super) fn device_request(&mut self, request: Request, reply: ReplyTo) {
        let (request, reply) = match request {
            Request::DiskCommit { disk } => {
                return self.begin_job(disk, DiskJobKind::Commit, Some(reply), |live, progress| {
                    live.commit(progress)?;
                    // What was written meanwhile: little is left for the moment in which the disk stands still.
                    live.commit(progress)
                });
            }
            Request::DiskRebase { disk, backing } => {
                return match backing.map(|path| self.in_disk_folder(path)).transpose() {
                    Err((kind, message)) => reply.refuse(kind, message),
                    Ok(backing) => {
                        self.begin_job(disk, DiskJobKind::Rebase, Some(reply), move |live, progress| {
                            live.rebase(backing.as_deref(), progress)
                        })
                    }
                };
            }
            request => (request, reply),
        };
        let result = match request {
            Request::Disks {} => Ok(Reply::Disks(self.disks())),
            Request::DiskResize { disk, size } => self.resize_disk(disk, size).map(|()| Reply::Done),
            Request::DiskOverlay { disk, path } => self.overlay_disk(disk, path).map(|()| Reply::Done),
            Request::DiskCancel { disk } => match self.disk_jobs.running.get(&disk) {
                Some(job) => {
                    job.progress.cancel();
                    Ok(Reply::Done)
                }
                None => Err(bad(format!("nothing is being done to disk {disk}"))),
            },
            Request::DiskLimits { disk, limits } => checked(&limits).and_then(|limits| {
                let done = self.machine.limit_disk(disk as usize, limits);
                done.then_some(Reply::Done).ok_or_else(|| self.no_disk(disk))
            }),
            Request::NetLimits { net, limits } => checked(&limits).and_then(|limits| {
                let done = self.machine.limit_net(net as usize, limits);
                done.then_some(Reply::Done).ok_or_else(|| bad(format!("there is no network card {net}")))
            }),
            Request::Memory {} => self.memory().map(Reply::Memory),
            Request::MemoryTarget { bytes } => {
                let rest = self.machine.memory_bytes().saturating_sub(bytes);
                self.machine.set_balloon(rest).then_some(Reply::Done).ok_or_else(no_balloon)
            }
            _ => Err((ControlErrorKind::UnknownOperation, "this worker does not know the operation".into())),
        };
        match result {
            Ok(answer) => reply.send(Ok(answer)),
            Err((kind, message)) => reply.refuse(kind, message),
        }
    }

    fn no_disk(&self, disk: u32) -> Refusal {
        bad(format!("there is no disk {disk}; the machine has {}", self.machine.disk_count()))
    }

    fn live(&self, disk: u32) -> Result<Arc<Live>, Refusal> {
        if self.machine.disk(disk as usize).is_none() {
            return Err(self.no_disk(disk));
        }
        let live = self.machine.live_disk(disk as usize).cloned();
        live.ok_or_else(|| bad(format!("disk {disk} cannot change: what is written to it is lost at the end, or it is at an AHCI controller")))
    }

    /// A path that the worker may use, made whole.
    fn in_disk_folder(&self, path: PathBuf) -> Result<PathBuf, Refusal> {
        let Some(folder) = &self.disk_folder else {
            return Err(bad("the machine has no folder for disks; start it with --disk-folder DIR"));
        };
        match (path.file_name(), path.parent()) {
            (Some(name), Some(parent)) if parent.as_os_str().is_empty() || parent == folder => {
                Ok(folder.join(name))
            }
            _ => Err(bad(format!("{path:?} is not in {folder:?}; give a name in that folder"))),
        }
    }

    fn disks(&self) -> Disks {
        let disks = (0..self.machine.disk_count()).filter_map(|index| {
            let info = self.machine.disk(index)?.info();
            let live = self.machine.live_disk(index).map(|live| live.info());
            let job = self.disk_jobs.running.get(&(index as u32)).map(|job| {
                let (done_bytes, total_bytes) = job.progress.get();
                DiskJob { kind: job.kind, done_bytes: done_bytes.min(total_bytes), total_bytes }
            });
            Some(DiskView {
                path: live.as_ref().map(|live| live.path.clone()),
                format: live.as_ref().map(|live| live.format.to_string()),
                size: info.size,
                read_only: info.read_only,
                chain: live.map(|live| live.chain).unwrap_or_default(),
                limits: told(self.machine.disk_limits(index)),
                job,
            })
        });
        Disks { disks: disks.collect() }
    }

    fn resize_disk(&mut self, disk: u32, size: u64) -> Result<(), Refusal> {
        self.check_no_snapshot()?;
        let live = self.live(disk)?;
        live.resize(size).map_err(failed)?;
        self.machine.disk_resized(disk as usize);
        Ok(())
    }

    fn overlay_disk(&mut self, disk: u32, path: PathBuf) -> Result<(), Refusal> {
        let live = self.live(disk)?;
        let path = self.in_disk_folder(path)?;
        self.check_no_snapshot()?;
        let is_paused = self.state != VmState::Running;
        self.machine.quiesce_disk(disk as usize, is_paused, || live.overlay(&path)).map_err(failed)?;
        self.machine.disk_moved(disk as usize);
        Ok(())
    }

    /// What a snapshot copies must not change its place meanwhile.
    fn check_no_snapshot(&self) -> Result<(), Refusal> {
        match self.saving.progress() {
            Some(current) => Err((
                ControlErrorKind::Busy,
                format!("the snapshot {:?} is being made; wait, or send cancel_snapshot", current.name),
            )),
            None => Ok(()),
        }
    }

    fn begin_job(
        &mut self,
        disk: u32,
        kind: DiskJobKind,
        reply: Option<ReplyTo>,
        work: impl FnOnce(&Live, &Progress) -> Result<(), disk::Error> + Send + 'static,
    ) {
        if self.disk_jobs.running.contains_key(&disk) {
            let message = format!("something is being done to disk {disk}; wait, or send disk_cancel");
            return answer(reply, Err((ControlErrorKind::Busy, message)));
        }
        let live = match self.check_no_snapshot().and_then(|()| self.live(disk)) {
            Ok(live) => live,
            Err(refusal) => return answer(reply, Err(refusal)),
        };
        let progress = Arc::new(Progress::default());
        let (events, for_thread) = (self.disk_jobs.events.clone(), progress.clone());
        let thread = std::thread::Builder::new().name("disk job".into()).spawn(move || {
            let result = work(&live, &for_thread);
            drop(events.send(Event::DiskJob(disk, result)));
        });
        match thread {
            Ok(thread) => {
                self.disk_jobs.running.insert(disk, Job { kind, progress, thread, reply });
            }
            Err(e) => {
                let message = format!("a thread cannot be started: {e}");
                answer(reply, Err((ControlErrorKind::Failed, message)));
            }
        }
    }

    /// A job's thread is done.
    pub(super) fn disk_job_done(&mut self, disk: u32, result: Result<(), disk::Error>) {
        let Some(job) = self.disk_jobs.running.remove(&disk) else { return };
        let _ = job.thread.join();
        let result = result.map_err(failed).and_then(|()| match job.kind {
            DiskJobKind::Rebase => Ok(()),
            DiskJobKind::Commit => {
                self.check_no_snapshot()?;
                let live = self.live(disk)?;
                let is_paused = self.state != VmState::Running;
                self.machine.quiesce_disk(disk as usize, is_paused, || live.finish_commit()).map_err(failed)
            }
        });
        answer(job.reply, result);
    }

    /// Takes disks' layers into their images where there are so many that reading goes through too many files.
    pub(super) fn collapse_layers(&mut self) {
        for disk in 0..self.machine.disk_count() as u32 {
            let live = self.machine.live_disk(disk as usize);
            let is_deep = live.is_some_and(|live| live.layers().len() >= LAYERS_MANY);
            if !is_deep || self.disk_jobs.running.contains_key(&disk) {
                continue;
            }
            self.begin_job(disk, DiskJobKind::Rebase, None, |live, progress| {
                // Snapshots that have them have names of their own for them.
                for layer in live.collapse(progress)? {
                    if let Err(error) = std::fs::remove_file(&layer) {
                        log::warn!("{} stays: {error}", layer.display());
                    }
                }
                Ok(())
            });
        }
    }

    /// Gives up all jobs: the machine ends.
    pub(super) fn give_up_disk_jobs(&mut self) {
        for job in self.disk_jobs.running.values() {
            job.progress.cancel();
        }
        for (_, job) in std::mem::take(&mut self.disk_jobs.running) {
            let _ = job.thread.join();
            answer(job.reply, Err((ControlErrorKind::Failed, "the machine has ended".into())));
        }
    }

    fn memory(&self) -> Result<Memory, Refusal> {
        let status = self.machine.balloon_status().ok_or_else(no_balloon)?;
        let total_bytes = self.machine.memory_bytes();
        Ok(Memory {
            balloon_active: status.active,
            total_bytes,
            target_bytes: total_bytes.saturating_sub(status.target),
            current_bytes: total_bytes.saturating_sub(status.actual),
            reported_bytes: status.reported,
            guest: status.stats.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        })
    }
}

/// Tells who asked what came of it.
fn answer(reply: Option<ReplyTo>, result: Result<(), Refusal>) {
    match (reply, result) {
        (Some(reply), Ok(())) => reply.send(Ok(Reply::Done)),
        (Some(reply), Err((kind, message))) => reply.refuse(kind, message),
        (None, Ok(())) => {}
        (None, Err((_, message))) => log::warn!("{message}"),
    }
}

fn no_balloon() -> Refusal {
    bad("the machine has no memory balloon; start it without --no-balloon")
}

fn checked(limits: &RateLimits) -> Result<Limits, Refusal> {
    spec::limits(limits).map_err(bad)
}

fn told(limits: Limits) -> RateLimits {
    let parts = |rate: Option<Rate>| (rate.map(|rate| rate.per_second), rate.map(|rate| rate.burst));
    let ((bytes, burst_bytes), (operations, burst_operations)) =
        (parts(limits.bytes), parts(limits.operations));
    RateLimits {
        bytes: bytes.map(ByteSize),
        burst_bytes: burst_bytes.map(ByteSize),
        operations,
        burst_operations,
    }
}
