//! The VGA as registers.

use super::spec::{self, dispi, *};
use device::state::{RestoreError, SaveRestore};
use memory::VideoMemory;
use serde::{Deserialize, Serialize};

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VgaRegisters {
    pub(super) misc: u8,
    feature: u8,
    sequencer_index: u8,
    pub(super) sequencer: [u8; 8],
    crtc_index: u8,
    pub(super) crtc: [u8; 32],
    graphics_index: u8,
    pub(super) graphics: [u8; 16],
    pub(super) attribute_index: u8,
    /// The next write to the attribute port is data.
    attribute_data: bool,
    pub(super) attribute: [u8; 32],
    pub(super) dac_mask: u8,
    dac_read: u8,
    dac_write: u8,
    /// Which of the three bytes of an entry is next.
    dac_step: u8,
    dac_reading: bool,
    dac_entry: [u8; 3],
    /// 256 entries of red, green and blue.
    pub(super) palette: Vec<u8>,
    pub(super) latch: [u8; 4],
    status: u8,
    dispi_index: u16,
    pub(super) dispi: [u16; dispi::COUNT],
}

/// The register model. Video memory is an argument where it is needed.
#[derive(Clone, Debug)]
pub struct VgaModel {
    pub(super) regs: VgaRegisters,
    pub(super) memory_size: u64,
}

impl VgaModel {
    /// The adapter after power-on, with so much video memory.
    pub fn new(memory_size: u64) -> VgaModel {
        let mut dispi = [0; dispi::COUNT];
        dispi[dispi::ID] = DISPI_ID;
        let regs = VgaRegisters {
            misc: 0,
            feature: 0,
            sequencer_index: 0,
            sequencer: [0; 8],
            crtc_index: 0,
            crtc: [0; 32],
            graphics_index: 0,
            graphics: [0; 16],
            attribute_index: 0,
            attribute_data: false,
            attribute: [0; 32],
            dac_mask: 0xff,
            dac_read: 0,
            dac_write: 0,
            dac_step: 0,
            dac_reading: false,
            dac_entry: [0; 3],
            palette: vec![0; 768],
            latch: [0; 4],
            status: 0,
            dispi_index: 0,
            dispi,
        };
        VgaModel { regs, memory_size }
    }

    /// Reads one of the VGA's ports.
    pub fn read(&mut self, port: u16) -> u8 {
        let regs = &mut self.regs;
        let is_color = regs.misc & MISC_COLOR != 0;
        match port {
            // The CRT controller and what goes with it are at one of two places.
            0x3b0..0x3c0 if !is_color => self.read_monitor(port + 0x20),
            0x3d0..0x3e0 if is_color => self.read_monitor(port),
            PORT_ATTRIBUTE => regs.attribute_index,
            PORT_ATTRIBUTE_READ => regs.attribute[(regs.attribute_index & 0x1f) as usize],
            // A monitor is there.
            PORT_MISC => 0x10,
            PORT_SEQUENCER => regs.sequencer_index,
            0x3c5 => regs.sequencer[(regs.sequencer_index & 7) as usize],
            PORT_DAC_MASK => regs.dac_mask,
            PORT_DAC_READ => {
                if regs.dac_reading {
                    3
                } else {
                    0
                }
            }
            PORT_DAC_WRITE => regs.dac_write,
            PORT_DAC_DATA => {
                let at = regs.dac_read as usize * 3 + regs.dac_step as usize;
                regs.dac_step += 1;
                if regs.dac_step == 3 {
                    regs.dac_step = 0;
                    regs.dac_read = regs.dac_read.wrapping_add(1);
                }
                regs.palette[at]
            }
            PORT_FEATURE_READ => regs.feature,
            PORT_MISC_READ => regs.misc,
            PORT_GRAPHICS => regs.graphics_index,
            0x3cf => regs.graphics[(regs.graphics_index & 15) as usize],
            _ => 0xff,
        }
    }

