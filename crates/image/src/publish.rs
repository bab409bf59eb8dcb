//! An image of a machine: its disks as they are, with what boots them and what gives instances their identity.

use std::time::{SystemTime, UNIX_EPOCH};

use api::image::{Blob, Digest, ImageDisk, ImageName, Manifest};
use disk::{Access, Format, Image, OpenOptions, TargetOptions};

use crate::disk_work::{refused, with_progress};
use crate::files::RemoveUnlessKept;
use crate::instance::InstanceDisk;
use crate::progress::Progress;
use crate::{Instance, Result, Session, Store};

/// Makes an image of an instance that does not run. All but its disks is as in the image that it came from; machines
/// that come from it get an identity of their own where that image's do.
///
/// # Errors
/// If a disk cannot be read or is in use, or the store cannot be written. Nothing has a name then.
pub fn publish(
    store: &Store,
    instance: &Instance,
    name: &ImageName,
    description: &str,
    progress: &mut dyn Progress,
) -> Result<Digest> {
    let origin = store.manifest(instance.image)?;
    let session = store.session()?;
    let mut disks = Vec::new();
    for (disk, of_origin) in instance.disks.iter().zip(&origin.disks) {
        disks.push(ImageDisk { name: of_origin.name.clone(), blob: take_disk(&session, disk, progress)? });
    }
    let description =
        if description.is_empty() { origin.description.clone() } else { description.to_owned() };
    let created_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let manifest = Manifest { description, created_s, disks, ..origin };
    let digest = session.add_manifest(&manifest)?;
    session.set_name(name, digest)?;
    Ok(digest)
}

/// Takes what a guest sees of a disk into the store.
fn take_disk(session: &Session<'_>, disk: &InstanceDisk, progress: &mut dyn Progress) -> Result<Blob> {
    let config = disk.config();
    // The format is known; what the guest has written decides nothing.
    let format = config.format.parse::<Format>().ok();
    let mut open = OpenOptions { format, ..OpenOptions::new(Access::ReadOnly) };
    open.policy = config.allow.iter().fold(open.policy, |policy, path| policy.and(path));
    let image = Image::open(&disk.path, &open).map_err(refused)?;
    let len = image.disk.info().size;
    let partial = session.partial("published");
    let undo = RemoveUnlessKept::new(&partial);
    let what = format!("copying {}", disk.path.display());
    with_progress(&what, progress, |work| {
        disk::convert(&image.disk, &partial, &TargetOptions::new(Format::Raw), work)
    })
    .map_err(refused)?;
    progress.begin("taking the disk", Some(len));
    let blob = session.take_file(&partial, progress)?;
    undo.keep();
    Ok(blob)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Folder;
    use crate::import::{Boot, ImportOptions, import};
    use crate::progress::Silent;
    use crate::{InstanceParams, PruneOptions};
    use api::image::{ImageFirmware, PersonalitySource};
    use std::os::unix::fs::FileExt;

    #[test]
    fn an_image_of_a_machine_has_what_the_machine_wrote() {
        let folder = Folder::new("publish");
        let store = Store::open(folder.0.join("store")).unwrap();
        let source = folder.0.join("disk.raw");
        std::fs::write(&source, vec![1; 1 << 20]).unwrap();
        let options = ImportOptions {
            boot: Some(Boot::Firmware(ImageFirmware::Bios)),
            personality: PersonalitySource::CloudInit,
            ..ImportOptions::default()
        };
        let base = import(&store, &source, &"base:1".parse().unwrap(), &options, &mut Silent).unwrap();
        let place = folder.0.join("instance");
        let params = InstanceParams { name: "one".into(), ..InstanceParams::default() };
        let instance = Instance::create(&store, base, &place, &params, &mut Silent).unwrap();
        // As its guest would.
        let config = instance.disks[0].config();
        let mut open =
            OpenOptions { format: config.format.parse().ok(), ..OpenOptions::new(Access::ReadWrite) };
        open.policy = config.allow.iter().fold(open.policy, |policy, path| policy.and(path));
        let image = Image::open(&instance.disks[0].path, &open).unwrap();
        image.disk.write(4096, &disk::Buffers::from_slice(&[7; 512]), disk::Durability::AtFlush).unwrap();
        image.disk.flush().unwrap();
        drop(image);

        let name = "made:1".parse().unwrap();
        let made = publish(&store, &instance, &name, "of a machine", &mut Silent).unwrap();
        let manifest = store.manifest(made).unwrap();
        assert_eq!(
            (manifest.description.as_str(), manifest.personality),
            ("of a machine", options.personality)
        );
        let blob = std::fs::File::open(store.blob_path(&manifest.disks[0].blob).unwrap()).unwrap();
        let mut bytes = [0; 1024];
        blob.read_exact_at(&mut bytes, 4096 - 512).unwrap();
        assert_eq!((bytes[511], bytes[512], bytes[1023]), (1, 7, 7));
        // It stands for itself.
        Instance::remove(&store, &place).unwrap();
        store.remove_name(&"base:1".parse().unwrap()).unwrap();
        store.prune(PruneOptions::default()).unwrap();
        store.check(made, &mut Silent).unwrap();
    }
}
