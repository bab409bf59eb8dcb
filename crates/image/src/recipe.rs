//! Recipes: what an image is made of, as its author writes it.
//!
//! ```yaml
//! name: web:1
//! from: {image: "debian:12"}
//! files:
//!   - {path: /etc/motd, content: "hello\n"}
//!   - {path: /srv/site.tar, source: site.tar}
//! run:
//!   - apt-get update && apt-get install --yes nginx-light
//! ports: [{port: 80, name: http}]
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api::ByteSize;
use api::image::{ImageFirmware, ImageName, ImagePort, Minimum, PersonalitySource};
use serde::{Deserialize, Serialize};

use crate::error::AboutFile;
use crate::{Error, Result};

/// Longest recipe, in bytes.
const RECIPE_LEN_MAX: u64 = 1 << 20;
/// Size of a disk when the recipe names none.
const DISK_DEFAULT: ByteSize = ByteSize(4 << 30);

/// A recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// The image's name.
    pub name: ImageName,
    /// More names.
    #[serde(default)]
    pub aliases: Vec<ImageName>,
    /// A sentence for people.
    #[serde(default)]
    pub description: String,
    /// What it begins with.
    pub from: Base,
    /// Debian packages. Those of a base made of packages are installed while it is made, others in the
    /// virtual machine.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Size of its disk; the file on the host takes what is used. Default: 4G, or the base's.
    #[serde(default)]
    pub disk: Option<ByteSize>,
    /// Files to write, in the virtual machine, before the commands.
    #[serde(default)]
    pub files: Vec<RecipeFile>,
    /// Commands for `sh -eu -c`, in the virtual machine, as root, with the network.
    #[serde(default)]
    pub run: Vec<String>,
    /// What gives instances their identity. Default: what the base has, which is the agent where packages make it.
    #[serde(default)]
    pub personality: Option<RecipePersonality>,
    /// The firmware that boots it: the system then lies in a partition, with GRUB, as an appliance has it. Default: its
    /// kernel, which the host loads.
    #[serde(default)]
    pub firmware: Option<ImageFirmware>,
    /// More words for the kernel's command line.
    #[serde(default)]
    pub append: String,
    /// What an instance needs at least.
    #[serde(default)]
    pub minimum: Minimum,
    /// Who logs in when nobody is named.
    #[serde(default)]
    pub default_user: Option<String>,
    /// Ports that it serves.
    #[serde(default)]
    pub ports: Vec<ImagePort>,
    /// Folders that hold what is worth keeping.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Anything else.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What can give instances of an image their identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecipePersonality {
    /// `arnia-agent`.
    Agent,
    /// cloud-init, which has to be among the packages. The agent is there all the same, for commands and files.
    CloudInit,
}

impl From<RecipePersonality> for PersonalitySource {
    fn from(personality: RecipePersonality) -> PersonalitySource {
        match personality {
            RecipePersonality::Agent => PersonalitySource::Agent,
            RecipePersonality::CloudInit => PersonalitySource::CloudInit,
        }
    }
}

/// What an image begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Base {
    /// A release of Debian, from its packages.
    Debian(String),
    /// Another image of the store.
    Image(String),
}

/// A file of a recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeFile {
    /// Absolute path in the image.
    pub path: String,
    /// Its text; or else `source`.
    #[serde(default)]
    pub content: Option<String>,
    /// A file or folder beside the recipe that is copied; or else `content`.
    #[serde(default)]
    pub source: Option<PathBuf>,
    /// Permission bits, in octal digits as text: "0755".
    #[serde(default)]
    pub mode: Option<String>,
}

/// A recipe and the folder that its files are looked for in.
#[derive(Clone, Debug)]
pub struct RecipeSource {
    /// The recipe.
    pub recipe: Recipe,
    /// The folder.
    pub folder: PathBuf,
}

/// Recipes that this program brings along: name and text.
pub const BUILT_IN: &[(&str, &str)] = &[("debian", include_str!("../recipes/debian.yaml"))];

impl RecipeSource {
    /// Reads a recipe file, or one that this program brings along.
    ///
    /// # Errors
    /// If there is none, or it cannot be.
    pub fn read(what: &str) -> Result<RecipeSource> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(name, _)| *name == what) {
            return Ok(RecipeSource { recipe: Recipe::parse(text)?, folder: ".".into() });
        }
        let path = Path::new(what);
        let metadata = path.metadata().about("read the recipe", path).map_err(|error| {
            let known: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            error.with_remedy(format!(
                "name a file, or one of the recipes that come along: {}",
                known.join(", ")
            ))
        })?;
        if metadata.len() > RECIPE_LEN_MAX {
            return Err(Error::bad_input(format!("{what} is too long for a recipe")));
        }
        let text = std::fs::read_to_string(path).about("read the recipe", path)?;
        let recipe = Recipe::parse(&text)
            .map_err(|error| Error::bad_input(format!("{what} is no recipe")).with_source(error))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(RecipeSource { recipe, folder: folder.to_owned() })
    }

    /// Whether the program brings a recipe of this name along.
    pub fn is_built_in(name: &str) -> bool {
        BUILT_IN.iter().any(|(known, _)| *known == name)
    }

    /// A recipe that this program brings along, or the text of one; no file is read.
    ///
    /// # Errors
    /// If the text is none, or names files beside itself.
    pub fn from_text(text: &str) -> Result<RecipeSource> {
        if RecipeSource::is_built_in(text) {
            return RecipeSource::read(text);
        }
        if text.len() as u64 > RECIPE_LEN_MAX {
            return Err(Error::bad_input("this is too long for a recipe"));
        }
        let recipe = Recipe::parse(text).map_err(|error| {
            let known: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            let remedy = format!("give the text of a recipe, or one that comes along: {}", known.join(", "));
            Error::bad_input("this is no recipe").with_source(error).with_remedy(remedy)
        })?;
        if let Some(file) = recipe.files.iter().find(|file| file.source.is_some()) {
            let text = format!("{} is to be copied from a file, and there are none beside a text", file.path);
            return Err(Error::bad_input(text).with_remedy("build it with `arnia image build FILE`"));
        }
        Ok(RecipeSource { recipe, folder: ".".into() })
    }

    /// A file beside the recipe.
    pub(crate) fn file(&self, source: &Path) -> PathBuf {
        self.folder.join(source)
    }
}

