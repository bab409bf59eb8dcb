//! Boots nothing, but reads and loads the stock Debian kernel that `cargo xtask` fetches into `.cache`.

use boot::{AddressRange, Entry, Inputs, Kernel, Machine, Method, Plan};
use memory::{Bytes, GuestAddress, Ram};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Kernels below the cache folder, or the one named by `ARNIA_TEST_KERNEL`.
fn kernels() -> Vec<PathBuf> {
    if let Some(path) = std::env::var_os("ARNIA_TEST_KERNEL") {
        return vec![path.into()];
    }
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/guests")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type());
            if kind.as_ref().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            } else if entry.file_name().to_string_lossy().starts_with("vmlinuz")
                && kind.is_ok_and(|kind| kind.is_file())
            {
                found.push(path);
            }
        }
    }
    found
}

fn machine() -> Machine {
    Machine {
        vcpus: 1,
        uuid: [0; 16],
        serial_number: String::new(),
        cpu_name: String::new(),
        local_apic: 0xfee0_0000,
        io_apic: 0xfec0_0000,
        io_apic_id: 0,
        timer_gsi: 2,
        ecam: AddressRange { start: 0xe000_0000, len: 1 << 28 },
        ecam_decoded: 1 << 28,
        pci_io: AddressRange { start: 0xc000, len: 0x4000 },
        pci_mmio32: AddressRange { start: 0xc000_0000, len: 1 << 28 },
        pci_mmio64: AddressRange { start: 1 << 40, len: 1 << 38 },
        pci_interrupts: Vec::new(),
        power: boot::PowerManagement {
            event_port: 0x600,
            control_port: 0x604,
            timer_port: 0x608,
            timer_is_32_bit: true,
            gpe0: None,
            sci: 9,
            sleep_type_s5: 5,
            reset: (0xcf9, 6),
        },
        serial_ports: Vec::new(),
        rtc: boot::Rtc { port: 0x70, irq: 8, century: 0x32 },
        has_display: false,
        generation_id: None,
    }
}

#[test]
fn stock_kernels_are_decompressed_and_loaded() {
    let kernels = kernels();
    if kernels.is_empty() {
        eprintln!("SKIPPED: no Debian kernel in .cache/guests (cargo xtask guests fetches one)");
    }
    for path in kernels {
        let ram = Ram::new(256 << 20).unwrap();
        for method in [Method::Direct, Method::SelfDecompressing] {
            let kernel = Kernel::read(&File::open(&path).unwrap()).unwrap();
            assert_eq!(kernel.format_name(), "bzImage");
            let inputs = Inputs { ram: &ram, initrd_size: None, command_line: "quiet", method };
            let plan = Plan::new(kernel, inputs).unwrap();
            let entry = plan.load(&ram, None, &machine(), [0; 32]).unwrap();
            // Debian's kernels are linked for 16 MiB, and prefer to be unpacked there.
            let expected = if method == Method::Direct { 0x100_0000 } else { 0x100_0200 };
            assert!(matches!(entry, Entry::Linux64 { rip, .. } if rip == expected), "{path:?}: {entry:x?}");
            if method == Method::Direct {
                let mut code = vec![0; 64 << 20];
                ram.guest().read_slice(&mut code, GuestAddress(0x100_0000)).unwrap();
                let text = b"Linux version ";
                assert!(code.windows(text.len()).any(|window| window == text), "{path:?}");
            }
        }
    }
}
