//! Control registers: moves to and from them, CLTS, LMSW, SMSW, XSETBV, XGETBV, INVLPG, INVPCID and cache
//! maintenance (SDM vol. 3A, §2.5 and §4.10.4).

use super::After::{self, *};
use super::operand::{is_memory, register};
use crate::block::{Flow, Handler, Op};
use crate::cpu::{Cpu, Paging};
use crate::fault::{Fault, Result};
use crate::mmu::walk::Access;
use crate::regs::{RAX, RCX, RDX};
use iced_x86::{Code, Instruction, Mnemonic};
use x86::cpuid::PHYS_BITS;
use x86::paging::{PRESENT, is_canonical};
use x86::reg::{cr0, cr3, cr4, efer, xcr0};
use x86::segment::access;
use x86::state::seg;

pub(super) fn handler(insn: &Instruction) -> Option<(Handler, After)> {
    use Mnemonic::*;
    Some(match insn.code() {
        Code::Mov_r32_cr | Code::Mov_r64_cr => return Some((read_control, Continues)),
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => return Some((write_control, Ends)),
        _ => match insn.mnemonic() {
            Clts => (clts, Ends),
            Smsw => (smsw, Continues),
            Lmsw => (lmsw, Ends),
            Xgetbv => (xgetbv, Continues),
            Xsetbv => (xsetbv, Ends),
            Invlpg => (invlpg, Ends),
            Invpcid => (invpcid, Ends),
            Invd | Wbinvd | Wbnoinvd => (flush_caches, Continues),
            Clflush | Clflushopt | Clwb => (flush_line, Continues),
            _ => return None,
        },
    })
}

/// What a control register is written from or read to has the size of the mode.
fn read_control(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let number = control_number(op, 1)?;
    cpu.require_cpl0()?;
    let value = match number {
        0 => cpu.sys.cr0,
        2 => cpu.sys.cr2,
        3 => cpu.sys.cr3,
        4 => cpu.sys.cr4,
        _ => cpu.read_cr8(),
    };
    match op.insn().code() {
        Code::Mov_r32_cr => cpu.regs.set(register(op, 0), value as u32),
        _ => cpu.regs.set(register(op, 0), value),
    }
    Ok(Flow::Next)
}

fn write_control(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let number = control_number(op, 0)?;
    cpu.require_cpl0()?;
    let value = match op.insn().code() {
        Code::Mov_cr_r32 => cpu.regs.get::<u32>(register(op, 1)) as u64,
        _ => cpu.regs.get::<u64>(register(op, 1)),
    };
    match number {
        0 => cpu.write_cr0(value)?,
        2 => cpu.sys.cr2 = value,
        3 => cpu.write_cr3(value)?,
        4 => cpu.write_cr4(value)?,
        _ if value > 15 => return Err(Fault::GP0),
        _ => cpu.write_cr8(value),
    }
    Ok(Flow::Next)
}

/// CR0, 2, 3, 4 and 8 exist.
fn control_number(op: &Op, operand: u32) -> Result<usize> {
    match op.insn().op_register(operand).number() {
        number @ (0 | 2 | 3 | 4 | 8) => Ok(number),
        _ => Err(Fault::UNDEFINED),
    }
}

/// All bits of CR0 that have a meaning. Others in the lower half read as zero; in the upper half they
/// are refused.
const CR0_KNOWN: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

