//! The endpoints, one file per kind of thing.

pub(super) mod console;
pub(super) mod files;
pub(super) mod guest;
pub(super) mod host;
pub(super) mod images;
pub(super) mod mounts;
pub(super) mod networks;
pub(super) mod operations;
pub(super) mod people;
pub(super) mod ports;
pub(super) mod projects;
pub(super) mod screen;
pub(super) mod snapshots;
pub(super) mod storage;
pub(super) mod vms;

use api::v1::page::PageParams;
use serde::Deserialize;

/// The project of a request.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ProjectParam {
    /// The project; `default` when absent. It is read and checked before the request comes here.
    #[serde(rename = "project", default)]
    #[expect(dead_code, reason = "here only to be described")]
    project: Option<String>,
}

/// The project, and a part of a list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Most items to return: 1 to 1000, 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    #[serde(default)]
    limit: Option<u32>,
    /// Begin after this one: `next` of the page before.
    #[serde(default)]
    after: Option<String>,
}

impl From<ListParams> for PageParams {
    fn from(params: ListParams) -> PageParams {
        PageParams { limit: params.limit, after: params.after }
    }
}
