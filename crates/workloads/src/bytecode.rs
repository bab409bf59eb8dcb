//! An interpreter of a made-up machine: one indirect jump for each of its instructions.

use std::hint::black_box;
use std::io;

use crate::measure::{Job, fold};
use crate::options::Options;

/// The row: for all numbers to a bound, the steps of Collatz' sequence.
pub(crate) fn row(_: &Options) -> io::Result<Job> {
    let program = collatz(600);
    let instructions = run(&program).instructions;
    Ok(Job::new(instructions, move || {
        let end = run(black_box(&program));
        end.registers.iter().fold(end.instructions, |sum, &register| fold(sum, register))
    }))
}

/// An instruction: operation, target register, two operands.
#[derive(Clone, Copy)]
struct Instruction(Operation, u8, u8, u8);

#[derive(Clone, Copy)]
#[repr(u8)]
enum Operation {
    /// Target = the number of both operands.
    Load,
    /// Target = first register.
    Move,
    Add,
    Subtract,
    Multiply,
    /// Target = first register shifted right by the second operand.
    ShiftRight,
    And,
    Xor,
    /// Target = whether the first register is less than the second.
    Less,
    /// Goes to the address in both operands.
    Jump,
    /// The same, if the target register is zero.
    JumpIfZero,
    Halt,
}

/// A machine that has halted.
struct End {
    registers: [u64; 16],
    instructions: u64,
}

#[inline(never)]
fn run(program: &[Instruction]) -> End {
    let mut registers = [0_u64; 16];
    let (mut at, mut instructions) = (0, 0);
    loop {
        let Instruction(operation, target, a, b) = program[at];
        let (target, x, y) = (usize::from(target & 15), usize::from(a & 15), usize::from(b & 15));
        let number = usize::from(u16::from_le_bytes([a, b]));
        at += 1;
        instructions += 1;
        match operation {
            Operation::Load => registers[target] = number as u64,
            Operation::Move => registers[target] = registers[x],
            Operation::Add => registers[target] = registers[x].wrapping_add(registers[y]),
            Operation::Subtract => registers[target] = registers[x].wrapping_sub(registers[y]),
            Operation::Multiply => registers[target] = registers[x].wrapping_mul(registers[y]),
            Operation::ShiftRight => registers[target] = registers[x] >> (b & 63),
            Operation::And => registers[target] = registers[x] & registers[y],
            Operation::Xor => registers[target] = registers[x] ^ registers[y],
            Operation::Less => registers[target] = u64::from(registers[x] < registers[y]),
            Operation::Jump => at = number,
            Operation::JumpIfZero => {
                if registers[target] == 0 {
                    at = number;
                }
            }
            Operation::Halt => return End { registers, instructions },
        }
    }
}

/// Register 3 counts the steps of all numbers below the bound, register 7 mixes them.
fn collatz(bound: u16) -> Vec<Instruction> {
    use Operation::*;
    let [low, high] = bound.to_le_bytes();
    vec![
        Instruction(Load, 0, 1, 0),        // 0: r0 = 1, the constant
        Instruction(Load, 1, 1, 0),        // 1: r1 = 1, the number
        Instruction(Load, 2, low, high),   // 2: r2 = bound
        Instruction(Load, 8, 3, 0),        // 3: r8 = 3, the constant
        Instruction(Less, 4, 1, 2),        // 4: next number:
        Instruction(JumpIfZero, 4, 19, 0), // 5:   none left, halt
        Instruction(Move, 5, 1, 0),        // 6:   r5 = r1
        Instruction(Xor, 6, 5, 0),         // 7: step: r5 = 1 ends the sequence
        Instruction(JumpIfZero, 6, 17, 0), // 8:
        Instruction(Add, 3, 3, 0),         // 9:   r3 += 1
        Instruction(And, 6, 5, 0),         // 10:  is r5 even?
        Instruction(JumpIfZero, 6, 15, 0), // 11:
        Instruction(Multiply, 5, 5, 8),    // 12:  r5 = 3 × r5 + 1
        Instruction(Add, 5, 5, 0),         // 13:
        Instruction(Jump, 0, 7, 0),        // 14:
        Instruction(ShiftRight, 5, 5, 1),  // 15: r5 /= 2
        Instruction(Jump, 0, 7, 0),        // 16:
        Instruction(Add, 1, 1, 0),         // 17: r1 += 1
        Instruction(Jump, 0, 4, 0),        // 18:
        Instruction(Subtract, 7, 3, 1),    // 19: r7 = r3 - r1
        Instruction(Halt, 0, 0, 0),        // 20:
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interpreter_counts_steps_as_a_loop_does() {
        let mut steps = 0;
        for number in 1_u64..600 {
            let mut value = number;
            while value != 1 {
                value = if value % 2 == 0 { value / 2 } else { 3 * value + 1 };
                steps += 1;
            }
        }
        let end = run(&collatz(600));
        assert_eq!(end.registers[3], steps);
        assert_eq!(end.registers[7], steps - 600);
    }
}
