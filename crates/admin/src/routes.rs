//! What is served under which path.

use crate::{
    AdminState,
    error::Error,
    guard::guard,
    openapi,
    redact::redact,
    types::{Draining, Level, Liveness},
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{HeaderMap, Method, StatusCode, Uri, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use selvedge_proxy::telemetry::encode::Format;
use serde::Deserialize;
use std::sync::Arc;

/// Bytes of a request's body: a log filter at most.
const MAX_BODY: usize = 16 * 1024;

type Shared = State<Arc<AdminState>>;

pub(crate) fn router(state: Arc<AdminState>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/ready", get(ready))
        .route("/live", get(live))
        .route("/config", get(config))
        .route("/status", get(status))
        .route("/clusters", get(clusters))
        .route("/listeners", get(listeners))
        .route("/nodes", get(nodes))
        .route("/drain", post(drain))
        .route("/log-level", get(level).put(set_level))
        .route("/openapi.json", get(document))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(guard))
        .with_state(state)
}

async fn index() -> String {
    let lines = openapi::ENDPOINTS.iter().map(|e| format!("{:<5} {:<14} {}\n", e.method, e.path, e.summary));
    format!("selvedge {}\n\n{}", env!("CARGO_PKG_VERSION"), lines.collect::<String>())
}

async fn metrics(State(state): Shared, headers: HeaderMap) -> impl IntoResponse {
    let format = Format::negotiate(headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()));
    ([(header::CONTENT_TYPE, format.content_type())], state.telemetry.registry.encode(format))
}

async fn ready(State(state): Shared) -> impl IntoResponse {
    let readiness = (state.readiness)();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}

async fn live() -> impl IntoResponse {
    Json(Liveness { live: true })
}

async fn config(State(state): Shared) -> impl IntoResponse {
    let mut resources = (state.config)();
    redact(&mut resources);
    Json(resources)
}

async fn status(State(state): Shared) -> impl IntoResponse {
    Json((state.status)())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    /// Only this cluster.
    key: Option<String>,
}

async fn clusters(
    State(state): Shared,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<impl IntoResponse, Error> {
    let Query(which) = which.map_err(|e| {
        Error::new(
            StatusCode::BAD_REQUEST,
            e.body_text(),
            "the one parameter is `key`: /clusters?key=namespace/service:port",
        )
    })?;
    let mut clusters = (state.clusters)();
    if let Some(key) = which.key {
        clusters.retain(|cluster| cluster.key == key);
        if clusters.is_empty() {
            let error = format!("there is no cluster `{}`", key.escape_debug());
            return Err(Error::new(StatusCode::NOT_FOUND, error, "GET /clusters lists all of them"));
        }
    }
    Ok(Json(clusters))
}

async fn listeners(State(state): Shared) -> impl IntoResponse {
    Json((state.listeners)())
}

async fn nodes(State(state): Shared) -> impl IntoResponse {
    Json((state.nodes)())
}

async fn drain(State(state): Shared) -> impl IntoResponse {
    (state.drain)();
    (StatusCode::ACCEPTED, Json(Draining { draining: true }))
}

async fn level(State(state): Shared) -> impl IntoResponse {
    Json(Level { level: (state.log_level.get)() })
}

async fn set_level(State(state): Shared, body: Result<Bytes, BytesRejection>) -> Result<Json<Level>, Error> {
    const HELP: &str = r#"send JSON like {"level": "info"} or {"level": "info,selvedge_proxy=debug"}; levels are error, warn, info, debug, trace and off"#;
    let body = body.map_err(|e| Error::new(e.status(), e.body_text(), HELP))?;
    let wanted: Level = serde_json::from_slice(&body)
        .map_err(|e| Error::new(StatusCode::BAD_REQUEST, format!("the body is not what is expected: {e}"), HELP))?;
    (state.log_level.set)(&wanted.level).map_err(|e| Error::new(StatusCode::BAD_REQUEST, e, HELP))?;
    tracing::info!(level = wanted.level, "log level changed through the admin listener");
    Ok(Json(Level { level: (state.log_level.get)() }))
}

async fn document() -> impl IntoResponse {
    Json(openapi::document())
}

async fn unknown(uri: Uri) -> Error {
    let error = format!("there is nothing at `{}`", uri.path().escape_debug());
    Error::new(StatusCode::NOT_FOUND, error, "GET / lists what there is")
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let allowed: Vec<&str> = openapi::ENDPOINTS.iter().filter(|e| e.path == uri.path()).map(|e| e.method).collect();
    let error = format!("`{}` does not take {method}", uri.path().escape_debug());
    let help = format!("use {}", allowed.join(" or "));
    let error = Error::new(StatusCode::METHOD_NOT_ALLOWED, error, help);
    ([(header::ALLOW, allowed.join(", "))], error).into_response()
}
