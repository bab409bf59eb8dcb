//! Warm starts: a machine of an image is booted once and saved; later ones go on from there, each as itself.
//!
//! ```text
//! warm/KEY/instance/    the disk of the machine that was saved; nobody changes it any more
//!         /snapshots/warm/    its memory
//!         /ready        it is whole
//! ```
//!
//! The key is made of the image and of all that a machine cannot change when it goes on from a snapshot.

use super::App;
use super::work::Work;
use crate::Error;
use crate::machine::{self, Folder, Process, Start};
use crate::util;
use agent_client::{Agent, Command};
use api::image::PersonalitySource;
use api::v1::error::ErrorCode;
use api::v1::network::NicConfig;
use api::v1::vm::{CloneKind, VmConfig};
use api::worker::config as worker;
use api::worker::control::Request;
use image::{Instance, InstanceDisk, InstanceParams};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Origin, VmRecord};

/// Counts changes of what is done here that make older ones useless.
const REVISION: u32 = 1;
/// The snapshot's name.
const NAME: &str = "warm";
/// How long the machine has to boot: engines in software on busy hosts take their time.
const BOOT_PATIENCE: Duration = Duration::from_secs(600);
/// How long a process has to end that an earlier daemon has left, and how often it is looked at.
const END_PATIENCE: Duration = Duration::from_secs(10);
const END_INTERVAL: Duration = Duration::from_millis(20);
/// How long it has to come to rest: units that start for two minutes, servers that stop, and a disk that is written.
const PREPARE_LIMIT: Duration = Duration::from_secs(600);
/// How long it has to be saved.
const SAVE_PATIENCE: Duration = Duration::from_secs(300);

/// What the machine does before it is saved: comes to rest, and holds back what shows its identity to others.
const PREPARE: &str = "
    if [ -d /run/systemd/system ]; then
        timeout 120 systemctl is-system-running --wait >/dev/null 2>&1 || true
        mkdir -p /run/arnia
        for unit in ssh.service sshd.service; do
            if systemctl --quiet is-active $unit; then
                systemctl stop $unit && echo $unit >> /run/arnia/held-back
            fi
        done
    fi
    sync";
/// What those do that go on from it.
pub(super) const RELEASE: &str = "
    if [ -e /run/arnia/held-back ]; then
        systemctl --no-block start $(cat /run/arnia/held-back); rm -f /run/arnia/held-back
    fi";

/// By key: held while the machine is made, and whether that has failed; nobody tries again until the daemon starts anew.
pub(super) type Warming = HashMap<String, Arc<tokio::sync::Mutex<bool>>>;

/// A machine that was saved, to start others from.
pub(super) struct Warm(PathBuf);

impl Warm {
    pub(super) fn snapshot(&self) -> PathBuf {
        self.0.join("snapshots").join(NAME)
    }

    /// Its disks, to stand on.
    pub(super) fn disks(&self) -> Result<Vec<InstanceDisk>, Error> {
        Ok(Instance::load(&self.instance())?.disks)
    }

    pub(super) fn instance(&self) -> PathBuf {
        self.0.join("instance")
    }

    fn ready(&self) -> PathBuf {
        self.0.join("ready")
    }

    pub(super) fn at(folder: PathBuf) -> Warm {
        Warm(folder)
    }
}

/// What the machine that is saved is like, if one like this can be started from it.
fn shape(vm: &VmRecord, origin: &Origin) -> Option<VmConfig> {
    let params = &origin.params;
    let plain = params.clone == CloneKind::Linked && params.disk.is_none() && !params.cold;
    let config = &vm.config;
    if !plain || !config.disks.is_empty() || !config.boot.is_default() {
        return None;
    }
    let nic = |_| NicConfig::default();
    Some(VmConfig {
        cpus: config.cpus,
        memory: config.memory,
        cpu_model: config.cpu_model.clone(),
        engine: config.engine,
        nics: config.nics.iter().map(nic).collect(),
        ..VmConfig::of_image(origin.image.to_string())
    })
}