impl Cpu {
    /// Moves to CR0, with entry to and exit from paging and long mode (SDM vol. 3A, §10.8.5).
    pub(super) fn write_cr0(&mut self, value: u64) -> Result<()> {
        let (old, new) = (self.sys.cr0, value & CR0_KNOWN | cr0::ET);
        let bad_combination =
            new & cr0::PG != 0 && new & cr0::PE == 0 || new & cr0::NW != 0 && new & cr0::CD == 0;
        if value >> 32 != 0 || bad_combination {
            return Err(Fault::GP0);
        }
        let changed = old ^ new;
        let mut efer = self.sys.efer;
        let mut pointers = None;
        if changed & new & cr0::PG != 0 {
            if efer & efer::LME != 0 {
                let code = self.regs.seg[seg::CS];
                if self.sys.cr4 & cr4::PAE == 0 || code.has(access::LONG) {
                    return Err(Fault::GP0);
                }
                efer |= efer::LMA;
            } else if self.sys.cr4 & cr4::PAE != 0 {
                pointers = Some(self.read_pdptes(self.sys.cr3)?);
            }
        } else if changed & old & cr0::PG != 0 {
            if self.mode.is_64() || self.sys.cr4 & cr4::PCIDE != 0 {
                return Err(Fault::GP0);
            }
            efer &= !efer::LMA;
        }
        self.sys.cr0 = new;
        self.sys.efer = efer;
        if let Some(pointers) = pointers {
            self.sys.pdpte = pointers;
        }
        self.update_mode();
        self.update_fast();
        if changed & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.flush_tlb_all();
        }
        Ok(())
    }

    /// Moves to CR3.
    fn write_cr3(&mut self, value: u64) -> Result<()> {
        let (mut value, mut keep) = (value, false);
        if self.mode.long {
            if self.sys.cr4 & cr4::PCIDE != 0 {
                keep = value & cr3::NO_FLUSH != 0;
                value &= !cr3::NO_FLUSH;
            }
            if value >> PHYS_BITS != 0 {
                return Err(Fault::GP0);
            }
        }
        self.switch_page_tables(value, keep)
    }

    /// Makes `value` CR3: loads what PAE paging takes from memory and drops translations, unless those of
    /// the address space are to be kept (SDM vol. 3A, §4.10.4.1).
    pub(super) fn switch_page_tables(&mut self, value: u64, keep: bool) -> Result<()> {
        if self.mode.paging == Paging::Pae {
            self.sys.pdpte = self.read_pdptes(value)?;
        }
        self.sys.cr3 = value;
        self.switch_tlb(keep);
        Ok(())
    }

    /// Reads the four page-directory pointers of PAE paging (SDM vol. 3A, §4.4.1).
    pub(super) fn read_pdptes(&self, cr3: u64) -> Result<[u64; 4]> {
        // Bits 1, 2, 5 to 8, and those above the physical address are reserved.
        let reserved = 0x1e6 | !((1u64 << PHYS_BITS) - 1);
        let mut pointers = [0; 4];
        for (gpa, pointer) in (cr3 & 0xffff_ffe0..).step_by(8).zip(&mut pointers) {
            *pointer = self.ram.load::<u64>(gpa).unwrap_or(u64::MAX);
            if *pointer & PRESENT != 0 && *pointer & reserved != 0 {
                return Err(Fault::GP0);
            }
        }
        Ok(pointers)
    }

    /// The bits of CR4 that this guest's processor has.
    pub(super) fn cr4_known(&self) -> u64 {
        let mut known = cr4::PCE | cr4::OSXMMEXCPT;
        let one = self.cpuid_leaf(1, 0);
        let seven = self.cpuid_leaf(7, 0);
        let features = [
            (one.edx, 1, cr4::VME | cr4::PVI),
            (one.edx, 2, cr4::DE),
            (one.edx, 3, cr4::PSE),
            (one.edx, 4, cr4::TSD),
            (one.edx, 6, cr4::PAE),
            (one.edx, 7, cr4::MCE),
            (one.edx, 13, cr4::PGE),
            (one.edx, 24, cr4::OSFXSR),
            (one.ecx, 17, cr4::PCIDE),
            (one.ecx, 26, cr4::OSXSAVE),
            (seven.ebx, 0, cr4::FSGSBASE),
            (seven.ebx, 7, cr4::SMEP),
            (seven.ebx, 20, cr4::SMAP),
            (seven.ecx, 2, cr4::UMIP),
        ];
        for (register, bit, flags) in features {
            if register >> bit & 1 != 0 {
                known |= flags;
            }
        }
        known
    }

    /// Moves to CR4.
    fn write_cr4(&mut self, new: u64) -> Result<()> {
        let old = self.sys.cr4;
        let changed = old ^ new;
        if new & !self.cr4_known() != 0 || (self.mode.long && new & cr4::PAE == 0) {
            return Err(Fault::GP0);
        }
        // PCIDs are enabled in long mode only, and with PCID 0 current (SDM vol. 3A, §4.10.1).
        let enables_pcid = changed & new & cr4::PCIDE != 0;
        if enables_pcid && (!self.mode.long || self.sys.cr3 & cr3::PCID != 0) {
            return Err(Fault::GP0);
        }
        let paging = cr4::PAE | cr4::PSE | cr4::PGE | cr4::SMEP;
        let mut pointers = self.sys.pdpte;
        let pae = self.mode.paging != Paging::None && !self.mode.long && new & cr4::PAE != 0;
        if pae && changed & paging != 0 {
            pointers = self.read_pdptes(self.sys.cr3)?;
        }
        self.sys.pdpte = pointers;
        self.sys.cr4 = new;
        self.update_mode();
        self.update_fast();
        if changed & (paging | cr4::SMAP | cr4::PCIDE) != 0 {
            self.flush_tlb_all();
        }
        Ok(())
    }

    /// What XCR0 may hold on this guest's processor.
    pub(super) fn xcr0_known(&self) -> u64 {
        let leaf = self.cpuid_leaf(0xd, 0);
        let known = leaf.eax as u64 | (leaf.edx as u64) << 32;
        known & (xcr0::X87 | xcr0::SSE | xcr0::AVX) | xcr0::X87
    }

    /// Whether a value may be in XCR0 (SDM vol. 1, §13.3).
    pub(super) fn is_valid_xcr0(&self, value: u64) -> bool {
        let avx_without_sse = value & xcr0::AVX != 0 && value & xcr0::SSE == 0;
        value & !self.xcr0_known() == 0 && value & xcr0::X87 != 0 && !avx_without_sse
    }
}

