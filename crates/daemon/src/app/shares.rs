//! The file servers of machines: one process for each folder that a guest is shown, started before the machine is told
//! of it, watched, found again.
//!
//! A server's folder is `shares/ID` in the machine's. What it was started with lies there (`share.json`) as long as the
//! machine is to have the share. Like workers, servers outlive the daemon; one that no machine is plugged into ends by
//! itself.

use super::switches::adopt;
use super::{App, lock};
use crate::machine::{Folder, Process, process};
use crate::{Error, util};
use api::share::FileServerConfig;
use api::v1::error::ErrorCode;
use api::v1::mount::MountConfig;
use api::worker::config::ShareConfig;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::VmRecord;

/// How long a server has to come up.
const PATIENCE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(2);
/// How long to wait before one is started again that has ended by itself.
const AGAIN: Duration = Duration::from_millis(500);
/// Its socket.
pub(super) const SOCKET: &str = "socket";
const CONFIG: &str = "share.json";

/// Bits of a share's number.
const ID_MAX: u32 = (1 << 24) - 1;

/// The number of a share: the same for the same folder shown in the same way, so that a guest that goes on from a
/// snapshot finds it again, and another one for any other.
pub(super) fn share_id(mount: &MountConfig) -> u32 {
    let digest = util::digest(&serde_json::to_vec(mount).unwrap_or_default());
    let number = u32::from_le_bytes([digest[0], digest[1], digest[2], 0]);
    number.clamp(1, ID_MAX)
}

impl App {
    fn shares_folder(&self, vm: &str) -> PathBuf {
        self.config.paths.vm_runtime(vm).join("shares")
    }

    fn share_folder(&self, vm: &str, mount: &MountConfig) -> Folder {
        Folder(self.shares_folder(vm).join(format!("{:06x}", share_id(mount))))
    }

    /// Starts the servers of a machine that is about to start.
    pub(super) async fn serve_shares(self: &Arc<App>, vm: &VmRecord) -> Result<Vec<ShareConfig>, Error> {
        // An earlier run may have left some.
        self.end_shares(&vm.id);
        let mut shares = Vec::new();
        for mount in &vm.config.mounts {
            shares.push(self.serve_share(vm, mount).await?);
        }
        Ok(shares)
    }

    /// Starts the server of a share; what the worker is to be told of it.
    pub(super) async fn serve_share(
        self: &Arc<App>,
        vm: &VmRecord,
        mount: &MountConfig,
    ) -> Result<ShareConfig, Error> {
        let folder = self.share_folder(&vm.id, mount);
        let name = mount.name.clone().unwrap_or_default();
        let (uid, gid) = mount.owner_ids().unwrap_or_default();
        let paths = &self.config.paths;
        let config = FileServerConfig {
            name: format!("{}/{}/{name}", vm.project, vm.name),
            folder: mount.folder.clone().into(),
            read_only: mount.read_only,
            uid,
            gid,
            hidden: vec![paths.data.clone(), paths.runtime.clone(), self.config.images.clone()],
            id: share_id(mount),
            socket: folder.file(SOCKET),
            key: format!("{}{}", util::uuid(), util::uuid()).replace('-', ""),
        };
        self.start_file_server(&vm.id, &folder, &config).await?;
        Ok(ShareConfig {
            name,
            target: mount.target.clone(),
            read_only: mount.read_only,
            id: config.id,
            socket: config.socket,
            key: config.key,
        })
    }

