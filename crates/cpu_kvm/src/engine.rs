//! [`cpu::Engine`] of this engine.

use crate::vm::KvmVm;
use crate::{cpuid, kick, kvm_refused, probe};
use cpu::{Engine, Error, ErrorKind, Support, Vm, VmConfig};
use kvm_ioctls::Kvm;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use x86::cpuid::Leaf;

/// How the engine is to work.
#[derive(Clone, Debug)]
pub struct Options {
    /// The device.
    pub device: PathBuf,
    /// Whether guests may use hardware virtualization themselves, where the host lets them. It widens what a
    /// guest can reach of the host's kernel.
    pub nested: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { device: "/dev/kvm".into(), nested: false }
    }
}

/// The KVM engine. The device is opened once, at the latest by [`Engine::probe`], so that a sandbox entered
/// afterwards need not let anybody open it.
pub struct KvmEngine {
    options: Options,
    kvm: OnceLock<Result<Kvm, i32>>,
}

impl KvmEngine {
    /// Creates the engine. Nothing is opened yet.
    pub fn new(options: Options) -> KvmEngine {
        KvmEngine { options, kvm: OnceLock::new() }
    }

    /// The device, or the error number with which it cannot be opened.
    pub(crate) fn kvm(&self) -> Result<&Kvm, i32> {
        let open = || {
            let path = CString::new(self.options.device.as_os_str().as_bytes()).map_err(|_| libc::ENOENT)?;
            Kvm::new_with_path(path).map_err(|e| e.errno())
        };
        self.kvm.get_or_init(open).as_ref().map_err(|errno| *errno)
    }

    fn open(&self) -> Result<&Kvm, Error> {
        self.kvm().map_err(|errno| {
            let context = format!("{} cannot be opened", self.options.device.display());
            Error::new(ErrorKind::Unsupported, context).with_source(std::io::Error::from_raw_os_error(errno))
        })
    }
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn probe(&self) -> Support {
        probe::probe(self, &self.options)
    }

    fn circumstances(&self) -> Option<String> {
        let about = std::fs::metadata(&self.options.device).ok()?;
        let (mode, changed) = (about.mode(), (about.ctime(), about.ctime_nsec()));
        let identity = (about.dev(), about.ino(), about.rdev());
        Some(format!("{identity:?} {mode:o} {changed:?} nested={}", self.options.nested))
    }

    fn offered_cpuid(&self) -> Result<Option<Vec<Leaf>>, Error> {
        cpuid::offered(self.open()?, self.options.nested).map(Some)
    }

    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>, Error> {
        if config.vcpus == 0 || config.vcpus > 255 {
            let context = format!("cannot make a machine with {} vCPUs: 1 to 255 are possible", config.vcpus);
            return Err(Error::new(ErrorKind::BadConfig, context));
        }
        if config.clock.is_scaled() {
            let context = "the TSC of a guest under KVM runs at the host's frequency";
            return Err(Error::new(ErrorKind::BadConfig, context));
        }
        kick::install_handler();
        let kvm = self.open()?;
        let msrs = kvm
            .get_msr_index_list()
            .map_err(kvm_refused("KVM does not list its model-specific registers"))?;
        Ok(Arc::new(KvmVm::create(kvm, config, msrs.as_slice())?))
    }
}
