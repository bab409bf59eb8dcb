//! Bodies of the fuzz targets: plain functions of bytes that must neither panic nor hang.

use crate::ovf::{Appliance, Checksums};

/// Reads `data` as the small files of an appliance: its descriptor and its checksums.
pub fn foreign_files(data: &[u8]) {
    let _ = Appliance::parse(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let sums = Checksums::parse(text);
        assert_eq!(Checksums::parse(&sums.to_text()), sums, "what is written reads back");
    }
}
