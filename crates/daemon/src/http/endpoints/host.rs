//! The host, metrics, events, and the API's own description.

use super::ProjectParam;
use crate::Error;
use crate::app::{App, host::process_usage};
use crate::http::extract::{Query, Scope};
use api::v1::error::{ErrorBody, ErrorCode};
use api::v1::event::Event;
use api::v1::host::Host;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};
use serde::Deserialize;
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

/// Tells what the host is and has.
#[utoipa::path(get, path = "/v1/host", operation_id = "host_view", tag = "arnia",
    responses((status = 200, body = Host), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn host_view(State(app): State<Arc<App>>, _: Scope) -> Result<Json<Host>, Error> {
    Ok(Json(app.host()?))
}

/// Describes the API.
#[utoipa::path(get, path = "/v1/openapi.json", operation_id = "openapi", tag = "arnia",
    responses((status = 200, body = serde_json::Value), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn openapi() -> Response {
    ([("content-type", "application/json")], crate::openapi_json()).into_response()
}

/// Gives metrics for Prometheus, of all projects.
#[utoipa::path(get, path = "/v1/metrics", operation_id = "metrics", tag = "arnia",
    responses((status = 200, body = String, content_type = "text/plain"), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Error> {
    let vms = app.vm_processes()?;
    // Names hold no character that would have to be escaped.
    let label = |vm: &store::VmRecord| format!("{{project=\"{}\",vm=\"{}\"}}", vm.project, vm.name);
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, rows: Vec<(String, f64)>| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in rows {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let running = || vms.iter().filter_map(|(vm, _, pid)| Some((vm, (*pid)?)));
    metric(
        "arnia_vms",
        "gauge",
        "Virtual machines that are defined.",
        vec![(String::new(), vms.len() as f64)],
    );
    metric(
        "arnia_vm_running",
        "gauge",
        "Whether a virtual machine has a process.",
        vms.iter().map(|(vm, state, _)| (label(vm), f64::from(u8::from(state.is_active())))).collect(),
    );
    metric(
        "arnia_vm_cpu_seconds_total",
        "counter",
        "Processor time of a virtual machine's process.",
        running().map(|(vm, pid)| (label(vm), process_usage(pid).0 as f64 / 1000.0)).collect(),
    );
    metric(
        "arnia_vm_resident_bytes",
        "gauge",
        "Memory of a virtual machine's process that is in the host's RAM.",
        running().map(|(vm, pid)| (label(vm), process_usage(pid).1 as f64)).collect(),
    );
    metric(
        "arnia_vm_memory_bytes",
        "gauge",
        "Memory that a virtual machine has.",
        vms.iter().map(|(vm, ..)| (label(vm), vm.config.memory.0 as f64)).collect(),
    );
    for (name, kind, help, rows) in app.vm_counters(&vms).await {
        let rows = rows.into_iter().map(|(index, value)| (label(&vms[index].0), value)).collect();
        metric(&name, kind, &help, rows);
    }
    let (cpu, resident) = process_usage(std::process::id());
    metric(
        "arnia_daemon_cpu_seconds_total",
        "counter",
        "Processor time of the daemon.",
        vec![(String::new(), cpu as f64 / 1000.0)],
    );
    metric(
        "arnia_daemon_resident_bytes",
        "gauge",
        "Memory of the daemon.",
        vec![(String::new(), resident as f64)],
    );
    Ok(([("content-type", "text/plain; version=0.0.4")], text).into_response())
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventParams {
    /// First what happened after this event, as far as it is known. The header `Last-Event-ID` says the same.
    #[serde(default)]
    after: Option<u64>,
    /// Ends the stream after so many seconds, for clients that look now and then: 0 to 86400. Without, it does not end.
    #[param(minimum = 0, maximum = 86400)]
    #[serde(default)]
    seconds: Option<u32>,
}

/// Most seconds that a stream can be told to last.
const EVENT_SECONDS_MAX: u32 = 86400;

/// Streams what happens in a project, as server-sent events of JSON. The stream ends when its token does, or the role.
#[utoipa::path(get, path = "/v1/events", operation_id = "event_list", tag = "arnia",
    params(ProjectParam, EventParams),
    responses((status = 200, body = String, content_type = "text/event-stream"), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn event_list(
    State(app): State<Arc<App>>,
    scope: Scope,
    headers: HeaderMap,
    Query(params): Query<EventParams>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, Error> {
    if params.seconds.is_some_and(|seconds| seconds > EVENT_SECONDS_MAX) {
        let message = format!(
            "a stream of events lasts at most {EVENT_SECONDS_MAX} seconds, or is not told when to end"
        );
        return Err(Error::new(ErrorCode::BadRequest, message));
    }
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    let (missed, receiver) = app.listen(params.after.or(last));
    let live = stream::unfold(receiver, |mut receiver| async {
        loop {
            match receiver.recv().await {
                Ok(event) => return Some((event, receiver)),
                // A client that is too slow has missed some, and sees it by the numbers.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    let Scope { project, right, .. } = scope;
    let over = async move {
        let told = async {
            match params.seconds {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds.into())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = told => {}
            // Who comes again hears why.
            _ = right.lost() => {}
        }
    };
    // What has been missed comes whole, however short the time.
    let events = stream::iter(missed).chain(live.take_until(over)).filter_map(move |event: Event| {
        let here = event.project == project;
        async move { here.then(|| Ok(written(&event))) }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

fn written(event: &Event) -> sse::Event {
    let text = serde_json::to_string(event).unwrap_or_default();
    sse::Event::default().id(event.id.to_string()).data(text)
}
