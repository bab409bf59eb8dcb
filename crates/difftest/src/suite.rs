//! Runs many cases and collects what differs.

use crate::case::{Bits, Case, Ending, State};
use crate::compare::{Tolerance, describe, differences, instructions};
use crate::guest::Guest;
use crate::host::{self, HostEnding};
use crate::random::Random;
use crate::{forms, images, sequences};
use iced_x86::{Code, Instruction, Mnemonic, RflagsBits};
use std::collections::BTreeMap;

/// Most failing cases reported of one opcode.
const REPORTED_MAX: usize = 2;
/// Attempts to find operands that go together.
const ATTEMPTS: usize = 20;

/// A mode of AMD's processors that engines do not offer: LDMXCSR refuses it there.
const MISALIGNED_MODE: u32 = 1 << 17;

/// RFLAGS.AC.
const ALIGNMENT_CHECK: u64 = 1 << 18;

/// Vectors of faults (SDM volume 3, table 6-1).
const STACK_FAULT: u32 = 12;
const PROTECTION_FAULT: u32 = 13;
const PAGE_FAULT: u32 = 14;
const ALIGNMENT_FAULT: u32 = 17;

/// How the engine executes instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By its handlers.
    Handlers,
    /// By host functions wherever that is possible, even where there is a handler.
    Natively,
    /// By translated code, as if everything were executed often.
    Translated,
}

/// What to test.
#[derive(Clone, Debug)]
pub struct Suite {
    /// Everything follows from it.
    pub seed: u64,
    /// Cases of each opcode, or sequences in all.
    pub cases: usize,
    /// How the engine is to execute.
    pub way: Way,
    /// With RFLAGS.AC, so that accesses are checked for their alignment.
    pub aligned: bool,
    /// Only opcodes whose name contains this, or one of these between commas.
    pub filter: Option<String>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Cases compared.
    pub compared: usize,
    /// Opcodes compared at least once.
    pub opcodes: usize,
    /// Cases that ended with the same exception on both sides.
    pub trapped: usize,
    /// Opcodes of which a case failed, with descriptions of some.
    pub failures: BTreeMap<String, Failure>,
    /// Cases that the host did not survive: faults of the generator.
    pub unusable: Vec<String>,
}

/// Failed cases of an opcode.
#[derive(Debug, Default)]
pub struct Failure {
    /// How many.
    pub count: usize,
    /// Some of them.
    pub examples: Vec<String>,
}

impl Report {
    /// Whether nothing differs and the generator made no mistake.
    pub fn is_clean(&self) -> bool {
        self.failures.is_empty() && self.unusable.is_empty()
    }
}

impl Report {
    fn add(&mut self, other: Report) {
        self.compared += other.compared;
        self.opcodes += other.opcodes;
        self.trapped += other.trapped;
        self.failures.extend(other.failures);
        self.unusable.extend(other.unusable);
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, failure) in &self.failures {
            writeln!(f, "== {name}: {} cases differ", failure.count)?;
            for example in &failure.examples {
                writeln!(f, "{example}")?;
            }
        }
        for case in &self.unusable {
            writeln!(f, "== the host did not survive:\n{case}")?;
        }
        write!(
            f,
            "{} cases of {} opcodes compared, {} of them exceptions; {} opcodes differ, {} cases unusable",
            self.compared,
            self.opcodes,
            self.trapped,
            self.failures.len(),
            self.unusable.len()
        )
    }
}

impl Suite {
    /// Compares every opcode, one instruction at a time, in 64-bit mode.
    pub fn single_instructions(&self) -> Report {
        self.each(forms::codes(Bits::B64), Bits::B64, forms::case)
    }

    /// Compares every opcode in compatibility mode with 32-bit code.
    pub fn single_instructions_of_32_bits(&self) -> Report {
        self.each(forms::codes(Bits::B32), Bits::B32, forms::case)
    }

    /// Compares near branches, in both modes.
    pub fn branches(&self) -> Report {
        let mut report = self.each(forms::branches(Bits::B64), Bits::B64, forms::branch_case);
        report.add(self.each(forms::branches(Bits::B32), Bits::B32, forms::branch_case));
        report
    }

