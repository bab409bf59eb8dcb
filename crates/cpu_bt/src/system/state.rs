//! The vCPU's state as the saved format has it, and back, checked as untrusted input.

use super::debug::{clean_dr6, clean_dr7};
use super::msr::SAVED;
use super::xsave_image;
use crate::cpu::{Cpu, SystemRegs};
use crate::fault::Fault;
use crate::regs::RIP;
use crate::signals::signal;
use ::cpu::{Error, ErrorKind};
use x86::cpuid::PHYS_BITS;
use x86::paging::is_canonical;
use x86::reg::{cr0, cr4, efer, rflags};
use x86::segment::{Segment, access};
use x86::state::{CpuState, MpState, PendingEvents, VERSION, seg};
use x86::{Vector, msr};

/// Flags that exist.
const RFLAGS_KNOWN: u64 = rflags::STATUS
    | rflags::FIXED
    | rflags::TF
    | rflags::IF
    | rflags::DF
    | rflags::IOPL
    | rflags::NT
    | rflags::RF
    | rflags::VM
    | rflags::AC
    | rflags::VIF
    | rflags::VIP
    | rflags::ID;

/// The exception of a vector that a saved state holds as pending.
fn exception(vector: u8) -> Option<Vector> {
    use Vector::*;
    let all = [
        DivideError,
        Debug,
        Breakpoint,
        Overflow,
        BoundRange,
        InvalidOpcode,
        DeviceNotAvailable,
        DoubleFault,
        InvalidTss,
        SegmentNotPresent,
        StackFault,
        GeneralProtection,
        PageFault,
        X87FloatingPoint,
        AlignmentCheck,
        MachineCheck,
        SimdFloatingPoint,
    ];
    all.into_iter().find(|known| *known as u8 == vector)
}

impl Cpu {
    /// The processor's state. Between runs.
    pub(crate) fn save(&mut self) -> CpuState {
        let mut msrs: Vec<(u32, u64)> = self.kvm_save_msrs();
        for number in SAVED {
            // Those in the list can always be read.
            msrs.extend(self.read_msr(number).ok().map(|value| (number, value)));
        }
        msrs.extend(self.sys.other_msrs.iter().map(|(&number, &value)| (number, value)));
        msrs.sort_unstable();
        msrs.dedup_by_key(|(number, _)| *number);
        let sys = &self.sys;
        let mp_state = match () {
            _ if self.wait_for_sipi => MpState::WaitForSipi,
            _ if self.halted => MpState::Halted,
            _ => MpState::Runnable,
        };
        let exception = self
            .pending_exception
            .map(|(fault, address)| (fault.vector(), fault.code().map(|code| code as u32), address));
        CpuState {
            version: VERSION,
            gpr: self.regs.r[..16].try_into().expect("sixteen registers"),
            rip: self.regs.r[RIP],
            rflags: self.regs.rflags,
            segments: self.regs.seg[..6].try_into().expect("six segments"),
            ldtr: sys.ldtr,
            tr: sys.tr,
            gdtr: sys.gdtr,
            idtr: sys.idtr,
            cr0: sys.cr0,
            cr2: sys.cr2,
            cr3: sys.cr3,
            cr4: sys.cr4,
            dr: sys.dr,
            dr6: sys.dr6,
            dr7: sys.dr7,
            efer: sys.efer,
            xcr0: sys.xcr0,
            msrs,
            xsave: xsave_image::build(&self.regs),
            lapic: self.lapic.save(),
            pending: PendingEvents {
                nmi: self.signals.pending() & signal::NMI != 0,
                nmi_blocked: self.nmi_blocked,
                interrupt_shadow: self.shadow,
                exception,
                interrupt: self.pending_interrupt,
            },
            mp_state,
        }
    }

