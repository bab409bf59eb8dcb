//! An instruction of 64-bit code again, from its own bytes: registers renamed, the memory operand replaced
//! (SDM vol. 2A, chapter 2). Not all forms: a general encoder does the rest, and takes several times as long.

use super::emit::Operand;

/// What is to become of an instruction's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Registers {
    /// All stay what they are.
    Kept,
    /// Its register operands are general ones; those of these numbers become others. None is AH to BH.
    Renamed([u8; 16]),
}

/// Longest instruction in bytes.
const LEN_MAX: usize = 15;

/// What stands in the middle of ModRM.
enum Field {
    Register,
    /// A part of the opcode.
    Opcode,
}

/// Puts the instruction `source`, whose memory operand (if it has one) becomes `operand`, behind `to`; false, with
/// nothing put there, if this is not done here. `is_byte` tells of a general register of one byte.
pub(super) fn reencode(
    to: &mut Vec<u8>,
    source: &[u8],
    registers: Registers,
    operand: Option<Operand>,
    is_byte: bool,
) -> bool {
    if operand.is_none() && registers == Registers::Kept {
        to.extend_from_slice(source);
        return true;
    }
    let start = to.len();
    let done = rebuild(to, source, registers, operand, is_byte).is_some() && to.len() - start <= LEN_MAX;
    if !done {
        to.truncate(start);
    }
    done
}

fn rebuild(
    to: &mut Vec<u8>,
    source: &[u8],
    registers: Registers,
    operand: Option<Operand>,
    is_byte: bool,
) -> Option<()> {
    let (mut at, mut rex, mut repeats, mut locks) = (0, 0, false, false);
    loop {
        let byte = *source.get(at)?;
        match byte {
            0x66 | 0xf0 | 0xf2 | 0xf3 => {
                locks |= byte == 0xf0;
                repeats |= byte >= 0xf2;
                rex = 0;
                to.push(byte);
            }
            // Segment and size of the address it had.
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 => rex = 0,
            // Any but the last one means nothing.
            0x40..=0x4f => rex = byte,
            _ => break,
        }
        at += 1;
    }
    if matches!(source[at], 0xc4 | 0xc5 | 0x62) {
        return vex(to, &source[at..], registers, operand?);
    }
    let (map, opcode) = match source[at..] {
        [0x0f, 0x38, opcode, ..] => (2, opcode),
        [0x0f, 0x3a, opcode, ..] => (3, opcode),
        [0x0f, opcode, ..] => (1, opcode),
        [opcode, ..] => (0, opcode),
        [] => return None,
    };
    let opcode_len = [1, 2, 3, 3][map];
    let modrm = *source.get(at + opcode_len)?;
    let (mut reg, rm) = (modrm >> 3 & 7 | (rex & 4) << 1, modrm & 7 | (rex & 1) << 3);
    // Where they have no meaning of their own they would be asked for elision of locks.
    if repeats && (locks || map == 0) {
        return None;
    }
    let mut new_rm = rm;
    if let Registers::Renamed(names) = registers {
        if repeats {
            return None;
        }
        if let Field::Register = field(map, opcode)? {
            reg = names[reg as usize];
        }
        new_rm = names[rm as usize];
    }
    let (base, index) = match operand {
        Some(operand) => (operand.base, operand.index.unwrap_or(0)),
        None => (new_rm, 0),
    };
    let new_rex = 0x40 | rex & 8 | (reg & 8) >> 1 | (index & 8) >> 2 | (base & 8) >> 3;
    if new_rex != 0x40 || rex != 0 || is_byte {
        to.push(new_rex);
    }
    to.extend_from_slice(&source[at..at + opcode_len]);
    let rest = &source[at + opcode_len..];
    match operand {
        Some(operand) => {
            let skipped = address_len(rest)?;
            address(to, reg & 7, operand);
            to.extend_from_slice(rest.get(skipped..)?);
        }
        None => {
            if modrm < 0xc0 {
                return None;
            }
            to.push(0xc0 | (reg & 7) << 3 | new_rm & 7);
            to.extend_from_slice(&rest[1..]);
        }
    }
    Some(())
}

