//! SMBIOS tables (DMTF DSP0134, version 3.2): who made the machine, its UUID, processors and memory.

use crate::plan::memory_error;
use crate::{Error, ErrorKind, Machine, layout};
use memory::{Bytes, GuestAddress, Ram, RamRange};

/// Length of the 64-bit entry point (§5.2.2).
const ENTRY_POINT_SIZE: usize = 24;
/// The structures follow the entry point on the next 16-byte boundary.
const TABLE_OFFSET: usize = 32;
const MANUFACTURER: &str = "Arnia";
const PRODUCT: &str = "Virtual Machine";
/// "Not specified" in 16-bit handle fields.
const NO_HANDLE: u16 = 0xffff;
/// "No error information provided" in memory structures.
const NO_ERROR_INFORMATION: u16 = 0xfffe;

/// Builds entry point and structures into one image for [`layout::SMBIOS`].
///
/// # Errors
/// When a text is not printable or the tables do not fit.
pub fn image(machine: &Machine, ram: &[RamRange]) -> Result<Vec<u8>, Error> {
    let mut table = Table { bytes: Vec::new(), next_handle: 0, bad_text: false };
    firmware(&mut table);
    system(&mut table, machine);
    chassis(&mut table);
    processor(&mut table, machine);
    memory_structures(&mut table, ram);
    // Type 32: how the last boot went; 0 is "no errors detected".
    table.add(32, &[0; 7], &[]);
    table.add(127, &[], &[]);
    let bad = |message: &str| Error::new(ErrorKind::BadMachine, message);
    if table.bad_text {
        return Err(bad("a name of the machine is longer than 64 characters or has unprintable ones"));
    }
    let mut image = entry_point(table.bytes.len() as u32);
    image.resize(TABLE_OFFSET, 0);
    image.extend_from_slice(&table.bytes);
    if image.len() as u64 > layout::SMBIOS.len {
        return Err(bad("the SMBIOS tables are larger than their area"));
    }
    Ok(image)
}

/// Builds entry point and structures for firmware, which places them itself.
pub(crate) fn linkable(machine: &Machine, ram: &[RamRange]) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let mut anchor = image(machine, ram)?;
    let structures = anchor.split_off(TABLE_OFFSET);
    anchor.truncate(ENTRY_POINT_SIZE);
    Ok((anchor, structures))
}

pub(crate) fn write(ram: &Ram, machine: &Machine) -> Result<(), Error> {
    let ranges: Vec<_> = ram.ranges().collect();
    let image = image(machine, &ranges)?;
    ram.guest().write_slice(&image, GuestAddress(layout::SMBIOS.start)).map_err(memory_error)
}

/// The 64-bit entry point (§5.2.2).
fn entry_point(table_len: u32) -> Vec<u8> {
    let mut entry = b"_SM3_".to_vec();
    // Checksum, length, version 3.2, revision of the specification, revision of the entry point, reserved.
    entry.extend_from_slice(&[0, ENTRY_POINT_SIZE as u8, 3, 2, 0, 1, 0]);
    entry.extend_from_slice(&table_len.to_le_bytes());
    entry.extend_from_slice(&(layout::SMBIOS.start + TABLE_OFFSET as u64).to_le_bytes());
    entry[5] = entry.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    entry
}

/// Type 0 (§7.1).
fn firmware(table: &mut Table) {
    let mut body = vec![1, 2, 0, 0, 3, 0];
    // Characteristics: "not supported" (bit 3); in the second extension byte: a virtual machine (bit 4).
    body.extend_from_slice(&(1u64 << 3).to_le_bytes());
    body.extend_from_slice(&[0, 1 << 4, 0, 0, 0xff, 0xff, 0, 0]);
    table.add(0, &body, &[MANUFACTURER, env!("CARGO_PKG_VERSION"), "01/01/2026"]);
}

/// Type 1 (§7.2).
fn system(table: &mut Table, machine: &Machine) {
    let mut body = vec![1, 2, 3, 4];
    // The first three fields of a UUID are little-endian here (§7.2.1).
    let uuid = machine.uuid;
    for field in [&uuid[0..4], &uuid[4..6], &uuid[6..8]] {
        body.extend(field.iter().rev());
    }
    body.extend_from_slice(&uuid[8..]);
    const WAKE_UP_POWER_SWITCH: u8 = 6;
    body.extend_from_slice(&[WAKE_UP_POWER_SWITCH, 0, 0]);
    table.add(
        1,
        &body,
        &[MANUFACTURER, PRODUCT, env!("CARGO_PKG_VERSION"), text_or(&machine.serial_number, "none")],
    );
}

