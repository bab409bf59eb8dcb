use super::*;
use crate::{Access, ErrorKind, Image, OpenOptions, Progress};
use proptest::prelude::*;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;

/// A folder that is removed at the end of the test.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("disk-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write(disk: &dyn Disk, offset: u64, bytes: &[u8]) {
    disk.write(offset, &Buffers::from_slice(bytes), Durability::AtFlush).unwrap();
}

fn read(disk: &dyn Disk, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    disk.read(offset, &mut Buffers::from_mut(&mut bytes)).unwrap();
    bytes
}

fn open(path: &Path, access: Access) -> Arc<Qcow2> {
    Image::open(path, &OpenOptions::new(access)).unwrap().qcow2.unwrap()
}

/// Nothing wrong, nothing leaked.
fn assert_sound(path: &Path) {
    let report = crate::check(path, None, Repair::No).unwrap().unwrap();
    assert_eq!((report.errors, report.leaks), (0, 0), "{:?}", report.findings);
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize, u8),
    Discard(u64, u64),
    Zero(u64, u64, bool),
    Flush,
    Reopen,
    Resize(u64),
    CopyUp(u64, u64),
    Snapshotless,
}

const SIZE: u64 = 1 << 20;

fn step() -> impl Strategy<Value = Step> {
    let at = || 0..SIZE;
    let len = || prop_oneof![1..2000u64, Just(512), Just(4096), 1..200_000u64];
    prop_oneof![
        8 => (at(), len(), any::<u8>()).prop_map(|(at, len, byte)| Step::Write(at, len as usize, byte)),
        2 => (at(), len()).prop_map(|(at, len)| Step::Discard(at, len)),
        3 => (at(), len(), any::<bool>()).prop_map(|(at, len, unmap)| Step::Zero(at, len, unmap)),
        2 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => (1..SIZE / 512).prop_map(|sectors| Step::Resize(sectors * 512)),
        1 => (at(), len()).prop_map(|(at, len)| Step::CopyUp(at, len)),
        1 => Just(Step::Snapshotless),
    ]
}

