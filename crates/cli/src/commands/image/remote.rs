//! Images of a daemon that is not this user's own: by its API, as far as that goes.

use super::{Command, build, explain, keep, list, moving};
use crate::registry::login;
use crate::{Context, Error, progress};
use api::image::{ImageName, ImageView};
use api::v1::image::{ImageBuild, ImageParams, ImagePull, RegistryLogin};
use client::Client;
use image::recipe::RecipeSource;
use image::sign::TrustedKey;
use image::transfer::Place;

impl Command {
    /// Does it by the API.
    pub(super) async fn act_by_api(&self, client: &Client, context: &Context) -> Result<(), Error> {
        match self {
            Command::Ls(_) => list::table(&client.images().await?, context),
            Command::Info(info) => list::details(&client.image(&info.image).await?, context),
            Command::Rm(rm) => remove(rm, client, context).await,
            Command::Build(command) => {
                let digest = build(command, client).await?;
                list::told(&client.image(&digest).await?, context, "built")
            }
            Command::Pull(command) => {
                let image = pull(command, client).await?;
                list::told(&image, context, "pulled")
            }
            Command::Prune(_) => {
                Err(only_there("freed from room that nobody needs", "run `arnia image prune` on its host"))
            }
            Command::Push(_) | Command::Sign(_) | Command::Verify(_) | Command::Export(_) => {
                Err(only_there("sent, written, signed or verified from here", "do it on its host"))
            }
            Command::Import(_) => Err(only_there(
                "made of this host's files",
                "import the file here, push the image to a registry or a web server, and pull it there; \
                 or `--context local`",
            )),
            // Neither is about a store that is there already.
            Command::Keygen(_) | Command::Publish(_) => Ok(()),
        }
    }
}

fn only_there(what: &str, remedy: &str) -> Error {
    Error::bad_input(format!("images of another daemon cannot be {what}")).with_remedy(remedy.to_owned())
}

async fn remove(rm: &keep::Rm, client: &Client, context: &Context) -> Result<(), Error> {
    // All of them before any is touched.
    let names = rm.names.iter().map(|text| text.parse::<ImageName>().map_err(Error::bad_input));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let mut images = Vec::new();
    for name in &names {
        images.push(client.image(&name.to_string()).await?);
    }
    for (name, image) in names.iter().zip(&images) {
        client.image_delete(&name.to_string()).await?;
        context.output.say(&keep::removed(name, image.pinned_by.len()))?;
    }
    Ok(())
}

async fn build(command: &build::Build, client: &Client) -> Result<String, Error> {
    if command.install_tools || command.verbose || command.cpus.is_some() {
        return Err(Error::bad_input("--cpus, --verbose and --install-tools are for builds on this host")
            .with_remedy("leave them away, or build it on the other host".to_owned()));
    }
    let source = RecipeSource::read(&command.recipe).map_err(explain)?;
    if let Some(file) = source.recipe.files.iter().find(|file| file.source.is_some()) {
        return Err(Error::bad_input(format!(
            "{} is copied from a file, which the other host does not have",
            file.path
        ))
        .with_remedy(
            "put the text into the recipe (content), or build it here and push it to a registry".to_owned(),
        ));
    }
    let recipe = match RecipeSource::is_built_in(&command.recipe) {
        true => command.recipe.clone(),
        false => std::fs::read_to_string(&command.recipe).map_err(|error| {
            Error::failed(format!("the recipe {} cannot be read", command.recipe)).with_source(error)
        })?,
    };
    let params = ImageParams::Build(ImageBuild { recipe, no_cache: command.no_cache });
    let name = source.recipe.name.to_string();
    let operation = client.image_create(&params).await?;
    progress::watched(client, operation, &format!("building {name}")).await?;
    Ok(name)
}

async fn pull(command: &moving::Pull, client: &Client) -> Result<ImageView, Error> {
    let place = Place::parse(&command.place).map_err(explain)?;
    let name = command.name.clone().or_else(|| place.default_name());
    let name = name.ok_or_else(|| {
        Error::bad_input(format!("{} gives the image no name", command.place))
            .with_remedy("give it one: --name NAME".to_owned())
    })?;
    // Without a word, those decide whom the daemon's user trusts.
    let trust = &command.trust;
    fetch_there(client, &command.place, &name, &trust.given()?, trust.allow_unsigned).await?;
    Ok(client.image(&name.to_string()).await?)
}

/// Has a daemon fetch an image, which one of the keys must have signed; without any, one that the daemon's user trusts.
pub(crate) async fn fetch_there(
    client: &Client,
    place: &str,
    name: &ImageName,
    keys: &[TrustedKey],
    allow_unsigned: bool,
) -> Result<(), Error> {
    let params = ImageParams::Pull(ImagePull {
        place: place.to_owned(),
        name: Some(name.to_string()),
        allow_unsigned,
        keys: keys.iter().map(TrustedKey::to_text).collect(),
        login: login(place)?.map(|login| RegistryLogin { user: login.user, password: login.password }),
    });
    let operation = client.image_create(&params).await?;
    progress::watched(client, operation, &format!("fetching {place}")).await?;
    Ok(())
}
