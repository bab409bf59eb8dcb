//! Model-specific registers: RDMSR and WRMSR (SDM vol. 4; APM vol. 2, appendix A).
//!
//! Registers fall into four groups: those that the engine acts on; those of the local APIC and of KVM's
//! paravirtual interface, which belong to `lapic`; those that only remember what was written; and those
//! that read as a constant. Anything else raises #GP(0), which systems expect of a processor that lacks
//! a register.

use super::After::{self, *};
use crate::block::{Flow, Handler, Op};
use crate::cpu::{Cpu, Paging};
use crate::fault::{Fault, Result};
use crate::regs::RCX;
use iced_x86::{Instruction, Mnemonic};
use x86::cpuid::PHYS_BITS;
use x86::msr::*;
use x86::paging::is_canonical;
use x86::reg::efer;
use x86::state::seg;

pub(super) fn handler(insn: &Instruction) -> Option<(Handler, After)> {
    match insn.mnemonic() {
        Mnemonic::Rdmsr => Some((rdmsr, Continues)),
        Mnemonic::Wrmsr => Some((wrmsr, Ends)),
        _ => None,
    }
}

fn rdmsr(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    cpu.require_cpl0()?;
    let value = cpu.read_msr(cpu.regs.get(RCX as u8))?;
    cpu.set_edx_eax(value);
    Ok(Flow::Next)
}

fn wrmsr(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    cpu.require_cpl0()?;
    let value = cpu.edx_eax();
    cpu.write_msr(cpu.regs.get(RCX as u8), value)?;
    Ok(Flow::Next)
}

const KVM_WALL_CLOCK_OLD: u32 = 0x11;
const KVM_SYSTEM_TIME_OLD: u32 = 0x12;
const KVM_FIRST: u32 = 0x4b56_4d00;
const KVM_LAST: u32 = 0x4b56_4dff;
const MCG_CTL: u32 = 0x17b;
const MC_BANK_FIRST: u32 = 0x400;
/// Machine-check banks, as KVM offers.
const MC_BANKS: u32 = 10;
const MC_BANK_LAST: u32 = MC_BANK_FIRST + 4 * MC_BANKS - 1;
/// MCG_CAP: the banks, and MCG_CTL is present.
const MCG_CAP_VALUE: u64 = MC_BANKS as u64 | 1 << 8;
/// Variable MTRRs, and MTRR_CAP: they, the fixed ones and write-combining.
const MTRR_VARIABLE: u32 = 8;
const MTRR_CAP_VALUE: u64 = MTRR_VARIABLE as u64 | 1 << 8 | 1 << 10;
const MTRR_VARIABLE_LAST: u32 = MTRR_PHYS_BASE0 + 2 * MTRR_VARIABLE - 1;
const MTRR_FIX4K_LAST: u32 = 0x26f;
/// MISC_ENABLE after reset: fast string operations.
const MISC_ENABLE_RESET: u64 = 1;
/// Microcode revisions that no errata table of a system finds too old.
const INTEL_MICROCODE: u64 = 0x1_0000_0000;
const AMD_MICROCODE: u64 = 0x0100_0065;

/// IA32_ARCH_CAPABILITIES: the processor that a guest sees has none of the faults that its system would
/// work around at a cost; what the host has, the host has to mitigate.
const ARCH_CAPABILITIES_VALUE: u64 = {
    const RDCL_NO: u64 = 1 << 0;
    const IBRS_ALL: u64 = 1 << 1;
    const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
    const SSB_NO: u64 = 1 << 4;
    const MDS_NO: u64 = 1 << 5;
    const PSCHANGE_MC_NO: u64 = 1 << 6;
    const TAA_NO: u64 = 1 << 8;
    const SBDR_SSDP_NO: u64 = 1 << 13;
    const FBSDP_NO: u64 = 1 << 14;
    const PSDP_NO: u64 = 1 << 15;
    const BHI_NO: u64 = 1 << 20;
    const PBRSB_NO: u64 = 1 << 24;
    const GDS_NO: u64 = 1 << 26;
    const RFDS_NO: u64 = 1 << 27;
    const ITS_NO: u64 = 1 << 62;
    RDCL_NO
        | IBRS_ALL
        | SKIP_L1DFL_VMENTRY
        | SSB_NO
        | MDS_NO
        | PSCHANGE_MC_NO
        | TAA_NO
        | SBDR_SSDP_NO
        | FBSDP_NO
        | PSDP_NO
        | BHI_NO
        | PBRSB_NO
        | GDS_NO
        | RFDS_NO
        | ITS_NO
};

