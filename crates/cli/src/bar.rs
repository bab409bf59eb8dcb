//! What progress looks like: one line, in a terminal of any width.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// How much of the line is for what is done. Longer words are cut off.
const KNOWN: &str = "{msg:36!} {wide_bar} {bytes:>10} of {total_bytes:10} {eta:>4}";
const UNKNOWN: &str = "{spinner} {wide_msg} {elapsed}";
const REDRAWN: Duration = Duration::from_millis(120);

/// The look of work of `total` bytes, or of work that nobody knows the size of.
pub(crate) fn style(total: Option<u64>) -> ProgressStyle {
    let template = if total.is_some() { KNOWN } else { UNKNOWN };
    ProgressStyle::with_template(template).expect("the template is right")
}

/// Begins another step.
pub(crate) fn begin(bar: &ProgressBar, what: String, total: Option<u64>) {
    // A step of no bytes is one that tells no number.
    let total = total.filter(|&total| total > 0);
    bar.reset();
    bar.set_length(total.unwrap_or(0));
    bar.set_style(style(total));
    bar.set_message(what);
    bar.enable_steady_tick(REDRAWN);
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::{ProgressDrawTarget, TermLike};
    use std::io;
    use std::sync::{Arc, Mutex};

    /// A terminal that keeps what is written to it.
    #[derive(Clone, Debug)]
    struct Paper {
        columns: u16,
        written: Arc<Mutex<String>>,
    }

    impl TermLike for Paper {
        fn width(&self) -> u16 {
            self.columns
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)?;
            self.write_str("\n")
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.written.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.write_str("\n")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_never_wider_than_the_terminal() {
        let long = "cloning a-machine-with-a-rather-long-name: making the disk root safe";
        for columns in [72, 80, 96, 200] {
            for total in [Some(40 << 30), Some(0), None] {
                let paper = Paper { columns, written: Arc::default() };
                let target = ProgressDrawTarget::term_like(Box::new(paper.clone()));
                let bar = ProgressBar::with_draw_target(None, target);
                begin(&bar, long.to_owned(), total);
                bar.disable_steady_tick();
                bar.set_position(1234 << 20);
                bar.force_draw();
                let written = paper.written.lock().unwrap().clone();
                assert!(written.contains("cloning a-machine"), "{written:?}");
                for line in written.lines() {
                    let width = console_width(line);
                    assert!(width <= columns as usize, "{width} of {columns}: {line:?}");
                }
                assert_eq!(written.contains(" of "), total == Some(40 << 30), "{written:?}");
            }
        }
    }

    /// Columns that a line takes, without what sets colours.
    fn console_width(line: &str) -> usize {
        let mut visible = 0;
        let mut rest = line.chars();
        while let Some(c) = rest.next() {
            match c {
                '\x1b' => drop(rest.by_ref().find(char::is_ascii_alphabetic)),
                _ => visible += 1,
            }
        }
        visible
    }
}
