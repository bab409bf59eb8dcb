//! Virtio over PCI (virtio 1.2, §4.1), modern only.
//!
//! One base address register holds all structures, each on a page of its own, so that an engine can
//! treat the notification page apart from the rest:
//!
//! | offset | structure |
//! |---|---|
//! | 0x0000 | common configuration |
//! | 0x1000 | interrupt status |
//! | 0x2000 | device configuration |
//! | 0x3000 | notifications: one doubleword per queue |
//! | 0x4000 | MSI-X table |
//! | 0x6000 | MSI-X pending bits |
//!
//! **Locks.** `state` serialises what the driver does with registers; it is held while workers are
//! started and joined. `lines` guards the interrupt outputs and is a leaf: workers take only this one.
//! Both an interrupt's cause and its level are set under it, since a level computed under the lock and
//! driven after it could overtake a newer one; the controllers behind it call no device. A notification
//! takes no lock.

use super::registers::{Effect, Live, Registers, RegistersSaved};
use crate::device::{Activation, DeviceSaved, Interrupt, VirtioDevice};
use crate::queue::{Position, Queue, RingError};
use crate::spec::{device_type, feature, pci as spec};
use crate::worker::{Work, Worker};
use crate::{Error, ErrorKind, Kick};
use device::pci::{Bar, BarKind, ConfigSaved, ConfigSpace, Identity, Msix, MsixSaved, PciFunction, reg};
use device::state::{RestoreError, SaveRestore};
use device::{IrqLine, MsiSink};
use memory::Ram;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const BAR: usize = 0;
const BAR_SIZE: u64 = 0x8000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x6000;
const PAGE: u64 = 0x1000;
const NOTIFY_MULTIPLIER: u32 = 4;
/// What the MSI-X table's two pages hold, without the configuration vector.
const QUEUES_MAX: usize = 511;

/// Offset in the base address register of the doubleword that notifies a queue, for engines that turn
/// a guest's write there into a write to [`VirtioPci::notify_fd`].
pub fn notify_offset(queue: u16) -> u64 {
    NOTIFY + queue as u64 * NOTIFY_MULTIPLIER as u64
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    name: String,
    ram: Arc<Ram>,
    msi: Arc<dyn MsiSink>,
    kicks: Vec<Arc<Kick>>,
    outputs: Arc<Outputs>,
    state: Mutex<State>,
    /// Where the capability for access through configuration space is.
    window: u16,
}

struct State {
    config: ConfigSpace,
    registers: Registers,
    device: Box<dyn VirtioDevice>,
    positions: Vec<Position>,
    /// `None` while the device is at rest.
    workers: Option<Workers>,
    paused: bool,
}

/// What a device at work consists of.
#[derive(Default)]
struct Workers {
    threads: Vec<Worker>,
    /// What the host gave no thread for: it does nothing until the next start.
    stranded: Vec<Box<dyn Work>>,
}

/// The interrupt side, shared with the workers.
struct Outputs {
    lines: Mutex<Lines>,
    config_generation: AtomicU8,
    needs_reset: AtomicBool,
    /// What broke the device first since its last reset.
    fault: Mutex<Option<(u16, RingError)>>,
}

struct Lines {
    msix: Msix,
    /// The MSI-X vector of each queue, then that of configuration changes.
    vectors: Vec<u16>,
    isr: u8,
    line: IrqLine,
    line_disabled: bool,
}

/// Saved form of [`VirtioPci`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VirtioPciSaved {
    /// PCI configuration space.
    pub config: ConfigSaved,
    /// MSI-X table and pending bits.
    pub msix: MsixSaved,
    /// Interrupt status.
    pub isr: u8,
    /// Configuration generation.
    pub config_generation: u8,
    /// Whether the device is out of order.
    pub needs_reset: bool,
    /// The common configuration.
    pub registers: RegistersSaved,
    /// How far each queue has come.
    pub queues: Vec<Position>,
    /// The device itself.
    pub device: DeviceSaved,
}

