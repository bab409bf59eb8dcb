//! The translator: hot guest code becomes host code.
//!
//! ```text
//! guest bytes ── decode ──> instructions of a trace ── liveness ──> which flags matter where
//!      │                                             ── mapping ───> which guest register lives where
//!      └────────────── translate ──> host code ── cache ──> found by physical address, linked, unmade
//! ```
//!
//! The guest's instruction set is the host's, so an instruction is re-encoded, not re-invented
//! ([`translator`]): guest registers live in host registers ([`mapping`]), host flags carry guest flags,
//! and a memory operand is replaced by `[S0]` after an inline look-up in the software TLB. What is rare
//! or privileged executes by its interpreter handler, either called from translated code or after
//! leaving it; so does every instruction that meets a device, a page edge or watched code.
//!
//! A trace is position-independent in guest-linear space: it knows its physical page and offsets, and
//! takes the linear page it runs at from the vCPU. It is entered directly from code in the same page;
//! any other way in passes the target's linear address to an entry that verifies, against a small
//! instruction TLB, that this linear page leads to the physical page that the trace was made from. So
//! indirect branches need no check where they are made, and nothing is retranslated or unlinked when
//! the guest switches address spaces.
//!
//! Translations depend on their bytes and a [`cache::Key`]: privilege, the size of code, and whether vector
//! instructions may execute as themselves. Code of 32 bits is translated where its segments are flat; it executes in
//! 64-bit mode like all other, with addresses cut to 32 bits, and each of its accesses is looked up by itself. All vCPUs share them ([`cache`]); the vCPU is addressed through GS.
//! Events are polled at trace heads: see [`crate::signals`].

pub(crate) mod arena;
pub(crate) mod cache;
#[cfg(test)]
mod compat_tests;
mod emit;
pub(crate) mod fast;
#[cfg(test)]
mod golden;
mod groups;
pub(crate) mod guessing;
pub(crate) mod liveness;
mod mapping;
#[cfg(test)]
mod mix_up_tests;
mod passage;
mod reencode;
pub(crate) mod runtime;
mod source;
pub(crate) mod state;
mod strings;
pub(crate) mod stubs;
#[cfg(test)]
mod tests;
pub(crate) mod trace;
pub(crate) mod translator;
pub(crate) mod way;

use crate::cpu::{BlockKey, Cpu};
use crate::mmu::tlb::MmuIndex;
use cache::Key;
use x86::reg::{cr0, cr4, xcr0};

/// How often a block is interpreted before its trace is translated.
pub(crate) const HOT: u32 = 16;
/// Frame numbers that page identities have room for.
const FRAMES: u64 = 1 << 28;

impl Key {
    /// For the supervisor that may touch user pages: SMAP is on, so CLAC ends that.
    const SMAP: u8 = 1;
    const SIMD: u8 = 1 << 2;
    const AVX: u8 = 1 << 3;
    /// For the user: CR4.TSD keeps the TSC from it.
    const TSD: u8 = 1 << 4;
    /// For 32-bit code in flat segments, see [`Cpu::is_flat`].
    const COMPAT: u8 = 1 << 5;
    const CAREFUL: u8 = 1 << 6;

    /// The privilege of data accesses.
    pub(crate) fn mmu(self) -> MmuIndex {
        match self.0 & 3 {
            0 => MmuIndex::Kernel,
            1 => MmuIndex::User,
            // With and without SMAP.
            _ => MmuIndex::KernelAc,
        }
    }

    /// The key after STAC or CLAC, if that is known: `None` for a user, who must not.
    pub(crate) fn with_ac(self, ac: bool) -> Option<Key> {
        const WITHOUT_SMAP: u8 = MmuIndex::KernelAc as u8;
        const WITH_SMAP: u8 = MmuIndex::KernelAc as u8 | Key::SMAP;
        let privilege = match (self.0 & 3, ac) {
            (WITHOUT_SMAP, _) => WITHOUT_SMAP,
            (privilege, _) if privilege == MmuIndex::User as u8 => return None,
            (_, true) => WITH_SMAP,
            (_, false) => MmuIndex::Kernel as u8,
        };
        Some(Key(self.0 & !3 | privilege))
    }

