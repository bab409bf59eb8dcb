use crate::support::*;
use disk::qcow2::{Compression, CreateOptions, Repair};
use disk::{Access, Format, Image, OpenOptions, Progress, TargetOptions};
use std::path::Path;

fn open(path: &str, access: Access) -> Image {
    Image::open(path, &OpenOptions::new(access)).unwrap()
}

fn sound(path: &str) {
    let report = disk::check(Path::new(path), None, Repair::No).unwrap().unwrap();
    assert_eq!((report.errors, report.leaks), (0, 0), "{:?}", report.findings);
}

#[test]
fn what_we_convert_qemu_reads() {
    let _alone = alone();
    let folder = Folder::new();
    let (raw, image, back) = (folder.path("a.raw"), folder.path("a.img"), folder.path("back.raw"));
    std::fs::write(&raw, reference()).unwrap();
    let mut kinds = vec![("raw", TargetOptions::new(Format::Raw))];
    for (version, cluster_size, compression) in [
        (3, 64 << 10, None),
        (2, 64 << 10, None),
        (3, 512, None),
        (3, 2 << 20, None),
        (3, 64 << 10, Some(Compression::Zlib)),
        (2, 4096, Some(Compression::Zlib)),
        (3, 64 << 10, Some(Compression::Zstd)),
    ] {
        let mut options = TargetOptions::new(Format::Qcow2);
        let base = CreateOptions::new(0);
        options.compress = compression.is_some();
        let compression = compression.unwrap_or(Compression::Zlib);
        options.qcow2 = CreateOptions { version, cluster_size, compression, ..base };
        kinds.push(("qcow2", options));
    }
    for (name, format) in
        [("vdi", Format::Vdi), ("vpc", Format::Vhd), ("vhdx", Format::Vhdx), ("vmdk", Format::Vmdk)]
    {
        kinds.push((name, TargetOptions::new(format)));
    }
    kinds.push(("vmdk", TargetOptions { compress: true, ..TargetOptions::new(Format::Vmdk) }));
    for (name, options) in kinds {
        let source = open(&raw, Access::ReadOnly).disk;
        let progress = Progress::default();
        disk::convert(&source, Path::new(&image), &options, &progress).unwrap();
        let size = source.info().size;
        assert_eq!(progress.get(), (size, size));
        assert_eq!(read_all(&*open(&image, Access::ReadOnly).disk), reference(), "{options:?}");
        if name == "qcow2" {
            sound(&image);
            qemu!("check", "-f", name, &image);
        }
        qemu!("compare", "-f", name, "-F", "raw", &image, &raw);
        // And back again.
        disk::convert(
            &open(&image, Access::ReadOnly).disk,
            Path::new(&back),
            &TargetOptions::new(Format::Raw),
            &progress,
        )
        .unwrap();
        assert_eq!(std::fs::read(&back).unwrap(), reference());
        std::fs::remove_file(&image).unwrap();
        std::fs::remove_file(&back).unwrap();
    }
}