    async fn start_file_server(
        self: &Arc<App>,
        vm: &str,
        folder: &Folder,
        config: &FileServerConfig,
    ) -> Result<(), Error> {
        let failed = |e: &dyn std::fmt::Display| {
            Error::internal(format!("the file server of {:?} cannot be started", config.folder), e)
        };
        let path = folder.file(CONFIG);
        let text = serde_json::to_vec_pretty(config).map_err(|e| failed(&e))?;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let process = loop {
            match Process::start_file_server(&self.config.switch, folder, (&path, &text)) {
                Ok(process) => break Arc::new(process),
                // One that ends just now still has the lock.
                Err(_) if process::lives(folder) && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(INTERVAL).await;
                }
                Err(e) => return Err(failed(&e)),
            }
        };
        while !folder.file(SOCKET).exists() {
            if tokio::time::Instant::now() > deadline || !process::lives(folder) {
                process.kill();
                process.ended().await;
                let words = process::last_words(&folder.file("log"));
                let _ = std::fs::remove_dir_all(folder.path());
                let message = format!("the folder {:?} cannot be shown to a guest", config.folder);
                let error = Error::new(ErrorCode::Invalid, message);
                return Err(if words.is_empty() { error } else { error.with_cause(words) });
            }
            tokio::time::sleep(INTERVAL).await;
        }
        self.watch_file_server(vm, folder, process);
        Ok(())
    }

    /// Starts a server again when it has ended although the machine has the share.
    fn watch_file_server(self: &Arc<App>, vm: &str, folder: &Folder, process: Arc<Process>) {
        lock(&self.file_servers).insert(folder.0.clone(), process.clone());
        let (app, vm, folder) = (self.clone(), vm.to_owned(), folder.clone());
        tokio::spawn(async move {
            process.ended().await;
            {
                let mut servers = lock(&app.file_servers);
                match servers.get(&folder.0) {
                    Some(now) if Arc::ptr_eq(now, &process) => drop(servers.remove(&folder.0)),
                    // Another one is there already.
                    _ => return,
                }
            }
            tokio::time::sleep(AGAIN).await;
            if let Some(config) = read(&folder).filter(|_| app.machine(&vm).state().is_active()) {
                log::warn!("the file server of {} has ended and is started again", config.name);
                if let Err(error) = Box::pin(app.start_file_server(&vm, &folder, &config)).await {
                    log::error!("the folder {:?} is not there for {}: {error}", config.folder, config.name);
                }
            }
        });
    }

    /// Ends the server of a share.
    pub(super) fn end_share(&self, vm: &str, mount: &MountConfig) {
        self.end_file_server(&self.share_folder(vm, mount));
    }

    fn end_file_server(&self, folder: &Folder) {
        // First what it would be started again with.
        let _ = std::fs::remove_file(folder.file(CONFIG));
        if let Some(process) = lock(&self.file_servers).remove(&folder.0) {
            process.kill();
        }
        let _ = std::fs::remove_dir_all(folder.path());
    }

    /// Ends all servers of a machine that has ended.
    pub(super) fn end_shares(&self, vm: &str) {
        for entry in std::fs::read_dir(self.shares_folder(vm)).into_iter().flatten().flatten() {
            self.end_file_server(&Folder(entry.path()));
        }
    }

    /// Takes over the servers that an earlier daemon has left, and starts those again that are missed.
    pub(super) async fn find_shares(self: &Arc<App>) {
        for vm in self.read(|records| Ok(records.all_vms()?)).unwrap_or_default() {
            let is_active = self.machine(&vm.id).state().is_active();
            for entry in std::fs::read_dir(self.shares_folder(&vm.id)).into_iter().flatten().flatten() {
                let folder = Folder(entry.path());
                let Some(config) = read(&folder).filter(|_| is_active) else { continue };
                let found = match adopt(&folder, SOCKET).await {
                    Some(process) => {
                        self.watch_file_server(&vm.id, &folder, process);
                        Ok(())
                    }
                    None => self.start_file_server(&vm.id, &folder, &config).await,
                };
                if let Err(error) = found {
                    log::error!("the folder {:?} is not there for {}: {error}", config.folder, config.name);
                }
            }
        }
    }
}

fn read(folder: &Folder) -> Option<FileServerConfig> {
    serde_json::from_slice(&std::fs::read(folder.file(CONFIG)).ok()?).ok()
}
