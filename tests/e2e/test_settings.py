"""Settings of TrafficPolicies that no other file covers, each seen to have its effect."""
import collections
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from backend import Backend, answer, backend_service, echo, gateway_resource, policy, simple
from conftest import Gateway, curl, free_port, one_answer, wait_for, write


def broken(backend, request, connection):
    return answer("no", "503 Broken")


def cut(backend, request, connection):
    """Resets the connection in the middle of a body."""
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\npart")
    # The client has what was sent before: a reset may overtake it.
    backend.gate.wait(60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    return None


def window_backend(seen):
    """An HTTP/2 server that notes the windows that its client opens."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve(connection):
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        connection.sendall(state.data_to_send())
        while data := connection.recv(65536):
            for event in state.receive_data(data):
                if isinstance(event, h2.events.RemoteSettingsChanged):
                    changed = event.changed_settings.get(h2.settings.SettingCodes.INITIAL_WINDOW_SIZE)
                    seen["stream"] = changed.new_value if changed else seen.get("stream")
                if isinstance(event, h2.events.WindowUpdated) and event.stream_id == 0:
                    seen["connection"] = seen.get("connection", 65_535) + event.delta
                if isinstance(event, h2.events.StreamEnded):
                    state.send_headers(event.stream_id, [(":status", "200")], end_stream=True)
            connection.sendall(state.data_to_send())

    def run():
        while True:
            threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()
    return server.getsockname()[1]


def zoned(name, zones):
    """A Service with one endpoint in each zone, by the port of its backend."""
    text = f"""
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{ports: [{{name: main, port: 80}}]}}
"""
    for zone, backend in zones.items():
        text += f"""---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-{zone}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
