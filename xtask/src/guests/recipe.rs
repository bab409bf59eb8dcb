//! Recipes: folders of small files that say how a guest is made.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Counts changes of the code here that make another artifact from the same recipe.
const BUILDER_REVISION: u32 = 1;

/// One recipe folder, with a hash over all that it says.
pub(crate) struct Recipe {
    folder: PathBuf,
    hash: String,
}

impl Recipe {
    /// Reads a recipe folder.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut hasher = Sha256::new();
        hasher.update(BUILDER_REVISION.to_le_bytes());
        for file in files_below(folder)? {
            let contents = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let name = file.strip_prefix(folder)?.to_string_lossy().into_owned();
            for part in [name.as_bytes(), &contents] {
                hasher.update((part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
        }
        Ok(Self { folder: folder.to_owned(), hash: hex(&hasher.finalize())[..16].to_owned() })
    }

    /// A short name for exactly this recipe.
    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }

    /// A file of the recipe.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The words of a list file, which has one on each line and comments behind `#`.
    pub(crate) fn list(&self, name: &str) -> Result<Vec<String>> {
        let path = self.file(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let words = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        Ok(words.filter(|word| !word.is_empty()).map(str::to_owned).collect())
    }
}

/// A name for an artifact made by this recipe from these versions of packages.
pub(crate) fn artifact_name(kind: &str, recipe: &Recipe, versions: &[&str]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(recipe.hash());
    for version in versions {
        hasher.update([0]);
        hasher.update(version);
    }
    format!("{kind}-{}", &hex(&hasher.finalize())[..16])
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_contents_and_versions() {
        let folder = std::env::temp_dir().join(format!("arnia-recipe-test-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("temporary folder");
        let write = |text: &str| fs::write(folder.join("list"), text).expect("temporary file");

        write("# what\none\n\n two # why\n");
        let first = Recipe::read(&folder).expect("readable recipe");
        assert_eq!(first.list("list").expect("readable list"), ["one", "two"]);
        assert_eq!(Recipe::read(&folder).expect("readable recipe").hash(), first.hash());
        write("one\ntwo\nthree\n");
        assert_ne!(Recipe::read(&folder).expect("readable recipe").hash(), first.hash());

        let name = |versions: &[&str]| artifact_name("disk", &first, versions);
        assert_ne!(name(&["1"]), name(&["2"]));
        assert_ne!(name(&["1", "2"]), name(&["12"]));
        fs::remove_dir_all(&folder).expect("temporary folder");
    }
}