    /// Replaces the processor's state. Between runs; the machine's memory has to be in place, because
    /// PAE paging reads page-directory pointers from it.
    ///
    /// # Errors
    /// When the state is not one that this processor can have; it is then unchanged.
    pub(crate) fn restore(&mut self, state: &CpuState) -> Result<(), Error> {
        // Registers are checked by what writes them; what was there comes back when one is refused.
        self.check(state).map_err(bad)?;
        let parsed = xsave_image::parse(&state.xsave).map_err(bad)?;
        let before = self.save();
        if let Err(why) = self.load_msrs(state).and_then(|()| self.lapic.restore(&state.lapic)) {
            let _ = self.load_msrs(&before);
            return Err(bad(why));
        }

        self.regs.r[..16].copy_from_slice(&state.gpr);
        self.regs.r[RIP] = state.rip;
        self.regs.rflags = state.rflags | rflags::FIXED;
        self.regs.seg[..6].copy_from_slice(&state.segments);
        self.regs.fx = parsed.fx;
        self.regs.mxcsr = parsed.mxcsr;
        self.regs.ymm = parsed.ymm;
        let sys = &mut self.sys;
        (sys.ldtr, sys.tr, sys.gdtr, sys.idtr) = (state.ldtr, state.tr, state.gdtr, state.idtr);
        (sys.cr0, sys.cr2, sys.cr3, sys.cr4) = (state.cr0 | cr0::ET, state.cr2, state.cr3, state.cr4);
        (sys.efer, sys.xcr0) = (state.efer, state.xcr0);
        (sys.dr, sys.dr6, sys.dr7) = (state.dr, clean_dr6(state.dr6), clean_dr7(state.dr7));
        self.update_mode();
        if self.mode.paging == crate::cpu::Paging::Pae {
            // Real processors keep these registers even when memory has changed; here they follow it.
            self.sys.pdpte = self.read_pdptes(state.cr3).unwrap_or([0; 4]);
        }
        self.flush_tlb_all();

        let pending = &state.pending;
        self.shadow = pending.interrupt_shadow;
        self.nmi_blocked = pending.nmi_blocked;
        self.halted = state.mp_state == MpState::Halted;
        self.wait_for_sipi = state.mp_state == MpState::WaitForSipi;
        self.pending_exception = pending.exception.and_then(|(vector, code, address)| {
            let vector = exception(vector)?;
            let fault = match code {
                Some(code) => Fault::with_code(vector, code as u16),
                None => Fault::new(vector),
            };
            Some((fault, address))
        });
        self.pending_interrupt = pending.interrupt;
        self.exit = None;
        self.code_modified = false;
        if pending.nmi {
            self.signals.raise(signal::NMI);
        }
        // Also for the sake of the interrupt of the legacy controller.
        self.signals.raise(signal::INTERRUPT);
        Ok(())
    }

    /// Writes the model-specific registers of a state.
    fn load_msrs(&mut self, state: &CpuState) -> Result<(), String> {
        // What the state does not mention is as after power-up.
        self.kvm_reset();
        let initial = SystemRegs::new();
        let sys = &mut self.sys;
        sys.other_msrs.clear();
        (sys.star, sys.lstar, sys.cstar, sys.sfmask) = (0, 0, 0, 0);
        (sys.sysenter_cs, sys.sysenter_esp, sys.sysenter_eip) = (0, 0, 0);
        (sys.kernel_gs_base, sys.tsc_aux, sys.pat) = (0, 0, initial.pat);
        // First those that others depend on.
        let adjust = state.msrs.iter().find(|(number, _)| *number == msr::TSC_ADJUST);
        self.sys.tsc_adjust = adjust.map_or(0, |(_, value)| *value);
        self.tsc_adjust_changed();
        for &(number, value) in &state.msrs {
            let refused = |_| format!("model-specific register {number:#x} cannot be {value:#x}");
            match number {
                msr::KVM_WALL_CLOCK..=msr::KVM_POLL_CONTROL => {
                    // One that this engine does not have may be there unused.
                    let result = self.kvm_restore_msr(number, value);
                    if value != 0 {
                        result.map_err(refused)?;
                    }
                }
                // These have fields of their own in the state, or follow from the machine's clock.
                msr::TSC
                | msr::TSC_ADJUST
                | msr::EFER
                | msr::FS_BASE
                | msr::GS_BASE
                | msr::APIC_BASE
                | msr::TSC_DEADLINE
                | msr::XSS => {}
                _ => self.restore_msr(number, value).map_err(refused)?,
            }
        }
        Ok(())
    }

    /// Writes one register; one that cannot be written may still be given if it has that value.
    fn restore_msr(&mut self, number: u32, value: u64) -> Result<(), Fault> {
        match self.write_msr(number, value) {
            Err(fault) if self.read_msr(number) != Ok(value) => Err(fault),
            _ => Ok(()),
        }
    }

