"""Identities end to end: a control plane with its own CA, a proxy that joins with a token, the SPIFFE Workload API with the
client from PyPI, rotation, revocation, and curl with an SVID."""
import contextlib
import datetime
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import pytest
from conftest import BIN, free_port, wait_for
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from spiffe import WorkloadApiClient
from spiffe.workloadapi.errors import FetchX509SvidError, WorkloadApiError

ID = "spiffe://mesh.example/ns/shop/sa/orders"


def path_of(socket):
    return f"unix:{socket}"


class Fleet:
    """`selvedge control` with a CA whose certificates live for seconds, and proxies that join."""

    def __init__(self, folder, *control_args, ttl="10s"):
        self.folder, self.control_args = folder, control_args
        self.state = folder / "control"
        self.port = free_port()
        self.ttl = ttl
        self.running = []
        (folder / "resources").mkdir()
        (folder / "resources/shop.yaml").write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
        self.control = self.start_control()

    def start(self, name, *args, **kwargs):
        log = self.folder / f"{name}.log"
        with open(log, "ab") as out:
            process = subprocess.Popen([BIN, *map(str, args)], stdout=out, stderr=out, **kwargs)
        self.running.append(process)
        return process

    def start_control(self):
        control = self.start(
            "control", "control", "-f", self.folder / "resources", "--state", self.state, "--admin", "off",
            "--listen", f"127.0.0.1:{self.port}", "--trust-domain", "mesh.example", "--svid-ttl", self.ttl,
            *self.control_args,
        )
        wait_for(lambda: self.ask("ca", "show").returncode == 0, "the control plane answering")
        return control

    def ask(self, *args):
        command = [BIN, *args, "--state", str(self.state)]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    def token(self, *args):
        made = self.ask("token", "create", "--identity", "shop/orders", *args)
        assert made.returncode == 0, made.stderr
        file = self.folder / f"token-{time.monotonic_ns()}"
        file.write_text(made.stdout)
        return file

    def proxy(self, name, token, *args, trust_domain=None, control=None):
        """`token`: a file with one, or what is given in its place."""
        socket = self.folder / f"{name}.sock"
        more = ["--trust-domain", trust_domain] if trust_domain else []
        proof = token if isinstance(token, list) else ["--join-token-file", token]
        self.start(
            name, "proxy", "--control", f"https://127.0.0.1:{control or self.port}", "--role", "sidecar", "--workload", "shop/orders",
            "--identity", "shop/orders", *proof, "--workload-api", socket, "--admin", "off",
            "--state", self.folder / name, *more, *args,
        )
        wait_for(socket.exists, "the Workload API")
        return socket

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def stop(self):
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.stop()


def svid(socket):
    with WorkloadApiClient(path_of(socket)) as client:
        return client.fetch_x509_svid()


def test_the_pypi_client_fetches_and_is_told_of_each_rotation(fleet):
    socket = fleet.proxy("proxy", fleet.token())
    first = wait_for(lambda: svid(socket), "the first SVID")
    assert str(first.spiffe_id) == ID
    assert len(first.cert_chain) == 2
    contexts, failures = [], []
    with WorkloadApiClient(path_of(socket)) as client:
        watch = client.stream_x509_contexts(contexts.append, failures.append)
        wait_for(lambda: len(contexts) >= 4, "three rotations being pushed", 90)
        watch.cancel()
        bundles = client.fetch_x509_bundles()
        roots = bundles.get_bundle_for_trust_domain(first.spiffe_id.trust_domain).x509_authorities
        assert len(roots) == 1
        with pytest.raises(WorkloadApiError) as refused:
            client.fetch_jwt_svid(audience={"anybody"})
        assert "only X.509" in str(refused.value)
    assert not failures, failures
    serials = [context.default_svid.leaf.serial_number for context in contexts]
    assert len(set(serials)) == len(serials)
    keys = {context.default_svid.private_key.private_numbers().private_value for context in contexts}
    assert len(keys) == len(contexts), "each certificate has a key of its own"


def test_without_the_header_and_for_other_users_there_is_nothing(fleet):
    grpc = pytest.importorskip("grpc")
    socket = fleet.proxy("proxy", fleet.token(), "--workload-api-user", "65534=shop/orders")
    wait_for(lambda: "a new certificate is in use" in fleet.log("proxy"), "the first SVID")
    with grpc.insecure_channel(path_of(socket)) as channel:
        fetch = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")
        with pytest.raises(grpc.RpcError) as refused:
            next(fetch(b"", timeout=60))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    if os.getuid() != 65534:
        with pytest.raises(FetchX509SvidError) as refused:
            svid(socket)
        assert "is not named" in str(refused.value)


