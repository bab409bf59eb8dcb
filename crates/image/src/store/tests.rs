//! The store, its lock, and what a crash leaves.

use super::*;
use crate::files::tests::Folder;
use crate::progress::Silent;
use api::image::{ImageBoot, ImageDisk, MANIFEST_VERSION, Minimum, PersonalitySource};
use std::collections::BTreeMap;

pub(crate) fn manifest(kernel: Blob, disk: Blob) -> Manifest {
    Manifest {
        version: MANIFEST_VERSION,
        architecture: "x86_64".into(),
        description: String::new(),
        created_s: 1,
        boot: ImageBoot::Kernel { kernel, initrd: None, append: String::new() },
        disks: vec![ImageDisk { name: "root".into(), blob: disk }],
        minimum: Minimum::default(),
        default_user: None,
        ports: Vec::new(),
        volumes: Vec::new(),
        personality: PersonalitySource::None,
        labels: BTreeMap::new(),
    }
}

/// An image with a disk that begins with this text.
pub(crate) fn add(store: &Store, name: &str, text: &str) -> Digest {
    let session = store.session().unwrap();
    let kernel = session.take_stream(&mut &b"kernel"[..], None, &mut Silent).unwrap();
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(64 * 1024, 0);
    let disk = session.take_stream(&mut bytes.as_slice(), None, &mut Silent).unwrap();
    let digest = session.add_manifest(&manifest(kernel, disk)).unwrap();
    session.set_name(&name.parse().unwrap(), digest).unwrap();
    digest
}

fn blobs(store: &Store) -> usize {
    entries(&store.folder().join("blobs")).unwrap().len()
}

#[test]
fn images_are_added_named_and_found() {
    let folder = Folder::new("store");
    let store = Store::open(folder.0.join("s")).unwrap();
    let one = add(&store, "debian:12", "one");
    let two = add(&store, "team/web", "two");
    assert_eq!(add(&store, "same", "one"), one, "the same content is the same image");
    assert_eq!(blobs(&store), 3, "the kernel is there once");
    let store = Store::open(folder.0.join("s")).unwrap();
    assert_eq!(store.resolve("debian:12").unwrap(), one);
    assert_eq!(store.resolve("team/web:latest").unwrap(), two);
    assert_eq!(store.resolve(&one.to_string()).unwrap(), one);
    assert_eq!(store.resolve(&two.short()).unwrap(), two);
    for (text, kind) in [
        ("none", ErrorKind::NotFound),
        ("debian", ErrorKind::NotFound),
        ("../../etc/passwd", ErrorKind::BadInput),
        ("000000000000", ErrorKind::NotFound),
    ] {
        assert_eq!(store.resolve(text).unwrap_err().kind(), kind, "{text}");
    }
    let list = store.list().unwrap();
    let names: Vec<String> = list.iter().flat_map(|image| &image.names).map(ToString::to_string).collect();
    assert_eq!(names, ["debian:12", "same:latest", "team/web:latest"]);
    assert_eq!(list[0].disk_bytes, 64 * 1024);
    store.check(one, &mut Silent).unwrap();
}

/// Names and pins may look as drafts once did.
#[test]
fn no_name_is_taken_for_a_draft() {
    let folder = Folder::new("drafts");
    let store = Store::open(&folder.0).unwrap();
    let one = add(&store, "debian.new-1:12.new-2", "one");
    let two = add(&store, "two", "two");
    store.pin("vm.new-3", two).unwrap();
    store.remove_name(&"two".parse().unwrap()).unwrap();
    // What a crash left of drafts, now and in earlier versions.
    for name in [".debian@12.new-7-0", "debian@12.new-7"] {
        for place in ["names", "pins", "manifests"] {
            fs::write(folder.0.join(place).join(name), "").unwrap();
        }
    }
    store.prune(PruneOptions::default()).unwrap();
    store.check(one, &mut Silent).unwrap();
    store.check(two, &mut Silent).unwrap();
    assert_eq!(store.names().unwrap().len(), 1);
    assert_eq!(store.pins().unwrap(), [("vm.new-3".to_owned(), two)]);
}

