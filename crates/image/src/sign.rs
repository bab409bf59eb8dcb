//! Signatures of images, in the form of minisign (Ed25519): its keys and signature files are ours too.
//!
//! What is signed is the manifest's bytes; those name everything else by digest.

use std::fs;
use std::io::{self, Cursor};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use api::image::Digest;
use minisign::{KeyPair, PublicKey, PublicKeyBox, SecretKey, SecretKeyBox, SignatureBox};

use crate::error::AboutFile;
use crate::{Error, ErrorKind, Result, Store};

/// Longest key file, in bytes.
const KEY_LEN_MAX: u64 = 4096;

/// A public key.
#[derive(Clone)]
pub struct TrustedKey {
    key: PublicKey,
    /// Where it was read.
    pub path: PathBuf,
}

impl std::fmt::Debug for TrustedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TrustedKey({})", self.id())
    }
}

/// The ID of a key as minisign writes it: its number, most significant byte first.
fn id(number: &[u8]) -> String {
    number.iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

impl TrustedKey {
    /// Reads a key file.
    ///
    /// # Errors
    /// If it is none.
    pub fn read(path: &Path) -> Result<TrustedKey> {
        let key = parse(&read_small(path)?).map_err(|error| not_a_key(path, "public key", error))?;
        Ok(TrustedKey { key, path: path.to_owned() })
    }

    /// The key in the text of a key file.
    ///
    /// # Errors
    /// If it is none.
    pub fn from_text(text: &str) -> Result<TrustedKey> {
        let none = || Error::bad_input("this text is no public key that can be used");
        if text.len() as u64 > KEY_LEN_MAX {
            return Err(none());
        }
        let key = parse(text).map_err(|error| none().with_source(error))?;
        Ok(TrustedKey { key, path: PathBuf::new() })
    }

    /// The text of a key file with it.
    pub fn to_text(&self) -> String {
        self.key.to_base64()
    }

    /// Its ID.
    pub fn id(&self) -> String {
        id(self.key.keynum())
    }

    /// All keys that this user trusts: the files that end in `.pub` in a folder. No folder, no keys.
    ///
    /// # Errors
    /// If one of them is no key, or the folder is there and cannot be read: it might be the one that counts,
    /// and without any key unsigned images would be taken.
    pub fn all(folder: &Path) -> Result<Vec<TrustedKey>> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.about("read", folder)?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.about("read", folder)?.path());
        }
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "pub"));
        paths.sort();
        paths.iter().map(|path| TrustedKey::read(path)).collect()
    }

    /// The folder of this user's trusted keys.
    pub fn default_folder() -> PathBuf {
        let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".config");
        config.unwrap_or_else(home).join("arnia/trusted-keys")
    }

    /// Whether a signature of these bytes is by this key.
    pub fn signed(&self, bytes: &[u8], signature: &str) -> bool {
        let Ok(signature) = SignatureBox::from_string(signature) else { return false };
        minisign::verify(&self.key, &signature, Cursor::new(bytes), true, false, false).is_ok()
    }
}

/// A key with or without the comment line.
fn parse(text: &str) -> std::result::Result<PublicKey, minisign::PError> {
    let boxed = PublicKeyBox::from_string(text).and_then(PublicKeyBox::into_public_key);
    boxed.or_else(|_| PublicKey::from_base64(text.trim()))
}

/// Makes a key pair: `PATH` with the secret key, readable by its owner only, and `PATH.pub`. Neither may
/// exist. Without a password the file itself is the secret.
///
/// # Errors
/// If a file is there already or cannot be written.
pub fn generate_key(path: &Path, password: Option<&str>) -> Result<TrustedKey> {
    let public = public_path(path);
    for there in [path, public.as_path()] {
        if there.symlink_metadata().is_ok() {
            return Err(Error::bad_input(format!("{} is there already", there.display()))
                .with_remedy("choose another name, or keep the key that you have"));
        }
    }
    let failed = |error: minisign::PError| Error::failed("cannot make a key").with_source(error);
    let pair = match password {
        Some(password) => KeyPair::generate_encrypted_keypair(Some(password.to_owned())),
        None => KeyPair::generate_unencrypted_keypair(),
    }
    .map_err(failed)?;
    let secret = pair.sk.to_box(None).map_err(failed)?.into_string();
    let text = pair.pk.to_box().map_err(failed)?.into_string();
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, secret.as_bytes())).about("write", path)?;
    fs::write(&public, text).about("write", &public)?;
    fs::set_permissions(&public, PermissionsExt::from_mode(0o644)).about("write", &public)?;
    Ok(TrustedKey { key: pair.pk, path: public })
}

