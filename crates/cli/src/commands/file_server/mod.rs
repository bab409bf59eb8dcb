//! `arnia file-server`: the process that shows a guest one folder. The daemon starts it; nobody types it.

mod sandbox;

use super::Run;
use crate::{Context, Error};
use api::share::FileServerConfig;
use rustix::process::{Resource, Rlimit};
use share::serve::Server;
use share::{Folder, FolderConfig, Limits, Owner};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How long it lives without a machine that is plugged in.
const LINGER: Duration = Duration::from_secs(30);

/// Runs the file server of a share.
#[derive(Debug, clap::Args)]
pub struct RunFileServer {
    /// What it shows, and to whom: a file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Run for RunFileServer {
    fn run(&self, _: &Context) -> Result<ExitCode, Error> {
        crate::log::start();
        let config = read(&self.config)?;
        let failed = |what: &str| Error::failed(format!("the share {}: {what}", config.name));
        let folder = Folder::open(&FolderConfig {
            path: config.folder.clone(),
            read_only: config.read_only,
            owner: Owner { uid: config.uid, gid: config.gid },
            hidden: config.hidden.clone(),
        })
        .map_err(|e| failed("its folder cannot be shown").with_source(e))?;
        let key = config.key.parse().map_err(|e| failed("its key is wrong").with_source(e))?;
        let limits = Limits::within(raise_descriptors());
        // The guest's programs give the permissions.
        rustix::process::umask(rustix::fs::Mode::empty());
        let listener =
            share::listen(&config.socket).map_err(|e| failed("its socket cannot be made").with_source(e))?;
        sandbox::enter(&folder, config.read_only)?;
        let server = Server::new(listener, key, config.id, folder, limits);
        server.run(LINGER).map_err(|e| failed("it does not go on").with_source(e))?;
        log::info!("nobody uses the share {}: its process ends", config.name);
        Ok(ExitCode::SUCCESS)
    }
}

/// As many descriptors as the host lets this process have.
fn raise_descriptors() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    now.and_then(|now| usize::try_from(now).ok()).unwrap_or(usize::MAX)
}

fn read(path: &Path) -> Result<FileServerConfig, Error> {
    let bad = || Error::bad_input(format!("the configuration {path:?} cannot be used"));
    let text = std::fs::read(path).map_err(|e| bad().with_source(e))?;
    serde_json::from_slice(&text).map_err(|e| bad().with_source(e))
}
