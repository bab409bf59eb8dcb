//! What translated code keeps in the vCPU besides registers.

use super::cache::Voided;
use crate::fault::Fault;
use crate::mmu::tlb::MmuIndex;

/// Entries of the tables that indirect branches go through: the low 16 bits of the target.
pub(crate) const TARGETS: usize = 1 << 16;
/// Entries of each instruction TLB: enough for the text of a kernel, whose functions call each other across all
/// of it.
pub(crate) const PAGES: usize = 4096;
/// How many entries of the user's are remembered one by one, so that a switch need not empty all.
const NOTED: usize = 128;
/// No exit to link.
pub(crate) const NO_EXIT: u32 = u32::MAX;

/// As much as an instruction reads at once.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Bytes(pub(crate) [u8; 32]);

/// Shared between translated code and its helpers.
#[repr(C)]
pub(crate) struct JitState {
    /// Linear address of the page that executes.
    pub(crate) page: u64,
    pub(crate) signals: *const crate::signals::Signals,
    /// RFLAGS without the status flags, which are the host's.
    pub(crate) system_flags: u64,
    /// Which instruction calls a helper: see [`Site`].
    pub(crate) site: u32,
    /// The handler of an instruction has changed the course of the guest.
    pub(crate) handled: bool,
    /// Where translated code was entered.
    pub(crate) entered: u64,
    /// The exit that was taken, if it can be linked.
    pub(crate) exit: u32,
    /// That exit leads to a careful translation.
    pub(crate) careful: u8,
    /// Which guess was wrong: its byte offset in the bank, and above 16 bits the length of the range.
    pub(crate) guess: u32,
    /// Where the guest was when it left translated code.
    pub(crate) exit_target: u64,
    /// The guest's vector registers and MXCSR are in the host's.
    pub(crate) simd_loaded: u8,
    /// RAX while flags are in AX.
    pub(crate) saved_rax: u64,
    /// AX with flags in it.
    pub(crate) saved_flags: u64,
    /// The target of an indirect call while the return address is pushed.
    pub(crate) target: u64,
    /// Host registers while a helper runs.
    pub(crate) host: [u64; 16],
    /// What an instruction reads from two pages.
    pub(crate) across: Bytes,
    /// Host flags while a helper runs, or as a trace left them.
    pub(crate) flags: u64,
    /// The host's stack pointer at entry.
    pub(crate) host_rsp: u64,
    /// How far down the return stack may go: see [`Signals::arm`](crate::signals::Signals::arm).
    pub(crate) return_stack_end: u64,
    /// Where a return goes when nothing is on the return stack, for the present privilege.
    pub(crate) underflow: u64,
    /// The same for each [`MmuIndex`].
    pub(crate) underflows: [u64; 3],
    /// The vCPU itself.
    pub(crate) cpu: *mut crate::cpu::Cpu,
    pub(crate) host_mxcsr: u32,
    /// Which kind of code the supervisor's banks know pages of, and which the user's: see [`super::Key::kind_of_code`].
    pub(crate) kinds: [u8; 2],
    /// A supervisor's bank has a page in the lower half of the address space.
    pub(crate) supervisor_lower: bool,
    /// Leave translated code after every trace that is not linked, and with every fault: for
    /// tests and lock-step.
    pub(crate) always_leave: bool,
    /// How many translations became void before those that were seen to.
    pub(crate) voided_seen: u64,
    /// The tables have been set up.
    pub(crate) ready: bool,
    /// Address of the routine that enters translated code.
    pub(crate) enter: u64,
    /// Address of the routine that leaves it with nothing to link.
    pub(crate) leave: u64,
    pub(crate) fast: super::fast::Fast,
    /// A fault that a helper met.
    pub(crate) fault: Option<Fault>,
    /// For each [`MmuIndex`], which linear pages are known to lead where: page address or 1.
    pub(crate) page_tags: [[u64; PAGES]; 3],
    /// Which entries of the user's have something, and how many there are: more than there is room for means any.
    noted: [u16; NOTED],
    noted_count: usize,
    /// For each [`MmuIndex`], the identity of that page's contents: see [`super::page_id`].
    pub(crate) page_ids: [[u32; PAGES]; 3],
    /// For each [`MmuIndex`], code addresses by the low 16 bits of the linear address.
    pub(crate) targets: [[u64; TARGETS]; 3],
}

/// A linear page and the identity of its contents.
#[derive(Clone, Copy)]
pub(crate) struct CodePage {
    tag: u64,
    id: u32,
}

/// An instruction that may call a helper, packed into one word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site(pub(crate) u32);

