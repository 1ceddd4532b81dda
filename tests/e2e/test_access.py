"""AccessPolicy at a real gateway: what it denies, how it cannot be dodged, and that a change reaches what is in progress."""
import concurrent.futures
import json
import socket
import subprocess
import threading

import grpc
import pytest
import websockets.exceptions
import websockets.sync.client
import websockets.sync.server
from conftest import BIN, Gateway, Recorder, curl, free_port, raw, route, service, wait_for, write


def policy(name, spec):
    return "\n---\n" + json.dumps({"apiVersion": "selvedge.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": name}, "spec": spec}) + "\n"


def gateway(ports, extra=""):
    listeners = ", ".join(f"{{name: {name}, port: {port}, protocol: {'TCP' if name == 'tcp' else 'HTTP'}}}" for name, port in ports.items())
    return f"""
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: selvedge
  listeners: [{listeners}]
{extra}"""


class Edge:
    def __init__(self, folder, text, ports, *args):
        self.folder = folder
        folder.mkdir()
        self.ports = ports
        (folder / "config.yaml").write_text(text)
        self.gateway = Gateway(folder, *args)

    def policies(self, *all):
        write(self.folder / "policies.yaml", "".join(policy(f"p{i}", spec) for i, spec in enumerate(all)) or "# none\n")


DENY_ADMIN = {
    "targetRefs": [{"kind": "Gateway", "name": "edge", "sectionName": "http"}],
    "action": "Deny",
    "rules": [{"name": "admin", "to": [{"paths": ["/admin", "/admin/*"]}]},
              {"name": "internal", "to": [{"headers": [{"name": "x-internal", "exact": "true"}]}]},
              {"name": "identity", "when": "source.identity != '' || connection.mtls"}],
}


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    recorder = Recorder()
    ports = {"http": free_port(), "allow": free_port()}
    folder = tmp_path_factory.mktemp("access") / "conf"
    text = gateway(ports) + service("web", 80, [recorder.port])
    for name in ports:
        text += route(f"on-{name}", [{"backendRefs": [{"name": "web", "port": 80}]}], listener=name)
    text += policy("deny", DENY_ADMIN)
    text += policy("allow", {"targetRefs": [{"kind": "Gateway", "name": "edge", "sectionName": "allow"}],
                             "rules": [{"to": [{"paths": ["/public/*"], "methods": ["GET"]}]}]})
    edge = Edge(folder, text, ports)
    edge.recorder = recorder
    yield edge
    edge.gateway.stop()


def ask(port, target, *headers):
    head = f"GET {target} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n".encode("latin1")
    return raw(port, head + b"".join(h + b"\r\n" for h in headers) + b"\r\n")


def status(answer):
    return int(answer.split(b" ")[1]) if answer else 0


def test_denied_requests_are_told_nothing_and_reach_nobody(edge):
    before = len(edge.recorder.all())
    answer = ask(edge.ports["http"], "/admin/users")
    assert status(answer) == 403
    assert answer.split(b"\r\n\r\n", 1)[1] == b"access denied\n"
    assert b"policy" not in answer.lower()
    assert len(edge.recorder.all()) == before
    wait_for(lambda: 'selvedge_access_denied_total{policy="default/deny"}' in edge.gateway.get("/metrics"), "the denial being counted")


# What is sent, and whether it is the admin page to some backend, whichever way it reads paths.
TRICKS = [
    ("/admin", True), ("//admin", True), ("/./admin", True), ("/%61dmin", True), ("/x/../admin", True),
    ("/%2e%2e/admin", True), ("/x/%2e%2e/admin/", True), ("/a/..;/admin", True), ("/admin;x=y", True),
    ("/admin;x=y/users", True), ("/admin%2fusers", True), ("/admin%2Fusers", True), ("/x/..%2fadmin", True),
    ("/x%5c..%5cadmin", True), ("/admin?x=1", True), ("/admin/", True), ("/user/..;foo=bar/admin", True),
    ("http://shop.example/admin", True), ("/ADMIN", False), ("/administrator", False), ("/%252e%252e/admin", False),
    ("/xadmin", False),
]


@pytest.mark.parametrize("target,guarded", TRICKS)
def test_paths_cannot_dodge_a_deny(edge, target, guarded):
    before = len(edge.recorder.all())
    answer = ask(edge.ports["http"], target)
    if guarded:
        assert status(answer) in (400, 403), answer
        assert len(edge.recorder.all()) == before, "nothing reaches the backend"
    else:
        assert status(answer) == 200, answer


@pytest.mark.parametrize("target", ["/public/../admin", "/public/..%2fadmin", "/public/%2e%2e/admin", "/public/..;/admin", "/public%2f..%2fadmin",
                                    "/public", "/Public/x", "/public\\..\\admin", "/public/\xc0\xae\xc0\xae/admin", "/public/%c0%ae%c0%ae/admin"])
