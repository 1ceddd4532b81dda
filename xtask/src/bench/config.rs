//! Configurations of the peers: the same listeners, routes and backends in five languages.
//!
//! All keep connections to the backend, log no request and use one thread.

use super::{handshakes::NAME, world::World};
use anyhow::Result;
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Where a proxy listens.
#[derive(Clone, Copy)]
pub struct Ports {
    pub http: u16,
    pub https: u16,
    /// HTTP/2 in the clear; the same as `http` where a proxy tells them apart by itself.
    pub grpc: u16,
}

/// Path prefixes that are routed: everything, or `n` routes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Routes {
    All,
    Many(usize),
}

impl Routes {
    fn prefixes(self) -> Vec<String> {
        match self {
            Self::All => vec!["/".into()],
            Self::Many(n) => (0..n).map(|i| format!("{}/", route(i))).collect(),
        }
    }
}

/// The path prefix of one route.
pub fn route(i: usize) -> String {
    format!("/r{i:05}")
}

/// nginx as the backend: 128 bytes, or 1 MiB at `/big`.
pub fn backend(dir: &Path, port: u16) -> Result<PathBuf> {
    fs::create_dir_all(dir.join("www"))?;
    fs::write(dir.join("www/big"), vec![b'x'; 1 << 20])?;
    let servers = format!(
        "sendfile on; tcp_nopush on; open_file_cache max=10;\n\
         server {{ listen 127.0.0.1:{port} backlog=4096;\n\
         location = /big {{ root {www}; default_type application/octet-stream; }}\n\
         location / {{ default_type text/plain; return 200 \"{body}\"; }} }}\n",
        www = dir.join("www").display(),
        body = "x".repeat(128),
    );
    nginx_file(dir, &servers)
}

/// nginx as a workload of a mesh: 1,024 bytes, or 1 MiB at `/big`, at several addresses.
pub fn mesh_backend(dir: &Path, at: &[SocketAddr]) -> Result<PathBuf> {
    fs::create_dir_all(dir.join("www"))?;
    fs::write(dir.join("www/big"), vec![b'x'; 1 << 20])?;
    let listen: String = at.iter().map(|at| format!("listen {at} backlog=4096; ")).collect();
    let servers = format!(
        "sendfile on; tcp_nopush on; open_file_cache max=10;\n\
         server {{ {listen}\n\
         location = /big {{ root {www}; default_type application/octet-stream; }}\n\
         location / {{ default_type text/plain; return 200 \"{body}\"; }} }}\n",
        www = dir.join("www").display(),
        body = "x".repeat(1024),
    );
    nginx_file(dir, &servers)
}

pub fn nginx(dir: &Path, world: &World, ports: Ports, routes: Routes) -> Result<PathBuf> {
    let mut locations = String::new();
    for prefix in routes.prefixes() {
        writeln!(
            locations,
            "location {prefix} {{ proxy_pass http://web; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}"
        )?;
    }
    let servers = format!(
        "proxy_max_temp_file_size 0;\n\
         upstream web {{ server {web}; keepalive 256; keepalive_requests 1000000000; }}\n\
         upstream grpc {{ server {grpc}; keepalive 256; keepalive_requests 1000000000; }}\n\
         server {{ listen 127.0.0.1:{http} backlog=4096; listen 127.0.0.1:{https} ssl http2 backlog=4096;\n\
         ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;\n{locations}}}\n\
         server {{ listen 127.0.0.1:{h2c} http2 backlog=4096; location / {{ grpc_pass grpc://grpc; }} }}\n",
        web = world.web,
        grpc = world.grpc,
        http = ports.http,
        https = ports.https,
        h2c = ports.grpc,
        cert = world.cert.display(),
        key = world.key.display(),
    );
    nginx_file(dir, &servers)
}

fn nginx_file(dir: &Path, servers: &str) -> Result<PathBuf> {
    let mut temporary = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        writeln!(temporary, "{kind}_temp_path {}/{kind};", dir.display())?;
    }
    let path = dir.join("nginx.conf");
    fs::write(
        &path,
        format!(
            "daemon off; master_process off; pid {dir}/nginx.pid; error_log stderr error;\n\
             worker_rlimit_nofile 20000; events {{ worker_connections 18000; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 600s;\n\
             http2_max_concurrent_streams 128; variables_hash_max_size 2048;\n{temporary}{servers}}}\n",
            dir = dir.display()
        ),
    )?;
    Ok(path)
}

pub fn haproxy(dir: &Path, world: &World, ports: Ports, routes: Routes) -> Result<PathBuf> {
    let pem = dir.join("haproxy.pem");
    fs::write(&pem, format!("{}{}", fs::read_to_string(&world.cert)?, fs::read_to_string(&world.key)?))?;
    let choose = match routes {
        Routes::All => "default_backend web".into(),
        Routes::Many(_) => {
            let map = dir.join("routes.map");
            let lines: String = routes.prefixes().iter().map(|p| format!("{p} web\n")).collect();
            fs::write(&map, lines)?;
            format!("use_backend %[path,map_beg({})]", map.display())
        }
    };
    let path = dir.join("haproxy.cfg");
    fs::write(
        &path,
        format!(
            "global\n  nbthread 1\n  maxconn 9000\n\
             defaults\n  mode http\n  http-reuse always\n  timeout connect 5s\n  timeout client 600s\n  timeout server 600s\n  \
             timeout http-keep-alive 600s\n\
             frontend web\n  bind 127.0.0.1:{http} backlog 4096\n  \
             bind 127.0.0.1:{https} backlog 4096 ssl crt {pem} alpn h2,http/1.1\n  {choose}\n\
             frontend grpc\n  bind 127.0.0.1:{h2c} backlog 4096 proto h2\n  default_backend grpc\n\
             backend web\n  server a {web}\n\
             backend grpc\n  server a {grpc} proto h2\n",
            http = ports.http,
            https = ports.https,
            h2c = ports.grpc,
            pem = pem.display(),
            web = world.web,
            grpc = world.grpc,
        ),
    )?;
    Ok(path)
}

