//! What the monitor says of itself (VESA E-EDID 1.4, §3).

/// The block of a monitor that likes 1280 x 800 and takes what is smaller.
pub(super) fn block() -> [u8; 128] {
    let mut edid = [0; 128];
    edid[..8].copy_from_slice(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    // Manufacturer "ARN": five bits a letter.
    let letters = b"ARN".iter().fold(0u16, |id, letter| id << 5 | u16::from(letter - b'A' + 1));
    edid[8..10].copy_from_slice(&letters.to_be_bytes());
    edid[10] = 1;
    // Week 1 of 2026; version 1.4.
    (edid[16], edid[17], edid[18], edid[19]) = (1, 36, 1, 4);
    // Digital, 8 bits a colour; 34 x 21 cm; gamma 2.2; sRGB, preferred timing is native.
    (edid[20], edid[21], edid[22], edid[23], edid[24]) = (0xa5, 34, 21, 120, 0x06);
    // sRGB's primaries and white (IEC 61966-2-1), ten bits each.
    edid[25..35].copy_from_slice(&[0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]);
    // 640 x 480, 800 x 600 and 1024 x 768, at 60 Hz.
    (edid[35], edid[36]) = (0x21, 0x08);
    // No more standard timings.
    edid[38..54].fill(1);
    edid[54..72].copy_from_slice(&preferred_timing());
    descriptor(&mut edid[72..90], 0xfc, b"Arnia\n");
    // 50 to 125 Hz vertically, 30 to 160 kHz, up to 300 MHz.
    descriptor(&mut edid[90..108], 0xfd, &[50, 125, 30, 160, 30, 1, b'\n']);
    // Unused.
    descriptor(&mut edid[108..126], 0x10, &[]);
    edid[127] = edid[..127].iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    edid
}

/// 1280 x 800 at 60 Hz (VESA CVT): a clock of 83.5 MHz.
fn preferred_timing() -> [u8; 18] {
    let (h_active, h_blank, h_front, h_sync) = (1280u16, 400u16, 72u16, 128u16);
    let (v_active, v_blank, v_front, v_sync) = (800u16, 31u16, 3u16, 6u16);
    let (width_mm, height_mm) = (340u16, 212u16);
    let high = |a: u16, b: u16| ((a >> 8) << 4 | b >> 8) as u8;
    let clock = 8350u16.to_le_bytes();
    [
        clock[0],
        clock[1],
        h_active as u8,
        h_blank as u8,
        high(h_active, h_blank),
        v_active as u8,
        v_blank as u8,
        high(v_active, v_blank),
        h_front as u8,
        h_sync as u8,
        (v_front << 4 | v_sync) as u8,
        0,
        width_mm as u8,
        height_mm as u8,
        high(width_mm, height_mm),
        0,
        0,
        // Separate syncs, the vertical one positive.
        0x1c,
    ]
}

fn descriptor(place: &mut [u8], tag: u8, text: &[u8]) {
    place.fill(b' ');
    place[..5].copy_from_slice(&[0, 0, 0, tag, 0]);
    place[5..5 + text.len()].copy_from_slice(text);
    if tag == 0x10 {
        place[5..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_block_is_whole() {
        let edid = super::block();
        assert_eq!(edid.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!((edid[56], edid[58] >> 4, edid[59], edid[61] >> 4), (0, 5, 32, 3), "1280 x 800");
    }
}
