//! The display adapter in the machine.

use super::model::{VgaModel, VgaRegisters};
use super::spec::*;
use super::{Picture, edid};
use crate::ports::{self, PortDevice};
use crate::sync::lock;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use device::pci::{Bar, BarKind, ConfigSaved, ConfigSpace, Identity, PciFunction, ROM_BAR, reg};
use device::state::{RestoreError, SaveRestore};
use device::{Bus, BusDevice, Overlap};
use memory::VideoMemory;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// The display adapter, a PCI function with legacy ports and window.
pub struct Vga {
    inner: Mutex<Inner>,
    memory: Arc<VideoMemory>,
    /// The video BIOS, padded to a power of two; may be empty.
    rom: Vec<u8>,
    edid: [u8; 128],
}

struct Inner {
    config: ConfigSpace,
    model: VgaModel,
}

/// Saved form of [`Vga`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VgaSaved {
    config: ConfigSaved,
    registers: VgaRegisters,
    /// What is not zero of video memory: number of the block, and its bytes (LZ4, Base64).
    memory: Vec<(u32, String)>,
}

/// The unit in which video memory is saved, in bytes.
const BLOCK: usize = 64 << 10;

const IDENTITY: Identity = Identity {
    vendor: PCI_ID.0,
    device: PCI_ID.1,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    // With EDID and byte order in BAR 2.
    revision: 2,
    // Display controller, VGA.
    class: 0x03_00_00,
};

fn config_space(rom: usize) -> ConfigSpace {
    let mut config = ConfigSpace::new(IDENTITY);
    config.add_bar(BAR_FRAME_BUFFER, BarKind::Memory32, VIDEO_MEMORY);
    config.add_bar(BAR_REGISTERS, BarKind::Memory32, REGISTERS_SIZE);
    if rom > 0 {
        config.add_rom(rom as u64);
    }
    // The legacy ports are switched by the command register as well; firmware looks whether it can.
    let command = reg::COMMAND_IO | reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER | reg::COMMAND_INTX_DISABLE;
    config.set_writable_u16(reg::COMMAND, command);
    config
}

impl Vga {
    /// Creates an adapter over [`VIDEO_MEMORY`] bytes, with a video BIOS for BIOS firmware (or none).
    pub fn new(memory: Arc<VideoMemory>, mut rom: Vec<u8>) -> Arc<Vga> {
        if !rom.is_empty() {
            rom.resize(rom.len().next_power_of_two().max(0x1000), 0xff);
        }
        let inner = Inner { config: config_space(rom.len()), model: VgaModel::new(memory.size()) };
        Arc::new(Vga { inner: Mutex::new(inner), memory, rom, edid: edid::block() })
    }

    /// Places ports and window. The window has to be left to devices by RAM.
    ///
    /// # Errors
    /// When an address is taken.
    pub fn attach(self: &Arc<Self>, pio: &Bus, mmio: &Bus) -> Result<(), Overlap> {
        ports::attach(self, pio, &[(PORT_FIRST, PORT_COUNT)])?;
        pio.insert(PORT_DISPI.into(), PORT_DISPI_COUNT.into(), Arc::new(DispiPorts(self.clone())))?;
        mmio.insert(WINDOW_START, WINDOW_LEN, Arc::new(LegacyWindow(self.clone())))
    }

    /// What is on the screen.
    pub fn picture(&self) -> Picture {
        let model = lock(&self.inner).model.clone();
        model.picture(&self.memory)
    }

    /// What is on the screen in a text mode, line by line.
    pub fn text(&self) -> Option<Vec<String>> {
        let model = lock(&self.inner).model.clone();
        model.text(&self.memory)
    }

    /// Where the guest has the frame buffer now.
    pub fn frame_buffer(&self) -> Option<u64> {
        let bars = lock(&self.inner).config.bars();
        bars.iter()
            .find(|bar| bar.index == BAR_FRAME_BUFFER && bar.enabled && bar.base != 0)
            .map(|bar| bar.base)
    }

    /// Video memory.
    pub fn memory(&self) -> &Arc<VideoMemory> {
        &self.memory
    }

    /// Puts the adapter in its state after power-on.
    pub fn reset(&self) {
        let mut inner = lock(&self.inner);
        *inner = Inner { config: config_space(self.rom.len()), model: VgaModel::new(self.memory.size()) };
        self.memory.clear(0, self.memory.size());
    }

