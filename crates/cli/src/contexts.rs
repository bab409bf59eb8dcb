//! Contexts: daemons of other hosts, kept in a file of this user's own.

use crate::{Error, ErrorKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The context that is always there: this host's daemon.
pub(crate) const LOCAL: &str = "local";

/// All contexts.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    /// The one that is used when none is named; this host's daemon when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, RemoteContext>,
}

/// A daemon of another host, and who calls it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoteContext {
    /// `HOST:PORT`.
    pub(crate) address: String,
    /// Of the daemon's certificate.
    pub(crate) fingerprint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// A certificate in PEM by which the caller is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<PathBuf>,
}

impl RemoteContext {
    /// A client of that daemon.
    pub(crate) fn client(&self, project: &str) -> Result<client::Client, Error> {
        let identity = self.certificate.clone().zip(self.key.clone());
        let remote =
            client::Remote { address: self.address.clone(), fingerprint: self.fingerprint.clone(), identity };
        let client = client::Client::remote(&remote, project)?;
        Ok(match &self.token {
            Some(token) => client.with_token(token.clone()),
            None => client,
        })
    }
}

impl Contexts {
    /// Where they are kept: below `ARNIA_HOME` if that is set, else by the XDG base directory specification. Nowhere for whoever has no
    /// home, as services of the system.
    fn place() -> Option<PathBuf> {
        let variable =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        variable("ARNIA_HOME")
            .or_else(|| variable("XDG_CONFIG_HOME").map(|folder| folder.join("arnia")))
            .or_else(|| variable("HOME").map(|home| home.join(".config/arnia")))
            .map(|folder| folder.join("contexts.json"))
    }

    fn path() -> Result<PathBuf, Error> {
        Contexts::place().ok_or_else(|| {
            Error::failed("there is no place for contexts").with_remedy("set the variable HOME")
        })
    }

    /// Reads them; none when there is no file, or no place for one.
    pub(crate) fn read() -> Result<Contexts, Error> {
        Contexts::place().map_or_else(|| Ok(Contexts::default()), |path| Contexts::read_from(&path))
    }

    fn read_from(path: &Path) -> Result<Contexts, Error> {
        let bad = || Error::failed(format!("the contexts in {path:?} cannot be read"));
        match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Contexts::default()),
            Err(e) => Err(bad().with_source(e)),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                bad().with_source(e).with_remedy("mend the file, or remove it and add them again")
            }),
        }
    }

    /// Keeps them: whole or not at all, and for this user's eyes only, because of the tokens.
    pub(crate) fn write(&self) -> Result<(), Error> {
        self.write_to(&Contexts::path()?)
    }

    fn write_to(&self, path: &Path) -> Result<(), Error> {
        let written = (|| {
            let folder = path.parent().unwrap_or(Path::new("/"));
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let part = path.with_extension(format!("{}.part", std::process::id()));
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            std::fs::rename(part, path)
        })();
        written.map_err(|e: std::io::Error| {
            Error::failed(format!("the contexts cannot be kept in {path:?}")).with_source(e)
        })
    }

    /// The context that is to be used: the one named, or the current one; nothing for this host's daemon.
    pub(crate) fn choose(&self, named: Option<&str>) -> Result<Option<&RemoteContext>, Error> {
        match named.or(self.current.as_deref()) {
            None | Some(LOCAL) => Ok(None),
            Some(name) => self.get(name).map(Some),
        }
    }

    /// Takes contexts out, all of them or none. Where the current one goes, this host's daemon is used from then on.
    ///
    /// # Errors
    /// When one of them is not there.
    pub(crate) fn remove(&mut self, names: &[String]) -> Result<(), Error> {
        names.iter().try_for_each(|name| self.get(name).map(drop))?;
        self.contexts.retain(|name, _| !names.contains(name));
        self.current.take_if(|current| names.contains(current));
        Ok(())
    }

    pub(crate) fn get(&self, name: &str) -> Result<&RemoteContext, Error> {
        self.contexts.get(name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no context {name:?}"))
                .with_remedy("see `arnia context ls` for those that there are")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn contexts_are_kept_for_this_user_alone() {
        let folder = std::env::temp_dir().join(format!("arnia-contexts-{}", std::process::id()));
        let path = folder.join("deep/contexts.json");
        assert_eq!(Contexts::read_from(&path).unwrap(), Contexts::default());
        let lab = RemoteContext {
            address: "lab:8443".into(),
            fingerprint: "sha256:00".into(),
            token: Some("arnia_x".into()),
            certificate: None,
            key: None,
        };
        let contexts =
            Contexts { current: Some("lab".into()), contexts: [("lab".to_owned(), lab.clone())].into() };
        contexts.write_to(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let read = Contexts::read_from(&path).unwrap();
        assert_eq!(read, contexts);
        assert_eq!(read.choose(None).unwrap(), Some(&lab));
        assert_eq!(read.choose(Some(LOCAL)).unwrap(), None);
        assert_eq!(read.choose(Some("x")).unwrap_err().kind(), ErrorKind::NotFound);
        let mut fewer = read;
        let both = ["lab".to_owned(), "x".to_owned()];
        assert_eq!(fewer.remove(&both).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(fewer, contexts, "none is taken out when one is not there");
        fewer.remove(&both[..1]).unwrap();
        assert_eq!(fewer, Contexts::default());
        std::fs::write(&path, "{").unwrap();
        assert!(Contexts::read_from(&path).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
