//! The firmware configuration device: named items that firmware and kernels read (the interface that QEMU
//! defines in `docs/specs/fw_cfg.rst`).
//!
//! `FwCfgModel` is the register model, [`FwCfg`] the wiring with access to guest memory for DMA.

mod device;
mod model;
pub mod spec;

pub use device::FwCfg;
pub use model::{FwCfgError, FwCfgModel, FwCfgSaved};
