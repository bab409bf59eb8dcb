//! Handlers that execute a host function.

use super::classify::{Class, Memory};
use super::{Stub, float, x87};
use crate::block::{Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use std::sync::Mutex;
use x86::reg::{cr0, cr4, xcr0};

/// Held while a locked instruction works on memory that no single host access reaches: across pages, or
/// in a device. Such accesses are atomic towards each other.
static SPLIT_LOCK: Mutex<()> = Mutex::new(());

/// Stands in for a memory operand that is not in one piece in RAM.
#[repr(C, align(64))]
struct Bounce([u8; 64]);

// Classes and memory uses as constants, for the handlers are compiled for each pair.
const PLAIN: u8 = Class::Plain as u8;
const PLAIN_VEX: u8 = Class::PlainVex as u8;
const SSE: u8 = Class::Sse as u8;
const AVX: u8 = Class::Avx as u8;
const MMX: u8 = Class::Mmx as u8;
const MMX_SSE: u8 = Class::MmxSse as u8;
const X87: u8 = Class::X87 as u8;
const NONE: u8 = Memory::None as u8;
const READ: u8 = Memory::Read as u8;
const WRITE: u8 = Memory::Write as u8;
const MODIFY: u8 = Memory::Modify as u8;
const LOCKED: u8 = Memory::Locked as u8;

/// The handler for a class and a use of memory.
pub(super) fn handler(class: Class, memory: Memory) -> Handler {
    macro_rules! of_class {
        ($class:ident) => {
            match memory {
                Memory::None => execute::<$class, NONE>,
                Memory::Read => execute::<$class, READ>,
                Memory::Write => execute::<$class, WRITE>,
                Memory::Modify => execute::<$class, MODIFY>,
                Memory::Locked => execute::<$class, LOCKED>,
            }
        };
    }
    match class {
        Class::Plain => of_class!(PLAIN),
        Class::PlainVex => of_class!(PLAIN_VEX),
        Class::Sse => of_class!(SSE),
        Class::Avx => of_class!(AVX),
        Class::Mmx => of_class!(MMX),
        Class::MmxSse => of_class!(MMX_SSE),
        Class::X87 => of_class!(X87),
    }
}

/// Executes an instruction of class `CLASS` that uses memory as `MEMORY` says.
fn execute<const CLASS: u8, const MEMORY: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let stub = op.stub();
    guard::<CLASS>(cpu)?;
    if MEMORY == NONE {
        invoke::<CLASS>(cpu, op, stub, std::ptr::null_mut())?;
        return Ok(Flow::Next);
    }
    let offset = op.address(cpu);
    if stub.align_mask != 0 {
        // Before the address is checked otherwise: #GP even in the stack segment.
        let base = cpu.regs.seg[op.segment as usize].base;
        if base.wrapping_add(offset) & stub.align_mask as u64 != 0 {
            return match MEMORY {
                READ if stub.lenient => {
                    let linear = cpu.linear(op.segment, offset, stub.size as usize, false)?;
                    read_elsewhere::<CLASS>(cpu, op, linear)?;
                    Ok(Flow::Next)
                }
                _ => Err(Fault::GP0),
            };
        }
    }
    let linear = cpu.linear(op.segment, offset, stub.size as usize, MEMORY != READ)?;
    match MEMORY {
        READ => match cpu.host_for_read(linear, stub.size as usize)? {
            Some(ptr) => _ = invoke::<CLASS>(cpu, op, stub, ptr.cast_mut())?,
            None => read_elsewhere::<CLASS>(cpu, op, linear)?,
        },
        LOCKED => match cpu.host_for_write(linear, stub.size as usize)? {
            Some(ptr) => _ = invoke::<CLASS>(cpu, op, stub, ptr)?,
            None => locked_elsewhere::<CLASS>(cpu, op, linear)?,
        },
        _ => {
            // An exception of the result must leave memory alone.
            let staged = stub.mxcsr && float::any_unmasked(cpu.regs.mxcsr);
            match cpu.host_for_write(linear, stub.size as usize)? {
                Some(ptr) if !staged => _ = invoke::<CLASS>(cpu, op, stub, ptr)?,
                _ => write_elsewhere::<CLASS, MEMORY>(cpu, op, linear)?,
            }
        }
    }
    Ok(Flow::Next)
}

#[cold]
fn read_elsewhere<const CLASS: u8>(cpu: &mut Cpu, op: &Op, linear: u64) -> Result<()> {
    let (stub, mut bounce) = (op.stub(), Bounce([0; 64]));
    cpu.read_bytes(linear, &mut bounce.0[..stub.size as usize])?;
    invoke::<CLASS>(cpu, op, stub, bounce.0.as_mut_ptr())?;
    Ok(())
}

