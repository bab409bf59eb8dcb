//! Images from recipe to machine: built from packages, extended in a virtual machine, and started twice.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command as HostCommand, Stdio};
use std::time::{Duration, Instant};

use agent_client::{Agent, Command};
use anyhow::{Context, Result, ensure};
use api::agent::{Exit, Provision, ShutdownMode, UserAccount};
use api::worker::config::{CharDevice, VmConfig, VsockConfig};
use image::build::{BuildOptions, Programs, build, missing_tools};
use image::recipe::RecipeSource;
use image::{Instance, InstanceParams, Progress, Store};
use vm_test::agent::{AgentFiles, VsockPath};
use vm_test::{Case, KillOnDrop, Patience, Suite, worker_path};

pub(crate) fn add(suite: &mut Suite) {
    suite.engineless_test("images::built_extended_and_started_twice", built_extended_and_started_twice);
}

/// What a build did, in order.
#[derive(Default)]
struct Steps(Vec<String>);

impl Progress for Steps {
    fn begin(&mut self, what: &str, _: Option<u64>) {
        self.0.push(what.to_owned());
    }

    fn advance(&mut self, _: u64) {}
}

fn built_extended_and_started_twice(case: &Case) -> Result<()> {
    if let Some(missing) = missing_tools() {
        anyhow::bail!("building images takes more than this host has; run: {}", missing.command());
    }
    // Kept beside the guests: the base takes minutes and changes seldom.
    let guests = PathBuf::from(std::env::var_os("ARNIA_GUESTS").context("ARNIA_GUESTS")?);
    let folder = guests.parent().and_then(Path::parent).context("a cache")?.join("images");
    let store = Store::open(std::env::var_os("ARNIA_IMAGES").map_or(folder, PathBuf::from))?;
    let programs = Programs { worker: worker_path()?, agent: AgentFiles::from_env()?.program() };
    let source = case.path("web.yaml");
    fs::write(
        &source,
        "name: web:test\nfrom: {image: \"debian:12\"}\nfiles:\n  - {path: /etc/motd, content: \"made by recipe\\n\"}\n  \
         - {path: /opt/tool, source: tool, mode: \"0755\"}\nrun:\n  - /opt/tool > /opt/said\n  - test -s /opt/said\n",
    )?;
    fs::write(case.path("tool"), "#!/bin/sh\nuname -m\n")?;
    let options = BuildOptions::default();
    let debian = RecipeSource::read("debian")?;
    build(&store, &debian, &programs, &options, &mut Steps::default())?;
    let recipe = RecipeSource::read(source.to_str().context("UTF-8")?)?;
    let image = build(&store, &recipe, &programs, &options, &mut Steps::default())?;
    let mut again = Steps::default();
    ensure!(
        build(&store, &recipe, &programs, &options, &mut again)? == image,
        "the same recipe, another image"
    );
    ensure!(again.0 == ["using what the last build left"], "the second build did {:?}", again.0);

    // A command that fails says so and gives nothing a name.
    fs::write(&source, "name: web:bad\nfrom: {image: \"web:test\"}\nrun: ['echo why; exit 3']\n")?;
    let bad = RecipeSource::read(source.to_str().context("UTF-8")?)?;
    let error = build(&store, &bad, &programs, &options, &mut Steps::default()).err().context("it is bad")?;
    ensure!(error.to_string().contains("status 3") && error.to_string().contains("why"), "it says {error}");
    ensure!(store.by_name(&bad.recipe.name).is_err(), "a failed build got a name");

    let one = Started::new(&store, image, case, "one")?;
    let two = Started::new(&store, image, case, "two")?;
    let (first, second) = (one.facts()?, two.facts()?);
    for (name, index) in [("hostname", 0), ("machine-id", 1), ("SSH host key", 2), ("MAC", 3), ("UUID", 4)] {
        ensure!(
            !first[index].is_empty() && first[index] != second[index],
            "both have the {name} {}",
            first[index]
        );
    }
    ensure!(first[0] == "one" && second[0] == "two", "they call themselves {} and {}", first[0], second[0]);
    ensure!(first[1] == one.instance.uuid.replace('-', ""), "the machine-id is {}", first[1]);
    ensure!(first[3] == one.instance.mac, "the MAC is {}", first[3]);
    ensure!(first[5] == "made by recipe\nx86_64\n1000", "the recipe's files and the user: {:?}", first[5]);
    one.finish(&store)?;
    two.finish(&store)
}

/// An instance that runs.
struct Started {
    instance: Instance,
    folder: PathBuf,
    agent: Agent,
    child: KillOnDrop,
    _socket: VsockPath,
}

impl Started {
    fn new(store: &Store, image: api::image::Digest, case: &Case, name: &str) -> Result<Started> {
        let folder = case.path(name);
        let user = UserAccount { name: "ann".into(), administrator: true, ..UserAccount::default() };
        let provision = Provision { users: vec![user], ..Provision::default() };
        let params = InstanceParams { name: name.into(), provision, ..InstanceParams::default() };
        let instance = Instance::create(store, image, &folder, &params, &mut image::Silent)?;
        let socket = VsockPath::unique();
        let config = VmConfig {
            serial: CharDevice::File(case.path(&format!("{name}.console.log"))),
            vsock: Some(VsockConfig { cid: 3, socket: socket.path().to_owned() }),
            ..instance.vm_config()?
        };
        let path = folder.join("machine.json");
        fs::write(&path, serde_json::to_vec(&config)?)?;
        let errors = File::create(case.path(&format!("{name}.stderr.log")))?;
        let mut command = HostCommand::new(worker_path()?);
        command.arg("--config").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let child = KillOnDrop(command.spawn().context("the worker")?);
        let agent = socket.agent()?;
        Ok(Started { instance, folder, agent, child, _socket: socket })
    }

    /// Hostname, machine-id, SSH host key, MAC, UUID, and what the recipe and the seed brought.
    fn facts(&self) -> Result<[String; 6]> {
        // The SSH server's own view: it starts when the identity has been taken.
        let settled = self.agent.run(&Command::shell("systemctl is-system-running --wait"))?;
        ensure!(settled.text() == "running", "the system is {}", settled.text());
        let commands = [
            "hostname",
            "cat /etc/machine-id",
            "cut -d ' ' -f 2 /etc/ssh/ssh_host_ed25519_key.pub",
            "cat /sys/class/net/e*/address",
            "cat /sys/class/dmi/id/product_uuid",
            "cat /etc/motd /opt/said && id -u ann && test -f /etc/sudoers.d/90-arnia-ann",
        ];
        let mut facts: [String; 6] = Default::default();
        for (fact, command) in facts.iter_mut().zip(commands) {
            let finished = self.agent.run(&Command::shell(command))?;
            ensure!(finished.exit == Exit::Status(0), "`{command}` failed: {finished:?}");
            *fact = finished.text();
        }
        Ok(facts)
    }

    /// Shuts it down and removes it.
    fn finish(mut self, store: &Store) -> Result<()> {
        self.agent.shutdown(ShutdownMode::Poweroff, false)?;
        let deadline = Instant::now() + Patience::Shutdown.limit();
        while self.child.0.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "it does not shut down");
            std::thread::sleep(Duration::from_millis(20));
        }
        Instance::remove(store, &self.folder)?;
        Ok(())
    }
}
