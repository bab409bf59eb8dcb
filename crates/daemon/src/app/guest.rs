//! What goes on inside guests: asking their agents.

use super::{App, Machine};
use crate::guest::{REQUESTS_MAX, Ways};
use crate::machine::Process;
use crate::{Error, app};
use agent_client::Agent;
use api::v1::error::ErrorCode;
use api::v1::guest::Guest;
use api::v1::vm::VmState;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use store::VmRecord;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

/// What is known of a guest is asked for anew when somebody looks and it is older than this.
const FRESH: Duration = Duration::from_secs(5);
/// How long the daemon looks for an agent in a guest that has just been started.
const APPEAR_PATIENCE: Duration = Duration::from_secs(600);
const APPEAR_INTERVAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));
/// A guest that nobody has asked for anything in so many moments is left in peace.
const QUIET_MOMENTS: u32 = 4;
const MOMENT: Duration = Duration::from_millis(50);
/// What can wait does not wait longer.
const QUIET_PATIENCE: Duration = Duration::from_secs(2);
/// An agent that is there takes a request to shut down at once.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// How long a request waits for a guest that is held for a snapshot.
const THAW_PATIENCE: Duration = Duration::from_secs(30);

/// What a machine's guest has told, and how many ask it.
#[derive(Debug)]
pub(super) struct Known {
    places: Arc<Semaphore>,
    view: std::sync::Mutex<Cached>,
    /// Whoever freezes or thaws the guest holds this, so that nobody thaws what another has just frozen.
    freezing: tokio::sync::Mutex<()>,
    /// Its file systems may be frozen, and its agent then refuses nearly all: it has to be thawed first.
    may_be_frozen: AtomicBool,
}

#[derive(Debug, Default)]
struct Cached {
    guest: Option<Guest>,
    asked: Option<Instant>,
    asking: bool,
}

impl Default for Known {
    fn default() -> Known {
        Known {
            places: Arc::new(Semaphore::new(REQUESTS_MAX)),
            view: std::sync::Mutex::default(),
            freezing: tokio::sync::Mutex::default(),
            may_be_frozen: AtomicBool::new(false),
        }
    }
}

impl Known {
    /// Waits until nobody has asked the guest for anything for a moment, but not long: what somebody waits for goes
    /// before what can wait.
    pub(super) async fn quiet(&self) {
        let quiet = async {
            let mut moments = 0;
            while moments < QUIET_MOMENTS {
                tokio::time::sleep(MOMENT).await;
                moments = if self.places.available_permits() == REQUESTS_MAX { moments + 1 } else { 0 };
            }
        };
        let _ = tokio::time::timeout(QUIET_PATIENCE, quiet).await;
    }

    /// Whether the guest may be frozen: one that goes on from a snapshot, or that another daemon may have frozen.
    pub(super) fn set_may_be_frozen(&self, may_be: bool) {
        self.may_be_frozen.store(may_be, Ordering::Release);
    }

    /// Another guest may come: this one has ended.
    pub(super) fn forget(&self) {
        *app::lock(&self.view) = Cached::default();
    }
}

impl App {
    /// The ways into a guest.
    pub(super) fn ways(&self, id: &str) -> Ways {
        let folder = self.folder(id);
        Ways { arnia: folder.file("vsock"), qemu: folder.file("qemu-agent") }
    }

    /// A place among those who ask a guest, and the ways that lead there. A guest that was frozen for the snapshot that it
    /// goes on from, or is frozen for one just now, is waited for.
    pub(crate) async fn guest_place(&self, vm: &VmRecord) -> Result<(OwnedSemaphorePermit, Ways), Error> {
        let (machine, place) = self.place(vm)?;
        let ways = self.ways(&vm.id);
        if machine.guest.may_be_frozen.load(Ordering::Acquire) {
            // Where nobody answers, the request finds that out by itself, and says so.
            let _ = tokio::time::timeout(THAW_PATIENCE, thaw(&machine, ways.clone())).await;
        }
        Ok((place, ways))
    }

    fn place(&self, vm: &VmRecord) -> Result<(Arc<Machine>, OwnedSemaphorePermit), Error> {
        let machine = self.running(vm)?;
        if machine.state() == VmState::Paused {
            let message = format!("the guest of {:?} stands still and cannot answer", vm.name);
            return Err(Error::new(ErrorCode::WrongState, message)
                .with_remedy(format!("let it go on with `arnia resume {}`", vm.name)));
        }
        let place = machine.guest.places.clone().try_acquire_owned().map_err(|_| {
            let message = format!("more than {REQUESTS_MAX} requests to the guest of {:?}", vm.name);
            Error::new(ErrorCode::TooManyRequests, message).with_remedy("wait until some of them have ended")
        })?;
        Ok((machine, place))
    }

    /// Does something with the agents of a guest, on a thread that may wait.
    pub(crate) async fn guest_thread<T: Send + 'static>(
        &self,
        vm: &VmRecord,
        work: impl FnOnce(Ways) -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, Error> {
        let (place, ways) = self.guest_place(vm).await?;
        Ok(on_thread(place, ways, work))
    }

