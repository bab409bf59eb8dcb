//! Guest time under KVM: the machine's [`Clock`] is the master.
//!
//! The kernel gives a vCPU the host's TSC plus an offset; it is set to the clock's, plus what the guest itself
//! has added by IA32_TSC_ADJUST. The paravirtual clock that the kernel writes for guests is set to the clock's
//! time, at the start and after each pause.
//!
//! While a machine is paused, the kernel's APIC timers would run on. So when guest time stops, each local APIC
//! is read once, and is written back when it goes on: a timer then has as much left as it had.

use crate::raw;
use clock::Clock;
use cpu::Error;
use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_clock_data, kvm_msr_entry};
use kvm_ioctls::{VcpuFd, VmFd};
use x86::msr;

/// Makes a vCPU's TSC the clock's. Guest time runs.
pub(crate) fn set_tsc(vcpu: &VcpuFd, clock: &Clock, adjust: u64) -> Result<(), Error> {
    let (group, attribute) = (KVM_VCPU_TSC_CTRL, u64::from(KVM_VCPU_TSC_OFFSET));
    if raw::has_attribute(vcpu, group, attribute) {
        let offset = clock.tsc_offset().wrapping_add(adjust);
        return raw::set_attribute(vcpu, group, attribute, offset)
            .map_err(|e| crate::refused("KVM refuses the offset of a vCPU's TSC", e));
    }
    // Before Linux 5.16: the kernel derives the offset from a value, and makes those of vCPUs equal that are
    // set to nearly the same.
    let entry =
        kvm_msr_entry { index: msr::TSC, data: clock.tsc().wrapping_add(adjust), ..Default::default() };
    let msrs = Msrs::from_entries(&[entry]).expect("one entry fits");
    vcpu.set_msrs(&msrs).map_err(crate::kvm_refused("KVM refuses a vCPU's TSC")).map(drop)
}

/// Makes the kernel's paravirtual clock the machine's. Guest time runs.
pub(crate) fn set_kvmclock(vm: &VmFd, clock: &Clock) {
    let now = kvm_clock_data { clock: clock.now(), ..Default::default() };
    if let Err(e) = vm.set_clock(&now) {
        log::warn!("KVM refuses the time of the paravirtual clock: {e}");
    }
}
