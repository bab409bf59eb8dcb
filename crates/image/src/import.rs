//! Images from disks that others made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use api::image::{
    Digest, ImageBoot, ImageDisk, ImageFirmware, ImageName, MANIFEST_VERSION, Manifest, Minimum,
    PersonalitySource,
};

use crate::error::AboutFile;
use crate::progress::Progress;
use crate::{Error, Result, Store};

/// What boots a disk.
#[derive(Clone, Debug)]
pub enum Boot {
    /// Its own loader.
    Firmware(ImageFirmware),
    /// A kernel of the host's.
    Kernel {
        /// The bzImage or ELF file.
        kernel: PathBuf,
        /// Its initrd.
        initrd: Option<PathBuf>,
        /// Its command line.
        append: String,
    },
}

/// Makes an image of a raw disk; the file stays as it is.
///
/// # Errors
/// If a file cannot be read, or is no disk.
pub fn disk(
    store: &Store,
    path: &Path,
    name: &ImageName,
    boot: Boot,
    description: &str,
    progress: &mut dyn Progress,
) -> Result<Digest> {
    let session = store.session()?;
    let len = path.metadata().about("read", path)?.len();
    if len == 0 || !len.is_multiple_of(512) {
        return Err(Error::bad_input(format!(
            "{} has {len} bytes, which is no number of sectors",
            path.display()
        ))
        .with_remedy("give a raw disk"));
    }
    refuse_other_formats(path)?;
    let take = |path: &Path, progress: &mut dyn Progress| {
        let len = path.metadata().about("read", path)?.len();
        progress.begin(&format!("copying {}", path.display()), Some(2 * len));
        session.copy_file(path, progress)
    };
    let boot = match boot {
        Boot::Firmware(firmware) => ImageBoot::Firmware { firmware },
        Boot::Kernel { kernel, initrd, append } => ImageBoot::Kernel {
            kernel: take(&kernel, progress)?,
            initrd: initrd.map(|initrd| take(&initrd, progress)).transpose()?,
            append,
        },
    };
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        architecture: "x86_64".into(),
        description: description.to_owned(),
        created_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        boot,
        disks: vec![ImageDisk { name: "root".into(), blob: take(path, progress)? }],
        minimum: Minimum::default(),
        default_user: None,
        ports: Vec::new(),
        volumes: Vec::new(),
        personality: PersonalitySource::None,
        labels: BTreeMap::new(),
    };
    let digest = session.add_manifest(&manifest)?;
    session.set_name(name, digest)?;
    Ok(digest)
}

/// A file in another format, taken for a raw disk, would make an image that does not boot and say nothing.
fn refuse_other_formats(path: &Path) -> Result<()> {
    use std::io::Read;
    let mut start = Vec::new();
    let file = std::fs::File::open(path).about("open", path)?;
    file.take(512).read_to_end(&mut start).about("read", path)?;
    let magics: [(&str, usize, &[u8]); 5] = [
        ("qcow2", 0, b"QFI\xfb"),
        ("VMDK", 0, b"KDMV"),
        ("VHDX", 0, b"vhdxfile"),
        ("VHD", 0, b"conectix"),
        ("VDI", 64, b"\x7f\x10\xda\xbe"),
    ];
    let found =
        magics.iter().find(|(_, at, magic)| start.get(*at..).is_some_and(|bytes| bytes.starts_with(magic)));
    match found {
        Some((format, ..)) => Err(Error::bad_input(format!("{} is in the format {format}", path.display()))
            .with_remedy("convert it to a raw disk first (`arnia disk convert`, `qemu-img convert -O raw`)")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::files::tests::Folder;
    use crate::progress::Silent;

    #[test]
    fn raw_disks_become_images_and_others_are_refused() {
        let folder = Folder::new("import");
        let store = Store::open(folder.0.join("store")).unwrap();
        let path = folder.0.join("disk.raw");
        let name: ImageName = "old:1".parse().unwrap();
        let import = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            disk(&store, &path, &name, Boot::Firmware(ImageFirmware::Bios), "", &mut Silent)
        };
        let digest = import(&[7; 1024]).unwrap();
        store.check(digest, &mut Silent).unwrap();
        assert!(path.exists(), "the file stays");
        let mut qcow2 = vec![0; 1024];
        qcow2[..4].copy_from_slice(b"QFI\xfb");
        for bytes in [&[][..], &[7; 100], &qcow2] {
            assert_eq!(import(bytes).unwrap_err().kind(), ErrorKind::BadInput);
        }
        assert_eq!(store.by_name(&name).unwrap(), digest);
    }
}
