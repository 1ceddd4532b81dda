"""What is told about requests: access logs, spans, metrics; and shedding."""
import collections
import concurrent.futures
import json
import pathlib
import re
import socket
import struct
import threading

import grpc
import pytest
from backend import Backend, answer, backend_service, gateway_resource, policy, simple
from conftest import Gateway, curl, free_port, one_answer, raw, wait_for, whole_lines
from test_streams import certificate

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector:
    """Takes whatever is exported by OTLP over gRPC."""

    def __init__(self, stem=None):
        self.got = collections.defaultdict(list)
        take = lambda kind: grpc.unary_unary_rpc_method_handler(lambda request, _: (self.got[kind].append(request), b"")[1])
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        self.server.add_generic_rpc_handlers((
            grpc.method_handlers_generic_handler("opentelemetry.proto.collector.trace.v1.TraceService", {"Export": take("spans")}),
            grpc.method_handlers_generic_handler("opentelemetry.proto.collector.logs.v1.LogsService", {"Export": take("logs")})))
        if stem:
            pair = (pathlib.Path(f"{stem}.key").read_bytes(), pathlib.Path(f"{stem}.crt").read_bytes())
            self.port = self.server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        else:
            self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def all(self, kind):
        return b"".join(self.got[kind])


def by_path(backend, request, connection):
    if found := re.search(r"/status/(\d+)", request.target):
        return answer("x" * 10, f"{found[1]} Status")
    if "/cut" in request.target:
        return None
    return answer(json.dumps({"headers": request.headers, "length": len(request.body)}))


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    folder, logs = tmp_path_factory.mktemp("telemetry"), tmp_path_factory.mktemp("logs")
    collector, backend = Collector(), Backend("b", by_path)
    names = ("json", "text", "bad", "none", "otlp", "own")
    p = {n: free_port() for n in names}
    text = gateway_resource([{"name": n, "port": port, "protocol": "HTTP"} for n, port in p.items()])
    text += backend_service("b", [backend]) + backend_service("dead", [free_port()])
    at = f"http://127.0.0.1:{collector.port}"
    log = lambda name, tracing=None, **more: policy(name, "Gateway", "edge", {"telemetry": {
        "accessLog": {"path": str(logs / name), **more}, **({"tracing": tracing} if tracing else {})}}, name)
    text += log("json", {"sampling": 0, "otlp": at, "attributes": {"team": "shop-team"}}, fields={"agent": "%REQ(user-agent)%"})
    text += log("text", format="Text", template="%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %BYTES_SENT% [%REQ(x-odd)%]")
    text += log("bad", condition={"minStatus": 500}) + log("none", sampling=0)
    text += policy("otlp", "Gateway", "edge", {"telemetry": {"accessLog": {"otlp": at}}}, "otlp")
    text += policy("own", "Gateway", "edge", {"telemetry": {"tracing": {"sampling": 0, "followCaller": False}}}, "own")
    for n in names:
        text += simple(f"to-{n}", "b", n) + simple(f"dead-{n}", "dead", n)
    text += simple("slow", "b", "json", spec={"fault": {"delay": {"fixed": "200ms"}}}) + simple("long", "b", "json", spec={"fault": {"delay": {"fixed": "100s"}}}) + simple("abort", "b", "json", spec={"fault": {"abort": {"status": 418}}})
    folder.joinpath("gateway.yaml").write_text(text)
    running = Gateway(folder)
    errors = [d for d in running.status()["diagnostics"] if d["severity"] == "error"]
    assert not errors, errors[:3]
    running.p, running.logs, running.collector = p, logs, collector
    yield running
    assert running.stop() == 0


def ask(edge, listener, path, *args):
    return curl(*args, f"http://127.0.0.1:{edge.p[listener]}{path}")


def logged(edge, name, mark):
    return wait_for(lambda: [line for line in whole_lines(edge.logs / name) if mark in line], f"a log line with {mark}")


def active(edge):
    """Requests in progress."""
    return sum(map(int, re.findall(r"^selvedge_http_requests_active\{[^}]*\} (\d+)", edge.get("/metrics"), re.M)))