#[test]
fn what_qemu_converts_we_read() {
    let _alone = alone();
    let folder = Folder::new();
    let (raw, image) = (folder.path("a.raw"), folder.path("a.img"));
    std::fs::write(&raw, reference()).unwrap();
    for (format, options) in [
        ("qcow2", &["-o", "compat=0.10"][..]),
        ("qcow2", &["-o", "cluster_size=512"]),
        ("qcow2", &["-o", "refcount_bits=1"]),
        ("qcow2", &["-o", "refcount_bits=64,cluster_size=2M"]),
        ("qcow2", &["-c"]),
        ("qcow2", &["-c", "-o", "compression_type=zstd"]),
        ("qcow2", &["-o", "preallocation=metadata"]),
        ("qcow2", &["-o", "lazy_refcounts=on"]),
        ("vdi", &[]),
        ("vdi", &["-o", "static=on"]),
        ("vpc", &["-o", "force_size=on"]),
        ("vpc", &["-o", "subformat=fixed,force_size=on"]),
        ("vhdx", &[]),
        ("vhdx", &["-o", "subformat=fixed"]),
        ("vhdx", &["-o", "block_size=1M"]),
        ("vmdk", &[]),
        ("vmdk", &["-o", "subformat=streamOptimized"]),
        ("vmdk", &["-o", "subformat=monolithicFlat"]),
        ("vmdk", &["-o", "subformat=twoGbMaxExtentSparse"]),
        ("vmdk", &["-o", "subformat=twoGbMaxExtentFlat"]),
    ] {
        let mut arguments = vec!["convert", "-f", "raw", "-O", format];
        arguments.extend(options);
        arguments.extend([&raw[..], &image]);
        let Some((ok, text)) = qemu_img(&arguments) else { return };
        assert!(ok, "{arguments:?}: {text}");
        // A fixed VHD is known by its end only, and is therefore to be named.
        let named = (format == "vpc").then_some(Format::Vhd);
        let open_options = OpenOptions { format: named, ..OpenOptions::new(Access::ReadOnly) };
        let opened = Image::open(&image, &open_options).unwrap();
        assert_eq!(opened.format.name(), if format == "vpc" { "vhd" } else { format });
        let info = disk::ImageInfo::read(&image, named).unwrap();
        assert_eq!(info.size, reference().len() as u64);
        assert!(read_all(&*opened.disk) == reference(), "{arguments:?}");
        if format != "qcow2" {
            drop(opened);
            let writer = OpenOptions { access: Access::ReadWrite, ..open_options };
            let error = Image::open(&image, &writer).err().expect("to be read only");
            assert_eq!(error.kind(), disk::ErrorKind::Unsupported);
            continue;
        }
        drop(opened);
        if format == "qcow2" {
            sound(&image);
            // Written by us, it is still sound.
            let mut expected = reference();
            let writer = open(&image, Access::ReadWrite);
            for (at, len) in [(100, 5), (200_000, 300_000), (5_000_000, 70_000), (expected.len() - 600, 600)]
            {
                let bytes: Vec<u8> = (0..len).map(|i| (i * 3) as u8).collect();
                write(&*writer.disk, at as u64, &bytes);
                expected[at..at + len].copy_from_slice(&bytes);
            }
            let unmap = disk::Unmap::Allowed;
            writer.disk.write_zeroes(1 << 20, 1 << 20, unmap, disk::Durability::AtFlush).unwrap();
            expected[1 << 20..2 << 20].fill(0);
            drop(writer);
            sound(&image);
            qemu!("check", "-f", "qcow2", &image);
            std::fs::write(folder.path("b.raw"), &expected).unwrap();
            qemu!("compare", "-f", "qcow2", "-F", "raw", &image, &folder.path("b.raw"));
        }
    }
}

#[test]
fn overlays_of_both_makers_stand_on_each_other() {
    let _alone = alone();
    let folder = Folder::new();
    let path = |name: &str| folder.path(name);
    std::fs::write(path("base.raw"), reference()).unwrap();
    let size = reference().len() as u64;
    qemu!("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", &path("one.qcow2"));
    let below = open(&path("one.qcow2"), Access::ReadWrite);
    write(&*below.disk, 1000, &[1; 100_000]);
    drop(below);
    disk::create_overlay(
        Path::new(&path("two.qcow2")),
        Path::new(&path("one.qcow2")),
        None,
        &CreateOptions::new(0),
        false,
    )
    .unwrap();
    let mut expected = reference();
    expected[1000..101_000].fill(1);
    let top = open(&path("two.qcow2"), Access::ReadWrite);
    assert_eq!(top.chain.len(), 2);
    write(&*top.disk, 90_000, &[2; 30_000]);
    expected[90_000..120_000].fill(2);
    top.disk.write_zeroes(3 << 20, 1 << 20, disk::Unmap::Allowed, disk::Durability::AtFlush).unwrap();
    expected[3 << 20..4 << 20].fill(0);
    drop(top);
    std::fs::write(path("expected.raw"), &expected).unwrap();
    let same = |name: &str| qemu_img(&["compare", "-F", "raw", &path(name), &path("expected.raw")]).unwrap();
    qemu!("check", &path("two.qcow2"));
    assert!(same("two.qcow2").0);

    // Rebase onto the lowest: what the middle had is copied up.
    let options = OpenOptions::new(Access::ReadWrite);
    let progress = Progress::default();
    disk::rebase(
        Path::new(&path("two.qcow2")),
        &options,
        Some((Path::new(&path("base.raw")), Some(Format::Raw))),
        false,
        &progress,
    )
    .unwrap();
    std::fs::remove_file(path("one.qcow2")).unwrap();
    qemu!("check", &path("two.qcow2"));
    assert!(same("two.qcow2").0);

    // Commit, and the lowest is as the top was.
    std::fs::copy(path("base.raw"), path("untouched.raw")).unwrap();
    std::fs::copy(path("two.qcow2"), path("three.qcow2")).unwrap();
    disk::commit(Path::new(&path("two.qcow2")), &options, &progress).unwrap();
    assert!(std::fs::read(path("base.raw")).unwrap() == expected);
    qemu!("check", &path("two.qcow2"));
    assert!(same("two.qcow2").0);
    let info = disk::ImageInfo::read(path("two.qcow2"), None).unwrap();
    assert!(info.file_len < 1 << 20, "it is empty: {}", info.file_len);

    // Flatten, and it needs nobody.
    std::fs::rename(path("untouched.raw"), path("base.raw")).unwrap();
    let top = open(&path("three.qcow2"), Access::ReadWrite);
    disk::flatten(top.qcow2.as_ref().unwrap(), &progress).unwrap();
    drop(top);
    std::fs::remove_file(path("base.raw")).unwrap();
    qemu!("check", &path("three.qcow2"));
    assert!(same("three.qcow2").0);
    assert_eq!(open(&path("three.qcow2"), Access::ReadOnly).disk.info().size, size);
}