    /// Compares cases of each opcode.
    fn each(
        &self,
        codes: impl Iterator<Item = Code>,
        bits: Bits,
        make: fn(Code, Bits, &mut Random) -> Option<Case>,
    ) -> Report {
        let mut report = Report::default();
        let mut guest = Guest::new(bits, self.way);
        let mut cases = Vec::new();
        for code in codes.filter(|code| self.selects(*code)) {
            // Each opcode has its own stream, so that a filter does not change its cases.
            let mut random = Random::new(self.seed ^ (code as u64) << 32);
            let before = cases.len();
            cases.extend(
                (0..self.cases).filter_map(|_| (0..ATTEMPTS).find_map(|_| make(code, bits, &mut random))),
            );
            report.opcodes += (cases.len() > before) as usize;
            if cases.len() >= 2048 {
                self.compare(&mut guest, &cases, &mut report);
                cases.clear();
            }
        }
        self.compare(&mut guest, &cases, &mut report);
        report
    }

    /// Compares sequences of instructions, in both modes.
    pub fn sequences(&self) -> Report {
        let mut report = self.sequences_of(Bits::B64);
        report.add(self.sequences_of(Bits::B32));
        report
    }

    fn sequences_of(&self, bits: Bits) -> Report {
        let mut report = Report::default();
        let mut guest = Guest::new(bits, self.way);
        let mut random = Random::new(self.seed);
        let codes: Vec<Code> = forms::codes(bits)
            .filter(|code| self.selects(*code))
            // Later instructions may read undefined flags.
            .filter(|code| self.way == Way::Natively || !leaves_flags_undefined(code.mnemonic()))
            .collect();
        report.opcodes = codes.len();
        for chunk in (0..self.cases).collect::<Vec<_>>().chunks(1024) {
            let cases: Vec<Case> = chunk.iter().map(|_| sequences::case(&codes, bits, &mut random)).collect();
            self.compare(&mut guest, &cases, &mut report);
        }
        report
    }

    /// Compares sequences that switch the alignment check on and off.
    pub fn alignment(&self) -> Report {
        let mut report = Report { opcodes: sequences::ALIGNMENT_OPCODES, ..Report::default() };
        let mut guest = Guest::new(Bits::B64, self.way);
        let mut random = Random::new(self.seed);
        for chunk in (0..self.cases).collect::<Vec<_>>().chunks(1024) {
            let made = chunk.iter().map(|_| sequences::alignment_case(&mut random));
            let cases: Vec<Case> = made.collect::<Result<_, _>>().expect("code of valid instructions");
            self.compare(&mut guest, &cases, &mut report);
        }
        report
    }

    /// Compares FXSAVE, XSAVE and their kin.
    pub fn images(&self) -> Report {
        let mut report = Report { opcodes: 10, ..Report::default() };
        let mut guest = Guest::new(Bits::B64, self.way);
        let mut random = Random::new(self.seed);
        for chunk in (0..self.cases).collect::<Vec<_>>().chunks(1024) {
            let cases: Vec<Case> = chunk.iter().map(|_| images::case(&mut random)).collect();
            self.compare(&mut guest, &cases, &mut report);
        }
        report
    }

    fn compare(&self, guest: &mut Guest, cases: &[Case], report: &mut Report) {
        let flags = if self.aligned { ALIGNMENT_CHECK } else { 0 };
        let with_flags = |case: &Case| {
            let state = State { rflags: case.state.rflags | flags, ..case.state };
            Case { state, ..*case }
        };
        let cases: Vec<Case> = cases.iter().map(with_flags).collect();
        for (case, host) in cases.iter().zip(host::run(&cases)) {
            let host = match host {
                HostEnding::Ended(ending) => ending,
                HostEnding::Died(status) => {
                    report.unusable.push(format!("wait status {status:#x}\n{}", describe(case)));
                    continue;
                }
            };
            if host.state.mxcsr & MISALIGNED_MODE != 0 {
                continue;
            }
            report.compared += 1;
            let insns = instructions(case);
            if std::env::var_os("DIFFTEST_TRACE").is_some() {
                eprintln!("{}", describe(case));
            }
            let Some(text) = self.difference(guest, case, &host, report) else { continue };
            // Of a sequence, the shortest beginning that differs tells most.
            let (case, text) = match insns.len() {
                1 => (*case, text),
                _ => self.shorten(guest, case, &insns).unwrap_or((*case, text)),
            };
            let name = match insns[..] {
                [insn] => format!("{:?}", insn.code()),
                _ => "sequence".into(),
            };
            let failure = report.failures.entry(name).or_default();
            failure.count += 1;
            if failure.examples.len() < REPORTED_MAX {
                failure.examples.push(format!("{}{text}", describe(&case)));
            }
        }
    }

