//! Random code, interpreted and translated: registers, flags and memory must agree.

use crate::testing::{Machine, Mode, Outcome, Page, UserState};
use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x80_0000;
const STACK: u64 = 0xc0_0000;

/// A small generator of pseudo-random numbers (xorshift64*), so that a seed names a case.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }
    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
    /// Numbers near the edges more often than others.
    fn value(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next(),
            1 => self.next() >> 33,
            2 => (self.next() >> 56) as i8 as i64 as u64,
            _ => 1u64.rotate_left(self.next() as u32 % 64).wrapping_sub(self.next() & 1),
        }
    }
}

const R64: [AsmRegister64; 16] =
    [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
const R32: [AsmRegister32; 16] =
    [eax, ecx, edx, ebx, esp, ebp, esi, edi, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d];
const R16: [AsmRegister16; 16] =
    [ax, cx, dx, bx, sp, bp, si, di, r8w, r9w, r10w, r11w, r12w, r13w, r14w, r15w];
const R8: [AsmRegister8; 20] =
    [al, cl, dl, bl, spl, bpl, sil, dil, r8b, r9b, r10b, r11b, r12b, r13b, r14b, r15b, ah, ch, dh, bh];

/// RSI and RDI point into data and RSP into the stack; the code leaves them alone but for pushes and
/// pops, so that every access succeeds.
fn writable(random: &mut Random) -> usize {
    // Those that live in memory, and change places with others where they are used much.
    if random.below(2) == 0 {
        return random.pick(&[13, 14, 15]);
    }
    random.pick(&[0, 1, 2, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15])
}

fn operand(a: &mut CodeAssembler, random: &mut Random) -> AsmMemoryOperand {
    let _ = a;
    // Now and then across the edge of a page.
    let offset = match random.below(6) {
        0 => 4096 - random.below(9) as i64,
        _ => random.below(1000) as i64,
    };
    match random.below(3) {
        0 => rsi + offset,
        1 => rdi + offset,
        _ => rsi + rdi * 1 + (offset - DATA as i64),
    }
}

fn instruction(a: &mut CodeAssembler, random: &mut Random) -> Result<(), iced_x86::IcedError> {
    let (d, s) = (writable(random), random.below(16) as usize);
    let imm = random.value() as i32;
    let m = operand(a, random);
    macro_rules! sized {
        ($name:ident) => {
            match random.below(9) {
                0 => a.$name(R64[d], R64[s]),
                1 => a.$name(R32[d], R32[s]),
                2 => a.$name(R16[d], R16[s]),
                3 => a.$name(R64[d], imm),
                4 => a.$name(R32[d], qword_or(m)),
                5 => a.$name(R64[d], qword_ptr(m)),
                6 => a.$name(qword_ptr(m), R64[s]),
                7 => a.$name(dword_ptr(m), R32[s]),
                _ => a.$name(byte_ptr(m), imm & 0x7f),
            }
        };
    }
    macro_rules! shift {
        ($name:ident) => {
            match random.below(4) {
                0 => a.$name(R64[d], imm as u32 & 63),
                1 => a.$name(R32[d], cl),
                2 => a.$name(dword_ptr(m), imm as u32 & 31),
                _ => a.$name(R64[d], cl),
            }
        };
    }
    fn qword_or(m: AsmMemoryOperand) -> AsmMemoryOperand {
        dword_ptr(m)
    }
    let kind = random.below(53);
    match kind {
        0 => sized!(add),
        1 => sized!(sub),
        2 => sized!(and),
        3 => sized!(or),
        4 => sized!(xor),
        5 => sized!(adc),
        6 => sized!(sbb),
        7 => sized!(cmp),
        8..=11 => match random.below(6) {
            0 => a.mov(R64[d], qword_ptr(m)),
            1 => a.mov(qword_ptr(m), R64[s]),
            2 => a.mov(R32[d], R32[s]),
            3 => a.mov(R64[d], random.value()),
            4 => a.mov(word_ptr(m), R16[s]),
            _ => a.mov(byte_ptr(m), R8[s]),
        },
        12 => shift!(shl),
        13 => shift!(shr),
        14 => shift!(sar),
        15 => shift!(rol),
        16 => shift!(ror),
        17 => shift!(rcl),
        18 => a.lea(R64[d], ptr(R64[s] + R64[d.max(5)] * 4 + imm)),
        19 => a.lea(R32[d], ptr(R64[s] + imm)),
        20 => a.movzx(R32[d], byte_ptr(m)),
        21 => a.movsx(R64[d], word_ptr(m)),
        22 => a.movsxd(R64[d], R32[s]),
        23 => a.imul_2(R64[d], R64[s]),
        24 => a.imul_3(R32[d], dword_ptr(m), imm),
        25 => a.push(R64[s]),
        26 => {
            a.push(imm)?;
            a.pop(R64[d])
        }
        27 => a.setne(R8[d]),
        28 => a.setb(byte_ptr(m)),
        29 => a.cmovl(R64[d], R64[s]),
        30 => a.cmova(R32[d], dword_ptr(m)),
        31 => a.test(R64[d], R64[s]),
        32 => a.inc(qword_ptr(m)),
        33 => a.dec(R32[d]),
        34 => a.neg(R64[d]),
        35 => a.bt(R64[d], R64[s]),
        36 => a.xchg(qword_ptr(m), R64[d]),
        37 => a.lock().xadd(dword_ptr(m), R32[d]),
        38 => a.mul(R64[writable(random)]),
        39 => a.movq(xmm3, R64[s]),
        40 => a.paddd(xmm3, xmmword_ptr(rsi + (imm & 0x3f0))),
        41 => a.movups(xmmword_ptr(m), xmm3),
        42 => a.vpaddq(ymm1, ymm3, ymmword_ptr(m)),
        43 => a.addsd(xmm2, qword_ptr(m)),
        44 => a.mov(R8[s % 4], R8[16 + d % 4]),
        46 => {
            a.push(rsi)?;
            a.push(rdi)?;
            a.mov(ecx, imm & 31)?;
            a.rep().movsb()?;
            a.pop(rdi)?;
            a.pop(rsi)
        }
        47 => a.vzeroupper(),
        48 => {
            a.push(qword_ptr(m))?;
            a.pop(R64[d])
        }
        49 | 50 => {
            // A bit of the two thousand bytes behind the operand.
            a.mov(R64[d], random.below(0x4000))?;
            match random.below(5) {
                0 => a.bt(qword_ptr(m), R64[d]),
                1 => a.bts(qword_ptr(m), R64[d]),
                2 => a.lock().btr(qword_ptr(m), R64[d]),
                3 => a.lock().bts(dword_ptr(m), R32[d]),
                _ => a.btc(dword_ptr(m), R32[d]),
            }
        }
        51 => match random.below(3) {
            0 => a.mov(R64[d], ds),
            1 => a.mov(R32[d], fs),
            _ => a.mov(R16[d], gs),
        },
        52 => match random.below(3) {
            0 => a.rdfsbase(R64[d]),
            1 => a.rdgsbase(R64[d]),
            _ => {
                a.mov(R64[d], random.next() as i32 as i64)?;
                a.wrfsbase(R64[d])
            }
        },
        _ => a.popcnt(R64[d], qword_ptr(m)),
    }?;
    // These leave flags undefined, and nobody promises what they are.
    if matches!(kind, 12..=17 | 23 | 24 | 35 | 38 | 49 | 50) { a.cmp(R64[s], R64[d]) } else { Ok(()) }
}

/// A program that stands at `start`.
fn program(random: &mut Random, start: u64) -> (Vec<u8>, u64) {
    let mut a = CodeAssembler::new(64).unwrap();
    let loops = random.below(3) == 0;
    let mut head = a.create_label();
    a.set_label(&mut head).unwrap();
    a.nop().unwrap();
    for _ in 0..1 + random.below(24) {
        while instruction(&mut a, random).is_err() {}
        if random.below(6) == 0 {
            let mut over = a.create_label();
            match random.below(4) {
                0 => a.jne(over),
                1 => a.jb(over),
                2 => a.jg(over),
                _ => a.jmp(over),
            }
            .unwrap();
            while instruction(&mut a, random).is_err() {}
            a.set_label(&mut over).unwrap();
            a.nop().unwrap();
        }
        if random.below(8) == 0 {
            // A call, and a function that returns.
            let (mut function, mut back) = (a.create_label(), a.create_label());
            match random.below(4) {
                0 => a.call(function).unwrap(),
                1 => {
                    a.lea(rax, ptr(function)).unwrap();
                    a.call(rax).unwrap();
                }
                2 => {
                    a.lea(rax, ptr(function)).unwrap();
                    a.mov(qword_ptr(rdi + 3000), rax).unwrap();
                    a.mov(r8d, random.value() as u32).unwrap();
                    a.xor(eax, eax).unwrap();
                    a.call(qword_ptr(rdi + 3000)).unwrap();
                }
                _ => {
                    a.lea(r13, ptr(function)).unwrap();
                    a.call(r13).unwrap();
                }
            }
            if random.below(2) == 0 {
                a.jmp(back).unwrap();
            } else {
                a.lea(r14, ptr(back)).unwrap();
                a.jmp(r14).unwrap();
            }
            a.set_label(&mut function).unwrap();
            while instruction_without_stack(&mut a, random).is_err() {}
            a.mov(r10, r8).unwrap();
            a.mov(r8, r9).unwrap();
            a.mov(r9, qword_ptr(rsp + 8)).unwrap();
            a.ret().unwrap();
            a.set_label(&mut back).unwrap();
            a.nop().unwrap();
        }
    }
    if loops {
        a.sub(dword_ptr(rdi + 2000), 1).unwrap();
        a.jg(head).unwrap();
    }
    // A trace ends before a privileged instruction.
    a.nop().unwrap();
    a.hlt().unwrap();
    let code = a.assemble(start).unwrap();
    let end = start + code.len() as u64 - 1;
    (code, end)
}

fn instruction_without_stack(a: &mut CodeAssembler, random: &mut Random) -> Result<(), iced_x86::IcedError> {
    let d = writable(random);
    match random.below(3) {
        0 => a.add(R64[d], random.value() as i32),
        1 => a.xor(R32[d], dword_ptr(rsi + 8)),
        _ => a.mov(qword_ptr(rdi + 16), R64[d]),
    }
}

fn machine(code: &[u8], start: u64, fill: u64) -> Machine {
    let page = |linear, writable| Page { linear, writable };
    let pages = [
        page(CODE, false),
        page(CODE + 0x1000, false),
        page(DATA, true),
        page(DATA + 0x1000, true),
        page(STACK, true),
        page(STACK + 0x1000, true),
    ];
    let cpuid = x86::cpuid::build("host", 1, 1_000_000_000).unwrap();
    let mut machine = Machine::new(Mode::Long64, cpuid, &pages);
    for (index, chunk) in code.chunks(64).enumerate() {
        let at = start + 64 * index as u64;
        let here = chunk.len().min((0x1000 - at % 0x1000) as usize);
        machine.write(at, &chunk[..here]);
        if here < chunk.len() {
            machine.write(at + here as u64, &chunk[here..]);
        }
    }
    let mut random = Random(fill | 1);
    for page in [DATA, DATA + 0x1000] {
        let bytes: Vec<u8> = (0..4096).map(|_| random.next() as u8).collect();
        machine.write(page, &bytes);
    }
    machine.write(DATA + 2000, &7u32.to_le_bytes());
    machine
}

fn initial(random: &mut Random, start: u64) -> UserState {
    let mut gpr = [0; 16];
    for value in &mut gpr {
        *value = random.value();
    }
    gpr[4] = STACK + 0x1800;
    gpr[6] = DATA;
    gpr[7] = DATA;
    let mut ymm = [[0; 4]; 16];
    for register in &mut ymm {
        for word in register {
            *word = random.next();
        }
    }
    let mut x87 = [0; 160];
    x87[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
    UserState { gpr, rip: start, rflags: 0x202 | random.next() & 0x8d5, mxcsr: 0x1f80, ymm, x87 }
}

fn listing(code: &[u8], start: u64) -> String {
    let mut formatter = IntelFormatter::new();
    let mut text = String::new();
    for insn in Decoder::with_ip(64, code, start, DecoderOptions::NONE) {
        let mut line = String::new();
        formatter.format(&insn, &mut line);
        text.push_str(&format!("{:6x}  {line}\n", insn.ip()));
    }
    text
}

fn memory(machine: &Machine) -> Vec<u8> {
    let mut all = Vec::new();
    for page in [DATA, DATA + 0x1000, STACK, STACK + 0x1000] {
        let mut bytes = vec![0; 4096];
        machine.read(page, &mut bytes);
        all.extend(bytes);
    }
    all
}

/// What differs, if anything does.
fn check(seed: u64) -> Option<String> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    // Sometimes across the edge of a page.
    let start = if random.below(3) == 0 { CODE + 0x1000 - random.below(100) } else { CODE };
    let (code, end) = program(&mut random, start);
    let state = initial(&mut random, start);
    let fill = random.next();
    let (mut plain, mut translated) = (machine(&code, start, fill), machine(&code, start, fill));
    let supervisor = random.below(3) == 0;
    for machine in [&mut plain, &mut translated] {
        if supervisor {
            machine.become_supervisor();
        }
        machine.set_state(&state);
    }
    let mut steps = 0;
    while plain.state().rip != end {
        let outcome = plain.step();
        assert_eq!(outcome, Outcome::Completed, "seed {seed}: interpreter\n{}", listing(&code, start));
        steps += 1;
        assert!(steps < 100_000, "seed {seed}: endless\n{}", listing(&code, start));
    }
    let outcome = translated.run_translated(end);
    let (mut a, mut b) = (plain.state(), translated.state());
    // The image's own MXCSR fields mean nothing.
    for state in [&mut a, &mut b] {
        state.x87[24..32].fill(0);
    }
    let (left, right) = (memory(&plain), memory(&translated));
    if outcome == Outcome::Completed && a == b && left == right {
        return None;
    }
    let mut text = format!("seed {seed}: {outcome:?}\n");
    for (number, (a, b)) in a.gpr.iter().zip(b.gpr).enumerate().filter(|(_, (a, b))| **a != *b) {
        text.push_str(&format!(
            "{:?}: {a:#x} interpreted, {b:#x} translated\n",
            iced_x86::Register::RAX + number as u32
        ));
    }
    let at = left.iter().zip(&right).position(|(a, b)| a != b);
    text.push_str(&format!("flags {:#x} {:#x}, rip {:#x} {:#x}, vectors equal: {}, mxcsr {:#x} {:#x}, x87 equal: {}, memory from {at:x?}\n", a.rflags, b.rflags, a.rip, b.rip, a.ymm == b.ymm, a.mxcsr, b.mxcsr, a.x87 == b.x87));
    text.push_str(&listing(&code, start));
    Some(text)
}

#[test]
fn random_code_does_the_same_interpreted_and_translated() {
    let count = std::env::var("ARNIA_JIT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let first = std::env::var("ARNIA_JIT_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let failures: Vec<String> = (first..first + count).filter_map(check).collect();
    // The shortest says most.
    if let Some(shortest) = failures.iter().min_by_key(|text| text.len()) {
        panic!("{} of {count} differ, among them\n{shortest}", failures.len());
    }
}
