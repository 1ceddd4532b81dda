"""AuthPolicy at a real gateway: who is let in by which token, what the backend is told, and keys that change while it serves."""
import json
import subprocess
import threading
import time

import pytest
import websockets.exceptions
import websockets.sync.client
import websockets.sync.server
from conftest import BIN, Recorder, curl, free_port, raw, route, service, wait_for, write
from test_access import Edge, gateway, policy, status
from tokens import ISSUER, Issuer, auth_policy, keys, secret, unsigned

ISSUERS = [Issuer("a", "ES256"), Issuer("b", "EdDSA"), Issuer("c", "RS256"), Issuer("d", "PS256"), Issuer("e", "ES384")]
ADMINS = {"rules": [{"name": "admins", "from": [{"claims": [{"name": "realm_access/roles", "values": ["admin"]}]}]}]}


def section(name):
    return {"kind": "Gateway", "name": "edge", "sectionName": name}


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    recorder = Recorder()
    ports = {name: free_port() for name in ("http", "optional", "broken", "tcp")}
    folder = tmp_path_factory.mktemp("auth") / "conf"
    text = gateway(ports) + service("web", 80, [recorder.port]) + secret("keys", keys(*ISSUERS))
    for name in ("http", "optional", "broken"):
        rules = [{"matches": [{"path": {"value": path}}], "backendRefs": [{"name": "web", "port": 80}]} for path in ("/admin", "/")]
        text += route(f"on-{name}", rules, listener=name)
    text += route("admin", [{"matches": [{"path": {"value": "/admins"}}], "backendRefs": [{"name": "web", "port": 80}]}])
    text += route("vip", [{"matches": [{"headers": [{"name": "x-user", "value": "root"}]}], "backendRefs": [{"name": "nobody", "port": 80}]}])
    cors = {"type": "CORS", "cors": {"allowOrigins": ["https://shop.example"], "allowMethods": ["GET"]}}
    text += route("cors", [{"matches": [{"path": {"value": "/cors"}}], "filters": [cors], "backendRefs": [{"name": "web", "port": 80}]}])
    told = [{"header": "x-user", "claim": "sub"}, {"header": "x-roles", "claim": "realm_access/roles"}]
    text += auth_policy("users", section("http"), {"secretRef": {"name": "keys"}}, claimToHeaders=told, forward=False)
    text += auth_policy("maybe", section("optional"), {"inline": keys(*ISSUERS)}, optional=True, fromHeaders=[{"name": "x-jwt"}], fromParams=["token"], claimToHeaders=told)
    text += auth_policy("broken", section("broken"), {"secretRef": {"name": "missing"}}, optional=True)
    text += auth_policy("bytes", section("tcp"), {"secretRef": {"name": "keys"}})
    text += policy("admins", {"targetRefs": [{"kind": "HTTPRoute", "name": "admin"}], **ADMINS})
    text += policy("claims", {"targetRefs": [section("optional")], "action": "Deny", "rules": [{"when": "request.path.startsWith('/admin') && !('sub' in claims && claims.sub == 'anna')"}]})
    text += """
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: bytes}
spec:
  parentRefs: [{name: edge, sectionName: tcp}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
"""
    edge = Edge(folder, text, ports)
    edge.recorder = recorder
    yield edge
    edge.gateway.stop()


def ask(edge, token=None, *headers, target="/", port="http", method="GET"):
    head = f"{method} {target} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n"
    if token is not None:
        head += f"Authorization: Bearer {token}\r\n"
    return raw(edge.ports[port], head.encode("latin1") + b"".join(h + b"\r\n" for h in headers) + b"\r\n")


def refused(edge, **labels):
    text = ",".join(f'{name}="{value}"' for name, value in labels.items())
    line = f"selvedge_auth_refused_total{{{text}}} "
    return sum(int(found[len(line):]) for found in edge.gateway.get("/metrics").splitlines() if found.startswith(line))


@pytest.mark.parametrize("issuer", ISSUERS, ids=lambda issuer: issuer.algorithm)
def test_tokens_of_each_algorithm_are_believed(edge, issuer):
    assert status(ask(edge, issuer.token())) == 200