    /// Whether SSE instructions execute as themselves: they are enabled, and no exception of theirs is
    /// unmasked, so that none can happen on the host.
    pub(crate) fn simd(self) -> bool {
        self.0 & Key::SIMD != 0
    }

    /// Whether RDTSC needs no check.
    pub(crate) fn tsc(self) -> bool {
        self.0 & Key::TSD == 0
    }

    /// Whether calls and returns of the guest are calls and returns of the host. Not where STAC allows a
    /// supervisor what it may not otherwise: CLAC would find the callers' translations on the return stack.
    pub(crate) fn uses_return_stack(self) -> bool {
        self.0 & 3 != MmuIndex::KernelAc as u8 | Key::SMAP
    }

    /// Whether each access is checked for itself: see [`groups`].
    pub(crate) fn careful(self) -> bool {
        self.0 & Key::CAREFUL != 0
    }

    /// Whether the code is of 32 bits: protected or compatibility mode, in flat segments.
    pub(crate) fn compat(self) -> bool {
        self.0 & Key::COMPAT != 0
    }

    /// Whether the code is a user's.
    fn is_user(self) -> bool {
        self.mmu() == MmuIndex::User
    }

    /// How wide addresses and the default operand of the stack are, in bytes.
    pub(crate) fn width(self) -> u8 {
        if self.compat() { 4 } else { 8 }
    }

    /// What its blocks are distinguished by.
    pub(crate) fn block_key(self) -> BlockKey {
        BlockKey::new(self.width() * 8, self.is_user())
    }

    /// What decides, apart from privilege, which translations of a page may execute: vector instructions and the size of code.
    fn kind_of_code(self) -> u8 {
        self.0 & (Key::SIMD | Key::AVX | Key::COMPAT)
    }

    pub(crate) fn with_care(self) -> Key {
        Key(self.0 | Key::CAREFUL)
    }

    pub(crate) fn without_care(self) -> Key {
        Key(self.0 & !Key::CAREFUL)
    }

    /// Whether AVX instructions do.
    pub(crate) fn avx(self) -> bool {
        self.0 & Key::AVX != 0
    }
}

/// What translations for the vCPU's present state depend on.
#[inline]
pub(crate) fn key_of(cpu: &Cpu) -> Key {
    /// All six exceptions masked (SDM vol. 1, §10.2.3).
    const MASKS: u32 = 0x1f80;
    let sys = &cpu.sys;
    let mut key = cpu.mode.data as u8;
    if cpu.mode.data == MmuIndex::KernelAc && sys.cr4 & cr4::SMAP != 0 {
        key |= Key::SMAP;
    }
    if sys.cr4 & cr4::TSD != 0 && cpu.mode.data == MmuIndex::User {
        key |= Key::TSD;
    }
    if !cpu.mode.is_64() {
        key |= Key::COMPAT;
    }
    let enabled = sys.cr0 & (cr0::EM | cr0::TS) == 0 && sys.cr4 & cr4::OSFXSR != 0;
    if enabled && cpu.regs.mxcsr & MASKS == MASKS {
        key |= Key::SIMD;
        let both = xcr0::SSE | xcr0::AVX;
        if sys.cr4 & cr4::OSXSAVE != 0 && sys.xcr0 & both == both {
            key |= Key::AVX;
        }
    }
    Key(key)
}

/// The identity of a page's contents, as the instruction TLB holds it.
pub(crate) fn page_id(gpa: u64, key: Key) -> u32 {
    (gpa >> 12 & (FRAMES - 1)) as u32 | ((key.without_care().0 >> 2) as u32) << 28
}

/// The physical address of the page with an identity.
pub(crate) fn page_of(id: u32) -> u64 {
    (id as u64 & (FRAMES - 1)) << 12
}

impl state::JitState {
    /// Whether all that is known of linear pages is of 64-bit code.
    fn is_all_64(&self) -> bool {
        self.kinds.iter().all(|kind| kind & Key::COMPAT == 0)
    }
}
