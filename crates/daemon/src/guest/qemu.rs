//! Guests that have QEMU's guest agent and not ours, behind the serial port that the worker makes for it.
//!
//! That agent serves one client at a time, knows no terminals and no streams: a program gets its input before it starts,
//! and its output comes when it has ended.

use super::printable;
use crate::Error;
use agent_client::qga::Qga;
use api::agent::{Control, ExecParams, Exit, Info, ShutdownMode};
use api::v1::error::ErrorCode;
use api::v1::guest::{EXEC_STDIN, ExecMessage, Guest};
use axum::extract::ws::{Message, WebSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an agent has to say that it is there: it does nothing else meanwhile.
const THERE: Duration = Duration::from_secs(3);
/// How long a program may run.
const RUN_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// Input that a program can be given.
const INPUT_MAX: usize = 8 << 20;
/// How long the client has to send all of it.
const INPUT_PATIENCE: Duration = Duration::from_secs(60);

/// The agent behind a worker's socket, if one answers.
fn connect(socket: &Path) -> Result<Qga<UnixStream>, agent_client::Error> {
    Qga::connect_within(socket, THERE)
}

/// Whether an agent answers.
pub(crate) fn answers(socket: &Path) -> bool {
    connect(socket).is_ok()
}

/// What the guest tells of itself.
pub(crate) fn view(socket: &Path) -> Result<Guest, agent_client::Error> {
    let mut agent = connect(socket)?;
    let (version, _) = agent.info()?;
    let (system, kernel) = agent.system().unwrap_or_default();
    let info = Info { hostname: agent.host_name().unwrap_or_default(), system, kernel, ..Info::default() };
    let interfaces = agent.interfaces()?;
    Ok(Guest { agent: format!("qemu {}", printable(&version, 64)), ..super::view(&info, interfaces) })
}

/// Asks it to shut the guest down.
pub(crate) fn shutdown(socket: &Path) -> Result<(), agent_client::Error> {
    connect(socket)?.shutdown(ShutdownMode::Poweroff)
}

/// The program that is run and its arguments, for what is asked for.
fn program(params: &ExecParams) -> Result<Vec<String>, Error> {
    let unsupported = |what: &str| {
        let message = format!("the guest has QEMU's agent, which {what}");
        Err(Error::new(ErrorCode::Unsupported, message)
            .with_remedy("install arnia-agent in the guest, or use `arnia console`"))
    };
    if params.terminal.is_some() || params.command.is_empty() {
        return unsupported("gives programs no terminal");
    }
    if params.user.as_deref().is_some_and(|user| user != "root" && user != "0") {
        return unsupported("runs programs as root only");
    }
    // `env`, which the agent looks for in PATH, looks for the program there and says by 127 that there is none.
    let mut words = vec!["env".to_owned()];
    words.extend(params.environment.iter().map(|(name, value)| format!("{name}={value}")));
    if let Some(directory) = &params.directory {
        let script = "cd -- \"$0\" && exec \"$@\"";
        words.extend(["sh".into(), "-c".into(), script.into(), directory.clone()]);
    }
    words.extend(params.command.iter().cloned());
    Ok(words)
}

/// All that the client has for the program.
async fn input(client: &mut WebSocket) -> Result<Vec<u8>, Error> {
    let bad = |message: &str| Error::new(ErrorCode::BadRequest, message);
    let mut input = Vec::new();
    let all = async {
        loop {
            match client.recv().await {
                Some(Ok(Message::Binary(bytes))) if bytes.first() == Some(&EXEC_STDIN) => {
                    if bytes.len() == 1 {
                        return Ok(());
                    }
                    if input.len() + bytes.len() > INPUT_MAX {
                        return Err(Error::new(
                            ErrorCode::TooLarge,
                            "QEMU's agent takes at most 8 MiB of input",
                        ));
                    }
                    input.extend_from_slice(&bytes[1..]);
                    // Else the client waits for its window.
                    let taken = ExecMessage::InputTaken { bytes: bytes.len() as u64 - 1 };
                    super::exec::tell_client(client, &taken).await?;
                }
                // Signals cannot be sent there.
                Some(Ok(Message::Text(text))) if serde_json::from_str::<Control>(&text).is_ok() => {}
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return Err(bad("the client has gone, or sent what does not belong here")),
            }
        }
    };
    match tokio::time::timeout(INPUT_PATIENCE, all).await {
        Ok(result) => result.map(|()| input),
        Err(_) => Err(bad("QEMU's agent takes a program's input before it starts, and it did not end")
            .with_remedy("leave out -i, or end the input")),
    }
}

/// Runs a program to its end; returns its output and how it ended.
pub(crate) async fn run(
    client: &mut WebSocket,
    socket: &Path,
    params: &ExecParams,
) -> Result<(Vec<u8>, Vec<u8>, Exit), Error> {
    let words = program(params)?;
    let (input, socket) = (input(client).await?, socket.to_owned());
    let work = move || -> Result<_, agent_client::Error> {
        let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        connect(&socket)?.run(&words[0], &arguments, &input, RUN_LIMIT)
    };
    let finished = tokio::task::spawn_blocking(work).await;
    let finished = finished.map_err(|e| Error::internal("the guest cannot be asked", e))??;
    Ok((finished.stdout, finished.stderr, finished.exit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_made_of_what_the_agent_has() {
        let mut params = ExecParams { command: vec!["ls".into(), "-l".into()], ..ExecParams::default() };
        assert_eq!(program(&params).unwrap_or_default(), ["env", "ls", "-l"]);
        params.environment.insert("A".into(), "b c".into());
        params.directory = Some("/a b".into());
        let words = program(&params).unwrap_or_default();
        assert_eq!(words[..3], ["env", "A=b c", "sh"]);
        assert_eq!(words[5..], ["/a b", "ls", "-l"]);
        for bad in [
            ExecParams { command: Vec::new(), ..params.clone() },
            ExecParams { user: Some("ann".into()), ..params.clone() },
        ] {
            assert_eq!(program(&bad).map_err(|e| e.code()), Err(ErrorCode::Unsupported));
        }
    }
}
