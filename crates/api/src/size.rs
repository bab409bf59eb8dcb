//! Sizes in bytes as people write them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A number of bytes. Written as a number with an optional unit: `4096`, `512M`, `1G`, `1.5G` is not
/// accepted. Units are powers of 1024: K, M, G, T, each also as `KiB`, `MiB` and so on. In JSON also a
/// plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A text is not a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseByteSizeError {
    text: String,
}

impl fmt::Display for ParseByteSizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a size: write a whole number with a unit, like 512M or 2G", self.text)
    }
}

impl std::error::Error for ParseByteSizeError {}

const UNITS: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];

impl FromStr for ByteSize {
    type Err = ParseByteSizeError;

    fn from_str(text: &str) -> Result<ByteSize, ParseByteSizeError> {
        let error = || ParseByteSizeError { text: text.to_owned() };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| error())?;
        let unit = unit.to_ascii_uppercase();
        let unit =
            unit.strip_suffix("IB").or(unit.strip_suffix('B').filter(|u| u.is_empty())).unwrap_or(&unit);
        let shift = match unit {
            "" => 0,
            _ => UNITS.iter().find(|known| known.0 == unit).ok_or_else(error)?.1,
        };
        number.checked_mul(1 << shift).map(ByteSize).ok_or_else(error)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fitting = UNITS.iter().find(|(_, shift)| self.0 > 0 && self.0.trailing_zeros() >= *shift);
        match fitting {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(ByteSize(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for ByteSize {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("A number of bytes with a unit: K, M, G or T, powers of 1024."))
            .pattern(Some("^[0-9]{1,15}[KMGT]?$"))
            .examples(["512M", "2G"])
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for ByteSize {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("512M", Some(512 << 20)),
            ("512m", Some(512 << 20)),
            ("2GiB", Some(2 << 30)),
            ("1K", Some(1024)),
            ("3T", Some(3 << 40)),
            ("7B", Some(7)),
            ("", None),
            ("G", None),
            ("-1", None),
            ("1.5G", None),
            ("1GB", None),
            ("1 G", None),
            ("99999999999T", None),
            ("18446744073709551616", None),
        ] {
            assert_eq!(text.parse::<ByteSize>().ok().map(|size| size.0), bytes, "{text:?}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for bytes in [0, 1, 1023, 1024, 1 << 30, (1 << 30) + 1, u64::MAX, 3 << 40] {
            let json = serde_json::to_string(&ByteSize(bytes)).unwrap();
            assert_eq!(serde_json::from_str::<ByteSize>(&json).unwrap(), ByteSize(bytes), "{json}");
        }
        assert_eq!(serde_json::from_str::<ByteSize>("17").unwrap(), ByteSize(17));
        assert!(serde_json::from_str::<ByteSize>("-17").is_err());
    }
}
