//! Page-table walks (SDM vol. 3A, chapter 4).

use crate::cpu::{Cpu, Paging};
use crate::fault::{Fault, Result};
use crate::mmu::tlb::MmuIndex;
use x86::Vector;
use x86::exception::page_fault;
use x86::paging::{self, ACCESSED, ADDRESS, DIRTY, GLOBAL, NO_EXECUTE, PAGE_SIZE, PRESENT, USER, WRITABLE};
use x86::reg::{cr0, cr4, efer, rflags};

/// What an access wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Fetch,
}

/// Where a linear page is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Translation {
    /// Guest-physical address of the byte asked for.
    pub(crate) gpa: u64,
    /// Size of the page that maps it.
    pub(crate) page_size: u64,
    /// A write needs no further check and the dirty bit is set.
    pub(crate) writable: bool,
    pub(crate) global: bool,
}

/// An entry on the way down, for setting its accessed and dirty bits once the access is allowed.
#[derive(Clone, Copy)]
struct Step {
    gpa: u64,
    entry: u64,
    wide: bool,
}

/// The rights that the entries on the way have granted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rights {
    pub(crate) user: bool,
    pub(crate) writable: bool,
    pub(crate) no_execute: bool,
}

/// Why a walk has no translation.
enum Stopped {
    Fault(Fault),
    /// Another processor changed an entry while its accessed or dirty bit was to be set.
    Changed,
}

impl From<Fault> for Stopped {
    fn from(fault: Fault) -> Stopped {
        Stopped::Fault(fault)
    }
}

type Walked = std::result::Result<Translation, Stopped>;

/// Walks that are begun anew because entries changed under them. Beyond, somebody does nothing but change
/// them, and may as well have done so just after the bit was set.
const TRIES_MAX: u32 = 1000;

impl Cpu {
    /// Translates one linear address for an access, as page tables, control registers and privilege
    /// have it, and sets accessed and dirty bits.
    pub(crate) fn translate(&mut self, linear: u64, access: Access, mmu: MmuIndex) -> Result<Translation> {
        if self.mode.paging == Paging::Long
            && let Some(page) = self.pages.find(linear)
            && self.allows(page.rights, access, mmu)
            && (page.dirty || access != Access::Write)
        {
            let writable = page.dirty && self.may_write(page.rights, mmu);
            let gpa = page.gpa | linear & 0xfff;
            return Ok(Translation { gpa, page_size: page.size, writable, global: page.global });
        }
        self.vm.counters.walks.add();
        // What a kept entry forbids may be allowed by now: only the tables can tell.
        for attempt in 0.. {
            let walked = match self.mode.paging {
                Paging::None => {
                    let gpa = linear & 0xffff_ffff;
                    return Ok(Translation { gpa, page_size: 1 << 30, writable: true, global: false });
                }
                Paging::Long if !paging::is_canonical(linear) => return Err(Fault::GP0),
                Paging::Long => self.walk_wide(linear, self.sys.cr3 & ADDRESS, 3, access, mmu, attempt),
                Paging::Pae => {
                    let linear = linear & 0xffff_ffff;
                    let pointer = self.sys.pdpte[(linear >> 30) as usize];
                    if pointer & PRESENT == 0 {
                        return Err(self.page_fault(linear, access, mmu, 0));
                    }
                    self.walk_wide(linear, pointer & ADDRESS, 1, access, mmu, attempt)
                }
                Paging::Bits32 => self.walk_narrow(linear & 0xffff_ffff, access, mmu, attempt),
            };
            match walked {
                Ok(translation) => return Ok(translation),
                Err(Stopped::Fault(fault)) => return Err(fault),
                Err(Stopped::Changed) => std::hint::spin_loop(),
            }
        }
        unreachable!("the last attempt does not ask whether entries changed")
    }

    /// Whether the second level has the page of `linear` and allows the access.
    pub(super) fn is_known(&self, linear: u64, access: Access, mmu: MmuIndex) -> bool {
        self.mode.paging == Paging::Long
            && self.pages.find(linear).is_some_and(|page| {
                self.allows(page.rights, access, mmu) && (page.dirty || access != Access::Write)
            })
    }