/// The public key's file beside a secret key's.
pub fn public_path(secret: &Path) -> PathBuf {
    let mut name = secret.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

/// Signs an image with a secret key and keeps the signature in the store. Returns the key's ID.
///
/// # Errors
/// If the key cannot be read, for example because its password is wrong.
pub fn sign(store: &Store, image: Digest, key: &Path, password: Option<&str>) -> Result<String> {
    let secret = read_secret(key, password)?;
    let session = store.session()?;
    let bytes = store.manifest_bytes(image)?;
    let comment = format!("arnia image {image}");
    let signature = minisign::sign(
        None,
        &secret,
        Cursor::new(&bytes),
        Some(&comment),
        Some("signature of an arnia image"),
    )
    .map_err(|error| Error::failed("cannot sign").with_source(error))?;
    let id = id(signature.keynum());
    session.add_signature(image, &id, &signature.into_string())?;
    Ok(id)
}

fn read_secret(path: &Path, password: Option<&str>) -> Result<SecretKey> {
    let text = read_small(path)?;
    let boxed = || SecretKeyBox::from_string(&text);
    let key = match password {
        None => boxed().and_then(SecretKeyBox::into_unencrypted_secret_key),
        Some(password) => boxed().and_then(|boxed| boxed.into_secret_key(Some(password.to_owned()))),
    };
    key.map_err(|error| {
        not_a_key(path, "secret key", error)
            .with_remedy("if it has a password, give it in the variable ARNIA_KEY_PASSWORD")
    })
}

/// Which of these keys have signed an image.
///
/// # Errors
/// If the image cannot be read.
pub fn signers(store: &Store, image: Digest, keys: &[TrustedKey]) -> Result<Vec<String>> {
    let bytes = store.manifest_bytes(image)?;
    let signatures = store.signatures(image)?;
    let by = |key: &&TrustedKey| signatures.iter().any(|(_, signature)| key.signed(&bytes, signature));
    Ok(keys.iter().filter(by).map(TrustedKey::id).collect())
}

/// Fails unless one of these keys has signed these bytes of a manifest.
pub(crate) fn require(bytes: &[u8], signatures: &[(String, String)], keys: &[TrustedKey]) -> Result<()> {
    let signed = keys.iter().any(|key| signatures.iter().any(|(_, signature)| key.signed(bytes, signature)));
    if signed {
        return Ok(());
    }
    let trusted = |id: &String| keys.iter().any(|key| key.id() == *id);
    let text = match signatures {
        [] => "the image is not signed".to_owned(),
        _ if signatures.iter().any(|(id, _)| trusted(id)) => {
            "a signature by a key that you trust is not of this image: one of the two was changed".to_owned()
        }
        _ => {
            let ids: Vec<&str> = signatures.iter().map(|(id, _)| id.as_str()).collect();
            format!("the image is signed by {}, which you do not trust", ids.join(", "))
        }
    };
    Err(Error::new(ErrorKind::Unverified, text)
        .with_remedy("give the publisher's key by --key, or take the image as it is by --allow-unsigned"))
}

/// The signature's file beside a file that was signed as such, as minisign makes it.
pub fn signature_path(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}

/// Fails unless one of these keys has signed a file: an appliance of another program, which holds no signature itself.
///
/// # Errors
/// [`ErrorKind::Unverified`] if none has, or the file is not what was signed.
pub fn require_file(file: &Path, keys: &[TrustedKey]) -> Result<()> {
    let place = signature_path(file);
    let unverified = |text: String| {
        Error::new(ErrorKind::Unverified, text)
            .with_remedy("give the publisher's key by --key, or take the file as it is by --allow-unsigned")
    };
    if !place.exists() {
        let text = format!("{} is not signed: there is no {} beside it", file.display(), place.display());
        return Err(unverified(text));
    }
    let text = read_small(&place)?;
    let signature = SignatureBox::from_string(&text)
        .map_err(|error| unverified(format!("{} is no signature", place.display())).with_source(error))?;
    let number = signature.keynum();
    let Some(key) = keys.iter().find(|key| key.key.keynum() == number) else {
        let text = format!("{} is signed by the key {}, which you do not trust", file.display(), id(number));
        return Err(unverified(text));
    };
    let mut content = fs::File::open(file).about("open", file)?;
    minisign::verify(&key.key, &signature, &mut content, true, false, false).map_err(|error| {
        unverified(format!("{} is not what the key {} has signed", file.display(), key.id()))
            .with_source(error)
    })
}

/// The ID of the key that a signature says it is by.
pub(crate) fn claimed_id(signature: &str) -> Option<String> {
    SignatureBox::from_string(signature).ok().map(|signature| id(signature.keynum()))
}

fn read_small(path: &Path) -> Result<String> {
    let len = path.metadata().about("read", path)?.len();
    if len > KEY_LEN_MAX {
        return Err(Error::bad_input(format!("{} is too long for a key", path.display())));
    }
    fs::read_to_string(path).about("read", path)
}

fn not_a_key(path: &Path, what: &str, error: minisign::PError) -> Error {
    Error::bad_input(format!("{} is no {what} that can be used", path.display())).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Folder;
    use crate::store::tests::add;
    use std::process::Command;

    #[test]
    fn signatures_are_by_their_keys_and_of_their_images() {
        let folder = Folder::new("sign");
        let store = Store::open(folder.0.join("store")).unwrap();
        let (one, two) = (add(&store, "one", "one"), add(&store, "two", "two"));
        let ours = generate_key(&folder.0.join("ours"), None).unwrap();
        let theirs = generate_key(&folder.0.join("theirs"), Some("secret")).unwrap();
        generate_key(&folder.0.join("ours"), None).expect_err("it is there already");
        let mode = folder.0.join("ours").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        assert_eq!(sign(&store, one, &folder.0.join("ours"), None).unwrap(), ours.id());
        let keys = [ours.clone(), theirs.clone()];
        assert_eq!(signers(&store, one, &keys).unwrap(), [ours.id()]);
        assert!(signers(&store, two, &keys).unwrap().is_empty());
        sign(&store, one, &folder.0.join("theirs"), Some("wrong")).expect_err("a wrong password");
        sign(&store, one, &folder.0.join("theirs"), None).expect_err("no password");
        sign(&store, one, &folder.0.join("theirs"), Some("secret")).unwrap();
        assert_eq!(signers(&store, one, &keys).unwrap().len(), 2);
        assert_eq!(store.view(one).unwrap().signed_by.len(), 2);

        // A signature of another image counts for nothing.
        let (id, text) = store.signatures(one).unwrap().remove(0);
        store.session().unwrap().add_signature(two, &id, &text).unwrap();
        assert!(signers(&store, two, &keys).unwrap().is_empty());
        let all = TrustedKey::all(&folder.0).unwrap();
        assert_eq!(all.len(), 2);
        fs::write(folder.0.join("broken.pub"), "x").unwrap();
        TrustedKey::all(&folder.0).expect_err("one is no key");
        assert!(TrustedKey::all(&folder.0.join("none")).unwrap().is_empty());
        // What is there and cannot be read is not "no keys". Root may read any folder, so a file stands for it.
        TrustedKey::all(&folder.0.join("ours.pub")).expect_err("it is no folder");
    }

    #[test]
    fn a_file_is_what_a_trusted_key_has_signed() {
        let folder = Folder::new("sign-file");
        let path = folder.0.join("shop.ova");
        fs::write(&path, "appliance").unwrap();
        let (ours, theirs) = (folder.0.join("ours"), folder.0.join("theirs"));
        let keys = [generate_key(&ours, None).unwrap()];
        generate_key(&theirs, None).unwrap();
        let refused = |reason: &str| {
            let error = require_file(&path, &keys).unwrap_err();
            assert!(error.kind() == ErrorKind::Unverified && error.to_string().contains(reason), "{error}");
        };
        let signed_by = |key: &Path| {
            let secret = read_secret(key, None).unwrap();
            let signature = minisign::sign(None, &secret, Cursor::new("appliance"), None, None).unwrap();
            fs::write(signature_path(&path), signature.into_string()).unwrap();
        };
        refused("not signed");
        fs::write(signature_path(&path), "x").unwrap();
        refused("no signature");
        signed_by(&theirs);
        refused("do not trust");
        signed_by(&ours);
        require_file(&path, &keys).unwrap();
        let text = keys[0].to_text();
        require_file(&path, &[TrustedKey::from_text(&text).unwrap()]).unwrap();
        TrustedKey::from_text("nonsense").unwrap_err();
        fs::write(&path, "applianc3").unwrap();
        refused("is not what the key");
    }

    /// The program minisign understands our files.
    #[test]
    fn minisign_agrees() {
        if Command::new("minisign").arg("-v").output().is_err() {
            eprintln!("skipped: this host has no minisign");
            return;
        }
        let folder = Folder::new("minisign");
        let store = Store::open(folder.0.join("store")).unwrap();
        let image = add(&store, "one", "one");
        let key = folder.0.join("key");
        generate_key(&key, None).unwrap();
        sign(&store, image, &key, None).unwrap();
        let (manifest, signature) = (folder.0.join("m"), folder.0.join("m.minisig"));
        fs::write(&manifest, store.manifest_bytes(image).unwrap()).unwrap();
        fs::write(&signature, &store.signatures(image).unwrap()[0].1).unwrap();
        let mut command = Command::new("minisign");
        command.arg("-V").arg("-m").arg(&manifest).arg("-p").arg(public_path(&key));
        assert!(command.status().unwrap().success());
    }
}
