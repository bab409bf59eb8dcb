//! CPUID, and the time-stamp counter and processor number instructions.

use super::After::{self, *};
use super::operand::register;
use crate::block::{Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::regs::{RAX, RBX, RCX, RDX};
use crate::vm::VmShared;
use iced_x86::{Code, Instruction, Mnemonic};
use x86::cpuid::Leaf;
use x86::reg::{cr4, xcr0};

pub(super) fn handler(insn: &Instruction) -> Option<(Handler, After)> {
    Some(match insn.mnemonic() {
        Mnemonic::Cpuid => (cpuid, Continues),
        Mnemonic::Rdtsc => (rdtsc, Continues),
        Mnemonic::Rdtscp => (rdtscp, Continues),
        Mnemonic::Rdpid => (rdpid, Continues),
        Mnemonic::Rdpmc => (rdpmc, Continues),
        _ => return None,
    })
}

fn cpuid(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    let leaf = cpu.cpuid(cpu.regs.get(RAX as u8), cpu.regs.get(RCX as u8));
    for (register, value) in [(RAX, leaf.eax), (RBX, leaf.ebx), (RCX, leaf.ecx), (RDX, leaf.edx)] {
        cpu.regs.r[register] = value as u64;
    }
    Ok(Flow::Next)
}

/// A leaf that says nothing.
fn empty(function: u32) -> Leaf {
    Leaf { function, index: None, eax: 0, ebx: 0, ecx: 0, edx: 0 }
}

impl VmShared {
    /// A leaf of the machine's CPUID table as it stands; zeroes where there is none.
    pub(super) fn cpuid_leaf(&self, function: u32, index: u32) -> Leaf {
        self.cpuid
            .iter()
            .find(|leaf| leaf.function == function && leaf.index.is_none_or(|of_leaf| of_leaf == index))
            .copied()
            .unwrap_or(empty(function))
    }
}

impl Cpu {
    /// A leaf of the machine's CPUID table as it stands; zeroes where there is none.
    pub(super) fn cpuid_leaf(&self, function: u32, index: u32) -> Leaf {
        self.vm.cpuid_leaf(function, index)
    }

    /// Whether the guest's processor is of Intel's kind; else it is of AMD's.
    pub(super) fn is_intel(&self) -> bool {
        // EBX of leaf 0: "Genu", "Auth", "Hygo", "Cent".
        self.cpuid_leaf(0, 0).ebx == u32::from_le_bytes(*b"Genu")
    }

    /// What CPUID says on this vCPU now.
    pub(super) fn cpuid(&self, function: u32, index: u32) -> Leaf {
        let mut function = function;
        let base = function & 0xffff_0000;
        let max = self.cpuid_leaf(base, 0).eax;
        if !(base..=max).contains(&function) {
            // Beyond the last leaf Intel processors answer with the highest basic one, AMD's with
            // zeroes (SDM vol. 2A, CPUID; APM vol. 3, appendix E).
            if !self.is_intel() {
                return empty(function);
            }
            function = self.cpuid_leaf(0, 0).eax;
        }
        let mut leaf = self.cpuid_leaf(function, index);
        match function {
            // Initial APIC ID, whether the APIC is on, and OSXSAVE as the system has set it.
            1 => {
                if !self.lapic.is_enabled() {
                    leaf.edx &= !(1 << 9);
                }
                leaf.ebx = leaf.ebx & 0x00ff_ffff | self.id << 24;
                leaf.ecx &= !(1 << 27);
                if self.sys.cr4 & cr4::OSXSAVE != 0 {
                    leaf.ecx |= 1 << 27;
                }
            }
            // Topology: the x2APIC ID is in every subleaf, and ECX[7:0] is the subleaf asked for.
            0xb | 0x1f => {
                leaf.ecx = leaf.ecx & !0xff | index & 0xff;
                leaf.edx = self.id;
            }
            // Size of the XSAVE area for what XCR0 enables now (SDM vol. 1, §13.2).
            0xd if index == 0 => leaf.ebx = xsave_size(self.sys.xcr0),
            0xd if index == 1 && leaf.eax & 0b1010 != 0 => leaf.ebx = xsave_size(self.sys.xcr0),
            // AMD: extended APIC ID, and the core's number.
            0x8000_001e if leaf != empty(function) => {
                let threads = (leaf.ebx >> 8 & 0xff) + 1;
                leaf.eax = self.id;
                leaf.ebx = leaf.ebx & !0xff | (self.id / threads) & 0xff;
            }
            _ => {}
        }
        leaf
    }
}

/// Bytes of a standard-format XSAVE area for the parts in `features`.
pub(super) fn xsave_size(features: u64) -> u32 {
    if features & xcr0::AVX != 0 { 832 } else { 576 }
}

/// #GP(0) where CR4.TSD keeps the time-stamp counter from user code.
fn require_tsc(cpu: &Cpu) -> Result<()> {
    let forbidden = cpu.sys.cr4 & cr4::TSD != 0 && cpu.cpl() > 0;
    if forbidden { Err(Fault::GP0) } else { Ok(()) }
}

fn rdtsc(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    require_tsc(cpu)?;
    cpu.set_edx_eax(cpu.tsc());
    Ok(Flow::Next)
}

fn rdtscp(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    require_tsc(cpu)?;
    cpu.set_edx_eax(cpu.tsc());
    cpu.regs.r[RCX] = cpu.sys.tsc_aux & 0xffff_ffff;
    Ok(Flow::Next)
}

fn rdpid(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let value = cpu.sys.tsc_aux & 0xffff_ffff;
    match op.insn().code() {
        Code::Rdpid_r64 => cpu.regs.set(register(op, 0), value),
        _ => cpu.regs.set(register(op, 0), value as u32),
    }
    Ok(Flow::Next)
}

/// There are no performance counters: every counter number is invalid.
fn rdpmc(_cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    Err(Fault::GP0)
}
