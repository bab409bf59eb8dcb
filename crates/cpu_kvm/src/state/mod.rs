//! A vCPU's state: KVM's registers as [`CpuState`] has them, and back.
//!
//! | part | requests |
//! |---|---|
//! | general, flags | KVM_GET_REGS |
//! | segments, tables, CR, EFER, APIC base | KVM_GET_SREGS |
//! | x87, SSE, AVX | KVM_GET_XSAVE, KVM_GET_XCRS |
//! | debug | KVM_GET_DEBUGREGS |
//! | other MSRs | KVM_GET_MSRS |
//! | local APIC and its timer | KVM_GET_LAPIC, IA32_TSC_DEADLINE |
//! | what waits to be delivered | KVM_GET_VCPU_EVENTS |
//! | runs, sleeps, waits | KVM_GET_MP_STATE |

mod events;
mod lapic;
mod msrs;
mod segments;
mod xsave;

pub(crate) use lapic::FrozenTimer;
pub(crate) use msrs::MsrList;

use crate::vcpu::KvmVcpu;
use crate::{kvm_refused, time};
use cpu::{Error, ErrorKind};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    kvm_debugregs, kvm_mp_state, kvm_regs, kvm_sregs, kvm_xcr, kvm_xcrs,
};
use x86::state::{CpuState, MpState, PendingEvents, VERSION, gpr, seg};
use x86::{apic, msr};

/// No state has more of them.
const MSRS_MAX: usize = 4096;

impl KvmVcpu {
    /// The state. Between runs.
    pub(crate) fn save(&mut self) -> Result<CpuState, Error> {
        let refused = || kvm_refused(format!("KVM does not give the state of vCPU {}", self.id));
        // First: it may change others.
        let mp_state = self.fd.get_mp_state().map_err(refused())?;
        let regs = self.fd.get_regs().map_err(refused())?;
        let sregs = self.fd.get_sregs().map_err(refused())?;
        let debug = self.fd.get_debug_regs().map_err(refused())?;
        let events = self.fd.get_vcpu_events().map_err(refused())?;
        let xsave = self.fd.get_xsave().map_err(refused())?;
        let xcr0 = match self.has_xsave {
            true => xcr0(&self.fd.get_xcrs().map_err(refused())?),
            false => 1,
        };
        let mut lapic = self.timer.save(&self.fd, &self.vm.clock, sregs.apic_base)?;
        let pending = PendingEvents {
            interrupt: events::interrupt(&events).filter(|vector| !lapic::take_back(&mut lapic, *vector)),
            ..events::save(&events, sregs.cr2)
        };
        Ok(CpuState {
            version: VERSION,
            gpr: general(&regs),
            rip: regs.rip,
            rflags: regs.rflags,
            segments: segments::save(&sregs),
            ldtr: segments::from_kernel(&sregs.ldt, false),
            tr: segments::from_kernel(&sregs.tr, false),
            gdtr: segments::table_from_kernel(&sregs.gdt),
            idtr: segments::table_from_kernel(&sregs.idt),
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            dr: debug.db,
            dr6: debug.dr6,
            dr7: debug.dr7,
            efer: sregs.efer,
            xcr0,
            msrs: self.msrs.save(&self.fd)?,
            xsave: xsave::from_kernel(&xsave.region),
            lapic,
            pending,
            mp_state: match mp_state.mp_state {
                KVM_MP_STATE_HALTED => MpState::Halted,
                KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => MpState::WaitForSipi,
                _ => MpState::Runnable,
            },
        })
    }

    /// Replaces the state. Between runs.
    ///
    /// # Errors
    /// When the state is not one that this processor can have; it is then unchanged.
    pub(crate) fn restore(&mut self, state: &CpuState) -> Result<(), Error> {
        check(state)?;
        let before = self.save()?;
        self.load(state).inspect_err(|_| {
            if let Err(e) = self.load(&before) {
                log::error!("vCPU {} cannot go back to the state that it had: {e}", self.id);
            }
        })
    }

    fn load(&mut self, state: &CpuState) -> Result<(), Error> {
        let bad = |what: &'static str| {
            move |e: kvm_ioctls::Error| {
                let source = std::io::Error::from_raw_os_error(e.errno());
                Error::new(ErrorKind::BadState, format!("saved CPU state: KVM refuses {what}"))
                    .with_source(source)
            }
        };
        self.fd.set_sregs(&sregs(state)).map_err(bad("control registers or segments"))?;
        self.fd.set_regs(&regs(state)).map_err(bad("general registers"))?;
        if self.has_xsave {
            let xcr0 = kvm_xcr { xcr: 0, reserved: 0, value: state.xcr0 };
            let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            xcrs.xcrs[0] = xcr0;
            self.fd.set_xcrs(&xcrs).map_err(bad("XCR0"))?;
        } else if state.xcr0 != 1 {
            return Err(bad_state("XCR0 is set and the CPU model has no XSAVE"));
        }
        let area = xsave::for_kernel(&state.xsave).map_err(bad_state)?;
        // SAFETY: no feature whose state is larger than this area has been enabled for guests.
        unsafe { self.fd.set_xsave(&area) }.map_err(bad("the XSAVE area"))?;
        let debug = kvm_debugregs { db: state.dr, dr6: state.dr6, dr7: state.dr7, ..Default::default() };
        self.fd.set_debug_regs(&debug).map_err(bad("debug registers"))?;
        self.msrs.load(&self.fd, state)?;

