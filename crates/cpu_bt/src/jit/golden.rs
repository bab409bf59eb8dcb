//! Host code of chosen snippets, kept in files beside this one: a change of code generation shows as a
//! difference of text. `ARNIA_BLESS=1 cargo test --package cpu_bt golden` writes them anew.

use super::stubs::{Stubs, jit};
use crate::cpu::Cpu;
use crate::event_trace::show;
use crate::mmu::guess::{GUESSES, Guess, GuessBank};
use crate::mmu::tlb::{ENTRIES, Entry, Tlb};
use crate::options::Options;
use crate::regs::Regs;
use crate::testing::{Machine, Mode, Page};
use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions, FlowControl, IcedError, Instruction, OpKind};
use std::fmt::Write;
use std::mem::offset_of;
use std::path::PathBuf;

const CODE: u64 = 0x40_0000;

type Snippet = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const SNIPPETS: [(&str, Snippet); 18] = [
    ("add-registers", |a| a.add(rax, rbx)),
    ("add-in-memory-registers", |a| a.add(r13, r14)),
    ("load", |a| a.mov(rax, qword_ptr(rsi + 8))),
    ("load-keeping-flags", |a| {
        a.cmp(rax, rbx)?;
        a.mov(rcx, qword_ptr(rsi))?;
        a.adc(rcx, 0)
    }),
    ("store", |a| a.mov(dword_ptr(rdi + rcx * 4), eax)),
    ("read-modify-write", |a| a.add(qword_ptr(rsi), 1)),
    ("locked", |a| a.lock().xadd(dword_ptr(rsi), eax)),
    ("thread-local", |a| a.mov(rax, qword_ptr(0x28).fs())),
    ("push-pop", |a| {
        a.push(rbp)?;
        a.mov(rbp, rsp)?;
        a.pop(rbp)
    }),
    ("sse", |a| a.addsd(xmm0, qword_ptr(rsi))),
    ("aligned-vector", |a| a.movaps(xmmword_ptr(rdi), xmm3)),
    ("divide", |a| a.div(rcx)),
    ("branch", |a| {
        let mut over = a.create_label();
        a.test(eax, eax)?;
        a.jne(over)?;
        a.mov(ecx, 1)?;
        a.set_label(&mut over)?;
        a.nop()
    }),
    ("loop", |a| {
        let mut head = a.create_label();
        a.set_label(&mut head)?;
        a.add(rax, qword_ptr(rsi))?;
        a.add(rsi, 8)?;
        a.cmp(rsi, rdi)?;
        a.jne(head)
    }),
    ("supervisor-loop", |a| {
        let mut head = a.create_label();
        a.set_label(&mut head)?;
        a.add(rax, qword_ptr(rsi))?;
        a.add(rsi, 8)?;
        a.cmp(rsi, rdi)?;
        a.jne(head)
    }),
    ("supervisor-load", |a| a.mov(rax, qword_ptr(rsi + 8))),
    ("call", |a| a.call(CODE + 0x800)),
    ("return", |a| a.ret()),
];

#[test]
fn golden_code_is_as_before() {
    if !std::arch::is_x86_feature_detected!("bmi2") || !std::arch::is_x86_feature_detected!("avx") {
        eprintln!("skipped: the files were made on a host with BMI2 and AVX");
        return;
    }
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/jit/golden");
    let bless = std::env::var_os("ARNIA_BLESS").is_some();
    let mut changed = Vec::new();
    for (name, snippet) in SNIPPETS {
        let text = translate(snippet, name.starts_with("supervisor"));
        let path = folder.join(format!("{name}.txt"));
        if bless {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &text).unwrap();
        } else if std::fs::read_to_string(&path).unwrap_or_default() != text {
            changed.push(format!("--- {name}, now:\n{text}"));
        }
    }
    assert!(
        changed.is_empty(),
        "the code of {} snippets has changed; if that is meant, run `ARNIA_BLESS=1 cargo test --package cpu_bt \
         golden` and look at the difference\n{}",
        changed.len(),
        changed.join("\n")
    );
}

/// The snippet and its host code, with names for addresses.
fn translate(snippet: Snippet, supervisor: bool) -> String {
    let mut a = CodeAssembler::new(64).unwrap();
    snippet(&mut a).unwrap();
    let written = a.assemble(CODE).unwrap();
    let mut code = written.clone();
    // HLT ends the trace.
    code.push(0xf4);
    let pages = [Page { linear: CODE, writable: false }];
    let cpuid = x86::cpuid::build("x86-64-v3", 1, 1_000_000_000).unwrap();
    let mut machine = Machine::with_options(Mode::Long64, cpuid, &pages, &Options::default());
    machine.write(CODE, &code);
    if supervisor {
        machine.become_supervisor();
    }
    let (at, host, stubs) = machine.host_code(CODE);
    let mut text = String::new();
    for insn in Decoder::with_ip(64, &written, 0, DecoderOptions::NONE) {
        writeln!(text, "; {}", show(&insn)).unwrap();
    }
    text.push_str(&listing(at, &host, &stubs));
    text
}

