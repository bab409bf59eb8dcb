use super::*;
use crate::{Format, TargetOptions};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: u64 = 24 << 20;
const SECTOR: usize = 512;

/// A folder with a base image, and the disk on it.
struct Bed {
    folder: PathBuf,
    live: Live,
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn bed(name: &str, format: Format) -> Bed {
    let folder = std::env::temp_dir().join(format!("disk-live-{name}-{format}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    let base = folder.join("base");
    crate::create(&base, SIZE, &TargetOptions::new(format)).unwrap();
    let options = OpenOptions { format: Some(format), ..OpenOptions::new(Access::ReadWrite) };
    let live = Live::new(Image::open(&base, &options).unwrap(), &options);
    Bed { folder, live }
}

impl Bed {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Checks a copy: the images themselves are locked.
    fn check(&self, name: &str) {
        let copies = self.path("copies");
        std::fs::create_dir(&copies).unwrap();
        for name in ["base", name] {
            std::fs::copy(self.path(name), copies.join(name)).unwrap();
        }
        check(&copies.join(name));
    }
}

/// Asks QEMU's tool; 3 says that clusters are leaked, and nothing worse.
fn check(path: &Path) {
    match Command::new("qemu-img").args(["check", "-q"]).arg(path).output() {
        Ok(output) => assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}"),
        Err(_) => eprintln!("SKIPPED: there is no qemu-img"),
    }
}

/// Writes everywhere and all the time, and remembers what has to be there.
struct Writer {
    state: u64,
    expected: Vec<u8>,
}

impl Writer {
    fn new() -> Writer {
        Writer { state: 88172645463325252, expected: vec![0; SIZE as usize] }
    }

    fn next(&mut self, below: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % below
    }

    fn write(&mut self, disk: &dyn Disk) {
        let sectors = SIZE / SECTOR as u64;
        let kind = self.next(8);
        let (at, fill) = (self.next(sectors) * SECTOR as u64, self.next(255) as u8 + 1);
        // Some as large as several clusters.
        let len = ((1 + self.next(400)) * SECTOR as u64).min(SIZE - at);
        match kind {
            0 => disk.write_zeroes(at, len, Unmap::Allowed, Durability::AtFlush).unwrap(),
            1 => disk.flush().unwrap(),
            _ => {
                disk.write(at, &Buffers::from_slice(&vec![fill; len as usize]), Durability::AtFlush).unwrap()
            }
        }
        match kind {
            0 => self.expected[at as usize..][..len as usize].fill(0),
            1 => {}
            _ => self.expected[at as usize..][..len as usize].fill(fill),
        }
    }

    fn compare(&self, disk: &dyn Disk) {
        let mut bytes = vec![0; SIZE as usize];
        disk.read(0, &mut Buffers::from_mut(&mut bytes)).unwrap();
        let wrong = bytes.iter().zip(&self.expected).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "the first byte that is not what was written");
    }
}

/// Lets a guest write while `job` runs.
fn meanwhile<T>(writer: &mut Writer, disk: &Arc<LiveDisk>, job: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) || count < 50 {
                writer.write(&**disk);
                count += 1;
            }
        });
        let result = job();
        done.store(true, Ordering::Relaxed);
        guest.join().unwrap();
        result
    })
}

#[test]
fn images_change_under_a_guest_that_writes() {
    for format in [Format::Raw, Format::Qcow2] {
        let bed = bed("jobs", format);
        let (live, disk, mut writer) = (&bed.live, bed.live.disk(), Writer::new());
        for _ in 0..200 {
            writer.write(&*disk);
        }
        let before = writer.expected.clone();
        live.overlay(&bed.path("one")).unwrap();
        for _ in 0..200 {
            writer.write(&*disk);
        }
        assert_eq!(live.info().chain, [bed.path("base")]);
        // The base stays as it was.
        let mut base = vec![0; SIZE as usize];
        lock(&live.below)[0].disk.read(0, &mut Buffers::from_mut(&mut base)).unwrap();
        assert!(base == before);
        live.overlay(&bed.path("two")).unwrap();
        // Committed into the middle one, with the guest at work.
        let progress = Progress::default();
        meanwhile(&mut writer, &disk, || live.commit(&progress)).unwrap();
        live.finish_commit().unwrap();
        assert_eq!((live.info().path, progress.get()), (bed.path("one"), (SIZE, SIZE)));
        assert!(!bed.path("two").exists());
        writer.compare(&*disk);
        // The middle one is made to stand alone.
        meanwhile(&mut writer, &disk, || live.rebase(None, &Progress::default())).unwrap();
        assert_eq!(live.info().chain, [] as [PathBuf; 0]);
        writer.compare(&*disk);
        // And on the base again, which holds only old content.
        meanwhile(&mut writer, &disk, || live.rebase(Some(&bed.path("base")), &Progress::default())).unwrap();
        writer.compare(&*disk);
        disk.flush().unwrap();
        bed.check("one");
        if format == Format::Raw {
            assert!(live.commit(&progress).unwrap_err().to_string().contains("read only"));
        }
    }
}

