//! What a monitor would show: registers and video memory as a picture.

use super::model::VgaModel;
use super::spec::{ATTRIBUTE_ON, dispi};
use memory::VideoMemory;

/// The most pixels of a picture; lines beyond are left out. Larger than any mode that drivers set.
const PIXELS_MAX: usize = 8 << 20;
/// The picture of a screen whose mode says nothing.
const BLANK: (usize, usize) = (640, 400);

/// A picture: lines from top to bottom, pixels from left to right, three bytes (red, green, blue) each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels of a line.
    pub width: usize,
    /// Lines.
    pub height: usize,
    /// `3 * width * height` bytes.
    pub pixels: Vec<u8>,
}

impl Picture {
    fn black(width: usize, height: usize) -> Picture {
        let height = height.min(PIXELS_MAX / width.max(1));
        Picture { width, height, pixels: vec![0; 3 * width * height] }
    }

    fn set(&mut self, x: usize, y: usize, color: [u8; 3]) {
        let at = 3 * (y * self.width + x);
        if x < self.width && y < self.height {
            self.pixels[at..at + 3].copy_from_slice(&color);
        }
    }
}

/// A text mode's measures.
pub(super) struct TextScreen {
    pub(super) columns: usize,
    pub(super) rows: usize,
    pub(super) cell_height: usize,
    /// Doubleword of the first cell, and from one row to the next.
    pub(super) start: u64,
    pub(super) stride: u64,
}

impl VgaModel {
    /// Draws what is on the screen. A screen that is off is black.
    pub fn picture(&self, memory: &VideoMemory) -> Picture {
        let regs = &self.regs;
        if self.is_dispi() && regs.dispi[dispi::BPP] != 4 {
            return self.packed(memory);
        }
        let (width, height) = self.size();
        if regs.attribute_index & ATTRIBUTE_ON == 0 {
            return Picture::black(width, height);
        }
        if let Some(screen) = self.text_screen() {
            return self.text_picture(&screen, memory);
        }
        match regs.graphics[5] >> 5 & 3 {
            0 => self.planar(width, height, memory),
            1 => self.four_colors(width, height, memory),
            _ => self.chained(memory),
        }
    }

    /// The measures of a text mode, if this is one.
    pub(super) fn text_screen(&self) -> Option<TextScreen> {
        let regs = &self.regs;
        let is_graphics = regs.graphics[6] & 1 != 0 || self.is_dispi();
        let is_set = regs.attribute_index & ATTRIBUTE_ON != 0 && regs.crtc[1] != 0;
        (!is_graphics && is_set).then(|| {
            let cell_height = (regs.crtc[9] & 0x1f) as usize + 1;
            TextScreen {
                columns: regs.crtc[1] as usize + 1,
                rows: self.scan_lines() / cell_height,
                cell_height,
                start: self.start(),
                stride: u64::from(regs.crtc[0x13]) * 2,
            }
        })
    }

    fn start(&self) -> u64 {
        u64::from(self.regs.crtc[0xc]) << 8 | u64::from(self.regs.crtc[0xd])
    }

    /// Lines that the CRT controller shows.
    fn scan_lines(&self) -> usize {
        let crtc = &self.regs.crtc;
        let high = (crtc[7] as usize & 2) << 7 | (crtc[7] as usize & 0x40) << 3;
        (crtc[0x12] as usize | high) + 1
    }

    /// Lines of the CRT controller for each line of a picture.
    fn repeat(&self) -> usize {
        let nine = self.regs.crtc[9];
        ((nine & 0x1f) as usize + 1) * if nine & 0x80 != 0 { 2 } else { 1 }
    }

    fn size(&self) -> (usize, usize) {
        let regs = &self.regs;
        if self.is_dispi() {
            return (regs.dispi[dispi::WIDTH].into(), regs.dispi[dispi::HEIGHT].into());
        }
        if regs.crtc[1] == 0 {
            return BLANK;
        }
        ((regs.crtc[1] as usize + 1) * 8, self.scan_lines())
    }