    /// Whether rights allow an access (SDM vol. 3A, §4.6.1).
    #[inline(always)]
    fn allows(&self, rights: Rights, access: Access, mmu: MmuIndex) -> bool {
        match (mmu, access) {
            (MmuIndex::User | MmuIndex::UserAligned, Access::Read) => rights.user,
            (MmuIndex::User | MmuIndex::UserAligned, Access::Write) => rights.user && rights.writable,
            (MmuIndex::User | MmuIndex::UserAligned, Access::Fetch) => rights.user && !rights.no_execute,
            (_, Access::Fetch) => {
                let smep = self.sys.cr4 & cr4::SMEP != 0;
                !rights.no_execute && (!rights.user || !smep)
            }
            // Index `Kernel` is used exactly when SMAP forbids user pages or for implicit accesses.
            (MmuIndex::Kernel, _) if rights.user && self.sys.cr4 & cr4::SMAP != 0 => false,
            (_, Access::Read) => true,
            (_, Access::Write) => self.may_write(rights, mmu),
        }
    }

    /// Whether writing is allowed where reading is: without CR0.WP a supervisor always may.
    #[inline(always)]
    fn may_write(&self, rights: Rights, mmu: MmuIndex) -> bool {
        rights.writable || (!mmu.is_user() && self.sys.cr0 & cr0::WP == 0)
    }

    /// Walks tables of 64-bit entries from `level` (3 is the PML4) down.
    fn walk_wide(
        &mut self,
        linear: u64,
        mut table: u64,
        level: u32,
        access: Access,
        mmu: MmuIndex,
        attempt: u32,
    ) -> Walked {
        let mut steps = [Step { gpa: 0, entry: 0, wide: true }; 4];
        let mut rights = Rights { user: true, writable: true, no_execute: false };
        let nxe = self.sys.efer & efer::NXE != 0;
        // Bits 51 to PHYS_BITS are reserved; so is NX while EFER.NXE is clear.
        let mut reserved = ADDRESS & !((1 << x86::cpuid::PHYS_BITS) - 1);
        if !nxe {
            reserved |= NO_EXECUTE;
        }
        if self.mode.paging == Paging::Pae {
            reserved |= 0x7ff0_0000_0000_0000;
        }
        for (count, level) in (0..=level).rev().enumerate() {
            let gpa = table + (linear >> (12 + 9 * level) & 0x1ff) * 8;
            // A table outside RAM reads as an empty bus: all ones, so reserved bits are set.
            let entry = self.ram.load::<u64>(gpa).unwrap_or(u64::MAX);
            if entry & PRESENT == 0 {
                return Err(self.page_fault(linear, access, mmu, 0).into());
            }
            steps[count] = Step { gpa, entry, wide: true };
            rights.user &= entry & USER != 0;
            rights.writable &= entry & WRITABLE != 0;
            rights.no_execute |= nxe && entry & NO_EXECUTE != 0;
            let leaf = level == 0 || entry & PAGE_SIZE != 0;
            let mut bad = reserved;
            if level == 3 {
                bad |= PAGE_SIZE;
            }
            let size = 1u64 << (12 + 9 * level);
            if leaf && level > 0 {
                // Address bits below the page's size, except PAT (bit 12), are reserved.
                bad |= (size - 1) & ADDRESS & !0x1000;
            }
            if entry & bad != 0 {
                let code = page_fault::RESERVED | page_fault::PRESENT;
                return Err(self.page_fault(linear, access, mmu, code).into());
            }
            if leaf {
                let gpa = entry & ADDRESS & !(size - 1) | linear & (size - 1);
                return self.finish(linear, gpa, size, rights, &steps[..=count], access, mmu, attempt);
            }
            table = entry & ADDRESS;
        }
        unreachable!("level 0 is a leaf")
    }

