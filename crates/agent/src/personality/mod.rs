//! Becoming an instance: what makes this machine another one than its siblings from the same image.

mod identity;
mod provision;
mod ssh;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use api::agent::{Personality, PersonalityError, PersonalityReport};

use crate::Root;

pub(crate) use ssh::remove_host_keys;

/// Where the name of the instance is kept whose personality was taken last.
pub(crate) const INSTANCE_ID: &str = "/var/lib/arnia/instance-id";

/// Takes the personality on. What cannot be done is in the report and does not keep the rest from being
/// done: a machine without its SSH keys is better than one with its sibling's name.
///
/// # Errors
/// If it asks for what cannot be; nothing is done then.
pub(crate) fn take(root: &Root, personality: &Personality) -> Result<PersonalityReport, PersonalityError> {
    personality.check()?;
    let mut steps = Steps::default();
    identity::take(root, &personality.identity, &mut steps);
    provision::take(root, &personality.provision, &mut steps);
    if !personality.instance_id.is_empty() {
        steps.step("remembered the instance", || {
            let path = root.path(INSTANCE_ID);
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            replace(&path, format!("{}\n", personality.instance_id).as_bytes(), 0o644)
        });
    }
    for failed in &steps.report.failed {
        eprintln!("arnia-agent: {failed}");
    }
    Ok(steps.report)
}

/// What was done and what was not.
#[derive(Default)]
struct Steps {
    report: PersonalityReport,
}

impl Steps {
    fn step(&mut self, done: &str, work: impl FnOnce() -> io::Result<()>) {
        match work() {
            Ok(()) => self.report.done.push(done.to_owned()),
            Err(error) => self.report.failed.push(format!("{done}: no: {error}")),
        }
    }
}

/// Gives a file new contents, whole or not at all where that is possible.
fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let draft = path.with_extension("arnia-new");
    fs::write(&draft, contents)?;
    fs::set_permissions(&draft, PermissionsExt::from_mode(mode))?;
    match fs::rename(&draft, path) {
        // Something is mounted there, as systemd does with a machine-id that it made up.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            fs::remove_file(&draft)?;
            fs::write(path, contents)
        }
        result => result,
    }
}
