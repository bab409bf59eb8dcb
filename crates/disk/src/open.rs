//! Finding out what a file is, and opening it with everything behind it.

use crate::file::HostFile;
use crate::mapped::Mapped;
use crate::qcow2::{Backing, Qcow2, Qcow2Info};
use crate::raw::Raw;
use crate::{Access, Disk, Error, ErrorKind, Operation, SECTOR_SIZE};
use crate::{vdi, vhd, vhdx, vmdk};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// So many bytes from the beginning of a file tell its format.
pub(crate) const PROBE_LEN: usize = 512;
/// More images than this are not stacked.
const CHAIN_MAX: usize = 64;
/// Where it is remembered that a file is raw: a guest can write anything into it, also what looks like
/// another format.
const RAW_MARK: &str = "user.arnia.format";

/// The format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes as they are, in a file or on a block device.
    Raw,
    /// QEMU's, versions 2 and 3.
    Qcow2,
    /// VMware's: sparse, stream-optimised and flat.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Virtual PC's, also of Hyper-V and Azure: fixed, dynamic and differencing. Fixed ones are not told from
    /// raw ones by their first bytes.
    Vhd,
    /// Hyper-V's.
    Vhdx,
}

impl Format {
    /// All formats, in the order in which help texts name them.
    pub const ALL: &'static [Format] =
        &[Format::Raw, Format::Qcow2, Format::Vmdk, Format::Vdi, Format::Vhd, Format::Vhdx];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Vmdk => "vmdk",
            Format::Vdi => "vdi",
            Format::Vhd => "vhd",
            Format::Vhdx => "vhdx",
        }
    }

    /// The format that a file's name suggests; raw for endings that suggest none.
    pub fn of_name(path: &Path) -> Format {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        // What others call it.
        if ending.as_deref() == Some("vpc") {
            return Format::Vhd;
        }
        let named = |format: &&Format| Some(format.name()) == ending.as_deref();
        Format::ALL.iter().find(named).copied().unwrap_or(Format::Raw)
    }

    /// What the first bytes of a file say; `None` for raw.
    pub(crate) fn of_header(head: &[u8]) -> Option<Format> {
        let is_vdi = || crate::bytes::le32(head, vdi::SIGNATURE_AT) == vdi::SIGNATURE;
        match head {
            _ if head.starts_with(b"QFI\xfb") => Some(Format::Qcow2),
            _ if head.starts_with(vmdk::SPARSE_MAGIC) || head.starts_with(vmdk::DESCRIPTOR_MAGIC) => {
                Some(Format::Vmdk)
            }
            _ if head.starts_with(vhdx::FILE_SIGNATURE) => Some(Format::Vhdx),
            _ if head.starts_with(vhd::FOOTER_COOKIE) => Some(Format::Vhd),
            _ if is_vdi() => Some(Format::Vdi),
            _ => None,
        }
    }

    /// Finds out what an open file is.
    ///
    /// What has no known header is raw. Since a guest writes the bytes of a raw disk, it could make the
    /// next one who judges by them take it for another format, and have the host read files that the
    /// image names. Against that: a raw file that was opened to be written is marked as raw (by an
    /// extended attribute, where the host has them), and a disk whose format was only guessed refuses
    /// writes that would make it look like something else.
    pub(crate) fn probe(file: &HostFile) -> Result<Format, Error> {
        if is_marked_raw(file) {
            return Ok(Format::Raw);
        }
        let mut head = [0; PROBE_LEN];
        file.read_padded(0, &mut head, Operation::Open)?;
        Ok(Format::of_header(&head).unwrap_or(Format::Raw))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        Format::ALL.iter().copied().find(|format| format.name() == text).ok_or_else(|| {
            let names: Vec<_> = Format::ALL.iter().map(|format| format.name()).collect();
            format!("unknown disk format {text:?}; there are {}", names.join(", "))
        })
    }
}

fn is_marked_raw(file: &HostFile) -> bool {
    let mut value = [0; 8];
    matches!(rustix::fs::fgetxattr(file.file(), RAW_MARK, &mut value[..]), Ok(3) if value.starts_with(b"raw"))
}

fn mark_raw(file: &HostFile) {
    // Best effort: the guard of guessed disks does not need it.
    let _ = rustix::fs::fsetxattr(file.file(), RAW_MARK, b"raw", rustix::fs::XattrFlags::empty());
}

/// Which files an image may name. Images come from anywhere; a name in one must not make the host read
/// a file that its user never meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingPolicy {
    /// Whether files in the folder of the image itself, and below, may be used.
    beside_image: bool,
    /// Folders whose files may be used, and files.
    allowed: Vec<PathBuf>,
}

