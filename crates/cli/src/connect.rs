//! Reaching the daemon, and starting one when none runs.

use crate::contexts::Contexts;
use crate::{Context, Error, ErrorKind, programs};
use api::v1::error::{ApiError, ErrorCode};
use client::Client;
use daemon::{Mode, Paths};
use std::fs::File;
use std::future::Future;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a daemon has to come up.
const START_PATIENCE: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_millis(20);

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Error {
        let report = Error::bad_input(error.to_string());
        match error.remedy {
            Some(remedy) => report.with_remedy(remedy),
            None => report,
        }
    }
}

impl From<client::Error> for Error {
    fn from(error: client::Error) -> Error {
        let kind = match error.api().code {
            _ if error.is_unreachable() => ErrorKind::Unreachable,
            ErrorCode::NotFound => ErrorKind::NotFound,
            ErrorCode::Unauthenticated | ErrorCode::Forbidden => ErrorKind::Denied,
            code => match code.status() {
                409 | 412 => ErrorKind::Conflict,
                400..=499 => ErrorKind::BadInput,
                _ => ErrorKind::Failed,
            },
        };
        let report = Error::new(kind, error.to_string());
        match &error.api().remedy {
            Some(remedy) => report.with_remedy(remedy.clone()),
            None => report,
        }
    }
}

impl Context {
    /// Does something with the daemon; starts one for this user if none runs and none is named.
    ///
    /// # Errors
    /// When there is no daemon to be had, and what `work` returns.
    pub fn with_daemon<T, F>(&self, work: impl FnOnce(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let client = self.client()?;
        block_on(work(client))
    }

    /// Whether the daemon that is meant is this user's own, whose images are the ones that this program sees.
    ///
    /// # Errors
    /// When the list of contexts cannot be read.
    pub(crate) fn is_local(&self) -> Result<bool, Error> {
        Ok(self.socket.is_none() && !self.is_remote()?)
    }

    /// Whether the daemon that is meant is on another host, whose files this program does not see.
    ///
    /// # Errors
    /// When the list of contexts cannot be read.
    pub(crate) fn is_remote(&self) -> Result<bool, Error> {
        Ok(self.socket.is_none() && Contexts::read()?.choose(self.context.as_deref())?.is_some())
    }

    /// A client of the daemon that is meant; nothing if it is this user's own and does not run.
    pub(crate) fn running_client(&self) -> Result<Option<Client>, Error> {
        if self.is_local()? {
            let (_, paths) = default_paths()?;
            if std::os::unix::net::UnixStream::connect(paths.socket()).is_err() {
                return Ok(None);
            }
        }
        self.client().map(Some)
    }

    /// A client of the daemon that is meant.
    fn client(&self) -> Result<Client, Error> {
        if let Some(socket) = &self.socket {
            return Ok(Client::new(socket, &self.project));
        }
        let contexts = Contexts::read()?;
        if let Some(remote) = contexts.choose(self.context.as_deref())? {
            return remote.client(&self.project);
        }
        let (mode, paths) = default_paths()?;
        let socket = paths.socket();
        let answers = || std::os::unix::net::UnixStream::connect(&socket).is_ok();
        let answers = answers() || mode == Mode::System && start_service() && answers();
        if !answers {
            start(&socket)?;
        }
        Ok(Client::new(&socket, &self.project))
    }
}

/// Does what has to be waited for.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|e| Error::failed("the program cannot wait for anything").with_source(e))?;
    let result = runtime.block_on(work);
    // A read of the keyboard that nobody waits for any more must not hold up the end.
    runtime.shutdown_background();
    result
}

/// The folders of the daemon that a user without wishes has: root the system's, others their own, and below
/// `ARNIA_HOME` if that variable is set.
///
/// # Errors
/// When there is no home directory.
pub fn default_paths() -> Result<(Mode, Paths), Error> {
    if let Some(home) =
        std::env::var_os("ARNIA_HOME").map(std::path::PathBuf::from).filter(|home| home.is_absolute())
    {
        return Ok((Mode::User, Paths { data: home.join("data"), runtime: home.join("run") }));
    }
    if rustix::process::geteuid().is_root() {
        return Ok((Mode::System, Paths::system()));
    }
    let paths =
        Paths::user().map_err(|e| Error::failed(e.to_string()).with_remedy("set the variable HOME"))?;
    Ok((Mode::User, paths))
}

/// The folder of the images: where the variable `ARNIA_IMAGES` says, else with the daemon's other things.
pub fn image_folder(paths: &Paths) -> std::path::PathBuf {
    std::env::var_os("ARNIA_IMAGES").map_or_else(|| paths.images(), std::path::PathBuf::from)
}

/// Has systemd start the host's daemon, if it is one of its services; waits until it answers. A daemon of our own would stand in that
/// one's way, also while that is only being started anew.
fn start_service() -> bool {
    let mut command = Command::new("systemctl");
    command.args(["start", "--quiet", "arnia.service"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // sd_booted(3)
    Path::new("/run/systemd/system").is_dir() && command.status().is_ok_and(|status| status.success())
}

/// Starts a daemon in the background and waits until it answers.
fn start(socket: &Path) -> Result<(), Error> {
    let failed =
        |e: std::io::Error| Error::new(ErrorKind::Unreachable, "the daemon cannot be started").with_source(e);
    programs::worker()?;
    let (_, paths) = default_paths()?;
    std::fs::create_dir_all(&paths.data).map_err(failed)?;
    let log_path = paths.data.join("daemon.log");
    let log = File::options().append(true).create(true).open(&log_path).map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command.args(["daemon", "--background"]).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    programs::inherit_streams_only(&mut command);
    let mut child = command.spawn().map_err(failed)?;
    let started = Instant::now();
    loop {
        if std::os::unix::net::UnixStream::connect(socket).is_ok() {
            return Ok(());
        }
        // Another command may have started one at the same moment; then ours ends, and that one answers.
        let ended = child.try_wait().map_err(failed)?.is_some();
        if started.elapsed() > START_PATIENCE || ended && started.elapsed() > START_PATIENCE / 10 {
            return Err(Error::new(ErrorKind::Unreachable, "the daemon does not come up")
                .with_remedy(format!("its reasons are in {}", log_path.display())));
        }
        std::thread::sleep(START_INTERVAL);
    }
}
