//! What translated code has to know of the system's registers to execute SYSCALL, SYSRET and RDTSC by
//! itself, in the form in which it needs it.

use super::state::TARGETS;
use crate::cpu::{BlockKey, Cpu};
use crate::mmu::tlb::MmuIndex;
use crate::system::syscall;
use x86::Segment;
use x86::reg::{cr4, efer, rflags};

/// The registers of a system that uses SYSCALL as 64-bit ones do; any other leaves the instructions to
/// their handlers.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Fast {
    /// SYSCALL is enabled, from 64-bit code, and its mask clears all status flags, IF, TF and AC. Neither the user nor
    /// the kernel executed 32-bit code last.
    pub(crate) ready: u8,
    /// [`MmuIndex`] after SYSCALL.
    pub(crate) kernel_mmu: u8,
    /// [`BlockKey`] after SYSCALL and after SYSRET.
    pub(crate) kernel_key: u8,
    pub(crate) user_key: u8,
    /// Always 1: adding 0 to it clears all status flags.
    pub(crate) one: u32,
    /// Where the code addresses of the kernel are, from the start of the table.
    pub(crate) kernel_targets: u64,
    pub(crate) lstar: u64,
    /// The flags that stay at SYSCALL.
    pub(crate) keep: u64,
    /// From the host's TSC to the guest's.
    pub(crate) tsc_offset: u64,
    pub(crate) kernel_cs: Segment,
    pub(crate) kernel_ss: Segment,
    pub(crate) user_cs: Segment,
    pub(crate) user_ss: Segment,
}

/// The flags that SYSRET takes from R11: all defined ones but RF and VM (SDM vol. 2B, SYSRET).
pub(crate) const SYSRET_FLAGS: u64 = 0x3c_7fd7;

impl Cpu {
    /// Keeps [`Fast`] up to date. Call after any change of EFER, STAR, LSTAR, SFMASK, CR0.PG, CR4.SMAP
    /// and the TSC's offset.
    pub(crate) fn update_fast(&mut self) {
        let sys = &self.sys;
        let masked = rflags::STATUS | rflags::IF | rflags::TF | rflags::AC;
        let mmu = if sys.cr4 & cr4::SMAP != 0 { MmuIndex::Kernel } else { MmuIndex::KernelAc };
        let usable = sys.efer & (efer::SCE | efer::LMA) == efer::SCE | efer::LMA;
        let (kernel_cs, kernel_ss) = syscall::kernel_segments(sys.star, true);
        let (user_cs, user_ss) = syscall::user_segments(sys.star, true);
        self.jit.fast = Fast {
            ready: (usable && self.jit.is_all_64() && sys.sfmask & masked == masked) as u8,
            kernel_mmu: mmu as u8,
            kernel_key: BlockKey::new(64, false).0,
            user_key: BlockKey::new(64, true).0,
            one: 1,
            kernel_targets: (mmu as usize * TARGETS * 8) as u64,
            lstar: sys.lstar,
            keep: !(sys.sfmask | rflags::RF),
            tsc_offset: self.vm.clock.tsc_offset().wrapping_add(sys.tsc_adjust),
            kernel_cs,
            kernel_ss,
            user_cs,
            user_ss,
        };
    }
}
