//! The machines that run: starting workers, watching over them, finding them again.
//!
//! ```text
//!              start                    ready
//! (no worker) ───────> Starting ──────────────────> Running <──> Paused
//!      ^                  │                            │ power button
//!      │ report read      │ process ended              v
//!      └──────────────────┴─────────────────────── Stopping
//! ```
//!
//! One folder of the runtime folder per machine:
//!
//! | file | what |
//! |---|---|
//! | `lock` | locked as long as the worker lives: it inherits the locked file as its standard input |
//! | `worker.json` | what the worker was started with |
//! | `control`, `console`, `vsock`, `qemu-agent` | the worker's sockets |
//! | `report` | why the machine ended; empty until then |
//! | `boot` | the run of the host's kernel in which the worker was started |
//!
//! The processes of networks have such folders, too: `lock`, `boot`, `switch.json`, and `ports`, the socket for cards. So have file servers, within the
//! folder of their machine: `shares/ID` with `lock`, `boot`, `share.json`, and `socket`.

mod cgroup;
mod control;
pub(crate) mod process;
pub(crate) mod scheduling;
mod spec;

pub(crate) use cgroup::{Cgroups, GroupLimits};
pub(crate) use control::Control;
pub(crate) use process::{Ending, Process};
pub(crate) use spec::{Start, restore_config, worker_config};

use std::path::{Path, PathBuf};

/// Where the runtime files of one machine are.
#[derive(Clone, Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn control(&self) -> Control {
        Control::new(self.file("control"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}