pub fn envoy(dir: &Path, world: &World, ports: Ports, routes: Routes) -> Result<PathBuf> {
    let to = |cluster: &str, prefix: &str| json!({"match": {"prefix": prefix}, "route": {"cluster": cluster}});
    let web: Vec<Value> = routes.prefixes().iter().map(|p| to("web", p)).collect();
    let grpc = vec![to("grpc", "/")];
    let tls = json!({"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [{
            "certificate_chain": {"filename": world.cert}, "private_key": {"filename": world.key}}]}}});
    let config = json!({"static_resources": {
        "listeners": [
            envoy_listener("http", ports.http, &web, None),
            envoy_listener("https", ports.https, &web, Some(tls)),
            envoy_listener("grpc", ports.grpc, &grpc, None),
        ],
        "clusters": [envoy_cluster("web", world.web.port(), false), envoy_cluster("grpc", world.grpc.port(), true)],
    }});
    let path = dir.join("envoy.json");
    fs::write(&path, config.to_string())?;
    Ok(path)
}

fn envoy_listener(name: &str, port: u16, routes: &[Value], tls: Option<Value>) -> Value {
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": {"name": name, "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    });
    let mut chain =
        json!({"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [chain],
    })
}

fn envoy_cluster(name: &str, port: u16, http2: bool) -> Value {
    let endpoint = json!({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}});
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    });
    if http2 {
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}}});
    }
    cluster
}

/// A folder of resources; each of many routes has a file of its own.
pub fn selvedge(dir: &Path, world: &World, ports: Ports, routes: Routes) -> Result<PathBuf> {
    let folder = dir.join("resources");
    fs::create_dir_all(&folder)?;
    let tls = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "tls"},
        "stringData": {"tls.crt": fs::read_to_string(&world.cert)?, "tls.key": fs::read_to_string(&world.key)?}});
    let gateway = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "bench"},
    "spec": {"gatewayClassName": "selvedge", "addresses": [{"value": "127.0.0.1"}], "listeners": [
        {"name": "http", "port": ports.http, "protocol": "HTTP"},
        {"name": "https", "port": ports.https, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "tls"}]}},
    ]}});
    let grpc = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute", "metadata": {"name": "grpc"},
        "spec": {"parentRefs": [{"name": "bench"}], "rules": [
            {"matches": [{"method": {"service": "bench.Echo"}}], "backendRefs": [{"name": "grpc", "port": 80}]}]}});
    let services = [("web", world.web.port(), None), ("grpc", world.grpc.port(), Some("kubernetes.io/h2c"))];
    for (name, port, protocol) in services {
        let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
        if let Some(protocol) = protocol {
            service["spec"]["ports"][0]["appProtocol"] = protocol.into();
        }
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
            "ports": [{"port": port}], "endpoints": [{"addresses": ["127.0.0.1"]}]});
        fs::write(folder.join(format!("{name}-service.json")), service.to_string())?;
        fs::write(folder.join(format!("{name}-endpoints.json")), slice.to_string())?;
    }
    for (name, resource) in [("tls", tls), ("gateway", gateway), ("grpc", grpc)] {
        fs::write(folder.join(format!("{name}.json")), resource.to_string())?;
    }
    match routes {
        Routes::All => fs::write(folder.join("route.json"), selvedge_route("all", "/", None).to_string())?,
        Routes::Many(n) => {
            for i in 0..n {
                let name = format!("r{i:05}");
                fs::write(folder.join(format!("{name}.json")), selvedge_route(&name, &route(i), None).to_string())?;
            }
        }
    }
    Ok(folder)
}

/// One route; with a version, its responses say so in `x-version`.
pub fn selvedge_route(name: &str, prefix: &str, version: Option<u32>) -> Value {
    let mut rule = json!({"matches": [{"path": {"type": "PathPrefix", "value": prefix}}],
        "backendRefs": [{"name": "web", "port": 80}]});
    if let Some(version) = version {
        rule["filters"] = json!([{"type": "ResponseHeaderModifier",
            "responseHeaderModifier": {"set": [{"name": "x-version", "value": version.to_string()}]}}]);
    }
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name},
        "spec": {"parentRefs": [{"name": "bench"}], "rules": [rule]}})
}

/// A P-256 certificate of its own and its key, as PEM files.
pub fn certificate(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    fs::write(&cert, made.cert.pem())?;
    fs::write(&key, made.signing_key.serialize_pem())?;
    Ok((cert, key))
}
