//! The typed client of the daemon's REST API.
//!
//! Each request has a connection of its own: a request costs less than the trouble of keeping connections.

mod connection;
mod error;
mod files;
mod guest;
mod mounts;
mod ports;
mod screen;
mod tls;
mod websocket;

pub use connection::{Duplex, Stream};
pub use error::Error;
pub use files::Download;
pub use tls::{Remote, fingerprint_of};
pub use tokio_tungstenite::tungstenite::Message;
pub use websocket::{Console, Exec, ExecEvent, ExecInput, ExecOutput};

use connection::Target;

use api::image::ImageView;
use api::v1::access::{AuditEntry, Identity, NewToken, Token, TokenParams, User, UserParams, UserUpdate};
use api::v1::error::ErrorBody;
use api::v1::host::Host;
use api::v1::image::ImageParams;
use api::v1::limits::ResizeParams;
use api::v1::network::{Network, NetworkParams};
use api::v1::operation::{Operation, OperationState};
use api::v1::page::Page;
use api::v1::project::{Project, ProjectParams, ProjectUpdate};
use api::v1::snapshot::{CloneParams, Snapshot, SnapshotParams};
use api::v1::storage::{Pool, PoolParams, Volume, VolumeParams};
use api::v1::vm::{RenameParams, StopParams, Vm, VmMetrics, VmParams};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;

/// How long one request waits for an operation; then it is asked again.
const WAIT_SECONDS: u32 = 30;

/// What came of the creation of a machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Created {
    /// It is there.
    Vm(Box<Vm>),
    /// It is there and is being started.
    Starting(Box<Operation>),
}

/// Talks to one daemon about one project.
#[derive(Clone, Debug)]
pub struct Client {
    target: Target,
    project: String,
    token: Option<String>,
}

impl Client {
    /// Will talk to the daemon that listens at `socket`.
    pub fn new(socket: &Path, project: &str) -> Client {
        Client { target: Target::unix(socket), project: project.to_owned(), token: None }
    }

    /// Will talk to a daemon of another host.
    ///
    /// # Errors
    /// When the certificate or the address cannot be used.
    pub fn remote(remote: &Remote, project: &str) -> Result<Client, Error> {
        let target = Target::Tls(tls::Tls::new(remote)?);
        Ok(Client { target, project: project.to_owned(), token: None })
    }

    /// The same as the user of this token.
    pub fn with_token(mut self, token: impl Into<String>) -> Client {
        self.token = Some(token.into());
        self
    }

    /// The same about another project.
    pub fn in_project(&self, project: &str) -> Client {
        Client { project: project.to_owned(), ..self.clone() }
    }

