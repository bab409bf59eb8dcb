//! ACPI tables (ACPI specification 6.5): RSDP, XSDT, FADT, FACS, DSDT, MADT, MCFG, WAET.
//!
//! The machine is a PC in ACPI mode from the start, with fixed hardware (PM1, PM timer, GPE0), a power
//! button, one I/O APIC, PCI configuration space by ECAM. There is no HPET; an 8042 and a VGA only with a display.

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
    let mut image = Image::new(layout::ACPI.start, vec![0; Rsdp::len()]);
    let xsdt = image.append_all(machine)?;
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

/// The tables for firmware that places them itself: addresses in them count from the start of `tables`,
/// and the places that hold such addresses are named.
pub(crate) struct Linkable {
    /// The RSDP, whose pointer to the XSDT is the offset in `tables`.
    pub(crate) rsdp: Vec<u8>,
    /// All other tables.
    pub(crate) tables: Vec<u8>,
    /// Offsets in `tables` of addresses, with their sizes in bytes.
    pub(crate) pointers: Vec<(u32, u8)>,
    /// Offsets and lengths in `tables` of the tables whose sums change with the addresses in them.
    pub(crate) sums: Vec<(u32, u32)>,
    /// Offset in `tables` of the low half of the generation ID's address, which counts from the start of its file.
    pub(crate) generation_id: Option<u32>,
}

/// Offset of the XSDT's address in the RSDP (§5.2.5.3).
pub(crate) const RSDP_XSDT: u32 = 24;
/// Offset of a table's checksum (§5.2.6).
pub(crate) const TABLE_SUM: u32 = 9;

/// Builds the tables for firmware that places them itself.
///
/// # Errors
/// When the machine cannot be described.
pub(crate) fn linkable(machine: &Machine) -> Result<Linkable, Error> {
    let mut image = Image::new(0, Vec::new());
    let xsdt = image.append_all(machine)?;
    let rsdp = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    Ok(Linkable {
        rsdp,
        tables: image.bytes,
        pointers: image.pointers,
        sums: image.sums,
        generation_id: image.generation_id,
    })
}

struct Image {
    base: u64,
    bytes: Vec<u8>,
    pointers: Vec<(u32, u8)>,
    sums: Vec<(u32, u32)>,
    generation_id: Option<u32>,
}

impl Image {
    fn new(base: u64, bytes: Vec<u8>) -> Image {
        Image { base, bytes, pointers: Vec::new(), sums: Vec::new(), generation_id: None }
    }

    /// Appends every table and returns the address of the XSDT, which leads to the others.
    fn append_all(&mut self, machine: &Machine) -> Result<u64, Error> {
        /// Addresses in the FADT (§5.2.9): FIRMWARE_CTRL, DSDT, X_DSDT. (X_FIRMWARE_CTRL is not used.)
        const FADT_POINTERS: [(u32, u8); 3] = [(36, 4), (40, 4), (140, 8)];
        const XSDT_ENTRIES: u32 = 36;
        // The FACS is the one table with an alignment of its own, at the start (§5.2.10).
        let facs = self.append(64, &tables::facs(), &[]);
        let (table, id_address) = dsdt::build(machine)?;
        let dsdt = self.append(16, &table, &[]);
        if let Some(offset) = id_address {
            let at = (dsdt - self.base) as u32;
            self.generation_id = Some(at + offset);
            self.sums.push((at, table.len() as u32));
        }
        let mut entries = vec![self.append(16, &tables::fadt(machine, facs, dsdt), &FADT_POINTERS)];
        for table in [tables::madt(machine), tables::mcfg(machine), tables::waet()] {
            entries.push(self.append(16, &table, &[]));
        }
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        entries.iter().for_each(|entry| xsdt.add_entry(*entry));
        let pointers: Vec<_> = (0..entries.len() as u32).map(|i| (XSDT_ENTRIES + 8 * i, 8)).collect();
        Ok(self.append(16, &bytes_of(&xsdt), &pointers))
    }

    /// Appends a table that has addresses at the given offsets, and returns its own address.
    fn append(&mut self, align: usize, table: &[u8], pointers: &[(u32, u8)]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(align), 0);
        let at = self.bytes.len() as u32;
        self.bytes.extend_from_slice(table);
        self.pointers.extend(pointers.iter().map(|(offset, size)| (at + offset, *size)));
        if !pointers.is_empty() {
            self.sums.push((at, table.len() as u32));
        }
        self.base + at as u64
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