impl BackingPolicy {
    /// No other file at all: for images of unknown origin.
    pub fn none() -> BackingPolicy {
        BackingPolicy { beside_image: false, allowed: Vec::new() }
    }

    /// Files in the folder of the image that names them, and below it.
    pub fn beside_image() -> BackingPolicy {
        BackingPolicy { beside_image: true, allowed: Vec::new() }
    }

    /// Also this file, or the files in this folder and below.
    pub fn and(mut self, path: impl Into<PathBuf>) -> BackingPolicy {
        self.allowed.push(path.into());
        self
    }

    /// The file that `image` names, if it may be used.
    pub(crate) fn resolve(&self, image: &Path, name: &str) -> Result<PathBuf, Error> {
        let fault = |kind, why: String| {
            Error::new(kind, Operation::Open)
                .with_path(image)
                .with_detail(format!("it is based on {name:?}, {why}"))
        };
        // QEMU knows names like nbd://host or json:{…}; a path of that kind is written ./a:b.
        if name.split('/').next().is_some_and(|first| first.contains(':')) {
            return Err(fault(
                ErrorKind::Forbidden,
                "which is not the name of a file; only files are used".into(),
            ));
        }
        let folder = match image.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let path = folder.join(name);
        // Links and `..` are followed first: what counts is where the file is.
        let real = path.canonicalize().map_err(|error| {
            fault(
                ErrorKind::NotFound,
                format!("which cannot be found ({error}); put it there, or rebase the image"),
            )
        })?;
        let is_within =
            |allowed: &Path| allowed.canonicalize().is_ok_and(|allowed| real.starts_with(allowed));
        let beside = self.beside_image && is_within(folder);
        if beside || self.allowed.iter().any(|allowed| is_within(allowed)) {
            return Ok(path);
        }
        Err(fault(
            ErrorKind::Forbidden,
            format!(
                "which lies outside the folders that may be used; if you trust the image, allow {}",
                real.parent().unwrap_or(&real).display()
            ),
        ))
    }
}

/// How an image is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// To read, or to write too.
    pub access: Access,
    /// Its format; `None` to find out.
    pub format: Option<Format>,
    /// Which files it may name.
    pub policy: BackingPolicy,
    /// The internal snapshot to open instead of the present state.
    pub snapshot: Option<String>,
    /// Whether files behind it are opened; without them only what is stored in the image itself can be
    /// looked at.
    pub with_backing: bool,
}

impl OpenOptions {
    /// To be read, in whatever format, with files beside it.
    pub fn new(access: Access) -> OpenOptions {
        OpenOptions {
            access,
            format: None,
            policy: BackingPolicy::beside_image(),
            snapshot: None,
            with_backing: true,
        }
    }
}

/// An image that is open.
#[derive(Clone)]
pub struct Image {
    /// The disk in it.
    pub disk: Arc<dyn Disk>,
    /// Its format.
    pub format: Format,
    /// The file.
    pub path: PathBuf,
    /// The image itself, if it is a qcow2.
    pub qcow2: Option<Arc<Qcow2>>,
    /// The files behind it, nearest first.
    pub chain: Vec<PathBuf>,
    /// The image that a qcow2 stands on.
    pub(crate) below: Option<Arc<Image>>,
}

impl Image {
    /// Opens an image and what is behind it. Backing files are opened to be read, and locked like that.
    ///
    /// # Errors
    /// As the files, or [`ErrorKind::Forbidden`] for a backing file that may not be used.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Image, Error> {
        open_link(path.as_ref(), options, &mut Vec::new())
    }
}

