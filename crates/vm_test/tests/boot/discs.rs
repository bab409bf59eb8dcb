//! What the world ships on discs, booted from a CD-ROM drive at the AHCI controller, seen on the screen and typed
//! into by the keyboard: no serial console is asked for. The installer also as its kernel and initrd alone.

use anyhow::{Context, Result, bail, ensure};
use api::worker::control::{Reply, Request};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use vm_test::{Case, Control, Firmware, Guest, Patience, Suite, Unavailable};

/// Where Debian's packages have their pieces.
const ISOLINUX: &str = "/usr/lib/ISOLINUX/isolinux.bin";
const LDLINUX: &str = "/usr/lib/syslinux/modules/bios/ldlinux.c32";
const INSTALLER: &str = "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64";
const MEMTEST: &str = "/usr/lib/memtest86+/memtest86+x64.iso";

pub(crate) fn add(suite: &mut Suite) {
    suite.worker_test("discs::grub_by_bios", grub_by_bios);
    suite.worker_test("discs::grub_by_uefi", grub_by_uefi);
    suite.worker_test("discs::memtest", memtest);
    suite.worker_test("discs::installer", installer);
    suite.worker_test("discs::installer_without_disc", installer_without_disc);
}

/// GRUB's rescue disc to its prompt, which answers what the keyboard types.
fn grub_by_bios(case: &Case) -> Result<()> {
    let disc = rescue_disc(case)?;
    let mut vm = from_disc(Firmware::Bios, &disc).start(&case.program, &case.folder)?;
    let screen = Screen(vm.control().clone());
    screen.wait_for("grub>")?;
    screen.keys(&[], "echo Typed: $grub_platform (9*7)\n")?;
    screen.wait_for("Typed: pc")?;
    // Reading the disc through the BIOS, from GRUB's own driver.
    screen.keys(&[], "ls (cd)/boot\n").and_then(|()| screen.wait_for("grub/"))?;
    let picture = screen.shot()?;
    ensure!(picture.is_lively(), "the picture of the screen shows nothing");
    screen.0.stop()?;
    vm.wait(Patience::Shutdown)?;
    Ok(())
}

/// The same by UEFI, whose screen is a frame buffer: its text is on the serial port as well.
fn grub_by_uefi(case: &Case) -> Result<()> {
    let disc = rescue_disc(case)?;
    let mut vm = from_disc(Firmware::Uefi, &disc).start(&case.program, &case.folder)?;
    let screen = Screen(vm.control().clone());
    vm.console().expect("grub>", Patience::Boot)?;
    screen.keys(&[], "echo Typed: $grub_platform\n")?;
    vm.console().expect("Typed: efi", Patience::Boot)?;
    ensure!(screen.text()?.is_none(), "the screen of UEFI firmware is a frame buffer");
    ensure!(screen.shot()?.is_lively(), "the picture of the screen shows nothing");
    screen.0.stop()?;
    vm.wait(Patience::Shutdown)?;
    Ok(())
}

/// A program that is no operating system's: Memtest86+ runs on the bare machine and finds its memory.
fn memtest(case: &Case) -> Result<()> {
    needs(&[MEMTEST], "memtest86+")?;
    let mut vm = from_disc(Firmware::Bios, Path::new(MEMTEST)).start(&case.program, &case.folder)?;
    let screen = Screen(vm.control().clone());
    screen.wait_for("Memtest86+ v6")?;
    screen.wait_for("Pass")?;
    screen.wait_for("Testing:")?;
    screen.0.stop()?;
    vm.wait(Patience::Shutdown)?;
    Ok(())
}

