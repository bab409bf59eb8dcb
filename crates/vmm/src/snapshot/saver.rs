//! Making a snapshot: a thread beside the machine.
//!
//! ```text
//!   Saver                                   Controller
//!   copy disks, copy memory
//!   ── Round ─────────────────────────────> vCPUs stop, dirty log is taken, vCPUs go on
//!   copy what was dirty, until it is little
//!   ── Stop ──────────────────────────────> vCPUs, devices and clock stop; states and log are taken
//!   copy the rest; clone disks              (waits)
//!   ── drop ──────────────────────────────> all go on
//!   sync, hash, manifest, rename
//!   ── Finished ──────────────────────────> the client is told
//! ```

use super::MachineSaved;
use super::chain::{Checked, Stamp};
use super::disks::{self, Tracked};
use super::folder::{CHECKED_FILE, Partial, disk_file, sync};
use super::manifest::LAYERS_MAX;
use super::{checksum, manifest};
use crate::spec::Uuid;
use crate::{Error, ErrorKind};
use api::worker::control::{SnapshotPhase, SnapshotProgress};
use api::worker::snapshot::{
    FileEntry, Layers, MANIFEST_FILE, MEMORY_FILE, Manifest, PARTS_MAX, STATE_FILE, SavedDisk,
};
use disk::{Freezing, Live};
use memory::{PAGE_SIZE, PageSet, Ram};
use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// With no more dirty pages than this the guest is stopped for the rest: 2 MiB, about a millisecond.
const FEW_PAGES: u64 = 512;
/// With no more changed disk blocks than this, too.
const FEW_BLOCKS: u64 = 16;
/// A guest that writes faster than its memory is copied is stopped after so many rounds, whatever is left.
const ROUNDS_MAX: u32 = 12;
/// Pages are copied in runs of at most so many, so that a cancellation is heeded.
const RUN_PAGES: u64 = 256;

/// What is to be saved.
pub struct Plan {
    /// Where to.
    pub partial: Partial,
    /// The machine's memory. Its dirty log is on.
    pub ram: Arc<Ram>,
    /// The pages to begin with: for a full snapshot all that may not be zero, for an incremental one all
    /// that were written since its parent.
    pub pages: PageSet,
    /// Disks by index, `None` for those that the guest may only read. They note changes.
    pub disks: Vec<Option<PlannedDisk>>,
    /// All that is known beforehand; the rest is filled in.
    pub manifest: Manifest,
}

/// A disk that is to be saved.
pub struct PlannedDisk {
    /// To be copied …
    pub disk: Arc<Tracked>,
    /// … or, if that can be, to be kept as layers.
    pub live: Option<Arc<Live>>,
}

/// What the machine gives when it stands still.
pub struct Stopped {
    /// Pages written since the last round.
    pub dirty: PageSet,
    /// Processors, devices, clock.
    pub state: MachineSaved,
    /// Wall-clock time in milliseconds since 1970.
    pub wall_ms: u64,
}

/// What a saver wants of the controller.
pub enum SaverEvent {
    /// The pages written since the last time.
    Round(SyncSender<PageSet>),
    /// The machine stands still, from the answer until the receiver is disconnected.
    Stop(SyncSender<Stopped>, Receiver<()>),
    /// It is done.
    Finished(Box<Result<Finished, Error>>),
}

impl std::fmt::Debug for SaverEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SaverEvent::Round(_) => "Round",
            SaverEvent::Stop(..) => "Stop",
            SaverEvent::Finished(_) => "Finished",
        })
    }
}

/// A snapshot that is safe on disk.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: String,
    /// Bytes that it takes on the host's disk.
    pub bytes: u64,
    /// Rounds of copying memory while the guest ran.
    pub rounds: u32,
}

/// A saver at work. Dropping it cancels it and waits until nothing is left of its snapshot.
pub struct Saver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    cancelled: AtomicBool,
    name: String,
    phase: Mutex<SnapshotPhase>,
    done: AtomicU64,
    total: AtomicU64,
}

