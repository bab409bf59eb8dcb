//! The machine as its tables describe it: the platform's numbers in the loader's words.

use crate::spec::{BootSpec, VmSpec};
use boot::{
    AddressRange, GenerationId, GenerationPlace, Machine, PciInterrupt, PowerManagement, Rtc, SerialPort,
};
use platform::pci::{Window, Windows, spec as pci};
use platform::{IrqRouter, acpi_pm, ioapic, reset, rtc, serial};

/// Pins of a PCI device.
const PINS: u8 = 4;

pub(super) fn describe(spec: &VmSpec, cpu_model: &str, windows: Windows) -> Machine {
    let range = |window: Window| AddressRange { start: window.start, len: window.len };
    Machine {
        vcpus: spec.cpus,
        uuid: spec.uuid.0,
        serial_number: spec.name.clone().unwrap_or_default(),
        cpu_name: cpu_model.to_owned(),
        local_apic: x86::apic::DEFAULT_BASE as u32,
        io_apic: ioapic::spec::BASE as u32,
        io_apic_id: 0,
        timer_gsi: platform::TIMER_GSI,
        ecam: AddressRange { start: pci::ECAM_BASE, len: pci::ECAM_LEN },
        ecam_decoded: pci::ECAM_DECODED_LEN,
        pci_io: range(windows.io),
        pci_mmio32: range(windows.mmio32),
        pci_mmio64: range(windows.mmio64),
        pci_interrupts: (0..pci::DEVICES)
            .flat_map(|device| {
                let gsi = IrqRouter::pci_gsi(device);
                (0..PINS).map(move |pin| PciInterrupt { device, pin, gsi })
            })
            .collect(),
        power: PowerManagement {
            event_port: acpi_pm::spec::PM1A_EVENT,
            control_port: acpi_pm::spec::PM1A_CONTROL,
            timer_port: acpi_pm::spec::PM_TIMER,
            timer_is_32_bit: acpi_pm::spec::PM_TIMER_BITS == 32,
            gpe0: Some((acpi_pm::spec::GPE0, acpi_pm::spec::GPE0_LEN)),
            sci: acpi_pm::spec::SCI_IRQ as u8,
            sleep_type_s5: acpi_pm::spec::SLP_TYP_S5,
            reset: (reset::PORT, reset::RESET_VALUE),
        },
        serial_ports: vec![SerialPort {
            port: serial::spec::COM_PORTS[0],
            irq: serial::spec::COM_IRQS[0] as u8,
        }],
        generation_id: Some(GenerationId {
            place: match spec.boot {
                BootSpec::Kernel(_) => GenerationPlace::At(boot::layout::GENERATION_ID),
                // Firmware keeps that place for itself.
                _ => GenerationPlace::Firmware,
            },
            event: super::generation::EVENT,
        }),
        has_display: spec.display,
        rtc: Rtc { port: rtc::spec::PORT_INDEX, irq: rtc::spec::IRQ as u8, century: rtc::spec::REG_CENTURY },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::worker::config::VmConfig;

    #[test]
    fn the_largest_machine_fits_into_its_tables() {
        let mut config = VmConfig::new("vmlinuz");
        config.cpus = crate::spec::CPUS_MAX;
        config.name = Some("x".repeat(64));
        let spec = VmSpec::try_from(config).unwrap();
        let windows = super::super::pci_windows(crate::spec::MEMORY_MAX, &[]);
        assert_eq!(windows.mmio64.end(), 1 << x86::cpuid::PHYS_BITS);
        let machine = describe(&spec, "x86-64-v3", windows);
        boot::acpi::image(&machine).unwrap();
        let ram = memory::RamRange { start: 0, len: 1 << 30 };
        boot::smbios::image(&machine, &[ram]).unwrap();
    }
}
