//! Integers of the four operand sizes, with the arithmetic of the host processor: each operation
//! executes the very instruction and returns the flags it left.

use std::arch::asm;
use std::fmt::{Debug, LowerHex};

/// Flags as `LAHF; SETO AL` leave them in AX.
pub(crate) type Ax = u16;

/// u8, u16, u32 or u64.
pub(crate) trait Int: Copy + Eq + Debug + LowerHex + 'static {
    /// Size in bytes.
    const BYTES: usize;
    /// Size in bits.
    const BITS: u32 = Self::BYTES as u32 * 8;
    /// Truncates.
    fn from_u64(value: u64) -> Self;
    /// Extends with zeroes.
    fn to_u64(self) -> u64;
    /// Extends with the sign.
    fn to_i64(self) -> i64;

    fn add(self, b: Self) -> (Self, Ax);
    fn sub(self, b: Self) -> (Self, Ax);
    fn adc(self, b: Self, carry: u64) -> (Self, Ax);
    fn sbb(self, b: Self, carry: u64) -> (Self, Ax);
    fn and(self, b: Self) -> (Self, Ax);
    fn or(self, b: Self) -> (Self, Ax);
    fn xor(self, b: Self) -> (Self, Ax);
    fn inc(self) -> (Self, Ax);
    fn dec(self) -> (Self, Ax);
    fn neg(self) -> (Self, Ax);
    fn shl(self, count: u8) -> (Self, Ax);
    fn shr(self, count: u8) -> (Self, Ax);
    fn sar(self, count: u8) -> (Self, Ax);
    fn rol(self, count: u8) -> (Self, Ax);
    fn ror(self, count: u8) -> (Self, Ax);
    fn rcl(self, count: u8, carry: u64) -> (Self, Ax);
    fn rcr(self, count: u8, carry: u64) -> (Self, Ax);

    /// Loads with one host access, whatever the alignment.
    /// # Safety
    /// `ptr` is readable for `BYTES` bytes.
    unsafe fn load(ptr: *const u8) -> Self;
    /// Stores with one host access, whatever the alignment.
    /// # Safety
    /// `ptr` is writable for `BYTES` bytes.
    unsafe fn store(ptr: *mut u8, value: Self);
}

macro_rules! two_operands {
    ($name:ident, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(self, b: Self) -> (Self, Ax) {
            let (mut a, ax): (Self, Ax) = (self, 0);
            let mut ax = ax;
            // SAFETY: register arithmetic only.
            unsafe {
                asm!(concat!(stringify!($name), " {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                    a = inout($class) a, b = in($class) b, inout("ax") ax, options(nomem, nostack, pure));
            }
            (a, ax)
        }
    };
}
macro_rules! with_carry {
    ($name:ident, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(self, b: Self, carry: u64) -> (Self, Ax) {
            let (mut a, mut ax): (Self, Ax) = (self, 0);
            // SAFETY: register arithmetic only.
            unsafe {
                asm!("bt {c:r}, 0", concat!(stringify!($name), " {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                    a = inout($class) a, b = in($class) b, c = in(reg) carry, inout("ax") ax,
                    options(nomem, nostack, pure));
            }
            (a, ax)
        }
    };
}
macro_rules! one_operand {
    ($name:ident, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(self) -> (Self, Ax) {
            let (mut a, mut ax): (Self, Ax) = (self, 0);
            // SAFETY: register arithmetic only.
            unsafe {
                asm!(concat!(stringify!($name), " {a", $m, "}"), "lahf", "seto al",
                    a = inout($class) a, inout("ax") ax, options(nomem, nostack, pure));
            }
            (a, ax)
        }
    };
}
macro_rules! by_count {
    ($name:ident, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(self, count: u8) -> (Self, Ax) {
            let (mut a, mut ax): (Self, Ax) = (self, 0);
            // SAFETY: register arithmetic only.
            unsafe {
                asm!(concat!(stringify!($name), " {a", $m, "}, cl"), "lahf", "seto al",
                    a = inout($class) a, in("cl") count, inout("ax") ax, options(nomem, nostack, pure));
            }
            (a, ax)
        }
    };
}
macro_rules! by_count_with_carry {
    ($name:ident, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(self, count: u8, carry: u64) -> (Self, Ax) {
            let (mut a, mut ax): (Self, Ax) = (self, 0);
            // SAFETY: register arithmetic only.
            unsafe {
                asm!("bt {c:r}, 0", concat!(stringify!($name), " {a", $m, "}, cl"), "lahf", "seto al",
                    a = inout($class) a, c = in(reg) carry, in("cl") count, inout("ax") ax,
                    options(nomem, nostack, pure));
            }
            (a, ax)
        }
    };
}

macro_rules! int {
    ($int:ty, $signed:ty, $class:ident, $m:literal) => {
        impl Int for $int {
            const BYTES: usize = size_of::<$int>();
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $int
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn to_i64(self) -> i64 {
                self as $signed as i64
            }
            two_operands!(add, $class, $m);
            two_operands!(sub, $class, $m);
            two_operands!(and, $class, $m);
            two_operands!(or, $class, $m);
            two_operands!(xor, $class, $m);
            with_carry!(adc, $class, $m);
            with_carry!(sbb, $class, $m);
            one_operand!(inc, $class, $m);
            one_operand!(dec, $class, $m);
            one_operand!(neg, $class, $m);
            by_count!(shl, $class, $m);
            by_count!(shr, $class, $m);
            by_count!(sar, $class, $m);
            by_count!(rol, $class, $m);
            by_count!(ror, $class, $m);
            by_count_with_carry!(rcl, $class, $m);
            by_count_with_carry!(rcr, $class, $m);
            #[inline(always)]
            unsafe fn load(ptr: *const u8) -> Self {
                let value: $int;
                // SAFETY: by the caller. Assembly, because guest memory is shared with other threads and
                // an access must be one host instruction.
                unsafe {
                    asm!(concat!("mov {v", $m, "}, [{p}]"), v = out($class) value, p = in(reg) ptr,
                        options(nostack, preserves_flags, readonly));
                }
                value
            }
            #[inline(always)]
            unsafe fn store(ptr: *mut u8, value: Self) {
                // SAFETY: as in `load`.
                unsafe {
                    asm!(concat!("mov [{p}], {v", $m, "}"), v = in($class) value, p = in(reg) ptr,
                        options(nostack, preserves_flags));
                }
            }
        }
    };
}
int!(u8, i8, reg_byte, "");
int!(u16, i16, reg, ":x");
int!(u32, i32, reg, ":e");
int!(u64, i64, reg, ":r");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_from_the_instruction() {
        // CF | ZF | AF | PF, and no overflow.
        assert_eq!(0xffu8.add(1), (0, 0x5700));
        let (value, ax) = 0x7fffu16.add(1);
        assert_eq!((value, ax & 1), (0x8000, 1));
        assert_eq!(0u32.sbb(0, 1).0, u32::MAX);
        assert_eq!(1u64.rcl(1, 1).0, 3);
        assert_eq!(0x8000_0000u32.sar(31).0, u32::MAX);
    }
}
