//! ACPI tables (ACPI specification 6.5): RSDP, XSDT, FADT, FACS, DSDT, MADT, MCFG, WAET.
//!
//! The machine is a PC in ACPI mode from the start, with fixed hardware (PM1, PM timer, GPE0), a power
//! button, one I/O APIC, PCI configuration space by ECAM. There is no HPET and no 8042.

mod dsdt;
mod tables;

use crate::plan::memory_error;
use crate::{Error, ErrorKind, Machine, layout};
use acpi_tables::{Aml, rsdp::Rsdp, sdt::Sdt, xsdt::XSDT};
use memory::{Bytes, GuestAddress, Ram};

const OEM_ID: [u8; 6] = *b"ARNIA ";
const OEM_TABLE_ID: [u8; 8] = *b"ARNIAVM ";
const OEM_REVISION: u32 = 1;

/// Builds all tables into one image for [`layout::ACPI`]; the RSDP stands at its start.
///
/// # Errors
/// When the machine is too large for that area.
pub fn image(machine: &Machine) -> Result<Vec<u8>, Error> {
    let mut image = Image { bytes: vec![0; Rsdp::len()] };
    let facs = image.append(64, &tables::facs());
    let dsdt = image.append(16, &dsdt::build(machine)?);
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let rest =
        [tables::fadt(machine, facs, dsdt), tables::madt(machine), tables::mcfg(machine), tables::waet()];
    for table in rest {
        xsdt.add_entry(image.append(16, &table));
    }
    let xsdt = image.append(16, &bytes_of(&xsdt));
    image.bytes[..Rsdp::len()].copy_from_slice(&bytes_of(&Rsdp::new(OEM_ID, xsdt)));
    if image.bytes.len() as u64 > layout::ACPI.len {
        let message = format!(
            "the machine is too large: its ACPI tables take {} bytes, there is room for {}",
            image.bytes.len(),
            layout::ACPI.len
        );
        return Err(Error::new(ErrorKind::BadMachine, message));
    }
    Ok(image.bytes)
}

/// Writes the tables into guest memory and returns the address of the RSDP.
pub(crate) fn write(ram: &Ram, machine: &Machine) -> Result<u64, Error> {
    ram.guest().write_slice(&image(machine)?, GuestAddress(layout::ACPI.start)).map_err(memory_error)?;
    Ok(layout::ACPI.start)
}

struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table and returns its guest-physical address.
    fn append(&mut self, align: usize, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(align), 0);
        let at = layout::ACPI.start + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        at
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table with the standard header and the given body.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(*signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

#[cfg(test)]
mod tests;
