//! An [`App`] for tests within this process: no workers, no sockets.

use super::App;
use crate::config::{Config, Mode, Paths};
use std::path::PathBuf;
use std::sync::Arc;

/// The folder of a test, which goes when this is dropped.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The daemon of one test, and where it has its files.
pub(crate) fn app(name: &str) -> (Arc<App>, Folder) {
    let folder = std::env::temp_dir().join(format!("arnia-app-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    let paths = Paths { data: folder.join("data"), runtime: folder.join("run") };
    for path in [&paths.data, &paths.runtime] {
        std::fs::create_dir_all(path).expect("a folder");
    }
    let (images, nothing) = (paths.images(), folder.join("none"));
    let config = Config {
        mode: Mode::User,
        paths,
        worker: nothing.clone(),
        switch: nothing,
        agent: None,
        images,
        listen: None,
    };
    (App::open(config).expect("records"), Folder(folder))
}