#[test]
fn what_is_needed_is_not_pruned() {
    let folder = Folder::new("prune");
    let store = Store::open(&folder.0).unwrap();
    let one = add(&store, "one", "one");
    let two = add(&store, "two", "two");
    store.pin("vm-1", one).unwrap();
    assert_eq!(store.pin("../x", one).unwrap_err().kind(), ErrorKind::BadInput);
    store.remove_name(&"one".parse().unwrap()).unwrap();
    store.remove_name(&"two".parse().unwrap()).unwrap();
    let would = store.prune(PruneOptions { dry_run: true, ..PruneOptions::default() }).unwrap();
    let pruned = store.prune(PruneOptions::default()).unwrap();
    assert_eq!(would, pruned);
    assert_eq!((pruned.images, pruned.blobs), (vec![two], 1), "the kernel is the other's too");
    store.check(one, &mut Silent).unwrap();
    assert_eq!(store.manifest(two).unwrap_err().kind(), ErrorKind::NotFound);
    store.unpin("vm-1").unwrap();
    store.unpin("vm-1").unwrap();
    store.prune(PruneOptions::default()).unwrap();
    assert_eq!(blobs(&store), 0);
    assert_eq!(store.pin("vm-1", one).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn layers_of_builds_are_kept_unless_asked() {
    let folder = Folder::new("cache");
    let store = Store::open(&folder.0).unwrap();
    let session = store.session().unwrap();
    let blob = session.take_stream(&mut &b"layer"[..], None, &mut Silent).unwrap();
    session.cache("key", &blob).unwrap();
    assert_eq!(store.prune(PruneOptions::default()).unwrap_err().kind(), ErrorKind::Busy);
    drop(session);
    assert_eq!(store.prune(PruneOptions::default()).unwrap().blobs, 0);
    assert_eq!(store.cached::<Blob>("key"), Some(blob));
    assert_eq!(store.prune(PruneOptions { cache: true, ..PruneOptions::default() }).unwrap().blobs, 1);
    assert_eq!(store.cached::<Blob>("key"), None);
}

#[test]
fn a_stream_that_is_something_else_leaves_nothing() {
    let folder = Folder::new("stream");
    let store = Store::open(&folder.0).unwrap();
    let session = store.session().unwrap();
    let right = Blob { digest: Digest(*blake3::hash(b"right").as_bytes()), size: 5 };
    // Other bytes, too few, too many, and one that never ends.
    let endless: &mut dyn Read = &mut io::repeat(0);
    let cases: [&mut dyn Read; 4] = [&mut &b"wrong"[..], &mut &b"righ"[..], &mut &b"right!"[..], endless];
    for from in cases {
        let error = session.take_stream(from, Some(&right), &mut Silent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unverified, "{error}");
    }
    session.take_stream(&mut &b"right"[..], Some(&right), &mut Silent).unwrap();
    assert_eq!(blobs(&store), 1);
    assert!(entries(&store.folder().join("partial")).unwrap().is_empty());
}

#[test]
fn a_manifest_without_its_blobs_is_refused() {
    let folder = Folder::new("missing");
    let store = Store::open(&folder.0).unwrap();
    let session = store.session().unwrap();
    let blob = Blob { digest: Digest([7; 32]), size: 512 };
    assert_eq!(session.add_manifest(&manifest(blob, blob)).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn damage_is_noticed() {
    let folder = Folder::new("damage");
    let store = Store::open(&folder.0).unwrap();
    let digest = add(&store, "one", "one");
    let disk = store.manifest(digest).unwrap().disks[0].blob;
    let path = store.blob_path(&disk).unwrap();
    assert!(path.metadata().unwrap().permissions().readonly(), "nobody writes it by mistake");
    fs::remove_file(&path).unwrap();
    fs::write(&path, vec![b'x'; disk.size as usize]).unwrap();
    assert_eq!(store.check(digest, &mut Silent).unwrap_err().kind(), ErrorKind::Unverified);
    fs::write(&path, "short").unwrap();
    assert_eq!(store.blob_path(&disk).unwrap_err().kind(), ErrorKind::Unverified);
    fs::write(store.place("manifests", digest), "{}").unwrap();
    assert_eq!(store.manifest(digest).unwrap_err().kind(), ErrorKind::Unverified);
    fs::write(folder.0.join("form"), "another").unwrap();
    assert_eq!(Store::open(&folder.0).unwrap_err().kind(), ErrorKind::BadInput);
}

/// A process that is killed while it adds leaves a store in which everything that has a name is whole. The
/// child is this test again, told so by a variable.
#[test]
fn a_killed_process_leaves_whole_images() {
    const TEST: &str = "store::tests::a_killed_process_leaves_whole_images";
    if let Some(root) = std::env::var_os("ARNIA_TEST_STORE") {
        let store = Store::open(root).unwrap();
        for number in 0.. {
            add(
                &store,
                &format!("image-{}", number % 7),
                &format!("content {number} {}", std::process::id()),
            );
            if number % 5 == 4 {
                match store.prune(PruneOptions::default()) {
                    Err(error) if error.kind() != ErrorKind::Busy => panic!("{error}"),
                    _ => {}
                }
            }
        }
    }
    let folder = Folder::new("killed");
    let store = Store::open(&folder.0).unwrap();
    let program = std::env::current_exe().unwrap();
    for round in 0..12 {
        let children: Vec<_> = (0..2)
            .map(|_| {
                let mut child = std::process::Command::new(&program);
                child.args(["--exact", TEST, "--nocapture"]).env("ARNIA_TEST_STORE", &folder.0);
                child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
            })
            .collect();
        // Not to wait for anything: to end them somewhere in the middle of what they do.
        std::thread::sleep(std::time::Duration::from_millis(30 + round * 13));
        for mut child in children {
            assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for (name, digest) in store.names().unwrap() {
            store.check(digest, &mut Silent).unwrap_or_else(|error| panic!("round {round}, {name}: {error}"));
        }
        store.prune(PruneOptions::default()).unwrap();
        assert!(entries(&store.folder().join("partial")).unwrap().is_empty());
        for (_, digest) in store.names().unwrap() {
            store.check(digest, &mut Silent).unwrap();
        }
    }
    assert!(!store.names().unwrap().is_empty(), "nothing was done at all");
}