#[test]
fn jobs_end_when_asked_and_leave_all_sound() {
    let bed = bed("cancel", Format::Raw);
    let (live, disk, mut writer) = (&bed.live, bed.live.disk(), Writer::new());
    (0..300).for_each(|_| writer.write(&*disk));
    live.overlay(&bed.path("over")).unwrap();
    (0..300).for_each(|_| writer.write(&*disk));
    let cancelled = Progress::default();
    cancelled.cancel();
    for result in [live.commit(&cancelled), live.rebase(None, &cancelled)] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
    }
    writer.compare(&*disk);
    assert_eq!(live.info().path, bed.path("over"));
    // Everything that is refused leaves the disk as it is.
    for refused in [
        live.overlay(&bed.path("over")),
        live.overlay(&bed.path("no/such/folder")),
        live.resize(SIZE - 512),
        live.resize(SIZE + 1),
        live.rebase(Some(&bed.path("over")), &Progress::default()),
        live.rebase(Some(&bed.path("missing")), &Progress::default()),
    ] {
        assert!(refused.is_err());
    }
    live.resize(SIZE + (1 << 20)).unwrap();
    assert_eq!(disk.info().size, SIZE + (1 << 20));
    live.commit(&Progress::default()).unwrap();
    live.finish_commit().unwrap();
    assert_eq!((live.info().size, live.info().format), (SIZE + (1 << 20), Format::Raw));
    writer.compare(&*disk);
    assert!(live.commit(&Progress::default()).is_err(), "raw stands on nothing");
}

/// Does a job in another process, which is killed in the middle; run by the test below.
#[test]
#[ignore = "only for the test that kills it"]
fn victim() {
    let folder = PathBuf::from(std::env::var_os("ARNIA_LIVE_FOLDER").unwrap());
    let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::new(Access::ReadWrite) };
    let live = Live::new(Image::open(folder.join("base"), &options).unwrap(), &options);
    let (disk, mut writer) = (live.disk(), Writer::new());
    live.overlay(&folder.join("over")).unwrap();
    (0..600).for_each(|_| writer.write(&*disk));
    disk.flush().unwrap();
    // The guest writes no more, so that what has to be there is known.
    std::fs::write(folder.join("expected"), &writer.expected).unwrap();
    println!("ready");
    loop {
        match std::env::var("ARNIA_LIVE_JOB").unwrap().as_str() {
            "commit" => live.commit(&Progress::default()).unwrap(),
            _ => live.rebase(None, &Progress::default()).unwrap(),
        }
    }
}

