//! Images: static things from which instances come.
//!
//! A [`Manifest`] names everything by its content ([`Digest`]), so that it can be fetched from anywhere and
//! checked. Its own digest is the image's identity. Manifests come from strangers: [`Manifest::check`]
//! looks at one before anything is made of it.

use crate::ByteSize;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The version of the manifest's form.
pub const MANIFEST_VERSION: u32 = 1;
/// Longest manifest that is read, in bytes.
pub const MANIFEST_LEN_MAX: u64 = 1 << 20;
/// Disks in one image at most.
pub const DISKS_MAX: usize = 16;

/// A blake3 digest, written `blake3:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The 64 digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// So many digits as people need to tell images apart.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }

    /// Reads the 64 digits.
    pub fn from_hex(text: &str) -> Option<Digest> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let bytes = text.as_bytes();
        if bytes.len() != 64 {
            return None;
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(bytes.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Digest(digest))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Digest, String> {
        let digest = text.strip_prefix("blake3:").and_then(Digest::from_hex);
        digest.ok_or_else(|| format!("{text:?} is no digest: blake3: and 64 hexadecimal digits"))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A name of an image in a store: `debian:12`, `team/web:3`. Without a tag it is `latest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    name: String,
    tag: String,
}

impl ImageName {
    /// The part before the colon.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The part behind it.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

impl FromStr for ImageName {
    type Err = String;

    fn from_str(text: &str) -> Result<ImageName, String> {
        let (name, tag) = text.split_once(':').unwrap_or((text, "latest"));
        let part = |part: &str, extra: &[u8]| {
            let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || extra.contains(&byte);
            part.bytes().all(good)
                && part.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        let folders = name.split('/').all(|folder| part(folder, b"._-")) && name.len() <= 128;
        let tag_good = tag.len() <= 64
            && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && !tag.starts_with(['.', '-'])
            && !tag.is_empty();
        if folders && tag_good {
            Ok(ImageName { name: name.to_owned(), tag: tag.to_owned() })
        } else {
            Err(format!(
                "{text:?} is no image name: small letters, digits, . _ - and /, then a tag, as debian:12"
            ))
        }
    }
}

impl Serialize for ImageName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ImageName, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// Architecture of its programs: `x86_64`.
    pub architecture: String,
    /// A sentence for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// When it was made, in seconds since 1970.
    pub created_s: u64,
    /// How it boots.
    pub boot: ImageBoot,
    /// Its disks, in the order in which the guest sees them.
    pub disks: Vec<ImageDisk>,
    /// What it needs at least.
    #[serde(default)]
    pub minimum: Minimum,
    /// Who logs in when nobody is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Ports that it serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ImagePort>,
    /// Folders that hold what is worth keeping.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// What makes an instance of it somebody of its own.
    #[serde(default)]
    pub personality: PersonalitySource,
    /// Anything else, for people and programs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A blob: bytes named by what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// Their digest.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

/// How an image boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ImageBoot {
    /// By a kernel that the host loads.
    Kernel {
        /// The bzImage or ELF file.
        kernel: Blob,
        /// Its initrd.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        initrd: Option<Blob>,
        /// Its command line.
        #[serde(default)]
        append: String,
    },
    /// By its own loader, which firmware starts.
    Firmware {
        /// Which firmware.
        firmware: ImageFirmware,
    },
}

/// A firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ImageFirmware {
    /// A PC's BIOS.
    Bios,
    /// UEFI.
    Uefi,
}

impl fmt::Display for ImageFirmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ImageFirmware::Bios => "bios",
            ImageFirmware::Uefi => "uefi",
        })
    }
}

/// A disk of an image, as raw bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImageDisk {
    /// Its name: `root`.
    pub name: String,
    /// Its content.
    pub blob: Blob,
}

/// What an image needs at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Minimum {
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Size of its first disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<ByteSize>,
}

/// A port that an image serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImagePort {
    /// The port in the guest.
    pub port: u16,
    /// What is there: `ssh`, `http`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// What makes an instance somebody of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PersonalitySource {
    /// `arnia-agent`, from the seed disk and over the socket.
    Agent,
    /// cloud-init, from the seed disk.
    CloudInit,
    /// Nothing: instances are alike.
    #[default]
    None,
}

/// Something in a manifest cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError(String);

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ManifestError {}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        if bytes.len() as u64 > MANIFEST_LEN_MAX {
            return Err(ManifestError(format!("the manifest is longer than {MANIFEST_LEN_MAX} bytes")));
        }
        // The version first: a later one may have fields that cannot be read here.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let error = |error: serde_json::Error| ManifestError(format!("this is no manifest: {error}"));
        let Version { version } = serde_json::from_slice(bytes).map_err(error)?;
        if version != MANIFEST_VERSION {
            let text =
                format!("the manifest has version {version}; this program reads version {MANIFEST_VERSION}");
            return Err(ManifestError(text));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(error)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest's bytes, of which its digest is made.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Looks for what cannot be.
    ///
    /// # Errors
    /// A sentence about the first thing that is wrong.
    pub fn check(&self) -> Result<(), ManifestError> {
        let fail = |text: String| Err(ManifestError(text));
        if self.architecture != "x86_64" {
            return fail(format!("it is for {:?}; this program runs x86_64", self.architecture));
        }
        if self.disks.len() > DISKS_MAX {
            return fail(format!("it has {} disks; at most {DISKS_MAX} are possible", self.disks.len()));
        }
        let mut names = Vec::new();
        for disk in &self.disks {
            let name = disk.name.as_str();
            let good =
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            if name.is_empty() || name.len() > 32 || !good || name.starts_with('-') || names.contains(&name) {
                return fail(format!("{name:?} is no name for a disk, or is there twice"));
            }
            names.push(name);
            if disk.blob.size == 0 || !disk.blob.size.is_multiple_of(512) || disk.blob.size > 1 << 46 {
                return fail(format!("the disk {name} has the impossible size {}", disk.blob.size));
            }
        }
        match &self.boot {
            ImageBoot::Kernel { kernel, initrd, append } => {
                let size = kernel.size.max(initrd.map_or(0, |initrd| initrd.size));
                if size > 1 << 32 || kernel.size == 0 {
                    return fail("its kernel or initrd has an impossible size".to_owned());
                }
                if append.len() > 2047 || append.contains(['\0', '\n']) {
                    return fail("its kernel command line is too long or has odd characters".to_owned());
                }
            }
            ImageBoot::Firmware { .. } if self.disks.is_empty() => {
                return fail("it boots from a disk and has none".to_owned());
            }
            ImageBoot::Firmware { .. } => {}
        }
        let texts = [Some(&self.description), self.default_user.as_ref()];
        let volumes = self.volumes.iter().chain(self.ports.iter().map(|port| &port.name));
        let labels = self.labels.iter().flat_map(|(name, value)| [name, value]);
        if texts
            .into_iter()
            .flatten()
            .chain(volumes)
            .chain(labels)
            .any(|text| text.chars().any(char::is_control))
        {
            return fail("a text in it has control characters".to_owned());
        }
        if self.volumes.iter().any(|volume| !volume.starts_with('/')) {
            return fail("a volume is no absolute path".to_owned());
        }
        Ok(())
    }

    /// All blobs that it names, each once.
    pub fn blobs(&self) -> Vec<Blob> {
        let mut blobs: Vec<Blob> = Vec::new();
        let boot = match &self.boot {
            ImageBoot::Kernel { kernel, initrd, .. } => vec![Some(*kernel), *initrd],
            ImageBoot::Firmware { .. } => Vec::new(),
        };
        for blob in boot.into_iter().flatten().chain(self.disks.iter().map(|disk| disk.blob)) {
            if !blobs.iter().any(|known| known.digest == blob.digest) {
                blobs.push(blob);
            }
        }
        blobs
    }
}

/// An image in a store, as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageView {
    /// Its names; none if it is only kept because instances need it.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub names: Vec<ImageName>,
    /// Its identity.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub digest: Digest,
    /// Size of its disks as guests see them.
    pub disk_bytes: u64,
    /// Bytes that its blobs take on the host; some may be shared with other images.
    pub stored_bytes: u64,
    /// Key IDs of those who signed it, as far as their keys are trusted here.
    pub signed_by: Vec<String>,
    /// Who needs it.
    pub pinned_by: Vec<String>,
    /// What it is.
    pub manifest: Manifest,
}

/// Body of the fuzz target: reads `data` as a manifest and as names.
pub fn fuzz(data: &[u8]) {
    if let Ok(manifest) = Manifest::parse(data) {
        assert_eq!(
            Manifest::parse(&manifest.to_bytes()).as_ref(),
            Ok(&manifest),
            "what is written reads back"
        );
        let _ = manifest.blobs();
    }
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(name) = text.parse::<ImageName>() {
            assert_eq!(name.to_string().parse().as_ref(), Ok(&name), "what is written reads back");
        }
        let _ = text.parse::<Digest>();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let blob = |byte: u8| Blob { digest: Digest([byte; 32]), size: 512 };
        Manifest {
            version: MANIFEST_VERSION,
            architecture: "x86_64".into(),
            description: "a test".into(),
            created_s: 1,
            boot: ImageBoot::Kernel {
                kernel: blob(1),
                initrd: Some(blob(2)),
                append: "root=/dev/vda".into(),
            },
            disks: vec![ImageDisk { name: "root".into(), blob: blob(1) }],
            minimum: Minimum { memory: Some(ByteSize(1 << 30)), disk: None },
            default_user: Some("root".into()),
            ports: vec![ImagePort { port: 22, name: "ssh".into() }],
            volumes: vec!["/srv".into()],
            personality: PersonalitySource::Agent,
            labels: [("a".to_owned(), "b".to_owned())].into(),
        }
    }

    #[test]
    fn manifests_are_written_and_read() {
        let manifest = manifest();
        assert_eq!(Manifest::parse(&manifest.to_bytes()), Ok(manifest.clone()));
        assert_eq!(manifest.blobs().len(), 2, "the same blob is counted once");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let with = |change: fn(&mut Manifest)| {
            let mut manifest = manifest();
            change(&mut manifest);
            Manifest::parse(&manifest.to_bytes()).expect_err("it cannot be").to_string()
        };
        type Change = fn(&mut Manifest);
        let cases: [(Change, &str); 8] = [
            (|m| m.version = 2, "version 2"),
            (|m| m.architecture = "mips".into(), "mips"),
            (|m| m.disks[0].name = "../../etc/passwd".into(), "no name for a disk"),
            (|m| m.disks.push(m.disks[0].clone()), "twice"),
            (|m| m.disks[0].blob.size = 511, "size 511"),
            (|m| m.disks[0].blob.size = u64::MAX - 511, "impossible size"),
            (|m| m.description = "\x1b[2J".into(), "control characters"),
            (|m| m.volumes[0] = "srv".into(), "absolute path"),
        ];
        for (change, about) in cases {
            let error = with(change);
            assert!(error.contains(about), "{about}: {error}");
        }
        assert!(Manifest::parse(b"{}").is_err());
        assert!(Manifest::parse(&vec![b' '; MANIFEST_LEN_MAX as usize + 1]).is_err());
    }

    #[test]
    fn names_are_read() {
        for (text, name) in [
            ("debian", Some("debian:latest")),
            ("debian:12", Some("debian:12")),
            ("team/web_1:v1.0-RC", Some("team/web_1:v1.0-RC")),
            ("", None),
            (":12", None),
            ("a:", None),
            ("Debian", None),
            ("../x", None),
            ("a//b", None),
            ("/a", None),
            ("a/../b", None),
            ("a:b:c", None),
            ("a b", None),
            ("a:.x", None),
        ] {
            assert_eq!(
                text.parse::<ImageName>().ok().map(|name| name.to_string()).as_deref(),
                name,
                "{text:?}"
            );
        }
    }

    #[test]
    fn mutated_manifests_are_handled() {
        let seed = manifest().to_bytes();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % n as u64) as usize
        };
        for _ in 0..5000 {
            let mut data = seed.clone();
            for _ in 0..1 + below(4) {
                let at = below(data.len());
                data[at] = [b'0', b'9', b'"', b'{', b'}', 0xff, b'-', below(256) as u8][below(8)];
            }
            fuzz(&data);
        }
    }
}
