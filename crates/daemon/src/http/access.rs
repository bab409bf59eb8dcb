//! Who may do what: one table, asked before any handler runs. What is not in it nobody may.

use crate::Error;
use crate::app::{App, Caller};
use crate::http::right::Right;
use crate::util;
use api::v1::DEFAULT_PROJECT;
use api::v1::access::{AuditEntry, Role};
use api::v1::error::ErrorCode;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, watch};

/// What it takes to use an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anybody who is logged in; the handler shows each what is theirs.
    Known,
    /// A role in the project of the request.
    Project(Role),
    /// A role in all projects.
    Host(Role),
}

use Access::{Host, Known, Project};
use Role::{Admin, Operator, Viewer};

/// Every operation of the API.
pub(crate) const TABLE: &[(&str, Access)] = &[
    ("host_view", Known),
    ("metrics", Host(Viewer)),
    ("openapi", Known),
    ("event_list", Project(Viewer)),
    ("vm_create", Project(Operator)),
    ("vm_list", Project(Viewer)),
    ("vm_view", Project(Viewer)),
    ("vm_update", Project(Operator)),
    ("vm_delete", Project(Operator)),
    ("vm_start", Project(Operator)),
    ("vm_stop", Project(Operator)),
    ("vm_restart", Project(Operator)),
    ("vm_pause", Project(Operator)),
    ("vm_resume", Project(Operator)),
    ("vm_rename", Project(Operator)),
    ("vm_resize", Project(Operator)),
    ("vm_suspend", Project(Operator)),
    ("vm_clone", Project(Operator)),
    ("snapshot_create", Project(Operator)),
    ("snapshot_list", Project(Viewer)),
    ("snapshot_view", Project(Viewer)),
    ("snapshot_delete", Project(Operator)),
    ("snapshot_restore", Project(Operator)),
    ("vm_log", Project(Viewer)),
    ("vm_metrics", Project(Viewer)),
    ("vm_console", Project(Operator)),
    ("port_list", Project(Viewer)),
    ("port_create", Project(Operator)),
    ("port_delete", Project(Operator)),
    ("mount_list", Project(Viewer)),
    ("mount_create", Project(Operator)),
    ("mount_delete", Project(Operator)),
    ("vm_guest", Project(Viewer)),
    ("vm_exec", Project(Operator)),
    ("vm_screenshot", Project(Operator)),
    ("vm_screen_text", Project(Operator)),
    ("vm_keys", Project(Operator)),
    ("file_read", Project(Operator)),
    ("file_write", Project(Operator)),
    ("file_view", Project(Operator)),
    ("file_list", Project(Operator)),
    ("operation_list", Project(Viewer)),
    ("operation_view", Known),
    ("operation_cancel", Known),
    ("image_create", Host(Admin)),
    ("image_list", Known),
    ("image_view", Known),
    ("image_delete", Host(Admin)),
    ("volume_create", Project(Operator)),
    ("volume_list", Project(Viewer)),
    ("volume_view", Project(Viewer)),
    ("volume_delete", Project(Operator)),
    ("pool_create", Host(Admin)),
    ("pool_list", Known),
    ("pool_delete", Host(Admin)),
    ("network_create", Project(Operator)),
    ("network_list", Project(Viewer)),
    ("network_view", Project(Viewer)),
    ("network_update", Project(Operator)),
    ("network_delete", Project(Operator)),
    ("project_create", Host(Admin)),
    ("project_list", Known),
    ("project_view", Known),
    ("project_update", Host(Admin)),
    ("project_delete", Host(Admin)),
    ("user_create", Host(Admin)),
    ("user_list", Host(Admin)),
    ("user_view", Host(Admin)),
    ("user_update", Host(Admin)),
    ("user_delete", Host(Admin)),
    ("token_create", Host(Admin)),
    ("token_list", Host(Admin)),
    ("token_delete", Host(Admin)),
    ("identity_view", Known),
    ("audit_list", Host(Admin)),
];

/// Operations that are written down although they are a GET: a WebSocket begins with one, and what was taken out of
/// a guest may matter.
const AUDITED_GETS: &[&str] = &["vm_console", "vm_exec", "file_read", "vm_screenshot", "vm_screen_text"];

