"""gRPC (grpcio), WebSocket (websockets, RFC 8441), TLS, TCP, UDP and PROXY protocol through a real gateway."""
import asyncio
import base64
import concurrent.futures
import hashlib
import http.client
import json
import pathlib
import socket
import ssl
import struct
import subprocess
import threading

import grpc
import pytest
import websockets
import websockets.sync.client
import websockets.sync.server
from conftest import Gateway, Recorder, curl, free_port, free_udp_port, raw, route, service, wait_for, write


def certificate(folder, name, ca=None, names=("shop.example",), client=False):
    """A key and certificate made by openssl; signed by `ca` (a stem) or self-signed CA."""
    stem = folder / name
    config = folder / f"{name}.cnf"
    san = ",".join(f"DNS:{n}" for n in names)
    usage = "CA:TRUE" if ca is None else "CA:FALSE"
    config.write_text(f"[req]\ndistinguished_name=dn\nprompt=no\nx509_extensions=x\nreq_extensions=x\n[dn]\nCN={name}\n"
                      f"[x]\nbasicConstraints=critical,{usage}\nsubjectAltName={san}\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{stem}.key", "-config", str(config)]
    if ca is None:
        subprocess.run(["openssl", "req", "-x509", *key, "-days", "2", "-out", f"{stem}.crt"], check=True, capture_output=True)
    else:
        subprocess.run(["openssl", "req", "-new", *key, "-out", f"{stem}.csr"], check=True, capture_output=True)
        subprocess.run(["openssl", "x509", "-req", "-in", f"{stem}.csr", "-CA", f"{ca}.crt", "-CAkey", f"{ca}.key", "-CAcreateserial",
                        "-days", "2", "-extfile", str(config), "-extensions", "x", "-out", f"{stem}.crt"], check=True, capture_output=True)
    return stem


def secret(name, stem):
    b64 = lambda path: base64.b64encode(pathlib.Path(path).read_bytes()).decode()
    return f"""
---
apiVersion: v1
kind: Secret
metadata: {{name: {name}}}
type: kubernetes.io/tls
data: {{tls.crt: {b64(f'{stem}.crt')}, tls.key: {b64(f'{stem}.key')}}}
"""


def config_map(name, path):
    return "\n---\n" + json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
                                   "data": {"ca.crt": pathlib.Path(path).read_text()}}) + "\n"