def test_who_brings_no_token_is_told_how_and_reaches_nobody(edge):
    edge.recorder.forget()
    answer = ask(edge)
    assert status(answer) == 401 and b'www-authenticate: Bearer realm="gateway"\r\n' in answer.lower().replace(b"bearer", b"Bearer")
    assert b"error" not in answer and answer.endswith(b"\r\n\r\na token is needed\n")
    expired = ask(edge, ISSUERS[0].token(lasts=-120))
    assert status(expired) == 401
    assert b'error="invalid_token", error_description="the token has expired"' in expired
    assert b"policy" not in expired.lower()
    assert edge.recorder.all() == b""
    for reason in ("missing", "expired"):
        wait_for(lambda: refused(edge, policy="default/users", reason=reason) >= 1, f"{reason} being counted")


NOW = int(time.time())
GOOD = {"iss": ISSUER, "aud": "shop", "sub": "anna", "exp": NOW + 3000}
STRANGER = Issuer("a", "ES256")
ATTACKS = {
    "none": unsigned({"alg": "none", "kid": "a"}, GOOD),
    "nOnE": unsigned({"alg": "nOnE", "kid": "a"}, GOOD),
    "hmac": unsigned({"alg": "HS256", "kid": "c"}, GOOD, b"x" * 32),
    "stranger": STRANGER.token(),
    "jwk": STRANGER.token(header={"jwk": STRANGER.public()}),
    "jku": STRANGER.token(header={"jku": "http://169.254.169.254/keys"}),
    "kid path": ISSUERS[0].token(header={"kid": "../../dev/null"}),
    "kid sql": ISSUERS[0].token(header={"kid": "a' OR '1'='1"}),
    "crit": ISSUERS[0].token(header={"crit": ["exp"]}),
    "no exp": ISSUERS[0].token(exp=None),
    "no aud": ISSUERS[0].token(aud=None),
    "other aud": ISSUERS[0].token(aud=["other", "another"]),
    "other issuer": ISSUERS[0].token(iss="https://issuer.example.evil"),
    "not yet": ISSUERS[0].token(nbf=NOW + 600),
    "long": "a" * 20_000,
    "two": "a.b",
    "empty": "",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_forged_token_gets_in(edge, name):
    edge.recorder.forget()
    for port, header in (("http", None), ("optional", b"x-jwt: " + ATTACKS[name].encode())):
        answer = ask(edge, ATTACKS[name]) if header is None else ask(edge, None, header, port=port)
        assert status(answer) in (401, 431), answer
        assert header is None and name == "long" or b'error="invalid_token"' in answer or status(answer) == 431, answer
    assert edge.recorder.all() == b""


def test_two_tokens_are_one_too_many(edge):
    token = ISSUERS[0].token()
    bearer = b"Authorization: Bearer " + token.encode()
    assert status(ask(edge, token, bearer)) == 400
    assert status(ask(edge, token, b"Authorization: Basic YTpi")) == 400
    jwt = b"x-jwt: " + token.encode()
    answer = ask(edge, None, jwt, port="optional", target=f"/?token={token}")
    assert status(answer) == 400 and b'error="invalid_request"' in answer
    assert status(ask(edge, None, jwt, jwt, port="optional")) == 400
    assert status(ask(edge, None, port="optional", target=f"/?token={token}&%74oken={token}")) == 400
    assert status(ask(edge, None, port="optional", target=f"/?token={token}")) == 200


def test_backends_are_told_claims_that_nobody_can_invent(edge):
    spoofed = [b"X-User: root", b"x-user: admin", b"X-Roles: admin"]
    edge.recorder.forget()
    assert status(ask(edge, ISSUERS[0].token(realm_access={"roles": ["user", "buyer"]}), *spoofed)) == 200
    seen = edge.recorder.all().lower()
    assert b"x-user: anna\r\n" in seen and b"x-roles: user,buyer\r\n" in seen
    assert b"root" not in seen and b"admin" not in seen and b"authorization" not in seen, seen
    edge.recorder.forget()
    assert status(ask(edge, None, *spoofed, port="optional")) == 200
    assert b"x-user" not in edge.recorder.all().lower() and b"x-roles" not in edge.recorder.all().lower()


def test_claims_decide_who_may(edge):
    admin, user = ISSUERS[0].token(realm_access={"roles": ["user", "admin"]}), ISSUERS[0].token(realm_access={"roles": ["user"]})
    assert [status(ask(edge, token, target="/admins")) for token in (None, user, admin)] == [401, 403, 200]
    jwt = lambda sub: b"x-jwt: " + ISSUERS[0].token(sub=sub).encode()
    assert status(ask(edge, None, port="optional", target="/admin")) == 403
    assert status(ask(edge, None, jwt("bert"), port="optional", target="/admin")) == 403
    assert status(ask(edge, None, jwt("anna"), port="optional", target="/admin")) == 200
    explain = lambda *args: subprocess.run([BIN, "explain", "-f", str(edge.folder), f"http://shop.example:{edge.ports['http']}/admins", *args], capture_output=True, text=True).stdout
    assert "401" in explain() and "default/users demands a token" in explain()
    assert "403" in explain("--claim", "realm_access/roles=user") and "rule admins" in explain("--claim", "realm_access/roles=user", "--claim", "realm_access/roles=admin")


def test_nothing_is_answered_where_keys_are_missing(edge):
    edge.recorder.forget()
    for token in (None, ISSUERS[0].token()):
        answer = ask(edge, token, port="broken")
        assert status(answer) == 500 and answer.endswith(b"callers cannot be authenticated\n")
    assert edge.recorder.all() == b""
    assert "Secret default/missing does not exist" in edge.gateway.get("/status")
    # No token comes with bytes.
    with pytest.raises((ConnectionResetError, AssertionError)):
        assert ask(edge, ISSUERS[0].token(), port="tcp")
    wait_for(lambda: refused(edge, policy="default/bytes", reason="not_http") >= 1, "the connection being counted")


def test_browsers_may_ask_before_they_have_a_token(edge):
    edge.recorder.forget()
    asks = [b"Origin: https://shop.example", b"Access-Control-Request-Method: GET"]
    answer = ask(edge, None, *asks, target="/cors", method="OPTIONS")
    assert status(answer) == 204 and b"access-control-allow-origin: https://shop.example" in answer.lower()
    assert status(ask(edge, None, *asks, target="/", method="OPTIONS")) == 401
    assert status(ask(edge, None, asks[0], target="/cors", method="OPTIONS")) == 401
    assert status(ask(edge, None, *asks, target="/cors")) == 401
    assert edge.recorder.all() == b""


def test_a_signature_is_verified_once(edge):
    token = ISSUERS[0].token(sub="often")

    def accepted(by):
        line = f'selvedge_auth_accepted_total{{policy="default/users",by="{by}"}} '
        return sum(int(found[len(line):]) for found in edge.gateway.get("/metrics").splitlines() if found.startswith(line))

    before = accepted("signature")
    head = f"GET / HTTP/1.1\r\nHost: shop.example\r\nAuthorization: Bearer {token}\r\n"
    answers = raw(edge.ports["http"], (head + "\r\n").encode() * 9 + (head + "Connection: close\r\n\r\n").encode())
    assert answers.count(b"HTTP/1.1 200") == 10
    assert accepted("signature") == before + 1 and accepted("cache") >= 9


def test_keys_change_while_it_serves(tmp_path):
    recorder, ports = Recorder(), {"http": free_port()}
    old, new = Issuer("1", "ES256"), Issuer("2", "EdDSA")
    text = gateway(ports) + service("web", 80, [recorder.port]) + route("all", [{"backendRefs": [{"name": "web", "port": 80}]}])
    text += auth_policy("users", {"kind": "Gateway", "name": "edge"}, {"secretRef": {"name": "keys"}})
    edge = Edge(tmp_path / "conf", text + secret("keys", keys(old)), ports)
    try:
        before, after = old.token(lasts=3000), new.token(lasts=3000)
        assert [status(ask(edge, token)) for token in (before, before, after)] == [200, 200, 401]
        write(edge.folder / "config.yaml", text + secret("keys", keys(old, new)))
        wait_for(lambda: status(ask(edge, after)) == 200, "the new key")
        assert status(ask(edge, before)) == 200
        # The cache must not know what the keys do not verify any more.
        write(edge.folder / "config.yaml", text + secret("keys", keys(new)))
        wait_for(lambda: status(ask(edge, before)) == 401, "the old key being gone")
        assert status(ask(edge, after)) == 200
        write(edge.folder / "config.yaml", text + secret("keys", '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}'))
        wait_for(lambda: status(ask(edge, after)) == 500, "keys that cannot be used")
        assert "SELV0405" in edge.gateway.get("/status")
        write(edge.folder / "config.yaml", text + secret("keys", keys(new)))
        wait_for(lambda: status(ask(edge, after)) == 200, "the keys being back")
    finally:
        edge.gateway.stop()


def test_a_stream_ends_when_its_claims_allow_it_no_longer(tmp_path):
    def echo(connection):
        for message in connection:
            connection.send(message)

    server = websockets.sync.server.serve(echo, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ports, issuer = {"http": free_port()}, Issuer()
    text = gateway(ports) + service("ws", 80, [server.socket.getsockname()[1]], "kubernetes.io/ws") + route("all", [{"backendRefs": [{"name": "ws", "port": 80}]}])
    users = auth_policy("users", {"kind": "Gateway", "name": "edge"}, {"inline": keys(issuer)})
    allow = lambda *subs: {"rules": [{"from": [{"claims": [{"name": "sub", "values": list(subs)}]}]}]}
    edge = Edge(tmp_path / "conf", text + users, ports)
    try:
        edge.policies(allow("anna", "bert"))
        wait_for(lambda: status(ask(edge, issuer.token(sub="carl"))) == 403, "the policy being in effect")
        line = {}
        for sub in ("anna", "bert"):
            headers = {"Authorization": f"Bearer {issuer.token(sub=sub)}"}
            line[sub] = websockets.sync.client.connect(f"ws://127.0.0.1:{ports['http']}/", additional_headers=headers)
            line[sub].send("a")
            assert line[sub].recv(60) == "a"
        with pytest.raises(websockets.exceptions.InvalidStatus) as error:
            websockets.sync.client.connect(f"ws://127.0.0.1:{ports['http']}/")
        assert error.value.response.status_code == 401
        edge.policies(allow("anna"))
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            line["bert"].recv(60)
        line["anna"].send("b")
        assert line["anna"].recv(60) == "b", "it keeps its claims"
        # Other keys end nobody who was let in, another issuer does.
        write(edge.folder / "config.yaml", text + auth_policy("users", {"kind": "Gateway", "name": "edge"}, {"inline": keys(Issuer("z"))}))
        wait_for(lambda: status(ask(edge, issuer.token())) == 401, "the other keys")
        line["anna"].send("c")
        assert line["anna"].recv(60) == "c"
        other = auth_policy("users", {"kind": "Gateway", "name": "edge"}, {"inline": keys(issuer)}, issuer="https://other.example")
        write(edge.folder / "config.yaml", text + other)
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            line["anna"].recv(60)
    finally:
        edge.gateway.stop()
        server.shutdown()


def test_check_tells_of_bad_keys_and_of_claims_that_nobody_has(tmp_path):
    text = gateway({"http": 8080}) + service("web", 80, [9001]) + route("all", [{"backendRefs": [{"name": "web", "port": 80}]}])
    text += policy("claims", {"targetRefs": [{"kind": "Gateway", "name": "edge"}], **ADMINS})
    check = lambda more: (tmp_path.joinpath("c.yaml").write_text(text + more), subprocess.run([BIN, "check", "-f", str(tmp_path)], capture_output=True, text=True).stdout)[1]
    edge = {"kind": "Gateway", "name": "edge"}
    assert "no AuthPolicy holds at" in check("")
    assert "SELV0" not in check(auth_policy("users", edge, {"inline": keys(ISSUERS[0])}))
    bad = dict(ISSUERS[0].public(), x="AAAA")
    found = check(auth_policy("users", edge, {"inline": json.dumps({"keys": [bad]})}))
    assert "SELV0405" in found and "spec.jwt.providers[0].jwks.inline" in found and "key `a`: `x` and `y` must have 32 bytes" in found
    assert "connection belongs to the connection" in check(auth_policy("users", edge, {"inline": keys(ISSUERS[0])}, claimToHeaders=[{"header": "Connection", "claim": "sub"}]))