/// The same of an instruction with a VEX prefix, of three bytes from now on.
fn vex(to: &mut Vec<u8>, source: &[u8], registers: Registers, operand: Operand) -> Option<()> {
    if registers != Registers::Kept {
        return None;
    }
    let (first, second, len) = match *source {
        [0xc5, byte, ..] => (byte & 0x80 | 1, byte & 0x7f, 2),
        [0xc4, first, second, ..] => (first & 0x9f, second, 3),
        _ => return None,
    };
    let (base, index) = (operand.base, operand.index.unwrap_or(0));
    let reach = (!index & 8) << 3 | (!base & 8) << 2;
    to.extend_from_slice(&[0xc4, first & 0x9f | reach, second, *source.get(len)?]);
    let rest = source.get(len + 1..)?;
    let skipped = address_len(rest)?;
    address(to, rest[0] >> 3 & 7, operand);
    to.extend_from_slice(rest.get(skipped..)?);
    Some(())
}

/// Length of ModRM, SIB and displacement of a memory operand.
fn address_len(bytes: &[u8]) -> Option<usize> {
    let modrm = *bytes.first()?;
    let (mode, mut base, mut len) = (modrm >> 6, modrm & 7, 1);
    if base == 4 {
        base = *bytes.get(1)? & 7;
        len = 2;
    }
    match mode {
        0 if base == 5 => Some(len + 4),
        0 => Some(len),
        1 => Some(len + 1),
        2 => Some(len + 4),
        _ => None,
    }
}

/// ModRM, SIB and displacement of `operand`.
fn address(to: &mut Vec<u8>, reg: u8, operand: Operand) {
    let Operand { base, index, displacement } = operand;
    let mode = match displacement {
        0 if base & 7 != 5 => 0x00,
        _ if displacement as i8 as i32 == displacement => 0x40,
        _ => 0x80,
    };
    match index {
        Some(index) => to.extend_from_slice(&[mode | reg << 3 | 4, (index & 7) << 3 | base & 7]),
        None if base & 7 == 4 => to.extend_from_slice(&[mode | reg << 3 | 4, 0x24]),
        None => to.push(mode | reg << 3 | base & 7),
    }
    match mode {
        0x40 => to.push(displacement as u8),
        0x80 => to.extend_from_slice(&displacement.to_le_bytes()),
        _ => {}
    }
}

