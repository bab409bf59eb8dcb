//! Calls and returns, direct and through pointers.

use std::ffi::c_void;
use std::hint::black_box;
use std::io;

use crate::measure::{Job, fold};
use crate::options::Options;
use crate::random::Random;

/// Recursion: calls and returns and little else.
pub(crate) fn fib_row(_: &Options) -> io::Result<Job> {
    const N: u32 = 27;
    // fib(n) makes 2 × fib(n + 1) - 1 calls.
    Ok(Job::new(2 * fib(N + 1) - 1, || fib(black_box(N))))
}

#[inline(never)]
fn fib(n: u32) -> u64 {
    // Without the boxes a compiler makes one of the calls a loop.
    if n < 2 { u64::from(n) } else { black_box(fib(black_box(n - 1))) + black_box(fib(black_box(n - 2))) }
}

/// Calls through tables of methods, in an order that no predictor knows.
pub(crate) fn virtual_row(_: &Options) -> io::Result<Job> {
    const ROUNDS: u64 = 200;
    let mut random = Random::new(7);
    let steps: Vec<Box<dyn Step>> = (0..1000)
        .map(|_| -> Box<dyn Step> {
            let number = random.next();
            match random.below(4) {
                0 => Box::new(Add(number)),
                1 => Box::new(Flip(number)),
                2 => Box::new(Turn(number as u32 % 64)),
                _ => Box::new(Scale(number | 1)),
            }
        })
        .collect();
    Ok(Job::new(ROUNDS * steps.len() as u64, move || {
        let steps = black_box(&steps);
        (0..ROUNDS).fold(1, |value, _| steps.iter().fold(value, |value, step| step.take(value)))
    }))
}

trait Step {
    fn take(&self, value: u64) -> u64;
}

struct Add(u64);
struct Flip(u64);
struct Turn(u32);
struct Scale(u64);

impl Step for Add {
    fn take(&self, value: u64) -> u64 {
        value.wrapping_add(self.0)
    }
}

impl Step for Flip {
    fn take(&self, value: u64) -> u64 {
        value ^ self.0
    }
}

impl Step for Turn {
    fn take(&self, value: u64) -> u64 {
        value.rotate_left(self.0)
    }
}

impl Step for Scale {
    fn take(&self, value: u64) -> u64 {
        value.wrapping_mul(self.0)
    }
}

/// The C library's sort, which calls back for each comparison.
pub(crate) fn qsort_row(_: &Options) -> io::Result<Job> {
    let mut random = Random::new(8);
    let unsorted: Vec<u32> = (0..20_000).map(|_| (random.next() >> 32) as u32).collect();
    let mut numbers = unsorted.clone();
    Ok(Job::new(unsorted.len() as u64, move || {
        numbers.copy_from_slice(&unsorted);
        // SAFETY: the pointer, count and size describe the vector's elements, and the comparison reads
        // only the two elements that it is given.
        unsafe { libc::qsort(numbers.as_mut_ptr().cast(), numbers.len(), size_of::<u32>(), Some(compare)) };
        numbers.iter().step_by(97).fold(0, |sum, &number| fold(sum, u64::from(number)))
    }))
}

extern "C" fn compare(a: *const c_void, b: *const c_void) -> i32 {
    // SAFETY: `qsort` calls with pointers to two of the elements, which are aligned numbers.
    let (a, b) = unsafe { (*a.cast::<u32>(), *b.cast::<u32>()) };
    a.cmp(&b) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_calls_is_right() {
        fn count(n: u64) -> u64 {
            if n < 2 { 1 } else { 1 + count(n - 1) + count(n - 2) }
        }
        assert_eq!(fib(10), 55);
        assert_eq!(count(10), 2 * fib(11) - 1);
    }
}