fn clts(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    cpu.require_cpl0()?;
    cpu.sys.cr0 &= !cr0::TS;
    Ok(Flow::Next)
}

fn smsw(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_no_umip()?;
    cpu.store_word(op, cpu.sys.cr0)?;
    Ok(Flow::Next)
}

/// LMSW sets the low four bits; it can enter protected mode and not leave it.
fn lmsw(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_cpl0()?;
    let word = cpu.operand::<u16>(op, 0)? as u64;
    let low = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
    let kept = cpu.sys.cr0 & (!low | cr0::PE);
    cpu.write_cr0(kept | word & low)?;
    Ok(Flow::Next)
}

fn xgetbv(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    cpu.require_cr4(cr4::OSXSAVE)?;
    let value = match cpu.regs.get::<u32>(RCX as u8) {
        0 => cpu.sys.xcr0,
        // Which parts are in use; saying "all" is allowed.
        1 if cpu.cpuid_leaf(0xd, 1).eax & 4 != 0 => cpu.sys.xcr0,
        _ => return Err(Fault::GP0),
    };
    cpu.regs.set(RAX as u8, value as u32);
    cpu.regs.set(RDX as u8, (value >> 32) as u32);
    Ok(Flow::Next)
}

fn xsetbv(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    cpu.require_cr4(cr4::OSXSAVE)?;
    cpu.require_cpl0()?;
    let value = cpu.edx_eax();
    if cpu.regs.get::<u32>(RCX as u8) != 0 || !cpu.is_valid_xcr0(value) {
        return Err(Fault::GP0);
    }
    cpu.sys.xcr0 = value;
    Ok(Flow::Next)
}

impl Cpu {
    /// EDX:EAX.
    pub(super) fn edx_eax(&self) -> u64 {
        self.regs.r[RDX] << 32 | self.regs.r[RAX] & 0xffff_ffff
    }

    /// Loads EDX:EAX.
    pub(super) fn set_edx_eax(&mut self, value: u64) {
        self.regs.r[RAX] = value & 0xffff_ffff;
        self.regs.r[RDX] = value >> 32;
    }
}

fn invlpg(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_cpl0()?;
    let base = cpu.regs.seg[op.segment as usize].base;
    let linear = cpu.wrap_linear(base.wrapping_add(op.address(cpu)));
    // A non-canonical address is no error and invalidates nothing.
    if !cpu.mode.long || is_canonical(linear) {
        cpu.flush_tlb_page(linear);
    }
    Ok(Flow::Next)
}

fn invpcid(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_cpl0()?;
    let kind = match op.insn().code() {
        Code::Invpcid_r32_m128 => cpu.regs.get::<u32>(register(op, 0)) as u64,
        _ => cpu.regs.get::<u64>(register(op, 0)),
    };
    let linear = op.linear(cpu, 16, false)?;
    let mut bytes = [0; 16];
    cpu.read_bytes(linear, &mut bytes)?;
    let pcid = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let address = u64::from_le_bytes(bytes[8..].try_into().expect("eight bytes"));
    if kind > 3 || pcid >> 12 != 0 {
        return Err(Fault::GP0);
    }
    if kind < 2 && pcid != 0 && cpu.sys.cr4 & cr4::PCIDE == 0 {
        return Err(Fault::GP0);
    }
    let current = cpu.sys.cr3 & cr3::PCID == pcid || cpu.sys.cr4 & cr4::PCIDE == 0;
    match kind {
        0 if !is_canonical(address) => return Err(Fault::GP0),
        0 if current => cpu.flush_tlb_page(address),
        0 => cpu.flush_tlb_page_of(address, pcid),
        1 => cpu.flush_tlb_space(pcid),
        2 => cpu.flush_tlb_all(),
        _ => cpu.flush_tlb_local(),
    }
    Ok(Flow::Next)
}

/// Caches are coherent here, so writing them back or dropping them is nothing.
fn flush_caches(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    cpu.require_cpl0()?;
    Ok(Flow::Next)
}

/// Flushing a line is nothing either, but the address is checked like that of a byte read.
fn flush_line(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    debug_assert!(is_memory(op, 0));
    let linear = op.linear(cpu, 1, false)?;
    if cpu.tlb.lookup_read(cpu.mode.data, linear, 1).is_none() {
        cpu.translate(linear, Access::Read, cpu.mode.data)?;
    }
    Ok(Flow::Next)
}