/// Type 3 (§7.4): an enclosure of unknown kind in a safe state.
fn chassis(table: &mut Table) {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const NO_SECURITY: u8 = 3;
    let mut body = vec![1, OTHER, 0, 0, 0, SAFE, SAFE, SAFE, NO_SECURITY];
    body.extend_from_slice(&[0; 8]);
    table.add(3, &body, &[MANUFACTURER]);
}

/// Type 4 (§7.5): one socket with all processors as its cores.
fn processor(table: &mut Table, machine: &Machine) {
    const CENTRAL_PROCESSOR: u8 = 3;
    const FAMILY_OTHER: u8 = 1;
    const POPULATED_ENABLED: u8 = 0x41;
    const UPGRADE_OTHER: u8 = 1;
    const IS_64_BIT: u16 = 1 << 2;
    const MULTI_CORE: u16 = 1 << 3;
    let mut body = vec![1, CENTRAL_PROCESSOR, FAMILY_OTHER, 2];
    body.extend_from_slice(&[0; 8]); // processor ID
    body.extend_from_slice(&[3, 0]); // version, voltage
    body.extend_from_slice(&[0; 6]); // external clock, maximum and present speed: unknown
    body.extend_from_slice(&[POPULATED_ENABLED, UPGRADE_OTHER]);
    for _cache in 0..3 {
        body.extend_from_slice(&NO_HANDLE.to_le_bytes());
    }
    body.extend_from_slice(&[0, 0, 0]); // serial number, asset tag, part number
    // Counts of cores, enabled cores, threads; those above 255 are in the 16-bit fields that follow.
    let count = u16::try_from(machine.vcpus).unwrap_or(u16::MAX);
    body.extend_from_slice(&[u8::try_from(count).unwrap_or(0xff); 3]);
    body.extend_from_slice(&(IS_64_BIT | if count > 1 { MULTI_CORE } else { 0 }).to_le_bytes());
    body.extend_from_slice(&u16::from(FAMILY_OTHER).to_le_bytes());
    for _ in 0..3 {
        body.extend_from_slice(&count.to_le_bytes());
    }
    table.add(4, &body, &["CPU 0", MANUFACTURER, text_or(&machine.cpu_name, "unknown")]);
}

/// Types 16, 17 and 19 (§7.17, §7.18, §7.20): one array with one device, mapped in one or two ranges.
fn memory_structures(table: &mut Table, ram: &[RamRange]) {
    const SYSTEM_BOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const MULTI_BIT_ECC: u8 = 6;
    let size: u64 = ram.iter().map(|range| range.len).sum();
    let mut body = vec![SYSTEM_BOARD, SYSTEM_MEMORY, MULTI_BIT_ECC];
    // Capacity in KiB; 0x8000_0000 sends to the extended field, in bytes.
    let kib = u32::try_from(size >> 10).ok().filter(|kib| *kib < 0x8000_0000);
    body.extend_from_slice(&kib.unwrap_or(0x8000_0000).to_le_bytes());
    body.extend_from_slice(&NO_ERROR_INFORMATION.to_le_bytes());
    body.extend_from_slice(&1u16.to_le_bytes());
    body.extend_from_slice(&if kib.is_some() { 0 } else { size }.to_le_bytes());
    let array = table.add(16, &body, &[]);

    const FORM_FACTOR_DIMM: u8 = 9;
    const TYPE_RAM: u8 = 7;
    let mut body = array.to_le_bytes().to_vec();
    body.extend_from_slice(&NO_ERROR_INFORMATION.to_le_bytes());
    body.extend_from_slice(&64u16.to_le_bytes()); // total width
    body.extend_from_slice(&64u16.to_le_bytes()); // data width
    // Size in MiB; 0x7fff sends to the extended field.
    let mib = u32::try_from(size >> 20).unwrap_or(0x7fff_ffff);
    body.extend_from_slice(&u16::try_from(mib).unwrap_or(0x7fff).min(0x7fff).to_le_bytes());
    body.extend_from_slice(&[FORM_FACTOR_DIMM, 0, 1, 0, TYPE_RAM]);
    body.extend_from_slice(&(1u16 << 1).to_le_bytes()); // type detail: other
    body.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0]); // speed; manufacturer, serial, asset, part; attributes
    body.extend_from_slice(&if mib >= 0x7fff { mib } else { 0 }.to_le_bytes());
    body.extend_from_slice(&[0; 8]); // configured speed and voltages
    table.add(17, &body, &["DIMM 0", MANUFACTURER]);

    for range in ram {
        // Addresses in KiB; all ones send to the extended fields, in bytes.
        let kib = (u32::try_from(range.start >> 10), u32::try_from((range.end() >> 10) - 1));
        let (start, end, extended) = match kib {
            (Ok(start), Ok(end)) if end < u32::MAX => (start, end, (0, 0)),
            _ => (u32::MAX, u32::MAX, (range.start, range.end() - 1)),
        };
        let mut body = [start.to_le_bytes(), end.to_le_bytes()].concat();
        body.extend_from_slice(&array.to_le_bytes());
        body.push(1);
        body.extend_from_slice(&extended.0.to_le_bytes());
        body.extend_from_slice(&extended.1.to_le_bytes());
        table.add(19, &body, &[]);
    }
}

