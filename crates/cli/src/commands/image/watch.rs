//! Progress on the terminal: a bar where there is a terminal, a line for each step elsewhere.

use std::io::{IsTerminal, stderr};

use image::Progress;
use indicatif::ProgressBar;

use crate::bar;
use crate::stderr::errln;

/// Shows progress on standard error.
pub(crate) struct Watch {
    bar: Option<ProgressBar>,
    verbose: bool,
}

impl Watch {
    /// Begins to show. With `verbose`, what tools print is shown too.
    pub(crate) fn new(verbose: bool) -> Watch {
        Watch { bar: stderr().is_terminal().then(ProgressBar::new_spinner), verbose }
    }
}

impl Progress for Watch {
    fn begin(&mut self, what: &str, total: Option<u64>) {
        let Some(bar) = &self.bar else {
            errln!("{what}");
            return;
        };
        bar::begin(bar, what.to_owned(), total);
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn line(&mut self, text: &str) {
        match &self.bar {
            Some(bar) if self.verbose => bar.println(text),
            None if self.verbose => errln!("  {text}"),
            _ => {}
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
