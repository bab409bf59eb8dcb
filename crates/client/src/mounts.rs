//! Folders of the host that guests see.

use crate::{Client, Error, escaped};
use api::v1::mount::{Mount, MountConfig};
use api::v1::page::Page;

impl Client {
    /// The folders that a machine is shown.
    ///
    /// # Errors
    /// When there is no such machine.
    pub async fn mounts(&self, name: &str) -> Result<Vec<Mount>, Error> {
        Ok(self.get::<Page<Mount>>(&format!("/v1/vms/{}/mounts", escaped(name))).await?.items)
    }

    /// Shows a guest a folder of the daemon's host.
    ///
    /// # Errors
    /// When the folder cannot be shown, or the guest cannot mount it.
    pub async fn mount_create(&self, name: &str, mount: &MountConfig) -> Result<Mount, Error> {
        self.post(&format!("/v1/vms/{}/mounts", escaped(name)), mount).await
    }

    /// Shows it no more; with `force` although somebody in the guest uses it.
    ///
    /// # Errors
    /// When there is none at `target`, or somebody uses it.
    pub async fn mount_delete(&self, name: &str, target: &str, force: bool) -> Result<(), Error> {
        let path = format!("/v1/vms/{}/mounts/{}", escaped(name), escaped(target));
        self.delete(&if force { format!("{path}?force=true") } else { path }).await
    }
}
