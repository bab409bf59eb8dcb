//! Machines that come from images: what each has of its own.

use super::warm::Warm;
use super::work::Work;
use super::{App, Machine};
use crate::Error;
use crate::machine::Process;
use agent_client::{Agent, Command};
use api::agent::{Identity, Personality, Provision};
use api::image::PersonalitySource;
use api::v1::error::ErrorCode;
use api::v1::vm::{SeedKind, VmConfig, VmState};
use image::{Instance, InstanceParams};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use store::{Origin, Resume, VmRecord};

/// The instance of a machine that is about to start.
pub(super) struct Made {
    /// None for a machine that comes from no image.
    pub(super) instance: Option<Instance>,
    /// What the machine goes on from.
    pub(super) resume: Option<Resume>,
    /// [`Instance::complete`] is still to be called.
    pub(super) unfinished: bool,
}

/// How long the agent of a guest that goes on has to answer: it runs already.
const AGENT_PATIENCE: Duration = Duration::from_secs(30);
/// How long a guest may take for a script of ours: new addresses, with programs of its own that wait for the network.
const SCRIPT_LIMIT: Duration = Duration::from_secs(300);

impl App {
    /// Where the disks of a machine lie that comes from an image.
    pub(super) fn instance_folder(&self, id: &str) -> PathBuf {
        self.config.paths.vm_data(id).join("instance")
    }

    /// Finds the image of a machine to be, and keeps it for the machine `id`.
    pub(super) fn choose_image(
        &self,
        id: &str,
        config: &VmConfig,
        params: api::v1::vm::InstanceParams,
    ) -> Result<Option<Origin>, Error> {
        let invalid = |message: String| Error::new(ErrorCode::Invalid, message);
        let Some(name) = &config.image else {
            return match params.is_default() {
                true => Ok(None),
                false => Err(invalid("only a machine that comes from an image is an instance".into())),
            };
        };
        let image = self.image_digest(name)?;
        let manifest = self.images.manifest(image)?;
        if let Some(least) = manifest.minimum.memory.filter(|least| config.memory < *least) {
            return Err(invalid(format!("{} is too little memory for the image {name}", config.memory))
                .with_remedy(format!("choose {least} or more")));
        }
        let disk = manifest.disks.first().map(|disk| disk.blob.size);
        if let Some(size) = params.disk
            && (disk.is_none_or(|disk| size.0 < disk) || !size.0.is_multiple_of(512))
        {
            let disk = disk.map_or("no disk".to_owned(), |disk| format!("a disk of {}", api::ByteSize(disk)));
            return Err(invalid(format!("a disk of {size} cannot be made: the image {name} has {disk}"))
                .with_remedy("choose a larger one, or leave it out"));
        }
        if manifest.personality == PersonalitySource::None && !params.provision.is_empty() {
            return Err(invalid(format!("nothing in the image {name} can set up users, files and commands"))
                .with_remedy("use an image with the guest agent or cloud-init"));
        }
        if manifest.personality != PersonalitySource::CloudInit && params.seed == SeedKind::ConfigDrive {
            return Err(invalid(format!(
                "only cloud-init reads a config drive, and the image {name} has none"
            ))
            .with_remedy("leave `seed` out"));
        }
        let check = Personality { provision: params.provision.clone(), ..Personality::default() };
        check.check().map_err(|error| invalid(error.to_string()))?;
        self.images.pin(&pin(id), image)?;
        Ok(Some(Origin { image, params }))
    }

    /// Lets the image of a machine go that is not there, or no more.
    pub(super) fn release_image(&self, id: &str) {
        if let Err(error) = self.images.unpin(&pin(id)) {
            log::warn!("the image of machine {id} stays pinned: {error}");
        }
    }

    /// The instance of a machine, which is made when it is started for the first time; and what the machine goes
    /// on from.
    pub(super) async fn instance(self: &Arc<App>, vm: &VmRecord, work: &Arc<Work>) -> Result<Made, Error> {
        let made = |instance| Made { instance, resume: vm.resume.clone(), unfinished: false };
        let Some(origin) = &vm.origin else { return Ok(made(None)) };
        let folder = self.instance_folder(&vm.id);
        if folder.join(image::INSTANCE_FILE).exists() {
            return Ok(made(Some(Instance::load(&folder)?)));
        }
        self.warm_up(vm, origin, work).await;
        // While this is held, no machine to start from disappears.
        let _no_sweep = self.standing.read().await;
        let warm = self.find_warm(vm, origin);
        let params = InstanceParams {
            name: vm.name.clone(),
            uuid: Some(vm.id.clone()),
            mac: vm.config.nics.first().and_then(|nic| nic.mac.clone()),
            clone: origin.params.clone,
            over: warm.as_ref().map(Warm::disks).transpose()?.unwrap_or_default(),
            disk: origin.params.disk,
            provision: origin.params.provision.clone(),
            seed: origin.params.seed,
            ..InstanceParams::default()
        };
        let image = origin.image;
        let make = move |store: &image::Store, watch: &mut super::work::Watch| {
            // Whatever lies there was not finished.
            let _ = std::fs::remove_dir_all(&folder);
            Instance::prepare(store, image, &folder, &params, watch)
        };
        let instance = self.with_images(work, make).await?;
        let resume = warm.map(|warm| Resume { snapshot: warm.snapshot(), other: true });
        Ok(Made { instance: Some(instance), resume, unfinished: true })
    }

