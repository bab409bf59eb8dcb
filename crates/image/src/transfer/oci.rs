//! OCI registries (OCI Distribution Specification 1.1, OCI Image Manifest Specification 1.1).
//!
//! An image is an OCI artifact: its config is our manifest, its layers are our blobs compressed, each with
//! our digest as annotation, and its signatures. The registry's own digests (SHA-256) are of what travels;
//! what comes out is checked against ours.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use api::image::{Blob, MANIFEST_LEN_MAX};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use ureq::http::{Response, StatusCode, Uri};
use ureq::{Agent, Body, SendBody};

use super::http::{ANSWER_LEN_MAX, blob, broken, client, refused, small};
use super::{Resumed, Source, Target, Watched};
use crate::error::AboutFile;
use crate::progress::Progress;
use crate::{Error, ErrorKind, Result};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.arnia.image.v1+json";
const LAYER: &str = "application/vnd.arnia.blob.v1+zstd";
const SIGNATURE: &str = "application/vnd.arnia.signature.v1";
/// Annotation of a layer: the digest of what is in it.
const BLOB: &str = "vnd.arnia.blob";
/// Layers in a manifest at most.
const LAYERS_MAX: usize = 256;

/// Who one is to a registry.
#[derive(Clone)]
pub struct RegistryLogin {
    /// User name.
    pub user: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegistryLogin({})", self.user)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciManifest {
    schema_version: u32,
    media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Descriptor {
    fn check(&self) -> Result<()> {
        let hex = self.digest.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
            return Ok(());
        }
        // It becomes part of a URL.
        Err(Error::new(ErrorKind::Unverified, format!("the registry names a blob by {:?}", self.digest)))
    }
}

/// Digest as registries write it.
fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// One repository, with what the registry wants to be shown.
struct Session {
    agent: Agent,
    registry: String,
    repository: String,
    tag: String,
    login: Option<RegistryLogin>,
    authorization: Option<String>,
}

impl Session {
    fn new(registry: &str, repository: &str, tag: &str, login: Option<&RegistryLogin>) -> Session {
        Session {
            agent: client(),
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            login: login.cloned(),
            authorization: None,
        }
    }

    fn url(&self, what: &str) -> String {
        format!("{}/v2/{}/{what}", self.registry, self.repository)
    }

    /// Asks who one has to be, once, before anything else (Distribution Specification, "Determining
    /// Support"; the token protocol is that of the reference registry).
    fn authenticate(&mut self, scope: &str) -> Result<()> {
        let url = format!("{}/v2/", self.registry);
        let mut response = self.agent.get(&url).call().map_err(|error| broken(&url, error))?;
        if response.status().is_success() {
            return Ok(());
        }
        if response.status() != StatusCode::UNAUTHORIZED {
            return Err(refused(&url, &mut response));
        }
        let challenge = header(&response, "www-authenticate").unwrap_or_default();
        let basic = self.login.as_ref().map(|login| {
            format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{}", login.user, login.password)))
        });
        let scheme = challenge.split(' ').next().unwrap_or_default().to_ascii_lowercase();
        match (scheme.as_str(), basic) {
            ("basic", Some(basic)) => self.authorization = Some(basic),
            ("bearer", basic) => self.authorization = Some(self.token(&challenge, scope, basic)?),
            _ => {
                return Err(Error::new(ErrorKind::Transfer, format!("{} wants a login", self.registry)).with_remedy(
                    "set ARNIA_REGISTRY_USER and ARNIA_REGISTRY_PASSWORD, or log in by `docker login` or `podman login`",
                ));
            }
        }
        Ok(())
    }