/// Debian's installer, started by ISOLINUX, to its first question.
fn installer(case: &Case) -> Result<()> {
    let (kernel, initrd) = (format!("{INSTALLER}/linux"), format!("{INSTALLER}/initrd.gz"));
    needs(
        &[ISOLINUX, LDLINUX, &kernel, &initrd],
        "isolinux syslinux-common debian-installer-12-netboot-amd64",
    )?;
    let tree = case.path("tree");
    std::fs::create_dir_all(tree.join("isolinux"))?;
    for (from, to) in [
        (ISOLINUX, "isolinux/isolinux.bin"),
        (LDLINUX, "isolinux/ldlinux.c32"),
        (&kernel, "linux"),
        (&initrd, "initrd.gz"),
    ] {
        std::fs::copy(from, tree.join(to)).with_context(|| format!("copy {from}"))?;
    }
    let menu = "DEFAULT install\nPROMPT 1\nTIMEOUT 600\nSAY A disc of the tests\nLABEL install\n \
                KERNEL /linux\n APPEND initrd=/initrd.gz fb=false nomodeset\n";
    std::fs::write(tree.join("isolinux/isolinux.cfg"), menu)?;
    let disc = case.path("installer.img");
    run(Command::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"])
        .args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-o"])
        .arg(&disc)
        .arg(&tree))?;
    std::fs::remove_dir_all(&tree)?;
    let mut vm = from_disc(Firmware::Bios, &disc).memory_mib(1024).start(&case.program, &case.folder)?;
    let screen = Screen(vm.control().clone());
    screen.wait_for("boot:")?;
    screen.keys(&["enter"], "")?;
    screen.wait_for("Select a language")?;
    // Its menu follows the keys.
    screen.keys(&["end", "home"], "")?;
    ensure!(screen.shot()?.is_lively(), "the picture of the screen shows nothing");
    screen.0.stop()?;
    vm.wait(Patience::Shutdown)?;
    Ok(())
}

/// Its kernel and initrd alone, as netboot has them, on a serial console: to the first question and past it.
fn installer_without_disc(case: &Case) -> Result<()> {
    let (kernel, initrd) = (format!("{INSTALLER}/linux"), format!("{INSTALLER}/initrd.gz"));
    needs(&[&kernel, &initrd], "debian-installer-12-netboot-amd64")?;
    let guest = Guest::new(Path::new(&kernel), Path::new(&initrd), "console=ttyS0").memory_mib(1024);
    let mut vm = guest.start(&case.program, &case.folder)?;
    vm.console().expect("Select a language", Patience::Boot)?;
    vm.console().expect("<Go Back>", Patience::Boot)?;
    // English is what it suggests.
    vm.console().send("\r")?;
    vm.console().expect("Select your location", Patience::Boot)?;
    vm.control().stop()?;
    vm.wait(Patience::Shutdown)?;
    Ok(())
}

fn from_disc(firmware: Firmware, disc: &Path) -> Guest {
    Guest::without_disk(firmware).memory_mib(512).worker_option("--cdrom", disc)
}

fn rescue_disc(case: &Case) -> Result<PathBuf> {
    let (tree, disc) = (case.path("tree"), case.path("rescue.img"));
    std::fs::create_dir_all(tree.join("boot/grub"))?;
    run(Command::new("grub-mkrescue").arg("-o").arg(&disc).arg(&tree)).context(
        "the rescue disc (Debian packages grub-common grub-pc-bin grub-efi-amd64-bin mtools xorriso)",
    )?;
    Ok(disc)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn needs(files: &[&str], packages: &str) -> Result<()> {
    match files.iter().find(|file| !Path::new(file).exists()) {
        None => Ok(()),
        Some(file) => bail!(Unavailable(format!("{file} is not there: apt-get install {packages}"))),
    }
}

/// The screen and keyboard of a machine.
struct Screen(Control);

/// A picture as it came.
struct Shot {
    width: u32,
    height: u32,
    png: String,
}

impl Shot {
    /// Whether there is more than one colour in it: a picture of these measures in one colour is packed into next to
    /// nothing.
    fn is_lively(&self) -> bool {
        self.width >= 640 && self.height >= 400 && self.png.len() > 4000
    }
}

impl Screen {
    fn text(&self) -> Result<Option<Vec<String>>> {
        match self.0.ask(Request::ScreenText {})? {
            Reply::ScreenText(text) => Ok(text.lines),
            other => bail!("a request for the screen was answered by {other:?}"),
        }
    }

    fn shot(&self) -> Result<Shot> {
        match self.0.ask(Request::Screenshot {})? {
            Reply::Screenshot(shot) => Ok(Shot { width: shot.width, height: shot.height, png: shot.png }),
            other => bail!("a request for the screen was answered by {other:?}"),
        }
    }

    fn keys(&self, keys: &[&str], text: &str) -> Result<()> {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        self.0.ask(Request::Keys { keys, text: text.to_owned() }).map(drop)
    }

    /// Looks at the screen until these words are on it.
    fn wait_for(&self, words: &str) -> Result<()> {
        let deadline = Instant::now() + Patience::Boot.limit();
        loop {
            let text = self.text()?.unwrap_or_default();
            if text.iter().any(|line| line.contains(words)) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{words:?} is not on the screen:\n{}", text.join("\n"));
            thread::sleep(Duration::from_millis(100));
        }
    }
}
