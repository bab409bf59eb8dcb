//! Images that recipes make to be booted by firmware: here, and by QEMU, whose firmware is another and whose disk is
//! an export. In a full run only: the base is made of packages.

use anyhow::{Result, ensure};
use vm_test::{Arnia, Case, Firmware, Guest, Patience, Program, Suite};

pub(crate) fn add(suite: &mut Suite) {
    suite.full_engineless_test("loaders::bios", |case| image(case, Firmware::Bios, "bios"));
    suite.full_engineless_test("loaders::uefi", |case| image(case, Firmware::Uefi, "uefi"));
}

fn image(case: &Case, firmware: Firmware, word: &str) -> Result<()> {
    let arnia = Arnia::new()?.with_images(&case.folder.with_file_name("images"));
    let recipe = case.path("loader.yaml");
    let text = format!(
        "name: {word}-loader:1\nfrom: {{image: debian}}\nfirmware: {word}\nappend: it=here\n\
         run: [\"echo made > /srv/made\"]\n"
    );
    std::fs::write(&recipe, text)?;
    arnia.run(&["image", "build", "debian"])?;
    arnia.run(&["image", "build", &recipe.to_string_lossy()])?;
    let name = format!("{word}-loader:1");
    ensure!(arnia.json(&["image", "info", &name])?["manifest"]["boot"]["firmware"]["firmware"] == word);

    // Here, on a larger disk.
    arnia.run(&["run", &name, "--name", "one", "--disk", "6G", "--", "true"])?;
    let inside = |line: &str| -> Result<String> {
        Ok(arnia.run(&["exec", "one", "--", "sh", "-c", line])?.trim_end().to_owned())
    };
    let found = inside(
        "cat /srv/made; hostname; [ ! -e /sys/firmware/efi ] || echo uefi; grep -o it=here /proc/cmdline;
         systemctl is-system-running --wait; [ $(df -k --output=size / | tail -n 1) -gt 5500000 ] && echo large",
    )?;
    let efi = if firmware == Firmware::Uefi { "uefi\n" } else { "" };
    ensure!(found == format!("made\none\n{efi}it=here\nrunning\nlarge"), "{found}");

    // Under QEMU, from an export.
    let disk = case.path("exported.raw");
    arnia.run(&["image", "export", &name, &disk.to_string_lossy()])?;
    let mut vm = Guest::firmware(firmware, &disk).start(&Program::Qemu, &case.folder)?;
    vm.console().expect("login:", Patience::Login)?;
    Ok(())
}
