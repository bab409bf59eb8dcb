//! The CPU engines, as the worker finds them.

use crate::{Error, programs};
use serde::{Deserialize, Serialize};
use std::process::{Command, Stdio};

/// What one engine can do here.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct EngineView {
    /// `kvm` or `bt`.
    pub(super) engine: String,
    /// Whether guests can run by it.
    pub(super) usable: bool,
    /// What to expect.
    speed: String,
    /// What was found.
    findings: Vec<String>,
    /// What would help.
    remedies: Vec<String>,
}

/// Asks the worker, which has the engines.
pub(super) fn look() -> Result<Vec<EngineView>, Error> {
    let worker = programs::worker()?;
    let failed = || Error::failed(format!("{} does not tell what it finds", worker.display()));
    let output = Command::new(&worker)
        .arg("--probe")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| failed().with_source(e))?;
    if !output.status.success() {
        return Err(failed().with_remedy("use a worker and an arnia of the same version"));
    }
    parse(&String::from_utf8_lossy(&output.stdout))
}

pub(super) fn parse(text: &str) -> Result<Vec<EngineView>, Error> {
    serde_json::from_str(text).map_err(|e| {
        Error::failed("the worker tells what it finds in an unknown way")
            .with_source(e)
            .with_remedy("use a worker and an arnia of the same version")
    })
}

impl EngineView {
    pub(super) fn for_people(&self) -> String {
        let expected = match self.speed.as_str() {
            "Hardware" => "guests run at the speed of this processor",
            "Translated" => "guests run at a fifth to a half of this processor's speed",
            "Interpreted" => "guests run at a hundredth of this processor's speed",
            _ => "guests do not run",
        };
        let what = match self.engine.as_str() {
            "kvm" => "kvm (hardware virtualization)",
            "bt" => "bt (binary translation)",
            other => other,
        };
        let name = &self.engine;
        let mut text = match self.usable {
            true => format!("{what}: works here; {expected}\n"),
            false => format!("{name}: does not work here\n"),
        };
        for finding in &self.findings {
            text += &format!("  - {finding}\n");
        }
        for remedy in &self.remedies {
            text += &format!("  > {remedy}\n");
        }
        text + "\n"
    }
}