/// How a connection came in.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    /// Over the Unix socket, from a process of the daemon's owner.
    Owner,
    /// From elsewhere, with this certificate (DER), whose key the client has.
    Certificate(Vec<u8>),
    /// From elsewhere: a token is needed.
    Stranger,
}

/// By what a caller is known.
#[derive(Clone)]
pub(super) enum Credential {
    /// The owner's socket.
    Owner,
    /// A token's secret.
    Token(String),
    /// A certificate (DER), whose key the client has.
    Certificate(Vec<u8>),
}

// By hand, so that no secret gets into a log.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credential::Owner => "Owner",
            Credential::Token(_) => "Token(..)",
            Credential::Certificate(_) => "Certificate(..)",
        })
    }
}

/// The project of a request that may be carried out.
#[derive(Clone, Debug)]
pub(crate) struct InProject(pub(crate) String);

/// Knows which request is which operation.
#[derive(Debug)]
pub(super) struct Gate {
    app: Arc<App>,
    operations: HashMap<(Method, String), String>,
}

/// The operations of a document, by method and path.
pub(super) fn operations(document: &utoipa::openapi::OpenApi) -> HashMap<(Method, String), String> {
    let mut operations = HashMap::new();
    for (path, item) in &document.paths.paths {
        let methods = [
            (Method::GET, &item.get),
            (Method::POST, &item.post),
            (Method::PUT, &item.put),
            (Method::PATCH, &item.patch),
            (Method::DELETE, &item.delete),
        ];
        for (method, operation) in methods {
            if let Some(name) = operation.as_ref().and_then(|operation| operation.operation_id.clone()) {
                operations.insert((method, path.clone()), name);
            }
        }
    }
    operations
}

impl Gate {
    pub(super) fn new(app: Arc<App>, document: &utoipa::openapi::OpenApi) -> Gate {
        Gate { app, operations: operations(document) }
    }

    fn operation(&self, request: &Request) -> Option<&str> {
        let path = request.extensions().get::<MatchedPath>()?.as_str();
        let method = match *request.method() {
            // Served by the handler of GET.
            Method::HEAD => Method::GET,
            ref method => method.clone(),
        };
        self.operations.get(&(method, path.to_owned())).map(String::as_str)
    }

    /// By what the caller of a request is known.
    fn credential(request: &Request) -> Result<Credential, Error> {
        // A token counts on the owner's socket, too: so it can be tried out there.
        match (request.headers().get(header::AUTHORIZATION), request.extensions().get::<Peer>()) {
            (Some(value), _) => {
                let secret = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
                secret.map(|secret| Credential::Token(secret.trim().to_owned())).ok_or_else(no_such_token)
            }
            (None, Some(Peer::Owner)) => Ok(Credential::Owner),
            (None, Some(Peer::Certificate(certificate))) => Ok(Credential::Certificate(certificate.clone())),
            (None, _) => Err(Error::new(ErrorCode::Unauthenticated, "nobody is logged in")
                .with_remedy("send a token: `Authorization: Bearer arnia_…`")),
        }
    }

    fn caller(&self, credential: &Credential) -> Result<Caller, Error> {
        match credential {
            Credential::Owner => Ok(Caller::owner()),
            Credential::Token(secret) => self.app.caller_by_token(secret).ok_or_else(no_such_token),
            Credential::Certificate(certificate) => {
                self.app.caller_by_certificate(certificate).ok_or_else(|| {
                    Error::new(ErrorCode::Unauthenticated, "nobody is known by this certificate")
                        .with_remedy("have it added: `arnia token create USER --certificate FILE`")
                })
            }
        }
    }

    /// The caller, who may do this now.
    pub(super) fn admitted(
        &self,
        credential: &Credential,
        operation: &str,
        project: &str,
    ) -> Result<Caller, Error> {
        let caller = self.caller(credential)?;
        self.admit(operation, &caller, project)?;
        Ok(caller)
    }

    /// Tells when it is worth while to ask again who may do what.
    pub(super) fn rights_changed(&self) -> watch::Receiver<()> {
        self.app.rights_changed()
    }

