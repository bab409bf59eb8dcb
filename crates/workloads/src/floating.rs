//! Floating point with SSE2. Only operations that IEEE 754 rounds exactly take part (no `sin`, no fused
//! multiplication), so results are equal to the last bit on each machine.

use std::hint::black_box;
use std::io;

use crate::measure::{Job, fold};
use crate::options::Options;
use crate::random::Random;

/// A product of matrices, which compilers make two operations at a time.
pub(crate) fn matmul_row(_: &Options) -> io::Result<Job> {
    const N: usize = 160;
    let mut random = Random::new(10);
    let mut matrix = || (0..N * N).map(|_| (random.next() >> 40) as f64 / 1e6 - 8.0).collect::<Vec<_>>();
    let (a, b) = (matrix(), matrix());
    let mut c = vec![0.0; N * N];
    Ok(Job::new((N * N * N) as u64, move || {
        multiply(black_box(&a), black_box(&b), &mut c, N);
        c.iter().step_by(N / 2 + 1).fold(0, |sum, cell| fold(sum, cell.to_bits()))
    }))
}

#[inline(never)]
fn multiply(a: &[f64], b: &[f64], c: &mut [f64], n: usize) {
    c.fill(0.0);
    for (row, line) in c.chunks_exact_mut(n).enumerate() {
        for (factor, other) in a[row * n..(row + 1) * n].iter().zip(b.chunks_exact(n)) {
            for (cell, value) in line.iter_mut().zip(other) {
                *cell += factor * value;
            }
        }
    }
}

/// Five bodies in each other's gravity: divisions and square roots that wait for each other.
pub(crate) fn nbody_row(_: &Options) -> io::Result<Job> {
    const STEPS: u64 = 10_000;
    let start = bodies();
    Ok(Job::new(STEPS, move || {
        let mut bodies = black_box(start);
        for _ in 0..STEPS {
            advance(&mut bodies);
        }
        energy(&bodies).to_bits()
    }))
}

#[derive(Clone, Copy)]
struct Body {
    position: [f64; 3],
    velocity: [f64; 3],
    mass: f64,
}

/// A heavy body in the middle and four that go around it, each on a slightly tilted circle. Units are
/// such that the constant of gravity and the middle mass are 1.
fn bodies() -> [Body; 5] {
    std::array::from_fn(|index| {
        if index == 0 {
            return Body { position: [0.0; 3], velocity: [0.0; 3], mass: 1.0 };
        }
        let radius = 1.5 * index as f64;
        let (speed, tilt) = ((1.0 / radius).sqrt(), 0.02 * index as f64);
        let sign = if index % 2 == 0 { 1.0 } else { -1.0 };
        Body {
            position: [sign * radius, 0.0, tilt],
            velocity: [0.0, sign * speed, tilt / 10.0],
            mass: 1e-3 / index as f64,
        }
    })
}

#[inline(never)]
fn advance(bodies: &mut [Body; 5]) {
    const STEP: f64 = 0.001;
    for first in 0..bodies.len() {
        for second in first + 1..bodies.len() {
            let (a, b) = (bodies[first], bodies[second]);
            let apart: [f64; 3] = std::array::from_fn(|axis| a.position[axis] - b.position[axis]);
            let square = apart[0] * apart[0] + apart[1] * apart[1] + apart[2] * apart[2];
            let pull = STEP / (square * square.sqrt());
            for (axis, apart) in apart.into_iter().enumerate() {
                bodies[first].velocity[axis] -= apart * b.mass * pull;
                bodies[second].velocity[axis] += apart * a.mass * pull;
            }
        }
    }
    for body in bodies {
        for axis in 0..3 {
            body.position[axis] += STEP * body.velocity[axis];
        }
    }
}

fn energy(bodies: &[Body; 5]) -> f64 {
    let mut energy = 0.0;
    for (index, a) in bodies.iter().enumerate() {
        energy += 0.5 * a.mass * a.velocity.iter().map(|speed| speed * speed).sum::<f64>();
        for b in &bodies[index + 1..] {
            let square: f64 = (0..3)
                .map(|axis| (a.position[axis] - b.position[axis]) * (a.position[axis] - b.position[axis]))
                .sum();
            energy -= a.mass * b.mass / square.sqrt();
        }
    }
    energy
}

/// Mandelbrot's set: few operations in a tight loop, one number at a time.
pub(crate) fn mandelbrot_row(_: &Options) -> io::Result<Job> {
    let (iterations, _) = mandelbrot(SIDE);
    Ok(Job::new(iterations, || {
        let (iterations, sum) = mandelbrot(black_box(SIDE));
        fold(sum, iterations)
    }))
}

const SIDE: u32 = 96;

/// Iterations in all, and a checksum over those of each point.
fn mandelbrot(side: u32) -> (u64, u64) {
    const MOST: u64 = 200;
    let (mut all, mut sum) = (0, 0);
    for point in 0..side * side {
        let re = f64::from(point % side) * 3.0 / f64::from(side) - 2.25;
        let im = f64::from(point / side) * 2.5 / f64::from(side) - 1.25;
        let (mut x, mut y, mut count) = (0.0, 0.0, 0);
        while count < MOST && x * x + y * y <= 4.0 {
            (x, y) = (x * x - y * y + re, 2.0 * x * y + im);
            count += 1;
        }
        all += count;
        sum = fold(sum, count);
    }
    (all, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_the_sum_of_products() {
        let mut c = [0.0; 4];
        multiply(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0], &mut c, 2);
        assert_eq!(c, [19.0, 22.0, 43.0, 50.0]);
    }

    #[test]
    fn energy_is_kept_and_bodies_move() {
        let (start, mut bodies) = (bodies(), bodies());
        (0..10_000).for_each(|_| advance(&mut bodies));
        assert!(((energy(&bodies) - energy(&start)) / energy(&start)).abs() < 1e-3);
        assert!((bodies[1].position[1] - start[1].position[1]).abs() > 1e-3);
    }

    #[test]
    fn points_inside_take_all_iterations() {
        let (all, _) = mandelbrot(24);
        assert!(all > 24 * 24 * 10 && all < 24 * 24 * 200, "{all}");
    }
}
