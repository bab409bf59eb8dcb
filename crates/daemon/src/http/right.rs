//! The right by which a request was admitted, for what goes on after the request was answered: streams and WebSockets.

use super::access::{Credential, Gate};
use crate::Error;
use crate::util;
use std::sync::Arc;
use std::time::Duration;

/// The host's clock may be set: who waits for a time looks at it this often.
const LOOK: Duration = Duration::from_secs(60);

/// What a caller may do, and by what.
#[derive(Clone, Debug)]
pub(crate) struct Right {
    pub(super) gate: Arc<Gate>,
    pub(super) credential: Credential,
    pub(super) operation: String,
    pub(super) project: String,
}

impl Right {
    /// Waits until the caller may not any more: the token was removed or has ended, the user has lost the role, or the
    /// project is gone. Returns why.
    pub(crate) async fn lost(&self) -> Error {
        let mut changes = self.gate.rights_changed();
        loop {
            changes.borrow_and_update();
            let caller = match self.gate.admitted(&self.credential, &self.operation, &self.project) {
                Ok(caller) => caller,
                Err(error) => return error,
            };
            let over = async {
                match caller.until {
                    None => std::future::pending().await,
                    Some(end) => {
                        let left = u64::try_from(end - util::now()).unwrap_or(0);
                        tokio::time::sleep(Duration::from_secs(left).min(LOOK)).await;
                    }
                }
            };
            tokio::select! {
                () = over => {}
                changed = changes.changed() => if changed.is_err() {
                    // The daemon ends, and all connections with it.
                    std::future::pending::<()>().await;
                },
            }
        }
    }
}