#[cold]
fn write_elsewhere<const CLASS: u8, const MEMORY: u8>(cpu: &mut Cpu, op: &Op, linear: u64) -> Result<()> {
    let (stub, mut bounce) = (op.stub(), Bounce([0; 64]));
    let size = stub.size as usize;
    cpu.check_write(linear, size)?;
    if MEMORY == MODIFY {
        cpu.read_bytes(linear, &mut bounce.0[..size])?;
    }
    if invoke::<CLASS>(cpu, op, stub, bounce.0.as_mut_ptr())? {
        cpu.write_bytes(linear, &bounce.0[..size])?;
    }
    Ok(())
}

#[cold]
fn locked_elsewhere<const CLASS: u8>(cpu: &mut Cpu, op: &Op, linear: u64) -> Result<()> {
    let stub = op.stub();
    let size = stub.size as usize;
    if let Some((ptr, gpa)) = cpu.locked(linear, size)? {
        invoke::<CLASS>(cpu, op, stub, ptr)?;
        cpu.wrote(gpa, size);
        return Ok(());
    }
    let _split = SPLIT_LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut bounce = Bounce([0; 64]);
    cpu.read_bytes(linear, &mut bounce.0[..size])?;
    invoke::<CLASS>(cpu, op, stub, bounce.0.as_mut_ptr())?;
    cpu.write_bytes(linear, &bounce.0[..size])
}

/// Runs `f` while no locked access across pages or to a device is under way.
pub(super) fn with_split_lock<R>(f: impl FnOnce() -> R) -> R {
    let _split = SPLIT_LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    f()
}

/// Calls the host function; whether a memory destination was written.
#[inline(always)]
fn invoke<const CLASS: u8>(cpu: &mut Cpu, op: &Op, stub: &Stub, memory: *mut u8) -> Result<bool> {
    if matches!(CLASS, MMX | MMX_SSE | X87) {
        return x87::invoke(cpu, op, stub, memory, CLASS == X87);
    }
    if stub.mxcsr {
        float::invoke(cpu, stub, memory)?;
    } else {
        stub.call(&mut cpu.regs, memory);
    }
    Ok(true)
}

/// The checks before an instruction of a class executes (SDM vol. 3A, §2.5, tables 2-2 and 2-3; vol. 2A,
/// §2.4).
#[inline(always)]
fn guard<const CLASS: u8>(cpu: &Cpu) -> Result<()> {
    match CLASS {
        PLAIN => Ok(()),
        PLAIN_VEX if cpu.mode.is_real_like() => Err(Fault::UNDEFINED),
        PLAIN_VEX => Ok(()),
        SSE => check_sse(cpu),
        AVX => check_avx(cpu),
        MMX => check_mmx(cpu),
        MMX_SSE => {
            check_sse(cpu)?;
            check_mmx(cpu)
        }
        _ => {
            check_x87(cpu)?;
            x87::check_pending(cpu)
        }
    }
}

/// Whether instructions on XMM registers in legacy encoding execute.
#[inline(always)]
pub(super) fn check_sse(cpu: &Cpu) -> Result<()> {
    let sys = &cpu.sys;
    if sys.cr0 & cr0::EM != 0 || sys.cr4 & cr4::OSFXSR == 0 {
        return Err(Fault::UNDEFINED);
    }
    if sys.cr0 & cr0::TS != 0 { Err(Fault::NO_FPU) } else { Ok(()) }
}

/// Whether VEX-encoded instructions on vector registers execute.
#[inline(always)]
pub(super) fn check_avx(cpu: &Cpu) -> Result<()> {
    let sys = &cpu.sys;
    let enabled = xcr0::SSE | xcr0::AVX;
    if cpu.mode.is_real_like() || sys.cr4 & cr4::OSXSAVE == 0 || sys.xcr0 & enabled != enabled {
        return Err(Fault::UNDEFINED);
    }
    if sys.cr0 & cr0::TS != 0 { Err(Fault::NO_FPU) } else { Ok(()) }
}

/// Whether instructions on MMX registers execute.
#[inline(always)]
pub(super) fn check_mmx(cpu: &Cpu) -> Result<()> {
    if cpu.sys.cr0 & cr0::EM != 0 {
        return Err(Fault::UNDEFINED);
    }
    if cpu.sys.cr0 & cr0::TS != 0 {
        return Err(Fault::NO_FPU);
    }
    x87::check_pending(cpu)
}

/// Whether x87 instructions execute.
#[inline(always)]
pub(super) fn check_x87(cpu: &Cpu) -> Result<()> {
    if cpu.sys.cr0 & (cr0::EM | cr0::TS) != 0 { Err(Fault::NO_FPU) } else { Ok(()) }
}
