//! Images of this host: what machines come from.

use super::work::{Watch, Work};
use super::{App, Caller, Request, lock};
use crate::Error;
use api::image::{Digest, ImageName, ImageView};
use api::v1::error::ErrorCode;
use api::v1::image::{ImageBuild, ImageParams, ImagePublish, ImagePull, KEYS_MAX, RegistryLogin};
use api::v1::operation::{Operation, Target};
use api::v1::vm::StopParams;
use image::build::{BuildOptions, Programs, build};
use image::recipe::RecipeSource;
use image::sign::TrustedKey;
use image::transfer::{self, Place, PullOptions, pull};
use image::{Instance, PruneOptions, Store};
use std::sync::Arc;

/// vCPUs of the machine in which a recipe's commands run.
const BUILD_CPUS: u32 = 2;

impl App {
    /// The image that somebody means.
    pub(crate) fn image_digest(&self, name: &str) -> Result<Digest, Error> {
        self.images.resolve(name).map_err(|error| match error.kind() {
            image::ErrorKind::NotFound => Error::from(error).with_remedy(format!(
                "build it with `arnia image build RECIPE` or fetch it with `arnia image pull PLACE`; \
                 `arnia image ls` shows those that there are{}",
                if RecipeSource::is_built_in(name) {
                    format!("; `arnia image build {name}` makes this one")
                } else {
                    String::new()
                }
            )),
            _ => error.into(),
        })
    }

    pub(crate) fn image(&self, name: &str) -> Result<ImageView, Error> {
        Ok(self.images.view(self.image_digest(name)?)?)
    }

    pub(crate) fn image_list(&self) -> Result<Vec<ImageView>, Error> {
        Ok(self.images.list()?)
    }

    /// Makes an image, as an operation.
    pub(crate) fn image_create(
        self: &Arc<App>,
        caller: &Caller,
        project: &str,
        params: ImageParams,
    ) -> Result<Operation, Error> {
        let mut login = None;
        // What cannot be is refused now and not when it has begun.
        let (name, request) = match params {
            ImageParams::Build(build) => {
                (recipe(&build.recipe)?.recipe.name.to_string(), Request::ImageBuild { params: build })
            }
            ImageParams::Pull(mut pull) => {
                Place::parse(&pull.place)?;
                login = pull.login.take();
                if login.as_ref().is_some_and(|login| login.user.contains(':')) {
                    return Err(Error::new(ErrorCode::Invalid, "a registry's user has no colon in the name"));
                }
                trusted(&pull)?;
                let name = pull.name.as_deref().map(image_name).transpose()?;
                let name = name.map_or_else(|| pull.place.clone(), |name| name.to_string());
                (name, Request::ImagePull { params: pull, with_login: login.is_some() })
            }
            ImageParams::Publish(publish) => {
                let name = image_name(&publish.name)?.to_string();
                let vm = self.read(|records| Ok(records.vm(project, &publish.vm)?))?;
                if vm.origin.is_none() {
                    let message = format!("the virtual machine {:?} does not come from an image", vm.name);
                    return Err(Error::new(ErrorCode::Invalid, message)
                        .with_remedy("import its disk with `arnia image import`"));
                }
                (name, Request::ImagePublish { vm: vm.id, params: publish })
            }
        };
        let target = Target { kind: "image".into(), id: name.clone(), name };
        let record = self.write(|records| self.plan(records, caller, project, target, &request))?;
        if let Some(login) = login {
            lock(&self.logins).insert(record.view.id.clone(), login);
        }
        Ok(self.run_operation(record))
    }