fn key(shape: &VmConfig) -> String {
    let text = serde_json::to_string(&(REVISION, shape)).unwrap_or_default();
    util::hex(&util::digest(text.as_bytes())[..12])
}

impl App {
    /// The machine that `vm` can start from, if there is one.
    pub(super) fn find_warm(&self, vm: &VmRecord, origin: &Origin) -> Option<Warm> {
        let warm = Warm(self.config.paths.warm().join(key(&shape(vm, origin)?)));
        warm.ready().exists().then_some(warm)
    }

    /// Makes the machine that others like `vm` start from, unless it is there or cannot be.
    pub(super) async fn warm_up(self: &Arc<App>, vm: &VmRecord, origin: &Origin, work: &Arc<Work>) {
        let agent = self.images.manifest(origin.image).map(|manifest| manifest.personality);
        let Some(shape) = shape(vm, origin).filter(|_| matches!(agent, Ok(PersonalitySource::Agent))) else {
            return;
        };
        if self.find_warm(vm, origin).is_some() {
            return;
        }
        let key = key(&shape);
        let making = self.making(&key);
        let mut has_failed = making.lock().await;
        // Somebody else may have made it while this waited.
        if self.find_warm(vm, origin).is_some() || *has_failed {
            return;
        }
        let _no_sweep = self.standing.read().await;
        let folder = self.config.paths.warm().join(&key);
        let result = self.make_warm(&folder, &key, shape, origin, work).await;
        if let Err(error) = result {
            log::warn!("machines of image {} start cold: {error}", origin.image.short());
            self.remove_warm(&folder);
            *has_failed = true;
        }
    }

    /// What is held while the machine of this key is made.
    fn making(&self, key: &str) -> Arc<tokio::sync::Mutex<bool>> {
        super::lock(&self.warming).entry(key.to_owned()).or_default().clone()
    }

    async fn make_warm(
        self: &Arc<App>,
        folder: &Path,
        key: &str,
        shape: VmConfig,
        origin: &Origin,
        work: &Arc<Work>,
    ) -> Result<(), Error> {
        let started = Instant::now();
        let runtime = Folder(self.config.paths.runtime.join("warm").join(key));
        // An earlier daemon may have begun the same.
        end_left_template(&runtime).await;
        self.remove_warm(folder);
        let failed = |e: crate::StartError| Error::internal(e.to_string(), "");
        crate::config::private_folder(folder).map_err(failed)?;
        let warm = Warm(folder.to_owned());
        crate::config::private_folder(&folder.join("snapshots")).map_err(failed)?;
        let (image, place) = (origin.image, warm.instance());
        let params = InstanceParams { name: "template".into(), ..InstanceParams::default() };
        let make = move |store: &image::Store, watch: &mut super::work::Watch| {
            Instance::create(store, image, &place, &params, watch)
        };
        let instance = self.with_images(work, make).await?;
        let record = VmRecord::new(instance.uuid.clone(), "", "template".into(), shape, util::now());
        let config = worker::VmConfig {
            snapshots: Some(folder.join("snapshots")),
            on_reset: worker::OnReset::Exit,
            ..machine::worker_config(
                &record,
                Some(&instance),
                &runtime,
                folder.join("console.log"),
                |_| PathBuf::new(),
                |_| None,
            )
        };
        work.begin("booting once, for later machines to start at once", None);
        let log = folder.join("worker.log");
        let process = Process::start(&self.config.worker, &runtime, &Start::Boot(Box::new(config)), &log)
            .map_err(|e| Error::internal("the machine's process cannot be started", e))?;
        let saved = self.save_template(&process, &runtime, &log, work).await;
        process.kill();
        process.ended().await;
        let _ = std::fs::remove_dir_all(runtime.path());
        saved?;
        std::fs::write(warm.ready(), "").map_err(|e| Error::internal("the host's disk is full", e))?;
        log::info!("image {} is warm after {:.1?}", image.short(), started.elapsed());
        Ok(())
    }

