//! What is on a machine's screen, and keys for it.

use super::App;
use crate::Error;
use api::v1::error::ErrorCode;
use api::v1::screen::{KEYS_MAX, Keys};
use api::worker::control::{Reply, Request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::sync::Arc;
use store::VmRecord;

impl App {
    /// A picture of the screen, as PNG.
    pub(crate) async fn screenshot(self: &Arc<App>, vm: &VmRecord) -> Result<Vec<u8>, Error> {
        match self.ask_running(vm, Request::Screenshot {}).await? {
            Reply::Screenshot(shot) => STANDARD.decode(shot.png).map_err(|e| odd().with_cause(e)),
            _ => Err(odd()),
        }
    }

    /// The lines of a screen in a text mode.
    pub(crate) async fn screen_text(self: &Arc<App>, vm: &VmRecord) -> Result<String, Error> {
        match self.ask_running(vm, Request::ScreenText {}).await? {
            Reply::ScreenText(text) => match text.lines {
                Some(lines) => Ok(lines.iter().map(|line| format!("{line}\n")).collect()),
                None => Err(Error::new(ErrorCode::WrongState, "the screen shows graphics")
                    .with_remedy("take a picture of it")),
            },
            _ => Err(odd()),
        }
    }

    /// Presses keys. Returns before the guest has read them.
    pub(crate) async fn keys(self: &Arc<App>, vm: &VmRecord, keys: Keys) -> Result<(), Error> {
        let Keys { keys, text } = keys;
        if keys.is_empty() && text.is_empty() {
            return Err(Error::new(ErrorCode::Invalid, "there is neither a key nor a text"));
        }
        if keys.len() > KEYS_MAX || text.len() > KEYS_MAX {
            let message = format!("more than {KEYS_MAX} keys or bytes of text are not taken at once");
            return Err(Error::new(ErrorCode::Invalid, message));
        }
        self.ask_running(vm, Request::Keys { keys, text }).await.map(drop)
    }

    /// Asks the process of a machine that must run.
    async fn ask_running(self: &Arc<App>, vm: &VmRecord, request: Request) -> Result<Reply, Error> {
        self.running(vm)?;
        self.folder(&vm.id).control().ask(request).await
    }
}

fn odd() -> Error {
    Error::new(ErrorCode::Internal, "the machine's process answered something else")
}