impl VirtioPci {
    /// Creates a function for `device`, at rest until a driver has set it up. `name` names its threads.
    ///
    /// # Errors
    /// When the process may not open more descriptors.
    ///
    /// # Panics
    /// When the device has more than 511 queues or queue sizes that cannot be: its own mistake.
    pub fn new(
        name: impl Into<String>,
        device: Box<dyn VirtioDevice>,
        ram: Arc<Ram>,
        msi: Arc<dyn MsiSink>,
        irq: IrqLine,
    ) -> Result<Arc<VirtioPci>, Error> {
        let name = name.into();
        let sizes = device.queue_sizes();
        assert!(sizes.len() <= QUEUES_MAX, "no more queues than the transport has room for");
        let kicks = sizes.iter().map(|_| Kick::new().map(Arc::new)).collect::<io::Result<Vec<_>>>();
        let kicks = kicks.map_err(|error| {
            let context = format!("cannot make device {name}: the host gives no event descriptor");
            Error::new(ErrorKind::HostRefused, context).with_source(error)
        })?;
        let vectors = sizes.len() as u16 + 1;
        let (config, msix, window) = configuration(device.device_type(), vectors, irq.irq(), msi.clone());
        let ring_features = feature::VERSION_1 | feature::RING_INDIRECT_DESC | feature::RING_EVENT_IDX;
        let registers = Registers::new(device.features() | ring_features, &sizes, vectors);
        let lines = Lines {
            msix,
            vectors: vec![spec::NO_VECTOR; vectors as usize],
            isr: 0,
            line: irq,
            line_disabled: false,
        };
        let outputs = Outputs {
            lines: Mutex::new(lines),
            config_generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            fault: Mutex::new(None),
        };
        let state = State {
            config,
            registers,
            device,
            positions: vec![Position::default(); sizes.len()],
            workers: None,
            paused: false,
        };
        Ok(Arc::new(VirtioPci {
            name,
            ram,
            msi,
            kicks,
            outputs: Arc::new(outputs),
            state: Mutex::new(state),
            window,
        }))
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The event that notifies queue `queue`. Writing to it does what the guest's write at
    /// [`notify_offset`] does.
    pub fn notify_fd(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        self.kicks.get(queue as usize).map(|kick| kick.as_fd())
    }

    /// The number of queues.
    pub fn queue_count(&self) -> u16 {
        self.kicks.len() as u16
    }

    /// Which queue the guest broke, and how, if it did so since the last reset: for logs.
    pub fn fault(&self) -> Option<(u16, RingError)> {
        *self.outputs.fault()
    }

    /// Sets the address of the base address register, as firmware does.
    pub fn set_bar_base(&self, base: u64) {
        self.state().config.set_bar_base(BAR, base);
    }

    /// Stops the workers, having drained what is in flight. The guest may go on using the registers.
    pub fn pause(&self) {
        let mut state = self.state();
        state.paused = true;
        self.reconcile(&mut state);
    }

    /// Undoes [`VirtioPci::pause`].
    pub fn resume(&self) {
        let mut state = self.state();
        state.paused = false;
        self.reconcile(&mut state);
    }

    /// Tells the driver, if there is one at work, that the device's configuration has changed.
    pub fn config_changed(&self) {
        let is_at_work = self.state().registers.is_driver_ok();
        if is_at_work {
            self.outputs.config_changed();
        }
    }

    /// Makes the workers look for something to do: what they wait for may have changed without a
    /// notification of the driver.
    pub fn wake(&self) {
        self.kicks.iter().for_each(|kick| kick.notify());
    }

    /// Resets the function as the machine's reset line does: all but its identity is as after creation.
    /// The base address register keeps its value, for machines without firmware.
    pub fn reset(&self) {
        let mut state = self.state();
        self.reset_device(&mut state);
        let base = state.config.bars()[0].base;
        let mut lines = self.outputs.lines();
        let (device_type, vectors) = (state.device.device_type(), self.queue_count() + 1);
        (state.config, lines.msix, _) =
            configuration(device_type, vectors, lines.line.irq(), self.msi.clone());
        state.config.set_bar_base(BAR, base);
        lines.line_disabled = false;
        lines.update();
    }

    /// The saved form.
    ///
    /// # Panics
    /// When the function is not paused: the caller's mistake.
    pub fn save(&self) -> VirtioPciSaved {
        let state = self.state();
        assert!(state.workers.is_none(), "a function is paused before it is saved");
        let lines = self.outputs.lines();
        VirtioPciSaved {
            config: state.config.save(),
            msix: lines.msix.save(),
            isr: lines.isr,
            config_generation: self.outputs.config_generation.load(Ordering::Acquire),
            needs_reset: self.outputs.needs_reset.load(Ordering::Acquire),
            registers: state.registers.save(),
            queues: state.positions.clone(),
            device: state.device.save(),
        }
    }

    /// Takes over a saved state. It goes to work with [`VirtioPci::resume`]. On error it is as before.
    ///
    /// # Errors
    /// When the state is of another device or cannot be.
    ///
    /// # Panics
    /// When the function is not paused: the caller's mistake.
    pub fn restore(&self, saved: VirtioPciSaved) -> Result<(), RestoreError> {
        let mut state = self.state();
        assert!(state.workers.is_none(), "a function is paused before it is restored");
        let mut config = state.config.clone();
        config.restore(saved.config)?;
        let registers = state.registers.restored(saved.registers)?;
        if saved.queues.len() != state.positions.len() {
            return Err(RestoreError::new("virtio transport", "the number of queues differs"));
        }
        if saved.isr & !(spec::ISR_QUEUE | spec::ISR_CONFIG) != 0 {
            return Err(RestoreError::new("virtio transport", "the interrupt status does not exist"));
        }
        let mut lines = self.outputs.lines();
        let before = lines.msix.save();
        lines.msix.restore(saved.msix, &config)?;
        if let Err(error) = state.device.restore(saved.device) {
            lines.msix.restore(before, &state.config).expect("its own state");
            return Err(error);
        }
        state.config = config;
        state.registers = registers;
        state.positions = saved.queues;
        for queue in 0..self.queue_count() {
            lines.vectors[queue as usize] = state.registers.vector(Some(queue));
        }
        *lines.vectors.last_mut().expect("the configuration's") = state.registers.vector(None);
        lines.isr = saved.isr;
        lines.line_disabled = is_line_disabled(&state.config);
        lines.update();
        self.outputs.config_generation.store(saved.config_generation, Ordering::Release);
        self.outputs.needs_reset.store(saved.needs_reset, Ordering::Release);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts or stops the workers, as the driver, the machine and bus mastering (PCI 3.0, §6.2.2) want
    /// it.
    fn reconcile(&self, state: &mut State) {
        let wanted = state.registers.is_driver_ok() && state.config.is_bus_master() && !state.paused;
        match (wanted, state.workers.is_some()) {
            (true, false) => self.start(state),
            (false, true) => self.stop(state),
            _ => {}
        }
    }

    fn start(&self, state: &mut State) {
        let features = state.registers.features();
        let event_idx = features & feature::RING_EVENT_IDX != 0;
        let queues = (0..self.queue_count()).map(|index| {
            let layout = state.registers.queue(index as usize)?;
            Some(Queue::new(
                index,
                layout,
                state.positions[index as usize],
                event_idx,
                self.ram.clone(),
                self.kicks[index as usize].clone(),
                self.outputs.clone(),
            ))
        });
        let activation = Activation {
            features,
            queues: queues.collect(),
            ram: self.ram.clone(),
            interrupt: self.outputs.clone(),
        };
        let mut workers = Workers::default();
        for (index, work) in state.device.activate(activation).into_iter().enumerate() {
            let name = if index == 0 { self.name.clone() } else { format!("{}.{index}", self.name) };
            match Worker::start(&name, work) {
                Ok(worker) => workers.threads.push(worker),
                // The driver learns it as it learns of any breakdown.
                Err(work) => {
                    workers.stranded.push(work);
                    self.outputs.break_down();
                }
            }
        }
        state.workers = Some(workers);
    }

    fn stop(&self, state: &mut State) {
        let Workers { threads, stranded } = state.workers.take().unwrap_or_default();
        // All are asked before any is waited for.
        for worker in &threads {
            worker.cancel();
        }
        let works = threads.into_iter().map(Worker::join).chain(stranded).collect();
        for queue in state.device.deactivate(works) {
            state.positions[queue.index() as usize] = queue.position();
        }
    }

    /// The driver's reset (§2.4): the device forgets everything; PCI configuration stays.
    fn reset_device(&self, state: &mut State) {
        if state.workers.is_some() {
            self.stop(state);
        }
        state.device.reset();
        state.registers.reset();
        state.positions.fill(Position::default());
        let mut lines = self.outputs.lines();
        self.outputs.needs_reset.store(false, Ordering::Release);
        *self.outputs.fault() = None;
        lines.vectors.fill(spec::NO_VECTOR);
        lines.isr = 0;
        lines.update();
    }

    fn live(&self) -> Live {
        Live {
            config_generation: self.outputs.config_generation.load(Ordering::Acquire),
            needs_reset: self.outputs.needs_reset.load(Ordering::Acquire),
        }
    }

    fn common_write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state();
        match state.registers.write(offset, data) {
            Effect::None => {}
            Effect::Reset => self.reset_device(&mut state),
            Effect::DriverOk => self.reconcile(&mut state),
            Effect::Vector(queue) => {
                let vector = state.registers.vector(queue);
                let mut lines = self.outputs.lines();
                let index = queue.map_or(lines.vectors.len() - 1, |queue| queue as usize);
                lines.vectors[index] = vector;
            }
        }
    }

    /// What the window in configuration space (§4.1.4.9) shows now: offset in the base address
    /// register and length.
    fn window_target(&self, config: &ConfigSpace) -> Option<(u64, usize)> {
        let bar = config.u32(self.window + 4) & 0xff;
        let offset = config.u32(self.window + 8) as u64;
        let len = config.u32(self.window + 12) as usize;
        let valid = bar as usize == BAR
            && matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(len as u64)
            && offset + len as u64 <= BAR_SIZE;
        valid.then_some((offset, len))
    }

    fn window_data(&self) -> u16 {
        self.window + 16
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&self, register: u16) -> u32 {
        if register == self.window_data() / 4 {
            let target = self.window_target(&self.state().config);
            if let Some((offset, len)) = target {
                let mut data = [0; 4];
                self.bar_read(BAR, offset, &mut data[..len]);
                return u32::from_le_bytes(data);
            }
        }
        let value = self.state().config.read(register);
        if register == reg::COMMAND / 4 && self.outputs.lines().isr != 0 {
            return value | (reg::STATUS_INTERRUPT as u32) << 16;
        }
        value
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let mut state = self.state();
        state.config.write(offset, data);
        if offset / 4 == self.window_data() / 4 {
            if let Some((target, len)) = self.window_target(&state.config) {
                let bytes = state.config.u32(self.window_data()).to_le_bytes();
                drop(state);
                self.bar_write(BAR, target, &bytes[..len]);
            }
            return;
        }
        let State { config, .. } = &mut *state;
        let mut lines = self.outputs.lines();
        lines.msix.config_written(config);
        lines.line_disabled = is_line_disabled(config);
        lines.update();
        drop(lines);
        self.reconcile(&mut state);
    }

    fn bars(&self) -> Vec<Bar> {
        self.state().config.bars()
    }

    fn bar_read(&self, index: usize, offset: u64, data: &mut [u8]) {
        if index != BAR {
            return;
        }
        match offset & !(PAGE - 1) {
            COMMON => self.state().registers.read(self.live(), offset - COMMON, data),
            ISR => {
                data.fill(0);
                if offset == ISR && !data.is_empty() {
                    data[0] = self.outputs.take_isr();
                }
            }
            DEVICE => {
                data.fill(0);
                self.state().device.config_read(offset - DEVICE, data);
            }
            NOTIFY => data.fill(0),
            page if (TABLE..PENDING).contains(&page) => {
                self.outputs.lines().msix.table_read(offset - TABLE, data);
            }
            PENDING => self.outputs.lines().msix.pending_read(offset - PENDING, data),
            _ => {}
        }
    }

    fn bar_write(&self, index: usize, offset: u64, data: &[u8]) {
        if index != BAR {
            return;
        }
        match offset & !(PAGE - 1) {
            NOTIFY => {
                if let Some(kick) = self.kicks.get((offset - NOTIFY) as usize / NOTIFY_MULTIPLIER as usize) {
                    kick.notify();
                }
            }
            COMMON => self.common_write(offset - COMMON, data),
            DEVICE => self.state().device.config_write(offset - DEVICE, data),
            page if (TABLE..PENDING).contains(&page) => {
                self.outputs.lines().msix.table_write(offset - TABLE, data);
            }
            _ => {}
        }
    }
}

impl SaveRestore for VirtioPci {
    type Saved = VirtioPciSaved;

