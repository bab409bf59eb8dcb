//! CPUID models for KVM, and what KVM can give.

use crate::kvm_refused;
use cpu::{Error, ErrorKind};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use x86::cpuid::{Leaf, Register};

/// The leaves of one vCPU in KVM's form.
pub(crate) fn for_kernel(leaves: &[Leaf], apic_id: u32) -> Result<CpuId, Error> {
    let entries: Vec<_> = x86::cpuid::for_vcpu(leaves, apic_id)
        .into_iter()
        .map(|leaf| kvm_cpuid_entry2 {
            function: leaf.function,
            index: leaf.index.unwrap_or(0),
            flags: if leaf.index.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: leaf.eax,
            ebx: leaf.ebx,
            ecx: leaf.ecx,
            edx: leaf.edx,
            padding: [0; 3],
        })
        .collect();
    CpuId::from_entries(&entries)
        .map_err(|_| Error::new(ErrorKind::BadConfig, "the CPU model has more leaves than KVM takes"))
}

/// Features that are there although KVM does not list them: the hypervisor bit is the machine's to set, the
/// TSC deadline depends on where the local APIC is, and that the TSC is invariant on what guest time is made
/// from.
const ALSO_THERE: [(u32, Register, u32); 2] = [(1, Register::Ecx, 31), (0x8000_0007, Register::Edx, 8)];
const TSC_DEADLINE: (u32, Register, u32) = (1, Register::Ecx, 24);

/// SVM (APM vol. 3, appendix E.4.2) and VMX (SDM vol. 2A, table 3-10).
const NESTED: [(u32, Register, u32); 2] = [(0x8000_0001, Register::Ecx, 2), (1, Register::Ecx, 5)];

/// What KVM can give a guest here; virtualization itself only on request.
pub(crate) fn offered(kvm: &Kvm, nested: bool) -> Result<Vec<Leaf>, Error> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_refused("KVM does not say which processor features it has"))?;
    let mut leaves: Vec<Leaf> = supported
        .as_slice()
        .iter()
        .map(|entry| Leaf {
            function: entry.function,
            index: (entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0).then_some(entry.index),
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        })
        .collect();
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer).then_some(TSC_DEADLINE);
    for (function, register, bit) in ALSO_THERE.into_iter().chain(deadline) {
        let at = leaves.iter().position(|leaf| leaf.function == function).unwrap_or_else(|| {
            leaves.push(Leaf { function, index: None, eax: 0, ebx: 0, ecx: 0, edx: 0 });
            leaves.len() - 1
        });
        let leaf = &mut leaves[at];
        let value = match register {
            Register::Eax => &mut leaf.eax,
            Register::Ebx => &mut leaf.ebx,
            Register::Ecx => &mut leaf.ecx,
            Register::Edx => &mut leaf.edx,
        };
        *value |= 1 << bit;
    }
    if !nested {
        for (function, _, bit) in NESTED {
            leaves
                .iter_mut()
                .filter(|leaf| leaf.function == function)
                .for_each(|leaf| leaf.ecx &= !(1 << bit));
        }
    }
    Ok(leaves)
}