/// What a discarded range may hold: anything that was, or zero. The model asks the disk.
fn run_against_model(version: u32, cluster_size: u64, with_backing: bool, steps: &[Step]) {
    let folder = Folder::new();
    let path = folder.join("image.qcow2");
    let mut model = vec![0u8; SIZE as usize];
    let mut backing = None;
    if with_backing {
        // Shorter than the image over it.
        let below: Vec<u8> = (0..SIZE / 2).map(|i| (i / 700) as u8 | 1).collect();
        std::fs::write(folder.join("below.raw"), &below).unwrap();
        model[..below.len()].copy_from_slice(&below);
        backing = Some(Backing { name: "below.raw".into(), format: Some("raw".into()) });
    }
    let options = CreateOptions { version, cluster_size, backing, ..CreateOptions::new(SIZE) };
    drop(Qcow2::create(&path, &options, None).unwrap());
    let mut disk = open(&path, Access::ReadWrite);
    for step in steps {
        let size = model.len() as u64;
        let clip = |at: u64, len: u64| (at.min(size), len.min(size - at.min(size)));
        match *step {
            Step::Write(at, len, byte) => {
                let (at, len) = clip(at, len as u64);
                let bytes: Vec<u8> = (0..len).map(|i| byte.wrapping_add((i / 100) as u8)).collect();
                write(&*disk, at, &bytes);
                model[at as usize..(at + len) as usize].copy_from_slice(&bytes);
            }
            Step::Discard(at, len) => {
                let (at, len) = clip(at, len);
                disk.discard(at, len).unwrap();
                let now = read(&*disk, at, len as usize);
                let was = &mut model[at as usize..(at + len) as usize];
                assert!(now.iter().zip(was.iter()).all(|(now, was)| *now == 0 || now == was));
                was.copy_from_slice(&now);
            }
            Step::Zero(at, len, unmap) => {
                let (at, len) = clip(at, len);
                let unmap = if unmap { Unmap::Allowed } else { Unmap::Keep };
                disk.write_zeroes(at, len, unmap, Durability::AtFlush).unwrap();
                model[at as usize..(at + len) as usize].fill(0);
            }
            Step::Flush => disk.flush().unwrap(),
            Step::Reopen => {
                drop(disk);
                assert_sound(&path);
                disk = open(&path, Access::ReadWrite);
            }
            Step::Resize(size) => {
                disk.resize(size).unwrap();
                model.resize(size as usize, 0);
            }
            Step::CopyUp(at, len) => {
                let (at, len) = clip(at, len);
                disk.copy_up(at, len).unwrap();
            }
            Step::Snapshotless => assert_eq!(read(&*disk, 0, model.len()), model),
        }
    }
    assert_eq!(read(&*disk, 0, model.len()), model);
    // What the map says must agree with what is read.
    let mut at = 0;
    while at < model.len() as u64 {
        let extent = disk.extent(at, model.len() as u64 - at).unwrap();
        let bytes = &model[at as usize..(at + extent.len) as usize];
        assert!(extent.content == Content::Data || bytes.iter().all(|byte| *byte == 0));
        at += extent.len;
    }
    drop(disk);
    assert_sound(&path);
    assert_eq!(read(&*open(&path, Access::ReadOnly), 0, model.len()), model);
    if with_backing {
        crate::compact(&path, &OpenOptions::new(Access::ReadWrite), &Progress::default()).unwrap();
        assert_sound(&path);
        let disk = open(&path, Access::ReadWrite);
        assert_eq!(read(&*disk, 0, model.len()), model);
        crate::flatten(&disk, &Progress::default()).unwrap();
        drop(disk);
        std::fs::remove_file(folder.join("below.raw")).unwrap();
        assert_sound(&path);
        assert_eq!(read(&*open(&path, Access::ReadOnly), 0, model.len()), model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn an_image_is_like_a_flat_file(
        version in 2..=3u32,
        bits in prop_oneof![Just(9u32), Just(12), Just(16)],
        with_backing: bool,
        steps in prop::collection::vec(step(), 1..40),
    ) {
        run_against_model(version, 1 << bits, with_backing, &steps);
    }
}

#[test]
fn counts_of_every_width_are_read_and_written() {
    for order in 0..=6 {
        let mut bytes = [0; 64];
        let width = 1u64 << order;
        let max = u64::MAX >> (64 - width);
        for (index, value) in [(0, max), (1, 0), (2, max.min(1)), (3, max / 2)] {
            let bit = index * width;
            meta::write_count(&mut bytes[(bit / 8) as usize..], order, bit % 8, value);
        }
        for (index, value) in [(0, max), (1, 0), (2, max.min(1)), (3, max / 2)] {
            let bit = index * width;
            assert_eq!(
                meta::read_count(&bytes[(bit / 8) as usize..], order, bit % 8),
                value,
                "{order} {index}"
            );
        }
    }
}

#[test]
fn the_refcount_table_grows_with_the_image() {
    let folder = Folder::new();
    let path = folder.join("image.qcow2");
    // One cluster of refcount table counts 64 * 256 clusters of 512 bytes: 8 MiB.
    let options = CreateOptions { cluster_size: 512, ..CreateOptions::new(40 << 20) };
    let disk = Qcow2::create(&path, &options, None).unwrap();
    let bytes: Vec<u8> = (0..24u32 << 20).map(|i| (i >> 9) as u8 | 1).collect();
    write(&disk, 3 << 20, &bytes);
    drop(disk);
    assert_sound(&path);
    assert_eq!(read(&*open(&path, Access::ReadOnly), 3 << 20, bytes.len()), bytes);
}

#[test]
fn writers_to_one_cluster_do_not_disturb_each_other() {
    let folder = Folder::new();
    let path = folder.join("image.qcow2");
    let disk = Arc::new(Qcow2::create(&path, &CreateOptions::new(8 << 20), None).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let disk = disk.clone();
            scope.spawn(move || {
                for block in (thread..2048).step_by(8) {
                    write(&*disk, block * 4096, &[thread as u8 + 1; 4096]);
                    if block % 64 == thread {
                        disk.flush().unwrap();
                    }
                }
            });
        }
    });
    for block in 0..2048u64 {
        assert_eq!(read(&*disk, block * 4096, 4096), [(block % 8) as u8 + 1; 4096], "{block}");
    }
    drop(disk);
    assert_sound(&path);
}

