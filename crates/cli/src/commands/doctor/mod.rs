//! `arnia doctor`.

mod engines;
mod host;

use super::Run;
use crate::output::{Format, Row};
use crate::{Context, Error, output};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Looks at this host: which CPU engines work here and how fast, what else Arnia uses of it, and what to do
/// about what is missing.
///
/// The exit status is 0 when virtual machines can run here, and 1 when they cannot.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia doctor\n  arnia doctor -o json\n  arnia doctor --folder /srv/vms")]
pub struct Doctor {
    /// The folder for disks and snapshots, whose file system is looked at
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    folder: PathBuf,
}

/// What was found.
#[derive(Debug, Serialize)]
struct View {
    /// Whether virtual machines can run here.
    usable: bool,
    /// The engine that `--engine auto` takes.
    engine: Option<String>,
    engines: Vec<engines::EngineView>,
    checks: Vec<Check>,
}

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// As it should be.
    Good,
    /// Arnia works, but something is slower or weaker.
    Weak,
    /// Something does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    /// What was looked at.
    name: &'static str,
    verdict: Verdict,
    /// What was found, and what follows from it.
    finding: String,
    /// What to do about it, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Check {
    fn good(name: &'static str, finding: impl Into<String>) -> Check {
        Check { name, verdict: Verdict::Good, finding: finding.into(), remedy: None }
    }

    fn weak(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Check {
        let remedy = Some(remedy.into());
        Check { name, verdict: Verdict::Weak, finding: finding.into(), remedy }
    }
}

impl Row for Check {
    const HEADS: &'static [&'static str] = &["check", "verdict", "found"];

    fn cells(&self) -> Vec<String> {
        let verdict = match self.verdict {
            Verdict::Good => "good",
            Verdict::Weak => "weak",
            Verdict::Bad => "bad",
        };
        vec![self.name.into(), verdict.into(), self.finding.clone()]
    }
}

impl Run for Doctor {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let engines = engines::look()?;
        let first = engines.iter().find(|engine| engine.usable);
        let view = View {
            usable: first.is_some(),
            engine: first.map(|engine| engine.engine.clone()),
            checks: host::look(&self.folder),
            engines,
        };
        match context.output.format() {
            Format::Table => output::print(&view.for_people())?,
            _ => context.output.data(&view)?,
        }
        Ok(if view.usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl View {
    fn for_people(&self) -> String {
        let mut text = match &self.engine {
            Some(engine) => format!("Virtual machines can run here, by the engine {engine}.\n\n"),
            None => "Virtual machines cannot run here.\n\n".to_owned(),
        };
        for engine in &self.engines {
            text += &engine.for_people();
        }
        let rows = self.checks.iter().map(Row::cells);
        text += &output::table(Check::HEADS, rows);
        let remedies: Vec<_> = self.checks.iter().filter_map(|check| check.remedy.as_ref()).collect();
        if !remedies.is_empty() {
            text += "\nWhat could be better:\n";
            for remedy in remedies {
                text += &format!("  - {remedy}\n");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_what_was_found_and_what_to_do() {
        let engines = engines::parse(
            r#"[{"engine":"kvm","usable":false,"speed":"None","findings":["it does not open"],
                 "remedies":["load a module"]},
                {"engine":"bt","usable":true,"speed":"Translated","findings":["works"],"remedies":[]}]"#,
        )
        .unwrap();
        let view = View {
            usable: true,
            engine: Some("bt".into()),
            engines,
            checks: vec![Check::good("memory", "plenty"), Check::weak("io_uring", "off", "switch it on")],
        };
        let text = view.for_people();
        for part in ["by the engine bt", "kvm: does not work here", "load a module", "plenty", "switch it on"]
        {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    }
}
