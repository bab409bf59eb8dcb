//! Images from and for other programs, with `qemu-img`, `tar` and `mke2fs` as the others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use api::image::{Digest, ImageBoot, ImageFirmware, ImageName, PersonalitySource};
use image::export::{ExportFormat, export};
use image::import::{Boot, ImportOptions, import};
use image::{ErrorKind, Progress, Silent, Store};

/// A folder that goes away.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("image-formats-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn store(&self) -> Store {
        Store::open(self.path("store")).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a program, which must succeed; `false` where it is not installed.
fn run(program: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> bool {
    match Command::new(program).args(arguments.iter().map(|argument| argument.as_ref())).output() {
        Ok(output) => {
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            true
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: {program} is not installed");
            false
        }
        Err(error) => panic!("{program} cannot be run: {error}"),
    }
}

/// A disk with an MBR that has code, and some content.
fn bootable() -> Vec<u8> {
    let mut bytes = vec![0; 3 << 20];
    bytes[..4].copy_from_slice(&[0xeb, 0x63, 0x90, 0x10]);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    for at in (64 << 10..2 << 20).step_by(96 << 10) {
        bytes[at..at + 700].fill(at as u8 | 1);
    }
    bytes
}

fn name() -> ImageName {
    "foreign:1".parse().unwrap()
}

fn take(store: &Store, path: &Path) -> image::Result<Digest> {
    import(store, path, &name(), &ImportOptions::default(), &mut Silent)
}

/// The content of the image's first disk.
fn disk(store: &Store, digest: Digest) -> Vec<u8> {
    let manifest = store.manifest(digest).unwrap();
    fs::read(store.blob_path(&manifest.disks[0].blob).unwrap()).unwrap()
}

#[test]
fn disks_of_other_programs_become_images_and_go_back() {
    let folder = Folder::new("disks");
    let (store, raw) = (folder.store(), folder.path("disk.img"));
    fs::write(&raw, bootable()).unwrap();
    for (qemu, ours) in [
        ("qcow2", "qcow2"),
        ("vmdk", "vmdk"),
        ("vdi", "vdi"),
        ("vpc", "vhd"),
        ("vhdx", "vhdx"),
        ("raw", "raw"),
    ] {
        let theirs = folder.path(&format!("theirs.{ours}"));
        if !run("qemu-img", &[&"convert", &"-f", &"raw", &"-O", &qemu, &raw, &theirs]) {
            return;
        }
        let digest = take(&store, &theirs).unwrap();
        let manifest = store.manifest(digest).unwrap();
        assert_eq!(manifest.boot, ImageBoot::Firmware { firmware: ImageFirmware::Bios }, "{qemu}");
        // Some formats round the size up.
        let found = disk(&store, digest);
        assert!(found.starts_with(&bootable()), "{qemu}");
        assert!(found[3 << 20..].iter().all(|byte| *byte == 0), "{qemu}");

        let back = folder.path(&format!("back.{ours}"));
        export(&store, digest, "x", &back, ExportFormat::of_name(&back), &mut Silent).unwrap();
        assert!(run("qemu-img", &[&"compare", &"-f", &"raw", &"-F", &qemu, &raw, &back]));
        let error =
            export(&store, digest, "x", &back, ExportFormat::of_name(&back), &mut Silent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput, "what is there is not replaced: {error}");
    }
}

#[test]
fn a_disk_that_stands_on_another_is_refused() {
    let folder = Folder::new("overlay");
    let (store, raw, top) = (folder.store(), folder.path("secret.img"), folder.path("top.qcow2"));
    fs::write(&raw, bootable()).unwrap();
    if !run("qemu-img", &[&"create", &"-f", &"qcow2", &"-b", &raw, &"-F", &"raw", &top]) {
        return;
    }
    let error = take(&store, &top).unwrap_err();
    assert!(error.remedy().is_some_and(|remedy| remedy.contains("flatten")), "{error}");
    assert!(store.names().unwrap().is_empty());
}

/// What was said to be done.
#[derive(Default)]
struct Told(Vec<String>);

impl Progress for Told {
    fn begin(&mut self, what: &str, _: Option<u64>) {
        self.0.push(what.to_owned());
    }
    fn advance(&mut self, _: u64) {}
}

#[test]
fn appliances_come_and_go() {
    let folder = Folder::new("ova");
    let (store, raw, ova) = (folder.store(), folder.path("disk.img"), folder.path("box.ova"));
    fs::write(&raw, bootable()).unwrap();
    let digest = take(&store, &raw).unwrap();
    let mut told = Told::default();
    export(&store, digest, "box", &ova, ExportFormat::of_name(&ova), &mut told).unwrap();
    // What files are called in the appliance, not in the store.
    assert!(told.0.contains(&"checksum of box.ovf".to_owned()), "{:?}", told.0);
    assert!(!told.0.iter().any(|what| what.contains("partial")), "{:?}", told.0);

    // A name that is taken is told before any work begins, and what is there stays.
    let (mut told, before) = (Told::default(), fs::read(&ova).unwrap());
    let error = export(&store, digest, "box", &ova, ExportFormat::Ova, &mut told).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
    assert!(told.0.is_empty() && fs::read(&ova).unwrap() == before);

    // What a program that is not ours makes of it.
    let unpacked = folder.path("unpacked");
    fs::create_dir(&unpacked).unwrap();
    assert!(run("tar", &[&"--extract", &"--file", &ova, &"--directory", &unpacked]));
    let sums = fs::read_to_string(unpacked.join("box.mf")).unwrap();
    for (line, file) in sums.lines().zip(["box-root.vmdk", "box.ovf"]) {
        let output = Command::new("sha256sum").arg(unpacked.join(file)).output().unwrap();
        let hex = String::from_utf8_lossy(&output.stdout)[..64].to_owned();
        assert_eq!(line, format!("SHA256({file})= {hex}"));
    }
    let vmdk = unpacked.join("box-root.vmdk");
    run("qemu-img", &[&"compare", &"-f", &"raw", &"-F", &"vmdk", &raw, &vmdk]);

    // As an archive, and as files in a folder, it comes back as the same disk.
    for source in [&ova, &unpacked.join("box.ovf")] {
        let again = take(&store, source).unwrap();
        let (before, after) = (store.manifest(digest).unwrap(), store.manifest(again).unwrap());
        assert_eq!((&after.boot, &after.disks), (&before.boot, &before.disks));
        assert!(after.minimum.memory.is_some());
    }

    // Another disk than the checksums say, and a disk that is missing.
    let mut bytes = fs::read(&vmdk).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&vmdk, bytes).unwrap();
    assert_eq!(take(&store, &unpacked.join("box.ovf")).unwrap_err().kind(), ErrorKind::Unverified);
    fs::remove_file(&vmdk).unwrap();
    assert_eq!(take(&store, &unpacked.join("box.ovf")).unwrap_err().kind(), ErrorKind::BadInput);
    // Cut off.
    let bytes = fs::read(&ova).unwrap();
    for len in [700, 3000, bytes.len() / 2] {
        fs::write(&ova, &bytes[..len]).unwrap();
        take(&store, &ova).unwrap_err();
    }
    let unfinished = fs::read_dir(folder.path("store").join("partial")).unwrap().count();
    assert_eq!(unfinished, 0, "nothing unfinished stays");
}

