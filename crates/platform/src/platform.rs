//! The standard set of devices, made and wired in one step.

use crate::acpi_pm::{self, AcpiPm, AcpiPmSaved};
use crate::debug::{DebugConsole, DebugExit};
use crate::flash::{self, Flash, FlashSaved};
use crate::fw_cfg::{FwCfg, FwCfgSaved};
use crate::i8042::{self, I8042, I8042Saved, KeyboardSaved};
use crate::ioapic::{IoApic, IoApicSaved};
use crate::pci::{IsaBridge, PciRoot, PciRootSaved, Windows, isa_bridge};
use crate::pic::{Pic, PicSaved};
use crate::pit::{self, Pit, PitSaved};
use crate::reset::ResetControl;
use crate::rtc::{self, RtcDevice, RtcSaved};
use crate::serial::{SerialPort, SerialSaved, spec as com};
use crate::vga::{self, Vga, VgaSaved};
use crate::{IrqRouter, irq_router};
use clock::Timers;
use device::pci::{Bdf, ConfigSaved};
use device::state::RestoreError;
use device::{Bus, MsiSink, Overlap};
use memory::{GuestMemory, VideoMemory};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// What the guest asked of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformEvent {
    /// It entered S5: power off.
    PowerOff,
    /// It asked for a reset: by port 0xCF9, the keyboard controller, or system control port A.
    Reset,
    /// It wrote a value to the debug exit port.
    DebugExit(u8),
}

/// What the devices are wired to.
pub struct PlatformConfig {
    /// The machine's timers, with its clock.
    pub timers: Timers,
    /// The port I/O bus.
    pub pio: Arc<Bus>,
    /// The memory-mapped I/O bus.
    pub mmio: Arc<Bus>,
    /// Guest memory, for fw_cfg's DMA and the memory size that firmware is told.
    pub memory: GuestMemory,
    /// Takes interrupt messages: the engine's local APICs.
    pub msi: Arc<dyn MsiSink>,
    /// Takes the level of the PIC's INTR: LINT0 of the boot processor. See [`Pic`] for when it is called.
    pub intr: Box<dyn Fn(bool) + Send + Sync>,
    /// Takes what the guest asks of the machine, on the thread of the vCPU that asked and with no lock held.
    /// It must not wait for that vCPU to stop.
    pub events: Arc<dyn Fn(PlatformEvent) + Send + Sync>,
    /// Output of COM1, COM2 and so on, at most four; see [`SerialPort`] for what is asked of a stream.
    pub serial: Vec<Box<dyn Write + Send>>,
    /// Output of the debug console; none, and its ports do not exist.
    pub debug_console: Option<Box<dyn Write + Send>>,
    /// Whether there is a debug exit port.
    pub debug_exit: bool,
    /// Where PCI base address registers can be.
    pub windows: Windows,
    /// What firmware needs beside the rest; none, and the machine starts without firmware.
    pub firmware: Option<FirmwareDevices>,
    /// A display adapter, and with it a keyboard; none, and the machine has neither.
    pub display: Option<DisplayConfig>,
}

/// A display adapter.
pub struct DisplayConfig {
    /// Its memory, which guest RAM knows as well. RAM leaves [`vga::spec::WINDOW_START`] to devices.
    pub memory: Arc<VideoMemory>,
    /// The video BIOS, for BIOS firmware; may be empty.
    pub rom: Vec<u8>,
}

/// What a machine with firmware has beside the rest: an ISA bridge, by which firmware finds what is on no
/// bus that can be searched, and these.
#[derive(Default)]
pub struct FirmwareDevices {
    /// Flash memory for the firmware's variables.
    pub flash: Option<FlashConfig>,
}

/// Flash memory for the firmware's variables.
pub struct FlashConfig {
    /// First address.
    pub start: u64,
    /// What is in it.
    pub data: Vec<u8>,
    /// Takes what is written to it.
    pub keep: Option<flash::Keep>,
}

/// The devices.
pub struct Platform {
    /// COM1, COM2 and so on.
    pub serial: Vec<Arc<SerialPort>>,
    /// The real-time clock.
    pub rtc: Arc<RtcDevice>,
    /// The 8259A pair. The engine calls [`Pic::acknowledge`] or [`Pic::try_acknowledge`].
    pub pic: Arc<Pic>,
    /// The interval timer.
    pub pit: Arc<Pit>,
    /// The I/O APIC. The engine calls [`IoApic::eoi`].
    pub ioapic: Arc<IoApic>,
    /// Hands out interrupt lines.
    pub irqs: Arc<IrqRouter>,
    /// The keyboard controller.
    pub i8042: Arc<I8042>,
    /// Power management; has the buttons.
    pub pm: Arc<AcpiPm>,
    /// The PCI root. Functions are added to it, then [`PciRoot::assign_bars`].
    pub pci: Arc<PciRoot>,
    /// Firmware configuration; takes files.
    pub fw_cfg: Arc<FwCfg>,
    /// The ISA bridge of a machine with firmware.
    pub isa_bridge: Option<Arc<IsaBridge>>,
    /// Flash memory for the firmware's variables.
    pub flash: Option<Arc<Flash>>,
    /// The display adapter. The keyboard is behind [`Platform::i8042`].
    pub vga: Option<Arc<Vga>>,
    /// Keeps the timers' thread running as long as there are devices that wait for it.
    _timers: Timers,
}

