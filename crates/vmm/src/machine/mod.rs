//! The machine: memory, clock, engine, devices, and what is booted on it.
//!
//! ```text
//!   vCPU (engine) ── CpuIo ──> VcpuIo ──> buses ──> devices
//!        ^                                             │
//!        └───────────── MSI, PIC line ─────────────────┘
//! ```
//!
//! Devices and engine meet only here. [`Machine`] has no thread and no state of its own: the controller
//! says when to reset, pause and finish, while no vCPU runs.

mod description;
mod devices;
mod doorbells;
mod firmware;
mod generation;
mod handles;
mod io;
mod saving;
mod screen;
mod shares;

pub use devices::DISK_QUEUES_MAX;
pub use io::{IoCounters, VcpuIo};
pub use shares::Shares;

use self::screen::Screen;
use crate::Error;
use crate::inputs::Inputs;
use crate::snapshot::Folder;
use crate::snapshot::disks::Tracked;
use crate::snapshot::restore::Restored;
use crate::source::BootSource;
use crate::spec::{Uuid, VmSpec};
use crate::vcpu::Gate;
use clock::{Clock, Timers};
use cpu::{Engine, Vcpu};
use device::{Bus, Msi, MsiRoute, MsiSink};
use disk::Disk;
use memory::Ram;
use platform::pci::Windows;
use platform::{Platform, PlatformConfig, PlatformEvent};
use scsi::ahci::Ahci;
use std::sync::Arc;
use virtio::VirtioPci;
use x86::CpuState;
use x86::cpuid::{HostCpuid, Leaf};

/// Where PCI devices can be: above RAM, all that the processors can address, since firmware places
/// them as high as it likes.
fn pci_windows(ram_end: u64, cpuid: &[Leaf]) -> Windows {
    let end = 1u64 << x86::cpuid::physical_address_bits(cpuid);
    let start = Windows::above_ram(ram_end, 0).mmio64.start;
    Windows::above_ram(ram_end, end.saturating_sub(start))
}

/// One machine, without its vCPU threads.
pub struct Machine {
    ram: Arc<Ram>,
    clock: Arc<Clock>,
    timers: Timers,
    vm: Arc<dyn cpu::Vm>,
    platform: Arc<Platform>,
    functions: Vec<Arc<VirtioPci>>,
    ahci: Option<Arc<Ahci>>,
    handles: devices::Handles,
    live: Vec<Option<Arc<disk::Live>>>,
    disks: Vec<Arc<dyn Disk>>,
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    description: boot::Machine,
    source: BootSource,
    cpu_model: String,
    cpuid: Vec<x86::cpuid::Leaf>,
    /// Where the guest was told its generation ID is, if it was the machine that decided it.
    generation_id: Option<u64>,
    /// The generation ID.
    generation: Uuid,
    snapshots: Option<(Folder, Vec<Arc<Tracked>>)>,
}

/// The local APICs, as devices see them.
struct EngineMsi(Arc<dyn cpu::Vm>);

impl MsiSink for EngineMsi {
    fn send_msi(&self, msi: Msi) {
        self.0.signal_msi(msi.address, msi.data);
    }

    fn open_route(&self) -> Option<Box<dyn MsiRoute>> {
        self.0.msi_event().map(|event| Box::new(EngineRoute(event)) as Box<dyn MsiRoute>)
    }
}

/// A way to the local APICs that the engine has prepared for one message.
struct EngineRoute(Box<dyn cpu::MsiEvent>);

impl MsiRoute for EngineRoute {
    fn set(&self, msi: Msi) -> bool {
        self.0.set_message(msi.address, msi.data)
    }

    fn send(&self) {
        self.0.trigger();
    }
}

