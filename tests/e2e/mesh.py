"""A mesh of real processes: a control plane with its own CA, and a proxy beside each workload.

In network namespaces (root) connections are captured, and nothing of the host's network is touched: the bridge between the
namespaces is in a namespace too. On loopback (anybody) each workload has an address of 127/8 for itself, and clients use
their proxy as an HTTP proxy.
"""
import contextlib
import ctypes
import http.client
import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

from conftest import BIN, free_port, wait_for

ENV = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
PEER = pathlib.Path(__file__).with_name("mesh_peer.py")
DOMAIN = "mesh.example"
NUMBERS = itertools.count(1)


def sh(line, check=True):
    done = subprocess.run(line.split(), capture_output=True, text=True, env=ENV)
    assert not check or done.returncode == 0, f"{line}: {done.stderr}"
    return done


def why_not():
    """Why there are no network namespaces here; None when there are."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"sv-e2e-{os.getpid()}-try"
    made = sh(f"ip netns add {name}", check=False)
    sh(f"ip netns del {name}", check=False)
    return None if made.returncode == 0 else f"no network namespaces here: {made.stderr.strip()}"


def inside(space, work):
    """What `work` returns, done in a network namespace (None: here) by a thread of its own."""
    if space is None:
        return work()
    result = []

    def run():
        try:
            enter(space)
            result.append((work(), None))
        except BaseException as error:
            result.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    value, error = result[0]
    if error is not None:
        raise error
    return value


def enter(space):
    """Moves this thread into a network namespace."""
    if space is None:
        return
    with open(f"/run/netns/{space}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {space}")


def listening(space, address, port, protocol="tcp"):
    """Whether somebody listens there; nobody notices that it was asked."""

    def look():
        tables = [pathlib.Path(f"/proc/thread-self/net/{name}") for name in (protocol, f"{protocol}6")]
        return [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]

    # Of IPv6 the last word, in which an IPv4 address may be. The words are as the machine has them.
    place = "" if ":" in address or address == "0.0.0.0" else f"{int.from_bytes(socket.inet_aton(address), sys.byteorder):08X}"
    wanted = {"tcp": "0A", "udp": "07"}[protocol]
    sockets = [(*fields[1].split(":"), fields[3]) for fields in inside(space, look)]
    return any(host.endswith(place) and int(at, 16) == port and state == wanted for host, at, state in sockets)


class Loopback:
    """Everything on addresses of 127/8 that nobody else uses."""

    captured = False

    def __init__(self):
        while True:
            self.prefix = f"127.{64 + os.getpid() % 128}.{next(NUMBERS) % 256}"
            with contextlib.suppress(OSError):
                # Another run may be counting here too.
                self.claim = socket.create_server((f"{self.prefix}.1", 15999))
                break
        self.control = f"{self.prefix}.1"
        self.names = {}

    def add(self, name):
        self.names[name] = f"{self.prefix}.{len(self.names) + 2}"

    def space(self, _name):
        return None

    def address(self, name):
        return self.names[name]

    def close(self):
        self.claim.close()


class Spaces:
    """A network namespace per workload, and one with the bridge and the control plane: 10.99.0.0/16 and fd99::/64."""

    captured = True
    control = "10.99.0.1"

    def __init__(self):
        self.base = f"sv-e2e-{os.getpid()}-{next(NUMBERS)}"
        self.names = {}
        self.hub = f"{self.base}-hub"
        try:
            sh(f"ip netns add {self.hub}")
            for line in ["link set lo up", "link add br0 type bridge", "link set br0 up",
                         "address add 10.99.0.1/16 dev br0", "address add fd99::1/64 dev br0 nodad"]:
                sh(f"ip -n {self.hub} {line}")
        except BaseException:
            self.close()
            raise

    def add(self, name):
        number = len(self.names) + 10
        self.names[name] = number
        space, cable = self.space(name), f"v{number}"
        sh(f"ip netns add {space}")
        sh(f"ip -n {self.hub} link add {cable} type veth peer name eth0 netns {space}")
        sh(f"ip -n {self.hub} link set {cable} master br0")
        sh(f"ip -n {self.hub} link set {cable} up")
        # Service addresses are nobody's: the kernel wants a route before it redirects.
        for line in ["link set lo up", "link set eth0 up", f"address add 10.99.0.{number}/16 dev eth0",
                     f"address add fd99::{number}/64 dev eth0 nodad", "route add default via 10.99.0.1",
                     "-6 route add default via fd99::1"]:
            sh(f"ip -n {space} {line}")

    def space(self, name):
        return self.hub if name is None else f"{self.base}-{name}"

    def address(self, name):
        return f"10.99.0.{self.names[name]}"

    def cable(self, name, state):
        """Pulls the cable of a workload, or plugs it in: "down", "up"."""
        sh(f"ip -n {self.hub} link set v{self.names[name]} {state}")

    def close(self):
        for name in [*self.names, None]:
            sh(f"ip netns del {self.space(name)}", check=False)


class Mesh:
    def __init__(self, folder, net, *control_args, ttl="24h", domain=DOMAIN):
        self.folder, self.net, self.control_args, self.ttl, self.domain = pathlib.Path(folder), net, control_args, ttl, domain
        self.running, self.proxies, self.http_proxies = [], {}, {}
        self.port, self.admin = (15012, 15014) if net.captured else (free_port(), free_port())
        self.state = self.folder / "control.state"
        (self.folder / "conf").mkdir()
        self.write("mesh", mesh_resource(trustDomain=domain))
        self.start_control()

    # Processes

    def spawn(self, name, where, *command, **kwargs):
        space = self.net.space(where)
        prefix = ["ip", "netns", "exec", space] if space else []
        with open(self.folder / f"{name}.log", "ab") as out:
            process = subprocess.Popen(
                [*prefix, *map(str, command)], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=ENV, **kwargs)
        self.running.append(process)
        return process

    def start_control(self):
        self.control = self.spawn(
            "control", None, BIN, "control", "-f", self.folder / "conf", "--state", self.state, "--trust-domain", self.domain,
            "--listen", f"{self.net.control}:{self.port}", "--admin", f"{self.net.control}:{self.admin}",
            "--svid-ttl", self.ttl, *self.control_args)
        wait_for(lambda: self.ask("ca", "show").returncode == 0, f"the control plane answering; {self.folder}/control.log")
        return self.control

    def proxy(self, name, *args, account=None, namespace="shop", workload=True, wait=True, token=True):
        """Starts the proxy beside a workload, with a token at its first start."""
        account = f"{namespace}/{account or name}"
        where = ["--capture"]
        if not self.net.captured:
            port = self.http_proxies.setdefault(name, free_port())
            where = ["--hbone", f"{self.net.address(name)}:15008", "--http-proxy", f"127.0.0.1:{port}"]
        file = self.folder / f"{name}.token"
        if token and not file.exists():
            file.write_text(self.token(account))
        admin = ("127.0.0.1", 15000 if self.net.captured else free_port())
        more = ["--workload", f"{namespace}/{name}"] if workload else []
        process = self.spawn(
            name, name, BIN, "proxy", "--control", f"https://{self.net.control}:{self.port}", "--role", "sidecar", "--id", name,
            "--identity", account, "--trust-domain", self.domain, "--join-token-file", file, "--workers", 1,
            "--state", self.folder / f"{name}.state", "--admin", f"{admin[0]}:{admin[1]}", *more, *where, *args)
        process.admin = admin
        self.proxies[name] = process
        if wait:
            wait_for(lambda: self.admin_get(name, "/ready"), f"proxy {name} being ready; {self.folder}/{name}.log")
        return process

    def peer(self, name, *args, label=None):
        """A server of mesh_peer.py beside a workload (None: the control plane), when it listens."""
        label, (kind, address, port, *_) = label or f"{name}-app", args
        process, place = self.spawn(label, name, sys.executable, PEER, *args), (address, port, "udp" if kind == "dns" else "tcp")
        wait_for(lambda: process.poll() is not None or listening(self.net.space(name), *place), f"{label} listening on {place}")
        assert process.poll() is None, self.log(label)
        return process

    def run(self, where, *command, check=True, timeout=100, **kwargs):
        space = self.net.space(where)
        prefix = ["ip", "netns", "exec", space] if space else []
        done = subprocess.run(
            [*prefix, *map(str, command)], capture_output=True, text=True, timeout=timeout, env=ENV, **kwargs)
        assert not check or done.returncode == 0, f"{command}: {done.returncode} {done.stdout} {done.stderr}"
        return done

    def ask(self, *args):
        """`selvedge ca`, `selvedge token` at the control plane."""
        command = [BIN, *map(str, args), "--state", str(self.state)]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    def token(self, account, *args):
        """For `account` of namespace `shop`, or NAMESPACE/ACCOUNT."""
        account = account if "/" in account else f"shop/{account}"
        made = self.ask("token", "create", "--identity", account, *args)
        assert made.returncode == 0, made.stderr
        return made.stdout

    def kill(self, process, how=signal.SIGKILL):
        process.send_signal(how)
        return process.wait(40)

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self):
        for process in self.running:
            if process.poll() is None:
                process.kill()
        for process in self.running:
            process.wait()
        self.net.close()

    # Resources

    def write(self, name, text):
        """As an editor does it: never half of a file."""
        new = self.folder / "conf" / f".{name}.new"
        new.write_text(text)
        new.rename(self.folder / "conf" / f"{name}.yaml")

    def remove(self, name):
        (self.folder / "conf" / f"{name}.yaml").unlink(missing_ok=True)

    def settle(self):
        """Waits until the control plane has read all that was written before, and its proxies serve what follows from it."""
        mark = f"settled-{next(NUMBERS)}"
        # Every proxy beside a workload of this namespace is told of it.
        self.write("settled", f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{settled: {mark}}}}}\n")
        wait_for(lambda: mark in self.get(None, self.net.control, self.admin, "/config"), "the control plane reading its files")
        names = [name for name, process in self.proxies.items() if process.poll() is None]
        # What the control plane has read it passes on a moment later: until then all seem to be in sync.
        for name in names:
            wait_for(lambda: mark in self.admin_get(name, "/config"), f"{name} serving what was read")
        self.in_sync(*names)

    # Looking

    def status(self):
        done = self.run(None, BIN, "status", "--json", "--control", f"{self.net.control}:{self.admin}", check=False)
        return {node["id"]: node for node in json.loads(done.stdout)} if done.stdout.strip() else {}

    def in_sync(self, *names):
        def so():
            nodes = self.status()
            return all(nodes.get(name, {}).get("state") in ("in_sync", "errors") for name in names)

        wait_for(so, f"{names} in sync")

    def admin_get(self, name, path):
        return self.get(name, *self.proxies[name].admin, path)

    def get(self, where, host, port, path):
        def get():
            with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=30) as answer:
                return answer.read().decode()

        return inside(self.net.space(where), get)

    def metric(self, name, metric, *parts):
        """Sum of the samples of a metric whose labels contain all of `parts`."""
        lines = self.admin_get(name, "/metrics").splitlines()
        fits = lambda line: line.split("{")[0].split(" ")[0] == metric and all(part in line for part in parts)
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if fits(line))

    def curl(self, name, *args, check=False, timeout=60):
        proxy = [] if self.net.captured else ["-x", f"http://127.0.0.1:{self.http_proxies[name]}"]
        return self.run(name, "curl", "-sS", "--max-time", timeout, *proxy, *args, check=check)

    def code(self, name, *args):
        """The status that curl gets; 000 without an answer."""
        return self.curl(name, "-o", "/dev/null", "-w", "%{http_code}", *args).stdout

    def says(self, name, *args):
        """What a server of mesh_peer.py saw, which it tells as JSON."""
        return json.loads(self.curl(name, *args, check=True).stdout)

    def upgraded(self, name, host):
        """A connection on loopback that a server of mesh_peer.py echoes lines on, for as long as it lives."""
        s = socket.create_connection(("127.0.0.1", self.http_proxies[name]), timeout=60)
        s.sendall(f"GET http://{host}/ws HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
                  "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += (data := s.recv(4096))
            assert data, head
        assert b" 101 " in head, head
        return s

    def load(self, name, host, port=80, threads=2, address=None):
        proxy = None if self.net.captured else ("127.0.0.1", self.http_proxies[name])
        return Load(self.net.space(name), proxy or (address, port), host, proxy is not None, threads)


class Load:
    """Requests one after the other on a few connections, until it is stopped: how many went well, and what did not. An answer of
    mesh_peer.py to another request did not."""

    def __init__(self, space, to, host, absolute, threads):
        self.space, self.to, self.host, self.absolute = space, to, host, absolute
        self.done, self.failed, self.ending = 0, [], False
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def run(self):
        enter(self.space)
        connection = None
        while not self.ending:
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(*self.to, timeout=60)
                path = f"/load?{next(NUMBERS)}"
                connection.request("GET", f"http://{self.host}{path}" if self.absolute else path, headers={"host": self.host})
                answer = connection.getresponse()
                body = answer.read()
                if answer.status == 200 and json.loads(body).get("path", path) == path:
                    self.done += 1
                else:
                    self.failed.append((time.strftime("%T"), answer.status, body[:200], answer.getheader("x-selvedge-flags")))
                if answer.will_close:
                    connection = connection.close()
            except Exception as error:
                self.failed.append((time.strftime("%T"), repr(error)))
                connection = connection and connection.close()
            time.sleep(0.005)

    def more(self, count, seconds=60):
        goal = self.done + count
        wait_for(lambda: self.done >= goal, f"{count} more requests (failed: {self.failed[:5]})", seconds)

    def stop(self):
        self.ending = True
        for thread in self.threads:
            thread.join(70)
        return self

    def none_failed(self):
        self.stop()
        assert self.done > 0 and not self.failed, f"{len(self.failed)} failed, {self.done} went well: {self.failed[:10]}"


class Wire:
    """Every frame that passes the bridge."""

    def __init__(self, net):
        def listen():
            return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))

        self.socket = inside(net.hub, listen)
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE: no frame may be left out
        self.socket.settimeout(0.1)
        self.bytes, self.ending = bytearray(), False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while True:
            # What had passed when the end was asked for is in the socket by then.
            last = self.ending
            try:
                self.bytes += self.socket.recv(70_000)
            except TimeoutError:
                if last:
                    return

    def stop(self):
        self.ending = True
        self.thread.join()
        self.socket.close()
        return bytes(self.bytes)


# Resources


def mesh_resource(mode="Permissive", **more):
    spec = {"trustDomain": DOMAIN, "mtls": {"mode": mode}, **more}
    return f"apiVersion: selvedge.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: default}}\nspec: {json.dumps(spec)}\n"


def resource(kind, name, spec, labels=None, api="selvedge.dev/v1alpha1", namespace="shop"):
    metadata = {"name": name, "namespace": namespace, "labels": labels or {}}
    return "---\n" + json.dumps({"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}) + "\n"


def workload(name, addresses, ports, app=None, account=None, namespace="shop", **more):
    addresses = [addresses] if isinstance(addresses, str) else addresses
    spec = {"addresses": addresses, "serviceAccount": account or name, "ports": ports, **more}
    return resource("Workload", name, spec, {"app": app or name, "name": name}, namespace=namespace)


def service(name, port, target, selector, ip=None, app_protocol=None, ips=None):
    entry = {"name": "main", "port": port, "targetPort": target}
    if app_protocol:
        entry["appProtocol"] = app_protocol
    spec = {"selector": selector, "ports": [entry]}
    if ip:
        spec |= {"clusterIP": ip, "clusterIPs": ips or [ip]}
    return resource("Service", name, spec, api="v1")


def route(name, rules, service, kind="HTTPRoute", namespace="shop", **spec):
    parent = {"group": "", "kind": "Service", "name": service, "namespace": "shop"}
    return resource(
        kind, name, {"parentRefs": [parent], "rules": rules, **spec}, api="gateway.networking.k8s.io/v1", namespace=namespace)
