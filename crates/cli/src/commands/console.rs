//! `arnia console`.

use super::Run;
use crate::terminal::{self, Raw};
use crate::{Context, Error, ErrorKind};
use client::{Client, Message};
use std::io::{self, Write};
use std::process::ExitCode;

/// Connects to the serial console of a virtual machine. All keys go to the guest but Ctrl-]: Ctrl-] q leaves the
/// console, and the machine goes on; Ctrl-] Ctrl-] sends a Ctrl-].
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  arnia console web")]
pub struct Console {
    /// The virtual machine
    name: String,
}

impl Run for Console {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| attach(&client, &self.name).await)
    }
}

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

/// Connects standard input and output to the console, until the machine ends or the person leaves.
pub(super) async fn attach(client: &Client, name: &str) -> Result<ExitCode, Error> {
    use futures_util::{SinkExt, StreamExt};
    let mut console = client.vm_console(name).await?;
    let raw = Raw::enter();
    let person = raw.is_terminal();
    if person {
        eprint!("connected to {name}; Ctrl-] q leaves\r\n");
    }
    let mut typed = terminal::typed();
    let mut escaped = false;
    let mut input_ended = false;
    let left = loop {
        tokio::select! {
            bytes = typed.recv(), if !input_ended => match bytes {
                // The end of a file that was the input is not the end of the guest.
                None => input_ended = true,
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
                    let mut stdout = io::stdout().lock();
                    stdout.write_all(&bytes).and_then(|()| stdout.flush()).map_err(|e| {
                        Error::new(ErrorKind::Failed, "the console cannot be shown").with_source(e)
                    })?;
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => break false,
                Some(Ok(_)) => {}
            },
        }
    };
    drop(raw);
    match left {
        true => eprintln!("\nleft the console; {name} goes on"),
        false => eprintln!("\nthe console has ended: {name} stops or has stopped"),
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
