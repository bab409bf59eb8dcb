//! What goes on inside guests: asking their agents.

use super::{App, Machine};
use crate::guest::{self, REQUESTS_MAX};
use crate::machine::Process;
use crate::{Error, app};
use agent_client::Agent;
use api::agent::ShutdownMode;
use api::v1::error::ErrorCode;
use api::v1::guest::Guest;
use api::v1::vm::VmState;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::VmRecord;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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

/// What a machine's guest has told, and how many ask it.
#[derive(Debug)]
pub(super) struct Known {
    places: Arc<Semaphore>,
    view: std::sync::Mutex<Cached>,
}

#[derive(Debug, Default)]
struct Cached {
    guest: Option<Guest>,
    asked: Option<Instant>,
    asking: bool,
}

impl Default for Known {
    fn default() -> Known {
        Known { places: Arc::new(Semaphore::new(REQUESTS_MAX)), view: std::sync::Mutex::default() }
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

    /// Another guest may come: this one has ended.
    pub(super) fn forget(&self) {
        *app::lock(&self.view) = Cached::default();
    }
}

impl App {
    /// The virtio socket of a machine that runs.
    fn vsock(&self, id: &str) -> PathBuf {
        self.folder(id).file("vsock")
    }

    /// The socket of QEMU's guest agent in a machine that runs.
    pub(crate) fn qemu_agent(&self, id: &str) -> PathBuf {
        self.folder(id).file("qemu-agent")
    }

    /// Both ways into a guest.
    fn ways(&self, id: &str) -> Ways {
        Ways { arnia: self.vsock(id), qemu: self.qemu_agent(id) }
    }

    /// A place among those who ask a guest, and the socket that leads there.
    pub(crate) fn guest_place(&self, vm: &VmRecord) -> Result<(OwnedSemaphorePermit, PathBuf), Error> {
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
        Ok((place, self.vsock(&vm.id)))
    }

    /// Asks the agent of a guest, on a thread that may wait.
    pub(crate) async fn guest_ask<T: Send + 'static>(
        &self,
        vm: &VmRecord,
        work: impl FnOnce(&Agent) -> Result<T, agent_client::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (place, socket) = self.guest_place(vm)?;
        let asked = tokio::task::spawn_blocking(move || {
            let result = work(&Agent::of_worker(socket));
            drop(place);
            result
        });
        Ok(asked.await.map_err(|e| Error::internal("the guest cannot be asked", e))??)
    }

    /// What a guest tells of itself, now.
    pub(crate) async fn guest_view(&self, vm: &VmRecord) -> Result<Guest, Error> {
        let ways = self.ways(&vm.id);
        let guest = self.guest_ask(vm, move |_| ways.ask()).await?;
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
                while !refresh(&machine, ways.clone()).await {
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

    /// Asks the agent of a guest to shut it down; whether it will.
    pub(super) async fn guest_shutdown(&self, id: &str) -> bool {
        let ways = self.ways(id);
        let asked = tokio::task::spawn_blocking(move || {
            let ours = Agent::of_worker(ways.arnia).shutdown(ShutdownMode::Poweroff, false);
            ours.or_else(|_| guest::qemu::shutdown(&ways.qemu))
        });
        matches!(tokio::time::timeout(SHUTDOWN_PATIENCE, asked).await, Ok(Ok(Ok(()))))
    }
}

/// The sockets that lead to the agents of a guest: ours, and QEMU's.
#[derive(Clone, Debug)]
struct Ways {
    arnia: PathBuf,
    qemu: PathBuf,
}

impl Ways {
    /// What the guest tells of itself, by the agent that it has.
    fn ask(&self) -> Result<Guest, agent_client::Error> {
        let agent = Agent::of_worker(&self.arnia);
        match agent.info() {
            Ok(info) => Ok(guest::view(&info, agent.interfaces()?)),
            Err(error) if error.kind() == agent_client::ErrorKind::NotReady => {
                guest::qemu::view(&self.qemu).map_err(|_| error)
            }
            Err(error) => Err(error),
        }
    }
}

/// Asks a guest for what it tells of itself; whether it did.
async fn refresh(machine: &Machine, ways: Ways) -> bool {
    let answer = tokio::task::spawn_blocking(move || ways.ask()).await;
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
