//! Instructions by which firmware places ACPI tables: the commands of fw_cfg's `etc/table-loader`, of 128
//! bytes each (QEMU's `hw/acpi/bios-linker-loader.c` defines them; SeaBIOS and OVMF carry them out).

use super::files::{GENERATION_ADDRESS_FILE, GENERATION_FILE, GENERATION_OFFSET};
use crate::acpi::{Linkable, RSDP_XSDT, TABLE_SUM};

/// The file of the RSDP.
pub(super) const RSDP_FILE: &str = "etc/acpi/rsdp";
/// The file of all other tables.
pub(super) const TABLES_FILE: &str = "etc/acpi/tables";

const COMMAND_SIZE: usize = 128;
const NAME_SIZE: usize = 56;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
const WRITE_POINTER: u32 = 4;
/// Offsets of the RSDP's two sums.
const RSDP_SUM: u32 = 8;
const RSDP_EXTENDED_SUM: u32 = 32;
/// Anywhere below 4 GiB.
const ZONE_HIGH: u8 = 1;
/// Below 1 MiB, where systems look for the RSDP.
const ZONE_FSEG: u8 = 2;

/// The program that places the tables: allocate, add the addresses that came of it, make sums right.
pub(super) fn program(tables: &Linkable) -> Vec<u8> {
    let mut program = Vec::new();
    allocate(&mut program, RSDP_FILE, 16, ZONE_FSEG);
    allocate(&mut program, TABLES_FILE, 64, ZONE_HIGH);
    for (offset, size) in &tables.pointers {
        add_pointer(&mut program, TABLES_FILE, TABLES_FILE, *offset, *size);
    }
    if let Some(offset) = tables.generation_id {
        allocate(&mut program, GENERATION_FILE, 4096, ZONE_HIGH);
        add_pointer(&mut program, TABLES_FILE, GENERATION_FILE, offset, 4);
        write_pointer(&mut program, GENERATION_ADDRESS_FILE, GENERATION_FILE, GENERATION_OFFSET as u32);
    }
    for (start, len) in &tables.sums {
        add_checksum(&mut program, TABLES_FILE, start + TABLE_SUM, *start, *len);
    }
    add_pointer(&mut program, RSDP_FILE, TABLES_FILE, RSDP_XSDT, 8);
    // ACPI 6.5, §5.2.5.3: one sum over the first 20 bytes, another over all.
    add_checksum(&mut program, RSDP_FILE, RSDP_SUM, 0, 20);
    add_checksum(&mut program, RSDP_FILE, RSDP_EXTENDED_SUM, 0, tables.rsdp.len() as u32);
    program
}

/// Clears the sums that the program makes: some firmware subtracts from the field, other replaces it by the sum
/// over everything, the field's old value included. Zero suits both.
pub(super) fn clear_sums(tables: &mut Linkable) {
    for (start, _) in &tables.sums {
        tables.tables[(start + TABLE_SUM) as usize] = 0;
    }
    tables.rsdp[RSDP_SUM as usize] = 0;
    tables.rsdp[RSDP_EXTENDED_SUM as usize] = 0;
}

fn command(program: &mut Vec<u8>, kind: u32, fields: &[&[u8]]) {
    let start = program.len();
    program.extend_from_slice(&kind.to_le_bytes());
    fields.iter().for_each(|field| program.extend_from_slice(field));
    program.resize(start + COMMAND_SIZE, 0);
}

fn name(file: &str) -> [u8; NAME_SIZE] {
    let mut name = [0; NAME_SIZE];
    name[..file.len()].copy_from_slice(file.as_bytes());
    name
}

fn allocate(program: &mut Vec<u8>, file: &str, align: u32, zone: u8) {
    command(program, ALLOCATE, &[&name(file), &align.to_le_bytes(), &[zone]]);
}

/// Adds the address of the file `to` to the `size` bytes at `offset` in `file`.
fn add_pointer(program: &mut Vec<u8>, file: &str, to: &str, offset: u32, size: u8) {
    command(program, ADD_POINTER, &[&name(file), &name(to), &offset.to_le_bytes(), &[size]]);
}

/// Writes the address of `offset` in `to`, eight bytes, to the start of `file`, which the machine reads.
fn write_pointer(program: &mut Vec<u8>, file: &str, to: &str, offset: u32) {
    let fields: [&[u8]; 5] = [&name(file), &name(to), &0u32.to_le_bytes(), &offset.to_le_bytes(), &[8]];
    command(program, WRITE_POINTER, &fields);
}

fn add_checksum(program: &mut Vec<u8>, file: &str, at: u32, start: u32, len: u32) {
    command(
        program,
        ADD_CHECKSUM,
        &[&name(file), &at.to_le_bytes(), &start.to_le_bytes(), &len.to_le_bytes()],
    );
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Carries the program out as firmware does, with all files at addresses of its choice.
    pub(crate) fn run(program: &[u8], files: &mut BTreeMap<String, (u64, Vec<u8>)>) {
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.iter().copied().take_while(|byte| *byte != 0).collect()).unwrap()
        };
        let u32_at = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        for command in program.chunks(COMMAND_SIZE) {
            let file = text(&command[4..60]);
            match u32_at(command, 0) {
                0 => {}
                ALLOCATE => {
                    let align = u32_at(command, 60) as u64;
                    assert!(files[&file].0.is_multiple_of(align), "{file}");
                }
                ADD_POINTER => {
                    let base = files[&text(&command[60..116])].0;
                    let (offset, size) = (u32_at(command, 116) as usize, command[120] as usize);
                    let field = &mut files.get_mut(&file).unwrap().1[offset..offset + size];
                    let mut value = [0; 8];
                    value[..size].copy_from_slice(field);
                    let value = (u64::from_le_bytes(value) + base).to_le_bytes();
                    field.copy_from_slice(&value[..size]);
                }
                WRITE_POINTER => {
                    let address = files[&text(&command[60..116])].0 + u32_at(command, 120) as u64;
                    let (offset, size) = (u32_at(command, 116) as usize, command[124] as usize);
                    let written = &mut files.get_mut(&file).unwrap().1;
                    written[offset..offset + size].copy_from_slice(&address.to_le_bytes()[..size]);
                }
                ADD_CHECKSUM => {
                    let [at, start, len] = [60, 64, 68].map(|at| u32_at(command, at) as usize);
                    let data = &mut files.get_mut(&file).unwrap().1;
                    let sum = data[start..start + len].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                    // OVMF replaces the field, SeaBIOS subtracts from it.
                    assert_eq!(data[at], 0, "a sum that is not clear at {at:#x} of {file}");
                    data[at] = 0u8.wrapping_sub(sum);
                }
                other => panic!("command {other}"),
            }
        }
    }
}