    /// The saved form. No vCPU runs.
    pub fn save(&self) -> VgaSaved {
        let inner = lock(&self.inner);
        let mut memory = Vec::new();
        let mut bytes = vec![0; BLOCK];
        for block in 0..self.memory.size() / BLOCK as u64 {
            self.memory.read(block * BLOCK as u64, &mut bytes);
            if bytes.iter().any(|byte| *byte != 0) {
                memory.push((block as u32, BASE64.encode(lz4_flex::block::compress(&bytes))));
            }
        }
        VgaSaved { config: inner.config.save(), registers: inner.model.save(), memory }
    }

    /// Takes over a saved state; the PCI root is told by its owner.
    ///
    /// # Errors
    /// When the state is one that the adapter can never have.
    pub fn restore(&self, saved: VgaSaved) -> Result<(), RestoreError> {
        let refuse = || RestoreError::new("display adapter", "its memory is not as it should be");
        let mut inner = lock(&self.inner);
        inner.config.restore(saved.config)?;
        inner.model.restore(saved.registers)?;
        self.memory.clear(0, self.memory.size());
        for (block, text) in saved.memory {
            let at = u64::from(block) * BLOCK as u64;
            if at >= self.memory.size() {
                return Err(refuse());
            }
            let packed = BASE64.decode(text).map_err(|_| refuse())?;
            let bytes = lz4_flex::block::decompress(&packed, BLOCK).map_err(|_| refuse())?;
            self.memory.write(at, &bytes);
        }
        Ok(())
    }

    fn registers_read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = match at {
                0..REGISTERS_VGA => self.edid.get(at as usize).copied().unwrap_or(0),
                REGISTERS_VGA..REGISTERS_DISPI => {
                    lock(&self.inner).model.read(PORT_ATTRIBUTE + (at - REGISTERS_VGA).min(0x1f) as u16)
                }
                REGISTERS_DISPI..REGISTERS_EXTENDED => {
                    let offset = at - REGISTERS_DISPI;
                    let value = lock(&self.inner).model.dispi_read((offset / 2) as u16);
                    value.to_le_bytes()[(offset & 1) as usize]
                }
                _ => VgaModel::extended_read(at - REGISTERS_EXTENDED),
            };
        }
    }

    fn registers_write(&self, offset: u64, data: &[u8]) {
        let mut inner = lock(&self.inner);
        match (offset, data) {
            (REGISTERS_DISPI..REGISTERS_EXTENDED, &[low, high, ..]) if offset.is_multiple_of(2) => {
                let index = ((offset - REGISTERS_DISPI) / 2) as u16;
                inner.model.dispi_write(index, u16::from_le_bytes([low, high]), &self.memory);
            }
            (REGISTERS_VGA..REGISTERS_DISPI, bytes) => {
                for (byte, at) in bytes.iter().zip(offset - REGISTERS_VGA..0x20) {
                    inner.model.write(PORT_ATTRIBUTE + at as u16, *byte);
                }
            }
            _ => {}
        }
    }
}

impl PortDevice for Vga {
    fn port_read(&self, port: u16) -> u8 {
        lock(&self.inner).model.read(port)
    }

    fn port_write(&self, port: u16, value: u8) {
        lock(&self.inner).model.write(port, value);
    }
}

/// Ports 0x1CE (index), 0x1CF and 0x1D0 (data), 16 bits each.
struct DispiPorts(Arc<Vga>);

impl BusDevice for DispiPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let model = &lock(&self.0.inner).model;
        let value = match offset {
            0 => model.dispi_index(),
            1 | 2 => model.dispi_read(model.dispi_index()),
            _ => return,
        };
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[low, high, ..] = data else { return };
        let value = u16::from_le_bytes([low, high]);
        let model = &mut lock(&self.0.inner).model;
        match offset {
            0 => model.set_dispi_index(value),
            1 | 2 => model.dispi_write(model.dispi_index(), value, &self.0.memory),
            _ => {}
        }
    }
}

/// The window below 1 MiB.
struct LegacyWindow(Arc<Vga>);

impl BusDevice for LegacyWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let model = &mut lock(&self.0.inner).model;
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = model.window_read(at, &self.0.memory);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let model = &mut lock(&self.0.inner).model;
        for (byte, at) in data.iter().zip(offset..) {
            model.window_write(at, *byte, &self.0.memory);
        }
    }
}

impl PciFunction for Vga {
    fn config_read(&self, register: u16) -> u32 {
        lock(&self.inner).config.read(register)
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        lock(&self.inner).config.write(offset, data);
    }

