//! schemathesis (PyPI) against the daemon's API: what it makes up from the OpenAPI document must never be a server
//! error. Bounded in time; the daemon is one of its own, at a port of the loopback.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::Workspace;
use crate::{apt, host};

/// The version that the options below are those of.
const PACKAGE: &str = "schemathesis==4.32.5";
/// Seconds of each of the two passes.
const PASS_SECONDS: u32 = 120;
/// A stream without end.
const ENDLESS: &[&str] = &["event_list"];
/// By these it would take its own rights away.
const SUICIDE: &[&str] = &["user_update", "user_delete", "token_delete"];
/// By these the machine that the second pass is about would be gone.
const OF_THE_MACHINE: &[&str] = &["vm_delete", "vm_rename"];

/// Runs both passes: with made-up names, and with names of what is there.
///
/// # Errors
/// If an answer is a server error, with the request.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    apt::ensure(&[apt::VENV])?;
    let folder = workspace.target().join("schemathesis");
    let program = install(&folder)?;
    let home = std::env::temp_dir().join(format!("arnia-schemathesis-{}", std::process::id()));
    let daemon = Daemon::start(workspace, home)?;
    let document = workspace.root().join("openapi/v1.json");
    let names = folder.join("names.toml");
    fs::write(
        &names,
        "[parameters]\n\"path.vm\" = \"web\"\n\"path.volume\" = \"data\"\n\"path.port\" = \"8080\"\n",
    )?;
    for (names, left_out) in [(None, &[][..]), (Some(&names), OF_THE_MACHINE)] {
        let mut command = Command::new(&program);
        if let Some(names) = names {
            command.arg("--config-file").arg(names);
        }
        command.arg("run").arg(&document).args(["--url", &daemon.url, "--tls-verify", "false"]);
        command.args(["--header", &format!("Authorization: Bearer {}", daemon.token)]);
        command.args(["--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing"]);
        command.args(["--max-examples", "20", "--max-time", &PASS_SECONDS.to_string(), "--seed", "1"]);
        command.args(["--request-timeout", "60", "--continue-on-failure", "--no-color", "--warnings", "off"]);
        for name in ENDLESS.iter().chain(SUICIDE).chain(left_out) {
            command.args(["--exclude-operation-id", name]);
        }
        host::run(command.current_dir(&folder))?;
    }
    Ok(())
}

/// Installs it in a folder of its own, unless it is there.
fn install(folder: &Path) -> Result<PathBuf> {
    let program = folder.join("bin/schemathesis");
    let marker = folder.join("installed");
    if fs::read_to_string(&marker).is_ok_and(|installed| installed == PACKAGE) {
        return Ok(program);
    }
    host::run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    host::run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", PACKAGE]))?;
    fs::write(&marker, PACKAGE)?;
    Ok(program)
}

struct Daemon {
    child: Child,
    home: PathBuf,
    url: String,
    token: String,
}

impl Daemon {
    fn start(workspace: &Workspace, home: PathBuf) -> Result<Daemon> {
        fs::create_dir_all(&home)?;
        // Free now; nobody else takes it within these moments.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let arnia = |words: &[&str]| {
            let mut command = Command::new(workspace.target().join("debug/arnia"));
            command.args(words).env("ARNIA_HOME", &home).env("ARNIA_VMM", workspace.worker());
            command
        };
        let child =
            arnia(&["daemon", "--listen", &address]).stderr(Stdio::null()).spawn().context("arnia")?;
        let mut daemon =
            Daemon { child, home: home.clone(), url: format!("https://{address}"), token: String::new() };
        let started = Instant::now();
        while std::net::TcpStream::connect(&address).is_err() {
            ensure!(started.elapsed() < Duration::from_secs(60), "the daemon does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        let kernel = home.join("kernel");
        fs::write(&kernel, "no kernel")?;
        host::run(&mut arnia(&["user", "create", "tester", "--role", "admin"]))?;
        host::run(&mut arnia(&["create", "--name", "web", "--kernel", &kernel.to_string_lossy()]))?;
        host::run(&mut arnia(&["volume", "create", "data", "8M"]))?;
        let token = host::output(&mut arnia(&["token", "create", "tester", "-o", "json"]))?;
        let token: serde_json::Value = serde_json::from_str(&token)?;
        let Some(secret) = token["secret"].as_str() else { bail!("no token: {token}") };
        daemon.token = secret.to_owned();
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
