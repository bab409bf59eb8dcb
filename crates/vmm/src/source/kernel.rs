//! Booting a kernel file without firmware.

use super::open_file;
use crate::Error;
use crate::spec::KernelSpec;
use boot::{Entry, Kernel, Plan};
use memory::Ram;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A kernel with what belongs to it: read anew at each start of the machine.
pub struct KernelSource {
    path: PathBuf,
    /// `None` when it was not there when the machine was restored.
    kernel: Option<File>,
    initrd: Option<File>,
    command_line: String,
    method: boot::Method,
    /// The plan for the first start, made while the files were checked.
    first_plan: Option<Plan>,
}

impl KernelSource {
    /// Opens what `spec` names and makes sure that it can be booted in `ram`.
    ///
    /// # Errors
    /// When it cannot.
    pub(super) fn open(spec: &KernelSpec, ram: &Ram) -> Result<KernelSource, Error> {
        let initrd = spec.initrd.as_deref();
        let mut source = KernelSource {
            path: spec.kernel.clone(),
            kernel: Some(open_file(&spec.kernel, "kernel", "--kernel")?),
            initrd: initrd.map(|path| open_file(path, "initial RAM disk", "--initrd")).transpose()?,
            command_line: spec.command_line.clone(),
            method: spec.method,
            first_plan: None,
        };
        source.first_plan = Some(source.plan(ram)?);
        Ok(source)
    }

    /// For a machine that goes on from a snapshot.
    pub(super) fn for_a_reset(spec: &KernelSpec) -> KernelSource {
        let open = |path: &Path, what, option| match open_file(path, what, option) {
            Ok(file) => Some(file),
            Err(error) => {
                log::warn!("the machine cannot be reset: {}", error.report());
                None
            }
        };
        let initrd = spec.initrd.as_deref().map(|path| open(path, "initial RAM disk", "--initrd"));
        KernelSource {
            path: spec.kernel.clone(),
            // Without its initial RAM disk it is another system.
            kernel: open(&spec.kernel, "kernel", "--kernel").filter(|_| !matches!(initrd, Some(None))),
            initrd: initrd.flatten(),
            command_line: spec.command_line.clone(),
            method: spec.method,
            first_plan: None,
        }
    }

    fn cannot_be_booted(&self, error: boot::Error) -> Error {
        let advice = match error.kind() {
            boot::ErrorKind::TooLittleMemory => "give more with --memory",
            boot::ErrorKind::BadCommandLine => "check --append",
            boot::ErrorKind::Unsupported => "choose another kernel or another --boot",
            _ => "check --kernel",
        };
        Error::bad_input(format!("{:?} cannot be booted", self.path)).with_source(error).with_advice(advice)
    }

    fn plan(&self, ram: &Ram) -> Result<Plan, Error> {
        let bad = |e: boot::Error| self.cannot_be_booted(e);
        let initrd_size = match &self.initrd {
            None => None,
            Some(file) => {
                let metadata = file.metadata();
                Some(
                    metadata
                        .map_err(|e| Error::host("the initial RAM disk cannot be read").with_source(e))?
                        .len(),
                )
            }
        };
        let inputs = boot::Inputs { ram, initrd_size, command_line: &self.command_line, method: self.method };
        let kernel = self.kernel.as_ref().ok_or_else(|| {
            Error::host(format!("{:?} was not there when the machine was restored", self.path))
                .with_advice("restore it again with kernel and initial RAM disk in place")
        })?;
        let kernel = Kernel::read(kernel).map_err(bad)?;
        let plan = Plan::new(kernel, inputs).map_err(bad)?;
        log::info!("{}", plan.describe());
        Ok(plan)
    }

    /// Loads everything into `ram`, which is all zero.
    ///
    /// # Errors
    /// When the kernel is damaged, or a file is no longer what it was.
    pub(super) fn load(
        &mut self,
        ram: &Ram,
        machine: &boot::Machine,
        seed: [u8; 32],
    ) -> Result<Entry, Error> {
        let plan = match self.first_plan.take() {
            Some(plan) => plan,
            None => self.plan(ram)?,
        };
        plan.load(ram, self.initrd.as_ref(), machine, seed).map_err(|e| match e.kind() {
            boot::ErrorKind::Damaged => self.cannot_be_booted(e),
            _ => Error::host(format!("{:?} cannot be loaded", self.path)).with_source(e),
        })
    }
}
