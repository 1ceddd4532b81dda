"""What clients must not get through: a recording backend sees nothing ambiguous."""
import re
import socket

import pytest
from conftest import Gateway, Recorder, free_port, raw, route, service

B = b"POST / HTTP/1.1\r\nHost: a\r\n"
G = b"GET / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = B + b"Transfer-Encoding: chunked\r\n\r\n"

REFUSED = {
    "cl.te": B + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "te.cl": B + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\nX",
    **{
        f"te {value!r}": B + b"Transfer-Encoding:" + value + b"\r\n\r\n0\r\n\r\n"
        for value in (b" ,chunked", b" xchunked", b" chunked, identity", b" identity, chunked", b" \x0bchunked", b' "chunked"',
                      b" chunked;q=1", b" chunked\r\nTransfer-Encoding: chunked", b"\r\n chunked", b" chunked\x00", b"")
    },
    "te space": B + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "te underscore": B + b"Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
    "first header space": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "name with newline": G + b"Te\nst: x\r\n\r\n",
    "no colon": G + b"nocolon\r\n\r\n",
    "empty name": G + b": x\r\n\r\n",
    **{f"cl {value!r}": B + b"Content-Length: " + value + b"\r\n\r\nabcde"
       for value in (b"+5", b"-1", b"0x5", b"5_0", b"5 5", b"5,5", b"5,6", b"", b"18446744073709551616", b"5\r\nContent-Length: 5", b"5\r\nContent-Length: 6")},
    **{f"chunk {size!r}": CHUNKED + size + b"\r\nab\r\n0\r\n\r\n"
       for size in (b"0x2", b"+2", b"-0", b"0_2e", b" 2", b"2 ", b"", b"00000000000000002", b"2\n", b"2;a\nb", b"2;\x00")},
    "chunk spill": CHUNKED + b"2\r\nabXY0\r\n\r\n",
    "bare LF line": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare LF header": G + b"a: b\nc: d\r\n\r\n",
    "bare CR": G + b"a: b\rSmuggled: c\r\n\r\n",
    "NUL in value": G + b"a: b\x00c\r\n\r\n",
    "1.0 with TE": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "1.0 post without CL": b"POST / HTTP/1.0\r\nHost: a\r\n\r\nabc",
    "1.32": b"GET / HTTP/1.32\r\nHost: a\r\n\r\n",
    "2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "0.9": b"GET /\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": G + b"Host: b\r\n\r\n",
    "host list": b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n",
    "host userinfo": b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
    "host escapes": b"GET / HTTP/1.1\r\nHost: %61\r\n\r\n",
    "connect": b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n",
    "connect path": b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute other host": b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "relative": b"GET admin HTTP/1.1\r\nHost: a\r\n\r\n",
    "star": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment": b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",
    "escaped NUL": b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "dot params": b"GET /a/..;/admin HTTP/1.1\r\nHost: a\r\n\r\n",
    "backslash": b"GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n",
    "bad escape": b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n",
    "trace": b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
    "unknown expect": B + b"Content-Length: 1\r\nExpect: y 100-continue\r\n\r\nx",
    "two authorizations": G + b"Authorization: a\r\nAuthorization: b\r\n\r\n",
    "long target": b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "many headers": G + b"".join(b"h%d: x\r\n" % i for i in range(10_000)) + b"\r\n",
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    port = free_port()
    recorder = Recorder()
    folder = tmp_path_factory.mktemp("hostile")
    folder.joinpath("gateway.yaml").write_text(f"""
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: selvedge
  listeners: [{{name: http, port: {port}, protocol: HTTP}}]
""" + service("rec", 80, [recorder.port]) + route("all", [{"backendRefs": [{"name": "rec", "port": 80}]}]))
    gateway = Gateway(folder)
    gateway.port, gateway.recorder = port, recorder
    yield gateway
    assert gateway.stop() == 0


@pytest.mark.parametrize("name", REFUSED)
def test_refused(gateway, name):
    before = gateway.recorder.all()
    # Of another test is what it has begun, and what arrives only now.
    own = b"/refused-%d" % list(REFUSED).index(name)
    try:
        answer = raw(gateway.port, REFUSED[name].replace(b" / HTTP/1.1\r\nHost: a\r\n", b" %s HTTP/1.1\r\nHost: a\r\n" % own, 1), quiet=3)
    except (ConnectionResetError, BrokenPipeError):
        answer = b""
    status = answer.split(b" ")[1:2]
    assert not answer or status[0][:1] in (b"4", b"5"), answer[:200]
    assert len(re.findall(rb"HTTP/1\.1 \d\d\d ", answer)) <= 1, "exactly one answer"
    new = gateway.recorder.all()[len(before):]
    # A request whose head was good may have been begun; its body must not be completed, and nothing else may follow.
    begun = [target for target in re.findall(rb"(\S+) HTTP/1\.1\r\n", new) if target == own or not target.startswith(b"/refused-")]
    assert len(begun) <= (1 if name.startswith("chunk") else 0), new
    assert b"0\r\n\r\n" not in new.split(b"\r\n\r\n", 1)[-1:][0], new


def test_upgrade_does_not_smuggle(gateway):
    smuggled = G + b"Upgrade: foo\r\nConnection: Upgrade\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer = raw(gateway.port, smuggled)
    assert answer.count(b"HTTP/1.1 200 OK") == 2, "the second request is parsed by the gateway"
    assert b"pgrade" not in gateway.recorder.all()


def test_h2c_upgrade_is_not_passed_on(gateway):
    before = len(gateway.recorder.all())
    raw(gateway.port, G + b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nConnection: Upgrade, HTTP2-Settings, close\r\n\r\n")
    new = gateway.recorder.all()[before:].lower()
    assert b"h2c" not in new and b"http2-settings" not in new


def test_the_gateway_is_alive_after_all_that(gateway):
    answer = raw(gateway.port, G + b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")


def test_connections_that_say_nothing_are_closed(gateway):
    with socket.create_connection(("127.0.0.1", gateway.port)) as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost")
        s.settimeout(100)
        data = s.recv(4096)
        assert data == b"" or data.startswith(b"HTTP/1.1 408")


def received(gateway, path):
    """The head that the backend got for a path. Connections are reused, so that it may stand anywhere in what was received."""
    return re.search(rb"GET " + re.escape(path) + rb" HTTP/1\.1\r\n.*?\r\n\r\n", gateway.recorder.all(), re.S)[0].lower()


def test_underscores_do_not_speak_for_the_gateway(gateway):
    names = (b"X_Forwarded_For", b"X-Forwarded_Proto", b"X_Real_IP", b"Front-End-Https", b"x_other")
    fields = b"".join(name + b": spoofed\r\n" for name in names)
    raw(gateway.port, b"GET /underscores HTTP/1.1\r\nHost: a\r\n" + fields + b"Connection: close\r\n\r\n")
    head = received(gateway, b"/underscores")
    assert b"x-forwarded-for: 127.0.0.1\r\n" in head and b"spoofed" not in head, head


def test_hosts_that_are_valid_and_odd(gateway):
    local = b"127.0.0.1:%d" % gateway.port
    for request, path, field in ((b"GET /empty-port HTTP/1.1\r\nHost: a:\r\n", b"/empty-port", b"host: a\r\n"),
                                 (b"GET http://a?x=1 HTTP/1.1\r\nHost: a\r\n", b"/?x=1", b"host: a\r\n"),
                                 (b"GET /old HTTP/1.0\r\n", b"/old", b"host: " + local + b"\r\n"),
                                 (b"GET /port HTTP/1.1\r\nHost: a:81\r\n", b"/port", b"x-forwarded-host: a:81\r\n")):
        answer = raw(gateway.port, request + b"Connection: close\r\n\r\n")
        assert b" 200 OK" in answer and b"\r\ndate: " in answer, (request, answer)
        assert b"\r\n" + field in received(gateway, path), request
