//! The machine layer: files and commands of a recipe, in a virtual machine that boots the base layer.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as HostCommand, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use agent_client::{Agent, Command, ExecEvent, tree};
use api::ByteSize;
use api::agent::{Exit, ShutdownMode};
use api::image::PersonalitySource;
use api::worker::config::{CharDevice, DiskConfig, NetConfig, OnReset, UserNetConfig, VmConfig, VsockConfig};

use super::{BuildOptions, Key, Layer, Programs};
use crate::error::AboutFile;
use crate::files::{self, RemoveUnlessKept};
use crate::progress::{self, Progress};
use crate::recipe::{Base, Recipe, RecipeSource};
use crate::{Error, Result, Session};

/// How long the machine may take to boot: engines in software on busy hosts take their time.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// And to shut down.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(300);
/// Memory of the machine.
const MEMORY: ByteSize = ByteSize(1 << 30);
/// How much of the console is shown when the machine fails.
const CONSOLE_TAIL: u64 = 2000;

/// Whether a recipe asks for anything that takes a machine.
pub(super) fn is_needed(recipe: &Recipe) -> bool {
    !recipe.files.is_empty() || !recipe.run.is_empty() || !late_packages(recipe).is_empty() || grows(recipe)
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
    for command in &recipe.run {
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
    if below.personality != PersonalitySource::Agent {
        return Err(Error::bad_input("files and commands need a base with the guest agent")
            .with_remedy("begin with an image that arnia built, such as debian"));
    }
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
    let mut machine = Machine::start(session, below, &folder, &disk, programs, options)?;
    let result = work(&machine, source, progress).and_then(|()| machine.finish(progress));
    if let Err(error) = result {
        let console = machine.console_tail();
        return Err(if error.kind() == crate::ErrorKind::Cancelled {
            error
        } else {
            machine.explain(error, &console)
        });
    }
    progress.begin("taking the disk", Some(recipe.disk.map_or(below.disk.size, |size| size.0)));
    Ok(Layer { disk: session.take_file(&disk, progress)?, ..below.clone() })
}

fn work(machine: &Machine, source: &RecipeSource, progress: &mut dyn Progress) -> Result<()> {
    let recipe = &source.recipe;
    progress.begin("booting a virtual machine", None);
    machine.wait_until_ready(progress)?;
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
    if !commands.is_empty() {
        progress.begin("waiting for the machine's network", None);
        // Commands that need none must not fail for lack of it.
        let online = "systemctl is-system-running --wait >/dev/null 2>&1 || true";
        run_command(&machine.agent, online, progress)?;
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

/// Runs a command, passing on what it says. Returns how it ended and its last lines.
fn run_command(agent: &Agent, command: &str, progress: &mut dyn Progress) -> Result<(Exit, String)> {
    let failed = |error: agent_client::Error| Error::failed("the machine was lost").with_source(error);
    let params = Command::new(["sh", "-eu", "-c", command]).params;
    let (mut input, mut output) = agent.exec(&params).map_err(failed)?.split();
    input.close().map_err(failed)?;
    let mut last: Vec<String> = Vec::new();
    let mut line = Vec::new();
    loop {
        progress::check(progress)?;
        let bytes = match output.next_event().map_err(failed)? {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => bytes,
            ExecEvent::Exited(exit) => {
                last.extend((!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned()));
                return Ok((exit, last.join("\n  ")));
            }
        };
        for byte in bytes {
            if byte != b'\n' && line.len() < 4096 {
                line.push(byte);
                continue;
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            progress.line(&text);
            last.push(text);
            if last.len() > 15 {
                last.remove(0);
            }
            line.clear();
        }
    }
}

/// The virtual machine of a build. Dropping it ends it.
struct Machine {
    child: Child,
    agent: Agent,
    console: PathBuf,
    messages: PathBuf,
    _socket: RemoveUnlessKept,
}

impl Machine {
    fn start(
        session: &Session<'_>,
        layer: &Layer,
        folder: &Path,
        disk: &Path,
        programs: &Programs,
        options: &BuildOptions,
    ) -> Result<Machine> {
        // Sockets have short path limits, and the store's folder may lie deep.
        let socket =
            std::env::temp_dir().join(format!("arnia-build-{}-{}", std::process::id(), disk_number(folder)));
        let (console, messages) = (folder.join("console.log"), folder.join("messages.log"));
        let mut config = VmConfig::new(session.store().blob_path(&layer.kernel)?);
        config.initrd = layer.initrd.map(|initrd| session.store().blob_path(&initrd)).transpose()?;
        config.append = format!("{} panic=-1", layer.append);
        config.cpus = options.cpus.max(1);
        config.memory = MEMORY;
        config.on_reset = OnReset::Exit;
        config.serial = CharDevice::File(console.clone());
        config.vsock = Some(VsockConfig { cid: 3, socket: socket.clone() });
        config.nets = vec![NetConfig::User(UserNetConfig::default())];
        config.disks = vec![disk_config(disk)?];
        let path = folder.join("machine.json");
        let text = serde_json::to_vec_pretty(&config)
            .map_err(|error| Error::failed("cannot describe the machine").with_source(error))?;
        fs::write(&path, text).about("write", &path)?;
        let errors = File::create(&messages).about("create", &messages)?;
        let mut command = HostCommand::new(&programs.worker);
        command.arg("--config").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        // A machine of a build that was killed is of no use to anybody.
        let end_with_parent =
            || Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?);
        // SAFETY: between fork and exec it makes one system call and nothing else.
        unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, end_with_parent) };
        let child = command.spawn().about("start", &programs.worker)?;
        let agent = Agent::of_worker(&socket);
        Ok(Machine { child, agent, console, messages, _socket: RemoveUnlessKept::new(&socket) })
    }

    fn wait_until_ready(&self, progress: &mut dyn Progress) -> Result<()> {
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            progress::check(progress)?;
            match self.agent.wait_until_ready(Duration::from_secs(1)) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(Error::failed("the virtual machine does not come up").with_source(error));
                }
                Err(_) => {}
            }
            // The child's state says at once what a wait would find out late.
            if self.has_ended() {
                return Err(Error::failed("the virtual machine ended while it booted"));
            }
        }
    }

    fn has_ended(&self) -> bool {
        rustix::process::Pid::from_raw(self.child.id().cast_signed()).is_none_or(|pid| {
            let options = rustix::process::WaitIdOptions::EXITED
                | rustix::process::WaitIdOptions::NOHANG
                | rustix::process::WaitIdOptions::NOWAIT;
            !matches!(rustix::process::waitid(rustix::process::WaitId::Pid(pid), options), Ok(None))
        })
    }

    /// Shuts the machine down in order, so that its disk is whole.
    fn finish(&mut self, progress: &mut dyn Progress) -> Result<()> {
        progress.begin("shutting the machine down", None);
        let failed = |error| Error::failed("cannot shut the machine down").with_source(error);
        self.agent.shutdown(ShutdownMode::Poweroff, false).map_err(failed)?;
        let deadline = Instant::now() + SHUTDOWN_LIMIT;
        loop {
            progress::check(progress)?;
            let status = self
                .child
                .try_wait()
                .map_err(|error| Error::failed("the worker was lost").with_source(error))?;
            match status {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(Error::failed(format!("the virtual machine failed ({status})"))),
                None if Instant::now() > deadline => {
                    return Err(Error::failed("the machine does not shut down"));
                }
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn console_tail(&self) -> String {
        let tail = |path: &Path| -> std::io::Result<String> {
            let mut file = File::open(path)?;
            let len = file.metadata()?.len();
            file.seek(SeekFrom::Start(len.saturating_sub(CONSOLE_TAIL)))?;
            let mut bytes = Vec::new();
            file.take(CONSOLE_TAIL).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
        };
        [&self.messages, &self.console].map(|path| tail(path).unwrap_or_default()).join("")
    }

    fn explain(&self, error: Error, console: &str) -> Error {
        if self.has_ended() && !console.trim().is_empty() {
            let text = format!("{error}; the last that came from it:\n{}", console.trim_end());
            return Error::new(error.kind(), text);
        }
        error
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn disk_config(path: &Path) -> Result<DiskConfig> {
    // By way of its written form: fields with defaults may be added to it.
    serde_json::from_value(serde_json::json!({ "path": path }))
        .map_err(|error| Error::failed("cannot describe the disk").with_source(error))
}

/// The number that makes the build's folder a folder of its own.
fn disk_number(folder: &Path) -> String {
    folder
        .file_name()
        .and_then(|name| name.to_str()?.rsplit('-').next().map(str::to_owned))
        .unwrap_or_default()
}