/// The state of all devices.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlatformSaved {
    serial: Vec<SerialSaved>,
    rtc: RtcSaved,
    pic: PicSaved,
    pit: PitSaved,
    ioapic: IoApicSaved,
    i8042: I8042Saved,
    pm: AcpiPmSaved,
    pci: PciRootSaved,
    fw_cfg: FwCfgSaved,
    #[serde(default)]
    isa_bridge: Option<ConfigSaved>,
    #[serde(default)]
    flash: Option<FlashSaved>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vga: Option<VgaSaved>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keyboard: Option<KeyboardSaved>,
}

impl Platform {
    /// Makes all devices and places them on the buses.
    ///
    /// # Errors
    /// When an address is taken already.
    ///
    /// # Panics
    /// When there are more than four serial ports: the caller's mistake.
    pub fn new(config: PlatformConfig) -> Result<Platform, Overlap> {
        assert!(config.serial.len() <= com::COM_PORTS.len(), "a PC has four serial ports at most");
        let PlatformConfig { timers, pio, mmio, memory, msi, intr, events, firmware, .. } = config;
        let event = |event: PlatformEvent| {
            let events = events.clone();
            move || events(event)
        };

        let pic = Pic::new(intr);
        pic.attach(&pio)?;
        let ioapic = IoApic::new(msi);
        ioapic.attach(&mmio)?;
        let irqs = IrqRouter::new(pic.clone(), ioapic.clone());

        let pit = Pit::new(&timers, irqs.line(pit::spec::IRQ));
        pit.attach(&pio)?;
        let rtc = RtcDevice::new(&timers, irqs.line(rtc::spec::IRQ));
        rtc.attach(&pio)?;
        let (low, high) = memory_size(&memory);
        rtc.set_memory_size(low, high);

        let mut serial = Vec::new();
        for (index, output) in config.serial.into_iter().enumerate() {
            let port = SerialPort::new(irqs.line(com::COM_IRQS[index]), output);
            port.attach(&pio, com::COM_PORTS[index])?;
            serial.push(port);
        }
        let keyboard = irqs.line(i8042::spec::IRQ_KEYBOARD);
        let aux = irqs.line(i8042::spec::IRQ_AUX);
        let i8042 = I8042::new(keyboard, aux, event(PlatformEvent::Reset));
        i8042.attach(&pio)?;

        let pm = AcpiPm::new(&timers, irqs.line(acpi_pm::spec::SCI_IRQ), event(PlatformEvent::PowerOff));
        pm.attach(&pio)?;
        let pci = PciRoot::new(config.windows);
        let reset = Arc::new(ResetControl::new(event(PlatformEvent::Reset)));
        pci.attach(&pio, &mmio, reset)?;
        let fw_cfg = FwCfg::new(memory);
        fw_cfg.attach(&pio)?;
        let (mut isa_bridge, mut flash) = (None, None);
        if let Some(firmware) = firmware {
            let bridge = Arc::new(IsaBridge::new());
            let place = Bdf::on_bus_0(isa_bridge::DEVICE, 0);
            pci.add(place, bridge.clone()).expect("the bus is empty but for the host bridge");
            isa_bridge = Some(bridge);
            if let Some(FlashConfig { start, data, keep }) = firmware.flash {
                let chip = Flash::new(data, keep);
                chip.attach(&mmio, start)?;
                flash = Some(chip);
            }
        }

        let mut adapter = None;
        if let Some(DisplayConfig { memory, rom }) = config.display {
            let vga = Vga::new(memory, rom);
            vga.attach(&pio, &mmio)?;
            pci.add(Bdf::on_bus_0(vga::spec::PCI_DEVICE, 0), vga.clone()).expect("nothing is there yet");
            i8042.plug_keyboard(&timers);
            adapter = Some(vga);
        }

        if config.debug_exit {
            let events = events.clone();
            DebugExit::new(move |value| events(PlatformEvent::DebugExit(value))).attach(&pio)?;
        }
        if let Some(output) = config.debug_console {
            DebugConsole::new(output).attach(&pio)?;
        }
        let platform = Platform {
            serial,
            rtc,
            pic,
            pit,
            ioapic,
            irqs,
            i8042,
            pm,
            pci,
            fw_cfg,
            isa_bridge,
            flash,
            vga: adapter,
            _timers: timers,
        };
        // Some lines are high from power-on, like the interval timer's: the controllers learn it as a level that
        // was always there, not as an interrupt.
        platform.reset();
        Ok(platform)
    }

