//! [`cpu::Vm`] of this engine.

use crate::events::{self, Events};
use crate::kick::Kick;
use crate::routes::{INPUTS, Routes};
use crate::vcpu::KvmVcpu;
use crate::{cpuid, kvm_refused, memslots, time};
use clock::Clock;
use cpu::{Error, ErrorKind, MsiEvent, Vcpu, Vm, VmConfig};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap, kvm_msi,
};
use kvm_ioctls::{Kvm, VmFd};
use memory::Ram;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use x86::apic::{DEFAULT_BASE, delivery};
use x86::cpuid::Leaf;

/// Where the kernel keeps two structures that Intel processors without "unrestricted guest" need to execute
/// real mode: above the local APIC, below firmware.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;

/// What the vCPUs of a machine and the threads of devices share.
pub(crate) struct VmShared {
    pub(crate) fd: VmFd,
    /// Lives as long as the machine, whose slots refer to it.
    pub(crate) ram: Arc<Ram>,
    pub(crate) clock: Arc<Clock>,
    /// Level of the legacy interrupt controller's output.
    pub(crate) pic_line: AtomicBool,
    pub(crate) routes: Routes,
    pub(crate) events: Events,
    pub(crate) counters: Counters,
    /// Raised when vCPUs have to take the time from the clock again.
    pub(crate) epoch: AtomicU64,
    vcpus: u32,
    cpuid: Vec<Leaf>,
    /// Registers that the kernel can save.
    msrs: Vec<u32>,
    created: Mutex<Vec<bool>>,
    /// By APIC ID, once created.
    links: Vec<OnceLock<VcpuLink>>,
    logs_dirty: AtomicBool,
    video: memslots::VideoSlot,
}

/// What the machine keeps of a vCPU.
pub(crate) struct VcpuLink {
    pub(crate) kick: Arc<Kick>,
    pub(crate) timer: Arc<crate::state::FrozenTimer>,
}

/// How often vCPUs left the guest for this program, and why.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) pio: AtomicU64,
    pub(crate) mmio: AtomicU64,
    pub(crate) ends_of_interrupt: AtomicU64,
    pub(crate) pic_interrupts: AtomicU64,
    pub(crate) windows: AtomicU64,
    pub(crate) signals: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) events: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl VmShared {
    pub(crate) fn create(kvm: &Kvm, config: VmConfig, msrs: &[u32]) -> Result<Arc<VmShared>, Error> {
        let fd = loop {
            match kvm.create_vm() {
                // A signal came in between; nothing is lost.
                Err(e) if e.errno() == libc::EINTR => {}
                other => break other.map_err(kvm_refused("KVM makes no machine"))?,
            }
        };
        fd.set_identity_map_address(IDENTITY_MAP)
            .and_then(|()| fd.set_tss_address(TSS))
            .map_err(kvm_refused("KVM does not take the places of its tables"))?;
        let enable = |cap: u32, argument: u64| {
            let mut request = kvm_enable_cap { cap, ..Default::default() };
            request.args[0] = argument;
            fd.enable_cap(&request)
        };
        enable(KVM_CAP_SPLIT_IRQCHIP, INPUTS as u64)
            .map_err(kvm_refused("KVM has no split interrupt chip"))?;
        // Without it, vCPUs above 255 could not be addressed, and IDs are saved in another form.
        let x2apic = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        enable(KVM_CAP_X2APIC_API, x2apic.into()).map_err(kvm_refused("KVM has no full x2APIC"))?;
        memslots::install(&fd, &config.ram, config.ram.dirty_logging())?;

        let logs_dirty = config.ram.dirty_logging().into();
        time::set_kvmclock(&fd, &config.clock);
        Ok(Arc::new(VmShared {
            fd,
            ram: config.ram,
            clock: config.clock,
            pic_line: AtomicBool::new(false),
            routes: Routes::default(),
            events: Events::default(),
            counters: Counters::default(),
            epoch: AtomicU64::new(1),
            vcpus: config.vcpus,
            cpuid: config.cpuid,
            msrs: msrs.to_vec(),
            created: Mutex::new(vec![false; config.vcpus as usize]),
            links: (0..config.vcpus).map(|_| OnceLock::new()).collect(),
            logs_dirty,
            video: memslots::VideoSlot::default(),
        }))
    }

    /// Sends a message.
    pub(crate) fn signal_msi(&self, address: u64, data: u32) {
        count(&self.counters.messages);
        self.routes.prepare(&self.fd, address, data);
        let message = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        // A message to nobody is lost, as on the bus.
        if let Err(e) = self.fd.signal_msi(message) {
            log::trace!("KVM refuses the message {data:#x} to {address:#x}: {e}");
        }
    }

    fn links(&self) -> impl Iterator<Item = &VcpuLink> {
        self.links.iter().filter_map(OnceLock::get)
    }

    fn make_vcpu(self: &Arc<Self>, id: u32) -> Result<KvmVcpu, Error> {
        let refused = kvm_refused(format!("KVM makes no vCPU {id}"));
        let fd = self.fd.create_vcpu(id.into()).map_err(refused)?;
        let refused = kvm_refused(format!("KVM refuses the CPU model of vCPU {id}"));
        fd.set_cpuid2(&cpuid::for_kernel(&self.cpuid, id)?).map_err(refused)?;
        let (vcpu, link) = KvmVcpu::new(self.clone(), id, fd, &self.cpuid, &self.msrs)?;
        // Created once: the caller looked.
        let _ = self.links[id as usize].set(link);
        Ok(vcpu)
    }
}