        let clock = self.vm.clock.clone();
        if clock.is_running() {
            let adjust = msrs::value(state, msr::TSC_ADJUST).unwrap_or(0);
            time::set_tsc(&self.fd, &clock, adjust)?;
        }
        self.timer.load(&self.fd, &clock, state)?;
        for vector in lapic::level_triggered(&state.lapic) {
            self.vm.routes.prepare_vector(&self.vm.fd, self.id, vector);
        }
        self.fd.set_vcpu_events(&events::for_kernel(state)).map_err(bad("pending events"))?;
        let mp_state = match state.mp_state {
            MpState::Runnable => KVM_MP_STATE_RUNNABLE,
            MpState::Halted => KVM_MP_STATE_HALTED,
            MpState::WaitForSipi => KVM_MP_STATE_UNINITIALIZED,
        };
        self.fd.set_mp_state(kvm_mp_state { mp_state }).map_err(bad("whether the processor runs"))?;
        self.forget_window();
        Ok(())
    }

    /// IA32_TSC_ADJUST.
    pub(crate) fn tsc_adjust(&self) -> Result<u64, Error> {
        msrs::read(&self.fd, msr::TSC_ADJUST).map(|value| value.unwrap_or(0))
    }
}

fn bad_state(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::BadState, format!("saved CPU state: {why}"))
}

/// Checks what the kernel does not look at, or would take for something else.
fn check(state: &CpuState) -> Result<(), Error> {
    let require = |ok: bool, what: &str| if ok { Ok(()) } else { Err(bad_state(what)) };
    require(state.version == VERSION, "it is of another version")?;
    require(state.msrs.len() <= MSRS_MAX, "it has too many model-specific registers")?;
    require(state.dr6 >> 32 == 0 && state.dr7 >> 32 == 0, "DR6 or DR7 is not possible")?;
    require(state.lapic.base & !(apic::base::ADDRESS | 0xd00) == 0, "IA32_APIC_BASE is not possible")?;
    lapic::check(&state.lapic).map_err(bad_state)?;
    events::check(&state.pending).map_err(bad_state)
}

fn xcr0(xcrs: &kvm_xcrs) -> u64 {
    let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
    xcrs.xcrs[..count].iter().find(|register| register.xcr == 0).map_or(1, |register| register.value)
}

fn general(regs: &kvm_regs) -> [u64; 16] {
    [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
        regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ]
}

fn regs(state: &CpuState) -> kvm_regs {
    let r = &state.gpr;
    kvm_regs {
        rax: r[gpr::RAX],
        rcx: r[gpr::RCX],
        rdx: r[gpr::RDX],
        rbx: r[gpr::RBX],
        rsp: r[gpr::RSP],
        rbp: r[gpr::RBP],
        rsi: r[gpr::RSI],
        rdi: r[gpr::RDI],
        r8: r[8],
        r9: r[9],
        r10: r[10],
        r11: r[11],
        r12: r[12],
        r13: r[13],
        r14: r[14],
        r15: r[15],
        rip: state.rip,
        rflags: state.rflags,
    }
}

fn sregs(state: &CpuState) -> kvm_sregs {
    let segment = |index: usize| segments::for_kernel(&state.segments[index]);
    let priority = state.lapic.registers[(apic::reg::TPR >> 4) as usize];
    kvm_sregs {
        cs: segment(seg::CS),
        ds: segment(seg::DS),
        es: segment(seg::ES),
        fs: segment(seg::FS),
        gs: segment(seg::GS),
        ss: segment(seg::SS),
        tr: segments::task_for_kernel(&state.tr),
        ldt: segments::for_kernel(&state.ldtr),
        gdt: segments::table_for_kernel(&state.gdtr),
        idt: segments::table_for_kernel(&state.idtr),
        cr0: state.cr0,
        cr2: events::fault_address(state),
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: u64::from(priority >> 4 & 0xf),
        efer: state.efer,
        apic_base: state.lapic.base,
        interrupt_bitmap: [0; 4],
    }
}
