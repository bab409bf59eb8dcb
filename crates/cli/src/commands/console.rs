//! `arnia console`.

use super::Run;
use crate::stderr::{err, errln};
use crate::terminal::{self, Raw};
use crate::{Context, Error, ErrorKind};
use client::{Client, Message};
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;

/// Connects to the serial console of a virtual machine. All keys go to the guest but Ctrl-]: Ctrl-] q leaves the
/// console, and the machine goes on; Ctrl-] Ctrl-] sends a Ctrl-].
///
/// Where the input is no terminal, the end of the input leaves the console, too, as soon as the guest is quiet.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia console web
  echo 'uname -a' | arnia console web
  arnia console --follow web < /dev/null")]
pub struct Console {
    /// The virtual machine
    name: String,
    /// Stay until the machine ends, also when the input has ended
    #[arg(long)]
    follow: bool,
}

/// When the console is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// When the machine ends, or the person leaves.
    MachineEnds,
    /// Also when the input has ended and the guest is quiet.
    InputEnds,
}

/// A guest that has written nothing for so long has answered what was typed.
const QUIET: Duration = Duration::from_secs(1);
/// One that never is quiet is left so long after the end of the input.
const QUIET_MAX: Duration = Duration::from_secs(10);

impl Run for Console {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            let until = if self.follow { Until::MachineEnds } else { Until::InputEnds };
            attach(&client, &self.name, until).await
        })
    }
}

/// The daemon closes a console with this when the user may not any more (RFC 6455, 7.4.1).
const POLICY: u16 = 1008;
/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// What was typed, with the escape key taken out; whether to leave.
fn filter(typed: &[u8], escaped: &mut bool) -> (Vec<u8>, bool) {
    let mut for_guest = Vec::new();
    for &byte in typed {
        match (std::mem::take(escaped), byte) {
            (false, ESCAPE) => *escaped = true,
            (true, b'q' | b'Q' | b'x' | b'X') => return (for_guest, true),
            (_, byte) => for_guest.push(byte),
        }
    }
    (for_guest, false)
}

/// Connects standard input and output to the console.
pub(super) async fn attach(client: &Client, name: &str, until: Until) -> Result<ExitCode, Error> {
    use futures_util::{SinkExt, StreamExt};
    let mut console = client.vm_console(name).await?;
    let raw = Raw::enter();
    let restored = raw.restored_on_signal();
    let person = raw.is_terminal();
    if person {
        err!("connected to {name}; Ctrl-] q leaves\r\n");
    }
    let mut typed = terminal::typed();
    let mut escaped = false;
    let mut input_ended: Option<Instant> = None;
    let mut said = Instant::now();
    let left = loop {
        let quiet = input_ended.map(|ended| (said.max(ended) + QUIET).min(ended + QUIET_MAX));
        tokio::select! {
            () = tokio::time::sleep_until(quiet.unwrap_or(said)), if quiet.is_some() && until == Until::InputEnds => {
                break true;
            }
            bytes = typed.recv(), if input_ended.is_none() => match bytes {
                None => input_ended = Some(Instant::now()),
                Some(bytes) => {
                    let (for_guest, leave) =
                        if person { filter(&bytes, &mut escaped) } else { (bytes, false) };
                    if leave {
                        break true;
                    }
                    if !for_guest.is_empty() && console.send(Message::Binary(for_guest.into())).await.is_err() {
                        break false;
                    }
                }
            },
            message = console.next() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    said = Instant::now();
                    let mut stdout = io::stdout().lock();
                    stdout.write_all(&bytes).and_then(|()| stdout.flush()).map_err(|e| {
                        Error::new(ErrorKind::Failed, "the console cannot be shown").with_source(e)
                    })?;
                }
                Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) == POLICY => {
                    drop(raw);
                    return Err(Error::new(ErrorKind::Denied, format!("the console has ended: {}", frame.reason))
                        .with_remedy("ask an admin for a token or the role; the machine goes on"));
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => break false,
                Some(Ok(_)) => {}
            },
        }
    };
    drop(raw);
    drop(restored);
    match left {
        true if !person => {}
        true => errln!("\nleft the console; {name} goes on"),
        false => errln!("\nthe console has ended: {name} stops or has stopped"),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_key_leaves_and_can_be_typed() {
        let mut escaped = false;
        assert_eq!(filter(b"ls\r\x1d\x1d", &mut escaped), (b"ls\r\x1d".to_vec(), false));
        assert_eq!(filter(b"a\x1d", &mut escaped), (b"a".to_vec(), false));
        assert_eq!(filter(b"q", &mut escaped), (Vec::new(), true));
    }
}