/// One machine.
pub(crate) struct KvmVm(Arc<VmShared>);

impl KvmVm {
    pub(crate) fn create(kvm: &Kvm, config: VmConfig, msrs: &[u32]) -> Result<KvmVm, Error> {
        VmShared::create(kvm, config, msrs).map(KvmVm)
    }
}

impl Vm for KvmVm {
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, Error> {
        let mut created = self.0.created.lock().expect("no code panics while it holds the list");
        match created.get_mut(id as usize) {
            Some(created) if !*created => *created = true,
            _ => {
                let context = format!("vCPU {id} cannot be created twice or at all");
                return Err(Error::new(ErrorKind::BadConfig, context));
            }
        }
        Ok(Box::new(self.0.make_vcpu(id)?))
    }

    fn signal_msi(&self, address: u64, data: u32) {
        self.0.signal_msi(address, data);
    }

    fn msi_event(&self) -> Option<Box<dyn MsiEvent>> {
        Events::open(&self.0).map(|event| Box::new(events::Handle(event)) as Box<dyn MsiEvent>)
    }

    fn set_pic_line(&self, level: bool) {
        self.0.pic_line.store(level, Ordering::SeqCst);
        if let (true, Some(link)) = (level, self.0.links[0].get()) {
            link.kick.attention();
        }
    }

    fn signal_nmi(&self, vcpu: u32) {
        if vcpu < self.0.vcpus {
            // As a message: a request to the vCPU itself would wait until it leaves the guest.
            self.signal_msi(DEFAULT_BASE | u64::from(vcpu) << 12, delivery::NMI << 8);
        }
    }

    fn resynchronise(&self) {
        let logs_dirty = self.0.ram.dirty_logging();
        if self.0.logs_dirty.swap(logs_dirty, Ordering::SeqCst) != logs_dirty
            && let Err(e) = memslots::install(&self.0.fd, &self.0.ram, logs_dirty)
        {
            log::error!("KVM does not change its log of written pages: {e}");
        }
        self.0.events.follow_clock(&self.0, self.0.clock.is_running());
        if self.0.clock.is_running() {
            time::set_kvmclock(&self.0.fd, &self.0.clock);
            self.0.epoch.fetch_add(1, Ordering::SeqCst);
        } else {
            for link in self.0.links() {
                link.timer.freeze(&self.0.clock);
            }
        }
    }

    fn memory_replaced(&self) {
        // The kernel hears of every change of the mapping by itself.
    }

    fn video_moved(&self) {
        // Without a slot its accesses go to the device, which is slower.
        if let Err(e) = self.0.video.follow(&self.0.fd, &self.0.ram) {
            log::warn!("{e}");
        }
    }

    fn collect_dirty(&self) -> Result<(), Error> {
        if self.0.logs_dirty.load(Ordering::SeqCst) {
            memslots::collect_dirty(&self.0.fd, &self.0.ram)?;
        }
        Ok(())
    }

    fn counters(&self) -> Vec<(String, u64)> {
        let counters = &self.0.counters;
        [
            ("pio_exits", &counters.pio),
            ("mmio_exits", &counters.mmio),
            ("end_of_interrupt_exits", &counters.ends_of_interrupt),
            ("pic_interrupts", &counters.pic_interrupts),
            ("interrupt_window_exits", &counters.windows),
            ("signal_exits", &counters.signals),
            ("messages", &counters.messages),
            ("messages_by_event", &counters.events),
        ]
        .map(|(name, counter)| (name.to_owned(), counter.load(Ordering::Relaxed)))
        .into()
    }

    fn set_doorbell(&self, gpa: u64, len: u32, event: BorrowedFd<'_>, on: bool) -> bool {
        match crate::raw::ioeventfd(&self.0.fd, gpa, len, event, on) {
            Ok(()) => true,
            Err(e) => {
                log::debug!("KVM refuses an event descriptor for writes to {gpa:#x}: {e}");
                false
            }
        }
    }
}