def test_json_lines(edge):
    ask(edge, "json", "/to-json/status/201?mark=one", "-A", 'my "agent"', "-d", "abcd")
    [line] = [json.loads(line) for line in logged(edge, "json", "mark=one")]
    wanted = {"method": "POST", "path": "/to-json/status/201?mark=one", "status": 201, "flags": "-", "bytes_received": 4, "bytes_sent": 10,
              "protocol": "HTTP/1.1", "client": "127.0.0.1", "agent": 'my "agent"', "attempts": 1}
    assert {k: line[k] for k in wanted} == wanted
    assert "to-json" in line["route"] and "b" in line["cluster"] and line["listener"] and line["upstream"].startswith("127.0.0.1:")
    assert len(line["request_id"]) == 36 and line["duration_ms"] >= 0


@pytest.mark.parametrize("path, status, flags", [
    ("/nothing?f=nr", 404, {"NR"}), ("/dead-json?f=uf", 503, {"UF", "URX"}), ("/abort?f=fi", 418, {"FI"}), ("/slow?f=di", 200, {"DI"}), ("/to-json/cut?f=uc", 503, {"UC", "UR", "URX"})])
def test_flags(edge, path, status, flags):
    ask(edge, "json", path)
    [line] = [json.loads(line) for line in logged(edge, "json", path)]
    assert line["status"] == status, line
    assert set(line["flags"].split(",")) & flags and set(line["flags"].split(",")) <= flags, line


