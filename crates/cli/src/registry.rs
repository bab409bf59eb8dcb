//! Who one is to a registry: by variables, or as other programs have logged in there.
//!
//! `podman login` keeps logins in `containers/auth.json` (containers-auth.json(5)), `docker login` in `.docker/config.json`
//! (docker-login(1)). Of both the entries with a password are read; helpers that keep it elsewhere are not called.

use crate::Error;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::transfer::RegistryLogin;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The login for what is at a place; none where nobody is logged in.
///
/// # Errors
/// If a file of logins cannot be read.
pub(crate) fn login(place: &str) -> Result<Option<RegistryLogin>, Error> {
    let Some(repository) = place.strip_prefix("oci://") else { return Ok(None) };
    if let (Some(user), Some(password)) =
        (variable("ARNIA_REGISTRY_USER"), variable("ARNIA_REGISTRY_PASSWORD"))
    {
        return Ok(Some(RegistryLogin { user, password }));
    }
    for path in files() {
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            result => result.map_err(|e| unreadable(&path, e.to_string()))?,
        };
        let logins: Logins = serde_json::from_slice(&text).map_err(|e| unreadable(&path, e.to_string()))?;
        if let Some(login) = logins.of(repository).map_err(|what| unreadable(&path, what))? {
            return Ok(Some(login));
        }
    }
    Ok(None)
}

fn unreadable(path: &Path, why: String) -> Error {
    Error::bad_input(format!("the registries' logins in {} cannot be read: {why}", path.display()))
        .with_remedy("mend the file by `podman login` or `docker login`, or set ARNIA_REGISTRY_USER and ARNIA_REGISTRY_PASSWORD")
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where logins may be kept, in the order in which podman looks.
fn files() -> Vec<PathBuf> {
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file.into()];
    }
    let home = || variable("HOME").map(PathBuf::from);
    let containers = |folder: PathBuf| folder.join("containers/auth.json");
    let config = variable("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".config")));
    let docker = variable("DOCKER_CONFIG").map(PathBuf::from).or_else(|| Some(home()?.join(".docker")));
    let runtime = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
    let docker = docker.map(|folder| folder.join("config.json"));
    runtime.map(containers).into_iter().chain(config.map(containers)).chain(docker).collect()
}

/// The part of such a file that is of use here.
#[derive(Debug, Default, Deserialize)]
struct Logins {
    #[serde(default)]
    auths: BTreeMap<String, Login>,
}

#[derive(Deserialize)]
struct Login {
    /// `USER:PASSWORD` in Base64; absent if a helper has it.
    #[serde(default)]
    auth: Option<String>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login")
    }
}

impl Logins {
    /// That of `HOST/PATH:TAG`: of the longest entry that it lies below.
    fn of(&self, repository: &str) -> Result<Option<RegistryLogin>, String> {
        let below = |entry: &str| {
            // Docker once wrote whole addresses.
            let entry = entry.strip_prefix("https://").or(entry.strip_prefix("http://")).unwrap_or(entry);
            let entry = entry.trim_end_matches('/');
            let entry = entry.strip_suffix("/v1").or(entry.strip_suffix("/v2")).unwrap_or(entry);
            let rest = repository.strip_prefix(entry)?;
            (!entry.is_empty() && (rest.is_empty() || rest.starts_with(['/']))).then_some(entry.len())
        };
        let fitting =
            self.auths.iter().filter_map(|(entry, login)| Some((below(entry)?, login.auth.as_ref()?)));
        let Some((_, auth)) = fitting.max_by_key(|(length, _)| *length) else { return Ok(None) };
        let pair = BASE64_STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = pair.as_deref().and_then(|pair| pair.split_once(':'));
        let (user, password) = pair.ok_or("an entry is not of the form USER:PASSWORD in Base64")?;
        Ok(Some(RegistryLogin { user: user.to_owned(), password: password.to_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_login_is_that_of_the_nearest_entry() {
        let entry = |pair: &str| serde_json::json!({"auth": BASE64_STANDARD.encode(pair)});
        let logins: Logins = serde_json::from_value(serde_json::json!({
            "auths": {
                "registry.example": entry("ann:a:b"),
                "registry.example/team": entry("team:t"),
                "https://other.example/v1/": entry("bob:b"),
                "kept.example": {},
                "broken.example": {"auth": "?"},
            },
            "credsStore": "desktop",
        }))
        .unwrap();
        let of = |repository: &str| {
            logins.of(repository).map(|login| login.map(|login| (login.user, login.password)))
        };
        let login = |user: &str, password: &str| Ok(Some((user.to_owned(), password.to_owned())));
        assert_eq!(of("registry.example/web:1"), login("ann", "a:b"));
        assert_eq!(of("registry.example/team/web:1"), login("team", "t"));
        assert_eq!(of("registry.example/teams/web:1"), login("ann", "a:b"));
        assert_eq!(of("other.example/x"), login("bob", "b"));
        assert_eq!(of("registry.example:5000/web"), Ok(None));
        assert_eq!(of("registry.example.evil/web"), Ok(None));
        assert_eq!(of("kept.example/web"), Ok(None));
        assert!(of("broken.example/web").is_err());
    }
}
