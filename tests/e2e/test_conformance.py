"""The golden cases of the compiler, served: the resources of `crates/compile/testdata/*.case` with listeners on free ports and
real backends behind, and the requests of the Gateway API's conformance tests of the same name (docs/conformance.md)."""
import collections
import http.client
import json
import re
import socket
import ssl
import threading

import pytest
from backend import Backend
from conftest import ROOT, Gateway, by_chance, free_port, free_udp_port, wait_for

CASES = ROOT / "crates/compile/testdata"
LISTENER = re.compile(r"(- \{name: ([\w-]+), port: )(\d+)(?=[^}]*protocol: (HTTP|HTTPS|TLS|TCP|UDP))")


class Served:
    """One case. `ports` finds the port that stands for one of the case; `b` the backend of a Service."""

    def __init__(self, case, folder, backend):
        text = CASES.joinpath(f"{case}.case").read_text().split("---expect---")[0]
        self.ports, self.b, documents = {}, {}, []
        for document in text.split("\n---\n"):
            service = re.search(r"kubernetes.io/service-name: ([\w-]+)", document)
            if "kind: EndpointSlice" in document and service:
                one = self.b.setdefault(service[1], backend(service[1]))
                document = re.sub(r"port: \d+", f"port: {one.port}", document)
                document = re.sub(r"endpoints:.*", "endpoints: [{addresses: [127.0.0.1]}]", document, flags=re.S)
            elif "kind: Gateway\n" in document or "kind: ListenerSet" in document:
                document = LISTENER.sub(lambda m: m[1] + str(self.ports.setdefault(int(m[3]), (free_udp_port if m[4] == "UDP" else free_port)())), document)
            elif re.search(r"kind: \w+Route\n", document):
                # Ports that a parentRef names are those of listeners.
                document = re.sub(r"(\{name: edge, port: )(\d+)", lambda m: m[1] + str(self.ports[int(m[2])]), document)
            documents.append(document)
        folder.mkdir()
        folder.joinpath("case.yaml").write_text("\n---\n".join(documents))
        self.gateway = Gateway(folder)

    def ask(self, path, host="any.example", method="GET", port=80, sni=None, **headers):
        """Status, head and, when a backend answered, what it saw."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[port], timeout=60)
        if sni is not None:
            plain = socket.create_connection(("127.0.0.1", self.ports[port]), timeout=60)
            connection.sock = ssl._create_unverified_context().wrap_socket(plain, server_hostname=sni)
        connection.request(method, path, headers={"Host": host, **{n.replace("_", "-"): v for n, v in headers.items()}})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, answer.headers, json.loads(body) if body[:1] == b"{" else {}


@pytest.fixture
def serve(tmp_path):
    running = []

    def start(case, backend=Backend):
        running.append(Served(case, tmp_path / case, backend))
        return running[-1]

    yield start
    for one in running:
        assert one.gateway.stop() == 0


# Path, what else the request has, and the backend or status that must answer.
ROUTING = {
    "http_route_matching": [
        ("/", {}, "web"), ("/example", {}, "web"), ("/", {"version": "one"}, "web"), ("/v2", {}, "web2"), ("/v2/x", {}, "web2"),
        ("/", {"version": "two"}, "web2"), ("/v2/", {}, "web2"), ("/v2example", {}, "web"), ("/foo/v2/example", {}, "web"),
    ],
    "http_route_matching_across_routes": [
        ("/", {"host": "example.com"}, "web"), ("/", {"host": "example.net"}, "web"), ("/example", {"host": "example.com"}, "web"),
        ("/", {"host": "example.net", "version": "one"}, "web"), ("/v2", {"host": "example.com"}, "web2"),
        ("/v2/example", {"host": "example.com"}, "web2"), ("/", {"host": "example.com", "version": "two"}, "web2"),
        ("/v2/", {"host": "example.com"}, "web2"), ("/", {"host": "example.org"}, 404), ("/v2", {"host": "example.net"}, "web"),
    ],
    "http_route_exact_path_matching": [
        ("/one", {}, "web"), ("/two/", {}, "web"), ("/Two", {}, "web"), ("/", {}, 404), ("/one/example", {}, 404), ("/two", {}, 404), ("/one/", {}, 404),
    ],
    "http_route_header_matching": [
        ("/", {"version": "one"}, "web"), ("/", {"version": "two"}, 404), ("/", {"version": "two", "color": "orange"}, "web2"),
        ("/", {"color": "blue"}, "web"), ("/", {"color": "green"}, "web"), ("/", {"color": "orange"}, 404), ("/", {}, 404), ("/", {"some-other": "one"}, 404),
    ],
    "http_route_query_param_matching": [
        ("/?animal=whale", {}, "web"), ("/?animal=dolphin", {}, 404), ("/?animal=dolphin&color=blue", {}, "web2"),
        ("/?color=blue&animal=dolphin", {}, "web2"), ("/?n=12", {}, "web"), ("/?n=x", {}, 404), ("/?ANIMAL=Whale", {}, 404), ("/", {}, 404),
    ],
    "http_route_method_matching": [
        ("/", {"method": "POST"}, "web"), ("/", {"method": "GET"}, "web2"), ("/", {"method": "HEAD"}, 404), ("/p", {"method": "PUT"}, "web"),
        ("/", {"method": "PUT"}, 404), ("/", {"method": "DELETE", "v": "x"}, "web"), ("/", {"method": "DELETE"}, 404),
    ],
    "http_route_listener_hostname_matching": [
        ("/", {"host": "bar.com"}, "web"), ("/", {"host": "foo.bar.com"}, "web2"), ("/", {"host": "baz.bar.com"}, "web"),
        ("/", {"host": "boo.bar.com"}, "web"), ("/", {"host": "multiple.prefixes.bar.com"}, "web"), ("/", {"host": "multiple.prefixes.foo.com"}, "web"),
        ("/", {"host": "foo.com"}, 404), ("/", {"host": "no.matching.host"}, 404),
    ],
    "http_route_hostname_intersection": [
        ("/s1", {"host": "very.specific.com"}, "web"), ("/s1", {"host": "very.specific.com:1234"}, "web"), ("/s1", {"host": "non.matching.com"}, 404),
        ("/s1", {"host": "foo.nonmatchingwildcard.io"}, 404), ("/s2", {"host": "foo.wildcard.io"}, "web"), ("/s2", {"host": "foo.bar.wildcard.io"}, "web"),
        ("/s2", {"host": "wildcard.io"}, 404), ("/s2", {"host": "baz.wildcard.io"}, 404), ("/s1", {"host": "foo.wildcard.io"}, 404),
        ("/s3", {"host": "one.anotherwildcard.io"}, "web"), ("/s3", {"host": "one.two.sub.anotherwildcard.io"}, "web"),
        ("/s3", {"host": "anotherwildcard.io"}, 404), ("/s4", {"host": "specific.but.wrong.com"}, 404),
    ],
    "gateway_http_listener_isolation": [
        ("/empty", {"host": "bar.com"}, "web"), ("/wild", {"host": "bar.com"}, 404), ("/wild", {"host": "bar.example.com"}, "web"),
        ("/empty", {"host": "bar.example.com"}, 404), ("/wildfoo", {"host": "bar.foo.example.com"}, "web"), ("/wild", {"host": "bar.foo.example.com"}, 404),
        ("/abcfoo", {"host": "abc.foo.example.com"}, "web"), ("/wildfoo", {"host": "abc.foo.example.com"}, 404), ("/empty", {"host": "abc.foo.example.com"}, 404),
    ],
    "http_route_listener_port_matching": [("/", {}, "web"), ("/", {"port": 8080}, "web"), ("/", {"port": 8090}, "web")],
    "listener_set_http_routing": [
        ("/gw", {"host": "gw.com"}, "web"), ("/ls", {"host": "gw.com"}, 404), ("/ls", {"host": "ls.com"}, "web"), ("/gw", {"host": "ls.com"}, 404),
    ],
    "http_route_no_backend_refs": [("/none", {}, 500), ("/go", {}, 302)],
    "http_route_invalid_non_existent_backend_ref": [("/service", {}, 500), ("/port", {}, 500)],
    "http_route_invalid_backend_ref_unknown_kind": [("/", {}, 500)],
    "http_route_https_listener": [
        ("/", {"host": "example.org", "port": 443, "sni": "example.org"}, "web"), ("/", {"host": "second-example.org", "port": 443, "sni": "second-example.org"}, "web2"),
        ("/", {"host": "unknown-example.org", "port": 443, "sni": "unknown-example.org"}, 404),
    ],
    # What SNI chose must serve the host, or the client is sent away.
    "http_route_https_listener_detect_misdirected_requests": [
        ("/detect", {"host": "example.org", "port": 443, "sni": "example.org"}, "web"),
        ("/detect", {"host": "second-example.org", "port": 443, "sni": "second-example.org"}, "web"),
        ("/detect", {"host": "second-example.org", "port": 443, "sni": "example.org"}, 421),
        ("/detect", {"host": "example.org", "port": 443, "sni": "second-example.org"}, 421),
        ("/detect", {"host": "third-example.wildcard.org", "port": 443, "sni": "third-example.wildcard.org"}, "web"),
        ("/detect", {"host": "fifth-example.wildcard.org", "port": 443, "sni": "third-example.wildcard.org"}, "web"),
        ("/detect", {"host": "fourth-example.wildcard.org", "port": 443, "sni": "third-example.wildcard.org"}, 421),
    ],
}


@pytest.mark.parametrize("case", ROUTING)
def test_routing(serve, case):
    served = serve(case)
    for path, more, wanted in ROUTING[case]:
        status, _, seen = served.ask(path, **more)
        found = seen.get("backend") if isinstance(wanted, str) else status
        assert found == wanted, (path, more, status, seen)


def test_redirects(serve):
    served = serve("http_route_redirects")
    port = served.ports[80]
    wanted = {
        "/0": (302, f"http://example.org:{port}/0"), "/1": (301, f"http://example.org:{port}/1"), "/2/a?q=1": (302, "https://own.example/2/a?q=1"),
        "/3": (302, "https://own.example:8443/3"), "/4/x": (302, f"http://own.example:{port}/full"), "/5/x": (302, f"http://own.example:{port}/new/x"),
        "/6": (303, f"http://own.example:{port}/6"), "/7": (307, f"http://own.example:{port}/7"), "/8": (308, f"http://own.example:{port}/8"),
    }
    for path, expected in wanted.items():
        status, headers, _ = served.ask(path, host=f"own.example:{port}")
        assert (status, headers["location"]) == expected, path


def test_rewrites(serve):
    served = serve("http_route_rewrite")
    for path, target, host in (("/one/a", "/one/a", "one.example.org"), ("/prefix/one/two", "/one/two", "any.example"),
                               ("/prefix", "/", "any.example"), ("/full", "/two", "x.example")):
        _, _, seen = served.ask(path)
        assert (seen["target"], dict(map(tuple, seen["headers"]))["host"]) == (target, host), path


def test_header_modifiers(serve):
    served = serve("http_route_request_header_modifier")
    seen = collections.defaultdict(list)
    for name, value in served.ask("/a", X_Set="old", X_Add="first", x_gone="1")[2]["headers"]:
        seen[name].append(value)
    assert seen["x-set"] == ["s"] and ",".join(seen["x-add"]).replace(" ", "") == "first,a" and not seen["x-gone"]
    assert ["x-b", "b"] in served.ask("/b")[2]["headers"]
    assert serve("http_route_response_header_modifier").ask("/a")[1]["x-set"] == "s"


def test_filters_of_backends_follow_the_weights(serve):
    served = serve("http_route_request_header_modifier_backend_weights")
    count = collections.Counter()
    for _ in range(200):
        seen = served.ask("/")[2]
        assert (["b", "1"] in seen["headers"]) == (seen["backend"] == "web")
        count[seen["backend"]] += 1
    assert by_chance(count["web"], 0.25, 200), count


def test_weights(serve):
    served = serve("http_route_weight")
    count = collections.Counter(served.ask("/a")[2]["backend"] for _ in range(500))
    assert by_chance(count["web"], 0.7, 500) and count["web2"] == 500 - count["web"], count
    assert {served.ask("/b")[0] for _ in range(60)} == {200, 500}
    assert served.ask("/c")[0] == 500


def test_mirrors(serve):
    served = serve("http_route_request_mirror")
    for _ in range(20):
        assert served.ask("/one")[2]["backend"] == "web"
    wait_for(lambda: len(served.b["web2"].targets("/one")) == 20, "each request being mirrored once")
    for _ in range(300):
        assert served.ask("/many")[2]["backend"] == "web"
    # 1 + 0.2 + 1/3 of a copy each, of which the one comes always and the others by chance, seven standard deviations wide.
    wait_for(lambda: len(served.b["web2"].targets("/many")) >= 385, "copies to several")
    assert 385 <= len(served.b["web2"].targets("/many")) <= 535
    assert served.ask("/none")[0] == 200


def test_cors(serve):
    served = serve("http_route_cors")
    ask = {"access_control_request_method": "GET", "access_control_request_headers": "x-one"}
    for origin in ("https://shop.example", "https://a.shop.example", "https://a.b.shop.example"):
        status, headers, seen = served.ask("/", method="OPTIONS", origin=origin, **ask)
        assert status in (200, 204) and not seen
        assert headers["access-control-allow-origin"] == origin
        assert headers["access-control-allow-methods"].replace(" ", "") == "GET,PUT"
        assert headers["access-control-allow-headers"] == "x-one" and headers["access-control-expose-headers"] == "x-two"
        assert headers["access-control-max-age"] == "3600" and headers["access-control-allow-credentials"] == "true"
        assert served.ask("/", origin=origin)[1]["access-control-allow-origin"] == origin
    for method in ("OPTIONS", "GET"):
        assert served.ask("/", method=method, origin="https://other.example", **ask)[1]["access-control-allow-origin"] is None


class Named:
    """A TCP or UDP server that says its name to whoever sends something."""

    def __init__(self, name, kind=socket.SOCK_STREAM):
        self.socket = socket.socket(socket.AF_INET, kind)
        self.socket.bind(("127.0.0.1", 0))
        self.port, self.name = self.socket.getsockname()[1], name.encode()
        if kind == socket.SOCK_STREAM:
            self.socket.listen(512)
        threading.Thread(target=self.stream if kind == socket.SOCK_STREAM else self.datagram, daemon=True).start()

    def stream(self):
        while True:
            connection, _ = self.socket.accept()
            with connection:
                connection.sendall(self.name)

    def datagram(self):
        while True:
            _, peer = self.socket.recvfrom(100)
            self.socket.sendto(self.name, peer)


def test_tcp_weights(serve):
    served = serve("tcp_route_weighted_routing", Named)
    count = collections.Counter()
    for _ in range(200):
        with socket.create_connection(("127.0.0.1", served.ports[5300]), timeout=60) as s:
            count[s.recv(10)] += 1
    assert by_chance(count[b"db"], 0.8, 200) and count[b"db2"] == 200 - count[b"db"], count


def test_udp_weights(serve):
    served = serve("udp_route_weighted_routing", lambda name: Named(name, socket.SOCK_DGRAM))
    count = collections.Counter()
    for _ in range(200):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(60)
            s.sendto(b"?", ("127.0.0.1", served.ports[5300]))
            count[s.recv(10)] += 1
    assert by_chance(count[b"dns"], 0.8, 200) and count[b"dns2"] == 200 - count[b"dns"], count
