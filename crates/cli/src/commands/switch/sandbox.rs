//! What the process of a network gives up before the first frame comes.
//!
//! It reads what hostile guests send. Everything is open by then: it needs no files but its configuration, no
//! capabilities, and no other processes.

use crate::Error;
use crate::sandbox::{drop_rights, rules};
use landlock::{AccessFs, PathBeneath, PathFd, RulesetCreatedAttr, RulesetError};
use std::path::Path;

/// Gives up all rights but those that a network needs; `names` tells whether names are looked up.
pub(super) fn enter(config: &Path, names: bool) -> Result<(), Error> {
    let failed = || Error::failed("the process of a network cannot give up its rights");
    drop_rights().map_err(|e| failed().with_source(e))?;
    restrict_files(config, names).map_err(|e| failed().with_source(e))
}

fn restrict_files(config: &Path, names: bool) -> Result<(), RulesetError> {
    let mut rules = rules()?;
    // The folder: the file is replaced as a whole.
    let resolv = std::fs::canonicalize("/etc/resolv.conf").ok().filter(|_| names);
    let folders = config.parent().into_iter().chain(resolv.as_deref().and_then(Path::parent));
    let files = names.then_some(Path::new("/etc/resolv.conf"));
    for path in folders.filter(|folder| *folder != Path::new("/etc")).chain(files) {
        if let Ok(fd) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(fd, AccessFs::ReadFile))?;
        }
    }
    rules.restrict_self().map(drop)
}
