//! What firmware is told of the machine, through fw_cfg.

use crate::spec::Uuid;
use crate::{Error, ErrorKind};
use boot::firmware::{self, BootDevice, FirmwareInfo};
use memory::Ram;
use platform::fw_cfg::spec::{KEY_CPU_COUNT, KEY_CPU_COUNT_MAX, KEY_IRQ0_OVERRIDE, KEY_RAM_SIZE};
use platform::{Platform, serial};
use std::sync::Arc;

/// Fills fw_cfg for firmware. The tables are made when firmware asks for them: by then it has placed PCI
/// configuration space, of which they tell.
pub(super) fn inform(
    platform: &Platform,
    ram: &Ram,
    description: &boot::Machine,
    boot_order: Vec<BootDevice>,
    generation: &Uuid,
) -> Result<(), Error> {
    let refused =
        |e: boot::Error| Error::host("the machine cannot be described to its firmware").with_source(e);
    let taken = |e: platform::fw_cfg::FwCfgError| {
        Error::new(ErrorKind::Internal, "the machine cannot be described to its firmware").with_source(e)
    };
    let fw_cfg = &platform.fw_cfg;
    let cpus = (description.vcpus as u16).to_le_bytes().to_vec();
    fw_cfg.set_item(KEY_CPU_COUNT, cpus.clone());
    fw_cfg.set_item(KEY_CPU_COUNT_MAX, cpus);
    fw_cfg.set_item(KEY_RAM_SIZE, ram.size().to_le_bytes().to_vec());
    // The interval timer is not on the I/O APIC's input 0.
    fw_cfg.set_item(KEY_IRQ0_OVERRIDE, vec![1]);

    let info = FirmwareInfo { boot_order, console_port: Some(serial::spec::COM_PORTS[0]) };
    let ranges: Vec<_> = ram.ranges().collect();
    for file in firmware::files(description, &ranges, &info).map_err(refused)? {
        fw_cfg.add_file(file.name, file.data).map_err(taken)?;
    }
    let first = firmware::describe(description).map_err(refused)?;
    for (index, file) in first.into_files().into_iter().enumerate() {
        let (pci, machine) = (Arc::downgrade(&platform.pci), description.clone());
        fw_cfg
            .add_made_file(file.name, file.data, move || {
                let mut machine = machine.clone();
                machine.ecam.start = pci.upgrade()?.ecam_base()?;
                let mut files = firmware::describe(&machine).ok()?.into_files();
                Some(std::mem::take(&mut files[index].data))
            })
            .map_err(taken)?;
    }
    let id = generation.to_guid_bytes();
    fw_cfg.add_file(firmware::GENERATION_FILE, firmware::generation_file(id)).map_err(taken)?;
    fw_cfg.add_writable_file(firmware::GENERATION_ADDRESS_FILE, size_of::<u64>()).map_err(taken)
}
