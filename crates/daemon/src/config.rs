//! What the daemon is started with, and where its things are.

use crate::StartError;
use rustix::fs::{FlockOperation, Mode as FileMode};
use std::fs::{DirBuilder, File};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// For whom the daemon works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For one user, without rights.
    User,
    /// For the host, as a system service.
    System,
}

/// What the daemon is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// For whom it works.
    pub mode: Mode,
    /// Where its things are.
    pub paths: Paths,
    /// The program `arnia-vmm`.
    pub worker: PathBuf,
    /// The program `arnia`, which is the switch of a network when it is started as `arnia switch`.
    pub switch: PathBuf,
    /// The program `arnia-agent`, which images get on board; none can be built without it.
    pub agent: Option<PathBuf>,
    /// The folder of the images.
    pub images: PathBuf,
    /// Where it listens with TLS; nowhere when absent.
    pub listen: Option<SocketAddr>,
}

/// Folders of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// What lasts: records, volumes, logs.
    pub data: PathBuf,
    /// What goes when the host starts again: sockets, locks.
    pub runtime: PathBuf,
}

impl Paths {
    /// The folders of this user's daemon, by the XDG base directory specification.
    ///
    /// # Errors
    /// When there is no home directory.
    pub fn user() -> Result<Paths, StartError> {
        let variable =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data = variable("XDG_DATA_HOME")
            .or_else(|| variable("HOME").map(|home| home.join(".local/share")))
            .ok_or_else(|| StartError::new("neither HOME nor XDG_DATA_HOME names a folder"))?;
        let runtime = variable("XDG_RUNTIME_DIR").map_or_else(
            || std::env::temp_dir().join(format!("arnia-{}", rustix::process::getuid().as_raw())),
            |dir| dir.join("arnia"),
        );
        Ok(Paths { data: data.join("arnia"), runtime })
    }

    /// The folders of the system's daemon.
    pub fn system() -> Paths {
        Paths { data: "/var/lib/arnia".into(), runtime: "/run/arnia".into() }
    }

    /// The socket of the API.
    pub fn socket(&self) -> PathBuf {
        self.runtime.join("arnia.sock")
    }

    /// The folder of the images, unless somebody names another.
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// The certificate that remote clients are shown.
    pub fn certificate(&self) -> PathBuf {
        self.data.join("tls/certificate.pem")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.data.join("tls/key.pem")
    }

    pub(crate) fn records(&self) -> PathBuf {
        self.data.join("arnia.db")
    }

    pub(crate) fn default_pool(&self) -> PathBuf {
        self.data.join("pools/default")
    }

    pub(crate) fn vm_data(&self, id: &str) -> PathBuf {
        self.data.join("vms").join(id)
    }

    /// Snapshots, a folder each, named by their identity.
    pub(crate) fn snapshots(&self) -> PathBuf {
        self.data.join("snapshots")
    }

    /// Where machines lie from which others of the same image start, a folder each.
    pub(crate) fn warm(&self) -> PathBuf {
        self.data.join("warm")
    }

    pub(crate) fn vm_runtime(&self, id: &str) -> PathBuf {
        self.runtime.join("vms").join(id)
    }

    /// The runtime folder of a network.
    pub(crate) fn network_runtime(&self, id: &str) -> PathBuf {
        self.runtime.join("networks").join(id)
    }

    /// Makes the folders, for this user alone, and makes sure that this is their only daemon. The lock lives as
    /// long as what is returned.
    pub(crate) fn prepare(&self) -> Result<File, StartError> {
        for folder in [&self.data, &self.runtime] {
            private_folder(folder)?;
        }
        for folder in [
            self.data.join("vms"),
            self.data.join("tls"),
            self.default_pool(),
            self.snapshots(),
            self.warm(),
            self.runtime.join("vms"),
            self.runtime.join("warm"),
            self.runtime.join("networks"),
        ] {
            private_folder(&folder)?;
        }
        let path = self.data.join("lock");
        let cannot =
            |e: std::io::Error| StartError::new(format!("the file {path:?} cannot be used")).with_source(e);
        let lock = File::create(&path).map_err(cannot)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(StartError::new(format!("another daemon works with {:?}", self.data)))
            }
            Err(e) => Err(cannot(e.into())),
        }
    }
}

/// Makes a folder that belongs to this user and that nobody else can enter.
pub(crate) fn private_folder(path: &Path) -> Result<(), StartError> {
    let cannot =
        |e: std::io::Error| StartError::new(format!("the folder {path:?} cannot be used")).with_source(e);
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(cannot)?;
    let metadata = std::fs::symlink_metadata(path).map_err(cannot)?;
    // In /tmp, anybody could have made it before.
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(StartError::new(format!("{path:?} is not a folder of this user: remove it")));
    }
    if metadata.mode() & 0o077 != 0 {
        rustix::fs::chmod(path, FileMode::RWXU).map_err(|e| cannot(e.into()))?;
    }
    Ok(())
}