    fn bars(&self) -> Vec<Bar> {
        lock(&self.inner).config.bars()
    }

    fn bar_read(&self, index: usize, offset: u64, data: &mut [u8]) {
        match index {
            BAR_FRAME_BUFFER => self.memory.read(offset, data),
            BAR_REGISTERS => self.registers_read(offset, data),
            ROM_BAR => {
                let rom = self.rom.get(offset as usize..).unwrap_or_default();
                data.iter_mut().zip(rom).for_each(|(byte, value)| *byte = *value);
            }
            _ => {}
        }
    }

    fn bar_write(&self, index: usize, offset: u64, data: &[u8]) {
        match index {
            BAR_FRAME_BUFFER => self.memory.write(offset, data),
            BAR_REGISTERS => self.registers_write(offset, data),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> (Bus, Bus, Arc<Vga>) {
        let (pio, mmio) = (Bus::new(), Bus::new());
        let memory = Arc::new(VideoMemory::new(VIDEO_MEMORY).unwrap());
        let vga = Vga::new(memory, vec![0x55, 0xaa, 77]);
        vga.attach(&pio, &mmio).unwrap();
        (pio, mmio, vga)
    }

    #[test]
    fn drivers_find_identity_edid_and_rom() {
        let (pio, _, vga) = setup();
        assert_eq!(vga.config_read(0), 0x1111_1234);
        assert_eq!(vga.config_read(2) >> 8, 0x03_0000);
        let mut edid = [0; 8];
        vga.bar_read(BAR_REGISTERS, 0, &mut edid);
        assert_eq!(edid, [0, 255, 255, 255, 255, 255, 255, 0]);
        let mut id = [0; 2];
        vga.bar_read(BAR_REGISTERS, REGISTERS_DISPI, &mut id);
        assert_eq!(u16::from_le_bytes(id), DISPI_ID);
        let mut order = [0; 8];
        vga.bar_read(BAR_REGISTERS, REGISTERS_EXTENDED, &mut order);
        assert_eq!(order, [8, 0, 0, 0, 0x1e, 0x1e, 0x1e, 0x1e]);
        // BIOS sizes the ROM and reads it.
        vga.config_write(reg::ROM, &0xffff_fffeu32.to_le_bytes());
        assert_eq!(vga.config_read(reg::ROM / 4), 0xffff_f000);
        vga.config_write(reg::ROM, &0xfeb0_0001u32.to_le_bytes());
        vga.config_write(reg::COMMAND, &reg::COMMAND_MEMORY.to_le_bytes());
        let rom = vga.bars().into_iter().find(|bar| bar.index == ROM_BAR).unwrap();
        assert_eq!((rom.base, rom.size, rom.enabled), (0xfeb0_0000, 0x1000, true));
        let mut bytes = [0; 4];
        vga.bar_read(ROM_BAR, 0, &mut bytes);
        assert_eq!(bytes, [0x55, 0xaa, 77, 0xff]);
        // The interface by ports, as BIOS uses it.
        pio.write(0x1ce, &10u16.to_le_bytes());
        let mut size = [0; 2];
        pio.read(0x1cf, &mut size);
        assert_eq!(u16::from_le_bytes(size), 256);
    }

    #[test]
    fn a_saved_screen_comes_back() {
        let (_, mmio, vga) = setup();
        vga.memory.write(VIDEO_MEMORY - 3, &[1, 2, 3]);
        vga.bar_write(BAR_REGISTERS, REGISTERS_DISPI + 2, &640u16.to_le_bytes());
        mmio.write(WINDOW_START, &[7; 4]);
        let saved = serde_json::to_string(&vga.save()).unwrap();
        assert!(saved.len() < 100_000, "{}", saved.len());
        let (_, _, other) = setup();
        other.memory.store(500, 9);
        other.restore(serde_json::from_str(&saved).unwrap()).unwrap();
        assert_eq!((other.memory.load(VIDEO_MEMORY - 2), other.memory.load(500)), (2, 0));
        assert_eq!(lock(&other.inner).model.regs, lock(&vga.inner).model.regs);
        let mut bad: VgaSaved = serde_json::from_str(&saved).unwrap();
        bad.memory[0].0 = 1 << 30;
        assert!(other.restore(bad).is_err());
        vga.reset();
        assert!(vga.save().memory.is_empty());
    }
}
