//! Places where an instruction meets what surrounds it: the ends of pages in legacy modes, code that
//! writes itself, x87 environments of real mode.

use crate::probe::{CODE, DATA, assemble, cpuid, machine, step};
use cpu_bt::testing::Mode;
use iced_x86::code_asm::*;

#[test]
fn stores_and_locked_instructions_reach_code_that_was_decoded() {
    // The second instruction is decoded together with the first, which then changes it to INC EDX.
    type Emit = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let stores: [(&str, Emit); 5] = [
        ("movups", |a| a.movups(xmmword_ptr(rdi), xmm0)),
        ("lock cmpxchg16b", |a| a.lock().cmpxchg16b(xmmword_ptr(rdi))),
        ("lock xchg", |a| a.xchg(qword_ptr(rdi), rsi)),
        ("fistp", |a| a.fistp(qword_ptr(rdi))),
        ("vmaskmovps", |a| a.vmaskmovps(xmmword_ptr(rdi), xmm2, xmm0)),
    ];
    for (name, store) in stores {
        if name == "vmaskmovps" && !std::is_x86_feature_detected!("avx2") {
            println!("skipped: {name}");
            continue;
        }
        let target = CODE + 0x40;
        let code = assemble(Mode::Long64, |a| {
            store(a)?;
            a.jmp(target)
        });
        let mut machine = machine(Mode::Long64, cpuid(&[]), &code);
        // inc ecx; nops
        let old = [0xff, 0xc1, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90];
        // inc edx; nops
        let new = u64::from_le_bytes([0xff, 0xc2, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90]);
        machine.write(target, &[old, old].concat());
        let mut state = machine.state();
        // First the target alone, so that it is decoded.
        state.rip = target;
        machine.set_state(&state);
        assert_eq!(step(&mut machine), None);
        assert_eq!(machine.state().gpr[1], DATA + 1, "{name}: before");
        state.rip = CODE;
        state.gpr[7] = target;
        state.ymm[0] = [new, new, 0, 0];
        state.ymm[2] = [u64::MAX; 4];
        // CMPXCHG16B compares RDX:RAX and stores RCX:RBX.
        let expected = u64::from_le_bytes(old);
        (state.gpr[0], state.gpr[2], state.gpr[3], state.gpr[1]) = (expected, expected, new, new);
        state.gpr[6] = new;
        // ST0 is the integer `new`.
        let magnitude = (new as i64).unsigned_abs();
        let shift = magnitude.leading_zeros();
        state.x87[2..4].copy_from_slice(&0u16.to_le_bytes());
        state.x87[4] = 1;
        state.x87[32..40].copy_from_slice(&(magnitude << shift).to_le_bytes());
        let exponent = (16383 + 63 - shift) as u16 | if (new as i64) < 0 { 0x8000 } else { 0 };
        state.x87[40..42].copy_from_slice(&exponent.to_le_bytes());
        machine.set_state(&state);
        // The store, the jump, and what the store put there.
        for _ in 0..3 {
            assert_eq!(step(&mut machine), None, "{name}");
        }
        let after = machine.state();
        assert_eq!(after.gpr[2] as u32, (expected as u32).wrapping_add(1), "{name}: the new instruction ran");
    }
}

#[test]
fn the_x87_environment_of_real_mode_has_linear_addresses() {
    let code = assemble(Mode::Real16, |a| {
        a.fild(word_ptr(bx))?;
        a.fnstenv(ptr(bx + 16))
    });
    for prefixed in [false, true] {
        let mut code = code.clone();
        let fnstenv = code.iter().rposition(|byte| *byte == 0xd9).expect("the second instruction");
        if prefixed {
            // An operand size of 32 bits.
            code.insert(fnstenv, 0x66);
        }
        let mut machine = machine(Mode::Real16, cpuid(&[]), &code);
        let mut state = machine.state();
        state.gpr[3] = DATA;
        machine.set_state(&state);
        assert_eq!((step(&mut machine), step(&mut machine)), (None, None));
        let mut bytes = [0; 28];
        machine.read(DATA + 16, &mut bytes);
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let size = if prefixed { 4 } else { 2 };
        // Control word, status with TOP = 7, tags with register 7 in use.
        assert_eq!(word(0), 0x37f);
        assert_eq!(word(size) & 0x3800, 0x3800);
        assert_eq!(word(2 * size) >> 14, 1, "the zero that was loaded");
        assert_eq!((word(3 * size), word(5 * size)), (CODE as u16, DATA as u16));
        // FILD m16 is DF /0; its operand is [BX].
        assert_eq!(word(4 * size) & 0x7ff, 0x707);
    }
}

#[test]
fn operands_wrap_with_the_address_size() {
    // A bit string that reaches below address 0 of a 16-bit segment comes out at its end.
    let code = assemble(Mode::Compat16, |a| a.bts(word_ptr(bx), ax));
    let mut machine = machine(Mode::Compat16, cpuid(&[]), &code);
    let mut state = machine.state();
    state.gpr[3] = 0;
    // 16 bits back for each word, from 0 down to DATA.
    let words = (DATA as i64 - 0x1_0000) / 2;
    assert!(words >= -2048, "AX reaches that far");
    state.gpr[0] = (words * 16 + 5) as u16 as u64;
    machine.set_state(&state);
    assert_eq!(step(&mut machine), None);
    let mut bytes = [0; 2];
    machine.read(DATA, &mut bytes);
    assert_eq!(u16::from_le_bytes(bytes), 1 << 5);
}
