//! Folders of the host, shown and taken away while the machine runs.

use crate::machine::Machine;
use api::worker::config::ShareConfig;
use api::worker::control::{ControlError, ControlErrorKind, Reply};

/// Shows one.
pub(super) fn add(machine: &Machine, config: &ShareConfig) -> Result<Reply, ControlError> {
    match machine.shares().map(|shares| shares.add(config)) {
        Some(Ok(())) => Ok(Reply::Done),
        Some(Err(why)) => Err(bad(format!("the share {:?} cannot be: {why}", config.name))),
        None => Err(bad("the machine has no device for shared folders: start it anew".into())),
    }
}

/// Takes one away.
pub(super) fn remove(machine: &Machine, name: &str) -> Result<Reply, ControlError> {
    if machine.remove_share(name) { Ok(Reply::Done) } else { Err(bad(format!("there is no share {name:?}"))) }
}

fn bad(message: String) -> ControlError {
    ControlError { kind: ControlErrorKind::BadRequest, message }
}
