//! Video memory through the window below 1 MiB. The four planes lie interleaved: byte `n` of plane `p` is byte
//! `4n + p` of video memory.

use super::model::VgaModel;
use super::spec::dispi;
use memory::VideoMemory;

impl VgaModel {
    /// Reads a byte of the window, from its start on.
    pub fn window_read(&mut self, offset: u64, memory: &VideoMemory) -> u8 {
        if let Some(at) = self.banked(offset) {
            return memory.load(at);
        }
        let Some(at) = self.mapped(offset) else { return 0xff };
        let graphics = &self.regs.graphics;
        if self.is_chained() {
            return memory.load(at);
        }
        if graphics[5] & 0x10 != 0 {
            return memory.load(odd_even(at, graphics[4]));
        }
        for (plane, byte) in (0..).zip(&mut self.regs.latch) {
            *byte = memory.load(at * 4 + plane);
        }
        let latch = self.regs.latch;
        if graphics[5] & 8 == 0 {
            return latch[(graphics[4] & 3) as usize];
        }
        // Read mode 1: ones where the planes that count have the colour.
        let (color, counts) = (graphics[2], graphics[7]);
        let differs = (0..4).filter(|plane| counts >> plane & 1 != 0).fold(0, |differs, plane| {
            differs | latch[plane] ^ if color >> plane & 1 != 0 { 0xff } else { 0 }
        });
        !differs
    }

    /// Writes a byte of the window.
    pub fn window_write(&mut self, offset: u64, value: u8, memory: &VideoMemory) {
        if let Some(at) = self.banked(offset) {
            return memory.store(at, value);
        }
        let Some(at) = self.mapped(offset) else { return };
        let (graphics, planes) = (&self.regs.graphics, self.regs.sequencer[2]);
        if self.is_chained() {
            if planes >> (at & 3) & 1 != 0 {
                memory.store(at, value);
            }
            return;
        }
        if graphics[5] & 0x10 != 0 {
            let at = odd_even(at, graphics[4]);
            if planes >> (at & 3) & 1 != 0 {
                memory.store(at, value);
            }
            return;
        }
        let rotated = value.rotate_right((graphics[3] & 7).into());
        for plane in 0..4 {
            if planes >> plane & 1 == 0 {
                continue;
            }
            let latch = self.regs.latch[plane as usize];
            let expanded = |bits: u8| if bits >> plane & 1 != 0 { 0xff } else { 0 };
            let (data, mask) = match graphics[5] & 3 {
                0 if graphics[1] >> plane & 1 != 0 => (expanded(graphics[0]), graphics[8]),
                0 => (rotated, graphics[8]),
                1 => {
                    memory.store(at * 4 + plane, latch);
                    continue;
                }
                2 => (expanded(value), graphics[8]),
                _ => (expanded(graphics[0]), graphics[8] & rotated),
            };
            let data = match graphics[3] >> 3 & 3 {
                0 => data,
                1 => data & latch,
                2 => data | latch,
                _ => data ^ latch,
            };
            memory.store(at * 4 + plane, data & mask | latch & !mask);
        }
    }

    /// Where the window leads in a packed mode of the Bochs display interface: 64 KiB from the bank on.
    fn banked(&self, offset: u64) -> Option<u64> {
        let regs = &self.regs.dispi;
        (self.is_dispi() && regs[dispi::BPP] >= 8)
            .then(|| u64::from(regs[dispi::BANK]) << 16 | offset & 0xffff)
    }

    /// The address within the part of the window that is mapped (graphics register 6).
    fn mapped(&self, offset: u64) -> Option<u64> {
        let (start, len) = match self.regs.graphics[6] >> 2 & 3 {
            0 => (0, 0x2_0000),
            1 => (0, 0x1_0000),
            2 => (0x1_0000, 0x8000),
            _ => (0x1_8000, 0x8000),
        };
        offset.checked_sub(start).filter(|at| *at < len).map(|at| {
            let bank = if self.is_dispi() { u64::from(self.regs.dispi[dispi::BANK] & 0x3f) << 16 } else { 0 };
            at + bank
        })
    }

    /// Whether the two lowest address bits choose the plane ("chain 4").
    fn is_chained(&self) -> bool {
        self.regs.sequencer[4] & 8 != 0
    }
}

