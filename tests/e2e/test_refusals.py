"""What is refused before it is routed leaves one line in the access log, with a flag that says why; and settings of what is."""
import json
import socket

import h2.events
import pytest
from backend import Backend, answer, backend_service, echo, gateway_resource, policy, simple
from conftest import Gateway, Recorder, curl, free_port, one_answer, raw, service, wait_for, whole_lines
from test_limits import H2, closes, connect

TRACE = "0af7651916cd43dd8448eb211c80319c"
# Settings of the listeners; each has an access log of its own.
LISTENERS = {
    # Long enough for a client that is slow to begin its request.
    "plain": {}, "quick": {"listener": {"timeouts": {"header": "1s", "handshake": "2s"}}},
    "tight": {"listener": {"headers": {"maxCount": 20, "maxBytes": 4096}}, "requestLimits": {"maxTargetBytes": 64}},
    "bodies": {"listener": {"getBodies": "Allow"}}, "proxied": {"listener": {"proxyProtocol": "Optional"}},
}


def heads(backend, request, connection):
    if "fields" in request.target:
        return answer("ok", **{f"x{i}": "y" for i in range(150)})
    if "bytes" in request.target:
        return answer("ok", x="y" * 70_000)
    return echo(backend, request, connection)


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    ports = {name: free_port() for name in LISTENERS}
    logs = tmp_path_factory.mktemp("logs")
    recorder, mirrored = Recorder(), Backend("mirrored")
    text = gateway_resource([{"name": n, "port": ports[n], "protocol": "HTTP"} for n in LISTENERS])
    for name, spec in LISTENERS.items():
        text += policy(f"on-{name}", "Gateway", "edge", {**spec, "telemetry": {"accessLog": {"path": str(logs / name)}}}, name)
        text += simple(f"to-{name}", "b", name) + simple(f"raw-{name}", "raw", name)
    odd = Backend("odd", heads)
    text += backend_service("b", [Backend("b")]) + service("raw", 80, [recorder.port]) + backend_service("mirrored", [mirrored])
    text += backend_service("odd", [odd]) + simple("odd", "odd", "plain")
    text += backend_service("wide", [odd], {"connections": {"responseHeaders": {"maxCount": 200, "maxBytes": 100_000}}}) + simple("wide", "wide", "plain")
    text += backend_service("narrow", [odd], {"connections": {"responseHeaders": {"maxCount": 8, "maxBytes": 1024}}}) + simple("narrow", "narrow", "plain")
    mirror = {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "mirrored", "port": 80}, "fraction": {"numerator": 1, "denominator": 4}}}
    text += simple("mirror", "b", "plain", filters=[mirror])
    folder = tmp_path_factory.mktemp("refusals")
    folder.joinpath("gateway.yaml").write_text(text)
    running = Gateway(folder)
    errors = [d for d in running.status()["diagnostics"] if d["severity"] == "error"]
    assert not errors, errors[:3]
    running.ports, running.logs, running.recorder, running.mirrored = ports, logs, recorder, mirrored
    yield running
    assert running.stop() in (0, 3)


def lines(edge, name):
    return [json.loads(line) for line in whole_lines(edge.logs / name)]


def logged(edge, name, path):
    """The line of a request. It is written after the answer was sent."""
    return wait_for(lambda: [line for line in lines(edge, name) if line["path"] == path], f"the line of {path}")[0]


class One:
    """Asserts that the block leaves exactly one new line, with this status and flag."""

    def __init__(self, edge, name, status, flag):
        self.edge, self.name, self.status, self.flag = edge, name, status, flag

    def __enter__(self):
        self.before = len(lines(self.edge, self.name))
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            wait_for(lambda: len(lines(self.edge, self.name)) > self.before, "a line in the log")
            new = lines(self.edge, self.name)[self.before:]
            assert [(line["status"], line["flags"]) for line in new] == [(self.status, self.flag)], new
            assert new[0]["status_details"] and new[0]["client"] == "127.0.0.1", new


