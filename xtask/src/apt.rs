//! Host packages: which are missing, and how to get them.

use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::host;

/// A program that a task calls and the Debian package that brings it.
pub(crate) struct Need {
    /// What to look for: a program's name, or a file's full path.
    pub(crate) probe: &'static str,
    /// The package to install when it is not there.
    pub(crate) package: &'static str,
}

/// What building and linking the workspace takes besides Rust.
pub(crate) const BUILD: &[Need] = &[
    Need { probe: "cc", package: "gcc" },
    Need { probe: "/usr/lib/x86_64-linux-gnu/crt1.o", package: "libc6-dev" },
];

/// What the guest artifacts are made with.
pub(crate) const GUESTS: &[Need] = &[
    Need { probe: "mmdebstrap", package: "mmdebstrap" },
    Need { probe: "mke2fs", package: "e2fsprogs" },
    Need { probe: "tar", package: "tar" },
    Need { probe: "sfdisk", package: "fdisk" },
    Need { probe: "mformat", package: "mtools" },
    Need { probe: "grub-mkimage", package: "grub-common" },
    Need { probe: "/usr/lib/grub/i386-pc/boot.img", package: "grub-pc-bin" },
    Need { probe: "/usr/lib/grub/x86_64-efi/normal.mod", package: "grub-efi-amd64-bin" },
    Need { probe: "/usr/share/keyrings/debian-archive-keyring.gpg", package: "debian-archive-keyring" },
];

/// What building guests takes in addition when not root: a view of file owners other than one's own.
pub(crate) const GUESTS_ROOTLESS: &[Need] =
    &[Need { probe: "newuidmap", package: "uidmap" }, Need { probe: "fakeroot", package: "fakeroot" }];

/// QEMU's guest agent, for a guest that has it.
pub(crate) const QEMU_AGENT: &[Need] = &[
    Need { probe: "/usr/sbin/qemu-ga", package: "qemu-guest-agent" },
    Need { probe: "ldd", package: "libc-bin" },
];

/// The firmware that boots disks.
pub(crate) const FIRMWARE: &[Need] = &[
    Need { probe: "/usr/share/seabios/bios-256k.bin", package: "seabios" },
    Need { probe: "/usr/share/OVMF/OVMF_CODE.fd", package: "ovmf" },
];

/// The program that figures and kernel logs are compared with.
pub(crate) const QEMU: &[Need] = &[Need { probe: "qemu-system-x86_64", package: "qemu-system-x86" }];

/// What judges disk images, and makes a file system whose files share blocks.
pub(crate) const QEMU_TOOLS: &[Need] = &[
    Need { probe: "qemu-img", package: "qemu-utils" },
    Need { probe: "/usr/sbin/mkfs.btrfs", package: "btrfs-progs" },
];

/// What programs of PyPI are installed with.
pub(crate) const VENV: &[Need] = &[
    Need { probe: "python3", package: "python3" },
    Need { probe: "/usr/lib/python3.11/ensurepip", package: "python3-venv" },
];

/// What the tests make discs of, and boot from them.
pub(crate) const DISCS: &[Need] = &[
    Need { probe: "xorriso", package: "xorriso" },
    Need { probe: "grub-mkrescue", package: "grub-common" },
    Need { probe: "mformat", package: "mtools" },
    Need { probe: "/usr/lib/ISOLINUX/isolinux.bin", package: "isolinux" },
    Need { probe: "/usr/lib/syslinux/modules/bios/ldlinux.c32", package: "syslinux-common" },
    Need { probe: "/usr/lib/memtest86+/memtest86+x64.iso", package: "memtest86+" },
    Need {
        probe: "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64/linux",
        package: "debian-installer-12-netboot-amd64",
    },
];

/// Where images are offered, and how users come in, in the tests.
pub(crate) const IMAGES: &[Need] = &[
    Need { probe: "docker-registry", package: "docker-registry" },
    Need { probe: "/usr/sbin/nginx", package: "nginx-light" },
    Need { probe: "openssl", package: "openssl" },
    Need { probe: "ssh", package: "openssh-client" },
];

/// What makes programs smaller.
pub(crate) const BINUTILS: &[Need] = &[Need { probe: "strip", package: "binutils" }];

/// What the coverage-guided fuzzers link with.
pub(crate) const FUZZ: &[Need] = &[Need { probe: "c++", package: "g++" }];

/// How often packages are installed before it is given up.
const ROUNDS: usize = 2;

/// Installs what is missing as root; otherwise refuses with the command that would.
pub(crate) fn ensure(groups: &[&[Need]]) -> Result<()> {
    // Packages from elsewhere (Debian's backports, say) may have to give way to what is installed, and with them a
    // program that was there at first.
    for _ in 0..ROUNDS {
        let missing = missing(groups);
        if missing.is_empty() {
            return Ok(());
        }
        install(&missing)?;
    }
    match missing(groups) {
        missing if missing.is_empty() => Ok(()),
        missing => bail!("apt-get removes one for the other; install these yourself: {}", missing.join(" ")),
    }
}

/// Installs packages.
fn install(missing: &[&str]) -> Result<()> {
    let list = missing.join(" ");
    if host::find_program("apt-get").is_none() {
        bail!("these Debian packages' programs are missing and this host has no apt-get: {list}");
    }
    if !host::is_root() {
        bail!("something is missing on this host; run this and try again:\n  sudo apt-get install {list}");
    }
    println!("installing: {list}");
    let install = || {
        host::run(
            host::command(["apt-get", "install", "--yes", "--no-install-recommends", "-qq"])
                .args(missing)
                .env("DEBIAN_FRONTEND", "noninteractive")
                // Two lines for each package, which nobody reads; errors go elsewhere.
                .stdout(Stdio::null()),
        )
    };
    // A fresh machine has no package lists at all, an older one may have stale ones.
    host::run(&mut host::command(["apt-get", "update", "-qq"]))
        .or_else(|_| install())
        .and_then(|()| install())
        .context("cannot install what is missing; look at the messages of apt-get above")
}

fn missing(groups: &[&[Need]]) -> Vec<&'static str> {
    let present = |need: &&Need| {
        if need.probe.starts_with('/') {
            std::path::Path::new(need.probe).exists()
        } else {
            host::find_program(need.probe).is_some()
        }
    };
    let needs = groups.iter().flat_map(|group| group.iter());
    let mut packages: Vec<_> = needs.filter(|need| !present(need)).map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absent_programs_are_missing() {
        let needs: &[Need] = &[
            Need { probe: "sh", package: "dash" },
            Need { probe: "/proc/self/status", package: "linux" },
            Need { probe: "no-such-program-anywhere", package: "b" },
            Need { probe: "/no/such/file", package: "a" },
            Need { probe: "/no/such/file-either", package: "a" },
        ];
        assert_eq!(missing(&[needs]), ["a", "b"]);
    }
}