/// Where an address leads whose lowest bit chooses between two planes: text modes.
fn odd_even(at: u64, read_map: u8) -> u64 {
    (at & !1) << 1 | u64::from(read_map & 2) | at & 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> (VgaModel, VideoMemory) {
        let mut vga = VgaModel::new(1 << 20);
        vga.regs.sequencer[2] = 0xf;
        vga.regs.graphics[8] = 0xff;
        (vga, VideoMemory::new(1 << 20).unwrap())
    }

    #[test]
    fn text_goes_to_two_planes() {
        let (mut vga, memory) = setup();
        (vga.regs.graphics[5], vga.regs.graphics[6]) = (0x10, 0xe);
        vga.regs.sequencer[2] = 3;
        for (offset, byte) in [(0x1_8000, b'A'), (0x1_8001, 7), (0x1_8002, b'B'), (0, 9), (0x1_7fff, 9)] {
            vga.window_write(offset, byte, &memory);
        }
        let mut bytes = [0; 8];
        memory.read(0, &mut bytes);
        assert_eq!(bytes, [b'A', 7, 0, 0, b'B', 0, 0, 0]);
        assert_eq!((vga.window_read(0x1_8001, &memory), vga.window_read(0, &memory)), (7, 0xff));
    }

    #[test]
    fn write_modes_do_what_the_reference_says() {
        let (mut vga, memory) = setup();
        vga.regs.graphics[6] = 4;
        let plane_bytes =
            |memory: &VideoMemory, at: u64| [0, 1, 2, 3].map(|plane| memory.load(at * 4 + plane));
        vga.window_write(5, 0x0f, &memory);
        assert_eq!(plane_bytes(&memory, 5), [0x0f; 4]);
        // Set/reset in planes 0 and 1, one bit of the mask.
        (vga.regs.graphics[0], vga.regs.graphics[1], vga.regs.graphics[8]) = (1, 3, 0x81);
        vga.window_read(5, &memory);
        vga.window_write(5, 0, &memory);
        assert_eq!(plane_bytes(&memory, 5), [0x8f, 0x0e, 0x0e, 0x0e]);
        // Mode 1 copies.
        vga.window_read(5, &memory);
        vga.regs.graphics[5] = 1;
        vga.window_write(9, 0xff, &memory);
        assert_eq!(plane_bytes(&memory, 9), [0x8f, 0x0e, 0x0e, 0x0e]);
        // Mode 2: a colour. With exclusive or.
        (vga.regs.graphics[5], vga.regs.graphics[8], vga.regs.graphics[3]) = (2, 0xff, 0x18);
        vga.window_write(9, 5, &memory);
        assert_eq!(plane_bytes(&memory, 9), [0x70, 0x0e, 0xf1, 0x0e]);
        // Mode 3: set/reset through the value as a mask.
        (vga.regs.graphics[5], vga.regs.graphics[3], vga.regs.graphics[0]) = (3, 0, 0xf);
        vga.window_read(20, &memory);
        vga.window_write(20, 0x3c, &memory);
        assert_eq!(plane_bytes(&memory, 20), [0x3c; 4]);
        // Read mode 1: where the colour is 15.
        (vga.regs.graphics[5], vga.regs.graphics[2], vga.regs.graphics[7]) = (8, 0xf, 0xf);
        assert_eq!(vga.window_read(20, &memory), 0x3c);
    }

    #[test]
    fn chained_and_banked_bytes_are_linear() {
        let (mut vga, memory) = setup();
        (vga.regs.graphics[6], vga.regs.sequencer[4]) = (4, 8);
        vga.window_write(0x123, 7, &memory);
        assert_eq!((memory.load(0x123), vga.window_read(0x123, &memory)), (7, 7));
        for (index, value) in [(1, 640), (2, 400), (3, 8), (4, 1), (5, 3)] {
            vga.dispi_write(index, value, &memory);
        }
        vga.window_write(0x10, 9, &memory);
        assert_eq!(memory.load(0x3_0010), 9);
        vga.dispi_write(5, 0xffff, &memory);
        vga.window_write(0x10, 9, &memory);
        assert_eq!(vga.window_read(0x10, &memory), 0);
    }
}