def test_tokens_say_what_is_wrong_with_them(fleet):
    token = fleet.token()
    fleet.proxy("first", token)
    wait_for(lambda: "a new certificate is in use" in fleet.log("first"), "the first SVID")
    fleet.proxy("second", token)
    wait_for(lambda: "was used already" in fleet.log("second"), "the refusal of a used token")
    short = fleet.token("--ttl", "1s")
    time.sleep(1.1)
    fleet.proxy("third", short)
    wait_for(lambda: "expired" in fleet.log("third"), "the refusal of an expired token")
    damaged = fleet.folder / "damaged"
    text = token.read_text().strip()
    damaged.write_text(text[:20] + ("A" if text[20] != "A" else "B") + text[21:])
    done = subprocess.run(
        [BIN, "proxy", "--control", f"https://127.0.0.1:{fleet.port}", "--role", "sidecar", "--workload", "shop/orders",
         "--identity", "shop/orders", "--join-token-file", damaged, "--no-state", "--admin", "off"],
        capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "copy it again" in done.stderr
    (fleet.folder / "other").mkdir()
    other = Fleet(fleet.folder / "other")
    try:
        token = other.token()
        other.port = fleet.port
        other.proxy("stranger", token)
        wait_for(lambda: "is not the one of the join token" in other.log("stranger"), "another control plane being refused")
    finally:
        other.stop()


class Slow:
    """Passes connections on, and holds back what the server says for a while."""

    def __init__(self, port, pause):
        self.port, self.pause = port, pause
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.port))
            threading.Thread(target=self.copy, args=(client, server, 0), daemon=True).start()
            threading.Thread(target=self.copy, args=(server, client, self.pause), daemon=True).start()

    @staticmethod
    def copy(source, to, pause):
        try:
            while data := source.recv(65536):
                time.sleep(pause)
                to.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, to):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.listener.close()


def test_a_proxy_killed_while_it_joins_has_not_lost_its_token(fleet):
    token = fleet.token()
    slow = Slow(fleet.port, 1.5)
    used = lambda: "1/1" in fleet.ask("token", "list").stdout
    fleet.proxy("proxy", token, control=slow.address)
    wait_for(used, "the token being used")
    fleet.running[-1].kill()
    fleet.running[-1].wait()
    slow.close()
    assert "a new certificate is in use" not in fleet.log("proxy"), "it was too fast to be killed in between"
    again = fleet.proxy("proxy", token)
    first = wait_for(lambda: svid(again), "the SVID for the key of before")
    assert str(first.spiffe_id) == ID and used()
    fleet.proxy("other", token)
    wait_for(lambda: "was used already" in fleet.log("other"), "the refusal of somebody else")


def test_control_killed_and_started_again_and_a_restart_without_it(fleet):
    socket = fleet.proxy("proxy", fleet.token())
    first = wait_for(lambda: svid(socket), "the first SVID")
    fleet.control.send_signal(signal.SIGKILL)
    fleet.control.wait()
    fleet.running[-1].kill()
    fleet.running[-1].wait()
    socket = fleet.proxy("proxy", fleet.folder / "no-token", trust_domain="mesh.example")
    kept = wait_for(lambda: svid(socket), "the saved SVID")
    assert kept.leaf.not_valid_after_utc >= first.leaf.not_valid_after_utc
    fleet.start_control()
    renewed = wait_for(lambda: (s := svid(socket)).leaf.serial_number != kept.leaf.serial_number and s, "renewal")
    assert str(renewed.spiffe_id) == ID
    assert renewed.cert_chain[1].issuer == first.cert_chain[1].issuer, "the CA is the same after a kill"


def test_roots_rotate_and_identities_are_revoked_while_all_goes_on(fleet):
    socket = fleet.proxy("proxy", fleet.token())
    wait_for(lambda: svid(socket), "the first SVID")

    def roots():
        with WorkloadApiClient(path_of(socket)) as client:
            return len(client.fetch_x509_bundles().get_bundle_for_trust_domain(svid(socket).spiffe_id.trust_domain).x509_authorities)

    assert fleet.ask("ca", "rotate", "root").returncode == 0
    # At once: ten seconds later the next root signs, and another one could follow.
    again = fleet.ask("ca", "rotate", "root")
    assert again.returncode == 1 and "is being rotated already" in again.stderr
    wait_for(lambda: roots() == 2, "the next root being in the bundle")
    wait_for(lambda: "next" not in fleet.ask("ca", "show").stdout, "the next root signing")
    before = svid(socket).leaf.serial_number
    wait_for(lambda: svid(socket).leaf.serial_number != before, "a certificate under the new root")
    assert fleet.ask("ca", "revoke", "--identity", "shop/orders").returncode == 0
    wait_for(lambda: "revoked" in fleet.log("proxy"), "the proxy hearing of its revocation")


def test_openssl_verifies_what_the_ca_issues(fleet, tmp_path):
    socket = fleet.proxy("proxy", fleet.token())
    got = wait_for(lambda: svid(socket), "the first SVID")
    with WorkloadApiClient(path_of(socket)) as client:
        bundle = client.fetch_x509_bundles().get_bundle_for_trust_domain(got.spiffe_id.trust_domain)
    files = {"root": bundle.x509_authorities, "chain": got.cert_chain[1:], "leaf": [got.leaf]}
    for name, certificates in files.items():
        (tmp_path / name).write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in certificates))
    for purpose in ["sslclient", "sslserver"]:
        done = subprocess.run(
            ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", tmp_path / "root",
             "-untrusted", tmp_path / "chain", tmp_path / "leaf"],
            capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


