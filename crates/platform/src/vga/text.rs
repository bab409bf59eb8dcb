//! What a text mode shows, as text.

use super::model::VgaModel;
use memory::VideoMemory;

/// Code page 437 from 128 on, which the fonts of video BIOSes have.
const UPPER: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
                     αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";
/// The same below 32.
const LOWER: &str = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼";

impl VgaModel {
    /// The lines of a text mode without the blanks at their ends, in the letters of code page 437; `None` in
    /// graphics modes.
    pub fn text(&self, memory: &VideoMemory) -> Option<Vec<String>> {
        let screen = self.text_screen()?;
        let letter = |byte: u8| match byte {
            0..32 => LOWER.chars().nth(byte.into()).unwrap_or(' '),
            127 => '⌂',
            128.. => UPPER.chars().nth(usize::from(byte) - 128).unwrap_or(' '),
            _ => byte.into(),
        };
        let rows = (0..screen.rows as u64).map(|row| {
            let cells = (0..screen.columns as u64).map(|column| screen.start + row * screen.stride + column);
            let line: String = cells.map(|cell| letter(memory.load(cell * 4))).collect();
            line.trim_end().to_owned()
        });
        Some(rows.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_those_of_the_code_page() {
        assert_eq!((UPPER.chars().count(), LOWER.chars().count()), (128, 32));
        let (mut vga, memory) = (VgaModel::new(1 << 20), VideoMemory::new(1 << 20).unwrap());
        assert_eq!(vga.text(&memory), None, "nothing is set up");
        (vga.regs.crtc[1], vga.regs.crtc[9], vga.regs.crtc[0x12], vga.regs.crtc[0x13]) = (9, 15, 47, 5);
        vga.regs.attribute_index = 0x20;
        for (at, byte) in [(0, b'H'), (1, b'i'), (20, 0xc9), (21, 0xcd)] {
            memory.store(at * 4, byte);
        }
        assert_eq!(vga.text(&memory).unwrap(), ["Hi", "", "╔═"]);
    }
}
