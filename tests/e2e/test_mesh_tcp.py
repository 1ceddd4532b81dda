"""Connections of bytes between captured workloads: TCPRoutes, policies for them, mutual TLS demanded by one workload, and
Services that stand for a name outside."""
import collections
import socket

import pytest
from conftest import by_chance, wait_for
from mesh import inside, resource, route
from mesh_fixtures import extra, resources, shop

ADDRESSES = {"lines": "10.96.2.1", "lines-v1": "10.96.2.2", "lines-v2": "10.96.2.3"}
SELECTORS = {"lines": {"app": "app"}, "lines-v1": {"name": "apps"}, "lines-v2": {"name": "apps2"}}
SERVERS = {"v1": "apps", "v2": "apps2"}


def start(shop, version):
    shop.lines[version] = shop.peer(SERVERS[version], "lines", "0.0.0.0", 9000, version, label=f"lines-{version}")


@pytest.fixture(scope="module")
def servers(shop):
    """A server of lines beside `apps`, v1, and one beside `apps2`, v2."""
    shop.lines = {}
    for version in SERVERS:
        start(shop, version)
    return shop


@pytest.fixture
def lines(servers):
    """Service `lines` of both, made anew, so that nothing of it is remembered."""
    shop = servers
    port = {"name": "lines", "port": 9000, "appProtocol": "tcp"}
    shop.write("lines", "".join(resource("Service", name, {"selector": SELECTORS[name], "clusterIP": ip, "ports": [port]}, api="v1")
                                for name, ip in ADDRESSES.items()))
    # What is asked of an address that nobody knows yet is passed on to it, and nobody is there.
    shop.settle()
    wait_for(lambda: set(who(shop, 12)) == {"v1", "v2"}, "both being called")
    yield shop
    shop.remove("lines")
    shop.settle()


def say(stream, text=b"hello"):
    """Who answers a line, if it is answered as it should be; None: the connection has ended."""
    try:
        stream.sendall(text + b"\n")
        name, _, heard = stream.recv(100).partition(b" ")
    except ConnectionError:
        return None
    assert not name or heard == text + b"\n", heard
    return name.decode() or None


def opened(shop):
    return inside(shop.net.space("web"), lambda: socket.create_connection((ADDRESSES["lines"], 9000), timeout=60))


def who(shop, count):
    """Who answers so many connections, one after the other; None: they were reset."""

    def ask():
        names = collections.Counter()
        for _ in range(count):
            try:
                with socket.create_connection((ADDRESSES["lines"], 9000), timeout=60) as stream:
                    names[say(stream)] += 1
            except ConnectionResetError:
                names[None] += 1
        return names

    return inside(shop.net.space("web"), ask)


def test_a_tcp_route_by_weight(lines, extra):
    def weights(v1, v2):
        backends = [{"name": f"lines-v{n}", "port": 9000, "weight": weight} for n, weight in ((1, v1), (2, v2))]
        extra(route("lines", [{"backendRefs": backends}], "lines", kind="TCPRoute"))
        lines.settle()

    weights(3, 1)
    share = who(lines, 200)
    assert by_chance(share["v1"], 0.75, 200) and share["v2"] == 200 - share["v1"], share
    # One that is open stays where it is, whatever new ones do.
    with opened(lines) as old:
        before = say(old)
        weights(*((0, 1) if before == "v1" else (1, 0)))
        after = "v2" if before == "v1" else "v1"
        assert who(lines, 20) == {after: 20}
        assert say(old) == before


def policy(lines, extra, **spec):
    extra(resource("TrafficPolicy", "lines", {"targetRefs": [{"kind": "Service", "name": "lines"}], **spec}))
    lines.settle()


def detect(lines, extra, time):
    """The first failure puts a server out, for a time."""
    policy(lines, extra, loadBalancing={"algorithm": "RoundRobin"},
           outlierDetection={"consecutiveLocalOriginFailures": 1, "baseEjectionTime": time, "maxEjectionPercent": 50})