@pytest.mark.parametrize("listener, request_bytes, status, flag", [
    ("plain", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400, "DPE"),
    ("plain", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "DPE"),
    ("plain", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", 400, "DPE"),
    ("plain", b"GET / HTTP/1.1\r\n\r\n", 400, "DPE"),
    ("plain", b"GET / HTTP/1.1\r\nHost: a\r\nbad field: x\r\n\r\n", 400, "DPE"),
    ("plain", b"POST / HTTP/1.0\r\n\r\n", 411, "DPE"),
    ("plain", b"GET / HTTP/1.1\r\nHost: a\r\nExpect: wonders\r\nContent-Length: 0\r\n\r\n", 417, "DPE"),
    ("plain", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "DPE"),
    ("plain", b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505, "DPE"),
    ("plain", b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405, "DPE"),
    ("tight", b"GET /" + b"x" * 100 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "TL"),
    ("tight", b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"x" * 5000 + b"\r\n\r\n", 431, "TL"),
    ("tight", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x: y\r\n" * 30 + b"\r\n", 431, "TL"),
])
def test_what_is_refused_is_logged_once(edge, listener, request_bytes, status, flag):
    with One(edge, listener, status, flag):
        assert raw(edge.ports[listener], request_bytes).startswith(b"HTTP/1.1 %d" % status)


@pytest.mark.parametrize("begun", [b"GET / HTTP/1.1\r\nHo", b"G", b"P", b"PRI * HT"])
def test_slow_heads_are_logged(edge, begun):
    with One(edge, "quick", 408, "SI"), connect(edge.ports["quick"]) as s:
        s.sendall(begun)
        assert closes(s).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("begun", [b"GET / HTTP/1.1\r\nHo", b"P"])
def test_heads_that_are_cut_are_logged(edge, begun):
    with One(edge, "plain", 0, "DC"), connect(edge.ports["plain"]) as s:
        s.sendall(begun)


def test_connections_without_a_byte_are_not_requests(edge):
    before = len(lines(edge, "quick"))
    with connect(edge.ports["quick"]) as s:
        assert closes(s) == b""
    assert raw(edge.ports["quick"], b"GET /to-quick HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200")
    wait_for(lambda: len(lines(edge, "quick")) > before, "the line of the request")
    assert len(lines(edge, "quick")) == before + 1


@pytest.mark.parametrize("fields, status, flag", [([("x", "y")] * 30, 431, "TL"), ([("x", "x" * 5000)], 431, "TL")])
def test_refusals_in_http2(edge, fields, status, flag):
    with One(edge, "tight", status, flag):
        client = H2(edge.ports["tight"])
        client.head("/to-tight", fields)
        assert dict(client.until(h2.events.ResponseReceived).headers)[":status"] == str(status)


def test_a_foreign_scheme_is_misdirected(edge):
    for scheme, status in (("http", "200"), ("https", "421")):
        client = H2(edge.ports["plain"])
        client.state.send_headers(1, [(":method", "GET"), (":scheme", scheme), (":authority", "a"), (":path", "/to-plain/scheme")], end_stream=True)
        client.flush()
        assert dict(client.until(h2.events.ResponseReceived).headers)[":status"] == status
    assert raw(edge.ports["plain"], b"GET https://a/to-plain HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 421")


def received(edge, mark):
    return wait_for(lambda: next((r for r in edge.recorder.received if mark in r), None), f"{mark} at the backend").lower()


def test_te_is_passed_on_for_trailers_alone(edge):
    for index, (fields, wanted) in enumerate([
            (b"TE: trailers\r\nConnection: te\r\n", b"trailers"), (b"TE: gzip, trailers\r\nConnection: TE, x-own\r\nX-Own: 1\r\n", b"trailers"),
            (b"TE: gzip\r\nConnection: te\r\n", None), (b"TE: gzip\r\n", None)]):
        path = b"/raw-plain/te%d" % index
        assert raw(edge.ports["plain"], b"GET %s HTTP/1.1\r\nHost: a\r\n%s\r\n" % (path, fields), quiet=1).startswith(b"HTTP/1.1 200")
        head = received(edge, path).split(path.lower(), 1)[1].split(b"\r\n\r\n")[0]
        assert b"x-own" not in head and b"gzip" not in head, head
        assert (b"\r\nte: trailers" in head and b"\r\nconnection: te" in head) == (wanted is not None) == (b"te:" in head), head


def test_bodies_of_get(edge):
    body = b'{"query": {}}'
    for method in (b"GET", b"HEAD"):
        ask = lambda name: raw(edge.ports[name], b"%s /raw-%s/%s HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nContent-Length: %d\r\n\r\n%s" % (
            method, name.encode(), method, len(body), body), quiet=1)
        assert ask("plain").startswith(b"HTTP/1.1 400")
        assert ask("bodies").startswith(b"HTTP/1.1 200")
        got = received(edge, b"/raw-bodies/" + method)
        # Who does not read it cannot take it for a request: there is no next one on this connection.
        assert got.endswith(b"\r\n\r\n" + body) and b"connection: close, te\r\n" in got and b"content-length: 13\r\n" in got, got
    for name, status in (("plain", "400"), ("bodies", "200")):
        out = curl("--http2-prior-knowledge", "-X", "GET", "-d", "body", "-w", "\n%{http_code}", f"http://127.0.0.1:{edge.ports[name]}/to-{name}")
        assert out.endswith(status) and (status == "400" or '"length": 4' in out), out


def test_traces_are_named_without_tracing(edge):
    for index, (value, trace) in enumerate(((f"00-{TRACE}-b7ad6b7169203331-01", TRACE), ("00-nonsense-01", None), (None, None))):
        path = f"/to-bodies/trace{index}"
        with connect(edge.ports["bodies"]) as s:
            told = f"traceparent: {value}\r\n" if value else ""
            s.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{told}\r\n".encode())
            assert b'"traceparent"' in closes(s) if value else True
        assert logged(edge, "bodies", path)["trace_id"] == trace


def test_limits_of_response_heads(edge):
    ask = lambda path: curl("-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{edge.ports['plain']}{path}")
    assert [ask(f"/{name}/{what}") for name in ("odd", "wide", "narrow") for what in ("plain", "fields", "bytes")] == [
        "200", "502", "502", "200", "200", "200", "200", "502", "502"]
    line = logged(edge, "plain", "/narrow/bytes")
    assert "1024 bytes" in line["status_details"], line


def test_mirrors_get_their_share(edge):
    with connect(edge.ports["plain"]) as s:
        stream = s.makefile("rb")
        for i in range(400):
            s.sendall(b"GET /mirror/%d HTTP/1.1\r\nHost: a\r\n\r\n" % i)
            assert one_answer(stream)[0].startswith(b"HTTP/1.1 200")
    # A quarter of 400: outside of these once in ten million runs.
    wait_for(lambda: len(edge.mirrored.targets("/mirror")) >= 55, "the mirrored requests")
    assert len(edge.mirrored.targets("/mirror")) <= 150


def test_a_proxy_header_may_be_left_out(edge):
    request = lambda path: b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path.encode()
    for name, header, client in (("none", b"", "127.0.0.1"), ("named", b"PROXY TCP4 192.0.2.7 127.0.0.1 1234 80\r\n", "192.0.2.7"),
                                 ("unknown", b"PROXY UNKNOWN\r\n", "127.0.0.1")):
        path = f"/to-proxied/{name}"
        assert raw(edge.ports["proxied"], header + request(path)).startswith(b"HTTP/1.1 200")
        assert logged(edge, "proxied", path)["client"] == client
    assert raw(edge.ports["proxied"], b"PROXY TCP4 nonsense\r\n" + request("/to-proxied")) == b""
