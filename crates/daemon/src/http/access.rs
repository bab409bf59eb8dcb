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
use tokio::sync::watch;

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

/// Lets a request through if its caller may, and writes changes and refusals down.
pub(super) async fn check(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let Some(operation) = gate.operation(&request).map(str::to_owned) else {
        // Another method than those of the path.
        return next.run(request).await;
    };
    let project = project_of(request.uri().query().unwrap_or_default());
    let path = request.uri().path().to_owned();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let changes = !reads || AUDITED_GETS.contains(&operation.as_str());
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
