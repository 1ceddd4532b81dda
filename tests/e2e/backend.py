"""A small HTTP/1.1 backend whose handlers write raw bytes, so that it can also misbehave; and builders for resources."""
import concurrent.futures
import json
import socket
import ssl
import threading
import time

from conftest import route, service, wait_for


class Request:
    def __init__(self, method, target, headers, body, trailers):
        self.method, self.target, self.headers, self.body, self.trailers = method, target, headers, body, trailers

    def header(self, name):
        return [v for n, v in self.headers if n == name]


def read_request(stream, connection=None):
    """One request, or None at the end of the connection."""
    line = stream.readline()
    if not line:
        return None
    method, target, _ = line.decode("latin1").split(" ", 2)
    headers = read_fields(stream)
    values = dict(headers)
    body, trailers = b"", []
    if values.get("expect") == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if values.get("transfer-encoding") == "chunked":
        while size := int(stream.readline().split(b";")[0], 16):
            body += stream.read(size)
            stream.readline()
        trailers = read_fields(stream)
    else:
        body = stream.read(int(values.get("content-length", 0)))
    return Request(method, target, headers, body, trailers)


def read_fields(stream):
    fields = []
    while (line := stream.readline()) not in (b"\r\n", b"\n", b""):
        name, value = line.decode("latin1").split(":", 1)
        fields.append((name.lower(), value.strip()))
    return fields


def answer(body, status="200 OK", **headers):
    if isinstance(body, (dict, list)):
        body = json.dumps(body)
    body = body.encode() if isinstance(body, str) else body
    lines = "".join(f"{n.replace('_', '-')}: {v}\r\n" for n, v in headers.items())
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body


class Backend:
    """Serves each connection in a thread: `handle(backend, request, connection)` returns bytes to send, or None to close."""

    def __init__(self, name, handle=None, context=None, preface=0, host="127.0.0.1", port=0):
        self.name, self.handle, self.context, self.preface = name, handle, context, preface
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.create_server((host, port), family=family, backlog=512)
        self.port = self.socket.getsockname()[1]
        self.requests, self.connections, self.closed, self.prefaces = [], 0, 0, []
        self.state, self.gate = {}, threading.Event()
        self.lock = threading.Lock()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with self.lock:
                self.connections += 1
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        try:
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
            stream = connection.makefile("rb")
            if self.preface:
                first = stream.read(16) if self.preface == 2 else stream.readline()
                if self.preface == 2:
                    first += stream.read(int.from_bytes(first[14:16], "big"))
                self.prefaces.append(first)
            while request := read_request(stream, connection):
                with self.lock:
                    self.requests.append(request)
                out = self.handle(self, request, connection) if self.handle else echo(self, request, connection)
                if out is None:
                    break
                connection.sendall(out)
        except (OSError, ValueError):
            pass
        finally:
            with self.lock:
                self.closed += 1
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            connection.close()

    def close(self):
        """Nobody listens any more."""
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def targets(self, prefix):
        with self.lock:
            return [r for r in self.requests if r.target.startswith(prefix)]


def echo(backend, request, _):
    seen = {"backend": backend.name, "method": request.method, "target": request.target, "headers": request.headers,
            "length": len(request.body), "trailers": request.trailers}
    return answer(seen, content_type="application/json")


def sleeping(seconds):
    def handle(backend, request, connection):
        time.sleep(seconds)
        return echo(backend, request, connection)
    return handle


def stuck(backend, request, connection):
    """Never answers: it waits until its client has closed the connection."""
    connection.recv(1)
    return None


def held(backend, request, connection):
    """Answers once the test opens the gate."""
    backend.gate.wait(60)
    return echo(backend, request, connection)


def refused_while_held(backend, ask, count):
    """The answers to `count` requests at a time; the one that the backend holds is let through last."""
    backend.gate.clear()
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(ask) for _ in range(count)]
        try:
            wait_for(lambda: sum(one.done() for one in asked) == count - 1, "the others being answered")
            asked.sort(key=lambda one: not one.done())
        finally:
            backend.gate.set()
        return [one.result() for one in asked]


def policy(name, kind, target, spec, section=None):
    group = {"Service": "", "Gateway": "gateway.networking.k8s.io"}.get(kind, "gateway.networking.k8s.io")
    ref = {"group": group, "kind": kind, "name": target, **({"sectionName": section} if section else {})}
    return "\n---\n" + json.dumps({"apiVersion": "selvedge.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": name},
                                   "spec": {"targetRefs": [ref], **spec}}) + "\n"


def simple(name, backend, listener="http", spec=None, **rule):
    """A route for the path /NAME, with a policy of its own when `spec` is given."""
    refs = backend if isinstance(backend, list) else [{"name": backend, "port": 80}]
    rules = [{"matches": [{"path": {"type": "PathPrefix", "value": f"/{name}"}}], **({"backendRefs": refs} if refs else {}), **rule}]
    key = name.lower()
    return route(key, rules, listener) + (policy(key, "HTTPRoute", key, spec) if spec else "")


def gateway_resource(listeners, **spec):
    return json.dumps({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "edge"},
                       "spec": {"gatewayClassName": "selvedge", "listeners": listeners, **spec}}) + "\n"


def backend_service(name, backends, spec=None, app_protocol=None):
    text = service(name, 80, [b if isinstance(b, int) else b.port for b in backends], app_protocol)
    return text + (policy(f"svc-{name}", "Service", name, spec) if spec else "")
