//! HTTP: decode, ask whether the caller may, call the app, encode.
//!
//! **To add an endpoint**: a function in `endpoints/` with its description (`utoipa::path`, the operation named like
//! `vm_start`), a line in the router below, a line in the table of [`access`], and a case in the tests
//! (`tests/authorization.rs`), which fail without it. Then `cargo xtask openapi`.

mod access;
mod endpoints;
pub(crate) mod extract;
pub(crate) mod listen;
mod respond;
pub(crate) mod right;

use crate::Error;
use crate::app::App;
use access::Gate;
use api::v1::error::{ErrorBody, ErrorCode};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use endpoints::{
    console, files, guest, host, images, mounts, networks, operations, people, ports, projects, screen,
    snapshots, storage, vms,
};
use std::sync::Arc;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Arnia",
        description = "Virtual machines of one host. All names are those of one project, given as `project`; \
                       the project is `default` when none is named."
    ),
    modifiers(&Security),
    components(schemas(
        ErrorBody,
        api::v1::event::Event,
        api::agent::ExecParams,
        api::agent::Control,
        api::v1::guest::ExecMessage
    )),
    tags((name = "arnia"))
)]
struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
        document.security =
            Some(vec![utoipa::openapi::SecurityRequirement::new("token", Vec::<String>::new())]);
    }
}

fn routes() -> (Router<Arc<App>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(host::host_view))
        .routes(routes!(host::metrics))
        .routes(routes!(host::openapi))
        .routes(routes!(host::event_list))
        .routes(routes!(vms::vm_create, vms::vm_list))
        .routes(routes!(vms::vm_view, vms::vm_update, vms::vm_delete))
        .routes(routes!(vms::vm_start))
        .routes(routes!(vms::vm_stop))
        .routes(routes!(vms::vm_restart))
        .routes(routes!(vms::vm_pause))
        .routes(routes!(vms::vm_resume))
        .routes(routes!(vms::vm_rename))
        .routes(routes!(vms::vm_resize))
        .routes(routes!(vms::vm_log))
        .routes(routes!(vms::vm_metrics))
        .routes(routes!(snapshots::vm_suspend))
        .routes(routes!(snapshots::vm_clone))
        .routes(routes!(snapshots::snapshot_create, snapshots::snapshot_list))
        .routes(routes!(snapshots::snapshot_view, snapshots::snapshot_delete))
        .routes(routes!(snapshots::snapshot_restore))
        .routes(routes!(console::vm_console))
        .routes(routes!(ports::port_list, ports::port_create))
        .routes(routes!(ports::port_delete))
        .routes(routes!(mounts::mount_list, mounts::mount_create))
        .routes(routes!(mounts::mount_delete))
        .routes(routes!(screen::vm_screenshot))
        .routes(routes!(screen::vm_screen_text))
        .routes(routes!(screen::vm_keys))
        .routes(routes!(guest::vm_guest))
        .routes(routes!(guest::vm_exec))
        .routes(routes!(files::file_read, files::file_write))
        .routes(routes!(files::file_view))
        .routes(routes!(files::file_list))
        .routes(routes!(operations::operation_list))
        .routes(routes!(operations::operation_view, operations::operation_cancel))
        .routes(routes!(images::image_create, images::image_list))
        .routes(routes!(images::image_view, images::image_delete))
        .routes(routes!(storage::volume_create, storage::volume_list))
        .routes(routes!(storage::volume_view, storage::volume_delete))
        .routes(routes!(storage::pool_create, storage::pool_list))
        .routes(routes!(storage::pool_delete))
        .routes(routes!(networks::network_create, networks::network_list))
        .routes(routes!(networks::network_view, networks::network_update, networks::network_delete))
        .routes(routes!(projects::project_create, projects::project_list))
        .routes(routes!(projects::project_view, projects::project_update, projects::project_delete))
        .routes(routes!(people::user_create, people::user_list))
        .routes(routes!(people::user_view, people::user_update, people::user_delete))
        .routes(routes!(people::token_create, people::token_list))
        .routes(routes!(people::token_delete))
        .routes(routes!(people::identity_view))
        .routes(routes!(people::audit_list))
        .split_for_parts()
}

/// The OpenAPI document of the API.
pub fn openapi_json() -> String {
    let (_, document) = routes();
    // Sorted by way of a value, so that the committed file changes only where the API does.
    let value = serde_json::to_value(document).expect("the document is JSON");
    serde_json::to_string_pretty(&value).expect("the document is JSON") + "\n"
}

/// The whole API.
fn router(app: Arc<App>) -> Router {
    let (router, document) = routes();
    let gate = Arc::new(Gate::new(app.clone(), &document));
    router
        .method_not_allowed_fallback(|| refuse(ErrorCode::MethodNotAllowed, "there is no such method here"))
        .route_layer(middleware::from_fn_with_state(gate, access::check))
        .fallback(|| refuse(ErrorCode::NotFound, "there is nothing at this path"))
        .layer(DefaultBodyLimit::max(api::v1::BODY_LEN_MAX))
        .with_state(app)
}

async fn refuse(code: ErrorCode, message: &'static str) -> Response {
    Error::new(code, message).with_remedy("see /v1/openapi.json for what there is").into_response()
}

/// Operations that the document has and the table of access has not, or the other way round.
#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_endpoint_has_its_line_in_the_table_of_access() {
        let (_, document) = routes();
        let described: BTreeSet<String> = access::operations(&document).into_values().collect();
        let table: BTreeSet<String> = access::TABLE.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(described, table);
    }

    #[test]
    fn the_committed_document_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/v1.json");
        if std::env::var_os("ARNIA_BLESS").is_some() {
            std::fs::write(path, openapi_json()).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == openapi_json(), "openapi/v1.json is old: run `cargo xtask openapi`");
    }
}
