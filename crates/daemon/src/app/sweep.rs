//! Taking away snapshots and saved machines that nobody needs any more.
//!
//! A disk of a machine may stand on one long after its name is gone: so they are not removed when somebody says so,
//! but when nothing stands on them.

use super::App;
use super::warm::Warm;
use crate::Error;
use api::image::Digest;
use image::Instance;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// When a sweep is tried again that found somebody making what may stand on anything.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

impl App {
    /// Takes away what nobody needs: at once, or as soon as nobody is making anything that may stand on it.
    pub(super) async fn sweep(self: &Arc<App>) {
        if self.swept().await || self.sweep_waits.swap(true, Ordering::SeqCst) {
            return;
        }
        let app = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(AGAIN_AFTER).await;
                // First: who asks from now on and finds somebody else sweeping sees to it that it is done again.
                app.sweep_waits.store(false, Ordering::SeqCst);
                if app.swept().await || app.sweep_waits.swap(true, Ordering::SeqCst) {
                    return;
                }
            }
        });
    }

    /// Takes it away, if nobody is making anything.
    async fn swept(self: &Arc<App>) -> bool {
        // While this is held, nobody begins to stand on anything.
        let Ok(_alone) = self.standing.try_write() else { return false };
        let app = self.clone();
        let swept = tokio::task::spawn_blocking(move || app.sweep_now()).await;
        match swept {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn!("what nobody needs stays: {error}"),
            Err(error) => log::warn!("what nobody needs stays: {error}"),
        }
        true
    }

    fn sweep_now(&self) -> Result<(), Error> {
        let (vms, snapshots) = self.read(|records| Ok((records.all_vms()?, records.snapshot_ids()?)))?;
        let mut needed: Vec<PathBuf> = Vec::new();
        for vm in vms {
            needed.extend(vm.resume.map(|resume| resume.snapshot));
            let folder = self.instance_folder(&vm.id);
            // One that cannot be read may stand on anything.
            if folder.join(image::INSTANCE_FILE).exists() {
                needed.extend(Instance::load(&folder)?.disks.into_iter().flat_map(|disk| disk.stands_on));
            }
        }
        // Layers of snapshots may stand on other snapshots.
        for id in &snapshots {
            let disks = super::snapshots::saved_disks(&self.snapshot_folder(id))?;
            needed.extend(disks.into_iter().flat_map(|disk| disk.stands_on));
        }
        let is_needed = |folder: &Path| needed.iter().any(|path| path.starts_with(folder));
        let snapshots: HashSet<String> = snapshots.into_iter().collect();
        for folder in folders(&self.config.paths.snapshots()) {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !snapshots.contains(&name) && !is_needed(&folder) {
                log::info!("removing the snapshot {name}, which nobody needs");
                let _ = std::fs::remove_dir_all(&folder);
            }
        }
        let named: HashSet<Digest> = self.images.names()?.into_iter().map(|(_, digest)| digest).collect();
        for folder in folders(&self.config.paths.warm()) {
            let image = Instance::load(&Warm::at(folder.clone()).instance()).map(|instance| instance.image);
            let named = image.is_ok_and(|image| named.contains(&image));
            if !named && !is_needed(&folder) {
                self.remove_warm(&folder);
            }
        }
        Ok(())
    }
}

fn folders(place: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