    /// The colour of an entry of the DAC.
    pub(super) fn dac(&self, index: u8) -> [u8; 3] {
        let at = usize::from(index & self.regs.dac_mask) * 3;
        let is_8_bit = self.regs.dispi[dispi::ENABLE] & dispi::DAC_8_BIT != 0;
        let widen = |value: u8| if is_8_bit { value } else { value << 2 | value >> 4 & 3 };
        [0, 1, 2].map(|channel| widen(self.regs.palette[at + channel]))
    }

    /// The colour of a pixel of four bits, through the attribute controller.
    pub(super) fn color(&self, pixel: u8) -> [u8; 3] {
        let attribute = &self.regs.attribute;
        let inner = attribute[(pixel & 15) as usize] & 0x3f;
        let (select, mode) = (attribute[0x14], attribute[0x10]);
        let index = match mode & 0x80 {
            0 => inner | (select & 0xc) << 4,
            _ => inner & 0xf | (select & 0xf) << 4,
        };
        self.dac(index)
    }

    /// A mode of the Bochs display interface with whole bytes for a pixel.
    fn packed(&self, memory: &VideoMemory) -> Picture {
        let regs = &self.regs.dispi;
        let (width, height) = self.size();
        let mut picture = Picture::black(width, height);
        if self.regs.attribute_index & ATTRIBUTE_ON == 0 {
            return picture;
        }
        let bytes = usize::from(regs[dispi::BPP].div_ceil(8)).max(1);
        let pitch = self.pitch();
        let start = u64::from(regs[dispi::Y]) * pitch + u64::from(regs[dispi::X]) * bytes as u64;
        let mut line = vec![0; width * bytes];
        for y in 0..picture.height {
            line.fill(0);
            memory.read(start + y as u64 * pitch, &mut line);
            for (x, pixel) in line.chunks_exact(bytes).enumerate() {
                let word = || u16::from_le_bytes([pixel[0], pixel[1]]);
                let five = |value: u16| ((value & 31) << 3 | (value & 31) >> 2) as u8;
                let color = match regs[dispi::BPP] {
                    15 => [five(word() >> 10), five(word() >> 5), five(word())],
                    16 => {
                        let six = word() >> 5 & 63;
                        [five(word() >> 11), (six << 2 | six >> 4) as u8, five(word())]
                    }
                    24 | 32 => [pixel[2], pixel[1], pixel[0]],
                    _ => self.dac(pixel[0]),
                };
                picture.set(x, y, color);
            }
        }
        picture
    }

    /// Which plane byte a line of 16, 4 or 2 colours begins with: compatible modes take address bit 13 from
    /// the line (CRT controller register 0x17, bit 0).
    fn line_start(&self, line: usize, start: u64) -> u64 {
        let crtc = &self.regs.crtc;
        let (cell, within) = (self.repeat(), (crtc[9] & 0x1f) as usize + 1);
        let offset = if self.is_dispi() { self.pitch() / 4 } else { u64::from(crtc[0x13]) * 2 };
        let at = start + (line / cell) as u64 * offset;
        if crtc[0x17] & 1 != 0 || self.is_dispi() {
            return at;
        }
        let scan = line / (cell / within) % within;
        at & !(1 << 13) | (scan as u64 & 1) << 13
    }

    fn planar(&self, width: usize, height: usize, memory: &VideoMemory) -> Picture {
        let half = if self.regs.sequencer[1] & 8 != 0 { 2 } else { 1 };
        let mut picture = Picture::black(width, height);
        let enabled = self.regs.attribute[0x12] & 15;
        for y in 0..picture.height {
            let begin = self.line_start(y, self.start());
            for cell in 0..width / 8 / half {
                let at = (begin + cell as u64) * 4;
                let planes = [0, 1, 2, 3].map(|plane| memory.load(at + plane));
                for bit in 0..8 {
                    let pixel =
                        (0..4).fold(0, |pixel, plane| pixel | (planes[plane] >> (7 - bit) & 1) << plane);
                    let color = self.color(pixel & enabled);
                    (0..half).for_each(|copy| picture.set((cell * 8 + bit) * half + copy, y, color));
                }
            }
        }
        picture
    }

