//! Instructions whose memory operand is not one run of bytes: gathers, and masked loads and stores.
//!
//! Elements that the mask leaves out are not accessed, so they cannot fault.

use super::run::{check_avx, check_mmx, check_sse};
use super::x87;
use crate::block::decode::segment_number;
use crate::block::{Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::Result;
use crate::regs::{FLAT, RDI};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use x86::state::seg;

/// The handler of such an instruction.
pub(super) fn handler(insn: &Instruction) -> Option<Handler> {
    use Mnemonic::*;
    let store = insn.op0_kind() == OpKind::Memory;
    Some(match insn.mnemonic() {
        Vpgatherdd | Vgatherdps => gather::<4, 4>,
        Vpgatherdq | Vgatherdpd => gather::<4, 8>,
        Vpgatherqd | Vgatherqps => gather::<8, 4>,
        Vpgatherqq | Vgatherqpd => gather::<8, 8>,
        Vmaskmovps | Vpmaskmovd if store => masked_store::<4>,
        Vmaskmovpd | Vpmaskmovq if store => masked_store::<8>,
        Vmaskmovps | Vpmaskmovd => masked_load::<4>,
        Vmaskmovpd | Vpmaskmovq => masked_load::<8>,
        Maskmovdqu => |cpu, op| {
            check_sse(cpu)?;
            store_bytes_of_vectors(cpu, op)
        },
        Vmaskmovdqu => |cpu, op| {
            check_avx(cpu)?;
            store_bytes_of_vectors(cpu, op)
        },
        Maskmovq => store_bytes_of_mmx,
        _ => return None,
    })
}

/// A vector register as bytes.
type Bytes = [u8; 32];

fn vector(cpu: &Cpu, register: Register) -> Bytes {
    let mut bytes = [0; 32];
    for (chunk, lane) in bytes.chunks_exact_mut(8).zip(cpu.regs.ymm[register.number()]) {
        chunk.copy_from_slice(&lane.to_le_bytes());
    }
    bytes
}

fn set_vector(cpu: &mut Cpu, register: Register, bytes: &Bytes) {
    let lane =
        |index: usize| u64::from_le_bytes(bytes[8 * index..8 * index + 8].try_into().expect("8 bytes"));
    cpu.regs.ymm[register.number()] = std::array::from_fn(lane);
}

/// Whether the mask's element of `LEN` bytes has its sign bit set.
fn selected<const LEN: usize>(mask: &Bytes, element: usize) -> bool {
    mask[element * LEN + LEN - 1] & 0x80 != 0
}

/// VGATHER and VPGATHER with indices of `INDEX` bytes and elements of `LEN` bytes (SDM vol. 2C,
/// VPGATHERDD). Elements arrive in order; a fault keeps those that did, with their mask bits cleared, so
/// that the instruction continues where it was.
fn gather<const INDEX: usize, const LEN: usize>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    check_avx(cpu)?;
    let insn = op.insn();
    let (to, index, mask_register) = (insn.op0_register(), insn.memory_index(), insn.op2_register());
    let count = (to.size() / LEN).min(index.size() / INDEX);
    let indices = vector(cpu, index);
    let mut mask = vector(cpu, mask_register);
    let mut result = vector(cpu, to);
    let base = cpu.regs.r[op.base as usize].wrapping_add(op.disp);
    for element in 0..count {
        if selected::<LEN>(&mask, element) {
            let at = &indices[element * INDEX..];
            let index = match INDEX {
                4 => i32::from_le_bytes(at[..4].try_into().expect("4 bytes")) as i64,
                _ => i64::from_le_bytes(at[..8].try_into().expect("8 bytes")),
            };
            let offset = base.wrapping_add((index << op.scale) as u64) << op.address_cut >> op.address_cut;
            let into = &mut result[element * LEN..(element + 1) * LEN];
            let mmu = cpu.mmu_unchecked();
            let read = cpu
                .linear(op.segment, offset, LEN, false)
                .and_then(|linear| cpu.read_bytes_as(linear, into, mmu));
            if let Err(fault) = read {
                set_vector(cpu, to, &result);
                set_vector(cpu, mask_register, &mask);
                return Err(fault);
            }
        }
        mask[element * LEN..(element + 1) * LEN].fill(0);
    }
    // In the end what is beyond the elements becomes zero, and so does the mask.
    result[count * LEN..].fill(0);
    set_vector(cpu, to, &result);
    set_vector(cpu, mask_register, &[0; 32]);
    Ok(Flow::Next)
}

