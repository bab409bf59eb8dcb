//! Debian on a disk with boot loaders, started by stock firmware: from the reset vector over firmware, GRUB
//! and systemd to the login prompt, and down again.

use anyhow::{Result, ensure};
use vm_test::{Case, Firmware, Guest, Patience, Suite, copy_sparse, debian};

pub(crate) fn add(suite: &mut Suite) {
    suite.matrix("firmware::bios", &[2], |case| boot(case, Firmware::Bios));
    suite.matrix("firmware::uefi", &[1], |case| boot(case, Firmware::Uefi));
}

fn boot(case: &Case, firmware: Firmware) -> Result<()> {
    let disk = case.path("disk.img");
    copy_sparse(&case.artifacts.bootable.disk, &disk)?;
    let guest = Guest::firmware(firmware, &disk).cpus(case.cpus).reboots();
    let mut vm = guest.start(&case.program, &case.folder)?;
    let mut shell = debian::log_in(&mut vm, &case.artifacts)?;
    let nproc = shell.check("nproc")?;
    ensure!(nproc == case.cpus.to_string(), "the guest has {nproc} processors");
    let mode = shell.check("test -d /sys/firmware/efi && echo uefi || echo bios")?;
    let expected = if firmware == Firmware::Uefi { "uefi" } else { "bios" };
    ensure!(mode == expected, "the guest was started by {mode}");
    // What firmware passed on: the machine's tables, at the addresses that it gave them.
    let tables = shell.check("ls /sys/firmware/acpi/tables /sys/firmware/dmi/tables | tr '\\n' ' '")?;
    for table in ["APIC", "DSDT", "FACP", "MCFG", "smbios_entry_point"] {
        ensure!(tables.contains(table), "the guest has no {table}: {tables}");
    }
    let errors =
        shell.check("dmesg -l err,crit,alert,emerg | grep -iE 'acpi|pci|bios|efi|mmconfig' || true")?;
    ensure!(errors.is_empty(), "the guest complains of its machine: {errors}");
    shell.send("poweroff")?;
    vm.wait(Patience::Shutdown)?.expect_code(0)
}