class Openssl:
    """A CA of somebody else, made with openssl."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self.run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
                 "-subj", f"/CN={name}", "-keyout", self.path("ca.key"), "-out", self.path("ca.pem"))

    def path(self, name):
        return str(self.folder / f"{self.name}-{name}")

    def run(self, *args):
        subprocess.run(["openssl", *args], check=True, capture_output=True, cwd=self.folder)

    def expired(self, label, name):
        """As `issue`, of last year; openssl makes none that has ended."""
        proof = self.issue(label, f"DNS:{name}")
        chain = pathlib.Path(proof[1])
        ca = x509.load_pem_x509_certificate(pathlib.Path(self.path("ca.pem")).read_bytes())
        key = load_pem_private_key(pathlib.Path(self.path("ca.key")).read_bytes(), None)
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder().subject_name(ca.subject).issuer_name(ca.subject).serial_number(7)
        builder = builder.public_key(x509.load_pem_x509_certificate(chain.read_bytes()).public_key())
        builder = builder.not_valid_before(now - datetime.timedelta(2)).not_valid_after(now - datetime.timedelta(1))
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        chain.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return proof

    def issue(self, label, names, usage="clientAuth"):
        """Chain and key of a leaf, as flags of the proxy."""
        key, request, chain = self.path(f"{label}.key"), self.path(f"{label}.csr"), self.path(f"{label}.crt")
        self.run("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=vm", "-keyout", key, "-out", request)
        extensions = self.folder / f"{label}.ext"
        extensions.write_text(f"subjectAltName={names}\nkeyUsage=critical,digitalSignature\nextendedKeyUsage={usage}\n")
        self.run("x509", "-req", "-in", request, "-CA", self.path("ca.pem"), "-CAkey", self.path("ca.key"),
                 "-CAcreateserial", "-days", "1", "-extfile", str(extensions), "-out", chain)
        return ["--join-cert", chain, "--join-key", key]


def test_joining_by_a_certificate_of_another_ca(tmp_path):
    vault, stranger = Openssl(tmp_path, "vault"), Openssl(tmp_path, "stranger")
    rules = tmp_path / "join.yaml"
    allow = "[{dns: orders.vm.example, identity: shop/orders}, {trustDomain: old.example, namespaces: [pay]}]"
    rules.write_text(f"cas:\n- {{name: vault, roots: vault-ca.pem, allow: {allow}}}\n")
    fleet = Fleet(tmp_path, "--join-ca", rules)
    try:
        (tmp_path / "mesh.pem").write_text(fleet.ask("ca", "roots").stdout)

        def join(label, proof):
            return fleet.proxy(label, [*proof, "--trust", tmp_path / "mesh.pem"], trust_domain="mesh.example")

        def refused(label, proof, why, where=None):
            join(label, proof)
            wait_for(lambda: why in fleet.log(where or label), f"{label} being refused: {why}")
            assert "a new certificate is in use" not in fleet.log(label)
            # Whoever goes on trying uses up what its address may try.
            fleet.running[-1].kill()
            fleet.running[-1].wait()

        good = vault.issue("good", "DNS:orders.vm.example")
        socket = join("good", good)
        first = wait_for(lambda: svid(socket), "the first SVID")
        assert str(first.spiffe_id) == ID
        wait_for(lambda: svid(socket).leaf.serial_number != first.leaf.serial_number, "its renewal")
        # Who it is, is not for the node to say, nor for the CA.
        refused("other-name", vault.issue("other-name", "DNS:cart.vm.example"), "no rule of --join-ca")
        refused("own-domain", vault.issue("own-domain", f"URI:{ID}"), "no rule of --join-ca")
        refused("other-id", vault.issue("other-id", "URI:spiffe://old.example/ns/pay/sa/till"),
                "this certificate may be spiffe://mesh.example/ns/pay/sa/till, not")
        # What is no certificate to join with ends the handshake, and the control plane says why.
        refused("stranger", stranger.issue("stranger", "DNS:orders.vm.example"), "its log says why")
        assert "its issuer is none that we trust there" in fleet.log("control")
        refused("server", vault.issue("server", "DNS:orders.vm.example", usage="serverAuth"), "extended key usage", "control")
        refused("expired", vault.expired("expired", "orders.vm.example"), "has expired", "control")
        # Revoked: the same certificate brings nobody back, a newer one does.
        assert fleet.ask("ca", "revoke", "--identity", "shop/orders").returncode == 0
        fleet.running[-1].kill()
        refused("again", good, "this certificate began before")
        revoked_at = int(time.time())
        wait_for(lambda: int(time.time()) > revoked_at, "the next second")
        socket = join("newer", vault.issue("newer", "DNS:orders.vm.example"))
        assert str(wait_for(lambda: svid(socket), "an SVID by the newer certificate").spiffe_id) == ID
        # No CA, no joining; the file is read again.
        rules.write_text("cas: []\n")
        wait_for(lambda: "the CAs whose certificates may join have changed" in fleet.log("control"), "the file being read")
        refused("late", vault.issue("late", "DNS:orders.vm.example"), "its log says why")
    finally:
        fleet.stop()
