//! Targets that drive wired devices through the buses.

use super::script::Script;
use crate::fw_cfg::FwCfg;
use crate::pci::{PciRoot, Windows, spec as pci_spec};
use crate::reset::ResetControl;
use crate::sync::lock;
use crate::{DisplayConfig, FirmwareDevices, FlashConfig, Platform, PlatformConfig, PlatformEvent};
use clock::{Clock, Timers};
use device::pci::{Bar, BarKind, Bdf, ConfigSpace, Identity, PciFunction};
use device::{Bus, IrqLine, Msi, MsiSink};
use memory::{Bytes, GuestAddress, GuestMemory, Ram, VideoMemory};
use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};

pub(crate) const RAM_SIZE: u64 = 1 << 20;
/// Video memory: little of it, so that saving is quick.
pub(crate) const VIDEO_SIZE: u64 = 64 << 10;
const FLASH_START: u64 = 0xffc0_0000;
const FLASH_SIZE: usize = 0x4000;

/// One memory and one timer thread for all scripts: making them anew costs more than running one.
static MEMORY: LazyLock<Ram> = LazyLock::new(|| Ram::new(RAM_SIZE).expect("memory for fuzzing"));
static TIMERS: LazyLock<Timers> = LazyLock::new(|| {
    let clock = Arc::new(Clock::new());
    // Paused, so that a script does the same each time.
    clock.pause();
    Timers::new(clock).expect("a thread for fuzzing")
});

static VIDEO: LazyLock<Arc<VideoMemory>> =
    LazyLock::new(|| Arc::new(VideoMemory::new(VIDEO_SIZE).expect("memory for fuzzing")));

fn memory() -> GuestMemory {
    MEMORY.guest().clone()
}

/// The firmware configuration device, with DMA.
pub fn fw_cfg(data: &[u8]) {
    const REQUEST: u64 = 0x8000;
    let mut script = Script(data);
    let pio = Bus::new();
    let fw_cfg = FwCfg::new(memory());
    fw_cfg.attach(&pio).expect("an empty bus");
    fw_cfg.add_file("etc/file", data.to_vec()).expect("the first file");
    let mut step = || {
        let operation = script.byte()?;
        let port = 0x510 + operation as u64 % 12;
        match operation >> 6 {
            0 => {
                let (data, len) = script.access()?;
                pio.write(port, &data[..len]);
            }
            1 => {
                pio.write(0x510, &script.word()?.to_le_bytes());
            }
            2 => {
                // A request that is well-formed in memory: control, length, address.
                let control = script.dword()? & 0x0fff_ffff;
                let (len, target) = (script.dword()? >> (operation & 31), script.quad()? >> (operation & 63));
                let words = [control.to_be_bytes(), len.to_be_bytes()].concat();
                let request = [&words[..], &target.to_be_bytes()].concat();
                memory().write_slice(&request, GuestAddress(REQUEST)).expect("inside memory");
                pio.write(0x518, &(REQUEST as u32).to_be_bytes());
            }
            _ => {
                let mut data = [0; 8];
                pio.read(port, &mut data[..1 << (operation & 3)]);
                fw_cfg.restore(fw_cfg.save()).expect("a reachable state can be restored");
            }
        }
        Some(())
    };
    while step().is_some() {}
}

/// A function with one register of each kind, whose contents are its address.
struct Echo(Mutex<ConfigSpace>);

impl Echo {
    fn new() -> Arc<Echo> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x10ff,
            subsystem_vendor: 0,
            subsystem: 0,
            revision: 0,
            class: 0xff0000,
        });
        config.add_bar(0, BarKind::Io, 0x20);
        config.add_bar(1, BarKind::Memory32, 0x10_0000);
        config.add_bar(2, BarKind::Memory64 { prefetchable: false }, 0x1000);
        Arc::new(Echo(Mutex::new(config)))
    }
}

impl PciFunction for Echo {
    fn config_read(&self, register: u16) -> u32 {
        assert!(register < 1024);
        lock(&self.0).read(register)
    }
    fn config_write(&self, offset: u16, data: &[u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4) && offset % 4 + data.len() as u16 <= 4 && offset < 4096);
        lock(&self.0).write(offset, data);
    }
    fn bars(&self) -> Vec<Bar> {
        lock(&self.0).bars()
    }
    fn bar_read(&self, index: usize, offset: u64, data: &mut [u8]) {
        let bar =
            self.bars().into_iter().find(|bar| bar.index == index).expect("a register of this function");
        assert!(bar.enabled && offset + data.len() as u64 <= bar.size);
        data.fill(0);
    }
    fn bar_write(&self, index: usize, offset: u64, data: &[u8]) {
        self.bar_read(index, offset, &mut data.to_vec());
    }
}

