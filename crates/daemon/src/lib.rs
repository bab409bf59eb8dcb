//! The daemon of one host.
//!
//! ```text
//! socket, TLS ─ http ─ who may? ─> handler ─> app ─┬─> store (SQLite)
//!                                                  └─> machine ── control socket ──> arnia-vmm (one per VM)
//! ```
//!
//! - [`http`](crate::http) decodes, asks whether the caller may, calls the [`app`](crate::app), encodes. Every
//!   endpoint has its line in the table `http::access`.
//! - `app` is what the daemon can do, free of HTTP. Long work is an operation: written down before it is
//!   answered, and carried on after a crash.
//! - `machine` starts workers, watches over them, and finds them again when the daemon comes back. A worker is
//!   no child in need of its parent: it holds a lock as long as it lives, serves its control socket, and leaves
//!   a report when it ends (ADR 0013).
//!
//! **What is absent**: engines and device models; the daemon does not link them.

mod app;
mod config;
mod error;
mod guest;
mod http;
mod machine;
mod service;
mod util;

pub use config::{Config, Mode, Paths};
pub use error::{Error, StartError};
pub use http::openapi_json;

use app::App;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the daemon until SIGTERM or SIGINT. Machines go on without it.
///
/// # Errors
/// When it cannot start: another one runs, or its folders cannot be used.
pub fn run(config: Config) -> Result<(), StartError> {
    let failed = |e: std::io::Error| StartError::new("the daemon's threads cannot be started").with_source(e);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()
        .map_err(failed)?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_background();
    result
}

async fn serve(config: Config) -> Result<(), StartError> {
    let cannot = |e: std::io::Error| StartError::new("signals cannot be taken over").with_source(e);
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate()).map_err(cannot)?, signal(SignalKind::interrupt()).map_err(cannot)?);
    let _lock = config.paths.prepare()?;
    let app = App::open(config)?;
    let listeners = http::listen::bind(&app.config).await?;
    App::begin(&app);
    let server = tokio::spawn(http::listen::serve(listeners, Arc::clone(&app)));
    log::info!("arnia daemon {} is ready", env!("CARGO_PKG_VERSION"));
    service::ready();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    server.abort();
    let _ = std::fs::remove_file(app.config.paths.socket());
    log::info!("the daemon ends; machines go on");
    Ok(())
}
