//! The tables that are plain structures.

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes_of, table};
use crate::Machine;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;

/// FADT, IAPC_BOOT_ARCH (§5.2.9.3): there are ISA devices (the serial ports), and no ASPM to be switched on.
const BOOT_ARCH: u16 = 1 << 0 | 1 << 4;
/// There, with a keyboard: there is an 8042.
const BOOT_ARCH_8042: u16 = 1 << 1;
/// There, without a display: there is no VGA.
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;

pub(super) fn facs() -> Vec<u8> {
    bytes_of(&FACS::new())
}

pub(super) fn fadt(machine: &Machine, facs: u64, dsdt: u64) -> Vec<u8> {
    let power = &machine.power;
    let port = |port: u16, bytes: u8, access| {
        GAS::new(AddressSpace::SystemIo, bytes.saturating_mul(8), 0, access, port.into())
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // The power button is fixed hardware (its flag is clear); sleep button and the RTC's wake status
        // are not.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    if power.timer_is_32_bit {
        fadt = fadt.flag(Flags::TmrValExt);
    }
    fadt.dsdt = (dsdt as u32).into();
    fadt.sci_int = u16::from(power.sci).into();
    fadt.pm1a_evt_blk = u32::from(power.event_port).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = port(power.event_port, 4, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(power.control_port).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = port(power.control_port, 2, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(power.timer_port).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = port(power.timer_port, 4, AccessSize::DwordAccess);
    if let Some((gpe0, len)) = power.gpe0 {
        fadt = fadt.gpe_info(gpe0.into(), 0, len, 0, 0);
        fadt.x_gpe0_blk = port(gpe0, len, AccessSize::ByteAccess);
    }
    // C2 and C3 are not supported: latencies above the limits (§5.2.9).
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.century = machine.rtc.century;
    let display = if machine.has_display { BOOT_ARCH_8042 } else { BOOT_ARCH_NO_VGA };
    fadt.iapc_boot_arch = (BOOT_ARCH | display).into();
    fadt.reset_reg = port(power.reset.0, 1, AccessSize::ByteAccess);
    fadt.reset_value = power.reset.1;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"ARNIA\0\0\0").into();
    bytes_of(&fadt.finalize())
}

/// MADT (§5.2.12): processors, the I/O APIC, the two ISA interrupts that are not what they seem.
pub(super) fn madt(machine: &Machine) -> Vec<u8> {
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u32 = 1;
    const ALL_PROCESSORS: u8 = 0xff;
    const LEVEL_ACTIVE_HIGH: u16 = 0b1101;
    let mut body = Vec::new();
    let mut put = |bytes: &[u8]| body.extend_from_slice(bytes);
    put(&machine.local_apic.to_le_bytes());
    put(&PCAT_COMPAT.to_le_bytes());
    for id in 0..machine.vcpus {
        match u8::try_from(id) {
            // §5.2.12.2: IDs up to 254 in local APIC structures.
            Ok(id) if id < 255 => {
                put(&[0, 8, id, id]);
                put(&ENABLED.to_le_bytes());
            }
            // §5.2.12.12: the others in x2APIC structures.
            _ => {
                put(&[9, 16, 0, 0]);
                for field in [id, ENABLED, id] {
                    put(&field.to_le_bytes());
                }
            }
        }
    }
    // §5.2.12.3: the I/O APIC, whose inputs are global interrupts 0 to 23.
    put(&[1, 12, machine.io_apic_id, 0]);
    put(&machine.io_apic.to_le_bytes());
    put(&0u32.to_le_bytes());
    // §5.2.12.5: interrupt source overrides.
    let overrides =
        [(0, machine.timer_gsi, 0), (machine.power.sci, machine.power.sci.into(), LEVEL_ACTIVE_HIGH)];
    for (irq, gsi, flags) in overrides {
        put(&[2, 10, 0, irq]);
        put(&gsi.to_le_bytes());
        put(&flags.to_le_bytes());
    }
    // §5.2.12.7: LINT1 is the NMI, on every processor.
    put(&[4, 6, ALL_PROCESSORS, 0, 0, 1]);
    table(b"APIC", 5, &body)
}

/// MCFG (PCI Firmware Specification 3.3, §4.1.2).
pub(super) fn mcfg(machine: &Machine) -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(machine.ecam.start, 0, 0, last_bus(machine));
    bytes_of(&mcfg)
}

/// The highest bus number that configuration space reaches.
pub(super) fn last_bus(machine: &Machine) -> u8 {
    ((machine.ecam.len >> 20).clamp(1, 256) - 1) as u8
}

/// WAET: tells Windows that the PM timer needs no workaround for flaws of real chips. Not so of the RTC,
/// whose register C has to be read before its next interrupt, as on a real one.
pub(super) fn waet() -> Vec<u8> {
    const PM_TIMER_GOOD: u32 = 1 << 1;
    table(b"WAET", 1, &PM_TIMER_GOOD.to_le_bytes())
}