/// Opens one image of a chain; `seen` are the files that were opened on the way here.
fn open_link(path: &Path, options: &OpenOptions, seen: &mut Vec<(u64, u64)>) -> Result<Image, Error> {
    let file = HostFile::open(path, options.access)?;
    let identity = file.identity()?;
    if seen.contains(&identity) {
        return Err(file.damaged(Operation::Open, "it is based on itself"));
    }
    seen.push(identity);
    if seen.len() > CHAIN_MAX {
        return Err(file.damaged(Operation::Open, format!("it stands on more than {CHAIN_MAX} images")));
    }
    let (format, is_guessed) = match options.format {
        Some(format) => (format, false),
        None => (Format::probe(&file)?, true),
    };
    let unsupported =
        |why: &str| Err(Error::new(ErrorKind::Unsupported, Operation::Open).with_path(path).with_detail(why));
    let mut chain = Vec::new();
    let image = |disk: Arc<dyn Disk>, chain| Image {
        disk,
        format,
        path: path.to_owned(),
        qcow2: None,
        chain,
        below: None,
    };
    Ok(match format {
        Format::Raw => {
            if options.snapshot.is_some() {
                return unsupported("a raw disk has no snapshots");
            }
            if file.is_writable() && !is_guessed {
                mark_raw(&file);
            }
            let raw = Raw::new(file)?;
            image(Arc::new(if is_guessed { raw.guarding_header() } else { raw }), chain)
        }
        Format::Qcow2 => {
            if options.snapshot.is_some() && options.access == Access::ReadWrite {
                return unsupported(
                    "an internal snapshot can only be read; add `ro`, or convert it to an image",
                );
            }
            let info = Qcow2::read_info(&file)?;
            let below = match info.backing.filter(|_| options.with_backing) {
                None => None,
                Some(backing) => {
                    let below = open_backing(path, &backing.name, backing.format.as_deref(), options, seen)?;
                    chain.push(below.path.clone());
                    chain.extend(below.chain.iter().cloned());
                    Some(Arc::new(below))
                }
            };
            let backing = below.as_ref().map(|below| below.disk.clone());
            let qcow2 = Arc::new(Qcow2::open(file, backing, options.snapshot.as_deref())?);
            Image { qcow2: Some(qcow2.clone()), below, ..image(qcow2, chain) }
        }
        _ if options.snapshot.is_some() => return unsupported("snapshots are read from qcow2 images only"),
        _ if options.access == Access::ReadWrite => {
            return unsupported(
                "images of this format are only read: add `ro`, put an overlay on it (arnia disk overlay), or \
                 convert it to qcow2",
            );
        }
        Format::Vdi => image(mapped(Box::new(vdi::parse(&file)?), vec![file], None), chain),
        Format::Vhdx => image(mapped(Box::new(vhdx::parse(&file)?), vec![file], None), chain),
        Format::Vhd => {
            let vhd = vhd::parse(&file)?;
            let below = match vhd.below.filter(|_| options.with_backing) {
                None => None,
                Some((names, identity)) => {
                    let below = open_vhd_below(path, &names, identity, options, seen)?;
                    chain.push(below.path.clone());
                    chain.extend(below.chain);
                    Some(below.disk)
                }
            };
            image(mapped(vhd.layout, vec![file], below), chain)
        }
        Format::Vmdk => {
            let (vmdk, files, _) = vmdk::parse(file, &mut |name| open_extent(path, name, &options.policy))?;
            chain.extend(files[1..].iter().map(|file| file.path().to_owned()));
            image(mapped(Box::new(vmdk), files, None), chain)
        }
    })
}

fn mapped(
    layout: Box<dyn crate::mapped::Layout>,
    files: Vec<HostFile>,
    below: Option<Arc<dyn Disk>>,
) -> Arc<dyn Disk> {
    Arc::new(Mapped { layout, files, below })
}

fn open_extent(image: &Path, name: &str, policy: &BackingPolicy) -> Result<HostFile, Error> {
    HostFile::open(&policy.resolve(image, name)?, Access::ReadOnly)
}

/// Opens the image below a differencing VHD: the first of its names that is there, if it is the same image
/// that the differences were made against.
fn open_vhd_below(
    image: &Path,
    names: &[String],
    identity: [u8; 16],
    options: &OpenOptions,
    seen: &mut Vec<(u64, u64)>,
) -> Result<Image, Error> {
    let mut last = None;
    for name in names {
        match options.policy.resolve(image, name) {
            Err(error) => last = Some(error),
            Ok(path) => {
                if vhd::identity(&HostFile::open(&path, Access::ReadOnly)?)? != identity {
                    return Err(Error::new(ErrorKind::BadFormat, Operation::Open)
                        .with_path(image)
                        .with_detail(format!(
                            "it stands on another image than {name:?}, which has its name"
                        )));
                }
                let options = OpenOptions { format: Some(Format::Vhd), ..options.clone() };
                return open_link(&path, &options, seen);
            }
        }
    }
    Err(last.unwrap_or_else(|| {
        Error::new(ErrorKind::BadFormat, Operation::Open)
            .with_path(image)
            .with_detail("it stands on another image and does not say which")
    }))
}

