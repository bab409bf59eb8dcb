//! Requests about screen and keyboard.

use crate::machine::Machine;
use api::worker::control::{ControlError, ControlErrorKind, Reply, ScreenText, Screenshot};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use platform::i8042::{KeyError, Stroke};
use platform::vga::{Picture, Vga};

/// The most strokes of one request.
const STROKES_MAX: usize = 4096;

/// What is on the screen, as a picture.
pub(super) fn shot(vga: &Vga) -> Result<Reply, ControlError> {
    let picture = vga.picture();
    let png = encode(&picture).map_err(|e| ControlError {
        kind: ControlErrorKind::Failed,
        message: format!("the picture cannot be made: {e}"),
    })?;
    let (width, height) = (picture.width as u32, picture.height as u32);
    Ok(Reply::Screenshot(Screenshot { width, height, png: BASE64.encode(png) }))
}

/// A picture as PNG.
fn encode(picture: &Picture) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    // PNG knows no picture without pixels.
    let (width, height) = (picture.width.max(1) as u32, picture.height.max(1) as u32);
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    match picture.pixels.is_empty() {
        true => writer.write_image_data(&vec![0; 3 * (width * height) as usize])?,
        false => writer.write_image_data(&picture.pixels)?,
    }
    writer.finish()?;
    Ok(bytes)
}

/// What is on the screen, as text.
pub(super) fn text(vga: &Vga) -> Reply {
    Reply::ScreenText(ScreenText { lines: vga.text() })
}

/// Presses keys, all or none.
pub(super) fn press(machine: &Machine, keys: &[String], text: &str) -> Result<Reply, ControlError> {
    let strokes = || {
        let mut strokes = keys.iter().map(|keys| Stroke::named(keys)).collect::<Result<Vec<_>, _>>()?;
        strokes.extend(Stroke::typing(text)?);
        if strokes.len() > STROKES_MAX {
            return Err(KeyError::Busy);
        }
        machine.press_keys(strokes)
    };
    strokes().map(|()| Reply::Done).map_err(|e| ControlError {
        kind: if e == KeyError::Busy { ControlErrorKind::Busy } else { ControlErrorKind::BadRequest },
        message: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_readable_png() {
        let picture = Picture { width: 3, height: 2, pixels: (0..18).collect() };
        let bytes = encode(&picture).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height, pixels), (3, 2, picture.pixels));
        assert!(encode(&Picture { width: 0, height: 5, pixels: vec![] }).is_ok());
    }
}
