//! The first processor's registers at the kernel's first instruction.

use crate::layout;
use memory::{Bytes, GuestAddress, Ram};
use x86::reg::{cr0, cr4, efer, rflags};
use x86::state::{MpState, TableRegister, gpr, seg};
use x86::{CpuState, Segment, msr, paging};

/// What the boot protocol demands of the first processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The 64-bit Linux boot protocol: long mode, flat segments, the first 4 GiB mapped to themselves.
    Linux64 {
        /// Physical (and linear) address of the first instruction.
        rip: u64,
        /// Address of the zero page, for RSI.
        boot_params: u64,
    },
    /// PVH: 32-bit protected mode without paging, flat segments.
    Pvh {
        /// Physical address of the first instruction.
        eip: u32,
        /// Address of `hvm_start_info`, for EBX.
        start_info: u32,
    },
}

/// Selectors of the boot protocol ("64-bit boot protocol": __BOOT_CS and __BOOT_DS).
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

const CODE64: u64 = 0x00af_9b00_0000_ffff;
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
/// A busy 386 (in long mode: 64-bit) task-state segment at 0 with the minimal limit: the processor
/// demands that TR is loaded, nothing uses it.
const TSS: u64 = 0x0000_8b00_0000_0067;

/// MTRR_DEF_TYPE: MTRRs enabled, memory is write-back unless said otherwise (SDM vol. 3A, §12.11.2.1).
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

impl Entry {
    /// Puts the entry state into `state`, which is the processor's state after reset. Registers that the
    /// protocol leaves open keep their values.
    pub fn apply(&self, state: &mut CpuState) {
        state.mp_state = MpState::Runnable;
        state.gpr = [0; 16];
        state.rflags = rflags::FIXED;
        let code = match *self {
            Entry::Linux64 { rip, boot_params } => {
                state.rip = rip;
                state.gpr[gpr::RSI] = boot_params;
                state.cr0 = cr0::PE | cr0::ET | cr0::PG;
                state.cr3 = layout::PAGE_TABLES;
                state.cr4 = cr4::PAE;
                state.efer = efer::LME | efer::LMA;
                CODE64
            }
            Entry::Pvh { eip, start_info } => {
                state.rip = eip as u64;
                state.gpr[gpr::RBX] = start_info as u64;
                state.cr0 = cr0::PE | cr0::ET;
                state.cr3 = 0;
                state.cr4 = 0;
                state.efer = 0;
                CODE32
            }
        };
        state.segments = [Segment::from_descriptor(BOOT_DS, DATA); 6];
        state.segments[seg::CS] = Segment::from_descriptor(BOOT_CS, code);
        state.ldtr = Segment::default();
        state.tr = Segment::from_descriptor(BOOT_TSS, TSS);
        state.gdtr = TableRegister { base: layout::GDT, limit: 6 * 8 - 1 };
        state.idtr = TableRegister::default();
    }

    /// Writes the descriptor table and page tables that the entry state refers to.
    pub(crate) fn write_tables(&self, ram: &Ram) -> Result<(), vm_memory::GuestMemoryError> {
        let code = match self {
            Entry::Linux64 { .. } => CODE64,
            Entry::Pvh { .. } => CODE32,
        };
        // The task-state segment takes two entries in long mode.
        let gdt = [0, 0, code, DATA, TSS, 0].map(u64::to_le_bytes).concat();
        ram.guest().write_slice(&gdt, GuestAddress(layout::GDT))?;
        if let Entry::Linux64 { .. } = self {
            ram.guest().write_slice(&identity_map(), GuestAddress(layout::PAGE_TABLES))?;
        }
        Ok(())
    }
}