    fn save(&self) -> VirtioPciSaved {
        VirtioPci::save(self)
    }

    fn restore(&mut self, saved: VirtioPciSaved) -> Result<(), RestoreError> {
        VirtioPci::restore(self, saved)
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // All are asked before any is waited for.
        for worker in state.workers.iter().flat_map(|workers| &workers.threads) {
            worker.cancel();
        }
    }
}

impl Outputs {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Interrupts by `vector`'s entry of the table, or by the line with this cause (§4.1.5.3, §4.1.5.4).
    fn interrupt(&self, index: Option<u16>, cause: u8) {
        let mut lines = self.lines();
        if lines.msix.is_enabled() {
            let index = index.map_or(lines.vectors.len() - 1, |queue| queue as usize);
            match lines.vectors.get(index) {
                Some(&vector) if vector != spec::NO_VECTOR => lines.msix.trigger(vector),
                _ => {}
            }
        } else {
            lines.isr |= cause;
            lines.update();
        }
    }

    /// Reading the status clears it and lowers the line (§4.1.4.5.1).
    fn take_isr(&self) -> u8 {
        let mut lines = self.lines();
        let isr = std::mem::take(&mut lines.isr);
        lines.update();
        isr
    }

    fn fault(&self) -> MutexGuard<'_, Option<(u16, RingError)>> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn break_down(&self) {
        if !self.needs_reset.swap(true, Ordering::AcqRel) {
            self.config_changed();
        }
    }
}

