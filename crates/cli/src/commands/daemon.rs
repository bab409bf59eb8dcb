//! `arnia daemon`.

use super::Run;
use crate::connect::{default_paths, image_folder};
use crate::{Context, Error, programs};
use daemon::{Config, Mode, Paths};
use std::net::SocketAddr;
use std::process::ExitCode;

/// Runs the daemon, for this user or, as root, for the host. Other commands start it by themselves when they need
/// it. It can be ended and started again at any time: virtual machines go on without it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia daemon\n  arnia daemon --system --listen 0.0.0.0:8443")]
pub struct Daemon {
    /// Work for the host, with the folders of a system service
    #[arg(long)]
    system: bool,
    /// Also listen here, with TLS; callers need a token
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Leave the terminal's session
    #[arg(long, hide = true)]
    background: bool,
}

impl Run for Daemon {
    fn run(&self, _: &Context) -> Result<ExitCode, Error> {
        if self.background {
            // Fails for the leader of a group, when somebody types the option: then it stays where it is.
            let _ = rustix::process::setsid();
        }
        crate::log::start();
        let (mode, paths) = match self.system {
            true => (Mode::System, Paths::system()),
            false => default_paths()?,
        };
        let (agent, images) = (programs::agent().ok(), image_folder(&paths));
        let switch = std::env::current_exe()
            .map_err(|e| Error::failed("this program does not know where it is").with_source(e))?;
        let worker = programs::worker()?;
        let config = Config { mode, paths, worker, switch, agent, images, listen: self.listen };
        daemon::run(config).map_err(|e| {
            let message = e.to_string();
            match std::error::Error::source(&e) {
                Some(source) => Error::failed(format!("{message}: {source}")),
                None => Error::failed(message),
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
