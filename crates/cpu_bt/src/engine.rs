//! [`cpu::Engine`] and [`cpu::Vm`] of this engine.

use crate::counters::VcpuCounts;
use crate::cpu::Cpu;
use crate::lapic::Lapic;
use crate::lockstep::Turns;
use crate::options::{Jit, Options};
use crate::signals::{Signals, signal};
use crate::vcpu::BtVcpu;
use crate::vm::{CodePages, Counters, VmShared};
use cpu::{Engine, Error, ErrorKind, Speed, Support, Vcpu, Vm, VmConfig};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};

/// The software engine.
#[derive(Clone, Debug)]
pub struct BtEngine {
    options: Options,
}

impl BtEngine {
    /// Creates the engine.
    pub fn new(options: Options) -> BtEngine {
        BtEngine { options }
    }
}

struct BtVm {
    shared: Arc<VmShared>,
    created: Mutex<Vec<bool>>,
}

impl Engine for BtEngine {
    fn name(&self) -> &'static str {
        "bt"
    }

    fn probe(&self) -> Support {
        Support {
            usable: true,
            speed: if self.options.jit == Jit::On { Speed::Translated } else { Speed::Interpreted },
            findings: vec!["software CPU engine: needs nothing of the host but an x86-64 processor".into()],
            remedies: vec![],
        }
    }

    fn scales_tsc(&self) -> bool {
        true
    }

    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>, Error> {
        if config.vcpus == 0 || config.vcpus > 255 {
            let context = format!("cannot make a machine with {} vCPUs: 1 to 255 are possible", config.vcpus);
            return Err(Error::new(ErrorKind::BadConfig, context));
        }
        let vcpus = config.vcpus as usize;
        let shared = share(config, &self.options);
        // The library's tables are made for good when they are first needed. That is now, so that they do not come to
        // lie between what vCPUs give back when they are idle.
        drop((iced_x86::Encoder::new(64), iced_x86::Decoder::new(64, &[], 0)));
        Ok(Arc::new(BtVm { shared, created: Mutex::new(vec![false; vcpus]) }))
    }
}

/// What the vCPUs of a machine share.
pub(crate) fn share(config: VmConfig, options: &Options) -> Arc<VmShared> {
    let signals: Vec<_> = (0..config.vcpus).map(|_| Arc::new(Signals::new())).collect();
    let code = Arc::new(CodePages::new(config.ram.clone(), signals.clone(), options.code_cache_size_max));
    config.ram.set_code_watcher(&code);
    let turns = Turns::new(options.jit, &signals);
    let lapics =
        (0..config.vcpus).map(|id| Lapic::new(id, signals[id as usize].clone(), &config.timers)).collect();
    Arc::new(VmShared {
        ram: config.ram,
        clock: config.clock,
        #[cfg(test)]
        timers: config.timers,
        cpuid: config.cpuid,
        lapics,
        signals,
        code,
        counters: Counters::default(),
        counts: (0..config.vcpus).map(|_| Arc::default()).collect(),
        options: options.clone(),
        turns,
        resting: AtomicUsize::new(0),
        pic_line: AtomicBool::new(false),
    })
}

impl Vm for BtVm {
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, Error> {
        let mut created = self.created.lock().unwrap();
        match created.get_mut(id as usize) {
            Some(created) if !*created => *created = true,
            _ => {
                return Err(Error::new(
                    ErrorKind::BadConfig,
                    format!("vCPU {id} cannot be created twice or at all"),
                ));
            }
        }
        let (lapic, signals) =
            (self.shared.lapics[id as usize].clone(), self.shared.signals[id as usize].clone());
        Ok(Box::new(BtVcpu(Cpu::new(self.shared.clone(), id, lapic, signals))))
    }

    fn signal_msi(&self, address: u64, data: u32) {
        self.shared.deliver_message(address, data);
    }

    fn set_pic_line(&self, level: bool) {
        self.shared.set_pic_line(level);
    }

    fn signal_nmi(&self, vcpu: u32) {
        if let Some(signals) = self.shared.signals.get(vcpu as usize) {
            signals.raise(signal::NMI);
        }
    }

    fn memory_replaced(&self) {
        self.shared.code.void_all();
    }

    fn video_moved(&self) {
        self.shared.signals.iter().for_each(|signals| signals.raise(signal::FLUSH_ALL));
    }

    fn resynchronise(&self) {
        for (signals, lapic) in self.shared.signals.iter().zip(&self.shared.lapics) {
            lapic.clock_changed();
            signals.raise(signal::FLUSH_ALL);
        }
    }

    fn counters(&self) -> Vec<(String, u64)> {
        let code = &self.shared.code;
        let mut counters = self.shared.counters.list();
        counters.extend(VcpuCounts::sums(self.shared.counts.iter().map(|counts| &**counts)));
        counters.push(("code_voided".into(), code.voided.get()));
        counters.push(("code_cache_bytes".into(), code.cache().used() as u64));
        counters
    }
}