#[test]
fn a_process_that_is_killed_in_a_job_leaves_a_sound_image_with_all_that_was_flushed() {
    use std::io::{BufRead, BufReader};
    let program = std::env::current_exe().unwrap();
    for (index, delay_us) in [0u64, 300, 1000, 2000, 4000, 8000, 16000, 30000].into_iter().enumerate() {
        let folder = std::env::temp_dir().join(format!("disk-live-kill-{index}-{}", std::process::id()));
        let job = if index % 2 == 0 { "commit" } else { "flatten" };
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        crate::create(&folder.join("base"), SIZE, &TargetOptions::new(Format::Raw)).unwrap();
        let mut child = Command::new(&program)
            .args(["--ignored", "--exact", "--nocapture", "live::tests::victim"])
            .env("ARNIA_LIVE_FOLDER", &folder)
            .env("ARNIA_LIVE_JOB", job)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !lines.next().expect("the child gets so far").unwrap().contains("ready") {}
        // When it dies is to differ; nothing depends on it.
        std::thread::sleep(std::time::Duration::from_micros(delay_us));
        child.kill().unwrap();
        child.wait().unwrap();
        let expected = std::fs::read(folder.join("expected")).unwrap();
        let image = Image::open(folder.join("over"), &OpenOptions::new(Access::ReadOnly)).unwrap();
        let mut bytes = vec![0; SIZE as usize];
        image.disk.read(0, &mut Buffers::from_mut(&mut bytes)).unwrap();
        assert!(bytes == expected, "{job}, killed after {delay_us} µs");
        drop(image);
        check(&folder.join("over"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

/// What an image shows, opened by somebody else.
fn content(path: &Path) -> Vec<u8> {
    let image = Image::open(path, &OpenOptions::new(Access::ReadOnly)).unwrap();
    let mut bytes = vec![0; image.disk.info().size as usize];
    image.disk.read(0, &mut Buffers::from_mut(&mut bytes)).unwrap();
    bytes
}

#[test]
fn layers_keep_what_was_there_for_others_and_go_when_they_are_too_many() {
    let bed = bed("freeze", Format::Qcow2);
    let (mut writer, disk) = (Writer::new(), bed.live.disk());
    let kept = bed.path("kept");
    std::fs::create_dir(&kept).unwrap();
    let mut saved = Vec::new();
    assert!(bed.live.can_freeze(&bed.folder) && !bed.live.can_freeze(&kept));
    for round in 0..3 {
        (0..40).for_each(|_| writer.write(&*disk));
        let next = meanwhile(&mut writer, &disk, || bed.live.prepare_freeze(&format!("m{round}")).unwrap());
        let layer = bed.live.freeze(next).unwrap();
        assert!(is_layer(&layer) && is_layer_of(&layer, &bed.path("base")), "{layer:?}");
        assert!(!is_layer_of(&layer, &bed.path("other")));
        // Who has links to all of them has the disk.
        for layer in bed.live.layers() {
            let _ = std::fs::hard_link(&layer, kept.join(layer.file_name().unwrap()));
        }
        saved.push((kept.join(layer.file_name().unwrap()), writer.expected.clone()));
        // Nothing stands in the way of others who read it, at once.
        assert!(content(&saved[round].0) == writer.expected, "round {round}");
    }
    assert_eq!(bed.live.layers().len(), 3);
    assert!(bed.live.commit(&Progress::default()).is_err(), "what others may have is not written to");
    // What was prepared for other images is refused, and nothing is left of it.
    let stale = bed.live.prepare_freeze("stale").unwrap();
    let layers = meanwhile(&mut writer, &disk, || bed.live.collapse(&Progress::default()).unwrap());
    assert_eq!(layers.len(), 3);
    assert!(bed.live.info().chain.is_empty());
    bed.live.resize(SIZE + 4096).unwrap();
    assert!(bed.live.freeze(stale).is_err());
    layers.iter().for_each(|layer| std::fs::remove_file(layer).unwrap());
    disk.flush().unwrap();
    writer.expected.resize(SIZE as usize + 4096, 0);
    let mut bytes = vec![0; SIZE as usize + 4096];
    disk.read(0, &mut Buffers::from_mut(&mut bytes)).unwrap();
    assert!(bytes == writer.expected);
    let left: Vec<_> =
        std::fs::read_dir(&bed.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    bed.check("base");
    for (path, expected) in saved {
        check(&path);
        assert!(content(&path) == expected);
    }
}

#[test]
fn what_others_may_stand_on_is_not_written_to() {
    let bed = bed("shared", Format::Raw);
    let (layer, over) = (bed.path("disk.qcow2.m0.layer"), bed.path("disk.qcow2"));
    let open = OpenOptions { format: Some(Format::Qcow2), ..OpenOptions::new(Access::ReadWrite) };
    let refused = |result: Result<(), Error>| assert_eq!(result.unwrap_err().kind(), ErrorKind::Forbidden);
    crate::create(&layer, SIZE, &TargetOptions::new(Format::Qcow2)).unwrap();
    crate::create_overlay(&over, &layer, Some(Format::Qcow2), &CreateOptions::new(0), false).unwrap();
    let write = |path: &Path| {
        let image = Image::open(path, &open).unwrap();
        image.disk.write(0, &Buffers::from_slice(&[7; SECTOR]), Durability::AtFlush).unwrap();
        image.disk.flush().unwrap();
    };
    write(&over);
    let before = std::fs::read(&layer).unwrap();
    refused(crate::commit(&over, &open, &Progress::default()));
    std::os::unix::fs::symlink(&layer, bed.path("link")).unwrap();
    refused(Image::open(&layer, &open).map(drop));
    refused(Image::open(bed.path("link"), &open).map(drop));
    assert!(std::fs::read(&layer).unwrap() == before && content(&over)[..SECTOR] == [7; SECTOR]);

    // A disk of a store of images: even the superuser asks first.
    let (blob, over) = (bed.path("blob"), bed.path("instance"));
    crate::create(&blob, SIZE, &TargetOptions::new(Format::Raw)).unwrap();
    let writable = blob.metadata().unwrap().permissions();
    let mut permissions = writable.clone();
    permissions.set_readonly(true);
    std::fs::set_permissions(&blob, permissions).unwrap();
    crate::create_overlay(&over, &blob, Some(Format::Raw), &CreateOptions::new(0), false).unwrap();
    write(&over);
    let result = crate::commit(&over, &open, &Progress::default()).unwrap_err();
    assert!(matches!(result.kind(), ErrorKind::Forbidden | ErrorKind::Permission), "{result}");
    assert!(std::fs::read(&blob).unwrap().iter().all(|&byte| byte == 0));
    std::fs::set_permissions(&blob, writable).unwrap();
    crate::commit(&over, &open, &Progress::default()).unwrap();
    assert_eq!(std::fs::read(&blob).unwrap()[..SECTOR], [7; SECTOR]);
}
