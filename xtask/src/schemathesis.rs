//! schemathesis (PyPI) against the daemon's API: what it makes up from the OpenAPI document must never be a server
//! error. Bounded in time; the daemon is one of its own, at a port of the loopback.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::Workspace;
use crate::{host, pypi};

/// The version that the options below are those of.
const PACKAGE: &str = "schemathesis==4.32.5";
/// Seconds of each of the two large passes.
const PASS_SECONDS: u32 = 120;
/// All requests are made by this user, and this one is there to be changed and removed. What is made up is partly taken from
/// answers, so that the tester would be found as well: what could end it has a pass of its own, with the victim's names.
const TESTER: &str = "tester";
const VICTIM: &str = "victim";
const OF_ACCESS: &[&str] = &["user_update", "user_delete", "token_delete"];
/// By these the machine that the second pass is about would be gone.
const OF_THE_MACHINE: &[&str] = &["vm_delete", "vm_rename"];

/// Runs all passes: with made-up names, with names of what is there, and what takes access away.
///
/// # Errors
/// If an answer is a server error, with the request.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let folder = workspace.target().join("schemathesis");
    let program = pypi::install(&folder, PACKAGE, "schemathesis")?;
    let home = std::env::temp_dir().join(format!("arnia-schemathesis-{}", std::process::id()));
    let mut daemon = Daemon::start(workspace, home)?;
    let document = workspace.root().join("openapi/v1.json");
    // Streams of events end by themselves: nobody would wait for the others.
    let made_up = "[parameters]\n\"query.seconds\" = 0\n".to_owned();
    let there =
        [("vm", "web"), ("volume", "data"), ("port", "8080"), ("user", VICTIM), ("token", &daemon.victim)];
    let there = there.map(|(name, value)| format!("\"path.{name}\" = \"{value}\"\n"));
    let names = format!("{made_up}{}", there.concat());
    let everything = Operations::AllBut(OF_ACCESS.to_vec());
    let without_removal = Operations::AllBut([OF_ACCESS, OF_THE_MACHINE].concat());
    let access = Operations::Only(OF_ACCESS.to_vec());
    for (pass, names, operations, seconds) in [
        ("made-up", &made_up, everything, PASS_SECONDS),
        ("there", &names, without_removal, PASS_SECONDS),
        ("access", &names, access, PASS_SECONDS / 4),
    ] {
        let file = folder.join(format!("{pass}.toml"));
        fs::write(&file, names)?;
        let mut command = Command::new(&program);
        command.arg("--config-file").arg(file);
        command.arg("run").arg(&document).args(["--url", &daemon.url, "--tls-verify", "false"]);
        command.args(["--header", &format!("Authorization: Bearer {}", daemon.token)]);
        command.args(["--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing"]);
        command.args(["--max-examples", "20", "--max-time", &seconds.to_string(), "--seed", "1"]);
        command.args(["--request-timeout", "60", "--continue-on-failure", "--no-color", "--warnings", "off"]);
        let (option, which) = match &operations {
            Operations::AllBut(which) => ("--exclude-operation-id", which),
            Operations::Only(which) => ("--include-operation-id", which),
        };
        for name in which {
            command.args([option, name]);
        }
        let passed = host::run(command.current_dir(&folder));
        // Whatever else is wrong: one that has died tells why in its log.
        ensure!(
            daemon.child.try_wait()?.is_none(),
            "the daemon has ended; look at {}/daemon.log",
            folder.display()
        );
        passed?;
        daemon.still_trusts()?;
    }
    Ok(())
}

/// Which operations a pass is about.
enum Operations {
    AllBut(Vec<&'static str>),
    Only(Vec<&'static str>),
}

struct Daemon {
    child: Child,
    program: PathBuf,
    worker: PathBuf,
    home: PathBuf,
    url: String,
    token: String,
    /// The identity of a token of [`VICTIM`].
    victim: String,
}

impl Daemon {
    /// Whether requests were made by somebody who may all: one that has lost its rights finds no server errors.
    fn still_trusts(&self) -> Result<()> {
        let users = host::output(&mut self.arnia(&["user", "ls", "-o", "json"]))?;
        let users: serde_json::Value = serde_json::from_str(&users)?;
        let tester = users.as_array().into_iter().flatten().find(|user| user["name"] == TESTER);
        let is_admin = tester.is_some_and(|user| user["grants"].to_string().contains("admin"));
        let tokens = host::output(&mut self.arnia(&["token", "ls", "-o", "json"]))?;
        ensure!(is_admin && tokens.contains(TESTER), "the tester has lost its rights: {users}");
        Ok(())
    }

    fn arnia(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).env("ARNIA_HOME", &self.home).env("ARNIA_VMM", &self.worker);
        command
    }

    fn start(workspace: &Workspace, home: PathBuf) -> Result<Daemon> {
        fs::create_dir_all(&home)?;
        // Free now; nobody else takes it within these moments.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let (program, worker) = (workspace.target().join("debug/arnia"), workspace.worker());
        let child = Command::new(&program)
            .args(["daemon", "--listen", &address])
            .env("ARNIA_HOME", &home)
            .env("ARNIA_VMM", &worker)
            .stderr(fs::File::create(workspace.target().join("schemathesis/daemon.log"))?)
            .spawn()
            .context("arnia")?;
        let url = format!("https://{address}");
        let (token, victim) = (String::new(), String::new());
        let mut daemon = Daemon { child, program, worker, home, url, token, victim };
        let started = Instant::now();
        while std::net::TcpStream::connect(&address).is_err() {
            ensure!(started.elapsed() < Duration::from_secs(60), "the daemon does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        let kernel = daemon.home.join("kernel");
        fs::write(&kernel, "no kernel")?;
        for (user, role) in [(TESTER, "admin"), (VICTIM, "viewer")] {
            host::run(&mut daemon.arnia(&["user", "create", user, "--role", role]))?;
        }
        host::run(&mut daemon.arnia(&["create", "--name", "web", "--kernel", &kernel.to_string_lossy()]))?;
        host::run(&mut daemon.arnia(&["volume", "create", "data", "8M"]))?;
        let token = |user: &str| -> Result<(String, String)> {
            let token = host::output(&mut daemon.arnia(&["token", "create", user, "-o", "json"]))?;
            let token: serde_json::Value = serde_json::from_str(&token)?;
            match (token["token"]["id"].as_str(), token["secret"].as_str()) {
                (Some(id), Some(secret)) => Ok((id.to_owned(), secret.to_owned())),
                _ => bail!("no token: {token}"),
            }
        };
        let ((_, secret), (victim, _)) = (token(TESTER)?, token(VICTIM)?);
        (daemon.token, daemon.victim) = (secret, victim);
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.home);
    }
}