    fn token(&self, challenge: &str, scope: &str, basic: Option<String>) -> Result<String> {
        let parameter = |name: &str| {
            let start = challenge.find(&format!("{name}=\""))? + name.len() + 2;
            Some(challenge[start..].split('"').next()?.to_owned())
        };
        let realm =
            parameter("realm").filter(|realm| realm.starts_with("https://") || realm.starts_with("http://"));
        let realm = realm.ok_or_else(|| {
            Error::new(ErrorKind::Transfer, "the registry does not say where tokens are had")
        })?;
        // A password goes no less protected than the registry itself.
        if self.registry.starts_with("https://") && !realm.starts_with("https://") {
            return Err(Error::new(
                ErrorKind::Transfer,
                format!("the registry sends to {realm} for a token, without TLS"),
            ));
        }
        let mut request =
            self.agent.get(&realm).query("scope", format!("repository:{}:{scope}", self.repository));
        if let Some(service) = parameter("service") {
            request = request.query("service", service);
        }
        if let Some(basic) = basic {
            request = request.header("Authorization", basic);
        }
        let mut response = request.call().map_err(|error| broken(&realm, error))?;
        if response.status() != StatusCode::OK {
            return Err(refused(&realm, &mut response));
        }
        let bytes = small(&realm, &mut response, ANSWER_LEN_MAX)?;
        let answer: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let token = answer.get("token").or(answer.get("access_token")).and_then(serde_json::Value::as_str);
        let token =
            token.ok_or_else(|| Error::new(ErrorKind::Transfer, format!("{realm} gives no token")))?;
        Ok(format!("Bearer {token}"))
    }

    fn get(&self, url: &str, accept: &str) -> Result<Response<Body>> {
        let mut request = self.agent.get(url).header("Accept", accept);
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        request.call().map_err(|error| broken(url, error))
    }

    /// A whole small blob, which is what its digest says.
    fn small_blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>> {
        descriptor.check()?;
        let url = self.url(&format!("blobs/{}", descriptor.digest));
        let mut response = self.get(&url, "*/*")?;
        if response.status() != StatusCode::OK {
            return Err(refused(&url, &mut response));
        }
        let bytes = small(&url, &mut response, limit)?;
        if sha256(&bytes) != descriptor.digest {
            return Err(Error::new(ErrorKind::Unverified, format!("{url} is not what its name says")));
        }
        Ok(bytes)
    }
}

fn header(response: &Response<Body>, name: &str) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}

/// Whether two URLs are of the same server: scheme, host and port (RFC 6454, section 4).
fn is_same_origin(one: &str, other: &str) -> bool {
    let origin = |url: &str| {
        let uri = url.parse::<Uri>().ok()?;
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let port = uri.port_u16().or(match scheme.as_str() {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        })?;
        Some((scheme, uri.host()?.to_ascii_lowercase(), port))
    };
    origin(one).is_some_and(|origin_of_one| Some(origin_of_one) == origin(other))
}

/// A repository that is pulled from.
pub(super) struct Repository {
    session: Session,
    manifest: OciManifest,
}

impl Repository {
    pub(super) fn open(
        registry: &str,
        repository: &str,
        tag: &str,
        login: Option<&RegistryLogin>,
    ) -> Result<Repository> {
        let mut session = Session::new(registry, repository, tag, login);
        session.authenticate("pull")?;
        let url = session.url(&format!("manifests/{tag}"));
        let mut response = session.get(&url, MANIFEST)?;
        if response.status() != StatusCode::OK {
            return Err(refused(&url, &mut response));
        }
        let bytes = small(&url, &mut response, ANSWER_LEN_MAX)?;
        let other = |error: Option<serde_json::Error>| {
            let text = format!("{repository}:{tag} is no image of a virtual machine");
            let error = error
                .map(|error| error.to_string())
                .unwrap_or_else(|| "it is for another program".to_owned());
            Error::new(ErrorKind::Unverified, text).with_source(error)
        };
        let manifest: OciManifest = serde_json::from_slice(&bytes).map_err(|error| other(Some(error)))?;
        if manifest.config.media_type != CONFIG || manifest.layers.len() > LAYERS_MAX {
            return Err(other(None));
        }
        Ok(Repository { session, manifest })
    }
}