    /// Checks everything that has no register with checks of its own.
    fn check(&self, state: &CpuState) -> Result<(), String> {
        let require =
            |ok: bool, what: &str| if ok { Ok(()) } else { Err(format!("saved CPU state: {what}")) };
        let known = |value: u64, mask: u64, name: &str| match value & !mask {
            0 => Ok(()),
            bits => Err(format!("saved CPU state: {name} has bits that this processor lacks ({bits:#x})")),
        };
        require(state.version == VERSION, "it is of another version")?;
        known(state.cr0, 0xffff_ffff, "CR0")?;
        known(state.cr4, self.cr4_known(), "CR4")?;
        known(state.efer, self.efer_known(), "EFER")?;
        known(state.rflags, RFLAGS_KNOWN, "RFLAGS")?;
        known(state.cr3, (1 << PHYS_BITS) - 1, "CR3")?;
        require(self.is_valid_xcr0(state.xcr0), "XCR0 is not possible")?;
        require(state.dr6 >> 32 == 0 && state.dr7 >> 32 == 0, "DR6 or DR7 is not possible")?;

        let has = |register: u64, bits: u64| register & bits != 0;
        let (protected, paging) = (has(state.cr0, cr0::PE), has(state.cr0, cr0::PG));
        let (long, wants_long) = (has(state.efer, efer::LMA), has(state.efer, efer::LME));
        require(protected || !paging, "CR0.PG without CR0.PE")?;
        require(!has(state.cr0, cr0::NW) || has(state.cr0, cr0::CD), "CR0.NW without CR0.CD")?;
        require(long == (wants_long && paging), "EFER.LMA does not fit CR0.PG and EFER.LME")?;
        require(!long || has(state.cr4, cr4::PAE), "long mode without CR4.PAE")?;
        require(long || !has(state.cr4, cr4::PCIDE), "CR4.PCIDE outside long mode")?;
        let v86 = has(state.rflags, rflags::VM);
        require(!v86 || protected && !long, "RFLAGS.VM outside protected mode")?;

        let tables = [state.gdtr.base, state.idtr.base, state.ldtr.base, state.tr.base];
        let bases = state.segments.iter().map(|segment| segment.base).chain(tables);
        let canonical = bases.into_iter().all(is_canonical);
        require(canonical, "the base of a segment or table is not canonical")?;
        let code = &state.segments[seg::CS];
        let is_64 = long && code.has(access::LONG);
        require(!is_64 || !code.has(access::DEFAULT_BIG), "CS is both 64-bit and 32-bit")?;
        let rip_fits = if is_64 { is_canonical(state.rip) } else { state.rip >> 32 == 0 };
        require(rip_fits, "RIP is not possible")?;
        if protected && !v86 {
            self.check_segments(state, is_64).map_err(|what| format!("saved CPU state: {what}"))?;
        }
        if let Some((vector, code, _)) = state.pending.exception {
            let vector = exception(vector).ok_or("saved CPU state: no such exception can be pending")?;
            let code_fits = code.is_some_and(|code| code <= 0xffff) == vector.has_error_code();
            require(code_fits, "the pending exception's error code is not possible")?;
        }
        Ok(())
    }

    /// Checks the segments of protected mode: what loading them would have made sure of.
    fn check_segments(&self, state: &CpuState, is_64: bool) -> Result<(), String> {
        let is = |segment: &Segment, rights: u16| segment.has(rights) && !segment.is_unusable();
        let (code, stack) = (&state.segments[seg::CS], &state.segments[seg::SS]);
        if !is(code, access::NOT_SYSTEM | access::CODE) && !self.is_reset_code(code) {
            return Err("CS holds no code segment".into());
        }
        let writable = is(stack, access::NOT_SYSTEM | access::WRITABLE) && !stack.has(access::CODE);
        let null = stack.is_unusable() && (is_64 && stack.dpl() < 3 || stack.dpl() == 0);
        if !writable && !null {
            return Err("SS holds no stack segment".into());
        }
        Ok(())
    }

    /// CS as real-address mode leaves it, which stays in effect in protected mode until it is loaded.
    fn is_reset_code(&self, code: &Segment) -> bool {
        code.has(access::PRESENT | access::NOT_SYSTEM)
    }
}

fn bad(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::BadState, why)
}
