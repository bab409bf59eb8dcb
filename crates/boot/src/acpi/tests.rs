use super::*;
use std::process::Command;

fn u32_at(image: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(image[at..at + 4].try_into().unwrap())
}

/// The tables that the RSDP leads to, by signature, DSDT and FACS included.
fn tables(image: &[u8]) -> Vec<(String, Vec<u8>)> {
    let offset = |address: u64| (address - layout::ACPI.start) as usize;
    let u64_at = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
    let table = |at: usize| {
        let len = u32_at(image, at + 4) as usize;
        (String::from_utf8(image[at..at + 4].to_vec()).unwrap(), image[at..at + len].to_vec())
    };
    let xsdt = table(offset(u64_at(24)));
    assert_eq!(xsdt.0, "XSDT");
    let mut found = vec![xsdt.clone()];
    for entry in xsdt.1[36..].chunks(8) {
        let (name, bytes) = table(offset(u64::from_le_bytes(entry.try_into().unwrap())));
        if name == "FACP" {
            found.push(table(offset(u32_at(&bytes, 36) as u64)));
            found.push(table(offset(u32_at(&bytes, 40) as u64)));
        }
        found.push((name, bytes));
    }
    found
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn the_rsdp_leads_to_every_table_and_their_sums_are_zero() {
    let image = image(&Machine::example()).unwrap();
    assert_eq!(&image[..8], b"RSD PTR ");
    assert_eq!((sum(&image[..20]), sum(&image[..36])), (0, 0));
    let tables = tables(&image);
    let names: Vec<_> = tables.iter().map(|t| t.0.as_str()).collect();
    assert_eq!(names, ["XSDT", "FACS", "DSDT", "FACP", "APIC", "MCFG", "WAET"]);
    for (name, bytes) in &tables {
        assert!(name == "FACS" || sum(bytes) == 0, "{name}");
    }
}

#[test]
fn the_fadt_tells_where_power_management_is() {
    let machine = Machine::example();
    let image = image(&machine).unwrap();
    let fadt = &tables(&image).into_iter().find(|t| t.0 == "FACP").unwrap().1;
    assert_eq!(fadt.len(), 276);
    assert_eq!(u32_at(fadt, 56), 0x600, "PM1a_EVT_BLK");
    assert_eq!(u32_at(fadt, 64), 0x604, "PM1a_CNT_BLK");
    assert_eq!(u32_at(fadt, 76), 0x608, "PM_TMR_BLK");
    assert_eq!(u32_at(fadt, 48), 0, "SMI_CMD: always in ACPI mode");
    assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 0b1_0101, "ISA devices, no 8042, no VGA, no ASPM");
    let with_display = super::image(&Machine { has_display: true, ..machine }).unwrap();
    let other = &tables(&with_display).into_iter().find(|t| t.0 == "FACP").unwrap().1;
    assert_eq!(u16::from_le_bytes([other[109], other[110]]), 0b1_0011, "an 8042 and a VGA");
    let flags = u32_at(fadt, 112);
    assert_eq!(flags & 1 << 4, 0, "the power button is fixed hardware");
    assert_ne!(flags & 1 << 10, 0, "there is a reset register");
    assert_eq!((fadt[116], fadt[128]), (1, 6), "in port space; the value to write");
    assert_eq!(u64::from_le_bytes(fadt[120..128].try_into().unwrap()), 0xcf9);
}

#[test]
fn every_processor_is_in_the_madt() {
    for vcpus in [1, 2, 255, 300] {
        let machine = Machine { vcpus, ..Machine::example() };
        let image = image(&machine).unwrap();
        let madt = &tables(&image).into_iter().find(|t| t.0 == "APIC").unwrap().1;
        let (mut at, mut ids, mut overrides) = (44, Vec::new(), Vec::new());
        while at < madt.len() {
            match madt[at] {
                0 => ids.push(madt[at + 3] as u32),
                9 => ids.push(u32_at(madt, at + 4)),
                2 => overrides.push((madt[at + 3], u32_at(madt, at + 4), madt[at + 8])),
                _ => {}
            }
            at += madt[at + 1] as usize;
        }
        assert_eq!(ids, (0..vcpus).collect::<Vec<_>>());
        assert_eq!(overrides, [(0, 2, 0), (9, 9, 0b1101)]);
    }
}

#[test]
fn a_machine_that_does_not_fit_is_refused() {
    let machine = Machine { vcpus: 3000, ..Machine::example() };
    assert_eq!(image(&machine).unwrap_err().kind(), ErrorKind::BadMachine);
}

/// The reference compiler of ACPI reads what we wrote.
#[test]
fn iasl_disassembles_the_tables_and_compiles_them_again() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIPPED: iasl (Debian package acpica-tools) is not installed");
        return;
    }
    let dir = std::env::temp_dir().join(format!("arnia-acpi-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let image = image(&Machine::example()).unwrap();
    for (name, bytes) in tables(&image) {
        std::fs::write(dir.join(format!("{name}.dat")), bytes).unwrap();
        let iasl = |args: &[&str]| {
            let output = Command::new("iasl").args(args).current_dir(&dir).output().unwrap();
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            (output.status.success(), text)
        };
        let (done, text) = iasl(&["-d", &format!("{name}.dat")]);
        assert!(done && !text.contains("Error") && !text.contains("Warning"), "{name}: {text}");
        if name == "DSDT" {
            let (done, text) = iasl(&["-p", "again", "-vw", "2095", "DSDT.dsl"]);
            assert!(done && text.contains("0 Errors, 0 Warnings"), "{text}");
        }
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
