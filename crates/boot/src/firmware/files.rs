//! The fw_cfg files and items by which firmware learns of the machine.

use super::loader;
use crate::{Error, ErrorKind, Machine, acpi, smbios};
use memory::RamRange;

/// A file for fw_cfg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its name.
    pub name: &'static str,
    /// What is in it.
    pub data: Vec<u8>,
}

/// The file that firmware puts into memory for the generation ID, which is at [`GENERATION_OFFSET`] in it.
pub const GENERATION_FILE: &str = "etc/vmgenid_guid";
/// The file of eight bytes into which firmware writes the generation ID's address.
pub const GENERATION_ADDRESS_FILE: &str = "etc/vmgenid_addr";
/// Where in its file the generation ID is: behind what UEFI firmware would take for the header of a table.
pub const GENERATION_OFFSET: usize = 40;
/// A page of its own.
const GENERATION_FILE_LEN: usize = 4096;

/// The contents of [`GENERATION_FILE`], with the ID as it lies in memory.
pub fn generation_file(id: [u8; 16]) -> Vec<u8> {
    let mut file = vec![0; GENERATION_FILE_LEN];
    file[GENERATION_OFFSET..GENERATION_OFFSET + id.len()].copy_from_slice(&id);
    file
}

/// What firmware is told beside the machine's description.
#[derive(Clone, Debug, Default)]
pub struct FirmwareInfo {
    /// Places of devices to boot from, the first one first: device and function numbers on PCI bus 0 with
    /// what sits there.
    pub boot_order: Vec<BootDevice>,
    /// Port of the serial line that BIOS firmware shows its screen on as well.
    pub console_port: Option<u16>,
}

/// A device to boot from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootDevice {
    /// A virtio disk at this device number.
    VirtioDisk(u8),
    /// A network card at this device number.
    Net(u8),
    /// A disk or disc at this port of the AHCI controller at this device number.
    Sata(u8, u8),
    /// A target of the virtio SCSI host at this device number.
    Scsi(u8, u8),
}

/// `etc/e820` (QEMU): address, length, kind.
const E820_RAM: u32 = 1;

/// The files whose contents do not change while the machine runs.
///
/// # Errors
/// When the machine cannot be described.
pub fn files(machine: &Machine, ram: &[RamRange], info: &FirmwareInfo) -> Result<Vec<File>, Error> {
    let mut map = Vec::new();
    for range in ram {
        map.extend_from_slice(&range.start.to_le_bytes());
        map.extend_from_slice(&range.len.to_le_bytes());
        map.extend_from_slice(&E820_RAM.to_le_bytes());
    }
    let (anchor, tables) = smbios::linkable(machine, ram)?;
    let mut files = vec![
        File { name: "etc/e820", data: map },
        File { name: "etc/smbios/smbios-anchor", data: anchor },
        File { name: "etc/smbios/smbios-tables", data: tables },
        // Nothing to boot: say so and wait, rather than start again and again.
        File { name: "etc/boot-fail-wait", data: u32::MAX.to_le_bytes().to_vec() },
    ];
    if !info.boot_order.is_empty() {
        let mut order = info.boot_order.iter().map(BootDevice::path).collect::<Vec<_>>().join("\n");
        order.push('\0');
        files.push(File { name: "bootorder", data: order.into_bytes() });
    }
    if let Some(port) = info.console_port {
        files.push(File { name: "etc/sercon-port", data: port.to_le_bytes().to_vec() });
    }
    Ok(files)
}

impl BootDevice {
    /// The device's path as Open Firmware writes it, by which firmware knows it again.
    fn path(&self) -> String {
        match self {
            BootDevice::VirtioDisk(device) => format!("/pci@i0cf8/scsi@{device:x}/disk@0,0"),
            BootDevice::Net(device) => format!("/pci@i0cf8/ethernet@{device:x}/ethernet-phy@0"),
            BootDevice::Sata(device, port) => {
                format!("/pci@i0cf8/pci8086,2922@{device:x}/drive@{port:x}/disk@0")
            }
            BootDevice::Scsi(device, target) => {
                format!("/pci@i0cf8/scsi@{device:x}/channel@0/disk@{target:x},0")
            }
        }
    }
}

/// The files that depend on where firmware put PCI configuration space. Each is [`Described::LEN`] or
/// [`Described::LOADER_LEN`] bytes long whatever is in it, since firmware asks for sizes long before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// `etc/acpi/rsdp`.
    pub rsdp: File,
    /// `etc/acpi/tables`.
    pub tables: File,
    /// `etc/table-loader`.
    pub loader: File,
}

impl Described {
    /// Length of `etc/acpi/tables`.
    pub const LEN: usize = 128 << 10;
    /// Length of `etc/table-loader`.
    pub const LOADER_LEN: usize = 4096;

    /// All of them.
    pub fn into_files(self) -> [File; 3] {
        [self.rsdp, self.tables, self.loader]
    }
}

