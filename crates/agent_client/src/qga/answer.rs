//! What QEMU's agent answers.
//!
//! Long answers are read into types of their own: whatever else a hostile guest puts into them takes no memory, while a
//! [`serde_json::Value`] may take many times its text's.

use std::borrow::Cow;

use api::agent::{AgentErrorKind, Exit};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::nonsense;
use crate::agent::Finished;
use crate::error::{Error, ErrorKind};

/// What the agent keeps of each of a program's outputs, in bytes (`GUEST_EXEC_MAX_OUTPUT`, qga/commands.c).
const OUTPUT_LEN_MAX: usize = 16 << 20;
/// How much of a refusal's text is kept, in characters.
const REFUSAL_LEN_MAX: usize = 500;

#[derive(Deserialize)]
struct Answer<'a, T> {
    #[serde(rename = "return")]
    value: Option<T>,
    #[serde(borrow)]
    error: Option<Refusal<'a>>,
}

#[derive(Deserialize)]
struct Refusal<'a> {
    #[serde(default, borrow)]
    class: Cow<'a, str>,
    #[serde(default, borrow)]
    desc: Cow<'a, str>,
}

/// Takes an answer to `command` apart.
///
/// # Errors
/// [`ErrorKind::Refused`] with the agent's reason, [`ErrorKind::Protocol`] for what makes no sense.
pub(super) fn parse<'a, T: Deserialize<'a>>(command: &str, line: &'a [u8]) -> Result<T, Error> {
    let answer: Answer<'_, T> = serde_json::from_slice(line).map_err(|_| nonsense(command))?;
    let Some(error) = answer.error else { return answer.value.ok_or_else(|| nonsense(command)) };
    let kind = match error.class.as_ref() {
        // It may also be one that the guest's administrator has switched off.
        "CommandNotFound" => AgentErrorKind::UnsupportedVersion,
        _ => AgentErrorKind::Failed,
    };
    let text: String = match error.desc.is_empty() {
        true => "no reason given".into(),
        false => error.desc.chars().take(REFUSAL_LEN_MAX).collect(),
    };
    Err(Error::new(ErrorKind::Refused(kind), format!("{command}: {text}")))
}

/// To `guest-exec`.
#[derive(Deserialize)]
pub(super) struct Started {
    pub(super) pid: i64,
}

/// To `guest-exec-status`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct ExecStatus<'a> {
    pub(super) exited: bool,
    exitcode: Option<i64>,
    signal: Option<i64>,
    #[serde(borrow)]
    out_data: Cow<'a, str>,
    #[serde(borrow)]
    err_data: Cow<'a, str>,
    out_truncated: bool,
    err_truncated: bool,
}

impl ExecStatus<'_> {
    /// How the program ended and what it wrote.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] if that makes no sense, or is not all.
    pub(super) fn finished(&self) -> Result<Finished, Error> {
        let number = |number: Option<i64>| i32::try_from(number?).ok();
        let exit = match (number(self.exitcode), number(self.signal)) {
            (_, Some(signal)) => Exit::Signal(signal),
            (Some(status), None) => Exit::Status(status),
            (None, None) => return Err(nonsense("guest-exec-status")),
        };
        if self.out_truncated || self.err_truncated {
            let most = OUTPUT_LEN_MAX >> 20;
            return Err(Error::protocol(format!(
                "the program has ended and wrote more than the {most} MiB that QEMU's agent keeps"
            )));
        }
        let data = |text: &str| BASE64_STANDARD.decode(text).map_err(|_| nonsense("guest-exec-status"));
        Ok(Finished { exit, stdout: data(&self.out_data)?, stderr: data(&self.err_data)? })
    }
}

/// To `guest-file-read`.
#[derive(Deserialize)]
pub(super) struct FileRead<'a> {
    #[serde(rename = "buf-b64", default, borrow)]
    data: Cow<'a, str>,
    #[serde(default)]
    pub(super) eof: bool,
}

impl FileRead<'_> {
    /// What was read.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] if it makes no sense.
    pub(super) fn bytes(&self) -> Result<Vec<u8>, Error> {
        BASE64_STANDARD.decode(self.data.as_ref()).map_err(|_| nonsense("guest-file-read"))
    }
}

/// To `guest-file-write`.
#[derive(Deserialize)]
pub(super) struct FileWritten {
    pub(super) count: usize,
}