/// The PCI root: configuration space by both mechanisms, and the windows.
pub fn pci(data: &[u8]) {
    let mut script = Script(data);
    let (pio, mmio) = (Bus::new(), Bus::new());
    let root = PciRoot::new(Windows::above_ram(RAM_SIZE, 1 << 32));
    let functions = [Bdf::on_bus_0(1, 0), Bdf::on_bus_0(1, 1), Bdf::on_bus_0(31, 7)];
    for bdf in functions {
        root.add(bdf, Echo::new()).expect("a free place");
    }
    root.assign_bars().expect("room for three functions");
    root.attach(&pio, &mmio, Arc::new(ResetControl::new(|| {}))).expect("empty buses");
    let mut step = || {
        let operation = script.byte()?;
        let bdf = functions[operation as usize % 3];
        let (data, len) = script.access()?;
        let mut read = [0; 8];
        let (bus, address) = match operation >> 5 {
            0 => (&pio, 0xcf8 + operation as u64 % 8),
            1 | 2 => {
                let function = (bdf.device as u64) << 15 | (bdf.function as u64) << 12;
                // Mostly command and base addresses.
                (&mmio, pci_spec::ECAM_BASE + function + script.byte()? as u64 % 0x28)
            }
            3 => (&mmio, pci_spec::ECAM_BASE + script.dword()? as u64 % pci_spec::ECAM_LEN),
            4 => (&mmio, pci_spec::MMIO32_WINDOW.start + (script.dword()? as u64 >> 3)),
            5 => (&mmio, script.quad()? >> (operation & 0x1f)),
            6 => (&pio, script.word()?.into()),
            _ => {
                let bars = root.functions().into_iter().flat_map(|(_, function)| function.bars());
                let bar = bars.cycle().nth(operation as usize & 7).expect("nine registers");
                let bus = if bar.kind == BarKind::Io { &pio } else { &mmio };
                (bus, bar.base.wrapping_add(script.byte()?.into()))
            }
        };
        bus.write(address, &data[..len]);
        bus.read(address, &mut read[..len]);
        root.restore(root.save()).expect("a reachable state can be restored");
        Some(())
    };
    while step().is_some() {}
}

/// All devices together, through the buses, with lines pulled from outside.
pub fn platform(data: &[u8]) {
    Machine::new().run(data);
}

/// A platform on buses of its own.
pub(crate) struct Machine {
    pub(crate) platform: Platform,
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    memory: GuestMemory,
    clock: Arc<Clock>,
    /// Wires from outside to each interrupt.
    lines: Vec<IrqLine>,
    witness: Witness,
}

/// Where what a machine does can be seen.
#[derive(Clone, Default)]
pub(crate) struct Witness(Option<Arc<Mutex<Vec<Seen>>>>);

/// What a machine does that somebody outside sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Read(u64, Vec<u8>),
    Message(Msi),
    Intr(bool),
    Event(PlatformEvent),
    Output(&'static str, Vec<u8>),
    Vector(Option<u8>),
    Taken(usize),
}

impl Witness {
    /// One that takes notes.
    #[cfg(test)]
    pub(crate) fn awake() -> Witness {
        Witness(Some(Arc::default()))
    }

    fn see(&self, seen: impl FnOnce() -> Seen) {
        if let Some(notes) = &self.0 {
            lock(notes).push(seen());
        }
    }