impl Saver {
    /// Starts it. `tell` passes its wishes to the controller; an answer that does not come ends it.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn start(plan: Plan, tell: impl Fn(SaverEvent) + Send + 'static) -> io::Result<Saver> {
        let shared = Arc::new(Shared {
            cancelled: AtomicBool::new(false),
            name: plan.partial.name().to_owned(),
            phase: Mutex::new(SnapshotPhase::Disks),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
        });
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new().name("snapshot".into()).spawn(move || {
            let work = Work { shared: for_thread, ram: plan.ram.clone(), tell: &tell };
            let result = work.run(plan);
            tell(SaverEvent::Finished(Box::new(result)));
        })?;
        Ok(Saver { shared, thread: Some(thread) })
    }

    /// How far it has come.
    pub fn progress(&self) -> SnapshotProgress {
        SnapshotProgress {
            name: self.shared.name.clone(),
            phase: *self.shared.phase.lock().unwrap_or_else(PoisonError::into_inner),
            done_bytes: self.shared.done.load(Ordering::Relaxed),
            total_bytes: self.shared.total.load(Ordering::Relaxed),
        }
    }

    /// Asks it to give up. It still tells that it has finished.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work<'a> {
    shared: Arc<Shared>,
    ram: Arc<Ram>,
    tell: &'a dyn Fn(SaverEvent),
}

/// A disk in the making.
enum DiskSave {
    Copy(DiskCopy),
    Layers(DiskLayers),
}

impl DiskSave {
    fn as_copy(&self) -> Option<&DiskCopy> {
        match self {
            DiskSave::Copy(copy) => Some(copy),
            DiskSave::Layers(_) => None,
        }
    }
}

struct DiskCopy {
    disk: Arc<Tracked>,
    file: File,
    /// Blocks are shared with the disk's own file; that is done while the guest stands still.
    by_clone: bool,
}

/// A disk whose image becomes a layer while the machine stands still.
struct DiskLayers {
    live: Arc<Live>,
    next: Option<Freezing>,
    /// Layers that are part of the snapshot.
    layers: Vec<PathBuf>,
}

