//! Guests that have QEMU's guest agent and not ours, behind the serial port that the worker makes for it.
//!
//! That agent serves one client at a time, knows no terminals and no streams: a program gets its input before it starts,
//! and its output comes when it has ended.

use super::printable;
use crate::Error;
use crate::http::right::Right;
use agent_client::qga::{EXEC_POLL, Qga};
use api::agent::{Control, ExecParams, Exit, Info};
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
/// Looks in a row at a program for which there may be no answer.
const SILENCES_MAX: u32 = 5;
/// How long it may take to send a signal.
const SIGNAL_LIMIT: Duration = Duration::from_secs(10);
/// SIGHUP (signal(7)).
const HANG_UP: i32 = 1;
/// Input that a program can be given.
const INPUT_MAX: usize = 8 << 20;
/// How long the client has to send all of it.
const INPUT_PATIENCE: Duration = Duration::from_secs(60);

/// The agent behind a worker's socket, if one answers.
pub(super) fn connect(socket: &Path) -> Result<Qga<UnixStream>, agent_client::Error> {
    Qga::connect_within(socket, THERE)
}

/// Whether an agent answers.
pub(super) fn answers(socket: &Path) -> bool {
    connect(socket).is_ok()
}

/// What the guest tells of itself.
pub(super) fn view(mut agent: Qga<UnixStream>) -> Result<Guest, agent_client::Error> {
    let (version, _) = agent.info()?;
    let (system, kernel) = agent.system().unwrap_or_default();
    let info = Info { hostname: agent.host_name().unwrap_or_default(), system, kernel, ..Info::default() };
    let interfaces = agent.interfaces()?;
    Ok(Guest { agent: format!("qemu {}", printable(&version, 64)), ..super::view(&info, interfaces) })
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

/// Runs a program to its end; returns its output and how it ended. Between looks at it the agent is free for others, and
/// no thread waits.
pub(super) async fn run(
    client: &mut WebSocket,
    socket: &Path,
    params: &ExecParams,
    right: &Right,
) -> Result<(Vec<u8>, Vec<u8>, Exit), Error> {
    let words = program(params)?;
    let input = input(client).await?;
    let pid = ask(socket, move |agent| {
        let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        agent.exec(&words[0], &arguments, &input)
    })
    .await?;
    let deadline = tokio::time::Instant::now() + RUN_LIMIT;
    let (mut pause, mut failures) = (EXEC_POLL.0, 0);
    let lost = right.lost();
    tokio::pin!(lost);
    loop {
        match ask(socket, move |agent| agent.exec_status(pid)).await {
            Ok(Some(finished)) => return Ok((finished.stdout, finished.stderr, finished.exit)),
            Ok(None) => failures = 0,
            // Somebody else may have held the line for longer than we wait.
            Err(error) if is_silence(&error) && failures < SILENCES_MAX => failures += 1,
            Err(error) => return Err(error),
        }
        if tokio::time::Instant::now() > deadline {
            return Err(Error::new(ErrorCode::GuestTimeout, "the program runs on in the guest"));
        }
        let pausing = tokio::time::sleep(pause);
        tokio::pin!(pausing);
        loop {
            let message = tokio::select! {
                () = &mut pausing => break,
                message = client.recv() => message,
                error = &mut lost => {
                    let _ = send_signal(socket, pid, HANG_UP).await;
                    return Err(error);
                }
            };
            match message {
                Some(Ok(Message::Text(text))) => {
                    if let Ok(Control::Signal { signal }) = serde_json::from_str(&text) {
                        send_signal(socket, pid, signal).await?;
                        pause = EXEC_POLL.0;
                    }
                }
                Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => {}
                // As with our agent, whose program is hung up on.
                Some(Ok(Message::Close(_)) | Err(_)) | None => {
                    let _ = send_signal(socket, pid, HANG_UP).await;
                    return Err(Error::new(ErrorCode::Cancelled, "the client has gone"));
                }
            }
        }
        pause = (pause * 2).min(EXEC_POLL.1);
    }
}

/// Asks the agent, on a thread that may wait.
async fn ask<T: Send + 'static>(
    socket: &Path,
    work: impl FnOnce(&mut Qga<UnixStream>) -> Result<T, agent_client::Error> + Send + 'static,
) -> Result<T, Error> {
    let socket = socket.to_owned();
    let asked = tokio::task::spawn_blocking(move || work(&mut connect(&socket)?)).await;
    Ok(asked.map_err(|e| Error::internal("the guest cannot be asked", e))??)
}

fn is_silence(error: &Error) -> bool {
    matches!(error.code(), ErrorCode::Unavailable | ErrorCode::GuestTimeout)
}

/// Sends a program a signal. The agent has no command for it, and starts programs in no group of their own.
async fn send_signal(socket: &Path, pid: i64, signal: i32) -> Result<(), Error> {
    let arguments = ["-c".to_owned(), "kill -\"$0\" \"$1\"".to_owned(), signal.to_string(), pid.to_string()];
    let sent = ask(socket, move |agent| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        agent.run("sh", &arguments, b"", SIGNAL_LIMIT)
    });
    // A program that has just ended takes none.
    sent.await.map(drop)
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
