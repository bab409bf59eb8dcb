//! The person's terminal.

use crate::ending::{OnSignal, on_signal};
use api::agent::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, Read};
use tokio::sync::mpsc;

/// Bytes that are read at once.
pub(crate) const READ_LEN: usize = 32 * 1024;

/// The terminal in raw mode, as long as this lives.
#[derive(Debug)]
pub(crate) struct Raw(Option<Termios>);

impl Raw {
    /// Makes it raw, if standard input is one.
    pub(crate) fn enter() -> Raw {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &raw);
        }
        Raw(before)
    }

    /// Has the terminal made as it was also when a signal ends the program.
    pub(crate) fn restored_on_signal(&self) -> Option<OnSignal> {
        let before = self.0.clone()?;
        Some(on_signal(move || {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
        }))
    }

    /// Whether standard input is a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// The size of the terminal, if there is one.
pub(crate) fn size() -> Option<WindowSize> {
    let size = tcgetwinsize(io::stdin()).or_else(|_| tcgetwinsize(io::stdout())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(WindowSize { rows: size.ws_row, columns: size.ws_col })
}

/// What comes on standard input; the channel ends with it.
pub(crate) fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (sender, typed) = mpsc::channel::<Vec<u8>>(4);
    // A thread of its own: a read of a terminal cannot be given up. It ends with the program.
    std::thread::spawn(move || {
        let mut buffer = vec![0; READ_LEN];
        while let Ok(count) = io::stdin().read(&mut buffer) {
            if count == 0 || sender.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    typed
}
