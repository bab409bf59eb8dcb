//! When instruction sets are available: control registers, modes, CPUID (SDM vol. 3A, §2.5, tables 2-2
//! and 2-3, and chapter 13).

use crate::probe::{DATA, GP, MF, NM, UD, XM, assemble, cpuid, host_has_avx2, machine, step};
use cpu_bt::testing::{Machine, Mode};
use iced_x86::code_asm::*;
use x86::reg::{cr0, cr4, xcr0};

/// Changes to the control registers of a machine in which everything is available.
#[derive(Clone, Copy)]
enum Change {
    None,
    Em,
    Ts,
    TsWithoutMp,
    NoOsfxsr,
    NoOsxsave,
    NoAvxInXcr0,
}

fn apply(machine: &mut Machine, change: Change) {
    let (mut c0, mut c4, mut x0) = machine.control();
    match change {
        Change::None => {}
        Change::Em => c0 |= cr0::EM,
        Change::Ts => c0 |= cr0::TS,
        Change::TsWithoutMp => c0 = c0 & !cr0::MP | cr0::TS,
        Change::NoOsfxsr => c4 &= !cr4::OSFXSR,
        Change::NoOsxsave => c4 &= !cr4::OSXSAVE,
        Change::NoAvxInXcr0 => x0 &= !xcr0::AVX,
    }
    machine.set_control(c0, c4, x0);
}

#[test]
fn control_registers_decide_what_executes() {
    if !host_has_avx2() {
        return;
    }
    use Change::*;
    let x87 = assemble(Mode::Long64, |a| a.fld1());
    let wait = assemble(Mode::Long64, |a| a.wait());
    let mmx = assemble(Mode::Long64, |a| a.paddb(mm1, mm2));
    let sse = assemble(Mode::Long64, |a| a.addps(xmm1, xmm2));
    let both = assemble(Mode::Long64, |a| a.movq2dq(xmm1, mm2));
    let avx = assemble(Mode::Long64, |a| a.vaddps(ymm1, ymm2, ymm3));
    let gather = assemble(Mode::Long64, |a| a.vpgatherdd_3(xmm1, ptr(rax + xmm2), xmm3));
    let bmi = assemble(Mode::Long64, |a| a.andn(eax, ecx, edx));
    let popcnt = assemble(Mode::Long64, |a| a.popcnt(eax, ecx));
    let fence = assemble(Mode::Long64, |a| a.mfence());
    let mxcsr = assemble(Mode::Long64, |a| a.stmxcsr(dword_ptr(rax)));
    let fxsave = assemble(Mode::Long64, |a| a.fxsave(ptr(rax)));
    let xsave = assemble(Mode::Long64, |a| a.xsave(ptr(rax)));
    for (name, code, change, expected) in [
        ("x87", &x87, None, Option::None),
        ("x87", &x87, Em, Some(NM)),
        ("x87", &x87, Ts, Some(NM)),
        ("x87", &x87, NoOsfxsr, Option::None),
        ("fwait", &wait, Em, Option::None),
        ("fwait", &wait, Ts, Some(NM)),
        ("fwait", &wait, TsWithoutMp, Option::None),
        ("mmx", &mmx, None, Option::None),
        ("mmx", &mmx, Em, Some(UD)),
        ("mmx", &mmx, Ts, Some(NM)),
        ("mmx", &mmx, NoOsfxsr, Option::None),
        ("sse", &sse, None, Option::None),
        ("sse", &sse, Em, Some(UD)),
        ("sse", &sse, Ts, Some(NM)),
        ("sse", &sse, NoOsfxsr, Some(UD)),
        ("sse", &sse, NoOsxsave, Option::None),
        ("mmx and sse", &both, NoOsfxsr, Some(UD)),
        ("mmx and sse", &both, Em, Some(UD)),
        ("avx", &avx, None, Option::None),
        ("avx", &avx, Em, Option::None),
        ("avx", &avx, Ts, Some(NM)),
        ("avx", &avx, NoOsfxsr, Option::None),
        ("avx", &avx, NoOsxsave, Some(UD)),
        ("avx", &avx, NoAvxInXcr0, Some(UD)),
        ("gather", &gather, NoAvxInXcr0, Some(UD)),
        ("gather", &gather, Ts, Some(NM)),
        ("bmi", &bmi, Ts, Option::None),
        ("bmi", &bmi, NoOsxsave, Option::None),
        ("popcnt", &popcnt, Em, Option::None),
        ("mfence", &fence, Em, Option::None),
        ("mfence", &fence, NoOsfxsr, Option::None),
        ("stmxcsr", &mxcsr, NoOsfxsr, Some(UD)),
        ("stmxcsr", &mxcsr, Ts, Some(NM)),
        ("fxsave", &fxsave, None, Option::None),
        ("fxsave", &fxsave, Em, Some(NM)),
        ("fxsave", &fxsave, Ts, Some(NM)),
        ("xsave", &xsave, None, Option::None),
        ("xsave", &xsave, Em, Option::None),
        ("xsave", &xsave, Ts, Some(NM)),
        ("xsave", &xsave, NoOsxsave, Some(UD)),
    ] {
        let mut machine = machine(Mode::Long64, cpuid(&[]), code);
        apply(&mut machine, change);
        assert_eq!(step(&mut machine), expected, "{name} with change {}", change as u8);
    }
}