fn listing(at: u64, host: &[u8], stubs: &Stubs) -> String {
    let insns: Vec<Instruction> = Decoder::with_ip(64, host, at, DecoderOptions::NONE).into_iter().collect();
    let end = at + host.len() as u64;
    let inside = |target: u64| (at..end).contains(&target);
    let mut targets: Vec<u64> = insns.iter().filter_map(branch_target).filter(|t| inside(*t)).collect();
    targets.sort_unstable();
    targets.dedup();
    let label = |target: u64| format!("L{}", targets.iter().position(|t| *t == target).unwrap());
    let mut text = String::new();
    for insn in &insns {
        if targets.contains(&insn.ip()) {
            writeln!(text, "{}:", label(insn.ip())).unwrap();
        }
        if insn.mnemonic() == iced_x86::Mnemonic::Nop || insn.mnemonic() == iced_x86::Mnemonic::Xchg {
            // Fills up to a boundary.
            continue;
        }
        let shown = show(insn);
        match branch_target(insn) {
            Some(target) => {
                let operation = shown.split(' ').next().unwrap();
                let to = match () {
                    _ if inside(target) => label(target),
                    _ if target == stubs.leave => "leave".into(),
                    _ if target == stubs.leave_to_link => "leave_to_link".into(),
                    _ if target == stubs.slow => "slow".into(),
                    _ if target == stubs.callout => "callout".into(),
                    _ if target == stubs.load_simd => "load_simd".into(),
                    _ if stubs.guess.contains(&target) => "guess".into(),
                    _ => "elsewhere".into(),
                };
                writeln!(text, "    {operation} {to}").unwrap();
            }
            None => writeln!(text, "    {}", named(insn, shown)).unwrap(),
        }
    }
    text
}

fn branch_target(insn: &Instruction) -> Option<u64> {
    let branches =
        !matches!(insn.flow_control(), FlowControl::Next) && insn.op0_kind() == OpKind::NearBranch64;
    branches.then(|| insn.near_branch_target())
}

/// Replaces the distance from the start of the vCPU by a name.
fn named(insn: &Instruction, shown: String) -> String {
    if insn.segment_prefix() != iced_x86::Register::GS {
        return shown;
    }
    let displacement = insn.memory_displacement64() as i32;
    match name(displacement) {
        Some(name) => shown.replace(&format!("0x{displacement:X}]"), &format!("{name}]")),
        None => shown,
    }
}

fn name(displacement: i32) -> Option<String> {
    macro_rules! fields {
        ($($field:ident),*) => {
            [$((jit!($field), stringify!($field))),*]
        };
    }
    let fields = fields!(
        page,
        signals,
        system_flags,
        site,
        exit,
        careful,
        guess,
        host_rsp,
        simd_loaded,
        saved_rax,
        target,
        flags,
        page_tags,
        page_ids,
        targets
    );
    if let Some((_, name)) = fields.iter().find(|(at, _)| *at == displacement) {
        return Some((*name).into());
    }
    let registers = (offset_of!(Cpu, regs) + offset_of!(Regs, r)) as i32;
    if (registers..registers + 18 * 8).contains(&displacement) {
        return Some(format!("guest_r{}", (displacement - registers) / 8));
    }
    let segments = (offset_of!(Cpu, regs) + offset_of!(Regs, seg)) as i32;
    if (segments..segments + (7 * size_of::<x86::Segment>()) as i32).contains(&displacement) {
        return Some(format!("segments+{}", displacement - segments));
    }
    let array = size_of::<[Entry; ENTRIES]>() as i32;
    for (table, at) in [("read", offset_of!(Tlb, read)), ("write", offset_of!(Tlb, write))] {
        let start = (offset_of!(Cpu, tlb) + at) as i32;
        if (start..start + 3 * array).contains(&displacement) {
            let (bank, rest) = ((displacement - start) / array, (displacement - start) % array);
            return Some(format!("tlb_{table}{bank}+{rest}"));
        }
    }
    // For each privilege the guesses for reads, then those for writes.
    let bank = size_of::<GuessBank>() as i32;
    let start = (offset_of!(Cpu, tlb) + offset_of!(Tlb, guesses)) as i32;
    if (start..start + 6 * bank).contains(&displacement) {
        let (bank, rest) = ((displacement - start) / bank, (displacement - start) % bank);
        let (table, rest) = match rest as usize - offset_of!(GuessBank, entries) {
            rest if rest < GUESSES * size_of::<Guess>() => ("guess", rest),
            rest => ("guesses", rest),
        };
        return Some(format!("{table}_{}{}+{rest}", ["read", "write"][bank as usize % 2], bank / 2));
    }
    // Banks of the instruction TLB.
    for (table, at, width) in [("page_tags", jit!(page_tags), 8), ("page_ids", jit!(page_ids), 4)] {
        let bank = super::state::PAGES as i32 * width;
        if (at..at + 3 * bank).contains(&displacement) {
            return Some(format!("{table}{}", (displacement - at) / bank));
        }
    }
    let targets = jit!(targets);
    let bank = super::state::TARGETS as i32 * 8;
    (targets..targets + 2 * bank)
        .contains(&displacement)
        .then(|| format!("targets{}", (displacement - targets) / bank))
}