    /// Walks the two levels of 32-bit paging.
    fn walk_narrow(&mut self, linear: u64, access: Access, mmu: MmuIndex, attempt: u32) -> Walked {
        let mut steps = [Step { gpa: 0, entry: 0, wide: false }; 2];
        let mut rights = Rights { user: true, writable: true, no_execute: false };
        let mut table = self.sys.cr3 & 0xffff_f000;
        for (count, level) in [1u32, 0].into_iter().enumerate() {
            let gpa = table + (linear >> (12 + 10 * level) & 0x3ff) * 4;
            let entry = self.ram.load::<u32>(gpa).unwrap_or(u32::MAX) as u64;
            if entry & PRESENT == 0 {
                return Err(self.page_fault(linear, access, mmu, 0).into());
            }
            steps[count] = Step { gpa, entry, wide: false };
            rights.user &= entry & USER != 0;
            rights.writable &= entry & WRITABLE != 0;
            let large = level == 1 && entry & PAGE_SIZE != 0 && self.sys.cr4 & cr4::PSE != 0;
            if large {
                // Bits 13 to 20 hold physical address bits 32 to 39 (PSE-36); bit 21 is reserved.
                if entry & 1 << 21 != 0 {
                    let code = page_fault::RESERVED | page_fault::PRESENT;
                    return Err(self.page_fault(linear, access, mmu, code).into());
                }
                let gpa = entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32 | linear & 0x3f_ffff;
                return self.finish(linear, gpa, 1 << 22, rights, &steps[..=count], access, mmu, attempt);
            }
            if level == 0 {
                let gpa = entry & 0xffff_f000 | linear & 0xfff;
                return self.finish(linear, gpa, 4096, rights, &steps[..=count], access, mmu, attempt);
            }
            table = entry & 0xffff_f000;
        }
        unreachable!("level 0 is a leaf")
    }

    /// Checks the rights of a mapping that was found and sets accessed and dirty bits (§4.8).
    fn finish(
        &mut self,
        linear: u64,
        gpa: u64,
        page_size: u64,
        rights: Rights,
        steps: &[Step],
        access: Access,
        mmu: MmuIndex,
        attempt: u32,
    ) -> Walked {
        if !self.allows(rights, access, mmu) {
            return Err(self.page_fault(linear, access, mmu, page_fault::PRESENT).into());
        }
        let leaf = steps.len() - 1;
        let mut dirty = steps[leaf].entry & DIRTY != 0;
        for (index, step) in steps.iter().enumerate() {
            let mut wanted = ACCESSED;
            if index == leaf && access == Access::Write {
                wanted |= DIRTY;
                dirty = true;
            }
            if step.entry & wanted != wanted {
                let done = match step.wide {
                    true => self.ram.compare_exchange::<u64>(step.gpa, step.entry, step.entry | wanted),
                    false => {
                        let new = (step.entry | wanted) as u32;
                        self.ram.compare_exchange::<u32>(step.gpa, step.entry as u32, new)
                    }
                };
                if done != Some(true) && attempt < TRIES_MAX {
                    return Err(Stopped::Changed);
                }
            }
        }
        let global = self.sys.cr4 & cr4::PGE != 0 && steps[leaf].entry & GLOBAL != 0;
        if self.mode.paging == Paging::Long {
            self.pages.insert(linear, gpa, page_size, rights, dirty, global);
        }
        Ok(Translation { gpa, page_size, writable: dirty && self.may_write(rights, mmu), global })
    }

    /// Notes the address and makes the exception; `code` has the present and reserved bits.
    fn page_fault(&mut self, linear: u64, access: Access, mmu: MmuIndex, mut code: u32) -> Fault {
        self.fault_address = linear;
        self.tlb.forget_guesses(linear);
        if mmu.is_user() {
            code |= page_fault::USER;
        }
        match access {
            Access::Read => {}
            Access::Write => code |= page_fault::WRITE,
            // The fetch bit is reported only where NX or SMEP can cause a fault (§4.7).
            Access::Fetch => {
                let pae = self.sys.cr4 & cr4::PAE != 0;
                if pae && self.sys.efer & efer::NXE != 0 || self.sys.cr4 & cr4::SMEP != 0 {
                    code |= page_fault::FETCH;
                }
            }
        }
        Fault::with_code(Vector::PageFault, code as u16)
    }

    /// The arrays for accesses that the processor makes by itself: to descriptor tables and the task
    /// state, always with supervisor privilege.
    pub(crate) fn implicit_mmu(&self) -> MmuIndex {
        match self.sys.cr4 & cr4::SMAP != 0 {
            true => MmuIndex::Kernel,
            // Without SMAP the two supervisor views are the same; share one.
            false => MmuIndex::KernelAc,
        }
    }

    /// The arrays for fetching code at the present privilege.
    pub(crate) fn fetch_mmu(&self) -> MmuIndex {
        if self.mode.cpl == 3 { MmuIndex::User } else { MmuIndex::KernelAc }
    }

    /// The arrays for data accesses of a user.
    pub(crate) fn user_mmu(&self) -> MmuIndex {
        match self.sys.cr0 & cr0::AM != 0 && self.regs.flag(rflags::AC) {
            true => MmuIndex::UserAligned,
            false => MmuIndex::User,
        }
    }
}