/// Builds the files that describe `machine` as it is at this moment.
///
/// # Errors
/// When it cannot be described, or is too large.
pub fn describe(machine: &Machine) -> Result<Described, Error> {
    let mut tables = acpi::linkable(machine)?;
    let mut program = loader::program(&tables);
    loader::clear_sums(&mut tables);
    if tables.tables.len() > Described::LEN || program.len() > Described::LOADER_LEN {
        return Err(Error::new(ErrorKind::BadMachine, "the machine is too large for its ACPI tables"));
    }
    tables.tables.resize(Described::LEN, 0);
    // Firmware passes over commands that are zero.
    program.resize(Described::LOADER_LEN, 0);
    Ok(Described {
        rsdp: File { name: loader::RSDP_FILE, data: tables.rsdp },
        tables: File { name: loader::TABLES_FILE, data: tables.tables },
        loader: File { name: "etc/table-loader", data: program },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A table at an address among the files, with its signature.
    fn table(files: &BTreeMap<String, (u64, Vec<u8>)>, address: u64) -> (String, Vec<u8>) {
        let (base, data) = &files[loader::TABLES_FILE];
        let at = (address - base) as usize;
        let len = u32::from_le_bytes(data[at + 4..at + 8].try_into().unwrap()) as usize;
        (String::from_utf8(data[at..at + 4].to_vec()).unwrap(), data[at..at + len].to_vec())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn firmware_that_follows_the_program_has_whole_tables() {
        let described = describe(&Machine::example()).unwrap();
        let mut files = BTreeMap::from([
            (loader::RSDP_FILE.into(), (0xf_1230, described.rsdp.data)),
            (loader::TABLES_FILE.into(), (0x7ffd_0040, described.tables.data)),
        ]);
        loader::tests::run(&described.loader.data, &mut files);
        let rsdp = &files[loader::RSDP_FILE].1;
        assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
        let u64_at = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (name, xsdt) = table(&files, u64_at(rsdp, 24));
        assert_eq!((name.as_str(), sum(&xsdt)), ("XSDT", 0));
        let mut names = Vec::new();
        for entry in xsdt[36..].chunks(8) {
            let (name, bytes) = table(&files, u64::from_le_bytes(entry.try_into().unwrap()));
            assert_eq!(sum(&bytes), 0, "{name}");
            if name == "FACP" {
                let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as u64;
                assert_eq!(table(&files, u32_at(36)).0, "FACS");
                assert!(u32_at(36).is_multiple_of(64));
                assert_eq!(table(&files, u32_at(40)).0, "DSDT");
                assert_eq!(u64_at(&bytes, 140), u32_at(40));
            }
            names.push(name);
        }
        assert_eq!(names, ["FACP", "APIC", "MCFG", "WAET"]);
    }

    #[test]
    fn firmware_places_the_generation_id_and_says_where() {
        let example = Machine::example();
        let place = crate::GenerationPlace::Firmware;
        let generation_id = example.generation_id.map(|id| crate::GenerationId { place, ..id });
        let described = describe(&Machine { generation_id, ..example }).unwrap();
        let mut files = BTreeMap::from([
            (loader::RSDP_FILE.into(), (0xf_1230, described.rsdp.data)),
            (loader::TABLES_FILE.into(), (0x7ffd_0040, described.tables.data)),
            (GENERATION_FILE.into(), (0x7ffc_f000, generation_file([7; 16]))),
            (GENERATION_ADDRESS_FILE.into(), (0, vec![0; 8])),
        ]);
        loader::tests::run(&described.loader.data, &mut files);
        let address = u64::from_le_bytes(files[GENERATION_ADDRESS_FILE].1.clone().try_into().unwrap());
        let (base, file) = &files[GENERATION_FILE];
        assert_eq!(file[(address - base) as usize..][..16], [7; 16]);
        // The same in the device that systems ask.
        let tables = &files[loader::TABLES_FILE].1;
        let package = tables.windows(6).position(|bytes| bytes == b"\x08ADDR\x12").unwrap();
        let low = &tables[package + 9..package + 13];
        assert_eq!((tables[package + 8], low), (0x0c, &(address as u32).to_le_bytes()[..]));
        let dsdt = tables.windows(4).position(|bytes| bytes == b"DSDT").unwrap();
        let len = u32::from_le_bytes(tables[dsdt + 4..dsdt + 8].try_into().unwrap()) as usize;
        assert_eq!(sum(&tables[dsdt..dsdt + len]), 0, "the sum of what the address was added to");
    }

    #[test]
    fn the_largest_machine_fits_and_sizes_do_not_depend_on_configuration_space() {
        let machine = Machine { vcpus: 255, ..Machine::example() };
        let moved =
            Machine { ecam: crate::AddressRange { start: 0xd000_0000, ..machine.ecam }, ..machine.clone() };
        let sizes = |machine: &Machine| {
            describe(machine).unwrap().into_files().map(|file| (file.name, file.data.len()))
        };
        assert_eq!(sizes(&machine), sizes(&moved));
        assert_ne!(describe(&machine).unwrap(), describe(&moved).unwrap());
    }

    #[test]
    fn boot_devices_have_the_paths_that_firmware_knows() {
        let info = FirmwareInfo {
            boot_order: vec![BootDevice::Sata(31, 1), BootDevice::VirtioDisk(10), BootDevice::Net(1)],
            console_port: Some(0x3f8),
        };
        let ram = [RamRange { start: 0, len: 1 << 30 }, RamRange { start: 1 << 32, len: 1 << 20 }];
        let files = files(&Machine::example(), &ram, &info).unwrap();
        let file = |name: &str| files.iter().find(|file| file.name == name).unwrap().data.as_slice();
        assert_eq!(
            file("bootorder"),
            b"/pci@i0cf8/pci8086,2922@1f/drive@1/disk@0\n/pci@i0cf8/scsi@a/disk@0,0\n\
              /pci@i0cf8/ethernet@1/ethernet-phy@0\0"
        );
        assert_eq!(file("etc/e820").len(), 40);
        assert_eq!(file("etc/sercon-port"), [0xf8, 3]);
        assert_eq!(&file("etc/smbios/smbios-anchor")[..5], b"_SM3_");
        assert_eq!(file("etc/smbios/smbios-tables")[0], 0, "the firmware's structure");
    }
}
