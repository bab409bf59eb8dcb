//! Why a record could not be read or written.

use std::fmt;

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such record.
    NotFound,
    /// There is one already.
    AlreadyExists,
    /// It was changed since it was read.
    Changed,
    /// The file cannot be used, or holds something that it should not.
    Database,
}

/// A record could not be read or written.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<rusqlite::Error>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), source: None }
    }

    pub(crate) fn database(message: impl Into<String>, source: rusqlite::Error) -> Error {
        Error { kind: ErrorKind::Database, message: message.into(), source: Some(source) }
    }

    pub(crate) fn not_found(what: &str, name: &str) -> Error {
        Error::new(ErrorKind::NotFound, format!("there is no {what} {name:?}"))
    }

    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Says more of a record that exists already.
    pub(crate) fn or_exists(error: rusqlite::Error, what: &str, name: &str) -> Error {
        let taken = error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation);
        match taken {
            true => Error::new(ErrorKind::AlreadyExists, format!("there is a {what} {name:?} already")),
            false => error.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

impl From<rusqlite::Error> for Error {
    fn from(source: rusqlite::Error) -> Error {
        Error::database("the records cannot be used", source)
    }
}
