//! What the processes that serve guests give up: capabilities, new rights, files.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated, RulesetError, Scope,
};
use std::io;

/// What is restricted, as far as the host's kernel can.
pub(crate) const ABI_USED: ABI = ABI::V6;

/// Gives up all capabilities, and ever getting any.
pub(crate) fn drop_rights() -> io::Result<()> {
    for set in
        [caps::CapSet::Ambient, caps::CapSet::Inheritable, caps::CapSet::Effective, caps::CapSet::Permitted]
    {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// A set of rules by which no file can be reached, to be added to.
pub(crate) fn rules() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_USED))?
        .scope(Scope::from_all(ABI_USED))?
        .create()
}
