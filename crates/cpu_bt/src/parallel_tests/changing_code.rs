//! Code that changes: by itself, by another vCPU, by a device, by the page tables.

use super::smp::*;
use crate::regs::RAX;
use iced_x86::code_asm::*;
use memory::{Bytes, GuestAddress};

const FLAG: u64 = DATA + 0x300;
const FUNCTION: u64 = 0x4_0000;

/// `mov eax, value; ret`, with the value at an aligned address.
fn function(smp: &Smp, value: u32) {
    smp.put(FUNCTION, |a| {
        a.nop()?;
        a.nop()?;
        a.nop()?;
        a.mov(eax, value)?;
        a.ret()
    });
}

/// Where the value is.
const VALUE: u64 = FUNCTION + 4;

/// Calls the function until it returns `wanted`.
fn call_until(a: &mut CodeAssembler, function: u64, wanted: u32) -> Result<(), iced_x86::IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.mov(rbx, function)?;
    a.call(rbx)?;
    a.cmp(eax, wanted)?;
    a.jne(again)
}

#[test]
fn a_function_in_another_page_is_patched_by_its_caller() {
    for options in all_options() {
        let mut smp = Smp::new(1, &options);
        function(&smp, 0x1111_1111);
        smp.program(0, |a| {
            let mut head = a.create_label();
            a.mov(ecx, 300)?;
            a.set_label(&mut head)?;
            a.mov(dword_ptr(VALUE), ecx)?;
            a.mov(rbx, FUNCTION)?;
            a.call(rbx)?;
            a.add(r12, rax)?;
            a.dec(ecx)?;
            a.jne(head)?;
            a.mov(rax, r12)
        });
        smp.run(|_| {});
        assert_eq!(smp.cpus[0].regs.r[RAX], 300 * 301 / 2);
    }
}

#[test]
fn an_instruction_across_two_pages_is_patched_in_the_second() {
    for options in all_options() {
        let mut smp = Smp::new(1, &options);
        // Opcode and one byte in the first page, three bytes in the second.
        let at = FUNCTION + 0x1000 - 2;
        smp.put(at, |a| {
            a.mov(eax, 0)?;
            a.ret()
        });
        smp.program(0, |a| {
            let mut head = a.create_label();
            a.mov(ecx, 200)?;
            a.set_label(&mut head)?;
            a.mov(byte_ptr(FUNCTION + 0x1000), cl)?;
            a.mov(rbx, at)?;
            a.call(rbx)?;
            a.add(r12, rax)?;
            a.dec(ecx)?;
            a.jne(head)?;
            a.mov(rax, r12)
        });
        smp.run(|_| {});
        assert_eq!(smp.cpus[0].regs.r[RAX], (200 * 201 / 2) << 8);
    }
}

#[test]
fn a_loop_patches_itself() {
    for options in all_options() {
        let mut smp = Smp::new(1, &options);
        smp.program(0, |a| {
            let (mut head, mut patched) = (a.create_label(), a.create_label());
            a.mov(ecx, 100)?;
            a.lea(rsi, ptr(patched))?;
            a.set_label(&mut head)?;
            a.mov(byte_ptr(rsi + 1), cl)?;
            a.set_label(&mut patched)?;
            a.mov(al, 0)?;
            a.movzx(eax, al)?;
            a.add(r12, rax)?;
            a.dec(ecx)?;
            a.jne(head)?;
            a.mov(rax, r12)
        });
        smp.run(|_| {});
        assert_eq!(smp.cpus[0].regs.r[RAX], 100 * 101 / 2);
    }
}

#[test]
fn code_is_patched_by_another_vcpu() {
    for options in all_options() {
        let mut smp = Smp::new(2, &options);
        function(&smp, 0x1111_1111);
        smp.program(0, |a| call_until(a, FUNCTION, 0x2222_2222));
        smp.program(1, |a| {
            let mut wait = a.create_label();
            a.mov(ecx, 2000)?;
            a.set_label(&mut wait)?;
            a.dec(ecx)?;
            a.jne(wait)?;
            a.mov(dword_ptr(VALUE), 0x2222_2222)
        });
        smp.run(|_| {});
    }
}

/// As Linux patches text: INT3 first, then the rest, then the first byte; who meets the INT3 waits.
#[test]
fn code_is_patched_behind_a_breakpoint() {
    for options in all_options() {
        let mut smp = Smp::new(2, &options);
        function(&smp, 0x1111_1111);
        // The handler of #BP goes back to the instruction.
        smp.put(HANDLERS + 16 * 3, |a| {
            a.dec(qword_ptr(rsp))?;
            a.pause()?;
            a.iretq()
        });
        smp.program(0, |a| {
            let (mut head, mut bad) = (a.create_label(), a.create_label());
            a.set_label(&mut head)?;
            a.mov(rbx, FUNCTION)?;
            a.call(rbx)?;
            a.cmp(eax, 0x2222_2222)?;
            let mut end = a.create_label();
            a.je(end)?;
            a.cmp(eax, 0x1111_1111)?;
            a.je(head)?;
            a.set_label(&mut bad)?;
            a.mov(qword_ptr(FLAG), rax)?;
            a.set_label(&mut end)?;
            a.nop()
        });
        smp.program(1, |a| {
            let mut wait = a.create_label();
            a.mov(ecx, 2000)?;
            a.set_label(&mut wait)?;
            a.dec(ecx)?;
            a.jne(wait)?;
            a.mov(byte_ptr(VALUE - 1), 0xcc)?;
            a.cpuid()?;
            a.mov(dword_ptr(VALUE), 0x2222_2222)?;
            a.cpuid()?;
            a.mov(byte_ptr(VALUE - 1), 0xb8)
        });
        smp.run(|_| {});
        assert_eq!(smp.load(FLAG), 0, "a mixture of old and new code was executed");
    }
}

#[test]
fn code_is_written_by_a_device() {
    for options in all_options() {
        let mut smp = Smp::new(1, &options);
        function(&smp, 0x1111_1111);
        smp.program(0, |a| {
            a.mov(qword_ptr(FLAG), 1)?;
            call_until(a, FUNCTION, 0x3333_3333)
        });
        smp.run(|vm| {
            while vm.ram.load::<u64>(FLAG) != Some(1) {
                std::hint::spin_loop();
            }
            vm.ram.guest().write_slice(&0x3333_3333u32.to_le_bytes(), GuestAddress(VALUE)).unwrap();
        });
    }
}

#[test]
fn a_page_of_code_is_mapped_elsewhere() {
    for options in all_options() {
        let mut smp = Smp::new(1, &options);
        for (page, value) in [(FIRST, 1), (SECOND, 2)] {
            smp.put(page, |a| {
                a.mov(eax, value)?;
                a.ret()
            });
        }
        smp.program(0, |a| {
            let mut head = a.create_label();
            a.mov(ecx, 200)?;
            a.set_label(&mut head)?;
            a.mov(rbx, HIGH)?;
            a.call(rbx)?;
            // Twice the old sum plus this: the order matters.
            a.lea(r12, ptr(r12 + rax))?;
            a.rol(r12, 1)?;
            a.xor(qword_ptr(HIGH_ENTRY), (FIRST ^ SECOND) as i32)?;
            a.invlpg(byte_ptr(HIGH))?;
            a.dec(ecx)?;
            a.jne(head)?;
            a.mov(rax, r12)
        });
        smp.run(|_| {});
        let expected = (0..200).fold(0u64, |sum, round| sum.wrapping_add(1 + round % 2).rotate_left(1));
        assert_eq!(smp.cpus[0].regs.r[RAX], expected);
    }
}