impl Work<'_> {
    fn run(&self, plan: Plan) -> Result<Finished, Error> {
        let Plan { partial, pages, disks, mut manifest, .. } = plan;
        let (done, result) = self.save(&partial, pages, disks, &mut manifest);
        let result = result.and_then(|()| {
            let (bytes, rounds) = done;
            let (name, id) = (partial.name().to_owned(), manifest.id.clone());
            partial.commit()?;
            Ok(Finished { name, id, bytes, rounds })
        });
        result.map_err(|e| self.explain(e))
    }

    fn explain(&self, error: io::Error) -> Error {
        if self.shared.cancelled.load(Ordering::Relaxed) {
            return Error::new(ErrorKind::Host, "the snapshot was given up");
        }
        let is_full = matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG));
        let told = Error::host("the snapshot cannot be written").with_source(error);
        if is_full {
            return told
                .with_advice("make room on the disk; the machine goes on, nothing is left of the snapshot");
        }
        told.with_advice("the machine goes on, nothing is left of the snapshot")
    }

    #[allow(clippy::type_complexity, reason = "bytes and rounds are told even of what fails")]
    fn save(
        &self,
        partial: &Partial,
        pages: PageSet,
        disks: Vec<Option<PlannedDisk>>,
        manifest: &mut Manifest,
    ) -> ((u64, u32), io::Result<()>) {
        let mut figures = (0, 0);
        let result = self.try_save(partial, pages, disks, manifest, &mut figures);
        (figures, result)
    }

    fn try_save(
        &self,
        partial: &Partial,
        pages: PageSet,
        disks: Vec<Option<PlannedDisk>>,
        manifest: &mut Manifest,
        figures: &mut (u64, u32),
    ) -> io::Result<()> {
        // Disks first: they take longest, and memory goes stale meanwhile.
        let mut copies = Vec::new();
        for (index, disk) in disks.into_iter().enumerate() {
            copies.push(match disk {
                Some(disk) => Some(self.begin_disk(partial, index, disk, &manifest.id)?),
                None => None,
            });
        }
        let mut memory = MemoryCopy::new(self, partial.create(MEMORY_FILE)?, manifest.parent.is_some())?;
        memory.copy(&pages, SnapshotPhase::Memory)?;
        // What the host has not written back yet would make it slow down writers, also in the stop.
        rustix::fs::fdatasync(&memory.file)?;

        let mut left = u64::MAX;
        let stopped = loop {
            let (answer, round) = sync_channel(1);
            (self.tell)(SaverEvent::Round(answer));
            let dirty = self.wait(&round)?;
            figures.1 += 1;
            let blocks = self.copy_changed_blocks(&copies)?;
            let count = dirty.len();
            let is_few = count <= FEW_PAGES && blocks <= FEW_BLOCKS;
            if is_few || figures.1 >= ROUNDS_MAX || count > left {
                memory.pending.insert_all(&dirty);
                break self.stop(&mut memory, &mut copies)?;
            }
            left = count - count / 8;
            memory.copy(&dirty, SnapshotPhase::Memory)?;
        };

        // The guest goes on; the rest is only for this thread and the host's disk.
        self.enter(SnapshotPhase::Sync, 0);
        let mut stamps = std::collections::BTreeMap::new();
        let mut seal = |entry: &mut FileEntry, file: &File| -> io::Result<()> {
            entry.size = sync(file)?;
            self.enter(SnapshotPhase::Sync, entry.size);
            entry.blake3 = checksum::of_file(file, entry.size, &|done| {
                self.shared.done.store(done, Ordering::Relaxed);
                self.go_on()
            })?;
            stamps.insert(entry.file.clone(), Stamp::of(file)?);
            use std::os::unix::fs::MetadataExt;
            figures.0 += file.metadata()?.blocks() * 512;
            Ok(())
        };
        seal(&mut manifest.memory.file, &memory.file)?;
        manifest.memory.parts = manifest.parent.is_some().then(|| memory.parts());
        let mut layer_bytes = 0;
        for (saved, copy) in manifest.disks.iter_mut().zip(&copies) {
            match (saved, copy) {
                (SavedDisk::Copy(entry), Some(DiskSave::Copy(copy))) => seal(entry, &copy.file)?,
                (saved, Some(DiskSave::Layers(disk))) => {
                    *saved = seal_layers(partial, disk, &mut layer_bytes)?
                }
                _ => {}
            }
        }
        let state = stopped.state.encode();
        self.write(partial, STATE_FILE, &state)?;
        manifest.state = FileEntry {
            file: STATE_FILE.into(),
            size: state.len() as u64,
            blake3: checksum::of_bytes(&state),
        };
        manifest.created_ms = stopped.wall_ms;
        let text = manifest::encode(manifest);
        let checked = Checked { manifest: checksum::of_bytes(&text), files: stamps };
        self.write(partial, CHECKED_FILE, &serde_json::to_vec(&checked)?)?;
        // The last: without it the folder is no snapshot.
        self.write(partial, MANIFEST_FILE, &text)?;
        figures.0 += layer_bytes + (state.len() + text.len()) as u64;
        if self.go_on().is_break() {
            return Err(self.given_up());
        }
        Ok(())
    }

    /// Has the machine stopped, and copies what is still to be copied.
    fn stop(&self, memory: &mut MemoryCopy<'_, '_>, copies: &mut [Option<DiskSave>]) -> io::Result<Stopped> {
        let (answer, stopped) = sync_channel(1);
        let (copied, wait) = sync_channel(0);
        (self.tell)(SaverEvent::Stop(answer, wait));
        let stopped = self.wait(&stopped)?;
        let mut rest = std::mem::replace(&mut memory.pending, PageSet::new(self.ram.pages()));
        rest.insert_all(&stopped.dirty);
        memory.copy(&rest, SnapshotPhase::Memory)?;
        for copy in copies.iter().flatten().filter_map(DiskSave::as_copy).filter(|copy| copy.by_clone) {
            if !copy.disk.clone_to(&copy.file) {
                return Err(io::Error::other("the file system does not clone a disk's file any more"));
            }
        }
        self.copy_changed_blocks(copies)?;
        for save in copies.iter_mut().flatten() {
            let DiskSave::Layers(DiskLayers { live, next, layers }) = save else { continue };
            if let Some(next) = next.take() {
                live.freeze(next).map_err(io::Error::other)?;
                *layers = live.layers();
            }
        }
        drop(copied);
        Ok(stopped)
    }

    fn begin_disk(
        &self,
        partial: &Partial,
        index: usize,
        planned: PlannedDisk,
        id: &str,
    ) -> io::Result<DiskSave> {
        let PlannedDisk { disk, live } = planned;
        if let Some(layers) = live.and_then(|live| prepare_layers(partial, live, id)) {
            return Ok(DiskSave::Layers(layers));
        }
        let file = partial.create(&disk_file(index))?;
        // Tried now, while there is time to do otherwise.
        let by_clone = disk.clone_to(&file);
        if !by_clone {
            file.set_len(disk.size())?;
            let used = disk.used()?;
            self.enter(SnapshotPhase::Disks, used.len() * disks::BLOCK);
            let mut buffer = Vec::new();
            for run in used.runs() {
                for start in run.clone().step_by(16) {
                    disk.copy(start..run.end.min(start + 16), &file, true, &mut buffer)?;
                    self.shared.done.fetch_add(16 * disks::BLOCK, Ordering::Relaxed);
                    if self.go_on().is_break() {
                        return Err(self.given_up());
                    }
                }
            }
        }
        Ok(DiskSave::Copy(DiskCopy { disk, file, by_clone }))
    }

    /// Copies what was changed on disks since the last time; returns how much it was.
    fn copy_changed_blocks(&self, copies: &[Option<DiskSave>]) -> io::Result<u64> {
        let (mut count, mut buffer) = (0, Vec::new());
        for copy in copies.iter().flatten().filter_map(DiskSave::as_copy).filter(|copy| !copy.by_clone) {
            let changed = copy.disk.take_changed();
            count += changed.len();
            for run in changed.runs() {
                copy.disk.copy(run, &copy.file, false, &mut buffer)?;
            }
        }
        Ok(count)
    }

    fn write(&self, partial: &Partial, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = partial.create(name)?;
        file.write_all(bytes)?;
        sync(&file).map(drop)
    }

    fn enter(&self, phase: SnapshotPhase, total: u64) {
        *self.shared.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.shared.done.store(0, Ordering::Relaxed);
        self.shared.total.store(total, Ordering::Relaxed);
    }

    /// Waits for the controller's answer; it may be waiting for the end of this thread instead.
    fn wait<T>(&self, answer: &Receiver<T>) -> io::Result<T> {
        loop {
            match answer.recv_timeout(Duration::from_millis(20)) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Timeout) if self.go_on().is_continue() => {}
                Err(_) => return Err(self.given_up()),
            }
        }
    }

    fn go_on(&self) -> ControlFlow<()> {
        match self.shared.cancelled.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn given_up(&self) -> io::Error {
        self.shared.cancelled.store(true, Ordering::Relaxed);
        io::ErrorKind::Interrupted.into()
    }
}