#[test]
fn vex_needs_protected_mode() {
    if !host_has_avx2() {
        return;
    }
    for (mode, expected) in
        [(Mode::Real16, Some(UD)), (Mode::Compat16, None), (Mode::Compat32, None), (Mode::Long64, None)]
    {
        for code in [
            assemble(mode, |a| a.vaddps(xmm1, xmm2, xmm3)),
            assemble(mode, |a| a.andn(eax, ecx, edx)),
            assemble(mode, |a| a.vzeroupper()),
        ] {
            let mut machine = machine(mode, cpuid(&[]), &code);
            assert_eq!(step(&mut machine), expected, "{mode:?} {code:02x?}");
        }
        // Legacy encodings do without.
        let code = assemble(mode, |a| a.addps(xmm1, xmm2));
        assert_eq!(step(&mut machine(mode, cpuid(&[]), &code)), None, "{mode:?}");
    }
}

#[test]
fn what_cpuid_does_not_say_is_undefined() {
    if !host_has_avx2() {
        return;
    }
    const EBX: usize = 1;
    const ECX: usize = 2;
    let avx2 = assemble(Mode::Long64, |a| a.vpaddd(ymm1, ymm2, ymm3));
    let avx = assemble(Mode::Long64, |a| a.vaddps(ymm1, ymm2, ymm3));
    let popcnt = assemble(Mode::Long64, |a| a.popcnt(eax, ecx));
    // vpaddd zmm1, zmm2, zmm3: the decoder does not know what no guest has.
    let avx512 = vec![0x62, 0xf1, 0x6d, 0x48, 0xfe, 0xcb];
    let mask = assemble(Mode::Long64, |a| a.kandw(k1, k2, k3));
    for (code, without, expected) in [
        (&avx2, vec![], None),
        (&avx2, vec![(7, EBX, 5)], Some(UD)),
        (&avx, vec![(7, EBX, 5)], None),
        (&avx, vec![(1, ECX, 28)], Some(UD)),
        (&popcnt, vec![(1, ECX, 23)], Some(UD)),
        // Never, whatever CPUID says.
        (&avx512, vec![], Some(UD)),
        (&mask, vec![], Some(UD)),
    ] {
        let mut machine = machine(Mode::Long64, cpuid(&without), code);
        assert_eq!(step(&mut machine), expected, "{code:02x?} without {without:?}");
    }
}

#[test]
fn without_their_extensions_tzcnt_is_bsf_and_lzcnt_is_bsr() {
    const BMI1: (u32, usize, u32) = (7, 1, 3);
    const LZCNT: (u32, usize, u32) = (0x8000_0001, 2, 5);
    let tzcnt = assemble(Mode::Long64, |a| a.tzcnt(eax, ecx));
    let lzcnt = assemble(Mode::Long64, |a| a.lzcnt(eax, ecx));
    for (code, without, input, expected) in
        [(&tzcnt, BMI1, 0x100, 8), (&lzcnt, LZCNT, 0x100, 8), (&lzcnt, LZCNT, 0x8000_0000, 31)]
    {
        let mut machine = machine(Mode::Long64, cpuid(&[without]), code);
        let mut state = machine.state();
        state.gpr[1] = input;
        machine.set_state(&state);
        assert_eq!(step(&mut machine), None);
        assert_eq!(machine.state().gpr[0], expected, "{code:02x?}");
    }
}

