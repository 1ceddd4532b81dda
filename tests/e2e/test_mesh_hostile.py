"""What members of a mesh, and strangers, send to the tunnel port of a proxy: raw frames, floods, targets that are nobody's
business, and requests that two programs might read differently."""
import pathlib
import re
import socket
import ssl
import threading
import time

import hpack
import pytest
from conftest import Recorder, wait_for
from mesh import DOMAIN, resource, service, workload
from mesh_fixtures import start_local
from test_access import TRICKS
from test_mesh_certificates import Authority, write

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WEB = f"spiffe://{DOMAIN}/ns/shop/sa/web"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind, flags=0, stream=0, payload=b""):
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def connect(target, *headers):
    return hpack.Encoder().encode([(":method", "CONNECT"), (":authority", target), *headers], huffman=False)


class Member:
    """Mutual TLS to a tunnel port with a certificate of the mesh, and HTTP/2 by hand."""

    def __init__(self, shop, address=None, files=None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(*(files or shop.good))
        raw = socket.create_connection((address or shop.address, 15008), timeout=60)
        self.s = context.wrap_socket(raw)
        self.decoder, self.buffer = hpack.Decoder(), b""
        self.s.sendall(PREFACE + frame(SETTINGS))

    def send(self, *frames):
        self.s.sendall(b"".join(frames))

    def read(self):
        """The next frame: kind, flags, stream, payload. None at the end."""
        while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(self.buffer[:3]):
            data = self.s.recv(65536)
            if not data:
                return None
            self.buffer += data
        length = int.from_bytes(self.buffer[:3])
        head, payload, self.buffer = self.buffer[:9], self.buffer[9:9 + length], self.buffer[9 + length:]
        if head[3] == HEADERS:
            payload = dict(self.decoder.decode(payload))
        return head[3], head[4], int.from_bytes(head[5:9]), payload

    def tunnel(self, target, *headers, stream=1):
        """The status of a tunnel."""
        self.send(frame(HEADERS, END_HEADERS, stream, connect(target, *headers)))
        while (got := self.read()) is not None:
            if got[0] == HEADERS and got[2] == stream:
                return int(got[3][":status"])
            if got[0] == RST and got[2] == stream:
                return "reset"
        return "closed"

    def say(self, data, stream=1, seconds=3):
        """Sends bytes through the tunnel; what comes back until its end, or until nothing more comes for `seconds`."""
        self.send(frame(DATA, 0, stream, data))
        self.s.settimeout(60)
        out = b""
        try:
            while (got := self.read()) is not None and not (got[0] == RST and got[2] == stream):
                if got[0] == DATA and got[2] == stream:
                    out += got[3]
                    self.s.settimeout(seconds)
                    if got[1] & END_STREAM:
                        break
        except OSError:
            pass
        return out

    def until_closed(self, seconds=60):
        """Reads to the end; the error codes of GOAWAY. Fails when the connection stays open."""
        self.s.settimeout(seconds)
        codes, end = [], time.monotonic() + seconds
        try:
            while (got := self.read()) is not None:
                if got[0] == GOAWAY:
                    codes.append(int.from_bytes(got[3][4:8]))
                assert time.monotonic() < end, "the connection goes on"
        except TimeoutError:
            raise AssertionError("the connection stays open")
        except OSError:
            pass
        return codes

    def close(self):
        self.s.close()


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """`web` calls `app`; `self` has loopback among its addresses; the test has a certificate of `web` of its own."""
    folder = tmp_path_factory.mktemp("hostile")
    root = Authority("root")
    ours = Authority("intermediate", root)
    chain, key = write(folder, "intermediate", [ours.certificate, root.certificate], ours.key)
    mesh = start_local(folder, "--ca-intermediate", chain, "--ca-intermediate-key", key, servers=("app", "self"))
    try:
        net = mesh.net
        mesh.good = ours.leaf(folder, "good", WEB)
        mesh.authority, mesh.address = ours, net.address("app")
        mesh.recorder = Recorder(mesh.address)
        mesh.raw = f"{mesh.address}:{mesh.recorder.port}"
        own = [net.address("self"), "127.0.0.1"]
        http = {"name": "raw", "port": mesh.recorder.port, "appProtocol": "http"}
        mesh.write("shop", "".join([
            workload("web", net.address("web"), []),
            workload("app", mesh.address, [{"name": "http", "port": 8080}, http], app="app"),
            workload("self", own, [{"name": "http", "port": 8080}], app="self"),
            service("app", 80, 8080, {"app": "app"}, None, "http"),
        ]))
        mesh.write("policy", DENY)
        wait_for(lambda: answer(mesh, b"GET /admin HTTP/1.1\r\nhost: app.shop\r\n\r\n").startswith(b"HTTP/1.1 403"), "the policy")
        mesh.settle()
        yield mesh
    finally:
        mesh.stop()


DENY = resource("AccessPolicy", "deny", {
    "targetRefs": [{"kind": "Workload", "name": "app"}],
    "action": "Deny",
    "rules": [{"name": "admin", "to": [{"paths": ["/admin", "/admin/*"]}]},
              {"name": "internal", "to": [{"headers": [{"name": "x-internal", "exact": "true"}]}]},
              {"name": "host", "to": [{"hosts": ["private.shop"]}]}],
})


def answer(shop, request, *headers):
    """What one request through a tunnel of its own is answered with."""
    member = Member(shop)
    try:
        assert member.tunnel(shop.raw, *headers) == 200
        return member.say(request, seconds=1.5)
    finally:
        member.close()


def memory(shop):
    """Of a proxy's own: pages of the program come and go."""
    status = pathlib.Path(f"/proc/{shop.proxies['app'].pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024


# Identity


def test_who_calls_is_what_the_handshake_proved(shop):
    """Neither the headers of the tunnel nor those of the request say who calls, or from where."""
    lies = [("forwarded", "for=203.0.113.9"), ("x-forwarded-client-cert", f"URI=spiffe://{DOMAIN}/ns/shop/sa/admin"),
            ("baggage", "k8s.namespace.name=admin,service.account=admin")]
    fake = f"By=spiffe://{DOMAIN}/ns/shop/sa/app;URI=spiffe://{DOMAIN}/ns/shop/sa/admin"
    spoofed = ["x-forwarded-client-cert", "X-Forwarded-Client-Cert", "X-FORWARDED-CLIENT-CERT"]
    head = "".join(f"{name}: {fake}\r\n" for name in spoofed)
    shop.recorder.forget()
    got = answer(shop, f"GET /who HTTP/1.1\r\nhost: app.shop\r\n{head}\r\n".encode(), *lies)
    assert got.startswith(b"HTTP/1.1 200"), got
    seen = shop.recorder.all()
    assert b"GET /who " in seen and f"URI={WEB}".encode() in seen, seen
    assert b"sa/admin" not in seen and b"203.0.113.9" not in seen, seen


def test_a_server_with_another_identity_is_told_nothing(shop):
    """Whoever has the address of a workload, and a good certificate that is not its, gets no byte of a request."""
    net = shop.net
    net.add("bank")
    impostor = shop.authority.leaf(shop.folder, "impostor", f"spiffe://{DOMAIN}/ns/shop/sa/guest")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*impostor)
    context.set_alpn_protocols(["h2"])
    heard = []

    def serve(listener):
        while True:
            try:
                raw, _ = listener.accept()
                raw.settimeout(60)
                with context.wrap_socket(raw, server_side=True) as s:
                    heard.append(s.recv(1000))
            except OSError as error:
                if listener.fileno() < 0:
                    return
                heard.append(error)

    with socket.create_server((net.address("bank"), 15008)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        shop.write("bank", workload("bank", net.address("bank"), [{"name": "http", "port": 8080}], app="bank")
                   + service("bank", 80, 8080, {"app": "bank"}, None, "http"))
        failed = lambda: shop.metric("web", "selvedge_mesh_tunnel_connections_total", 'outcome="handshake_failure"')
        before = failed()
        wait_for(lambda: shop.code("web", "http://bank.shop/secret") == "503" and heard, "the impostor being asked")
        assert not [h for h in heard if h and isinstance(h, bytes)], heard
        wait_for(lambda: failed() > before, "the handshake being counted")
    shop.remove("bank")


def test_a_name_with_a_nul_is_no_name(shop, tmp_path):
    good = shop.authority.leaf
    assert Member(shop, files=good(tmp_path, "fine", WEB)).tunnel(shop.raw) == 200
    for number, uri in enumerate([f"{WEB}\0.example", f"{WEB}/", f"{WEB}?a", f"{WEB}#a", f"{WEB}/../admin", WEB.upper(), f" {WEB}"]):
        files = good(tmp_path, f"odd{number}", uri)
        with pytest.raises((OSError, AssertionError)):
            assert Member(shop, files=files).tunnel(shop.raw) == 200, uri


# Where tunnels lead


def test_tunnels_lead_to_ports_of_applications_and_nowhere_else(shop):
    net = shop.net
    admin = shop.proxies["self"].admin[1]
    refused = {
        "the tunnel port itself": (net.address("self"), f"{net.address('self')}:15008"),
        "the same, by loopback": (net.address("self"), "127.0.0.1:15008"),
        "the admin port, by loopback": (net.address("self"), f"127.0.0.1:{admin}"),
        "the admin port, mapped": (net.address("self"), f"[::ffff:127.0.0.1]:{admin}"),
        "the port for applications": (net.address("self"), f"127.0.0.1:{shop.http_proxies['self']}"),
        "another workload": (net.address("self"), f"{net.address('app')}:8080"),
        "the metadata service": (net.address("app"), "169.254.169.254:80"),
        "a neighbour's loopback": (net.address("app"), "127.0.0.1:8080"),
        "IPv6 loopback": (net.address("self"), "[::1]:8080"),
        "any address": (net.address("self"), "0.0.0.0:8080"),
        "a name": (net.address("self"), "localhost:8080"),
        "the control plane": (net.address("self"), f"{net.control}:{shop.port}"),
    }
    wrong = {}
    for what, (at, target) in refused.items():
        member = Member(shop, at)
        if (status := member.tunnel(target)) != 400:
            wrong[what] = status
        member.close()
    assert not wrong, wrong
    assert Member(shop, net.address("self")).tunnel(f"{net.address('self')}:8080") == 200


# What is inside


@pytest.mark.parametrize("target,guarded", [*TRICKS, ("/admin#x", True), ("/public#/../admin", True), ("/admin\\", True), ("/adm%00in", True),
                                            ("/admin%", True), ("admin", True), ("/admin%3bx", False)])
def test_paths_cannot_dodge_a_deny_at_a_sidecar(shop, target, guarded):
    shop.recorder.forget()
    got = answer(shop, f"GET {target} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n".encode())
    status = int(got.split(b" ")[1]) if got else 0
    if guarded:
        assert status in (400, 403), got
        assert not shop.recorder.all(), "nothing reaches the application"
    else:
        assert status == 200, got


@pytest.mark.parametrize("fields,wanted", [
    (b"Host: app.shop\r\nX-Internal: true", (403,)),
    (b"Host: app.shop\r\nX-Internal: no\r\nx-internal: true", (403,)),
    (b"Host: app.shop\r\nx-internal: true\r\nX-INTERNAL: true", (403,)),
    (b"Host: app.shop\r\nX-Internal: no", (200,)),
    (b"Host: private.shop", (403,)),
    (b"Host: PRIVATE.shop.", (403, 400)),
    (b"Host: private.shop:80", (403,)),
    (b"Host: app.shop\r\nHost: private.shop", (400,)),
    (b"Host: app.shop, private.shop", (400,)),
    (b"Host: user@private.shop", (400,)),
    (b"", (400,)),
])
def test_headers_and_hosts_are_judged_as_the_application_reads_them(shop, fields, wanted):
    shop.recorder.forget()
    lines = fields + b"\r\n" if fields else b""
    got = answer(shop, b"GET /x HTTP/1.1\r\n" + lines + b"Connection: close\r\n\r\n")
    assert got and int(got.split(b" ")[1]) in wanted, got
    assert wanted == (200,) or not shop.recorder.all()


@pytest.mark.parametrize("target,host,wanted", [("http://private.shop/x", "private.shop", (403,)), ("http://private.shop/x", "app.shop", (400, 403)),
                                                ("http://app.shop/x", "private.shop", (400, 403))])
def test_a_target_that_names_another_host_is_no_way_around(shop, target, host, wanted):
    shop.recorder.forget()
    got = answer(shop, f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert got and int(got.split(b" ")[1]) in wanted, got
    assert not shop.recorder.all()


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: app.shop\r\n\r\n"
HEAD = b"POST /x HTTP/1.1\r\nHost: app.shop\r\n"


@pytest.mark.parametrize("request_", [
    HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n" + SMUGGLED,
    HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    HEAD + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n" + SMUGGLED,
    HEAD + b"Content-Length: +44\r\n\r\n" + SMUGGLED,
    HEAD + b"Content-Length: 0,44\r\n\r\n" + SMUGGLED,
    b"POST /x HTTP/1.1\nHost: app.shop\nContent-Length: 44\n\n" + SMUGGLED,
    b"POST /x HTTP/1.0\r\nHost: app.shop\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
])
def test_nothing_is_smuggled_through_a_tunnel(shop, request_):
    """The first request is refused, the connection ends, and the application sees neither of them."""
    shop.recorder.forget()
    got = answer(shop, request_)
    assert got.startswith(b"HTTP/1.1 4") and got.count(b"HTTP/1.1 ") == 1, got
    assert b"smuggled" not in shop.recorder.all(), shop.recorder.all()


def test_bytes_after_an_upgrade_are_not_requests(shop):
    """An upgrade that the application does not take up: what follows it was no request of anybody."""
    shop.recorder.forget()
    upgrade = b"GET /x HTTP/1.1\r\nHost: app.shop\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\nGET /admin HTTP/1.1\r\nHost: app.shop\r\n\r\n"
    answer(shop, upgrade)
    assert b"/admin" not in shop.recorder.all(), shop.recorder.all()


# Floods and silence


def rapid_reset(member):
    block = connect("127.0.0.1:1")
    for first in range(1, 20_000, 200):
        member.send(*[frame(HEADERS, END_HEADERS, s, block) + frame(RST, 0, s, (8).to_bytes(4)) for s in range(first, first + 200, 2)])


def continuations(member):
    member.send(frame(HEADERS, 0, 1, connect("127.0.0.1:1")))
    for _ in range(200):
        member.send(*[frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b" * 100) for _ in range(100)])


def tiny_continuations(member):
    member.send(frame(HEADERS, 0, 1, connect("127.0.0.1:1")))
    for _ in range(500):
        member.send(frame(CONTINUATION, 0, 1, b"") * 200)


def header_bomb(member):
    """One field in the table, then thousands of references to it."""
    block = b"\x40\x01a" + b"\x7f\xa1\x1e" + b"x" * 4000 + b"\xbe" * 12_000
    for stream in range(1, 400, 2):
        member.send(frame(HEADERS, END_HEADERS, stream, connect("127.0.0.1:1") + block))


def pings(member):
    for _ in range(1000):
        member.send(frame(PING, 0, 0, b"12345678") * 100)


def settings(member):
    for _ in range(1000):
        member.send(frame(SETTINGS, 0, 0, b"\0\3\0\0\0\x64") * 100)


def empty_data(member, shop):
    assert member.tunnel(shop.raw) == 200
    for _ in range(1000):
        member.send(frame(DATA, 0, 1, b"") * 100)


def window_updates(member, shop):
    assert member.tunnel(shop.raw) == 200
    for _ in range(1000):
        member.send(frame(WINDOW, 0, 1, (1).to_bytes(4)) * 100)


def window_overflow(member):
    """MadeYouReset: errors that make the server reset streams."""
    block = connect("127.0.0.1:1")
    for first in range(1, 20_000, 200):
        member.send(*[frame(HEADERS, END_HEADERS, s, block) + frame(WINDOW, 0, s, (0).to_bytes(4)) for s in range(first, first + 200, 2)])


@pytest.mark.parametrize("flood", [rapid_reset, continuations, tiny_continuations, header_bomb, pings, settings, empty_data, window_updates,
                                   window_overflow], ids=lambda flood: flood.__name__)
def test_a_flood_hurts_nobody_else(shop, flood):
    """The flood costs little memory, its connection ends or waits, and others notice nothing."""
    before, load = memory(shop), shop.load("web", "app.shop")
    load.more(20)
    member = Member(shop)
    cut = {rapid_reset, continuations, tiny_continuations, window_overflow}
    # The connection of the one kind ends however long that takes; with the others it may be that nobody reads any more.
    member.s.settimeout(60 if flood in cut else 3)
    try:
        flood(member, shop) if "shop" in flood.__code__.co_varnames[:2] else flood(member)
        ended = "taken"
    except TimeoutError:
        ended = "held back"
    except (OSError, AssertionError):
        ended = "cut"
    grown = memory(shop) - before
    load.more(50)
    load.none_failed()
    assert grown < 64 << 20, f"{grown >> 20} MiB"
    if flood in cut and ended == "taken":
        member.until_closed()
    elif flood in cut:
        assert ended == "cut"
    member.close()
    again = Member(shop)
    assert again.tunnel(shop.raw) == 200
    again.close()


def test_streams_beyond_the_limit_are_refused(shop):
    """Each is a connection to the application: a member gets so many of them on one of its own, and no more."""
    member = Member(shop)
    count = 300
    member.send(*[frame(HEADERS, END_HEADERS, 2 * n + 1, connect(shop.raw)) for n in range(count)])
    opened, refused = set(), set()
    member.s.settimeout(60)
    while len(opened) + len(refused) < count:
        got = member.read()
        assert got is not None, (len(opened), len(refused))
        if got[0] == HEADERS:
            assert got[3][":status"] == "200"
            opened.add(got[2])
        elif got[0] == RST:
            assert int.from_bytes(got[3]) == 7, "REFUSED_STREAM: it may be sent again elsewhere"
            refused.add(got[2])
    assert len(opened) == 100 and len(refused) == 200
    member.close()


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\nhost: app.shop\r\n\r\n", PREFACE + frame(SETTINGS), b"SSH-2.0-x\r\n", b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n", b"\0" * 64])
def test_clear_text_at_the_tunnel_port_gets_no_answer(shop, words):
    refused = lambda: shop.metric("app", "selvedge_mesh_refused_total", 'reason="handshake"')
    before = refused()
    with socket.create_connection((shop.address, 15008), timeout=60) as s:
        s.sendall(words)
        heard = b""
        try:
            while data := s.recv(1000):
                heard += data
        except ConnectionError:
            pass
    # A TLS alert at most.
    assert len(heard) <= 7 and (not heard or heard[0] == 0x15), heard
    wait_for(lambda: refused() > before, "the refusal being counted")


def test_handshakes_that_stall_end_and_keep_nobody_out(shop):
    silent = [socket.create_connection((shop.address, 15008), timeout=100) for _ in range(100)]
    for index, s in enumerate(silent):
        # Nothing, the beginning of a record, a record that is promised.
        s.sendall([b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00"][index % 3])
    load = shop.load("web", "app.shop")
    load.more(50)
    load.none_failed()
    begin = time.monotonic()
    for s in silent:
        try:
            while s.recv(100):
                pass
        except ConnectionError:
            pass
        s.close()
    assert time.monotonic() - begin < 60
