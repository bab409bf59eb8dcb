//! What the daemon can do, free of HTTP.

mod clones;
mod events;
mod guest;
pub(crate) mod host;
mod images;
mod instances;
mod kept;
mod launch;
mod lifecycle;
mod limits;
mod mounts;
mod networks;
mod open_ports;
mod operations;
pub(crate) mod people;
pub(crate) mod ports;
pub(crate) mod projects;
mod recovery;
mod screen;
mod shares;
mod snapshots;
mod storage;
mod sweep;
mod switches;
#[cfg(test)]
pub(crate) mod testing;
mod vms;
mod warm;
mod work;

pub(crate) use operations::Request;
pub(crate) use people::Caller;

use crate::config::Config;
use crate::machine::{Cgroups, Process};
use crate::{Error, StartError, util};
use api::v1::Time;
use api::v1::event::Event;
use api::v1::image::RegistryLogin;
use api::v1::vm::{VmState, WorkerView};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use store::Store;
use tokio::sync::{broadcast, watch};

/// The daemon.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) started: Time,
    store: Store,
    images: image::Store,
    /// Where machines have control groups, if they can.
    cgroups: Option<Cgroups>,
    /// The machines from which others start, as they are made.
    warming: Mutex<warm::Warming>,
    /// Held together by those who make what stands on snapshots or saved machines, until it refers to them, and alone by
    /// the sweeper. Nobody waits to have it alone: those that come then would wait behind, however long one of the
    /// holders takes.
    standing: tokio::sync::RwLock<()>,
    /// A sweep was asked for while somebody held that, and is tried again.
    sweep_waits: AtomicBool,
    machines: Mutex<HashMap<String, Arc<Machine>>>,
    operations: Mutex<HashMap<String, operations::Running>>,
    /// Logins at registries for operations that have not begun, which are written down nowhere.
    logins: Mutex<HashMap<String, RegistryLogin>>,
    events: broadcast::Sender<Event>,
    past_events: Mutex<events::Past>,
    /// Told when somebody may do less than before.
    rights: watch::Sender<()>,
    /// The processes of networks, by the networks' identities.
    switches: Mutex<HashMap<String, Arc<switches::Switch>>>,
    /// File servers, by the folders that they have in the runtime folder.
    file_servers: Mutex<HashMap<PathBuf, Arc<Process>>>,
}

/// A machine as the daemon sees it. Exists from the first time that somebody asks for more than its record.
#[derive(Debug)]
pub(crate) struct Machine {
    id: String,
    /// Held by whoever starts, stops or removes the machine.
    lifecycle: Arc<tokio::sync::Mutex<()>>,
    live: Mutex<Live>,
    state: watch::Sender<VmState>,
    guest: guest::Known,
    mounts: Mutex<mounts::Known>,
}

/// What is known of a machine's process.
#[derive(Debug, Default)]
struct Live {
    process: Option<Arc<Process>>,
    view: Option<WorkerView>,
    /// When it last ended by a fault.
    faults: Vec<Instant>,
}

impl Machine {
    fn new(id: &str, state: VmState) -> Machine {
        let (state, _) = watch::channel(state);
        Machine {
            id: id.to_owned(),
            lifecycle: Arc::default(),
            live: Mutex::default(),
            state,
            guest: guest::Known::default(),
            mounts: Mutex::default(),
        }
    }

    fn state(&self) -> VmState {
        *self.state.borrow()
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        lock(&self.live)
    }

    fn process(&self) -> Option<Arc<Process>> {
        self.live().process.clone()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Control groups for machines, where there are any. Without them nothing is refused, and more is left to the workers.
fn groups(system: bool) -> Option<Cgroups> {
    match Cgroups::open(system) {
        Ok(groups) => {
            let missing = groups.missing();
            if !missing.is_empty() {
                log::warn!(
                    "control groups have no {} here: workers keep these limits themselves",
                    missing.join(", ")
                );
            }
            Some(groups)
        }
        Err(reason) => {
            log::warn!(
                "no control groups: {reason}; workers keep limits themselves, and nothing bounds their memory"
            );
            None
        }
    }
}

impl App {
    /// Opens the records.
    pub(crate) fn open(config: Config) -> Result<Arc<App>, StartError> {
        let path = config.paths.records();
        let refused =
            |e: store::Error| StartError::new(format!("the records {path:?} cannot be used")).with_source(e);
        let store = Store::open(&path).map_err(refused)?;
        let images = image::Store::open(&config.images).map_err(|e| {
            StartError::new(format!("the images {:?} cannot be used", config.images)).with_source(e)
        })?;
        let app = App {
            started: util::now(),
            store,
            images,
            cgroups: groups(config.mode == crate::Mode::System),
            warming: Mutex::default(),
            standing: tokio::sync::RwLock::default(),
            sweep_waits: AtomicBool::new(false),
            machines: Mutex::default(),
            operations: Mutex::default(),
            events: broadcast::channel(1024).0,
            logins: Mutex::default(),
            past_events: Mutex::default(),
            rights: watch::Sender::new(()),
            switches: Mutex::default(),
            file_servers: Mutex::default(),
            config,
        };
        app.ensure_default_pool().map_err(refused)?;
        Ok(Arc::new(app))
    }

    /// Finds machines that run, starts those that shall, carries on what was not finished. To be called before clients are
    /// served.
    pub(crate) fn begin(app: &Arc<App>) {
        let app = app.clone();
        // Machines are marked, and what is to be carried on is listed, before anybody can ask for more; what takes time
        // goes on beside.
        let (found, unfinished) = (app.find_machines(), app.unfinished_operations());
        tokio::spawn(async move { app.recover(found, unfinished).await });
    }

    /// The machine of this identity, which has a record.
    fn machine(&self, id: &str) -> Arc<Machine> {
        let mut machines = lock(&self.machines);
        machines.entry(id.to_owned()).or_insert_with(|| Arc::new(Machine::new(id, VmState::Stopped))).clone()
    }

    /// Reads records.
    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&store::Records<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.store.read(work)
    }

    /// Changes records that a loss of the host's power in the next moments may take away.
    pub(crate) fn write_soon<T>(
        &self,
        work: impl FnOnce(&store::Records<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.store.write_soon(work)
    }

    /// Changes records.
    pub(crate) fn write<T>(
        &self,
        work: impl FnOnce(&store::Records<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.store.write(work)
    }
}