#[test]
fn x87_exceptions_wait_for_the_next_instruction() {
    // fldz; fdivp-like division of 1 by 0 with everything unmasked, then instructions of each kind.
    let divide = |a: &mut CodeAssembler| {
        a.fldcw(word_ptr(rax))?;
        a.fld1()?;
        a.fldz()?;
        a.fdivp(st1, st0)
    };
    type Emit = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let after: [(&str, Emit, Option<u8>); 7] = [
        ("fld1", |a| a.fld1(), Some(MF)),
        ("fwait", |a| a.wait(), Some(MF)),
        ("emms", |a| a.emms(), Some(MF)),
        ("movq", |a| a.movq(mm0, mm1), Some(MF)),
        ("fnstsw", |a| a.fnstsw(ax), None),
        ("fnclex", |a| a.fnclex(), None),
        ("addps", |a| a.addps(xmm0, xmm1), None),
    ];
    for (name, emit, expected) in after {
        let code = assemble(Mode::Long64, |a| {
            divide(a)?;
            emit(a)
        });
        let mut machine = machine(Mode::Long64, cpuid(&[]), &code);
        machine.write(DATA, &0x0340u16.to_le_bytes());
        for _ in 0..4 {
            assert_eq!(step(&mut machine), None, "{name}: before");
        }
        // Zero divide, error summary, busy.
        assert_eq!(machine.state().x87[2] & 0x84, 0x84, "{name}");
        assert_eq!(step(&mut machine), expected, "{name}");
        // Without CR0.NE the exception would take the way over the interrupt controller; ignored.
        let (c0, c4, x0) = machine.control();
        machine.set_control(c0 & !cr0::NE, c4, x0);
        if expected.is_some() {
            assert_eq!(step(&mut machine), None, "{name} without NE");
        }
    }
}

#[test]
fn simd_exceptions_need_their_vector_enabled() {
    let code = assemble(Mode::Long64, |a| a.divps(xmm1, xmm2));
    for (enabled, expected) in [(true, XM), (false, UD)] {
        let mut machine = machine(Mode::Long64, cpuid(&[]), &code);
        let (c0, c4, x0) = machine.control();
        machine.set_control(c0, if enabled { c4 } else { c4 & !cr4::OSXMMEXCPT }, x0);
        let mut state = machine.state();
        // Division by zero unmasked; 1.0 / 0.0 among the elements.
        state.mxcsr = 0x1f80 & !0x200;
        state.ymm[1] = [0x3f80_0000; 4];
        state.ymm[2] = [0; 4];
        machine.set_state(&state);
        assert_eq!(step(&mut machine), Some(expected));
        let after = machine.state();
        assert_eq!(after.ymm[1], state.ymm[1]);
        // The flag that is the cause, and invalid (0 / 0 in the other elements), which is masked.
        assert_eq!(after.mxcsr, state.mxcsr | 0x5);
    }
}

#[test]
fn reserved_bits_of_mxcsr_are_refused() {
    let code = assemble(Mode::Long64, |a| a.ldmxcsr(dword_ptr(rax)));
    for (value, expected) in
        [(0x1f80u32, None), (0xffff, None), (0x1_0000, Some(GP)), (0x8000_1f80, Some(GP))]
    {
        let mut machine = machine(Mode::Long64, cpuid(&[]), &code);
        machine.write(DATA, &value.to_le_bytes());
        assert_eq!(step(&mut machine), expected, "{value:#x}");
        let loaded = if expected.is_none() { value } else { 0x1f80 };
        assert_eq!(machine.state().mxcsr, loaded);
    }
}

#[test]
fn undefined_and_privileged_instructions_are_never_executed_natively() {
    type Emit = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let cases: [(&str, Emit, u8); 6] = [
        ("xsaves", |a| a.xsaves(ptr(rax)), UD),
        ("xrstors", |a| a.xrstors(ptr(rax)), UD),
        ("rdpkru", |a| a.rdpkru(), UD),
        ("tpause", |a| a.tpause(eax), UD),
        ("hlt", |a| a.hlt(), GP),
        ("wrmsr", |a| a.wrmsr(), GP),
    ];
    for (name, emit, expected) in cases {
        let code = assemble(Mode::Long64, emit);
        let mut machine = machine(Mode::Long64, cpuid(&[]), &code);
        assert_eq!(step(&mut machine), Some(expected), "{name}");
        machine.prefer_native(true);
        assert_eq!(step(&mut machine), Some(expected), "{name} natively");
    }
}
