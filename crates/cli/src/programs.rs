//! Where the other programs of Arnia are.

use crate::{Error, ErrorKind};
use std::path::{Path, PathBuf};

/// Finds the worker `arnia-vmm`: where the variable `ARNIA_VMM` says, else beside this program, else in
/// `PATH`.
///
/// # Errors
/// When it is in none of these places.
pub fn worker() -> Result<PathBuf, Error> {
    if let Some(path) = std::env::var_os("ARNIA_VMM") {
        return Ok(path.into());
    }
    let beside = std::env::current_exe().ok().and_then(|path| path.parent().map(|dir| dir.join("arnia-vmm")));
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&in_path).map(|dir| dir.join("arnia-vmm")).collect::<Vec<_>>();
    beside.into_iter().chain(in_path).find(|path| is_program(path)).ok_or_else(|| {
        Error::new(
            ErrorKind::Failed,
            "the program arnia-vmm, which runs virtual machines, is not to be found",
        )
        .with_remedy("put it beside arnia or into PATH, or name it in the variable ARNIA_VMM")
    })
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
