//! Networks. There is one, of mode `user`; the shape is that of those to come.

use super::ProjectParam;
use crate::Error;
use crate::app::App;
use crate::http::extract::Scope;
use api::v1::error::ErrorBody;
use api::v1::network::{Network, NetworkMode, USER_NETWORK};
use api::v1::page::Page;
use axum::Json;
use axum::extract::State;
use std::sync::Arc;

/// Lists networks by name.
#[utoipa::path(get, path = "/v1/networks", operation_id = "network_list", tag = "arnia", params(ProjectParam),
    responses((status = 200, body = Page<Network>), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn network_list(
    State(app): State<Arc<App>>,
    scope: Scope,
) -> Result<Json<Page<Network>>, Error> {
    let vms = app.read(|records| Ok(records.vms(&scope.project, "", u32::MAX)?))?;
    let plugged = vms.into_iter().filter(|vm| vm.config.nics.iter().any(|nic| nic.network == USER_NETWORK));
    let user = Network {
        name: USER_NETWORK.into(),
        description: "Each machine alone behind its own address translation".into(),
        mode: NetworkMode::User,
        vms: plugged.map(|vm| vm.name).collect(),
        project: scope.project,
        created: None,
    };
    Ok(Json(Page { items: vec![user], next: None }))
}