/// The linear addresses of the selected elements of a masked operand.
fn element_addresses<const LEN: usize>(
    cpu: &mut Cpu,
    op: &Op,
    mask: &Bytes,
    count: usize,
    write: bool,
) -> Result<[Option<u64>; 8]> {
    let mut addresses = [None; 8];
    let start = op.address(cpu);
    for (element, address) in addresses[..count].iter_mut().enumerate() {
        if selected::<LEN>(mask, element) {
            let offset = start.wrapping_add((element * LEN) as u64) << op.address_cut >> op.address_cut;
            *address = Some(cpu.linear(op.segment, offset, LEN, write)?);
        }
    }
    Ok(addresses)
}

/// VMASKMOV and VPMASKMOV from memory.
fn masked_load<const LEN: usize>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    check_avx(cpu)?;
    let insn = op.insn();
    let (to, mask) = (insn.op0_register(), vector(cpu, insn.op1_register()));
    let addresses = element_addresses::<LEN>(cpu, op, &mask, to.size() / LEN, false)?;
    let mut result = [0; 32];
    for (linear, into) in addresses.into_iter().zip(result.chunks_exact_mut(LEN)) {
        if let Some(linear) = linear {
            cpu.read_bytes_as(linear, into, cpu.mmu_unchecked())?;
        }
    }
    set_vector(cpu, to, &result);
    Ok(Flow::Next)
}

/// VMASKMOV and VPMASKMOV to memory.
fn masked_store<const LEN: usize>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    check_avx(cpu)?;
    let insn = op.insn();
    let from = insn.op2_register();
    let (mask, value) = (vector(cpu, insn.op1_register()), vector(cpu, from));
    let addresses = element_addresses::<LEN>(cpu, op, &mask, from.size() / LEN, true)?;
    for linear in addresses.into_iter().flatten() {
        cpu.check_write_as(linear, LEN, cpu.mmu_unchecked())?;
    }
    for (linear, bytes) in addresses.into_iter().zip(value.chunks_exact(LEN)) {
        if let Some(linear) = linear {
            cpu.write_bytes_as(linear, bytes, cpu.mmu_unchecked())?;
        }
    }
    Ok(Flow::Next)
}

/// MASKMOVDQU and VMASKMOVDQU.
fn store_bytes_of_vectors(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let insn = op.insn();
    let (value, mask) = (vector(cpu, insn.op1_register()), vector(cpu, insn.op2_register()));
    store_bytes(cpu, op.insn(), &value[..16], &mask[..16])
}

/// MASKMOVQ.
fn store_bytes_of_mmx(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    check_mmx(cpu)?;
    let insn = op.insn();
    let value = x87::mmx(&cpu.regs, insn.op1_register().number());
    let mask = x87::mmx(&cpu.regs, insn.op2_register().number());
    // Even if the store faults.
    x87::enter_mmx(&mut cpu.regs);
    store_bytes(cpu, insn, &value, &mask)
}

/// Stores the bytes whose mask has the sign bit set at DS:rDI, or another segment if it is overridden.
fn store_bytes(cpu: &mut Cpu, insn: &Instruction, value: &[u8], mask: &[u8]) -> Result<Flow> {
    let segment = match segment_number(insn.memory_segment()) {
        number if cpu.mode.is_64() && !matches!(number as usize, seg::FS | seg::GS) => FLAT as u8,
        number => number,
    };
    let cut = match insn.op0_kind() {
        OpKind::MemorySegRDI => 0,
        OpKind::MemorySegEDI => 32,
        _ => 48,
    };
    let address = |cpu: &mut Cpu, byte: usize, len: usize| {
        let offset = cpu.regs.r[RDI].wrapping_add(byte as u64) << cut >> cut;
        cpu.linear(segment, offset, len, true)
    };
    // The whole operand has to be writable, whatever the mask says; the manuals leave that open.
    let linear = address(cpu, 0, mask.len())?;
    cpu.check_alignment(linear, 8)?;
    cpu.check_write_as(linear, mask.len(), cpu.mmu_unchecked())?;
    for byte in (0..mask.len()).filter(|byte| mask[*byte] & 0x80 != 0) {
        let linear = address(cpu, byte, 1)?;
        cpu.write::<u8>(linear, value[byte])?;
    }
    Ok(Flow::Next)
}
