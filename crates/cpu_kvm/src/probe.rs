//! Finding out by trying whether KVM serves here.
//!
//! That `/dev/kvm` opens says little: where the processor has no hardware virtualization behind it, some hosts
//! execute user code well and interpret all of kernel mode, so slowly that stock kernels seem to hang. So some
//! thousand instructions of kernel mode are run in 64-bit mode, and timed.

mod guest;

use crate::engine::{KvmEngine, Options};
use cpu::{Speed, Support};
use kvm_ioctls::{Cap, Kvm};
use std::fs;
use std::path::Path;

/// The version of the interface, unchanged since 2007.
const API_VERSION: i32 = 12;

/// What this engine cannot do without.
const NEEDED: [(Cap, &str); 12] = [
    (Cap::UserMemory, "memory slots"),
    (Cap::SplitIrqchip, "a split interrupt chip"),
    (Cap::SignalMsi, "message-signalled interrupts"),
    (Cap::IrqRouting, "interrupt routing"),
    (Cap::Ioeventfd, "event descriptors for writes"),
    (Cap::ImmediateExit, "ending a run at once"),
    (Cap::MpState, "the state of start-up and halt"),
    (Cap::VcpuEvents, "pending events"),
    (Cap::Debugregs, "debug registers"),
    (Cap::Xsave, "XSAVE areas"),
    (Cap::Xcrs, "XCR0"),
    (Cap::AdjustClock, "setting the paravirtual clock"),
];

/// More nanoseconds for an instruction of kernel mode mean that no processor executes it: an interpreter
/// takes 700 to 2000, QEMU's emulation of a processor with virtualization 10 to 40, hardware less than 1.
const SLOWEST_NS: f64 = 200.0;

pub(crate) fn probe(engine: &KvmEngine, options: &Options) -> Support {
    let device = &options.device;
    let kvm = match engine.kvm() {
        Ok(kvm) => kvm,
        Err(errno) => return not_opened(device, errno),
    };
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return unusable(
            vec![format!(
                "{} speaks version {version} of its interface, not {API_VERSION}",
                device.display()
            )],
            vec![],
        );
    }
    let missing: Vec<_> =
        NEEDED.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect();
    if !missing.is_empty() {
        return unusable(
            vec![format!("the kernel's KVM lacks {}", missing.join(", "))],
            vec!["use a Linux kernel of version 5.4 or later".into()],
        );
    }
    let mut findings = vec![format!("{} opens and has all that is needed", device.display())];
    if options.nested {
        findings.push(nested(kvm));
    }
    match guest::run(kvm, SLOWEST_NS) {
        Err(why) => {
            findings.push(format!("kernel-mode code does not run: {why}"));
            unusable(findings, vec![advice_for_virtual_hosts()])
        }
        Ok(ns) if ns > SLOWEST_NS => {
            findings.push(format!(
                "kernel-mode code takes {ns:.0} ns an instruction, so it is interpreted and not executed by the \
                 processor: stock kernels would seem to hang"
            ));
            unusable(findings, vec![advice_for_virtual_hosts()])
        }
        Ok(ns) => {
            findings.push(format!("kernel-mode code runs, at {ns:.1} ns an instruction"));
            Support { usable: true, speed: Speed::Hardware, findings, remedies: vec![] }
        }
    }
}

fn unusable(findings: Vec<String>, remedies: Vec<String>) -> Support {
    Support { usable: false, speed: Speed::None, findings, remedies }
}

fn advice_for_virtual_hosts() -> String {
    "if this host is itself a virtual machine, switch on nested virtualization on the machine below it \
     (kvm_intel or kvm_amd with nested=1, and the processor passed through)"
        .into()
}

fn nested(kvm: &Kvm) -> String {
    match kvm.check_extension(Cap::NestedState) {
        true => "guests can be given hardware virtualization (nested)".into(),
        false => "guests cannot be given hardware virtualization (nested) here".into(),
    }
}

/// Why the device does not open, from what the host says of itself.
fn not_opened(device: &Path, errno: i32) -> Support {
    let error = std::io::Error::from_raw_os_error(errno);
    let finding = format!("{} does not open: {error}", device.display());
    let (module, flag) = if is_intel() { ("kvm_intel", "VMX") } else { ("kvm_amd", "SVM") };
    match errno {
        libc::EACCES | libc::EPERM => unusable(
            vec![finding],
            vec![format!(
                "join the group that owns {} (sudo usermod -aG kvm $USER, then log in again)",
                device.display()
            )],
        ),
        libc::ENOENT | libc::ENODEV | libc::ENXIO if has_virtualization() => unusable(
            vec![finding, format!("the processor has {flag}")],
            vec![
                format!("load the module (sudo modprobe {module})"),
                format!(
                    "if that fails, switch virtualization on in the firmware's setup ({})",
                    if is_intel() { "Intel VT-x" } else { "AMD-V, SVM" }
                ),
            ],
        ),
        libc::ENOENT | libc::ENODEV | libc::ENXIO => unusable(
            vec![finding, format!("the processor does not offer {flag}")],
            vec![advice_for_virtual_hosts()],
        ),
        _ => unusable(vec![finding], vec![]),
    }
}

/// The flags of the first processor.
fn has_virtualization() -> bool {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = info.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

fn is_intel() -> bool {
    std::arch::x86_64::__cpuid(0).ebx == u32::from_le_bytes(*b"Genu")
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpu::Engine;

    #[test]
    fn a_device_that_is_not_there_is_explained() {
        let engine = KvmEngine::new(Options { device: "/nonexistent/kvm".into(), nested: false });
        let support = engine.probe();
        assert!(!support.usable && support.speed == Speed::None);
        assert!(support.findings[0].contains("/nonexistent/kvm does not open"), "{support:?}");
        assert!(!support.remedies.is_empty());
    }

    #[test]
    fn each_reason_has_its_remedy() {
        let device = Path::new("/dev/kvm");
        assert!(not_opened(device, libc::EACCES).remedies[0].contains("group"));
        let absent = not_opened(device, libc::ENOENT);
        let expected = if has_virtualization() { "modprobe" } else { "nested" };
        assert!(absent.remedies[0].contains(expected), "{absent:?}");
    }

    #[test]
    fn a_file_that_is_no_device_is_not_taken_for_one() {
        let engine = KvmEngine::new(Options { device: "/dev/null".into(), nested: false });
        assert!(!engine.probe().usable);
    }

    #[test]
    fn probing_ends_and_says_why() {
        let support = KvmEngine::new(Options::default()).probe();
        assert!(!support.findings.is_empty());
        assert_eq!(support.usable, support.speed == Speed::Hardware, "{support:?}");
    }
}
