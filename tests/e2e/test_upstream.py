"""What backends may do: balance, health, misbehaviour, TLS, HTTP/2, names, PROXY protocol."""
import collections
import concurrent.futures
import http.client
import json
import socket
import ssl
import struct
import subprocess
import threading
import time

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
from backend import Backend, answer, backend_service, echo, gateway_resource, policy, simple, sleeping
from conftest import Gateway, by_chance, curl, free_port, one_answer, raw, wait_for
from test_streams import certificate, config_map, secret

RAW = {
    "short": (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", None, True),
    "extra": (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstole", 200, False),
    "badchunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n", None, True),
    "cl-te": (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 502, False),
    "two-cl": (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc", 502, False),
    "unasked": (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", 502, False),
    "flood": (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 500 + b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", (200, 502), False),
    "huge": (b"HTTP/1.1 200 OK\r\nx-big: " + b"x" * 400_000 + b"\r\ncontent-length: 2\r\n\r\nok", 502, False),
    "garbage": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 502, False),
    "empty": (b"", (502, 503), False),
    "half-head": (b"HTTP/1.1 200 OK\r\ncontent-le", (502, 503), False),
    "no-content": (b"HTTP/1.1 204 No Content\r\ncontent-length: 3\r\n\r\nabc", (204, 502), False),
    "old": (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", 200, False),
    "space": (b"HTTP/1.1 200 OK\r\ncontent-length : 3\r\n\r\nabc", 502, False),
    "lf-name": (b"HTTP/1.1 200 OK\r\nx\0y: 3\r\ncontent-length: 0\r\n\r\n", 502, False),
}


def misbehave(backend, request, connection):
    name = request.target.split("/")[2]
    if name == "ok":
        return answer("fine")
    if request.method == "HEAD":
        return b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"
    connection.sendall(RAW[name][0])
    if name == "short":
        return None
    return None if name in ("empty", "half-head", "old", "badchunk") else b""


def h2_backend(context=None):
    """An HTTP/2 server that says which version it spoke."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve(connection):
        try:
            if context:
                connection = context.wrap_socket(connection, server_side=True)
                assert connection.selected_alpn_protocol() == "h2"
            state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
            state.initiate_connection()
            connection.sendall(state.data_to_send())
            while data := connection.recv(65536):
                for event in state.receive_data(data):
                    if isinstance(event, h2.events.DataReceived):
                        state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    if isinstance(event, h2.events.StreamEnded):
                        state.send_headers(event.stream_id, [(":status", "200"), ("x-version", "2")])
                        state.send_data(event.stream_id, b"h2")
                        state.send_headers(event.stream_id, [("x-sum", "42")], end_stream=True)
                connection.sendall(state.data_to_send())
        except (OSError, AssertionError, h2.exceptions.ProtocolError):
            connection.close()

    def run():
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()
    return server.getsockname()[1]


def sick(backend, request, connection):
    """Fails, health checks too, while `backend.state` says so."""
    if backend.state.get("sick"):
        return answer("sick", "500 Sick")
    return echo(backend, request, connection)


class GrpcHealth:
    """A gRPC server whose health service answers what it is told."""

    def __init__(self):
        self.serving = True
        self.served = 0
        health = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {
            "Check": grpc.unary_unary_rpc_method_handler(lambda r, c: b"\x08\x01" if self.serving else b"\x08\x02")})
        mine = grpc.method_handlers_generic_handler("t.Who", {"Am": grpc.unary_unary_rpc_method_handler(self.who)})
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        self.server.add_generic_rpc_handlers((health, mine))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def who(self, request, context):
        self.served += 1
        return str(self.port).encode()


def tls_policy(name, service_name, hostname, config="ca"):
    return "\n---\n" + json.dumps({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "BackendTLSPolicy", "metadata": {"name": name}, "spec": {
        "targetRefs": [{"group": "", "kind": "Service", "name": service_name}],
        "validation": {"caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": config}], "hostname": hostname}}}) + "\n"


HASHES = {
    "header": {"type": "Header", "name": "x-user"},
    "cookie": {"type": "Cookie", "cookie": {"name": "user"}},
    "made": {"type": "Cookie", "cookie": {"name": "stick", "ttl": "60s"}},
    "source": {"type": "SourceIP"},
    "query": {"type": "Query", "name": "u"},
    "path": {"type": "Path"},
}


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    keys = tmp_path_factory.mktemp("upstream-keys")
    ca = certificate(keys, "ca", names=("ca.example",))
    server = certificate(keys, "server", ca, names=("backend.example",))
    client = certificate(keys, "gw", ca, names=("gateway.example",), client=True)

    def context(alpn=None, verify=False):
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(f"{server}.crt", f"{server}.key")
        if alpn:
            made.set_alpn_protocols(alpn)
        if verify:
            made.verify_mode = ssl.CERT_REQUIRED
            made.load_verify_locations(f"{ca}.crt")
        return made

    b = {n: Backend(n) for n in ("a", "b", "c", "d", "v1", "v2")}
    b["raw"] = Backend("raw", misbehave)
    b["idle"], b["busy"] = Backend("idle"), Backend("busy", sleeping(1))
    b["tls"], b["mtls"] = Backend("tls", context=context()), Backend("mtls", context=context(verify=True))
    b["pp1"], b["pp2"] = Backend("pp1", preface=1), Backend("pp2", preface=2)
    for n in ("s1", "s2", "o1", "o2", "n1", "n2"):
        b[n] = Backend(n, sick)
    b["g1"], b["g2"] = GrpcHealth(), GrpcHealth()
    four = [b[n] for n in "abcd"]
    port = free_port()
    gateway_tls = {"tls": {"backend": {"clientCertificateRef": {"name": "gw"}}}}
    text = gateway_resource([{"name": "http", "port": port, "protocol": "HTTP"}], **gateway_tls)
    text += secret("gw", client) + config_map("ca", f"{ca}.crt")
    balance = lambda algorithm, **more: {"loadBalancing": {"algorithm": algorithm, **more}}
    text += backend_service("rr", four, balance("RoundRobin")) + simple("rr", "rr")
    text += backend_service("random", four, balance("Random")) + simple("random", "random")
    text += backend_service("least", [b["idle"], b["busy"]], balance("LeastRequest")) + simple("least", "least")
    text += backend_service("ewma", [b["idle"], b["busy"]], balance("PeakEwma")) + simple("ewma", "ewma")
    for algorithm in ("RingHash", "Maglev"):
        for name, key in HASHES.items():
            full = f"{algorithm.lower()}-{name}"
            text += backend_service(full, four, balance(algorithm, hashKeys=[key])) + simple(full, full)
    text += backend_service("raw", [b["raw"]]) + simple("raw", "raw")
    check = lambda kind, **more: {"healthChecks": [{"type": kind, "interval": "100ms", "timeout": "10s", "unhealthyThreshold": 2, "healthyThreshold": 2, **more}]}
    text += backend_service("checked", [b["s1"], b["s2"]], {**balance("RoundRobin", panicThreshold=0), **check("HTTP", path="/health")}) + simple("checked", "checked")
    text += backend_service("grpc", [b["g1"], b["g2"]], {**balance("RoundRobin", panicThreshold=0), **check("GRPC")}, "kubernetes.io/h2c") + simple("t.Who", "grpc")
    text += backend_service("outlier", [b["o1"], b["o2"]], {**balance("RoundRobin", panicThreshold=0), "outlierDetection": {
        "consecutive5xx": 3, "interval": "200ms", "baseEjectionTime": "5s", "maxEjectionPercent": 50}}) + simple("outlier", "outlier")
    text += backend_service("panic", [b["n1"], b["n2"]], {**balance("RoundRobin", panicThreshold=60), **check("HTTP", path="/health")}) + simple("panic", "panic")
    text += backend_service("tls", [b["tls"]]) + simple("tls", "tls") + tls_policy("tls", "tls", "backend.example")
    text += backend_service("wrong", [b["tls"]]) + simple("wrong", "wrong") + tls_policy("wrong", "wrong", "other.example")
    text += backend_service("mtls", [b["mtls"]]) + simple("mtls", "mtls") + tls_policy("mtls", "mtls", "backend.example")
    text += backend_service("h2tls", [h2_backend(context(["h2"]))], {"connections": {"protocol": "HTTP2"}}) + simple("h2tls", "h2tls") + tls_policy("h2tls", "h2tls", "backend.example")
    text += backend_service("h2alpn", [h2_backend(context(["h2", "http/1.1"]))]) + simple("h2alpn", "h2alpn") + tls_policy("h2alpn", "h2alpn", "backend.example")
    text += backend_service("h2c", [h2_backend()], app_protocol="kubernetes.io/h2c") + simple("h2c", "h2c")
    text += backend_service("pp1", [b["pp1"]], {"connections": {"proxyProtocol": "V1"}}) + simple("pp1", "pp1")
    text += backend_service("pp2", [b["pp2"]], {"connections": {"proxyProtocol": "V2"}}) + simple("pp2", "pp2")
    text += f"""
---
apiVersion: v1
kind: Service
metadata: {{name: name}}
spec:
  type: ExternalName
  externalName: localhost
  ports: [{{name: main, port: {b['a'].port}}}]
"""
    text += simple("name", [{"name": "name", "port": b["a"].port}])
    folder = tmp_path_factory.mktemp("upstream")
    folder.joinpath("gateway.yaml").write_text(text)
    # One worker, so that order is exact.
    running = Gateway(folder, "--workers", "1")
    errors = [d for d in running.status()["diagnostics"] if d["severity"] == "error"]
    assert not errors, errors[:3]
    running.b, running.port, running.url = b, port, f"http://127.0.0.1:{port}"
    yield running
    assert running.stop() == 0


def who(edge, path, *args):
    return json.loads(curl(*args, edge.url + path))["backend"]


def status(edge, path, *args):
    return int(curl("-o", "/dev/null", "-w", "%{http_code}", *args, edge.url + path))


def keeping(edge):
    """Asks on one connection, so that not the starts of clients take the time: status and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=60)

    def ask(path, **headers):
        connection.request("GET", path, headers={"Host": "a", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()

    return ask


def test_round_robin_alternates(edge):
    seen = [who(edge, "/rr") for _ in range(12)]
    assert set(seen[:4]) == set("abcd")
    assert seen[:4] * 3 == seen


def test_random_reaches_all(edge):
    ask = keeping(edge)
    counts = collections.Counter(json.loads(ask("/random")[1])["backend"] for _ in range(200))
    assert set(counts) == set("abcd") and all(by_chance(n, 0.25, 200) for n in counts.values()), counts


@pytest.mark.parametrize("path", ["/least", "/ewma"])
def test_busy_endpoints_get_less(edge, path):
    def some(_):
        ask = keeping(edge)
        return collections.Counter(json.loads(ask(path)[1])["backend"] for _ in range(15))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        counts = sum(pool.map(some, range(4)), collections.Counter())
    assert counts["idle"] > 2 * counts["busy"], counts


@pytest.mark.parametrize("algorithm", ["ringhash", "maglev"])
def test_hashes_stick(edge, algorithm, tmp_path):
    ask = lambda key, *args, path="": who(edge, f"/{algorithm}-{key}{path}", *args)
    for user in ("ann", "bob"):
        assert len({ask("header", "-H", f"x-user: {user}") for _ in range(8)}) == 1
        assert len({ask("cookie", "-H", f"cookie: x=1; user={user}") for _ in range(8)}) == 1
        assert len({ask("query", path=f"?z=1&u={user}") for _ in range(8)}) == 1
        assert len({ask("path", path=f"/{user}") for _ in range(8)}) == 1
    assert len({ask("source") for _ in range(8)}) == 1
    kept = keeping(edge)
    assert len({json.loads(kept(f"/{algorithm}-header", **{"x-user": str(i)})[1])["backend"] for i in range(300)}) == 4
    jar = tmp_path / "jar"
    first = ask("made", "-c", jar)
    assert "stick" in jar.read_text()
    assert {ask("made", "-b", jar) for _ in range(8)} == {first}


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
@pytest.mark.parametrize("name", list(RAW))
def test_misbehaving_upstreams(edge, name, version):
    _, wanted, cut = RAW[name]
    done = subprocess.run(["curl", "-sS", version, "--max-time", "60", "-o", "/dev/null", "-w", "%{http_code}", edge.url + f"/raw/{name}"],
                          capture_output=True, timeout=70)
    if cut:
        assert done.returncode in (18, 56, 92) or done.stdout == b"502", (done.returncode, done.stdout, done.stderr)
    else:
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) in (wanted if isinstance(wanted, tuple) else (wanted,)), done.stdout
    assert curl(version, edge.url + "/raw/ok") == "fine"


def test_nothing_follows_an_answer(edge):
    for _ in range(5):
        out = raw(edge.port, b"GET /raw/extra HTTP/1.1\r\nhost: a\r\n\r\n" + b"GET /raw/ok HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert b"stole" not in out and out.endswith(b"fine"), out
        out = raw(edge.port, b"HEAD /raw/head HTTP/1.1\r\nhost: a\r\n\r\n" + b"GET /raw/ok HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert b"abc" not in out and out.endswith(b"fine"), out


def test_health_checks_take_out_and_back_in(edge):
    s1 = edge.b["s1"]
    wait_for(lambda: {who(edge, "/checked") for _ in range(4)} == {"s1", "s2"}, "both being used")
    s1.state["sick"] = True
    wait_for(lambda: {status(edge, "/checked") for _ in range(6)} == {200}, "the sick one being out")
    assert {who(edge, "/checked") for _ in range(6)} == {"s2"}
    s1.state["sick"] = False
    wait_for(lambda: {who(edge, "/checked") for _ in range(4)} == {"s1", "s2"}, "it being back")


def test_grpc_health_checks(edge):
    with grpc.insecure_channel(f"127.0.0.1:{edge.port}") as channel:
        ask = lambda: channel.unary_unary("/t.Who/Am")(b"", timeout=60).decode()
        ports = {str(edge.b["g1"].port), str(edge.b["g2"].port)}
        wait_for(lambda: {ask() for _ in range(4)} == ports, "both being used")
        edge.b["g1"].serving = False
        wait_for(lambda: {ask() for _ in range(6)} == {str(edge.b["g2"].port)}, "the one being out")
        edge.b["g1"].serving = True
        wait_for(lambda: {ask() for _ in range(4)} == ports, "it being back")


def test_outliers_are_ejected_and_come_back(edge):
    o1 = edge.b["o1"]
    o1.state["sick"] = True
    ask = keeping(edge)
    codes = collections.Counter(ask("/outlier")[0] for _ in range(20))
    assert 3 <= codes[500] <= 8, codes
    o1.state["sick"] = False
    wait_for(lambda: {who(edge, "/outlier") for _ in range(6)} == {"o1", "o2"}, "the outlier being back")


def test_panic_ignores_health(edge):
    for n in ("n1", "n2"):
        edge.b[n].state["sick"] = True
    wait_for(lambda: "unhealthy" in edge.get("/clusters").lower(), "the checks failing")
    for _ in range(6):
        assert status(edge, "/panic") == 500


def test_backend_tls(edge):
    assert who(edge, "/tls") == "tls"
    assert status(edge, "/wrong") == 503
    assert who(edge, "/mtls") == "mtls"


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
@pytest.mark.parametrize("path", ["/h2tls", "/h2alpn", "/h2c"])
def test_http2_upstreams(edge, path, version):
    out = curl("-i", version, edge.url + path)
    assert "x-version: 2" in out and "h2" in out
    assert status(edge, path, version, "-d", "x" * 100_000) == 200


def test_health_checks_keep_their_connections(edge):
    for name in ("s1", "s2"):
        backend = edge.b[name]
        backend.state["sick"] = False
        health = lambda: len(backend.targets("/health"))
        wait_for(health, "a check, and the connection that it came by")
        begin, connections = health(), backend.connections
        wait_for(lambda: health() >= begin + 10, "ten checks")
        assert backend.connections == connections, "by the connection of before"


def workload(name, ip, weight):
    return f"""
---
apiVersion: selvedge.dev/v1alpha1
kind: Workload
metadata: {{name: {name}}}
spec: {{addresses: [{ip}], weight: {weight}}}
"""


@pytest.mark.parametrize("algorithm", ["RoundRobin", "Random", "LeastRequest", "Maglev", "RingHash"])
def test_weights_of_endpoints(tmp_path, algorithm):
    backends = {f"w{i}": Backend(f"w{i}", host=f"127.0.0.{i}") for i in (2, 3, 4)}
    port = free_port()
    # Hashes are of what differs in each request.
    keys = {"hashKeys": [HASHES["query"]]} if algorithm in ("Maglev", "RingHash") else {}
    text = gateway_resource([{"name": "http", "port": port, "protocol": "HTTP"}]) + simple("w", "w")
    text += workload("heavy", "127.0.0.2", 6) + workload("light", "127.0.0.3", 2) + workload("none", "127.0.0.4", 0)
    text += backend_service("w", list(backends.values()), {"loadBalancing": {"algorithm": algorithm, **keys}})
    for name, one in backends.items():
        text = text.replace(f"endpoints: [{{addresses: [127.0.0.1]}}]\nports: [{{name: main, port: {one.port},",
                            f"endpoints: [{{addresses: [127.0.0.{name[1]}]}}]\nports: [{{name: main, port: {one.port},")
    folder = tmp_path / "weights"
    folder.mkdir()
    folder.joinpath("gateway.yaml").write_text(text)
    gateway = Gateway(folder, "--workers", "1")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(i):
        connection.request("GET", f"/w?u={i}", headers={"Host": "a"})
        return json.loads(connection.getresponse().read())["backend"]

    count = collections.Counter(ask(i) for i in range(400))
    assert gateway.stop() == 0
    # 300 to 100: by turns exactly; on a ring the shares are by chance too.
    near = {"RoundRobin": abs(count["w2"] - 300) <= 2, "RingHash": 200 < count["w2"] < 390}
    assert near.get(algorithm, by_chance(count["w2"], 0.75, 400)), count
    assert count["w3"] == 400 - count["w2"] and not count["w4"], count


@pytest.mark.parametrize("alive", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("silent", [False, True])
def test_names_with_one_dead_family(tmp_path, alive, silent):
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 both.test\n::1 both.test\n")
    # Nobody else has that port at the other address.
    backend = Backend("alive", host=alive, port=free_port())
    dead = "::1" if alive == "127.0.0.1" else "127.0.0.1"
    waiting = []
    if silent:
        # A queue that is full: the kernel drops whoever else wants to connect.
        family = socket.AF_INET6 if ":" in dead else socket.AF_INET
        listening = socket.create_server((dead, backend.port), family=family, backlog=0)
        waiting.append(listening)
        for _ in range(4):
            one = socket.socket(family)
            one.setblocking(False)
            one.connect_ex((dead, backend.port))
            waiting.append(one)
    port = free_port()
    text = gateway_resource([{"name": "http", "port": port, "protocol": "HTTP"}]) + f"""
---
apiVersion: v1
kind: Service
metadata: {{name: name}}
spec:
  type: ExternalName
  externalName: both.test
  ports: [{{name: main, port: {backend.port}}}]
""" + simple("name", [{"name": "name", "port": backend.port}]) + policy("name", "Service", "name", {"connections": {"connectTimeout": "40s"}})
    folder = tmp_path / "families"
    folder.mkdir()
    folder.joinpath("gateway.yaml").write_text(text)
    gateway = Gateway(folder, hosts=hosts)
    begin = time.monotonic()
    assert json.loads(curl(f"http://127.0.0.1:{port}/name"))["backend"] == "alive"
    # The delay of the first attempt, and not the timeout of connecting.
    assert time.monotonic() - begin < 20
    endpoints = [e for c in json.loads(gateway.get("/clusters")) for e in c["endpoints"]]
    assert len(endpoints) == 1, "one endpoint with two addresses, not two of which one is dead"
    assert gateway.stop() == 0
    backend.close()
    for one in waiting:
        one.close()


def test_names_are_resolved(edge):
    assert who(edge, "/name") == "a"


def test_proxy_protocol_out(edge):
    with socket.create_connection(("127.0.0.1", edge.port), timeout=60) as s:
        own, stream = s.getsockname()[1], s.makefile("rb")
        for path in (b"/pp1", b"/pp2"):
            s.sendall(b"GET " + path + b" HTTP/1.1\r\nhost: a\r\n\r\n")
            assert one_answer(stream)[0].startswith(b"HTTP/1.1 200")
    assert f"PROXY TCP4 127.0.0.1 127.0.0.1 {own} {edge.port}\r\n".encode() in edge.b["pp1"].prefaces
    header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + socket.inet_aton("127.0.0.1") * 2 + struct.pack("!HH", own, edge.port)
    assert header in [p[:28] for p in edge.b["pp2"].prefaces]