impl Recipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn parse(text: &str) -> Result<Recipe> {
        let recipe: Recipe = serde_saphyr::from_str(text)
            .map_err(|error| Error::bad_input(error.to_string().trim().to_owned()))?;
        recipe.check()?;
        Ok(recipe)
    }

    /// Size of the disk.
    pub(crate) fn disk_size(&self) -> ByteSize {
        self.disk.unwrap_or(DISK_DEFAULT)
    }

    fn check(&self) -> Result<()> {
        let fail = |text: String| Err(Error::bad_input(text));
        // Words of Debian's names only: they become arguments of programs.
        let word = |text: &str| {
            let good =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.:".contains(&byte);
            text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric()) && text.bytes().all(good)
        };
        if let Base::Debian(release) = &self.from
            && !word(release)
        {
            return fail(format!("{release:?} is no Debian release, such as bookworm"));
        }
        if let Some(package) = self.packages.iter().find(|package| !word(package)) {
            return fail(format!("{package:?} is no name of a Debian package"));
        }
        if self.personality == Some(RecipePersonality::CloudInit)
            && matches!(self.from, Base::Debian(_))
            && !self.packages.iter().any(|package| package == "cloud-init")
        {
            return fail("`personality: cloud-init` needs the package cloud-init".to_owned());
        }
        if self
            .disk
            .is_some_and(|size| !(64 << 20..=16 << 40).contains(&size.0) || !size.0.is_multiple_of(1 << 20))
        {
            return fail("the disk's size must be whole MiB between 64M and 16T".to_owned());
        }
        for file in &self.files {
            if !file.path.starts_with('/') || file.path.contains('\0') {
                return fail(format!("{:?} is no absolute path for a file", file.path));
            }
            if file.content.is_some() == file.source.is_some() {
                return fail(format!("{} needs either `content` or `source`", file.path));
            }
            file.mode_bits()?;
        }
        // Neither the shell nor GRUB makes something else of these.
        let plain = |c: char| c.is_ascii_alphanumeric() || " _-=.,:/@+%".contains(c);
        if self.firmware.is_some() && !self.append.chars().all(plain) {
            return fail("with `firmware`, `append` has letters, digits and _-=.,:/@+% only".to_owned());
        }
        if self.firmware.is_some() && self.disk.is_some_and(|size| size.0 < 512 << 20) {
            return fail("a disk for firmware has 512M at least".to_owned());
        }
        if self.append.contains(['\n', '\0']) || self.append.len() > 1024 {
            return fail("`append` is too long or has odd characters".to_owned());
        }
        Ok(())
    }
}

impl RecipeFile {
    /// Its permission bits, if it has any.
    pub(crate) fn mode_bits(&self) -> Result<Option<u32>> {
        let Some(mode) = &self.mode else { return Ok(None) };
        match u32::from_str_radix(mode, 8) {
            Ok(bits) if bits <= 0o7777 => Ok(Some(bits)),
            _ => Err(Error::bad_input(format!(
                "the mode {mode:?} of {} is no octal number like \"0755\"",
                self.path
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_that_come_along_are_good() {
        for (name, _) in BUILT_IN {
            let source = RecipeSource::read(name).unwrap();
            assert_eq!(source.recipe.name.name(), *name);
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let good = "name: web:1\nfrom: {image: debian}\n";
        Recipe::parse(good).unwrap();
        for (text, about) in [
            ("", ""),
            ("name: Web\nfrom: {image: debian}", "image name"),
            ("name: web", "from"),
            ("name: web\nfrom: {debian: bookworm}\npersonality: cloud-init", "package cloud-init"),
            (&format!("{good}personality: cloud_init"), "cloud-init"),
            ("name: web\nfrom: {debian: --x}", "release"),
            (&format!("{good}packages: ['a;b']"), "package"),
            (&format!("{good}packages: ['-y']"), "package"),
            (&format!("{good}disk: 1K"), "size"),
            (&format!("{good}cmd: x"), "cmd"),
            (&format!("{good}firmware: coreboot"), "firmware"),
            (&format!("{good}firmware: bios\nappend: \"a'b\""), "letters"),
            (&format!("{good}firmware: uefi\nappend: $(x)"), "letters"),
            (&format!("{good}firmware: uefi\ndisk: 64M"), "512M"),
            (&format!("{good}files: [{{path: etc, content: x}}]"), "absolute"),
            (&format!("{good}files: [{{path: /etc/x}}]"), "either"),
            (&format!("{good}files: [{{path: /etc/x, content: a, mode: '999'}}]"), "octal"),
        ] {
            let error = Recipe::parse(text).expect_err(text).to_string();
            assert!(error.contains(about), "{text}: {error}");
        }
    }
}