endpoints: [{{addresses: [127.0.0.1], zone: {zone}}}]
ports: [{{name: main, port: {backend.port}}}]
"""
    return text


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    b = {"echo": Backend("echo"), "broken": Backend("broken", broken), "cut": Backend("cut", cut), "aged": Backend("aged"),
         "old": Backend("old"), "new": Backend("new"), "za": Backend("za"), "zb": Backend("zb"),
         "told": Backend("told", preface=1), "lone": Backend("lone")}
    windows = {}
    p = {name: free_port() for name in ("http", "cidrs", "others", "slashes", "aged")}
    text = gateway_resource([{"name": n, "port": port, "protocol": "HTTP"} for n, port in p.items()])
    for name in ("echo", "broken", "cut", "lone"):
        text += backend_service(name, [b[name]])
        text += simple(name, name)
    text += backend_service("recycled", [b["aged"]], {"connections": {"maxAge": "300ms"}}) + simple("recycled", "recycled")
    text += backend_service("windows", [window_backend(windows)], {"connections": {"http2": {"streamWindow": 100_000, "connectionWindow": 300_000}}}, "kubernetes.io/h2c")
    text += simple("windows", "windows")
    again = {"attempts": 2, "codes": [503], "backoff": {"base": "1ms", "max": "1ms"}}
    text += simple("methods", "broken", spec={"retry": {**again, "methods": ["POST", "PATCH"]}})
    text += simple("usual", "broken", spec={"retry": again})
    none = {"percent": 0, "minRetriesPerSecond": 0}
    text += backend_service("concurrent", [b["broken"]]) + simple("concurrent", "concurrent", spec={"retry": {**again, "budget": {**none, "minConcurrency": 1}}})
    text += simple("nothing", "concurrent", spec={"retry": {**again, "budget": {**none, "minConcurrency": 0}}})
    for name, spec in (("cidrs", {"listener": {"trustedCidrs": ["127.0.0.0/8", "10.0.0.0/8"]}}), ("others", {"listener": {"trustedCidrs": ["192.0.2.0/24"]}}),
                       ("slashes", {"listener": {"normalization": {"escapedSlashes": "Redirect"}}}), ("aged", {"listener": {"timeouts": {"maxConnectionAge": "2s"}}})):
        text += simple(name, "echo", name) + policy(f"on-{name}", "Gateway", "edge", spec, name)
        text += policy(f"log-{name}", "Gateway", "edge", {"telemetry": {"accessLog": {"format": "Text", "template": "%REQ(:PATH)% from %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%\n"}}}, name)
    text += zoned("near", {"a": b["za"], "b": b["zb"]}) + simple("near", "near")
    text += zoned("anywhere", {"a": b["za"], "b": b["zb"]}) + policy("anywhere", "Service", "anywhere", {"loadBalancing": {"zone": {"preference": "Off"}}}) + simple("anywhere", "anywhere")
    text += zoned("only", {"b": b["zb"]}) + policy("only", "Service", "only", {"loadBalancing": {"zone": {"preference": "Strict"}}}) + simple("only", "only")
    text += simple("slow", "slow")
    text += backend_service("told", [b["told"]], {"connections": {"proxyProtocol": "V1"}})
    text += simple("mirrored", "echo", filters=[{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "told", "port": 80}}}])
    folder = tmp_path_factory.mktemp("settings")
    folder.joinpath("gateway.yaml").write_text(text)
    slow = {"loadBalancing": {"algorithm": "RoundRobin", "slowStart": {"window": "5s", "minPercent": 10}}}
    write(folder / "slow.yaml", backend_service("slow", [b["old"]], slow))
    running = Gateway(folder, "--workers", "1", "--zone", "a")
    running.started = time.monotonic()
    errors = [d for d in running.status()["diagnostics"] if d["severity"] == "error"]
    assert not errors, errors[:3]
    running.slow = lambda *names: write(folder / "slow.yaml", backend_service("slow", [b[n] for n in names], slow))
    running.b, running.ports, running.windows, running.url = b, p, windows, f"http://127.0.0.1:{p['http']}"
    yield running
    assert running.stop() == 0


def status(url, *args):
    return int(curl("-o", "/dev/null", "-w", "%{http_code}", "--path-as-is", *args, url))


def who(edge, path):
    return json.loads(curl(edge.url + path))["backend"]


def tries(edge, path, *args):
    before = len(edge.b["broken"].targets(path))
    assert status(edge.url + path, *args) == 503
    return len(edge.b["broken"].targets(path)) - before


def test_retried_methods_are_an_exact_list(edge):
    assert tries(edge, "/methods/a", "-X", "POST", "-d", "x") == 3
    assert tries(edge, "/methods/b", "-X", "PATCH", "-d", "x") == 3
    assert tries(edge, "/methods/c") == 1
    assert tries(edge, "/methods/d", "-X", "PUT", "-d", "x") == 1
    assert (tries(edge, "/usual/a"), tries(edge, "/usual/b", "-X", "POST", "-d", "x")) == (3, 1)


def test_concurrent_retries_need_no_budget(edge):
    assert tries(edge, "/nothing") == 1
    assert tries(edge, "/concurrent") == 3


def client(edge, name, given):
    """The client as the access log has it."""
    path = f"/{name}/{given.replace(',', '-').replace(' ', '')}"
    curl("-H", f"X-Forwarded-For: {given}", f"http://127.0.0.1:{edge.ports[name]}{path}")
    log = edge.folder.parent / f"{edge.folder.name}.log"
    return wait_for(lambda: re.search(re.escape(path) + r" from (\S+)\n", log.read_text()), "the line in the log").group(1)


def test_trusted_networks(edge):
    assert client(edge, "cidrs", "6.6.6.6, 203.0.113.7, 10.1.2.3") == "203.0.113.7"
    assert client(edge, "cidrs", "6.6.6.6, 203.0.113.7") == "203.0.113.7"
    assert client(edge, "others", "6.6.6.6") == "127.0.0.1"


def test_escaped_slashes_redirect(edge):
    url = f"http://127.0.0.1:{edge.ports['slashes']}/slashes"
    out = curl("-i", "--path-as-is", url + "/a%2Fb%5C..%2fc?x=%2F")
    assert out.startswith("HTTP/1.1 307") and re.search(r"(?i)location: /slashes/a/c\?x=%2F", out), out
    assert json.loads(curl("-L", "--path-as-is", url + "/a%2Fb"))["target"] == "/slashes/a/b"
    assert status(url + "/plain") == 200
    grpc = curl("-i", "--http2-prior-knowledge", "-H", "content-type: application/grpc", "-X", "POST", "--path-as-is", url + "/a%2Fb")
    assert "grpc-status" in grpc and "location" not in grpc


def test_windows_towards_backends(edge):
    assert status(edge.url + "/windows") == 200
    # That of the connection is opened by a frame of its own, which may come behind the request.
    wait_for(lambda: edge.windows == {"stream": 100_000, "connection": 300_000}, "the windows being opened")


def test_age_of_client_connections(edge):
    with socket.create_connection(("127.0.0.1", edge.ports["aged"]), timeout=60) as s:
        ask, stream = b"GET /aged HTTP/1.1\r\nHost: a\r\n\r\n", s.makefile("rb")
        answers = []
        end = time.monotonic() + 60
        while time.monotonic() < end:
            s.sendall(ask)
            answers.append(one_answer(stream)[0])
            if b"connection: close" in answers[-1].lower():
                break
        # Each request was answered, the last one with the word that it was the last.
        assert len(answers) > 1 and all(a.startswith(b"HTTP/1.1 200") for a in answers)
        assert stream.read() == b""
    with socket.create_connection(("127.0.0.1", edge.ports["aged"]), timeout=60) as s:
        state = h2.connection.H2Connection()
        state.initiate_connection()
        s.sendall(state.data_to_send())
        data = b""
        while chunk := s.recv(65536):
            data += chunk
        # GOAWAY in two steps, the last without an error.
        assert b"\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\0" in data, data


def test_age_of_backend_connections(edge):
    before, begun = edge.b["aged"].connections, time.monotonic()
    made = lambda: edge.b["aged"].connections - before
    wait_for(lambda: status(edge.url + "/recycled") == 200 and made() >= 4, "new connections")
    assert made() <= 2 + (time.monotonic() - begun) / 0.3


def test_zones(edge):
    assert {who(edge, "/near") for _ in range(12)} == {"za"}
    assert {who(edge, "/anywhere") for _ in range(40)} == {"za", "zb"}
    assert status(edge.url + "/only") == 503


def test_new_endpoints_start_slowly(edge):
    # The first endpoint has had its own slow start behind it, since the gateway started.
    time.sleep(max(0, edge.started + 5.5 - time.monotonic()))
    # Before it is there: its weight is at most what it would be, had it been there at once.
    begun = time.monotonic()
    edge.slow("old", "new")
    wait_for(lambda: f":{edge.b['new'].port}" in edge.get("/clusters"), "the second endpoint")
    connection = http.client.HTTPConnection("127.0.0.1", edge.ports["http"], timeout=60)

    def ask():
        connection.request("GET", "/slow", headers={"Host": "a"})
        return json.loads(connection.getresponse().read())["backend"]

    counts = collections.Counter(ask() for _ in range(40))
    # Its weight grows from a tenth to that of the other, in five seconds.
    weight = min(1, max(0.1, (time.monotonic() - begun) / 5))
    assert 1 <= counts["new"] <= 2 + 40 * weight / (1 + weight), counts
    wait_for(lambda: abs(sum(who(edge, "/slow") == "new" for _ in range(20)) - 10) <= 1, "equal shares in the end")


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_a_backend_that_resets_in_a_body(edge, version):
    edge.b["cut"].gate.clear()
    ask = subprocess.Popen(["curl", "-sSN", version, "--max-time", "60", edge.url + "/cut"], stdout=subprocess.PIPE)
    seen = ask.stdout.read(4)
    edge.b["cut"].gate.set()
    seen += ask.stdout.read()
    # 18: fewer bytes than announced; 56: reset; 92: the stream was reset. Never taken for a whole answer.
    assert ask.wait(70) in (18, 56, 92) and seen == b"part", (ask.returncode, seen)
    assert who(edge, "/echo") == "echo"


def test_a_client_that_resets_in_a_body(edge):
    lone = edge.b["lone"]
    s = socket.create_connection(("127.0.0.1", edge.ports["http"]), timeout=60)
    s.sendall(b"POST /lone HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\npart")
    wait_for(lambda: lone.connections == 1, "the request being on its way")
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()
    # The backend is told, and sees no whole request.
    wait_for(lambda: lone.closed == 1, "the backend's connection being closed")
    assert not [r for r in lone.targets("/lone") if len(r.body) == 1000]
    assert who(edge, "/echo") == "echo"


def test_mirrors_are_told_the_client(edge):
    with socket.create_connection(("127.0.0.1", edge.ports["http"]), timeout=60) as s:
        own = s.getsockname()[1]
        s.sendall(b"GET /mirrored HTTP/1.1\r\nHost: a\r\n\r\n")
        assert s.recv(65536).startswith(b"HTTP/1.1 200")
    line = f"PROXY TCP4 127.0.0.1 127.0.0.1 {own} {edge.ports['http']}\r\n".encode()
    wait_for(lambda: line in edge.b["told"].prefaces, "the mirror being told")


@pytest.mark.parametrize("abstract", [False, True])
def test_service_managers_are_told(tmp_path, monkeypatch, abstract):
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    path = f"\0selvedge-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    manager.bind(path)
    manager.settimeout(60)
    monkeypatch.setenv("NOTIFY_SOCKET", path.replace("\0", "@"))
    folder = tmp_path / "notified"
    folder.mkdir()
    folder.joinpath("gateway.yaml").write_text(gateway_resource([{"name": "http", "port": free_port(), "protocol": "HTTP"}]))
    running = Gateway(folder)
    try:
        assert manager.recv(1000) == b"READY=1"
        running.process.send_signal(signal.SIGHUP)
        reloading = manager.recv(1000).decode()
        assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", reloading), reloading
        assert abs(int(reloading.split("=")[-1]) - time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6) < 20e6
        assert manager.recv(1000) == b"READY=1"
        running.process.send_signal(signal.SIGUSR2)
        # The new process says that it is ready too; whoever is first.
        while (said := manager.recv(1000).decode()) == "READY=1":
            pass
        new = int(re.fullmatch(r"MAINPID=(\d+)\nREADY=1", said).group(1))
        assert new != running.process.pid and running.process.wait(40) == 0
        os.kill(new, signal.SIGTERM)
        while (said := manager.recv(1000)) != b"STOPPING=1":
            assert said == b"READY=1", said
    finally:
        running.stop()
