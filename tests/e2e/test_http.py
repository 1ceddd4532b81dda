"""Routing, filters, timeouts, retries, balancing of HTTP, with nginx behind and curl in front."""
import collections
import gzip
import json
import re
import subprocess

import pytest
from conftest import Gateway, by_chance, curl, free_port, raw, route, service, wait_for, write

PREFIX = {"path": {"type": "PathPrefix", "value": "/"}}


def path(value, kind="PathPrefix"):
    return {"path": {"type": kind, "value": value}}


def to(*backends):
    return [{"name": name, "port": 80, "weight": weight} for name, weight in backends]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, nginx):
    port = free_port()
    folder = tmp_path_factory.mktemp("http")
    text = f"""
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: selvedge
  listeners: [{{name: http, port: {port}, protocol: HTTP}}]
"""
    text += service("v1", 80, [nginx["v1"]]) + service("v2", 80, [nginx["v2"]]) + service("fail", 80, [nginx["fail"]])
    text += service("both", 80, [nginx["v1"], nginx["fail"]]) + service("dead", 80, [free_port()])
    text += service("half-dead", 80, [nginx["v1"], free_port()])
    modify = {
        "set": [{"name": "x-set", "value": "s"}],
        "add": [{"name": "x-added", "value": "a"}],
        "remove": ["x-removed"],
    }
    rules = [
        {"matches": [path("/exact", "Exact")], "backendRefs": to(("v2", 1))},
        {"matches": [path("/canary")], "backendRefs": to(("v1", 9), ("v2", 1))},
        {"matches": [{**path("/canary"), "headers": [{"name": "x-canary", "value": "always"}]}], "backendRefs": to(("v2", 1))},
        {"matches": [{**path("/q"), "queryParams": [{"name": "v", "value": "2"}]}], "backendRefs": to(("v2", 1))},
        {"matches": [{**path("/m"), "method": "POST"}], "backendRefs": to(("v2", 1))},
        {"matches": [path("/re/[0-9]+/x", "RegularExpression")], "backendRefs": to(("v2", 1))},
        {"matches": [path("/headers")], "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": modify},
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-answer", "value": "r"}]}},
        ], "backendRefs": to(("v1", 1))},
        {"matches": [path("/rewrite")], "filters": [{"type": "URLRewrite", "urlRewrite": {
            "hostname": "inner.example", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}}}],
         "backendRefs": to(("v1", 1))},
        {"matches": [path("/cors")], "filters": [{"type": "CORS", "cors": {
            "allowOrigins": ["https://app.example"], "allowMethods": ["GET", "PUT"], "maxAge": 7}}], "backendRefs": to(("v1", 1))},
        {"matches": [path("/retry")], "retry": {"codes": [503], "attempts": 3, "backoff": "1ms"}, "backendRefs": to(("both", 1))},
        {"matches": [path("/dead")], "backendRefs": to(("dead", 1))},
        {"matches": [path("/half-dead")], "backendRefs": to(("half-dead", 1))},
        {"matches": [path("/mirror")], "filters": [{"type": "RequestMirror", "requestMirror": {
            "backendRef": {"name": "v2", "port": 80}}}], "backendRefs": to(("v1", 1))},
        {"matches": [path("/missing")], "backendRefs": to(("no-such-service", 1))},
        {"matches": [path("/sticky")], "sessionPersistence": {"sessionName": "sid", "type": "Cookie"},
         "backendRefs": to(("v1", 1), ("v2", 1))},
        {"matches": [PREFIX], "backendRefs": to(("v1", 1))},
    ]
    # A route has at most 16 rules.
    text += route("main", rules)
    for status in (301, 302, 303, 307, 308):
        text += route(f"r{status}", [{"matches": [path(f"/r{status}")], "filters": [{"type": "RequestRedirect", "requestRedirect": {
            "scheme": "https", "hostname": "new.example", "statusCode": status}}]}])
    folder.joinpath("gateway.yaml").write_text(text)
    gateway = Gateway(folder)
    gateway.port = port
    gateway.url = f"http://127.0.0.1:{port}"
    errors = [d for d in gateway.status()["diagnostics"] if d["severity"] == "error" and "no-such-service" not in d["message"]]
    assert not errors
    yield gateway
    assert gateway.stop() == 0


def backend(gateway, path, *args):
    return json.loads(curl(*args, gateway.url + path))["backend"]


def test_precedence(gateway):
    assert backend(gateway, "/exact") == "v2"
    assert backend(gateway, "/exact/x") == "v1"
    assert backend(gateway, "/q?v=2") == "v2"
    assert backend(gateway, "/q?v=3") == "v1"
    assert backend(gateway, "/m", "-X", "POST") == "v2"
    assert backend(gateway, "/m") == "v1"
    assert backend(gateway, "/re/12/x") == "v2"
    assert backend(gateway, "/re/a/x") == "v1"


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2-prior-knowledge"])
def test_versions(gateway, version):
    assert backend(gateway, "/", version) == "v1"


def test_canary_weights(gateway):
    counts = collections.Counter(backend(gateway, "/canary") for _ in range(300))
    assert by_chance(counts["v2"], 0.1, 300), counts
    assert backend(gateway, "/canary", "-H", "x-canary: always") == "v2"


def test_headers_and_rewrite(gateway):
    answer = curl("-i", "-H", "x-removed: 1", gateway.url + "/headers")
    assert "x-answer: r" in answer
    seen = json.loads(answer.splitlines()[-1])
    assert (seen["x_set"], seen["x_added"], seen["x_removed"]) == ("s", "a", "")
    seen = json.loads(curl(gateway.url + "/rewrite/a?b=c"))
    assert (seen["uri"], seen["host"]) == ("/new/a?b=c", "inner.example")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects(gateway, status):
    answer = curl("-i", f"{gateway.url}/r{status}/x?y=z")
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert f"location: https://new.example/r{status}/x?y=z\r\n" in answer


