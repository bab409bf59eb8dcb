//! Debian on a disk with boot loaders, started by stock firmware: from the reset vector over firmware, GRUB
//! and systemd to the login prompt, and down again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use api::worker::control::{Reply, Request};
use vm_test::{Case, Firmware, Guest, Patience, Suite, copy_sparse, debian};

pub(crate) fn add(suite: &mut Suite) {
    suite.matrix("firmware::bios", &[2], |case| boot(case, Firmware::Bios));
    suite.worker_test("firmware::scsi_by_bios", |case| scsi(case, Firmware::Bios));
    suite.worker_test("firmware::scsi_by_uefi", |case| scsi(case, Firmware::Uefi));
    suite.matrix("firmware::uefi", &[1], |case| boot(case, Firmware::Uefi));
}

/// Has the boot loader's configuration and the table of file systems on a disk name it otherwise. Each is one block of a
/// file, in which the new name takes the place of the old one.
fn name_root(disk: &Path, old: &[u8; 8], new: &[u8; 8]) -> Result<()> {
    const STEP: usize = 1 << 20;
    let file = File::options().read(true).write(true).open(disk)?;
    let (len, mut found) = (file.metadata()?.len(), 0);
    let mut bytes = vec![0; STEP + old.len()];
    for start in (0..len).step_by(STEP) {
        let here = bytes.len().min((len - start) as usize);
        file.read_exact_at(&mut bytes[..here], start)?;
        for at in
            bytes[..here].windows(old.len()).enumerate().filter(|(_, name)| name == old).map(|(at, _)| at)
        {
            file.write_all_at(new, start + at as u64)?;
            found += 1;
        }
    }
    ensure!(found == 2, "{found} places on the disk name it");
    Ok(())
}

/// The same from a SCSI disk, with a disc in a SCSI drive beside it.
fn scsi(case: &Case, firmware: Firmware) -> Result<()> {
    let (disk, disc) = (case.path("disk.img"), case.path("disc.iso"));
    copy_sparse(&case.artifacts.bootable.disk, &disk)?;
    name_root(&disk, b"/dev/vda", b"/dev/sda")?;
    let pattern: Vec<u8> = (0..64u32 << 10).map(|i| (i / 2048 * 7 + i) as u8).collect();
    std::fs::write(&disc, &pattern)?;
    let drive = format!("path={},bus=scsi", disc.display());
    std::fs::create_dir(case.path("disks"))?;
    let guest = Guest::firmware(firmware, &disk).scsi().worker_option("--cdrom", &drive);
    let mut vm = guest.disk_folder(&case.path("disks")).start(&case.program, &case.folder)?;
    let control = vm.control().clone();
    let mut shell = debian::log_in(&mut vm, &case.artifacts)?;
    let root = shell.check("findmnt -no SOURCE / | sed 's/[0-9]*$//'")?;
    ensure!(root == "/dev/sda", "the root file system is on {root}");
    shell.check("test ! -e /dev/vda")?;
    let told =
        shell.check("sha256sum < /dev/sr0; cat /sys/class/scsi_device/*/device/model | tr -s ' \\n' ' '")?;
    let expected = shell.check(&format!(
        "perl -e 'for my $i (0..{}) {{ print chr((int($i / 2048) * 7 + $i) & 255) }}' | sha256sum",
        pattern.len() - 1
    ))?;
    ensure!(told.starts_with(&expected), "the disc is another: {told}, not {expected}");
    // Written, trimmed, and there again.
    shell.check("dd if=/dev/urandom of=/root/file bs=1M count=4 2>/dev/null && sync && sha256sum /root/file > /root/sum")?;
    shell.check("fstrim / && echo 3 > /proc/sys/vm/drop_caches && sha256sum -c /root/sum")?;
    // Its images change while it is in use, and the guest learns of another size.
    let noise = "(while [ ! -e /root/stop ]; do dd if=/dev/urandom of=/root/noise bs=64k count=64 conv=fsync 2>/dev/null; done; touch /root/stopped) &";
    shell.check(noise)?;
    let order = |request: Request| match control.ask(request)? {
        Reply::Done => Ok(()),
        other => bail!("an order was answered by {other:?}"),
    };
    order(Request::DiskOverlay { disk: 0, path: "over.qcow2".into() })?;
    shell.check("sha256sum -c /root/sum && echo kept > /root/kept && sync")?;
    order(Request::DiskCommit { disk: 0 })?;
    ensure!(!case.path("disks/over.qcow2").exists(), "the overlay that was committed is still there");
    let size = disk.metadata()?.len() + (64 << 20);
    order(Request::DiskResize { disk: 0, size })?;
    shell.check(&format!("until [ $(cat /sys/block/sda/size) = {} ]; do sleep 0.1; done", size / 512))?;
    shell.check(
        "touch /root/stop; until [ -e /root/stopped ]; do sleep 0.1; done; echo 3 > /proc/sys/vm/drop_caches",
    )?;
    shell.check("sha256sum -c /root/sum && grep kept /root/kept")?;
    control.ask(Request::DiskLimits { disk: 0, limits: Default::default() })?;
    let errors =
        shell.check("dmesg -l err,crit,alert,emerg | grep -E '(scsi|sd|sr|virtio) ?[0-9]' || true")?;
    ensure!(errors.is_empty(), "the guest complains of its disks: {errors}");
    shell.send("poweroff")?;
    vm.wait(Patience::Shutdown)?.expect_code(0)
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