    /// Whether the caller may; the project is then one that exists for the caller.
    fn admit(&self, operation: &str, caller: &Caller, project: &str) -> Result<(), Error> {
        let access = TABLE.iter().find(|(name, _)| *name == operation).map(|(_, access)| *access);
        let forbidden = |what: String| {
            Err(Error::new(ErrorCode::Forbidden, what).with_remedy("ask an admin for the role"))
        };
        match access {
            None => forbidden(format!("nobody may do {operation}")),
            Some(Known) => Ok(()),
            Some(Host(role)) if caller.host_role() >= Some(role) => Ok(()),
            Some(Host(role)) => forbidden(format!("{:?} is not {} of the host", caller.name, article(role))),
            Some(Project(role)) => {
                // A project that the caller has no role in is as good as none.
                let visible = caller.role(project);
                if visible.is_none() || self.app.read(|records| Ok(records.project(project)?)).is_err() {
                    return Err(no_project(project));
                }
                if visible < Some(role) {
                    let who = &caller.name;
                    return forbidden(format!("{who:?} is not {} of the project {project:?}", article(role)));
                }
                Ok(())
            }
        }
    }
}

fn no_such_token() -> Error {
    Error::new(ErrorCode::Unauthenticated, "the token is not valid")
        .with_remedy("it may have ended or been removed: have a new one made")
}

pub(crate) fn no_project(project: &str) -> Error {
    let shown: String = project.chars().take(64).collect();
    Error::new(ErrorCode::NotFound, format!("there is no project {shown:?}"))
        .with_remedy("see `arnia project ls`")
}

fn article(role: Role) -> &'static str {
    match role {
        Viewer => "a viewer",
        Operator => "an operator",
        Admin => "an admin",
    }
}

/// The project that a query names.
fn project_of(query: &str) -> String {
    let url = format!("http://x/?{query}");
    let named = url.parse().ok().and_then(|url| {
        let query = axum::extract::Query::<HashMap<String, String>>::try_from_uri(&url).ok()?;
        query.0.get("project").cloned()
    });
    named.unwrap_or_else(|| DEFAULT_PROJECT.to_owned())
}

