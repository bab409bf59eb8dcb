//! [`cpu::Vcpu`] of this engine: the loop around KVM_RUN.
//!
//! **Unfinished accesses.** The kernel finishes a port or memory access only when KVM_RUN is called again, so
//! the loop never ends between the two: a kick makes that call end at once, with the access finished.
//!
//! **Interrupts of the legacy controller.** They need the vCPU's own thread, which acknowledges them when the
//! guest can take one: at the end of KVM_RUN the kernel tells whether it can, and is asked to end KVM_RUN as
//! soon as it can otherwise. The vector goes in as one whose delivery has begun (KVM_SET_VCPU_EVENTS), not by
//! KVM_INTERRUPT, whose vector no request can read back and so could not be saved.

use crate::kick::Kick;
use crate::state::{FrozenTimer, MsrList};
use crate::vm::{VcpuLink, VmShared, count};
use crate::{kvm_refused, raw, time};
use cpu::{CpuIo, Error, ErrorKind, Kicker, Vcpu, VmExit};
use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use x86::CpuState;
use x86::cpuid::Leaf;

/// IA32_MCG_CAP: ten banks, and IA32_MCG_CTL is there: as the other engine's processors have them.
const MCG_CAP: u64 = 10 | 1 << 8;

/// A vCPU.
pub(crate) struct KvmVcpu {
    pub(crate) vm: Arc<VmShared>,
    pub(crate) id: u32,
    pub(crate) fd: VcpuFd,
    kick: Arc<Kick>,
    pub(crate) timer: Arc<FrozenTimer>,
    pub(crate) msrs: MsrList,
    /// Whether the CPU model has XSAVE, so that there is an XCR0.
    pub(crate) has_xsave: bool,
    /// The machine's epoch whose time it has.
    epoch: u64,
}

impl KvmVcpu {
    pub(crate) fn new(
        vm: Arc<VmShared>,
        id: u32,
        fd: VcpuFd,
        cpuid: &[Leaf],
        listed: &[u32],
    ) -> Result<(KvmVcpu, VcpuLink), Error> {
        raw::setup_mce(&fd, MCG_CAP)
            .map_err(|e| crate::refused("KVM refuses the machine-check registers", e))?;
        // SAFETY: the descriptor is open as long as `fd` lives.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        let kick = Arc::new(Kick::new(borrowed)?);
        let timer = Arc::new(FrozenTimer::new(&vm.fd, borrowed)?);
        let msrs = MsrList::of(&fd, listed)?;
        const XSAVE: u32 = 1 << 26;
        let has_xsave = cpuid.iter().any(|leaf| leaf.function == 1 && leaf.ecx & XSAVE != 0);
        let link = VcpuLink { kick: kick.clone(), timer: timer.clone() };
        Ok((KvmVcpu { vm, id, fd, kick, timer, msrs, has_xsave, epoch: 0 }, link))
    }

    /// Takes over the machine's time, if it was changed.
    fn synchronise(&mut self) -> Result<(), Error> {
        let epoch = self.vm.epoch.load(Ordering::SeqCst);
        if self.epoch != epoch && self.vm.clock.is_running() {
            let adjust = self.tsc_adjust()?;
            time::set_tsc(&self.fd, &self.vm.clock, adjust)?;
            if self.timer.thaw(&self.fd)? {
                // The guest's watchdogs forgive a pause that they are told of. Not all guests have any.
                let _ = self.fd.kvmclock_ctrl();
            }
            self.epoch = epoch;
        }
        Ok(())
    }

    /// Whatever was in flight is of the past.
    pub(crate) fn forget_window(&mut self) {
        self.fd.get_kvm_run().ready_for_interrupt_injection = 0;
    }

