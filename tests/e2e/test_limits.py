"""Every limit, hit once, shows in `selvedge_limits_hit_total` under its own label."""
import contextlib
import re
import socket
import struct
import threading

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from backend import Backend, answer, backend_service, echo, gateway_resource, held, policy, refused_while_held, simple, stuck
from conftest import Gateway, curl, free_port, free_udp_port, raw, service, wait_for

# Listeners and the settings of each, so that no limit is in the way of another's test.
LISTENERS = {
    "plain": {},
    "tight": {"listener": {"headers": {"maxCount": 20, "maxBytes": 4096}, "normalization": {}, "http2": {"maxConcurrentStreams": 4}},
              "requestLimits": {"maxTargetBytes": 64, "maxBodyBytes": 1000}},
    # Long enough for a client that is slow to begin its request.
    "quick": {"listener": {"timeouts": {"header": "2s", "handshake": "2s"}}},
    "idle": {"listener": {"timeouts": {"idle": "2s"}}},
    "few": {"listener": {"maxConnections": 2}},
    "last": {"listener": {"maxRequestsPerConnection": 2}},
    "aged": {"listener": {"timeouts": {"maxConnectionAge": "2s"}}},
    "ping": {"listener": {"http2": {"pingInterval": "200ms", "pingTimeout": "200ms"}}},
}


def misbehave(backend, request, connection):
    if request.target.startswith("/interim"):
        return b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 40 + answer("late")
    if request.target.startswith("/head"):
        return b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000 + b"\r\ncontent-length: 0\r\n\r\n"
    if request.target.startswith("/broken"):
        return answer("no", "503 Broken")
    return echo(backend, request, connection)


def udp_echo():
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))

    def run():
        while True:
            data, peer = server.recvfrom(2048)
            server.sendto(data, peer)

    threading.Thread(target=run, daemon=True).start()
    return server.getsockname()[1]


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    one, busy = Backend("one", held), Backend("busy", held)
    ok, slow, odd = Backend("ok"), Backend("slow", stuck), Backend("odd", misbehave)
    ports = {name: free_port() for name in (*LISTENERS, "tcp", "tls", "hello")} | {"udp": free_udp_port()}
    listeners = [{"name": name, "port": ports[name], "protocol": "HTTP"} for name in LISTENERS]
    listeners += [{"name": "tcp", "port": ports["tcp"], "protocol": "TCP"}, {"name": "udp", "port": ports["udp"], "protocol": "UDP"},
                  *({"name": name, "port": ports[name], "protocol": "TLS", "tls": {"mode": "Passthrough"}} for name in ("tls", "hello"))]
    text = gateway_resource(listeners)
    for name, spec in LISTENERS.items():
        text += policy(f"on-{name}", "Gateway", "edge", spec, section=name) if spec else ""
    for name in ("tcp", "udp"):
        text += policy(f"on-{name}", "Gateway", "edge", {"timeouts": {"streamIdle": "300ms"} if name == "tcp" else {}, "listener": {"maxConnections": 1 if name == "udp" else 100}}, section=name)
    text += policy("on-tls", "Gateway", "edge", {"listener": {"timeouts": {"handshake": "300ms"}}}, section="tls")
    text += backend_service("ok", [ok]) + backend_service("slow", [slow])
    text += backend_service("odd", [odd], {"loadBalancing": {"algorithm": "RoundRobin"}})
    text += backend_service("one", [one], {"connections": {"maxConnections": 1, "maxPendingRequests": 0}})
    text += backend_service("busy", [busy], {"connections": {"maxRequests": 1}})
    text += backend_service("noretry", [odd], {"connections": {"maxRetries": 0}})
    text += backend_service("budget", [odd])
    for name in LISTENERS:
        text += simple(f"ok-{name}", [{"name": "ok", "port": 80}], name)
    text += simple("slow", "slow", "plain", {"timeouts": {"request": "300ms"}})
    text += simple("try", "slow", "plain", {"timeouts": {"backendRequest": "300ms"}})
    text += simple("idle", "slow", "idle", {"timeouts": {"streamIdle": "400ms"}})
    text += simple("interim", "odd", "plain") + simple("head", "odd", "plain") + simple("one", "one", "plain") + simple("busy", "busy", "plain")
    retry = {"attempts": 3, "codes": [503]}
    text += simple("broken", "noretry", "plain", {"retry": {**retry, "budget": {"percent": 100, "minRetriesPerSecond": 100}}})
    text += simple("brokenbudget", "budget", "plain", {"retry": {**retry, "budget": {"percent": 0, "minRetriesPerSecond": 0, "minConcurrency": 0}}})
    for kind, name, port in (("TCPRoute", "tcp", 80), ("UDPRoute", "udp", 53)):
        text += f"""
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: {kind}
metadata: {{name: {name}}}
spec: {{parentRefs: [{{name: edge, sectionName: {name}}}], rules: [{{backendRefs: [{{name: {'slow' if name == 'tcp' else 'dns'}, port: {port}}}]}}]}}
"""
    text += service("dns", 53, [udp_echo()], protocol="UDP")
    folder = tmp_path_factory.mktemp("limits")
    folder.joinpath("gateway.yaml").write_text(text)
    running = Gateway(folder, "--workers", "1", "--max-connections", "60")
    errors = [d for d in running.status()["diagnostics"] if d["severity"] == "error"]
    assert not errors, errors[:3]
    running.ports, running.b = ports, {"/one": one, "/busy": busy}
    yield running
    assert running.stop() in (0, 3)


