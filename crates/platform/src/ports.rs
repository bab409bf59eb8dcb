//! Byte-wide port devices on the port I/O bus.

use device::{Bus, BusDevice, Overlap};
use std::sync::Arc;

/// A device made of byte-wide ports, as everything that came from the ISA bus is. Ports are named by
/// their absolute number, so that one device may own several ranges.
pub(crate) trait PortDevice: Send + Sync + 'static {
    fn port_read(&self, port: u16) -> u8;
    fn port_write(&self, port: u16, value: u8);
}

/// One range of a [`PortDevice`] on the bus. A wide access is a sequence of byte accesses to ascending
/// ports, as the ISA bus splits it.
struct PortRange<T> {
    device: Arc<T>,
    first: u16,
}

impl<T: PortDevice> BusDevice for PortRange<T> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let first = self.first.wrapping_add(offset as u16);
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = self.device.port_read(first.wrapping_add(at as u16));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let first = self.first.wrapping_add(offset as u16);
        for (at, byte) in data.iter().enumerate() {
            self.device.port_write(first.wrapping_add(at as u16), *byte);
        }
    }
}

/// Places ranges of ports (first port and number of ports) of one device on the bus.
pub(crate) fn attach<T: PortDevice>(
    device: &Arc<T>,
    pio: &Bus,
    ranges: &[(u16, u16)],
) -> Result<(), Overlap> {
    for &(first, len) in ranges {
        pio.insert(first.into(), len.into(), Arc::new(PortRange { device: device.clone(), first }))?;
    }
    Ok(())
}
