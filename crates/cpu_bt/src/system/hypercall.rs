//! VMCALL and VMMCALL: the hypercalls of KVM that guests use (Linux, Documentation/virt/kvm/x86/
//! hypercalls.rst). Either instruction works, whatever the vendor.

use super::After::{self, *};
use crate::block::{Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::Result;
use crate::regs::{RAX, RBX, RCX, RDX, RSI};
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler(insn: &Instruction) -> Option<(Handler, After)> {
    match insn.mnemonic() {
        Mnemonic::Vmcall | Mnemonic::Vmmcall => Some((vmcall, Continues)),
        _ => None,
    }
}

const VAPIC_POLL_IRQ: u64 = 1;
const KICK_CPU: u64 = 5;
const SEND_IPI: u64 = 10;
const SCHED_YIELD: u64 = 11;

/// Linux's error numbers, as KVM returns them.
const EPERM: i64 = 1;
const ENOSYS: i64 = 1000;

fn vmcall(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    cpu.hypercall();
    Ok(if cpu.signals.pending() != 0 { Flow::Branch } else { Flow::Next })
}

impl Cpu {
    /// Executes the hypercall in RAX and puts its result there.
    fn hypercall(&mut self) {
        let wide = self.mode.is_64();
        let cut = if wide { u64::MAX } else { 0xffff_ffff };
        let number = self.regs.r[RAX] & cut;
        let arguments = [RBX, RCX, RDX, RSI].map(|register| self.regs.r[register] & cut);
        let result = match number {
            _ if self.cpl() != 0 => -EPERM,
            // Interrupts are looked for at the next block anyway.
            VAPIC_POLL_IRQ => 0,
            KICK_CPU => {
                self.vm.kick_vcpu(arguments[1] as u32);
                0
            }
            SEND_IPI => {
                let [low, high, first, command] = arguments;
                let width = if wide { 64 } else { 32 };
                self.vm.send_ipi_mask(low, high, first as u32, command, width)
            }
            SCHED_YIELD => {
                std::thread::yield_now();
                0
            }
            _ => -ENOSYS,
        };
        self.regs.r[RAX] = result as u64 & cut;
    }
}