    /// Takes a name away, and the image if nothing else needs it.
    pub(crate) async fn image_delete(self: &Arc<App>, name: &str) -> Result<(), Error> {
        self.image_digest(name)?;
        self.images.remove_name(&image_name(name)?)?;
        self.sweep().await;
        let store = self.images.clone();
        // Blobs may be large, and removing them takes its time.
        let pruned = tokio::task::spawn_blocking(move || store.prune(PruneOptions::default())).await;
        match pruned.map_err(|e| Error::internal("what the image had to itself may have stayed", e))? {
            // Whatever is being built or pulled just now: the next removal takes it away.
            Err(error) if error.kind() == image::ErrorKind::Busy => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }

    pub(super) async fn image_build(&self, params: ImageBuild, work: &Arc<Work>) -> Result<(), Error> {
        let agent = self.config.agent.clone().ok_or_else(|| {
            Error::new(
                ErrorCode::Unsupported,
                "the program arnia-agent, which goes into images, is not to be found",
            )
            .with_remedy(
                "put it beside arnia, or name it in the variable ARNIA_AGENT, and start the daemon anew",
            )
        })?;
        let programs = Programs { worker: self.config.worker.clone(), agent };
        let options = BuildOptions { no_cache: params.no_cache, cpus: BUILD_CPUS };
        self.with_images(work, move |store, watch| {
            build(store, &recipe(&params.recipe)?, &programs, &options, watch).map(drop)
        })
        .await
    }

    /// Makes an image of a machine: one that runs forgets who it is and shuts down first.
    pub(super) async fn image_publish(
        self: &Arc<App>,
        id: &str,
        params: ImagePublish,
        work: &Arc<Work>,
    ) -> Result<(), Error> {
        let vm = self.read(|records| Ok(records.vm_by_id(id)?))?;
        if self.machine(id).process().is_some() {
            work.begin("generalising the guest", None);
            self.guest_ask(&vm, |agent| agent.generalise()).await.map_err(|e| {
                e.with_remedy(format!("shut it down with `arnia stop {}`, and it is taken as it is", vm.name))
            })?;
            self.stop(id, StopParams::default()).await?;
        }
        // Nobody starts it meanwhile.
        let machine = self.machine(id);
        let _lifecycle = machine.lifecycle.lock().await;
        if machine.state().is_active() {
            let message = format!("the virtual machine {:?} was started meanwhile", vm.name);
            return Err(Error::new(ErrorCode::WrongState, message).with_remedy("stop it, and try again"));
        }
        let folder = self.instance_folder(id);
        if !folder.join(image::INSTANCE_FILE).exists() {
            let message = format!("the virtual machine {:?} has not been started yet", vm.name);
            return Err(Error::new(ErrorCode::WrongState, message)
                .with_remedy("it is what its image is: give that another name instead"));
        }
        let (instance, name) = (Instance::load(&folder)?, image_name(&params.name)?);
        self.with_images(work, move |store, watch| {
            image::publish(store, &instance, &name, &params.description, watch).map(drop)
        })
        .await
    }

    pub(super) async fn image_pull(
        &self,
        params: ImagePull,
        login: Option<RegistryLogin>,
        work: &Arc<Work>,
    ) -> Result<(), Error> {
        let name = params.name.as_deref().map(image_name).transpose()?;
        let keys = trusted(&params)?;
        self.with_images(work, move |store, watch| {
            let login =
                login.map(|RegistryLogin { user, password }| transfer::RegistryLogin { user, password });
            let options = PullOptions { name, keys, login };
            pull(store, &Place::parse(&params.place)?, &options, watch).map(drop)
        })
        .await
    }

    /// Does something with the store that takes its time.
    pub(super) async fn with_images<T: Send + 'static>(
        &self,
        work: &Arc<Work>,
        act: impl FnOnce(&Store, &mut Watch) -> image::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (store, mut watch) = (self.images.clone(), Watch(work.clone()));
        let done = tokio::task::spawn_blocking(move || act(&store, &mut watch)).await;
        Ok(done.map_err(|e| Error::internal("the work on an image was lost", e))??)
    }
}

/// The keys of which one must have signed an image that is fetched; none if it need not be signed.
fn trusted(pull: &ImagePull) -> Result<Vec<TrustedKey>, Error> {
    let invalid = |text: String| Error::new(ErrorCode::Invalid, text);
    match (pull.allow_unsigned, pull.keys.as_slice()) {
        (true, []) => Ok(Vec::new()),
        (true, _) => Err(invalid("`keys` and `allow_unsigned` contradict each other".into())),
        (false, []) => Ok(TrustedKey::all(&TrustedKey::default_folder())?),
        (false, keys) if keys.len() > KEYS_MAX => {
            Err(invalid(format!("{} keys are too many: {KEYS_MAX} are the most", keys.len())))
        }
        (false, keys) => keys.iter().map(|text| Ok(TrustedKey::from_text(text)?)).collect(),
    }
}

fn image_name(text: &str) -> Result<ImageName, Error> {
    text.parse().map_err(|message: String| Error::new(ErrorCode::Invalid, message))
}

/// The recipe that is meant: one that the program brings along, or its text. Never a file of the host.
fn recipe(text: &str) -> image::Result<RecipeSource> {
    RecipeSource::from_text(text)
}