    async fn save_template(
        &self,
        process: &Process,
        runtime: &Folder,
        log: &Path,
        work: &Arc<Work>,
    ) -> Result<(), Error> {
        self.wait_ready(process, runtime, log).await?;
        let agent = Agent::of_worker(runtime.file("vsock"));
        let prepared = tokio::task::spawn_blocking(move || -> Result<(), Error> {
            agent.wait_until_ready(BOOT_PATIENCE)?;
            let command = Command::shell(PREPARE).within(PREPARE_LIMIT);
            agent.run(&command).map(drop).map_err(|error| {
                let message = "the machine does not come to rest, and cannot be saved";
                Error::new(ErrorCode::GuestFailed, message).with_cause(Error::from(error))
            })
        });
        tokio::select! {
            result = prepared => result.map_err(|e| Error::internal("the guest cannot be asked", e))??,
            () = process.ended() => {
                return Err(Error::new(ErrorCode::Internal, "the machine ended while it booted"));
            }
        }
        work.begin("saving it", None);
        let control = runtime.control();
        control.ask(Request::Pause {}).await?;
        let snapshot = Request::Snapshot { name: NAME.into(), parent: None, disks: false };
        control.ask_long(snapshot, SAVE_PATIENCE).await?;
        // Its disks are as its memory believes: it has not run since.
        control.ask(Request::Stop {}).await?;
        match tokio::time::timeout(SAVE_PATIENCE, process.ended()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Error::new(ErrorCode::Internal, "the machine's process does not end")),
        }
    }

    /// Removes a machine that others start from, and lets its image go.
    pub(super) fn remove_warm(&self, folder: &Path) {
        // First what says that it is whole.
        let warm = Warm(folder.to_owned());
        let _ = std::fs::remove_file(warm.ready());
        if let Err(error) = Instance::remove(&self.images, &warm.instance())
            && folder.exists()
            && error.kind() != image::ErrorKind::NotFound
        {
            log::warn!("{}: {error}", folder.display());
        }
        let _ = std::fs::remove_dir_all(folder);
    }

    /// Ends what an earlier daemon has begun and not finished.
    pub(super) async fn end_left_templates(&self) {
        let runtime = self.config.paths.runtime.join("warm");
        for entry in std::fs::read_dir(&runtime).into_iter().flatten().flatten() {
            // While this is held, nobody makes it: what is there then was left.
            let making = self.making(&entry.file_name().to_string_lossy());
            let _alone = making.lock().await;
            end_left_template(&Folder(entry.path())).await;
        }
    }
}

/// Ends the process in the runtime folder of a template that an earlier daemon has begun to make, if there is one, and
/// removes the folder. The caller holds what [`App::making`] gives for it.
async fn end_left_template(folder: &Folder) {
    let ended = async {
        while machine::process::lives(folder) {
            let _ = folder.control().ask(Request::Stop {}).await;
            tokio::time::sleep(END_INTERVAL).await;
        }
    };
    match tokio::time::timeout(END_PATIENCE, ended).await {
        Ok(()) => drop(std::fs::remove_dir_all(folder.path())),
        // Its lock stays with it: that is how the next one who wants the folder knows of it.
        Err(_) => log::error!("the process of a template in {:?} does not end", folder.path()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::testing;

    #[tokio::test]
    async fn a_template_that_is_being_made_is_none_that_was_left() {
        let (app, _folder) = testing::app("templates");
        let runtime = app.config.paths.runtime.join("warm/key");
        std::fs::create_dir_all(&runtime).expect("a folder");
        let making = app.making("key");
        let held = making.lock().await;
        let looking = tokio::time::timeout(Duration::from_millis(100), app.end_left_templates());
        assert!(looking.await.is_err() && runtime.exists(), "it is taken from whoever makes it");
        drop(held);
        app.end_left_templates().await;
        assert!(!runtime.exists(), "it was left");
    }
}
