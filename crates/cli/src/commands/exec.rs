//! `arnia exec`: a program in a guest, with its streams, signals and exit status.

use super::Run;
use crate::progress::shown;
use crate::terminal::{self, READ_LEN, Raw};
use crate::{Context, Error};
use api::agent::{Control, ExecParams, Exit, STDIN_WINDOW};
use api::v1::error::ErrorCode;
use api::v1::guest::ExecMessage;
use client::{Client, ExecEvent};
use std::io::{self, Write};
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How programs run in guests.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// As this user of the guest, by name or number [default: root]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// In this folder of the guest [default: the user's home]
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<String>,
    /// With this environment variable; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Seconds to wait for a guest that is still starting
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
        value_parser = clap::value_parser!(u32).range(0..=i64::from(api::v1::guest::WAIT_SECONDS_MAX)))]
    wait: u32,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".into()),
    }
}

/// Runs a program in a virtual machine, by the agent in the guest.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia exec web -- uname -r
  arnia exec web --user ann -- sh -c 'echo $HOME'
  arnia exec -it web -- top
  tar c site | arnia exec -i web -- tar x -C /srv

Exit status: that of the program, or 128 and the number of the signal that ended it; 127 if the guest has no such
program, 126 if the guest cannot run it, 125 if it does not come to that.")]
pub struct Exec {
    /// The virtual machine
    name: String,
    /// Pass standard input on to the program
    #[arg(short, long)]
    interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    options: Options,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Run for Exec {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        run(context, &self.name, self.command.clone(), &self.options, self.interactive, self.tty)
    }
}

/// Runs a program as the command line asks for.
pub(super) fn run(
    context: &Context,
    name: &str,
    command: Vec<String>,
    options: &Options,
    input: bool,
    terminal: bool,
) -> Result<ExitCode, Error> {
    let mut params = ExecParams {
        command,
        environment: options.env.iter().cloned().collect(),
        directory: options.workdir.clone(),
        user: options.user.clone(),
        terminal: None,
    };
    if terminal {
        params.terminal = Some(terminal::size().unwrap_or(api::agent::WindowSize { rows: 24, columns: 80 }));
        if let Ok(kind) = std::env::var("TERM") {
            params.environment.entry("TERM".into()).or_insert(kind);
        }
    }
    let result =
        context.with_daemon(async |client| attach(&client, name, &params, input, options.wait).await);
    result.map_err(|error| if error.has_status() { error } else { error.with_status(125) })
}

/// Runs a program with this program's streams, and returns its exit status.
async fn attach(
    client: &Client,
    name: &str,
    params: &ExecParams,
    input: bool,
    wait: u32,
) -> Result<ExitCode, Error> {
    let exec = begin(client, name, params, wait).await?;
    // Not before, so that a signal ends a program that waits for its guest.
    relay(exec, Signals::take()?, input, params.terminal.is_some()).await
}

/// Has a program begin, at the latest after `wait` seconds, which the guest has to boot.
pub(super) async fn begin(
    client: &Client,
    name: &str,
    params: &ExecParams,
    wait: u32,
) -> Result<client::Exec, Error> {
    let starting = client.vm_exec(name, params, wait);
    shown_unmapped(&format!("waiting for the guest of {name}"), starting).await
}

fn exit_code(exit: Exit) -> ExitCode {
    // A status is the lowest byte of what a program says (wait(2)).
    ExitCode::from((exit.code() & 0xff) as u8)
}

async fn shown_unmapped<T>(
    doing: &str,
    work: impl Future<Output = Result<T, client::Error>>,
) -> Result<T, Error> {
    let mut status = None;
    let result = shown(doing, async {
        let result = work.await;
        if let Err(error) = &result
            && error.is_of_guest()
        {
            status = Some(match error.api().code {
                ErrorCode::NotFound => 127,
                ErrorCode::Invalid => 126,
                _ => 125,
            });
        }
        result
    })
    .await;
    result.map_err(|error| match status {
        Some(status) => error.with_status(status),
        None => error,
    })
}

/// Signals of this program that are for the one in the guest. From when they are taken on, none ends this program.
pub(super) struct Signals {
    resized: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(super) fn take() -> Result<Signals, Error> {
        let take =
            |kind| signal(kind).map_err(|e| Error::failed("signals cannot be taken over").with_source(e));
        Ok(Signals {
            resized: take(SignalKind::window_change())?,
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
        })
    }

    /// Waits for one that asks for the end, and returns its number.
    pub(super) async fn end(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => libc::SIGINT as u8,
            _ = self.terminate.recv() => libc::SIGTERM as u8,
        }
    }

    async fn next(&mut self) -> Option<Control> {
        tokio::select! {
            _ = self.resized.recv() => terminal::size().map(Control::Resize),
            _ = self.interrupt.recv() => Some(Control::Signal { signal: libc::SIGINT }),
            _ = self.terminate.recv() => Some(Control::Signal { signal: libc::SIGTERM }),
        }
    }
}

/// Carries everything between this program and the one in the guest until that ends; returns its exit status.
pub(super) async fn relay(
    exec: client::Exec,
    mut signals: Signals,
    input: bool,
    terminal: bool,
) -> Result<ExitCode, Error> {
    let client::Exec { input: mut to_guest, output: mut from_guest } = exec;
    let _raw = (terminal && input).then(Raw::enter);
    let mut typed = input.then(terminal::typed);
    if !input {
        // It may have ended already.
        let _ = to_guest.close().await;
    }
    // Input that the program has not taken yet. More than the window is not sent, so that signals pass.
    let mut untaken = 0;
    loop {
        let next_typed = async {
            match &mut typed {
                Some(typed) => typed.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = from_guest.next() => match event? {
                ExecEvent::Stdout(bytes) => write(&mut io::stdout().lock(), &bytes)?,
                ExecEvent::Stderr(bytes) => write(&mut io::stderr().lock(), &bytes)?,
                ExecEvent::Message(ExecMessage::Exited(exit)) => return Ok(exit_code(exit)),
                ExecEvent::Message(ExecMessage::InputTaken { bytes }) => {
                    untaken -= usize::try_from(bytes).unwrap_or(usize::MAX).min(untaken);
                }
                ExecEvent::Message(_) => {}
            },
            bytes = next_typed, if untaken + READ_LEN <= STDIN_WINDOW => match bytes {
                Some(bytes) => {
                    untaken += bytes.len();
                    // A program that has ended takes nothing; how it ended is on the way.
                    let _ = to_guest.write(&bytes).await;
                }
                None => {
                    typed = None;
                    let _ = to_guest.close().await;
                }
            },
            Some(control) = signals.next() => {
                let _ = to_guest.control(&control).await;
            }
        }
    }
}

fn write(to: &mut impl Write, bytes: &[u8]) -> Result<(), Error> {
    to.write_all(bytes).and_then(|()| to.flush()).map_err(|e| match e.kind() {
        // As if this program had been ended by the signal that a reader's end sends.
        io::ErrorKind::BrokenPipe => {
            Error::failed("nobody reads the program's output any more").with_status(128 + libc::SIGPIPE as u8)
        }
        _ => Error::failed("the program's output cannot be written").with_source(e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_a_name() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(variable("A="), Ok(("A".into(), String::new())));
        assert!(variable("=b").is_err() && variable("A").is_err());
    }
}
