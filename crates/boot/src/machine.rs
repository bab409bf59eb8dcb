//! What the tables say of the machine. Plain data: the addresses are chosen by whoever places devices.

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl AddressRange {
    /// The first address after the range.
    pub const fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// The machine as its ACPI and SMBIOS tables describe it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Number of processors; their APIC IDs are `0..vcpus`.
    pub vcpus: u32,
    /// The machine's identity, in the byte order in which it is written out as text.
    pub uuid: [u8; 16],
    /// The machine's serial number or name, for SMBIOS.
    pub serial_number: String,
    /// What the processors call themselves, for SMBIOS.
    pub cpu_name: String,
    /// Where the local APICs appear.
    pub local_apic: u32,
    /// Where the I/O APIC appears.
    pub io_apic: u32,
    /// The I/O APIC's ID.
    pub io_apic_id: u8,
    /// The I/O APIC input that the interval timer (ISA interrupt 0) is connected to.
    pub timer_gsi: u32,
    /// PCI configuration space: 1 MiB for each bus from bus 0 on.
    pub ecam: AddressRange,
    /// The length in bytes of the addresses from there on that are no PCI device's.
    pub ecam_decoded: u64,
    /// Ports for PCI devices; within the 64 Ki that there are.
    pub pci_io: AddressRange,
    /// Addresses below 4 GiB for PCI devices.
    pub pci_mmio32: AddressRange,
    /// Addresses above RAM for PCI devices.
    pub pci_mmio64: AddressRange,
    /// Where the pins of PCI devices on bus 0 lead.
    pub pci_interrupts: Vec<PciInterrupt>,
    /// The ACPI power management block.
    pub power: PowerManagement,
    /// Serial ports, COM1 first.
    pub serial_ports: Vec<SerialPort>,
    /// Whether there are a VGA and a keyboard.
    pub has_display: bool,
    /// The real-time clock.
    pub rtc: Rtc,
    /// Where the guest finds out that it is a copy.
    pub generation_id: Option<GenerationId>,
}

/// The VM generation ID (Microsoft, "Virtual Machine Generation ID"): 16 bytes that change when the guest may
/// not be the only one of its kind any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationId {
    /// Where it is.
    pub place: GenerationPlace,
    /// The general-purpose event that tells of a change.
    pub event: u8,
}

/// Who decides where the generation ID is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationPlace {
    /// The machine: a guest-physical address, a multiple of 8 in memory that the guest does not use otherwise.
    At(u64),
    /// Firmware, which is given it as a file and says where it has put it
    /// ([`crate::firmware::GENERATION_FILE`]).
    Firmware,
}

/// The connection of one interrupt pin of a PCI device on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciInterrupt {
    /// Device number, 0 to 31.
    pub device: u8,
    /// Pin, 0 for INTA# to 3 for INTD#.
    pub pin: u8,
    /// Input of the I/O APIC; level-triggered.
    pub gsi: u32,
}

/// The fixed hardware of ACPI (ACPI 6.5, §4.8). The machine is in ACPI mode from the start: there is no
/// SMI command port.
#[derive(Clone, Copy, Debug)]
pub struct PowerManagement {
    /// PM1a event block, 4 bytes: status and enable.
    pub event_port: u16,
    /// PM1a control block, 2 bytes.
    pub control_port: u16,
    /// PM timer, 4 bytes.
    pub timer_port: u16,
    /// Whether the timer counts 32 bits, not 24.
    pub timer_is_32_bit: bool,
    /// General-purpose event block 0: port and length in bytes.
    pub gpe0: Option<(u16, u8)>,
    /// System control interrupt: ISA interrupt number; level-triggered, active high.
    pub sci: u8,
    /// The SLP_TYP value that means "off" (S5).
    pub sleep_type_s5: u8,
    /// The reset register: port and the value to write.
    pub reset: (u16, u8),
}

/// A 16550 at an ISA address.
#[derive(Clone, Copy, Debug)]
pub struct SerialPort {
    /// First of its eight ports.
    pub port: u16,
    /// ISA interrupt.
    pub irq: u8,
}

/// An MC146818-compatible clock.
#[derive(Clone, Copy, Debug)]
pub struct Rtc {
    /// First of its two ports.
    pub port: u16,
    /// ISA interrupt.
    pub irq: u8,
    /// Index of the byte that holds the century.
    pub century: u8,
}

#[cfg(test)]
impl Machine {
    /// A machine like those that the `vmm` builds.
    pub(crate) fn example() -> Machine {
        Machine {
            vcpus: 2,
            uuid: std::array::from_fn(|i| i as u8),
            serial_number: "example".into(),
            cpu_name: "x86-64-v2".into(),
            local_apic: 0xfee0_0000,
            io_apic: 0xfec0_0000,
            io_apic_id: 0,
            timer_gsi: 2,
            ecam: AddressRange { start: 0xe000_0000, len: 1 << 28 },
            ecam_decoded: 1 << 28,
            pci_io: AddressRange { start: 0xc000, len: 0x4000 },
            pci_mmio32: AddressRange { start: 0xc000_0000, len: 1 << 29 },
            pci_mmio64: AddressRange { start: 0x100_0000_0000, len: 1 << 38 },
            pci_interrupts: (0..32)
                .flat_map(|device| {
                    (0..4).map(move |pin| PciInterrupt { device, pin, gsi: 16 + (device + pin) as u32 % 8 })
                })
                .collect(),
            power: PowerManagement {
                event_port: 0x600,
                control_port: 0x604,
                timer_port: 0x608,
                timer_is_32_bit: true,
                gpe0: Some((0x620, 4)),
                sci: 9,
                sleep_type_s5: 5,
                reset: (0xcf9, 6),
            },
            serial_ports: vec![SerialPort { port: 0x3f8, irq: 4 }],
            has_display: false,
            rtc: Rtc { port: 0x70, irq: 8, century: 0x32 },
            generation_id: Some(GenerationId { place: GenerationPlace::At(0x9_fc40), event: 5 }),
        }
    }
}
