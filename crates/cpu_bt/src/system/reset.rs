//! INIT and start-up messages (SDM vol. 3A, §9.4 and §10.1).

use crate::cpu::Cpu;
use crate::regs::{RDX, RIP};
use x86::Segment;
use x86::reg::cr0;
use x86::state::seg;

impl Cpu {
    /// The INIT message: reset, then wait for start-up (the bootstrap processor runs on).
    pub(crate) fn init_message(&mut self) {
        let (xcr0, cache) = (self.sys.xcr0, self.sys.cr0 & (cr0::CD | cr0::NW));
        self.kvm_reset();
        self.lapic.reset();
        self.reset();
        // What INIT leaves alone besides the vector and x87 registers: XCR0 and the cache mode.
        self.sys.xcr0 = xcr0;
        self.sys.cr0 = self.sys.cr0 & !(cr0::CD | cr0::NW) | cache;
        // The processor's signature (SDM vol. 3A, §10.1.2).
        self.regs.r[RDX] = self.cpuid_leaf(1, 0).eax as u64;
        self.wait_for_sipi = self.id != 0;
    }

    /// The start-up message: real-address mode at the page whose number it carries.
    pub(crate) fn startup_message(&mut self) {
        let page = self.lapic.take_startup_vector() as u16;
        let code = Segment { access: self.regs.seg[seg::CS].access, ..Segment::real_mode(page << 8) };
        self.regs.seg[seg::CS] = code;
        self.regs.r[RIP] = 0;
        self.wait_for_sipi = false;
        self.halted = false;
        self.update_mode();
    }
}
