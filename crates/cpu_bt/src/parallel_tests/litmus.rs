//! Memory ordering and locked operations between vCPUs (SDM vol. 3A, §9.2). The shapes are the usual
//! ones, with counters in place of ones, so that one run is many tests.

use super::smp::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const X: u64 = DATA;
const Y: u64 = DATA + 0x100;
const GO: u64 = DATA + 0x200;
/// What the vCPUs have seen: two words for each round.
const SEEN: u64 = DATA + 0x1_0000;
const SEEN_LEN: u64 = 0x2_0000;
const ROUNDS: u64 = 1000;

/// Waits until all vCPUs have come here.
fn meet(a: &mut CodeAssembler, vcpus: u32) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    a.lock().inc(qword_ptr(GO))?;
    a.set_label(&mut wait)?;
    a.pause()?;
    a.cmp(qword_ptr(GO), vcpus as i32)?;
    a.jb(wait)
}

/// RCX counts from 1 to [`ROUNDS`]; RDI is where this vCPU notes what it has seen.
fn rounds(
    a: &mut CodeAssembler,
    (id, vcpus): (u64, u32),
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut head = a.create_label();
    meet(a, vcpus)?;
    a.mov(rdi, SEEN + SEEN_LEN * id)?;
    a.mov(ecx, 1)?;
    a.set_label(&mut head)?;
    body(a)?;
    a.add(rdi, 16)?;
    a.inc(rcx)?;
    a.cmp(rcx, ROUNDS as i32)?;
    a.jbe(head)
}

fn seen(smp: &Smp, id: u64) -> Vec<(u64, u64)> {
    (0..ROUNDS)
        .map(|round| {
            let at = SEEN + SEEN_LEN * id + 16 * round;
            (smp.load(at), smp.load(at + 8))
        })
        .collect()
}

#[test]
fn a_store_is_seen_before_a_later_load_behind_a_fence() {
    for (number, options) in all_options().iter().enumerate() {
        for with_xchg in [false, true] {
            let mut smp = Smp::new(2, options);
            for (id, mine, other) in [(0, X, Y), (1, Y, X)] {
                smp.program(id, |a| {
                    rounds(a, (id as u64, 2), |a| {
                        if with_xchg {
                            a.mov(rax, rcx)?;
                            a.xchg(qword_ptr(mine), rax)?;
                        } else {
                            a.mov(qword_ptr(mine), rcx)?;
                            a.mfence()?;
                        }
                        a.mov(rax, qword_ptr(other))?;
                        a.mov(qword_ptr(rdi), rax)
                    })
                });
            }
            smp.run(|_| {});
            for (round, (a, b)) in (1..).zip(seen(&smp, 0).iter().zip(seen(&smp, 1))) {
                assert!(a.0 >= round || b.0 >= round, "options {number}, round {round}: {a:?} {b:?}");
            }
        }
    }
}

#[test]
fn stores_are_seen_in_order() {
    for (number, options) in all_options().iter().enumerate() {
        let mut smp = Smp::new(2, options);
        smp.program(0, |a| {
            rounds(a, (0, 2), |a| {
                a.mov(qword_ptr(X), rcx)?;
                a.mov(qword_ptr(Y), rcx)
            })
        });
        smp.program(1, |a| {
            rounds(a, (1, 2), |a| {
                a.mov(rax, qword_ptr(Y))?;
                a.mov(rdx, qword_ptr(X))?;
                a.mov(qword_ptr(rdi), rax)?;
                a.mov(qword_ptr(rdi + 8), rdx)
            })
        });
        smp.run(|_| {});
        assert!(seen(&smp, 1).iter().all(|(flag, data)| data >= flag), "options {number}");
    }
}

#[test]
fn a_load_does_not_see_a_later_store_of_another() {
    for (number, options) in all_options().iter().enumerate() {
        let mut smp = Smp::new(2, options);
        for (id, mine, other) in [(0, X, Y), (1, Y, X)] {
            smp.program(id, |a| {
                rounds(a, (id as u64, 2), |a| {
                    a.mov(rax, qword_ptr(mine))?;
                    a.mov(qword_ptr(other), rcx)?;
                    a.mov(qword_ptr(rdi), rax)
                })
            });
        }
        smp.run(|_| {});
        for (round, (a, b)) in (1..).zip(seen(&smp, 0).iter().zip(seen(&smp, 1))) {
            assert!(a.0 < round || b.0 < round, "options {number}, round {round}: {a:?} {b:?}");
        }
    }
}

