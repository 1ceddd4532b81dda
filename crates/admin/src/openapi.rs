//! The OpenAPI document of the admin listener, made from one table of endpoints. `openapi.json` beside this crate is
//! its golden copy.

use serde_json::{Map, Value, json};

/// One method of one path.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    pub method: &'static str,
    pub path: &'static str,
    pub summary: &'static str,
    /// Status, media type, and the name of the schema (empty: text) of each answer but errors.
    answers: &'static [(&'static str, &'static str, &'static str)],
    /// Schema of the request's body.
    body: Option<&'static str>,
    /// Statuses of errors besides 403.
    errors: &'static [&'static str],
}

const JSON: &str = "application/json";

const fn get(path: &'static str, summary: &'static str, schema: &'static str) -> Endpoint {
    let answers: &'static [_] = match schema.as_bytes() {
        b"Readiness" => &[("200", JSON, "Readiness"), ("503", JSON, "Readiness")],
        b"Liveness" => &[("200", JSON, "Liveness")],
        b"Resources" => &[("200", JSON, "Resources")],
        b"Status" => &[("200", JSON, "Status")],
        b"Clusters" => &[("200", JSON, "Clusters")],
        b"Listeners" => &[("200", JSON, "Listeners")],
        b"Nodes" => &[("200", JSON, "Nodes")],
        b"LogLevel" => &[("200", JSON, "LogLevel")],
        b"Object" => &[("200", JSON, "Object")],
        _ => &[("200", "text/plain", "")],
    };
    Endpoint { method: "GET", path, summary, answers, body: None, errors: &[] }
}

pub(crate) const ENDPOINTS: &[Endpoint] = &[
    get("/", "This list.", ""),
    Endpoint {
        answers: &[
            ("200", "text/plain; version=0.0.4", ""),
            ("200", "application/openmetrics-text; version=1.0.0", ""),
        ],
        ..get("/metrics", "Metrics for Prometheus; OpenMetrics when the Accept header asks for it.", "")
    },
    get("/ready", "200 when traffic is welcome; 503 before the first configuration and while draining.", "Readiness"),
    get("/live", "200 as long as the process answers.", "Liveness"),
    get("/config", "The effective resources; the values of Secrets are redacted.", "Resources"),
    get("/status", "What serves, what is wrong with the resources, and their conditions.", "Status"),
    Endpoint {
        errors: &["400", "404"],
        ..get("/clusters", "Endpoints with health and load, limits with use; ?key= picks one cluster.", "Clusters")
    },
    get("/listeners", "Open sockets and their connections.", "Listeners"),
    get(
        "/nodes",
        "Of a control plane: its proxies, in sync or why not, and those that went within the last hour.",
        "Nodes",
    ),
    Endpoint {
        method: "POST",
        path: "/drain",
        summary: "Finish what has begun, then end the process (as SIGTERM does).",
        answers: &[("202", JSON, "Draining")],
        body: None,
        errors: &[],
    },
    get("/log-level", "The filter of the process's log.", "LogLevel"),
    Endpoint {
        method: "PUT",
        path: "/log-level",
        summary: "Changes the filter of the process's log until it ends.",
        answers: &[("200", JSON, "LogLevel")],
        body: Some("LogLevel"),
        errors: &["400", "413"],
    },
    get("/openapi.json", "This API as OpenAPI 3.1.", "Object"),
];

/// All endpoints.
pub fn endpoints() -> &'static [Endpoint] {
    ENDPOINTS
}

/// The OpenAPI 3.1 document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for endpoint in ENDPOINTS {
        let item = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        item[endpoint.method.to_ascii_lowercase()] = operation(endpoint);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Selvedge admin",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What one Selvedge process tells of itself. For operators only: keep it on loopback. \
                            The Host header must be an address or a loopback name.",
        },
        "paths": paths,
        "components": { "schemas": schemas() },
    })
}

fn operation(endpoint: &Endpoint) -> Value {
    let mut responses = Map::new();
    for (status, media, schema) in endpoint.answers {
        let schema = if schema.is_empty() { json!({"type": "string"}) } else { reference(schema) };
        let response =
            responses.entry(*status).or_insert_with(|| json!({"description": describe(status), "content": {}}));
        response["content"][*media] = json!({ "schema": schema });
    }
    for status in endpoint.errors.iter().copied().chain(["403"]) {
        let content = json!({ JSON: { "schema": reference("Error") } });
        responses.insert(status.to_owned(), json!({ "description": describe(status), "content": content }));
    }
    let mut operation = json!({ "summary": endpoint.summary, "responses": responses });
    if endpoint.path == "/clusters" {
        operation["parameters"] = json!([{
            "name": "key", "in": "query", "required": false,
            "description": "`namespace/service:port` of one cluster.", "schema": {"type": "string"},
        }]);
    }
    if let Some(body) = endpoint.body {
        operation["requestBody"] = json!({ "required": true, "content": { JSON: { "schema": reference(body) } } });
    }
    operation
}

