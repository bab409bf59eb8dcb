//! Instructions that move floating-point and vector state as a whole: MXCSR, the x87 environment,
//! FXSAVE and FXRSTOR, VZEROUPPER.

use super::float::MXCSR_MASK;
use super::run::{check_avx, check_sse, check_x87};
use super::x87::{self, image};
use crate::block::{Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::regs::{RAX, Regs};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use x86::reg::{cr0, cr4};

/// The handler of such an instruction.
pub(super) fn handler(insn: &Instruction) -> Option<Handler> {
    use Mnemonic::*;
    Some(match insn.mnemonic() {
        Ldmxcsr => |cpu, op| check_sse(cpu).and_then(|()| load_mxcsr(cpu, op)),
        Vldmxcsr => |cpu, op| check_avx(cpu).and_then(|()| load_mxcsr(cpu, op)),
        Stmxcsr => |cpu, op| check_sse(cpu).and_then(|()| store_mxcsr(cpu, op)),
        Vstmxcsr => |cpu, op| check_avx(cpu).and_then(|()| store_mxcsr(cpu, op)),
        Vzeroupper => |cpu, _| {
            check_avx(cpu)?;
            for register in present_vectors(cpu) {
                register[2..].fill(0);
            }
            Ok(Flow::Next)
        },
        Vzeroall => |cpu, _| {
            check_avx(cpu)?;
            for register in present_vectors(cpu) {
                register.fill(0);
            }
            Ok(Flow::Next)
        },
        Wait => wait,
        Fninit => |cpu, _| {
            check_x87(cpu)?;
            x87::initialize(&mut cpu.regs);
            Ok(Flow::Next)
        },
        Fnclex => |cpu, _| {
            check_x87(cpu)?;
            x87::clear_exceptions(&mut cpu.regs);
            Ok(Flow::Next)
        },
        // Without effect since the 387.
        Fneni | Fndisi | Fnsetpm => |cpu, _| {
            check_x87(cpu)?;
            Ok(Flow::Next)
        },
        Fnstsw => |cpu, op| store_word(cpu, op, image::STATUS),
        Fnstcw => |cpu, op| store_word(cpu, op, image::CONTROL),
        Fnstenv => store_environment,
        Fldenv => load_environment,
        Fnsave => save,
        Frstor => restore,
        Fxsave => fxsave::<false>,
        Fxsave64 => fxsave::<true>,
        Fxrstor => fxrstor::<false>,
        Fxrstor64 => fxrstor::<true>,
        _ => return None,
    })
}

/// The vector registers that instructions of the present mode reach.
fn present_vectors(cpu: &mut Cpu) -> &mut [[u64; 4]] {
    let count = vector_count(cpu);
    &mut cpu.regs.ymm[..count]
}

/// XMM8 to XMM15 exist in 64-bit mode only.
pub(super) fn vector_count(cpu: &Cpu) -> usize {
    if cpu.mode.is_64() { 16 } else { 8 }
}

fn load_mxcsr(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let linear = op.linear(cpu, 4, false)?;
    let value = cpu.read::<u32>(linear)?;
    if value & !MXCSR_MASK != 0 {
        return Err(Fault::GP0);
    }
    cpu.regs.mxcsr = value;
    Ok(Flow::Next)
}

fn store_mxcsr(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let linear = op.linear(cpu, 4, true)?;
    cpu.write(linear, cpu.regs.mxcsr)?;
    Ok(Flow::Next)
}

/// FWAIT heeds CR0.TS only if CR0.MP says so, and CR0.EM not at all.
fn wait(cpu: &mut Cpu, _: &Op) -> Result<Flow> {
    if cpu.sys.cr0 & cr0::MP != 0 && cpu.sys.cr0 & cr0::TS != 0 {
        return Err(Fault::NO_FPU);
    }
    x87::check_pending(cpu)?;
    Ok(Flow::Next)
}

/// FNSTSW and FNSTCW: they do not wait for exceptions.
fn store_word(cpu: &mut Cpu, op: &Op, at: usize) -> Result<Flow> {
    check_x87(cpu)?;
    let value = x87::word(&cpu.regs, at);
    if op.insn().op0_kind() == OpKind::Memory {
        let linear = op.linear(cpu, 2, true)?;
        cpu.write(linear, value)?;
    } else {
        cpu.regs.set(RAX as u8, value);
    }
    Ok(Flow::Next)
}

/// The four layouts of the environment (SDM vol. 1, figures 8-9 to 8-12).
#[derive(Clone, Copy)]
struct Layout {
    wide: bool,
    /// Addresses are linear, cut in pieces, instead of selector and offset.
    real: bool,
}

impl Layout {
    fn of(cpu: &Cpu, insn: &Instruction) -> Layout {
        use Code::*;
        let wide =
            matches!(insn.code(), Fnstenv_m28byte | Fldenv_m28byte | Fnsave_m108byte | Frstor_m108byte);
        Layout { wide, real: cpu.mode.is_real_like() }
    }

    /// Size of the environment in bytes.
    fn len(self) -> usize {
        if self.wide { 28 } else { 14 }
    }
}

/// Registers follow the environment in FNSAVE's and FRSTOR's operand.
const REGISTERS_LEN: usize = 80;

/// The environment as bytes; 28 or 14 of them count.
fn environment(regs: &Regs, layout: Layout) -> [u8; 28] {
    let dword = |at: usize| u32::from_le_bytes(regs.fx[at..at + 4].try_into().expect("4 bytes"));
    let (instruction, data) = (dword(image::INSTRUCTION), dword(image::DATA));
    let opcode = x87::word(regs, image::OPCODE) as u32 & 0x7ff;
    let control = x87::word(regs, image::CONTROL) as u32;
    let status = x87::word(regs, image::STATUS) as u32;
    let tags = x87::full_tags(regs) as u32;
    // Selectors are not kept (CPUID.7.0:EBX[13]) and read as zero; unused halves read as ones.
    let ones = 0xffff_0000;
    let fields: [u32; 7] = match layout {
        Layout { wide: true, real: false } => {
            [control | ones, status | ones, tags | ones, instruction, opcode << 16, data, ones]
        }
        Layout { wide: true, real: true } => [
            control | ones,
            status | ones,
            tags | ones,
            instruction & 0xffff | ones,
            instruction >> 16 << 12 | opcode,
            data & 0xffff | ones,
            data >> 16 << 12,
        ],
        Layout { wide: false, real: false } => [control, status, tags, instruction, 0, data, 0],
        Layout { wide: false, real: true } => [
            control,
            status,
            tags,
            instruction,
            (instruction >> 16 & 0xf) << 12 | opcode,
            data,
            (data >> 16 & 0xf) << 12,
        ],
    };
    let mut bytes = [0; 28];
    let size = layout.len() / 7;
    for (chunk, field) in bytes.chunks_exact_mut(size).zip(fields) {
        chunk.copy_from_slice(&field.to_le_bytes()[..size]);
    }
    bytes
}

fn set_environment(regs: &mut Regs, layout: Layout, bytes: &[u8]) {
    let field = |index: usize| {
        let size = layout.len() / 7;
        let mut value = [0; 4];
        value[..size].copy_from_slice(&bytes[index * size..(index + 1) * size]);
        u32::from_le_bytes(value)
    };
    let (instruction, data, opcode) = match layout {
        Layout { wide: true, real: false } => (field(3), field(5), field(4) >> 16),
        Layout { wide: true, real: true } => {
            (field(3) & 0xffff | (field(4) >> 12) << 16, field(5) & 0xffff | (field(6) >> 12) << 16, field(4))
        }
        Layout { wide: false, real: false } => (field(3), field(5), 0),
        Layout { wide: false, real: true } => {
            (field(3) | (field(4) >> 12) << 16, field(5) | (field(6) >> 12) << 16, field(4))
        }
    };
    x87::set_control(regs, field(0) as u16);
    x87::set_status(regs, field(1) as u16);
    x87::set_full_tags(regs, field(2) as u16);
    x87::set_word(regs, image::OPCODE, opcode as u16 & 0x7ff);
    regs.fx[image::INSTRUCTION..image::INSTRUCTION + 8].copy_from_slice(&(instruction as u64).to_le_bytes());
    regs.fx[image::DATA..image::DATA + 8].copy_from_slice(&(data as u64).to_le_bytes());
    x87::update_summary(regs);
}

/// FNSTENV: stores, then masks all exceptions.
fn store_environment(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    check_x87(cpu)?;
    let layout = Layout::of(cpu, op.insn());
    let linear = op.linear(cpu, layout.len(), true)?;
    let bytes = environment(&cpu.regs, layout);
    cpu.write_bytes(linear, &bytes[..layout.len()])?;
    let control = x87::word(&cpu.regs, image::CONTROL) | x87::EXCEPTIONS;
    x87::set_word(&mut cpu.regs, image::CONTROL, control);
    x87::update_summary(&mut cpu.regs);
    Ok(Flow::Next)
}

fn load_environment(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    check_x87(cpu)?;
    x87::check_pending(cpu)?;
    let layout = Layout::of(cpu, op.insn());
    let linear = op.linear(cpu, layout.len(), false)?;
    let mut bytes = [0; 28];
    cpu.read_bytes(linear, &mut bytes[..layout.len()])?;
    set_environment(&mut cpu.regs, layout, &bytes);
    Ok(Flow::Next)
}

/// FNSAVE: stores, then initialises.
fn save(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    check_x87(cpu)?;
    let layout = Layout::of(cpu, op.insn());
    let linear = op.linear(cpu, layout.len() + REGISTERS_LEN, true)?;
    let mut bytes = [0; 28 + REGISTERS_LEN];
    bytes[..28].copy_from_slice(&environment(&cpu.regs, layout));
    for (register, into) in bytes[layout.len()..][..REGISTERS_LEN].chunks_exact_mut(10).enumerate() {
        into.copy_from_slice(&cpu.regs.fx[image::REGISTERS + 16 * register..][..10]);
    }
    cpu.write_bytes(linear, &bytes[..layout.len() + REGISTERS_LEN])?;
    x87::initialize(&mut cpu.regs);
    Ok(Flow::Next)
}

fn restore(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    check_x87(cpu)?;
    x87::check_pending(cpu)?;
    let layout = Layout::of(cpu, op.insn());
    let linear = op.linear(cpu, layout.len() + REGISTERS_LEN, false)?;
    let mut bytes = [0; 28 + REGISTERS_LEN];
    cpu.read_bytes(linear, &mut bytes[..layout.len() + REGISTERS_LEN])?;
    set_environment(&mut cpu.regs, layout, &bytes);
    for (register, from) in bytes[layout.len()..][..REGISTERS_LEN].chunks_exact(10).enumerate() {
        cpu.regs.fx[image::REGISTERS + 16 * register..][..10].copy_from_slice(from);
    }
    Ok(Flow::Next)
}

/// Length of FXSAVE's operand (SDM vol. 1, table 10-2).
const FX_LEN: usize = 512;
/// Where its XMM registers begin.
pub(super) const FX_XMM: usize = 160;

/// The legacy region of FXSAVE and XSAVE: x87, MXCSR, as many XMM registers as the mode has. Its
/// reserved parts are zero.
pub(super) fn legacy_region(cpu: &Cpu, wide: bool) -> [u8; FX_LEN] {
    let regs = &cpu.regs;
    let mut bytes = [0; FX_LEN];
    bytes[..24].copy_from_slice(&regs.fx[..24]);
    if !wide {
        // Offsets have 32 bits, and the selectors behind them read as zero.
        bytes[image::INSTRUCTION + 4..image::DATA].fill(0);
        bytes[image::DATA + 4..image::DATA + 8].fill(0);
    }
    bytes[24..28].copy_from_slice(&regs.mxcsr.to_le_bytes());
    bytes[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    for register in 0..8 {
        let at = image::REGISTERS + 16 * register;
        bytes[at..at + 10].copy_from_slice(&regs.fx[at..at + 10]);
    }
    for (into, register) in bytes[FX_XMM..].chunks_exact_mut(16).zip(&regs.ymm[..vector_count(cpu)]) {
        into[..8].copy_from_slice(&register[0].to_le_bytes());
        into[8..].copy_from_slice(&register[1].to_le_bytes());
    }
    bytes
}

/// Takes the x87 part of a legacy region.
pub(super) fn load_x87_part(regs: &mut Regs, bytes: &[u8; FX_LEN], wide: bool) {
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    x87::set_control(regs, word(image::CONTROL));
    // Registers are in stack order in both images, so the new top needs no reordering.
    x87::set_word(regs, image::STATUS, word(image::STATUS));
    regs.fx[image::TAGS] = bytes[image::TAGS];
    x87::set_word(regs, image::OPCODE, word(image::OPCODE) & 0x7ff);
    regs.fx[image::INSTRUCTION..image::DATA + 8].copy_from_slice(&bytes[image::INSTRUCTION..image::DATA + 8]);
    if !wide {
        regs.fx[image::INSTRUCTION + 4..image::DATA].fill(0);
        regs.fx[image::DATA + 4..image::DATA + 8].fill(0);
    }
    for register in 0..8 {
        let at = image::REGISTERS + 16 * register;
        regs.fx[at..at + 10].copy_from_slice(&bytes[at..at + 10]);
    }
    x87::update_summary(regs);
}

/// Takes the XMM registers of a legacy region.
pub(super) fn load_xmm_part(cpu: &mut Cpu, bytes: &[u8; FX_LEN]) {
    let count = vector_count(cpu);
    for (register, from) in cpu.regs.ymm[..count].iter_mut().zip(bytes[FX_XMM..].chunks_exact(16)) {
        register[0] = u64::from_le_bytes(from[..8].try_into().expect("8 bytes"));
        register[1] = u64::from_le_bytes(from[8..].try_into().expect("8 bytes"));
    }
}

/// The operand of FXSAVE and FXRSTOR, aligned.
fn fx_operand(cpu: &mut Cpu, op: &Op, write: bool) -> Result<u64> {
    if cpu.sys.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(Fault::NO_FPU);
    }
    let linear = op.linear(cpu, FX_LEN, write)?;
    if !linear.is_multiple_of(16) { Err(Fault::GP0) } else { Ok(linear) }
}

fn fxsave<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let linear = fx_operand(cpu, op, true)?;
    cpu.check_write(linear, FX_LEN)?;
    let bytes = legacy_region(cpu, WIDE);
    // Without CR4.OSFXSR the XMM registers need not be saved; what follows them is left alone.
    let len = match cpu.sys.cr4 & cr4::OSFXSR {
        0 => FX_XMM,
        _ => FX_XMM + 16 * vector_count(cpu),
    };
    cpu.write_bytes(linear, &bytes[..len])?;
    Ok(Flow::Next)
}

fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let linear = fx_operand(cpu, op, false)?;
    let mut bytes = [0; FX_LEN];
    cpu.read_bytes(linear, &mut bytes)?;
    if cpu.sys.cr4 & cr4::OSFXSR != 0 {
        let mxcsr = u32::from_le_bytes(bytes[24..28].try_into().expect("4 bytes"));
        if mxcsr & !MXCSR_MASK != 0 {
            return Err(Fault::GP0);
        }
        cpu.regs.mxcsr = mxcsr;
        load_xmm_part(cpu, &bytes);
    }
    load_x87_part(&mut cpu.regs, &bytes, WIDE);
    Ok(Flow::Next)
}