impl Source for Repository {
    fn manifest(&mut self) -> Result<Vec<u8>> {
        self.session.small_blob(&self.manifest.config, MANIFEST_LEN_MAX)
    }

    fn signatures(&mut self) -> Result<Vec<String>> {
        let layers = self.manifest.layers.iter().filter(|layer| layer.media_type == SIGNATURE).take(16);
        layers
            .map(|layer| Ok(String::from_utf8_lossy(&self.session.small_blob(layer, 4096)?).into_owned()))
            .collect()
    }

    fn blob(&mut self, wanted: &Blob, from: u64) -> Result<(Box<dyn Read>, Resumed)> {
        let name = wanted.digest.to_string();
        let layer = self.manifest.layers.iter().find(|layer| layer.annotations.get(BLOB) == Some(&name));
        let layer = layer.ok_or_else(|| {
            Error::new(ErrorKind::Unverified, format!("the registry's manifest lacks {name}"))
        })?;
        layer.check()?;
        // What is here already may be all of it.
        let from = if from < layer.size { from } else { 0 };
        let url = self.session.url(&format!("blobs/{}", layer.digest));
        blob(&self.session.agent, &url, from, self.session.authorization.as_deref())
    }
}

/// A repository that is pushed to.
pub(super) struct Upload {
    session: Session,
    layers: Vec<Descriptor>,
    /// Layers that an image of this tag has there already: by our digests.
    known: BTreeMap<String, Descriptor>,
}

impl Upload {
    pub(super) fn new(
        registry: &str,
        repository: &str,
        tag: &str,
        login: Option<&RegistryLogin>,
    ) -> Result<Upload> {
        let mut session = Session::new(registry, repository, tag, login);
        session.authenticate("pull,push")?;
        let mut known = BTreeMap::new();
        let url = session.url(&format!("manifests/{tag}"));
        let mut response = session.get(&url, MANIFEST)?;
        if response.status() == StatusCode::OK {
            let bytes = small(&url, &mut response, ANSWER_LEN_MAX)?;
            if let Ok(manifest) = serde_json::from_slice::<OciManifest>(&bytes) {
                for layer in manifest.layers {
                    if let Some(name) = layer.annotations.get(BLOB).filter(|_| layer.check().is_ok()) {
                        known.insert(name.clone(), layer.clone());
                    }
                }
            }
        }
        Ok(Upload { session, layers: Vec::new(), known })
    }

    fn is_there(&self, digest: &str) -> Result<bool> {
        let url = self.session.url(&format!("blobs/{digest}"));
        let mut request = self.session.agent.head(&url);
        if let Some(authorization) = &self.session.authorization {
            request = request.header("Authorization", authorization);
        }
        Ok(request.call().map_err(|error| broken(&url, error))?.status() == StatusCode::OK)
    }

    /// Sends one blob in one piece (Distribution Specification, "POST then PUT").
    fn send(&self, digest: &str, body: SendBody<'_>, len: u64) -> Result<()> {
        let url = self.session.url("blobs/uploads/");
        let mut request = self.session.agent.post(&url);
        if let Some(authorization) = &self.session.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = request.send_empty().map_err(|error| broken(&url, error))?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(refused(&url, &mut response));
        }
        let location = header(&response, "location")
            .ok_or_else(|| Error::new(ErrorKind::Transfer, format!("{url} does not say where to")))?;
        let absolute = location.starts_with("http://") || location.starts_with("https://");
        let target = if absolute { location } else { format!("{}{location}", self.session.registry) };
        let target = format!("{target}{}digest={digest}", if target.contains('?') { '&' } else { '?' });
        let mut request = self.session.agent.put(&target).header("Content-Type", "application/octet-stream");
        request = request.header("Content-Length", len.to_string());
        // Not to somebody else, should the registry send us there.
        if let Some(authorization) =
            self.session.authorization.as_ref().filter(|_| is_same_origin(&target, &self.session.registry))
        {
            request = request.header("Authorization", authorization);
        }
        let mut response = request.send(body).map_err(|error| broken(&target, error))?;
        if response.status() == StatusCode::CREATED { Ok(()) } else { Err(refused(&target, &mut response)) }
    }

    fn send_small(&self, bytes: &[u8], media_type: &str) -> Result<Descriptor> {
        let digest = sha256(bytes);
        if !self.is_there(&digest)? {
            let mut body = bytes;
            self.send(&digest, SendBody::from_reader(&mut body), bytes.len() as u64)?;
        }
        Ok(Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
        })
    }
}