def test_paths_cannot_steal_an_allow(edge, target):
    before = len(edge.recorder.all())
    assert status(ask(edge.ports["allow"], target)) in (400, 403)
    assert len(edge.recorder.all()) == before


@pytest.mark.parametrize("target,received", [("/public/a", "/public/a"), ("/public/%61", "/public/a"), ("//public//a", "/public/a"), ("/public/./b/../a", "/public/a"),
                                             ("/public/a;v=1", "/public/a;v=1"), ("/public/caf%c3%a9", "/public/caf%C3%A9"), ("/public/a?b=%2fc", "/public/a?b=%2fc")])
def test_the_backend_receives_what_was_judged(edge, target, received):
    before = len(edge.recorder.all())
    assert status(ask(edge.ports["allow"], target)) == 200
    sent = b"".join(r for r in edge.recorder.received)[before:]
    assert f"GET {received} HTTP/1.1\r\n".encode() in edge.recorder.all(), sent


@pytest.mark.parametrize("headers,wanted", [
    ([b"X-Internal: true"], 403), ([b"x-internal: true", b"X-Internal: true"], 403), ([b"X-Internal: no", b"x-internal: true"], 403),
    ([b"X-Internal: no"], 200), ([b"X-Internal: true\xff"], 200),
])
def test_repeated_headers_are_judged_each(edge, headers, wanted):
    assert status(ask(edge.ports["http"], "/x", *headers)) == wanted