fn text_or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

struct Table {
    bytes: Vec<u8>,
    next_handle: u16,
    bad_text: bool,
}

impl Table {
    /// Adds a structure (§6.1.2): header, formatted area, strings. Returns its handle.
    fn add(&mut self, kind: u8, body: &[u8], strings: &[&str]) -> u16 {
        let handle = self.next_handle;
        self.next_handle += 1;
        self.bytes.extend_from_slice(&[kind, 4 + body.len() as u8]);
        self.bytes.extend_from_slice(&handle.to_le_bytes());
        self.bytes.extend_from_slice(body);
        for text in strings {
            self.bad_text |= text.len() > 64 || !text.chars().all(|c| (' '..='~').contains(&c));
            self.bytes.extend_from_slice(text.as_bytes());
            self.bytes.push(0);
        }
        if strings.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.push(0);
        handle
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const RAM: [RamRange; 2] =
        [RamRange { start: 0, len: 0xc000_0000 }, RamRange { start: 1 << 32, len: 61 << 30 }];

    #[test]
    fn the_entry_point_sums_to_zero_and_tells_the_length() {
        let image = image(&Machine::example(), &RAM).unwrap();
        assert_eq!(image[..24].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(u32::from_le_bytes(image[12..16].try_into().unwrap()) as usize, image.len() - 32);
        assert_eq!(u64::from_le_bytes(image[16..24].try_into().unwrap()), 0xf_0020);
    }

    #[test]
    fn bad_names_are_refused() {
        for name in ["x".repeat(65), "a\0b".into(), "ü".into(), "a\n".into()] {
            let machine = Machine { serial_number: name, ..Machine::example() };
            assert_eq!(image(&machine, &RAM).unwrap_err().kind(), ErrorKind::BadMachine);
        }
    }

    /// The reference reader of SMBIOS understands what we wrote.
    #[test]
    fn dmidecode_reads_it_back() {
        if Command::new("dmidecode").arg("-V").output().is_err() {
            eprintln!("SKIPPED: dmidecode (Debian package of that name) is not installed");
            return;
        }
        let mut dump = image(&Machine::example(), &RAM).unwrap();
        // A dump file has the table at offset 32 and its entry point says so.
        dump[16..24].copy_from_slice(&32u64.to_le_bytes());
        dump[5] = 0;
        dump[5] = dump[..24].iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
        let path = std::env::temp_dir().join(format!("arnia-smbios-{}", std::process::id()));
        std::fs::write(&path, dump).unwrap();
        let output = Command::new("dmidecode").arg("--from-dump").arg(&path).output().unwrap();
        std::fs::remove_file(&path).unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        for line in [
            "SMBIOS 3.2.0 present.",
            "Product Name: Virtual Machine",
            "UUID: 00010203-0405-0607-0809-0a0b0c0d0e0f",
            "Serial Number: example",
            "Core Count: 2",
            "System is a virtual machine",
            "Maximum Capacity: 64 GB",
            "Size: 64 GB",
            "Range Size: 3 GB",
            "Range Size: 61 GB",
            "End Of Table",
        ] {
            assert!(text.contains(line), "{line:?} is missing in:\n{text}");
        }
        assert!(!text.contains("TRUNCATED") && !text.contains("BAD"), "{text}");
    }
}