/// What becomes of a register that the engine does not act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Remembers what is written, if the bits outside the mask are zero; this value after reset.
    Remembers { reset: u64, mask: u64 },
    /// Reads as this; writes are ignored.
    Constant(u64),
    /// Reads as this; writes raise #GP(0).
    ReadOnly(u64),
    /// A command: may be written with these bits, has no effect here, and cannot be read.
    Command(u64),
}

/// Registers that both vendors' processors have.
fn common_kind(msr: u32) -> Option<Kind> {
    use Kind::*;
    let any = Remembers { reset: 0, mask: u64::MAX };
    Some(match msr {
        // Machine-check address and type (Pentium).
        0x0 | 0x1 => Constant(0),
        MTRR_CAP => ReadOnly(MTRR_CAP_VALUE),
        MCG_CAP => ReadOnly(MCG_CAP_VALUE),
        MCG_STATUS => any,
        MCG_CTL => Remembers { reset: u64::MAX, mask: u64::MAX },
        MC_BANK_FIRST..=MC_BANK_LAST => any,
        SPEC_CTRL => any,
        PRED_CMD => Command(1 << 0 | 1 << 7),
        FLUSH_CMD => Command(1 << 0),
        DEBUG_CTL => any,
        // Last branch and last interrupt records: off.
        0x1db..=0x1de => Constant(0),
        // Actual and maximum performance clocks.
        0xe7 | 0xe8 => Constant(0),
        _ => return None,
    })
}

/// Registers of Intel's processors.
fn intel_kind(msr: u32) -> Option<Kind> {
    use Kind::*;
    let any = Remembers { reset: 0, mask: u64::MAX };
    Some(match msr {
        // IA32_PLATFORM_ID, EBL_CR_POWERON, EBC_FREQUENCY_ID, SMI_COUNT.
        0x17 | 0x2a | 0x34 => Constant(0),
        0x2c => Constant(1 << 24),
        // Locked, with VMX and SGX disabled.
        FEATURE_CONTROL => ReadOnly(1),
        // Microcode update trigger, FSB_FREQ, PLATFORM_INFO, BBL_CR_CTL3.
        0x79 => Constant(0),
        0xcd => Constant(3),
        0xce => ReadOnly(0),
        0x11e => Constant(0xbe70_2111),
        MICROCODE_REV => Constant(INTEL_MICROCODE),
        ARCH_CAPABILITIES => ReadOnly(ARCH_CAPABILITIES_VALUE),
        // MISC_FEATURES_ENABLES.
        0x140 => Remembers { reset: 0, mask: 0 },
        // PERF_STATUS, PERF_CTL, CLOCK_MODULATION, THERM_*.
        0x198 => ReadOnly(1000 << 8 | 4 << 40),
        0x199..=0x19b => any,
        0x19c => Constant(0),
        MISC_ENABLE => Remembers { reset: MISC_ENABLE_RESET, mask: u64::MAX },
        // MISC_FEATURE_CONTROL, ENERGY_PERF_BIAS, POWER_CTL.
        0x1a4 | 0x1b0 | 0x1fc => any,
        // Last branch records: select and top of stack.
        0x1c8 | 0x1c9 => Constant(0),
        // DS_AREA.
        0x600 => any,
        _ => return None,
    })
}