#[test]
fn internal_snapshots_are_read_and_kept() {
    let _alone = alone();
    let folder = Folder::new();
    let (raw, image) = (folder.path("a.raw"), folder.path("a.qcow2"));
    std::fs::write(&raw, reference()).unwrap();
    qemu!("convert", "-f", "raw", "-O", "qcow2", &raw, &image);
    qemu!("snapshot", "-c", "first", &image);
    let disk = open(&image, Access::ReadWrite);
    write(&*disk.disk, 0, &vec![9; 3 << 20]);
    disk.disk.discard(4 << 20, 2 << 20).unwrap();
    drop(disk);
    qemu!("check", &image);
    sound(&image);
    qemu!("snapshot", "-c", "second", &image);
    let options = OpenOptions { snapshot: Some("first".into()), ..OpenOptions::new(Access::ReadOnly) };
    let first = Image::open(&image, &options).unwrap();
    assert!(read_all(&*first.disk) == reference());
    let names: Vec<_> =
        first.qcow2.as_ref().unwrap().image_info().snapshots.into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["first", "second"]);
    let missing = OpenOptions { snapshot: Some("third".into()), ..OpenOptions::new(Access::ReadOnly) };
    let error = Image::open(&image, &missing).err().expect("no such snapshot");
    assert!(error.to_string().contains("\"first\", \"second\""), "{error}");
    drop(first);
    // QEMU goes back to it.
    qemu!("snapshot", "-a", "first", &image);
    assert!(read_all(&*open(&image, Access::ReadOnly).disk) == reference());
}

#[test]
fn a_resized_image_is_what_qemu_takes_it_for() {
    let _alone = alone();
    let folder = Folder::new();
    let image = folder.path("a.qcow2");
    let options = TargetOptions {
        qcow2: CreateOptions { cluster_size: 4096, ..CreateOptions::new(0) },
        ..TargetOptions::new(Format::Qcow2)
    };
    disk::create(Path::new(&image), 1 << 20, &options).unwrap();
    let disk = open(&image, Access::ReadWrite);
    write(&*disk.disk, 0, &[3; 1 << 20]);
    disk.disk.resize(1 << 30).unwrap();
    write(&*disk.disk, (1 << 30) - 512, &[4; 512]);
    drop(disk);
    qemu!("check", &image);
    let (_, text) = qemu_img(&["info", &image]).unwrap();
    assert!(text.contains("1 GiB"), "{text}");
    let disk = open(&image, Access::ReadWrite);
    disk.disk.resize(512 << 10).unwrap();
    disk.disk.resize(1 << 20).unwrap();
    let mut expected = vec![3; 512 << 10];
    expected.resize(1 << 20, 0);
    assert!(read_all(&*disk.disk) == expected);
    drop(disk);
    qemu!("check", &image);
}