    /// The project that it talks about.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// Sends a request with any method, path and body, and returns status and body of the answer.
    ///
    /// # Errors
    /// When the daemon cannot be reached. A refusal is an answer.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<(u16, Vec<u8>), Error> {
        let response = self.request(method, path, headers, full(body)).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|e| Error::lost(&self.target, e))?.to_bytes();
        Ok((status, body.to_vec()))
    }

    /// Sends a request; the body of the answer is still to come.
    async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Result<Response<Incoming>, Error> {
        let stream = self.target.connect().await?;
        let lost = |e: hyper::Error| Error::lost(&self.target, e);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        // Ends by itself when the answer has come or nobody wants it any more.
        tokio::spawn(connection);
        let method = Method::from_bytes(method.as_bytes()).map_err(|e| Error::malformed(e.to_string()))?;
        let mut request =
            Request::builder().method(method).uri(path).header(header::HOST, self.target.host());
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).map_err(|e| Error::malformed(e.to_string()))?;
        sender.send_request(request).await.map_err(lost)
    }

    fn with_project(&self, path: &str) -> String {
        let separator = if path.contains('?') { '&' } else { '?' };
        format!("{path}{separator}project={}", escaped(&self.project))
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<(u16, Vec<u8>), Error> {
        let path = self.with_project(path);
        let mut all = headers.to_vec();
        if body.is_some() {
            all.push(("content-type", "application/json"));
        }
        let (status, body) = self.send(method, &path, &all, body.unwrap_or_default()).await?;
        match StatusCode::from_u16(status) {
            Ok(code) if code.is_success() => Ok((status, body)),
            _ => Err(refusal(status, &body)),
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        read(&self.call("GET", path, &[], None).await?.1)
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(|e| Error::malformed(e.to_string()))?;
        read(&self.call("POST", path, &[], Some(body)).await?.1)
    }

    async fn delete(&self, path: &str) -> Result<(), Error> {
        self.call("DELETE", path, &[], None).await.map(drop)
    }

    /// All items of a list.
    async fn all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        let mut after = String::new();
        loop {
            let page: Page<T> = self.get(&format!("{path}?limit=1000&after={}", escaped(&after))).await?;
            items.extend(page.items);
            match page.next {
                Some(next) => after = next,
                None => return Ok(items),
            }
        }
    }

    /// What the host is and has.
    pub async fn host(&self) -> Result<Host, Error> {
        self.get("/v1/host").await
    }

    /// Who is calling.
    pub async fn identity(&self) -> Result<Identity, Error> {
        self.get("/v1/identity").await
    }

    /// All machines of the project.
    pub async fn vms(&self) -> Result<Vec<Vm>, Error> {
        self.all("/v1/vms").await
    }

    /// One machine.
    pub async fn vm(&self, name: &str) -> Result<Vm, Error> {
        self.get(&format!("/v1/vms/{}", escaped(name))).await
    }

    /// Creates a machine; repeated with the same key, it creates nothing again.
    pub async fn vm_create(&self, params: &VmParams, key: &str) -> Result<Created, Error> {
        let body = serde_json::to_vec(params).map_err(|e| Error::malformed(e.to_string()))?;
        match self.call("POST", "/v1/vms", &[("idempotency-key", key)], Some(body)).await? {
            (202, body) => read(&body).map(|operation| Created::Starting(Box::new(operation))),
            (_, body) => read(&body).map(|vm| Created::Vm(Box::new(vm))),
        }
    }

    /// Changes a machine's configuration by a merge patch, if it still is of the revision given.
    pub async fn vm_update(
        &self,
        name: &str,
        patch: &serde_json::Value,
        revision: Option<i64>,
    ) -> Result<Vm, Error> {
        self.patch(&format!("/v1/vms/{}", escaped(name)), patch, revision).await
    }

    async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        patch: &serde_json::Value,
        revision: Option<i64>,
    ) -> Result<T, Error> {
        let tag = revision.map_or_else(|| "*".to_owned(), |revision| format!("\"{revision}\""));
        let body = serde_json::to_vec(patch).map_err(|e| Error::malformed(e.to_string()))?;
        read(&self.call("PATCH", path, &[("if-match", &tag)], Some(body)).await?.1)
    }

    /// Removes a machine.
    pub async fn vm_delete(&self, name: &str, force: bool) -> Result<(), Error> {
        self.delete(&format!("/v1/vms/{}?force={force}", escaped(name))).await
    }

    /// Starts a machine.
    pub async fn vm_start(&self, name: &str) -> Result<Operation, Error> {
        self.post(&format!("/v1/vms/{}/start", escaped(name)), &serde_json::json!({})).await
    }

    /// Stops a machine.
    pub async fn vm_stop(&self, name: &str, params: StopParams) -> Result<Operation, Error> {
        self.post(&format!("/v1/vms/{}/stop", escaped(name)), &params).await
    }

    /// Stops a machine and starts it again.
    pub async fn vm_restart(&self, name: &str, params: StopParams) -> Result<Operation, Error> {
        self.post(&format!("/v1/vms/{}/restart", escaped(name)), &params).await
    }

    /// Makes a machine stand still.
    pub async fn vm_pause(&self, name: &str) -> Result<Vm, Error> {
        self.post(&format!("/v1/vms/{}/pause", escaped(name)), &serde_json::json!({})).await
    }

    /// Lets a machine go on.
    pub async fn vm_resume(&self, name: &str) -> Result<Vm, Error> {
        self.post(&format!("/v1/vms/{}/resume", escaped(name)), &serde_json::json!({})).await
    }

    /// Saves a machine's memory and ends its process.
    pub async fn vm_suspend(&self, name: &str) -> Result<Operation, Error> {
        self.post(&format!("/v1/vms/{}/suspend", escaped(name)), &serde_json::json!({})).await
    }

    /// Makes copies of a machine.
    pub async fn vm_clone(&self, name: &str, params: &CloneParams) -> Result<Operation, Error> {
        self.post(&format!("/v1/vms/{}/clone", escaped(name)), params).await
    }

    /// The snapshots of a machine, the oldest first.
    pub async fn snapshots(&self, vm: &str) -> Result<Vec<Snapshot>, Error> {
        Ok(self.get::<Page<Snapshot>>(&format!("/v1/vms/{}/snapshots", escaped(vm))).await?.items)
    }

    /// Makes a snapshot of a machine.
    pub async fn snapshot_create(&self, vm: &str, params: &SnapshotParams) -> Result<Operation, Error> {
        self.post(&format!("/v1/vms/{}/snapshots", escaped(vm)), params).await
    }

    /// Removes a snapshot.
    pub async fn snapshot_delete(&self, vm: &str, name: &str) -> Result<(), Error> {
        self.delete(&format!("/v1/vms/{}/snapshots/{}", escaped(vm), escaped(name))).await
    }

    /// Lets a machine go on from a snapshot.
    pub async fn snapshot_restore(&self, vm: &str, name: &str) -> Result<Operation, Error> {
        let path = format!("/v1/vms/{}/snapshots/{}/restore", escaped(vm), escaped(name));
        self.post(&path, &serde_json::json!({})).await
    }

    /// Gives a machine another name.
    pub async fn vm_rename(&self, name: &str, new: &str) -> Result<Vm, Error> {
        let params = RenameParams { name: new.into() };
        self.post(&format!("/v1/vms/{}/rename", escaped(name)), &params).await
    }

    /// Gives a machine other sizes.
    pub async fn vm_resize(&self, name: &str, params: &ResizeParams) -> Result<Vm, Error> {
        self.post(&format!("/v1/vms/{}/resize", escaped(name)), params).await
    }

    /// The end of a machine's log: `console` or `worker`.
    pub async fn vm_log(&self, name: &str, kind: &str, lines: Option<u32>) -> Result<Vec<u8>, Error> {
        let lines = lines.map_or_else(String::new, |lines| format!("&lines={lines}"));
        let path = format!("/v1/vms/{}/log?kind={kind}{lines}", escaped(name));
        Ok(self.call("GET", &path, &[], None).await?.1)
    }

    /// What a machine uses.
    pub async fn vm_metrics(&self, name: &str) -> Result<VmMetrics, Error> {
        self.get(&format!("/v1/vms/{}/metrics", escaped(name))).await
    }

    /// All operations of the project, the newest first.
    pub async fn operations(&self) -> Result<Vec<Operation>, Error> {
        self.all("/v1/operations").await
    }

    /// One operation as it is now, or when it has ended, but after `seconds` at the latest.
    pub async fn operation(&self, id: &str, seconds: u32) -> Result<Operation, Error> {
        self.get(&format!("/v1/operations/{}?wait={seconds}", escaped(id))).await
    }

    /// Cancels an operation.
    pub async fn operation_cancel(&self, id: &str) -> Result<(), Error> {
        self.delete(&format!("/v1/operations/{}", escaped(id))).await
    }

    /// Waits for the end of an operation.
    ///
    /// # Errors
    /// When it failed or was cancelled, or the daemon cannot be reached.
    pub async fn wait(&self, mut operation: Operation) -> Result<Operation, Error> {
        while operation.state == OperationState::Running {
            operation = self.operation(&operation.id, WAIT_SECONDS).await?;
        }
        ended(operation)
    }
}

