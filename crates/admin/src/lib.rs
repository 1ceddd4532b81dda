//! The admin listener: metrics, readiness and what the process knows of itself, as HTTP and JSON.
//!
//! It belongs on loopback (or another address that only operators reach): it has no authentication of its own. Against
//! web pages that reach loopback through a browser, requests must name a loopback host or an address ([`guard`]), and
//! none may come from another site. Everything it answers is in `openapi.json`, kept as a golden file.

mod error;
mod guard;
mod listener;
mod openapi;
mod redact;
mod routes;
mod types;

pub use openapi::{document, endpoints};
pub use redact::redact;
pub use types::{Diagnostic, Listener, Problem, Readiness, Severity, Status};

use selvedge_control::publish::status::NodeStatus;
use selvedge_proxy::{cluster::ClusterStatus, telemetry::Telemetry};
use std::{future::Future, io, sync::Arc};
use tokio::net::TcpListener;

/// Asks the rest of the process for something. Called on the control runtime; must not block for long.
pub type Ask<T> = Arc<dyn Fn() -> T + Send + Sync>;

/// What the admin listener shows and does, wired by the app.
#[derive(Clone)]
pub struct AdminState {
    pub telemetry: Arc<Telemetry>,
    pub readiness: Ask<Readiness>,
    pub status: Ask<Status>,
    /// The effective resources as a Kubernetes `List`; [`redact`] is applied to it here.
    pub config: Ask<serde_json::Value>,
    pub clusters: Ask<Vec<ClusterStatus>>,
    pub listeners: Ask<Vec<Listener>>,
    /// Proxies of a control plane; none where there is none.
    pub nodes: Ask<Vec<NodeStatus>>,
    /// Begins to drain the process, which ends when it is done; returns at once.
    pub drain: Ask<()>,
    pub log_level: LogLevel,
}

/// The filter of the process's own log (not of access logs).
#[derive(Clone)]
pub struct LogLevel {
    pub get: Ask<String>,
    /// An error says what is wrong with the filter.
    pub set: Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>,
}

/// Serves until `shutdown` resolves and the requests in progress are done.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    state: AdminState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let app = routes::router(Arc::new(state));
    axum::serve(listener::Limited::new(listener), app).with_graceful_shutdown(shutdown).await
}
