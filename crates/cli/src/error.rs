//! Why a command failed: cause, remedy, exit status.

use std::error::Error as StdError;
use std::fmt;
use std::process::ExitCode;

/// The kind of a failure; it decides the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The host, the daemon or the program failed: status 1.
    Failed,
    /// The input is wrong; nothing was changed: status 2. Wrong options have the same.
    BadInput,
    /// What was named does not exist: status 3.
    NotFound,
    /// The state of something does not allow it, or somebody else was faster: status 4.
    Conflict,
    /// The caller may not: status 5.
    Denied,
    /// The daemon cannot be reached: status 6.
    Unreachable,
}

impl ErrorKind {
    /// The program's exit status.
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            ErrorKind::Failed => 1,
            ErrorKind::BadInput => 2,
            ErrorKind::NotFound => 3,
            ErrorKind::Conflict => 4,
            ErrorKind::Denied => 5,
            ErrorKind::Unreachable => 6,
        })
    }
}

/// A failure to tell the person at the terminal: what happened, why, and what to do next.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    remedy: Option<String>,
    status: Option<u8>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A failure of this kind. The message is a clause without a final stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), remedy: None, status: None, source: None }
    }

    /// The host, the daemon or the program failed.
    pub fn failed(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Failed, message)
    }

    /// The input is wrong.
    pub fn bad_input(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::BadInput, message)
    }

    /// Adds the cause.
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.source = Some(source.into());
        self
    }

    /// Adds what to do next.
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Error {
        self.remedy = Some(remedy.into());
        self
    }

    /// Says what it is about, where several things are done at once.
    pub fn about(mut self, what: &str) -> Error {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Gives it another exit status than that of its kind.
    pub fn with_status(mut self, status: u8) -> Error {
        self.status = Some(status);
        self
    }

    /// Whether it has an exit status of its own.
    pub fn has_status(&self) -> bool {
        self.status.is_some()
    }

    /// The program's exit status.
    pub fn exit_code(&self) -> ExitCode {
        self.status.map_or_else(|| self.kind.exit_code(), ExitCode::from)
    }

    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Message, causes and remedy, for the terminal.
    pub fn report(&self) -> String {
        let mut text = self.message.clone();
        let mut source = self.source();
        while let Some(error) = source {
            text.push_str(&format!(": {error}"));
            source = error.source();
        }
        if let Some(remedy) = &self.remedy {
            text.push_str(&format!("\n  {remedy}"));
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_holds_cause_and_remedy() {
        let error = Error::bad_input("the file \"x\" cannot be read")
            .with_source(std::io::Error::from(std::io::ErrorKind::NotFound))
            .with_remedy("check the name");
        assert_eq!(error.report(), "the file \"x\" cannot be read: entity not found\n  check the name");
        assert_eq!(error.kind().exit_code(), ExitCode::from(2));
    }
}