/// Page tables for [`layout::PAGE_TABLES`] that map the first 4 GiB to themselves with 2 MiB pages: the
/// boot protocol asks for kernel, zero page and command line; kernels read ACPI tables this way, too.
fn identity_map() -> Vec<u8> {
    const DIRECTORIES: u64 = 4;
    let table = paging::PRESENT | paging::WRITABLE;
    let mut entries = vec![0u64; 512 * (2 + DIRECTORIES as usize)];
    entries[0] = (layout::PAGE_TABLES + 0x1000) | table;
    for directory in 0..DIRECTORIES {
        entries[512 + directory as usize] = (layout::PAGE_TABLES + 0x2000 + directory * 0x1000) | table;
    }
    for page in 0..512 * DIRECTORIES {
        entries[1024 + page as usize] = page << 21 | table | paging::PAGE_SIZE;
    }
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

/// Does to a processor's state after reset what firmware does on every processor: memory types. Without
/// it, kernels take all memory for uncacheable, or find processors that differ.
pub fn firmware_setup(state: &mut CpuState) {
    match state.msrs.binary_search_by_key(&msr::MTRR_DEF_TYPE, |entry| entry.0) {
        Ok(at) => state.msrs[at].1 = MTRR_ENABLED_WRITE_BACK,
        Err(at) => state.msrs.insert(at, (msr::MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use x86::segment::access;
    use x86::state::{LapicState, PendingEvents};

    pub(crate) fn reset_state() -> CpuState {
        CpuState {
            version: x86::state::VERSION,
            gpr: [0xdead; 16],
            rip: 0xfff0,
            rflags: 2,
            segments: [Segment::real_mode(0xf000); 6],
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: TableRegister::default(),
            idtr: TableRegister { base: 0, limit: 0x3ff },
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            dr: [0; 4],
            dr6: x86::reg::dr6::FIXED,
            dr7: x86::reg::dr7::FIXED,
            efer: 0,
            xcr0: 1,
            msrs: vec![(msr::PAT, 0x0007_0406_0007_0406)],
            xsave: vec![0; 576],
            lapic: LapicState {
                base: 0xfee0_0900,
                registers: vec![0; 64],
                tsc_deadline: 0,
                timer_start_ns: 0,
            },
            pending: PendingEvents::default(),
            mp_state: MpState::Runnable,
        }
    }

    #[test]
    fn the_64_bit_entry_is_in_long_mode_with_interrupts_off() {
        let mut state = reset_state();
        Entry::Linux64 { rip: 0x100_0000, boot_params: 0x7000 }.apply(&mut state);
        assert_eq!((state.rip, state.gpr[gpr::RSI]), (0x100_0000, 0x7000));
        assert!(state.segments[seg::CS].has(access::LONG | access::CODE | access::PRESENT));
        assert!(!state.segments[seg::CS].has(access::DEFAULT_BIG));
        assert_eq!(state.segments[seg::CS].selector, 0x10);
        assert_eq!(state.segments[seg::DS], Segment::from_descriptor(0x18, DATA));
        assert_eq!(state.rflags & rflags::IF, 0);
        assert_eq!(state.efer, efer::LME | efer::LMA);
        assert!(state.cr0 & cr0::PG != 0 && state.cr4 & cr4::PAE != 0);
        assert_eq!(state.lapic, reset_state().lapic);
    }

    #[test]
    fn the_pvh_entry_is_in_flat_protected_mode() {
        let mut state = reset_state();
        Entry::Pvh { eip: 0x10_0000, start_info: 0x6000 }.apply(&mut state);
        assert_eq!((state.rip, state.gpr[gpr::RBX]), (0x10_0000, 0x6000));
        assert_eq!((state.cr0 & (cr0::PE | cr0::PG), state.cr4, state.efer), (cr0::PE, 0, 0));
        let cs = state.segments[seg::CS];
        assert!(cs.has(access::DEFAULT_BIG | access::CODE) && !cs.has(access::LONG));
        assert_eq!((cs.base, cs.limit), (0, u32::MAX));
    }

    #[test]
    fn the_segments_in_registers_are_those_in_the_table() {
        let ram = Ram::new(1 << 20).unwrap();
        let entry = Entry::Linux64 { rip: 0, boot_params: 0 };
        entry.write_tables(&ram).unwrap();
        let mut state = reset_state();
        entry.apply(&mut state);
        for segment in state.segments.iter().chain([&state.tr]) {
            let at = state.gdtr.base + (segment.selector & !7) as u64;
            assert!(at + 7 <= state.gdtr.base + state.gdtr.limit as u64);
            let descriptor = ram.load::<u64>(at).unwrap();
            assert_eq!(*segment, Segment::from_descriptor(segment.selector, descriptor));
        }
    }

    #[test]
    fn the_page_tables_map_4_gib_to_itself() {
        let ram = Ram::new(1 << 20).unwrap();
        Entry::Linux64 { rip: 0, boot_params: 0 }.write_tables(&ram).unwrap();
        for address in [0, 0x7123, 0x1f_ffff, 0x20_0000, 0x1234_5678, 0xffff_ffff_u64] {
            let mut table = layout::PAGE_TABLES;
            for shift in [39, 30, 21] {
                let entry = ram.load::<u64>(table + (address >> shift & 0x1ff) * 8).unwrap();
                assert_eq!(entry & paging::PRESENT, 1);
                table = entry & paging::ADDRESS;
            }
            assert_eq!(table + (address & 0x1f_ffff), address);
        }
        let beyond = ram.load::<u64>(layout::PAGE_TABLES + 0x1000 + 4 * 8).unwrap();
        assert_eq!(beyond, 0, "nothing is mapped beyond 4 GiB");
    }

    #[test]
    fn memory_types_are_set_up_once_and_in_order() {
        let mut state = reset_state();
        firmware_setup(&mut state);
        firmware_setup(&mut state);
        assert_eq!(state.msrs, [(msr::PAT, 0x0007_0406_0007_0406), (msr::MTRR_DEF_TYPE, 0x806)]);
    }
}