    /// Lets the guest take an interrupt of the legacy controller, now or as soon as it can.
    fn offer_pic_interrupt(&mut self, io: &dyn CpuIo) -> Result<(), Error> {
        if self.id != 0 {
            return Ok(());
        }
        let asserted = self.vm.pic_line.load(Ordering::SeqCst);
        let run = self.fd.get_kvm_run();
        run.request_interrupt_window = asserted.into();
        if !asserted || run.ready_for_interrupt_injection == 0 {
            return Ok(());
        }
        run.ready_for_interrupt_injection = 0;
        let vector = io.pic_acknowledge();
        count(&self.vm.counters.pic_interrupts);
        let refused = || kvm_refused("KVM refuses an interrupt of the legacy controller");
        let mut events = self.fd.get_vcpu_events().map_err(refused())?;
        (events.interrupt.injected, events.interrupt.nr, events.interrupt.soft) = (1, vector, 0);
        events.flags = 0;
        self.fd.set_vcpu_events(&events).map_err(refused())?;
        // A vector that goes in this way wakes nobody.
        if self.fd.get_mp_state().map_err(refused())?.mp_state == KVM_MP_STATE_HALTED {
            self.fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).map_err(refused())?;
        }
        Ok(())
    }

    /// Says where the guest is, for messages.
    fn whereabouts(&self) -> String {
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => format!(
                "at {:#x}:{:#x}, CR0 {:#x}, CR3 {:#x}, CR4 {:#x}, EFER {:#x}",
                sregs.cs.selector, regs.rip, sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer
            ),
            _ => "at an unknown place".into(),
        }
    }

    fn failed(&self, what: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::Internal, format!("{what}, {}", self.whereabouts()))
    }
}

/// What to do after KVM_RUN.
enum Next {
    GoOn,
    Exit(VmExit),
    Fail(String),
    Host(i32),
}

impl Vcpu for KvmVcpu {
    fn id(&self) -> u32 {
        self.id
    }

    fn run(&mut self, io: &dyn CpuIo) -> Result<VmExit, Error> {
        self.kick.run_here();
        self.synchronise()?;
        loop {
            self.kick.attend();
            self.offer_pic_interrupt(io)?;
            self.kick.enter();
            let result = self.fd.run();
            self.kick.leave();
            let counters = &self.vm.counters;
            let next = match result {
                Ok(VcpuExit::IoIn(port, data)) => {
                    count(&counters.pio);
                    // A repeated string instruction asks for many at once.
                    for item in data.chunks_mut(self.kick.page().io_size()) {
                        item.fill(0xff);
                        io.pio_read(port, item);
                    }
                    Next::GoOn
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    count(&counters.pio);
                    for item in data.chunks(self.kick.page().io_size()) {
                        io.pio_write(port, item);
                    }
                    Next::GoOn
                }
                Ok(VcpuExit::MmioRead(gpa, data)) => {
                    count(&counters.mmio);
                    data.fill(0xff);
                    io.mmio_read(gpa, data);
                    Next::GoOn
                }
                Ok(VcpuExit::MmioWrite(gpa, data)) => {
                    count(&counters.mmio);
                    io.mmio_write(gpa, data);
                    Next::GoOn
                }
                Ok(VcpuExit::IoapicEoi(vector)) => {
                    count(&counters.ends_of_interrupt);
                    io.end_of_interrupt(vector);
                    Next::GoOn
                }
                Ok(VcpuExit::IrqWindowOpen) => {
                    count(&counters.windows);
                    Next::GoOn
                }
                Ok(VcpuExit::Intr) => Next::GoOn,
                Err(e) if e.errno() == libc::EINTR => {
                    count(&counters.signals);
                    if self.kick.take_kick() { Next::Exit(VmExit::Kicked) } else { Next::GoOn }
                }
                // A processor that waited for its start-up message has got it.
                Err(e) if e.errno() == libc::EAGAIN => Next::GoOn,
                Ok(VcpuExit::Shutdown) => Next::Exit(VmExit::Shutdown(String::new())),
                Ok(VcpuExit::FailEntry(reason, _)) => {
                    Next::Fail(format!("the processor does not enter the guest (reason {reason:#x})"))
                }
                Ok(VcpuExit::InternalError) => {
                    let (code, details) = self.kick.page().internal_error();
                    Next::Fail(match code {
                        1 => format!("KVM cannot execute an instruction ({details:x?})"),
                        _ => format!("KVM fails inside (error {code}, {details:x?})"),
                    })
                }
                Ok(other) => Next::Fail(format!("KVM ends a run for an unexpected reason ({other:?})")),
                Err(e) => Next::Host(e.errno()),
            };
            match next {
                Next::GoOn => {}
                Next::Exit(VmExit::Shutdown(_)) => {
                    let why = format!("KVM reports a triple fault {}", self.whereabouts());
                    return Ok(VmExit::Shutdown(why));
                }
                Next::Exit(exit) => return Ok(exit),
                Next::Fail(why) => return Err(self.failed(why)),
                Next::Host(errno) => {
                    let error = std::io::Error::from_raw_os_error(errno);
                    return Err(self.failed("KVM does not run the vCPU").with_source(error));
                }
            }
        }
    }

    fn state(&mut self) -> Result<CpuState, Error> {
        self.save()
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), Error> {
        self.restore(state)
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        self.kick.clone()
    }
}