#[test]
fn freed_storage_goes_back_to_the_host_and_is_used_again() {
    let folder = Folder::new();
    let path = folder.join("image.qcow2");
    let disk = Qcow2::create(&path, &CreateOptions::new(64 << 20), None).unwrap();
    write(&disk, 0, &vec![7; 16 << 20]);
    disk.flush().unwrap();
    let full = disk.file.allocated().unwrap();
    disk.discard(0, 16 << 20).unwrap();
    disk.flush().unwrap();
    assert!(disk.file.allocated().unwrap() < full / 4, "holes were made");
    write(&disk, 32 << 20, &vec![8; 16 << 20]);
    disk.flush().unwrap();
    assert!(disk.file.allocated().unwrap() < full + (1 << 20));
    drop(disk);
    assert_sound(&path);
    assert!(std::fs::metadata(&path).unwrap().len() < 18 << 20, "the same places");
}

/// What a crash at any flush or between leaves: the file is copied while it is in use.
#[test]
fn a_copy_taken_at_any_moment_has_no_errors() {
    let folder = Folder::new();
    let path = folder.join("image.qcow2");
    let copy = folder.join("copy.qcow2");
    let disk =
        Qcow2::create(&path, &CreateOptions { cluster_size: 4096, ..CreateOptions::new(4 << 20) }, None)
            .unwrap();
    let mut seed = 1u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    for round in 0..120u64 {
        let at = random(1000) * 4096;
        match random(4) {
            0 => disk.discard(at, random(24) * 4096).unwrap(),
            1 => disk.flush().unwrap(),
            _ => write(&disk, at, &vec![round as u8; random(20_000) as usize]),
        }
        std::fs::copy(&path, &copy).unwrap();
        let report = crate::check(&copy, None, Repair::No).unwrap().unwrap();
        assert_eq!(report.errors, 0, "round {round}: {:?}", report.findings);
        let report = crate::check(&copy, None, Repair::All).unwrap().unwrap();
        assert_eq!(report.leaks, report.repaired);
        assert_sound(&copy);
    }
}

#[test]
fn an_image_that_was_not_closed_is_repaired_before_it_is_written() {
    let folder = Folder::new();
    let path = folder.join("image.qcow2");
    let disk =
        Qcow2::create(&path, &CreateOptions { lazy_refcounts: true, ..CreateOptions::new(1 << 20) }, None)
            .unwrap();
    write(&disk, 0, &[5; 300_000]);
    drop(disk);
    // As a program leaves it that keeps reference counts lazily: marked dirty, the counts not written.
    let file = HostFile::open(&path, Access::ReadWrite).unwrap();
    let block = crate::bytes::be64(
        &{
            let mut b = [0; 8];
            file.read(65536, &mut b, Operation::Check).unwrap();
            b
        },
        0,
    );
    file.write(block + 8, &[0; 64], Operation::Check).unwrap();
    file.write(spec::INCOMPATIBLE_AT, &1u64.to_be_bytes(), Operation::Check).unwrap();
    drop(file);
    assert!(crate::check(&path, None, Repair::No).unwrap().unwrap().errors > 0);
    assert!(open(&path, Access::ReadOnly).image_info().is_dirty, "to read is harmless");
    let disk = open(&path, Access::ReadWrite);
    assert!(!disk.image_info().is_dirty);
    assert_eq!(read(&*disk, 0, 300_000), [5; 300_000]);
    write(&*disk, 500_000, &[6; 100_000]);
    drop(disk);
    assert_sound(&path);
}

