//! The DSDT: what cannot be found by probing, in AML.

use super::tables::last_bus;
use super::{bytes_of, table};
use crate::firmware::GENERATION_OFFSET;
use crate::{Error, ErrorKind, GenerationPlace, Machine};
use acpi_tables::aml::*;
use acpi_tables::{Aml, AmlSink};

/// Length of the header that every table has (§5.2.6).
const HEADER_LEN: u32 = 36;

/// `_OSC` of a PCI host bridge (PCI Firmware Specification 3.3, §4.5).
const OSC_UUID: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
/// What the operating system may control itself: power management events, advanced error reporting and
/// the PCI Express capability. Hotplug is not among it.
const OSC_CONTROL: u32 = 1 << 2 | 1 << 3 | 1 << 4;

/// The table, and in it the offset of the generation ID's address if that is for firmware to fill in.
pub(super) fn build(machine: &Machine) -> Result<(Vec<u8>, Option<u32>), Error> {
    let mut body = Vec::new();
    sleep_states(machine, &mut body);
    processors(machine, &mut body);
    pci_root(machine, &mut body)?;
    motherboard(machine, &mut body);
    isa_devices(machine, &mut body);
    let id_address = generation_id(machine, &mut body);
    Ok((table(b"DSDT", 6, &body), id_address.map(|at| HEADER_LEN + at as u32)))
}

/// `_S5` (§7.4.2): the values for SLP_TYP of PM1a and PM1b.
fn sleep_states(machine: &Machine, out: &mut Vec<u8>) {
    let kind = machine.power.sleep_type_s5;
    Name::new("_S5_".into(), &Package::new(vec![&kind, &kind, &ZERO, &ZERO])).to_aml_bytes(out);
}

/// Processor devices (§8.4), matched to the MADT by `_UID`.
fn processors(machine: &Machine, out: &mut Vec<u8>) {
    let mut devices = Vec::new();
    for id in 0..machine.vcpus {
        Device::new(
            Path::new(&format!("C{id:03X}")),
            vec![&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &id)],
        )
        .to_aml_bytes(&mut devices);
    }
    out.extend(Scope::raw("_SB_".into(), devices));
}

fn pci_root(machine: &Machine, out: &mut Vec<u8>) -> Result<(), Error> {
    let (io, low, high) = (machine.pci_io, machine.pci_mmio32, machine.pci_mmio64);
    if io.len == 0 || io.end() > 1 << 16 || low.len == 0 || low.end() > 1 << 32 || high.len == 0 {
        return Err(Error::new(
            ErrorKind::BadMachine,
            "the windows for PCI devices are not where they can be",
        ));
    }
    // Configuration space may lie in the window: the bridge passes on what is before and after it.
    let ecam = machine.ecam;
    let parts = [
        (low.start, low.end().min(ecam.start)),
        (low.start.max(ecam.start.saturating_add(machine.ecam_decoded)), low.end()),
    ];
    let mmio32 = parts.into_iter().filter(|(start, end)| start < end).map(|(start, end)| {
        let (first, last) = (start as u32, (end - 1) as u32);
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None)
    });
    let mmio32: Vec<_> = mmio32.collect();
    let mmio64 =
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, high.start, high.end() - 1, None);
    let bus_numbers = AddressSpace::new_bus_number(0u16, last_bus(machine) as u16);
    // The configuration ports are the bridge's own.
    let config_ports = IO::new(0xcf8, 0xcf8, 1, 8);
    let ports = AddressSpace::new_io(io.start as u16, (io.end() - 1) as u16, None);
    let mut resources: Vec<&dyn Aml> = vec![&bus_numbers, &config_ports, &ports];
    // A display adapter's ports and window are on the bus, below the others.
    let vga_ports = AddressSpace::new_io(0x3b0u16, 0x3dfu16, None);
    let cacheable = AddressSpaceCacheable::Cacheable;
    let vga_window = AddressSpace::new_memory(cacheable, true, 0xa_0000u32, 0xb_ffffu32, None);
    if machine.has_display {
        resources.extend([&vga_ports as &dyn Aml, &vga_window]);
    }
    resources.extend(mmio32.iter().map(|part| part as &dyn Aml));
    resources.push(&mmio64);
    let resources = ResourceTemplate::new(resources).to_owned_bytes();
    Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &resources),
            &Name::new("_PRT".into(), &routing(machine)?),
            &osc(),
        ],
    )
    .to_aml_bytes(out);
    Ok(())
}