impl Site {
    /// `offset` is the instruction's in its page, `len` the operand's length in bytes (a power of two up
    /// to 32).
    pub(crate) fn new(
        offset: u16,
        mapping: super::mapping::Mapping,
        len: usize,
        write: bool,
        aligned: bool,
    ) -> Site {
        let len = len.trailing_zeros();
        Site(offset as u32 | mapping.bits() << 12 | len << 24 | (write as u32) << 27 | (aligned as u32) << 28)
    }
    /// The same in a trace that relies on what it checked before.
    pub(crate) fn with_guesses(self) -> Site {
        Site(self.0 | 1 << 29)
    }
    /// The same where the trace ends with the instruction.
    pub(crate) fn ending(self) -> Site {
        Site(self.0 | 1 << 30)
    }
    pub(crate) fn ends(self) -> bool {
        self.0 & 1 << 30 != 0
    }
    pub(crate) fn has_guesses(self) -> bool {
        self.0 & 1 << 29 != 0
    }
    pub(crate) fn offset(self) -> u64 {
        (self.0 & 0xfff) as u64
    }
    pub(crate) fn mapping(self) -> super::mapping::Mapping {
        super::mapping::Mapping::from_bits(self.0 >> 12 & 0xfff)
    }
    pub(crate) fn len(self) -> usize {
        1 << (self.0 >> 24 & 7)
    }
    pub(crate) fn writes(self) -> bool {
        self.0 & 1 << 27 != 0
    }
    pub(crate) fn aligned(self) -> bool {
        self.0 & 1 << 28 != 0
    }
}

impl JitState {
    /// Forgets which linear pages lead where.
    pub(crate) fn forget_pages(&mut self) {
        for tags in &mut self.page_tags {
            tags.fill(1);
        }
        self.noted_count = 0;
    }

    /// Forgets where pages in the lower half of the address space lead.
    pub(crate) fn forget_lower_pages(&mut self) {
        let tags = &mut self.page_tags[MmuIndex::User as usize];
        match std::mem::take(&mut self.noted_count) {
            count @ 0..=NOTED => self.noted[..count].iter().for_each(|&index| tags[index as usize] = 1),
            _ => tags.fill(1),
        }
        if std::mem::take(&mut self.supervisor_lower) {
            self.forget_pages();
        }
    }

    /// Appends which pages of a user lead where; false if that is not known.
    pub(crate) fn save_lower_pages(&self, pages: &mut Vec<CodePage>) -> bool {
        let user = MmuIndex::User as usize;
        if self.noted_count > NOTED || self.supervisor_lower {
            return false;
        }
        for &index in &self.noted[..self.noted_count] {
            let (tag, id) = (self.page_tags[user][index as usize], self.page_ids[user][index as usize]);
            if tag != 1 && tag >> 63 == 0 {
                pages.push(CodePage { tag, id });
            }
        }
        true
    }

    /// Notes them again.
    pub(crate) fn restore_lower_pages(&mut self, pages: &[CodePage]) {
        pages.iter().for_each(|page| self.note_page(MmuIndex::User, page.tag, page.id));
    }

    /// Forgets where one page leads.
    pub(crate) fn forget_page(&mut self, linear: u64) {
        for tags in &mut self.page_tags {
            tags[(linear >> 12) as usize % PAGES] = 1;
        }
    }

    /// Sends all indirect branches out.
    pub(crate) fn forget_targets(&mut self) {
        let miss = self.leave;
        for targets in &mut self.targets {
            targets.fill(miss);
        }
    }

    /// Sends indirect branches to a translation out.
    pub(crate) fn forget_target(&mut self, voided: Voided) {
        let miss = self.leave;
        // Which linear pages led there is not known.
        for targets in &mut self.targets {
            for entry in targets.iter_mut().skip(voided.offset as usize).step_by(1 << 12) {
                if *entry == voided.verified {
                    *entry = miss;
                }
            }
        }
    }

    /// Notes that a linear page leads to contents `id`.
    pub(crate) fn note_page(&mut self, mmu: MmuIndex, page: u64, id: u32) {
        self.supervisor_lower |= mmu != MmuIndex::User && page >> 63 == 0;
        let index = (page >> 12) as usize % PAGES;
        if mmu == MmuIndex::User && self.page_tags[mmu as usize][index] == 1 {
            if let Some(noted) = self.noted.get_mut(self.noted_count) {
                *noted = index as u16;
            }
            self.noted_count += 1;
        }
        self.page_tags[mmu as usize][index] = page;
        self.page_ids[mmu as usize][index] = id;
    }

    /// The contents that a linear page is known to lead to.
    pub(crate) fn known_page(&self, mmu: MmuIndex, page: u64) -> Option<u32> {
        let index = (page >> 12) as usize % PAGES;
        (self.page_tags[mmu as usize][index] == page).then_some(self.page_ids[mmu as usize][index])
    }

    /// Notes where the code of a linear address is.
    pub(crate) fn note_target(&mut self, mmu: MmuIndex, linear: u64, code: u64) {
        self.targets[mmu as usize][linear as usize % TARGETS] = code;
    }
}
