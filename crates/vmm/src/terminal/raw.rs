//! Raw mode, and back: whatever way the program ends.

use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr,
    tcgetpgrp, tcsetattr,
};
use std::io::{self, stdin};
use std::sync::{Mutex, Once, PoisonError};

/// The terminal's modes before, while raw mode is on.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode on standard input; ends when dropped.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Switches standard input to raw mode: keys reach the guest one by one, Ctrl-C among them. `None`
    /// when it is not a terminal or belongs to another process group in the foreground now.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn enter() -> io::Result<Option<RawMode>> {
        let stdin = stdin();
        // A background process that touches the terminal's modes is stopped by SIGTTOU.
        if !isatty(&stdin) || tcgetpgrp(&stdin).is_ok_and(|group| group != rustix::process::getpgrp()) {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.input_modes -= InputModes::BRKINT | InputModes::ICRNL | InputModes::INLCR;
        raw.input_modes -= InputModes::IGNCR | InputModes::INPCK | InputModes::ISTRIP | InputModes::IXON;
        raw.control_modes =
            (raw.control_modes - (ControlModes::CSIZE | ControlModes::PARENB)) | ControlModes::CS8;
        raw.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::IEXTEN | LocalModes::ISIG;
        // Output processing stays: the program's own messages end their lines with LF alone.
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;

        restore_at_panic();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(RawMode(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal its modes back, if raw mode is on. Callable from any thread, any number of times.
pub fn restore() {
    // Not waiting: a panic may come from inside.
    if let Ok(mut before) = BEFORE.try_lock()
        && let Some(before) = before.take()
    {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &before);
    }
}

/// A panic ends the program without running destructors when it is built to abort.
fn restore_at_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            earlier(info);
        }));
    });
}
