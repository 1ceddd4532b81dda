//! Resources for the tests.

use selvedge_testkit::selvedge::Setup;
use std::{fmt::Write, net::SocketAddr};

pub const HOST: &str = "shop.example";

pub fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_selvedge"))
}

/// A Gateway with an HTTP listener on each port.
pub fn gateway(ports: &[u16]) -> String {
    let mut text = String::from(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge}\nspec:\n  gatewayClassName: selvedge\n  listeners:\n",
    );
    for port in ports {
        let _ = writeln!(text, "  - {{name: http-{port}, port: {port}, protocol: HTTP}}");
    }
    text
}

/// Everything to the Service `app`, with a response header `x-revision`.
pub fn route(revision: usize) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: app}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: {{set: [{{name: x-revision, value: \"{revision}\"}}]}}
    backendRefs: [{{name: app, port: 80}}]
"
    )
}

/// The Service `app` with these endpoints.
pub fn service(endpoints: &[SocketAddr]) -> String {
    let mut text = String::from(
        "apiVersion: v1\nkind: Service\nmetadata: {name: app}\nspec:\n  ports: [{name: http, port: 80, protocol: TCP}]\n",
    );
    for (index, endpoint) in endpoints.iter().enumerate() {
        let _ = write!(
            text,
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: app-{index}, labels: {{kubernetes.io/service-name: app}}}}
addressType: IPv4
ports: [{{name: http, port: {}, protocol: TCP}}]
endpoints: [{{addresses: [{}]}}]
",
            endpoint.port(),
            endpoint.ip()
        );
    }
    text
}
