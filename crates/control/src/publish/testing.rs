//! Resources for tests.

use selvedge_model::{Limits, Resource, parse};

/// The first resource of a YAML text.
pub fn resource(yaml: &str) -> Resource {
    let parsed = parse("test.yaml", yaml.as_bytes(), &Limits::default());
    parsed.loaded.into_iter().next().and_then(|l| l.resource).unwrap_or_else(|| panic!("{:?}", parsed.diagnostics))
}

pub fn service(namespace: &str, name: &str, address: &str) -> Resource {
    resource(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{clusterIP: {address}, ports: [{{port: 80}}]}}}}"
    ))
}

/// An EndpointSlice of the same name as its Service.
pub fn slice(namespace: &str, service: &str, addresses: &[&str]) -> Resource {
    let endpoints: Vec<String> = addresses.iter().map(|a| format!("{{addresses: [{a}]}}")).collect();
    resource(&format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {service}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {service}}}}}, addressType: IPv4, ports: [{{port: 8080}}], endpoints: [{}]}}",
        endpoints.join(", ")
    ))
}

pub fn gateway(namespace: &str, name: &str, secret: Option<&str>) -> Resource {
    let listener = match secret {
        Some(secret) => {
            format!("{{name: web, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{name: {secret}}}]}}}}")
        }
        None => "{name: web, port: 80, protocol: HTTP}".to_owned(),
    };
    resource(&format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{gatewayClassName: selvedge, listeners: [{listener}]}}}}"
    ))
}

/// A route from a parent (`Gateway` or `Service`) to a Service of its namespace.
pub fn route(namespace: &str, name: &str, parent: (&str, &str), to: &str) -> Resource {
    let group = if parent.0 == "Service" { "\"\"" } else { "gateway.networking.k8s.io" };
    resource(&format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{parentRefs: [{{group: {group}, kind: {}, name: {}}}], rules: [{{backendRefs: [{{name: {to}, port: 80}}]}}]}}}}",
        parent.0, parent.1
    ))
}

pub fn secret(namespace: &str, name: &str) -> Resource {
    resource(&format!(
        "{{apiVersion: v1, kind: Secret, metadata: {{name: {name}, namespace: {namespace}}}, stringData: {{a: b}}}}"
    ))
}