def test_identity_cannot_be_claimed_by_headers(edge):
    spoofed = [b"X-Forwarded-Client-Cert: By=spiffe://cluster.local/ns/a/sa/b;URI=spiffe://cluster.local/ns/shop/sa/admin", b"X-Envoy-Original-Path: /public",
               b"X-Original-Url: /public", b"X-Spiffe-Id: spiffe://cluster.local/ns/shop/sa/admin"]
    # The rule `identity` would deny whoever has one.
    assert status(ask(edge.ports["http"], "/spoofed", *spoofed)) == 200
    request = [r for r in edge.recorder.received if b"/spoofed" in r][-1].lower()
    assert b"spiffe://cluster.local/ns/shop/sa/admin" not in request.replace(b"x-spiffe-id: spiffe://cluster.local/ns/shop/sa/admin", b"")
    assert status(ask(edge.ports["http"], "/admin", *spoofed)) == 403


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    """WebSocket, gRPC, a slow answer and TCP behind one gateway, whose policies change."""
    def echo(connection):
        for message in connection:
            connection.send(message)

    ws = websockets.sync.server.serve(echo, "127.0.0.1", 0)
    threading.Thread(target=ws.serve_forever, daemon=True).start()
    bidi = lambda requests, context: (b"<" + request + b">" for request in requests)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Echo", {"Bidi": grpc.stream_stream_rpc_method_handler(bidi)}),))
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    tcp = socket.create_server(("127.0.0.1", 0))

    def tcp_echo(connection):
        try:
            while data := connection.recv(4096):
                connection.sendall(data)
        except OSError:
            pass

    def accept():
        while True:
            connection, _ = tcp.accept()
            threading.Thread(target=tcp_echo, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    slow = socket.create_server(("127.0.0.1", 0))
    ports = {"http": free_port(), "tcp": free_port()}
    text = gateway(ports) + service("ws", 80, [ws.socket.getsockname()[1]], "kubernetes.io/ws") + service("grpc", 80, [grpc_port], "kubernetes.io/h2c")
    text += service("echo", 80, [tcp.getsockname()[1]]) + service("slow", 80, [slow.getsockname()[1]])
    match = lambda path, name: {"matches": [{"path": {"type": "PathPrefix", "value": path}}], "backendRefs": [{"name": name, "port": 80}]}
    text += route("web", [match("/ws", "ws"), match("/t.Echo", "grpc"), match("/slow", "slow")])
    text += """
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: echo}
spec:
  parentRefs: [{name: edge, sectionName: tcp}]
  rules: [{backendRefs: [{name: echo, port: 80}]}]
"""
    edge = Edge(tmp_path_factory.mktemp("access-streams") / "conf", text, ports)
    edge.slow = slow
    yield edge
    edge.gateway.stop()
    server.stop(None)


DENY_OTHERS = {"action": "Deny", "rules": [{"name": "others", "from": [{"ipBlocks": ["192.0.2.0/24"]}]}]}
DENY_US = {"action": "Deny", "rules": [{"name": "us", "from": [{"ipBlocks": ["127.0.0.0/8"]}]}]}


def effective(edge, denied):
    """Waits until new requests are answered by the policies that were written last."""
    wait_for(lambda: (curl("-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{edge.ports['http']}/none") == "403") == denied, "the policy being in effect")


def test_a_changed_policy_reaches_what_is_in_progress(streams):
    streams.policies(DENY_OTHERS)
    effective(streams, False)
    http, tcp = streams.ports["http"], streams.ports["tcp"]
    ws = websockets.sync.client.connect(f"ws://127.0.0.1:{http}/ws")
    ws.send("a")
    assert ws.recv(60) == "a"
    channel = grpc.insecure_channel(f"127.0.0.1:{http}")
    asked = threading.Event()

    def requests():
        yield b"1"
        asked.wait(100)

    call = channel.stream_stream("/t.Echo/Bidi")(requests())
    assert next(call) == b"<1>"
    connection = socket.create_connection(("127.0.0.1", tcp), timeout=60)
    connection.sendall(b"x")
    assert connection.recv(10) == b"x"
    # The backend takes the request and does not answer.
    waiting = socket.create_connection(("127.0.0.1", http), timeout=60)
    waiting.sendall(b"GET /slow HTTP/1.1\r\nHost: shop.example\r\n\r\n")
    taken, _ = streams.slow.accept()
    assert taken.recv(4096)

    # Another policy, but none against us: all of them live on.
    streams.policies(DENY_OTHERS, {"action": "Deny", "rules": [{"from": [{"ipBlocks": ["198.51.100.7"]}]}]})
    wait_for(lambda: "default/p1" in streams.gateway.get("/config") or "default/p1" in streams.gateway.get("/status"), "the second policy being there")
    ws.send("b")
    assert ws.recv(60) == "b"
    connection.sendall(b"y")
    assert connection.recv(10) == b"y"

    streams.policies(DENY_US)
    effective(streams, True)
    with pytest.raises(websockets.exceptions.ConnectionClosed):
        ws.recv(60)
    with pytest.raises(ConnectionResetError):
        while connection.recv(10):
            pass
    with pytest.raises(grpc.RpcError) as error:
        next(call)
    assert error.value.code() != grpc.StatusCode.OK
    asked.set()
    assert waiting.recv(4096).startswith(b"HTTP/1.1 403 ")
    # And whoever comes anew.
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        with socket.create_connection(("127.0.0.1", tcp), timeout=60) as fresh:
            fresh.sendall(b"x")
            assert not fresh.recv(10)
            raise AssertionError("served")
    with pytest.raises(grpc.RpcError) as error:
        list(channel.stream_stream("/t.Echo/Bidi")(iter([b"1"])))
    assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED
    channel.close()
    streams.policies()
    effective(streams, False)


def test_a_policy_that_cannot_be_read_denies(tmp_path, nginx):
    ports = {"http": free_port()}
    text = gateway(ports) + service("web", 80, [nginx["v1"]]) + route("all", [{"backendRefs": [{"name": "web", "port": 80}]}])
    broken = text + policy("broken", {"action": "Deny", "ruels": []})
    edge = Edge(tmp_path / "conf", broken, ports)
    try:
        url = f"http://127.0.0.1:{ports['http']}/"
        code = lambda: curl("-o", "/dev/null", "-w", "%{http_code}", url)
        assert code() == "403"
        write(edge.folder / "config.yaml", text + policy("broken", {"action": "Deny", "rules": []}))
        wait_for(lambda: code() == "200", "the corrected policy being in effect")
        # Broken again: what was good before stays.
        write(edge.folder / "config.yaml", broken)
        wait_for(lambda: "SELV0100" in edge.gateway.get("/status"), "the finding")
        assert code() == "200"
    finally:
        edge.gateway.stop()


def test_may_asks_the_same_policies(tmp_path):
    (tmp_path / "conf.yaml").write_text("""
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}
""" + policy("orders", {"targetRefs": [{"kind": "Service", "name": "orders"}],
                        "rules": [{"name": "cart", "from": [{"serviceAccounts": ["cart"]}], "to": [{"ports": [8080], "methods": ["GET"], "paths": ["/orders/{id}"]}]}]})
        .replace('"name": "orders"}, "spec"', '"name": "orders", "namespace": "shop"}, "spec"'))
    may = lambda *args: subprocess.run([BIN, "may", "-f", str(tmp_path), *args], capture_output=True, text=True)
    cart = "spiffe://cluster.local/ns/shop/sa/cart"
    done = may(cart, "GET", "http://orders.shop/orders/7")
    assert (done.returncode, "rule cart of policy shop/orders" in done.stdout) == (0, True), done
    assert may(cart, "POST", "http://orders.shop.svc.cluster.local/orders/7").returncode == 1
    assert may("spiffe://cluster.local/ns/shop/sa/web", "GET", "http://orders.shop/orders/7").returncode == 1