    fn four_colors(&self, width: usize, height: usize, memory: &VideoMemory) -> Picture {
        let mut picture = Picture::black(width, height);
        for y in 0..picture.height {
            let begin = self.line_start(y, self.start());
            for cell in 0..width / 16 {
                let at = (begin + cell as u64) * 4;
                let bits = u16::from_be_bytes([memory.load(at), memory.load(at + 1)]);
                for pixel in 0..8 {
                    let color = self.color((bits >> (14 - 2 * pixel)) as u8 & 3);
                    (0..2).for_each(|copy| picture.set(cell * 16 + pixel * 2 + copy, y, color));
                }
            }
        }
        picture
    }

    /// 256 colours: a byte a pixel, four of them at each address of the planes.
    fn chained(&self, memory: &VideoMemory) -> Picture {
        let (width, lines) = self.size();
        let repeat = self.repeat();
        let mut picture = Picture::black(width / 2, lines / repeat);
        let mut line = vec![0; picture.width];
        for y in 0..picture.height {
            line.fill(0);
            memory.read(self.start() * 4 + y as u64 * u64::from(self.regs.crtc[0x13]) * 8, &mut line);
            for (x, pixel) in line.iter().enumerate() {
                picture.set(x, y, self.dac(*pixel));
            }
        }
        picture
    }

    fn text_picture(&self, screen: &TextScreen, memory: &VideoMemory) -> Picture {
        let regs = &self.regs;
        let cell_width = if regs.sequencer[1] & 1 != 0 { 8 } else { 9 };
        let mut picture = Picture::black(screen.columns * cell_width, screen.rows * screen.cell_height);
        let (mode, select) = (regs.attribute[0x10], regs.sequencer[3]);
        let maps = [select & 3 | select >> 2 & 4, select >> 2 & 3 | select >> 3 & 4].map(font_map);
        let cursor = u64::from(regs.crtc[0xe]) << 8 | u64::from(regs.crtc[0xf]);
        let (first, last) = ((regs.crtc[0xa] & 0x1f) as usize, (regs.crtc[0xb] & 0x1f) as usize);
        let has_cursor = regs.crtc[0xa] & 0x20 == 0;
        for row in 0..screen.rows {
            for column in 0..screen.columns {
                let cell = screen.start + row as u64 * screen.stride + column as u64;
                let (letter, attribute) = (memory.load(cell * 4), memory.load(cell * 4 + 1));
                let ink = self.color(attribute & 15);
                // The highest bit means blinking, or a bright ground.
                let paper = self.color(attribute >> 4 & if mode & 8 != 0 { 7 } else { 15 });
                let font = maps[usize::from(attribute & 8 != 0)];
                // The ninth column repeats the eighth of letters that draw lines.
                let repeats = mode & 4 != 0 && (0xc0..0xe0).contains(&letter);
                for line in 0..screen.cell_height {
                    let bits = memory.load((font + u64::from(letter) * 32 + line as u64) * 4 + 2);
                    let in_cursor = has_cursor && cell == cursor && (first..=last).contains(&line);
                    for x in 0..cell_width {
                        let is_set = match x {
                            8 => repeats && bits & 1 != 0,
                            _ => bits >> (7 - x) & 1 != 0,
                        };
                        let color = if is_set || in_cursor { ink } else { paper };
                        picture.set(column * cell_width + x, row * screen.cell_height + line, color);
                    }
                }
            }
        }
        picture
    }
}

