//! Files that a snapshot names outside its own folder.
//!
//! Who made a snapshot decides what is in its manifest, and a restore opens what that names: a kernel, for a guest that starts anew, the
//! images that its disks stand on. So that the snapshot of a stranger cannot have a guest read the files of whoever
//! restores it, nothing outside the snapshot's folders is opened but what the user has named.

use super::chain::Link;
use crate::Error;
use api::worker::config::{CdromConfig, FirmwareImage, NetConfig, RestoreConfig, VmConfig};
use api::worker::snapshot::{Manifest, SavedDisk};
use std::path::{Path, PathBuf};

/// The files that a restore would open because the manifest names them, and not because of what the user says.
pub(super) fn named(manifest: &Manifest, config: &RestoreConfig) -> Vec<PathBuf> {
    // All fields, so that a new one is thought of here.
    let VmConfig {
        kernel,
        initrd,
        firmware,
        disks,
        nets,
        cdroms,
        // The user's, whatever the manifest says: a restore takes these from its own configuration.
        firmware_variables: _,
        vsock: _,
        qemu_agent: _,
        shares: _,
        serial: _,
        console: _,
        control: _,
        snapshots: _,
        disk_folder: _,
        report: _,
        jit: _,
        engine: _,
        sandbox: _,
        name: _,
        uuid: _,
        generation_id: _,
        // No files.
        boot: _,
        append: _,
        cpus: _,
        cpu_model: _,
        memory: _,
        force_engine: _,
        nested: _,
        tsc_hz: _,
        boot_order: _,
        display: _,
        balloon: _,
        on_reset: _,
        stop_timeout: _,
        debug_exit: _,
    } = &manifest.machine;
    let mut named: Vec<PathBuf> = kernel.iter().chain(initrd).cloned().collect();
    if let Some(FirmwareImage::File(path)) = firmware {
        named.push(path.clone());
    }
    for (index, (disk, saved)) in disks.iter().zip(&manifest.disks).enumerate() {
        let given = config.disks.get(index);
        match saved {
            // Only the copy in the folder is opened.
            SavedDisk::Copy(_) => {}
            // It is used as it is.
            SavedDisk::Layers(_) if given.is_some_and(|given| given.path.exists()) => {}
            SavedDisk::Layers(layers) => named.extend(layers.below.iter().cloned()),
            SavedDisk::Outside(_) if given.is_some() => {}
            SavedDisk::Outside(_) => named.extend(disk.allow.iter().chain([&disk.path]).cloned()),
        }
    }
    for CdromConfig { path, media, bus: _ } in cdroms {
        named.extend(path.iter().chain(media).cloned());
    }
    for net in nets.iter().filter(|_| config.nets.is_empty()) {
        match net {
            NetConfig::User(_) => {}
            NetConfig::Switch(switch) => named.push(switch.socket.clone()),
        }
    }
    named
}

/// What may be opened: the files in these folders, and these files.
pub(super) struct Allowed(Vec<PathBuf>);

impl Allowed {
    /// The folders of a snapshot, and what the user allows.
    pub(super) fn new(links: &[Link], config: &RestoreConfig) -> Allowed {
        let own = links.iter().map(|link| &link.dir);
        let said = config.disks.iter().flat_map(|disk| &disk.allow).chain(&config.allow);
        Allowed(own.chain(said).map(|path| real(path)).collect())
    }

    /// Whether a file may be opened.
    pub(super) fn has(&self, path: &Path) -> bool {
        let path = real(path);
        self.0.iter().any(|place| path.starts_with(place))
    }

    /// Refuses what may not be opened.
    ///
    /// # Errors
    /// With the files, and how they are allowed.
    pub(super) fn check(&self, named: &[PathBuf]) -> Result<(), Error> {
        let mut outside: Vec<PathBuf> =
            named.iter().filter(|path| !self.has(path)).map(|path| real(path)).collect();
        outside.sort();
        outside.dedup();
        if outside.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = outside.iter().map(|path| format!("{path:?}")).collect();
        let options: Vec<String> = outside.iter().map(|path| format!("--allow {}", path.display())).collect();
        Err(Error::bad_input(format!(
            "the snapshot names files outside its folder, which its guest could read: {}",
            list.join(", ")
        ))
        .with_advice(format!("if that is right, allow them: {}", options.join(" "))))
    }
}

/// Where a path leads, without links and dots. One that leads nowhere is taken as it is written.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::worker::config::DiskConfig;
    use api::worker::snapshot::{Layers, OutsideDisk};

    #[test]
    fn what_lies_elsewhere_is_refused_unless_it_is_allowed() {
        let root = std::env::temp_dir().join(format!("arnia-outside-{}", std::process::id()));
        let (snapshot, secret) = (root.join("s"), root.join("secret"));
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::write(&secret, "x").unwrap();
        std::os::unix::fs::symlink(&secret, snapshot.join("link")).unwrap();
        let check = |path: PathBuf, allow: &[PathBuf]| {
            let places = [std::slice::from_ref(&snapshot), allow].concat();
            Allowed(places.iter().map(|path| real(path)).collect()).check(&[path])
        };
        check(snapshot.join("kernel"), &[]).unwrap();
        for path in [secret.clone(), snapshot.join("link"), snapshot.join("../secret"), root.join("s-not")] {
            let error = check(path.clone(), &[]).unwrap_err().to_string();
            assert!(error.contains("outside"), "{path:?}: {error}");
            check(path, std::slice::from_ref(&root)).unwrap();
        }
        check(secret.clone(), &[secret]).unwrap();
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn all_that_a_manifest_can_name_is_found() {
        let mut manifest = super::super::manifest::tests::example();
        let machine = &mut manifest.machine;
        machine.kernel = Some("kernel".into());
        machine.initrd = Some("initrd".into());
        machine.firmware = Some(FirmwareImage::File("firmware".into()));
        let mut disk = DiskConfig::new("disk");
        disk.allow = vec!["allowed".into()];
        machine.disks = vec![disk];
        let names = |manifest: &Manifest, given: bool| -> Vec<String> {
            let mut config = RestoreConfig::new("s");
            config.disks.extend(given.then(|| DiskConfig::new("copy")));
            let named = named(manifest, &config);
            named.iter().map(|path| path.display().to_string()).collect()
        };
        let common = ["kernel", "initrd", "firmware"];
        assert_eq!(names(&manifest, false), common);
        manifest.disks = vec![SavedDisk::Outside(OutsideDisk { path: "disk".into(), size: 512 })];
        assert_eq!(names(&manifest, false)[3..], ["allowed", "disk"]);
        assert_eq!(names(&manifest, true), common);
        let files = vec!["d.1.layer".into()];
        manifest.disks = vec![SavedDisk::Layers(Layers { size: 512, files, below: vec!["below".into()] })];
        assert_eq!(names(&manifest, true)[3..], ["below"]);
    }
}