/// Registers of AMD's processors.
fn amd_kind(msr: u32) -> Option<Kind> {
    use Kind::*;
    let any = Remembers { reset: 0, mask: u64::MAX };
    Some(match msr {
        AMD_PATCH_LEVEL => Constant(AMD_MICROCODE),
        AMD_SYSCFG | AMD_DE_CFG => any,
        // TscFreqSel: the TSC counts at the rate of P-state 0, which Linux insists on.
        AMD_HWCR => Remembers { reset: 1 << 24, mask: u64::MAX },
        // NB_CFG: Linux sets EnableCf8ExtCfg in it.
        0xc001_001f => any,
        // Performance counters (legacy and extended) count nothing.
        0xc001_0000..=0xc001_0007 | 0xc001_0200..=0xc001_020b => Constant(0),
        // IORRs, TOP_MEM, TOP_MEM2.
        0xc001_0016..=0xc001_001a | 0xc001_001d => any,
        // Microcode loader.
        0xc001_0020 => Constant(0),
        // Interrupt pending message, MMIO configuration base.
        0xc001_0055 => Constant(0),
        0xc001_0058 => any,
        // P-states: limit, control, status, definitions.
        0xc001_0061..=0xc001_006b => Constant(0),
        // Watchdog timer, SMM base/mask, VM_CR (SVM disabled and locked), OSVW.
        0xc001_0074 | 0xc001_0112 | 0xc001_0113 => Constant(0),
        0xc001_0114 => ReadOnly(1 << 3 | 1 << 4),
        0xc001_0140 | 0xc001_0141 => ReadOnly(0),
        // LS_CFG, IC_CFG, DC_CFG, BU_CFG, FP_CFG, BU_CFG2 and their like.
        0xc001_1020..=0xc001_1023 | 0xc001_1028 | 0xc001_102a..=0xc001_102d => any,
        _ => return None,
    })
}

impl Cpu {
    /// Reads a register.
    ///
    /// # Errors
    /// #GP(0) when the processor has no such register or it cannot be read.
    pub(super) fn read_msr(&mut self, msr: u32) -> Result<u64> {
        let sys = &self.sys;
        Ok(match msr {
            TSC => self.tsc(),
            TSC_ADJUST => sys.tsc_adjust,
            TSC_AUX => sys.tsc_aux,
            EFER => sys.efer,
            STAR => sys.star,
            LSTAR => sys.lstar,
            CSTAR => sys.cstar,
            SFMASK => sys.sfmask,
            FS_BASE => self.regs.seg[seg::FS].base,
            GS_BASE => self.regs.seg[seg::GS].base,
            KERNEL_GS_BASE => sys.kernel_gs_base,
            SYSENTER_CS => sys.sysenter_cs,
            SYSENTER_ESP => sys.sysenter_esp,
            SYSENTER_EIP => sys.sysenter_eip,
            PAT => sys.pat,
            APIC_BASE | TSC_DEADLINE | X2APIC_FIRST..=X2APIC_LAST => return self.lapic_read_msr(msr),
            KVM_WALL_CLOCK_OLD | KVM_SYSTEM_TIME_OLD | KVM_FIRST..=KVM_LAST => {
                return self.kvm_read_msr(msr);
            }
            _ if is_mtrr(msr) => self.remembered(msr, 0),
            XSS if self.has_xsaves() => 0,
            _ => match self.msr_kind(msr) {
                Some(Kind::Constant(value) | Kind::ReadOnly(value)) => value,
                Some(Kind::Remembers { reset, .. }) => self.remembered(msr, reset),
                Some(Kind::Command(_)) | None => return Err(Fault::GP0),
            },
        })
    }

    /// Writes a register.
    ///
    /// # Errors
    /// #GP(0) when the processor has no such register or the value is not allowed.
    pub(super) fn write_msr(&mut self, msr: u32, value: u64) -> Result<()> {
        match msr {
            // Writing the counter moves IA32_TSC_ADJUST by as much (SDM vol. 3B, §18.17.3).
            TSC => {
                let delta = value.wrapping_sub(self.tsc());
                self.sys.tsc_adjust = self.sys.tsc_adjust.wrapping_add(delta);
                self.tsc_adjust_changed();
            }
            TSC_ADJUST => {
                self.sys.tsc_adjust = value;
                self.tsc_adjust_changed();
            }
            TSC_AUX => self.sys.tsc_aux = only(value, 0xffff_ffff)?,
            EFER => self.write_efer(value)?,
            STAR => {
                self.sys.star = value;
                self.update_fast();
            }
            LSTAR => {
                self.sys.lstar = canonical(value)?;
                self.update_fast();
            }
            CSTAR => self.sys.cstar = canonical(value)?,
            SFMASK => {
                self.sys.sfmask = value & 0xffff_ffff;
                self.update_fast();
            }
            FS_BASE => self.regs.seg[seg::FS].base = canonical(value)?,
            GS_BASE => self.regs.seg[seg::GS].base = canonical(value)?,
            KERNEL_GS_BASE => self.sys.kernel_gs_base = canonical(value)?,
            SYSENTER_CS => self.sys.sysenter_cs = value & 0xffff_ffff,
            SYSENTER_ESP => self.sys.sysenter_esp = canonical(value)?,
            SYSENTER_EIP => self.sys.sysenter_eip = canonical(value)?,
            PAT => self.sys.pat = checked_pat(value)?,
            APIC_BASE | TSC_DEADLINE | X2APIC_FIRST..=X2APIC_LAST => {
                return self.lapic_write_msr(msr, value);
            }
            KVM_WALL_CLOCK_OLD | KVM_SYSTEM_TIME_OLD | KVM_FIRST..=KVM_LAST => {
                return self.kvm_write_msr(msr, value);
            }
            _ if is_mtrr(msr) => {
                check_mtrr(msr, value)?;
                self.sys.other_msrs.insert(msr, value);
            }
            XSS if self.has_xsaves() => return only(value, 0).map(drop),
            _ => self.write_other(msr, value)?,
        }
        Ok(())
    }