impl Machine {
    /// Builds a machine, `restored` with the processor and the clock of a snapshot. Returns it with its vCPUs,
    /// in their state after reset.
    ///
    /// `on_event` is called on the thread of the vCPU that causes the event.
    ///
    /// # Errors
    /// When the engine or the host refuses something, or the CPU model cannot be had.
    pub fn build(
        spec: &VmSpec,
        engine: &dyn Engine,
        inputs: Inputs,
        restored: Option<&Restored>,
        on_event: Arc<dyn Fn(PlatformEvent) + Send + Sync>,
    ) -> Result<(Machine, Vec<Box<dyn Vcpu>>), Error> {
        let host = |what: &str, e: std::io::Error| Error::host(what).with_source(e);
        let engine_error = |e: cpu::Error| {
            Error::host(format!("the engine {} cannot make this machine", engine.name())).with_source(e)
        };
        let ram = inputs.ram;
        let clock = Arc::new(match restored {
            None => spec.tsc_hz.map_or_else(Clock::new, Clock::with_tsc_hz),
            Some(restored) => Clock::restore(restored.clock),
        });
        let timers = Timers::new(clock.clone()).map_err(|e| host("the timer thread cannot be started", e))?;
        let offered = engine.offered_cpuid().map_err(engine_error)?;
        let (cpu_model, mut cpuid) = match restored {
            None => cpu_model(spec, &clock, offered.as_deref())?,
            Some(Restored { cpu_model, cpuid, .. }) => {
                check_saved(cpuid, engine.name(), offered.as_deref())?;
                (cpu_model.clone(), cpuid.clone())
            }
        };
        if spec.nested
            && restored.is_none()
            && !x86::cpuid::add_virtualization(&mut cpuid, offered.as_deref().unwrap_or_default())
        {
            return Err(nested_refused(engine.name()));
        }
        let ram_end = ram.ranges().map(|range| range.end()).max().unwrap_or(0);
        let windows = pci_windows(ram_end, &cpuid);
        let vm = engine
            .create_vm(cpu::VmConfig {
                ram: ram.clone(),
                clock: clock.clone(),
                timers: timers.clone(),
                vcpus: spec.cpus,
                cpuid: cpuid.clone(),
            })
            .map_err(engine_error)?;

        let (pio, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let msi: Arc<dyn MsiSink> = Arc::new(EngineMsi(vm.clone()));
        let for_intr = vm.clone();
        let platform = Platform::new(PlatformConfig {
            timers: timers.clone(),
            pio: pio.clone(),
            mmio: mmio.clone(),
            memory: ram.guest().clone(),
            msi: msi.clone(),
            intr: Box::new(move |level| for_intr.set_pic_line(level)),
            events: on_event,
            serial: vec![inputs.serial_output],
            debug_console: None,
            debug_exit: spec.debug_exit,
            windows,
            firmware: inputs.boot.firmware_devices(),
            display: inputs.display,
        })
        .map_err(|e| {
            Error::new(crate::ErrorKind::Internal, "the devices do not fit together").with_source(e)
        })?;

        let bus = devices::PciBus { platform: &platform, ram: &ram, msi: &msi };
        let devices::Populated { functions, ahci, boot_order, handles } =
            bus.populate(inputs.devices, spec.cpus)?;
        let doorbells = doorbells::Doorbells::new(vm.clone(), &functions);
        let screen = Screen::new(&platform, &vm, windows);
        platform.pci.on_remap(move || {
            doorbells.follow();
            screen.iter().for_each(Screen::follow);
        });
        let description = description::describe(spec, &cpu_model, windows);
        let generation = spec.generation_id.map_or_else(Uuid::random, Ok)?;
        if inputs.boot.is_firmware() {
            firmware::inform(&platform, &ram, &description, boot_order, &generation)?;
        } else {
            assign_bars(&platform)?;
        }
        let vcpus = (0..spec.cpus)
            .map(|id| vm.create_vcpu(id))
            .collect::<Result<Vec<_>, _>>()
            .map_err(engine_error)?;
        let machine = Machine {
            ram,
            clock,
            timers,
            vm,
            platform: Arc::new(platform),
            functions,
            ahci,
            handles,
            live: inputs.live,
            disks: inputs.disks,
            pio,
            mmio,
            description,
            source: inputs.boot,
            cpu_model,
            cpuid,
            generation_id: None,
            generation,
            snapshots: inputs.snapshots,
        };
        Ok((machine, vcpus))
    }

    /// Where the accesses of one vCPU go.
    pub fn vcpu_io(&self) -> VcpuIo {
        VcpuIo::new(self.pio.clone(), self.mmio.clone(), self.platform.clone())
    }

    /// Puts what the machine starts with into memory, which is all zero, and returns the state of each vCPU
    /// at the first instruction, made from its state after reset.
    ///
    /// # Errors
    /// When the files cannot be read any more.
    pub fn boot(&mut self, after_reset: &[CpuState]) -> Result<Vec<CpuState>, Error> {
        let states = self.source.load(&self.ram, &self.description, after_reset)?;
        self.write_generation_id()?;
        Ok(states)
    }

    /// Puts memory and devices into their state after power-on. No vCPU runs.
    ///
    /// # Errors
    /// When the host does not take the memory back.
    pub fn reset(&self) -> Result<(), Error> {
        // The functions first: their workers write to memory.
        self.functions.iter().for_each(|function| function.reset());
        self.ahci.iter().for_each(|ahci| ahci.reset());
        self.platform.reset();
        self.ram.clear().map_err(|e| Error::host("the machine cannot be reset").with_source(e))?;
        self.vm.memory_replaced();
        self.vm.resynchronise();
        if self.source.is_firmware() {
            return Ok(());
        }
        assign_bars(&self.platform)
    }

    /// Makes devices and guest time stand still. No vCPU runs.
    pub fn pause(&self) {
        self.hold_devices();
        self.clock.pause();
        self.platform.settle();
        self.vm.resynchronise();
    }

    /// Undoes [`Machine::pause`].
    pub fn resume(&self) {
        self.clock.resume();
        self.timers.clock_changed();
        self.vm.resynchronise();
        self.release_devices();
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.platform.pm.press_power_button();
    }

    /// Ends the work of all devices and makes what was written to disks safe. No vCPU runs, nor will.
    ///
    /// # Errors
    /// When a disk cannot be flushed.
    pub fn finish(&self) -> Result<(), Error> {
        self.functions.iter().for_each(|function| function.reset());
        self.ahci.iter().for_each(|ahci| ahci.pause());
        for disk in &self.disks {
            disk.flush().map_err(|e| {
                Error::host("what the guest wrote may not be safe on the disk").with_source(e)
            })?;
        }
        Ok(())
    }

    /// COM1.
    pub fn serial_port(&self) -> Arc<platform::serial::SerialPort> {
        self.platform.serial[0].clone()
    }

    /// The display adapter.
    pub fn display(&self) -> Option<Arc<platform::vga::Vga>> {
        self.platform.vga.clone()
    }

    /// Presses keys of the keyboard.
    ///
    /// # Errors
    /// When there is none, or what was typed before waits still.
    pub fn press_keys(&self, strokes: Vec<platform::i8042::Stroke>) -> Result<(), platform::i8042::KeyError> {
        self.platform.i8042.press(strokes)
    }

    /// Guest time in nanoseconds.
    pub fn guest_time_ns(&self) -> u64 {
        self.clock.now()
    }

    /// Guest memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.ram.size()
    }