    fn read_monitor(&mut self, port: u16) -> u8 {
        let regs = &mut self.regs;
        match port {
            PORT_CRTC => regs.crtc_index,
            0x3d5 => regs.crtc[(regs.crtc_index & 31) as usize],
            PORT_STATUS => {
                regs.attribute_data = false;
                // Whoever waits for the beam to come or go sees it the next time: there is none.
                regs.status ^= STATUS_RETRACE;
                regs.status
            }
            _ => 0xff,
        }
    }

    /// Writes one of the VGA's ports.
    pub fn write(&mut self, port: u16, value: u8) {
        let regs = &mut self.regs;
        let is_color = regs.misc & MISC_COLOR != 0;
        match port {
            0x3b0..0x3c0 if !is_color => self.write_monitor(port + 0x20, value),
            0x3d0..0x3e0 if is_color => self.write_monitor(port, value),
            PORT_ATTRIBUTE | PORT_ATTRIBUTE_READ => {
                if regs.attribute_data {
                    regs.attribute[(regs.attribute_index & 0x1f) as usize] = value;
                } else {
                    regs.attribute_index = value & 0x3f;
                }
                regs.attribute_data = !regs.attribute_data;
            }
            PORT_MISC => regs.misc = value & !0x10,
            PORT_SEQUENCER => regs.sequencer_index = value & 7,
            0x3c5 => regs.sequencer[regs.sequencer_index as usize] = value,
            PORT_DAC_MASK => regs.dac_mask = value,
            PORT_DAC_READ => (regs.dac_read, regs.dac_step, regs.dac_reading) = (value, 0, true),
            PORT_DAC_WRITE => (regs.dac_write, regs.dac_step, regs.dac_reading) = (value, 0, false),
            PORT_DAC_DATA => {
                regs.dac_entry[regs.dac_step as usize] = value;
                regs.dac_step += 1;
                if regs.dac_step == 3 {
                    regs.dac_step = 0;
                    let at = regs.dac_write as usize * 3;
                    regs.palette[at..at + 3].copy_from_slice(&regs.dac_entry);
                    regs.dac_write = regs.dac_write.wrapping_add(1);
                }
            }
            PORT_GRAPHICS => regs.graphics_index = value & 15,
            0x3cf => regs.graphics[regs.graphics_index as usize] = value,
            _ => {}
        }
    }

    fn write_monitor(&mut self, port: u16, value: u8) {
        let regs = &mut self.regs;
        match port {
            PORT_CRTC => regs.crtc_index = value & 31,
            0x3d5 => {
                let index = regs.crtc_index as usize;
                // The first eight can be protected, but for the ninth bit of line compare.
                let is_protected = regs.crtc[0x11] & 0x80 != 0 && index < 8;
                let mask = match index {
                    _ if !is_protected => 0xff,
                    7 => 0x10,
                    _ => 0,
                };
                regs.crtc[index] = regs.crtc[index] & !mask | value & mask;
            }
            PORT_STATUS => regs.feature = value,
            _ => {}
        }
    }

    /// The index of the Bochs display interface.
    pub fn dispi_index(&self) -> u16 {
        self.regs.dispi_index
    }

    /// Sets it.
    pub fn set_dispi_index(&mut self, index: u16) {
        self.regs.dispi_index = index;
    }

    /// Reads a register of the Bochs display interface.
    pub fn dispi_read(&self, index: u16) -> u16 {
        let asks = self.regs.dispi[dispi::ENABLE] & dispi::GET_CAPABILITIES != 0;
        match index as usize {
            dispi::WIDTH if asks => dispi::WIDTH_MAX,
            dispi::HEIGHT if asks => dispi::HEIGHT_MAX,
            dispi::BPP if asks => dispi::BPP_MAX,
            dispi::MEMORY_64K => (self.memory_size >> 16) as u16,
            dispi::VIRTUAL_HEIGHT if self.is_dispi() => {
                (self.memory_size / self.pitch().max(1)).min(u16::MAX.into()) as u16
            }
            index => self.regs.dispi.get(index).copied().unwrap_or(0),
        }
    }

