//! Lock-step finds what is wrong, and nothing where nothing is.

use crate::options::{Jit, Options};
use crate::testing::{Machine, Mode, Outcome, Page, UserState};
use iced_x86::code_asm::*;

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x80_0000;
const MISSING: u64 = 0xa0_0000;

fn machine(code: &[u8]) -> Machine {
    machine_with(code, x86::cpuid::build("host", 1, 1_000_000_000).unwrap())
}

fn machine_with(code: &[u8], cpuid: Vec<x86::cpuid::Leaf>) -> Machine {
    machine_of(code, cpuid, &Options { jit: Jit::Lockstep, ..Options::default() })
}

fn machine_of(code: &[u8], cpuid: Vec<x86::cpuid::Leaf>, options: &Options) -> Machine {
    let page = |linear, writable| Page { linear, writable };
    let pages = [page(CODE, true), page(DATA, true), page(DATA + 0x1000, true)];
    let mut machine = Machine::with_options(Mode::Long64, cpuid, &pages, options);
    machine.write(CODE, code);
    let mut x87 = [0; 160];
    x87[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    let mut gpr = [0; 16];
    (gpr[4], gpr[6], gpr[7]) = (DATA + 0x1800, DATA, MISSING);
    machine.set_state(&UserState { gpr, rip: CODE, rflags: 0x202, mxcsr: 0x1f80, ymm: [[7; 4]; 16], x87 });
    machine
}

fn assemble(write: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> (Vec<u8>, u64) {
    let mut a = CodeAssembler::new(64).unwrap();
    write(&mut a).unwrap();
    a.nop().unwrap();
    a.hlt().unwrap();
    let code = a.assemble(CODE).unwrap();
    let end = CODE + code.len() as u64 - 1;
    (code, end)
}

#[test]
fn a_loop_that_writes_agrees_and_is_compared() {
    let (code, end) = assemble(|a| {
        let mut head = a.create_label();
        a.mov(ecx, 100)?;
        a.set_label(&mut head)?;
        a.add(qword_ptr(rsi), rcx)?;
        a.lock().xadd(qword_ptr(rsi + 8), rcx)?;
        a.push(rcx)?;
        a.pop(rcx)?;
        a.movups(xmmword_ptr(rsi + 32), xmm1)?;
        a.mov(rcx, qword_ptr(rsi + 16))?;
        a.inc(qword_ptr(rsi + 16))?;
        a.cmp(rcx, 90)?;
        a.jb(head)
    });
    let mut machine = machine(&code);
    assert_eq!(machine.run_lockstep(end, usize::MAX), Ok(Outcome::Completed));
    let mut count = [0; 8];
    machine.read(DATA + 16, &mut count);
    assert_eq!(u64::from_le_bytes(count), 91);
    assert!(machine.counter("lockstep_traces") > 0);
}

#[test]
fn faults_agree() {
    let (code, end) = assemble(|a| {
        a.mov(eax, 5)?;
        a.add(qword_ptr(rsi), 1)?;
        a.mov(rax, qword_ptr(rdi))
    });
    let mut machine = machine(&code);
    let outcome = machine.run_lockstep(end, usize::MAX).unwrap();
    assert_eq!(outcome, Outcome::Exception { vector: 14, code: Some(4), address: MISSING });
    assert_eq!((machine.state().gpr[0], machine.state().rip), (5, CODE + 9));
    let mut word = [0; 8];
    machine.read(DATA, &mut word);
    assert_eq!(u64::from_le_bytes(word), 1, "stored once, not twice");
}

#[test]
fn code_that_writes_to_its_own_page_agrees() {
    let (code, end) = assemble(|a| {
        let mut patched = a.create_label();
        a.lea(rbx, ptr(patched))?;
        a.mov(byte_ptr(rbx + 1), 9)?;
        a.set_label(&mut patched)?;
        a.mov(eax, 1)
    });
    let mut machine = machine(&code);
    assert_eq!(machine.run_lockstep(end, usize::MAX), Ok(Outcome::Completed));
    assert_eq!(machine.state().gpr[0], 9);
}

#[test]
fn a_wrong_translation_is_reported() {
    let (code, end) = assemble(|a| {
        a.mov(eax, 1)?;
        a.mov(qword_ptr(rsi), rax)?;
        a.add(rax, 2)
    });
    let mut machine = machine(&code);
    // As if the translator had read other bytes: the interpreter's are changed behind its back.
    machine.translate_at(CODE);
    machine.poke_unreported(CODE + 1, 3);
    let report = machine.run_lockstep(end, usize::MAX).unwrap_err();
    for part in
        ["vCPU 0 differs", "b8 03 00 00 00", "mov eax, 3", "rax ", "memory 0x401000: 0x03  0x01", "host code"]
    {
        assert!(report.contains(part), "{part:?} is not in\n{report}");
    }
}

/// 0F 0D with a register operand: PREFETCHW's opcode, a NOP to Intel's processors.
#[test]
fn a_prefetch_of_a_register_is_undefined_to_amd_and_nothing_to_intel() {
    for (vendor, undefined) in [(b"AuthenticAMD", true), (b"GenuineIntel", false)] {
        let mut cpuid = x86::cpuid::build("host", 1, 1_000_000_000).unwrap();
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        for leaf in cpuid.iter_mut().filter(|leaf| leaf.function & 0x7fff_ffff == 0) {
            (leaf.ebx, leaf.edx, leaf.ecx) = (word(0), word(4), word(8));
        }
        let (code, end) = assemble(|a| {
            a.mov(eax, 1)?;
            a.db(&[0x0f, 0x0d, 0xc8])
        });
        let mut machine = machine_with(&code, cpuid);
        let outcome = machine.run_translated(end);
        let refused = Outcome::Exception { vector: 6, code: None, address: 0 };
        assert_eq!(matches!(outcome, Outcome::Exception { .. }), undefined, "{outcome:?}");
        if undefined {
            assert_eq!((outcome, machine.state().rip), (refused, CODE + 5));
        }
    }
}

/// The addition's flags are overwritten by the comparison, but the frame of the fault shows them.
#[test]
fn a_fault_has_the_flags_of_the_last_instruction_if_asked_for() {
    let (code, end) = assemble(|a| {
        a.mov(eax, -1i32 as u32)?;
        a.add(eax, 1)?;
        a.mov(rbx, qword_ptr(rsi))?;
        a.mov(rbx, qword_ptr(rdi))?;
        a.cmp(rbx, 1)
    });
    let cpuid = x86::cpuid::build("host", 1, 1_000_000_000).unwrap();
    let options = Options { exact_flags: true, ..Options::default() };
    let mut machine = machine_of(&code, cpuid, &options);
    let outcome = machine.run_translated(end);
    assert_eq!(outcome, Outcome::Exception { vector: 14, code: Some(4), address: MISSING });
    // Carry, parity, auxiliary, zero.
    assert_eq!(machine.state().rflags & 0x8d5, 0x55);
}

/// Page 0 belongs to the entry that an empty one was once taken for.
#[test]
fn an_empty_tlb_entry_holds_no_page() {
    for at in [0i64, 1, 0x800, 0xfff, 0x1000, 0x1001, 0x20_0000, 0x20_0fff, 0x3f_f000, 0x7fff_ffff_f000] {
        let (code, end) = assemble(|a| {
            a.mov(rdi, at as u64)?;
            a.add(byte_ptr(rdi), 1)?;
            a.mov(al, byte_ptr(rdi))
        });
        let cpuid = x86::cpuid::build("host", 1, 1_000_000_000).unwrap();
        let mut machine = machine_of(&code, cpuid, &Options::default());
        let outcome = machine.run_translated(end);
        assert_eq!(outcome, Outcome::Exception { vector: 14, code: Some(6), address: at as u64 });
    }
}

/// #DE belongs to the guest, never to the host.
#[test]
fn divisions_that_fault_do_so_in_the_guest() {
    let (min, max) = (i64::MIN as u64, u64::MAX);
    let halves = [0, 1, 2, 7, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, max >> 1, min, max - 1, max];
    let (mut faults, mut quotients) = (0, 0);
    for variant in 0..10 {
        let (code, end) = assemble(|a| {
            a.mov(qword_ptr(rsi), rbx)?;
            a.mov(r13, rbx)?;
            match variant {
                0 => a.div(rbx),
                1 => a.idiv(rbx),
                2 => a.div(ebx),
                3 => a.idiv(ebx),
                4 => a.div(qword_ptr(rsi)),
                5 => a.idiv(dword_ptr(rsi)),
                6 => a.div(r13),
                7 => a.idiv(r13d),
                8 => a.div(rdx),
                _ => a.idiv(bl),
            }
        });
        let mut machine = machine(&code);
        let start = machine.state();
        for low in halves {
            for high in halves {
                for by in halves {
                    let mut state = start;
                    (state.gpr[0], state.gpr[2], state.gpr[3]) = (low, high, by);
                    machine.set_state(&state);
                    match machine.run_lockstep(end, usize::MAX) {
                        Ok(Outcome::Completed) => quotients += 1,
                        Ok(Outcome::Exception { vector: 0, .. }) => faults += 1,
                        other => panic!("{variant}: {high:#x}:{low:#x} / {by:#x}: {other:?}"),
                    }
                }
            }
        }
    }
    assert!(faults > 1000 && quotients > 1000, "{faults} {quotients}");
}

#[test]
fn a_stack_access_that_is_not_canonical_is_a_stack_fault() {
    type Write = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let cases: [(Write, u8); 5] = [
        (|a| a.push(rax), 12),
        (|a| a.pop(rax), 12),
        (|a| a.mov(rax, qword_ptr(rsp + 8)), 12),
        (|a| a.add(qword_ptr(rbp), 1), 12),
        (|a| a.mov(rax, qword_ptr(rbx)), 13),
    ];
    for (write, vector) in cases {
        let (code, end) = assemble(|a| {
            a.mov(rbp, 1u64 << 63)?;
            a.mov(rsp, rbp)?;
            a.mov(rbx, rbp)?;
            write(a)
        });
        let outcome = machine(&code).run_lockstep(end, usize::MAX);
        assert_eq!(outcome, Ok(Outcome::Exception { vector, code: Some(0), address: 0 }));
    }
}
