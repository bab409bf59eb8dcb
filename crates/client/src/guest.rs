//! What goes on inside guests.

use crate::{Client, Error, escaped};
use api::v1::guest::Guest;

impl Client {
    /// What the agent in a guest tells of it.
    ///
    /// # Errors
    /// When the machine does not run or has no agent that answers.
    pub async fn vm_guest(&self, name: &str) -> Result<Guest, Error> {
        self.get(&format!("/v1/vms/{}/guest", escaped(name))).await
    }
}
