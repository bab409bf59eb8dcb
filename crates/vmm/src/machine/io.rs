//! Where a running vCPU's accesses go.

use cpu::CpuIo;
use device::Bus;
use platform::Platform;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The devices as one vCPU sees them. Each vCPU has its own, so that counting makes them share nothing.
pub struct VcpuIo {
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    platform: Arc<Platform>,
    counters: Arc<IoCounters>,
}

/// How often one vCPU used devices.
#[derive(Debug, Default)]
pub struct IoCounters {
    pio_reads: AtomicU64,
    pio_writes: AtomicU64,
    mmio_reads: AtomicU64,
    mmio_writes: AtomicU64,
    unclaimed: AtomicU64,
    ends_of_interrupt: AtomicU64,
    pic_acknowledges: AtomicU64,
}

impl IoCounters {
    /// The counters by name.
    pub fn read(&self) -> [(&'static str, u64); 7] {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("pio_reads", get(&self.pio_reads)),
            ("pio_writes", get(&self.pio_writes)),
            ("mmio_reads", get(&self.mmio_reads)),
            ("mmio_writes", get(&self.mmio_writes)),
            ("unclaimed_accesses", get(&self.unclaimed)),
            ("ends_of_interrupt", get(&self.ends_of_interrupt)),
            ("pic_acknowledges", get(&self.pic_acknowledges)),
        ]
    }
}

/// Adds one. Only one thread writes each counter, so that no locked instruction is needed.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl VcpuIo {
    pub(super) fn new(pio: Arc<Bus>, mmio: Arc<Bus>, platform: Arc<Platform>) -> VcpuIo {
        VcpuIo { pio, mmio, platform, counters: Arc::default() }
    }

    /// The counters, to be read by others.
    pub fn counters(&self) -> Arc<IoCounters> {
        self.counters.clone()
    }

    fn claimed(&self, claimed: bool, kind: &str, address: u64, len: usize) {
        if !claimed {
            count(&self.counters.unclaimed);
            log::trace!("{kind} of {len} bytes at {address:#x}: no device is there");
        }
    }
}

impl CpuIo for VcpuIo {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        count(&self.counters.pio_reads);
        self.claimed(self.pio.read(port.into(), data), "port read", port.into(), data.len());
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        count(&self.counters.pio_writes);
        self.claimed(self.pio.write(port.into(), data), "port write", port.into(), data.len());
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        count(&self.counters.mmio_reads);
        self.claimed(self.mmio.read(gpa, data), "read", gpa, data.len());
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        count(&self.counters.mmio_writes);
        self.claimed(self.mmio.write(gpa, data), "write", gpa, data.len());
    }

    fn end_of_interrupt(&self, vector: u8) {
        count(&self.counters.ends_of_interrupt);
        self.platform.ioapic.eoi(vector);
    }

    fn pic_acknowledge(&self) -> u8 {
        count(&self.counters.pic_acknowledges);
        self.platform.pic.acknowledge()
    }
}