#[test]
fn two_readers_see_independent_stores_in_one_order() {
    for (number, options) in all_options().iter().enumerate() {
        let mut smp = Smp::new(4, options);
        for (id, mine) in [(0, X), (1, Y)] {
            smp.program(id, |a| rounds(a, (id as u64, 4), |a| a.mov(qword_ptr(mine), rcx)));
        }
        for (id, first, second) in [(2, X, Y), (3, Y, X)] {
            smp.program(id, |a| {
                rounds(a, (id as u64, 4), |a| {
                    a.mov(rax, qword_ptr(first))?;
                    a.mov(rdx, qword_ptr(second))?;
                    a.mov(qword_ptr(rdi), rax)?;
                    a.mov(qword_ptr(rdi + 8), rdx)
                })
            });
        }
        smp.run(|_| {});
        let (left, right) = (seen(&smp, 2), seen(&smp, 3));
        for (x, old_y) in &left {
            // The other saw a newer Y, and after it an older X.
            let bad = right.iter().find(|(y, old_x)| y > old_y && old_x < x);
            assert_eq!(bad, None, "options {number}: {x} {old_y}");
        }
    }
}

#[test]
fn locked_operations_lose_nothing() {
    type Write = fn(&mut CodeAssembler, u64) -> Result<(), IcedError>;
    let operations: [(&str, Write); 5] = [
        ("add", |a, at| a.lock().add(qword_ptr(at), 1)),
        ("xadd", |a, at| {
            a.mov(eax, 1)?;
            a.lock().xadd(qword_ptr(at), rax)
        }),
        ("cmpxchg", |a, at| {
            let mut again = a.create_label();
            a.mov(rax, qword_ptr(at))?;
            a.set_label(&mut again)?;
            a.lea(rdx, ptr(rax + 1))?;
            a.lock().cmpxchg(qword_ptr(at), rdx)?;
            a.jne(again)
        }),
        ("cmpxchg16b", |a, at| {
            let mut again = a.create_label();
            a.mov(r8, rcx)?;
            a.mov(rax, qword_ptr(at))?;
            a.mov(rdx, qword_ptr(at + 8))?;
            a.set_label(&mut again)?;
            a.lea(rbx, ptr(rax + 1))?;
            a.lea(rcx, ptr(rdx + 1))?;
            a.lock().cmpxchg16b(xmmword_ptr(at))?;
            a.jne(again)?;
            a.mov(rcx, r8)
        }),
        // A lock made of XCHG around a plain addition.
        ("xchg", |a, at| {
            let (mut again, mut got) = (a.create_label(), a.create_label());
            a.nop()?;
            a.set_label(&mut again)?;
            a.mov(eax, 1)?;
            a.xchg(dword_ptr(at + 32), eax)?;
            a.test(eax, eax)?;
            a.je(got)?;
            a.pause()?;
            a.jmp(again)?;
            a.set_label(&mut got)?;
            a.add(qword_ptr(at), 1)?;
            a.mov(dword_ptr(at + 32), 0)
        }),
    ];
    // In one line, across two lines, across two pages.
    let places = [X, X + 0x1000 - 0x44, X + 0x2000 - 4];
    for (number, options) in all_options().iter().enumerate() {
        for (name, write) in operations {
            for at in places {
                // 16 bytes are always aligned, and the lock of the last one is plain memory.
                let at = if name == "cmpxchg16b" { at & !15 } else { at };
                if name == "xchg" && at != X {
                    continue;
                }
                let mut smp = Smp::new(2, options);
                for id in 0..2 {
                    smp.program(id, |a| rounds(a, (id as u64, 2), |a| write(a, at)));
                }
                smp.run(|_| {});
                let word = |at: u64| {
                    (0..8).rev().fold(0, |value, byte| {
                        value << 8 | smp.load((at + byte) & !7) >> ((at + byte) % 8 * 8) & 0xff
                    })
                };
                assert_eq!(word(at), 2 * ROUNDS, "options {number}, {name} at {at:#x}");
            }
        }
    }
}