@pytest.fixture(scope="module")
def grpc_port():
    def unary(request, context):
        context.send_initial_metadata((("x-initial", "i"),))
        context.set_trailing_metadata((("x-trailing", "t"),))
        if request == b"fail":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked: ä")
        return b"echo " + request

    def server_stream(request, context):
        for i in range(5):
            yield b"%d" % i

    def bidi(requests, context):
        for request in requests:
            yield b"<" + request + b">"

    handler = grpc.method_handlers_generic_handler("t.Echo", {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.unary_stream_rpc_method_handler(server_stream),
        "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    })
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None)


@pytest.fixture(scope="module")
def websocket_port():
    def echo(connection):
        for message in connection:
            connection.send(message)

    server = websockets.sync.server.serve(echo, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.socket.getsockname()[1]
    server.shutdown()


def tcp_echo(context=None):
    server = socket.create_server(("127.0.0.1", 0))

    def serve(connection):
        try:
            if context:
                connection = context.wrap_socket(connection, server_side=True)
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.close()
        except OSError:
            pass

    def run():
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()
    return server.getsockname()[1]


@pytest.fixture(scope="module")
def edge(tmp_path_factory, grpc_port, websocket_port, nginx):
    folder = tmp_path_factory.mktemp("streams")
    keys = tmp_path_factory.mktemp("keys")
    ca = certificate(keys, "ca", names=("ca.example",))
    shop = certificate(keys, "shop", ca, names=("shop.example", "*.shop.example"))
    other = certificate(keys, "other", ca, names=("other.example",))
    client = certificate(keys, "client", ca, names=("client.example",), client=True)
    passthrough = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    passthrough.load_cert_chain(f"{other}.crt", f"{other}.key")
    backend = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    backend.load_cert_chain(f"{shop}.crt", f"{shop}.key")
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))

    def udp_echo():
        while True:
            data, peer = udp.recvfrom(65536)
            udp.sendto(b"udp " + data, peer)

    threading.Thread(target=udp_echo, daemon=True).start()
    proxied = Recorder()
    p = {name: free_port() for name in ("http", "https", "mtls", "lax", "tls", "tcp", "pp")} | {"udp": free_udp_port()}
    terminate = lambda ref: {"mode": "Terminate", "certificateRefs": [{"name": ref}]}
    listeners = [
        {"name": "http", "port": p["http"], "protocol": "HTTP"},
        {"name": "https", "port": p["https"], "protocol": "HTTPS", "hostname": "shop.example", "tls": terminate("shop")},
        {"name": "other", "port": p["https"], "protocol": "HTTPS", "hostname": "other.example", "tls": terminate("other")},
        {"name": "mtls", "port": p["mtls"], "protocol": "HTTPS", "tls": terminate("shop")},
        {"name": "lax", "port": p["lax"], "protocol": "HTTPS", "tls": terminate("shop")},
        {"name": "pass", "port": p["tls"], "protocol": "TLS", "hostname": "other.example", "tls": {"mode": "Passthrough"}},
        {"name": "term", "port": p["tls"], "protocol": "TLS", "hostname": "shop.example", "tls": terminate("shop")},
        {"name": "tcp", "port": p["tcp"], "protocol": "TCP"},
        {"name": "udp", "port": p["udp"], "protocol": "UDP"},
        {"name": "pp", "port": p["pp"], "protocol": "HTTP"},
    ]
    gateway = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "edge"},
               "spec": {"gatewayClassName": "selvedge", "listeners": listeners, "tls": {"frontend": {
                   "default": {}, "perPort": [{"port": p[port], "tls": {"validation": {
                       "mode": mode, "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}]}}}
                       for port, mode in (("mtls", "AllowValidOnly"), ("lax", "AllowInsecureFallback"))]}}}}
    l4 = lambda kind, name, section, backend_name, hostnames=None: "\n---\n" + json.dumps({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": name},
        "spec": {"parentRefs": [{"name": "edge", "sectionName": section}], **({"hostnames": hostnames} if hostnames else {}),
                 "rules": [{"backendRefs": [{"name": backend_name, "port": 80}]}]}}) + "\n"
    text = json.dumps(gateway) + secret("shop", shop) + secret("other", other) + config_map("ca", f"{ca}.crt")
    text += service("web", 80, [nginx["v1"]]) + service("grpc", 80, [grpc_port], "kubernetes.io/h2c")
    text += service("ws", 80, [websocket_port], "kubernetes.io/ws") + service("echo", 80, [tcp_echo()])
    text += service("tls-echo", 80, [tcp_echo(passthrough)]) + service("dns", 80, [udp.getsockname()[1]], protocol="UDP")
    text += service("rec", 80, [proxied.port])
    for section in ("http", "https", "mtls", "other"):
        text += route(f"web-{section}", [{"backendRefs": [{"name": "web", "port": 80}]}], section)
        text += route(f"ws-{section}", [{"matches": [{"path": {"type": "PathPrefix", "value": "/ws"}}],
                                         "backendRefs": [{"name": "ws", "port": 80}]}], section)
    text += route("pp", [{"backendRefs": [{"name": "rec", "port": 80}]}], "pp")
    text += route("lax", [{"backendRefs": [{"name": "rec", "port": 80}]}], "lax")
    text += "\n---\n" + json.dumps({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute", "metadata": {"name": "grpc"},
                                    "spec": {"parentRefs": [{"name": "edge", "sectionName": "http"}, {"name": "edge", "sectionName": "https"}],
                                             "rules": [{"matches": [{"method": {"service": "t.Echo"}}],
                                                        "backendRefs": [{"name": "grpc", "port": 80}]}]}}) + "\n"
    text += l4("TCPRoute", "tcp", "tcp", "echo") + l4("UDPRoute", "udp", "udp", "dns")
    text += l4("TLSRoute", "pass", "pass", "tls-echo", ["other.example"]) + l4("TLSRoute", "term", "term", "echo", ["shop.example"])
    text += "\n---\n" + json.dumps({"apiVersion": "selvedge.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": "pp"},
                                    "spec": {"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge",
                                                             "sectionName": "pp"}], "listener": {"proxyProtocol": "Required"}}}) + "\n"
    folder.joinpath("gateway.yaml").write_text(text)
    running = Gateway(folder)
    errors = [d for d in running.status()["diagnostics"] if d["severity"] == "error"]
    assert not errors, errors
    running.ports, running.keys, running.recorder, running.text = p, keys, proxied, text
    yield running
    assert running.stop() == 0


def trusting(edge):
    return ssl.create_default_context(cafile=f"{edge.keys}/ca.crt")


def https(edge, port, host, *args, check=True):
    return curl("--cacert", f"{edge.keys}/ca.crt", "--resolve", f"{host}:{port}:127.0.0.1", *args, f"https://{host}:{port}/", check=check)