impl Interrupt for Outputs {
    fn queue_used(&self, queue: u16) {
        self.interrupt(Some(queue), spec::ISR_QUEUE);
    }

    fn config_changed(&self) {
        self.config_generation.fetch_add(1, Ordering::AcqRel);
        self.interrupt(None, spec::ISR_CONFIG);
    }

    fn needs_reset(&self, queue: u16, error: RingError) {
        self.fault().get_or_insert((queue, error));
        self.break_down();
    }
}

impl Lines {
    fn update(&mut self) {
        self.line.set(self.isr != 0 && !self.line_disabled && !self.msix.is_enabled());
    }
}

fn is_line_disabled(config: &ConfigSpace) -> bool {
    config.u16(reg::COMMAND) & reg::COMMAND_INTX_DISABLE != 0
}

/// The configuration space as after power-on, and where the window is in it.
fn configuration(
    device_type: u16,
    vectors: u16,
    irq: u32,
    msi: Arc<dyn MsiSink>,
) -> (ConfigSpace, Msix, u16) {
    let mut config = ConfigSpace::new(Identity {
        vendor: spec::VENDOR_ID,
        device: spec::DEVICE_ID_BASE + device_type,
        subsystem_vendor: spec::VENDOR_ID,
        // 0x40 and up says "not transitional" (§4.1.2.1).
        subsystem: 0x40 + device_type,
        revision: 1,
        class: class_code(device_type),
    });
    config.add_bar(BAR, BarKind::Memory32, BAR_SIZE);
    config.set_u8(reg::INTERRUPT_PIN, 1);
    config.set_u8(reg::INTERRUPT_LINE, irq as u8);
    // struct virtio_pci_cap (§4.1.4) after its two bytes of PCI capability header.
    let capability = |kind: u8, offset: u64, len: u32, extra: &[u8]| {
        let mut body = vec![16 + extra.len() as u8, kind, BAR as u8, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend(len.to_le_bytes());
        body.extend(extra);
        body
    };
    let mut add = |body: Vec<u8>, writable: Option<Vec<u8>>| {
        let writable = writable.unwrap_or_else(|| vec![0; body.len()]);
        config.add_capability(spec::CAP_ID_VENDOR, &body, &writable)
    };
    add(capability(spec::CAP_COMMON_CFG, COMMON, spec::common::LEN as u32, &[]), None);
    add(capability(spec::CAP_ISR_CFG, ISR, 1, &[]), None);
    add(capability(spec::CAP_DEVICE_CFG, DEVICE, PAGE as u32, &[]), None);
    let notify_len = (vectors - 1) as u32 * NOTIFY_MULTIPLIER;
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    add(capability(spec::CAP_NOTIFY_CFG, NOTIFY, notify_len, &multiplier), None);
    // The guest says what the window shows: register, offset and length; the last doubleword is the data.
    let mut writable = vec![0xff; 18];
    writable[0] = 0;
    writable[1] = 0;
    writable[3..6].fill(0);
    let window = add(capability(spec::CAP_PCI_CFG, 0, 0, &[0; 4]), Some(writable));
    let msix = Msix::new(&mut config, vectors, BAR as u8, TABLE as u32, PENDING as u32, msi);
    (config, msix, window)
}

/// Class codes as QEMU gives them, which is what drivers and tools know.
fn class_code(device_type: u16) -> u32 {
    match device_type {
        device_type::NET => 0x02_00_00,
        device_type::BLOCK | device_type::SCSI => 0x01_00_00,
        device_type::CONSOLE => 0x07_80_00,
        device_type::VSOCK => 0x07_80_00,
        device_type::FILE_SYSTEM => 0x01_80_00,
        _ => 0x00_ff_00,
    }
}

#[cfg(test)]
mod tests;