/// What came of an operation that has ended.
///
/// # Errors
/// When it failed or was cancelled.
pub fn ended(mut operation: Operation) -> Result<Operation, Error> {
    match (operation.state, operation.error.take()) {
        (OperationState::Succeeded, _) => Ok(operation),
        (_, Some(error)) => Err(Error::refused(error)),
        (_, None) => Err(Error::malformed("a failure without a reason")),
    }
}

impl Client {
    /// All images of the host.
    pub async fn images(&self) -> Result<Vec<ImageView>, Error> {
        Ok(self.get::<Page<ImageView>>("/v1/images").await?.items)
    }

    /// One image, by name or digest.
    pub async fn image(&self, name: &str) -> Result<ImageView, Error> {
        self.get(&format!("/v1/images/{}", escaped(name))).await
    }

    /// Builds or fetches an image.
    pub async fn image_create(&self, params: &ImageParams) -> Result<Operation, Error> {
        self.post("/v1/images", params).await
    }

    /// Takes a name of an image away.
    pub async fn image_delete(&self, name: &str) -> Result<(), Error> {
        self.delete(&format!("/v1/images/{}", escaped(name))).await
    }

    /// All volumes of the project.
    pub async fn volumes(&self) -> Result<Vec<Volume>, Error> {
        self.all("/v1/volumes").await
    }

    /// Creates an empty volume.
    pub async fn volume_create(&self, params: &VolumeParams) -> Result<Volume, Error> {
        self.post("/v1/volumes", params).await
    }

    /// Removes a volume.
    pub async fn volume_delete(&self, name: &str) -> Result<(), Error> {
        self.delete(&format!("/v1/volumes/{}", escaped(name))).await
    }

    /// All networks of the project.
    pub async fn networks(&self) -> Result<Vec<Network>, Error> {
        self.all("/v1/networks").await
    }

    /// One network.
    pub async fn network(&self, name: &str) -> Result<Network, Error> {
        self.get(&format!("/v1/networks/{}", escaped(name))).await
    }