    /// Writes a register of the Bochs display interface.
    pub fn dispi_write(&mut self, index: u16, value: u16, memory: &VideoMemory) {
        let was_on = self.is_dispi();
        let regs = &mut self.regs.dispi;
        match index as usize {
            dispi::ID if (0xb0c0..=DISPI_ID).contains(&value) => regs[dispi::ID] = value,
            dispi::WIDTH => regs[dispi::WIDTH] = value.min(dispi::WIDTH_MAX) & !7,
            dispi::HEIGHT => regs[dispi::HEIGHT] = value.min(dispi::HEIGHT_MAX),
            dispi::BPP => {
                let bpp = if value == 0 { 8 } else { value };
                if matches!(bpp, 4 | 8 | 15 | 16 | 24 | 32) {
                    regs[dispi::BPP] = bpp;
                }
            }
            dispi::BANK => regs[dispi::BANK] = value,
            dispi::VIRTUAL_WIDTH => regs[dispi::VIRTUAL_WIDTH] = value.max(regs[dispi::WIDTH]),
            dispi::X => regs[dispi::X] = value,
            dispi::Y => regs[dispi::Y] = value,
            dispi::ENABLE => {
                regs[dispi::ENABLE] = value;
                if value & dispi::ENABLED != 0 && !was_on {
                    regs[dispi::VIRTUAL_WIDTH] = regs[dispi::WIDTH];
                    (regs[dispi::X], regs[dispi::Y], regs[dispi::BANK]) = (0, 0, 0);
                    if value & dispi::KEEP_MEMORY == 0 {
                        let len = self.pitch() * u64::from(self.regs.dispi[dispi::HEIGHT]);
                        memory.clear(0, len);
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether the Bochs display interface has the screen.
    pub(super) fn is_dispi(&self) -> bool {
        self.regs.dispi[dispi::ENABLE] & dispi::ENABLED != 0
    }

    /// Bytes from one line to the next, in a mode of the Bochs display interface.
    pub(super) fn pitch(&self) -> u64 {
        let regs = &self.regs.dispi;
        let width = u64::from(regs[dispi::VIRTUAL_WIDTH].max(regs[dispi::WIDTH]));
        match regs[dispi::BPP] {
            4 => width / 2,
            bpp => width * u64::from(bpp.div_ceil(8)),
        }
    }

    /// Reads the doubleword-sized registers beside the VGA's own in BAR 2.
    pub(super) fn extended_read(offset: u64) -> u8 {
        const SIZE: u32 = 8;
        let bytes = [SIZE.to_le_bytes(), spec::BYTE_ORDER_LITTLE.to_le_bytes()].concat();
        bytes.get(offset as usize).copied().unwrap_or(0xff)
    }
}

impl SaveRestore for VgaModel {
    type Saved = VgaRegisters;

    fn save(&self) -> VgaRegisters {
        self.regs.clone()
    }

    fn restore(&mut self, saved: VgaRegisters) -> Result<(), RestoreError> {
        let indices = [
            (saved.sequencer_index, 8),
            (saved.crtc_index, 32),
            (saved.graphics_index, 16),
            (saved.attribute_index, 64),
            (saved.dac_step, 3),
        ];
        let modes = &saved.dispi;
        if indices.iter().any(|(index, count)| index >= count)
            || saved.palette.len() != 768
            || saved.misc & 0x10 != 0
            || modes[dispi::WIDTH] > dispi::WIDTH_MAX
            || modes[dispi::HEIGHT] > dispi::HEIGHT_MAX
            || !matches!(modes[dispi::BPP], 0 | 4 | 8 | 15 | 16 | 24 | 32)
        {
            return Err(RestoreError::new(
                "display adapter",
                "a register has a value that it can never have",
            ));
        }
        self.regs = saved;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> (VgaModel, VideoMemory) {
        (VgaModel::new(1 << 20), VideoMemory::new(1 << 20).unwrap())
    }

    #[test]
    fn the_palette_is_written_and_read_in_threes() {
        let (mut vga, _) = setup();
        vga.write(PORT_DAC_WRITE, 255);
        for value in [1, 2, 3, 4, 5, 6] {
            vga.write(PORT_DAC_DATA, value);
        }
        assert_eq!((&vga.regs.palette[765..], &vga.regs.palette[..3]), (&[1, 2, 3][..], &[4, 5, 6][..]));
        vga.write(PORT_DAC_READ, 255);
        let read: Vec<u8> = (0..6).map(|_| vga.read(PORT_DAC_DATA)).collect();
        assert_eq!(read, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn the_attribute_port_alternates_and_status_sets_it_back() {
        let (mut vga, _) = setup();
        vga.write(PORT_MISC, MISC_COLOR);
        vga.write(PORT_ATTRIBUTE, 3);
        vga.write(PORT_ATTRIBUTE, 0x15);
        assert_eq!((vga.read(PORT_ATTRIBUTE), vga.read(PORT_ATTRIBUTE_READ)), (3, 0x15));
        vga.write(PORT_ATTRIBUTE, 4);
        let (first, second) = (vga.read(PORT_STATUS), vga.read(PORT_STATUS));
        assert_eq!(first ^ second, STATUS_RETRACE);
        vga.write(0x3b4, 1);
        assert_eq!((vga.regs.crtc_index, vga.read(0x3b4)), (0, 0xff), "not at the monochrome ports");
    }

    #[test]
    fn protected_registers_keep_their_values() {
        let (mut vga, _) = setup();
        vga.write(PORT_MISC, MISC_COLOR);
        let mut set = |index, value| {
            vga.write(PORT_CRTC, index);
            vga.write(PORT_CRTC + 1, value);
        };
        set(7, 0);
        set(0x11, 0x80);
        set(7, 0xff);
        set(1, 0x55);
        set(0x12, 0x66);
        assert_eq!((vga.regs.crtc[7], vga.regs.crtc[1], vga.regs.crtc[0x12]), (0x10, 0, 0x66));
    }

    #[test]
    fn a_mode_of_the_display_interface_is_set_as_drivers_do() {
        let (mut vga, memory) = setup();
        memory.store(100, 7);
        assert_eq!(vga.dispi_read(0), DISPI_ID);
        assert_eq!(vga.dispi_read(10), 16);
        for (index, value) in [(4, 0), (1, 640), (2, 300), (3, 32), (4, 0x41)] {
            vga.dispi_write(index, value, &memory);
        }
        assert_eq!(
            (vga.pitch(), memory.load(100), vga.dispi_read(6), vga.dispi_read(7)),
            (2560, 0, 640, 409)
        );
        memory.store(100, 7);
        vga.dispi_write(4, 0, &memory);
        vga.dispi_write(4, 0xc1, &memory);
        assert_eq!(memory.load(100), 7);
        vga.dispi_write(4, 2, &memory);
        assert_eq!((vga.dispi_read(1), vga.dispi_read(3)), (16000, 32));
        vga.dispi_write(3, 7, &memory);
        vga.dispi_write(500, 7, &memory);
        assert_eq!((vga.regs.dispi[dispi::BPP], vga.dispi_read(500)), (32, 0));
    }

    #[test]
    fn impossible_states_are_refused() {
        let (mut vga, _) = setup();
        let good = vga.save();
        for bad in [
            VgaRegisters { palette: vec![], ..good.clone() },
            VgaRegisters { dac_step: 3, ..good.clone() },
            VgaRegisters { crtc_index: 32, ..good.clone() },
            VgaRegisters { dispi: [65535; dispi::COUNT], ..good.clone() },
        ] {
            assert!(vga.restore(bad).is_err());
        }
        vga.restore(good).unwrap();
    }
}
