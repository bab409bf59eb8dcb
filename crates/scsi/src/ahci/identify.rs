//! What devices say of themselves (ACS-3, §7.12): 256 words.

use disk::{DiskInfo, SECTOR_SIZE};

struct Words([u16; 256]);

impl Words {
    /// Text: two letters a word, the first one in the upper byte.
    fn text(&mut self, first: usize, words: usize, text: &str) {
        let mut letters = text.bytes().chain(std::iter::repeat(b' '));
        for word in &mut self.0[first..first + words] {
            *word = u16::from_be_bytes([letters.next().unwrap_or(b' '), letters.next().unwrap_or(b' ')]);
        }
    }

    fn common(mut self, serial: &str, model: &str) -> Words {
        self.text(10, 10, serial);
        self.text(23, 4, "1");
        self.text(27, 20, model);
        let words = &mut self.0;
        // DMA and LBA; words 64 to 70 and 88 hold.
        (words[49], words[53]) = (0x0300, 6);
        // PIO 4, multiword DMA 2, ultra DMA 5, which is chosen.
        (words[63], words[64], words[88]) = (7, 3, 0x203f);
        words[65..69].fill(120);
        // SATA of the first generation; ATA-4 to ATA-8.
        (words[76], words[80]) = (2, 0x01f0);
        (words[83], words[84], words[87]) = (0x4000, 0x4000, 0x4000);
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// IDENTIFY PACKET DEVICE of a CD-ROM drive.
pub(super) fn drive(serial: &str) -> Vec<u8> {
    let mut words = Words([0; 256]).common(serial, "Arnia CD-ROM");
    // ATAPI, a CD-ROM, removable, packets of 12 bytes.
    words.0[0] = 0x85c0;
    // PACKET commands, DEVICE RESET.
    (words.0[82], words.0[85]) = (0x0210, 0x0210);
    words.bytes()
}

/// IDENTIFY DEVICE of a disk.
pub(super) fn disk(serial: &str, info: &DiskInfo) -> Vec<u8> {
    let sectors = info.size / SECTOR_SIZE;
    let mut words = Words([0; 256]).common(serial, "Arnia disk");
    let w = &mut words.0;
    let cylinders = (sectors / (16 * 63)).min(16383) as u16;
    (w[0], w[1], w[3], w[6], w[53]) = (0x0040, cylinders, 16, 63, 7);
    let small = sectors.min(0x0fff_ffff) as u32;
    (w[60], w[61]) = (small as u16, (small >> 16) as u16);
    // A write cache; 48-bit addresses, flushes.
    (w[82], w[85]) = (0x0020, 0x0020);
    (w[83], w[86]) = (0x4000 | 1 << 10 | 1 << 12 | 1 << 13, 1 << 10 | 1 << 12 | 1 << 13);
    for (index, word) in w[100..104].iter_mut().enumerate() {
        *word = (sectors >> (16 * index)) as u16;
    }
    // So many sectors to a physical one; it does not turn.
    let exponent = (u64::from(info.physical_block_size) / SECTOR_SIZE).max(1).ilog2() as u16;
    (w[106], w[217]) = (0x6000 | exponent, 1);
    words.bytes()
}
