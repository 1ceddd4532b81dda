"""Real servers behind a real gateway: nginx, grpcio, Python WebSockets, raw sockets; curl in front.

SELVEDGE_BIN names the binary (default: target/debug/selvedge). Everything listens on loopback, on ports that the
kernel chose.
"""
import contextlib
import json
import math
import os
import pathlib
import random
import re
import resource
import shutil
import socket
import subprocess
import threading
import time
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = os.environ.get("SELVEDGE_BIN", str(ROOT / "target/debug/selvedge"))
RESERVED = []

# Ports that are kept, and the servers of all tests.
with contextlib.suppress(ValueError, OSError):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536) if most >= 0 else 65_536, most))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """Where nothing may be missing, as in CI, a test that is left out has failed."""
    report = (yield).get_result()
    if report.skipped and os.environ.get("SELVEDGE_TEST_ALL"):
        report.outcome = "failed"
        report.longrepr = f"left out, although SELVEDGE_TEST_ALL is set: {report.longrepr}"


def free_port():
    """A port of all addresses for whoever asks for it by its number: the kernel gives it to nobody else while this process
    lives. It refuses connections until somebody listens."""
    while True:
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        reserved = socket.socket(family)
        # Who listens must say the same, as servers do.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        reserved.bind(("", 0))
        port = reserved.getsockname()[1]
        with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            try:
                datagrams.bind(("127.0.0.1", port))
            except OSError:  # somebody's UDP
                continue
        RESERVED.append(reserved)
        return port


def free_udp_port():
    """A port for a server of datagrams. Nobody can keep one for another process, so it is none of those that the kernel gives
    to whoever asks for any; and other runs leave it alone, since its TCP is listened on here."""
    first = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while first > 20_100:
        port = random.randrange(20_000, first)
        with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            RESERVED.append(socket.create_server(("127.0.0.1", port)))
            datagrams.bind(("127.0.0.1", port))
            return port
    return free_port()


def by_chance(count, share, total):
    """Whether `count` of `total` may have come by chance where each comes with probability `share`; what is farther off
    comes once in 10^11 times (Chernoff's bound)."""
    found = count / total
    apart = sum(p * math.log(p / q) for p, q in ((found, share), (1 - found, 1 - share)) if p > 0)
    return total * apart < 26


def wait_for(check, what, seconds=60):
    end = time.monotonic() + seconds
    last = None
    while time.monotonic() < end:
        try:
            found = check()
            if found:
                return found
        except Exception as error:  # not there yet
            last = error
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {seconds} s: {last}")


def write(path, text):
    """As an editor does it: whoever reads it finds the old text or the new one, and never half of one."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.rename(path)


def whole_lines(file):
    """The lines of a log. The last one is left out while it is being written."""
    return file.read_text().split("\n")[:-1] if file.exists() else []


def can_connect(port):
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


class Gateway:
    """A running `selvedge run` on a folder of its own."""

    def __init__(self, folder, *args, hosts=None):
        self.folder = pathlib.Path(folder)
        self.admin = free_port()
        self.log = open(self.folder.parent / f"{self.folder.name}.log", "wb")
        command = [BIN, "run", "-f", str(self.folder), "--admin", f"127.0.0.1:{self.admin}", "--no-state", *map(str, args)]
        if hosts:
            # In a mount namespace of its own, with this file as /etc/hosts.
            command = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts), *command]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        wait_for(lambda: self.get("/ready"), "the gateway being ready")

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=30) as answer:
            return answer.read().decode()

    def status(self):
        return json.loads(self.get("/status"))

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()
        return self.process.returncode


def service(name, port, target_ports, app_protocol=None, protocol="TCP"):
    """A Service with one EndpointSlice per target port."""
    app = f", appProtocol: {app_protocol}" if app_protocol else ""
    text = f"""
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  ports: [{{name: main, port: {port}, protocol: {protocol}{app}}}]
"""
    for index, target in enumerate(target_ports):
        text += f"""---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-{index}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
endpoints: [{{addresses: [127.0.0.1]}}]
ports: [{{name: main, port: {target}, protocol: {protocol}}}]
"""
    return text


def route(name, rules, listener="http", hostnames=None):
    hosts = f"\n  hostnames: {json.dumps(hostnames)}" if hostnames else ""
    return f"""
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}}}
spec:
  parentRefs: [{{name: edge, sectionName: {listener}}}]{hosts}
  rules: {json.dumps(rules)}