    /// The CPU model.
    pub fn cpu_model(&self) -> &str {
        &self.cpu_model
    }

    /// The engine's counters.
    pub fn engine_counters(&self) -> Vec<(String, u64)> {
        self.vm.counters()
    }
}

/// Does what firmware does with the devices of a machine that has none.
fn assign_bars(platform: &Platform) -> Result<(), Error> {
    platform
        .pci
        .assign_bars()
        .map_err(|e| Error::host("the devices do not fit into the machine").with_source(e))
}

/// Holds back vCPUs and passes on what the guest asks of the machine: once, until it is reset.
pub struct GuestEvents {
    gate: Arc<Gate>,
    latched: std::sync::atomic::AtomicBool,
    on_event: Box<dyn Fn(PlatformEvent) + Send + Sync>,
}

impl GuestEvents {
    /// Creates a filter in front of `on_event`.
    pub fn new(gate: Arc<Gate>, on_event: impl Fn(PlatformEvent) + Send + Sync + 'static) -> GuestEvents {
        GuestEvents { gate, latched: false.into(), on_event: Box::new(on_event) }
    }

    /// Takes an event from a device. The first one stops all vCPUs; more are not passed on, so that a
    /// guest that repeats itself fills no queue.
    pub fn event(&self, event: PlatformEvent) {
        use std::sync::atomic::Ordering;
        if !self.latched.swap(true, Ordering::SeqCst) {
            self.gate.close();
            (self.on_event)(event);
        }
    }

