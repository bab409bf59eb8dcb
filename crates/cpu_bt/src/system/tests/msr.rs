//! Model-specific registers.

use super::machine::*;
use crate::fault::Fault;
use crate::regs::{RAX, RCX, RDX};
use x86::msr::*;
use x86::reg::efer;
use x86::state::seg;

const RDMSR: [u8; 2] = [0x0f, 0x32];
const WRMSR: [u8; 2] = [0x0f, 0x30];

fn write(machine: &mut Machine, number: u32, value: u64) -> Result<(), Fault> {
    machine.cpu.regs.r[RCX] = number as u64 | 0xffff_ffff_0000_0000;
    machine.cpu.regs.r[RAX] = value | 0xffff_ffff_0000_0000;
    machine.cpu.regs.r[RDX] = value >> 32 | 0xffff_ffff_0000_0000;
    machine.run(&WRMSR)
}

fn read(machine: &mut Machine, number: u32) -> Result<u64, Fault> {
    machine.cpu.regs.r[RCX] = number as u64;
    machine.run(&RDMSR)?;
    assert_eq!((machine.cpu.regs.r[RAX] | machine.cpu.regs.r[RDX]) >> 32, 0);
    Ok(machine.cpu.regs.r[RDX] << 32 | machine.cpu.regs.r[RAX])
}

#[test]
fn registers_keep_allowed_values_and_refuse_others() {
    const CANONICAL: u64 = 0xffff_8123_4567_89ab;
    const NOT: u64 = 0x0000_8000_0000_0000;
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    for (number, value, allowed) in [
        (STAR, u64::MAX, true),
        (LSTAR, CANONICAL, true),
        (LSTAR, NOT, false),
        (CSTAR, NOT, false),
        (SFMASK, 0x4_7700, true),
        (FS_BASE, CANONICAL, true),
        (FS_BASE, NOT, false),
        (GS_BASE, CANONICAL, true),
        (GS_BASE, NOT, false),
        (KERNEL_GS_BASE, CANONICAL, true),
        (KERNEL_GS_BASE, NOT, false),
        (SYSENTER_ESP, NOT, false),
        (SYSENTER_EIP, CANONICAL, true),
        (TSC_AUX, 0xffff_ffff, true),
        (TSC_AUX, 1 << 32, false),
        (PAT, 0x0007_0406_0007_0406, true),
        (PAT, 0x0007_0401_0507_0406, true),
        (PAT, 2, false),
        (PAT, 3 << 56, false),
        (MTRR_DEF_TYPE, 0xc06, true),
        (MTRR_DEF_TYPE, 0xc02, false),
        (MTRR_DEF_TYPE, 0x100, false),
        (MTRR_PHYS_BASE0, 0xc000_0000, true),
        (MTRR_PHYS_BASE0, 0xc000_0003, false),
        (MTRR_PHYS_BASE0 + 1, 0x3fff_c000_0800, true),
        (MTRR_PHYS_BASE0 + 1, 1 << 46, false),
        (MTRR_FIX64K, 0x0606_0606_0606_0606, true),
        (MTRR_FIX4K_C0 + 7, 0x0202, false),
        (MTRR_CAP, 0, false),
        (MISC_ENABLE, 1 | 1 << 34, true),
        (MCG_STATUS, 4, true),
        (0x400, u64::MAX, true),
        (0x400, 1, false),
        (0x401, 0, true),
        (0x401, 1, false),
        (0x428, 0, false),
        (SPEC_CTRL, 1, true),
        (SPEC_CTRL, 1 << 40, false),
        (FEATURE_CONTROL, 1, false),
        (0x1234_5678, 0, false),
        (XSS, 0, false),
    ] {
        let what = format!("{number:#x} = {value:#x}");
        match allowed {
            true => {
                write(&mut machine, number, value).unwrap_or_else(|fault| panic!("{what}: {fault:?}"));
                assert_eq!(read(&mut machine, number), Ok(value), "{what}");
            }
            false => assert_eq!(write(&mut machine, number, value), Err(Fault::GP0), "{what}"),
        }
    }
    assert_eq!(machine.cpu.regs.seg[seg::FS].base, CANONICAL);
    // Commands are written and not read.
    assert_eq!(write(&mut machine, PRED_CMD, 1), Ok(()));
    assert_eq!(write(&mut machine, PRED_CMD, 2), Err(Fault::GP0));
    assert_eq!(read(&mut machine, PRED_CMD), Err(Fault::GP0));
    assert_eq!(read(&mut machine, MTRR_CAP), Ok(0x508));
    assert_eq!(read(&mut machine, 0x1234_5678), Err(Fault::GP0));
}

