//! The secret by which a machine is let in.

use std::fmt;
use std::str::FromStr;

/// The secret of a share: 32 bytes, written as 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub(crate) [u8; 32]);

/// A text that is no [`Key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key has 64 hexadecimal digits")]
pub struct BadKey;

impl FromStr for Key {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Key, BadKey> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(BadKey);
        }
        let digit = |byte: u8| (byte as char).to_digit(16).map(|value| value as u8).ok_or(BadKey);
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Key(bytes))
    }
}

impl fmt::Debug for Key {
    /// Without the key: it is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}