    /// The same, and waits for what comes of it.
    pub(crate) async fn guest_answer<T: Send + 'static>(
        &self,
        vm: &VmRecord,
        work: impl FnOnce(Ways) -> Result<T, agent_client::Error> + Send + 'static,
    ) -> Result<T, Error> {
        answer(self.guest_thread(vm, work).await?).await
    }

    /// Asks our agent in a guest.
    pub(crate) async fn guest_ask<T: Send + 'static>(
        &self,
        vm: &VmRecord,
        work: impl FnOnce(&Agent) -> Result<T, agent_client::Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.guest_answer(vm, move |ways| work(&ways.ours())).await
    }

    /// What a guest tells of itself, now.
    pub(crate) async fn guest_view(&self, vm: &VmRecord) -> Result<Guest, Error> {
        let guest = self.guest_answer(vm, |ways| ways.view()).await?;
        let machine = self.machine(&vm.id);
        *app::lock(&machine.guest.view) =
            Cached { guest: Some(guest.clone()), asked: Some(Instant::now()), asking: false };
        Ok(guest)
    }

    /// What was last known of a guest. If that is old, it is asked anew, and the next one to look knows more.
    pub(super) fn guest_known(&self, machine: &Arc<Machine>) -> Option<Guest> {
        let mut view = app::lock(&machine.guest.view);
        let old = view.asked.is_some_and(|asked| asked.elapsed() > FRESH);
        if old && !view.asking && view.guest.is_some() {
            view.asking = true;
            let (machine, ways) = (machine.clone(), self.ways(&machine.id));
            tokio::spawn(async move { refresh(&machine, ways).await });
        }
        view.guest.clone()
    }

    /// Looks for the agent of a guest that has just been started, or found again, or that goes on from a snapshot.
    pub(super) fn guest_appears(
        self: &Arc<App>,
        machine: &Arc<Machine>,
        process: Arc<Process>,
        goes_on: bool,
    ) {
        machine.guest.forget();
        let (app, machine, ways) = (self.clone(), machine.clone(), self.ways(&machine.id));
        tokio::spawn(async move {
            let appear = async {
                let mut pause = APPEAR_INTERVAL.0;
                // It may have been frozen for the snapshot that it goes on from, or by a daemon that was killed then.
                while !(thaw(&machine, ways.clone()).await && refresh(&machine, ways.clone()).await) {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(APPEAR_INTERVAL.1);
                }
                app.guest_mounts(&machine, goes_on).await;
            };
            tokio::select! {
                () = process.ended() => {}
                _ = tokio::time::timeout(APPEAR_PATIENCE, appear) => {}
            }
        });
    }

    /// Freezes the file systems of a guest, so that what its disks hold is whole without its memory.
    pub(super) async fn guest_freeze<'a>(
        &self,
        machine: &'a Machine,
        vm: &VmRecord,
    ) -> Result<Frozen<'a>, Error> {
        let freezing = machine.guest.freezing.lock().await;
        let (_, place) = self.place(vm)?;
        let ways = self.ways(&vm.id);
        machine.guest.set_may_be_frozen(true);
        answer(on_thread(place, ways.clone(), |ways| ways.freeze())).await?;
        Ok(Frozen { _freezing: freezing, known: &machine.guest, ways })
    }

    /// Asks the agent of a guest to shut it down; whether it will.
    pub(super) async fn guest_shutdown(&self, id: &str) -> bool {
        let ways = self.ways(id);
        let asked = tokio::task::spawn_blocking(move || ways.shutdown());
        matches!(tokio::time::timeout(SHUTDOWN_PATIENCE, asked).await, Ok(Ok(Ok(()))))
    }
}

/// A guest whose file systems are frozen.
pub(super) struct Frozen<'a> {
    _freezing: tokio::sync::MutexGuard<'a, ()>,
    known: &'a Known,
    ways: Ways,
}

impl Frozen<'_> {
    /// Thaws them.
    pub(super) async fn thaw(self) -> Result<(), Error> {
        let ways = self.ways.clone();
        let asked = tokio::task::spawn_blocking(move || ways.thaw()).await;
        let thawed = asked.map_err(|e| Error::internal("the guest cannot be asked", e))?;
        self.known.set_may_be_frozen(thawed.is_err());
        thawed.map_err(|error| {
            Error::new(
                ErrorCode::GuestFailed,
                "the guest's file systems are still frozen, and it may stand still",
            )
            .with_cause(error)
            .with_remedy("our agent thaws them within 10 minutes; else `arnia restart --force` the machine")
        })
    }
}

/// Does something with the agents of a guest, on a thread that may wait.
fn on_thread<T: Send + 'static>(
    place: OwnedSemaphorePermit,
    ways: Ways,
    work: impl FnOnce(Ways) -> T + Send + 'static,
) -> JoinHandle<T> {
    tokio::task::spawn_blocking(move || {
        let result = work(ways);
        drop(place);
        result
    })
}

async fn answer<T>(asked: JoinHandle<Result<T, agent_client::Error>>) -> Result<T, Error> {
    Ok(asked.await.map_err(|e| Error::internal("the guest cannot be asked", e))??)
}

/// Thaws a guest that nobody freezes now, if it may be frozen; whether an agent has answered, if it had to.
async fn thaw(machine: &Machine, ways: Ways) -> bool {
    let _freezing = machine.guest.freezing.lock().await;
    if !machine.guest.may_be_frozen.load(Ordering::Acquire) {
        return true;
    }
    let thawed = matches!(tokio::task::spawn_blocking(move || ways.thaw()).await, Ok(Ok(())));
    if thawed {
        machine.guest.set_may_be_frozen(false);
    }
    thawed
}

/// Asks a guest for what it tells of itself; whether it did.
async fn refresh(machine: &Machine, ways: Ways) -> bool {
    let answer = tokio::task::spawn_blocking(move || ways.view()).await;
    let mut view = app::lock(&machine.guest.view);
    view.asking = false;
    let Ok(Ok(guest)) = answer else { return false };
    // The machine may have ended meanwhile; then this guest is no more.
    if machine.process().is_some() {
        view.guest = Some(guest);
        view.asked = Some(Instant::now());
    }
    true
}
