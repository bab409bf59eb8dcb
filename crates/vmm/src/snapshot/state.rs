//! The state of a machine beside its memory and its disks: `state.json`.

use clock::ClockSaved;
use platform::PlatformSaved;
use scsi::ahci::AhciSaved;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use virtio::VirtioPciSaved;
use x86::CpuState;

/// Versions of the parts' saved forms. One is raised when a field changes its meaning, so that an older
/// program refuses what it would misunderstand; fields that are only added have defaults.
const VERSIONS: [(&str, u32); 21] = [
    ("cpu", x86::state::VERSION),
    ("clock", 1),
    ("serial", 1),
    ("rtc", 1),
    ("pic", 1),
    ("pit", 1),
    ("ioapic", 1),
    ("i8042", 1),
    ("acpi_pm", 1),
    ("pci", 1),
    ("fw_cfg", 1),
    ("virtio", 1),
    ("virtio_blk", 1),
    ("virtio_net", 1),
    ("virtio_console", 1),
    ("virtio_vsock", 1),
    ("virtio_serial", 1),
    ("virtio_fs", 1),
    ("vga", 1),
    ("keyboard", 1),
    ("ahci", 1),
];

/// Processors, devices and clock of a machine that stands still.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineSaved {
    /// By part.
    versions: BTreeMap<String, u32>,
    /// Guest time.
    pub clock: ClockSaved,
    /// Processors by APIC ID.
    pub vcpus: Vec<CpuState>,
    /// The PC's own devices.
    pub platform: PlatformSaved,
    /// PCI functions, in the order of their places.
    pub functions: Vec<FunctionSaved>,
    /// The AHCI controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahci: Option<AhciSaved>,
    /// Guest-physical address of the generation ID, if the guest was told one.
    #[serde(default)]
    pub generation_id: Option<u64>,
}

/// A PCI function.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FunctionSaved {
    /// Its name: `disk0`, `net0`, …
    pub name: String,
    /// Its state.
    pub state: VirtioPciSaved,
}

impl MachineSaved {
    /// Gathers the state of a machine.
    pub fn new(
        clock: ClockSaved,
        vcpus: Vec<CpuState>,
        platform: PlatformSaved,
        functions: Vec<FunctionSaved>,
        generation_id: Option<u64>,
    ) -> MachineSaved {
        let versions = VERSIONS.map(|(part, version)| (part.to_owned(), version)).into();
        MachineSaved { versions, clock, vcpus, platform, functions, ahci: None, generation_id }
    }

    /// The written form.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data")
    }

    /// Reads a written form. What the parts say is checked by them when they take it over.
    ///
    /// # Errors
    /// What is wrong, as a clause.
    pub fn decode(bytes: &[u8]) -> Result<MachineSaved, String> {
        #[derive(Deserialize)]
        struct Head {
            versions: BTreeMap<String, u32>,
        }
        let damaged = |e: serde_json::Error| format!("its state is not one of a machine: {e}");
        let head: Head = serde_json::from_slice(bytes).map_err(damaged)?;
        for (part, version) in &head.versions {
            match VERSIONS.iter().find(|(known, _)| known == part) {
                Some((_, known)) if version <= known => {}
                Some((_, known)) => {
                    return Err(format!(
                        "the state of {part} has version {version}, and this program knows up to {known}"
                    ));
                }
                None => {
                    return Err(format!("it has the state of {part:?}, which this program does not know"));
                }
            }
        }
        serde_json::from_slice(bytes).map_err(damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_parts_are_refused_by_name() {
        for (text, word) in [
            ("{}", "versions"),
            (r#"{"versions": {"rtc": 2}}"#, "rtc has version 2"),
            (r#"{"versions": {"hpet": 1}}"#, "\"hpet\""),
            (r#"{"versions": {"rtc": 1}}"#, "clock"),
            ("\0", "not one"),
        ] {
            let error = MachineSaved::decode(text.as_bytes()).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
