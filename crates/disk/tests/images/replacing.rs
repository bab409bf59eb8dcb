//! What happens to files that are there already.

use crate::support::*;
use disk::qcow2::CreateOptions;
use disk::{Access, ErrorKind, Format, Image, OpenOptions, Progress, TargetOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const SIZE: u64 = 1 << 20;

fn overlay(target: &str, backing: &str) -> Result<(), disk::Error> {
    let (target, backing) = (Path::new(target), Path::new(backing));
    disk::create_overlay(target, backing, None, &CreateOptions::new(0), true)
}

/// An image `base.qcow2` with data, and `top.qcow2` with some more, which stands on it.
fn base_and_top(folder: &Folder) -> (String, String) {
    let (base, top) = (folder.path("base.qcow2"), folder.path("top.qcow2"));
    disk::create(Path::new(&base), SIZE, &TargetOptions::new(Format::Qcow2)).unwrap();
    for (path, byte) in [(&base, 1), (&top, 2)] {
        if byte == 2 {
            overlay(&top, &base).unwrap();
        }
        let image = Image::open(path, &OpenOptions::new(Access::ReadWrite)).unwrap();
        write(&*image.disk, 1000 * byte, &[byte as u8; 500]);
    }
    (base, top)
}

#[test]
fn no_overlay_replaces_what_it_stands_on() {
    let _alone = alone();
    let folder = Folder::new();
    let (base, top) = base_and_top(&folder);
    let (hard, soft) = (folder.path("hard.qcow2"), folder.path("soft.qcow2"));
    std::fs::hard_link(&base, &hard).unwrap();
    std::os::unix::fs::symlink("base.qcow2", &soft).unwrap();
    let before = (std::fs::read(&base).unwrap(), std::fs::read(&top).unwrap());
    for (target, backing) in
        [(&base, &base), (&base, &top), (&top, &top), (&base, &hard), (&hard, &top), (&base, &soft)]
    {
        let error = overlay(target, backing).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{target} on {backing}: {error}");
    }
    assert!(before == (std::fs::read(&base).unwrap(), std::fs::read(&top).unwrap()));
    // One that others stand on, or nobody, is replaced as asked for.
    overlay(&top, &base).unwrap();
    assert_eq!(std::fs::read_dir(Path::new(&base).parent().unwrap()).unwrap().count(), 4);
}

#[test]
fn compacting_by_a_symbolic_link_leaves_the_link() {
    let _alone = alone();
    let folder = Folder::new();
    let (_, top) = base_and_top(&folder);
    let link = folder.path("link.qcow2");
    std::os::unix::fs::symlink("top.qcow2", &link).unwrap();
    let before = std::fs::metadata(&top).unwrap().ino();
    let options = OpenOptions::new(Access::ReadWrite);
    disk::compact(Path::new(&link), &options, &Progress::default()).unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_ne!(before, std::fs::metadata(&top).unwrap().ino(), "it was written anew");
    let image = Image::open(&link, &OpenOptions::new(Access::ReadOnly)).unwrap();
    let bytes = read_all(&*image.disk);
    assert_eq!((bytes[1000], bytes[2000], image.chain.len()), (1, 2, 1));
}