def hits(edge):
    return {name: int(count) for name, count in re.findall(r'selvedge_limits_hit_total\{limit="(\w+)"\} (\d+)', edge.get("/metrics"))}


class Hit:
    """Asserts that the limit is hit inside the block."""

    def __init__(self, edge, label):
        self.edge, self.label = edge, label

    def __enter__(self):
        self.before = hits(self.edge)[self.label]

    def __exit__(self, kind, *_):
        if kind is None:
            wait_for(lambda: hits(self.edge)[self.label] > self.before, f"a hit of {self.label}")


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def closes(s):
    """Reads until the other side closes."""
    out = b""
    try:
        while chunk := s.recv(65536):
            out += chunk
    except ConnectionResetError:
        pass
    return out


class H2:
    """An HTTP/2 client that does not look after the peer's settings."""

    def __init__(self, port):
        self.socket = connect(port)
        self.state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.state.initiate_connection()
        self.flush()

    def flush(self):
        self.socket.sendall(self.state.data_to_send())

    def head(self, path, fields=(), end=True):
        stream = self.state.get_next_available_stream_id()
        self.state.send_headers(stream, [(":method", "GET" if end else "POST"), (":scheme", "http"), (":authority", "a"), (":path", path), *fields], end_stream=end)
        self.flush()
        return stream

    def events(self):
        data = self.socket.recv(65536)
        found = self.state.receive_data(data) if data else []
        self.flush()
        return found if data else None

    def until(self, kind):
        while (found := self.events()) is not None:
            for event in found:
                if isinstance(event, kind):
                    return event
        return None


def test_every_label_is_there_from_the_start(edge):
    assert {"header_bytes", "stream_resets", "replay_buffer", "open_files"} <= set(hits(edge))