#[test]
fn an_image_without_a_loader_is_no_appliance() {
    let folder = Folder::new("kernel");
    let (store, raw, kernel) = (folder.store(), folder.path("disk.img"), folder.path("kernel"));
    fs::write(&raw, [7; 4096]).unwrap();
    fs::write(&kernel, "a kernel").unwrap();
    let boot = Some(Boot::Kernel { kernel, initrd: None, append: "quiet".into() });
    let options =
        ImportOptions { boot, personality: PersonalitySource::CloudInit, ..ImportOptions::default() };
    let digest = import(&store, &raw, &name(), &options, &mut Silent).unwrap();
    assert_eq!(store.manifest(digest).unwrap().personality, PersonalitySource::CloudInit);
    let ova = folder.path("a.ova");
    let error = export(&store, digest, "a", &ova, ExportFormat::Ova, &mut Silent).unwrap_err();
    assert!(error.kind() == ErrorKind::BadInput && !ova.exists(), "{error}");
}

#[test]
fn an_archive_of_a_system_becomes_a_disk() {
    let folder = Folder::new("root");
    let (store, root, tar) = (folder.store(), folder.path("root"), folder.path("root.tar.gz"));
    fs::create_dir_all(root.join("boot")).unwrap();
    fs::create_dir(root.join("etc")).unwrap();
    fs::write(root.join("etc/hostname"), "lab\n").unwrap();
    for (file, content) in
        [("vmlinuz-6.1.0-9", "old"), ("vmlinuz-6.1.0-10", "new"), ("initrd.img-6.1.0-10", "rd")]
    {
        fs::write(root.join("boot").join(file), content).unwrap();
    }
    run("tar", &[&"--create", &"--gzip", &"--file", &tar, &"--directory", &root, &"."]);
    let options = ImportOptions { disk_size: Some(64 << 20), ..ImportOptions::default() };
    let digest = match import(&store, &tar, &name(), &options, &mut Silent) {
        Err(error) if error.remedy().is_some_and(|remedy| remedy.contains("apt-get")) => {
            eprintln!("skipped: {error}");
            return;
        }
        result => result.unwrap(),
    };
    let manifest = store.manifest(digest).unwrap();
    let ImageBoot::Kernel { kernel, initrd: Some(initrd), .. } = &manifest.boot else {
        panic!("{manifest:?}")
    };
    assert_eq!(fs::read(store.blob_path(kernel).unwrap()).unwrap(), b"new");
    assert_eq!(fs::read(store.blob_path(initrd).unwrap()).unwrap(), b"rd");
    let disk = store.blob_path(&manifest.disks[0].blob).unwrap();
    assert_eq!(disk.metadata().unwrap().len(), 64 << 20);
    run("/sbin/e2fsck", &[&"-fn", &disk]);
    let cat = Command::new("/sbin/debugfs").args(["-R", "cat /etc/hostname"]).arg(&disk).output();
    if let Ok(output) = cat {
        assert_eq!(output.stdout, b"lab\n");
    }

    // Neither an archive nor a disk, and too small a disk.
    fs::write(&tar, b"\x1f\x8bnonsense").unwrap();
    import(&store, &tar, &name(), &options, &mut Silent).unwrap_err();
    assert_eq!(store.by_name(&name()).unwrap(), digest);
}