#[test]
fn vendors_have_registers_of_their_own() {
    for (vendor, number, exists) in [
        (Vendor::Intel, AMD_HWCR, false),
        (Vendor::Amd, AMD_HWCR, true),
        (Vendor::Amd, AMD_DE_CFG, true),
        (Vendor::Amd, AMD_SYSCFG, true),
        (Vendor::Intel, MISC_ENABLE, true),
        (Vendor::Amd, MISC_ENABLE, false),
        (Vendor::Intel, ARCH_CAPABILITIES, true),
        (Vendor::Intel, MICROCODE_REV, true),
        (Vendor::Amd, MICROCODE_REV, true),
    ] {
        let mut machine = Machine::of(Start::Long { cpl: 0 }, vendor);
        assert_eq!(read(&mut machine, number).is_ok(), exists, "{vendor:?} {number:#x}");
    }
}

#[test]
fn users_have_no_registers() {
    for start in [Start::Long { cpl: 3 }, Start::Protected { cpl: 3 }] {
        let mut machine = Machine::new(start);
        assert_eq!(machine.faults(&RDMSR), Fault::GP0);
        assert_eq!(machine.faults(&WRMSR), Fault::GP0);
    }
}

#[test]
fn efer_is_guarded() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    let current = efer::LME | efer::LMA | efer::NXE | efer::SCE;
    for (value, expected) in [
        (current, Ok(())),
        // LMA is the processor's: written values are ignored.
        (current & !efer::LMA, Ok(())),
        (current & !efer::SCE, Ok(())),
        (current & !efer::LME, Err(Fault::GP0)),
        (current | efer::SVME, Err(Fault::GP0)),
        (current | 1 << 1, Err(Fault::GP0)),
        (current | 1 << 40, Err(Fault::GP0)),
    ] {
        assert_eq!(write(&mut machine, EFER, value), expected, "{value:#x}");
        assert_ne!(machine.cpu.sys.efer & efer::LMA, 0);
    }
    let mut machine = Machine::new(Start::Real);
    assert_eq!(write(&mut machine, EFER, efer::LME), Ok(()));
    assert_eq!(machine.cpu.sys.efer, efer::LME);
}

#[test]
fn the_time_stamp_counter_moves_with_its_adjustment() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.cpu.vm.clock.pause();
    let now = machine.cpu.tsc();
    write(&mut machine, TSC, now + 1_000_000).unwrap();
    assert_eq!(read(&mut machine, TSC_ADJUST), Ok(1_000_000));
    assert_eq!(read(&mut machine, TSC), Ok(now + 1_000_000));
    write(&mut machine, TSC_ADJUST, 0).unwrap();
    assert_eq!(read(&mut machine, TSC), Ok(now));
}

#[test]
fn local_apic_and_paravirtual_registers_are_reached() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    let base = read(&mut machine, APIC_BASE).unwrap();
    assert_eq!(base & !0xfff, 0xfee0_0000);
    assert_eq!(read(&mut machine, X2APIC_FIRST + 2), Err(Fault::GP0), "not in x2APIC mode");
    write(&mut machine, APIC_BASE, base | 1 << 10).unwrap();
    assert_eq!(read(&mut machine, X2APIC_FIRST + 2), Ok(0));
    assert_eq!(read(&mut machine, KVM_POLL_CONTROL), Ok(1));
}