/// Prepares a disk to be kept as layers; `None` where that cannot be, and it is copied.
fn prepare_layers(partial: &Partial, live: Arc<Live>, id: &str) -> Option<DiskLayers> {
    if live.layers().len() >= LAYERS_MAX {
        return None;
    }
    // Tried now, while there is time to do otherwise.
    let path = live.info().path;
    let name = path.file_name()?.to_str()?;
    if let Err(error) = partial.link(&path, name) {
        log::info!("the disk {path:?} is copied: the folder of snapshots can have no links to it ({error})");
        return None;
    }
    partial.unlink(name);
    // A part of the snapshot's identity is enough.
    match live.prepare_freeze(id.get(..13)?) {
        Ok(next) => Some(DiskLayers { live, next: Some(next), layers: Vec::new() }),
        Err(error) => {
            log::info!("the disk {path:?} is copied: {error}");
            None
        }
    }
}

/// Makes a disk's layers a part of the snapshot.
fn seal_layers(partial: &Partial, disk: &DiskLayers, bytes: &mut u64) -> io::Result<SavedDisk> {
    use std::os::unix::fs::MetadataExt;
    let mut files = Vec::new();
    for (index, layer) in disk.layers.iter().enumerate() {
        let name = layer.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        partial.link(layer, name)?;
        // The others were counted by the snapshots that made them.
        if index == 0 {
            *bytes += layer.metadata()?.blocks() * 512;
        }
        files.push(name.to_owned());
    }
    // Both names of the image that the machine goes on with are safe before anybody relies on them.
    if let Some(folder) = disk.layers.first().and_then(|layer| layer.parent()) {
        sync(&File::open(folder)?)?;
    }
    let info = disk.live.info();
    let below = info.chain[files.len().min(info.chain.len())..].to_vec();
    Ok(SavedDisk::Layers(Layers { files, below, size: info.size }))
}