    fn write_other(&mut self, msr: u32, value: u64) -> Result<()> {
        match self.msr_kind(msr) {
            Some(Kind::Remembers { reset, mask }) => {
                only(value, mask)?;
                self.check_remembered(msr, value)?;
                match value == reset {
                    true => self.sys.other_msrs.remove(&msr),
                    false => self.sys.other_msrs.insert(msr, value),
                };
                Ok(())
            }
            Some(Kind::Command(mask)) => only(value, mask).map(drop),
            Some(Kind::Constant(_)) => Ok(()),
            Some(Kind::ReadOnly(_)) | None => Err(Fault::GP0),
        }
    }

    /// Values that registers with a format of their own refuse.
    fn check_remembered(&self, msr: u32, value: u64) -> Result<()> {
        let allowed = match msr {
            // IBRS, STIBP, SSBD, and the bits that CPUID leaf 7.2 may announce.
            SPEC_CTRL => value & !0x5ff == 0,
            // Zero or all ones (SDM vol. 3B, §16.3.1.3).
            MCG_CTL => value == 0 || value == u64::MAX,
            MC_BANK_FIRST..=MC_BANK_LAST => match (msr - MC_BANK_FIRST) % 4 {
                // Control; bit 10 of bank 4 is cleared by Linux on old processors.
                0 => value == 0 || value | 1 << 10 == u64::MAX,
                // Status, address, miscellaneous: only cleared.
                1 => value == 0,
                _ => true,
            },
            // McStatusWrEn and cosmetic bits; no way to switch off what CPUID announces.
            AMD_HWCR => value & !(1 << 3 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 18 | 1 << 24 | 1 << 30) == 0,
            // BTF and LBR have nothing to work with; they are kept as written.
            DEBUG_CTL => value & !0x3fff == 0,
            _ => true,
        };
        if allowed { Ok(()) } else { Err(Fault::GP0) }
    }

    fn remembered(&self, msr: u32, reset: u64) -> u64 {
        self.sys.other_msrs.get(&msr).copied().unwrap_or(reset)
    }

    fn msr_kind(&self, msr: u32) -> Option<Kind> {
        let exists = match msr {
            SPEC_CTRL | PRED_CMD => self.has_speculation_control(),
            FLUSH_CMD => self.cpuid_leaf(7, 0).edx >> 28 & 1 != 0,
            ARCH_CAPABILITIES => self.cpuid_leaf(7, 0).edx >> 29 & 1 != 0,
            0xe7 | 0xe8 => self.cpuid_leaf(6, 0).ecx & 1 != 0,
            _ => true,
        };
        if !exists {
            return None;
        }
        common_kind(msr).or_else(|| if self.is_intel() { intel_kind(msr) } else { amd_kind(msr) })
    }

    /// IBRS, IBPB, STIBP or SSBD in either vendor's leaf.
    fn has_speculation_control(&self) -> bool {
        const INTEL: u32 = 1 << 26 | 1 << 27 | 1 << 31;
        const AMD: u32 = 1 << 12 | 1 << 14 | 1 << 15 | 1 << 24;
        self.cpuid_leaf(7, 0).edx & INTEL != 0 || self.cpuid_leaf(0x8000_0008, 0).ebx & AMD != 0
    }

