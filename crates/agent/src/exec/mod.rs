//! Programs run for the host.
//!
//! Each is the leader of its own session, so that signals reach all that it starts, and so that all of it
//! is told (by SIGHUP) when the host is gone.

mod child;
mod pump;

use std::io;

use api::agent::frame::FrameKind;
use api::agent::{Event, ExecParams, Reply};

use crate::session::Connection;
use child::Child;
use pump::Pump;

/// Answers a request to run a program: starts it, and moves its streams until it has ended.
///
/// # Errors
/// If the connection fails or the host breaks the protocol; the program is hung up on then.
pub(crate) fn serve(connection: &mut Connection, params: &ExecParams) -> io::Result<()> {
    let child = match Child::start(params) {
        Ok(child) => child,
        Err(error) => return connection.reply(Err(error)),
    };
    connection.reply(Ok(Reply::Started))?;
    let exit = Pump::new(connection, child).run()?;
    connection.send(FrameKind::Event, &serde_json::to_vec(&Event::Exited(exit))?)
}
