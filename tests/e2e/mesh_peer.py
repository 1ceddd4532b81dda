"""Servers beside workloads, one process each: `mesh_peer.py http ADDRESS PORT NAME`, `smtp ADDRESS PORT`,
`lines ADDRESS PORT NAME`, `mysql ADDRESS PORT`, `grpc ADDRESS PORT [NAME]`, `tls ADDRESS PORT CHAIN KEY`, `dns ADDRESS PORT NAME=ADDRESS…`, `health ADDRESS PORT FILE`."""
import base64
import hashlib
import http.server
import json
import pathlib
import socket
import socketserver
import ssl
import sys
import threading
import time
from concurrent import futures


class Http(http.server.BaseHTTPRequestHandler):
    """Tells what it got, as JSON. /slow waits for a second, /slow/N for N; /fail/N fails N times with 503; /ws echoes lines."""

    protocol_version = "HTTP/1.1"
    name = ""
    failures = {}
    lock = threading.Lock()

    def do_GET(self):
        length = int(self.headers.get("content-length", 0))
        self.rfile.read(length)
        if "upgrade" in self.headers.get("connection", "").lower():
            return self.echo()
        status = 200
        if self.path.startswith("/slow"):
            time.sleep(float(self.path.split("/")[2]) if self.path.count("/") > 1 else 1)
        if self.path.startswith("/fail/"):
            with self.lock:
                left = self.failures.setdefault(self.path, int(self.path.split("/")[2]))
                self.failures[self.path] = left - 1
                status = 503 if left > 0 else 200
        headers = {name.lower(): ",".join(self.headers.get_all(name)) for name in self.headers}
        body = json.dumps({"name": self.name, "path": self.path, "method": self.command, "headers": headers}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_DELETE = do_PUT = do_GET

    def echo(self):
        """Not the frames of a WebSocket, only what matters to a proxy: an upgrade, then bytes both ways."""
        self.send_response(101)
        self.send_header("connection", "upgrade")
        self.send_header("upgrade", self.headers["upgrade"])
        key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_header("sec-websocket-accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while line := self.rfile.readline():
            self.wfile.write(line)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def serve_http(address, port, name):
    Http.name = name
    Server.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
    Server((address, port), Http).serve_forever()


class Smtp(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"220 mail.shop ESMTP ready\r\n")
        while line := self.rfile.readline():
            if line.upper().startswith(b"QUIT"):
                self.wfile.write(b"221 bye\r\n")
                return
            self.wfile.write(b"250 heard " + line)


def serve_tls(address, port, chain, key):
    """As `http`, over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    Http.name = "tls"
    server = Server((address, port), Http)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


def serve_dns(address, port, *names):
    """Answers NAME=ADDRESS for A; nothing is known of all else."""
    known = dict(name.split("=") for name in names)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind((address, port))
        while True:
            query, peer = s.recvfrom(4096)
            at, labels = 12, []
            while query[at]:
                labels.append(query[at + 1:at + 1 + query[at]].decode())
                at += 1 + query[at]
            end = at + 5
            found = known.get(".".join(labels).lower()) if query[at + 1:at + 3] == b"\0\1" else None
            answer = b"" if not found else b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4" + socket.inet_aton(found)
            code = 0 if ".".join(labels).lower() in known else 3
            head = query[:2] + bytes([0x81, 0x80 | code, 0, 1, 0, 1 if found else 0, 0, 0, 0, 0])
            s.sendto(head + query[12:end] + answer, peer)


class MySql(socketserver.StreamRequestHandler):
    """Greets by the protocol of MySQL, version 10, and lets everybody in; each command is answered with OK."""

    def handle(self):
        rest = b"8.0.36\0" + bytes([7, 0, 0, 0]) + b"12345678\0" + bytes.fromhex("fff7ff0200ff8115") + bytes(10) + b"123456789012\0"
        self.packet(0, b"\x0a" + rest + b"mysql_native_password\0")
        while head := self.rfile.read(4):
            if self.rfile.read(int.from_bytes(head[:3], "little")) == b"\x01":  # COM_QUIT
                return
            self.packet(head[3] + 1, bytes([0, 0, 0, 2, 0, 0, 0]))

    def packet(self, number, payload):
        self.wfile.write(len(payload).to_bytes(3, "little") + bytes([number]) + payload)


class Lines(socketserver.StreamRequestHandler):
    """Answers each line with the server's name and the line."""

    name = b""

    def handle(self):
        while line := self.rfile.readline():
            self.wfile.write(self.name + b" " + line)


def serve_tcp(address, port, handler):
    socketserver.TCPServer.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
    socketserver.ThreadingTCPServer.allow_reuse_address = socketserver.ThreadingTCPServer.daemon_threads = True
    socketserver.TCPServer.request_queue_size = 128
    socketserver.ThreadingTCPServer((address, port), handler).serve_forever()


def serve_grpc(address, port, name=""):
    import grpc

    def unary(request, context):
        return b"hello " + request

    def stream(request, context):
        for index in range(5):
            yield b"%s %d" % (request, index)

    handlers = {
        "Name": grpc.unary_unary_rpc_method_handler(lambda request, context: name.encode()),
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])
    assert server.add_insecure_port(f"{address}:{port}") == port
    server.start()
    server.wait_for_termination()


def serve_health(address, port, file):
    """grpc.health.v1 of the service `shop`: the file says NOT_SERVING or else it is."""
    import grpc

    def check(request, context):
        if request != b"\x0a\x04shop":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return b"\x08\x02" if pathlib.Path(file).read_text() == "NOT_SERVING" else b"\x08\x01"

    server = grpc.server(futures.ThreadPoolExecutor(2))
    handlers = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)])
    assert server.add_insecure_port(f"{address}:{port}") == port
    server.start()
    server.wait_for_termination()


def call_grpc(target, count=0):
    """A client: prints what it got; with a count, who has answered so many calls."""
    import grpc

    with grpc.insecure_channel(target) as channel:
        if count:
            ask = channel.unary_unary("/test.Echo/Name")
            print(json.dumps([ask(b"", timeout=60).decode() for _ in range(count)]))
            return
        said = channel.unary_unary("/test.Echo/Unary")(b"mesh", timeout=60)
        heard = list(channel.unary_stream("/test.Echo/Stream")(b"part", timeout=60))
    print(json.dumps([said.decode(), *[part.decode() for part in heard]]))


if __name__ == "__main__":
    what, address, *rest = sys.argv[1:]
    if what == "http":
        serve_http(address, int(rest[0]), rest[1])
    elif what == "smtp":
        serve_tcp(address, int(rest[0]), Smtp)
    elif what == "mysql":
        serve_tcp(address, int(rest[0]), MySql)
    elif what == "lines":
        Lines.name = rest[1].encode()
        serve_tcp(address, int(rest[0]), Lines)
    elif what == "tls":
        serve_tls(address, int(rest[0]), *rest[1:])
    elif what == "dns":
        serve_dns(address, int(rest[0]), *rest[1:])
    elif what == "grpc":
        serve_grpc(address, int(rest[0]), *rest[1:])
    elif what == "health":
        serve_health(address, int(rest[0]), rest[1])
    else:
        call_grpc(address, *map(int, rest))