    /// Makes a guest that goes on from the snapshot of another machine the machine that it shall be. What has to be
    /// at once is, what takes its time follows beside; unless the machine shall have users, files or commands.
    pub(super) async fn become_itself(
        self: &Arc<App>,
        machine: &Arc<Machine>,
        process: Arc<Process>,
        vm: &VmRecord,
        instance: &Instance,
        snapshot: &Path,
    ) {
        let agent = Agent::of_worker(self.folder(&vm.id).file("vsock"));
        let provision = vm.origin.as_ref().map(|origin| origin.params.provision.clone()).unwrap_or_default();
        let new_macs = vm.config.nics.iter().map(|nic| nic.mac.clone().unwrap_or_default()).collect();
        let macs = cards(snapshot, new_macs);
        let personality = match instance.personality(&provision, None) {
            Ok(personality) => personality,
            Err(error) => return log::warn!("machine {} has no identity of its own: {error}", vm.name),
        };
        let name = vm.name.clone();
        let first = {
            let (agent, personality, name) = (agent.clone(), personality.clone(), name.clone());
            tokio::task::spawn_blocking(move || tell("who it is", &name, take_first(&agent, personality)))
        };
        if first.await.is_ok_and(|told| told) {
            // An agent thaws what it has frozen when it is told that.
            machine.guest.set_may_be_frozen(false);
        }
        let (app, machine) = (self.clone(), machine.clone());
        let wait = !provision.is_empty();
        let rest = tokio::spawn(async move {
            if !wait {
                machine.guest.quiet().await;
            }
            let watched = machine.clone();
            let told = tokio::task::spawn_blocking(move || {
                // One that has ended meanwhile needs to be told nothing.
                let tell = |what: &str, result: Result<(), agent_client::Error>| {
                    if watched.state() == VmState::Running {
                        let _ = tell(what, &name, result);
                    }
                };
                // Before its keys, which take their time: until then its network may not hear it.
                tell("its addresses", run(&agent, &readdress(&macs)));
                tell("its keys", take_rest(&agent, personality));
                tell("that it is somebody", run(&agent, super::warm::RELEASE));
            });
            let _ = told.await;
            app.guest_appears(&machine, process, true);
        });
        if wait {
            let _ = rest.await;
        }
    }
}

impl App {
    /// Sets the clock of a guest that goes on as the machine that it was, if it has an agent.
    pub(super) fn tell_time(&self, vm: &VmRecord, instance: &Instance) {
        let has_agent = |manifest: api::image::Manifest| manifest.personality == PersonalitySource::Agent;
        if !self.images.manifest(instance.image).is_ok_and(has_agent) {
            return;
        }
        let (agent, name) = (Agent::of_worker(self.folder(&vm.id).file("vsock")), vm.name.clone());
        tokio::task::spawn_blocking(move || {
            tell("the time", &name, take_first(&agent, Personality::default()));
        });
    }
}

/// Who keeps the image of a machine.
fn pin(id: &str) -> String {
    Instance::pin_of(id)
}

/// Whether a machine was told something; the log has why not.
fn tell(what: &str, name: &str, result: Result<(), agent_client::Error>) -> bool {
    if let Err(error) = &result {
        log::warn!("machine {name} was not told {what}: {error}");
    }
    result.is_ok()
}

/// Has a guest run a script of ours.
fn run(agent: &Agent, script: &str) -> Result<(), agent_client::Error> {
    agent.run(&Command::shell(script).within(SCRIPT_LIMIT)).map(drop)
}

/// Name, machine-id, randomness, time.
fn take_first(agent: &Agent, personality: Personality) -> Result<(), agent_client::Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let identity = Identity {
        ssh_host_keys: false,
        clock_ns: u64::try_from(now.as_nanos()).ok(),
        ..personality.identity
    };
    let first = Personality { instance_id: String::new(), identity, provision: Provision::default() };
    agent.take_personality_when_ready(&first, AGENT_PATIENCE).map(drop)
}

/// Keys, users, files, commands; and that it is this instance now.
fn take_rest(agent: &Agent, personality: Personality) -> Result<(), agent_client::Error> {
    let identity = Identity { ssh_host_keys: true, ..Identity::default() };
    agent.take_personality(&Personality { identity, ..personality }).map(drop)
}

/// Addresses of the cards of the machine that was saved, with those that they shall have.
fn cards(snapshot: &Path, new: Vec<String>) -> Vec<(String, String)> {
    let manifest = std::fs::read(snapshot.join(api::worker::snapshot::MANIFEST_FILE)).unwrap_or_default();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap_or_default();
    let macs = manifest["manifest"]["macs"].as_array().cloned().unwrap_or_default();
    let old = macs.iter().map(|mac| mac.as_str().unwrap_or_default().to_owned());
    old.zip(new).filter(|(old, new)| is_mac(old) && is_mac(new)).collect()
}

fn is_mac(text: &str) -> bool {
    text.parse::<net::MacAddress>().is_ok()
}

/// What a guest does that goes on as another machine: its cards get their MAC addresses, and ask for IPv4 addresses anew,
/// by whatever does that there.
fn readdress(macs: &[(String, String)]) -> String {
    let mut script = String::new();
    for (old, new) in macs {
        script.push_str(&format!(
            "for path in /sys/class/net/*; do
                [ \"$(cat \"$path/address\")\" = {old} ] || continue
                card=${{path##*/}}
                ip link set dev \"$card\" address {new} || {{
                    ip link set dev \"$card\" down
                    ip link set dev \"$card\" address {new}
                    ip link set dev \"$card\" up
                }}
                if networkctl reconfigure \"$card\" 2>/dev/null; then :
                elif nmcli device reapply \"$card\" 2>/dev/null; then :
                elif pidof dhclient >/dev/null; then dhclient -r \"$card\"; dhclient -nw \"$card\"
                elif pidof udhcpc >/dev/null; then killall -USR2 udhcpc; killall -USR1 udhcpc
                fi
            done\n"
        ));
    }
    script + "true"
}
