//! Landlock: which files can still be opened.

use super::Needs;
use crate::Error;
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use std::path::Path;

/// What is restricted, as far as the host's kernel can.
const ABI_USED: ABI = ABI::V6;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Makes all files out of reach but those of `needs`. Descriptors that are open stay as they are.
pub(super) fn restrict(needs: &Needs) -> Result<(), Error> {
    let status = try_restrict(needs)
        .map_err(|e| Error::host("the process cannot give up its files").with_source(e))?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => {}
        RulesetStatus::PartiallyEnforced => log::info!("this kernel restricts access to files only in part"),
        RulesetStatus::NotEnforced => log::info!("this kernel does not restrict access to files"),
    }
    Ok(())
}

fn try_restrict(needs: &Needs) -> Result<RestrictionStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_USED))?
        .scope(Scope::from_all(ABI_USED))?
        .create()?;
    // What it can learn of itself: how long its threads had to wait for a processor, which guests are told
    // as stolen time.
    rules = allow(rules, Path::new("/proc/self"), AccessFs::ReadFile.into())?;
    if needs.name_servers {
        // The file itself, so that nothing else of /etc can be read; and where it leads to, which programs
        // that manage networks replace as a whole.
        rules = allow(rules, Path::new(RESOLV_CONF), AccessFs::ReadFile.into())?;
        let target = std::fs::canonicalize(RESOLV_CONF);
        if let Ok(Some(folder)) = target.as_deref().map(Path::parent)
            && folder != Path::new("/etc")
        {
            rules = allow(rules, folder, AccessFs::ReadFile.into())?;
        }
    }
    for folder in &needs.media {
        rules = allow(rules, folder, AccessFs::ReadFile.into())?;
    }
    for path in &needs.removed {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        rules = allow(rules, folder, AccessFs::RemoveFile.into())?;
    }
    if let Some(folder) = &needs.snapshots {
        let access = AccessFs::ReadFile
            | AccessFs::ReadDir
            | AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::MakeReg
            | AccessFs::MakeDir
            | AccessFs::RemoveFile
            | AccessFs::RemoveDir
            | AccessFs::Refer;
        rules = allow(rules, folder, access)?;
    }
    if let Some(folder) = &needs.disk_folder {
        // Refer: layers of disks get names in the folder of snapshots, too.
        let access = AccessFs::ReadFile
            | AccessFs::ReadDir
            | AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::MakeReg
            | AccessFs::RemoveFile
            | AccessFs::Refer;
        rules = allow(rules, folder, access)?;
    }
    rules.restrict_self()
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(fd) => rules.add_rule(PathBeneath::new(fd, access)),
        // What is not there needs no rule.
        Err(_) => Ok(rules),
    }
}