/// Where a character map begins in plane 2. Bit 2 of the number is the lowest of the address: maps 4 to 7 lie
/// between 0 to 3.
fn font_map(number: u8) -> u64 {
    u64::from((number & 3) << 1 | number >> 2) << 13
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text of 80 x 25 with cells of 8 x 16 pixels, and a font in which every letter is its own number.
    pub(crate) fn text() -> (VgaModel, VideoMemory) {
        let (mut vga, memory) = (VgaModel::new(1 << 20), VideoMemory::new(1 << 20).unwrap());
        let regs = &mut vga.regs;
        (regs.crtc[1], regs.crtc[9], regs.crtc[0x13]) = (79, 15, 40);
        (regs.crtc[0x12], regs.crtc[7], regs.crtc[0xa]) = (0x8f, 2, 0x20);
        (regs.sequencer[1], regs.attribute_index) = (1, ATTRIBUTE_ON);
        (0..16).for_each(|index| regs.attribute[index as usize] = index);
        regs.palette[3 * 7..3 * 8].fill(0x2a);
        regs.palette[3..6].copy_from_slice(&[0, 0, 0x3f]);
        for letter in 0..=255u8 {
            (0..16).for_each(|line| memory.store((u64::from(letter) * 32 + line) * 4 + 2, letter));
        }
        (vga, memory)
    }

    #[test]
    fn text_is_drawn_with_the_guests_font() {
        let (mut vga, memory) = text();
        let cell = 81 * 4;
        memory.write(cell, &[0xa5, 0x17]);
        let picture = vga.picture(&memory);
        assert_eq!((picture.width, picture.height), (640, 400));
        let pixel = |picture: &Picture, x: usize, y: usize| {
            picture.pixels[3 * (y * picture.width + x)..][..3].to_vec()
        };
        for (x, is_set) in [(8, true), (9, false), (10, true), (11, false), (13, true), (15, true)] {
            let expected = if is_set { [0xaa; 3].to_vec() } else { vec![0, 0, 0xff] };
            assert_eq!(pixel(&picture, x, 16), expected, "{x}");
        }
        // A cursor over it, in the last two lines.
        (vga.regs.crtc[0xa], vga.regs.crtc[0xb], vga.regs.crtc[0xf]) = (14, 15, 81);
        let picture = vga.picture(&memory);
        assert_eq!(pixel(&picture, 9, 31), [0xaa; 3]);
        assert_eq!(pixel(&picture, 9, 29), [0, 0, 0xff]);
        vga.regs.attribute_index = 0;
        assert!(vga.picture(&memory).pixels.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn true_colors_come_from_the_frame_buffer() {
        let (mut vga, memory) = text();
        for (index, value) in [(1, 64), (2, 2), (3, 32), (4, 0x41)] {
            vga.dispi_write(index, value, &memory);
        }
        memory.write(64 * 4 + 8, &[1, 2, 3, 0]);
        let picture = vga.picture(&memory);
        assert_eq!((picture.width, picture.height), (64, 2));
        assert_eq!(picture.pixels[3 * (64 + 2)..][..3], [3, 2, 1]);
        vga.dispi_write(3, 16, &memory);
        memory.write(0, &[0x1f, 0xf8]);
        assert_eq!(vga.picture(&memory).pixels[..3], [255, 0, 255]);
        // As large as can be: bounded.
        for (index, value) in [(4, 0), (1, 16000), (2, 12000), (3, 8), (4, 1)] {
            vga.dispi_write(index, value, &memory);
        }
        assert!(vga.picture(&memory).pixels.len() <= 3 * PIXELS_MAX);
    }

    #[test]
    fn graphics_of_the_vga_itself() {
        let (mut vga, memory) = text();
        memory.clear(0, 1 << 20);
        let regs = &mut vga.regs;
        (regs.graphics[6], regs.graphics[5], regs.crtc[9], regs.crtc[0x17]) = (5, 0, 0x40, 0xe3);
        regs.attribute[0x12] = 15;
        // One pixel of colour 1 in the second line.
        memory.store(80 * 4, 0x80);
        let picture = vga.picture(&memory);
        assert_eq!((picture.width, picture.height), (640, 400));
        assert_eq!(picture.pixels[3 * 640..][..3], [0, 0, 255]);
        // 320 x 200 of 256 colours: a byte a pixel, lines twice.
        (vga.regs.graphics[5], vga.regs.crtc[9]) = (0x40, 0x41);
        memory.store(321, 7);
        let picture = vga.picture(&memory);
        assert_eq!((picture.width, picture.height), (320, 200));
        assert_eq!(picture.pixels[3 * 321..][..3], [0xaa; 3]);
    }
}
