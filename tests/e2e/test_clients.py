"""Clients that end their side of a connection early: they still get what they asked for; those that have left do not."""
import json
import socket
import struct
import time

import pytest
from backend import Backend, backend_service, echo, gateway_resource, policy, simple, stuck
from conftest import Gateway, free_port, wait_for, whole_lines

GET = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"


def behave(backend, request, connection):
    if "late" in request.target:
        time.sleep(1)
    if "stuck" in request.target:
        return stuck(backend, request, connection)
    if request.header("upgrade"):
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
                           b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
        got = b""
        while chunk := connection.recv(65536):
            got += chunk
        return b"got %d" % len(got)
    return echo(backend, request, connection)


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    names = ("http", "brief", "tcp")
    ports = {name: free_port() for name in names}
    logs = tmp_path_factory.mktemp("logs")
    text = gateway_resource([{"name": n, "port": ports[n], "protocol": "TCP" if n == "tcp" else "HTTP"} for n in names])
    text += policy("on-http", "Gateway", "edge", {"listener": {"timeouts": {"halfClose": "60s"}}, "telemetry": {"accessLog": {"path": str(logs / "http")}}}, "http")
    text += policy("on-brief", "Gateway", "edge", {
        "listener": {"timeouts": {"halfClose": "200ms"}}, "telemetry": {"accessLog": {"path": str(logs / "brief")}}}, "brief")
    backend = Backend("b", behave)
    text += backend_service("b", [backend])
    for name in ("http", "brief"):
        text += simple(f"late-{name}", "b", name) + simple(f"stuck-{name}", "b", name) + simple(f"now-{name}", "b", name)
    text += """
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: tcp}
spec: {parentRefs: [{name: edge, sectionName: tcp}], rules: [{backendRefs: [{name: b, port: 80}]}]}
"""
    folder = tmp_path_factory.mktemp("clients")
    folder.joinpath("gateway.yaml").write_text(text)
    running = Gateway(folder)
    errors = [d for d in running.status()["diagnostics"] if d["severity"] == "error"]
    assert not errors, errors[:3]
    running.ports, running.logs, running.backend = ports, logs, backend
    yield running
    assert running.stop() in (0, 3)


def shut(edge, name, request):
    """Sends, shuts the sending side, and gives what comes back. The end is on the last segment, so that no answer comes before it."""
    with socket.create_connection(("127.0.0.1", edge.ports[name]), timeout=60) as s:
        s.sendall(request, socket.MSG_MORE)
        s.shutdown(socket.SHUT_WR)
        out = b""
        while chunk := s.recv(65536):
            out += chunk
        return out


def logged(edge, name, mark):
    find = lambda: [json.loads(line) for line in whole_lines(edge.logs / name) if mark in line]
    return wait_for(find, f"a log line with {mark}")


def half_closes(edge):
    [line] = [line for line in edge.get("/metrics").splitlines() if line.startswith('selvedge_limits_hit_total{limit="half_close"}')]
    return int(line.split()[1])


def test_a_client_that_shuts_its_sending_side_is_answered(edge):
    body = b"x" * 100_000
    post = b"POST /late-http/post HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    for request in (GET % b"now-http", GET % b"late-http", b"GET /late-http HTTP/1.0\r\n\r\n", post):
        answer = shut(edge, "http", request)
        assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer.lower() and answer.endswith(b"}"), answer
    answer = shut(edge, "http", GET % b"late-http/1" + post + GET % b"now-http/2")
    assert answer.count(b"HTTP/1.1 200") == 3, answer
    [line] = logged(edge, "http", "/late-http/1")
    assert (line["status"], line["flags"]) == (200, "-"), line


def test_a_client_that_has_left_is_waited_for_so_long(edge):
    before = half_closes(edge)
    assert shut(edge, "brief", GET % b"stuck-brief/half") == b""
    with socket.create_connection(("127.0.0.1", edge.ports["brief"])) as s:
        s.sendall(GET % b"stuck-brief/left")
    for mark in ("/half", "/left"):
        [line] = logged(edge, "brief", mark)
        assert line["status"] == 0 and "DC" in line["flags"] and line["duration_ms"] < 5000, line
    wait_for(lambda: half_closes(edge) == before + 2, "both being counted")


def test_a_reset_ends_a_request_at_once(edge):
    for name, shuts in (("alive", False), ("shut", True)):
        with socket.create_connection(("127.0.0.1", edge.ports["http"])) as s:
            s.sendall(GET % f"stuck-http/{name}".encode())
            wait_for(lambda: edge.backend.targets(f"/stuck-http/{name}"), "the request being there")
            if shuts:
                s.shutdown(socket.SHUT_WR)
                time.sleep(0.2)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        [line] = logged(edge, "http", f"/{name}")
        assert line["status"] == 0 and "DC" in line["flags"] and line["duration_ms"] < 30_000, line


def test_tunnels_and_tcp_routes_end_in_halves(edge):
    upgrade = (b"GET /now-http/ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
               b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    answer = shut(edge, "http", upgrade + b"x" * 5000)
    assert answer.startswith(b"HTTP/1.1 101") and answer.endswith(b"\r\n\r\ngot 5000"), answer
    assert shut(edge, "tcp", GET % b"late-tcp").startswith(b"HTTP/1.1 200")