#[test]
fn what_no_image_may_be_is_refused() {
    let folder = Folder::new();
    let path = folder.join("image.qcow2");
    drop(Qcow2::create(&path, &CreateOptions::new(1 << 30), None).unwrap());
    let sound = std::fs::read(&path).unwrap();
    let l1_at = crate::bytes::be64(&sound, 40) as usize;
    for (at, bytes, kind, words) in [
        (32, &[0, 0, 0, 1][..], ErrorKind::Unsupported, "encrypted"),
        (79, &[1 << 4], ErrorKind::Unsupported, "extended L2"),
        (79, &[1 << 2], ErrorKind::Unsupported, "external data file"),
        (75, &[1], ErrorKind::Unsupported, "not known"),
        (7, &[9], ErrorKind::Unsupported, "version 9"),
        (23, &[40], ErrorKind::BadFormat, "cluster size"),
        (36, &[0xff; 4], ErrorKind::BadFormat, "L1 table is too large"),
        (56, &[0xff; 4], ErrorKind::BadFormat, "refcount table is too large"),
        (40, &[0, 0xff, 0, 0, 0, 0, 0, 0], ErrorKind::BadFormat, "beyond the end"),
        (24, &[0x0f, 0, 0, 0, 0, 0, 0, 0], ErrorKind::BadFormat, "too small"),
        (60, &[0, 0, 0, 1], ErrorKind::BadFormat, "snapshot table"),
        (l1_at, &[0x80, 0, 0, 0, 0, 1, 0, 0], ErrorKind::BadFormat, "overlaps"),
        (l1_at, &[0x80, 0, 0xff, 0, 0, 1, 0, 0], ErrorKind::BadFormat, "beyond the end"),
        (l1_at, &[0x80, 0, 0, 0, 0, 1, 0, 1], ErrorKind::BadFormat, "impossible place"),
    ] {
        let mut image = sound.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&path, &image).unwrap();
        let error = Image::open(&path, &OpenOptions::new(Access::ReadOnly)).err().expect(words);
        assert_eq!(error.kind(), kind, "{words}: {error}");
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    for len in [4, 60, 104, 600, 65536, 130_000, 190_000] {
        std::fs::write(&path, &sound[..len]).unwrap();
        let error = Image::open(&path, &OpenOptions::new(Access::ReadWrite)).err().expect("cut off");
        assert_eq!(error.kind(), ErrorKind::BadFormat, "{len}: {error}");
    }
}

#[test]
fn a_name_in_an_image_opens_no_file_that_the_user_did_not_mean() {
    let folder = Folder::new();
    std::fs::create_dir(folder.join("images")).unwrap();
    std::fs::write(folder.join("secret"), [1; 4096]).unwrap();
    std::os::unix::fs::symlink(folder.join("secret"), folder.join("images/link")).unwrap();
    std::fs::write(folder.join("images/below.raw"), [2; 4096]).unwrap();
    let path = folder.join("images/image.qcow2");
    let absolute = folder.join("secret").to_str().unwrap().to_owned();
    for (name, kind) in [
        ("../secret", ErrorKind::Forbidden),
        (&absolute, ErrorKind::Forbidden),
        ("link", ErrorKind::Forbidden),
        ("nbd://127.0.0.1/x", ErrorKind::Forbidden),
        ("json:{\"driver\":\"file\"}", ErrorKind::Forbidden),
        ("nothing", ErrorKind::NotFound),
        ("image.qcow2", ErrorKind::BadFormat),
        (".", ErrorKind::BadFormat),
    ] {
        let backing = Some(Backing { name: name.into(), format: None });
        let _ = std::fs::remove_file(&path);
        drop(Qcow2::create(&path, &CreateOptions { backing, ..CreateOptions::new(4096) }, None).unwrap());
        let error = Image::open(&path, &OpenOptions::new(Access::ReadOnly)).err().expect(name);
        assert_eq!(error.kind(), kind, "{name}: {error}");
    }
    let backing = Some(Backing { name: absolute, format: Some("raw".into()) });
    std::fs::remove_file(&path).unwrap();
    drop(Qcow2::create(&path, &CreateOptions { backing, ..CreateOptions::new(4096) }, None).unwrap());
    let policy = crate::BackingPolicy::none().and(folder.join("secret"));
    let image = Image::open(&path, &OpenOptions { policy, ..OpenOptions::new(Access::ReadOnly) }).unwrap();
    assert_eq!(read(&*image.disk, 0, 4096), [1; 4096]);
    // Whoever writes to what an image stands on is kept away while that is in use.
    let error =
        Image::open(folder.join("secret"), &OpenOptions::new(Access::ReadWrite)).err().expect("locked");
    assert_eq!(error.kind(), ErrorKind::LockedByOther);
}

