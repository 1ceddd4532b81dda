//! Two Envoys with mutual TLS: the same ports and backends as two sidecars of Selvedge.

use super::Backend;
use crate::bench::{
    authority::{Authority, Svid, id},
    peer::address,
    process::{Core, Process, free_port},
};
use anyhow::Result;
use serde_json::{Value, json};
use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

/// Where the two listen.
struct Ports {
    http: u16,
    tcp: u16,
    inbound_http: u16,
    inbound_tcp: u16,
}

/// Starts both; the addresses of the outbound one (HTTP, TCP) and of the inbound one (HTTP).
pub fn start(
    envoy: &Path,
    authority: &Authority,
    dir: &Path,
    backend: &Backend,
) -> Result<([Process; 2], [SocketAddr; 3])> {
    fs::create_dir_all(dir)?;
    let ports = Ports { http: free_port()?, tcp: free_port()?, inbound_http: free_port()?, inbound_tcp: free_port()? };
    let (client, server) = (authority.issue("client")?, authority.issue("server")?);
    let outbound = outbound(authority, &client, &ports);
    let inbound = inbound(authority, &server, &ports, backend);
    let start = |name: &str, config: &Value, base: &str, ports: [u16; 2]| {
        let path = dir.join(format!("{name}.json"));
        fs::write(&path, config.to_string())?;
        let mut command = Command::new(envoy);
        command.arg("-c").arg(path).args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
        command.args(["--base-id", base]);
        let mut process = Process::start("Envoy", &mut command, Core::Proxy, &dir.join(format!("{name}.log")))?;
        for port in ports {
            process.wait_for(address(port), Duration::from_secs(60))?;
        }
        anyhow::Ok(process)
    };
    let inbound = start("inbound", &inbound, "1", [ports.inbound_http, ports.inbound_tcp])?;
    let outbound = start("outbound", &outbound, "2", [ports.http, ports.tcp])?;
    Ok(([outbound, inbound], [address(ports.http), address(ports.tcp), address(ports.inbound_http)]))
}

fn outbound(authority: &Authority, svid: &Svid, ports: &Ports) -> Value {
    let socket = |alpn: &str| {
        let mut common = common(authority, svid, "server");
        common["alpn_protocols"] = json!([alpn]);
        json!({"name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": common}})
    };
    json!({"static_resources": {
        "listeners": [
            listener("http", address(ports.http), manager("http"), None),
            listener("tcp", address(ports.tcp), proxy("tcp"), None),
        ],
        "clusters": [
            cluster("http", address(ports.inbound_http), true, Some(socket("h2"))),
            cluster("tcp", address(ports.inbound_tcp), false, Some(socket("tcp"))),
        ],
    }})
}

fn inbound(authority: &Authority, svid: &Svid, ports: &Ports, backend: &Backend) -> Value {
    let socket = |alpn: &str| {
        let mut common = common(authority, svid, "client");
        common["alpn_protocols"] = json!([alpn]);
        json!({"name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true, "common_tls_context": common}})
    };
    json!({"static_resources": {
        "listeners": [
            listener("http", address(ports.inbound_http), manager("http"), Some(socket("h2"))),
            listener("tcp", address(ports.inbound_tcp), proxy("tcp"), Some(socket("tcp"))),
        ],
        "clusters": [cluster("http", backend.http, false, None), cluster("tcp", backend.tcp, false, None)],
    }})
}

/// TLS 1.3 with an own certificate; the other side must be exactly `peer`.
fn common(authority: &Authority, svid: &Svid, peer: &str) -> Value {
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": {"filename": svid.chain}, "private_key": {"filename": svid.key}}],
        "validation_context": {
            "trusted_ca": {"filename": authority.root},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": id(peer)}}],
        },
    })
}

fn manager(name: &str) -> Value {
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": {"name": name, "virtual_hosts": [{"name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name}}]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    }})
}

fn proxy(cluster: &str) -> Value {
    json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": cluster, "cluster": cluster}})
}

fn listener(name: &str, at: SocketAddr, filter: Value, tls: Option<Value>) -> Value {
    let mut chain = json!({"filters": [filter]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({"name": name, "filter_chains": [chain],
        "address": {"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}}})
}

fn cluster(name: &str, to: SocketAddr, http2: bool, tls: Option<Value>) -> Value {
    let at = json!({"address": {"socket_address": {"address": to.ip().to_string(), "port_value": to.port()}}});
    let mut cluster = json!({"name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": at}]}]}});
    if http2 {
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}}});
    }
    if let Some(tls) = tls {
        cluster["transport_socket"] = tls;
    }
    cluster
}