@pytest.mark.parametrize("label,request_bytes,status", [
    ("header_bytes", b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"x" * 5000 + b"\r\n\r\n", b"431"),
    ("header_count", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x: y\r\n" * 30 + b"\r\n", b"431"),
    ("target_bytes", b"GET /" + b"x" * 100 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"414"),
    ("body_bytes", b"POST /ok-tight HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000, b"413"),
    ("chunk_extensions", b"POST /ok-tight HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 5000 + b"\r\na\r\n0\r\n\r\n", b"400"),
])
def test_sizes(edge, label, request_bytes, status):
    with Hit(edge, label):
        assert raw(edge.ports["tight"], request_bytes, quiet=1).split(b" ")[1] == status


def test_sizes_in_http2(edge):
    for label, fields in (("header_count", [("x", "y")] * 30), ("header_bytes", [("x", "x" * 5000)])):
        with Hit(edge, label):
            client = H2(edge.ports["tight"])
            client.head("/ok-tight", fields)
            assert dict(client.until(h2.events.ResponseReceived).headers)[":status"] == "431"
    with Hit(edge, "target_bytes"):
        assert curl("--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{edge.ports['tight']}/" + "x" * 100) == "414"


def test_slow_heads_and_idle_connections(edge):
    with Hit(edge, "header_timeout"), connect(edge.ports["quick"]) as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost:")
        assert closes(s).startswith(b"HTTP/1.1 408")
    with Hit(edge, "idle_timeout"), connect(edge.ports["idle"]) as s:
        s.sendall(b"GET /ok-idle HTTP/1.1\r\nHost: a\r\n\r\n")
        assert closes(s).startswith(b"HTTP/1.1 200")
    with Hit(edge, "header_timeout"):
        client = H2(edge.ports["quick"])
        # HEADERS without END_HEADERS, and nothing behind it.
        client.socket.sendall(b"\0\0\x01\x01\x01\0\0\0\x01\x82")
        closes(client.socket)


def test_slow_bodies(edge):
    with Hit(edge, "body_rate"), connect(edge.ports["plain"]) as s:
        s.sendall(b"POST /ok-plain HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\nx")
        assert closes(s).startswith(b"HTTP/1.1 408")


def test_handshakes(edge):
    for port in ("quick", "tls"):
        with Hit(edge, "handshake_timeout"), connect(edge.ports[port]) as s:
            assert closes(s) == b""
    with Hit(edge, "inspected_bytes"), connect(edge.ports["hello"]) as s:
        record = b"\x16\x03\x01" + struct.pack("!H", 16000)
        # It may be cut before all of it is sent.
        with contextlib.suppress(OSError):
            s.sendall(record + b"\x01\x00\xff\xff" + b"\0" * 15996 + record + b"\0" * 16000)
        closes(s)


def test_idle_streams(edge):
    for version in ("--http1.1", "--http2-prior-knowledge"):
        with Hit(edge, "stream_idle"):
            assert curl(version, "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{edge.ports['idle']}/idle") == "504"
    with Hit(edge, "stream_idle"), connect(edge.ports["tcp"]) as s:
        closes(s)


@pytest.mark.parametrize("path,label", [("/slow", "request_timeout"), ("/try", "backend_request_timeout")])
def test_times_of_requests(edge, path, label):
    with Hit(edge, label):
        assert curl("-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{edge.ports['plain']}{path}") == "504"


def test_keepalive(edge):
    with Hit(edge, "keepalive_timeout"), connect(edge.ports["ping"]) as s:
        state = h2.connection.H2Connection()
        state.initiate_connection()
        s.sendall(state.data_to_send())
        closes(s)


def test_connections_of_a_listener(edge):
    with Hit(edge, "listener_connections"):
        held = [connect(edge.ports["few"]) for _ in range(2)]
        for s in held:
            s.sendall(b"GET /ok-few HTTP/1.1\r\nHost: a\r\n\r\n")
            assert s.recv(65536).startswith(b"HTTP/1.1 200")
        with connect(edge.ports["few"]) as s:
            assert closes(s) == b""
    for s in held:
        s.close()


def test_connections_of_the_process(edge):
    with Hit(edge, "process_connections"):
        held = [connect(edge.ports["plain"]) for _ in range(70)]
    for s in held:
        s.close()
    # For more than one: who comes next must not meet what is left of them.
    active = lambda: sum(map(int, re.findall(r"^selvedge_downstream_connections_active\{[^}]*\} (\d+)", edge.get("/metrics"), re.M)))
    wait_for(lambda: active() < 10, "room")
    assert raw(edge.ports["plain"], b"GET /ok-plain HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_requests_and_age_of_a_connection(edge):
    with Hit(edge, "requests_per_connection"), connect(edge.ports["last"]) as s:
        s.sendall(b"GET /ok-last HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        assert b"connection: close" in closes(s).lower()
    with Hit(edge, "requests_per_connection"):
        client = H2(edge.ports["last"])
        client.head("/ok-last")
        client.head("/ok-last")
        closes(client.socket)
    with Hit(edge, "connection_age"), connect(edge.ports["aged"]) as s:
        s.sendall(b"GET /ok-aged HTTP/1.1\r\nHost: a\r\n\r\n")
        assert closes(s).startswith(b"HTTP/1.1 200")


def test_streams_and_resets(edge):
    with Hit(edge, "concurrent_streams"):
        client = H2(edge.ports["tight"])
        client.state.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 100
        client.state.remote_settings.acknowledge()
        for _ in range(12):
            client.head("/ok-tight", [("content-length", "5")], end=False)
        assert client.until(h2.events.StreamReset).error_code == 7
    with Hit(edge, "stream_resets"):
        client = H2(edge.ports["plain"])
        block = client.state.encoder.encode([(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/slow")])
        try:
            for i in range(2000):
                stream = struct.pack("!I", 2 * i + 1)
                client.socket.sendall(len(block).to_bytes(3, "big") + b"\x01\x05" + stream + block + b"\0\0\x04\x03\0" + stream + b"\0\0\0\x08")
        except OSError:
            pass
        closes(client.socket)
    with Hit(edge, "http2_flood"):
        client = H2(edge.ports["plain"])
        try:
            client.socket.sendall(b"\0\0\x01\x01\x01\0\0\0\x01\x82")
            for _ in range(20_000):
                client.socket.sendall(b"\0\0\0\x09\0\0\0\0\x01")
        except OSError:
            pass
        closes(client.socket)


def test_sessions(edge):
    with Hit(edge, "udp_sessions"):
        for _ in range(3):
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.sendto(b"x", ("127.0.0.1", edge.ports["udp"]))
            s.close()


@pytest.mark.parametrize("path,label", [("/one", "cluster_connections"), ("/busy", "cluster_requests")])
def test_circuit_breakers(edge, path, label):
    with Hit(edge, label):
        ask = lambda: curl("-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{edge.ports['plain']}{path}")
        assert refused_while_held(edge.b[path], ask, 4) == ["503", "503", "503", "200"]


@pytest.mark.parametrize("path,label", [("/broken", "cluster_retries"), ("/brokenbudget", "retry_budget")])
def test_retries(edge, path, label):
    with Hit(edge, label):
        assert curl("-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{edge.ports['plain']}{path}") == "503"


def test_replay_buffer(edge):
    body = b"".join(b"8000\r\n" + b"x" * 0x8000 + b"\r\n" for _ in range(600)) + b"0\r\n\r\n"
    with Hit(edge, "replay_buffer"):
        assert raw(edge.ports["plain"], b"POST /ok-plain HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + body).startswith(b"HTTP/1.1 200")


def test_answers_of_backends(edge):
    with Hit(edge, "interim_responses"):
        raw(edge.ports["plain"], b"GET /interim HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    with Hit(edge, "response_head"):
        assert raw(edge.ports["plain"], b"GET /head HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 502")


def test_memory(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    port = free_port()
    folder.joinpath("gateway.yaml").write_text(gateway_resource([{"name": "http", "port": port, "protocol": "HTTP"}]) + simple("a", [], "http"))
    running = Gateway(folder, "--workers", "1", "--max-memory", str(1 << 20))
    try:
        def refused():
            try:
                raw(port, b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n", 2)
            except OSError:
                pass
            return hits(running)["memory"] > 0
        wait_for(refused, "shedding")
    finally:
        running.stop()