#[test]
fn a_failed_conversion_leaves_nothing_behind() {
    let _alone = alone();
    let folder = Folder::new();
    let (raw, image) = (folder.path("a.raw"), folder.path("a.qcow2"));
    std::fs::write(&raw, reference()).unwrap();
    let source = open(&raw, Access::ReadOnly).disk;
    let progress = Progress::default();
    progress.cancel();
    let error = disk::convert(&source, Path::new(&image), &TargetOptions::new(Format::Qcow2), &progress);
    assert_eq!(error.unwrap_err().kind(), disk::ErrorKind::Cancelled);
    assert!(!exists(&image));
    assert_eq!(std::fs::read_dir(Path::new(&raw).parent().unwrap()).unwrap().count(), 1);
    std::fs::write(&image, "mine").unwrap();
    let error =
        disk::convert(&source, Path::new(&image), &TargetOptions::new(Format::Qcow2), &Progress::default());
    assert_eq!(error.unwrap_err().kind(), disk::ErrorKind::Exists);
    assert_eq!(std::fs::read(&image).unwrap(), b"mine");
}

/// A number of a file, as qcow2 has them.
fn number_at(path: &str, at: u64) -> u64 {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 8];
    std::fs::File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

fn put(path: &str, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

fn check(path: &str, repair: Repair) -> disk::qcow2::CheckReport {
    disk::check(Path::new(path), None, repair).unwrap().unwrap()
}

#[test]
fn persistent_bitmaps_are_in_use_and_survive_a_repair() {
    let _alone = alone();
    let folder = Folder::new();
    let image = folder.path("a.qcow2");
    qemu!("create", "-f", "qcow2", &image, "64M");
    for name in ["first", "second"] {
        qemu!("bitmap", "--add", &image, name);
    }
    // Both are set where is written.
    let mut writer = std::process::Command::new("qemu-io");
    let Ok(output) = writer.args(["-c", "write -P 7 1M 10M", &image]).output() else {
        eprintln!("skipped: qemu-io is not installed");
        return;
    };
    assert!(output.status.success());
    sound(&image);
    // A cluster at the end that is counted and used by nobody.
    let len = std::fs::metadata(&image).unwrap().len().next_multiple_of(65536);
    std::fs::File::options().write(true).open(&image).unwrap().set_len(len + 65536).unwrap();
    let block = number_at(&image, number_at(&image, 48));
    put(&image, block + len / 65536 * 2, &[0, 1]);
    let report = check(&image, Repair::Leaks);
    assert_eq!((report.errors, report.leaks, report.repaired), (0, 1, 1), "{:?}", report.findings);
    sound(&image);
    qemu!("check", &image);
    let (_, text) = qemu_img(&["info", &image]).unwrap();
    assert!(text.contains("name: first") && text.contains("name: second"), "{text}");
    // Directories and tables that cannot be: no count is lowered.
    let extension =
        (104..1024).step_by(8).find(|at| number_at(&image, *at) == 0x2385_2875_0000_0018).unwrap();
    let directory_at = number_at(&image, extension + 24);
    let table_at = number_at(&image, directory_at);
    for (at, value) in [
        (extension + 8, u64::MAX),
        (extension + 16, u64::MAX),
        (extension + 24, directory_at + 8),
        (directory_at, table_at + 512),
        (directory_at + 8, u64::MAX),
        (table_at, 1 << 60),
    ] {
        let before = number_at(&image, at);
        put(&image, at, &value.to_be_bytes());
        let report = check(&image, Repair::All);
        assert!(report.errors > 0, "{at:#x}");
        put(&image, at, &before.to_be_bytes());
        sound(&image);
    }
    qemu!("check", &image);
    // A file may be longer than any memory; the table is not read then.
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    file.set_len(40 << 30).unwrap();
    put(&image, directory_at + 8, &u64::MAX.to_be_bytes());
    let report = check(&image, Repair::No);
    assert!(
        report.findings.iter().any(|finding| finding.contains("cannot be there")),
        "{:?}",
        report.findings
    );
}

#[test]
fn what_a_damaged_entry_stood_for_is_not_freed() {
    let _alone = alone();
    let folder = Folder::new();
    let (raw, image) = (folder.path("a.raw"), folder.path("a.qcow2"));
    std::fs::write(&raw, reference()).unwrap();
    qemu!("convert", "-f", "raw", "-O", "qcow2", &raw, &image);
    qemu!("snapshot", "-c", "first", &image);
    write(&*open(&image, Access::ReadWrite).disk, 0, &vec![9; 3 << 20]);
    sound(&image);
    let entry_at = number_at(&image, number_at(&image, 64));
    let before = number_at(&image, entry_at);
    // It says "the only reference", to nowhere; and what no entry may be.
    for damaged in [1 << 63, before | 1, before | 1 << 60] {
        put(&image, entry_at, &damaged.to_be_bytes());
        let report = check(&image, Repair::All);
        assert_eq!((report.errors, report.repaired), (1, 0), "{:?}", report.findings);
        assert_eq!(check(&image, Repair::Leaks).repaired, 0);
        put(&image, entry_at, &before.to_be_bytes());
        sound(&image);
    }
    let options = OpenOptions { snapshot: Some("first".into()), ..OpenOptions::new(Access::ReadOnly) };
    assert!(read_all(&*Image::open(&image, &options).unwrap().disk) == reference());
}

#[test]
fn a_count_that_does_not_fit_is_not_called_repaired() {
    let _alone = alone();
    let folder = Folder::new();
    let image = folder.path("a.qcow2");
    qemu!("create", "-f", "qcow2", "-o", "refcount_bits=1", &image, "1M");
    write(&*open(&image, Access::ReadWrite).disk, 0, &[5; 128 << 10]);
    sound(&image);
    // Both entries point to the first cluster: two users, and a bit to count them.
    let table = number_at(&image, number_at(&image, 40)) & 0x00ff_ffff_ffff_fe00;
    put(&image, table + 8, &number_at(&image, table).to_be_bytes());
    let report = check(&image, Repair::All);
    let found = (report.errors, report.leaks, report.repaired);
    assert_eq!(found, (3, 1, 3), "{:?}", report.findings);
    assert!(report.findings.iter().any(|finding| finding.contains("1 bits")), "{:?}", report.findings);
    let report = check(&image, Repair::No);
    assert_eq!((report.errors, report.leaks), (1, 0), "{:?}", report.findings);
}

/// How many stretches of a file have no place on the disk yet; `None` where the host does not say.
fn delayed(path: &str) -> Option<usize> {
    use std::os::fd::AsRawFd;
    const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
    const FIEMAP_EXTENT_DELALLOC: u32 = 4;
    // struct fiemap: start, length, flags, mapped, count, reserved; then extents of 56 bytes, their flags at 40.
    const EXTENTS: usize = 256;
    let mut map = vec![0u64; 4 + EXTENTS * 7];
    (map[1], map[3]) = (u64::MAX, EXTENTS as u64);
    let file = std::fs::File::open(path).unwrap();
    // SAFETY: the kernel fills in as many extents as there is room for.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, map.as_mut_ptr()) };
    let mapped = (map[2] >> 32) as usize;
    let flags = map[4..].chunks_exact(7).take(mapped).map(|extent| extent[5] as u32);
    (result == 0 && mapped > 0).then(|| flags.filter(|flags| flags & FIEMAP_EXTENT_DELALLOC != 0).count())
}

#[test]
fn an_image_that_replaces_another_is_safe_when_it_has_its_name() {
    let _alone = alone();
    let folder = Folder::new();
    let raw = folder.path("a.raw");
    std::fs::write(&raw, reference()).unwrap();
    let source = open(&raw, Access::ReadOnly).disk;
    for format in Format::ALL {
        let image = folder.path(&format!("b.{format}"));
        std::fs::write(&image, "what was there").unwrap();
        let options = TargetOptions { replace: true, ..TargetOptions::new(*format) };
        disk::convert(&source, Path::new(&image), &options, &Progress::default()).unwrap();
        match delayed(&image) {
            Some(number) => assert_eq!(number, 0, "{format}: it is only in memory"),
            None => eprintln!("skipped: the host does not say where {image} lies"),
        }
    }
}