    /// Whether the guest has asked for the end of the machine or its reset, and that is not carried out yet.
    pub fn is_latched(&self) -> bool {
        self.latched.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Lets events through again, and vCPUs run.
    pub fn rearm(&self) {
        self.gate.open();
        self.latched.store(false, std::sync::atomic::Ordering::SeqCst);
    }
}

/// Refuses a saved machine whose guest has seen features that this engine does not have.
fn check_saved(saved: &[Leaf], engine: &str, offered: Option<&[Leaf]>) -> Result<(), Error> {
    let Some(offered) = offered else { return Ok(()) };
    let mut missing = x86::cpuid::missing(saved, offered);
    let bits = x86::cpuid::physical_address_bits;
    if bits(saved) > bits(offered) {
        missing.push(format!("physical addresses of {} bits", bits(saved)));
    }
    if missing.is_empty() {
        return Ok(());
    }
    let why = format!(
        "the engine {engine} does not have what the saved guest's processor has: {}",
        missing.join(", ")
    );
    Err(Error::bad_input(why)
        .with_advice("choose another engine, or start the machine with an older --cpu-model"))
}

fn nested_refused(engine: &str) -> Error {
    let advice = match engine {
        "kvm" => "load KVM with it (sudo modprobe -r kvm_amd; sudo modprobe kvm_amd nested=1; or kvm_intel)",
        _ => "use --engine kvm on a host where it works",
    };
    Error::bad_input(format!("the engine {engine} does not offer hardware virtualization to guests here"))
        .with_advice(format!("leave out --nested, or {advice}"))
}

/// Finds the CPU model: the named one, or the newest of which this host can give all; cut down to what the
/// engine offers, if that is less.
fn cpu_model(spec: &VmSpec, clock: &Clock, offered: Option<&[Leaf]>) -> Result<(String, Vec<Leaf>), Error> {
    const NEWEST_FIRST: [&str; 2] = ["x86-64-v3", "x86-64-v2"];
    let host = HostCpuid::read();
    let (cpus, tsc_hz) = (spec.cpus, clock.tsc_hz());
    let build = |name: &str| match offered {
        None => x86::cpuid::build_for(&host, name, cpus, tsc_hz),
        Some(offered) => x86::cpuid::build_within(offered, &host, name, cpus, tsc_hz),
    };
    if let Some(name) = &spec.cpu_model {
        let leaves = build(name).map_err(|e| {
            Error::bad_input(format!("the CPU model {name:?} cannot be had"))
                .with_source(e)
                .with_advice("leave out --cpu-model")
        })?;
        return Ok((name.clone(), leaves));
    }
    let mut last = None;
    for name in NEWEST_FIRST {
        match build(name) {
            Ok(leaves) => return Ok((name.to_owned(), leaves)),
            Err(e) => last = Some(e),
        }
    }
    let error = Error::host("this host's processor is too old");
    Err(match last {
        Some(e) => error.with_source(e),
        None => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a saved guest's processor has and the engine that is to go on with it has not, is told feature by feature.
    #[test]
    fn a_saved_processor_that_an_engine_does_not_have_is_refused_with_what_is_missing() {
        let saved = x86::cpuid::build("x86-64-v2", 2, 2_000_000_000).unwrap();
        assert!(check_saved(&saved, "bt", None).is_ok(), "an engine that gives whatever the host has");
        assert!(check_saved(&saved, "kvm", Some(&saved)).is_ok());
        let mut offered = saved.clone();
        for leaf in &mut offered {
            match leaf.function {
                // SSE4.2 and POPCNT.
                1 => leaf.ecx &= !(1 << 20 | 1 << 23),
                0x8000_0008 => leaf.eax = leaf.eax & !0xff | 40,
                _ => {}
            }
        }
        let error = check_saved(&saved, "kvm", Some(&offered)).unwrap_err().report();
        for word in
            ["the engine kvm", "sse4_2", "popcnt", "physical addresses of 46 bits", "choose another engine"]
        {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
        assert!(check_saved(&offered, "kvm", Some(&saved)).is_ok(), "less than there is");
    }
}
