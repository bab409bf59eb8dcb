//! Plain HTTP(S): a folder of files that any web server can offer. Pushing is by PUT.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use api::image::{Blob, MANIFEST_LEN_MAX};
use ureq::http::{Response, StatusCode};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, SendBody};

use super::{Resumed, Source, Target, Watched, digest_file_name};
use crate::error::AboutFile;
use crate::progress::Progress;
use crate::{Error, ErrorKind, Result};

/// How long a server may take to answer, and to send the next piece.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer that is not a blob, in bytes.
pub(super) const ANSWER_LEN_MAX: u64 = 4 << 20;

/// A client with our limits. Statuses are looked at by us.
pub(super) fn client() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(TIMEOUT))
        .timeout_recv_response(Some(TIMEOUT))
        .timeout_per_read(Some(TIMEOUT))
        .user_agent(concat!("arnia/", env!("CARGO_PKG_VERSION")))
        .tls_config(TlsConfig::builder().root_certs(authorities()).build())
        .build()
        .new_agent()
}

/// Whom this host trusts to say who a server is, so that a registry within a company is reached, too: its own list, or the
/// one that `SSL_CERT_FILE` names. A host without one has that of Mozilla.
fn authorities() -> RootCerts {
    let found = rustls_native_certs::load_native_certs();
    let certificates: Vec<_> =
        found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
    match certificates.is_empty() {
        true => RootCerts::WebPki,
        false => RootCerts::from(certificates),
    }
}

/// An error of the connection.
pub(super) fn broken(url: &str, error: ureq::Error) -> Error {
    // RFC 8446, 5.1: a record of TLS begins with its content type, of which "HTTP" has none.
    let speaks_no_tls = error.to_string().contains("InvalidContentType");
    let broken = Error::new(ErrorKind::Transfer, format!("{url} cannot be reached")).with_source(error);
    match speaks_no_tls {
        true => broken.with_remedy(
            "what answers there speaks no TLS; registries are reached without it as localhost or 127.0.0.1 only",
        ),
        false => broken,
    }
}

/// A status that is not good.
pub(super) fn refused(url: &str, response: &mut Response<Body>) -> Error {
    let status = response.status();
    let mut text = String::new();
    // Some of what it says, for people; control characters are not for terminals.
    let _ = response.body_mut().as_reader().take(300).read_to_string(&mut text);
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = if text.trim().is_empty() { String::new() } else { format!(": {}", text.trim()) };
    let error = Error::new(ErrorKind::Transfer, format!("{url} answers {status}{text}"));
    match status {
        StatusCode::NOT_FOUND => error.with_remedy("check the name; nothing is there"),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            error.with_remedy("it wants a login, or does not permit this")
        }
        _ => error,
    }
}

/// Reads an answer that is not a blob.
pub(super) fn small(url: &str, response: &mut Response<Body>, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = response.body_mut().as_reader().take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| Error::new(ErrorKind::Transfer, format!("{url} broke off")).with_source(error))?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(ErrorKind::Unverified, format!("{url} sends too much")));
    }
    Ok(bytes)
}

/// Asks for a blob from a byte on; a server that cannot do that sends all of it.
pub(super) fn blob(
    agent: &Agent,
    url: &str,
    from: u64,
    authorization: Option<&str>,
) -> Result<(Box<dyn Read>, Resumed)> {
    let ask = |range: Option<String>| {
        let mut request = agent.get(url);
        if let Some(range) = range {
            request = request.header("Range", range);
        }
        if let Some(authorization) = authorization {
            request = request.header("Authorization", authorization);
        }
        request.call().map_err(|error| broken(url, error))
    };
    let mut response = ask((from > 0).then(|| format!("bytes={from}-")))?;
    // What is here may be all of it, or more than there is.
    if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        response = ask(None)?;
    }
    match response.status() {
        StatusCode::PARTIAL_CONTENT if from > 0 => {
            Ok((Box::new(response.into_body().into_reader()), Resumed::Yes))
        }
        StatusCode::OK => Ok((Box::new(response.into_body().into_reader()), Resumed::No)),
        _ => Err(refused(url, &mut response)),
    }
}

/// A folder of a web server.
pub(super) struct Site {
    agent: Agent,
    folder: String,
    tag: String,
}

impl Site {
    pub(super) fn new(folder: &str, tag: &str) -> Site {
        Site { agent: client(), folder: folder.to_owned(), tag: tag.to_owned() }
    }

    pub(super) fn open(folder: &str, tag: &str) -> Result<Site> {
        Ok(Site::new(folder, tag))
    }

    fn manifest_url(&self) -> String {
        format!("{}{}.json", self.folder, self.tag)
    }

    fn signature_url(&self) -> String {
        format!("{}.minisig", self.manifest_url())
    }

    fn blob_url(&self, blob: &Blob) -> String {
        format!("{}blobs/{}", self.folder, digest_file_name(blob.digest))
    }

    fn put(&self, url: &str, body: SendBody<'_>, len: u64) -> Result<()> {
        let request = self.agent.put(url).header("Content-Length", len.to_string());
        let mut response = request.send(body).map_err(|error| broken(url, error))?;
        if response.status().is_success() { Ok(()) } else { Err(refused(url, &mut response)) }
    }
}

impl Source for Site {
    fn manifest(&mut self) -> Result<Vec<u8>> {
        let url = self.manifest_url();
        let mut response = self.agent.get(&url).call().map_err(|error| broken(&url, error))?;
        if response.status() != StatusCode::OK {
            return Err(refused(&url, &mut response));
        }
        small(&url, &mut response, MANIFEST_LEN_MAX)
    }

    fn signatures(&mut self) -> Result<Vec<String>> {
        let url = self.signature_url();
        let mut response = self.agent.get(&url).call().map_err(|error| broken(&url, error))?;
        match response.status() {
            StatusCode::OK => {
                let bytes = small(&url, &mut response, 64 << 10)?;
                let text = String::from_utf8_lossy(&bytes).into_owned();
                // One behind the other, four lines each.
                let lines: Vec<&str> = text.lines().collect();
                Ok(lines.chunks(4).map(|lines| lines.join("\n") + "\n").collect())
            }
            StatusCode::NOT_FOUND => Ok(Vec::new()),
            _ => Err(refused(&url, &mut response)),
        }
    }

    fn blob(&mut self, wanted: &Blob, from: u64) -> Result<(Box<dyn Read>, Resumed)> {
        blob(&self.agent, &self.blob_url(wanted), from, None)
    }
}

impl Target for Site {
    fn has_blob(&mut self, blob: &Blob) -> Result<bool> {
        let url = self.blob_url(blob);
        let response = self.agent.head(&url).call().map_err(|error| broken(&url, error))?;
        Ok(response.status() == StatusCode::OK)
    }

    fn send_blob(&mut self, blob: &Blob, compressed: &Path, progress: &mut dyn Progress) -> Result<()> {
        let file = File::open(compressed).about("open", compressed)?;
        let len = file.metadata().about("read", compressed)?.len();
        let mut watched = Watched { file, progress };
        self.put(&self.blob_url(blob), SendBody::from_reader(&mut watched), len)
    }

    fn send_manifest(&mut self, bytes: &[u8], signatures: Vec<String>) -> Result<()> {
        if !signatures.is_empty() {
            let text = signatures.concat();
            let len = text.len() as u64;
            self.put(&self.signature_url(), SendBody::from_reader(&mut text.as_bytes()), len)?;
        }
        let mut body = bytes;
        self.put(&self.manifest_url(), SendBody::from_reader(&mut body), bytes.len() as u64)
    }
}
