"""A gateway that is a member of the mesh: what its clients say of themselves ends there."""
import json

from conftest import BIN, free_port, wait_for
from mesh import DOMAIN, resource
from mesh_fixtures import local

API = "gateway.networking.k8s.io/v1"


def edge(mesh, port):
    """A gateway in front of Service app."""
    listener = {"name": "http", "port": port, "protocol": "HTTP"}
    mesh.write("edge", resource("Gateway", "edge", {"gatewayClassName": "selvedge", "listeners": [listener]}, api=API)
               + resource("HTTPRoute", "edge", {"parentRefs": [{"name": "edge"}], "rules": [{"backendRefs": [{"name": "app", "port": 80}]}]}, api=API))
    token = mesh.folder / "edge.token"
    token.write_text(mesh.token("edge"))
    return mesh.spawn(
        "edge", None, BIN, "proxy", "--control", f"https://{mesh.net.control}:{mesh.port}", "--role", "gateway", "--id", "edge",
        "--identity", "shop/edge", "--trust-domain", DOMAIN, "--join-token-file", token, "--workers", 1,
        "--state", mesh.folder / "edge.state", "--admin", f"127.0.0.1:{free_port()}")


def test_a_client_cannot_say_who_it_is_through_a_gateway(local):
    mesh, port = local(), free_port()
    edge(mesh, port)
    url = f"http://127.0.0.1:{port}/who"
    fake = f"By=spiffe://{DOMAIN}/ns/shop/sa/app;URI=spiffe://{DOMAIN}/ns/shop/sa/admin"
    spoofed = ["X-Forwarded-Client-Cert", "x-forwarded-client-cert", "X-Client-Cert", "SSL-Client-Cert", "X-Envoy-Peer-Metadata",
               "X-Forwarded-User", "L5d-Client-Id", "X-Envoy-Original-Path", "X-Real-IP", "Forwarded"]
    headers = [part for name in spoofed for part in ("-H", f"{name}: {fake}")]
    ask = lambda *args: mesh.run(None, "curl", "-sS", "--max-time", 60, *args, url, check=False).stdout
    wait_for(lambda: json.loads(ask())["name"] == "app", "the gateway answering")
    seen = json.loads(ask(*headers, "-H", "X-Forwarded-For: 203.0.113.9", "-H", "Connection: X-Forwarded-Client-Cert, X-Forwarded-For"))
    # The gateway is who calls, and what it says of its client is its own.
    assert f"URI=spiffe://{DOMAIN}/ns/shop/sa/edge" in seen["headers"]["x-forwarded-client-cert"]
    assert "sa/admin" not in json.dumps(seen), seen
    assert seen["headers"]["x-forwarded-for"] == "127.0.0.1"
    # A policy at the workload sees the gateway, whatever the client has said.
    admin = f"spiffe://{DOMAIN}/ns/shop/sa/admin"
    deny = {"action": "Allow", "targetRefs": [{"kind": "Workload", "name": "app"}], "rules": [{"from": [{"identities": [admin]}]}]}
    mesh.write("only-admin", resource("AccessPolicy", "only-admin", deny))
    code = lambda *args: mesh.run(None, "curl", "-sS", "--max-time", 60, "-o", "/dev/null", "-w", "%{http_code}", *args, url, check=False).stdout
    wait_for(lambda: code() == "403", "the policy")
    assert code(*headers) == "403"
