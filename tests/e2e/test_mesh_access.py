"""Who may call whom between captured workloads: mutual TLS demanded or not, AccessPolicies, and what `selvedge may` says."""
import socket

import pytest
from conftest import BIN, wait_for
from mesh import DOMAIN, inside, mesh_resource, resource
from mesh_fixtures import extra, shop

WEB, GUEST = f"spiffe://{DOMAIN}/ns/shop/sa/web", f"spiffe://{DOMAIN}/ns/shop/sa/guest"


@pytest.fixture
def mode(shop):
    """Sets mutual TLS for the whole mesh; permissive again after the test."""
    yield lambda name, **more: shop.write("mesh", mesh_resource(name, **more))
    shop.write("mesh", mesh_resource())
    shop.settle()
    wait_for(lambda: clear(shop) == "200", "clear text being taken again")


def clear(shop):
    """Straight to the application's address, from a machine that is not in the mesh."""
    url = f"http://{shop.net.address('apps')}:8080/clear"
    return shop.run("outside", "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", 60, url, check=False).stdout


def test_clear_text_from_outside_by_mode(shop, mode):
    assert clear(shop) == "200", "permissive takes it"
    audited = shop.metric("apps", "selvedge_mtls_audit_total")
    line = "a connection in clear text, which mtls mode Strict would refuse"
    assert line not in shop.log("apps")
    mode("Audit")
    wait_for(lambda: clear(shop) == "200" and shop.metric("apps", "selvedge_mtls_audit_total") > audited, "audit counting")
    place = f"to={shop.net.address('apps')}:8080"
    wait_for(lambda: any(line in said and "WARN" in said and place in said for said in shop.log("apps").splitlines()), "a warning")
    mode("Strict")
    wait_for(lambda: clear(shop) == "000", "strict refusing")
    wait_for(lambda: shop.metric("apps", "selvedge_mesh_refused_total", 'reason="clear_text"') >= 1, "the refusal being counted")
    assert shop.code("web", "http://10.96.0.2/") == "200", "members go on"
    assert clear(shop) == "000"


def policy(action, rules, name="apps", **target):
    target = target or {"targetRefs": [{"kind": "Workload", "name": "apps"}]}
    return resource("AccessPolicy", name, {"action": action, "rules": rules, **target})


def test_by_identity_path_and_method_as_may_says(shop, extra):
    allow = policy("Allow", [
        {"name": "web", "from": [{"identities": [WEB]}], "to": [{"methods": ["GET"], "paths": ["/orders/{id}", "/public/*"]}]},
        {"name": "all", "to": [{"paths": ["/open"]}]},
    ])
    deny = policy("Deny", [{"name": "secret", "to": [{"paths": ["/public/secret", "/public/secret/*"]}]}], name="secret")
    extra(allow + deny)
    wait_for(lambda: shop.code("guest", "http://10.96.0.2/orders/7") == "403", "the policy being in effect")
    table = [
        ("web", "GET", "/orders/7", True),
        ("web", "POST", "/orders/7", False),
        ("web", "GET", "/orders/7/items", False),
        ("guest", "GET", "/orders/7", False),
        ("web", "GET", "/open", True),
        ("guest", "POST", "/open", True),
        ("web", "GET", "/public/page", True),
        ("web", "GET", "/public/secret", False),
        ("web", "GET", "/public/%73ecret/x", False),
        ("web", "GET", "/public/x/../secret", False),
        ("web", "GET", "/public//secret", False),
        ("web", "GET", "/else", False),
    ]
    wrong = []
    for caller, method, path, allowed in table:
        identity = {"web": WEB, "guest": GUEST}[caller]
        code = shop.code(caller, "--path-as-is", "-X", method, f"http://10.96.0.2{path}")
        said = shop.run(None, BIN, "may", "-f", shop.folder / "conf", identity, method, f"http://app-v1.shop{path}", check=False)
        assert said.returncode in (0, 1) and said.stdout, said.stderr
        if code != ("200" if allowed else "403") or (said.returncode == 0) != allowed:
            wrong.append((caller, method, path, allowed, code, said.stdout))
    assert not wrong, wrong
    wait_for(lambda: shop.metric("apps", "selvedge_access_denied_total", 'policy="shop/secret"') >= 1, "the denials being counted")