/// Memory in the making.
struct MemoryCopy<'a, 'b> {
    work: &'a Work<'b>,
    file: File,
    is_incremental: bool,
    /// Pages that the file holds: what is zero of them may be a hole.
    covered: PageSet,
    /// Pages that were written to the file.
    written: PageSet,
    /// Pages that are to be copied yet.
    pending: PageSet,
}

impl<'a, 'b> MemoryCopy<'a, 'b> {
    fn new(work: &'a Work<'b>, file: File, is_incremental: bool) -> io::Result<MemoryCopy<'a, 'b>> {
        file.set_len(work.ram.size())?;
        let none = || PageSet::new(work.ram.pages());
        Ok(MemoryCopy { work, file, is_incremental, covered: none(), written: none(), pending: none() })
    }

    /// Copies pages as they are now.
    fn copy(&mut self, pages: &PageSet, phase: SnapshotPhase) -> io::Result<()> {
        let pages = if self.is_incremental { self.cover(pages) } else { pages.clone() };
        self.work.enter(phase, pages.len() * PAGE_SIZE);
        for run in pages.runs() {
            for start in run.clone().step_by(RUN_PAGES as usize) {
                self.copy_run(start, run.end.min(start + RUN_PAGES))?;
                if self.work.go_on().is_break() {
                    return Err(self.work.given_up());
                }
            }
        }
        Ok(())
    }

    fn copy_run(&mut self, start: u64, end: u64) -> io::Result<()> {
        let ram = &self.work.ram;
        let mut page = start;
        while page < end {
            // A page that is zero needs to be written only over what is there.
            let skip = |page: u64| ram.is_zero_page(page) && !self.written.contains(page);
            let first = page;
            while page < end && !skip(page) {
                page += 1;
            }
            if first < page {
                ram.copy_to_file(first..page, &self.file)?;
                self.written.insert_range(first..page);
            }
            // This one was found to be skipped.
            page += 1;
        }
        self.work.shared.done.fetch_add((end - start) * PAGE_SIZE, Ordering::Relaxed);
        Ok(())
    }

    /// Takes pages among those that the file holds; returns what is to be copied: these, and the gaps that
    /// are filled so that the parts do not become too many.
    fn cover(&mut self, pages: &PageSet) -> PageSet {
        let mut wanted = self.covered.clone();
        wanted.insert_all(pages);
        let wanted = fill_gaps(wanted, PARTS_MAX);
        let mut to_copy = pages.clone();
        for page in wanted.iter().filter(|page| !self.covered.contains(*page)) {
            to_copy.insert(page);
        }
        self.covered = wanted;
        to_copy
    }

    fn parts(&self) -> Vec<(u64, u64)> {
        self.covered.runs().map(|run| (run.start, run.end - run.start)).collect()
    }
}

/// Adds the smallest gaps to a set until it has no more than `runs_max` runs.
fn fill_gaps(set: PageSet, runs_max: usize) -> PageSet {
    let mut filled = set;
    let mut gap = 1;
    while filled.runs().count() > runs_max {
        let runs: Vec<_> = filled.runs().collect();
        for pair in runs.windows(2) {
            if pair[1].start - pair[0].end <= gap {
                filled.insert_range(pair[0].end..pair[1].start);
            }
        }
        gap *= 2;
    }
    filled
}

/// A new identity for a snapshot.
///
/// # Errors
/// When the host gives no random numbers.
pub fn new_id() -> Result<String, Error> {
    Ok(Uuid::random()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_filled_only_as_far_as_needed() {
        let mut set = PageSet::new(1000);
        for page in (0..100).step_by(2).chain([500, 510, 900]) {
            set.insert(page);
        }
        assert_eq!(fill_gaps(set.clone(), 100), set);
        let filled = fill_gaps(set.clone(), 10);
        assert_eq!(filled.runs().collect::<Vec<_>>(), [0..99, 500..501, 510..511, 900..901]);
        assert_eq!(fill_gaps(set, 1).runs().count(), 1);
    }
}
