//! Building images by recipe.
//!
//! ```text
//! recipe ── base layer ──────────────────── machine layer ──────────── loader layer ────── manifest, names
//!           Debian: mmdebstrap, mke2fs       files and commands, in a     for firmware: GRUB
//!           or another image                 virtual machine with agent   on another disk
//! ```
//!
//! A layer is a [`Layer`]: a disk and what boots it. Each has a key made of everything that it depends on;
//! the store remembers what a key led to, so that a build begins at the first layer that is new. Nothing of
//! the recipe runs on the host but Debian's own package tools, in their sandbox.

mod debian;
mod loader;
mod machine;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use api::image::{
    Blob, Digest, ImageBoot, ImageDisk, ImageFirmware, MANIFEST_VERSION, Manifest, PersonalitySource,
};
use serde::{Deserialize, Serialize};

use crate::error::AboutFile;
use crate::files;
use crate::progress::{Progress, Silent};
use crate::recipe::{Base, RecipeSource};
use crate::{Error, Result, Session, Store};

pub use crate::tools::{MissingTools, missing_tools};

/// Counts changes of the code here that make another image from the same recipe.
const BUILDER_REVISION: u32 = 1;

/// The programs that a build uses.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The worker, `arnia-vmm`.
    pub worker: PathBuf,
    /// The agent, `arnia-agent`: a static program.
    pub agent: PathBuf,
}

/// How a build is done.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Make all layers anew.
    pub no_cache: bool,
    /// vCPUs of the virtual machine; 0 is one.
    pub cpus: u32,
}

/// What a layer of a build is: a disk and what boots it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Layer {
    kernel: Blob,
    initrd: Option<Blob>,
    append: String,
    disk: Blob,
    personality: PersonalitySource,
    /// What boots the disk; the kernel where nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    firmware: Option<ImageFirmware>,
}

/// Builds an image and gives it its names. Returns its digest.
///
/// # Errors
/// If the recipe, a tool or a command in it fails. The store has what it had before, and the layers that
/// were finished.
pub fn build(
    store: &Store,
    source: &RecipeSource,
    programs: &Programs,
    options: &BuildOptions,
    progress: &mut dyn Progress,
) -> Result<Digest> {
    let session = store.session()?;
    let recipe = &source.recipe;
    let mut layer = base(&session, source, programs, options, progress)?;
    if machine::is_needed(recipe) {
        let key = machine::key(source, &layer)?;
        layer = cached(&session, &key, options, progress, &mut |progress| {
            machine::build(&session, source, &layer, programs, options, progress)
        })?;
    }
    if let Some(firmware) = recipe.firmware {
        let key = loader::key(firmware, &recipe.append, &layer);
        layer = cached(&session, &key, options, progress, &mut |progress| {
            loader::build(&session, (firmware, &recipe.append), &layer, programs, options, progress)
        })?;
    }
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        architecture: "x86_64".into(),
        description: recipe.description.clone(),
        created_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        boot: boot(&layer, &recipe.append),
        disks: vec![ImageDisk { name: "root".into(), blob: layer.disk }],
        minimum: recipe.minimum,
        default_user: recipe.default_user.clone(),
        ports: recipe.ports.clone(),
        volumes: recipe.volumes.clone(),
        personality: recipe.personality.map_or(layer.personality, Into::into),
        labels: recipe.labels.clone(),
    };
    // The same recipe and the same layers are the same image, whenever that was.
    let key =
        Key::new("manifest").text(&format!("{:?}", Manifest { created_s: 0, ..manifest.clone() })).finish();
    let known =
        store.cached::<Digest>(&key).filter(|known| !options.no_cache && store.manifest(*known).is_ok());
    let digest = match known {
        Some(digest) => digest,
        None => session.add_manifest(&manifest)?,
    };
    session.cache(&key, &digest)?;
    for name in std::iter::once(&recipe.name).chain(&recipe.aliases) {
        session.set_name(name, digest)?;
    }
    Ok(digest)
}