    /// Puts all devices in their state after power-on; the PCI functions beside the host bridge are not
    /// among them. No vCPU runs.
    pub fn reset(&self) {
        let Platform {
            serial,
            rtc,
            pic,
            pit,
            ioapic,
            irqs: _,
            i8042,
            pm,
            pci,
            fw_cfg,
            isa_bridge,
            flash,
            vga,
            _timers,
        } = self;
        vga.iter().for_each(|vga| vga.reset());
        isa_bridge.iter().for_each(|bridge| bridge.reset());
        flash.iter().for_each(|flash| flash.reset());
        serial.iter().for_each(|port| port.reset());
        rtc.reset();
        pit.reset();
        i8042.reset();
        pm.reset();
        fw_cfg.reset();
        pci.reset();
        // The controllers last: they forget what the devices' resets did to their lines.
        ioapic.reset();
        pic.reset();
        self.set_triggers();
    }

    /// Brings every device up to the present moment: interrupts that are due are raised now. To be called once
    /// the machine's clock is paused, before processors or devices are saved, so that no interrupt falls between
    /// the two.
    pub fn settle(&self) {
        self.pit.settle();
        self.rtc.settle();
        self.pm.settle();
    }

    /// The state of all devices. No vCPU runs, the machine's clock is paused, and since then
    /// [`Platform::settle`] was called.
    pub fn save(&self) -> PlatformSaved {
        PlatformSaved {
            serial: self.serial.iter().map(|port| port.save()).collect(),
            rtc: self.rtc.save(),
            pic: self.pic.save(),
            pit: self.pit.save(),
            ioapic: self.ioapic.save(),
            i8042: self.i8042.save(),
            pm: self.pm.save(),
            pci: self.pci.save(),
            fw_cfg: self.fw_cfg.save(),
            isa_bridge: self.isa_bridge.as_ref().map(|bridge| bridge.save()),
            flash: self.flash.as_ref().map(|flash| flash.save()),
            vga: self.vga.as_ref().map(|vga| vga.save()),
            keyboard: self.i8042.save_keyboard(),
        }
    }

    /// Takes over the state of another platform of the same configuration. No vCPU runs. Call it before PCI
    /// functions are restored, so that interrupt lines meet controllers that know their levels, and
    /// [`PciRoot::remap`] after.
    ///
    /// # Errors
    /// When a device refuses its state. The machine is unusable then.
    pub fn restore(&self, saved: PlatformSaved) -> Result<(), RestoreError> {
        if saved.serial.len() != self.serial.len() {
            return Err(RestoreError::new("serial ports", "their number differs"));
        }
        // The controllers first: a line that is driven as high as they know it makes no edge. The one line that is
        // high at power-on falls before: were it to fall later, others on the same input would seem to rise.
        self.pit.release_line();
        self.pic.restore(saved.pic)?;
        self.ioapic.restore(saved.ioapic)?;
        for (port, saved) in self.serial.iter().zip(saved.serial) {
            port.restore(saved)?;
        }
        self.rtc.restore(saved.rtc)?;
        self.pit.restore(saved.pit)?;
        self.i8042.restore_keyboard(saved.keyboard)?;
        self.i8042.restore(saved.i8042)?;
        match (&self.vga, saved.vga) {
            (Some(vga), Some(saved)) => vga.restore(saved)?,
            (None, None) => {}
            _ => return Err(RestoreError::new("display adapter", "only one of the machines has it")),
        }
        self.pm.restore(saved.pm)?;
        self.pci.restore(saved.pci)?;
        self.fw_cfg.restore(saved.fw_cfg)?;
        match (&self.isa_bridge, saved.isa_bridge) {
            (Some(bridge), Some(saved)) => bridge.restore(saved)?,
            (None, None) => {}
            _ => return Err(RestoreError::new("ISA bridge", "only one of the machines has it")),
        }
        match (&self.flash, saved.flash) {
            (Some(flash), Some(saved)) => flash.restore(saved),
            (None, None) => Ok(()),
            _ => Err(RestoreError::new("flash", "only one of the machines has it")),
        }
    }

    /// Sets which ISA interrupts are level-triggered, as firmware would: SCI alone.
    fn set_triggers(&self) {
        self.pic.set_elcr(1 << acpi_pm::spec::SCI_IRQ);
    }
}

/// Bytes of RAM below and above 4 GiB.
fn memory_size(memory: &GuestMemory) -> (u64, u64) {
    let is_low = |start: u64| start < 1 << 32;
    memory.iter().fold((0, 0), |(low, high), region| {
        if is_low(region.start_addr().0) { (low + region.len(), high) } else { (low, high + region.len()) }
    })
}

const _: () = assert!(irq_router::PCI_GSI_BASE + irq_router::PCI_GSIS == crate::ioapic::spec::PINS as u32);

#[cfg(test)]
mod tests;
#[cfg(test)]
mod twins;
