//! What waits to be delivered.

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_MOV_SS,
    KVM_X86_SHADOW_INT_STI, kvm_vcpu_events,
};
use x86::reg::rflags;
use x86::state::{CpuState, PendingEvents};

const PAGE_FAULT: u8 = 14;
/// Exceptions have the vectors below.
const EXCEPTIONS: u8 = 32;
const NMI: u8 = 2;

/// All but the external interrupt.
pub(super) fn save(events: &kvm_vcpu_events, cr2: u64) -> PendingEvents {
    let exception = &events.exception;
    let code = (exception.has_error_code != 0).then_some(exception.error_code);
    let begun = exception.injected != 0 || exception.pending != 0;
    PendingEvents {
        // One whose delivery has begun is delivered anew.
        nmi: events.nmi.pending != 0 || events.nmi.injected != 0,
        nmi_blocked: events.nmi.masked != 0 && events.nmi.injected == 0,
        interrupt_shadow: events.interrupt.shadow != 0,
        exception: begun.then_some((exception.nr, code, if exception.nr == PAGE_FAULT { cr2 } else { 0 })),
        interrupt: None,
    }
}

/// The external interrupt whose delivery has begun.
pub(super) fn interrupt(events: &kvm_vcpu_events) -> Option<u8> {
    (events.interrupt.injected != 0 && events.interrupt.soft == 0).then_some(events.interrupt.nr)
}

pub(super) fn for_kernel(state: &CpuState) -> kvm_vcpu_events {
    let pending = &state.pending;
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    events.nmi.pending = pending.nmi.into();
    events.nmi.masked = pending.nmi_blocked.into();
    if pending.interrupt_shadow {
        // With IF clear it can only be that of MOV SS, and processors refuse the other (SDM vol. 3C,
        // §27.3.1.5).
        let sti = state.rflags & rflags::IF != 0;
        events.interrupt.shadow = if sti { KVM_X86_SHADOW_INT_STI } else { KVM_X86_SHADOW_INT_MOV_SS } as u8;
    }
    if let Some((vector, code, _)) = pending.exception {
        let exception = &mut events.exception;
        (exception.injected, exception.nr) = (1, vector);
        (exception.has_error_code, exception.error_code) = (code.is_some().into(), code.unwrap_or(0));
    } else if let Some(vector) = pending.interrupt {
        (events.interrupt.injected, events.interrupt.nr) = (1, vector);
    }
    events
}

/// CR2: that of a page fault that waits, or the register.
pub(super) fn fault_address(state: &CpuState) -> u64 {
    match state.pending.exception {
        Some((PAGE_FAULT, _, address)) => address,
        _ => state.cr2,
    }
}

pub(super) fn check(pending: &PendingEvents) -> Result<(), String> {
    match pending.exception {
        Some((vector, code, _)) if vector >= EXCEPTIONS || vector == NMI || code > Some(0xffff) => {
            Err(format!("no exception {vector} with code {code:x?} can be pending"))
        }
        _ => Ok(()),
    }
}