impl Target for Upload {
    fn has_blob(&mut self, blob: &Blob) -> Result<bool> {
        let Some(layer) = self.known.get(&blob.digest.to_string()).cloned() else { return Ok(false) };
        let there = self.is_there(&layer.digest)?;
        if there {
            self.layers.push(layer);
        }
        Ok(there)
    }

    fn send_blob(&mut self, blob: &Blob, compressed: &Path, progress: &mut dyn Progress) -> Result<()> {
        let mut file = File::open(compressed).about("open", compressed)?;
        let mut hasher = Sha256::new();
        let (mut size, mut buffer) = (0, vec![0; 1 << 20]);
        loop {
            let count = file.read(&mut buffer).about("read", compressed)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            size += count as u64;
        }
        let digest = format!(
            "sha256:{}",
            hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        );
        if !self.is_there(&digest)? {
            let mut watched = Watched { file: File::open(compressed).about("open", compressed)?, progress };
            self.send(&digest, SendBody::from_reader(&mut watched), size)?;
        }
        let annotations = [(BLOB.to_owned(), blob.digest.to_string())].into();
        self.layers.push(Descriptor { media_type: LAYER.to_owned(), digest, size, annotations });
        Ok(())
    }

    fn send_manifest(&mut self, bytes: &[u8], signatures: Vec<String>) -> Result<()> {
        let config = self.send_small(bytes, CONFIG)?;
        let mut layers = self.layers.clone();
        for text in signatures {
            layers.push(self.send_small(text.as_bytes(), SIGNATURE)?);
        }
        let manifest = OciManifest {
            schema_version: 2,
            media_type: MANIFEST.to_owned(),
            artifact_type: Some(CONFIG.to_owned()),
            config,
            layers,
        };
        let bytes = serde_json::to_vec(&manifest)
            .map_err(|error| Error::failed("cannot write the manifest").with_source(error))?;
        let url = self.session.url(&format!("manifests/{}", self.session.tag));
        let mut request = self.session.agent.put(&url).header("Content-Type", MANIFEST);
        if let Some(authorization) = &self.session.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = request.send(&bytes[..]).map_err(|error| broken(&url, error))?;
        if response.status() == StatusCode::CREATED { Ok(()) } else { Err(refused(&url, &mut response)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_for_the_same_server_only() {
        let registry = "https://registry.example";
        for (url, is_same) in [
            ("https://registry.example/v2/x/blobs/uploads/1?digest=y", true),
            ("https://registry.example:443/v2/", true),
            ("https://Registry.Example/v2/", true),
            ("http://registry.example/v2/", false),
            ("https://registry.example:8443/v2/", false),
            ("https://registry.example.evil.example/v2/", false),
            ("https://registry.example@evil.example/v2/", false),
            ("https://registry.example:1@evil.example/v2/", false),
            ("https://registry.examples/v2/", false),
            ("/v2/", false),
        ] {
            assert_eq!(is_same_origin(url, registry), is_same, "{url}");
        }
        assert!(is_same_origin("http://127.0.0.1:5000/v2/", "http://127.0.0.1:5000"));
        assert!(!is_same_origin("http://127.0.0.1:50001/v2/", "http://127.0.0.1:5000"));
        assert!(!is_same_origin("nonsense", "nonsense"));
    }
}