/// `_PRT` (§6.2.13): the pins of devices on bus 0, connected to the I/O APIC for good.
fn routing(machine: &Machine) -> Result<PackageBuilder, Error> {
    if machine.pci_interrupts.len() > 128 {
        let message = "the machine has more PCI interrupt pins than 32 devices can have";
        return Err(Error::new(ErrorKind::BadMachine, message));
    }
    let mut routing = PackageBuilder::new();
    for pin in &machine.pci_interrupts {
        let every_function = (pin.device as u32) << 16 | 0xffff;
        routing.add_element(&Package::new(vec![&every_function, &pin.pin, &ZERO, &pin.gsi]));
    }
    Ok(routing)
}

/// `_OSC`: grants [`OSC_CONTROL`].
fn osc() -> Preassembled {
    let word = |at: u32| Path::new(["CDW1", "CDW2", "CDW3"][at as usize]);
    let (capabilities, zero) = (Arg(3), ZERO);
    Method::new(
        "_OSC".into(),
        4,
        true,
        vec![
            &CreateDWordField::new(&word(0), &capabilities, &zero),
            &If::new(
                &Equal::new(&Arg(0), &Uuid::new(OSC_UUID)),
                vec![
                    &CreateDWordField::new(&word(2), &capabilities, &8u8),
                    &Store::new(&Local(0), &word(2)),
                    &And::new(&word(2), &word(2), &OSC_CONTROL),
                    // Revisions other than 1 are not known.
                    &If::new(&NotEqual::new(&Arg(1), &ONE), vec![&Or::new(&word(0), &word(0), &8u8)]),
                    // Less was granted than asked for.
                    &If::new(&NotEqual::new(&Local(0), &word(2)), vec![&Or::new(&word(0), &word(0), &16u8)]),
                ],
            ),
            // The UUID is not known.
            &Else::new(vec![&Or::new(&word(0), &word(0), &4u8)]),
            &Return::new(&capabilities),
        ],
    )
    .to_owned_bytes()
}

/// Addresses that are taken by the board itself: configuration space and power management ports.
fn motherboard(machine: &Machine, out: &mut Vec<u8>) {
    let (ecam, power) = (machine.ecam, &machine.power);
    let mut resources: Vec<Box<dyn Aml>> = vec![
        Box::new(IO::new(power.event_port, power.event_port, 1, 4)),
        Box::new(IO::new(power.control_port, power.control_port, 1, 2)),
        Box::new(IO::new(power.timer_port, power.timer_port, 1, 4)),
    ];
    if let Some((port, len)) = power.gpe0 {
        resources.push(Box::new(IO::new(port, port, 1, len)));
    }
    match u32::try_from(ecam.end() - 1) {
        Ok(_) => resources.push(Box::new(Memory32Fixed::new(true, ecam.start as u32, ecam.len as u32))),
        Err(_) => resources.push(Box::new(AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            ecam.start,
            ecam.end() - 1,
            None,
        ))),
    }
    let resources = ResourceTemplate::new(resources.iter().map(|r| &**r).collect()).to_owned_bytes();
    Device::new(
        "_SB_.MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(out);
}