fn describe(status: &str) -> &'static str {
    match status {
        "200" => "OK",
        "202" => "Begun",
        "400" => "The request is wrong; the body says how",
        "403" => "The Host header is no address or loopback name, or a web page asked",
        "404" => "There is no such thing",
        "413" => "The body is too large",
        _ => "Not now",
    }
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties })
}

fn list(schema: &str) -> Value {
    json!({ "type": "array", "items": reference(schema) })
}

fn schemas() -> Value {
    let (text, flag, count) =
        (json!({"type": "string"}), json!({"type": "boolean"}), json!({"type": "integer", "minimum": 0}));
    let usage = object(&["used", "max", "refused"], json!({ "used": count, "max": count, "refused": count }));
    json!({
        "Error": object(&["error", "help"], json!({ "error": text, "help": text })),
        "Object": { "type": "object" },
        "Readiness": object(&["ready"], json!({ "ready": flag, "reason": text })),
        "Liveness": object(&["live"], json!({ "live": flag })),
        "Draining": object(&["draining"], json!({ "draining": flag })),
        "LogLevel": object(&["level"], json!({ "level": text })),
        "Resources": object(&["items"], json!({
            "apiVersion": text, "kind": text, "items": { "type": "array", "items": { "type": "object" } },
        })),
        "Status": object(
            &["version", "revision", "installed", "took_ms", "last_good", "errors", "warnings", "diagnostics", "problems", "resources"],
            json!({
                "version": text, "revision": count, "installed": count, "took_ms": count, "last_good": flag,
                "errors": count, "warnings": count, "diagnostics": list("Diagnostic"), "problems": list("Problem"),
                "resources": { "type": "object", "additionalProperties": { "type": "object" } },
            }),
        ),
        "Diagnostic": object(&["severity", "code", "message"], json!({
            "severity": { "enum": ["error", "warning", "info"] }, "code": text, "resource": text, "path": text,
            "message": text, "help": text, "file": text, "line": count, "column": count,
        })),
        "Problem": object(&["listener", "message"], json!({ "listener": text, "message": text })),
        "Listeners": list("Listener"),
        "Listener": object(
            &["bind", "protocol", "listeners", "connections", "accepted", "draining"],
            json!({
                "bind": text, "protocol": { "enum": ["http", "tls", "tcp", "udp"] },
                "listeners": { "type": "array", "items": text }, "connections": count, "accepted": count, "draining": flag,
            }),
        ),
        "Nodes": list("Node"),
        "Node": object(
            &["id", "role", "identity", "version", "host", "workloads", "state", "reason", "resources", "sent", "has", "wants", "connected"],
            json!({
                "id": text, "role": { "enum": ["gateway", "sidecar", "node"] }, "identity": text, "version": text,
                "host": text, "workloads": { "type": "array", "items": text }, "reason": text,
                "state": { "enum": ["in_sync", "updating", "stale", "refusing", "errors", "gone", "left"] },
                "resources": count, "sent": count, "has": text, "wants": text, "connected": count,
                "last_ack": { "type": ["integer", "null"] }, "last_nack": { "type": ["integer", "null"] },
                "last_nack_text": { "type": ["string", "null"] },
                "gone_since": { "type": ["integer", "null"] },
            }),
        ),
        "Clusters": list("Cluster"),
        "Cluster": object(&["key", "endpoints", "available", "panic", "limits"], json!({
            "key": text, "endpoints": list("Endpoint"), "available": count, "panic": flag,
            "limits": object(&["connections", "pending", "requests", "retries", "retry_budget_refused"], json!({
                "connections": reference("Usage"), "pending": reference("Usage"), "requests": reference("Usage"),
                "retries": reference("Usage"), "retry_budget_refused": count,
            })),
            "dns": object(&["host", "addresses"], json!({ "host": text, "addresses": count, "error": text })),
        })),
        "Usage": usage,
        "Endpoint": object(
            &["address", "weight", "health", "protocol", "active_requests", "connections", "idle_connections", "requests", "failures", "ejections"],
            json!({
                "address": text, "weight": count, "zone": text,
                "health": object(&["state"], json!({
                    "state": { "enum": ["healthy", "pending", "unhealthy", "ejected", "probation"] },
                    "reason": text, "seconds_left": { "type": "number" },
                })),
                "protocol": text, "active_requests": count, "connections": count, "idle_connections": count,
                "requests": count, "failures": count, "ejections": count, "ewma_ms": { "type": "number" },
            }),
        ),
    })
}