"""


def curl(*args, check=True, timeout=70):
    done = subprocess.run(["curl", "-sS", "--max-time", "60", *map(str, args)], capture_output=True, timeout=timeout)
    if check:
        assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(errors="replace")


def raw(port, data, seconds=60, quiet=60):
    """Sends bytes and returns everything that comes back until the connection closes, or nothing comes for `seconds` at first,
    and then for `quiet`."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as s:
        s.sendall(data)
        out = b""
        try:
            while chunk := s.recv(65536):
                out += chunk
                s.settimeout(quiet)
        except (TimeoutError, ConnectionResetError):
            pass
        return out


def one_answer(stream):
    """Head and body (with a length) of the next answer, read off a connection's file; empty at its end."""
    head = b""
    while (line := stream.readline()) not in (b"\r\n", b""):
        head += line
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return head, stream.read(int(length[1])) if length else b""


class Recorder:
    """A raw TCP backend: keeps every byte it receives, and answers each complete request with 200."""

    def __init__(self, address="127.0.0.1"):
        self.socket = socket.create_server((address, 0))
        self.port = self.socket.getsockname()[1]
        # By connection, and in the order of arrival.
        self.received, self.arrived, self.lock = [], [], threading.Lock()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with self.lock:
            index = len(self.received)
            self.received.append(b"")
        begun = b""
        with connection, contextlib.suppress(OSError):
            while chunk := connection.recv(65536):
                with self.lock:
                    self.received[index] += chunk
                    self.arrived.append(chunk)
                begun += chunk
                while (rest := after_request(begun)) is not None:
                    begun = rest
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def all(self):
        with self.lock:
            return b"".join(self.arrived)

    def forget(self):
        with self.lock:
            self.arrived.clear()


def after_request(data):
    """What follows the first request, as a gateway writes it; None: it is not complete."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        while True:
            size, end, rest = rest.partition(b"\r\n")
            length = int(size.split(b";")[0], 16) if end else 0
            if not end or len(rest) < length + 2:
                return None
            rest = rest[length + 2:]
            if length == 0:
                return rest
    length = int(fields.get(b"content-length", 0))
    return rest[length:] if len(rest) >= length else None


@pytest.fixture(scope="session")
def nginx(tmp_path_factory):
    """Three nginx servers that say who they are and what they got."""
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    folder = tmp_path_factory.mktemp("nginx")
    ports = {name: free_port() for name in ("v1", "v2", "fail")}
    big = folder / "big.bin"
    big.write_bytes(b"x" * 1_000_000)
    servers = ""
    for name, port in ports.items():
        status = 503 if name == "fail" else 200
        servers += f"""
  server {{
    listen 127.0.0.1:{port};
    location / {{
      default_type application/json;
      add_header X-Backend {name};
      return {status} '{{"backend":"{name}","uri":"$request_uri","host":"$http_host","x_set":"$http_x_set","x_added":"$http_x_added","x_removed":"$http_x_removed","xff":"$http_x_forwarded_for","connection":"$http_connection","traceparent":"$http_traceparent","request_id":"$http_x_request_id"}}\\n';
    }}
    location /text {{ default_type text/plain; alias {folder}/text.txt; }}
    location /big {{ default_type application/octet-stream; alias {big}; }}
    location /upload {{ client_max_body_size 0; proxy_pass http://127.0.0.1:{ports['v1']}/got; }}
  }}"""
    (folder / "text.txt").write_text("a line that compresses well\n" * 1000)
    (folder / "nginx.conf").write_text(
        f"user root; daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1; events {{ worker_connections 4096; }}\n"
        f"http {{ access_log off; client_max_body_size 0; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};"
        f" uwsgi_temp_path {folder}; scgi_temp_path {folder}; keepalive_requests 1000000; {servers} }}\n"
    )
    process = subprocess.Popen([binary, "-c", str(folder / "nginx.conf"), "-p", str(folder)])
    for port in ports.values():
        wait_for(lambda: can_connect(port), "nginx listening")
    yield ports
    process.terminate()
    process.wait()
