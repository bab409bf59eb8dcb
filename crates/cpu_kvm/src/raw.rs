//! The few requests to KVM for which `kvm_ioctls` has no function, and the numbers of all that this crate
//! makes, for the list of system calls that a sandbox allows.

use kvm_bindings::*;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes a request number (Linux, include/uapi/asm-generic/ioctl.h).
const fn number(direction: u64, nr: u64, size: usize) -> u64 {
    /// All of KVM's.
    const KVMIO: u64 = 0xae;
    direction << 30 | (size as u64) << 16 | KVMIO << 8 | nr
}

const NONE: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;

const X86_SETUP_MCE: u64 = number(WRITE, 0x9c, 8);
const SET_DEVICE_ATTR: u64 = number(WRITE, 0xe1, size_of::<kvm_device_attr>());
const HAS_DEVICE_ATTR: u64 = number(WRITE, 0xe3, size_of::<kvm_device_attr>());
const IRQFD: u64 = number(WRITE, 0x76, size_of::<kvm_irqfd>());
const IOEVENTFD: u64 = number(WRITE, 0x79, size_of::<kvm_ioeventfd>());

/// Every request that this engine makes once a machine is being built: nothing else has to be allowed.
/// What only [`Engine::probe`](cpu::Engine::probe) asks is not among them.
pub const IOCTLS: &[u64] = &[
    // Of the device.
    number(NONE, 0x01, 0),                               // KVM_CREATE_VM
    number(READ | WRITE, 0x02, size_of::<u32>()),        // KVM_GET_MSR_INDEX_LIST
    number(NONE, 0x03, 0),                               // KVM_CHECK_EXTENSION
    number(NONE, 0x04, 0),                               // KVM_GET_VCPU_MMAP_SIZE
    number(READ | WRITE, 0x05, size_of::<kvm_cpuid2>()), // KVM_GET_SUPPORTED_CPUID
    // Of a machine.
    number(NONE, 0x41, 0), // KVM_CREATE_VCPU
    number(WRITE, 0x42, size_of::<kvm_dirty_log>()),
    number(WRITE, 0x46, size_of::<kvm_userspace_memory_region>()),
    number(NONE, 0x47, 0),                 // KVM_SET_TSS_ADDR
    number(WRITE, 0x48, size_of::<u64>()), // KVM_SET_IDENTITY_MAP_ADDR
    number(WRITE, 0x6a, size_of::<kvm_irq_routing>()),
    number(WRITE, 0x7b, size_of::<kvm_clock_data>()),
    number(WRITE, 0xa3, size_of::<kvm_enable_cap>()),
    number(WRITE, 0xa5, size_of::<kvm_msi>()),
    IRQFD,
    IOEVENTFD,
    // Of a vCPU.
    number(NONE, 0x80, 0), // KVM_RUN
    number(READ, 0x81, size_of::<kvm_regs>()),
    number(WRITE, 0x82, size_of::<kvm_regs>()),
    number(READ, 0x83, size_of::<kvm_sregs>()),
    number(WRITE, 0x84, size_of::<kvm_sregs>()),
    number(READ | WRITE, 0x88, size_of::<kvm_msrs>()),
    number(WRITE, 0x89, size_of::<kvm_msrs>()),
    number(READ, 0x8e, size_of::<kvm_lapic_state>()),
    number(WRITE, 0x8f, size_of::<kvm_lapic_state>()),
    number(WRITE, 0x90, size_of::<kvm_cpuid2>()),
    number(READ, 0x98, size_of::<kvm_mp_state>()),
    number(WRITE, 0x99, size_of::<kvm_mp_state>()),
    X86_SETUP_MCE,
    number(READ, 0x9f, size_of::<kvm_vcpu_events>()),
    number(WRITE, 0xa0, size_of::<kvm_vcpu_events>()),
    number(READ, 0xa1, size_of::<kvm_debugregs>()),
    number(WRITE, 0xa2, size_of::<kvm_debugregs>()),
    number(READ, 0xa4, size_of::<kvm_xsave>()),
    number(WRITE, 0xa5, size_of::<kvm_xsave>()),
    number(READ, 0xa6, size_of::<kvm_xcrs>()),
    number(WRITE, 0xa7, size_of::<kvm_xcrs>()),
    number(NONE, 0xad, 0), // KVM_KVMCLOCK_CTRL
    SET_DEVICE_ATTR,
    HAS_DEVICE_ATTR,
];

/// Sets up a vCPU's machine-check registers: IA32_MCG_CAP.
pub(crate) fn setup_mce(vcpu: &impl AsRawFd, capabilities: u64) -> io::Result<()> {
    request(vcpu, X86_SETUP_MCE, &capabilities)
}

/// Sets an attribute of a vCPU to a number.
pub(crate) fn set_attribute(vcpu: &impl AsRawFd, group: u32, attribute: u64, value: u64) -> io::Result<()> {
    request(vcpu, SET_DEVICE_ATTR, &attribute_of(group, attribute, &value))
}

/// Whether a vCPU has an attribute.
pub(crate) fn has_attribute(vcpu: &impl AsRawFd, group: u32, attribute: u64) -> bool {
    request(vcpu, HAS_DEVICE_ATTR, &attribute_of(group, attribute, &0)).is_ok()
}

fn attribute_of(group: u32, attr: u64, value: &u64) -> kvm_device_attr {
    kvm_device_attr { flags: 0, group, attr, addr: std::ptr::from_ref(value) as u64 }
}

/// Turns the guest's writes of `len` bytes at `gpa` into writes of 1 to an event descriptor, or no longer.
pub(crate) fn ioeventfd(
    vm: &impl AsRawFd,
    gpa: u64,
    len: u32,
    event: BorrowedFd<'_>,
    assign: bool,
) -> io::Result<()> {
    let flags = if assign { 0 } else { 1 << kvm_ioeventfd_flag_nr_deassign };
    let argument = kvm_ioeventfd { datamatch: 0, addr: gpa, len, fd: event.as_raw_fd(), flags, pad: [0; 36] };
    request(vm, IOEVENTFD, &argument)
}

/// Makes writes to an event descriptor raise interrupt `gsi`, or no longer; then what was written before has
/// been delivered when this returns.
pub(crate) fn irqfd(vm: &impl AsRawFd, event: BorrowedFd<'_>, gsi: u32, assign: bool) -> io::Result<()> {
    let flags = if assign { 0 } else { KVM_IRQFD_FLAG_DEASSIGN };
    let argument = kvm_irqfd { fd: event.as_raw_fd() as u32, gsi, flags, ..Default::default() };
    request(vm, IRQFD, &argument)
}

fn request<T>(of: &impl AsRawFd, number: u64, argument: &T) -> io::Result<()> {
    // SAFETY: the requests above read a value of the type that is given, which lives until they return;
    // attributes point to a number that does, too.
    let result = unsafe { libc::ioctl(of.as_raw_fd(), number, std::ptr::from_ref(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel() {
        // From strace's tables.
        for known in [0xae01, 0xc008_ae05, 0x4020_ae46, 0xae80, 0x4090_ae82, 0x8138_ae83, 0xc008_ae88] {
            assert!(IOCTLS.contains(&known), "{known:#x}");
        }
        assert_eq!((X86_SETUP_MCE, IOEVENTFD, IRQFD), (0x4008_ae9c, 0x4040_ae79, 0x4020_ae76));
    }
}