/// What ModRM holds beside an operand that may be in memory, for instructions on general registers that have both; `None`
/// for all others.
fn field(map: usize, opcode: u8) -> Option<Field> {
    match (map, opcode) {
        // Arithmetic, TEST, XCHG, MOV, MOVSXD, IMUL.
        (0, 0x00..=0x3f) if opcode & 7 < 4 => Some(Field::Register),
        (0, 0x63 | 0x69 | 0x6b | 0x84..=0x8b) => Some(Field::Register),
        // Arithmetic and MOV with immediates, shifts, NOT to IDIV, INC, DEC.
        (0, 0x80 | 0x81 | 0x83 | 0xc0 | 0xc1 | 0xc6 | 0xc7 | 0xd0..=0xd3 | 0xf6 | 0xf7 | 0xfe | 0xff) => {
            Some(Field::Opcode)
        }
        // CMOV, bits, double shifts, IMUL, CMPXCHG, MOVZX, MOVSX, XADD.
        (1, 0x40..=0x4f | 0xa3..=0xa5 | 0xab..=0xad | 0xaf..=0xb1 | 0xb3 | 0xb6 | 0xb7) => {
            Some(Field::Register)
        }
        (1, 0xbb..=0xc1) => Some(Field::Register),
        // SETcc, bits by immediates.
        (1, 0x90..=0x9f | 0xba) => Some(Field::Opcode),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jit::translator::{host_register, set_operand};
    use iced_x86::{
        Decoder, DecoderOptions, Encoder, Formatter, Instruction, IntelFormatter, OpKind, Register,
    };

    fn decode(bytes: &[u8]) -> Instruction {
        Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode()
    }

    fn text(insn: &Instruction) -> String {
        let mut text = String::new();
        IntelFormatter::new().format(insn, &mut text);
        text
    }

    /// What a general encoder makes of it, if it can.
    fn expected(insn: &Instruction, registers: Registers, operand: Option<Operand>) -> Option<String> {
        let mut new = *insn;
        for n in 0..insn.op_count() {
            let register = insn.op_register(n);
            if insn.op_kind(n) == OpKind::Register
                && register.is_gpr()
                && let Registers::Renamed(names) = registers
            {
                let to = names[register.full_register().number()];
                new.set_op_register(n, host_register(register.size(), to));
            }
        }
        if let Some(operand) = operand {
            set_operand(&mut new, operand);
        }
        let mut encoder = Encoder::new(64);
        encoder.encode(&new, 0).ok()?;
        Some(text(&decode(&encoder.take_buffer())))
    }

    /// Whether an instruction is one that the translator would have encoded.
    fn suits(insn: &Instruction, registers: Registers) -> bool {
        let high = |register| (Register::AH..=Register::BH).contains(&register);
        let mut operands = (0..insn.op_count()).filter(|n| insn.op_kind(*n) == OpKind::Register);
        let general = operands.clone().all(|n| insn.op_register(n).is_gpr());
        !insn.is_invalid()
            && crate::native::classify::Plan::of(&crate::native::without_address(insn)).is_some()
            && !operands.any(|n| high(insn.op_register(n)))
            && crate::native::fixed::fixed_operands(insn) == 0
            && (registers == Registers::Kept || general)
            && !insn.memory_index().is_vector_register()
    }

    #[test]
    fn what_is_done_here_is_what_a_general_encoder_does() {
        let mut random = 0x1234_5678_9abc_def1u64;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut names: [u8; 16] = std::array::from_fn(|number| number as u8);
        (names[4], names[13], names[3], names[14], names[11]) = (15, 3, 14, 11, 13);
        let (mut done, mut left) = (0, 0);
        for round in 0..400_000 {
            let mut bytes = [next().to_le_bytes(), next().to_le_bytes()].concat();
            match round % 8 {
                0..=2 => bytes[1] = 0x0f,
                3 => bytes[0] = 0xc5,
                4 => (bytes[0], bytes[1]) = (0xc4, bytes[1] & 0xe3),
                _ => {}
            }
            if round % 8 < 3 {
                bytes[0] = [0x66, 0x41, 0xf3, 0x48, 0x40, 0xf0, 0x2e, 0x67][bytes[0] as usize % 8];
            }
            let insn = decode(&bytes);
            let memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
            let operands = [
                Operand { base: 14, index: None, displacement: 0 },
                Operand { base: 13, index: None, displacement: 0 },
                Operand { base: 15, index: Some(13), displacement: -8 },
                Operand { base: 5, index: Some(13), displacement: 0 },
                Operand { base: 4, index: None, displacement: 0x1234 },
                Operand { base: 12, index: Some(13), displacement: 127 },
            ];
            let operand = memory.then(|| operands[next() as usize % operands.len()]);
            let registers = if next() & 1 == 0 { Registers::Kept } else { Registers::Renamed(names) };
            if !suits(&insn, registers) {
                continue;
            }
            let source = &bytes[..insn.len()];
            let is_byte = (0..insn.op_count())
                .any(|n| insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_gpr8());
            let mut made = vec![0xcc];
            if !reencode(&mut made, source, registers, operand, is_byte) {
                assert_eq!(made, [0xcc]);
                left += 1;
                continue;
            }
            let new = decode(&made[1..]);
            let told = || format!("{source:x?} {} {registers:?} {operand:?}: {made:x?}", text(&insn));
            assert_eq!(new.len(), made.len() - 1, "{}", told());
            if let Some(expected) = expected(&insn, registers, operand) {
                assert_eq!(text(&new), expected, "{}", told());
                done += 1;
            }
        }
        assert!(done > 20_000 && done > left, "{done} {left}");
    }
}