/// The place of a connection among those that are served. Work keeps it although its client is gone, so that hanging
/// up does not let a client have more work under way than it has connections.
#[derive(Clone, Debug)]
pub(super) struct Place(#[expect(dead_code, reason = "held, not read")] pub(super) Arc<OwnedSemaphorePermit>);

/// Lets a request through if its caller may, and writes changes and refusals down.
///
/// What changes things is carried out to its end and written down also when the client goes away meanwhile: the
/// connection's task then drops what it waits for, and half of a change would be left.
pub(super) async fn check(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let Some(operation) = gate.operation(&request).map(str::to_owned) else {
        // Another method than those of the path.
        return next.run(request).await;
    };
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let changes = !reads || AUDITED_GETS.contains(&operation.as_str());
    let place = request.extensions().get::<Place>().cloned();
    let work = carry_out(gate, operation, changes, request, next);
    if !changes {
        return work.await;
    }
    let done = tokio::spawn(async move {
        let response = work.await;
        drop(place);
        response
    });
    done.await
        .unwrap_or_else(|e| Error::internal("the request was not carried out to its end", e).into_response())
}

/// Has a request handled if its caller may; writes it down if it `changes` something or is refused.
async fn carry_out(
    gate: Arc<Gate>,
    operation: String,
    changes: bool,
    mut request: Request,
    next: Next,
) -> Response {
    let project = project_of(request.uri().query().unwrap_or_default());
    let path = request.uri().path().to_owned();
    let credential = Gate::credential(&request);
    let caller = credential.clone().and_then(|credential| gate.caller(&credential));
    let admitted = caller.clone().and_then(|caller| gate.admit(&operation, &caller, &project));
    let user = caller.as_ref().ok().map(|caller| caller.name.clone());
    let response = match (credential, caller, admitted) {
        (Ok(credential), Ok(caller), Ok(())) => {
            let right = Right {
                gate: gate.clone(),
                credential,
                operation: operation.clone(),
                project: project.clone(),
            };
            request.extensions_mut().insert(caller);
            request.extensions_mut().insert(InProject(project.clone()));
            request.extensions_mut().insert(right);
            next.run(request).await
        }
        (_, _, Err(error)) | (_, Err(error), _) | (Err(error), ..) => error.into_response(),
    };
    let status = response.status().as_u16();
    if changes || matches!(status, 401 | 403) {
        let mut path = path;
        path.truncate(path.floor_char_boundary(256));
        let project = Some(project).filter(|project| project.len() <= api::v1::name::LEN_MAX);
        let entry = AuditEntry { id: 0, time: util::now(), user, action: operation, project, path, status };
        if let Err(error) = gate.app.write_soon(|records| Ok(records.audit_insert(&entry)?)) {
            log::error!("the audit log cannot be written: {error}");
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::testing;
    use crate::http::listen::serve_connection;
    use axum::body::Bytes;
    use axum::routing::{post, put};
    use axum::{Router, middleware};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::{Semaphore, mpsc};

    /// Only a guard against waiting for ever.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A connection of the daemon's owner to a gate before `router`.
    fn connect(app: &Arc<App>, router: Router, method: Method, places: &Arc<Semaphore>) -> DuplexStream {
        let operations = HashMap::from([((method, "/v1/x".to_owned()), "vm_pause".to_owned())]);
        let gate = Arc::new(Gate { app: app.clone(), operations });
        let router = router.route_layer(middleware::from_fn_with_state(gate, check));
        let place = places.clone().try_acquire_owned().expect("a place");
        let (client, server) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve_connection(server, router, Peer::Owner, place));
        client
    }

    fn audited(app: &App) -> Vec<(String, u16)> {
        let entries = app.read(|records| Ok(records.audit(i64::MAX, 10)?)).expect("the audit log");
        entries.into_iter().map(|entry| (entry.action, entry.status)).collect()
    }

    async fn wait(what: &str, condition: impl Fn() -> bool) {
        let waiting = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}: not in time"));
    }

    #[tokio::test]
    async fn a_change_is_made_and_written_down_also_when_its_client_hangs_up() {
        let (app, _folder) = testing::app("hang-up");
        let (begun, mut has_begun) = mpsc::channel::<()>(1);
        let go_on = Arc::new(Semaphore::new(0));
        let waits = go_on.clone();
        let handler = async move || {
            begun.send(()).await.expect("the test waits");
            waits.acquire().await.expect("it goes on").forget();
            "done"
        };
        let places = Arc::new(Semaphore::new(1));
        let router = Router::new().route("/v1/x", post(handler));
        let mut client = connect(&app, router, Method::POST, &places);
        client.write_all(b"POST /v1/x HTTP/1.1\r\nHost: arnia\r\n\r\n").await.expect("a request");
        has_begun.recv().await.expect("it begins");
        drop(client);
        // The daemon notices; the work goes on, and still counts as a connection.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!((audited(&app), places.available_permits()), (Vec::new(), 0));
        go_on.add_permits(1);
        wait("the audit entry", || audited(&app) == [("vm_pause".to_owned(), 200)]).await;
        wait("the place is free", || places.available_permits() == 1).await;
    }

    #[tokio::test]
    async fn a_body_that_a_client_has_not_sent_to_its_end_is_an_error() {
        let (app, _folder) = testing::app("half-body");
        let (tell, mut told) = mpsc::channel(1);
        let handler = async move |body: Result<Bytes, axum::extract::rejection::BytesRejection>| {
            tell.send(body.is_err()).await.expect("the test waits");
        };
        let places = Arc::new(Semaphore::new(2));
        let router = Router::new().route("/v1/x", put(handler));
        for (text, fails) in [("5\r\nhello\r\n", true), ("5\r\nhello\r\n0\r\n\r\n", false)] {
            let mut client = connect(&app, router.clone(), Method::PUT, &places);
            let head = "PUT /v1/x HTTP/1.1\r\nHost: arnia\r\nTransfer-Encoding: chunked\r\n\r\n";
            client.write_all((head.to_owned() + text).as_bytes()).await.expect("a request");
            if !fails {
                client.read_exact(&mut [0; 12]).await.expect("an answer");
            }
            drop(client);
            assert_eq!(told.recv().await, Some(fails), "{text:?}");
        }
        wait("the audit entries", || audited(&app).len() == 2).await;
    }
}