    /// Creates a network.
    pub async fn network_create(&self, params: &NetworkParams) -> Result<Network, Error> {
        self.post("/v1/networks", params).await
    }

    /// Changes a network by a merge patch of its configuration, if it is still of this revision.
    pub async fn network_update(
        &self,
        name: &str,
        patch: &serde_json::Value,
        revision: Option<i64>,
    ) -> Result<Network, Error> {
        self.patch(&format!("/v1/networks/{}", escaped(name)), patch, revision).await
    }

    /// Removes a network.
    pub async fn network_delete(&self, name: &str) -> Result<(), Error> {
        self.delete(&format!("/v1/networks/{}", escaped(name))).await
    }

    /// All pools.
    pub async fn pools(&self) -> Result<Vec<Pool>, Error> {
        Ok(self.get::<Page<Pool>>("/v1/pools").await?.items)
    }

    /// Makes a pool.
    pub async fn pool_create(&self, params: &PoolParams) -> Result<Pool, Error> {
        self.post("/v1/pools", params).await
    }

    /// Removes a pool without volumes.
    pub async fn pool_delete(&self, name: &str) -> Result<(), Error> {
        self.delete(&format!("/v1/pools/{}", escaped(name))).await
    }

    /// Projects that the caller sees.
    pub async fn projects(&self) -> Result<Vec<Project>, Error> {
        Ok(self.get::<Page<Project>>("/v1/projects").await?.items)
    }

    /// Creates a project.
    pub async fn project_create(&self, params: &ProjectParams) -> Result<Project, Error> {
        self.post("/v1/projects", params).await
    }

    /// Changes what is given of a project.
    pub async fn project_update(&self, name: &str, update: &ProjectUpdate) -> Result<Project, Error> {
        let patch = serde_json::to_value(update).map_err(|e| Error::malformed(e.to_string()))?;
        self.patch(&format!("/v1/projects/{}", escaped(name)), &patch, None).await
    }

    /// Removes an empty project.
    pub async fn project_delete(&self, name: &str) -> Result<(), Error> {
        self.delete(&format!("/v1/projects/{}", escaped(name))).await
    }

    /// All users.
    pub async fn users(&self) -> Result<Vec<User>, Error> {
        Ok(self.get::<Page<User>>("/v1/users").await?.items)
    }

    /// Creates a user.
    pub async fn user_create(&self, params: &UserParams) -> Result<User, Error> {
        self.post("/v1/users", params).await
    }

    /// Changes what is given of a user.
    pub async fn user_update(&self, name: &str, update: &UserUpdate) -> Result<User, Error> {
        let patch = serde_json::to_value(update).map_err(|e| Error::malformed(e.to_string()))?;
        self.patch(&format!("/v1/users/{}", escaped(name)), &patch, None).await
    }

    /// Removes a user.
    pub async fn user_delete(&self, name: &str) -> Result<(), Error> {
        self.delete(&format!("/v1/users/{}", escaped(name))).await
    }

    /// All tokens.
    pub async fn tokens(&self) -> Result<Vec<Token>, Error> {
        Ok(self.get::<Page<Token>>("/v1/tokens").await?.items)
    }

    /// Makes a token.
    pub async fn token_create(&self, params: &TokenParams) -> Result<NewToken, Error> {
        self.post("/v1/tokens", params).await
    }

    /// Removes a token.
    pub async fn token_delete(&self, id: &str) -> Result<(), Error> {
        self.delete(&format!("/v1/tokens/{}", escaped(id))).await
    }

    /// The newest entries of the audit log, so many.
    pub async fn audit(&self, count: u32) -> Result<Vec<AuditEntry>, Error> {
        let (mut entries, mut after) = (Vec::new(), String::new());
        loop {
            let limit = (count as usize - entries.len()).min(1000);
            if limit == 0 {
                return Ok(entries);
            }
            let page: Page<AuditEntry> = self.get(&format!("/v1/audit?limit={limit}&after={after}")).await?;
            entries.extend(page.items);
            match page.next {
                Some(next) => after = next,
                None => return Ok(entries),
            }
        }
    }
}

/// The body of a request.
type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}

fn refusal(status: u16, body: &[u8]) -> Error {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => Error::refused(body.error),
        Err(_) => Error::malformed(format!("status {status} and something that is no error of ours")),
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|e| Error::malformed(e.to_string()))
}

/// A part of a path or a value of a query (RFC 3986, section 2).
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_has_a_meaning_in_addresses_is_escaped() {
        assert_eq!(super::escaped("web-1_~"), "web-1_~");
        assert_eq!(super::escaped("../a b?ä"), "%2E%2E%2Fa%20b%3F%C3%A4");
    }
}