/// What boots a layer; `append` has more words for its kernel.
fn boot(layer: &Layer, append: &str) -> ImageBoot {
    match layer.firmware {
        Some(firmware) => ImageBoot::Firmware { firmware },
        None => ImageBoot::Kernel {
            kernel: layer.kernel,
            initrd: layer.initrd,
            append: [layer.append.as_str(), append].join(" ").trim().to_owned(),
        },
    }
}

fn base(
    session: &Session<'_>,
    source: &RecipeSource,
    programs: &Programs,
    options: &BuildOptions,
    progress: &mut dyn Progress,
) -> Result<Layer> {
    match &source.recipe.from {
        Base::Debian(release) => {
            let key = debian::key(release, &source.recipe, programs)?;
            cached(session, &key, options, progress, &mut |progress| {
                debian::build(session, release, &source.recipe, programs, progress)
            })
        }
        Base::Image(name) => {
            let manifest = session.store().manifest(session.store().resolve(name)?)?;
            let ImageBoot::Kernel { kernel, initrd, append } = manifest.boot else {
                return Err(Error::bad_input(format!(
                    "{name} boots by firmware; recipes begin with images that boot by a kernel"
                )));
            };
            let Some(disk) = manifest.disks.first().filter(|_| manifest.disks.len() == 1) else {
                return Err(Error::bad_input(format!(
                    "{name} has not exactly one disk; recipes begin with such images"
                )));
            };
            Ok(Layer {
                kernel,
                initrd,
                append,
                disk: disk.blob,
                personality: manifest.personality,
                firmware: None,
            })
        }
    }
}

/// The layer of this key: remembered, or made now.
fn cached(
    session: &Session<'_>,
    key: &str,
    options: &BuildOptions,
    progress: &mut dyn Progress,
    make: &mut dyn FnMut(&mut dyn Progress) -> Result<Layer>,
) -> Result<Layer> {
    if !options.no_cache
        && let Some(layer) = session.store().cached::<Layer>(key)
        && layer.blobs().all(|blob| session.store().has_blob(&blob))
    {
        progress.begin("using what the last build left", None);
        return Ok(layer);
    }
    let layer = make(progress)?;
    session.cache(key, &layer)?;
    Ok(layer)
}

impl Layer {
    fn blobs(&self) -> impl Iterator<Item = Blob> {
        [Some(self.kernel), self.initrd, Some(self.disk)].into_iter().flatten()
    }
}

/// The key of a layer: a digest over all that it depends on.
struct Key(blake3::Hasher);

impl Key {
    fn new(kind: &str) -> Key {
        Key(blake3::Hasher::new()).text(kind).text(&BUILDER_REVISION.to_string())
    }

    fn text(self, text: &str) -> Key {
        self.bytes(text.as_bytes())
    }

    fn bytes(mut self, bytes: &[u8]) -> Key {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// A file's contents, or a folder's with its names.
    fn file(mut self, path: &Path) -> Result<Key> {
        let metadata = path.symlink_metadata().about("read", path)?;
        if metadata.is_dir() {
            let mut names = fs::read_dir(path)
                .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
                .about("read", path)?;
            names.sort_by_key(fs::DirEntry::file_name);
            self = self.text("folder");
            for entry in names {
                self = self.text(&entry.file_name().to_string_lossy()).file(&entry.path())?;
            }
            return Ok(self.text("end"));
        }
        if metadata.is_symlink() {
            let target = fs::read_link(path).about("read", path)?;
            return Ok(self.text(&target.to_string_lossy()));
        }
        let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions());
        let blob = files::digest(path, &mut Silent)?;
        Ok(self.text(&mode.to_string()).bytes(&blob.digest.0))
    }

    fn finish(self) -> String {
        Digest(*self.0.finalize().as_bytes()).hex()
    }
}