#[test]
fn a_guessed_raw_disk_cannot_be_turned_into_another_format() {
    let folder = Folder::new();
    let path = folder.join("disk.img");
    std::fs::write(&path, [0; 65536]).unwrap();
    let disk = Image::open(&path, &OpenOptions::new(Access::ReadWrite)).unwrap().disk;
    let bytes = Buffers::from_slice(b"QFI\xfb");
    let error = disk.write(0, &bytes, Durability::AtFlush).unwrap_err();
    assert!(error.to_string().contains("format=raw"), "{error}");
    // Nor in two steps.
    write(&*disk, 2, b"I\xfb");
    assert!(disk.write(0, &Buffers::from_slice(b"QF"), Durability::AtFlush).is_err());
    write(&*disk, 512, b"QFI\xfb");
    drop(disk);
    // With the format named anything may be written, and the file is remembered to be raw.
    let raw = OpenOptions { format: Some(crate::Format::Raw), ..OpenOptions::new(Access::ReadWrite) };
    let disk = Image::open(&path, &raw).unwrap().disk;
    write(&*disk, 0, b"QFI\xfb");
    drop(disk);
    let marks = rustix::fs::setxattr(&path, "user.test", b"1", rustix::fs::XattrFlags::empty()).is_ok();
    let format = crate::ImageInfo::read(&path, None).map(|info| info.format).ok();
    assert_eq!(format == Some(crate::Format::Raw), marks);
}

/// A disk that copies a file each time it is read.
struct Witness {
    disk: crate::Raw,
    watched: PathBuf,
    copy: PathBuf,
}

impl Disk for Witness {
    fn info(&self) -> DiskInfo {
        self.disk.info()
    }

    fn read(&self, offset: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        std::fs::copy(&self.watched, &self.copy).unwrap();
        self.disk.read(offset, into)
    }

    fn write(&self, offset: u64, from: &Buffers<'_>, durability: Durability) -> Result<(), Error> {
        self.disk.write(offset, from, durability)
    }

    fn flush(&self) -> Result<(), Error> {
        self.disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.disk.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: Unmap, durability: Durability) -> Result<(), Error> {
        self.disk.write_zeroes(offset, len, unmap, durability)
    }
}

/// The file is copied when the last cluster, which is whole only in the larger disk, is filled from the backing file: a
/// crash at that moment would leave the same.
#[test]
fn a_disk_that_grows_never_shows_what_the_backing_file_has_there() {
    for version in 2..=3 {
        let folder = Folder::new();
        let (path, copy, below) =
            (folder.join("image.qcow2"), folder.join("copy.qcow2"), folder.join("below.raw"));
        std::fs::write(&below, [0x77; 1 << 20]).unwrap();
        let backing = Some(Backing { name: "below.raw".into(), format: Some("raw".into()) });
        let options =
            CreateOptions { version, cluster_size: 4096, backing, ..CreateOptions::new((64 << 10) - 512) };
        let disk = crate::Raw::open(&below, Access::ReadOnly).unwrap();
        let witness = Witness { disk, watched: path.clone(), copy: copy.clone() };
        let disk = Qcow2::create(&path, &options, Some(Arc::new(witness))).unwrap();
        // One cluster of L1 table is for 1 GiB: it moves.
        let size = 4 << 30;
        disk.resize(size).unwrap();
        assert_eq!(read(&disk, (64 << 10) - 1024, 2048), [vec![0x77; 512], vec![0; 1536]].concat());
        drop(disk);
        assert_sound(&path);
        let report = crate::check(&copy, None, Repair::No).unwrap().unwrap();
        assert_eq!(report.errors, 0, "{:?}", report.findings);
        let crashed = open(&copy, Access::ReadOnly);
        let now = crashed.info().size;
        assert!(now == options.size || read(&*crashed, 64 << 10, 4096) == [0; 4096], "the size came first");
        drop(crashed);
        // Where it is grown again it is as it should be.
        let crashed = open(&copy, Access::ReadWrite);
        crashed.resize(size).unwrap();
        assert_eq!(read(&*crashed, (64 << 10) - 512, 900 << 10), [0; 900 << 10]);
        drop(crashed);
        // What was moved before the crash may be leaked.
        assert_eq!(crate::check(&copy, None, Repair::No).unwrap().unwrap().errors, 0);
    }
}
