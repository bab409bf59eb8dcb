//! Register contents: boundary values, special floating-point numbers, random ones.

use crate::case::{CODE, DATA, State};
use crate::random::Random;

const INTEGERS: [u64; 24] = [
    0,
    1,
    2,
    u64::MAX,
    u64::MAX - 1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_8000_0000,
    0xffff_ffff_ffff_ff80,
    0x5555_5555_5555_5555,
    0xaaaa_aaaa_aaaa_aaaa,
    0x0123_4567_89ab_cdef,
    31,
];

/// Zeroes, ones, smallest and largest, denormals, infinities, NaNs, the bounds of integers.
const SINGLES: [u32; 24] = [
    0,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x0000_0001,
    0x8000_0001,
    0x007f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0000,
    0x7fa0_0000,
    0xff80_0001,
    0x4f00_0000,
    0x4eff_ffff,
    0xcf00_0000,
    0x5f00_0000,
    0x3f00_0000,
    0x4049_0fdb,
    0x3fc0_0000,
    0x4020_0000,
];

const DOUBLES: [u64; 24] = [
    0,
    0x8000_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    1,
    0x8000_0000_0000_0001,
    0x000f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0xffef_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0xfff8_0000_0000_0000,
    0x7ff4_0000_0000_0000,
    0xfff0_0000_0000_0001,
    0x41df_ffff_ffc0_0000,
    0x41e0_0000_0000_0000,
    0xc1e0_0000_0020_0000,
    0x43e0_0000_0000_0000,
    0xc3e0_0000_0000_0000,
    0x3fe0_0000_0000_0000,
    0x4009_21fb_5444_2d18,
    0x380f_ffff_e000_0000,
];

pub(crate) fn integer(random: &mut Random) -> u64 {
    match random.below(5) {
        0..=1 => random.pick(&INTEGERS),
        2 => random.next(),
        3 => random.next() >> random.below(64),
        _ => random.pick(&INTEGERS).wrapping_add(random.below(3)).wrapping_sub(1),
    }
}

fn single(random: &mut Random) -> u32 {
    match random.below(4) {
        0..=1 => random.pick(&SINGLES),
        2 => random.next() as u32,
        // Of similar size, so that sums round.
        _ => (random.next() as u32 & 0x80ff_ffff) | (0x3e + random.below(4) as u32) << 24,
    }
}

fn double(random: &mut Random) -> u64 {
    match random.below(4) {
        0..=1 => random.pick(&DOUBLES),
        2 => random.next(),
        _ => (random.next() & 0x800f_ffff_ffff_ffff) | (0x3f0 + random.below(32)) << 52,
    }
}

/// Eight bytes that mean something as one kind of element or another.
pub(crate) fn lane(random: &mut Random, kind: u64) -> u64 {
    match kind {
        0 => single(random) as u64 | (single(random) as u64) << 32,
        1 => double(random),
        2 => integer(random),
        3 => 0,
        4 => u64::MAX,
        _ => random.next(),
    }
}

/// An x87 register: ten bytes.
pub(crate) fn extended(random: &mut Random) -> [u8; 10] {
    const MANTISSAS: [u64; 8] = [
        0,
        0x8000_0000_0000_0000,
        0xc000_0000_0000_0000,
        0xa000_0000_0000_0000,
        0xffff_ffff_ffff_ffff,
        0x7fff_ffff_ffff_ffff,
        1,
        0x8000_0000_0000_0001,
    ];
    const EXPONENTS: [u16; 8] = [0, 1, 0x3ffe, 0x3fff, 0x4000, 0x403e, 0x7ffe, 0x7fff];
    let (mantissa, exponent) = match random.below(4) {
        0 => (random.pick(&MANTISSAS), random.pick(&EXPONENTS)),
        1 => (random.next() | 1 << 63, 0x3fff + random.below(70) as u16 - 5),
        2 => (random.next() | 1 << 63, random.pick(&EXPONENTS)),
        _ => (random.next(), random.next() as u16 & 0x7fff),
    };
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
    bytes[8..].copy_from_slice(&(exponent | (random.next() as u16 & 1) << 15).to_le_bytes());
    bytes
}

fn mxcsr(random: &mut Random) -> u32 {
    let mut value = 0x1f80;
    if random.percent(30) {
        value |= random.below(4) as u32 * 0x2000;
    }
    if random.percent(20) {
        value |= 0x8000;
    }
    if random.percent(20) {
        value |= 0x40;
    }
    if random.percent(20) {
        value |= random.below(64) as u32;
    }
    if random.percent(15) {
        value &= !((random.below(64) as u32) << 7);
    }
    value
}

/// The x87 part of an FXSAVE64 image.
fn x87(random: &mut Random, fx: &mut [u8; 512]) {
    let mut control: u16 = 0x037f;
    if random.percent(30) {
        control = control & !0x0f00 | (random.pick(&[0u16, 2, 3]) << 8) | (random.below(4) as u16) << 10;
    }
    if random.percent(15) {
        control &= !(random.below(64) as u16);
    }
    let mut status = (random.below(8) as u16) << 11 | (random.next() as u16 & 0x4700);
    if random.percent(20) {
        status |= random.below(64) as u16;
        // Mostly nothing pending, or little else would be tested.
        if random.percent(90) {
            status &= !(!control & 0x3f);
        }
    }
    if status & !control & 0x3f != 0 {
        status |= 0x8080;
    }
    let tags = match random.below(3) {
        0 => 0xff,
        1 => 0,
        _ => random.next() as u8,
    };
    fx[0..2].copy_from_slice(&control.to_le_bytes());
    fx[2..4].copy_from_slice(&status.to_le_bytes());
    fx[4] = tags;
    for register in 0..8 {
        fx[32 + 16 * register..][..10].copy_from_slice(&extended(random));
    }
    fx[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
}

/// Registers for a case; those that addresses are made of point into the data.
pub(crate) fn state(random: &mut Random) -> State {
    let mut state = State::ZERO;
    state.gpr = std::array::from_fn(|_| integer(random));
    state.gpr[3] = DATA + 0x200;
    state.gpr[4] = DATA + 0x1800;
    state.gpr[5] = DATA + 0x900;
    state.gpr[6] = DATA + 0x300 + random.below(64);
    state.gpr[7] = DATA + 0x340 + random.below(128);
    state.rip = CODE;
    // IF, and the status flags at random.
    state.rflags = 0x202 | random.next() & 0x8d5;
    state.mxcsr = mxcsr(random);
    let same = random.below(8);
    for register in &mut state.ymm {
        let kind = if random.percent(70) { same } else { random.below(8) };
        *register = std::array::from_fn(|_| lane(random, kind));
    }
    x87(random, &mut state.fx);
    state
}
