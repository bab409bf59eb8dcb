//! One connection: a request, its answer, the next.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use api::agent::frame::{Frame, FrameDecoder, FrameKind, write_frame};
use api::agent::{AgentError, AgentErrorKind, Reply, ReplyResult, Request, RequestLine, VERSION};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::failure::{failed, invalid};
use crate::{Root, exec, files, freeze, generalise, info, interfaces, personality, power, shares};

/// How long a host may take to hear that the guest is shutting down.
const SHUTDOWN_WAIT_MS: u16 = 2000;

/// A connection to the host.
pub(crate) struct Connection {
    pub(crate) file: File,
    decoder: FrameDecoder,
}

impl Connection {
    /// The next frame; `None` if the host is gone.
    pub(crate) fn receive(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            if !self.fill()? {
                return if self.decoder.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// A frame that has come already.
    pub(crate) fn received(&mut self) -> io::Result<Option<Frame>> {
        Ok(self.decoder.next_frame()?)
    }

    /// Reads what is there, waiting for some if there is none. False if the host is gone.
    pub(crate) fn fill(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 16 * 1024];
        loop {
            match self.file.read(&mut bytes) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    self.decoder.push(&bytes[..count]);
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until the host sends something or hangs up.
    fn wait_for_host(&self, limit_ms: u16) {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        // Whatever comes of it, the time is over.
        let _ = poll(&mut fds, PollTimeout::from(limit_ms));
    }

    /// Sends a frame.
    pub(crate) fn send(&mut self, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
        write_frame(&mut self.file, kind, payload)
    }

    /// Sends the answer to a request.
    pub(crate) fn reply(&mut self, result: Result<Reply, AgentError>) -> io::Result<()> {
        let result = match result {
            Ok(reply) => ReplyResult::Ok(reply),
            Err(error) => ReplyResult::Error(error),
        };
        self.send(FrameKind::Reply, &serde_json::to_vec(&result)?)
    }
}

/// Serves one connection to its end.
///
/// # Errors
/// If the host breaks the protocol or the connection fails.
pub(crate) fn serve(file: File) -> io::Result<()> {
    let mut connection = Connection { file, decoder: FrameDecoder::default() };
    while let Some(frame) = connection.receive()? {
        if frame.kind != FrameKind::Request {
            let error = AgentError::new(AgentErrorKind::Malformed, "this is not the time for such a frame");
            connection.reply(Err(error.clone()))?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        match parse(&frame.payload) {
            Ok(request) => handle(&mut connection, request)?,
            Err(error) => connection.reply(Err(error))?,
        }
    }
    Ok(())
}

/// Answers a connection that is one too many.
pub(crate) fn refuse(file: File) {
    let mut connection = Connection { file, decoder: FrameDecoder::default() };
    let error = AgentError::new(AgentErrorKind::Busy, "the agent has too many connections; close some");
    // Whether the host hears it or has gone by now makes no difference.
    let _ = connection.reply(Err(error));
}

fn parse(payload: &[u8]) -> Result<Request, AgentError> {
    // The version first: a later one may have operations that cannot be read here.
    let value: serde_json::Value = serde_json::from_slice(payload)
        .map_err(|error| AgentError::new(AgentErrorKind::Malformed, format!("no request: {error}")))?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(VERSION)) {
        let text = format!("the agent speaks version {VERSION} of its protocol and no other");
        return Err(AgentError::new(AgentErrorKind::UnsupportedVersion, text));
    }
    serde_json::from_value::<RequestLine>(value)
        .map(|line| line.request)
        .map_err(|error| AgentError::new(AgentErrorKind::Malformed, format!("no request: {error}")))
}

fn handle(connection: &mut Connection, request: Request) -> io::Result<()> {
    let root = Root::live();
    let harmless = matches!(
        request,
        Request::Info {} | Request::Freeze { .. } | Request::Thaw {} | Request::Interfaces {}
    );
    if matches!(request, Request::Personality(_)) && freeze::is_frozen() {
        // Only a guest that goes on from a snapshot is told who it is, and it was frozen for that.
        if let Err(error) = freeze::thaw() {
            return connection.reply(Err(error));
        }
    }
    if !harmless && freeze::is_frozen() {
        let text = "the file systems are frozen: thaw them first";
        return connection.reply(Err(AgentError::new(AgentErrorKind::Busy, text)));
    }
    let result = match request {
        Request::Exec(params) => return exec::serve(connection, &params),
        Request::FileRead { path } => return files::read(connection, &path),
        Request::FileWrite { path, mode, uid, gid } => {
            return files::write(connection, &path, files::Wanted { mode, uid, gid });
        }
        Request::Shutdown { mode, force } => {
            // The answer goes first: afterwards there may be nobody to give it. The host hangs up when it
            // has it; a kernel that stops at once would take it along.
            connection.reply(Ok(Reply::Done))?;
            connection.wait_for_host(SHUTDOWN_WAIT_MS);
            if let Err(error) = power::shutdown(mode, force) {
                eprintln!("arnia-agent: cannot shut down: {error}");
            }
            return Ok(());
        }
        Request::Info {} => Ok(Reply::Info(info::collect(&root))),
        Request::Stat { path, follow } => files::stat(&path, follow).map(Reply::Attributes),
        Request::List { path, after } => files::list(&path, after.as_deref()),
        Request::MakeFolder { path, mode } => files::make_folder(&path, mode).map(|()| Reply::Done),
        Request::MakeLink { path, target } => files::make_link(&path, &target).map(|()| Reply::Done),
        Request::Freeze { timeout_ms } => freeze::freeze(timeout_ms).map(Reply::Frozen),
        Request::Thaw {} => freeze::thaw().map(Reply::Frozen),
        Request::Interfaces {} => match interfaces::list() {
            Ok(interfaces) => Ok(Reply::Interfaces { interfaces }),
            Err(error) => Err(failed("cannot list the network cards", &error)),
        },
        Request::Personality(personality) => personality::take(&root, &personality)
            .map(Reply::Personality)
            .map_err(|error| invalid(error.to_string())),
        Request::MountShares {} => shares::mount_all(),
        Request::UnmountShare { name, force } => shares::unmount(&name, force),
        Request::Generalise {} => generalise::run(&root)
            .map(|()| Reply::Done)
            .map_err(|error| failed("cannot generalise this system", &error)),
        _ => Err(AgentError::new(AgentErrorKind::Malformed, "this agent does not know the operation")),
    };
    connection.reply(result)
}