def test_cors(gateway):
    preflight = ["-X", "OPTIONS", "-H", "Access-Control-Request-Method: PUT"]
    good = curl("-i", *preflight, "-H", "Origin: https://app.example", gateway.url + "/cors")
    assert "access-control-allow-origin: https://app.example" in good
    assert "access-control-max-age: 7" in good
    bad = curl("-i", *preflight, "-H", "Origin: https://evil.example", gateway.url + "/cors")
    assert "access-control-allow-origin" not in bad


def test_retries_on_status(gateway):
    assert {backend(gateway, "/retry") for _ in range(30)} == {"v1"}


def test_dead_backends(gateway):
    assert curl("-o", "/dev/null", "-w", "%{http_code}", gateway.url + "/dead") == "503"
    assert {backend(gateway, "/half-dead") for _ in range(30)} == {"v1"}
    assert curl("-o", "/dev/null", "-w", "%{http_code}", gateway.url + "/missing") == "500"


def test_session_persistence(gateway, tmp_path):
    jar = tmp_path / "jar"
    first = backend(gateway, "/sticky", "-c", jar)
    assert {backend(gateway, "/sticky", "-b", jar) for _ in range(20)} == {first}


def test_session_cookies_are_signed(tmp_path, nginx):
    key, port, replica_port = tmp_path / "key", free_port(), free_port()
    key.write_text("0123456789abcdef0123456789abcdef\n")
    text = f"""
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: selvedge
  listeners: [{{name: http, port: {port}, protocol: HTTP}}]
"""
    text += service("web", 80, [nginx["v1"], nginx["v2"]])
    text += route("main", [{"sessionPersistence": {"sessionName": "sid", "type": "Cookie"}, "backendRefs": to(("web", 1))}])
    running = []
    for name, own in (("one", port), ("replica", replica_port)):
        folder = tmp_path / name
        folder.mkdir()
        folder.joinpath("gateway.yaml").write_text(text.replace(f"port: {port},", f"port: {own},"))
        running.append(Gateway(folder, "--session-key", key))

    def ask(port, cookie=None):
        answer = curl("-i", *(["-H", f"Cookie: sid={cookie}"] if cookie else []), f"http://127.0.0.1:{port}/")
        given = re.search(r"(?i)set-cookie: sid=([^;]+)", answer)
        return re.search(r'"backend":"(\w+)"', answer)[1], given and given[1]

    backend, cookie = ask(port)
    assert "127.0.0.1" not in cookie and str(nginx[backend]) not in cookie
    # Both replicas keep to it, and give no other.
    assert {ask(p, cookie) for p in (port, replica_port) for _ in range(6)} == {(backend, None)}
    name, created, used, signature = cookie.split("-")
    later = f"{name}-{int(created, 16) + 1:x}-{used}-{signature}"
    other = f"{int(name, 16) ^ 1:016x}-{created}-{used}-{signature}"
    for forged in (later, other, "-".join((name, created, used)), f"{cookie}0", "x" * 3000, "-", ""):
        assert ask(port, forged or "-")[1], "it is nobody's session: a new one begins"
    assert [one.stop() for one in running] == [0, 0]


def test_bodies(gateway, tmp_path):
    data = tmp_path / "data"
    data.write_bytes(b"z" * 3_000_000)
    for extra in ([], ["-H", "Transfer-Encoding: chunked"], ["--http2-prior-knowledge"]):
        assert json.loads(curl(*extra, "--data-binary", f"@{data}", gateway.url + "/upload"))["uri"] == "/got"
    for extra in ([], ["--http2-prior-knowledge"]):
        assert len(curl(*extra, gateway.url + "/big")) == 1_000_000


def test_request_id_trace_and_client_address(gateway):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seen = json.loads(curl("-H", f"traceparent: {trace}", "-H", "X-Forwarded-For: 1.2.3.4", "-H", "x-request-id: mine", gateway.url + "/"))
    assert seen["traceparent"].split("-")[1] == trace.split("-")[1]
    assert seen["xff"] == "127.0.0.1"
    assert seen["request_id"] not in ("", "mine")


def test_explain_agrees(gateway):
    from conftest import BIN
    done = subprocess.run([BIN, "explain", "-f", str(gateway.folder), "GET", f"{gateway.url}/canary", "-H", "x-canary: always"],
                          capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"default/v2:80" in done.stdout


def test_metrics_and_admin(gateway):
    curl(gateway.url + "/")
    wait_for(lambda: "main#" in gateway.get("/metrics"), "a rule being counted")
    clusters = json.loads(gateway.get("/clusters"))
    assert "default/v1:80" in json.dumps(clusters)
    assert "BEGIN" not in gateway.get("/config")


def test_reload_is_seen_and_bad_files_are_not(gateway, nginx):
    extra = gateway.folder / "extra.yaml"
    write(extra, route("extra", [{"matches": [path("/extra", "Exact")], "backendRefs": to(("v2", 1))}]))
    wait_for(lambda: backend(gateway, "/extra") == "v2", "the new route")
    write(extra, "kind: HTTPRoute\nspec: [")
    wait_for(lambda: gateway.status()["last_good"], "the last good being served")
    assert backend(gateway, "/extra") == "v2"
    extra.unlink()
    wait_for(lambda: backend(gateway, "/extra") == "v1", "the route being gone")


def test_pipelining_and_keep_alive(gateway):
    one = b"GET /exact HTTP/1.1\r\nHost: a\r\n\r\n"
    out = raw(gateway.port, one * 3 + b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert out.count(b"HTTP/1.1 200 OK") == 4
