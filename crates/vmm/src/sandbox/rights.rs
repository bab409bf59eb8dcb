//! Capabilities, and ways to gain some.

use crate::Error;
use caps::{CapSet, Capability};

/// Gives up all capabilities and the ways to get new rights by executing programs.
pub(super) fn drop_all() -> Result<(), Error> {
    let mut sets = vec![CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted];
    // The bounding set first: it takes a capability to change it, and without any it means nothing.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        sets.insert(0, CapSet::Bounding);
    }
    for set in sets {
        caps::clear(None, set)
            .map_err(|e| Error::host("the process's capabilities cannot be given up").with_source(e))?;
    }
    rustix::thread::set_no_new_privs(true).map_err(|e| {
        Error::host("the process cannot give up gaining rights").with_source(std::io::Error::from(e))
    })
}
