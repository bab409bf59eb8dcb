//! The screen of a machine and its keyboard.

use crate::{Client, Error, escaped};
use api::v1::screen::Keys;

impl Client {
    /// A picture of the screen, as PNG.
    ///
    /// # Errors
    /// When the machine does not run or has no display.
    pub async fn screenshot(&self, name: &str) -> Result<Vec<u8>, Error> {
        Ok(self.call("GET", &format!("/v1/vms/{}/screenshot", escaped(name)), &[], None).await?.1)
    }

    /// What a screen in a text mode shows.
    ///
    /// # Errors
    /// As [`Client::screenshot`], or when the screen shows graphics.
    pub async fn screen_text(&self, name: &str) -> Result<String, Error> {
        let body = self.call("GET", &format!("/v1/vms/{}/screen-text", escaped(name)), &[], None).await?.1;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Presses keys.
    ///
    /// # Errors
    /// When there is no such key, or the machine does not run or has no keyboard.
    pub async fn keys(&self, name: &str, keys: &Keys) -> Result<(), Error> {
        let body = serde_json::to_vec(keys).map_err(|e| Error::malformed(e.to_string()))?;
        self.call("POST", &format!("/v1/vms/{}/keys", escaped(name)), &[], Some(body)).await.map(drop)
    }
}
