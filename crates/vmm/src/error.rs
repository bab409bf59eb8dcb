//! What goes wrong before or beside the guest, told to the person who started the machine.

use std::error::Error as StdError;
use std::fmt::{self, Write as _};

/// What went wrong, in kind; decides the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// What the user asked for is wrong or cannot be used as it is. Nothing was changed.
    BadInput,
    /// The host refused something that a machine needs.
    Host,
    /// The program itself is at fault.
    Internal,
}

/// A failure: what was being done, what to do about it, and what caused it.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    advice: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Creates an error; `message` is a clause without the source's text and without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Box::new(Inner { kind, message: message.into(), advice: None, source: None }))
    }

    /// A mistake in what the user asked for.
    pub fn bad_input(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::BadInput, message)
    }

    /// A refusal of the host.
    pub fn host(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Host, message)
    }

    /// Adds the error that caused this one.
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Error {
        self.0.source = Some(Box::new(source));
        self
    }

    /// Adds what the user can do about it, as a clause in the imperative.
    pub fn with_advice(mut self, advice: impl Into<String>) -> Error {
        self.0.advice = Some(advice.into());
        self
    }

    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The whole story in one line: message, causes, advice.
    pub fn report(&self) -> String {
        let mut text = self.0.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            // A wrapper that prints what it wraps would say it twice.
            let said = error.to_string();
            if !text.ends_with(&said) {
                let _ = write!(text, ": {said}");
            }
            cause = error.source();
        }
        if let Some(advice) = &self.0.advice {
            let _ = write!(text, "; {advice}");
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_everything_once() {
        let cause = std::io::Error::from_raw_os_error(2);
        let error = Error::bad_input("the kernel \"x\" cannot be opened")
            .with_source(cause)
            .with_advice("check the path");
        assert_eq!(
            error.report(),
            "the kernel \"x\" cannot be opened: No such file or directory (os error 2); check the path"
        );
        assert_eq!(error.to_string(), "the kernel \"x\" cannot be opened");
    }
}