    /// Runs a case in the engine; how it differs from the host, if it does.
    fn difference(
        &self,
        guest: &mut Guest,
        case: &Case,
        host: &Ending,
        report: &mut Report,
    ) -> Option<String> {
        let text = match guest.run(case) {
            Ok(engine) => {
                report.trapped += (host.trapped && engine.trapped) as usize;
                differences(case, host, &engine, self.tolerance(&instructions(case)))
            }
            Err(why) => format!("  engine: {why}\n"),
        };
        (!text.is_empty()).then_some(text)
    }

    /// The shortest beginning of a case that differs, and how.
    fn shorten(&self, guest: &mut Guest, case: &Case, insns: &[Instruction]) -> Option<(Case, String)> {
        let beginnings: Vec<Case> = insns
            .iter()
            .map(|insn| Case { code_len: (insn.next_ip() - case.state.rip) as u32, ..*case })
            .collect();
        beginnings.iter().zip(host::run(&beginnings)).find_map(|(case, host)| {
            let HostEnding::Ended(host) = host else { return None };
            Some((*case, self.difference(guest, case, &host, &mut Report::default())?))
        })
    }

    /// What may differ after these instructions.
    fn tolerance(&self, insns: &[Instruction]) -> Tolerance {
        use Mnemonic::*;
        let mut tolerance = Tolerance::default();
        for insn in insns {
            if self.way != Way::Natively && leaves_flags_undefined(insn.mnemonic()) {
                tolerance.flags |= undefined_flags(insn);
            }
            match insn.mnemonic() {
                // Several accesses, in an order of the processor's choice.
                Fldenv | Fnstenv | Frstor | Fnsave => {
                    tolerance.fault_offset = true;
                    tolerance.memory_after_fault = true;
                }
                // Two reads. Priorities within the class of faults on executing an instruction are the processor's choice
                // (SDM volume 3, table 6-2, note 1).
                Cmpsb | Cmpsw | Cmpsd | Cmpsq => {
                    tolerance.fault_order = &[PAGE_FAULT, ALIGNMENT_FAULT];
                    // One of the two pages that an operand crosses may be looked for after the other operand's.
                    tolerance.either_operand = true;
                }
                // The target's check and the push: Intel's manual checks first (SDM volume 2, CALL), AMD's pushes first
                // (APM volume 3, CALL (Near)).
                Call => tolerance.fault_order = &[STACK_FAULT, PROTECTION_FAULT, PAGE_FAULT, ALIGNMENT_FAULT],
                Fxsave | Fxsave64 | Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 => {
                    tolerance.data = &images::IGNORED;
                }
                // Several roundings: an unmasked exception of an early one hides those of later ones.
                Dpps | Dppd | Vdpps | Vdppd => tolerance.mxcsr_after_fault = 0x3f,
                _ => {}
            }
        }
        tolerance
    }

    fn selects(&self, code: Code) -> bool {
        let name = format!("{code:?}");
        self.filter.as_ref().is_none_or(|filter| filter.split(',').any(|part| name.contains(part)))
    }
}

/// Multiplications, divisions and decimal adjustments: the engine's handlers do not reproduce what their
/// host leaves in the flags that the manual calls undefined.
fn leaves_flags_undefined(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Mul | Imul | Div | Idiv | Aaa | Aas | Aad | Aam | Daa | Das)
}

/// The flags in RFLAGS that the manual says an instruction leaves undefined.
fn undefined_flags(insn: &Instruction) -> u64 {
    use RflagsBits as F;
    let bits = [(F::CF, 0), (F::PF, 2), (F::AF, 4), (F::ZF, 6), (F::SF, 7), (F::OF, 11)];
    let undefined = bits.iter().filter(|(flag, _)| insn.rflags_undefined() & flag != 0);
    undefined.fold(0, |flags, (_, bit)| flags | 1 << bit)
}
