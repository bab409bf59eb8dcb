//! Where the other programs of Arnia are.

use crate::{Error, ErrorKind};
use std::path::{Path, PathBuf};

/// Finds the worker `arnia-vmm`: where the variable `ARNIA_VMM` says, else beside this program, else in
/// `PATH`.
///
/// # Errors
/// When it is in none of these places.
pub fn worker() -> Result<PathBuf, Error> {
    find("arnia-vmm", "ARNIA_VMM", "which runs virtual machines")
}

/// Finds the guest agent `arnia-agent`, which images get on board: where the variable `ARNIA_AGENT` says,
/// else beside this program, in `/usr/lib/arnia`, or in `PATH`.
///
/// # Errors
/// When it is in none of these places.
pub fn agent() -> Result<PathBuf, Error> {
    find("arnia-agent", "ARNIA_AGENT", "which goes into images")
}

fn find(name: &str, variable: &str, what: &str) -> Result<PathBuf, Error> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let beside = std::env::current_exe().ok().and_then(|path| path.parent().map(|dir| dir.join(name)));
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&in_path).map(|dir| dir.join(name)).collect::<Vec<_>>();
    let installed = Path::new("/usr/lib/arnia").join(name);
    beside.into_iter().chain([installed]).chain(in_path).find(|path| is_program(path)).ok_or_else(|| {
        Error::new(ErrorKind::Failed, format!("the program {name}, {what}, is not to be found"))
            .with_remedy(format!("put it beside arnia or into PATH, or name it in the variable {variable}"))
    })
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