def test_the_flag_of_a_client_that_leaves(edge):
    # A request is in progress for a moment after its answer.
    wait_for(lambda: active(edge) == 0, "those of before being over")
    with socket.create_connection(("127.0.0.1", edge.p["json"]), timeout=60) as s:
        s.sendall(b"GET /long?f=dc HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_for(lambda: active(edge) == 1, "the request being there")
        # A reset: a client that only closes may have something to read yet, and is answered.
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    [line] = [json.loads(line) for line in logged(edge, "json", "f=dc")]
    assert "DC" in line["flags"] or "DR" in line["flags"], line


def test_text_lines_cannot_be_forged(edge):
    ask(edge, "text", "/to-text/status/200?mark=a", "-H", "x-odd: a\tb\"c")
    [line] = logged(edge, "text", "mark=a")
    assert line.startswith("GET /to-text/status/200?mark=a 200 10 [") and "\t" not in line


def test_conditions_and_sampling(edge):
    for listener in ("bad", "none"):
        for status in (200, 404, 500):
            ask(edge, listener, f"/to-{listener}/status/{status}")
        assert "/status/500" in logged(edge, listener, "/status/")[0]
        assert len((edge.logs / listener).read_text().splitlines()) == 1


def test_spans_follow_the_caller(edge):
    seen = json.loads(ask(edge, "json", "/to-json/w3c", "-H", f"traceparent: 00-{TRACE}-b7ad6b7169203331-01"))
    [parent] = [v for n, v in seen["headers"] if n == "traceparent"]
    assert parent.split("-")[1] == TRACE and parent.split("-")[2] != "b7ad6b7169203331" and parent.endswith("-01")
    wait_for(lambda: bytes.fromhex(TRACE) in edge.collector.all("spans"), "the span")
    assert bytes.fromhex("b7ad6b7169203331") in edge.collector.all("spans") and b"shop-team" in edge.collector.all("spans")
    other = "1" * 16 + TRACE[:16]
    seen = json.loads(ask(edge, "json", "/to-json/b3", "-H", f"b3: {other}-b7ad6b7169203331-1"))
    assert any(n == "b3" and v.startswith(other) for n, v in seen["headers"]), seen
    wait_for(lambda: bytes.fromhex(other) in edge.collector.all("spans"), "the span")
    # Not sampled here, and the caller did not ask.
    before = edge.collector.all("spans").count(b"/to-json/none")
    ask(edge, "json", "/to-json/none")
    assert edge.collector.all("spans").count(b"/to-json/none") == before == 0


def test_the_callers_decision_can_be_ignored(edge):
    seen = json.loads(ask(edge, "own", "/to-own", "-H", f"traceparent: 00-{TRACE}-b7ad6b7169203331-01"))
    [parent] = [v for n, v in seen["headers"] if n == "traceparent"]
    assert parent.split("-")[1] == TRACE and parent.endswith("-00")


def test_logs_by_otlp(edge):
    ask(edge, "otlp", "/to-otlp?mark=exported")
    wait_for(lambda: b"mark=exported" in edge.collector.all("logs"), "the log record")


def requests_total(edge):
    found = re.findall(r'^selvedge_http_requests_total\{([^}]*)\} (\d+)', edge.get("/metrics"), re.M)
    return collections.Counter({labels: int(n) for labels, n in found})


def test_export_by_tls(tmp_path):
    keys = tmp_path / "keys"
    keys.mkdir()
    ca = certificate(keys, "ca", names=("ca.example",))
    good = Collector(certificate(keys, "good", ca, names=("localhost",)))
    wrong = Collector(certificate(keys, "wrong", ca, names=("elsewhere.example",)))
    stranger = Collector(certificate(keys, "stranger", certificate(keys, "other", names=("other.example",)), names=("localhost",)))
    collectors, folder = {"good": good, "wrong": wrong, "stranger": stranger}, tmp_path / "tls"
    ports = {name: free_port() for name in collectors}
    folder.mkdir()
    text = gateway_resource([{"name": n, "port": port, "protocol": "HTTP"} for n, port in ports.items()])
    for name, collector in collectors.items():
        text += simple(name, [], name, spec={"directResponse": {"status": 200, "body": name}})
        text += policy(f"to-{name}", "Gateway", "edge", {"telemetry": {"tracing": {"sampling": 100, "otlp": f"https://localhost:{collector.port}"}}}, name)
    folder.joinpath("gateway.yaml").write_text(text)
    gateway = Gateway(folder, "--otlp-ca", f"{ca}.crt")
    for name, port in ports.items():
        assert curl(f"http://127.0.0.1:{port}/{name}") == name
    wait_for(lambda: b"/good" in good.all("spans"), "the span by TLS")
    log = folder.parent / "tls.log"
    for why in ("its certificate is for another name", "its certificate comes from an issuer that is not trusted"):
        wait_for(lambda: f"TLS to upstream localhost: {why}" in log.read_text(), why)
    assert not wrong.got and not stranger.got
    assert gateway.stop() == 0


def test_every_request_is_counted_once(edge):
    wait_for(lambda: active(edge) == 0, "those of before being counted")
    before = requests_total(edge)
    port = edge.p["json"]
    paths = ["/to-json", "/nothing", "/dead-json", "/abort", "/to-json/status/404", "/to-json/status/500", "/to-json/status/302", "/to-json/cut"]

    def many(index):
        out = 0
        with socket.create_connection(("127.0.0.1", port), timeout=60) as s:
            stream = s.makefile("rb")
            for i in range(125):
                path = paths[(i + index) % len(paths)]
                s.sendall(f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
                assert one_answer(stream)[0].startswith(b"HTTP/1.1 ")
                out += 1
        return out

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(many, range(8))) == 1000
    raw(port, b"BAD\x00 / HTTP/1.1\r\n\r\n")

    def counted():
        codes = collections.Counter()
        for labels, n in (requests_total(edge) - before).items():
            codes[re.search(r'code="([^"]*)"', labels)[1]] += n
        return codes

    answered = lambda codes: sum(n for code, n in codes.items() if code != "400")
    codes = wait_for(lambda: answered(codes := counted()) >= 1000 and codes, "the counting")
    assert answered(codes) == 1000, codes
    assert codes["200"] == 125 and codes["404"] == 250 and codes["4xx"] == 125 and codes["500"] == 125 and codes["302"] == 125, codes
    assert "selvedge_http_requests_active" in edge.get("/metrics")
    wait_for(lambda: active(edge) == 0, "no request being left")


def test_connections_are_counted_once(edge):
    count = lambda: int(re.search(rf'selvedge_downstream_connections_total\{{[^}}]*{edge.p["text"]}[^}}]*\}} (\d+)', edge.get("/metrics"))[1])
    before = count()
    for _ in range(5):
        ask(edge, "text", "/to-text")
    wait_for(lambda: count() - before == 5, "five connections being counted")


def test_shedding_by_memory(tmp_path):
    backend = Backend("b")
    port = free_port()
    folder = tmp_path / "shed"
    folder.mkdir()
    folder.joinpath("g.yaml").write_text(gateway_resource([{"name": "http", "port": port, "protocol": "HTTP"}]) + backend_service("b", [backend]) + simple("x", "b"))
    # Full from the start: nothing may be served, but the process and its admin listener go on.
    gateway = Gateway(folder, "--max-memory", "1000000")
    def refused():
        out = raw(port, b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 10)
        return out == b"" or out.startswith(b"HTTP/1.1 503")
    wait_for(refused, "shedding")
    assert gateway.get("/live")
    assert gateway.stop() == 0
