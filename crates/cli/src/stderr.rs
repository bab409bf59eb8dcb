//! Standard error, for what is said beside a result.
//!
//! It may be full, or closed at the other end. `eprintln!` panics then, which would end the program by SIGABRT in place
//! of the exit status that it owes its caller; these two leave out what cannot be said.

use std::fmt::Arguments;
use std::io::Write;

/// Writes a line to standard error, as `eprintln!` does, if it can be written.
macro_rules! errln {
    ($($text:tt)*) => { $crate::stderr::write(format_args!("{}\n", format_args!($($text)*))) };
}

/// Writes to standard error, as `eprint!` does, if it can be written.
macro_rules! err {
    ($($text:tt)*) => { $crate::stderr::write(format_args!($($text)*)) };
}

pub(crate) use {err, errln};

/// Writes to standard error if it can be written.
pub(crate) fn write(text: Arguments<'_>) {
    let _ = std::io::stderr().lock().write_fmt(text);
}
