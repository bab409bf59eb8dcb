//! Numbers in the byte orders of formats.
//!
//! All panic when the bytes end before: callers have looked.

macro_rules! number {
    ($name:ident, $put:ident, $type:ty, $from:ident, $to:ident) => {
        #[inline]
        pub(crate) fn $name(bytes: &[u8], at: usize) -> $type {
            const LEN: usize = size_of::<$type>();
            <$type>::$from(bytes[at..at + LEN].try_into().expect("so many bytes"))
        }
        #[allow(dead_code, reason = "each order has all widths")]
        #[inline]
        pub(crate) fn $put(bytes: &mut [u8], at: usize, value: $type) {
            bytes[at..at + size_of::<$type>()].copy_from_slice(&value.$to());
        }
    };
}

number!(be16, put_be16, u16, from_be_bytes, to_be_bytes);
number!(be32, put_be32, u32, from_be_bytes, to_be_bytes);
number!(be64, put_be64, u64, from_be_bytes, to_be_bytes);
number!(le16, put_le16, u16, from_le_bytes, to_le_bytes);
number!(le32, put_le32, u32, from_le_bytes, to_le_bytes);
number!(le64, put_le64, u64, from_le_bytes, to_le_bytes);

/// Whether all of `bytes` is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // In steps that the compiler turns into wide compares, ending early as data usually allows.
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}
