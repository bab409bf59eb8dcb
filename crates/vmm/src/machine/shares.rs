//! The folders of the host that the guest sees.

use crate::Error;
use api::agent::shares::{ListedShare, Listing};
use api::worker::config::ShareConfig;
use share::Link;
use std::sync::{Mutex, PoisonError};
use virtio::fs::{Fs, FsControl};

/// The shares of a machine: the device's, and the list of them that the guest reads.
pub struct Shares {
    control: FsControl,
    listing: Mutex<Listing>,
}

impl Shares {
    /// Makes the device with its first shares.
    ///
    /// # Errors
    /// When one cannot be as it is described, or the host refuses the device.
    pub fn make(configs: &[ShareConfig]) -> Result<(Fs, Shares), Error> {
        let device = Fs::new()
            .map_err(|e| Error::host("the device for shared folders cannot be made").with_source(e))?;
        let shares = Shares { control: device.control(), listing: Mutex::default() };
        shares.tell(&Listing::default());
        for config in configs {
            shares.add(config).map_err(|why| {
                Error::bad_input(format!("the share {:?} cannot be: {why}", config.name))
                    .with_advice("check `shares` in the configuration")
            })?;
        }
        Ok((device, shares))
    }

    /// Adds one.
    ///
    /// # Errors
    /// A sentence about what cannot be.
    pub fn add(&self, config: &ShareConfig) -> Result<(), String> {
        let key = config.key.parse().map_err(|e: share::BadKey| e.to_string())?;
        let mut listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        self.control.add(&config.name, config.id, Link::new(&config.socket, key))?;
        listing.shares.push(ListedShare {
            name: config.name.clone(),
            target: config.target.clone(),
            read_only: config.read_only,
        });
        self.tell(&listing);
        Ok(())
    }

    /// Takes one away; whether there was one. The device has to be woken.
    pub fn remove(&self, name: &str) -> bool {
        let mut listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        listing.shares.retain(|share| share.name != name);
        self.tell(&listing);
        self.control.remove(name)
    }

    fn tell(&self, listing: &Listing) {
        self.control.set_listing(serde_json::to_vec(listing).expect("plain data"));
    }
}