@pytest.mark.parametrize("secure", [False, True])
def test_grpc(edge, secure):
    if secure:
        credentials = grpc.ssl_channel_credentials(pathlib.Path(f"{edge.keys}/ca.crt").read_bytes())
        options = [("grpc.ssl_target_name_override", "shop.example"), ("grpc.default_authority", "shop.example")]
        channel = grpc.secure_channel(f"127.0.0.1:{edge.ports['https']}", credentials, options)
    else:
        channel = grpc.insecure_channel(f"127.0.0.1:{edge.ports['http']}")
    with channel:
        unary = channel.unary_unary("/t.Echo/Unary")
        answer, call = unary.with_call(b"hello", timeout=60)
        assert answer == b"echo hello"
        assert ("x-initial", "i") in call.initial_metadata() and ("x-trailing", "t") in call.trailing_metadata()
        with pytest.raises(grpc.RpcError) as failure:
            unary(b"fail", timeout=60)
        assert (failure.value.code(), failure.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "as asked: ä")
        assert list(channel.unary_stream("/t.Echo/Stream")(b"", timeout=60)) == [b"0", b"1", b"2", b"3", b"4"]
        # Both ways at once: an answer comes before the next message is sent.
        asked, told = threading.Semaphore(1), []

        def messages():
            for i in range(5):
                asked.acquire(timeout=60)
                yield b"%d" % i

        for answer in channel.stream_stream("/t.Echo/Bidi")(messages(), timeout=60):
            told.append(answer)
            asked.release()
        assert told == [b"<0>", b"<1>", b"<2>", b"<3>", b"<4>"]
        with pytest.raises(grpc.RpcError) as failure:
            channel.unary_unary("/t.Echo/Missing")(b"", timeout=60)
        assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_websocket(edge):
    with websockets.sync.client.connect(f"ws://127.0.0.1:{edge.ports['http']}/ws") as connection:
        for message in ("text", b"binary" * 10_000):
            connection.send(message)
            assert connection.recv(timeout=60) == message

    # By one thread: where one reads and another one writes the same TLS connection, Python may lose what is written.
    async def over_tls():
        uri = f"wss://shop.example:{edge.ports['https']}/ws"
        async with websockets.connect(uri, host="127.0.0.1", ssl=trusting(edge), open_timeout=60) as connection:
            await connection.send("over TLS")
            assert await connection.recv() == "over TLS"

    asyncio.run(over_tls())


def test_websocket_over_http2(edge):
    import h2.config
    import h2.connection
    import h2.events
    import h2.settings

    with socket.create_connection(("127.0.0.1", edge.ports["http"]), timeout=60) as s:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))
        connection.initiate_connection()
        s.sendall(connection.data_to_send())
        received, done = b"", False
        while connection.remote_settings.enable_connect_protocol != 1:
            connection.receive_data(s.recv(65536))
            s.sendall(connection.data_to_send())
        connection.send_headers(1, [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/ws"),
                                    (":authority", "shop.example"), ("sec-websocket-version", "13")])
        # One masked text frame "hi".
        connection.send_data(1, b"\x81\x82\x00\x00\x00\x00hi")
        s.sendall(connection.data_to_send())
        status = None
        while not done:
            for event in connection.receive_data(s.recv(65536)):
                if isinstance(event, h2.events.ResponseReceived):
                    status = dict(event.headers)[b":status"]
                if isinstance(event, h2.events.DataReceived):
                    received += event.data
                    done = len(received) >= 4
            s.sendall(connection.data_to_send())
        assert (status, received) == (b"200", b"\x81\x02hi")


def test_tls(edge):
    port = edge.ports["https"]
    answer = https(edge, port, "shop.example", "-v", "--http2", "-o", "/dev/null", "-w", "%{http_version} %{http_code}")
    assert answer == "2 200"
    assert https(edge, port, "shop.example", "--tlsv1.2", "--tls-max", "1.2", "-o", "/dev/null", "-w", "%{http_code}") == "200"
    assert https(edge, port, "other.example", "-o", "/dev/null", "-w", "%{http_code}") == "200"
    # Another name than that of the connection: misdirected.
    assert https(edge, port, "shop.example", "-H", "Host: other.example", "-o", "/dev/null", "-w", "%{http_code}") == "421"
    assert https(edge, port, "shop.example", "-H", "Host: nobody.example", "-o", "/dev/null", "-w", "%{http_code}") == "404"
    unknown = subprocess.run(["curl", "-sk", "--resolve", f"x.example:{port}:127.0.0.1", f"https://x.example:{port}/"], capture_output=True)
    assert unknown.returncode == 35