    fn has_xsaves(&self) -> bool {
        self.cpuid_leaf(0xd, 1).eax >> 3 & 1 != 0
    }

    /// The bits of EFER that this guest's processor has.
    pub(super) fn efer_known(&self) -> u64 {
        let extended = self.cpuid_leaf(0x8000_0001, 0);
        let extended_2 = self.cpuid_leaf(0x8000_0021, 0);
        let features = [
            (extended.edx, 11, efer::SCE),
            (extended.edx, 20, efer::NXE),
            (extended.edx, 25, efer::FFXSR),
            (extended.edx, 29, efer::LME | efer::LMA | efer::SCE),
            // Translation cache extension, automatic IBRS.
            (extended.ecx, 17, 1 << 15),
            (extended_2.eax, 8, 1 << 21),
        ];
        let has = |(register, bit, _): &(u32, u32, u64)| register >> bit & 1 != 0;
        features.iter().filter(|feature| has(feature)).fold(0, |known, (_, _, bits)| known | bits)
    }

    /// Writes EFER (APM vol. 2, §3.1.7). LMA is the processor's own.
    fn write_efer(&mut self, value: u64) -> Result<()> {
        let old = self.sys.efer;
        let new = value & !efer::LMA | old & efer::LMA;
        if new & !self.efer_known() != 0 {
            return Err(Fault::GP0);
        }
        if (old ^ new) & efer::LME != 0 && self.mode.paging != Paging::None {
            return Err(Fault::GP0);
        }
        self.sys.efer = new;
        self.update_mode();
        self.update_fast();
        if (old ^ new) & efer::NXE != 0 {
            self.flush_tlb_all();
        }
        Ok(())
    }
}

/// #GP(0) when bits outside the mask are set.
fn only(value: u64, mask: u64) -> Result<u64> {
    if value & !mask == 0 { Ok(value) } else { Err(Fault::GP0) }
}

fn canonical(value: u64) -> Result<u64> {
    if is_canonical(value) { Ok(value) } else { Err(Fault::GP0) }
}

/// Memory types of the PAT: all but 2 and 3 (SDM vol. 3A, table 12-10).
pub(super) fn checked_pat(value: u64) -> Result<u64> {
    let valid = value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
    if valid { Ok(value) } else { Err(Fault::GP0) }
}

fn is_mtrr(msr: u32) -> bool {
    matches!(
        msr,
        MTRR_PHYS_BASE0..=MTRR_VARIABLE_LAST
            | MTRR_FIX64K
            | MTRR_FIX16K_8
            | MTRR_FIX16K_A
            | MTRR_FIX4K_C0..=MTRR_FIX4K_LAST
            | MTRR_DEF_TYPE
    )
}

/// Formats of the memory-type range registers (SDM vol. 3A, §12.11).
fn check_mtrr(msr: u32, value: u64) -> Result<()> {
    let is_type = |kind: u8| matches!(kind, 0 | 1 | 4 | 5 | 6);
    let address = ((1u64 << PHYS_BITS) - 1) & !0xfff;
    let valid = match msr {
        MTRR_DEF_TYPE => value & !0xcff == 0 && is_type(value as u8),
        MTRR_PHYS_BASE0..=MTRR_VARIABLE_LAST if msr & 1 == 0 => {
            value & !(address | 0xff) == 0 && is_type(value as u8)
        }
        MTRR_PHYS_BASE0..=MTRR_VARIABLE_LAST => value & !(address | 1 << 11) == 0,
        _ => value.to_le_bytes().into_iter().all(is_type),
    };
    if valid { Ok(()) } else { Err(Fault::GP0) }
}

/// Registers that have a field of their own in the vCPU and none in a saved state, with TSC_ADJUST first,
/// which others depend on when they are restored.
pub(super) const SAVED: [u32; 11] = [
    TSC_ADJUST,
    SYSENTER_CS,
    SYSENTER_ESP,
    SYSENTER_EIP,
    PAT,
    STAR,
    LSTAR,
    CSTAR,
    SFMASK,
    KERNEL_GS_BASE,
    TSC_AUX,
];