/// Opens what `image` stands on, as the user would.
pub(crate) fn open_at(image: &Path, backing: &Backing, options: &OpenOptions) -> Result<Image, Error> {
    let path = options.policy.resolve(image, &backing.name)?;
    let format = backing.format.as_deref().map(|name| parse_format(image, name)).transpose()?;
    Image::open(path, &OpenOptions { format, snapshot: None, ..options.clone() })
}

fn parse_format(image: &Path, name: &str) -> Result<Format, Error> {
    name.parse().map_err(|why: String| {
        Error::new(ErrorKind::Unsupported, Operation::Open).with_path(image).with_detail(why)
    })
}

fn open_backing(
    image: &Path,
    name: &str,
    format: Option<&str>,
    options: &OpenOptions,
    seen: &mut Vec<(u64, u64)>,
) -> Result<Image, Error> {
    let path = options.policy.resolve(image, name)?;
    // An image that does not say the format of what it stands on may be older than the rule that it
    // must; what is found there is then judged by its header. It is only ever read.
    let format = format.map(|name| parse_format(image, name)).transpose()?;
    let options = OpenOptions { access: Access::ReadOnly, format, snapshot: None, ..options.clone() };
    open_link(&path, &options, seen).map_err(|error| match error.kind() {
        ErrorKind::LockedByOther => error.with_detail(
            "another image is based on it and something writes to it now; end that, or give this one a copy",
        ),
        _ => error,
    })
}

/// Facts about an image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Size of the disk in bytes.
    pub size: u64,
    /// How many bytes the file occupies on the host.
    pub allocated: u64,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// More about a qcow2 image.
    pub qcow2: Option<Qcow2Info>,
    /// Which kind of its format it is, where there are several.
    pub kind: Option<String>,
}

impl ImageInfo {
    /// The image that it stands on, as it names it.
    pub fn backing(&self) -> Option<Backing> {
        self.qcow2.as_ref().and_then(|qcow2| qcow2.backing.clone())
    }

    /// What else there is to tell: names and values for people.
    pub fn details(&self) -> Vec<(String, String)> {
        let mut details = Vec::new();
        let mut tell = |name: &str, value: String| details.push((name.to_owned(), value));
        if let Some(kind) = self.kind.as_ref().filter(|kind| !kind.is_empty()) {
            tell("Kind", kind.clone());
        }
        if let Some(qcow2) = &self.qcow2 {
            tell("Version", qcow2.version.to_string());
            tell("Cluster size", format!("{} bytes", qcow2.cluster_size));
            tell("Reference counts", format!("{} bits", qcow2.refcount_bits));
            tell("Compression", qcow2.compression.to_string());
            if qcow2.lazy_refcounts {
                tell("Lazy refcounts", "yes".into());
            }
            if qcow2.is_dirty {
                tell(
                    "State",
                    "not closed properly: it is repaired when it is next opened to be written".into(),
                );
            }
            if qcow2.is_corrupt {
                tell("State", "marked as corrupt: look at it with `arnia disk check`".into());
            }
        }
        details
    }

    /// Reads what an image is; nothing behind it is opened. One that is in use can be looked at, too.
    ///
    /// # Errors
    /// As the file.
    pub fn read(path: impl AsRef<Path>, format: Option<Format>) -> Result<ImageInfo, Error> {
        let path = path.as_ref();
        let file = HostFile::open_unlocked(path)?;
        let format = match format {
            Some(format) => format,
            None => Format::probe(&file)?,
        };
        use crate::mapped::Layout;
        let (allocated, file_len) = (file.allocated()?, file.len()?);
        let mut info = ImageInfo {
            path: path.to_owned(),
            format,
            size: 0,
            allocated,
            file_len,
            qcow2: None,
            kind: None,
        };
        match format {
            Format::Raw => info.size = file_len.next_multiple_of(SECTOR_SIZE),
            Format::Qcow2 => {
                let (size, qcow2) = Qcow2::read_size_and_info(&file)?;
                (info.size, info.qcow2) = (size, Some(qcow2));
            }
            Format::Vdi => info.size = vdi::parse(&file)?.size(),
            Format::Vhdx => info.size = vhdx::parse(&file)?.size(),
            Format::Vhd => {
                let vhd = vhd::parse(&file)?;
                (info.size, info.kind) = (vhd.layout.size(), Some(vhd.kind.into()));
            }
            Format::Vmdk => {
                let policy = BackingPolicy::beside_image();
                let (vmdk, _, kind) = vmdk::parse(file, &mut |name| open_extent(path, name, &policy))?;
                (info.size, info.kind) = (vmdk.size(), Some(kind));
            }
        }
        Ok(info)
    }
}