def test_default_deny_lets_nobody_through_without_a_policy(shop, mode, extra):
    mode("Permissive", access={"default": "Deny"})
    wait_for(lambda: shop.code("web", "http://10.96.0.2/") == "403", "everything being denied")
    extra(policy("Allow", [{"from": [{"identities": [WEB]}]}]))
    wait_for(lambda: shop.code("web", "http://10.96.0.2/") == "200", "the allowed one going through")
    assert shop.code("guest", "http://10.96.0.2/") == "403"


def audited(shop, name):
    return shop.metric("apps", "selvedge_access_audited_total", f'policy="{name}"')


def test_audit_refuses_nothing_counts_and_is_logged(shop, mode, extra, tmp_path):
    log = tmp_path / "access.log"
    targets = {"targetRefs": [{"kind": "Namespace", "name": "shop"}]}
    lines = resource("TrafficPolicy", "lines", {**targets, "telemetry": {"accessLog": {"path": str(log)}}})

    def heard(by):
        """Asks until the destination's proxy says in its log that it was audited, and by whom."""
        assert shop.code("guest", "http://10.96.0.2/watched/by-log") == "200", "nothing is refused"
        words = f"access audited by {by}\""
        return log.exists() and any("/by-log" in said and words in said and "/inbound" in said for said in log.read_text().splitlines())

    watch = policy("Audit", [{"from": [{"identities": [GUEST]}], "to": [{"paths": ["/watched", "/watched/*"]}]}], name="watch")
    extra(watch + lines)
    wait_for(lambda: heard("shop/watch"), f"audited by the policy in {log}")
    # Whom and what it does not mean it does not count.
    before = audited(shop, "shop/watch")
    assert before > 0
    assert shop.code("web", "http://10.96.0.2/watched") == shop.code("guest", "http://10.96.0.2/else") == "200"
    assert audited(shop, "shop/watch") == before
    assert shop.code("guest", "http://10.96.0.2/watched") == "200"
    assert audited(shop, "shop/watch") == before + 1
    # What a default Deny would refuse.
    assert audited(shop, "default") == 0
    mode("Permissive", access={"default": "Audit"})
    wait_for(lambda: heard("shop/watch, default"), f"audited by the default in {log}")
    assert audited(shop, "default") > 0


def open_line(shop, caller, address, first, answer):
    """A connection on which `first` was answered; held open."""

    def connect():
        s = socket.create_connection(address, timeout=60)
        s.sendall(first)
        heard = b""
        while not heard.endswith(b"\r\n\r\n" if first.startswith(b"GET ") else b"\r\n"):
            heard += (data := s.recv(4096))
            assert data, heard
        assert answer in heard
        return s

    return inside(shop.net.space(caller), connect)


def ended(s):
    try:
        return s.recv(100) == b""
    except ConnectionError:
        return True


def test_a_change_reaches_live_redis_connections_and_upgrades(shop, extra):
    shop.spawn("redis-live", "apps", "redis-server", "--port", 6379, "--bind", "0.0.0.0", "--save", "", "--protected-mode", "no")
    ping = lambda name: shop.run(name, "redis-cli", "-h", "10.96.0.5", "PING", check=False).stdout.strip()
    wait_for(lambda: ping("web") == "PONG" and ping("guest") == "PONG", "redis answering")
    redis = {name: open_line(shop, name, ("10.96.0.5", 6379), b"PING\r\n", b"+PONG") for name in ("web", "guest")}
    upgrade = b"GET /ws HTTP/1.1\r\nhost: app-v1.shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n" \
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    lines = {name: open_line(shop, name, ("10.96.0.2", 80), upgrade, b"101") for name in ("web", "guest")}
    extra(policy("Deny", [{"from": [{"identities": [GUEST]}]}], name="guest"))
    for s in [redis["guest"], lines["guest"]]:
        s.settimeout(60)
        assert ended(s), "a live connection goes on although it is denied"
    redis["web"].sendall(b"PING\r\n")
    assert b"+PONG" in redis["web"].recv(100), "those that are allowed go on"
    lines["web"].sendall(b"hello\n")
    assert lines["web"].recv(100) == b"hello\n"
    assert ping("guest") != "PONG" and ping("web") == "PONG"