/// Devices on the ISA bus: serial ports, clock, interval timer, interrupt controllers.
fn isa_devices(machine: &Machine, out: &mut Vec<u8>) {
    for (index, port) in machine.serial_ports.iter().enumerate() {
        let resources = ResourceTemplate::new(vec![&IO::new(port.port, port.port, 1, 8), &Irq(port.irq)])
            .to_owned_bytes();
        Device::new(
            Path::new(&format!("_SB_.COM{}", index + 1)),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &(index as u8 + 1)),
                &Name::new("_CRS".into(), &resources),
            ],
        )
        .to_aml_bytes(out);
    }
    let rtc = machine.rtc;
    let fixed = [
        ("_SB_.RTC_", "PNP0B00", vec![(rtc.port, 2)], Some(rtc.irq)),
        ("_SB_.PIT_", "PNP0100", vec![(0x40, 4)], Some(0)),
        ("_SB_.PIC_", "PNP0000", vec![(0x20, 2), (0xa0, 2), (0x4d0, 2)], Some(2)),
    ];
    let keyboard = ("_SB_.KBD_", "PNP0303", vec![(0x60, 1), (0x64, 1)], Some(1));
    for (name, hid, ports, irq) in fixed.into_iter().chain(machine.has_display.then_some(keyboard)) {
        let mut resources: Vec<Box<dyn Aml>> = Vec::new();
        for (port, len) in ports {
            resources.push(Box::new(IO::new(port, port, 1, len)));
        }
        if let Some(irq) = irq {
            resources.push(Box::new(Irq(irq)));
        }
        let resources = ResourceTemplate::new(resources.iter().map(|r| &**r).collect()).to_owned_bytes();
        Device::new(
            name.into(),
            vec![&Name::new("_HID".into(), &EISAName::new(hid)), &Name::new("_CRS".into(), &resources)],
        )
        .to_aml_bytes(out);
    }
}

/// The generation ID: a device that says where it is, and an event that tells of a change. Systems know it by
/// its compatible ID: Windows by the one of Microsoft's paper, Linux by that in capitals or by Hyper-V's. Returns
/// the offset of the low half of its address, if firmware has to add where it has put the file.
fn generation_id(machine: &Machine, out: &mut Vec<u8>) -> Option<usize> {
    let id = machine.generation_id?;
    let (address, is_open) = match id.place {
        GenerationPlace::At(address) => (address, false),
        // Counted from the start of the file.
        GenerationPlace::Firmware => (GENERATION_OFFSET as u64, true),
    };
    let (low, high) = (DWord(address as u32), (address >> 32) as u32);
    let start = out.len();
    Device::new(
        "_SB_.VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"ARNA0001"),
            &Name::new("_CID".into(), &Package::new(vec![&"VM_Gen_Counter", &"VM_GEN_COUNTER", &"VMGENCTR"])),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(out);
    // The package of two has one byte of length, one of count, and the prefix of a number of 32 bits.
    const BEFORE: [u8; 6] = *b"\x08ADDR\x12";
    let package = out[start..].windows(BEFORE.len()).position(|bytes| bytes == BEFORE)?;
    let low_at = start + package + BEFORE.len() + 3;
    let handler = Path::new(&format!("_E{:02X}", id.event));
    let notify = Notify::new(&Path::new("\\_SB_.VGEN"), &0x80u8).to_owned_bytes();
    // Edge-triggered: the status bit is cleared before the handler runs (§5.6.4.1.1).
    let mut events = Vec::new();
    Method::new(handler, 0, false, vec![&notify]).to_aml_bytes(&mut events);
    out.extend(Scope::raw("_GPE".into(), events));
    is_open.then_some(low_at)
}

/// A number in the form of 32 bits, however small it is: one that is added to later (§20.2.3, DWordConst).
struct DWord(u32);

impl Aml for DWord {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x0c);
        sink.dword(self.0);
    }
}

/// An edge-triggered, active-high ISA interrupt (§6.4.2.1, the form without flags).
struct Irq(u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << self.0);
    }
}

/// AML that is already encoded, so that what it was made of need not live on.
struct Preassembled(Vec<u8>);

impl Aml for Preassembled {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

trait ToOwnedBytes {
    fn to_owned_bytes(&self) -> Preassembled;
}

impl<T: Aml> ToOwnedBytes for T {
    fn to_owned_bytes(&self) -> Preassembled {
        Preassembled(bytes_of(self))
    }
}