def test_client_certificates(edge):
    port = edge.ports["mtls"]
    with_certificate = ["--cert", f"{edge.keys}/client.crt", "--key", f"{edge.keys}/client.key"]
    code = ["-o", "/dev/null", "-w", "%{http_code}"]
    assert https(edge, port, "shop.example", *with_certificate, *code) == "200"
    assert https(edge, port, "shop.example", *code, check=False) in ("000", "")


def test_backends_are_told_of_valid_certificates_only(edge):
    keys = edge.keys
    stranger = certificate(keys, "stranger", certificate(keys, "another-ca"))
    told = {}
    for name, shown in {"none": None, "valid": f"{keys}/client", "foreign": stranger}.items():
        more = ["--cert", f"{shown}.crt", "--key", f"{shown}.key"] if shown else []
        more += ["-H", "X-Forwarded-Client-Cert: Hash=00;Subject=\"CN=admin\"", "-H", f"x-who: {name}"]
        assert https(edge, edge.ports["lax"], "shop.example", *more) == "ok"
        head = next(part for part in edge.recorder.all().decode().split("\r\n\r\n") if f"x-who: {name}" in part)
        told[name] = [line for line in head.splitlines() if line.startswith("x-forwarded-client-cert")]
    assert told["none"] == told["foreign"] == [], told
    der = ssl.PEM_cert_to_DER_cert(pathlib.Path(f"{keys}/client.crt").read_text())
    assert told["valid"][0].startswith(f"x-forwarded-client-cert: Hash={hashlib.sha256(der).hexdigest()};Subject=\""), told


def test_certificate_reload(edge):
    keys = edge.keys
    context = ssl.create_default_context(cafile=f"{keys}/ca.crt")

    def serial():
        with socket.create_connection(("127.0.0.1", edge.ports["https"])) as s, context.wrap_socket(s, server_hostname="shop.example") as t:
            return t.getpeercert()["serialNumber"]

    connection = http.client.HTTPSConnection("shop.example", edge.ports["https"], context=context)
    connection.sock = context.wrap_socket(socket.create_connection(("127.0.0.1", edge.ports["https"])), server_hostname="shop.example")
    connection.request("GET", "/", headers={"Host": "shop.example"})
    assert connection.getresponse().read()
    before = serial()
    old = secret("shop", keys / "shop")
    new = secret("shop", certificate(keys, "shop2", keys / "ca", names=("shop.example",)))
    write(edge.folder / "gateway.yaml", edge.text.replace(old, new))
    wait_for(lambda: serial() != before, "the new certificate")
    connection.request("GET", "/", headers={"Host": "shop.example"})
    assert connection.getresponse().status == 200, "the old connection goes on"
    write(edge.folder / "gateway.yaml", edge.text)
    wait_for(lambda: serial() == before, "the certificate of before")


def echoed(connection, data):
    connection.sendall(data)
    connection.settimeout(60)
    out = b""
    while len(out) < len(data):
        chunk = connection.recv(65536)
        assert chunk, out
        out += chunk
    return out == data


def test_tcp_and_tls_routes(edge):
    with socket.create_connection(("127.0.0.1", edge.ports["tcp"])) as s:
        assert echoed(s, b"bytes" * 100_000)
        s.shutdown(socket.SHUT_WR)
        assert s.recv(1) == b""
    for name in ("other.example", "shop.example"):
        with socket.create_connection(("127.0.0.1", edge.ports["tls"])) as s, trusting(edge).wrap_socket(s, server_hostname=name) as t:
            assert echoed(t, b"secret" * 1000)


def test_udp(edge):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(60)
        for i in range(3):
            s.sendto(b"%d" % i, ("127.0.0.1", edge.ports["udp"]))
            assert s.recv(100) == b"udp %d" % i


def test_proxy_protocol(edge):
    request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    v1 = b"PROXY TCP4 192.0.2.7 127.0.0.1 1234 80\r\n"
    v2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + socket.inet_aton("192.0.2.8") + socket.inet_aton("127.0.0.1") + struct.pack(">HH", 1, 2)
    assert raw(edge.ports["pp"], v1 + request).startswith(b"HTTP/1.1 200")
    assert raw(edge.ports["pp"], v2 + request).startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 200" not in raw(edge.ports["pp"], request)
    seen = edge.recorder.all().lower()
    assert b"x-forwarded-for: 192.0.2.7" in seen and b"x-forwarded-for: 192.0.2.8" in seen
