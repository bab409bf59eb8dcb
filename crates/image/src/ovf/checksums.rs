//! The list of checksums beside a descriptor (DSP0243, section 6.3): lines `SHA256(NAME)= HEX`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::Sha256;

use crate::error::AboutFile;
use crate::progress::{self, Progress};
use crate::{Error, ErrorKind, Result};

/// Longest list that is read, in bytes.
pub(crate) const CHECKSUMS_LEN_MAX: u64 = 1 << 20;

/// Checksums by the names of the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checksums(BTreeMap<String, Checksum>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Checksum {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Sha1,
    Sha256,
}

impl Checksums {
    /// Reads a list; lines that are no checksums are passed over, those of unknown kinds too.
    pub(crate) fn parse(text: &str) -> Checksums {
        let line = |line: &str| {
            let (algorithm, rest) = line.split_once('(')?;
            let (name, hex) = rest.rsplit_once(')')?;
            let algorithm = match algorithm.trim().to_uppercase().as_str() {
                "SHA1" => Algorithm::Sha1,
                "SHA256" => Algorithm::Sha256,
                _ => return None,
            };
            let hex = hex.trim_start().strip_prefix('=')?.trim().to_lowercase();
            if name.contains(['(', ')']) || hex.is_empty() {
                return None;
            }
            Some((name.to_owned(), Checksum { algorithm, hex }))
        };
        Checksums(text.lines().filter_map(line).collect())
    }

    /// Adds a file.
    pub(crate) fn add(&mut self, name: &str, path: &Path, progress: &mut dyn Progress) -> Result<()> {
        progress.begin(&format!("checksum of {name}"), Some(path.metadata().about("read", path)?.len()));
        let hex = hash::<Sha256>(path, progress)?;
        self.0.insert(name.to_owned(), Checksum { algorithm: Algorithm::Sha256, hex });
        Ok(())
    }

    /// The list as text.
    pub(crate) fn to_text(&self) -> String {
        let name = |algorithm| match algorithm {
            Algorithm::Sha1 => "SHA1",
            Algorithm::Sha256 => "SHA256",
        };
        self.0.iter().map(|(file, sum)| format!("{}({file})= {}\n", name(sum.algorithm), sum.hex)).collect()
    }

    /// Compares a file with its checksum, if the list has one.
    ///
    /// # Errors
    /// [`ErrorKind::Unverified`] if it is another.
    pub(crate) fn check(&self, name: &str, path: &Path, progress: &mut dyn Progress) -> Result<()> {
        let Some(expected) = self.0.get(name) else { return Ok(()) };
        progress.begin(&format!("checking {name}"), Some(path.metadata().about("read", path)?.len()));
        let found = match expected.algorithm {
            Algorithm::Sha1 => hash::<sha1::Sha1>(path, progress)?,
            Algorithm::Sha256 => hash::<Sha256>(path, progress)?,
        };
        if found == expected.hex {
            return Ok(());
        }
        let text = format!("{name} is not what the appliance's list of checksums says");
        Err(Error::new(ErrorKind::Unverified, text).with_remedy("fetch the appliance again"))
    }
}

fn hash<H: sha2::Digest>(path: &Path, progress: &mut dyn Progress) -> Result<String> {
    let mut file = File::open(path).about("open", path)?;
    let mut hasher = H::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        progress::check(progress)?;
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&buffer[..count]);
                progress.advance(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::file("read", path, error)),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Folder;
    use crate::progress::Silent;

    #[test]
    fn files_are_compared_with_their_sums() {
        let folder = Folder::new("checksums");
        let path = folder.0.join("abc");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-4's example message.
        let list = "SHA1(one)= a9993e364706816aba3e25717850c26c9cd0d89d\n\
                    sha256 (two) = BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD\n\
                    SHA1(wrong)= a9993e364706816aba3e25717850c26c9cd0d89e\nMD5(other)= 1\nnonsense\n";
        let sums = Checksums::parse(list);
        for name in ["one", "two", "other", "unknown"] {
            sums.check(name, &path, &mut Silent).unwrap();
        }
        assert_eq!(sums.check("wrong", &path, &mut Silent).unwrap_err().kind(), ErrorKind::Unverified);
        let mut made = Checksums::default();
        made.add("two", &path, &mut Silent).unwrap();
        assert_eq!(Checksums::parse(&made.to_text()), made);
    }
}