    /// What was seen since the last time.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Vec<Seen> {
        self.0.as_ref().map(|notes| std::mem::take(&mut *lock(notes))).unwrap_or_default()
    }

    fn output(&self, name: &'static str) -> Box<dyn Write + Send> {
        struct Output(Witness, &'static str);
        impl Write for Output {
            fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
                self.0.see(|| Seen::Output(self.1, data.to_vec()));
                Ok(data.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        Box::new(Output(self.clone(), name))
    }
}

impl MsiSink for Witness {
    fn send_msi(&self, msi: Msi) {
        self.see(|| Seen::Message(msi));
    }
}

/// The ports where devices are, and some where none is.
const PORTS: [u16; 28] = [
    0x20, 0x21, 0xa0, 0xa1, 0x40, 0x43, 0x61, 0x60, 0x64, 0x70, 0x71, 0x80, 0x92, 0xe9, 0xf4, 0x3f8, 0x2f8,
    0x4d0, 0x510, 0x514, 0x600, 0x620, 0xcf8, 0xcfc, 0x3c0, 0x3c8, 0x3d0, 0x1ce,
];

impl Machine {
    pub(crate) fn new() -> Machine {
        Machine::over(memory(), VIDEO.clone(), TIMERS.clone(), Witness::default())
    }

    /// A machine with this memory and this time, which stands still but for what scripts let pass.
    pub(crate) fn over(
        memory: GuestMemory,
        video: Arc<VideoMemory>,
        timers: Timers,
        witness: Witness,
    ) -> Machine {
        let (pio, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let flash = FlashConfig { start: FLASH_START, data: vec![0xff; FLASH_SIZE], keep: None };
        let (for_intr, for_events) = (witness.clone(), witness.clone());
        let clock = timers.clock().clone();
        let platform = Platform::new(PlatformConfig {
            timers,
            pio: pio.clone(),
            mmio: mmio.clone(),
            memory: memory.clone(),
            msi: Arc::new(witness.clone()),
            intr: Box::new(move |level| for_intr.see(|| Seen::Intr(level))),
            events: Arc::new(move |event| for_events.see(|| Seen::Event(event))),
            serial: vec![witness.output("COM1"), witness.output("COM2")],
            debug_console: Some(witness.output("debug console")),
            debug_exit: true,
            windows: Windows::above_ram(RAM_SIZE, 1 << 32),
            firmware: Some(FirmwareDevices { flash: Some(flash) }),
            display: Some(DisplayConfig { memory: video, rom: vec![0x55; 700] }),
        })
        .expect("empty buses");
        let lines = (0..24).map(|irq| platform.irqs.line(irq)).collect();
        Machine { platform, pio, mmio, memory, clock, lines, witness }
    }

    /// Carries out a script.
    pub(crate) fn run(&self, data: &[u8]) {
        let mut script = Script(data);
        while self.step(&mut script).is_some() {}
    }

    /// Drives the wires from outside as they are in another machine, as devices do that were restored.
    #[cfg(test)]
    pub(crate) fn drive_lines_as(&self, other: &Machine) {
        for (line, level) in self.lines.iter().zip(other.lines.iter().map(IrqLine::level)) {
            line.set(level);
        }
    }

    /// Reads what was written just before.
    fn read_back(&self, bus: &Bus, address: u64, len: usize) {
        let mut read = [0; 8];
        bus.read(address, &mut read[..len]);
        self.witness.see(|| Seen::Read(address, read[..len].to_vec()));
    }

    fn step(&self, script: &mut Script<'_>) -> Option<()> {
        let Machine { platform, pio, mmio, witness, .. } = self;
        let operation = script.byte()?;
        match operation >> 5 {
            0..=2 => {
                let (data, len) = script.access()?;
                let port = PORTS[script.byte()? as usize % PORTS.len()] + (operation & 7) as u16;
                pio.write(port.into(), &data[..len]);
                self.read_back(pio, port.into(), len);
            }
            3 => self.let_time_pass(script.duration()?),
            4 => {
                let (data, len) = script.access()?;
                let address = match operation & 0x18 {
                    0x18 => 0xa_0000 + (u64::from(script.word()?) << 1),
                    0 | 0x10 => 0xfec0_0000 + ((operation as u64 & 7) << 4),
                    _ => FLASH_START + u64::from(script.word()?) % FLASH_SIZE as u64,
                };
                mmio.write(address, &data[..len]);
                self.read_back(mmio, address, len);
            }
            5 => self.lines[operation as usize % 24].set(script.byte()? & 1 != 0),
            6 => match operation & 7 {
                0 => platform.pm.press_power_button(),
                1 => {
                    let vector = platform.pic.acknowledge();
                    witness.see(|| Seen::Vector(Some(vector)));
                }
                2 => platform.ioapic.eoi(script.byte()?),
                3 => {
                    let taken = platform.serial[0].receive(&script.quad()?.to_le_bytes());
                    witness.see(|| Seen::Taken(taken));
                }
                4 => platform.reset(),
                5 => self.transfer(script)?,
                _ => {
                    let vector = platform.pic.try_acknowledge();
                    witness.see(|| Seen::Vector(vector));
                }
            },
            _ => {
                platform.settle();
                platform.restore(platform.save()).expect("a reachable state can be restored");
            }
        }
        Some(())
    }

    /// Time that passes at most in one step: what the shared clock of all scripts can bear.
    fn let_time_pass(&self, ns: u64) {
        const STEP_MAX_NS: u64 = 1 << 36;
        self.clock.pass(ns.min(STEP_MAX_NS));
        self.platform.settle();
    }

    /// A well-formed request of fw_cfg's DMA.
    fn transfer(&self, script: &mut Script<'_>) -> Option<()> {
        const REQUEST: u64 = 0x8000;
        let control = u32::from(script.byte()?) << 16 | u32::from(script.byte()? & 0x1f);
        let len = u32::from(script.byte()?);
        let words = [control.to_be_bytes(), len.to_be_bytes()].concat();
        let request = [&words[..], &0x9000u64.to_be_bytes()].concat();
        self.memory.write_slice(&request, GuestAddress(REQUEST)).expect("inside memory");
        self.pio.write(0x518, &(REQUEST as u32).to_be_bytes());
        let mut result = [0; 32];
        for at in [REQUEST, 0x9000] {
            self.memory.read_slice(&mut result, GuestAddress(at)).expect("inside memory");
            self.witness.see(|| Seen::Read(at, result.to_vec()));
        }
        Some(())
    }
}
