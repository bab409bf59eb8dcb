//! The machine layer: files and commands of a recipe, in a virtual machine that boots the base layer.

use std::fs::{self, File};

use agent_client::{Agent, Command, GuestFiles, tree};
use api::agent::Exit;
use api::image::PersonalitySource;
use api::worker::config::DiskConfig;

use super::{BuildOptions, Key, Layer, Programs};
use crate::error::AboutFile;
use crate::files::{self, RemoveUnlessKept};
use crate::machine::{Machine, Wanted, run_command};
use crate::progress::Progress;
use crate::recipe::{Base, Recipe, RecipePersonality, RecipeSource};
use crate::{Error, Result, Session};

/// Whether a recipe asks for anything that takes a machine.
pub(super) fn is_needed(recipe: &Recipe) -> bool {
    !recipe.files.is_empty()
        || !recipe.run.is_empty()
        || !late_packages(recipe).is_empty()
        || grows(recipe)
        || identity(recipe).is_some()
}

/// The command that lets another than the base's own program give instances their identity.
fn identity(recipe: &Recipe) -> Option<&'static str> {
    match (&recipe.from, recipe.personality) {
        (Base::Debian(_), _) | (_, None) => None,
        (_, Some(RecipePersonality::Agent)) => Some("systemctl enable arnia-firstboot.service"),
        (_, Some(RecipePersonality::CloudInit)) => {
            Some("command -v cloud-init; systemctl disable arnia-firstboot.service")
        }
    }
}

/// Packages that are not in the base.
fn late_packages(recipe: &Recipe) -> &[String] {
    match recipe.from {
        Base::Debian(_) => &[],
        Base::Image(_) => &recipe.packages,
    }
}

/// Whether the disk is to be larger than the base's, which it can become only in a machine.
fn grows(recipe: &Recipe) -> bool {
    matches!(recipe.from, Base::Image(_)) && recipe.disk.is_some()
}

pub(super) fn key(source: &RecipeSource, below: &Layer) -> Result<String> {
    let recipe = &source.recipe;
    let mut key = Key::new("machine").text(&format!("{below:?}")).text(&format!("{:?}", recipe.disk));
    key = key.text(&late_packages(recipe).join(" "));
    for file in &recipe.files {
        key = key.text(&format!("{file:?}"));
        if let Some(path) = &file.source {
            key = key.file(&source.file(path))?;
        }
    }
    for command in recipe.run.iter().map(String::as_str).chain(identity(recipe)) {
        key = key.text(command);
    }
    Ok(key.finish())
}

pub(super) fn build(
    session: &Session<'_>,
    source: &RecipeSource,
    below: &Layer,
    programs: &Programs,
    options: &BuildOptions,
    progress: &mut dyn Progress,
) -> Result<Layer> {
    let recipe = &source.recipe;
    needs_agent(below, "files and commands need")?;
    let folder = session.partial("machine");
    let _undo = RemoveUnlessKept::new(&folder);
    fs::create_dir(&folder).about("create", &folder)?;
    let disk = folder.join("disk.img");
    progress.begin("copying the base", Some(below.disk.size));
    files::copy_sparse(&session.store().blob_path(&below.disk)?, &disk, progress)?;
    if let Some(size) = recipe.disk {
        if size.0 < below.disk.size {
            let text =
                format!("the disk of {} bytes is smaller than the base's of {}", size.0, below.disk.size);
            return Err(Error::bad_input(text));
        }
        File::options()
            .write(true)
            .open(&disk)
            .and_then(|file| file.set_len(size.0))
            .about("write", &disk)?;
    }
    let wanted = Wanted {
        kernel: &below.kernel,
        initrd: below.initrd.as_ref(),
        append: &below.append,
        disks: vec![DiskConfig::new(&disk)],
        cpus: options.cpus,
        network: true,
    };
    let machine = Machine::start(session, wanted, &folder, &programs.worker)?;
    machine.carry_out(progress, |machine, progress| work(machine, source, progress))?;
    progress.begin("taking the disk", Some(recipe.disk.map_or(below.disk.size, |size| size.0)));
    Ok(Layer { disk: session.take_file(&disk, progress)?, ..below.clone() })
}

/// Refuses what is done by the agent on a base that does not have it.
pub(super) fn needs_agent(below: &Layer, what: &str) -> Result<()> {
    match below.personality {
        PersonalitySource::Agent => Ok(()),
        _ => Err(Error::bad_input(format!("{what} a base with the guest agent"))
            .with_remedy("begin with an image that arnia built, such as debian")),
    }
}

fn work(machine: &Machine, source: &RecipeSource, progress: &mut dyn Progress) -> Result<()> {
    let recipe = &source.recipe;
    for file in &recipe.files {
        progress.begin(&format!("writing {}", file.path), None);
        write_file(&machine.agent, source, file, progress)?;
    }
    let mut commands = Vec::new();
    let packages = late_packages(recipe);
    if !packages.is_empty() {
        commands.push("apt-get update --quiet".to_owned());
        let install = "DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends";
        commands.push(format!("{install} {}", packages.join(" ")));
    }
    commands.extend(recipe.run.iter().cloned());
    commands.extend(identity(recipe).map(str::to_owned));
    if !commands.is_empty() {
        machine.wait_until_online(progress)?;
    }
    for command in &commands {
        progress.begin(&format!("running {}", first_line(command)), None);
        match run_command(&machine.agent, command, progress)? {
            (Exit::Status(0), _) => {}
            (exit, last) => {
                let how = match exit {
                    Exit::Status(status) => format!("status {status}"),
                    Exit::Signal(signal) => format!("signal {signal}"),
                };
                let text = format!(
                    "the command `{}` ended with {how}; it said last:\n  {last}",
                    first_line(command)
                );
                return Err(Error::failed(text));
            }
        }
    }
    progress.begin("making a template of it", None);
    if !packages.is_empty() {
        run_command(&machine.agent, "apt-get clean; rm -rf /var/lib/apt/lists/*", progress)?;
    }
    machine
        .agent
        .generalise()
        .map_err(|error| Error::failed("cannot make a template of the machine").with_source(error))
}

fn first_line(command: &str) -> String {
    let line = command.trim().lines().next().unwrap_or_default();
    if line.chars().count() > 60 {
        line.chars().take(57).chain("...".chars()).collect()
    } else {
        line.to_owned()
    }
}

fn write_file(
    agent: &Agent,
    source: &RecipeSource,
    file: &crate::recipe::RecipeFile,
    progress: &mut dyn Progress,
) -> Result<()> {
    let failed =
        |error: agent_client::Error| Error::failed(format!("cannot write {}", file.path)).with_source(error);
    if let Some((parent, _)) = file.path.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) {
        agent.make_folder(parent, None).map_err(failed)?;
    }
    match (&file.content, &file.source) {
        (Some(content), _) => {
            let attributes = agent_client::FileAttributes { mode: file.mode_bits()?, ..Default::default() };
            agent.write_file(&file.path, &attributes, &mut content.as_bytes()).map_err(failed)
        }
        (None, Some(path)) => {
            let path = source.file(path);
            tree::copy_in(agent, &path, &file.path, &mut |bytes| progress.advance(bytes)).map_err(failed)?;
            match file.mode_bits()? {
                Some(mode) => {
                    let chmod = Command::new(["chmod", "--", &format!("{mode:o}"), &file.path]);
                    agent.run(&chmod).map(drop).map_err(failed)
                }
                None => Ok(()),
            }
        }
        (None, None) => Ok(()),
    }
}
