//! Ports of the host that lead into guests.

use crate::{Client, Error, escaped};
use api::v1::network::Port;
use api::v1::page::Page;

impl Client {
    /// The ports that lead into a machine.
    ///
    /// # Errors
    /// When there is no such machine.
    pub async fn ports(&self, name: &str) -> Result<Vec<Port>, Error> {
        Ok(self.get::<Page<Port>>(&format!("/v1/vms/{}/ports", escaped(name))).await?.items)
    }

    /// Lets a port of the host lead into a machine, and returns the rule as it is.
    ///
    /// # Errors
    /// When the host does not give the port.
    pub async fn port_create(&self, name: &str, port: &Port) -> Result<Port, Error> {
        self.post(&format!("/v1/vms/{}/ports", escaped(name)), port).await
    }

    /// Closes the port that listens at `[ADDRESS:]PORT[/tcp|/udp]`.
    ///
    /// # Errors
    /// When there is none.
    pub async fn port_delete(&self, name: &str, place: &str) -> Result<(), Error> {
        self.delete(&format!("/v1/vms/{}/ports/{}", escaped(name), escaped(place))).await
    }
}