def test_a_dead_server_is_not_asked_any_more(lines, extra):
    detect(lines, extra, "600s")
    assert who(lines, 20).keys() == {"v1", "v2"}
    ejections = lambda: lines.metric("web", "selvedge_upstream_ejections_total")
    tunnels = lambda: lines.metric("apps2", "selvedge_mesh_connections_total")
    before = ejections()
    lines.kill(lines.lines["v2"])
    try:
        # No connection is lost: who finds nobody there goes on to the other.
        assert who(lines, 20) == {"v1": 20}
        assert ejections() == before + 1
        asked = tunnels()
        assert who(lines, 40) == {"v1": 40}
        assert tunnels() == asked, "the dead one is asked"
    finally:
        start(lines, "v2")
    assert who(lines, 10) == {"v1": 10}, "it is out for its time, though it lives"


def test_a_server_that_is_back_is_asked_again(lines, extra):
    detect(lines, extra, "1s")
    ejections = lines.metric("web", "selvedge_upstream_ejections_total")
    lines.kill(lines.lines["v2"])
    try:
        assert who(lines, 10) == {"v1": 10}
        assert lines.metric("web", "selvedge_upstream_ejections_total") > ejections
    finally:
        start(lines, "v2")
    wait_for(lambda: who(lines, 10).keys() == {"v1", "v2"}, "the server being asked again")


def test_no_more_connections_than_the_policy_says(lines, extra):
    policy(lines, extra, connections={"maxConnections": 1, "maxPendingRequests": 0})
    with opened(lines) as first:
        assert say(first)
        for _ in range(3):
            assert who(lines, 1) == {None: 1}, "one too many"
        assert say(first)
    wait_for(lambda: None not in who(lines, 1), "the place being free")
    policy(lines, extra, connections={"maxConnections": 1, "maxPendingRequests": 1})
    first, second = opened(lines), opened(lines)
    with first, second:
        assert say(first)
        second.sendall(b"later\n")
        assert say(first), "it goes on while the other waits"
        second.settimeout(0.3)
        with pytest.raises(TimeoutError):
            second.recv(1)
        first.close()
        second.settimeout(60)
        assert second.recv(100).endswith(b" later\n")


def test_mutual_tls_is_demanded_by_one_workload(shop):
    clear = lambda name: shop.run("outside", "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", 60,
                                  f"http://{shop.net.address(name)}:8080/", check=False).stdout
    assert (clear("apps"), clear("apps2")) == ("200", "200")
    refused = lambda name: shop.metric(name, "selvedge_mesh_refused_total", 'reason="clear_text"')
    shop.write("shop", resources(shop.net, mtls={"mode": "Strict"}))
    try:
        wait_for(lambda: clear("apps") == "000", "clear text being refused")
        assert refused("apps") >= 1 and refused("apps2") == 0
        assert clear("apps2") == "200", "the other takes it"
        assert shop.says("web", "http://10.96.0.2/")["name"] == "v1", "members go on"
    finally:
        shop.write("shop", resources(shop.net))
        shop.settle()
        wait_for(lambda: clear("apps") == "200", "clear text being taken again")


def test_a_service_that_is_a_name_outside(shop, extra):
    net = shop.net
    shop.peer(None, "dns", net.control, 53, f"api.partner.example={net.address('outside')}", label="dns")
    shop.peer("outside", "http", "0.0.0.0", 8080, "partner", label="partner")
    port = {"name": "http", "port": 8080, "appProtocol": "http"}
    extra(resource("Service", "partner", {"type": "ExternalName", "externalName": "api.partner.example", "ports": [port]}, api="v1"))
    for name in ["partner", "partner.shop.svc.cluster.local"]:
        wait_for(lambda: shop.says("web", f"http://{name}:8080/order")["name"] == "partner", f"{name} answering")
        got = shop.says("web", f"http://{name}:8080/order")
        assert got["path"] == "/order" and "x-forwarded-client-cert" not in got["headers"], "who calls is for members only"
    # Routes hold for it as for any Service.
    moved = {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-rule", "value": "partner"}]}}
    extra(route("partner", [{"filters": [moved], "backendRefs": [{"name": "partner", "port": 8080}]}], "partner"), "route")
    wait_for(lambda: "x-rule: partner" in shop.curl("web", "-i", "http://partner:8080/").stdout, "the route")
